"""Active labelling: which unlabelled images a person should label next.

Owns how images are described for that and the choice among them. It runs no network, and knows
neither labels nor files.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from defectcam.calibration import calm_novelty
from defectcam.cam import signed_cam
from defectcam.heads import EvidenceHead

__all__ = ["Describer", "choose_queries", "uncertainties"]

#: Share of the familiarity limit from which an image counts as new; at the limit, fully so.
UNFAMILIAR_FROM = 0.5

#: Among how many of the most uncertain images each query chooses.
CANDIDATES_PER_QUERY = 2


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
    defect_share : float or None
        Share of defective images to expect, None if it is not known.
    """

    def __init__(
        self,
        head: EvidenceHead,
        good: int,
        familiarity_limit: float | None,
        defect_share: float | None,
    ) -> None:
        self._head = head
        self._good = good
        self._limit = familiarity_limit
        self._defect_share = defect_share
        self._margins: list[NDArray[np.float64]] = []
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
        self._margins.append(margin)
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
            uncertainties(np.concatenate(self._margins), self._defect_share),
            np.concatenate(self._unfamiliarity),
            np.concatenate(self._descriptions),
        )


def uncertainties(margins: NDArray[np.float64], defect_share: float | None) -> NDArray[np.float64]:
    """Say how near each image is to where good and defective ones part.

    Few labels tell the order of new images better than their level: a threshold from the images
    that were learned lies off for others, the more so where those were chosen for being difficult.
    So it is put where the expected share of these images lies above it.

    Parameters
    ----------
    margins : ndarray of shape (n_images,)
        Log-odds of a defect above those of the threshold.
    defect_share : float or None
        Expected share of defective images; None: the threshold holds.

    Returns
    -------
    ndarray of shape (n_images,)
        From 0 to 1, which is at the border.
    """
    border = 0.0 if defect_share is None else np.quantile(margins, 1 - defect_share)
    return 2 * expit(-np.abs(margins - border))


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

    Of the images with the largest uncertainty, or unfamiliarity where that is larger, twice as many
    as wanted are candidates. Among them k-means++ seeding, weighted by it, draws images far from
    each other: filtering, then diversity (Wei et al.). Unfamiliarity is added because a network is
    often sure of what it has never seen.

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
        Indices, in the order in which they were drawn; the first is the most uncertain or
        unfamiliar.

    References
    ----------
    Wei, Iyer and Bilmes, "Submodularity in data subset selection and active learning", ICML 2015.
    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    n_images = len(descriptions)
    if not (isinstance(n, Integral) and 1 <= n <= n_images):
        raise ValueError(f"n={n!r}: expected an integer from 1 to {n_images}, the images in X.")
    weight = np.maximum(uncertainty, unfamiliarity)
    candidates = np.argsort(-weight, kind="stable")[: CANDIDATES_PER_QUERY * n]
    points = descriptions[candidates]
    # scikit-learn's kmeans_plusplus can neither start from a given image nor promise that none is
    # drawn twice, which copies of one picture would be.
    chosen = [0]
    distances = np.full(len(points), np.inf)
    while len(chosen) < n:
        distances = np.minimum(distances, np.square(points - points[chosen[-1]]).sum(1))
        distances[chosen] = 0
        chances = weight[candidates] * distances
        total = chances.sum()
        if total <= 0:  # what is left are copies, or sure: the most uncertain ones first
            left = np.setdiff1d(np.arange(len(points)), chosen)
            chosen.extend(left[: n - len(chosen)].tolist())
        else:
            chosen.append(int(random_state.choice(len(points), p=chances / total)))
    return candidates[chosen].astype(np.int64)
