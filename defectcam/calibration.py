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
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from defectcam.cam import class_cam, fuse, min_max, signed_cam
from defectcam.novelty import novelty_peak, smooth_novelty

#: Share of good pixels below the map's limit.
GOOD_PIXEL_QUANTILE = 0.999

#: Of the logistic regression. scikit-learn's 1.0 flattens the probabilities of separable scores.
INVERSE_REGULARISATION = 10.0

_RECALL = re.compile(r"recall\s*>=\s*(?P<target>\d*\.?\d+)")


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
    kind : {"fused", "cam", "min_max_cam"}
    good : int
        Index of the good class.
    cam_scale : HeatScale
        Of the signed class activation map.
    novelty_scale : HeatScale
        Of the smoothed novelty map.
    novelty_share : float
        How much of the fused map is novelty, from 0 (evidence alone) to 1.
    fused_scale : HeatScale
        Of the fused map.
    """

    kind: str
    good: int
    cam_scale: HeatScale
    novelty_scale: HeatScale
    novelty_share: float
    fused_scale: HeatScale

    def grids(self, evidence: Tensor, novelty: Tensor | None) -> Tensor:
        """Return maps on the network's grid, shape ``(n, height, width)``."""
        if self.kind == "min_max_cam":
            defects = [c for c in range(evidence.shape[1]) if c != self.good]
            return min_max(class_cam(evidence, defects))
        cam = self.cam_scale.apply(signed_cam(evidence, self.good))
        if self.kind == "cam" or novelty is None:
            return cam
        smooth = self.novelty_scale.apply(smooth_novelty(novelty))
        return self.fused_scale.apply(fuse(cam, smooth, self.novelty_share))


def fit_heat_model(
    kind: str,
    good: int,
    evidence: Tensor,
    novelty: Tensor | None,
    typical_cam: float,
    scores: NDArray[np.float64],
    is_defect: NDArray[np.bool_],
) -> HeatModel:
    """Learn the map's scale, and how much novelty counts, from held-out training images.

    Parameters
    ----------
    kind : {"fused", "cam", "min_max_cam"}
    good : int
        Index of the good class.
    evidence : Tensor of shape (n_images, n_classes, height, width)
        Shifted so that the signed map of good images has median 0.
    novelty : Tensor of shape (n_images, height', width') or None
    typical_cam : float
        Median of the final network's signed map on good images.
    scores : ndarray of shape (n_images, n_scores)
        As `defect_scores` returns them.
    is_defect : ndarray of shape (n_images,)
    """
    good_rows = torch.as_tensor(~is_defect)
    centred = fit_heat_scale(signed_cam(evidence[good_rows], good))._replace(typical=0.0)
    model = HeatModel(kind, good, centred, HeatScale(0.0, 1.0), 0.0, HeatScale(0.0, 1.0))
    if kind == "fused" and novelty is not None:
        model = model._replace(
            novelty_scale=fit_heat_scale(smooth_novelty(novelty[good_rows])),
            novelty_share=novelty_share(scores, is_defect),
        )
        good_maps = model.grids(evidence[good_rows], novelty[good_rows])
        model = model._replace(fused_scale=fit_heat_scale(good_maps))
    limit = centred.limit + typical_cam
    return model._replace(cam_scale=HeatScale(typical_cam, limit))


def novelty_share(scores: NDArray[np.float64], is_defect: NDArray[np.bool_]) -> float:
    """Share of novelty in the fused map: how well it tells images apart, beside evidence.

    Where good parts look alike, the novelty of an image says almost as much as its evidence does,
    and its map, which is finer, should lead. Where good surfaces vary, it says little. Both are
    measured by the area under the ROC curve over held-out training images, rescaled so that chance
    is 0: the share is twice novelty's part of their sum, at most 1.
    """
    reliability = [max(0.0, 2 * roc_auc_score(is_defect, s) - 1) for s in scores.T[:2]]
    total = sum(reliability)
    return min(1.0, 2 * reliability[1] / total) if total > 0 else 0.5


def fit_heat_scale(good_maps: Tensor) -> HeatScale:
    """Learn the scale from maps of good images alone, so no masks are needed.

    Parameters
    ----------
    good_maps : Tensor of shape (n, height, width)
        Maps of good images that the network was not trained on, where there are such.

    Returns
    -------
    HeatScale
        The median of the good pixels and their `GOOD_PIXEL_QUANTILE`.
    """
    values = good_maps.numpy()
    typical = float(np.median(values))
    limit = float(np.quantile(values, GOOD_PIXEL_QUANTILE))
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
    model = LogisticRegression(C=INVERSE_REGULARISATION).fit((scores - mean) / scale, is_defect)
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
    least_recall = check_threshold(criterion)
    if not isinstance(criterion, str):
        return float(criterion)
    if least_recall is None:
        return float(is_defect.mean())
    _, recall, thresholds = roc_curve(is_defect, probability, drop_intermediate=False)
    return float(thresholds[np.flatnonzero(recall >= least_recall)[0]])


def check_threshold(criterion: float | str) -> float | None:
    """Refuse what `choose_threshold` does not understand; return the recall it asks for, if any."""
    if not isinstance(criterion, str):
        if not 0 <= criterion <= 1:
            raise ValueError(f"threshold={criterion!r}: a probability from 0 to 1 was expected.")
        return None
    if criterion == "balanced":
        return None
    target = _RECALL.fullmatch(criterion.strip())
    if target is None or not 0 < float(target["target"]) <= 1:
        raise ValueError(
            f"threshold={criterion!r}: expected 'balanced', 'recall>=R' with R in (0, 1], or a "
            "probability."
        )
    return float(target["target"])
