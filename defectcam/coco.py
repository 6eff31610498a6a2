"""Reads annotation files in the COCO format.

This module owns the format: which keys there are, and how polygons and run lengths become masks. It
opens no image and does not mind where the images are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from defectcam.images import ImageReadError

__all__ = ["CocoImage", "CocoMask", "read_coco"]

_FINER = 4  # polygons are drawn so many times larger, and a pixel is taken if half of it is inside
_MAX_NAMES = 20


class CocoMask:
    """The mask of an image, drawn anew each time it is asked for.

    ``np.asarray(mask)`` is the mask: bool, of shape `shape`. So it can be passed wherever an array
    is expected, and holds only the outlines in memory.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image, in pixels.
    segmentations : sequence
        One per annotation: a list of polygons, each ``[x0, y0, x1, y1, ...]`` in pixels from the
        image's upper left corner; or a dict with ``size`` and ``counts``, run lengths down the
        columns, as a list or in COCO's compressed form.

    Raises
    ------
    ValueError
        When drawn, if a segmentation is neither, or its run lengths do not fill `shape`.

    Examples
    --------
    >>> import numpy as np
    >>> mask = CocoMask((4, 6), [[[1, 1, 4, 1, 4, 3, 1, 3]]])
    >>> np.asarray(mask).astype(int)
    array([[0, 0, 0, 0, 0, 0],
           [0, 1, 1, 1, 0, 0],
           [0, 1, 1, 1, 0, 0],
           [0, 0, 0, 0, 0, 0]])
    """

    def __init__(self, shape: tuple[int, int], segmentations: Sequence[Any]):
        self.shape = shape
        self.segmentations = segmentations

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Draw the mask; it is always a new array."""
        if copy is False:
            raise ValueError("A CocoMask is drawn anew each time: copy=False is impossible.")
        mask = np.zeros(self.shape, bool)
        for segmentation in self.segmentations:
            if isinstance(segmentation, dict):
                mask |= _from_run_lengths(segmentation, self.shape)
            else:
                for polygon in segmentation:
                    _fill(mask, polygon)
        return mask if dtype is None else mask.astype(dtype)

    def __repr__(self) -> str:
        return f"CocoMask(shape={self.shape}, {len(self.segmentations)} segmentations)"


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images`` and what is annotated in it."""

    file_name: str
    boxes: NDArray[np.int64]  # (n, 4), half-open xyxy in pixels
    box_types: NDArray[np.str_]  # (n,)
    mask: CocoMask | None  # None unless every annotation has a segmentation

    @property
    def type(self) -> str | None:
        """Category of the largest box; None where there are no boxes."""
        if not len(self.boxes):
            return None
        areas = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)
        return str(self.box_types[areas.argmax()])


def read_coco(path: str | os.PathLike[str], ignored_category: str | None = None) -> list[CocoImage]:
    """Read an annotation file.

    Parameters
    ----------
    path : str or PathLike
        A JSON file with the lists ``images``, ``annotations`` and ``categories``.
    ignored_category : str, optional
        Annotations of this category are left out.

    Returns
    -------
    list of CocoImage
        In the file's order.

    Raises
    ------
    ImageReadError
        If the file is no JSON, has another layout, or names an image or a category that it does not
        list.

    References
    ----------
    T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the format is at
    https://cocodataset.org/#format-data.
    """
    content = _content(path)
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        found: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
        for annotation in content["annotations"]:
            if categories[annotation["category_id"]] != ignored_category:
                found[annotation["image_id"]].append(annotation)
        return [_image(entry, found[entry["id"]], categories) for entry in content["images"]]
    except KeyError as error:
        raise ImageReadError(
            f"{os.fspath(path)!r} is not as COCO has it: there is no {error.args[0]!r}. Expected: "
            "images with id and file_name (and height and width where there are segmentations); "
            "categories with id and name; annotations with bbox and the image_id and category_id "
            "of what is listed."
        ) from error


def _content(path: str | os.PathLike[str]) -> dict[str, Any]:
    expected = ("images", "annotations", "categories")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ImageReadError(f"{os.fspath(path)!r} cannot be read as JSON: {error}") from error
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in expected):
        return content
    what = f"a {type(content).__name__}"
    if isinstance(content, dict):
        kinds = [f"{key} ({type(value).__name__})" for key, value in content.items()]
        what = ", ".join(kinds[:_MAX_NAMES]) or "nothing"
    raise ImageReadError(
        f"{os.fspath(path)!r} has another layout than expected. Expected: a COCO file, with the "
        f"lists {', '.join(expected)}. Found: {what}."
    )


def _image(
    entry: dict[str, Any], annotations: list[dict[str, Any]], categories: dict[Any, str]
) -> CocoImage:
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    mask = None
    if annotations and all(segmentations):
        mask = CocoMask((int(entry["height"]), int(entry["width"])), segmentations)
    limit = [entry.get("width", np.inf), entry.get("height", np.inf)]
    boxes = [_box(annotation["bbox"], limit) for annotation in annotations]
    names = [categories[annotation["category_id"]] for annotation in annotations]
    return CocoImage(
        file_name=entry["file_name"],
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
        box_types=np.array(names, dtype=str),
        mask=mask,
    )


def _box(bbox: Sequence[float], limit: Sequence[float]) -> NDArray[np.int64]:
    """Turn (x, y, width, height) into the smallest box of whole pixels around it."""
    corner, extent = np.array(bbox, float).reshape(2, 2)
    low = np.minimum(np.floor(corner.clip(0)), np.subtract(limit, 1))
    high = np.maximum(np.minimum(np.ceil(corner + extent), limit), low + 1)
    return np.concatenate([low, high]).astype(np.int64)


def _fill(mask: NDArray[np.bool_], polygon: Sequence[float]) -> None:
    """Set what is inside; the coordinates are those of pixel corners."""
    corners = np.array(polygon, float).reshape(-1, 2)
    height, width = mask.shape
    left, top = np.floor(corners.min(axis=0)).clip(0).astype(int).tolist()
    right, bottom = np.ceil(corners.max(axis=0)).clip(None, (width, height)).astype(int).tolist()
    if right <= left or bottom <= top:
        return
    fine = np.zeros(((bottom - top) * _FINER, (right - left) * _FINER), np.uint8)
    # OpenCV means the centres of pixels, which lie half a pixel from their corners.
    places = (corners - (left, top)) * _FINER - 0.5
    outline = [np.round(places * 16).astype(np.int32)]
    cv2.fillPoly(fine, outline, 255, cv2.LINE_8, 4)
    cv2.polylines(fine, outline, True, 128, 1, cv2.LINE_8, 4)  # half of it lies outside
    inside = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA) >= 128
    mask[top:bottom, left:right] |= inside


def _from_run_lengths(segmentation: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    counts = segmentation["counts"]
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if tuple(segmentation["size"]) != shape or sum(lengths) != shape[0] * shape[1]:
        raise ValueError(
            f"The run lengths of a mask cover {sum(lengths)} pixels of size "
            f"{tuple(segmentation['size'])}, but the image has (height, width) = {shape}."
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(shape[::-1]).T


def _decompressed(text: str) -> list[int]:
    """Read COCO's compressed run lengths: six bits a character, differences from the third on."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0b11111) << shift
        shift += 5
        if bits & 0b100000:  # goes on in the next character
            continue
        if bits & 0b10000:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths
