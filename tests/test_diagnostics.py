from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from defectcam import diagnostics
from defectcam.exceptions import (
    ChanceLevelWarning,
    FewDefectsWarning,
    NearDuplicateWarning,
    OnlyGoodImagesWarning,
    SuspectLabelsWarning,
)


@pytest.fixture(autouse=True)
def no_other_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def defects(n_good: int, n_defective: int) -> np.ndarray:
    return np.arange(n_good + n_defective) >= n_good


# --- Too little data ----------------------------------------------------------------------------


def test_good_images_alone_are_remarked_upon():
    with pytest.warns(
        OnlyGoodImagesWarning, match=r"only good images \(7\): novelty alone decides"
    ):
        diagnostics.warn_if_only_good(defects(7, 0))
    diagnostics.warn_if_only_good(defects(7, 1))


@pytest.mark.parametrize(
    ("n", "points"),
    [
        (1, "There is only 1 defective image:.*rest on it, and one more or less is 100 points"),
        (4, "There are only 4 defective images:.*rest on them, and one of them.*25 points"),
    ],
)
def test_few_defective_images_are_remarked_upon(n, points):
    with pytest.warns(FewDefectsWarning, match=points):
        diagnostics.warn_if_few_defects(defects(50, n))


@pytest.mark.parametrize("n", [0, diagnostics.ENOUGH_DEFECTS, 100])
def test_enough_defective_images_are_not(n):
    diagnostics.warn_if_few_defects(defects(5, n))


# --- Chance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", ["equal", "random", "opposite"])
def test_scores_that_know_nothing_are_remarked_upon(probability):
    is_defect = defects(40, 20)
    scores = {
        "equal": np.full(60, 0.3),
        "random": np.random.default_rng(0).uniform(size=60),
        "opposite": 1.0 - is_defect,
    }
    with pytest.warns(ChanceLevelWarning, match=r"no better than by chance \(image AUROC 0\.\d\d"):
        diagnostics.warn_if_chance(is_defect, scores[probability])


@pytest.mark.parametrize(("n_good", "n_defective"), [(3, 1), (2, 2), (40, 20)])
def test_scores_in_perfect_order_are_not(n_good, n_defective):
    is_defect = defects(n_good, n_defective)
    diagnostics.warn_if_chance(is_defect, is_defect + np.linspace(0, 0.1, len(is_defect)))


def test_the_test_errs_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    is_defect = defects(30, 12)
    n_silent = 0
    for _ in range(300):
        try:
            diagnostics.warn_if_chance(is_defect, rng.uniform(size=42))
            n_silent += 1
        except ChanceLevelWarning:
            pass
    assert n_silent <= 3 * 300 * diagnostics.CHANCE_LEVEL


# --- Labels -------------------------------------------------------------------------------------


def test_suspects_are_all_images_the_least_probable_labels_first():
    ranked = diagnostics.rank_suspects(np.array([0.9, 0.1, 0.5, 0.1]))
    assert ranked.tolist() == [1, 3, 2, 0]
    assert ranked.dtype == np.int64


def separated(n_wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, of which the first `n_wrong` are wrong, and confident predictions."""
    is_defect = defects(30, 15)
    truth = is_defect.copy()
    truth[:n_wrong] = True
    return is_defect, np.where(truth, 0.995, 0.005)


def test_a_label_that_is_contradicted_with_confidence_is_doubted():
    is_defect, probability = separated(3)
    probability[1] = 0.999
    assert diagnostics.contradicted_labels(is_defect, probability).tolist() == [1, 0, 2]
    items = [Path(f"{number}.png") for number in range(45)]
    labels = np.where(is_defect, "dent", "good")
    with pytest.warns(SuspectLabelsWarning) as caught:
        diagnostics.warn_if_suspects(is_defect, probability, labels, items)
    message = str(caught[0].message)
    assert message.startswith("The label of 3 training images is contradicted")
    assert "'1.png' ('good'), '0.png' ('good'), '2.png' ('good'). Look at them" in message


def test_at_most_five_are_named_and_images_in_memory_by_number():
    is_defect, probability = separated(8)
    with pytest.warns(SuspectLabelsWarning, match=r"image 4 \(False\) and 3 more\. Look"):
        diagnostics.warn_if_suspects(is_defect, probability, is_defect, list(np.zeros((45, 2, 2))))


def test_an_overlap_of_the_classes_is_no_reason_to_doubt_labels():
    rng = np.random.default_rng(0)
    is_defect = defects(200, 100)
    score = rng.normal(size=300) + 2.5 * is_defect
    probability = 1 / (1 + np.exp(-(2.5 * score - 3.8)))  # calibrated
    assert (np.where(is_defect, probability, 1 - probability) < 0.5).sum() > 20
    assert len(diagnostics.contradicted_labels(is_defect, probability)) <= 2
    assert len(diagnostics.contradicted_labels(*separated(0))) == 0


# --- Duplicates ---------------------------------------------------------------------------------


def test_copies_under_two_labels_are_named_the_good_one_first():
    is_defect = np.array([True, False, False, True])
    items = ["a.png", "b.png", "c.png", "d.png"]
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    with pytest.warns(
        NearDuplicateWarning, match=r"2 pairs.*'b\.png' and 'a\.png', 'c\.png' and 'd"
    ):
        diagnostics.warn_if_duplicates(pairs, is_defect, items)


def test_copies_under_one_label_are_nothing_to_be_told():
    is_defect = np.array([True, True, False])
    diagnostics.warn_if_duplicates(np.array([[0, 1]]), is_defect, ["a", "b", "c"])
    diagnostics.warn_if_duplicates(np.empty((0, 2), dtype=np.int64), is_defect, ["a", "b", "c"])
