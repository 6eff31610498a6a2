"""Novelty: how far each patch lies from every patch seen on good parts.

Owns the patch description taken from a frozen trunk's shallow features, the codebook of good
patches and the distance map. It never sees a label, trains nothing by gradient, and knows nothing
of evidence or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils import gen_batches
from torch import Tensor, nn

#: Patches that k-means looks at. More changed neither the map nor the scores in trials.
MAX_CODEBOOK_PATCHES = 50_000

#: Patches that a centre must stand for, on average.
MIN_PATCHES_PER_CENTRE = 8

#: Patches among which the first centres are looked for, per centre.
INIT_PATCHES_PER_CENTRE = 6

#: Patches that k-means learns from, or compares with all centres, in one go.
_PATCHES_AT_ONCE = 4096

#: Passes of k-means over the patches when a codebook is updated.
UPDATE_PASSES = 5

#: Share of good patches whose novelty stays below 1.
GOOD_PATCH_QUANTILE = 0.99


def describe_patches(levels: Sequence[Tensor]) -> Tensor:
    """Join shallow feature levels into one description per patch of the coarsest level's grid.

    Finer levels are averaged down to the coarsest one, all are concatenated, and each patch is
    averaged with its eight neighbours (as in PatchCore, Roth et al., CVPR 2022), which forgives
    shifts of a pixel or two.

    Parameters
    ----------
    levels : sequence of Tensor of shape (n, channels_i, height_i, width_i)
        Outputs of trunk stages, finest first.

    Returns
    -------
    Tensor of shape (n, sum of channels, height, width)
    """
    grid = (levels[-1].shape[-2], levels[-1].shape[-1])
    joined = torch.cat(
        [
            level if level.shape[-2:] == grid else F.adaptive_avg_pool2d(level, grid)
            for level in levels
        ],
        dim=1,
    )
    return F.avg_pool2d(joined, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def smooth_novelty(novelty: Tensor) -> Tensor:
    """Average each patch's novelty with its eight neighbours', shape as given."""
    return F.avg_pool2d(novelty[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]


def novelty_peak(novelty: Tensor) -> Tensor:
    """Image score: the highest novelty after smoothing over 5 x 5 patches.

    A defect is novel over a neighbourhood, a speck of noise in one patch: the smoothed peak
    separates good from defective images far better than the raw maximum.

    Parameters
    ----------
    novelty : Tensor of shape (n, height, width)

    Returns
    -------
    Tensor of shape (n,)
    """
    smooth = F.avg_pool2d(novelty[:, None], 5, stride=1, padding=2, count_include_pad=False)
    return smooth.amax((1, 2, 3))


class Codebook(nn.Module):
    """Centres of good patches; its forward pass tells how novel each patch of an image is.

    Novelty is the distance to the nearest centre on a fixed scale: 0 is the median of good
    patches, 1 their 99th percentile.

    Parameters
    ----------
    n_channels : int
        Length of a patch description.
    n_centres : int
        Number of centres.

    Attributes
    ----------
    scale : Tensor of shape (n_channels,)
        Standard deviation of each channel over good patches; 1 where a channel is constant.
    centres : Tensor of shape (n_centres, n_channels)
        Centres in units of ``scale``.
    typical, limit : Tensor of shape ()
        Distances that become 0 and 1.
    """

    scale: Tensor
    centres: Tensor
    typical: Tensor
    limit: Tensor

    def __init__(self, n_channels: int, n_centres: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(n_channels))
        self.register_buffer("centres", torch.zeros(n_centres, n_channels))
        self.register_buffer("typical", torch.tensor(0.0))
        self.register_buffer("limit", torch.tensor(1.0))

    @classmethod
    def fit(
        cls,
        patches: np.ndarray,
        n_centres: int,
        random_state: int,
        start: Codebook | None = None,
    ) -> Codebook:
        """Make a codebook with mini-batch k-means (Sculley, WWW 2010).

        Parameters
        ----------
        patches : ndarray of shape (n_patches, n_channels), float32
            Descriptions of good patches; at most ``MAX_CODEBOOK_PATCHES`` of them are used.
        n_centres : int
            Number of centres; fewer when there are fewer patches.
        random_state : int
            Seed of the sample and of k-means.
        start : Codebook, optional
            K-means then goes on from its centres, with a few passes. None is given up: those that
            no patch is near to stay where they are. Where there are fewer patches than centres,
            nothing changes.
        """
        rng = np.random.RandomState(random_state)
        if len(patches) > MAX_CODEBOOK_PATCHES:
            patches = patches[rng.choice(len(patches), MAX_CODEBOOK_PATCHES, replace=False)]
        scale = patches.std(axis=0)
        # Summed up in float32, the deviation of many equal values is not 0.
        scale[np.ptp(patches, axis=0) == 0] = 1.0
        scaled = patches / scale
        # Fewer patches than that per centre, and every patch is a centre of its own.
        n_centres = max(1, min(n_centres, len(scaled) // MIN_PATCHES_PER_CENTRE))
        options: dict[str, Any] = {"max_iter": 20, "init_size": INIT_PATCHES_PER_CENTRE * n_centres}
        if start is not None:
            n_centres = max(n_centres, len(start.centres))
            if len(scaled) < n_centres:
                return start
            more = rng.choice(len(scaled), n_centres - len(start.centres), replace=False)
            centres = (start.centres * start.scale).cpu().numpy() / scale
            options = {
                "init": np.concatenate([centres, scaled[more]]),
                "max_iter": UPDATE_PASSES,
                "reassignment_ratio": 0.0,
            }
        kmeans = MiniBatchKMeans(
            n_centres, batch_size=_PATCHES_AT_ONCE, n_init=1, random_state=rng, **options
        ).fit(scaled)
        codebook = cls(patches.shape[1], n_centres)
        codebook.scale.copy_(torch.from_numpy(scale))
        codebook.centres.copy_(torch.from_numpy(kmeans.cluster_centers_))
        parts = gen_batches(len(scaled), _PATCHES_AT_ONCE)
        distances = np.concatenate([kmeans.transform(scaled[part]).min(axis=1) for part in parts])
        typical, limit = np.quantile(distances, [0.5, GOOD_PATCH_QUANTILE])
        codebook.typical.fill_(float(typical))
        codebook.limit.fill_(float(limit) if limit > typical else float(typical) + 1.0)
        return codebook

    def forward(self, patches: Tensor) -> Tensor:
        """Novelty map.

        Parameters
        ----------
        patches : Tensor of shape (n, n_channels, height, width)

        Returns
        -------
        Tensor of shape (n, height, width)
        """
        scaled = (patches / self.scale[:, None, None]).permute(0, 2, 3, 1)
        # |x - c|^2 = |x|^2 + (|c|^2 - 2 x.c): the bracket is one linear layer, which exports.
        weight, bias = -2 * self.centres, self.centres.square().sum(1)
        # One image at a time, so that the brackets of all centres stay in the processor's cache.
        least = torch.stack([F.linear(image, weight, bias).amin(-1) for image in scaled])
        squared = scaled.square().sum(-1) + least
        is_apart = squared > 0  # rounding may say less; the root of 0 has no finite gradient
        distance = torch.where(is_apart, torch.where(is_apart, squared, 1.0).sqrt(), 0.0)
        return (distance - self.typical) / (self.limit - self.typical)
