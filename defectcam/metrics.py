"""How well defects are found and localised, as functions in scikit-learn's manner.

The module owns the image-level rates by their trade names (defect recall, escape, overkill), the
calibration error of probabilities, the pixel-level scores of heatmaps against masks, and the scores
of boxes. What was observed comes first, what was predicted second; arrays or iterables of arrays go
in, a float or a dict comes out.
It never reads images, runs a model or chooses a threshold, and depends on nothing else in the
package. A score that the data leave undefined is ``nan`` with scikit-learn's
`UndefinedMetricWarning`, as in `sklearn.metrics.roc_auc_score`; arguments that do not fit together
raise `ValueError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from numbers import Integral
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import auc, recall_score
from sklearn.utils import check_consistent_length, column_or_1d

__all__ = [
    "PixelCounts",
    "box_iou",
    "box_precision_recall_f1",
    "defect_recall_score",
    "escape_rate",
    "expected_calibration_error",
    "mask_boxes",
    "max_box_accuracy_score",
    "overkill_rate",
    "pixel_average_precision_score",
    "pixel_roc_auc_score",
    "pointing_game_score",
    "pro_auc_score",
    "pro_curve",
    "pro_curve_area",
]

FloatArray = NDArray[np.floating[Any]]


# Image level -------------------------------------------------------------------------------------


def defect_recall_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    pos_label: Any = None,
    good_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of the defective images that are called defective (sensitivity).

    Name either the defect's label or the good one; the latter serves where ``y_true`` holds
    several types of defect.

    Parameters
    ----------
    y_true, y_pred
        True and predicted labels, shape ``(n_images,)``.
    pos_label
        Label of the defect, in data with at most two labels. By default 1 where the labels are
        numbers out of {0, 1} or {-1, 1}; text labels must be named.
    good_label
        Label of good images: every other label, of whatever type, counts as a defect. Replaces
        `pos_label`.
    sample_weight
        Weight of each image.

    Returns
    -------
    float
        Recall in [0, 1]; ``nan`` with a warning if no image is defective.

    Raises
    ------
    ValueError
        If the labels do not tell which images are defective.

    See Also
    --------
    sklearn.metrics.recall_score : The general form.

    Examples
    --------
    >>> from defectcam.metrics import defect_recall_score
    >>> y_true = ["good", "scratch", "dent", "dent"]
    >>> y_pred = ["good", "anomaly", "anomaly", "good"]
    >>> round(defect_recall_score(y_true, y_pred, good_label="good"), 3)
    0.667
    >>> from sklearn.metrics import make_scorer
    >>> scorer = make_scorer(defect_recall_score, good_label="good")
    """
    truth, called = _defective(y_true, y_pred, pos_label, good_label)
    return _recall(truth, called, True, sample_weight)


