"""Running a network over images: the one path to every score and map.

Owns what comes out of a forward pass on the processor, and that the network is left as it was. What
the scores mean is `judging`'s matter.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defectcam.geometry import Geometry
from defectcam.isolation import usual_settings
from defectcam.network import DefectCAMNetwork, Description, NetworkOutput

__all__ = ["ScoredImages", "described", "evaluating", "scored"]

#: Networks that some threads evaluate: how many blocks do, and modules to put back into training.
_modes: weakref.WeakKeyDictionary[DefectCAMNetwork, tuple[int, list[nn.Module]]]
_modes = weakref.WeakKeyDictionary()
_modes_lock = threading.Lock()

#: Preprocessed images with how each of them was resized.
Batches = Iterable[tuple[Tensor, list[Geometry]]]


class ScoredImages(NamedTuple):
    """One forward pass over some images, what came out of it as float32 on the CPU.

    Attributes
    ----------
    logits, levels, novelty, students
        As `defectcam.network.NetworkOutput` has them.
    geometries : list of Geometry
    pixels : Tensor of shape (n, 3, height, width)
        The network's input, on its device.
    log_odds : ndarray of shape (n,) or None
        Of a defect, where images were seen in tiles: those of the image, not of its tiles.
    """

    logits: Tensor
    levels: Tensor
    novelty: Tensor | None
    students: Tensor | None
    geometries: list[Geometry]
    pixels: Tensor
    log_odds: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, output: NetworkOutput, geometries: list[Geometry], pixels: Tensor) -> ScoredImages:
        """Fetch what a network has said."""
        novelty = None if output.novelty is None else output.novelty.float().cpu()
        logits, levels = output.logits.float().cpu(), output.levels.float().cpu()
        students = None if output.students is None else output.students.float().cpu()
        return cls(logits, levels, novelty, students, geometries, pixels)


def scored(network: DefectCAMNetwork, batches: Batches) -> Iterator[ScoredImages]:
    """Run a network over preprocessed images."""
    for pixels, geometries in batches:
        with torch.inference_mode(), evaluating(network):
            output = network.infer(pixels)
        yield ScoredImages.of(output, geometries, pixels)


def described(
    network: DefectCAMNetwork, batches: Batches
) -> Iterator[tuple[ScoredImages, Description]]:
    """Run a network over preprocessed images and hand out its features too."""
    for pixels, geometries in batches:
        with torch.inference_mode(), evaluating(network):
            description = network.describe(pixels)
        yield ScoredImages.of(description.output, geometries, pixels), description


@contextlib.contextmanager
def evaluating(network: DefectCAMNetwork) -> Iterator[None]:
    """Evaluate within the block, whatever the caller has set torch to.

    Each module's mode is left as it was, after the last thread.
    """
    with _modes_lock:
        n_blocks, training = _modes.get(network, (0, []))
        if not n_blocks:
            training = [module for module in network.modules() if module.training]
            network.eval()
        _modes[network] = (n_blocks + 1, training)
    try:
        with usual_settings(next(network.parameters()).device):
            yield
    finally:
        with _modes_lock:
            n_blocks, training = _modes.pop(network)
            if n_blocks > 1:
                _modes[network] = (n_blocks - 1, training)
            else:
                for module in training:
                    module.training = True
