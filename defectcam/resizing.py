"""The antialiased bilinear resize as products of matrices.

Owns the arithmetic of the resize, on the processor and in exported graphs, for images of any size,
in any place of the network's input. Engines read ONNX's antialiased `Resize` in different ways, or
slowly; a product of matrices means the same everywhere, and with sparse ones it is quicker than
PyTorch's own resize. What else is done to pixels is the matter of
`preprocess` and `graph`, where images come to lie in the input `geometry`'s.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

__all__ = ["resize", "resize_padded", "resize_stretched"]

#: Places of the input that are computed together, from the few pixels that they look at. A matrix
#: for all places and pixels at once would consist of zeros, but for a narrow band.
BLOCK = 8


#: A number that a traced graph may leave open.
_Size: TypeAlias = "int | torch.SymInt"


class _AxisWeights(NamedTuple):
    """How places along one axis of the input are made of an image's pixels.

    Attributes
    ----------
    pixels : Tensor of int64, shape (n_blocks, span)
        Which pixels the places of a block look at.
    weights : Tensor of float32, shape (n_blocks, BLOCK, span)
        Of these pixels, for each place.
    """

    pixels: Tensor
    weights: Tensor

    def apply(self, lines: Tensor, size: int) -> Tensor:
        """Resize axis 1 of lines of shape ``(n, n_pixels, m)`` to `size`."""
        n, _, length = lines.shape
        n_blocks, span = self.pixels.shape
        seen = lines.index_select(1, self.pixels.flatten()).float()
        places = torch.matmul(self.weights, seen.reshape(n, n_blocks, span, length))
        return places.reshape(n, n_blocks * BLOCK, length)[:, :size]


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize an image on the processor.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
    size : (int, int)
        Height and width wanted, in pixels.

    Returns
    -------
    ndarray of float32, shape (h, w, 3)
        As `resize_stretched`, in [0, 255].
    """
    height, width = size
    n_rows, n_columns, _ = image.shape
    if n_rows < height and width < n_columns:
        # What shrinks comes first: a strip enlarged at its full length would be gigabytes.
        columns_first = _resize_rows(_resize_rows(image.transpose(1, 0, 2), width), height)
        return cast("NDArray[np.float32]", cv2.transpose(columns_first))
    return _resize_rows(_resize_rows(image, height), width)