def escape_rate(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    pos_label: Any = None,
    good_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of the defective images that are passed as good: 1 - defect recall.

    Parameters
    ----------
    y_true, y_pred, pos_label, good_label, sample_weight
        As in `defect_recall_score`.

    Returns
    -------
    float
        Rate in [0, 1], lower is better; ``nan`` with a warning if no image is defective.

    Examples
    --------
    >>> from defectcam.metrics import escape_rate
    >>> escape_rate([0, 0, 1, 1], [0, 1, 1, 0])
    0.5
    """
    truth, called = _defective(y_true, y_pred, pos_label, good_label)
    return 1.0 - _recall(truth, called, True, sample_weight)


def overkill_rate(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    pos_label: Any = None,
    good_label: Any = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of the good images that are rejected as defective (false-positive rate).

    Parameters
    ----------
    y_true, y_pred, pos_label, good_label, sample_weight
        As in `defect_recall_score`.

    Returns
    -------
    float
        Rate in [0, 1], lower is better; ``nan`` with a warning if no image is good.

    Examples
    --------
    >>> from defectcam.metrics import overkill_rate
    >>> overkill_rate([0, 0, 0, 0, 1], [0, 1, 0, 0, 1])
    0.25
    """
    truth, called = _defective(y_true, y_pred, pos_label, good_label)
    return 1.0 - _recall(truth, called, False, sample_weight)


def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    pos_label: Any = None,
    n_bins: int = 10,
    strategy: str = "uniform",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean gap between the predicted probability and the share of defects, over bins.

    The images are put into bins by their probability. Each bin's gap is the difference between its
    mean probability and its share of defective images; the mean over bins weighs each by its share
    of the images.

    Parameters
    ----------
    y_true
        True labels, at most two different ones, shape ``(n_images,)``. Where there are several
        types of defect, pass whether each image is defective.
    y_prob
        Probability of a defect, in [0, 1], shape ``(n_images,)``.
    pos_label
        Label of the defect. By default 1 where the labels are numbers out of {0, 1} or {-1, 1};
        text labels must be named. In a scorer it also says which column of ``predict_proba`` to
        take.
    n_bins
        Number of bins; those without images do not count.
    strategy
        ``"uniform"``: bins of equal width. ``"quantile"``: bins of equally many images (of equal
        weight), as nearly as the data allow; images of equal probability stay together. Either way
        the upper edge belongs to a bin and the lower one does not.
    sample_weight
        Weight of each image. A whole number counts as so many images.

    Returns
    -------
    float
        Error in [0, 1], 0 = calibrated; ``nan`` with a warning if there is no image.

    Raises
    ------
    ValueError
        If the labels do not tell which images are defective, a probability is none, or another
        argument is out of range.

    See Also
    --------
    sklearn.calibration.calibration_curve : The bins themselves; the same ones for bins of equal
        width, and for quantiles where the bins divide the images evenly.
    sklearn.metrics.brier_score_loss : A score without bins, of calibration and sharpness together.

    Notes
    -----
    The error depends on the number of bins, and few images in a bin make it larger: compare it at
    like numbers of images, or pool several test sets.

    References
    ----------
    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015.

    Examples
    --------
    >>> from defectcam.metrics import expected_calibration_error
    >>> y_true = ["good", "good", "good", "bad", "bad"]
    >>> y_prob = [0.1, 0.1, 0.4, 0.9, 0.9]
    >>> round(expected_calibration_error(y_true, y_prob, pos_label="bad"), 3)
    0.16
    """
    if strategy not in ("uniform", "quantile"):
        raise ValueError(f"strategy must be 'uniform' or 'quantile', got {strategy!r}.")
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins!r}.")
    truth = column_or_1d(y_true)
    labels = set(truth.tolist())
    defect = _defect_label(
        labels, pos_label, "pos_label=...", "pass whether each image is defective, as booleans"
    )
    probability = _within(y_prob, "y_prob", 0.0, 1.0)
    weight = np.ones(len(truth))
    if sample_weight is not None:
        weight = _within(sample_weight, "sample_weight", 0.0, np.inf)
    check_consistent_length(truth, probability, weight)
    if not weight.any():
        return _undefined("there is no image, or none has a weight")
    bins = _calibration_bins(probability, weight, int(n_bins), strategy)
    gaps = np.bincount(bins, weight * (probability - (truth == defect)))
    return float(np.abs(gaps).sum() / weight.sum())


def _calibration_bins(
    probability: NDArray[np.float64], weight: NDArray[np.float64], n_bins: int, strategy: str
) -> NDArray[np.int64]:
    """Bin of each probability, with the upper edges belonging to the bins."""
    inner = np.linspace(0, 1, n_bins + 1)[1:-1]
    if strategy == "quantile":
        order = np.argsort(probability, kind="stable")
        reached = np.cumsum(weight[order])
        # Rounding of a sum of weights must not carry an edge past the image that it falls on.
        wanted = (1 - 1e-9) * inner * reached[-1]
        inner = probability[order][np.searchsorted(reached, wanted)]
    return np.searchsorted(inner, probability)


def _within(values: ArrayLike, name: str, low: float, high: float) -> NDArray[np.float64]:
    array = column_or_1d(values, dtype=np.float64)
    unfit = array[~(np.isfinite(array) & (array >= low) & (array <= high))]
    if unfit.size:
        raise ValueError(f"{name} must be finite numbers from {low:g} to {high:g}, got {unfit[0]}.")
    return array


def _defective(
    y_true: ArrayLike, y_pred: ArrayLike, pos_label: Any, good_label: Any
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both label arrays as booleans, True = defective."""
    truth, called = column_or_1d(y_true), column_or_1d(y_pred)
    check_consistent_length(truth, called)
    labels = set(truth.tolist()) | set(called.tolist())
    if good_label is not None:
        if labels and good_label not in labels:
            warnings.warn(
                f"good_label={good_label!r} occurs neither in y_true nor in y_pred, so every image "
                f"counts as defective; the labels are {_shown(labels)}.",
                stacklevel=3,
            )
        return truth != good_label, called != good_label
    defect = _defect_label(
        labels,
        pos_label,
        "good_label=... (every other label is a defect) or pos_label=...",
        "pass good_label=... instead, then every other label counts as a defect",
    )
    return truth == defect, called == defect


def _defect_label(labels: set[Any], pos_label: Any, names: str, instead: str) -> Any:
    """Label of the defect among at most two; `names` and `instead` are advice for the errors."""
    if pos_label is None:
        if not (labels <= {0, 1} or labels <= {-1, 1}):
            raise ValueError(
                f"The labels {_shown(labels)} do not tell which one means defective: pass {names}"
            )
        pos_label = 1
    if len(labels) > 2:
        raise ValueError(
            f"pos_label={pos_label!r} needs at most two labels, got {_shown(labels)}: {instead}."
        )
    if len(labels) == 2 and pos_label not in labels:
        raise ValueError(f"pos_label={pos_label!r} is not among the labels {_shown(labels)}.")
    return pos_label


def _shown(labels: set[Any]) -> str:
    return str(sorted(labels, key=str))


def _recall(
    truth: NDArray[np.bool_],
    called: NDArray[np.bool_],
    of: bool,
    sample_weight: ArrayLike | None,
) -> float:
    recall = np.nan  # scikit-learn refuses to score no image at all
    if len(truth):
        recall = recall_score(
            truth, called, pos_label=of, sample_weight=sample_weight, zero_division=np.nan
        )
    if np.isnan(recall):
        return _undefined(f"y_true has no {'defective' if of else 'good'} image", stacklevel=4)
    return float(recall)


# Pixel level -------------------------------------------------------------------------------------


def pixel_roc_auc_score(
    masks: Iterable[ArrayLike | None],
    heatmaps: Iterable[ArrayLike],
    *,
    n_bins: int | None = None,
) -> float:
    """Area under the ROC curve of all pixels of all images, pooled (pixel AUROC).

    Parameters
    ----------
    masks
        For each image an array ``(H, W)``, nonzero = defective pixel, or None for an image without
        any. Lists, stacked arrays and generators do; they are gone through once.
    heatmaps
        For each image, in the same order, the map ``(H, W)`` of the mask's size, higher = more
        defective. Sizes may differ from image to image.
    n_bins
        None: exact, ties counted as halves; holds all scores in memory (8 bytes a pixel of float32
        maps). A number: one histogram of that many bins, so that memory does not grow with the
        number of images (16 bytes a bin). ``2**20`` suits maps around 0 to 1; see Notes.

    Returns
    -------
    float
        Area in [0, 1], .5 = chance; ``nan`` with a warning if no pixel is defective, or none good.

    Raises
    ------
    ValueError
        If masks and heatmaps differ in number or size, or a map is not finite.

    Notes
    -----
    The bins divide the float32 numbers, not the range of the data: they are ``n_bins / 512`` to
    each factor of two, so with ``2**20`` a score is rounded by less than 0.05 % of itself,
    whatever the maps' scale. Their error is at most half the pairs that share a bin, ``0.5 *
    sum(p_b * g_b)`` with ``p_b`` and ``g_b`` the shares of defective and of good pixels in bin b.
    Maps whose differences are small beside their values (1000.0 to 1000.1) should be shifted, or
    scored exactly.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import pixel_roc_auc_score
    >>> mask = np.zeros((4, 4), bool)
    >>> mask[1:3, 1:3] = True
    >>> pixel_roc_auc_score([mask, None], [mask * 0.8, np.full((4, 4), 0.1)])
    1.0
    >>> pixel_roc_auc_score([mask], [np.ones((4, 4))])
    0.5
    """
    _, good, defective = _score_counts(masks, heatmaps, n_bins)
    missing = _missing_pixels(good, defective)
    if missing:
        return _undefined(missing)
    return _roc_area(good, defective)


def pixel_average_precision_score(
    masks: Iterable[ArrayLike | None],
    heatmaps: Iterable[ArrayLike],
    *,
    n_bins: int | None = None,
) -> float:
    """Average precision of all pixels of all images, pooled (PxAP).

    Precision at each distinct score, weighted by the recall it adds, without interpolation, as in
    `sklearn.metrics.average_precision_score`. Unlike the areas under ROC and PRO curves it falls
    with the share of defective pixels, so compare it on one data set only.

    Parameters
    ----------
    masks, heatmaps, n_bins
        As in `pixel_roc_auc_score`.

    Returns
    -------
    float
        Average precision in [0, 1], chance = the share of defective pixels; ``nan`` with a warning
        if no pixel is defective.

    Notes
    -----
    With `n_bins`, each bin's share of the defective pixels is weighted by the precision at the
    bin's end. With t and f the defective and good pixels above a bin, and t' and f' those above or
    in it, the true precision lies between ``(t + 1) / (t + 1 + f')`` and ``t' / (t' + f)``: the
    error is at most the sum over bins of ``(t' - t) / n_defective`` times the farther of the two
    from ``t' / (t' + f')``.

    References
    ----------
    Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020 (PxAP).

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import pixel_average_precision_score
    >>> mask, heatmap = np.array([[0, 1, 0, 1]]), np.array([[0.1, 0.9, 0.5, 0.4]])
    >>> round(pixel_average_precision_score([mask], [heatmap]), 3)
    0.833
    """
    _, good, defective = _score_counts(masks, heatmaps, n_bins)
    if not defective.any():
        return _undefined(_NO_DEFECTIVE_PIXEL)
    true_positives = np.cumsum(defective)
    precision = true_positives / (true_positives + np.cumsum(good))
    return float(np.sum(precision * defective) / true_positives[-1])


def pro_auc_score(
    masks: Iterable[ArrayLike | None],
    heatmaps: Iterable[ArrayLike],
    *,
    max_fpr: float = 0.3,
    n_bins: int | None = None,
) -> float:
    """Area under the per-region overlap curve up to a false-positive rate (AUPRO).

    Each defective region, large or small, counts the same: its overlap at a threshold is the share
    of its pixels at or above it. The mean over regions is integrated over the false-positive rate
    of all good pixels, by trapezoids with interpolation at the limit, and divided by the limit.

    Parameters
    ----------
    masks, heatmaps, n_bins
        As in `pixel_roc_auc_score`. Regions are the 8-connected components of the masks.
    max_fpr
        Limit of the false-positive rate, in (0, 1].

    Returns
    -------
    float
        Area in [0, 1], chance = ``max_fpr / 2``; ``nan`` with a warning if no pixel is defective,
        or none good.

    Notes
    -----
    With `n_bins`, the points of the curve are exact and only the way between them is drawn
    straight: the error is at most ``0.5 * sum(p_b * g_b) / max_fpr``, with ``p_b`` and ``g_b`` the
    growth of mean overlap and false-positive rate in bin b, over the bins that start below the
    limit.

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset: A Comprehensive Real-World Dataset for
    Unsupervised Anomaly Detection", IJCV 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import pro_auc_score
    >>> mask = np.array([[1, 0, 0, 0, 0, 0, 1, 1]])
    >>> heatmap = np.array([[0.9, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0]])  # finds one region of two
    >>> pro_auc_score([mask], [heatmap])
    0.5
    """
    _check_max_fpr(max_fpr)
    _, good, defective = _score_counts(masks, heatmaps, n_bins, per_region=True)
    missing = _missing_pixels(good, defective)
    if missing:
        return _undefined(missing)
    return _pro_area(good, defective, max_fpr)


def pro_curve(
    masks: Iterable[ArrayLike | None],
    heatmaps: Iterable[ArrayLike],
    *,
    n_bins: int | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean per-region overlap against the false-positive rate of pixels.

    Parameters
    ----------
    masks, heatmaps, n_bins
        As in `pro_auc_score`.

    Returns
    -------
    fpr : ndarray of shape (n_points,)
        Share of all good pixels at or above each threshold, rising from 0 to 1.
    pro : ndarray of shape (n_points,)
        Mean over regions of the share of their pixels at or above it, rising from 0 to 1.
    thresholds : ndarray of shape (n_points,)
        Falling; the first is ``inf``. Points on a straight line between two others are left out.

    Warns
    -----
    UndefinedMetricWarning
        If no pixel is defective (`pro` is ``nan``), or none good (`fpr` is ``nan``).

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import pro_curve
    >>> fpr, pro, thresholds = pro_curve([np.array([[1, 1, 0, 0]])], [np.array([[3, 1, 2, 0]])])
    >>> fpr.tolist(), pro.tolist(), thresholds.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], [inf, 3.0, 2.0, 1.0, 0.0])
    """
    thresholds, good, defective = _score_counts(masks, heatmaps, n_bins, per_region=True)
    missing = _missing_pixels(good, defective)
    if missing:
        _undefined(missing)
    return _rising_shares(good), _rising_shares(defective), np.append(np.inf, thresholds)


def pro_curve_area(fpr: ArrayLike, pro: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under a curve of `pro_curve` up to a false-positive rate: `pro_auc_score`, given it.

    Parameters
    ----------
    fpr, pro
        Arrays of shape ``(n_points,)``, `fpr` rising from 0 to 1.
    max_fpr
        Limit of the false-positive rate, in (0, 1].

    Returns
    -------
    float
        Area in [0, 1], a share of the limit; ``nan`` with a warning if the curve is ``nan``.

    Examples
    --------
    >>> from defectcam.metrics import pro_curve_area
    >>> pro_curve_area([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    1.0
    """
    _check_max_fpr(max_fpr)
    rates, overlaps = np.asarray(fpr, np.float64), np.asarray(pro, np.float64)
    for name, values in (("fpr", rates), ("pro", overlaps)):
        if np.isnan(values).any():
            return _undefined(f"{name} is nan, as of masks without a good or a defective pixel")
    inside = rates <= max_fpr
    at_limit = np.interp(max_fpr, rates, overlaps)
    area = auc(np.append(rates[inside], max_fpr), np.append(overlaps[inside], at_limit))
    return float(area / max_fpr)


