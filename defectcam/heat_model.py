"""The map that is shown: evidence, novelty and students put on one scale and fused.

Owns how these become the heatmap, and what is learned of it from held-out training images: scales,
and how much novelty counts. It never runs the network and never sees a test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from defectcam.cam import class_cam, defect_evidence, fuse, min_max, signed_cam, signed_cams
from defectcam.hills import width_at_half
from defectcam.novelty import smooth_novelty

__all__ = [
    "HeatModel",
    "HeatScale",
    "choose_novelty_share",
    "fit_heat_model",
    "fit_heat_scale",
    "fit_point_spread",
    "held_out_maps",
    "scaled",
    "with_students",
]

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
