"""Keeps trunk features on disk, so that fits on the same images need not compute them again.

Owns the folder below a memory's location, what tells one kind of features from another, and the
layout of a file. It runs no network and reads no image; what is not there, or is damaged, is
computed by its caller.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL
import safetensors.torch
import scipy
import timm
import torch
import torchvision
from numpy.typing import NDArray
from sklearn.utils.validation import check_memory
from torch import Tensor

import defectcam
from defectcam.exceptions import warn_caller
from defectcam.files import write_atomically
from defectcam.network import DefectCAMNetwork, TrunkFeatures
from defectcam.preprocess import Preprocess

__all__ = [
    "FeatureStore",
    "StoredImage",
    "checked_memory",
    "fingerprint_of_features",
    "folder_of_memory",
]

#: Version of a file's layout and of what the features in it mean; it grows with every change.
LAYOUT = 2

_DIGEST_SIZE = 16  # bytes, of all hashes here


class StoredImage(NamedTuple):
    """What is kept of one image.

    Attributes
    ----------
    features : TrunkFeatures
        ``deep`` of shape (n_views, channels_i, height_i, width_i), ``patches`` of the first view.
    thumbnail : ndarray of shape (height, width), uint8
    """

    features: TrunkFeatures
    thumbnail: NDArray[np.uint8]


class FeatureStore:
    """Features of one kind, one file per image.

    Files are written whole or not at all, so processes may share a store: at worst they compute the
    same image twice.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._can_write = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def read(self, image: str) -> StoredImage | None:
        """Return what is kept of an image; None if there is nothing, or it is damaged.

        Parameters
        ----------
        image : str
            Its hash, see `defectcam.images.content_hashes`.
        """
        try:
            data = self._path(image).read_bytes()
        except OSError:
            return None
        digest, content = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
        if digest != _digest(content):
            return None
        tensors = safetensors.torch.load(content)
        thumbnail = tensors.pop("thumbnail").numpy()
        patches = tensors.pop("patches", None)
        deep = [tensors[f"deep.{level}"] for level in range(len(tensors))]
        return StoredImage(TrunkFeatures(deep, patches), thumbnail)

    def write(self, image: str, kept: StoredImage) -> None:
        """Keep an image's features. Where that fails, training goes on: a warning says so once."""
        if not self._can_write:
            return
        tensors = {f"deep.{level}": tensor for level, tensor in enumerate(kept.features.deep)}
        if kept.features.patches is not None:
            tensors["patches"] = kept.features.patches
        tensors["thumbnail"] = torch.from_numpy(kept.thumbnail)
        content = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
        try:
            write_atomically(self._path(image), _digest(content) + content)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._can_write = False
        warn_caller(f"memory: no features can be kept in {self.folder} ({error}).")

    def _path(self, image: str) -> Path:
        return self.folder / f"{image}.features"


def checked_memory(memory: Any) -> Any:
    """Make a parameter ``memory`` what scikit-learn's `Pipeline` makes of it.

    Parameters
    ----------
    memory : str, PathLike, joblib.Memory or None
        A place, or what keeps; None: nothing is kept.

    Returns
    -------
    joblib.Memory
        Or whatever else has its methods, where that was given.

    Raises
    ------
    ValueError
        If it is something else, or its place can be made no folder.
    """
    if isinstance(memory, os.PathLike):
        memory = os.fspath(memory)
    try:
        return check_memory(memory)
    except OSError as error:  # joblib makes the folder
        raise ValueError(
            f"memory={memory!r} cannot be made a folder ({error.strerror}): name one in a place "
            "that exists and that you may write to, or None."
        ) from error


def folder_of_memory(memory: Any) -> Path | None:
    """Return the folder in which a memory may keep features; None if it keeps nothing.

    Parameters
    ----------
    memory : str, PathLike, joblib.Memory or None
        As the parameter of scikit-learn's `Pipeline`.

    Returns
    -------
    Path or None
        Where joblib keeps its own, so that ``memory.clear()`` removes the features too.
    """
    backend = getattr(checked_memory(memory), "store_backend", None)
    if backend is None:
        return None
    if not isinstance(backend.location, str) or getattr(memory, "backend", "local") != "local":
        raise ValueError(f"memory={memory!r}: its location is no folder of the file system.")
    return Path(backend.location) / "defectcam"


def fingerprint_of_features(
    network: DefectCAMNetwork,
    preprocess: Preprocess,
    *,
    backbone: str,
    views: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    batch_size: int,
) -> str:
    """Hash all that decides the features of an image except the image.

    Parameters
    ----------
    network : DefectCAMNetwork
        Its trunk counts, layers and weights, and which of its levels are kept; head and tail do
        not.
    preprocess : Preprocess
    backbone : str
    views : sequence of tuple of int
        Dimensions flipped, per view.
    dtype : torch.dtype
        Type the features are kept in.
    batch_size : int
        Images and views that go through the trunk together: rounding depends on it.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    n_frozen = len(network.trunk)
    settings = {
        "layout": LAYOUT,
        "versions": {
            "defectcam": defectcam.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "pillow": PIL.__version__,
            "opencv": cv2.__version__,
            "scipy": scipy.__version__,
        },
        "device": next(network.parameters()).device.type,
        "backbone": backbone,
        "trunk": str(network.trunk),
        "entry": str(network.entry) if network.tail else None,
        "deep": [level for level in network.evidence_levels if level < n_frozen],
        "patches": network.novelty_levels,
        "image_size": preprocess.image_size,
        "resize": preprocess.resize,
        "mean": preprocess.mean.flatten().tolist(),
        "std": preprocess.std.flatten().tolist(),
        "precision": str(network.dtype),
        "dtype": str(dtype),
        "views": views,
        "batch_size": batch_size,
    }
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=_DIGEST_SIZE)
    for name, tensor in network.trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().flatten()
    return values.view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
