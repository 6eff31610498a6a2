"""Shapes that people draw in images: labelled boxes and outlines, and the masks they stand for.

Owns what all annotation formats have in common: an image with its shapes, the way from a mask to
outlines and from numbers in a file to a box of whole pixels. It knows no format and opens no file.

Coordinates are those of pixel corners: the image reaches from (0, 0) to (width, height), and a
pixel in column x from x to x + 1. So a half-open box ``xyxy`` is the rectangle with these corners.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.coco import CocoMask, as_run_lengths, largest
from defectcam.images import ImageReadError

__all__ = ["AnnotatedImage", "Shape", "box_around", "mask_outlines", "outlined"]

#: What files lose by decimals and percentages, in pixels: such a distance from a whole number is
#: taken for none.
_ROUNDING = 0.05

_NO_EXTENT = 5e-4  # pixels; a box that is no wider, or a polygon, is a line

_LARGEST_NUMBER = 1e9  # of what files may hold; with more, arithmetic could overflow
_FARTHEST = 1e6  # pixels from the image's corner to that of a polygon

_ELLIPSE_CORNERS = 72

_LONGEST_SHOWN = 60  # characters of what a file holds, in complaints about it

Box = tuple[int, int, int, int]
Outline = NDArray[np.float64]  # of shape (n, 2), x and y of the corners


@dataclass(frozen=True)
class Shape:
    """A box, and the outlines of what it marks where they are known.

    Parameters
    ----------
    label : str
        The type of the defect.
    box : (int, int, int, int)
        Half-open ``xyxy`` in pixels.
    outlines : tuple of arrays of shape (n, 2), default=()
        Corners (x, y) of polygons, whose union is marked; empty where only the box is known.
    run_lengths : dict, optional
        The marked pixels as COCO has them (``size`` and ``counts``), in the place of `outlines`
        or beside them: what outlines cannot say, holes.
    score : float, optional
    """

    label: str
    box: Box
    outlines: tuple[Outline, ...] = ()
    run_lengths: dict[str, Any] | None = None
    score: float | None = None

    @property
    def segmentation(self) -> Any:
        """What is marked, as `CocoMask` takes it: run lengths, or polygons, or else the box."""
        if self.run_lengths is not None:
            return self.run_lengths
        if self.outlines:
            return [outline.ravel().tolist() for outline in self.outlines]
        left, top, right, bottom = self.box
        return [[left, top, right, top, right, bottom, left, bottom]]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what is drawn in it.

    Parameters
    ----------
    file_name : str
        Relative, with ``/`` between folders; of an image that was found, its path.
    size : (int, int)
        Height and width in pixels.
    shapes : tuple of Shape
        Best first where there are scores.
    label : str, optional
        The type of the defect in an image that has one, but no shape.
    """

    file_name: str
    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    label: str | None = None

    @property
    def mask(self) -> CocoMask | None:
        """Everything marked; None where there are no shapes."""
        if not self.shapes:
            return None
        return CocoMask(self.size, [shape.segmentation for shape in self.shapes])

    @property
    def boxes(self) -> NDArray[np.int64]:
        """The shapes' boxes, of shape (n, 4)."""
        return np.array([shape.box for shape in self.shapes], np.int64).reshape(-1, 4)

    @property
    def type(self) -> str | None:
        """Label of the largest box, else of the image."""
        if not self.shapes:
            return self.label
        return self.shapes[largest(self.boxes)].label


def outlined(
    boxes: ArrayLike,
    labels: Sequence[Any],
    scores: ArrayLike,
    component_labels: NDArray[np.int32],
    tolerance: float = 0.0,
) -> tuple[Shape, ...]:
    """Give each box the outlines of its regions.

    Parameters
    ----------
    boxes : int array of shape (n, 4)
        Half-open ``xyxy`` in pixels.
    labels : sequence of n labels
        They become text.
    scores : array of shape (n,)
    component_labels : int32 array of shape (H, W)
        As `defectcam.boxes.component_labels` returns them.
    tolerance : float, default=0.0
        As in `mask_outlines`.

    Returns
    -------
    tuple of Shape
        In the order of `boxes`, with run lengths where regions have holes.
    """
    shapes = []
    size = component_labels.shape
    for number, (box, label, score) in enumerate(
        zip(np.asarray(boxes).tolist(), labels, np.asarray(scores).tolist(), strict=True), start=1
    ):
        left, top, right, bottom = box
        part = component_labels[top:bottom, left:right] == number
        outlines, has_holes = mask_outlines(part, tolerance)
        counts = None
        if has_holes:
            whole = np.zeros(size, bool)
            whole[top:bottom, left:right] = part
            counts = as_run_lengths(whole)
        moved = tuple(outline + np.array([left, top]) for outline in outlines)
        shapes.append(Shape(str(label), (left, top, right, bottom), moved, counts, score))
    return tuple(shapes)


