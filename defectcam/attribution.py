"""Heatmaps by the class activation methods of another library, pytorch-grad-cam.

Owns which methods there are by name, which layers and which score they explain, and that the
network is left as it was found. The arithmetic is the library's, which is optional and imported
when a method is used. Nothing here reads images, and nothing learns what a map's values mean: the
library scales each map by its own minimum and maximum.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defectcam.network import DefectCAMNetwork

__all__ = ["BOX_THRESHOLD", "METHODS", "attribution_maps", "check_method"]

#: Names of the methods, and of pytorch-grad-cam's classes for them.
_CLASSES = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "scorecam": "ScoreCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
}
METHODS = tuple(_CLASSES)

#: Boxes are drawn where such a map is above this share of its own range. There is no limit of good
#: parts on its scale that could be learned: good images reach 1 as well.
BOX_THRESHOLD = 0.5


def check_method(method: str) -> None:
    """Refuse a method that is unknown, or whose library is not installed.

    Parameters
    ----------
    method : str

    Raises
    ------
    ValueError
        If it is none of `METHODS`.
    ImportError
        If pytorch-grad-cam is not installed.
    """
    _method_class(method)


def attribution_maps(
    network: DefectCAMNetwork, pixels: Tensor, method: str, defects: Sequence[int], good: int
) -> NDArray[np.float32]:
    """Explain the score of a defect by one of pytorch-grad-cam's methods.

    What is explained is the score of the given defect class minus that of the good class, from the
    features that the evidence head reads (`DefectCAMNetwork.evidence_layers`); of several levels
    the maps are averaged, as the library does.

    Parameters
    ----------
    network : DefectCAMNetwork
        In evaluation mode. Afterwards it has the hooks and the gradients that it had before.
    pixels : Tensor of shape (n, 3, height, width)
        Normalised images, on the network's device.
    method : str
        One of `METHODS`.
    defects : sequence of int
        Index of the defect class to explain, per image.
    good : int
        Index of the good class.

    Returns
    -------
    ndarray of float32, shape (n, height, width)
        Each map from 0 to 1, its own minimum and maximum; 0 throughout if nothing speaks for the
        defect. Eigen-CAM looks at no class: the sign of its map is arbitrary.

    Raises
    ------
    ValueError, ImportError
        As `check_method`.

    References
    ----------
    Selvaraju et al., "Grad-CAM", ICCV 2017. Chattopadhay et al., "Grad-CAM++", WACV 2018. Wang et
    al., "Score-CAM", CVPR Workshops 2020. Jiang et al., "LayerCAM", IEEE TIP 2021. Muhammad and
    Yeasin, "Eigen-CAM", IJCNN 2020.
    """
    make = _method_class(method)
    targets = [_DefectAgainstGood(defect, good) for defect in defects]
    with torch.inference_mode(False), torch.enable_grad(), _gradients_kept(network):
        # A copy: tensors made in inference mode have no gradients. Frozen stages need none for
        # their weights, so it must come from the pixels that features of theirs are seen to matter.
        pixels = pixels.detach().clone().requires_grad_(network.has_frozen_evidence)
        explainer = make(network, network.evidence_layers)
        try:
            with _without_bars():
                maps = explainer(pixels, targets)
        finally:
            # Not by `with`: the library's own would print an IndexError and go on.
            explainer.activations_and_grads.release()
    return np.asarray(maps, dtype=np.float32)


class _DefectAgainstGood:
    """Score of a defect class minus that of the good one, of one image's class scores."""

    def __init__(self, defect: int, good: int) -> None:
        self.defect = defect
        self.good = good

    def __call__(self, scores: Tensor) -> Tensor:
        return scores[self.defect] - scores[self.good]


def _method_class(method: str) -> Any:
    if method not in _CLASSES:
        raise ValueError(
            f"method={method!r} is unknown: expected one of {list(METHODS)}, or 'cam' or None for "
            "the classifier's own heatmap."
        )
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ImportError(
            f"method={method!r} needs the package grad-cam, which could not be imported ({error}): "
            "pip install 'defectcam[cam]'."
        ) from error
    return getattr(pytorch_grad_cam, _CLASSES[method])


@contextlib.contextmanager
def _gradients_kept(network: nn.Module) -> Iterator[None]:
    """Give the parameters back the gradients that they had: the library writes its own there."""
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _without_bars() -> contextlib.redirect_stderr[io.StringIO]:
    """Hide the progress bar that Score-CAM draws for each image; errors come as exceptions."""
    return contextlib.redirect_stderr(io.StringIO())
