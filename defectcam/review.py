"""Which answers of a classifier somebody should look at first, and what they are held against.

Owns the way from labelled images to "missed, false alarm, right" and the order in which a person
goes through them. It asks the estimator for its answers as any user would, and draws nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from defectcam.evaluation import labelled_types
from defectcam.folders import find_good_label
from defectcam.plain_labels import plain_label
from defectcam.sources import as_sources, brings_labels

__all__ = [
    "Labelled",
    "defect_probability",
    "final_estimator",
    "good_label_of",
    "labelled_images",
    "review_order",
    "verdicts",
]


class Labelled(NamedTuple):
    """Images and what is known about them.

    Attributes
    ----------
    items : list
        The images: files, arrays or views.
    types : ndarray of shape (n,) or None
        Their labels; None where none were given.
    good_label : label or None
        The one that means good.
    """

    items: list[Any]
    types: NDArray[Any] | None
    good_label: Any

    @property
    def is_defect(self) -> NDArray[np.bool_] | None:
        """Whether each image is labelled defective; None without labels."""
        return None if self.types is None else np.asarray(self.types != self.good_label)


def final_estimator(estimator: Any) -> Any:
    """Give the classifier at the end of a pipeline, of a search's best one, or the estimator."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if isinstance(estimator, Pipeline):
        return final_estimator(estimator[-1])
    if hasattr(estimator, "fit"):
        check_is_fitted(estimator)
    return estimator


def good_label_of(estimator: Any) -> Any:
    """Which of a fitted classifier's classes is the good one, as a plain value."""
    final = final_estimator(estimator)
    learned = getattr(final, "good_label_", None)
    if learned is None:
        return find_good_label(final.classes_)
    return plain_label(learned)


def labelled_images(
    estimator: Any, X: Any, y: ArrayLike | None, good_label: Any = None, *, needed: bool = True
) -> Labelled:
    """List images with their labels, and find out which label is good.

    Parameters
    ----------
    estimator : DefectCAMClassifier or Pipeline
        Fitted.
    X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
    y : array-like of shape (n,) or None
        Left out where ``X`` brings them: a folder with a sub-folder per class, or a data set.
    good_label : label, optional
        What good parts are called in ``y``, if not as in training.
    needed : bool, default=True
        Whether labels must be there. Otherwise, images without are returned with None.

    Returns
    -------
    Labelled

    Raises
    ------
    ValueError
        If labels are needed and missing, or do not fit the images.
    """
    learned = good_label_of(estimator)
    may_lack = y is None and good_label is None and not needed
    if may_lack and not brings_labels(X, learned):
        return Labelled(as_sources(X).items, None, None)
    sources, types, good = labelled_types(X, y, learned, good_label)
    return Labelled(sources.items, types, good)


def defect_probability(estimator: Any, items: list[Any]) -> NDArray[np.float64]:
    """Probability that each image shows a defect, of whatever type.

    Parameters
    ----------
    estimator : classifier with ``predict_proba`` and ``classes_``
    items : list of n images

    Returns
    -------
    ndarray of shape (n,)
    """
    classes = final_estimator(estimator).classes_
    columns = np.flatnonzero(np.asarray(classes) != good_label_of(estimator))
    return np.asarray(estimator.predict_proba(items))[:, columns].sum(axis=1)


def verdicts(is_defect: ArrayLike, called_defect: ArrayLike) -> NDArray[np.str_]:
    """Say of each answer what it is: ``missed``, ``false alarm``, ``found`` or ``passed``.

    Examples
    --------
    >>> verdicts([True, True, False, False], [False, True, True, False]).tolist()
    ['missed', 'found', 'false alarm', 'passed']
    """
    truth, called = np.asarray(is_defect, bool), np.asarray(called_defect, bool)
    return np.select(
        [truth & ~called, ~truth & called, truth], ["missed", "false alarm", "found"], "passed"
    )


def review_order(
    probability: ArrayLike, called_defect: ArrayLike, is_defect: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Order answers for a person: missed defects, false alarms, then found ones and passed ones.

    The worst come first: of missed defects those with the lowest probability, of all others those
    with the highest. Without labels, probability alone counts.

    Parameters
    ----------
    probability : array-like of shape (n,)
        Of a defect.
    called_defect : array-like of shape (n,)
        What the classifier decided.
    is_defect : array-like of shape (n,), optional
        The truth.

    Returns
    -------
    ndarray of shape (n,)
        Indices.

    Examples
    --------
    >>> review_order([0.9, 0.2, 0.8, 0.1, 0.4], [1, 0, 1, 0, 0], [1, 1, 0, 0, 1]).tolist()
    [1, 4, 2, 0, 3]
    """
    values = np.asarray(probability, np.float64)
    if is_defect is None:
        return np.argsort(-values, kind="stable")
    kinds = verdicts(is_defect, called_defect)
    urgency = np.select([kinds == "missed", kinds == "false alarm", kinds == "found"], [0, 1, 2], 3)
    return np.lexsort((np.where(kinds == "missed", values, -values), urgency))
