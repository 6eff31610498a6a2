from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defectcam.heads import POOLINGS, EvidenceHead, pool_evidence

SHAPES = ((24, 12, 16), (40, 6, 8), (112, 3, 4))  # (channels, h, w) of three feature levels


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def features(n: int = 3) -> list[Tensor]:
    return [normal(n, *shape, seed=i) for i, shape in enumerate(SHAPES)]


def head(**settings: object) -> EvidenceHead:
    made = EvidenceHead([shape[0] for shape in SHAPES], 2, **settings)
    with torch.no_grad():
        made.bias.copy_(torch.tensor([0.3, -1.7]))
    return made


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_evidence_lies_on_the_finest_grid(levels, n_classes):
    made = EvidenceHead([s[0] for s in SHAPES[:levels]], n_classes)
    logits, evidence = made(features()[:levels])
    assert logits.shape == (3, n_classes)
    assert evidence.shape == (3, n_classes, 12, 16)


@pytest.mark.parametrize("normalise", [True, False])
def test_average_pooling_makes_the_evidence_a_class_activation_map(normalise):
    made = head(normalise=normalise, init="linear")
    logits, evidence = made(features())
    assert torch.equal(logits, evidence.mean((2, 3)) + made.bias)


def test_evidence_is_the_sum_of_the_levels_without_the_bias():
    made = head(normalise=False, init="linear")
    levels = features()
    expected = [
        F.interpolate(
            torch.einsum("kc,nchw->nkhw", conv.weight[:, :, 0, 0], x),
            size=(12, 16),
            mode="bilinear",
            align_corners=False,
        )
        for conv, x in zip(made.convs, levels, strict=True)
    ]
    of_levels = made.level_evidence(levels)
    assert of_levels.shape == (3, 3, 2, 12, 16)
    for level, found in zip(expected, of_levels.unbind(1), strict=True):
        torch.testing.assert_close(found, level)
    torch.testing.assert_close(made.evidence(levels), sum(expected))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_evidence_of_a_level_comes_from_its_features_alone(normalise):
    made = head(normalise=normalise, init="linear").eval()
    levels = features()
    of_levels = made.level_evidence(levels)
    for i, found in enumerate(of_levels.unbind(1)):
        others_silent = [x if j == i else torch.zeros_like(x) for j, x in enumerate(levels)]
        torch.testing.assert_close(made.evidence(others_silent), found)
        assert found.abs().mean() > 0.1
    assert torch.equal(made(levels)[1], of_levels.sum(1))


def test_one_level_under_average_pooling_is_global_pooling_and_one_dense_layer():
    torch.manual_seed(7)
    dense = nn.Linear(24, 2)
    torch.manual_seed(7)
    made = EvidenceHead([24], 2, normalise=False, init="linear")
    x = features()[0]
    torch.testing.assert_close(made([x])[0], dense(x.mean((2, 3))))


def test_linear_init_draws_as_one_dense_layer_over_all_levels():
    torch.manual_seed(7)
    dense = nn.Linear(24 + 40, 3)
    torch.manual_seed(7)
    made = EvidenceHead([24, 40], 3, init="linear")
    weights = torch.cat([conv.weight[:, :, 0, 0] for conv in made.convs], dim=1)
    assert torch.equal(weights, dense.weight)
    assert torch.equal(made.bias, dense.bias)


def test_normal_init_is_small_with_a_bias_of_zero():
    made = EvidenceHead([500, 300], 4)
    assert torch.equal(made.bias, torch.zeros(4))
    for conv in made.convs:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert abs(conv.weight.mean().item()) < 0.002


