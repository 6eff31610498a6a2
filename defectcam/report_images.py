"""What a report shows of one image: small picture, heatmap, boxes for any threshold, the mask.

Owns how these are made small enough for a file that people mail: how many pixels and bytes, which
values of the map, which thresholds of the boxes. It gives plain values and encoded pictures, writes
no file and knows nothing of pages.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectcam.display import FULL_COLOUR, as_base64, middle_of_scale, shrunk
from defectcam.images import read_reduced
from defectcam.large_images import read_shrunk
from defectcam.results import Localization
from defectcam.tiled_results import TiledLocalization

__all__ = ["Album", "Portrait", "box_stops", "encode_map"]

_PICTURE_SIDE = 640  # pixels of the longer side
_MAP_SIDE = 96  # the network's grid is coarser
_MEAN_SIDE = 192
_LEAST_SIDE = 96
_LEAST_TOP = 0.1  # of the averages' scale, so that calm maps look calm
_QUALITY = 80
_ALL_PICTURE_BYTES = 38_000_000  # of all pictures together; a third more as text
_PICTURE_BYTES = (8_000, 120_000)  # of one

_STOPS = range(-8, 21)  # tenths of the model's box threshold, around it

_MAX_OUTLINES = 60
_OUTLINE_ERROR = 1 / 400  # of the longer side


class Portrait(NamedTuple):
    """One image as a report shows it.

    Attributes
    ----------
    picture, heat : str
        A WebP and an 8-bit grey PNG picture, in base64.
    size : (int, int)
        The original image's height and width.
    peak : float
        The heatmap's highest value, in multiples of the limit.
    boxes : list of (int, list)
        From which of the stops on there are which boxes, each ``[left, top, right, bottom, score]``
        in the original image's pixels, until the next entry.
    labels : list of str
        The types of the boxes at the model's own threshold.
    outline : list of list of int
        Polygons around the mask's regions, ``x, y, x, y, ...`` in the original image's pixels.
    """

    picture: str
    heat: str
    size: tuple[int, int]
    peak: float
    boxes: list[tuple[int, list[list[float]]]]
    labels: list[str]
    outline: list[list[int]]


def box_stops(box_threshold: float) -> list[float]:
    """List the thresholds that boxes are found for, ascending, the given one among them.

    Parameters
    ----------
    box_threshold : float
        The model's own, which the others lie around in tenths of it.

    Returns
    -------
    list of float

    Examples
    --------
    >>> box_stops(0.8)[:3], len(box_stops(0.8)), 0.8 in box_stops(0.8)
    ([0.16, 0.24, 0.32], 29, True)
    """
    step = middle_of_scale(abs(box_threshold)) / 10
    return [
        float(f"{box_threshold + tenths * step:.6g}") if tenths else float(box_threshold)
        for tenths in _STOPS
    ]


class Album:
    """The images of a report, one after the other, and their averages.

    Parameters
    ----------
    stops : sequence of float
        Thresholds to find boxes for, ascending.
    n_images : int
        How many there will be: of many, each gets fewer bytes.

    Attributes
    ----------
    portraits : list of Portrait
    """

    def __init__(self, stops: Sequence[float], n_images: int) -> None:
        self.portraits: list[Portrait] = []
        self._stops = stops
        self._most_bytes = int(np.clip(_ALL_PICTURE_BYTES / n_images, *_PICTURE_BYTES))
        self._averages = _Averages()

    def add(
        self, found: Localization, groups: Sequence[str], mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Take an image in.

        Parameters
        ----------
        found : Localization
            With a source, which is read again.
        groups : sequence of str
            Under which its heatmap is averaged.
        mask : bool array of shape (H, W), optional
            Where the defect is.

        Raises
        ------
        ImageReadError
            If the source cannot be read any more.
        """
        image = _picture_of(found)
        scale = middle_of_scale(found.threshold)
        heat = found.heatmap / scale
        portrait = Portrait(
            picture=as_base64(_encode_picture(image, self._most_bytes)),
            heat=encode_map(shrunk(heat, _MAP_SIDE) / FULL_COLOUR),
            size=found.image_size,
            peak=round(float(heat.max()), 3),
            boxes=_boxes_by_stop(found, self._stops),
            labels=[] if found.type_grids is None else [str(label) for label in found.box_labels],
            outline=[] if mask is None else _outline(mask),
        )
        self.portraits.append(portrait)
        self._averages.add(groups, heat, image)

    def averages(self) -> dict[str, Any]:
        """Give the mean heatmap of each group and the mean picture, stretched to one square.

        Returns
        -------
        dict
            ``groups``, each with ``name``, ``n`` and ``map``, on one scale from 0 to ``top`` times
            the limit; ``picture``; ``aspect``, the median of width by height.
        """
        return self._averages.summary()


