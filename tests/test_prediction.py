from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from defectcam import DefectCAMClassifier, Localization
from defectcam.prediction import Predictor
from defectcam.second_look import size_of_second_look


def localized(
    predictor: Predictor, items: Sequence[Path], second_size: tuple[int, int] | None = None
) -> list[Localization]:
    batches = predictor.forward(items)
    first = 0
    found: list[Localization] = []
    for batch in batches:
        own = items[first : first + len(batch.geometries)]
        found += predictor.localize(batch, own, second_size)
        first += len(own)
    return found


def test_a_predictor_says_what_its_classifier_says(
    fitted: DefectCAMClassifier, fitted_parts: Path
) -> None:
    paths = sorted(fitted_parts.glob("*/*.png"))
    found = localized(fitted._predictor, paths)
    assert [one.label for one in found] == fitted.predict(paths).tolist()
    for one, expected in zip(found, fitted.localize(paths), strict=True):
        np.testing.assert_array_equal(one.grid, expected.grid)
        np.testing.assert_array_equal(one.boxes, expected.boxes)


def test_a_predictor_has_the_present_threshold_and_settings(fitted: DefectCAMClassifier) -> None:
    clf = copy.deepcopy(fitted)
    clf.threshold_, clf.min_area = 0.25, 3
    assert clf._predictor.judge.threshold == 0.25
    assert clf._predictor.settings["decision_threshold"] == 0.25
    assert clf._predictor.settings["min_area"] == 3


def test_another_network_may_take_the_place_of_its_own(
    fitted: DefectCAMClassifier, fitted_parts: Path
) -> None:
    paths = sorted(fitted_parts.glob("*/*.png"))[:3]
    silent = copy.deepcopy(fitted.network_)
    silent.head.scale_(0.0)
    (batch,) = fitted._predictor._replace(network=silent).forward(paths)
    (own,) = fitted._predictor.forward(paths)
    assert not batch.logits.any() and own.logits.any()


def test_defective_images_alone_are_looked_at_again(
    fitted: DefectCAMClassifier, fitted_parts: Path
) -> None:
    paths = sorted(fitted_parts.glob("*/*.png"))
    size = size_of_second_look(fitted.image_size_, 1.5)
    pairs = zip(
        localized(fitted._predictor, paths),
        localized(fitted._predictor, paths, size),
        strict=True,
    )
    changed = [once.grid.shape != twice.grid.shape for once, twice in pairs]
    assert changed == (fitted.predict(paths) != "good").tolist()


def test_types_are_named_where_there_are_several(fitted: DefectCAMClassifier) -> None:
    predictor = fitted._predictor
    assert predictor.defect_types is None
    classes = predictor.judge.classes._replace(labels=np.array(["dent", "good", "hole"]), good=1)
    of_three = predictor._replace(judge=predictor.judge._replace(classes=classes))
    assert of_three.defect_types == ["dent", "hole"]
