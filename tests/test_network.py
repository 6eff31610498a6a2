from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defectcam.backbones import Backbone, create_backbone
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook


def pixels(n: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    values = np.random.default_rng(0).normal(size=(n, 3, *size))
    return torch.from_numpy(values.astype(np.float32))


def network(
    backbone: str = "test_efficientnet", trainable: float = 2, evidence: int = 2, **options: Any
) -> DefectCAMNetwork:
    head_options: dict[str, object] = {"n_classes": 2, "pooling": "average", **options}
    strides = head_options.pop("novelty_strides", ())
    return DefectCAMNetwork(
        create_backbone(backbone, None),
        head_options=head_options,
        trainable_stages=trainable,
        evidence_stages=evidence,
        novelty_strides=strides,  # type: ignore[arg-type]
    )


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def fixed_in(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if not p.requires_grad}


def depthwise_in(module: nn.Module) -> set[str]:
    return {
        f"{name}.weight"
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d) and m.weight.shape[1] == 1 < m.in_channels
    }


def test_pre_trained_depthwise_kernels_stay_as_they_are():
    net = network(trainable=3)
    net.keep_depthwise_kernels()
    assert fixed_in(net.tail) == depthwise_in(net.tail) != set()
    vgg = network("vgg16", trainable=5)
    vgg.keep_depthwise_kernels()
    assert not fixed_in(vgg.tail)


@pytest.mark.parametrize("trainable", range(6))
def test_the_last_stages_train_and_the_others_never_do(trainable):
    net = network(trainable=trainable)
    assert (len(net.trunk), len(net.tail)) == (5 - trainable, trainable)
    assert not any(p.requires_grad for p in net.trunk.parameters())
    assert not fixed_in(net.tail)  # random weights: all have to be learned
    assert all(p.requires_grad for p in net.head.parameters())


def test_the_trunk_evaluates_even_while_training():
    net = network().train()
    assert net.training
    assert not any(m.training for m in net.trunk.modules())
    assert all(m.training for m in net.tail.modules())
    assert all(m.training for m in net.head.modules())
    assert not any(m.training for m in net.eval().modules())


def test_a_training_pass_leaves_the_trunk_as_it_was():
    net = network().train()
    before = {name: value.clone() for name, value in net.trunk.state_dict().items()}
    tail_mean = batch_norms(net.tail)[0].running_mean.clone()
    net(pixels()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.trunk.state_dict().items())
    assert all(p.grad is None for p in net.trunk.parameters())
    assert all(p.grad is not None for p in net.tail.parameters())
    assert not torch.equal(batch_norms(net.tail)[0].running_mean, tail_mean)