def test_normalisation_has_nothing_to_learn_but_its_statistics():
    made = head(normalise=True)
    assert [name for name, _ in made.named_parameters()] == [
        "bias",
        "convs.0.weight",
        "convs.1.weight",
        "convs.2.weight",
    ]
    shifted = [5 * x + 3 for x in features()]
    made.train()
    torch.testing.assert_close(made(shifted)[0], made(features())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_of_n_is_n_batches_of_one(pooling):
    made = head(pooling=pooling, fraction=0.05, init="linear").eval()
    levels, novelty = features(n=4), normal(4, 20, 20)
    together = made(levels, novelty)
    for i in range(4):
        alone = made([x[i : i + 1] for x in levels], novelty[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-5, atol=1e-5)


def reference_pooling(
    evidence: np.ndarray, pooling: str, fraction: float, novelty: np.ndarray
) -> np.ndarray:
    if pooling == "novelty_top_k":  # novelty on the evidence's own grid
        top = reference_pooling(evidence, "top_k", fraction, novelty)
        weights = np.exp(2 * novelty) / np.exp(2 * novelty).sum((1, 2), keepdims=True)
        return (top + (evidence * weights[:, None]).sum((2, 3))) / 2
    scores = np.zeros(evidence.shape[:2])
    for i, maps in enumerate(evidence):
        for c, values in enumerate(maps):
            ranked = sorted(values.ravel().tolist(), reverse=True)
            k = {"average": len(ranked), "max": 1, "top_k": max(1, round(fraction * len(ranked)))}
            scores[i, c] = sum(ranked[: k[pooling]]) / k[pooling]
    return scores


@pytest.mark.parametrize("pooling", POOLINGS)
@given(
    fraction=st.floats(0.001, 1.0),
    shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 9)] * 2),
    seed=st.integers(0, 2**16),
)
@example(fraction=0.76, shape=(2, 2, 3, 5), seed=0)  # 11.4 positions: down to 11
@example(fraction=0.78, shape=(2, 2, 3, 5), seed=0)  # 11.7 positions: up to 12
@settings(deadline=None, max_examples=30)
def test_poolings_agree_with_a_slow_reference(pooling, fraction, shape, seed):
    evidence = normal(*shape, seed=seed).round(decimals=1)  # coarse values: ties occur
    novelty = normal(shape[0], *shape[2:], seed=seed + 1)
    pooled = pool_evidence(evidence, pooling, fraction, novelty)
    expected = reference_pooling(evidence.numpy(), pooling, fraction, novelty.numpy())
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_top_k_lies_between_average_and_max_and_reaches_both():
    evidence = normal(3, 2, 7, 5)
    average, largest = pool_evidence(evidence, "average"), pool_evidence(evidence, "max")
    torch.testing.assert_close(pool_evidence(evidence, "top_k", 1.0), average)
    assert torch.equal(pool_evidence(evidence, "top_k", 1e-6), largest)
    between = pool_evidence(evidence, "top_k", 0.3)
    assert (average < between).all() and (between < largest).all()


@pytest.mark.parametrize(("pooling", "k"), [("average", 35), ("top_k", 7), ("max", 1)])
def test_gradients_reach_the_pooled_positions_only(pooling, k):
    evidence = normal(2, 3, 7, 5).requires_grad_()
    pool_evidence(evidence, pooling, 0.2).sum().backward()
    assert evidence.grad is not None
    values, gradients = evidence.detach().flatten(2), evidence.grad.flatten(2)
    pooled = values >= values.sort(dim=2, descending=True).values[..., k - 1 : k]
    torch.testing.assert_close(gradients, pooled.float() / k)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "median"}, "pooling='median'"),
        ({"pooling": "top_k", "fraction": 0.0}, r"fraction=0\.0"),
        ({"pooling": "top_k", "fraction": 1.5}, r"fraction=1\.5"),
        ({"init": "zeros"}, "init='zeros'"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        EvidenceHead([4], 2, **settings)


def test_another_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="got 1 feature levels, expected 3"):
        head()(features()[:1])


@pytest.mark.parametrize("pooling", ["average", "top_k", "max"])
def test_scaling_multiplies_scores_and_evidence(pooling):
    h = head(pooling=pooling, fraction=0.3)
    with torch.no_grad():
        h.bias.copy_(torch.arange(len(h.bias)))
        scores, evidence = h(features())
        h.scale_(2.5)
        scaled_scores, scaled_evidence = h(features())
    torch.testing.assert_close(scaled_scores, 2.5 * scores)
    torch.testing.assert_close(scaled_evidence, 2.5 * evidence)


def test_against_the_reference_class_its_own_score_is_its_bias():
    h = head(pooling="max", reference=1)
    with torch.no_grad():
        h.bias.copy_(torch.arange(len(h.bias)) + 0.5)
        scores, evidence = h(features())
    torch.testing.assert_close(scores[:, 1], h.bias[1].expand(len(scores)).detach())
    best = (evidence[:, 0] - evidence[:, 1]).amax((1, 2)) + h.bias[0].detach()
    torch.testing.assert_close(scores[:, 0], best)


def test_pooling_by_novelty_asks_where_it_is_novel():
    evidence = normal(1, 2, 4, 4)
    novelty = torch.zeros(1, 8, 8)
    novelty[0, 4:6, 2:4] = 50.0  # position (2, 1) of the evidence
    top = pool_evidence(evidence, "top_k", 0.25)
    expected = (top + evidence[:, :, 2, 1]) / 2
    pooled = pool_evidence(evidence, "novelty_top_k", 0.25, novelty)
    torch.testing.assert_close(pooled, expected)
    with pytest.raises(ValueError, match="needs the novelty map"):
        pool_evidence(evidence, "novelty_top_k", 0.25)
