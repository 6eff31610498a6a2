"""An image seen through preprocessing steps: decoded when it is used, never before.

This module owns `ImageView` and the ways from it back to the original image. It knows no particular
step (they are `steps`') and reads with `images`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from defectcam.geometry import Geometry
from defectcam.images import ImageReadError, read_image
from defectcam.placement import PlacedGeometry, Placement

__all__ = ["ImageView", "Step", "original_of", "placed"]


class Step(Protocol):
    """What a view is made by: a callable, best without state, that pickles."""

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement | None]:
        """Work on one image.

        Parameters
        ----------
        pixels : uint8 array of shape (H, W, 3)
            RGB; not to be changed.

        Returns
        -------
        pixels : uint8 array of shape (h, w, 3)
        placement : Placement or None
            Where they lie in the image given; None if that is where they were.

        Raises
        ------
        ValueError
            If the step cannot be done on this image, and was told to say so.
        """


class ImageView:
    """An image seen through steps; takes an image's place wherever images are taken.

    The pixels are read and the steps done anew at each use, so that a view of a file is as small as
    its path. What the steps did to the geometry is remembered.

    Parameters
    ----------
    source : path, array, PIL.Image.Image or ImageView
        The original image. Of a view, its source is taken and its steps come first.
    steps : iterable of Step
        In the order in which they are done.

    Attributes
    ----------
    source : path, array or PIL.Image.Image
        The original image.
    steps : tuple of Step
    placements : tuple of Placement
        From the original image inwards, one for each step that moved pixels.

    Examples
    --------
    >>> from defectcam.steps import CropToPart
    >>> image = np.zeros((60, 80, 3), dtype=np.uint8)
    >>> image[20:40, 30:50] = 200
    >>> view = ImageView(image, [CropToPart(margin=0)])
    >>> view.read().shape
    (20, 20, 3)
    >>> view.placements[0].box
    (30, 20, 50, 40)
    """

    def __init__(self, source: Any, steps: Iterable[Step] = ()) -> None:
        is_view = isinstance(source, ImageView)
        self.source: Any = source.source if is_view else source
        self.steps: tuple[Step, ...] = (*(source.steps if is_view else ()), *steps)
        self._placements: tuple[Placement, ...] | None = None

    def read(self) -> NDArray[np.uint8]:
        """Read the original image and do the steps.

        Returns
        -------
        ndarray of uint8, shape (h, w, 3)
            RGB, C-contiguous.

        Raises
        ------
        ImageReadError
            If the original cannot be read, or a step cannot be done on it.
        """
        pixels = read_image(self.source)
        placements = []
        for step in self.steps:
            try:
                pixels, placement = step(pixels)
            except ValueError as error:
                raise ImageReadError(f"{self._name}: {error}") from error
            if placement is not None:
                placements.append(placement)
        self._placements = tuple(placements)
        return np.ascontiguousarray(pixels)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """From the original image inwards, one for each step that moved pixels."""
        if self._placements is None:
            self.read()
        assert self._placements is not None
        return self._placements

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.read(), dtype=dtype)  # the source's own array must not get out

    def __repr__(self) -> str:
        return f"ImageView({self._name}, steps={list(self.steps)!r})"

    @property
    def _name(self) -> str:
        if isinstance(self.source, (str, os.PathLike)):
            return repr(str(os.fspath(self.source)))
        return "an image in memory"


def original_of(source: Any) -> Any:
    """Return the image that a view shows; anything but a view is itself the original."""
    return source.source if isinstance(source, ImageView) else source


def placed(geometry: Geometry, source: Any) -> Geometry | PlacedGeometry:
    """Join where an image lies in the network's input with where it lies in its original.

    Parameters
    ----------
    geometry : Geometry
        Of the pixels that were read from `source`.
    source : ImageView or any other image source

    Returns
    -------
    Geometry or PlacedGeometry
        The same `geometry` unless `source` is a view whose steps moved pixels.
    """
    if isinstance(source, ImageView) and source.placements:
        return PlacedGeometry(geometry, source.placements)
    return geometry