def pointing_game_score(masks: Iterable[ArrayLike | None], heatmaps: Iterable[ArrayLike]) -> float:
    """Share of the defective images whose map has its maximum on the defect.

    Good images do not count. Where several pixels share the maximum, the image counts by the share
    of them that are defective, so that a constant map scores as a random guess does.

    Parameters
    ----------
    masks, heatmaps
        As in `pixel_roc_auc_score`.

    Returns
    -------
    float
        Share in [0, 1]; ``nan`` with a warning if no image is defective.

    Notes
    -----
    The original game forgives a miss by up to 15 pixels; here the maximum must lie in the mask.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import pointing_game_score
    >>> mask = np.array([[0, 1, 1, 0]])
    >>> pointing_game_score([mask, mask, None], [mask * 0.9, 1 - mask, mask])
    0.5
    """
    hits = [
        float(mask[heatmap == heatmap.max()].mean())
        for mask, heatmap in _masks_and_maps(masks, heatmaps)
        if mask.any()
    ]
    return float(np.mean(hits)) if hits else _undefined("no mask has a defective pixel")


class PixelCounts:
    """The pixels of any number of images, counted by their score, one image at a time.

    Gives `pixel_roc_auc_score` and `pro_auc_score` in one pass over images that do not fit in
    memory together.

    Parameters
    ----------
    n_bins
        As in `pixel_roc_auc_score`: 24 bytes a bin are all that is held.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import PixelCounts
    >>> mask = np.array([[0, 1, 1, 0]])
    >>> counts = PixelCounts()
    >>> counts.add(mask, mask * 0.9)
    >>> counts.add(None, np.full((1, 4), 0.1))
    >>> counts.roc_auc(), counts.pro_auc()
    (1.0, 1.0)
    """

    def __init__(self, n_bins: int = 2**20) -> None:
        _check_bins(n_bins)
        self.n_bins = n_bins
        self._good, self._defective, self._in_regions = np.zeros((3, n_bins))

    def add(self, mask: ArrayLike | None, heatmap: ArrayLike) -> None:
        """Count the pixels of an image.

        Parameters
        ----------
        mask
            Array ``(H, W)``, nonzero = defective pixel, or None for an image without any.
        heatmap
            Map ``(H, W)``, higher = more defective.

        Raises
        ------
        ValueError
            If the sizes differ or the map is not finite.
        """
        for truth, scores in _masks_and_maps([mask], [heatmap]):
            self._good += _histogram(scores[~truth], self.n_bins)
            self._defective += _histogram(scores[truth], self.n_bins)
            self._in_regions += _histogram(scores[truth], self.n_bins, _region_weights(truth))

    def roc_auc(self) -> float:
        """Area under the ROC curve of the pixels so far, as `pixel_roc_auc_score`."""
        missing = _missing_pixels(self._good, self._defective)
        if missing:
            return _undefined(missing)
        return _roc_area(self._good[::-1], self._defective[::-1])

    def pro_auc(self, max_fpr: float = 0.3) -> float:
        """Area under the per-region overlap curve of the pixels so far, as `pro_auc_score`.

        Parameters
        ----------
        max_fpr
            Limit of the false-positive rate, in (0, 1].
        """
        _check_max_fpr(max_fpr)
        missing = _missing_pixels(self._good, self._defective)
        if missing:
            return _undefined(missing)
        return _pro_area(self._good[::-1], self._in_regions[::-1], max_fpr)


