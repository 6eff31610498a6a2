"""What scores and maps mean: probability of a defect, decision threshold, scale of the map.

Owns what is learned from held-out training images after the network is trained. It never runs the
network and never sees a test image.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from torch import Tensor

from defectcam.cam import class_cam, min_max, signed_cam
from defectcam.novelty import novelty_peak

#: Share of good pixels below the map's limit.
GOOD_PIXEL_QUANTILE = 0.999

_RECALL = re.compile(r"recall\s*>=\s*(?P<target>[0-9.]+)")


def defect_scores(logits: Tensor, novelty: Tensor | None, good: int) -> NDArray[np.float64]:
    """Return the image scores that speak of a defect, shape ``(n_images, n_scores)``.

    The first is the log-odds of any defect class against the good one; with novelty maps, their
    smoothed peak is the second.
    """
    defects = [c for c in range(logits.shape[1]) if c != good]
    scores = [logits[:, defects].logsumexp(1) - logits[:, good]]
    if novelty is not None:
        scores.append(novelty_peak(novelty))
    return torch.stack(scores, dim=1).double().numpy()


class HeatScale(NamedTuple):
    """Fixed scale of the map: ``typical`` becomes 0 and ``limit`` becomes 1."""

    typical: float
    limit: float

    def apply(self, maps: Tensor) -> Tensor:
        """Put maps on the scale, values of any shape."""
        return (maps - self.typical) / (self.limit - self.typical)


class HeatModel(NamedTuple):
    """How evidence becomes the map that is shown.

    Attributes
    ----------
    kind : {"cam", "min_max_cam"}
    good : int
        Index of the good class.
    scale : HeatScale
        Of the signed class activation map.
    """

    kind: str
    good: int
    scale: HeatScale

    def grids(self, evidence: Tensor, novelty: Tensor | None) -> Tensor:
        """Return maps on the network's grid, shape ``(n, height, width)``."""
        if self.kind == "min_max_cam":
            defects = [c for c in range(evidence.shape[1]) if c != self.good]
            return min_max(class_cam(evidence, defects))
        return self.scale.apply(signed_cam(evidence, self.good))


def fit_heat_model(kind: str, good: int, good_evidence: Tensor) -> HeatModel:
    """Learn the map's scale from the evidence of good images."""
    return HeatModel(kind, good, fit_heat_scale(signed_cam(good_evidence, good).numpy()))


def fit_heat_scale(good_maps: NDArray[np.float32]) -> HeatScale:
    """Learn the scale from maps of good images alone, so no masks are needed.

    Parameters
    ----------
    good_maps : ndarray of shape (n, height, width)
        Maps of good images that the network was not trained on, where there are such.

    Returns
    -------
    HeatScale
        The median of the good pixels and their `GOOD_PIXEL_QUANTILE`.
    """
    typical = float(np.median(good_maps))
    limit = float(np.quantile(good_maps, GOOD_PIXEL_QUANTILE))
    return HeatScale(typical, limit if limit > typical else typical + 1.0)


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
    scores: NDArray[np.float64], is_defect: NDArray[np.bool_]
) -> DefectProbability:
    """Fit the probability of a defect to scores of held-out images (Platt scaling).

    Parameters
    ----------
    scores : ndarray of shape (n_images, n_scores)
    is_defect : ndarray of shape (n_images,)

    References
    ----------
    Platt, "Probabilistic outputs for support vector machines", 1999; with scikit-learn's
    regularised logistic regression on standardised scores instead of Platt's smoothed targets, for
    the same purpose: separable scores must not give infinite slopes.
    """
    mean, scale = scores.mean(0), scores.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression().fit((scores - mean) / scale, is_defect)
    coefficients = model.coef_[0] / scale
    return DefectProbability(
        tuple(coefficients.tolist()), float(model.intercept_[0] - mean @ coefficients)
    )


def choose_threshold(
    criterion: float | str, is_defect: NDArray[np.bool_], probability: NDArray[np.float64]
) -> float:
    """Probability of a defect at and above which an image is called defective.

    Parameters
    ----------
    criterion : float or str
        A probability in [0, 1]; ``"balanced"``: the share of defective images, which maximises
        balanced accuracy when probabilities are calibrated; ``"recall>=R"``: the highest threshold
        that finds at least the share R of the held-out defective images.
    is_defect : ndarray of shape (n_images,)
    probability : ndarray of shape (n_images,)
        Of held-out images.

    Raises
    ------
    ValueError
        If the criterion is none of these.
    """
    if not isinstance(criterion, str):
        if not 0 <= criterion <= 1:
            raise ValueError(f"threshold={criterion!r}: a probability from 0 to 1 was expected.")
        return float(criterion)
    if criterion == "balanced":
        return float(is_defect.mean())
    target = _RECALL.fullmatch(criterion.strip())
    if target is None or not 0 < float(target["target"]) <= 1:
        raise ValueError(
            f"threshold={criterion!r}: expected 'balanced', 'recall>=R' with R in (0, 1], or a "
            "probability."
        )
    _, recall, thresholds = roc_curve(is_defect, probability, drop_intermediate=False)
    return float(thresholds[np.flatnonzero(recall >= float(target["target"]))[0]])
