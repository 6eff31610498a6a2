"""Knows where an image lies in the network's input and takes maps back to the image's own pixels.

This module owns the arithmetic of the two ways to make any image fit a network (stretch it, or pad
it) and the inverse of both. It never touches an image's pixels (`preprocess` does) and never
rescales a map's values: what goes in as a constant comes out as that constant.

Pixels are squares, as in `torch.nn.functional.interpolate` with ``align_corners=False``: pixel `i`
of an axis of `n` covers ``[i, i + 1]`` of the length `n`, and its value stands at ``i + 1/2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Geometry"]

# Weights are whole multiples of this, so that products with float32 values are exact in float64.
_WEIGHT_STEPS = 2**24
_ROWS_AT_A_TIME = 64  # keeps the float64 intermediates in the processor's cache
_VALUES_AT_A_TIME = 2**15  # the same, for rows of few values
_PIXELS_AT_A_TIME = 2**20  # along one axis: what is known of each takes ten times its value's bytes


@dataclass(frozen=True)
class Geometry:
    """Where the original image lies in the network's input.

    Made by `Geometry.stretch` or `Geometry.pad`; all sizes are ``(height, width)``.

    Attributes
    ----------
    original_size : (int, int)
        Size of the original image, in its own pixels.
    input_size : (int, int)
        Size of the network's input, in input pixels.
    content : (int, int, int, int)
        Top, left, height and width of the image within the input, in input pixels. What is around
        it is padding.

    Examples
    --------
    >>> geometry = Geometry.pad((100, 400), (320, 320))
    >>> geometry.content
    (120, 0, 80, 320)
    >>> geometry.restore(np.ones((10, 10))).shape
    (100, 400)
    """

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    content: tuple[int, int, int, int]

    @classmethod
    def stretch(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """Fill the whole input; the two axes are scaled independently.

        Parameters
        ----------
        original_size, input_size : (int, int)
            Height and width, at least 1.

        Raises
        ------
        ValueError
            If a side is smaller than 1.
        """
        original, fitted = (
            _checked("original_size", original_size),
            _checked("input_size", input_size),
        )
        return cls(original, fitted, (0, 0, *fitted))

    @classmethod
    def pad(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """Keep the aspect ratio: scale to the largest size that fits, centred, and pad the rest.

        Parameters
        ----------
        original_size, input_size : (int, int)
            Height and width, at least 1.

        Raises
        ------
        ValueError
            If a side is smaller than 1.
        """
        original, fitted = (
            _checked("original_size", original_size),
            _checked("input_size", input_size),
        )
        scale = min(fitted[0] / original[0], fitted[1] / original[1])
        # A strip a thousand times longer than wide still gets one pixel of width.
        height, width = (
            min(max(1, round(side * scale)), room)
            for side, room in zip(original, fitted, strict=True)
        )
        top, left = (fitted[0] - height) // 2, (fitted[1] - width) // 2
        return cls(original, fitted, (top, left, height, width))

    def cell_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Width and height, in pixels of the original image, of a cell of a map.

        Parameters
        ----------
        shape : (int, int)
            Height and width of the map, which covers the whole input evenly.
        """
        _, _, height, width = self.content
        return (
            self.input_size[1] / shape[1] * self.original_size[1] / width,
            self.input_size[0] / shape[0] * self.original_size[0] / height,
        )

    def restore(
        self, heatmap: ArrayLike, window: tuple[int, int, int, int] | None = None
    ) -> NDArray[np.float32]:
        """Take a map of the network's input back to the original image.

        Parameters
        ----------
        heatmap : array of float, shape (h, w)
            On any grid that covers the whole input evenly: the network's, or the input's own.
        window : (int, int, int, int), optional
            Left, top, right and bottom, in original pixels, of the part that is wanted; what it
            then costs does not depend on the size of the image. None: all of it.

        Returns
        -------
        ndarray of float32, shape (H, W), or that of the window
            At the original size: each pixel's centre is looked up in `heatmap`, bilinearly (beyond
            the outermost centres the edge values continue). Padding is left out. Values stay
            within the range of `heatmap`, and the flipped map gives the flipped result, exactly.

        Raises
        ------
        ValueError
            If `heatmap` is not two-dimensional or is empty.

        Notes
        -----
        For a stretched image this is ``interpolate(mode="bilinear", align_corners=False)``. Both
        axes are interpolated in float64 with weights of 24 bits, in which neither order nor fused
        operations change a bit; `cv2.resize` is faster, but not symmetric under flips.
        """
        grid = np.asarray(heatmap, dtype=np.float32)
        if grid.ndim != 2 or grid.size == 0:
            raise ValueError(f"A map of shape (h, w) expected, got shape {grid.shape}.")
        left, top, right, bottom = window or (0, 0, *self.original_size[::-1])
        result = np.empty((bottom - top, right - left), dtype=np.float32)
        for rows in _parts(top, bottom):
            for columns in _parts(left, right):
                place = (_shifted(rows, -top), _shifted(columns, -left))
                self._restore_part(grid, rows, columns, result[place])
        return result

    def _restore_part(
        self, grid: NDArray[np.float32], rows: slice, columns: slice, out: NDArray[np.float32]
    ) -> None:
        top, left, height, width = self.content
        (n_rows, n_columns), (in_rows, in_columns) = self.original_size, self.input_size
        down = _samples(rows, n_rows, grid.shape[0], top, height, in_rows)
        across = _samples(columns, n_columns, grid.shape[1], left, width, in_columns)
        # Rounded to float32 in between, so that the second products are as exact as the first.
        if n_rows < grid.shape[0] and grid.shape[1] < n_columns:
            # Few rows are left: widening all of the grid's would take many times the result.
            narrow = np.empty((out.shape[0], grid.shape[1]), dtype=np.float32)
            _interpolate_rows(grid, *down, out=narrow)
            _interpolate_rows(narrow.T, *across, out=out.T)
            return
        first, last = down[0].min(), down[1].max()
        widened = np.empty((out.shape[1], last + 1 - first), dtype=np.float32)
        _interpolate_rows(grid[first : last + 1].T, *across, out=widened)
        _interpolate_rows(widened.T, down[0] - first, down[1] - first, down[2], out=out)


