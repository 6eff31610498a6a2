"""Reads annotation files in the COCO format.

This module owns the format: which keys there are, and how polygons and run lengths become masks and
masks run lengths. It opens no image and does not mind where the images are.
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
from numpy.typing import ArrayLike, DTypeLike, NDArray

from defectcam.images import ImageReadError

__all__ = ["CocoImage", "CocoMask", "read_coco", "run_lengths"]

_FINER = 4  # polygons are drawn so many times larger, and a pixel is taken if half of it is inside
_FARTHEST = 2**31 - 1  # pixels, where the size of an image is not known
_LARGEST_SHIFT = 60  # bits; no image has more pixels
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
    size: tuple[int, int] | None = None  # height and width, where the file has them
    segmentations: tuple[Any, ...] = ()  # one per box, as `CocoMask` takes them; None without

    @property
    def type(self) -> str | None:
        """Category of the largest box; None where there are no boxes."""
        return str(self.box_types[largest(self.boxes)]) if len(self.boxes) else None


def largest(boxes: NDArray[np.int64]) -> int:
    """Return the row of the largest box, the first of several."""
    return int(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).argmax())


def run_lengths(mask: ArrayLike) -> list[int]:
    """Count the pixels of each run down the columns of a mask, as COCO does.

    Parameters
    ----------
    mask : bool array of shape (H, W)

    Returns
    -------
    list of int
        Lengths of the runs of False and True in turn; the first is of False, and may be 0.

    Examples
    --------
    >>> run_lengths([[0, 1], [0, 1], [1, 0]])
    [2, 3, 1]
    """
    pixels = np.asarray(mask, bool).T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return [0, *lengths] if pixels.size and pixels[0] else lengths


def as_run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Give a mask as COCO's files do, as one of the segmentations that `CocoMask` takes."""
    return {"size": list(mask.shape), "counts": run_lengths(mask)}


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a file, or complain of it by its name.

    Raises
    ------
    ImageReadError
        If it cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ImageReadError(f"{os.fspath(path)!r} cannot be read as JSON: {error}") from error


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
        If the file is no JSON, has another layout, a box without an area, or names an image or a
        category that it does not list.

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
        return [
            _image(entry, found[entry["id"]], categories, repr(os.fspath(path)))
            for entry in content["images"]
        ]
    except KeyError as error:
        raise ImageReadError(
            f"{os.fspath(path)!r} is not as COCO has it: there is no {error.args[0]!r}. Expected: "
            "images with id and file_name (and height and width where there are segmentations); "
            "categories with id and name; annotations with bbox and the image_id and category_id "
            "of what is listed."
        ) from error
    except TypeError as error:  # a list, say, in the place of an object or of a number
        raise ImageReadError(
            f"{os.fspath(path)!r} is not as COCO has it: an entry of images, annotations or "
            f"categories is no object, or its id no number ({error})."
        ) from error


def _content(path: str | os.PathLike[str]) -> dict[str, Any]:
    expected = ("images", "annotations", "categories")
    content = read_json(path)
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
    entry: dict[str, Any], annotations: list[dict[str, Any]], categories: dict[Any, str], file: str
) -> CocoImage:
    place = f"{file}, image {entry['id']!r}"
    if not isinstance(entry["file_name"], str):
        raise ImageReadError(f"{place} has a file_name that is no text.")
    sides = [_side(entry[name], place) for name in ("height", "width") if name in entry]
    size = (sides[0], sides[1]) if len(sides) == 2 else None
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    if any(segmentations) and size is None:
        size = _side(entry["height"], place), _side(entry["width"], place)  # says which is missing
    limit = [entry.get("width", _FARTHEST), entry.get("height", _FARTHEST)]
    boxes = []
    for annotation in annotations:
        at = f"{file}, annotation {annotation.get('id')!r}"
        boxes.append(_box(annotation["bbox"], limit, at))
        if annotation.get("segmentation") and size is not None:
            _refuse_no_segmentation(annotation["segmentation"], size, at)
    names = [categories[annotation["category_id"]] for annotation in annotations]
    is_marked = size is not None and annotations and all(segmentations)
    return CocoImage(
        file_name=entry["file_name"],
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
        box_types=np.array(names, dtype=str),
        mask=CocoMask(size, segmentations) if size is not None and is_marked else None,
        size=size,
        segmentations=tuple(segmentations),
    )


def _side(value: Any, place: str) -> int:
    if not isinstance(value, (int, float)) or not 0 < value < np.inf:
        raise ImageReadError(f"{place} has the height or width {value!r}, expected pixels.")
    return int(value)


def _refuse_no_segmentation(segmentation: Any, size: tuple[int, int], place: str) -> None:
    if isinstance(segmentation, dict):
        try:
            lengths = _lengths(segmentation)
            if not all(isinstance(length, int) and length >= 0 for length in lengths):
                raise ValueError("lengths are whole numbers of at least 0")
            _refuse_other_size(segmentation, lengths, size)
        except (KeyError, TypeError, ValueError) as error:
            raise ImageReadError(f"{place} has run lengths that cannot be read: {error}") from error
        return
    try:
        polygons = [np.array(polygon, float) for polygon in segmentation]
        is_right = all(
            p.ndim == 1 and p.size >= 6 and p.size % 2 == 0 and np.isfinite(p).all()
            for p in polygons
        )
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ImageReadError(
            f"{place} has a segmentation that is neither run lengths nor a list of polygons "
            "[x0, y0, x1, y1, x2, y2, ...] of at least three corners."
        )


def _box(bbox: Any, limit: Sequence[float], place: str) -> NDArray[np.int64]:
    """Turn (x, y, width, height) into the smallest box of whole pixels around it."""
    try:
        corner, extent = np.array(bbox, float).reshape(2, 2)
    except (TypeError, ValueError) as error:
        raise ImageReadError(
            f"{place} needs a bbox [x, y, width, height], got {bbox!r}."
        ) from error
    if not np.isfinite([corner, extent]).all() or (extent < 0).any():
        raise ImageReadError(f"{place} has the bbox {bbox!r}, which is none.")
    corner, extent = np.round([corner, extent], 3)  # 12.0000001 is the edge of pixel 12
    if not extent.all():
        raise ImageReadError(
            f"{place} has the bbox {bbox!r}, which has no area that could be a defect: give it a "
            "width and a height, or take it out."
        )
    if (corner + extent <= 0).any() or (corner >= limit).any():
        width, height = limit
        raise ImageReadError(
            f"{place} has the bbox {bbox!r}, outside of its image of {width} x {height} pixels: is "
            "it another image?"
        )
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
    lengths = _lengths(segmentation)
    _refuse_other_size(segmentation, lengths, shape)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(shape[::-1]).T


def _lengths(segmentation: dict[str, Any]) -> list[int]:
    counts = segmentation["counts"]
    return _decompressed(counts) if isinstance(counts, str) else counts


def _refuse_other_size(
    segmentation: dict[str, Any], lengths: Sequence[int], shape: tuple[int, int]
) -> None:
    if tuple(segmentation["size"]) != shape or sum(lengths) != shape[0] * shape[1]:
        raise ValueError(
            f"The run lengths of a mask cover {sum(lengths)} pixels of size "
            f"{tuple(segmentation['size'])}, but the image has (height, width) = {shape}."
        )


def _decompressed(text: str) -> list[int]:
    """Read COCO's compressed run lengths: six bits a character, differences from the third on."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0b11111) << shift
        shift += 5
        if shift > _LARGEST_SHIFT:
            raise ValueError("a run is longer than any image")
        if bits & 0b100000:  # goes on in the next character
            continue
        if bits & 0b10000:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths
