"""The report of an evaluation: its figures are those of the metrics, its errors named first."""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    roc_auc_score,
)

from defectcam.evaluation import Evaluation, evaluate
from defectcam.geometry import Geometry
from defectcam.images import ImageReadError, read_image
from defectcam.metrics import (
    box_precision_recall_f1,
    expected_calibration_error,
    mask_boxes,
    pixel_roc_auc_score,
    pointing_game_score,
    pro_auc_score,
)
from defectcam.results import Localization

SIZE = (20, 30)


class Painted(BaseEstimator):
    """Stand in for a fitted classifier: reads its answer off the image's first pixel.

    Red is the probability of a defect in per cent and green the number of the defect class; blue
    255 anywhere is where the heatmap is hot.
    """

    def __init__(self, defect_labels: tuple[Any, ...] = ("dent", "scratch"), good: Any = "good"):
        self.defect_labels = defect_labels
        self.good = good
        self.threshold_ = 0.5
        self.good_label_ = np.array([good])[0]
        self.defect_labels_ = list(defect_labels)
        self.n_jobs = 1
        self.alive: weakref.WeakSet[Localization] = weakref.WeakSet()
        self.most_alive = 0

    def fit(self) -> None:
        raise AssertionError("an evaluation never fits")

    def localize_iter(self, X: Any) -> Iterator[Localization]:
        for item in X:
            image = read_image(item)
            probability = image[0, 0, 0] / 100
            defect = self.defect_labels[image[0, 0, 1]]
            found = Localization(
                label=defect if probability >= self.threshold_ else self.good,
                probability=probability,
                is_defect=probability >= self.threshold_,
                grid=np.where(image[:, :, 2] == 255, 3.0, 0.1),
                geometry=Geometry.stretch(image.shape[:2], image.shape[:2]),
                threshold=1.0,
                decision_threshold=self.threshold_,
                min_area=1,
                max_boxes=None,
                merge_distance=None,
                source=item,
                good_label=self.good,
                defect_label=defect,
            )
            self.alive.add(found)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield found


def paint(per_cent: int, defect: int = 0, hot: tuple[int, int, int, int] | None = None) -> Any:
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    image[0, 0, :2] = per_cent, defect
    if hot is not None:
        left, top, right, bottom = hot
        image[top:bottom, left:right, 2] = 255
    return image


def write(folder: Path, images: dict[str, list[Any]]) -> Path:
    for kind, arrays in images.items():
        (folder / kind).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(folder / kind / f"{number}.png")
    return folder


def random_images(seed: int = 0, n: int = 40) -> tuple[list[Any], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(["good", "dent", "scratch"], n, p=[0.5, 0.25, 0.25])
    per_cent = np.clip(rng.normal(np.where(y == "good", 35, 60), 20), 0, 100).astype(int)
    images = [paint(number, int(rng.integers(2)), (3, 4, 12, 9)) for number in per_cent]
    return images, y, per_cent / 100


def test_each_image_is_handed_out_once_in_order_with_its_answer() -> None:
    images, y, probability = random_images(n=8)
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[5, 6] = 1
    seen: list[Any] = []
    evaluate(Painted(), images, y, [mask] * 8, each=seen.append)
    assert [one.place for one in seen] == [one.name for one in seen] == list(range(8))
    assert [one.type for one in seen] == y.tolist()
    assert [one.is_defect for one in seen] == (y != "good").tolist()
    assert [one.found.probability for one in seen] == probability.tolist()
    for one in seen:
        assert (one.mask is not None) == one.is_defect
        assert one.mask is None or (one.mask == (mask > 0)).all()


# --- Figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn_and_the_metrics(seed: int) -> None:
    images, y, probability = random_images(seed)
    report = evaluate(Painted(), images, y)
    truth, called = y != "good", probability >= 0.5
    assert (report.n_images, report.n_defective) == (40, truth.sum())
    assert report.defect_recall == pytest.approx(called[truth].mean())
    assert report.escape_rate == pytest.approx(1 - called[truth].mean())
    assert report.overkill == pytest.approx(called[~truth].mean())
    assert report.accuracy == pytest.approx((called == truth).mean())
    assert report.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, called))
    assert report.roc_auc == pytest.approx(roc_auc_score(truth, probability))
    assert report.average_precision == pytest.approx(average_precision_score(truth, probability))
    assert report.brier_score == pytest.approx(brier_score_loss(truth, probability))
    assert report.expected_calibration_error == pytest.approx(
        expected_calibration_error(truth, probability)
    )
    assert report.good_with_boxes == pytest.approx(report.overkill)  # every image has a hot spot
    assert report.threshold == 0.5
    assert report.confusion_matrix == [
        [int(np.sum((truth == t) & (called == c))) for c in (False, True)] for t in (False, True)
    ]
    assert sum(n for row in report.by_type.values() for n in row.values()) == 40
    for kind in ("dent", "scratch"):
        assert report.recall_by_type[kind] == pytest.approx(called[y == kind].mean())
    assert report.pixels is None and report.n_unfamiliar == 0


