"""Fixtures that several test modules share."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    """Start every test from the same global generators, and hide from the next what it drew."""
    torch = sys.modules.get("torch")  # tests of modules without torch do not load it
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    if torch:
        torch.default_generator.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    if torch:
        torch.set_rng_state(states[2])


@pytest.fixture
def generators_untouched() -> Iterator[None]:
    """Fail if the test moves one of the global generators of Python, NumPy or torch."""
    import torch

    def states() -> tuple[object, ...]:
        name, keys, *rest = np.random.get_state()
        return (
            random.getstate(),
            name,
            keys.tobytes(),
            *rest,
            torch.get_rng_state().numpy().tobytes(),
        )

    before = states()
    yield
    assert states() == before, "a global random generator was moved"


def draw_part(rng: np.random.Generator, *, scratched: bool, size: int = 48) -> np.ndarray:
    """Return a grey, slightly noisy part, uint8 RGB; a scratch is a bright line somewhere on it."""
    image = np.full((size, size, 3), 110.0)
    if scratched:
        start = rng.integers(4, size // 2, size=2)
        end = start + rng.integers(size // 4, size // 2 - 4, size=2)
        cv2.line(image, start.tolist(), end.tolist(), (230.0, 230.0, 230.0), thickness=2)
    image += rng.normal(0, 4, size=image.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder `parts/` with 8 PNG files in `good/` and 6 in `scratch/`, 48 x 48 pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "parts"
    for name, count in {"good": 8, "scratch": 6}.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = draw_part(rng, scratched=name == "scratch")
            assert cv2.imwrite(str(root / name / f"{number:03d}.png"), image[..., ::-1])
    return root
