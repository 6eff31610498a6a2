"""What a fitted classifier is worth on labelled images, in one pass, the missed defects first.

Owns the report: which figures there are, which images and masks they rest on, and how it reads. It
asks the classifier for its answers as any user would, leaves the arithmetic to scikit-learn and
`metrics`, and never changes a classifier or chooses a threshold.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    roc_auc_score,
)
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from defectcam.exceptions import warn_caller
from defectcam.folders import find_good_label, find_masks, mask_folder, mask_name
from defectcam.images import ImageReadError, check_readable, is_path, read_marked
from defectcam.labels import as_labels
from defectcam.large_images import check_readable_whole
from defectcam.metrics import (
    PixelCounts,
    box_precision_recall_f1,
    defect_recall_score,
    escape_rate,
    expected_calibration_error,
    mask_boxes,
    overkill_rate,
    pointing_game_score,
)
from defectcam.plain_labels import plain_label
from defectcam.results import Localization
from defectcam.sources import Sources, labelled_sources, paths_of
from defectcam.views import original_of

__all__ = ["Evaluation", "Judged", "evaluate"]

#: Overlap (intersection over union) at and above which a box is right.
BOX_IOU = 0.3

_MAX_NAMED = 20  # images listed in the text


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """How well a classifier does on labelled images; printed, a report.

    Made by `evaluate` or `DefectCAMClassifier.evaluate`. All but ``roc_auc``,
    ``average_precision``, the two figures of calibration and the maps' rests on the classifier's
    own decision threshold. A figure that the images leave undefined is None.

    Attributes
    ----------
    n_images, n_defective : int
        Images, and how many of them show a defect.
    defect_recall : float or None
        Share of the defective images that are called defective.
    missed_defects : list of dict
        The others, those furthest below the threshold first: ``image`` (the file, or the place in
        ``X``), ``type`` and ``probability`` of a defect.
    escape_rate : float or None
        ``1 - defect_recall``.
    overkill : float or None
        Share of the good images that are called defective.
    false_alarms : list of dict
        Those, furthest above the threshold first; entries as in ``missed_defects``.
    balanced_accuracy, accuracy : float or None
        Of good against defective.
    roc_auc, average_precision : float or None
        Of the probability of a defect; the defective images are the positive ones.
    expected_calibration_error, brier_score : float or None
        Of the probability of a defect, 0 is best. The error is over 10 bins of equal width.
    good_with_boxes : float or None
        Share of the good images with at least one box.
    n_unfamiliar : int
        Images that the classifier found unlike those it was trained on.
    threshold : float
        Probability of a defect at and above which an image is called defective.
    confusion_matrix : list of list of int
        Rows: good and defective images; columns: called good and called defective.
    by_type : dict of dict of int
        How many images of each true type, good first, got each label.
    unknown_types : list of str
        Types without a class of their own, where the classifier tells types apart. Such an image
        is right when it is called any defect.
    recall_by_type : dict of float
        Share of each defect type's images that are called defective, whatever the type.
    pixels : dict or None
        Heatmaps and boxes against masks, over good images and those defective ones that have a
        mask: ``n_masks``, ``n_defective_without_mask`` (left out), ``pixel_roc_auc``, ``pro_auc``
        (AUPRO, false-positive rate up to 0.3), ``pointing`` (game), ``box_precision``,
        ``box_recall`` and ``box_f1`` at an intersection over union of `BOX_IOU`. None without
        masks.
    """

    n_images: int
    n_defective: int
    defect_recall: float | None
    missed_defects: list[dict[str, Any]]
    escape_rate: float | None
    overkill: float | None
    false_alarms: list[dict[str, Any]]
    balanced_accuracy: float | None
    accuracy: float | None
    roc_auc: float | None
    average_precision: float | None
    expected_calibration_error: float | None
    brier_score: float | None
    good_with_boxes: float | None
    n_unfamiliar: int
    threshold: float
    confusion_matrix: list[list[int]]
    by_type: dict[str, dict[str, int]]
    unknown_types: list[str]
    recall_by_type: dict[str, float]
    pixels: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as plain numbers, strings, lists and dicts, ready for JSON.

        Returns
        -------
        dict
            The attributes; ``pixels`` only where there are masks.
        """
        report = dataclasses.asdict(self)
        if self.pixels is None:
            del report["pixels"]
        return report

    def __repr__(self) -> str:
        figures = ("defect_recall", "overkill", "balanced_accuracy", "roc_auc")
        shown = [f"{name}={_number(getattr(self, name))}" for name in figures]
        return f"Evaluation({', '.join(shown)}, n_images={self.n_images})"

    def __str__(self) -> str:
        n_good, n_missed = self.n_images - self.n_defective, len(self.missed_defects)
        lines = [
            _line(
                "defect recall",
                self.defect_recall,
                f"{self.n_defective - n_missed} of {self.n_defective} defects found",
            ),
            *_named("missed", self.missed_defects),
            _line(
                "overkill",
                self.overkill,
                f"{len(self.false_alarms)} of {n_good} good images rejected",
            ),
            *_named("false alarm", self.false_alarms),
            _line("balanced accuracy", self.balanced_accuracy),
            _line("accuracy", self.accuracy),
            _line("ROC AUC", self.roc_auc),
            _line("average precision", self.average_precision),
            _line("calibration error", self.expected_calibration_error),
            _line("Brier score", self.brier_score),
            _line("good with a box", self.good_with_boxes),
        ]
        if self.n_unfamiliar:
            lines.append(
                f"{self.n_unfamiliar} of {self.n_images} images are unfamiliar: unlike those that "
                "the classifier was trained on"
            )
        lines += ["", "what each type was called, and the share called defective", *self._table()]
        if self.pixels is not None:
            lines += ["", f"heatmaps and boxes against {self.pixels['n_masks']} masks"]
            left_out = self.pixels["n_defective_without_mask"]
            if left_out:
                lines.append(f"  {left_out} defective images without mask left out")
            lines += [
                _line("pixel ROC AUC", self.pixels["pixel_roc_auc"]),
                _line("AUPRO", self.pixels["pro_auc"]),
                _line("pointing", self.pixels["pointing"]),
                _line("box F1", self.pixels["box_f1"], f"at IoU {BOX_IOU}"),
                _line("box precision", self.pixels["box_precision"]),
                _line("box recall", self.pixels["box_recall"]),
            ]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        labels = list(next(iter(self.by_type.values())))
        rows = [["", *labels, "defective"]]
        for kind, counts in self.by_type.items():
            name = f"{kind} (unknown)" if kind in self.unknown_types else kind
            share = _number(self.recall_by_type[kind]) if kind in self.recall_by_type else ""
            rows.append([name, *map(str, counts.values()), share])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                ["  " + first.ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            ).rstrip()
            for first, *cells in rows
        ]


