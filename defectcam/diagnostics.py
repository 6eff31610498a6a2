"""Doubts about the training data: finds them and says them, each by a warning of its own category.

Owns the rules by which images or labels are doubted and the words that say so. It works on labels
and held-out probabilities; it never reads an image, runs a network or changes what was learned.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from defectcam.exceptions import (
    ChanceLevelWarning,
    FewDefectsWarning,
    NearDuplicateWarning,
    OnlyGoodImagesWarning,
    SuspectLabelsWarning,
    warn_caller,
)
from defectcam.images import is_path
from defectcam.plain_labels import plain_label
from defectcam.views import original_of

#: Defective images below which figures that rest on them are called uncertain.
ENOUGH_DEFECTS = 10

#: Level of the one-sided test that held-out scores know anything.
CHANCE_LEVEL = 0.01

#: Probability of its own label below which an image is doubted in a warning. With five times as
#: much, several images of every ordinary data set would be: its hardest ones.
SUSPECT_PROBABILITY = 0.02

_MAX_NAMED = 5


def warn_if_only_good(is_defect: NDArray[np.bool_]) -> None:
    """Say what a classifier that has seen good images alone can do."""
    if is_defect.any():
        return
    warn_caller(
        f"There are only good images ({len(is_defect)}): novelty alone decides, which finds what "
        "good parts never show but cannot tell a harmless oddity from a defect, and the "
        "probability is a scale made from good images, not a calibrated one. Defective images, "
        "even ten, make it better: add them and call fit again.",
        OnlyGoodImagesWarning,
    )


def warn_if_few_defects(is_defect: NDArray[np.bool_]) -> None:
    """Say what few defective images leave uncertain."""
    n = int(is_defect.sum())
    if not 0 < n < ENOUGH_DEFECTS:
        return
    there_are, them = f"There are only {n} defective images", "them, and one of them"
    if n == 1:
        there_are, them = "There is only 1 defective image", "it, and one"
    warn_caller(
        f"{there_are}: the probability, the threshold and the share of "
        f"novelty in the heatmap rest on {them} more or less is {100 / n:.0f} "
        f"points of defect recall. Add defective images, at least {ENOUGH_DEFECTS}, and measure on "
        "others over several splits before you trust it.",
        FewDefectsWarning,
    )


def warn_if_chance(is_defect: NDArray[np.bool_], probability: NDArray[np.float64]) -> None:
    """Warn where held-out good and defective images are not told apart (Mann-Whitney test)."""
    area = float(roc_auc_score(is_defect, probability))
    p_value = mannwhitneyu(
        probability[is_defect], probability[~is_defect], alternative="greater"
    ).pvalue
    # So few images that even a perfect order proves nothing are another warning's matter.
    if p_value <= CHANCE_LEVEL or area == 1:
        return
    warn_caller(
        f"Held-out images are told apart no better than by chance (image AUROC {area:.2f}; by "
        f"chance alone with probability {p_value:.2g}). Look at the images at image_size: can you "
        "see the defects? If not, raise image_size or crop to the part. Otherwise check the "
        "labels, add images, or train longer (max_epochs).",
        ChanceLevelWarning,
    )


def rank_suspects(own_probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """Sort images from most to least likely mislabelled, by the probability of their own labels."""
    return np.argsort(own_probability, kind="stable").astype(np.int64)


def contradicted_labels(
    is_defect: NDArray[np.bool_], probability: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Find images whose labels held-out predictions contradict with confidence.

    The rule is that of confident learning, made stricter. An image is doubted where its probability
    of the other class is at least what images of that class have on average; and where its own
    label has less than `SUSPECT_PROBABILITY`, since otherwise the overlap of the classes would be
    taken for mistakes. So a warning means something, and a mistake may go without: the ranking by
    `rank_suspects` shows both.

    Parameters
    ----------
    is_defect : ndarray of shape (n_images,)
    probability : ndarray of shape (n_images,)
        Of a defect, held out.

    Returns
    -------
    ndarray
        Indices, the most doubtful first.

    References
    ----------
    Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
    JAIR 2021.
    """
    own = np.where(is_defect, probability, 1 - probability)
    usual = np.where(is_defect, (1 - probability)[~is_defect].mean(), probability[is_defect].mean())
    doubted = (1 - own >= usual) & (own < SUSPECT_PROBABILITY)
    ranked = rank_suspects(own)
    return ranked[doubted[ranked]]


def warn_if_suspects(
    is_defect: NDArray[np.bool_],
    probability: NDArray[np.float64],
    labels: NDArray[Any],
    items: Sequence[Any],
    rows: NDArray[np.intp] | None = None,
) -> None:
    """Name the images whose labels are contradicted.

    ``rows`` says which of ``items`` each image is, by default the one at its index.
    """
    rows = np.arange(len(items)) if rows is None else rows
    doubted = {rows[i]: labels[i] for i in contradicted_labels(is_defect, probability)}
    if not doubted:
        return
    named = _listed([f"{_name(items, i)} ({plain_label(y)!r})" for i, y in doubted.items()])
    images = "1 training image" if len(doubted) == 1 else f"{len(doubted)} training images"
    warn_caller(
        f"The label of {images} is contradicted by predictions that did not see it: {named}. "
        "Look at them, and correct labels that are wrong; suspects_ sorts all training images, the "
        "most suspect ones first.",
        SuspectLabelsWarning,
    )


def warn_if_duplicates(
    pairs: NDArray[np.int64],
    is_defect: NDArray[np.bool_],
    items: Sequence[Any],
    rows: NDArray[np.intp] | None = None,
) -> None:
    """Name copies of one picture that are labelled good and defective.

    ``rows`` says which of ``items`` each image is, by default the one at its index.
    """
    rows = np.arange(len(items)) if rows is None else rows
    contrary = pairs[is_defect[pairs[:, 0]] != is_defect[pairs[:, 1]]]
    if not len(contrary):
        return
    good_first = [(i, j) if is_defect[j] else (j, i) for i, j in contrary.tolist()]
    both = list(dict.fromkeys((rows[i], rows[j]) for i, j in good_first))
    named = _listed([f"{_name(items, i)} and {_name(items, j)}" for i, j in both])
    what = "1 pair of images is" if len(both) == 1 else f"{len(both)} pairs of images are"
    warn_caller(
        f"{what} near-duplicates, labelled good and defective: {named}. Is it one picture under "
        "two labels, or a defect smaller than a fiftieth of the picture? Keep one of two copies; "
        "for tiny defects raise image_size or cut the images into tiles.",
        NearDuplicateWarning,
    )


def _name(items: Sequence[Any], index: int) -> str:
    item = original_of(items[index])
    return repr(str(os.fspath(item))) if is_path(item) else f"image {index}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
