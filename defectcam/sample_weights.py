"""What sample weights mean: images repeated, left out, or weighed; and what classes weigh.

Owns the rule that decides between the three, and the way back from what was fitted to the images
that were given. It knows no image, no label's meaning and no loss.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import compute_class_weight
from sklearn.utils.validation import _check_sample_weight

#: Most rows that integer weights may make, each of which costs a pass through the trunk.
MAX_ROWS = 10_000_000

#: Least weight; its reciprocal is the largest. Products with class weights and losses then stay in
#: the range of single precision.
LEAST_WEIGHT = 1e-25


class WeighedRows(NamedTuple):
    """Which of the given images are fitted, how often, and with what weight.

    Attributes
    ----------
    rows : ndarray of shape (n_fitted,)
        Index among the given images of each one that is fitted, ascending.
    weights : ndarray of shape (n_fitted,), float64
        Positive; 1 throughout where the weights were integers.
    n_given : int
        Number of images given.
    """

    rows: NDArray[np.intp]
    weights: NDArray[np.float64]
    n_given: int

    @property
    def n_used(self) -> int:
        """Number of given images that are fitted, each counted once."""
        return len(np.unique(self.rows))

    def per_given(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Value of each given image, of its first copy; NaN for those that were left out."""
        found = np.full(self.n_given, np.nan)
        given, first = np.unique(self.rows, return_index=True)
        found[given] = values[first]
        return found

    def given(self, fitted: NDArray[np.integer]) -> NDArray[np.int64]:
        """Turn indices of fitted images into those of the given ones, each once, in their order."""
        once = dict.fromkeys(self.rows[fitted].tolist())
        return np.fromiter(once, dtype=np.int64, count=len(once))


def relative_weights(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights with a mean of 1: only what images weigh beside each other means anything."""
    return weights / weights.mean()


def weigh_rows(sample_weight: ArrayLike | None, n_images: int) -> WeighedRows:
    """Turn sample weights into rows to fit.

    Where all weights are integers each image stands there as often as its weight says, so that an
    integer weight is repetition, exactly: in class weights, epochs, folds, codebook, calibration
    and thresholds. Fractions cannot be repeated and stay weights. Zero leaves an image out.

    Parameters
    ----------
    sample_weight : array-like of shape (n_images,) or None
        None: 1 for each image.
    n_images : int

    Raises
    ------
    ValueError
        If a weight is negative, not finite, or all are zero; or if there are not ``n_images``.

    Examples
    --------
    >>> weigh_rows([2, 0, 1], 3).rows.tolist()
    [0, 0, 2]
    >>> weigh_rows([0.5, 0, 1], 3).weights.tolist()
    [0.5, 1.0]
    """
    places = np.arange(n_images)
    weights = np.asarray(_check_sample_weight(sample_weight, places, dtype=np.float64))
    if (weights < 0).any():
        raise ValueError(
            f"Negative values in data passed to `sample_weight`: the least is {weights.min():g}, "
            "expected 0 (left out) and more."
        )
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number, all are 0.")
    if np.array_equal(np.rint(weights), weights):
        if weights.max() > MAX_ROWS or weights.sum() > MAX_ROWS:
            raise ValueError(
                f"`sample_weight` holds whole numbers up to {weights.max():g}, which repeat images "
                f"and make more than {MAX_ROWS} rows of images: divide it by its mean, so that the "
                "images are weighed instead."
            )
        counts = weights.astype(np.int64)
        rows = np.repeat(places, counts)
        return WeighedRows(rows, np.ones(len(rows)), n_images)
    kept = np.flatnonzero(weights)
    least, most = weights[kept].min(), weights.max()
    if least < LEAST_WEIGHT or most > 1 / LEAST_WEIGHT:
        raise ValueError(
            f"`sample_weight` holds values from {least:g} to {most:g}, which single precision, in "
            "which losses are computed, cannot weigh: divide it by its mean, and make weights next "
            "to nothing 0."
        )
    return WeighedRows(kept, weights[kept], n_images)


def class_weights(
    class_weight: Any,
    classes: NDArray[Any],
    good: int,
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Turn the parameter `class_weight` into a weight per class.

    Parameters
    ----------
    class_weight : "balanced", dict, float or None
        A dict is keyed by class label; a number is the weight of every class but the good one,
        which has 1. As in scikit-learn otherwise.
    classes : ndarray of shape (n_classes,)
        Labels.
    good : int
        Index of the good class.
    targets : ndarray of shape (n_images,), int64
        Class indices.
    weights : ndarray of shape (n_images,), float64
        Of the images, which count in the balance.

    Returns
    -------
    ndarray of shape (n_classes,), float64
    """
    if isinstance(class_weight, str) and class_weight == "balanced":
        totals = np.bincount(targets, weights, minlength=len(classes))
        # A class that is yet to come has no image whose weight could matter.
        return totals.sum() / (len(totals) * np.where(totals > 0, totals, np.inf))
    if isinstance(class_weight, Real):
        found = np.full(len(classes), float(class_weight))
        found[good] = 1.0
        return found
    return compute_class_weight(class_weight, classes=classes, y=classes[targets])
