"""What scores and maps mean: probability of a defect, decision threshold, scale of the map.

Owns what is learned from held-out training images after the network is trained. It never runs the
network and never sees a test image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import median_abs_deviation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from defectcam.cam import (
    class_cam,
    defect_evidence,
    fuse,
    min_max,
    of_classes,
    signed_cam,
    signed_cams,
)
from defectcam.hills import width_at_half
from defectcam.novelty import novelty_peak, smooth_novelty

#: Share of good pixels below the map's limit.
GOOD_PIXEL_QUANTILE = 0.999

#: Candidate shares of novelty in the fused map, and the price its sharpness may have.
NOVELTY_SHARES = tuple(np.linspace(0, 1, 9).tolist())
AUROC_TOLERANCE = 0.02

#: Share of the defective images whose highest hill is taken for a point's.
POINT_SHARE = 0.05

#: How many cells wide a point becomes where no map shows it, of good images alone for instance.
USUAL_POINT_SPREAD = 2.0

#: Times as fine a grid as the map's, on which hills are measured.
FINER = 8

#: Share of the positions that make the peak of a map.
PEAK_FRACTION = 0.0125

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
    defects = [c for c in range(logits.shape[1]) if c != good]
    scores = [of_classes(logits, defects).logsumexp(1) - logits[:, good]]
    if novelty is not None:
        scores.append(novelty_peak(novelty))
    return torch.stack(scores, dim=1)


class HeatScale(NamedTuple):
    """Fixed scale of the map: ``typical`` becomes 0 and ``limit`` becomes 1."""

    typical: float
    limit: float

    def apply(self, maps: Tensor) -> Tensor:
        """Put maps on the scale, values of any shape."""
        return (maps - self.typical) / (self.limit - self.typical)

    def shifted(self, offset: float) -> HeatScale:
        """Scale of maps that are higher by ``offset``."""
        return HeatScale(self.typical + offset, self.limit + offset)


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
    input_size : tuple of int
        Height and width of the network's input, at which ``"min_max_cam"`` looks for minimum and
        maximum.
    level_scales : tuple of HeatScale, default=()
        Of each evidence level's signed map. Models that 0.1.0 saved have none: they fuse the
        levels' sum.
    student_scales : tuple of HeatScale, default=()
        Of each student's map; empty where there is no student.
    point_spread : float, default=0.0
        How wide a point becomes in the map, at half of its height and in cells of its grid.
    """

    kind: str
    good: int
    cam_scale: HeatScale
    novelty_scale: HeatScale
    novelty_share: float
    fused_scale: HeatScale
    input_size: tuple[int, int]
    level_scales: tuple[HeatScale, ...] = ()
    student_scales: tuple[HeatScale, ...] = ()
    point_spread: float = 0.0

    def grids(
        self, levels: Tensor, novelty: Tensor | None, students: Tensor | None = None
    ) -> Tensor:
        """Return maps on the network's grid, shape ``(n, height, width)``."""
        if self.kind == "min_max_cam":
            evidence = levels.sum(1)
            defects = [c for c in range(evidence.shape[1]) if c != self.good]
            return min_max(class_cam(evidence, defects), self.input_size)
        if self.kind == "cam" or novelty is None:
            return self.cam_scale.apply(signed_cam(levels.sum(1), self.good))
        return self.fused_scale.apply(self.fused(signed_cams(levels, self.good), novelty, students))

    def fused(self, cams: Tensor, novelty: Tensor, students: Tensor | None = None) -> Tensor:
        """Fuse maps, before the fused map's own scale.

        Parameters
        ----------
        cams : Tensor of shape (n, 1 + n_levels, height, width)
            Signed maps of the whole evidence and of each level's.
        novelty : Tensor of shape (n, height', width')
        students : Tensor of shape (n, n_students, height'', width''), optional
        """
        if self.level_scales:
            cams = scaled(cams[:, 1:], self.level_scales)
        else:
            cams = self.cam_scale.apply(cams[:, :1])
        smooth = self.novelty_scale.apply(smooth_novelty(novelty))
        if not self.student_scales or students is None:
            return fuse(cams, smooth, self.novelty_share)
        return fuse(cams, smooth, self.novelty_share, scaled(students, self.student_scales))

    def type_grids(self, levels: Tensor) -> Tensor:
        """Return a map per defect class, shape ``(n, n_classes - 1, height, width)``.

        Evidence of the class against the good one, on the evidence's own grid: 0 is typical of good
        parts and 1 their limit, whatever `kind`, and the maximum over classes is the ``"cam"`` map.
        Novelty is left out, because it knows no types: fused with a large share of it, the maps of
        all types would be alike.
        """
        return self.cam_scale.apply(defect_evidence(levels.sum(1), self.good))


