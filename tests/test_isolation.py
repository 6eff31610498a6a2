"""What callers and other threads do with torch changes no training, nor a training theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch

from defectcam.isolation import isolated, undisturbed

CPU = torch.device("cpu")


@pytest.fixture
def parts() -> tuple[np.ndarray, list[str]]:
    images = np.random.default_rng(0).integers(90, 120, size=(8, 32, 32, 3), dtype=np.uint8)
    images[:4, 12:20, 12:20] = 250
    return images, ["dent"] * 4 + ["good"] * 4


@pytest.fixture
def trained(tiny_classifier, parts) -> Callable[[], np.ndarray]:
    """Return a function that trains a network anew and returns its probabilities."""

    def trained() -> np.ndarray:
        one = tiny_classifier(image_size=32, max_epochs=1, random_state=0)
        return one.fit(*parts).predict_proba(parts[0])

    return trained


def test_a_block_draws_from_its_seed_and_leaves_the_generator_alone(generators_untouched):
    with isolated(5, CPU):
        first = torch.rand(3)
    with isolated(5, CPU):
        assert torch.equal(torch.rand(3), first)
    with undisturbed():
        assert not torch.equal(torch.rand(3), first)


def test_the_generator_is_put_back_after_a_failure_too(generators_untouched):
    for block in (isolated(5, CPU), undisturbed()):
        with pytest.raises(RuntimeError, match="broken"), block:
            torch.rand(3)
            raise RuntimeError("broken")


def test_blocks_of_several_threads_do_not_mix(generators_untouched):
    everyone = threading.Barrier(3)

    def draw(seed: int) -> list[float]:
        everyone.wait()
        with isolated(seed, CPU):
            return [float(torch.rand(())) for _ in range(200)]

    alone = []
    for seed in range(3):
        with isolated(seed, CPU):
            alone.append([float(torch.rand(())) for _ in range(200)])
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(draw, range(3))) == alone


def test_a_block_within_a_block_draws_its_own(generators_untouched):
    with isolated(1, CPU):
        expected = torch.rand(2)
    with isolated(1, CPU):
        first = torch.rand(1)
        with isolated(2, CPU):
            torch.rand(7)
        assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_settings_are_the_usual_ones_within_and_the_callers_after():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            with isolated(0, CPU):
                made = torch.zeros(2, 2, requires_grad=True)
                product = made @ made
            assert torch.zeros(1).device.type == "meta"
            assert torch.is_autocast_enabled("cpu")
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.device == CPU
    assert made.dtype == product.dtype == torch.float32
    assert product.requires_grad


def test_other_gpus_are_not_touched():
    with (
        patch("torch.cuda.device_count", return_value=2),
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.init", side_effect=AssertionError("CUDA was made ready")),
        patch("torch.cuda.get_rng_state", side_effect=AssertionError("CUDA was asked")),
        isolated(0, CPU),
        undisturbed(),
    ):
        torch.rand(1)


def test_a_gpu_draws_from_the_seed_too():
    generators = (torch.Generator(), torch.Generator())
    before = [generator.get_state() for generator in generators]
    with (
        patch("torch.cuda.init"),
        patch("torch.cuda.default_generators", generators),
        patch("torch.autocast"),
    ):
        with isolated(3, torch.device("cuda", 1)):
            drawn = torch.rand(2, generator=generators[1])
            assert torch.equal(generators[0].get_state(), before[0])
        assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(generators[1].get_state(), before[1])


def test_trainings_in_threads_are_those_alone(trained, generators_untouched):
    alone = trained()
    with ThreadPoolExecutor(3) as pool:
        for one in [pool.submit(trained) for _ in range(3)]:
            np.testing.assert_array_equal(one.result(), alone)


def test_what_the_caller_has_set_changes_no_answer(tiny_classifier, parts, trained):
    alone = trained()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_array_equal(trained(), alone)
    finally:
        torch.set_default_dtype(torch.float32)
