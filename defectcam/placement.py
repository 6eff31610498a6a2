"""Knows where the pixels of a cropped or warped image lie in the image that it was made of.

This module owns the affine arithmetic between an image and what a preprocessing step cut out of it,
and the way of a map back through several such steps. It makes no crop itself (`steps` does), and
what the network's input does to an image is `geometry`'s matter.

Points are ``(x, y)``; pixels are squares, as in `geometry`: pixel `i` of an axis covers
``[i, i + 1]`` and its value stands at ``i + 1/2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.geometry import Geometry

__all__ = ["PlacedGeometry", "Placement"]

Matrix: TypeAlias = "tuple[tuple[float, float, float], tuple[float, float, float]]"


@dataclass(frozen=True)
class Placement:
    """Where a view, an image cut or warped out of another one, lies in that outer image.

    Parameters
    ----------
    outer_size, view_size : (int, int)
        Height and width of the outer image and of the view.
    matrix : 2 x 3 numbers
        Takes points of the view, ``(x, y, 1)``, to points of the outer image.

    Raises
    ------
    ValueError
        If the matrix has another shape, is not finite or cannot be inverted.

    Examples
    --------
    >>> placement = Placement.crop((100, 200), (30, 10, 50, 40))
    >>> placement.view_size
    (30, 20)
    >>> placement.to_outer([[0, 0], [20, 30]]).tolist()
    [[30.0, 10.0], [50.0, 40.0]]
    """

    outer_size: tuple[int, int]
    view_size: tuple[int, int]
    matrix: Matrix

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        is_affine = matrix.shape == (2, 3) and np.isfinite(matrix).all()
        if not is_affine or abs(np.linalg.det(matrix[:, :2])) < np.finfo(np.float32).eps:
            raise ValueError(
                f"matrix must be an invertible affine map of 2 x 3 finite numbers, got {matrix}."
            )
        first, second = (tuple(row) for row in matrix.tolist())
        object.__setattr__(self, "matrix", (first, second))  # the way round `frozen`, once

    @classmethod
    def crop(cls, outer_size: tuple[int, int], box: tuple[int, int, int, int]) -> Placement:
        """Say where a crop lies.

        Parameters
        ----------
        outer_size : (int, int)
            Height and width.
        box : (int, int, int, int)
            Left, top, right and bottom, half-open, within the outer image.

        Raises
        ------
        ValueError
            If the box is empty or leaves the image.
        """
        left, top, right, bottom = box
        height, width = outer_size
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"box {box} is empty or leaves the image of size {outer_size}.")
        return cls(outer_size, (bottom - top, right - left), ((1.0, 0, left), (0, 1.0, top)))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The crop's left, top, right and bottom; None if this is no plain crop."""
        (a, b, left), (c, d, top) = self.matrix
        if (a, b, c, d) != (1, 0, 0, 1) or not (left.is_integer() and top.is_integer()):
            return None
        height, width = self.view_size
        right, bottom = int(left) + width, int(top) + height
        inside = left >= 0 and top >= 0 and right <= self.outer_size[1]
        if not inside or bottom > self.outer_size[0]:
            return None
        return int(left), int(top), right, bottom

    def to_outer(self, points: ArrayLike) -> NDArray[np.float64]:
        """Take points of the view to the outer image.

        Parameters
        ----------
        points : array of shape (n, 2)
            Each ``(x, y)``, in pixels of the view.

        Returns
        -------
        ndarray of float64, shape (n, 2)
        """
        matrix = np.asarray(self.matrix)
        return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]

    def restore(self, heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
        """Lay a map of the view into the outer image.

        Parameters
        ----------
        heatmap : float32 array of shape ``view_size``

        Returns
        -------
        ndarray of float32, shape ``outer_size``
            The same values for a crop, bilinear in between for any other view; 0 where the view
            does not reach.

        Raises
        ------
        ValueError
            If the map has another shape.
        """
        if heatmap.shape != self.view_size:
            raise ValueError(f"A map of shape {self.view_size} expected, got {heatmap.shape}.")
        if self.box is not None:
            left, top, right, bottom = self.box
            restored = np.zeros(self.outer_size, dtype=np.float32)
            restored[top:bottom, left:right] = heatmap
            return restored
        matrix = shifted_to_centres(np.asarray(self.matrix))
        size = (self.outer_size[1], self.outer_size[0])
        warped = cv2.warpAffine(heatmap, matrix, size, flags=cv2.INTER_LINEAR)
        return np.asarray(warped, dtype=np.float32)


@dataclass(frozen=True)
class PlacedGeometry:
    """A `Geometry` of a view, followed by the view's place in the original image.

    Parameters
    ----------
    geometry : Geometry
        Where the view lies in the network's input.
    placements : sequence of Placement
        From the original image inwards: each one's view is the next one's outer image, and the
        last one's view is the image that `geometry` is about.

    Raises
    ------
    ValueError
        If their sizes do not follow one another.

    Examples
    --------
    >>> view = Geometry.stretch((30, 20), (64, 64))
    >>> placed = PlacedGeometry(view, (Placement.crop((100, 200), (30, 10, 50, 40)),))
    >>> heatmap = placed.restore(np.ones((8, 8)))
    >>> heatmap.shape, float(heatmap.sum())
    ((100, 200), 600.0)
    """

    geometry: Geometry
    placements: tuple[Placement, ...]

    def __post_init__(self) -> None:
        sizes = [*(one.outer_size for one in self.placements), self.geometry.original_size]
        for placement, size in zip(self.placements, sizes[1:], strict=True):
            if placement.view_size != size:
                raise ValueError(
                    f"placements do not follow one another: a view has size {placement.view_size}, "
                    f"but what is made of it was made of an image of size {size}."
                )

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the original image, in its own pixels."""
        return self.placements[0].outer_size if self.placements else self.geometry.original_size

    def cell_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Width and height, in pixels of the original image, of a cell of a map.

        What steps scale or turn counts by the area that they make of a pixel.

        Parameters
        ----------
        shape : (int, int)
            As for `Geometry.cell_size`.
        """
        linear = [np.asarray(placement.matrix)[:, :2] for placement in self.placements]
        factor = math.prod(math.sqrt(abs(np.linalg.det(matrix))) for matrix in linear)
        width, height = self.geometry.cell_size(shape)
        return width * factor, height * factor

    def restore(self, heatmap: ArrayLike) -> NDArray[np.float32]:
        """Take a map of the network's input back to the original image.

        Parameters
        ----------
        heatmap : array of float, shape (h, w)
            As for `Geometry.restore`.

        Returns
        -------
        ndarray of float32, shape (H, W)
            At the original size; 0 where a step left the image out.
        """
        restored = self.geometry.restore(heatmap)
        for placement in reversed(self.placements):
            restored = placement.restore(restored)
        return restored


def shifted_to_centres(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a map of points into the same map as OpenCV counts, where pixel `i` stands at `i`."""
    linear, shift = matrix[:, :2], matrix[:, 2]
    return np.column_stack([linear, shift + linear @ (0.5, 0.5) - 0.5])


def shifted_from_centres(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Undo `shifted_to_centres`."""
    linear, shift = matrix[:, :2], matrix[:, 2]
    return np.column_stack([linear, shift - linear @ (0.5, 0.5) + 0.5])