class Judged(NamedTuple):
    """One labelled image and the answer to it.

    Attributes
    ----------
    place : int
        The image's index in ``X``.
    name : str or int
        The file, or the place in ``X``.
    type : str, bool or int
        The label that it was given.
    is_defect : bool
        Whether that label is a defect.
    found : Localization
        The classifier's answer.
    mask : bool array of shape (H, W) or None
        Where the defect is; None for a good image and where there is no mask.
    """

    place: int
    name: str | int
    type: Any
    is_defect: bool
    found: Localization
    mask: NDArray[np.bool_] | None


def evaluate(
    clf: Any,
    X: Any,
    y: ArrayLike | None = None,
    masks: Any = None,
    *,
    good_label: Any = None,
    each: Callable[[Judged], object] | None = None,
) -> Evaluation:
    """Measure a fitted classifier on labelled images, and its heatmaps where there are masks.

    Images are read and judged one batch at a time, so they need not fit in memory together.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted. A progress bar is shown if it is ``verbose``.
    X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
    y : array-like of shape (n,), optional
        Labels, the defect types or just whether there is a defect; left out when ``X`` is a folder
        with one sub-folder per class.
    masks : folder, sequence of n paths, arrays of shape (H, W) or None, optional
        Where the defects are, nonzero = defective, in the size of the images. Of a folder, the
        files ``<type>/<stem>_mask.png``, or for images in deeper folders of a type
        ``<type>/<folders>/<stem>_mask.png``. By default those of a folder ``ground_truth`` in or
        beside the folder ``X``, if there is one. Masks of good images are not looked at.
    good_label : label, optional
        What good parts are called in ``y`` or among the folders, if not as in training.
    each : callable, optional
        Called with a `Judged` per image, in order: for those who want more than figures of the same
        single pass.

    Returns
    -------
    Evaluation

    Raises
    ------
    ImageReadError
        If an image or a mask cannot be read, or a mask has another size than its image; it is
        named. If a folder of masks is given that has none of a defective image, or a mask in a
        folder may be of several images.
    ValueError
        If labels or masks do not fit the images.

    Warns
    -----
    UserWarning
        If no image is labelled good.
    """
    check_is_fitted(clf)
    sources, types, good = labelled_types(X, y, plain_label(clf.good_label_), good_label)
    is_defect = np.asarray(types != good)
    mask_of = list_masks(masks, X, sources, types, is_defect)
    check_files(clf, sources)

    answers = _Answers()
    maps = _MapScores() if any(mask is not None for mask in mask_of) else None
    with tqdm(
        total=len(types), desc="images", unit="image", disable=not getattr(clf, "verbose", 0)
    ) as bar:
        for index, found in enumerate(clf.localize_iter(sources.items)):
            answers.add(found)
            bad, mask = bool(is_defect[index]), read_mask(mask_of[index], index, found)
            if maps is not None:
                maps.add(mask, bad, found)
            if each is not None:
                name, kind = image_name(sources.items[index], index), types[index].item()
                each(Judged(index, name, kind, bad, found, mask))
            bar.update()
    return _summarise(clf, sources, types, good, answers, maps)