_NO_DEFECTIVE_PIXEL = "no pixel of the masks is defective"


def _missing_pixels(good: FloatArray, defective: FloatArray) -> str:
    if not defective.any():
        return _NO_DEFECTIVE_PIXEL
    return "" if good.any() else "every pixel of the masks is defective, so none is good"


def _roc_area(good: FloatArray, defective: FloatArray) -> float:
    """Area under the ROC curve, given the pixels at falling scores."""
    return float(auc(_rising_shares(good), _rising_shares(defective)))


def _pro_area(good: FloatArray, in_regions: FloatArray, max_fpr: float) -> float:
    """Area under the overlap curve up to `max_fpr`, as a share; each region weighs 1."""
    return pro_curve_area(_rising_shares(good), _rising_shares(in_regions), max_fpr)


def _check_max_fpr(max_fpr: float) -> None:
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must lie in (0, 1], got {max_fpr!r}.")


def _check_bins(n_bins: int) -> None:
    if n_bins < 2:
        raise ValueError(f"n_bins must be None or at least 2, got {n_bins!r}.")


def _rising_shares(counts: FloatArray) -> FloatArray:
    """0, then the cumulated share of the whole after each count; ``nan`` if there is nothing."""
    cumulated = np.append(0.0, np.cumsum(counts))
    if cumulated[-1] <= 0:
        return np.full(cumulated.shape, np.nan)
    return cumulated / cumulated[-1]


