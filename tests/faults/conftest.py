"""Fixtures of the catalogue, and the summary by group that its run ends with."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.catalogue import GROUPS, Bench

#: Longest that a case may take, in seconds; only one that hangs does.
PATIENCE = 300

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": None,
    "image_size": 32,
    "max_epochs": 1,
    "cv": None,
    "augmentation": "none",
    "codebook_size": 8,
    "device": "cpu",
    "n_jobs": 1,
    "random_state": 0,
}


def images_of_parts() -> np.ndarray:
    images = np.random.default_rng(0).integers(90, 110, size=(8, 32, 32), dtype=np.uint8)
    images[4:, 8:20, 10:16] = 255
    return images


def new_classifier(**parameters: Any) -> Any:
    from defectcam import DefectCAMClassifier

    return DefectCAMClassifier(**{**TINY, **parameters})


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, fitted_parts: Path) -> dict[str, Any]:
    images, labels = images_of_parts(), ["good"] * 4 + ["scratch"] * 4
    model = new_classifier(cv=2).fit(images, labels)
    path = tmp_path_factory.mktemp("model") / "part.safetensors"
    model.save(path)
    return {
        "model": model,
        "images": images,
        "labels": labels,
        "new": new_classifier,
        "saved": path.read_bytes(),
        "parts": fitted_parts,
    }


@pytest.fixture
def bench(
    shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    with _impatient():
        yield Bench(tmp=tmp_path, patch=monkeypatch, **shared)


class _impatient:
    """Fail a case that hangs, where the system has alarms."""

    def __enter__(self) -> None:
        self.has_alarm = hasattr(signal, "SIGALRM") and (
            threading.current_thread() is threading.main_thread()
        )
        if self.has_alarm:
            self.before = signal.signal(signal.SIGALRM, self._fail)
            signal.alarm(PATIENCE)

    def __exit__(self, *exc_info: object) -> None:
        if self.has_alarm:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, self.before)

    @staticmethod
    def _fail(number: int, frame: object) -> None:
        pytest.fail(f"hangs: not finished after {PATIENCE} s")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many cases of each group came out as stated."""
    counts: dict[str, Counter[str]] = {group: Counter() for group in GROUPS.values()}
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            group = dict(getattr(report, "user_properties", ())).get("fault_group")
            if group:
                counts[group][outcome] += 1
    if not any(counts.values()):
        return
    terminalreporter.section("faults: cases as stated, by group")
    total: Counter[str] = Counter()
    for group, count in counts.items():
        total += count
        terminalreporter.write_line(_row(group, count))
    terminalreporter.write_line(_row("all", total))


def _row(name: str, count: Counter[str]) -> str:
    other = {kind: n for kind, n in count.items() if kind != "passed"}
    left = "".join(f", {n} {kind}" for kind, n in other.items())
    return f"{name:<26}{count['passed']:>4} of {sum(count.values())}{left}"
