"""Makes images fit the network: resizes and normalises, the same at fit, predict and export.

This module owns the one function from RGB pixels to the network's input. It never reads files
(`images` does) and knows nothing of the network; where the image comes to lie in the input is said
by `geometry`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from defectcam.geometry import Geometry
from defectcam.resizing import resize

__all__ = ["Preprocess", "seen_again"]

_WAYS = ("stretch", "pad")


class Preprocess(nn.Module):
    """Resize RGB pixels and normalise their channels.

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width of the network's input, in pixels; one number for a square.
    mean, std : sequence of 3 floats
        Of the red, green and blue channel, where pixels are scaled to [0, 1].
    resize : {"stretch", "pad"}, default="stretch"
        Scale both axes to fill the input, or keep the aspect ratio and pad around the image.

    Attributes
    ----------
    image_size : (int, int)
        Height and width of the network's input.

    Notes
    -----
    Resizing is bilinear and antialiased, in float32: a shrunk image is averaged over all its
    pixels, so a thin scratch fades but does not vanish between two samples. Padding has the mean
    colour, which is 0 after normalising. ``mean`` and ``std`` are no part of the state dict.

    Examples
    --------
    >>> preprocess = Preprocess(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="pad")
    >>> preprocess.batch([np.zeros((40, 80, 3), dtype=np.uint8)]).shape
    torch.Size([1, 3, 32, 32])
    >>> preprocess.geometry((40, 80)).content
    (8, 0, 16, 32)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int | tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        resize: str = "stretch",
    ) -> None:
        super().__init__()
        if resize not in _WAYS:
            raise ValueError(f"resize must be one of {_WAYS}, got {resize!r}.")
        height, width = np.broadcast_to(np.asarray(image_size), 2)
        self.image_size = (int(height), int(width))
        self.resize = resize
        self.register_buffer("mean", _per_channel("mean", mean), persistent=False)
        self.register_buffer("std", _per_channel("std", std), persistent=False)
        self.geometry((1, 1))  # refuses impossible sizes

    def geometry(self, original_size: tuple[int, int]) -> Geometry:
        """Say where an image of this height and width comes to lie in the input."""
        make = Geometry.stretch if self.resize == "stretch" else Geometry.pad
        return make(original_size, self.image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocess images of one size.

        Parameters
        ----------
        pixels : Tensor of uint8, shape (n, 3, H, W)
            RGB, in any memory format.

        Returns
        -------
        Tensor of float32, shape (n, 3, h, w)
            As `batch` makes it.
        """
        return self.batch([*pixels.permute(0, 2, 3, 1).cpu().numpy()])

    def batch(
        self,
        images: Sequence[np.ndarray],
        original_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Preprocess images of different sizes; bit for bit what each gives alone.

        Parameters
        ----------
        images : sequence of uint8 arrays, shape (H, W, 3)
            RGB, as `defectcam.images.read_image` returns them.
        original_sizes : sequence of (int, int), optional
            Height and width of each image before it was decoded at a reduced size, which decides
            where it is put, to the pixel. By default the sizes of `images`.

        Returns
        -------
        Tensor of float32, shape (n, 3, h, w)
            The network's input, in ``channels_last`` memory format, on this module's device.

        Raises
        ------
        ValueError
            If an image has another dtype or shape.
        """
        sizes = [None] * len(images) if original_sizes is None else original_sizes
        prepared = [self.prepare(*pair) for pair in zip(images, sizes, strict=True)]
        if not prepared:
            return torch.empty((0, 3, *self.image_size), device=self.mean.device)
        return torch.stack(prepared).permute(0, 3, 1, 2)

    def prepare(self, image: np.ndarray, original_size: tuple[int, int] | None = None) -> Tensor:
        """Preprocess one image, as a part of a batch; may run in several threads at once.

        Parameters
        ----------
        image : uint8 array, shape (H, W, 3)
        original_size : (int, int), optional
            As for `batch`.

        Returns
        -------
        Tensor of float32, shape (h, w, 3)
            On this module's device. Stacked and permuted they are what `batch` returns.
        """
        _check_image(image)
        size = (image.shape[0], image.shape[1]) if original_size is None else original_size
        top, left, height, width = self.geometry(size).content
        device = self.mean.device
        if device.type == "cuda":
            pixels = _interpolate(image, (height, width), device)
            content = (pixels / 255 - self.mean.flatten()) / self.std.flatten()
        else:  # not every torch can resize on Apple's GPUs
            content = torch.from_numpy(self._normalised(image, (height, width))).to(device)
        if (height, width) == self.image_size:
            return content
        bottom, right = self.image_size[0] - top - height, self.image_size[1] - left - width
        return F.pad(content, (0, 0, left, right, top, bottom))  # with the mean colour

    def extra_repr(self) -> str:
        """Return the parameters, for `repr`."""
        mean, std = (tuple(v.flatten().tolist()) for v in (self.mean, self.std))
        return f"image_size={self.image_size}, {mean=}, {std=}, resize={self.resize!r}"

    def _normalised(self, image: np.ndarray, size: tuple[int, int]) -> NDArray[np.float32]:
        """Resize and normalise by NumPy and SciPy, which start no threads of their own."""
        height, width = size
        # Whole lines of pixels are quicker than three channels at a time.
        lines = resize(image, size).reshape(height, -1)
        lines /= 255
        lines -= np.tile(self.mean.flatten().cpu().numpy(), width)
        lines /= np.tile(self.std.flatten().cpu().numpy(), width)
        return lines.reshape(height, width, 3)


def seen_again(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Make the input of a second look of that of the first: mirrored and enlarged.

    Parameters
    ----------
    pixels : Tensor of shape (n, 3, height, width)
        Preprocessed.
    size : (int, int)
        Height and width of the second look.
    """
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False).flip(3)


def _interpolate(image: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """Resize on a GPU, which is quicker there than on the processor."""
    # A copy: torch takes no read-only arrays and no negative strides (a flipped view).
    pixels = torch.from_numpy(image.copy()).to(device)
    planes = pixels.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0)


def _per_channel(name: str, values: Sequence[float]) -> Tensor:
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float32)
    if tensor.shape != (3,):
        raise ValueError(f"{name} must have 3 values (red, green, blue), got {len(tensor)}.")
    return tensor.reshape(1, 3, 1, 1)


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"An RGB image, uint8 of shape (H, W, 3), expected, got {image.dtype} of shape "
            f"{image.shape}: use defectcam.images.read_image."
        )
