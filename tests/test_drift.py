from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_part

from defectcam import DefectCAMClassifier, load
from defectcam.drift import STATISTICS, describe_images, measure_drift


def rows(n: int, seed: int, *, shift: float = 0.0, defective: float = 0.3) -> np.ndarray:
    """Draw rows of a reference: a probability and all statistics."""
    rng = np.random.default_rng(seed)
    probability = np.where(np.arange(n) < defective * n, 0.9, 0.1)
    return np.column_stack([probability, rng.normal(size=(n, len(STATISTICS))) + shift])


def test_a_shift_is_found_and_named() -> None:
    new = rows(60, 1)
    new[:, 3] += 3
    found = measure_drift(rows(80, 0), new, 0.5)
    assert found.drifted
    assert found.tests[0].statistic == STATISTICS[2]
    assert found.tests[0].shift > 1
    assert found.p_value < 1e-6
    assert "The line has changed" in str(found)


def test_no_more_false_alarms_than_accepted() -> None:
    alarms = [
        measure_drift(rows(60, seed), rows(50, 1000 + seed), 0.5).drifted for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.05


def test_more_defects_are_no_drift() -> None:
    """Here defective images look different from good ones in every statistic."""
    reference, new = rows(100, 0, defective=0.2), rows(100, 1, defective=0.8)
    for part in (reference, new):
        part[part[:, 0] > 0.5, 1:] += 4
    found = measure_drift(reference, new, 0.5)
    assert not found.drifted
    assert (found.defective, found.defective_reference) == (0.8, 0.2)


def test_examples_are_those_that_stand_out() -> None:
    new = rows(60, 1, defective=0)
    new[[7, 30], 3] += 50
    new[20:, 3] += 3
    assert set(measure_drift(rows(60, 0, defective=0), new, 0.5).examples[:2]) == {7, 30}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^1 image is too few to be compared with 60"):
        measure_drift(rows(60, 0), rows(60, 1)[:1], 0.5)
    with pytest.raises(ValueError, match="3 images are too few to be compared with 60"):
        measure_drift(rows(60, 0), rows(3, 1), 0.5)


def test_a_wrong_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha=5.*between 0 and 1"):
        measure_drift(rows(60, 0), rows(60, 1), 0.5, alpha=5)


@pytest.mark.parametrize("alpha", ["5", None, np.nan])
def test_an_alpha_that_is_no_number_is_refused(alpha) -> None:
    with pytest.raises(ValueError, match=r"alpha=.*between 0 and 1"):
        measure_drift(rows(60, 0), rows(60, 1), 0.5, alpha=alpha)


@pytest.mark.parametrize("n_examples", [-1, 2.5, "5", None])
def test_a_wrong_number_of_examples_is_refused(n_examples) -> None:
    with pytest.raises(ValueError, match=f"n_examples={n_examples!r}: a whole number"):
        measure_drift(rows(60, 0), rows(60, 1), 0.5, n_examples=n_examples)


def test_a_moved_map_has_its_novelty_elsewhere() -> None:
    still = np.zeros((1, 20, 40), dtype=np.float32)
    still[0, 5:8, 10:14] = 3
    described = describe_images(np.zeros((2, 1)), np.concatenate([still, np.roll(still, 8, 2)]))
    left, top = STATISTICS.index("novelty, from left"), STATISTICS.index("novelty, from top")
    assert described[0, left] == pytest.approx(12 / 40)
    assert described[1, left] == pytest.approx(20 / 40)
    assert described[0, top] == described[1, top] == pytest.approx(6.5 / 20)


def test_evidence_may_differ_a_little() -> None:
    """The folds' networks, whose answers are kept, have seen less than the final one."""
    reference, new = rows(90, 0, defective=0), rows(90, 1, defective=0)
    new[:, 1] = 1.2 * new[:, 1] + 0.4
    assert not measure_drift(reference, new, 0.5).drifted
    new[:, 1] += 2
    found = measure_drift(reference, new, 0.5)
    assert found.drifted
    assert found.tests[0].statistic == "evidence"


def test_without_novelty_the_evidence_is_left() -> None:
    assert describe_images(np.array([[1.0, 2.0]]), None).tolist() == [[1.0]]


# --- The classifier ---------------------------------------------------------------------------


def parts(n: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_part(rng, scratched=number % 3 == 0) for number in range(n)]


@pytest.fixture(scope="module")
def clf(tiny_classifier: Callable[..., DefectCAMClassifier]) -> DefectCAMClassifier:
    labels = ["scratch" if number % 3 == 0 else "good" for number in range(48)]
    return tiny_classifier(max_epochs=1).fit(parts(48, 0), labels)


def test_unchanged_images_have_not_drifted(clf: DefectCAMClassifier) -> None:
    found = clf.drift(parts(24, 1))
    assert not found.drifted, found
    assert (found.n_images, found.n_reference) == (24, 48)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "darker": lambda image: (image * 0.6).astype(np.uint8),
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
    "another product": lambda image: np.where(np.indices(image.shape)[1] % 8 < 4, image, 40).astype(
        np.uint8
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found(change: str, clf: DefectCAMClassifier) -> None:
    assert clf.drift([CHANGES[change](image) for image in parts(24, 1)]).drifted


def test_a_saved_classifier_finds_the_same(clf: DefectCAMClassifier, tmp_path: Path) -> None:
    clf.save(tmp_path / "model.safetensors")
    new = parts(24, 1)
    assert load(tmp_path / "model.safetensors").drift(new) == clf.drift(new)


def test_a_classifier_without_a_reference_says_what_to_do(clf: DefectCAMClassifier) -> None:
    old = copy.copy(clf)
    old.drift_reference_ = np.empty((0, 0), dtype=np.float32)
    with pytest.raises(ValueError, match=r"without folds, or saved by an earlier release. Fit"):
        old.drift(parts(2, 1))


def test_too_few_images_say_how_many_are_needed(clf: DefectCAMClassifier) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        clf.drift(parts(3, 1))


@pytest.mark.parametrize("options", [{"alpha": 5}, {"n_examples": -1}])
def test_options_are_refused_before_images_are_read(
    options: dict, clf: DefectCAMClassifier, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        clf.drift([tmp_path / "none.png"], **options)
