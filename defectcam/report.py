"""A report that people pass around: one HTML file with pictures, figures and live thresholds.

Owns what the page says: which images come in, the curves, the model card and its limits, and how
all of it becomes one file. The figures are `evaluation`'s and scikit-learn's, the small pictures
`report_images`'; how the page looks and moves is in `templates/`. Everything that comes from files,
folders or labels is escaped, and the page's own policy forbids it to load or to run anything else.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from defectcam.diagnostics import contradicted_labels
from defectcam.display import as_base64, middle_of_scale
from defectcam.evaluation import BOX_IOU, Evaluation, Judged, check_files, evaluate, image_name
from defectcam.exceptions import warn_caller
from defectcam.files import check_target, write_atomically
from defectcam.images import find_images
from defectcam.plain_labels import plain_label
from defectcam.report_images import Album, box_stops
from defectcam.results import Localization
from defectcam.sources import as_sources, brings_labels, is_path, labelled_sources

__all__ = ["Report", "make_report", "write_report"]

_SCRIPTS = ("charts.js", "viewer.js", "report.js")
_N_BINS = 10  # of the calibration plot, as in `expected_calibration_error`
_FEW_DEFECTS = 30
_ALL_DEFECTS, _CALLED_DEFECTIVE, _CALLED_GOOD = "all defects", "called defective", "called good"
_LIBRARIES = ("torch", "timm", "scikit-learn", "numpy")

Rows = list[tuple[str, str]]


def write_report(
    clf: Any,
    X: Any,
    y: ArrayLike | None = None,
    path: str | os.PathLike[str] = "report.html",
    masks: Any = None,
    *,
    good_label: Any = None,
    title: str | None = None,
    model: str | os.PathLike[str] = "part.safetensors",
    overwrite: bool = True,
) -> Path:
    """Judge images and write what was found into one HTML file, which needs no network.

    Missed defects come first, then false alarms, then the rest. The thresholds can be moved in the
    browser: figures, boxes and order follow.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted. A progress bar is shown if it is ``verbose``.
    X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
    y : array-like of shape (n,), optional
        Labels, the defect types or just whether there is a defect. Left out, they come from the
        sub-folders of a folder ``X``, or from the items of a data set; where there are none, the
        report tells which images are called defective, and nothing of right or wrong.
    path : str or PathLike, default="report.html"
        The file to write, whole or not at all.
    masks : folder, sequence of n paths, arrays of shape (H, W) or None, optional
        As for `evaluate`. Needs labels.
    good_label : label, optional
        What good parts are called in ``y`` or among the folders, if not as in training.
    title : str, optional
        By default the name of the folder ``X``.
    model : str or PathLike, default="part.safetensors"
        What the model's file is called in the command line that the report gives.
    overwrite : bool, default=True
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is false.
    FileNotFoundError, IsADirectoryError
        If its folder does not exist, or it is a folder.
    ImageReadError
        If an image or a mask cannot be read; it is named.
    ValueError
        If labels or masks do not fit the images.

    Notes
    -----
    Pictures are at most 640 pixels wide or high, and share 38 MB: 1,000 images make a file of less
    than 60 MB. Names are given below the folder that all images have in common.
    """
    check_is_fitted(clf)
    target = check_target(path, overwrite)
    report = make_report(clf, X, y, masks, good_label=good_label, title=title, model=model)
    # Names that are no valid text may come from the file system; they must not stop a report.
    write_atomically(target, report.page.encode("utf-8", "backslashreplace"))
    return target


class Report(NamedTuple):
    """A report that is not written yet.

    Attributes
    ----------
    page : str
        HTML.
    evaluation : Evaluation or None
        The figures in it; None without labels.
    """

    page: str
    evaluation: Evaluation | None


def make_report(
    clf: Any,
    X: Any,
    y: ArrayLike | None = None,
    masks: Any = None,
    *,
    good_label: Any = None,
    title: str | None = None,
    model: str | os.PathLike[str] = "part.safetensors",
) -> Report:
    """Judge images once, and make both the page and the figures of it.

    Parameters
    ----------
    clf, X, y, masks, good_label, title, model
        As for `write_report`.

    Returns
    -------
    Report

    Raises
    ------
    ImageReadError, ValueError
        As `write_report`.
    """
    check_is_fitted(clf)
    if _has_labels(clf, X, y, good_label):
        content = _labelled(clf, X, y, masks, good_label)
    elif masks is not None:
        raise ValueError("masks need labels: pass y, or a folder with a sub-folder per class.")
    else:
        content = _unlabelled(clf, X)
    named = f"Report: {Path(X).resolve().name}" if is_path(X) else "Defect report"
    page = _render(clf, content, named if title is None else title, os.fspath(model))
    return Report(page, content.evaluation)


@dataclass
class _Content:
    """What is known of the images, in order."""

    album: Album
    stops: list[float]
    names: list[str | int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # empty without labels
    is_defect: list[bool] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    called: list[str] = field(default_factory=list)  # the type, if called defective
    is_unfamiliar: list[bool] = field(default_factory=list)
    base: str | None = None  # folder of the images
    evaluation: Evaluation | None = None

    def add(
        self,
        name: str | int,
        found: Localization,
        groups: Sequence[str],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.names.append(name)
        self.probability.append(found.probability)
        self.called.append(str(found.defect_label))
        self.is_unfamiliar.append(found.unfamiliar)
        self.album.add(found, groups, mask)


def _has_labels(clf: Any, X: Any, y: Any, good_label: Any) -> bool:
    if y is not None or good_label is not None:
        return True
    learned = plain_label(clf.good_label_)
    has_labels = brings_labels(X, learned)
    if not has_labels and is_path(X) and os.path.isdir(X):
        _warn_if_classes(X, learned)
    return has_labels


def _warn_if_classes(folder: Any, good_label: Any) -> None:
    """Say why images in sub-folders are taken for images without labels."""
    groups = Counter(Path(path).relative_to(folder).parts[0] for path in find_images(folder))
    names = sorted(name for name in groups if os.path.isdir(os.path.join(folder, name)))
    if names:
        warn_caller(
            f"The images of {os.fspath(folder)!r} are taken for images without labels: none of its "
            f"folders ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}) is called "
            f"{good_label!r}. Pass good_label if one of them holds good parts."
        )


def _labelled(clf: Any, X: Any, y: Any, masks: Any, good_label: Any) -> _Content:
    stops = box_stops(clf.box_threshold)
    expected = plain_label(clf.good_label_) if good_label is None else good_label
    sources, labels = labelled_sources(X, y, expected if isinstance(expected, str) else None)
    content = _Content(Album(stops, len(sources.items)), stops)

    def keep(one: Judged) -> None:
        content.types.append(str(one.type))
        content.is_defect.append(one.is_defect)
        groups = (str(one.type), _ALL_DEFECTS) if one.is_defect else (str(one.type),)
        content.add(one.name, one.found, groups, one.mask)

    if not is_path(X):
        X, y = sources.items, labels  # a generator cannot be gone through twice
    content.evaluation = evaluate(clf, X, y, masks, good_label=good_label, each=keep)
    content.base = _base(X, content.names)
    return content


def _unlabelled(clf: Any, X: Any) -> _Content:
    sources = as_sources(X)
    check_files(clf, sources)
    stops = box_stops(clf.box_threshold)
    content = _Content(Album(stops, len(sources.items)), stops)
    verbose = getattr(clf, "verbose", 0)
    with tqdm(total=len(sources.items), desc="images", unit="image", disable=not verbose) as bar:
        for index, found in enumerate(clf.localize_iter(sources.items)):
            group = _CALLED_DEFECTIVE if found.is_defect else _CALLED_GOOD
            content.add(image_name(sources.items[index], index), found, (group,))
            bar.update()
    content.base = _base(X, content.names)
    return content


def _base(X: Any, names: Sequence[str | int]) -> str | None:
    """Folder that the shown names begin below: a report need not tell where a disk is mounted."""
    if is_path(X) and os.path.isdir(X):
        return os.path.abspath(X)
    folders = {os.path.dirname(os.path.abspath(name)) for name in names if isinstance(name, str)}
    try:
        return os.path.commonpath(folders) if folders else None
    except ValueError:  # on several drives
        return None


def _short_name(name: str | int, base: str | None) -> str:
    if isinstance(name, int):
        return f"image {name}"
    return name if base is None else Path(os.path.relpath(os.path.abspath(name), base)).as_posix()


# --- What the page's script works on ------------------------------------------------------------


def _data(clf: Any, content: _Content, model: str) -> dict[str, Any]:
    kinds = list(content.evaluation.by_type) if content.evaluation else []
    labels = [str(label) for label in clf.defect_labels_]
    is_defect = np.array(content.is_defect)
    probability = np.array(content.probability)
    is_mixed = bool(is_defect.any() and not is_defect.all())
    doubted = contradicted_labels(is_defect, probability).tolist() if is_mixed else []
    return {
        "labelled": content.evaluation is not None,
        "good": str(clf.good_label_),
        "types": kinds,
        "defective": [kind in _defect_types(content) for kind in kinds],
        "labels": labels,
        "threshold": float(clf.threshold_),
        "stops": content.stops,
        "stop": content.stops.index(float(clf.box_threshold)),
        "scale": middle_of_scale(float(clf.box_threshold)),
        "model": shlex.quote(model),
        "colours": _colours(),
        "suspects": doubted,
        "images": _image_records(content, kinds, labels),
        "averages": _averages(content, kinds),
        "curves": _curves(is_defect, probability) if is_mixed else None,
        "history": _history(clf),
    }


def _image_records(
    content: _Content, kinds: Sequence[str], labels: Sequence[str]
) -> list[dict[str, Any]]:
    records = []
    for index, portrait in enumerate(content.album.portraits):
        height, width = portrait.size
        records.append(
            {
                "name": _short_name(content.names[index], content.base),
                "type": kinds.index(content.types[index]) if kinds else -1,
                "p": content.probability[index],
                "called": labels.index(content.called[index]),
                "unfamiliar": content.is_unfamiliar[index],
                "w": width,
                "h": height,
                "peak": portrait.peak,
                "boxes": portrait.boxes,
                "labels": portrait.labels,
                "outline": portrait.outline,
            }
        )
    return records


def _averages(content: _Content, kinds: Sequence[str]) -> dict[str, Any]:
    """Mean heatmaps, in the order of the types, all defects first where there are several types."""
    averages = content.album.averages()
    good = [kind for kind in kinds if kind not in _defect_types(content)]
    wanted = [_ALL_DEFECTS] * (len(kinds) - len(good) > 1) + list(kinds)
    if not kinds:
        wanted = [_CALLED_DEFECTIVE, _CALLED_GOOD]
    groups = {group["name"]: group for group in averages["groups"]}
    averages["groups"] = [
        {**groups[name], "defective": name not in (*good, _CALLED_GOOD)}
        for name in dict.fromkeys(wanted)
        if name in groups
    ]
    return averages


def _defect_types(content: _Content) -> list[str]:
    return [] if content.evaluation is None else list(content.evaluation.recall_by_type)


def _colours() -> str:
    """256 colours of a perceptually uniform map, RGB, in base64."""
    levels = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return as_base64(colours.tobytes())


def _curves(is_defect: NDArray[np.bool_], probability: NDArray[np.float64]) -> dict[str, Any]:
    false_positive, true_positive, _ = roc_curve(is_defect, probability)
    precision, recall, _ = precision_recall_curve(is_defect, probability)
    share, mean = calibration_curve(is_defect, probability, n_bins=_N_BINS, strategy="uniform")
    edges = np.linspace(0, 1, _N_BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], probability), minlength=_N_BINS)
    return {
        "roc": _points(false_positive, true_positive),
        "pr": _points(recall, precision),
        "calibration": [
            [*point, int(n)]
            for point, n in zip(_points(mean, share), counts[counts > 0], strict=True)
        ],
    }


def _points(x: NDArray[Any], y: NDArray[Any]) -> list[list[float]]:
    return np.column_stack([x, y]).round(5).tolist()


def _history(clf: Any) -> list[dict[str, Any]]:
    """Loss and accuracy of each training, the final network's first."""
    table = {name: np.asarray(column) for name, column in clf.history_.items()}
    folds = table.get("fold", np.array([]))
    return [
        {
            "fold": int(number),
            "loss": table["loss"][folds == number].astype(float).round(5).tolist(),
            "accuracy": table["train_accuracy"][folds == number].astype(float).round(5).tolist(),
        }
        for number in dict.fromkeys(folds.tolist())
    ]


# --- What the page says without its script --------------------------------------------------------


def _figures(evaluation: Evaluation) -> Rows:
    """Figures at the model's own threshold."""
    n_found = evaluation.n_defective - len(evaluation.missed_defects)
    n_good = evaluation.n_images - evaluation.n_defective
    scores = [
        ("Defect recall", evaluation.defect_recall, f"{n_found} of {evaluation.n_defective}"),
        ("Overkill", evaluation.overkill, f"{len(evaluation.false_alarms)} of {n_good}"),
        ("Balanced accuracy", evaluation.balanced_accuracy, ""),
        ("ROC AUC", evaluation.roc_auc, ""),
        ("Average precision", evaluation.average_precision, ""),
        ("Expected calibration error", evaluation.expected_calibration_error, ""),
        ("Brier score", evaluation.brier_score, ""),
        ("Good images with a box", evaluation.good_with_boxes, ""),
    ]
    return [
        (name, f"{score:.3f}" + (f" ({remark})" if remark else ""))
        for name, score, remark in scores
        if score is not None
    ]


def _localisation(evaluation: Evaluation) -> Rows:
    if evaluation.pixels is None:
        return []
    names = {
        "pro_auc": "AUPRO",
        "pixel_roc_auc": "Pixel ROC AUC",
        "pointing": "Pointing game",
        "box_f1": f"Box F1 at IoU {BOX_IOU}",
        "box_precision": "Box precision",
        "box_recall": "Box recall",
    }
    figures = {name: evaluation.pixels[key] for key, name in names.items()}
    return [(name, "undefined" if x is None else f"{x:.3f}") for name, x in figures.items()]


