from __future__ import annotations

from typing import Any

import pytest
import torch

from defectcam import DefectCAMClassifier
from defectcam.architecture import OF_NETWORK, build_network


def parameters(**changed: Any) -> dict[str, Any]:
    clf = DefectCAMClassifier("test_efficientnet", weights=None, image_size=64, device="cpu")
    clf.set_params(**changed)
    return {name: getattr(clf, name) for name in (*OF_NETWORK, "device")}


def test_these_parameters_are_enough_for_a_network() -> None:
    network, preprocess = build_network(parameters(pooling="top_k"), 3, good=1)
    assert network(torch.zeros(2, 3, *preprocess.image_size)).shape == (2, 3)
    assert network.head.reference == 1 and not network.training


def test_without_normalisation_pixels_are_the_input() -> None:
    _, preprocess = build_network(parameters(normalisation="unit"), 2, good=0)
    assert preprocess.mean.flatten().tolist() == [0] * 3
    assert preprocess.std.flatten().tolist() == [1] * 3


@pytest.mark.parametrize(
    ("heatmap", "pooling", "needs_novelty"),
    [("fused", "average", True), ("cam", "novelty_top_k", True), ("cam", "average", False)],
)
def test_novelty_is_computed_where_map_or_pooling_needs_it(heatmap, pooling, needs_novelty):
    network, _ = build_network(parameters(heatmap=heatmap, pooling=pooling), 2, good=0)
    assert bool(network.novelty_levels) == needs_novelty
    assert (network.head.reference is None) == (pooling == "average")
