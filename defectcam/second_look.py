"""A second look at an image: at what size, and how the maps of both looks become one.

A network sees a defect better where it falls well upon its grids. Seen once more, mirrored and
enlarged, the same image falls upon them differently, and the mean of both maps is finer than each.
This module owns the arithmetic, in NumPy, so that exported models share it; who is looked at again,
and by which network, is decided elsewhere.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_FACTOR", "join_looks", "size_of_second_look"]

#: Sides of the second look are multiples of it: of the coarsest stride of usual backbones, so that
#: the cells of all levels cover the whole input.
SIDE_STEP = 32

#: The largest factor: more than that is no second look at what the first has seen.
MAX_FACTOR = 4


def size_of_second_look(image_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Size at which images are seen again.

    Parameters
    ----------
    image_size : (int, int)
        Height and width of the network's input, in pixels.
    factor : float
        How much larger the second look is, at least 1.

    Returns
    -------
    (int, int)
        Height and width: the nearest multiples of 32, but not less than those of the first look.

    Examples
    --------
    >>> size_of_second_look((320, 320), 1.3)
    (416, 416)
    """
    height, width = (max(side, SIDE_STEP * round(side * factor / SIDE_STEP)) for side in image_size)
    return height, width


def join_looks(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the maps of both looks.

    Parameters
    ----------
    first : float32 array of shape (h, w)
    second : float32 array of shape (h', w')
        On a grid at least as fine; mirrored back already.

    Returns
    -------
    float32 array of shape (h', w')
    """
    height, width = second.shape
    finer = cv2.resize(first, (width, height), interpolation=cv2.INTER_LINEAR)
    return cast("NDArray[np.float32]", (finer + second) / np.float32(2))
