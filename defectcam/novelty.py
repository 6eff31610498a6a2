"""Novelty: how far each patch lies from every patch seen on good parts.

Owns the patch description taken from a frozen trunk's shallow features, the codebook of good
patches and the distance map. It never sees a label, trains nothing by gradient, and knows nothing
of evidence or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

#: Patches that k-means looks at. More changed neither the map nor the scores in trials.
MAX_CODEBOOK_PATCHES = 50_000


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


class Codebook(nn.Module):
    """Centres of good patches; its forward pass is the distance of a patch to the nearest one.

    Parameters
    ----------
    n_channels : int
        Length of a patch description.
    n_centres : int
        Number of centres.

    Attributes
    ----------
    scale : Tensor of shape (n_channels,)
        Standard deviation of each channel over good patches.
    centres : Tensor of shape (n_centres, n_channels)
        Centres in units of ``scale``.
    """

    scale: Tensor
    centres: Tensor

    def __init__(self, n_channels: int, n_centres: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(n_channels))
        self.register_buffer("centres", torch.zeros(n_centres, n_channels))

    @classmethod
    def fit(cls, patches: np.ndarray, n_centres: int, random_state: int) -> Codebook:
        """Make a codebook with mini-batch k-means (Sculley, WWW 2010).

        Parameters
        ----------
        patches : ndarray of shape (n_patches, n_channels), float32
            Descriptions of good patches; at most ``MAX_CODEBOOK_PATCHES`` of them are used.
        n_centres : int
            Number of centres; fewer when there are fewer patches.
        random_state : int
            Seed of the sample and of k-means.
        """
        rng = np.random.RandomState(random_state)
        if len(patches) > MAX_CODEBOOK_PATCHES:
            patches = patches[rng.choice(len(patches), MAX_CODEBOOK_PATCHES, replace=False)]
        scale = patches.std(axis=0)
        scale[scale == 0] = 1.0
        scaled = patches / scale
        n_centres = min(n_centres, len(scaled))
        kmeans = MiniBatchKMeans(
            n_centres, batch_size=4096, max_iter=20, n_init=1, random_state=rng
        ).fit(scaled)
        codebook = cls(patches.shape[1], n_centres)
        codebook.scale.copy_(torch.from_numpy(scale))
        codebook.centres.copy_(torch.from_numpy(kmeans.cluster_centers_))
        return codebook

    def forward(self, patches: Tensor) -> Tensor:
        """Distance map.

        Parameters
        ----------
        patches : Tensor of shape (n, n_channels, height, width)

        Returns
        -------
        Tensor of shape (n, height, width)
            Euclidean distance to the nearest centre, in units of ``scale``.
        """
        scaled = patches / self.scale[:, None, None]
        # |x - c|^2 = |x|^2 + (|c|^2 - 2 x.c): the bracket is one 1x1 convolution, which exports.
        bracket = F.conv2d(
            scaled, -2 * self.centres[:, :, None, None], self.centres.square().sum(1)
        )
        squared = scaled.square().sum(1) + bracket.amin(1)
        return squared.clamp_min(0).sqrt()