class _Answers:
    """What is kept of each image's answer: a few numbers."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.probability: list[float] = []
        self.is_defect: list[bool] = []
        self.has_box: list[bool] = []
        self.n_unfamiliar = 0

    def add(self, found: Localization) -> None:
        self.labels.append(str(found.label))
        self.probability.append(found.probability)
        self.is_defect.append(found.is_defect)
        self.has_box.append(len(found.boxes) > 0)
        self.n_unfamiliar += found.unfamiliar


class _MapScores:
    """Scores of heatmaps and boxes, gathered one image at a time."""

    def __init__(self) -> None:
        self._counts = PixelCounts()
        self._hits: list[float] = []
        self._boxes_true: list[NDArray[np.int64]] = []
        self._boxes_pred: list[NDArray[np.int64]] = []
        self._n_masks = self._n_left_out = 0

    def add(self, mask: NDArray[np.bool_] | None, is_defect: bool, found: Localization) -> None:
        if is_defect and mask is None:
            self._n_left_out += 1
            return
        heatmap = found.heatmap
        self._counts.add(mask, heatmap)
        self._boxes_true.append(np.empty((0, 4), np.int64) if mask is None else mask_boxes(mask))
        self._boxes_pred.append(found.boxes)
        if mask is not None:
            self._n_masks += 1
            if mask.any():
                self._hits.append(pointing_game_score([mask], [heatmap]))

    def summary(self) -> dict[str, Any]:
        boxes = box_precision_recall_f1(self._boxes_true, self._boxes_pred, iou_threshold=BOX_IOU)
        return {
            "n_masks": self._n_masks,
            "n_defective_without_mask": self._n_left_out,
            "pixel_roc_auc": _defined(self._counts.roc_auc()),
            "pro_auc": _defined(self._counts.pro_auc()),
            "pointing": float(np.mean(self._hits)) if self._hits else None,
            **{f"box_{name}": _defined(boxes[name]) for name in ("precision", "recall", "f1")},
        }


def _summarise(
    clf: Any,
    sources: Sources,
    types: NDArray[Any],
    good: Any,
    answers: _Answers,
    maps: _MapScores | None,
) -> Evaluation:
    is_defect = np.asarray(types != good)
    called, probability = np.array(answers.is_defect), np.array(answers.probability)
    threshold = float(clf.threshold_)

    def listed(wrong: NDArray[np.bool_]) -> list[dict[str, Any]]:
        rows = np.flatnonzero(wrong)
        rows = rows[np.argsort(-np.abs(probability[rows] - threshold), kind="stable")]
        return [
            {
                "image": image_name(sources.items[row], row),
                "type": types[row].item(),
                "probability": float(probability[row]),
            }
            for row in rows.tolist()
        ]

    def of_both(score: Callable[..., float], predicted: NDArray[Any]) -> float | None:
        is_mixed = bool(is_defect.any() and not is_defect.all())
        return float(score(is_defect, predicted)) if is_mixed else None

    kinds = sorted(set(types.tolist()), key=lambda kind: (kind != good, str(kind)))
    defects = [kind for kind in kinds if kind != good]
    counts = Counter(zip(types.tolist(), answers.labels, strict=True))
    columns = [str(label) for label in (clf.good_label_, *clf.defect_labels_)]
    tells_types = len(clf.defect_labels_) > 1
    with warnings.catch_warnings():  # what is undefined is None, and printed as such
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return Evaluation(
            n_images=len(types),
            n_defective=int(is_defect.sum()),
            defect_recall=_defined(defect_recall_score(is_defect, called)),
            missed_defects=listed(is_defect & ~called),
            escape_rate=_defined(escape_rate(is_defect, called)),
            overkill=_defined(overkill_rate(is_defect, called)),
            false_alarms=listed(~is_defect & called),
            balanced_accuracy=of_both(balanced_accuracy_score, called),
            accuracy=float(accuracy_score(is_defect, called)),
            roc_auc=of_both(roc_auc_score, probability),
            average_precision=of_both(average_precision_score, probability),
            expected_calibration_error=_defined(
                expected_calibration_error(is_defect, probability, pos_label=True)
            ),
            brier_score=float(brier_score_loss(is_defect, probability, pos_label=True)),
            good_with_boxes=_share(np.array(answers.has_box)[~is_defect]),
            n_unfamiliar=answers.n_unfamiliar,
            threshold=threshold,
            confusion_matrix=confusion_matrix(is_defect, called, labels=[False, True]).tolist(),
            by_type={
                str(kind): {label: counts[kind, label] for label in columns} for kind in kinds
            },
            unknown_types=[
                str(kind) for kind in defects if tells_types and kind not in clf.defect_labels_
            ],
            recall_by_type={str(kind): float(called[types == kind].mean()) for kind in defects},
            pixels=None if maps is None else maps.summary(),
        )


# --- Truth ------------------------------------------------------------------------------------


def good_label_among(types: NDArray[Any], learned: Any, given: Any) -> Any:
    """Find out which label is good: the one given, the one of training, or one by its name."""
    if given is not None:
        return find_good_label(types, given)
    if isinstance(learned, str) != (types.dtype.kind == "U"):
        return find_good_label(types)  # trained on truth values, say, and now asked about folders
    if not (types == learned).any():
        shown = ", ".join(map(repr, np.unique(types).tolist()[:_MAX_NAMED]))
        warn_caller(
            f"No image is labelled {learned!r}, so every one counts as defective; the labels are "
            f"{shown}. Pass good_label=... if good parts are called otherwise here."
        )
    return learned


def labelled_types(
    X: Any, y: Any, learned: Any, given: Any = None
) -> tuple[Sources, NDArray[Any], Any]:
    """List images, their types, and which of these means good.

    Parameters
    ----------
    X, y : images and labels
        As `evaluate` takes them.
    learned : label
        What training called good.
    given : label, optional
        What good parts are called here, if not as in training.

    Returns
    -------
    sources : Sources
    types : ndarray of shape (n,)
    good : label
        Among the types, unless there is no good image.
    """
    expected = learned if given is None else given
    sources, labels = labelled_sources(X, y, expected if isinstance(expected, str) else None)
    types = as_labels(labels)
    return sources, types, good_label_among(types, learned, given)


def list_masks(
    masks: Any, X: Any, sources: Sources, types: NDArray[Any], is_defect: NDArray[np.bool_]
) -> Sequence[Any]:
    """Mask of each defective image, as file or array; None where there is none."""
    is_given = masks is not None
    if not is_given and is_path(X):
        masks = mask_folder(X)
    if masks is None:
        return [None] * len(types)
    if is_path(masks):
        listed: Sequence[Any] = _masks_in(Path(masks), sources, types, is_defect)
        if is_given:
            _refuse_other_folder(masks, listed, sources, types, is_defect)
        return listed
    listed = list(masks)
    if len(listed) != len(types):
        raise ValueError(
            f"masks must hold one mask, or None, for each of {len(types)} images, got "
            f"{len(listed)}."
        )
    return [mask if bad else None for mask, bad in zip(listed, is_defect, strict=True)]


def _refuse_other_folder(
    folder: Any,
    listed: Sequence[Any],
    sources: Sources,
    types: NDArray[Any],
    is_defect: NDArray[np.bool_],
) -> None:
    """Refuse a folder that was asked for and has no mask of any defective image."""
    if not is_defect.any() or any(listed):
        return
    first = int(np.flatnonzero(is_defect)[0])
    expected = Path(folder) / mask_name(paths_of(sources)[first], types.tolist()[first])
    raise ImageReadError(
        f"masks={os.fspath(folder)!r} holds no mask of a defective image: the first is looked for "
        f"as {str(expected)!r}. Leave masks out to measure no heatmaps."
    )


def _masks_in(
    folder: Path, sources: Sources, types: NDArray[Any], is_defect: NDArray[np.bool_]
) -> list[str | None]:
    if not folder.is_dir():
        raise ValueError(f"masks={str(folder)!r}: there is no such folder.")
    if len(paths_of(sources)) < len(types):
        raise ValueError(
            f"masks={str(folder)!r} is a folder, whose files are found by the images' names, but X "
            "holds images without a name: pass a list of masks."
        )
    kinds = [kind if bad else None for kind, bad in zip(types.tolist(), is_defect, strict=True)]
    return find_masks(folder, paths_of(sources), kinds, None)


def read_mask(mask: Any, index: int, found: Localization) -> NDArray[np.bool_] | None:
    """Give a mask as an array, of whatever kind it is; refuse another size, and what is no mask."""
    if mask is None:
        return None
    marked = read_marked(mask) if is_path(mask) else _marked(np.asarray(mask), index)
    if marked.shape != found.image_size:
        name = repr(str(os.fspath(mask))) if is_path(mask) else f"masks[{index}]"
        raise ImageReadError(
            f"{name} has size (H, W) = {marked.shape}, but its image has {found.image_size}: masks "
            "must have the size of their images."
        )
    return marked


def _marked(mask: NDArray[Any], index: int) -> NDArray[np.bool_]:
    if mask.dtype.kind not in "biuf":
        raise ImageReadError(
            f"masks[{index}] holds {mask.dtype}: masks are arrays of booleans or numbers, nonzero "
            "on the defect."
        )
    if not np.isfinite(mask).all():
        raise ImageReadError(
            f"masks[{index}] holds NaN or infinity, which say neither defect nor none: pass 0 or 1 "
            "for each pixel."
        )
    return mask.astype(bool)


# --- Figures and text -------------------------------------------------------------------------


def check_files(clf: Any, sources: Sources) -> None:
    """Refuse files that are no images, all at once and before the work."""
    check = check_readable if getattr(clf, "tile_", None) is None else check_readable_whole
    check(paths_of(sources), n_workers=clf.n_jobs)


def image_name(item: Any, index: int) -> str | int:
    """Return an image's file; the place in ``X`` of one that is no file."""
    item = original_of(item)
    return str(os.fspath(item)) if is_path(item) else index


def _defined(score: float) -> float | None:
    return None if math.isnan(score) else float(score)


def _share(chosen: NDArray[np.bool_]) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def _number(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.3f}"


def _line(name: str, score: float | None, remark: str = "") -> str:
    return f"{name:<18}{_number(score):>9}  {remark}".rstrip()


def _named(what: str, images: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"  {what}  {one['probability']:.3f}  {one['image']}" for one in images[:_MAX_NAMED]]
    if len(images) > _MAX_NAMED:
        lines.append(f"  and {len(images) - _MAX_NAMED} more: the JSON report lists all")
    return lines