def encode_map(levels: NDArray[Any]) -> str:
    """Encode values from 0 to 1, clipped, as an 8-bit grey PNG picture in base64."""
    grey = (np.clip(levels, 0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", optimize=True)
    return as_base64(buffer.getvalue())


class _Averages:
    """Sums of heatmaps, by group, and of pictures."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}  # float arrays of shape (_MAP_SIDE, _MAP_SIDE)
        self._counts: dict[str, int] = {}
        self._picture = np.zeros((_MEAN_SIDE, _MEAN_SIDE, 3))
        self._aspects: list[float] = []

    def add(
        self, groups: Sequence[str], heat: NDArray[np.float32], image: NDArray[np.uint8]
    ) -> None:
        small = _stretched(heat, _MAP_SIDE)
        for group in groups:
            self._sums[group] = self._sums.get(group, 0.0) + small
            self._counts[group] = self._counts.get(group, 0) + 1
        self._picture += _stretched(image, _MEAN_SIDE)
        self._aspects.append(heat.shape[1] / heat.shape[0])

    def summary(self) -> dict[str, Any]:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        top = max(*(float(mean.max()) for mean in means.values()), _LEAST_TOP)
        picture = (self._picture / len(self._aspects)).round().astype(np.uint8)
        return {
            "top": round(top, 3),
            "aspect": round(float(np.median(self._aspects)), 4),
            "picture": as_base64(_encode_picture(picture, _PICTURE_BYTES[1])),
            "groups": [
                {"name": name, "n": self._counts[name], "map": encode_map(mean / top)}
                for name, mean in means.items()
            ],
        }


def _picture_of(found: Localization) -> NDArray[np.uint8]:
    """Read the image again, at no more pixels than are shown where it may be huge."""
    if isinstance(found, TiledLocalization):
        return read_shrunk(found.source, _PICTURE_SIDE)
    image, _ = read_reduced(found.source, (_PICTURE_SIDE // 2, _PICTURE_SIDE // 2))
    return image


def _boxes_by_stop(
    found: Localization, stops: Sequence[float]
) -> list[tuple[int, list[list[float]]]]:
    """Boxes by the first stop that has them; equal ones are not repeated."""
    runs: list[tuple[int, list[list[float]]]] = []
    for stop, (boxes, scores) in enumerate(found.boxes_at(stops)):
        plain: list[list[float]] = [
            [*box, round(float(score), 3)]
            for box, score in zip(boxes.tolist(), scores, strict=True)
        ]
        if not runs or plain != runs[-1][1]:
            runs.append((stop, plain))
    return runs


def _outline(mask: NDArray[np.bool_]) -> list[list[int]]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    largest = sorted(contours, key=len, reverse=True)[:_MAX_OUTLINES]
    error = _OUTLINE_ERROR * max(mask.shape)
    return [
        cv2.approxPolyDP(one, error, closed=True).astype(int).ravel().tolist() for one in largest
    ]


def _encode_picture(image: NDArray[np.uint8], most_bytes: int) -> bytes:
    """Encode as WebP, in as many pixels as the bytes allow."""
    side = min(_PICTURE_SIDE, max(image.shape))
    while True:
        buffer = io.BytesIO()
        Image.fromarray(shrunk(image, side)).save(buffer, format="WEBP", quality=_QUALITY)
        data = buffer.getvalue()
        if len(data) <= most_bytes or side <= _LEAST_SIDE:
            return data
        # Bytes grow a little slower than pixels.
        side = max(_LEAST_SIDE, int(0.95 * side * (most_bytes / len(data)) ** 0.5))


def _stretched(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))