def _data_rows(content: _Content) -> Rows:
    sizes = sorted({portrait.size for portrait in content.album.portraits})
    smallest, largest = (f"{height} × {width}" for height, width in (sizes[0], sizes[-1]))
    rows = [
        ("Images", str(len(content.names))),
        *((f"of type {kind}", str(n)) for kind, n in sorted(Counter(content.types).items())),
        ("Height × width", smallest if len(sizes) == 1 else f"{smallest} to {largest}"),
        ("Unfamiliar", str(sum(content.is_unfamiliar))),
    ]
    if content.evaluation and content.evaluation.pixels:
        rows.append(("With a mask", str(content.evaluation.pixels["n_masks"])))
    return rows


def _model_rows(clf: Any) -> Rows:
    info = clf.info()
    names = {
        "backbone": "Backbone",
        "weights": "Weights",
        "n_parameters": "Parameters",
        "n_trained_parameters": "of these trained",
        "image_size": "Input",
        "precision": "Precision",
        "classes": "Classes",
        "n_training_images": "Training images",
        "training_labels": "of these",
        "training_data": "Fingerprint of these",
        "epochs": "Epochs, all folds",
        "heatmap": "Heatmap",
        "threshold": "Decision threshold",
        "box_threshold": "Box threshold",
    }
    rows = [(name, _text(info[key])) for key, name in names.items()]
    if info.get("interrupted"):
        rows.append(("Training", "interrupted: thresholds rest on what was finished"))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {label}" for label, count in value.items()) or "-"
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return (" × " if all(isinstance(v, int) for v in value) else ", ").join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _parameters(clf: Any) -> list[tuple[str, str, bool]]:
    """Each parameter of the classifier, and whether it is not the default."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(clf)).parameters.items()
    }
    left_out = ("callbacks", "memory")  # code, and a folder of this machine
    return [
        (name, repr(value), repr(value) != repr(defaults.get(name)))
        for name, value in clf.get_params(deep=False).items()
        if name not in left_out
    ]


def _versions() -> Rows:
    return [
        ("defectcam", metadata.version("defectcam")),
        ("Python", platform.python_version()),
        *((name, metadata.version(name)) for name in _LIBRARIES),
    ]


def _limits(clf: Any, content: _Content) -> list[str]:
    """List what a reader must not conclude from the figures."""
    said = content.evaluation
    limits = []
    if said is None:
        limits.append(
            "These images have no labels: the report shows what the model calls them, not whether "
            "that is right."
        )
    else:
        limits.append(
            "A threshold chosen on these images looks better on them than it will be. Confirm it "
            "on others."
        )
        if 0 < said.n_defective < _FEW_DEFECTS:
            limits.append(
                f"Recall rests on {said.n_defective} defective images; its 95 % interval, beside "
                "the figure, is wide."
            )
        if said.unknown_types:
            limits.append(f"Training did not know these types: {', '.join(said.unknown_types)}.")
    if said is not None and said.n_defective == 0:
        limits.append("There is no defective image, so nothing is known of missed defects.")
    if any(content.is_unfamiliar):
        limits.append(
            f"{sum(content.is_unfamiliar)} images are unlike all training images: their labels and "
            "probabilities mean little."
        )
    if clf.cv is None:
        limits.append(
            "The model was trained without held-out images (cv=None): its probabilities and "
            "thresholds rest on images that it knows."
        )
    if clf.info()["heatmap"] == "min_max_cam":  # as fitted: the parameter may be another since
        limits.append(
            "Heatmaps are stretched to each image's own range: a good part looks as hot as a "
            "defective one."
        )
    limits.append(
        "Nobody showed the model where defects are. Heatmaps and boxes lie on the defect, on a "
        "grid coarser than the image, and do not follow its outline."
    )
    limits.append(
        "The probability holds for as large a share of defects as there was in training; on a line "
        "where they are rarer, the same value stands for fewer of them."
    )
    return limits


# --- The page -------------------------------------------------------------------------------------


def _render(clf: Any, content: _Content, title: str, model: str) -> str:
    environment = Environment(
        loader=PackageLoader("defectcam"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    templates = resources.files("defectcam") / "templates"
    script = "\n".join((templates / name).read_text("utf-8") for name in _SCRIPTS)
    digest = as_base64(hashlib.sha256(script.encode()).digest())
    style = (templates / "report.css").read_text("utf-8")
    # Our own files: in these alone nothing is escaped.
    safe_style = Markup(style)  # nosec B704
    safe_script = Markup(script)  # nosec B704
    said = content.evaluation
    return environment.get_template("report.html.jinja").render(
        title=title,
        style=safe_style,
        script=safe_script,
        script_digest=digest,
        data=_data(clf, content, model),
        portraits=content.album.portraits,
        n_images=len(content.names),
        labelled=said is not None,
        mixed=bool(said and 0 < said.n_defective < said.n_images),
        has_masks=any(portrait.outline for portrait in content.album.portraits),
        date=date.today().isoformat(),
        version=metadata.version("defectcam"),
        localisation=[] if said is None else _localisation(said),
        n_unmasked=said.pixels["n_defective_without_mask"] if said and said.pixels else 0,
        card={
            "Images": _data_rows(content),
            "Figures at the model's threshold": [] if said is None else _figures(said),
            "Model": _model_rows(clf),
            "Versions": _versions(),
        },
        parameters=_parameters(clf),
        limits=_limits(clf, content),
    )
