"""What is looked at first, and what it is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import draw_part
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from defectcam import ContrastEqualizer
from defectcam.review import (
    defect_probability,
    final_estimator,
    good_label_of,
    labelled_images,
    review_order,
    verdicts,
)


def test_the_order_is_missed_false_alarms_found_passed() -> None:
    rng = np.random.default_rng(0)
    probability, truth = rng.random(40), rng.random(40) < 0.4
    called = probability >= 0.5
    order = review_order(probability, called, truth)
    kinds = verdicts(truth, called)[order].tolist()
    assert sorted(set(kinds), key=kinds.index) == ["missed", "false alarm", "found", "passed"]
    assert sorted(order.tolist()) == list(range(40))
    for kind in set(kinds):
        values = probability[order][np.array(kinds) == kind]
        falling = np.sort(values)[::-1]
        assert np.array_equal(values, falling[::-1] if kind == "missed" else falling)


def test_labels_of_a_folder_are_found_and_other_folders_have_none(fitted, fitted_parts) -> None:
    data = labelled_images(fitted, fitted_parts, None, needed=False)
    assert data.is_defect.sum() == 6
    assert data.good_label == "good"
    unlabelled = labelled_images(fitted, Path(fitted_parts, "scratch"), None, needed=False)
    assert unlabelled.is_defect is None
    assert len(unlabelled.items) == 6
    with pytest.raises(ValueError, match="y"):
        labelled_images(fitted, [np.zeros((8, 8), np.uint8)] * 2, None)


def test_a_good_label_that_there_is_not_is_named(fitted, fitted_parts) -> None:
    with pytest.raises(ValueError, match="good_label='typo' is not among the labels"):
        labelled_images(fitted, fitted_parts, None, "typo", needed=False)


def test_one_image_is_a_list_of_one(fitted) -> None:
    image = draw_part(np.random.default_rng(0), scratched=True)
    assert len(labelled_images(fitted, image, None, needed=False).items) == 1


def test_the_probability_is_that_of_any_defect(fitted, fitted_parts) -> None:
    items = labelled_images(fitted, fitted_parts, None).items
    found = fitted.localize(items)
    assert defect_probability(fitted, items).tolist() == [one.probability for one in found]


def test_what_is_not_fitted_is_named(tiny_classifier) -> None:
    for unfitted in (tiny_classifier(), make_pipeline(ContrastEqualizer(), tiny_classifier())):
        for ask in (final_estimator, good_label_of):
            with pytest.raises(NotFittedError):
                ask(unfitted)


def test_a_pipeline_answers_as_its_last_step(fitted) -> None:
    pipeline = make_pipeline(ContrastEqualizer(), fitted)
    assert final_estimator(pipeline) is fitted
    assert good_label_of(pipeline) == "good"