def test_errors_are_listed_the_worst_first() -> None:
    images = [paint(n) for n in (90, 10, 60, 49, 20, 70, 99)]
    y = ["good", "dent", "good", "scratch", "dent", "dent", "good"]
    report = evaluate(Painted(), images, y)
    assert report.missed_defects == [
        {"image": 1, "type": "dent", "probability": 0.1},
        {"image": 4, "type": "dent", "probability": 0.2},
        {"image": 3, "type": "scratch", "probability": 0.49},
    ]
    assert [one["image"] for one in report.false_alarms] == [6, 0, 2]


def test_good_images_without_a_region_above_the_threshold_have_no_box() -> None:
    images = [paint(90), paint(90, hot=(2, 2, 8, 8)), paint(10, hot=(2, 2, 8, 8)), paint(10)]
    assert evaluate(Painted(), images, ["good"] * 3 + ["dent"]).good_with_boxes == 1 / 3


def test_true_types_stand_against_what_they_were_called(tmp_path: Path) -> None:
    images = {"good": [paint(10), paint(60)], "dent": [paint(90), paint(20)], "stain": [paint(80)]}
    folder = write(tmp_path / "parts", images)
    merged = evaluate(Painted(("anomaly",)), folder)
    assert merged.by_type == {
        "good": {"good": 1, "anomaly": 1},
        "dent": {"good": 1, "anomaly": 1},
        "stain": {"good": 0, "anomaly": 1},
    }
    assert list(merged.by_type) == ["good", "dent", "stain"]
    assert merged.recall_by_type == {"dent": 0.5, "stain": 1.0}
    assert merged.unknown_types == []
    assert merged.missed_defects[0]["image"] == str(folder / "dent" / "1.png")


def test_a_type_unknown_to_training_counts_as_a_defect() -> None:
    images = [paint(10), paint(90, 1), paint(80, 0), paint(20)]
    report = evaluate(Painted(), images, ["good", "scratch", "stain", "stain"])
    assert report.unknown_types == ["stain"]
    assert report.by_type["stain"] == {"good": 1, "dent": 1, "scratch": 0}
    assert (report.defect_recall, report.overkill) == (2 / 3, 0)
    assert report.recall_by_type == {"scratch": 1.0, "stain": 0.5}
    assert "stain (unknown)" in str(report) and "scratch (unknown)" not in str(report)


def test_unfamiliar_images_are_counted() -> None:
    class Wary(Painted):
        def localize_iter(self, X: Any) -> Iterator[Localization]:
            for found in super().localize_iter(X):
                object.__setattr__(found, "unfamiliar", found.probability > 0.5)
                yield found

    report = evaluate(Wary(), [paint(10), paint(60), paint(90)], ["good", "good", "dent"])
    assert report.n_unfamiliar == 2
    assert "2 of 3 images are unfamiliar" in str(report)


# --- Masks --------------------------------------------------------------------------------------


def masked_images() -> tuple[list[Any], list[str], list[Any]]:
    """Give two good images, one of them with a false box, and three defects, one without a mask."""
    first, second = np.zeros(SIZE, dtype=np.uint8), np.zeros(SIZE, dtype=np.uint8)
    first[4:10, 5:15], second[12:18, 20:28] = 255, 255
    images = [
        *[paint(10), paint(70, hot=(1, 1, 4, 4))],
        *[paint(90, hot=(5, 4, 14, 10)), paint(95, hot=(2, 2, 6, 6)), paint(80)],
    ]
    return images, ["good", "good", "dent", "dent", "dent"], [None, None, first, second, None]


