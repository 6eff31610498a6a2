"""Compares exported models with the classifier that they were exported from, image by image.

Owns the figures by which two answers are held against each other, and the limits. It writes no
model and trains nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from defectcam.classifier import DefectCAMClassifier
from defectcam.results import Localization
from defectcam.review import Labelled
from defectcam.runtime import METADATA_KEY, Inspector
from defectcam.sources import as_sources

__all__ = ["Int8Loss", "Parity", "ParityRow", "TorchProgram", "in_float32", "verify"]

#: Largest differences between two answers in float32 that count as the same.
MAX_PROBABILITY_DIFFERENCE = 1e-4
MAX_HEATMAP_DIFFERENCE = 1e-3


class ParityRow(NamedTuple):
    """How far one engine's answers are from the classifier's.

    Attributes
    ----------
    engine : str
    probability : float
        Largest difference of a probability.
    heatmap : float
        Largest difference of a heatmap's pixel, at the image's size.
    labels : int
        Images with another label.
    boxes : int
        Images with other boxes.
    """

    engine: str
    probability: float
    heatmap: float
    labels: int
    boxes: int

    @property
    def is_same(self) -> bool:
        """Whether all differences are within the limits."""
        return (
            self.probability <= MAX_PROBABILITY_DIFFERENCE
            and self.heatmap <= MAX_HEATMAP_DIFFERENCE
            and self.labels == self.boxes == 0
        )


class Parity(NamedTuple):
    """A table of engines; ``print`` it.

    Attributes
    ----------
    n_images : int
    n_boxes : int
        Boxes that the classifier draws in them.
    rows : list of ParityRow
    """

    n_images: int
    n_boxes: int
    rows: list[ParityRow]

    @property
    def is_same(self) -> bool:
        """Whether all engines answer as the classifier does."""
        return all(row.is_same for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        return {
            "images": self.n_images,
            "boxes": self.n_boxes,
            "same": self.is_same,
            "engines": {row.engine: {**row._asdict(), "same": row.is_same} for row in self.rows},
        }

    def __str__(self) -> str:
        lines = [
            f"{self.n_images} images with {self.n_boxes} boxes; largest difference from `localize` "
            "in float32:",
            "",
            "| engine | probability | heatmap | other labels | other boxes | same |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            lines.append(
                f"| {row.engine} | {row.probability:.1e} | {row.heatmap:.1e} | {row.labels} | "
                f"{row.boxes} | {'yes' if row.is_same else 'NO'} |"
            )
        return "\n".join(lines)


class Int8Loss(NamedTuple):
    """What int8 changed.

    Attributes
    ----------
    n_images : int
    mean_change, max_change : float
        Of the probability, absolute.
    labels_changed : int
        Images with another label.
    auroc, auroc_int8 : float or None
        Area under the images' ROC curve before and after; None without labels of both kinds.
    """

    n_images: int
    mean_change: float
    max_change: float
    labels_changed: int
    auroc: float | None
    auroc_int8: float | None

    @property
    def auroc_loss(self) -> float | None:
        """By how much the area has become less; None if it is not known."""
        if self.auroc is None or self.auroc_int8 is None:
            return None
        return self.auroc - self.auroc_int8


class TorchProgram(Inspector):
    """Runs a ``.pt2`` file, for comparison: who has torch has the classifier itself."""

    def _open(self, file: Any, precision: str) -> Any:
        return _Program(file)


class _Program:
    def __init__(self, file: Any) -> None:
        extra = {METADATA_KEY: ""}
        program = torch.export.load(file, extra_files=extra)
        self.description = extra[METADATA_KEY] or None
        self._module = program.module()

    def run(
        self, names: Any, pixels: NDArray[np.uint8], original_size: tuple[int, int] | None
    ) -> list[NDArray[Any]]:
        inputs = [torch.from_numpy(np.ascontiguousarray(pixels))]
        if original_size is not None:
            inputs.append(torch.tensor(original_size, dtype=torch.int64))
        with torch.no_grad():
            answers = self._module(*inputs)
        return [answers[name].numpy() for name in names]

    def of_many(self, n_threads: int) -> Any:
        return self


def in_float32(clf: DefectCAMClassifier) -> DefectCAMClassifier:
    """Copy a fitted classifier that computes in float32 on the processor, whatever it did."""
    same = copy.copy(clf)
    same.network_ = copy.deepcopy(clf.network_).cpu().set_dtype(torch.float32)
    same._preprocess = copy.deepcopy(clf._preprocess).cpu()
    return same


def verify(clf: DefectCAMClassifier, engines: Mapping[str, Inspector], X: Any) -> Parity:
    """Compare exported models with the classifier, in float32.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted; whatever its ``precision``, float32 is computed here.
    engines : mapping of str to Inspector
        By the names that the table calls them.
    X : images, as `DefectCAMClassifier.localize` takes them

    Returns
    -------
    Parity
    """
    items = as_sources(X).items
    inspectors = list(engines.values())
    streams = [inspector.localize_iter(items) for inspector in inspectors]
    worst = np.zeros((len(inspectors), 4))
    n_boxes = 0
    for expected, *found in zip(in_float32(clf).localize_iter(items), *streams, strict=True):
        heatmap, n_boxes = expected.heatmap, n_boxes + len(expected.boxes)
        for row, one in zip(worst, found, strict=True):
            row[0] = max(row[0], abs(one.probability - expected.probability))
            row[1] = max(row[1], float(np.abs(one.heatmap - heatmap).max()))
            row[2] += one.label != expected.label
            row[3] += not np.array_equal(one.boxes, expected.boxes)
    rows = [
        ParityRow(name, float(row[0]), float(row[1]), int(row[2]), int(row[3]))
        for name, row in zip(engines, worst, strict=True)
    ]
    return Parity(len(items), n_boxes, rows)


def measure_int8_loss(
    clf: DefectCAMClassifier, inspector: Inspector, measured: Labelled
) -> Int8Loss:
    """Hold an int8 model's answers against the classifier's.

    Parameters
    ----------
    clf : DefectCAMClassifier
    inspector : Inspector
        Of the int8 model.
    measured : Labelled
        The images; without labels there is no AUROC.
    """
    items, is_defect = measured.items, measured.is_defect
    before = list(_answers(in_float32(clf).localize_iter(items)))
    after = list(_answers(inspector.localize_iter(items)))
    first, second = (np.array([p for p, _ in answers]) for answers in (before, after))
    change = np.abs(first - second)
    has_both = is_defect is not None and 0 < is_defect.sum() < len(is_defect)
    return Int8Loss(
        len(items),
        float(change.mean()),
        float(change.max()),
        sum(a != b for (_, a), (_, b) in zip(before, after, strict=True)),
        float(roc_auc_score(is_defect, first)) if has_both else None,
        float(roc_auc_score(is_defect, second)) if has_both else None,
    )


def _answers(found: Iterator[Localization]) -> Iterator[tuple[float, Any]]:
    return ((one.probability, one.label) for one in found)