def mask_outlines(mask: ArrayLike, tolerance: float = 0.0) -> tuple[list[Outline], bool]:
    """Outline the regions of a mask along the edges of their pixels.

    Parameters
    ----------
    mask : bool array of shape (H, W)
    tolerance : float, default=0.0
        How far, in pixels, an outline may run beside the true one to have fewer corners (Douglas
        and Peucker, 1973). 0 is exact.

    Returns
    -------
    outlines : list of float64 arrays of shape (n, 2)
        Corners (x, y) of a polygon per 8-connected region.
    has_holes : bool
        Whether a region has a hole, which its outline does not show.

    Examples
    --------
    >>> outlines, has_holes = mask_outlines([[0, 1, 1], [0, 1, 1]])
    >>> outlines[0].tolist(), has_holes
    ([[1.0, 0.0], [1.0, 2.0], [3.0, 2.0], [3.0, 0.0]], False)
    """
    # OpenCV's contours run through the centres of pixels. In a picture twice as large they run
    # through centres that lie one beside each corner of the original pixels, to either side.
    doubled = np.asarray(mask, bool).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(
        np.ascontiguousarray(doubled).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    if not contours:
        return [], False
    is_outer = hierarchy[0, :, 3] < 0
    outlines = [
        _simplified(_without_straight(np.asarray((contour[:, 0] + 1) // 2)), tolerance)
        for contour, outer in zip(contours, is_outer, strict=True)
        if outer
    ]
    return outlines, not bool(is_outer.all())


def joined(outlines: Sequence[Outline]) -> Outline:
    """Join polygons into one, over bridges without width, for formats with one per object.

    What lies within another's hole is left out: that hole is filled already, and readers take what
    a polygon surrounds twice for outside.
    """
    from scipy.spatial import KDTree  # found regions are drawn without SciPy too

    path, *others = [
        outline
        for outline in outlines
        if not any(_is_within(outline, other) for other in outlines if other is not outline)
    ]
    for other in others:
        distances, nearest = KDTree(path).query(other)
        end = int(np.argmin(distances))
        start = int(nearest[end])
        loop = np.roll(other, -end, axis=0)
        path = np.concatenate([path[: start + 1], loop, loop[:1], path[start:]])
    return path


def _is_within(outline: Outline, other: Outline) -> bool:
    """Whether all corners are surrounded: polygons that only overlap are both drawn."""
    around = other.astype(np.float32)
    return all(cv2.pointPolygonTest(around, (x, y), False) > 0 for x, y in outline.tolist())


def box_around(points: ArrayLike, size: tuple[int, int], place: str) -> Box:
    """Return the smallest box of whole pixels around points, at least one pixel, in the image.

    Parameters
    ----------
    points : array of shape (n, 2)
        x and y.
    size : (int, int)
        Height and width of the image.
    place : str
        What the points belong to, for the error.

    Raises
    ------
    ImageReadError
        If they are no finite numbers, have no width or no height, or lie outside the image
        altogether.
    """
    corners = numbers(points, place).reshape(-1, 2)
    if (np.ptp(corners, axis=0) <= _NO_EXTENT).any():
        _refuse_no_area(place)
    height, width = size
    whole = np.round(corners)
    corners = np.where(np.abs(corners - whole) <= _ROUNDING, whole, corners)
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    if (high < 0).any() or (low > (width, height)).any():
        raise ImageReadError(
            f"{place} reaches from {low.tolist()} to {high.tolist()}, outside of its image of "
            f"{width} x {height} pixels: is it another image?"
        )
    low = low.clip(0, (width - 1, height - 1))
    high = np.maximum(high.clip(0, (width, height)), low + 1)
    left, top = low.astype(int).tolist()
    right, bottom = high.astype(int).tolist()
    return left, top, right, bottom


def _refuse_no_area(place: str) -> NoReturn:
    raise ImageReadError(
        f"{place} has no area that could be a defect: give it a width and a height, or take it out."
    )


def polygon_shape(
    label: str, outlines: Iterable[ArrayLike], size: tuple[int, int], place: str
) -> Shape:
    """Make a shape of polygons read from a file, each of at least three corners.

    One of several may lie on a line; all together must have an area.
    """
    checked = []
    for outline in outlines:
        corners = numbers(outline, place)
        if corners.size < 6 or corners.size % 2:
            raise ImageReadError(
                f"{place} has {corners.size} coordinates: a polygon needs x and y of at least "
                "three corners."
            )
        if np.abs(corners).max() > _FARTHEST:
            raise ImageReadError(f"{place} has a corner far outside of its image.")
        checked.append(corners.reshape(-1, 2))
    if not checked:
        raise ImageReadError(f"{place} has no corners.")
    corners = np.concatenate(checked)
    if np.linalg.matrix_rank(corners - corners.mean(axis=0), tol=_NO_EXTENT) < 2:
        _refuse_no_area(place)  # all of them on a line, which a box around it would not show
    return Shape(label, box_around(corners, size, place), tuple(checked))


def mask_shape(
    label: str, part: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int], place: str
) -> Shape:
    """Make a shape of a mask read from a file, whose upper left pixel is at `corner` (x, y)."""
    left, top = corner
    height, width = part.shape
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0] or not part.any():
        raise ImageReadError(
            f"{place} is a mask of {width} x {height} pixels at {corner}, which must mark "
            f"something and lie in its image of {size[1]} x {size[0]} pixels."
        )
    whole = np.zeros(size, bool)
    whole[top : top + height, left : left + width] = part
    x, y, w, h = cv2.boundingRect(whole.view(np.uint8))
    return Shape(label, (x, y, x + w, y + h), run_lengths=as_run_lengths(whole))


def rotated(corner: ArrayLike, extent: ArrayLike, degrees: float) -> Outline:
    """Return the corners of a rectangle, turned clockwise about its upper left corner."""
    angle = math.radians(degrees)
    width, height = np.array(extent, float)
    along = np.array([math.cos(angle), math.sin(angle)]) * width
    down = np.array([-math.sin(angle), math.cos(angle)]) * height
    start = np.array(corner, float)
    return np.array([start, start + along, start + along + down, start + down])


def ellipse(centre: ArrayLike, radii: ArrayLike, degrees: float = 0.0) -> Outline:
    """Return corners on an ellipse, turned clockwise about its centre."""
    turns = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)
    along, across = np.array(radii, float)
    x, y = along * np.cos(turns), across * np.sin(turns)
    angle = math.radians(degrees)
    turned = [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]
    return np.stack(turned, axis=1) + np.array(centre, float)


def numbers(values: Any, place: str, ndim: int | None = None) -> NDArray[np.float64]:
    """Read finite numbers, perhaps in so many dimensions, or say where they are none."""
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageReadError(f"{place} needs numbers, got {_short(values)}.") from error
    is_other = ndim is not None and array.ndim != ndim
    if array.size == 0 or is_other or not (np.abs(array) <= _LARGEST_NUMBER).all():
        raise ImageReadError(f"{place} needs finite numbers, got {_short(values)}.")
    return array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def label_text(text: Any, place: str) -> str:
    """Return a label that was read from a file, or say where there is none."""
    if not isinstance(text, str) or not text.strip():
        raise ImageReadError(f"{place} has no label.")
    return text


def add_part(
    shapes: list[Shape],
    places: dict[Any, int],
    key: Any,
    shape: Shape,
    size: tuple[int, int],
    place: str,
) -> None:
    """Append a shape read from a file, or join it to that of its key: they are parts of one defect.

    Parameters
    ----------
    shapes : list of Shape
        Those before; added to.
    places : dict
        Where the shapes of the keys so far are; added to.
    key : hashable or None
        None: the shape is a defect of its own. So is one without outlines.
    shape : Shape
    size : (int, int)
        Height and width of the image.
    place : str
        For the error, if there is one.
    """
    if key is None or not shape.outlines:
        shapes.append(shape)
    elif key not in places:
        places[key] = len(shapes)
        shapes.append(shape)
    else:
        outlines = (*shapes[places[key]].outlines, *shape.outlines)
        shapes[places[key]] = polygon_shape(shape.label, outlines, size, place)


def _without_straight(corners: NDArray[Any]) -> Outline:
    """Leave out corners that repeat the one before, or lie between it and the next."""
    kept = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    arriving, leaving = kept - np.roll(kept, 1, axis=0), np.roll(kept, -1, axis=0) - kept
    turns = arriving[:, 0] * leaving[:, 1] != arriving[:, 1] * leaving[:, 0]
    return kept[turns].astype(np.float64)


def _simplified(corners: Outline, tolerance: float) -> Outline:
    if tolerance <= 0:
        return corners
    fewer = cv2.approxPolyDP(corners.astype(np.float32)[:, None], tolerance, True)[:, 0]
    return corners if len(fewer) < 3 else fewer.astype(np.float64)