def test_maps_and_boxes_are_measured_where_there_are_masks() -> None:
    images, y, masks = masked_images()
    clf = Painted()
    report = evaluate(clf, images, y, masks)
    found, known = list(clf.localize_iter(images[:4])), masks[:4]
    heatmaps = [one.heatmap for one in found]
    boxes = box_precision_recall_f1(
        [[] if mask is None else mask_boxes(mask) for mask in known], [one.boxes for one in found]
    )
    assert report.pixels == {
        "n_masks": 2,
        "n_defective_without_mask": 1,
        "pixel_roc_auc": pytest.approx(pixel_roc_auc_score(known, heatmaps), abs=1e-3),
        "pro_auc": pytest.approx(pro_auc_score(known, heatmaps), abs=1e-3),
        "pointing": pointing_game_score(known, heatmaps),
        "box_precision": boxes["precision"],
        "box_recall": boxes["recall"],
        "box_f1": boxes["f1"],
    }
    assert report.pixels["box_precision"] == 1 / 3 and report.pixels["box_recall"] == 1 / 2
    assert "against 2 masks" in str(report) and "1 defective images without mask" in str(report)


@pytest.mark.parametrize("where", ["in", "beside", "given", "files"])
def test_masks_may_be_files(where: str, tmp_path: Path) -> None:
    images, y, masks = masked_images()
    expected = evaluate(Painted(), images, y, masks)
    folder = write(tmp_path / "test", {"good": images[:2], "dent": images[2:]})
    place = {"in": folder, "beside": tmp_path}.get(where, tmp_path / "elsewhere")
    (place / "ground_truth" / "dent").mkdir(parents=True)
    files = [place / "ground_truth" / "dent" / f"{number}_mask.png" for number in range(2)]
    for file, mask in zip(files, masks[2:], strict=False):
        Image.fromarray(mask).save(file)
    given: Any = {"given": place / "ground_truth", "files": [*files, None, None, None]}.get(where)
    report = evaluate(Painted(), folder, masks=given)  # dents come before good ones
    assert report.pixels == expected.pixels
    assert report.to_dict()["pixels"] == report.pixels


def test_a_folder_of_masks_that_has_none_of_these_images_is_refused(tmp_path: Path) -> None:
    images, _, _ = masked_images()
    folder = write(tmp_path / "test", {"good": images[:2], "dent": images[2:]})
    with pytest.raises(ImageReadError, match=r"no mask of a defective .*test.dent.0_mask\.png"):
        evaluate(Painted(), folder, masks=folder)
    only_good = write(tmp_path / "calm", {"good": images[:2]})
    assert evaluate(Painted(), only_good, masks=folder).pixels is None


def test_masks_of_good_images_are_not_looked_at() -> None:
    images, y, masks = masked_images()
    full = np.ones(SIZE)
    assert evaluate(Painted(), images, y, [full, full, *masks[2:]]) == evaluate(
        Painted(), images, y, masks
    )
    assert evaluate(Painted(), images[:2], y[:2], [full, full]).pixels is None


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([None], "masks must hold one mask, or None, for each of 2 images, got 1"),
        ([None, np.ones((30, 20))], r"masks\[1\] has size \(H, W\) = \(30, 20\).*\(20, 30\)"),
        ([None, np.ones((20, 30, 3))], r"masks\[1\]"),
        ([None, np.full((20, 30), np.nan)], r"masks\[1\] holds NaN"),
        ([None, np.full((20, 30), "good")], r"masks\[1\] holds <U4"),
        ([None, np.full((20, 30), None)], r"masks\[1\] holds object"),
        ("nowhere", "masks='nowhere': there is no such folder"),
        (".", "pass a list of masks"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Painted(), [paint(10), paint(90)], ["good", "dent"], masks)


def test_a_mask_file_of_another_size_is_named(tmp_path: Path) -> None:
    file = tmp_path / "small_mask.png"
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(file)
    with pytest.raises(ImageReadError, match=r"small_mask\.png' has size"):
        evaluate(Painted(), [paint(10), paint(90)], ["good", "dent"], [None, str(file)])


# --- Labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "bad"), [(False, True), (0, 1)])
def test_labels_need_not_be_strings(good: Any, bad: Any) -> None:
    images = [paint(10), paint(90), paint(20)]
    report = evaluate(Painted((bad,), good), images, np.array([good, bad, bad]))
    assert report.defect_recall == 0.5
    assert report.by_type[str(bad)] == {str(good): 1, str(bad): 1}
    assert report.missed_defects == [{"image": 2, "type": bad, "probability": 0.2}]
    json.dumps(report.to_dict(), allow_nan=False)


