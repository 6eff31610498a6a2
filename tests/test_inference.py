from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defectcam.backbones import create_backbone
from defectcam.inference import described, evaluating, scored
from defectcam.network import DefectCAMNetwork


def network() -> DefectCAMNetwork:
    return DefectCAMNetwork(
        create_backbone("test_efficientnet", None),
        head_options={"n_classes": 2, "pooling": "average"},
        trainable_stages=2,
        evidence_stages=2,
    )


def batches(*sizes: int) -> Iterator[tuple[Tensor, list[Any]]]:
    rng = np.random.default_rng(0)
    for n in sizes:
        pixels = torch.from_numpy(rng.normal(size=(n, 3, 64, 64)).astype(np.float32))
        yield pixels, [None] * n


def modes(net: DefectCAMNetwork) -> list[bool]:
    return [module.training for module in net.modules()]


def test_scores_are_those_of_the_network_and_need_no_gradient():
    net = network().eval()
    (first, second), (given, *_) = list(scored(net, batches(2, 1))), list(batches(2, 1))
    assert [len(one.logits) for one in (first, second)] == [2, 1]
    assert len(first.geometries) == 2
    with torch.no_grad():
        expected = net.infer(given[0])
    assert torch.equal(first.logits, expected.logits)
    assert torch.equal(first.levels, expected.levels)
    assert first.novelty is None and first.log_odds is None
    assert not first.logits.requires_grad
    assert torch.equal(first.pixels, given[0])


def test_scores_are_float32_whatever_the_network_computes_in():
    net = network().eval()
    net.set_dtype(torch.bfloat16)
    one = next(scored(net, batches(2)))
    assert one.logits.dtype == one.levels.dtype == torch.float32


def test_images_are_taken_when_they_are_asked_for():
    taken = []

    def watched() -> Iterator[tuple[Tensor, list[Any]]]:
        for n, batch in enumerate(batches(1, 1, 1)):
            taken.append(n)
            yield batch

    found = scored(network(), watched())
    assert taken == []
    next(found)
    assert taken == [0]


def test_what_is_described_has_the_same_scores():
    net = network().eval()
    plain = next(scored(net, batches(2)))
    same, description = next(described(net, batches(2)))
    assert torch.equal(plain.logits, same.logits)
    assert len(description.level_features) == plain.levels.shape[1]


def test_a_block_evaluates_and_gives_each_module_its_mode_back():
    net = network().train()
    before = modes(net)
    assert True in before and False in before  # the trunk is never trained
    with evaluating(net):
        assert not any(modes(net))
    assert modes(net) == before
    with pytest.raises(ZeroDivisionError), evaluating(net):
        raise ZeroDivisionError
    assert modes(net) == before


def test_only_the_last_of_several_blocks_gives_the_modes_back():
    net = network().train()
    before = modes(net)
    first, second = evaluating(net), evaluating(net)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as one of two threads that is ready sooner
    assert not any(modes(net))
    second.__exit__(None, None, None)
    assert modes(net) == before


def test_a_network_is_not_kept_alive():
    net = network()
    with evaluating(net):
        pass
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