def scaled(cams: Tensor, scales: Sequence[HeatScale]) -> Tensor:
    """Put each level's or student's map on its scale, shape ``(n, n_maps, height, width)``."""
    pairs = zip(scales, cams.unbind(1), strict=True)
    return torch.stack([scale.apply(cam) for scale, cam in pairs], dim=1)


def fit_heat_model(
    kind: str,
    good: int,
    cams: Tensor,
    novelty: Tensor | None,
    typical_cams: Sequence[float],
    is_defect: NDArray[np.bool_],
    input_size: tuple[int, int],
) -> HeatModel:
    """Learn the map's scale, and how much novelty counts, from held-out training images.

    Parameters
    ----------
    kind : {"fused", "cam", "min_max_cam"}
    good : int
        Index of the good class.
    cams : Tensor of shape (n_images, 1 + n_levels, height, width)
        Signed maps of the whole evidence and of each level's, shifted so that each has median 0 on
        good images.
    novelty : Tensor of shape (n_images, height', width') or None
    typical_cams : sequence of float
        Medians of the final network's signed maps on good images, in the same order.
    is_defect : ndarray of shape (n_images,)
    input_size : (int, int)
        Height and width of the network's input.
    """
    identity = HeatScale(0.0, 1.0)
    good_rows = torch.as_tensor(~is_defect)
    whole, *levels = cams[good_rows].unbind(1)
    cam_scale = fit_heat_scale(whole)
    level_scales = [fit_heat_scale(level) for level in levels]
    model = HeatModel(
        kind,
        good,
        cam_scale.shifted(typical_cams[0]),
        identity,
        0.0,
        identity,
        input_size,
        tuple(
            scale.shifted(typical)
            for scale, typical in zip(level_scales, typical_cams[1:], strict=True)
        ),
    )
    defective = torch.as_tensor(is_defect)
    if kind == "min_max_cam":
        return model
    if kind == "cam" or novelty is None:
        maps = cam_scale.apply(cams[defective, 0])
        return model._replace(point_spread=fit_point_spread(maps))
    smooth = smooth_novelty(novelty)
    novelty_scale = fit_heat_scale(smooth[good_rows])
    cams, smooth = scaled(cams[:, 1:], level_scales), novelty_scale.apply(smooth)
    share = choose_novelty_share(cams, smooth, is_defect)
    fused_scale = fit_heat_scale(fuse(cams[good_rows], smooth[good_rows], share))
    maps = fused_scale.apply(fuse(cams[defective], smooth[defective], share))
    return model._replace(
        novelty_scale=novelty_scale,
        novelty_share=share,
        fused_scale=fused_scale,
        point_spread=fit_point_spread(maps),
    )