def _score_counts(
    masks: Iterable[ArrayLike | None],
    heatmaps: Iterable[ArrayLike],
    n_bins: int | None,
    per_region: bool = False,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count what lies at each score: falling thresholds, good pixels and defective pixels.

    The counts belong to the scores from a threshold up to the one before it. With `per_region` a
    defective pixel counts by one over its region's pixels, so each region sums to 1.
    """
    samples = (
        (heatmap[~mask], heatmap[mask], _region_weights(mask) if per_region else None)
        for mask, heatmap in _masks_and_maps(masks, heatmaps)
    )
    if n_bins is None:
        thresholds, good, defective = _exact_counts(samples)
    else:
        thresholds, good, defective = _binned_counts(samples, n_bins)
    filled = np.flatnonzero((good > 0) | (defective > 0))[::-1]
    return thresholds[filled], good[filled], defective[filled]


def _region_weights(mask: NDArray[np.bool_]) -> FloatArray:
    """For each defective pixel one over the pixels of its 8-connected region."""
    _, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    region = regions[mask]
    return 1.0 / np.bincount(region)[region] if region.size else np.zeros(0)


_Samples = Iterable[tuple[NDArray[Any], NDArray[Any], FloatArray | None]]


def _exact_counts(samples: _Samples) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count at each distinct defective score and in the gaps between them, scores rising.

    Good pixels between two neighbouring defective scores need no order among themselves: the
    curves run straight there.
    """
    pieces = list(samples)
    good = np.concatenate([piece[0] for piece in pieces] or [np.zeros(0)])
    good.sort()
    scores = np.concatenate([piece[1] for piece in pieces] or [np.zeros(0)])
    weights = [piece[2] for piece in pieces if piece[2] is not None]
    values, position = np.unique(scores, return_inverse=True)
    below = np.searchsorted(good, values, side="left")
    up_to = np.searchsorted(good, values, side="right")
    # Even places are gaps (below the first score, between two, above the last), odd ones scores.
    gap_start, gap_stop = np.append(0, up_to), np.append(below, good.size)
    thresholds = np.zeros(2 * values.size + 1)
    thresholds[1::2] = values
    if good.size:
        thresholds[::2] = good[np.minimum(gap_start, good.size - 1)]
    n_good, n_defective = np.zeros(thresholds.size), np.zeros(thresholds.size)
    n_good[::2], n_good[1::2] = gap_stop - gap_start, up_to - below
    n_defective[1::2] = np.bincount(
        position.ravel(), np.concatenate(weights) if weights else None, minlength=values.size
    )
    return thresholds, n_good, n_defective


def _binned_counts(samples: _Samples, n_bins: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count in `n_bins` equal parts of the ordered float32 numbers, scores rising."""
    _check_bins(n_bins)
    good, defective = np.zeros(n_bins), np.zeros(n_bins)
    for good_scores, scores, weights in samples:
        good += _histogram(good_scores, n_bins)
        defective += _histogram(scores, n_bins, weights)
    return _bin_edges(n_bins), good, defective


def _histogram(
    scores: NDArray[Any], n_bins: int, weights: FloatArray | None = None
) -> NDArray[Any]:
    if not scores.size:
        return np.zeros(n_bins)
    return np.bincount(_float_rank(scores) * n_bins >> 32, weights, minlength=n_bins)


_SIGN = np.uint32(1 << 31)


def _float_rank(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Order of each score among all float32 numbers, from 0 to 2**32 - 1.

    The bits of an IEEE 754 number, read as an integer, already rise with its magnitude.
    """
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 makes -0 and 0 equal
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.int64)


def _bin_edges(n_bins: int) -> FloatArray:
    """Smallest score of each bin; bins beyond the finite numbers start at an infinity."""
    rank = -(-(np.arange(n_bins, dtype=np.int64) << 32) // n_bins)  # rounded up
    low, high = _float_rank(np.array([-np.inf, np.inf]))  # what lies outside is NaN
    bits = np.clip(rank, low, high).astype(np.uint32)
    edges = np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float32)
    return edges.astype(np.float64)


# Boxes -------------------------------------------------------------------------------------------


def mask_boxes(mask: ArrayLike) -> NDArray[np.int64]:
    """Boxes around the 8-connected regions of a mask.

    Parameters
    ----------
    mask
        Array ``(H, W)``, nonzero = defective.

    Returns
    -------
    ndarray of shape (n_regions, 4)
        Half-open boxes ``(x0, y0, x1, y1)`` in the mask's pixels, from top to bottom, then from
        left to right.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import mask_boxes
    >>> mask_boxes(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]])).tolist()
    [[0, 0, 2, 2], [1, 3, 3, 4]]
    """
    _, boxes = _components(_as_mask(mask, "mask"))
    return boxes[np.lexsort(boxes.T[[3, 2, 0, 1]])]


def box_iou(boxes_a: ArrayLike, boxes_b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each box of one set with each of another.

    Parameters
    ----------
    boxes_a, boxes_b
        Half-open boxes ``(x0, y0, x1, y1)``, shapes ``(n, 4)`` and ``(m, 4)``; an empty list is no
        box.

    Returns
    -------
    ndarray of shape (n, m)
        Values in [0, 1]; 0 where a box has no area.

    Raises
    ------
    ValueError
        If an array has another shape, or a box ends before it starts.

    Examples
    --------
    >>> from defectcam.metrics import box_iou
    >>> box_iou([[0, 0, 2, 2]], [[0, 0, 2, 4], [2, 0, 4, 2]]).tolist()
    [[0.5, 0.0]]
    """
    a, b = _as_boxes(boxes_a, "boxes_a"), _as_boxes(boxes_b, "boxes_b")
    shared = _shared_area(a, b)
    union = _area(a)[:, None] + _area(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def box_precision_recall_f1(
    boxes_true: Iterable[ArrayLike],
    boxes_pred: Iterable[ArrayLike],
    scores: Iterable[ArrayLike] | None = None,
    *,
    iou_threshold: float = 0.3,
) -> dict[str, float]:
    """Precision, recall and F1 of predicted boxes, counted over all images together.

    Within each image the predicted boxes, best first, each take the true box with the highest
    overlap that no other has taken, if it reaches `iou_threshold`; each true box is found once at
    most.

    Parameters
    ----------
    boxes_true, boxes_pred
        For each image an array ``(n, 4)`` of half-open boxes ``(x0, y0, x1, y1)``, or an empty
        list. Include good images: every box on them is false, and none leaves the result as it is.
    scores
        For each image the scores ``(n,)`` of its predicted boxes. By default they are best first,
        as in ``Localization.boxes``.
    iou_threshold
        Overlap (intersection over union) at and above which a box is found, in (0, 1].

    Returns
    -------
    dict
        ``precision``, ``recall``, ``f1``, ``mean_iou`` (of the matched pairs), and the counts
        ``true_positives``, ``false_positives``, ``false_negatives``. With a warning, precision is
        ``nan`` without any predicted box, recall without any true box, F1 only without either;
        `mean_iou` is ``nan`` if nothing matches.

    Raises
    ------
    ValueError
        If the arguments differ in length or a box is not one.

    Examples
    --------
    >>> from defectcam.metrics import box_precision_recall_f1
    >>> found = box_precision_recall_f1([[[0, 0, 4, 4]], []], [[[0, 0, 4, 3]], [[5, 5, 9, 9]]])
    >>> found["precision"], found["recall"], found["mean_iou"]
    (0.5, 1.0, 0.75)
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold!r}.")
    columns = {"boxes_true": boxes_true, "boxes_pred": boxes_pred}
    if scores is not None:
        columns["scores"] = scores
    matched: list[float] = []
    n_true = n_pred = 0
    for index, (true, pred, *score) in enumerate(_aligned(**columns)):
        true = _as_boxes(true, f"boxes_true[{index}]")
        pred = _as_boxes(pred, f"boxes_pred[{index}]")
        if score:
            pred = pred[_best_first(score[0], len(pred), f"scores[{index}]")]
        matched += _greedy_matches(box_iou(pred, true), iou_threshold)
        n_true, n_pred = n_true + len(true), n_pred + len(pred)
    return {
        "precision": _ratio(len(matched), n_pred, "no box is predicted (precision)"),
        "recall": _ratio(len(matched), n_true, "no image has a true box (recall)"),
        "f1": _ratio(2 * len(matched), n_true + n_pred, "no box is true or predicted (F1)"),
        "mean_iou": float(np.mean(matched)) if matched else float("nan"),
        "true_positives": len(matched),
        "false_positives": n_pred - len(matched),
        "false_negatives": n_true - len(matched),
    }


def max_box_accuracy_score(
    masks: Iterable[ArrayLike | None],
    heatmaps: Iterable[ArrayLike],
    *,
    iou_thresholds: Sequence[float] = (0.3, 0.5, 0.7),
    thresholds: int | ArrayLike = 100,
) -> float:
    """Localisation accuracy by boxes at the best threshold of the maps (MaxBoxAccV2).

    At a threshold, a defective image is right if a box around one of the map's 8-connected
    components of pixels strictly above the threshold overlaps a true box enough. For each overlap
    of `iou_thresholds` the accuracy at the best threshold, common to all images, is taken; the
    score is their mean.

    Parameters
    ----------
    masks
        As in `pixel_roc_auc_score`; the true boxes are those of `mask_boxes`. Or, per image, true
        boxes ``(n, 4)``, half-open ``(x0, y0, x1, y1)``; an array of the map's own shape is taken
        for a mask.
    heatmaps
        As in `pixel_roc_auc_score`.
    iou_thresholds
        Intersections over union that make a box right, each in (0, 1].
    thresholds
        A number: so many thresholds, evenly from 0 (below 1), of each map scaled to [0, 1] by its
        own minimum and maximum, as published (there 1000). An array: thresholds of the maps as
        they are, one scale for all images.

    Returns
    -------
    float
        Accuracy in [0, 1]; ``nan`` with a warning if no image is defective.

    Notes
    -----
    The score is optimistic: it chooses the threshold with the truth at hand.

    References
    ----------
    Choe et al., "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and
    Datasets", TPAMI 2022; the first version: "Evaluating Weakly Supervised Object Localization
    Methods Right", CVPR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.metrics import max_box_accuracy_score
    >>> heatmap = np.zeros((8, 8))
    >>> heatmap[2:6, 2:6] = 1.0
    >>> max_box_accuracy_score([[[2, 2, 6, 6]]], [heatmap])
    1.0
    >>> round(max_box_accuracy_score([[[2, 2, 6, 4]]], [heatmap]), 3)  # overlap .5
    0.667
    """
    required = np.asarray(iou_thresholds, dtype=float)
    if required.ndim != 1 or not required.size or not np.all((required > 0) & (required <= 1)):
        raise ValueError(f"iou_thresholds must be numbers in (0, 1], got {iou_thresholds!r}.")
    relative = isinstance(thresholds, Integral)
    levels: FloatArray = (
        np.arange(int(thresholds)) / int(thresholds)
        if isinstance(thresholds, Integral)
        else np.unique(np.asarray(thresholds, dtype=float))
    )
    if not levels.size:
        raise ValueError(f"thresholds must be a positive number or an array, got {thresholds!r}.")
    n_right, n_images = np.zeros((levels.size, required.size)), 0
    for true, heatmap in _true_boxes_and_maps(masks, heatmaps):
        if not len(true):
            continue
        low, high = float(heatmap.min()), float(heatmap.max())
        own_levels = low + levels * (high - low) if relative else levels
        best = _best_overlaps(heatmap, true, own_levels, float(required.min()))
        n_right += best[:, None] >= required
        n_images += 1
    if not n_images:
        return _undefined("no image has a true box")
    return float((n_right.max(axis=0) / n_images).mean())


def _best_overlaps(
    heatmap: NDArray[Any], true: NDArray[np.float64], levels: FloatArray, enough: float
) -> FloatArray:
    """Return the highest overlap of a component's box with a true box at each rising level.

    Overlaps below `enough` may be given too low. Walks down the tree of components, each lying
    within one of the level below. A component that covers less than `enough` of every true box is
    left out with all it contains: their overlaps cannot reach `enough` either.
    """
    best = np.zeros(levels.size)
    n_below = np.searchsorted(levels, heatmap).astype(np.min_scalar_type(levels.size))
    open_components = [(0, n_below, np.zeros(2, np.int64))]
    while open_components:
        level, n_below, corner = open_components.pop()
        regions, local = _components(n_below > level)  # those pixels are above levels[level]
        boxes = local + np.tile(corner, 2)
        covered = _shared_area(boxes, true) / np.maximum(_area(true), 1e-12)
        kept = np.flatnonzero(covered.max(axis=1, initial=0.0) >= enough)
        if not kept.size:
            continue
        best[level] = max(best[level], box_iou(boxes[kept], true).max())
        if level + 1 == levels.size:
            continue
        for index in kept:
            x0, y0, x1, y1 = local[index]
            within = regions[y0:y1, x0:x1] == index + 1
            inside = n_below[y0:y1, x0:x1] * within
            open_components.append((level + 1, inside, boxes[index, :2]))
    return best


def _components(foreground: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Labels from 1 on of the 8-connected components, and their half-open boxes in that order."""
    if not foreground.any():
        return np.zeros(foreground.shape, np.int32), np.zeros((0, 4), np.int64)
    # At most one component to each 2 x 2 pixels: short labels, where they suffice, are faster.
    height, width = foreground.shape
    n_most = ((height + 1) // 2) * ((width + 1) // 2)
    label_type = cv2.CV_16U if n_most < 2**16 else cv2.CV_32S
    _, regions, stats, _ = cv2.connectedComponentsWithStats(
        foreground.astype(np.uint8), connectivity=8, ltype=label_type
    )
    boxes = stats[1:, :4].astype(np.int64)
    boxes[:, 2:] += boxes[:, :2]
    return regions, boxes


def _area(boxes: NDArray[Any]) -> NDArray[np.float64]:
    return (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(axis=1)


def _shared_area(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    start = np.maximum(a[:, None, :2], b[None, :, :2])
    stop = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(stop - start, 0, None).astype(np.float64).prod(axis=2)


def _greedy_matches(iou: NDArray[np.float64], iou_threshold: float) -> list[float]:
    """Overlaps of the pairs made; rows are predictions, best first, columns true boxes."""
    matches: list[float] = []
    for row in iou if iou.size else ():
        column = int(row.argmax())
        if row[column] >= iou_threshold:
            matches.append(float(row[column]))
            iou[:, column] = -1.0  # taken
    return matches


def _best_first(scores: ArrayLike, n_boxes: int, name: str) -> NDArray[np.int64]:
    score = np.asarray(scores, dtype=float)
    if score.shape != (n_boxes,) or np.isnan(score).any():
        raise ValueError(f"{name} must hold one number for each of {n_boxes} boxes, got {score}.")
    return np.argsort(-score, kind="stable")


def _ratio(part: int, whole: int, undefined: str) -> float:
    return part / whole if whole else _undefined(undefined, stacklevel=4)


# Input -------------------------------------------------------------------------------------------

_END: Any = object()


def _aligned(**columns: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows over several iterables; ValueError by name if one ends before another."""
    for index, row in enumerate(zip_longest(*columns.values(), fillvalue=_END)):
        short = [name for name, item in zip(columns, row, strict=True) if item is _END]
        if short:
            raise ValueError(
                f"{' and '.join(columns)} must hold one item per image, but {' and '.join(short)} "
                f"ended after {index}."
            )
        yield row


def _masks_and_maps(
    masks: Iterable[ArrayLike | None], heatmaps: Iterable[ArrayLike]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[Any]]]:
    for index, (mask, heatmap) in enumerate(_aligned(masks=masks, heatmaps=heatmaps)):
        heatmap = _as_map(heatmap, f"heatmaps[{index}]")
        if mask is None:
            mask = np.zeros(heatmap.shape, bool)
        mask = _as_mask(mask, f"masks[{index}]")
        if mask.shape != heatmap.shape:
            raise ValueError(
                f"masks[{index}] is {mask.shape} and heatmaps[{index}] {heatmap.shape}: "
                "resize the map to the mask's size (H, W)."
            )
        yield mask, heatmap


def _true_boxes_and_maps(
    masks: Iterable[ArrayLike | None], heatmaps: Iterable[ArrayLike]
) -> Iterator[tuple[NDArray[np.float64], NDArray[Any]]]:
    for index, (true, heatmap) in enumerate(_aligned(masks=masks, heatmaps=heatmaps)):
        heatmap = _as_map(heatmap, f"heatmaps[{index}]")
        if true is None:
            true = np.zeros((0, 4))
        elif np.shape(true) == heatmap.shape:
            true = mask_boxes(true)
        name = f"masks[{index}] (neither None nor of its map's size {heatmap.shape}, so boxes)"
        yield _as_boxes(true, name), heatmap


def _as_mask(mask: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be a 2-D array (H, W), got shape {array.shape}; "
            "put a single image into a list."
        )
    return array if array.dtype == bool else array != 0


def _as_map(heatmap: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(heatmap)
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"{name} must be a 2-D array (H, W) with pixels, got shape {array.shape}; "
            "put a single image into a list."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values.")
    return array


def _as_boxes(boxes: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(
            f"{name} must have shape (n, 4) (x0, y0, x1, y1), got shape {array.shape}."
        )
    if not np.all(array[:, 2:] >= array[:, :2]):
        raise ValueError(f"{name} has a box that ends before it starts: {array.tolist()}.")
    return array


def _undefined(what: str, stacklevel: int = 3) -> float:
    warnings.warn(
        f"The score is undefined and set to nan: {what}.",
        UndefinedMetricWarning,
        stacklevel=stacklevel,
    )
    return float("nan")