def _parts(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, _PIXELS_AT_A_TIME):
        yield slice(first, min(first + _PIXELS_AT_A_TIME, stop))


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _checked(name: str, size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be a height and a width of at least 1, got {size}.")
    return int(height), int(width)


def _samples(
    pixels: slice, n_pixels: int, n_cells: int, start: int, length: int, input_length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Find, for some original pixels of one axis, two grid cells each and the weight of the second.

    Pixel `i` has its centre at ``start + (i + 1/2) * length / n_pixels`` in the input, which is
    ``n_cells / input_length`` times as far on the grid, where cell `k` has its centre at
    ``k + 1/2``. In whole numbers, so that pixels at mirrored places get mirrored weights.
    """
    twice_centres = 2 * np.arange(pixels.start, pixels.stop, dtype=np.int64) + 1
    per_pixel, denominator = length * n_cells, 2 * n_pixels * input_length
    offset = 2 * start * n_pixels * n_cells - n_pixels * input_length
    # Of a long image in tiles, these would leave 64 bits when multiplied by a million pixels.
    common = math.gcd(per_pixel, offset, denominator)
    numerator = twice_centres * (per_pixel // common) + offset // common
    denominator //= common
    first, remainder = np.divmod(numerator, denominator)
    weight = np.rint(remainder / denominator * _WEIGHT_STEPS) / _WEIGHT_STEPS
    last = n_cells - 1
    return first.clip(0, last), (first + 1).clip(0, last), weight


def _interpolate_rows(
    grid: NDArray[np.float32],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    weight: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Write the rows ``grid[first] * (1 - weight) + grid[second] * weight`` to `out`."""
    wide = grid.astype(np.float64, order="C")
    step = max(_ROWS_AT_A_TIME, _VALUES_AT_A_TIME // grid.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        upper = wide[first[rows]]
        upper *= 1 - weight[rows, np.newaxis]
        lower = wide[second[rows]]
        lower *= weight[rows, np.newaxis]
        np.add(upper, lower, out=out[rows], casting="same_kind")
