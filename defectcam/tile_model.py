"""What the scores of an image's tiles say of the image.

Owns the step from tiles to image: an image is as suspicious as its most suspicious tile, and the
more tiles it has, the more suspicious the worst of them looks in a good one. It runs no network and
never sees a test image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defectcam.calibration import (
    DefectProbability,
    fit_defect_probability,
    fit_novelty_probability,
)

__all__ = ["TileModel", "fit_tile_model", "uncalibrated"]

#: Share of good tiles whose log-odds lie in the tail that extremes come from.
TAIL_SHARE = 0.1


class TileModel(NamedTuple):
    """How tiles are cut, and what the log-odds of an image's tiles say of the image.

    Attributes
    ----------
    tile : tuple of int
        Height and width in pixels.
    overlap : tuple of int
        Pixels that neighbours share.
    n_tiles : float
        Tiles of the images that it was calibrated on, the median.
    rate : float
        Of the exponential tail of good tiles' log-odds; infinite: the number of tiles does not
        count.
    probability : DefectProbability
        From the image's score to the probability of a defect.
    """

    tile: tuple[int, int]
    overlap: tuple[int, int]
    n_tiles: float
    rate: float
    probability: DefectProbability

    def log_odds(self, tile_log_odds: NDArray[np.float64], n_tiles: int) -> NDArray[np.float64]:
        """Log-odds of a defect in an image of so many tiles, had it this tile as its worst.

        Parameters
        ----------
        tile_log_odds : ndarray of any shape
            As the network judges each tile.
        n_tiles : int
            Tiles of the image.
        """
        scores = tile_log_odds - self._extremes(n_tiles)
        return self.probability.log_odds(np.asarray(scores)[..., np.newaxis])

    def _extremes(self, n_tiles: int) -> float:
        """How much higher the worst of so many good tiles is than the worst of `n_tiles`."""
        return math.log(n_tiles / self.n_tiles) / self.rate


def uncalibrated(tile: tuple[int, int], overlap: tuple[int, int]) -> TileModel:
    """Return the model by which the worst tile's log-odds are the image's."""
    return TileModel(tile, overlap, 1.0, math.inf, DefectProbability((1.0,), 0.0))


def fit_tile_model(
    tile: tuple[int, int],
    overlap: tuple[int, int],
    log_odds: Sequence[NDArray[np.float64]],
    is_defect: NDArray[np.bool_],
    sample_weight: NDArray[np.float64] | None = None,
) -> tuple[TileModel, NDArray[np.float64]]:
    """Learn from the held-out tiles of whole training images what their worst tile means.

    No independence of tiles is assumed: the highest log-odds over all tiles of each held-out image
    is taken as one score, and the probability is fitted to these scores and the images' labels, as
    it is to the scores of images that are not cut. So the chance of a false alarm somewhere in a
    good image of as many tiles is in the figures that the threshold is chosen by.

    Only for images of another size than these is something assumed: that good tiles' log-odds have
    an exponential tail. The highest of n of them is then higher by the logarithm of n over the
    tail's rate, which is estimated from the mean excess over the 90 % quantile of good tiles.

    Parameters
    ----------
    tile, overlap : (int, int)
    log_odds : sequence of ndarray of shape (n_tiles_i,)
        Of each training image's tiles, from networks that have not seen the image.
    is_defect : ndarray of shape (n_images,)
    sample_weight : ndarray of shape (n_images,), optional

    Returns
    -------
    model : TileModel
    log_odds : ndarray of shape (n_images,)
        Of a defect in each image.

    References
    ----------
    Pickands, "Statistical inference using extreme order statistics", Annals of Statistics 1975:
    what exceeds a high threshold; with the exponential member of the family, which many tails near.
    """
    n_tiles = float(np.median([len(scores) for scores in log_odds]))
    good = [scores for scores, bad in zip(log_odds, is_defect, strict=True) if not bad]
    as_it_is = DefectProbability((1.0,), 0.0)
    model = TileModel(tile, overlap, n_tiles, _tail_rate(np.concatenate(good)), as_it_is)
    highest = np.array(
        [model.log_odds(np.max(scores, keepdims=True), len(scores))[0] for scores in log_odds]
    )
    if is_defect.any():
        probability = fit_defect_probability(highest[:, np.newaxis], is_defect, sample_weight)
    else:
        # Its limit was made for peaks of novelty; the worst tile of an image is such a peak.
        fitted = fit_novelty_probability(np.column_stack([np.zeros_like(highest), highest]))
        probability = DefectProbability(fitted.coefficients[1:], fitted.intercept)
    model = model._replace(probability=probability)
    return model, probability.log_odds(highest[:, np.newaxis])


def _tail_rate(scores: NDArray[np.float64]) -> float:
    """Rate of the exponential distribution that the highest scores follow."""
    start = np.quantile(scores, 1 - TAIL_SHARE)
    excess = float(np.mean(scores[scores >= start] - start))
    return 1 / excess if excess > 0 else math.inf