def test_good_parts_may_have_another_name_than_in_training(tmp_path: Path) -> None:
    folder = write(tmp_path / "parts", {"ok": [paint(10), paint(70)], "dent": [paint(90)]})
    assert evaluate(Painted((True,), False), folder).overkill == 0.5
    with pytest.raises(ImageReadError, match="another layout"):
        evaluate(Painted(), folder)
    report = evaluate(Painted(), folder, good_label="ok")
    assert (report.overkill, report.defect_recall) == (0.5, 1)
    assert list(report.by_type) == ["ok", "dent"]


def test_no_good_image_at_all_is_remarked() -> None:
    with pytest.warns(UserWarning, match="No image is labelled 'good'.*'dent', 'ok'") as caught:
        report = evaluate(Painted(), [paint(10), paint(90)], ["ok", "dent"])
    assert caught[0].filename == __file__
    assert report.defect_recall == 0.5
    assert report.overkill is report.balanced_accuracy is report.roc_auc is None
    assert report.good_with_boxes is report.average_precision is None
    assert "overkill          undefined" in str(report)


def test_good_images_alone_leave_undefined_what_needs_defects() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = evaluate(Painted(), [paint(10), paint(80)], ["good", "good"])
    assert report.defect_recall is report.escape_rate is report.average_precision is None
    assert (report.overkill, report.accuracy) == (0.5, 0.5)
    assert report.brier_score == pytest.approx((0.1**2 + 0.8**2) / 2)
    assert report.recall_by_type == {}
    json.dumps(report.to_dict(), allow_nan=False)
    assert "0 of 0 defects found" in str(report)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        evaluate(Painted(), [paint(10), paint(90)], ["good"])
    with pytest.raises(ValueError, match="requires y"):
        evaluate(Painted(), [paint(10), paint(90)])
    with pytest.raises(ImageReadError, match=r"gone\.png"):
        evaluate(Painted(), [tmp_path / "gone.png"], ["good"])


# --- The report itself --------------------------------------------------------------------------


def test_the_text_leads_with_the_missed_defects() -> None:
    images = [paint(10)] * 30 + [paint(90)] * 2
    lines = str(evaluate(Painted(), images, ["dent"] * 30 + ["good"] * 2)).splitlines()
    assert " ".join(lines[0].split()) == "defect recall 0.000 0 of 30 defects found"
    assert lines[1] == "  missed  0.100  0" and lines[20] == "  missed  0.100  19"
    assert lines[21].startswith("  and 10 more")
    assert " ".join(lines[22].split()) == "overkill 1.000 2 of 2 good images rejected"
    assert lines[23] == "  false alarm  0.900  30"
    table = lines[lines.index("") + 2 :]
    assert table[0].split() == ["good", "dent", "scratch", "defective"]
    assert table[1].split() == ["good", "0", "2", "0"]
    assert table[2].split() == ["dent", "30", "0", "0", "0.000"]


def test_repr_is_one_line_and_to_dict_is_plain() -> None:
    images, y, _ = random_images()
    report = evaluate(Painted(), images, y)
    assert "\n" not in repr(report) and repr(report).startswith("Evaluation(defect_recall=0.")
    told = report.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert "pixels" not in told
    told["by_type"]["good"].clear()
    assert report.by_type["good"]


def test_memory_does_not_grow_with_the_images() -> None:
    images, y, masks = masked_images()
    clf = Painted()
    evaluate(clf, images * 10, y * 10, masks * 10)
    assert clf.most_alive <= 2


def test_progress_is_shown_if_the_classifier_is_verbose(capsys: Any) -> None:
    clf = Painted()
    evaluate(clf, [paint(10)], ["good"])
    assert capsys.readouterr() == ("", "")
    clf.verbose = 1
    evaluate(clf, [paint(10)], ["good"])
    assert "images" in capsys.readouterr().err


def test_the_classifiers_method_is_the_function(fitted: Any, fitted_parts: Path) -> None:
    report = fitted.evaluate(fitted_parts)
    assert isinstance(report, Evaluation) and report == evaluate(fitted, fitted_parts)
    assert report.accuracy == pytest.approx(fitted.score(fitted_parts))
    truth = np.array([path.parent.name == "scratch" for path in sorted(fitted_parts.glob("*/*"))])
    assert report.roc_auc == pytest.approx(roc_auc_score(truth, fitted.defect_score(fitted_parts)))
    with pytest.raises(NotFittedError):
        type(fitted)().evaluate(fitted_parts)