def with_students(
    model: HeatModel,
    cams: Tensor,
    novelty: Tensor,
    students: Tensor,
    typical_cams: Sequence[float],
    is_defect: NDArray[np.bool_],
) -> HeatModel:
    """Let students' maps count in the fused one, and learn its scale anew.

    Parameters
    ----------
    model : HeatModel
        Of the same training images, without students.
    cams, novelty, typical_cams, is_defect
        As `fit_heat_model` takes them.
    students : Tensor of shape (n_images, n_students, height'', width'')
    """
    good = torch.as_tensor(~is_defect)
    scales = tuple(fit_heat_scale(drawn) for drawn in students[good].unbind(1))
    model = model._replace(student_scales=scales)
    fused = model.fused(_as_final(cams, typical_cams), novelty, students)
    fused_scale = fit_heat_scale(fused[good])
    maps = fused_scale.apply(fused[~good])
    return model._replace(fused_scale=fused_scale, point_spread=fit_point_spread(maps))


def held_out_maps(
    model: HeatModel, cams: Tensor, novelty: Tensor, typical_cams: Sequence[float]
) -> Tensor:
    """Fused maps of the training images, shape ``(n_images, height', width')``.

    Parameters
    ----------
    model : HeatModel
        Of the same training images.
    cams, novelty, typical_cams
        As `fit_heat_model` takes them.
    """
    return model.fused_scale.apply(model.fused(_as_final(cams, typical_cams), novelty))


def _as_final(cams: Tensor, typical_cams: Sequence[float]) -> Tensor:
    """Shift centred maps to where the final network's lie."""
    return cams + cams.new_tensor(typical_cams)[:, None, None]


def choose_novelty_share(cams: Tensor, novelty: Tensor, is_defect: NDArray[np.bool_]) -> float:
    """Choose how much novelty counts in the fused map: as much as the images' labels bear out.

    Novelty's map is the sharper one, so it should lead, but only where its peaks are defects. A
    fused map whose peaks no longer tell good images from defective ones has too much of it: the
    share is the largest that costs at most `AUROC_TOLERANCE` of the area under the ROC curve that
    the best share reaches over held-out training images.

    Parameters
    ----------
    cams : Tensor of shape (n_images, n_levels, height, width)
    novelty : Tensor of shape (n_images, height', width')
        On their scales, as `fuse` takes them.
    is_defect : ndarray of shape (n_images,)

    Returns
    -------
    float
        One of `NOVELTY_SHARES`.
    """
    if not is_defect.any():  # nothing was learned but novelty
        return max(NOVELTY_SHARES)
    areas = []
    for share in NOVELTY_SHARES:
        positions = fuse(cams, novelty, share).flatten(1)
        n_peak = max(1, round(PEAK_FRACTION * positions.shape[1]))
        areas.append(roc_auc_score(is_defect, positions.topk(n_peak).values.mean(1)))
    enough = np.asarray(areas) >= max(areas) - AUROC_TOLERANCE
    return float(np.asarray(NOVELTY_SHARES)[enough].max())


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


def fit_point_spread(maps: Tensor) -> float:
    """Measure how wide a point becomes in the map, from maps of defective images.

    No hill is narrower than a point's, and of many defects some are little more than points: so it
    is the width of the narrowest highest hills, `POINT_SHARE` of them.

    Parameters
    ----------
    maps : Tensor of shape (n, height, width)
        Maps of defective images that the network was not trained on, where there are such; those
        that do not pass 1 do not count.

    Returns
    -------
    float
        In cells of the maps, at half of the hill's height; where no map counts, the usual one.
    """
    widths = []
    for one in maps[maps.amax((1, 2)) > 1]:
        fine = F.interpolate(one[None, None], scale_factor=FINER, mode="bilinear")
        widths.append(width_at_half(fine[0, 0].numpy()) / FINER)
    return float(np.quantile(widths, POINT_SHARE)) if widths else USUAL_POINT_SPREAD


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
        return float(np.average(is_defect, weights=sample_weight))
    _, recall, thresholds = roc_curve(
        is_defect, probability, sample_weight=sample_weight, drop_intermediate=False
    )
    return float(thresholds[np.flatnonzero(recall >= number)[0]])


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
