"""What scores mean: probability of a defect, decision threshold, whether an image is familiar.

Owns what is learned from held-out training images after the network is trained. It never runs the
network and never sees a test image.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import median_abs_deviation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from torch import Tensor

from defectcam.cam import defect_margin

# Not used here: earlier pickles name this module.
from defectcam.heat_model import HeatModel, HeatScale  # noqa: F401
from defectcam.novelty import novelty_peak

#: Of the logistic regression. scikit-learn's 1.0 flattens the probabilities of separable scores.
INVERSE_REGULARISATION = 10.0

#: Share that novelty keeps of the weight in the probability that held-out images give it.
NOVELTY_TRUST = 0.5

#: 99 % quantile of a Gumbel distribution, in median absolute deviations above its median.
GUMBEL_DEVIATIONS = 5.5

#: Probability of a defect at the median of good images where nothing is known of defects.
TYPICAL_GOOD_PROBABILITY = 0.01

#: Share of the map whose novelty says whether an image is familiar, and the least limit.
CALM_SHARE = 0.25
LEAST_FAMILIARITY_LIMIT = 0.5

#: What shares of images, a recall among them, may miss by rounding.
SHARE_ROUNDING = 1e-12

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RECALL = re.compile(rf"recall\s*>=\s*({_NUMBER})")
_COST = re.compile(rf"cost\s*=\s*({_NUMBER})\s*:\s*({_NUMBER})")


def defect_scores(logits: Tensor, novelty: Tensor | None, good: int) -> NDArray[np.float64]:
    """Return the image scores that speak of a defect, shape ``(n_images, n_scores)``.

    The first is the log-odds of any defect class against the good one; with novelty maps, their
    smoothed peak is the second.
    """
    return defect_scores_tensor(logits, novelty, good).double().numpy()


def defect_scores_tensor(logits: Tensor, novelty: Tensor | None, good: int) -> Tensor:
    """Return the scores of `defect_scores` as a tensor, in the number type of the logits."""
    scores = [defect_margin(logits, good)]
    if novelty is not None:
        scores.append(novelty_peak(novelty))
    return torch.stack(scores, dim=1)


class DefectProbability(NamedTuple):
    """Logistic model from image scores to the probability of a defect.

    Attributes
    ----------
    coefficients : tuple of float
        One per score.
    intercept : float
    """

    coefficients: tuple[float, ...]
    intercept: float

    def probability(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of a defect for scores of shape ``(n_images, n_scores)``."""
        return expit(self.log_odds(scores))

    def log_odds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds of a defect for scores of shape ``(n_images, n_scores)``."""
        return scores @ np.asarray(self.coefficients) + self.intercept


def fit_defect_probability(
    scores: NDArray[np.float64],
    is_defect: NDArray[np.bool_],
    sample_weight: NDArray[np.float64] | None = None,
) -> DefectProbability:
    """Fit the probability of a defect to scores of held-out images (Platt scaling).

    A first regression weighs the scores against each other. Held-out evidence comes from networks
    that have seen fewer images than the final one, so it makes novelty look more useful than it
    will be: only `NOVELTY_TRUST` of novelty's weight is kept. A second regression turns the
    weighted sum into a probability.

    Parameters
    ----------
    scores : ndarray of shape (n_images, n_scores)
        As `defect_scores` gives them: evidence, then novelty, if any.
    is_defect : ndarray of shape (n_images,)
    sample_weight : ndarray of shape (n_images,), optional

    References
    ----------
    Platt, "Probabilistic outputs for support vector machines", 1999; with scikit-learn's
    regularised logistic regression on standardised scores instead of Platt's smoothed targets, for
    the same purpose: separable scores must not give infinite slopes.
    """
    weights, _ = _logistic_regression(scores, is_defect, sample_weight)
    weights[1:] *= NOVELTY_TRUST
    (slope,), intercept = _logistic_regression(
        (scores @ weights)[:, np.newaxis], is_defect, sample_weight
    )
    if slope == 0:  # reversed scores: the intercept is one beside a slope that is not kept
        intercept = float(logit(np.average(is_defect, weights=sample_weight)))
    return DefectProbability(tuple((slope * weights).tolist()), intercept)


def _logistic_regression(
    scores: NDArray[np.float64],
    is_defect: NDArray[np.bool_],
    sample_weight: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64], float]:
    """Coefficients, none of them negative: more evidence is never less defect; and intercept."""
    mean = np.average(scores, axis=0, weights=sample_weight)
    scale = np.sqrt(np.average((scores - mean) ** 2, axis=0, weights=sample_weight))
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(C=INVERSE_REGULARISATION)
    model.fit((scores - mean) / scale, is_defect, sample_weight)
    coefficients = np.maximum(model.coef_[0], 0) / scale
    return coefficients, float(model.intercept_[0] - mean @ coefficients)


def fit_novelty_probability(scores: NDArray[np.float64]) -> DefectProbability:
    """Make a probability of a defect from the novelty of held-out good images alone.

    With no defective image there is nothing to calibrate against, only a limit: the peak of
    novelty that one good image in a hundred passes has the probability one half, the median peak
    has `TYPICAL_GOOD_PROBABILITY`, and the log-odds are linear in the peak. A peak is the maximum
    over many patches, which follows a Gumbel distribution, so the limit is taken from the median
    and the median absolute deviation: it holds for few images, and a few defective ones among the
    good do not move it.

    Parameters
    ----------
    scores : ndarray of shape (n_images, 2)
        As `defect_scores` gives them; the first is not used.
    """
    peaks = scores[:, 1]
    typical = float(np.median(peaks))
    deviation = float(median_abs_deviation(peaks))
    reach = GUMBEL_DEVIATIONS * deviation if deviation > 0 else 1.0
    slope = float(-logit(TYPICAL_GOOD_PROBABILITY)) / reach
    return DefectProbability((0.0, slope), -slope * (typical + reach))


def calm_novelty(novelty: Tensor) -> NDArray[np.float64]:
    """Novelty of the calmest part of each map: all but `CALM_SHARE` of the positions exceed it.

    A defect, however new, leaves the rest of the part as it was; an image of something else is
    novel nearly everywhere.

    Parameters
    ----------
    novelty : Tensor of shape (n, height, width)

    Returns
    -------
    ndarray of shape (n,)
    """
    return np.quantile(novelty.flatten(1).double().numpy(), CALM_SHARE, axis=1)


def fit_familiarity_limit(novelty: Tensor) -> float:
    """Learn the `calm_novelty` above which an image is unlike all training images.

    Twice as far from the median of the training images as their 99 % quantile, and at least half
    of what good patches stay below, so that a few training images do not set too narrow a limit.

    Parameters
    ----------
    novelty : Tensor of shape (n_images, height, width)
        Maps of training images, good and defective, from codebooks that have not seen them.
    """
    typical, high = np.quantile(calm_novelty(novelty), [0.5, 0.99])
    return float(max(LEAST_FAMILIARITY_LIMIT, 2 * high - typical))


def choose_threshold(
    criterion: float | str,
    is_defect: NDArray[np.bool_],
    probability: NDArray[np.float64],
    sample_weight: NDArray[np.float64] | None = None,
) -> float:
    """Probability of a defect at and above which an image is called defective.

    Parameters
    ----------
    criterion : float or str
        A probability in [0, 1]; ``"balanced"``: the share of defective images, which maximises
        balanced accuracy when probabilities are calibrated; ``"recall>=R"``: the highest threshold
        that finds at least the share R of the held-out defective images; ``"cost=E:O"``: where an
        escape (a defect passed) costs E and an overkill (a good part rejected) costs O, the
        probability ``O / (O + E)`` at which both decisions are expected to cost the same, the Bayes
        rule.
    is_defect : ndarray of shape (n_images,)
    probability : ndarray of shape (n_images,)
        Of held-out images.
    sample_weight : ndarray of shape (n_images,), optional
        How much each image counts in shares and recalls.

    Raises
    ------
    ValueError
        If the criterion is none of these.
    """
    kind, number = check_threshold(criterion)
    if kind in ("probability", "cost"):
        return number
    if kind == "balanced":
        share = float(np.average(is_defect, weights=sample_weight))
        # Where scores say nothing, every probability is that share but for rounding, which must not
        # decide: then no image is passed.
        says_nothing = np.allclose(probability, share, rtol=0, atol=SHARE_ROUNDING)
        return min(share, float(probability.min())) if says_nothing else share
    _, recall, thresholds = roc_curve(
        is_defect, probability, sample_weight=sample_weight, drop_intermediate=False
    )
    enough = recall >= number - SHARE_ROUNDING
    return float(thresholds[np.flatnonzero(enough)[0]])


def check_threshold(criterion: float | str) -> tuple[str, float]:
    """Refuse what `choose_threshold` does not understand; return what it asks for.

    Returns
    -------
    kind : {"probability", "balanced", "recall", "cost"}
    number : float
        The least recall for ``"recall"``, NaN for ``"balanced"``, else the probability.
    """
    if not isinstance(criterion, str):
        if not 0 <= criterion <= 1:
            raise ValueError(f"threshold={criterion!r}: a probability from 0 to 1 was expected.")
        return "probability", float(criterion)
    if criterion == "balanced":
        return "balanced", math.nan
    if recall := _RECALL.fullmatch(criterion.strip()):
        least_recall = float(recall[1])
        if 0 < least_recall <= 1:
            return "recall", least_recall
    if cost := _COST.fullmatch(criterion.strip()):
        escape, overkill = float(cost[1]), float(cost[2])
        if escape > 0 and overkill > 0 and math.isfinite(escape + overkill):
            return "cost", overkill / (overkill + escape)
    raise ValueError(
        f"threshold={criterion!r}: expected 'balanced', 'recall>=R' with R in (0, 1], 'cost=E:O' "
        "with positive costs of an escape and of an overkill ('cost=20:1'), or a probability."
    )
