"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from defectcam import DefectCAMClassifier

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
AXE = Path(os.environ.get("AXE", "node_modules/axe-core/axe.min.js"))

settings.register_profile("long", max_examples=1000, deadline=None)  # --hypothesis-profile=long
settings.register_profile("usual", deadline=None)  # a busy machine fails no test
settings.load_profile("usual")


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


def write_parts(root: Path) -> Path:
    """Write `parts/` with 8 PNG files in `good/` and 6 in `scratch/`, 48 x 48 pixels."""
    rng = np.random.default_rng(0)
    for name, count in {"good": 8, "scratch": 6}.items():
        (root / "parts" / name).mkdir(parents=True)
        for number in range(count):
            image = draw_part(rng, scratched=name == "scratch")
            path = root / "parts" / name / f"{number:03d}.png"
            assert cv2.imwrite(str(path), image[..., ::-1])
    return root / "parts"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder `parts/` with 8 PNG files in `good/` and 6 in `scratch/`, 48 x 48 pixels."""
    return write_parts(tmp_path)


@pytest.fixture(scope="session")
def tiny_classifier() -> Callable[..., DefectCAMClassifier]:
    """Return a function that makes a small, quick classifier with random weights, not fitted."""
    from defectcam import DefectCAMClassifier

    def make(**overrides: Any) -> DefectCAMClassifier:
        parameters: dict[str, Any] = {
            "backbone": "test_efficientnet",
            "weights": None,
            "image_size": 64,
            "codebook_size": 16,  # as many centres as patches would leave nothing to measure
            "learning_rate": 1e-2,
            "max_epochs": 3,
            "batch_size": 4,
            "cv": 2,
            "device": "cpu",
            "n_jobs": 1,
            "random_state": 0,
        }
        return DefectCAMClassifier(**{**parameters, **overrides})

    return make


@pytest.fixture(scope="session")
def fitted_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `fitted` was fitted on: as `parts`, but not to be changed."""
    return write_parts(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="session")
def fitted(
    tiny_classifier: Callable[..., DefectCAMClassifier], fitted_parts: Path
) -> DefectCAMClassifier:
    """Return a small classifier fitted on `fitted_parts`; deepcopy it to change it."""
    return tiny_classifier().fit(fitted_parts)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a Chromium; no longer than a module, since it keeps an event loop running."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no Chromium at {CHROMIUM}: install it, or set CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def wait_until(page: Any, condition: str) -> None:
    """Wait until JavaScript says so; `wait_for_function` evaluates text, which reports forbid."""
    for _ in range(1500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"still not so: {condition}")


@pytest.fixture(scope="session")
def torch_writes_onnx() -> None:
    """Skip where the installed torch is too old to write ONNX files."""
    import torch

    from defectcam.export import LEAST_TORCH

    if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST_TORCH:
        pytest.skip("ONNX files are written by torch {}.{} and later".format(*LEAST_TORCH))