def resize_stretched(pixels: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Resize images to fill the input.

    Parameters
    ----------
    pixels : Tensor of uint8, shape (n, H, W, 3)
    input_size : (int, int)
        Height and width of the network's input.

    Returns
    -------
    Tensor of float32, shape (n, 3, h, w)
        As `torch.nn.functional.interpolate` with ``mode="bilinear", antialias=True`` and
        ``align_corners=False``, in [0, 255].
    """
    rows, columns = (
        _weights(n_pixels, size, 0, size, _span(n_pixels, size))
        for n_pixels, size in zip(pixels.shape[1:3], input_size, strict=True)
    )
    return _resize(pixels, rows, columns, input_size)


def resize_padded(pixels: Tensor, content: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Resize images into a part of the input that depends on their size.

    Parameters
    ----------
    pixels : Tensor of uint8, shape (n, H, W, 3)
    content : Tensor of int64, shape (4,)
        Top, left, height and width of the image within the input; see `Geometry.pad`.
    input_size : (int, int)
        Height and width of the network's input.

    Returns
    -------
    resized : Tensor of float32, shape (n, 3, h, w)
        In [0, 255] within the content, without meaning around it.
    """
    top, left, height, width = content.unbind()
    sides = (pixels.shape[1], pixels.shape[2])
    span = torch.sym_max(*(_padded_span(*pair) for pair in zip(sides, input_size, strict=True)))
    rows = _weights(sides[0], input_size[0], top, height, torch.sym_min(span, sides[0]))
    columns = _weights(sides[1], input_size[1], left, width, torch.sym_min(span, sides[1]))
    return _resize(pixels, rows, columns, input_size)


def _resize_rows(image: NDArray[Any], n_places: int) -> NDArray[np.float32]:
    """Resize axis 0, and let it be axis 1: shape ``(W, n_places, 3)``."""
    n_rows, n_columns, n_channels = image.shape
    lines = image.reshape(n_rows, -1).astype(np.float32, copy=False)
    lines = _sparse_weights(n_rows, n_places) @ lines
    transposed = cv2.transpose(lines.reshape(n_places, n_columns, n_channels))
    return cast("NDArray[np.float32]", transposed)


@lru_cache(maxsize=64)
def _sparse_weights(n_pixels: int, size: int) -> csr_array:
    """Weights of `_weights` that are not zero, shape ``(size, n_pixels)``."""
    pixels, weights = _weights(n_pixels, size, 0, size, _span(n_pixels, size))
    seen = pixels.repeat_interleave(BLOCK, 0)[:size].numpy()
    starts = np.arange(0, seen.size + 1, seen.shape[1])
    matrix = csr_array(
        (weights.flatten(0, 1)[:size].numpy().ravel(), seen.ravel(), starts), (size, n_pixels)
    )
    matrix.eliminate_zeros()
    return matrix


def _resize(
    pixels: Tensor, rows: _AxisWeights, columns: _AxisWeights, input_size: tuple[int, int]
) -> Tensor:
    n, n_rows, n_columns, n_channels = pixels.shape
    height, width = input_size
    lines = rows.apply(pixels.reshape(n, n_rows, n_columns * n_channels), height)
    lines = lines.transpose(1, 2).reshape(n, n_columns, n_channels * height)
    lines = columns.apply(lines, width).transpose(1, 2)
    return lines.reshape(n, n_channels, height, width)


def _weights(
    n_pixels: _Size, size: int, start: int | Tensor, length: int | Tensor, span: _Size
) -> _AxisWeights:
    """Weights of a bilinear, antialiased resize of `n_pixels` to `length` places from `start` on.

    A pixel weighs less the further its centre is from the place's, down to nothing at the distance
    of one pixel or, where the image shrinks, one place. Distances are whole numbers, in units in
    which a pixel is as wide as twice the places, until the last step: an engine that computes in
    bfloat16 would otherwise look in the wrong place.
    """
    n, places = torch.full((), n_pixels), torch.arange(-(-size // BLOCK) * BLOCK)
    length = torch.as_tensor(length)
    centres = (2 * (places - start) + 1) * n
    reach = 2 * torch.maximum(n, length)
    first = (centres[::BLOCK] - reach + length) // (2 * length)
    first = torch.minimum(first.clamp(min=0), n - span)
    pixels = first[:, None] + torch.arange(span)
    distances = ((2 * pixels + 1) * length)[:, None] - centres.reshape(-1, BLOCK, 1)
    weights = (1 - distances.abs().float() / reach).clamp(min=0)
    return _AxisWeights(pixels, weights / weights.sum(-1, keepdim=True).clamp(min=1e-6))


def _span(n_pixels: _Size, size: int) -> _Size:
    """Pixels that a block of places looks at, at most, where `n_pixels` become `size` places."""
    between = (BLOCK - 1) * n_pixels + 2 * torch.sym_max(n_pixels, size)
    # Not -(-between // size): ONNX rounds quotients towards zero.
    return torch.sym_min((between + size - 1) // size, n_pixels)


def _padded_span(n_pixels: _Size, size: int) -> _Size:
    """Pixels that a block looks at, at most, on both axes, if this one is what limits the scale.

    Rounding the content's sides, and the image's where it was decoded at a reduced size, makes a
    step between places longer than this axis says, by up to 1.7 times. Where that is not enough the
    image has less than nine pixels along an axis, and all are looked at.
    """
    return 17 * (BLOCK + 1) * n_pixels // (10 * size) + 10
