"""Knows where an image lies in the network's input and takes maps back to the image's own pixels.

This module owns the arithmetic of the two ways to make any image fit a network (stretch it, or pad
it) and the inverse of both. It never touches an image's pixels (`preprocess` does) and never
rescales a map's values: what goes in as a constant comes out as that constant.

Pixels are squares, as in `torch.nn.functional.interpolate` with ``align_corners=False``: pixel `i`
of an axis of `n` covers ``[i, i + 1]`` of the length `n`, and its value stands at ``i + 1/2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Geometry"]

# Weights are whole multiples of this, so that products with float32 values are exact in float64.
_WEIGHT_STEPS = 2**24
_ROWS_AT_A_TIME = 64  # keeps the float64 intermediates in the processor's cache


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
        top, left, height, width = self.content
        rows = _samples(self.original_size[0], grid.shape[0], top, height, self.input_size[0])
        columns = _samples(self.original_size[1], grid.shape[1], left, width, self.input_size[1])
        if window is not None:
            x, y = slice(window[0], window[2]), slice(window[1], window[3])
            rows = (rows[0][y], rows[1][y], rows[2][y])
            columns = (columns[0][x], columns[1][x], columns[2][x])
            needed = slice(rows[0].min(), rows[1].max() + 1)
            grid = grid[needed]
            rows = (rows[0] - needed.start, rows[1] - needed.start, rows[2])
        # Rounded to float32 in between, so that the second products are as exact as the first.
        widened = _interpolate_rows(grid.T, *columns).T
        return _interpolate_rows(widened, *rows)


def _checked(name: str, size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be a height and a width of at least 1, got {size}.")
    return int(height), int(width)


def _samples(
    n_pixels: int, n_cells: int, start: int, length: int, input_length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Find, for every original pixel of one axis, its two grid cells and the weight of the second.

    Pixel `i` has its centre at ``start + (i + 1/2) * length / n_pixels`` in the input, which is
    ``n_cells / input_length`` times as far on the grid, where cell `k` has its centre at
    ``k + 1/2``. In whole numbers, so that pixels at mirrored places get mirrored weights.
    """
    twice_centres = 2 * np.arange(n_pixels, dtype=np.int64) + 1
    numerator = (twice_centres * length + 2 * start * n_pixels) * n_cells - n_pixels * input_length
    denominator = 2 * n_pixels * input_length
    first, remainder = np.divmod(numerator, denominator)
    weight = np.rint(remainder / denominator * _WEIGHT_STEPS) / _WEIGHT_STEPS
    last = n_cells - 1
    return first.clip(0, last), (first + 1).clip(0, last), weight


def _interpolate_rows(
    grid: NDArray[np.float32],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    weight: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return the rows ``grid[first] * (1 - weight) + grid[second] * weight``."""
    wide = grid.astype(np.float64, order="C")
    result = np.empty((len(weight), grid.shape[1]), dtype=np.float32)
    for start in range(0, len(weight), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        upper = wide[first[rows]]
        upper *= 1 - weight[rows, np.newaxis]
        lower = wide[second[rows]]
        lower *= weight[rows, np.newaxis]
        np.add(upper, lower, out=result[rows], casting="same_kind")
    return result
