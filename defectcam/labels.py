"""What the classes are: which label means good, and whether defect types stay apart.

Owns the way from user labels to classes and back. It never looks at an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import column_or_1d

from defectcam.folders import find_good_label
from defectcam.plain_labels import ANOMALY, plain_label


class Classes(NamedTuple):
    """The classes of a fitted classifier.

    Attributes
    ----------
    labels : ndarray of shape (n_classes,)
        Sorted.
    good : int
        Index of the good class in ``labels``.
    """

    labels: NDArray[Any]
    good: int

    @property
    def good_label(self) -> Any:
        """The label of good parts."""
        return self.labels[self.good]

    @property
    def defects(self) -> list[int]:
        """Indices of the defect classes."""
        return [i for i in range(len(self.labels)) if i != self.good]

    def merge(self, y: ArrayLike) -> NDArray[Any]:
        """Give every label that is neither good nor a known class the one defect class, if any.

        So a test folder may hold defect types that training did not know.
        """
        labels = as_labels(y)
        if len(self.defects) != 1:
            return labels
        return np.where(labels == self.good_label, self.good_label, self.labels[self.defects[0]])

    def encode(self, y: ArrayLike) -> NDArray[np.int64]:
        """Class index of each label; the labels must be known."""
        merged = self.merge(y)
        unknown = np.setdiff1d(merged, self.labels)
        if len(unknown):
            raise ValueError(f"y holds labels unknown at fit: {unknown.tolist()}.")
        return np.searchsorted(self.labels, merged)


def find_classes(y: ArrayLike, target: str, good_label: Any) -> Classes:
    """Find out the classes of training labels.

    Two labels are kept as they are. Of more than two, ``target="type"`` keeps all and
    ``target="anomaly"`` merges the defect types under `ANOMALY`. Good images alone get a defect
    class without images: `ANOMALY`, the other boolean, or the other of 0 and 1.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        Strings, booleans or integers.
    target : {"anomaly", "type"}
    good_label : label or None
        None: found by name.

    Raises
    ------
    ValueError
        If the good class cannot be told, or the one class that is present is not good.
    """
    labels = as_labels(y)
    unique = np.unique(labels)
    if len(unique) == 1:
        return _only_good(unique, good_label)
    good = _good_among(unique, good_label)
    if len(unique) > 2 and target == "anomaly":
        if unique.dtype.kind not in "UO":
            raise ValueError(
                f"y holds {len(unique)} classes ({unique[:5].tolist()}...): with numbers as labels "
                'pass y != good, or target="type" to keep the classes apart.' + _if_numbered(unique)
            )
        unique = np.unique([good, ANOMALY])
    return Classes(unique, int(np.flatnonzero(unique == good)[0]))


def _good_among(unique: NDArray[Any], good_label: Any) -> Any:
    try:
        return find_good_label(unique, good_label)
    except ValueError as error:
        raise ValueError(f"{error}{_if_numbered(unique)}") from error


def _if_numbered(unique: NDArray[Any]) -> str:
    """Say what to do about labels that look as if scikit-learn had put numbers in their place."""
    if unique.dtype.kind not in "iu" or not np.array_equal(unique, np.arange(len(unique))):
        return ""
    return (
        " If your labels are no numbers, scikit-learn has numbered them in sorted order "
        "(cross_val_predict with method='predict_proba' does, VotingClassifier, "
        "CalibratedClassifierCV(ensemble=False) and others): give it y != good, with the "
        "name of your good label, and leave good_label out; or, to keep the types apart, "
        "target='type' and good_label=np.unique(y).tolist().index(good)."
    )


def _only_good(unique: NDArray[Any], good_label: Any) -> Classes:
    """Classes of labels that are all the same, which must be the good one."""
    try:
        good = find_good_label(unique, good_label)
    except ValueError as error:
        raise ValueError(
            f"y holds one class only ({unique.tolist()}), which is not known to be good. Good "
            "images are needed, defective ones make the classifier better; if these are good, pass "
            f"good_label={unique.tolist()[0]!r}."
        ) from error
    if unique.dtype.kind == "U":
        labels = np.unique([good, ANOMALY])
    elif unique.dtype.kind == "b" or good in (0, 1):
        labels = np.array([0, 1], dtype=unique.dtype)
    else:
        labels = unique
    if len(labels) < 2:
        raise ValueError(
            f"y holds only the good label {good!r}, beside which defects get no label of their "
            "own: name good images 'good', or pass False for all of them."
        )
    return Classes(labels, int(np.flatnonzero(labels == good)[0]))


def as_labels(y: ArrayLike) -> NDArray[Any]:
    """One-dimensional array of labels; strings in one dtype, None and NaN refused."""
    kinds = {_kind(label) for label in y} if isinstance(y, (list, tuple)) else set()
    if len(kinds) > 1:
        raise ValueError(
            f"y must hold labels of one type, strings, booleans or integers, got {sorted(kinds)}."
        )
    if getattr(getattr(y, "dtype", None), "kind", None) == "b":
        y = np.asarray(y)  # of pandas' nullable booleans, scikit-learn would make numbers
    if getattr(getattr(y, "dtype", None), "kind", None) == "T":
        y = np.array(np.asarray(y).tolist())  # scikit-learn does not know this kind of string
    _refuse_closing_nulls(y)
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "O" and {_kind(v) for v in labels} in ({"bool"}, {"int"}):
        labels = np.array([plain_label(label) for label in labels])
        if labels.dtype.kind == "O":
            raise ValueError(f"y holds integers beyond 64 bits, up to {max(labels, key=abs)}.")
    if labels.dtype.kind == "O":
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(
                "y must hold labels of one type, strings, booleans or integers, got "
                f"{sorted({type(label).__name__ for label in labels})}."
            )
        labels = labels.astype(str)
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or not np.array_equal(labels, np.round(labels)):
            raise ValueError(
                "Unknown label type: y holds fractions or NaN, expected strings, booleans or "
                "integers."
            )
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "bUiu":
        raise ValueError(f"y has dtype {labels.dtype}, expected strings, booleans or integers.")
    return labels


def _refuse_closing_nulls(y: ArrayLike) -> None:
    """Refuse strings that NumPy would shorten, and so might make two labels one."""
    if isinstance(y, (list, tuple)):
        for label in y:
            if isinstance(label, str) and label.endswith("\0"):
                raise ValueError(f"y holds the label {label!r}, which ends with a null character.")


def _kind(label: Any) -> str:
    """Name of a label's type, the same for Python's and NumPy's."""
    if isinstance(label, (np.ndarray, list, tuple)):
        return "array"
    return type(plain_label(label)).__name__