@pytest.mark.parametrize("trainable", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("evidence", [1, 2, 5])
def test_evidence_comes_from_the_last_stages_wherever_the_trunk_ends(trainable, evidence):
    net = network(trainable=trainable, evidence=evidence, normalise=False, init="linear").eval()
    stages = [*net.trunk, *net.tail]
    if net.tail:
        stages[len(net.trunk)] = nn.Sequential(net.entry, net.tail[0])
    x, levels = pixels(), []
    for stage in stages:
        x = stage(x)
        levels.append(x)
    expected = net.head.level_evidence(levels[-evidence:])
    output = net.infer(pixels())
    grid = (64 // 2 ** (6 - evidence), 96 // 2 ** (6 - evidence))
    assert output.levels.shape == (2, evidence, 2, *grid)
    torch.testing.assert_close(output.levels, expected)
    torch.testing.assert_close(output.evidence, net.head.evidence(levels[-evidence:]))


@pytest.mark.parametrize("pooling", ["average", "top_k", "max"])
def test_forward_gives_the_scores_of_infer(pooling):
    net = network(pooling=pooling, fraction=0.2).eval()
    output = net.infer(pixels())
    assert torch.equal(net(pixels()), output.logits)
    assert torch.equal(output.logits, net.head.logits(output.evidence))
    assert output.novelty is None


def test_evidence_from_kept_features_is_that_of_the_whole_pass():
    net = network(trainable=1, evidence=3).eval()
    features = net.trunk_features(pixels())
    assert len(features.deep) == 3  # two evidence levels of the trunk, and the tail's input
    output = net.infer(pixels())
    assert torch.equal(net.level_evidence(features.deep), output.levels)
    assert len(features.deep) == 3  # not consumed
    assert torch.equal(net.evidence(features.deep), output.evidence)
    assert torch.equal(output.evidence, output.levels.sum(1))


def test_the_pooling_that_opens_the_last_stage_of_vgg_happens_before_the_cache():
    backbone = create_backbone("vgg11", None)
    expected = backbone(pixels())[-1]
    net = DefectCAMNetwork(
        backbone, head_options={"n_classes": 2}, trainable_stages=1, evidence_stages=1
    )
    assert [type(layer) for layer in net.entry] == [nn.MaxPool2d]
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in net.tail.modules())
    kept = net.trunk_features(pixels()).deep[-1]
    assert kept.shape == (2, 512, 4, 6)
    torch.testing.assert_close(net.tail[0](kept), expected)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_trunk_and_tail_together_are_the_backbone(name):
    backbone = create_backbone(name, None).eval()
    expected = copy.deepcopy(backbone)(pixels())[-1]
    net = DefectCAMNetwork(
        backbone, head_options={"n_classes": 2}, trainable_stages=2, evidence_stages=1
    ).eval()
    x = net.trunk_features(pixels()).deep[-1]
    for stage in net.tail:
        x = stage(x)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert not list(net.entry.parameters())


@pytest.mark.parametrize(
    ("trainable", "evidence", "message"),
    [
        (6, 1, "trainable_stages=6: this backbone has 5 stages"),
        (-1, 1, "trainable_stages=-1"),
        (1, 0, "evidence_stages=0"),
        (1, 6, "evidence_stages=6"),
    ],
)
def test_stages_that_the_backbone_lacks_are_refused(trainable, evidence, message):
    with pytest.raises(ValueError, match=message):
        network(trainable=trainable, evidence=evidence)


def test_novelty_is_measured_on_the_trunk_levels_of_the_given_strides():
    net = network(trainable=2, novelty_strides=(8, 4)).eval()
    patches = net.trunk_features(pixels()).patches
    assert patches.shape == (2, 24 + 32, 8, 12)
    assert net.infer(pixels()).novelty is None  # no codebook yet
    net.codebook = Codebook(56, 2 * 8 * 12)
    net.codebook.centres.copy_(patches.permute(0, 2, 3, 1).reshape(-1, 56))
    novelty = net.infer(pixels()).novelty
    assert novelty.shape == (2, 8, 12)
    assert (novelty < 1e-2).all()  # every patch is a centre
    assert net.infer(pixels() + 1).novelty.mean() > 0.1


def test_strides_of_trained_stages_are_left_out_of_the_novelty():
    net = network(trainable=2, novelty_strides=(8, 16))
    assert net.trunk_features(pixels()).patches.shape == (2, 32, 8, 12)


def test_novelty_without_any_frozen_stride_is_refused():
    with pytest.raises(ValueError, match=r"have strides \(2, 4, 8\)"):
        network(trainable=2, novelty_strides=(16, 32))


def test_a_network_without_novelty_describes_no_patches():
    assert network().trunk_features(pixels()).patches is None


def test_an_image_alone_gives_what_it_gives_in_a_batch():
    net = network(trainable=1).eval()
    together = net(pixels(4))
    alone = torch.cat([net(image[None]) for image in pixels(4)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def counted_passes(net: DefectCAMNetwork) -> list[int]:
    """How many images enter the trunk together, from now on."""
    passes: list[int] = []
    net.trunk[0].register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


@pytest.mark.parametrize(
    ("dtype", "n", "expected"),
    [
        (torch.float32, 7, [3, 2, 2]),
        (torch.bfloat16, 7, [4, 3]),
        (torch.float32, 3, [3]),
        (torch.float32, 0, [0]),
    ],
)
def test_a_batch_whose_maps_are_large_goes_through_the_trunk_in_parts(
    dtype, n, expected, monkeypatch
):
    monkeypatch.setattr("defectcam.network.PASS_BYTES", 3 * 4 * 64 * 96)  # 3 images in float32
    net = network(trainable=1, novelty_strides=(4, 8)).eval().set_dtype(dtype)
    passes = counted_passes(net)
    with torch.inference_mode():
        got = net.trunk_features(pixels(n))
        assert passes == expected
        net.splits_batches = False
        whole = net.trunk_features(pixels(n))
    assert passes == [*expected, n]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for part, level in zip([*got.deep, got.patches], [*whole.deep, whole.patches], strict=True):
        torch.testing.assert_close(part, level, rtol=tolerance, atol=tolerance)


def test_an_image_larger_than_a_part_goes_through_the_trunk_alone(monkeypatch):
    monkeypatch.setattr("defectcam.network.PASS_BYTES", 1)
    net = network(trainable=1).eval()
    passes = counted_passes(net)
    with torch.inference_mode():
        net.trunk_features(pixels(3))
    assert passes == [1, 1, 1]


def test_a_batch_is_whole_where_gradients_are_recorded(monkeypatch):
    """Methods that hook a frozen layer must see all images at once."""
    monkeypatch.setattr("defectcam.network.PASS_BYTES", 1)
    net = network(trainable=1).eval()
    passes = counted_passes(net)
    net.trunk_features(pixels(3))
    assert passes == [3]


def test_a_stage_without_children_can_be_the_first_trained_one():
    backbone = Backbone(
        [nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), nn.Sequential(nn.MaxPool2d(2))],
        strides=(2, 4),
        channels=(4, 4),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        name="pooling last",
    )
    net = DefectCAMNetwork(
        backbone, head_options={"n_classes": 2}, trainable_stages=1, evidence_stages=1
    ).eval()
    assert net.infer(pixels()).evidence.shape == (2, 2, 16, 24)


def half_trained(**options: Any) -> DefectCAMNetwork:
    """A tail of one and a half stages."""
    return network("resnet18", trainable=1.5, novelty_strides=(4, 8), **options)


def test_of_a_stage_that_trains_in_part_the_first_blocks_are_frozen():
    whole, half = network("resnet18", trainable=2), half_trained()
    assert (len(whole.trunk), len(half.trunk)) == (3, 4)
    assert (len(whole.tail), len(half.tail)) == (2, 2)
    n_trained = [sum(p.numel() for p in net.tail.parameters()) for net in (whole, half)]
    assert 0 < n_trained[1] < n_trained[0]
    assert half.trainable_stages == 1.5
    features = half.eval().trunk_features(pixels())
    assert features.deep[-1].shape == (2, 256, 4, 6)
    output = half.infer(pixels())
    assert torch.equal(half.level_evidence(features.deep), output.levels)


@pytest.mark.parametrize("evidence", [1, 2, 3, 4])
def test_evidence_stages_are_whole_stages_where_one_trains_in_part(evidence):
    net = half_trained(evidence=evidence).eval()
    channels = [64, 128, 256, 512][-evidence:]
    assert [norm.num_features for norm in net.evidence_layers] == channels
    assert net.has_frozen_evidence == (evidence > 2)


def test_students_read_patches_where_these_are_finer_than_the_tails_input():
    net = half_trained().eval()
    assert net.students_read_patches
    assert net.student_channels == [64 + 128, 256, 256, 512]
    assert list(net.student_depths) == [3, 4]
    net.add_untrained_students()
    assert net.infer(pixels()).students.shape == (2, 2, 8, 12)
    whole = network("resnet18", trainable=2, novelty_strides=(4, 8))
    assert not whole.students_read_patches  # the tail's input is as fine
    assert whole.student_channels == [128, 256, 512]
