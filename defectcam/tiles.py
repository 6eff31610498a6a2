"""Where tiles lie in a large image, and how their maps are blended into one.

Pure arithmetic of NumPy: this module reads no image and runs no network. All sizes are ``(height,
width)``; tiles are half-open ``xyxy`` boxes in the pixels of the image.

A tile's map has few cells, each several pixels wide. Tiles start at whole cells of one lattice, so
that the cells of overlapping tiles lie on each other and blending interpolates nothing. The lattice
covers the image, whose right and bottom edge it passes by less than a cell, or by more where the
image is smaller than a tile: what lies there is for the reader to fill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectcam.geometry import Geometry

__all__ = ["TileGrid", "as_overlap", "as_tile", "choose_tile"]

#: How many times a tile may be larger than the network's input where ``tile="auto"``.
AUTO_SCALES = (1, 2, 4, 8)

#: Most tiles of one image where ``tile="auto"``, as long as a larger scale has fewer.
AUTO_TILES = 1500


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image.

    Parameters
    ----------
    image_size : (int, int)
        Height and width in pixels.
    tile : (int, int)
        Height and width of a tile in pixels.
    overlap : (int, int)
        Pixels that neighbouring tiles share at least, rounded to whole cells.
    cells : (int, int)
        Height and width of a tile's map.

    Raises
    ------
    ValueError
        If a size is below 1 or the overlap leaves no step between tiles.

    Examples
    --------
    >>> grid = TileGrid((100, 200), tile=(80, 80), overlap=(20, 20), cells=(8, 8))
    >>> grid.n_rows, grid.n_columns, grid.shape
    (2, 3, (10, 20))
    >>> grid.box(1, 2)
    (120, 20, 200, 100)
    """

    image_size: tuple[int, int]
    tile: tuple[int, int]
    overlap: tuple[int, int]
    cells: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("image_size", "tile", "cells"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1 each way, got {getattr(self, name)}.")
        if min(self.overlap) < 0 or any(
            overlap >= tile for overlap, tile in zip(self.overlap, self.tile, strict=True)
        ):
            raise ValueError(
                f"overlap must be at least 0 and less than the tile {self.tile}, got "
                f"{self.overlap}."
            )

    @cached_property
    def _axes(self) -> tuple[_Axis, _Axis]:
        both = (
            _Axis.make(*sizes)
            for sizes in zip(self.image_size, self.tile, self.overlap, self.cells, strict=True)
        )
        rows, columns = both
        return rows, columns

    @property
    def n_rows(self) -> int:
        """Tiles from top to bottom."""
        return len(self._axes[0].starts)

    @property
    def n_columns(self) -> int:
        """Tiles from left to right."""
        return len(self._axes[1].starts)

    @property
    def n_tiles(self) -> int:
        """Tiles of the image."""
        return self.n_rows * self.n_columns

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the map of all tiles, in cells."""
        return self._axes[0].n_cells, self._axes[1].n_cells

    @property
    def geometry(self) -> Geometry:
        """Where the image lies in the map, for `Geometry.restore`."""
        (height, width), (rows, columns) = self.image_size, self.shape
        # In units of a pixel divided by the cells of a tile, in which all lengths are whole.
        return Geometry(
            self.image_size,
            (rows * self.tile[0], columns * self.tile[1]),
            (0, 0, height * self.cells[0], width * self.cells[1]),
        )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Go through the tiles' rows and columns, row by row."""
        return ((i, j) for i in range(self.n_rows) for j in range(self.n_columns))

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a tile; it may end beyond the image."""
        top = self._axes[0].first_pixel(row)
        left = self._axes[1].first_pixel(column)
        return left, top, left + self.tile[1], top + self.tile[0]

    def place(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns of a tile's cells in the map of all tiles."""
        top, left = self._axes[0].starts[row], self._axes[1].starts[column]
        return slice(top, top + self.cells[0]), slice(left, left + self.cells[1])

    def weights(self, row: int, column: int) -> NDArray[np.float32]:
        """How much a tile counts in each of its cells; over all tiles of a cell this sums to 1.

        Where two tiles overlap, the outer quarter of each does not count, because a network sees
        only a part of what surrounds it, and in the half between them one fades into the other.
        """
        down, across = self._axes[0].weights[row], self._axes[1].weights[column]
        return (down[:, np.newaxis] * across).astype(np.float32)

    def add(self, total: NDArray[np.float32], row: int, column: int, values: Any) -> None:
        """Add a tile's map, of shape ``(..., *cells)``, to the map of all tiles, in place."""
        rows, columns = self.place(row, column)
        total[..., rows, columns] += self.weights(row, column) * np.asarray(values)

    def raise_to(self, highest: NDArray[np.float64], row: int, column: int, value: float) -> None:
        """Raise the cells in which a tile counts to at least a value, in place."""
        part = highest[self.place(row, column)]
        np.maximum(part, value, out=part, where=self.weights(row, column) > 0)


@dataclass(frozen=True)
class _Axis:
    """Tiles along one axis, in cells of ``tile / cells`` pixels."""

    tile: int
    cells: int
    n_cells: int
    starts: tuple[int, ...]

    @classmethod
    def make(cls, length: int, tile: int, overlap: int, cells: int) -> _Axis:
        n_cells = max(cells, -(-length * cells // tile))
        step = max(1, cells - round(overlap * cells / tile))
        last = n_cells - cells
        return cls(tile, cells, n_cells, (*range(0, last, step), last))

    def first_pixel(self, index: int) -> int:
        return self.starts[index] * self.tile // self.cells

    @cached_property
    def weights(self) -> list[NDArray[np.float64]]:
        """Weights of each tile's cells."""
        profiles = []
        centres = np.arange(self.cells, dtype=np.float64) + 0.5
        for index, start in enumerate(self.starts):
            profile = np.ones(self.cells)
            if index > 0:
                profile = _faded_in(centres, self.starts[index - 1] + self.cells - start)
            if index + 1 < len(self.starts):
                shared = start + self.cells - self.starts[index + 1]
                profile = np.minimum(profile, _faded_in(self.cells - centres, shared))
            profiles.append(profile)
        total = np.zeros(self.n_cells)
        for start, profile in zip(self.starts, profiles, strict=True):
            total[start : start + self.cells] += profile
        return [
            profile / total[start : start + self.cells]
            for start, profile in zip(self.starts, profiles, strict=True)
        ]


def _faded_in(distance: NDArray[Any], shared: int) -> NDArray[Any]:
    """Weight at these distances from the edge behind which a neighbour begins to count."""
    if shared <= 0:
        return np.ones_like(distance)
    return ((distance - shared / 4) / (shared / 2)).clip(0, 1)


def as_tile(tile: Any) -> tuple[int, int]:
    """Return a tile's height and width, of one number or two.

    Raises
    ------
    ValueError
        If it is neither.
    """
    sizes = (tile, tile) if isinstance(tile, Integral) else tuple(np.ravel(tile).tolist())
    if len(sizes) != 2 or not all(isinstance(n, Integral) and int(n) >= 1 for n in sizes):
        raise ValueError(
            f"tile={tile!r}: expected a number of pixels, a height and a width, 'auto', or None."
        )
    return int(sizes[0]), int(sizes[1])


def as_overlap(overlap: Any, tile: tuple[int, int]) -> tuple[int, int]:
    """Return the overlap in pixels each way: a float is a share of the tile, an integer is pixels.

    Raises
    ------
    ValueError
        If it is negative or leaves no step between tiles.
    """
    pixels = (-1, -1)
    if isinstance(overlap, Integral):
        pixels = int(overlap), int(overlap)
    elif 0 <= overlap < 1:  # infinity and NaN are no pixels
        pixels = round(overlap * tile[0]), round(overlap * tile[1])
    if not all(0 <= n < side for n, side in zip(pixels, tile, strict=True)):
        raise ValueError(
            f"overlap={overlap!r}: expected a share of the tile, a float from 0 to less than 1, or "
            f"an integer of pixels less than the tile's {tile[0]} x {tile[1]}."
        )
    return pixels


def choose_tile(
    image_size: tuple[int, int], input_size: tuple[int, int], overlap: Any
) -> tuple[int, int]:
    """Choose a tile by the size of the image: the smallest that leaves a bearable number of tiles.

    Defects of a few pixels are best seen at full resolution, so a tile is as large as the network's
    input, or 2, 4 or 8 times as large where there would be more than `AUTO_TILES` of them.

    Parameters
    ----------
    image_size, input_size : (int, int)
        Height and width, of the image and of the network's input.
    overlap : float or int
        As `as_overlap` takes it.

    Returns
    -------
    (int, int)
    """
    for scale in AUTO_SCALES:
        tile = (scale * input_size[0], scale * input_size[1])
        if TileGrid(image_size, tile, as_overlap(overlap, tile), input_size).n_tiles <= AUTO_TILES:
            break
    return tile
