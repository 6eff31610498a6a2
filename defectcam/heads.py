"""Evidence heads: features -> class evidence maps -> class scores.

One 1x1 convolution per feature level turns features into evidence maps, one per class, and a
pooling turns each map into the class's score. The evidence map of a class *is* its class
activation map. This module depends on nothing else in the package and never up-samples to image
pixels, scales maps for display or applies a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["INITS", "POOLINGS", "EvidenceHead", "pool_evidence"]

POOLINGS = ("average", "top_k", "max", "novelty_top_k")
INITS = ("normal", "linear")

_INIT_STD = 0.01


class EvidenceHead(nn.Module):
    """A linear classifier of every position, and the pooling of its evidence into class scores.

    The bias is one number per class and is added after the pooling, so that with average pooling
    ``logits == evidence.mean((2, 3)) + bias``, exactly: the identity that makes the evidence a
    class activation map ("Learning Deep Features for Discriminative Localization", 2016).

    Parameters
    ----------
    channels
        Of each feature level, finest level first.
    n_classes
        How many classes, and so evidence maps.
    normalise
        Whether each level passes a batch normalisation without learned scale and shift first.
    pooling
        ``"average"``, ``"top_k"`` (mean of the highest values), ``"max"``, or ``"novelty_top_k"``
        (half of it the mean of the highest values, half a mean weighted by novelty).
    fraction
        Of the positions that the top-k poolings average, in (0, 1]; others ignore it.
    reference
        Index of the class that the others are weighed against: its evidence is subtracted before
        the pooling, position by position, so that a defect class scores where it beats *good*, not
        where both are high. Averaging gives the same either way, up to a number that softmax
        ignores; None: no class is subtracted.
    init
        ``"normal"``: small normal weights and zero bias. ``"linear"``: what
        ``nn.Linear(sum(channels), n_classes)`` would draw.
    """

    def __init__(
        self,
        channels: Sequence[int],
        n_classes: int,
        *,
        normalise: bool = True,
        pooling: str = "average",
        fraction: float = 1.0,
        reference: int | None = None,
        init: str = "normal",
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init={init!r}; expected one of {INITS}.")
        _check_pooling(pooling, fraction)
        self.pooling = pooling
        self.fraction = fraction
        self.reference = reference
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c, affine=False) if normalise else nn.Identity() for c in channels
        )
        # Made without their own random draw: `_initialise` makes the only one.
        self.convs = nn.ModuleList(
            nn.utils.skip_init(nn.Conv2d, c, n_classes, kernel_size=1, bias=False) for c in channels
        )
        self.bias = nn.Parameter(torch.zeros(n_classes))
        self._initialise(init)

    @torch.no_grad()
    def _initialise(self, init: str) -> None:
        weights = list(self.convs.parameters())
        if init == "normal":
            for weight in weights:
                nn.init.normal_(weight, std=_INIT_STD)
            return
        sizes = [weight.shape[1] for weight in weights]
        dense = nn.Linear(sum(sizes), len(self.bias))
        for weight, part in zip(weights, dense.weight.split(sizes, dim=1), strict=True):
            weight.copy_(part[:, :, None, None])
        self.bias.copy_(dense.bias)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply all evidence and scores by a factor, in place."""
        for parameter in self.parameters():
            parameter.mul_(factor)

    def evidence(self, features: Sequence[Tensor]) -> Tensor:
        """Sum the levels' evidence, shape (n, n_classes, h_0, w_0); see `level_evidence`."""
        return self.level_evidence(features).sum(1)

    def level_evidence(self, features: Sequence[Tensor]) -> Tensor:
        """Evidence of each level on the first level's grid.

        Parameters
        ----------
        features
            One tensor per level, shape (n, channels[i], h_i, w_i), finest level first.

        Returns
        -------
        Tensor
            Shape (n, n_levels, n_classes, h_0, w_0), without the bias.
        """
        if len(features) != len(self.convs):
            raise ValueError(f"got {len(features)} feature levels, expected {len(self.convs)}.")
        maps = [
            conv(norm(x)) for norm, conv, x in zip(self.norms, self.convs, features, strict=True)
        ]
        grid = maps[0].shape[-2:]
        coarser = [
            F.interpolate(coarse, size=grid, mode="bilinear", align_corners=False)
            for coarse in maps[1:]
        ]
        return torch.stack([maps[0], *coarser], dim=1)

    def logits(self, evidence: Tensor, novelty: Tensor | None = None) -> Tensor:
        """Pool evidence into class scores and add the bias.

        Parameters
        ----------
        evidence
            Shape (n, n_classes, h, w), as `evidence` gives it.
        novelty
            Shape (n, h', w') with a grid at least as fine; read by ``"novelty_top_k"`` alone.

        Returns
        -------
        Tensor
            Shape (n, n_classes).
        """
        if self.reference is not None:
            evidence = evidence - evidence[:, self.reference, None]
        return pool_evidence(evidence, self.pooling, self.fraction, novelty) + self.bias

    def forward(
        self, features: Sequence[Tensor], novelty: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class scores (n, n_classes) and the evidence (n, n_classes, h, w) behind them."""
        evidence = self.evidence(features)
        return self.logits(evidence, novelty), evidence


def pool_evidence(
    evidence: Tensor, pooling: str, fraction: float = 1.0, novelty: Tensor | None = None
) -> Tensor:
    """Pool each evidence map into one score.

    Parameters
    ----------
    evidence
        Shape (n, n_classes, h, w).
    pooling
        ``"average"``; ``"max"``; or ``"top_k"``, the mean of the highest
        ``max(1, round(fraction * h * w))`` values of each map: multiple-instance pooling, where a
        small defect need not convince the whole image; or ``"novelty_top_k"``, the mean of that
        and of the evidence averaged with the weights softmax(2 novelty), so that evidence is asked
        for where something is to be seen.
    fraction
        Of the positions, in (0, 1]; only the top-k poolings read it.
    novelty
        Shape (n, h', w'), averaged down to the evidence's grid; needed by ``"novelty_top_k"``.

    Returns
    -------
    Tensor
        Shape (n, n_classes).

    Examples
    --------
    >>> evidence = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    >>> [pool_evidence(evidence, p, 0.5).item() for p in ("average", "top_k", "max")]
    [2.0, 3.5, 5.0]
    """
    _check_pooling(pooling, fraction)
    if pooling == "average":
        return evidence.mean((2, 3))
    if pooling == "max":
        return evidence.amax((2, 3))
    values = evidence.flatten(2)
    k = max(1, round(fraction * values.shape[2]))
    top = values.topk(k, dim=2, sorted=False).values.mean(2)
    if pooling == "top_k":
        return top
    if novelty is None:
        raise ValueError('pooling="novelty_top_k" needs the novelty map.')
    grid = (evidence.shape[2], evidence.shape[3])
    weights = (2 * F.adaptive_avg_pool2d(novelty, grid)).flatten(1).softmax(1)
    return 0.5 * top + 0.5 * (values * weights[:, None]).sum(2)


def _check_pooling(pooling: str, fraction: float) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}; expected one of {POOLINGS}.")
    if "top_k" in pooling and not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r}; expected more than 0 and at most 1.")
