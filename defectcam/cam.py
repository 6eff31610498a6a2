"""Class activation maps from evidence: pure tensor functions.

Owns the arithmetic between per-class evidence maps and the map of defects that is shown. It never
runs a network, resizes to an image or draws; other CAM variants come from torchcam and
pytorch-grad-cam, which run on the fitted network unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: How much of the fused map is the students', where there are some.
STUDENT_SHARE = 0.5


def signed_cam(evidence: Tensor, good: int) -> Tensor:
    """Signed class activation map of "defective".

    With average pooling the mean of ``evidence[c]`` plus the head's bias is the score of class
    ``c``, so for two classes the mean of this map plus the biases' difference is exactly the
    log-odds of a defect. With several defect types the strongest one speaks at each position.

    Parameters
    ----------
    evidence : Tensor of shape (n, n_classes, height, width)
        Evidence maps.
    good : int
        Index of the good class.

    Returns
    -------
    Tensor of shape (n, height, width)
        Positive where the evidence says defect rather than good.

    References
    ----------
    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.
    """
    return defect_evidence(evidence, good).amax(1)


def signed_cams(levels: Tensor, good: int) -> Tensor:
    """Signed maps of the levels' sum and of each level, ``(n, 1 + n_levels, height, width)``.

    Parameters
    ----------
    levels : Tensor of shape (n, n_levels, n_classes, height, width)
    good : int
        Index of the good class.
    """
    return torch.stack([signed_cam(x, good) for x in (levels.sum(1), *levels.unbind(1))], dim=1)


def of_classes(values: Tensor, classes: Sequence[int]) -> Tensor:
    """Channels (axis 1) of these classes, in this order.

    ``values[:, classes]``, but exported graphs then have a simple `Gather`: what lists as indices
    become there is computed wrongly by OpenVINO for a fixed number of images.
    """
    return values.index_select(1, torch.tensor(classes, device=values.device))


def defect_evidence(evidence: Tensor, good: int) -> Tensor:
    """Evidence of each defect class against the good one, ``(n, n_classes - 1, height, width)``."""
    defects = [c for c in range(evidence.shape[1]) if c != good]
    return of_classes(evidence, defects) - evidence[:, good : good + 1]


def defect_margin(logits: Tensor, good: int) -> Tensor:
    """Log-odds of any defect class against the good one, shape ``(n,)``, of class scores."""
    defects = [c for c in range(logits.shape[1]) if c != good]
    return of_classes(logits, defects).logsumexp(1) - logits[:, good]


def class_cam(evidence: Tensor, classes: Sequence[int]) -> Tensor:
    """Unsigned CAM as published: the evidence for the given classes alone, strongest per position.

    Parameters
    ----------
    evidence : Tensor of shape (n, n_classes, height, width)
    classes : sequence of int
        Indices of the defect classes.

    Returns
    -------
    Tensor of shape (n, height, width)
    """
    return of_classes(evidence, classes).amax(1)


def fuse(
    cam: Tensor, novelty: Tensor, novelty_share: float, students: Tensor | None = None
) -> Tensor:
    """Fuse evidence and novelty into one map: all must speak for a pixel to be hot.

    A weighted geometric mean of the maps, each made positive by a softplus. The evidence levels
    share what novelty leaves: with ``n`` of them, ``softplus(2 cam_i)^((1 - share) / n)`` each,
    times ``softplus(2 novelty)^share``. With students' maps, they share `STUDENT_SHARE` of the
    geometric mean in the same way, and that product has the rest.

    Parameters
    ----------
    cam : Tensor of shape (n, n_levels, height, width)
        Signed class activation map of each evidence level, 0 = typical of good parts, 1 = their
        limit; up-sampled to the grid of ``novelty``.
    novelty : Tensor of shape (n, height', width')
        On the same scale.
    novelty_share : float
        From 0 (evidence alone) to 1 (novelty alone).
    students : Tensor of shape (n, n_students, height'', width''), optional
        Maps of students on the same scale.

    Returns
    -------
    Tensor of shape (n, height', width')
    """
    grid = (novelty.shape[1], novelty.shape[2])
    evidence = _geometric_mean(cam, grid)
    fused = evidence ** (1 - novelty_share) * F.softplus(2 * novelty) ** novelty_share
    if students is None:
        return fused
    drawn = _geometric_mean(students, grid)
    return fused ** (1 - STUDENT_SHARE) * drawn**STUDENT_SHARE


def _geometric_mean(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of maps, shape ``(n, n_maps, h, w)``, made positive, on a grid."""
    maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    return (F.softplus(2 * maps) ** (1 / maps.shape[1])).prod(1)


def min_max(maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Scale each map by its own minimum and maximum, as the published recipe does.

    A constant map becomes 0. Maps of different images are not comparable afterwards: a good part
    looks as hot as a defective one, which is why the default does not do this.

    Parameters
    ----------
    maps : Tensor of shape (n, height, width)
    size : (int, int), optional
        Height and width at which minimum and maximum are looked for, bilinear up-sampling not
        reaching the grid's own extremes; by default those of the grid.

    Returns
    -------
    Tensor of shape (n, height, width)
        Each from 0 to 1, at ``size`` if given.
    """
    seen = maps
    if size is not None:
        seen = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    low = seen.amin((1, 2), keepdim=True)
    span = seen.amax((1, 2), keepdim=True) - low
    return (maps - low) / torch.where(span > 0, span, torch.ones_like(span))
