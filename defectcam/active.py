"""Active labelling: which unlabelled images a person should label next.

Owns how images are described for that and the choice among them. It runs no network, and knows
neither labels nor files.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from defectcam.calibration import calm_novelty
from defectcam.cam import signed_cam
from defectcam.heads import EvidenceHead

__all__ = ["Describer", "choose_queries"]

#: Share of the familiarity limit from which an image counts as new; at the limit, fully so.
UNFAMILIAR_FROM = 0.5


class Describer:
    """Collects what `choose_queries` needs of many images, batch by batch.

    Parameters
    ----------
    head : EvidenceHead
        Of the network; its normalisation makes features comparable.
    good : int
        Index of the good class.
    familiarity_limit : float or None
        The `calm_novelty` above which an image is unlike all training images.
    """

    def __init__(self, head: EvidenceHead, good: int, familiarity_limit: float | None) -> None:
        self._head = head
        self._good = good
        self._limit = familiarity_limit
        self._uncertainty: list[NDArray[np.float64]] = []
        self._unfamiliarity: list[NDArray[np.float64]] = []
        self._descriptions: list[NDArray[np.float64]] = []

    @torch.inference_mode()
    def add(
        self,
        margin: NDArray[np.float64],
        level_features: list[Tensor],
        levels: Tensor,
        novelty: Tensor | None,
    ) -> None:
        """Take in some images.

        Parameters
        ----------
        margin : ndarray of shape (n,)
            Log-odds of a defect above those of the threshold.
        level_features : list of Tensor of shape (n, channels_i, height_i, width_i)
        levels : Tensor of shape (n, n_levels, n_classes, height, width)
            Evidence.
        novelty : Tensor of shape (n, height', width') or None
        """
        self._uncertainty.append(2 * expit(-np.abs(margin)))
        unfamiliarity = np.zeros(len(margin))
        if novelty is not None and self._limit is not None:
            share = calm_novelty(novelty) / self._limit
            unfamiliarity = np.clip((share - UNFAMILIAR_FROM) / (1 - UNFAMILIAR_FROM), 0, 1)
        self._unfamiliarity.append(unfamiliarity)
        cam = signed_cam(levels.sum(1), self._good)
        normed = [norm(x) for norm, x in zip(self._head.norms, level_features, strict=True)]
        pooled = [_pool_where_hot(x.float().cpu(), cam) for x in normed]
        self._descriptions.append(torch.cat(pooled, dim=1).double().numpy())

    def summary(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Uncertainty, unfamiliarity and descriptions of all images, as `choose_queries` takes."""
        return (
            np.concatenate(self._uncertainty),
            np.concatenate(self._unfamiliarity),
            np.concatenate(self._descriptions),
        )


def _pool_where_hot(features: Tensor, cam: Tensor) -> Tensor:
    """Mean features of the positions that speak of a defect, shape (n, channels)."""
    grid = (features.shape[2], features.shape[3])
    weights = F.adaptive_avg_pool2d(cam[:, None], grid).flatten(1).softmax(1)
    return (features.flatten(2) * weights[:, None]).sum(2)


def choose_queries(
    uncertainty: NDArray[np.float64],
    unfamiliarity: NDArray[np.float64],
    descriptions: NDArray[np.float64],
    n: int,
    random_state: np.random.RandomState,
) -> NDArray[np.int64]:
    """Choose images that are uncertain or unfamiliar, and different from one another.

    Each image's description is multiplied by its uncertainty, or by its unfamiliarity if that is
    larger, and k-means++ seeding draws images far from each other and from the origin, where the
    images lie from which nothing is to be learned. With features pooled where the evidence is, the
    product is, but for a constant, the gradient that the label would give the head: BADGE for two
    classes. Unfamiliarity is added because a network is often sure of what it has never seen.

    Parameters
    ----------
    uncertainty, unfamiliarity : ndarray of shape (n_images,)
        From 0 to 1.
    descriptions : ndarray of shape (n_images, n_features)
    n : int
        How many to choose.
    random_state : RandomState

    Returns
    -------
    ndarray of shape (n,)
        Indices, in the order in which they were drawn; the first has the longest product.

    References
    ----------
    Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020.
    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    n_images = len(descriptions)
    if not 1 <= n <= n_images:
        raise ValueError(f"n={n!r}: expected a number from 1 to {n_images}, the images in X.")
    weight = np.maximum(uncertainty, unfamiliarity)
    points = weight[:, None] * descriptions
    norms = np.square(points).sum(1)
    # scikit-learn's kmeans_plusplus can neither start from the origin nor promise that no image is
    # drawn twice, which copies of one picture would be.
    chosen = [int(np.argmax(norms))]
    distances = norms.copy()
    while len(chosen) < n:
        to_last = np.square(points - points[chosen[-1]]).sum(1)
        distances = np.minimum(distances, to_last)
        distances[chosen] = 0
        total = distances.sum()
        if total <= 0:  # what is left are copies: the most uncertain ones first
            left = np.setdiff1d(np.argsort(-weight, kind="stable"), chosen, assume_unique=True)
            return np.array(chosen + left.tolist()[: n - len(chosen)], dtype=np.int64)
        chosen.append(int(random_state.choice(n_images, p=distances / total)))
    return np.array(chosen, dtype=np.int64)
