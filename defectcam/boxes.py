"""Turns a heatmap and a threshold into bounding boxes, with connected components.

Pure functions of NumPy arrays. A box is half-open `xyxy` (left, top, right, bottom; the right
column and the bottom row are the first ones outside) in the pixels of the map it was found in. This
module never resizes a map, chooses a threshold or decides whether an image is defective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.hills import Hill, fit_hills

__all__ = [
    "component_labels",
    "component_mask",
    "find_boxes",
    "find_boxes_at",
    "merge_and_trace",
]

#: How far down a region reaches, as a share of the least peak that regions must have.
_EXTENT = 1 / 2

#: Pairs of boxes whose gaps are held at once.
_PAIRS_AT_ONCE = 1_000_000


def find_boxes(
    heatmap: ArrayLike,
    threshold: float,
    *,
    min_area: int = 1,
    max_boxes: int | None = None,
    merge_distance: float | None = None,
    peak_fraction: float = 0.0,
    tighten: bool = False,
    point_spread: tuple[float, float] = (0.0, 0.0),
    map_area: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the boxes around the connected regions of a heatmap above a threshold.

    Parameters
    ----------
    heatmap : array of shape (H, W)
        Higher means more defective. NaN is refused.
    threshold : float
        A pixel belongs to a region where `heatmap > threshold`.
    min_area : int, default=1
        Regions of fewer pixels of the map are dropped, before any merging.
    max_boxes : int, optional
        Keep at most this many boxes, the best ones. None keeps all.
    merge_distance : float, optional
        Boxes with at most this many pixels between them (the larger of the horizontal and the
        vertical gap) become one box, until no such pair is left. 0 merges boxes that overlap or
        touch, `inf` gives one box around everything, None merges nothing.
    peak_fraction : float, default=0.0
        Regions whose highest value is less than this share, in [0, 1), of the map's highest are
        dropped, and a region reaches only as far as half of that share: what is much weaker
        than the image's strongest spot is that spot's surroundings, or noise, more often than
        another defect. A map without positive values is left as it is. Two thresholds, as in the
        hysteresis of Canny (PAMI 1986).
    tighten : bool, default=False
        Fit each box to the hill of the map that it stands for: the threshold then says
        which hills get a box, not how far it reaches. Needs a threshold above 0.
    point_spread : (float, float), default=(0.0, 0.0)
        Width and height, at half of its height and in pixels of the map, of the hill that a point
        becomes in it: how much the map blurs. Only `tighten` reads it.
    map_area : int, optional
        Pixels of the whole map where `heatmap` is a part of it: which hills are wide depends on it.
        None: it is no part. Only `tighten` reads it.

    Returns
    -------
    boxes : int64 array of shape (n, 4)
        Half-open `xyxy`, best first; equal scores are ordered by area, then from top to bottom
        and from left to right.
    scores : float32 array of shape (n,)
        The largest value of the map within each box's regions.

    Raises
    ------
    ValueError
        If the map is not two-dimensional, is empty or has NaN, or a parameter is out of range.

    See Also
    --------
    component_mask : The pixels of the same regions.
    component_labels : The same, and which box each pixel belongs to.

    Notes
    -----
    Regions are 8-connected: pixels that touch at a corner belong together.

    With `tighten`, regions are hills, and `defectcam.hills` says how far they reach.

    Examples
    --------
    >>> import numpy as np
    >>> heatmap = np.zeros((6, 8))
    >>> heatmap[0:2, 0:3] = 2.0
    >>> heatmap[4, 7] = 3.0
    >>> boxes, scores = find_boxes(heatmap, threshold=1.0)
    >>> boxes.tolist()
    [[7, 4, 8, 5], [0, 0, 3, 2]]
    >>> scores.tolist()
    [3.0, 2.0]
    """
    regions = _find_regions(
        heatmap,
        threshold,
        min_area=min_area,
        max_boxes=max_boxes,
        merge_distance=merge_distance,
        peak_fraction=peak_fraction,
        tighten=tighten,
        point_spread=point_spread,
        map_area=map_area,
    )
    return regions.boxes, regions.scores


def find_boxes_at(
    heatmap: ArrayLike, thresholds: Iterable[float], **options: Any
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Find the boxes that each of several thresholds gives.

    Parameters
    ----------
    heatmap : array of shape (H, W)
        Higher means more defective. NaN is refused.
    thresholds : iterable of float
    **options
        As in `find_boxes`.

    Returns
    -------
    list of (boxes, scores)
        For each threshold what `find_boxes` returns; found once where several thresholds are sure
        to give the same.

    Raises
    ------
    ValueError
        If the map is not two-dimensional, is empty or has NaN, or a parameter is out of range.

    Examples
    --------
    >>> found = find_boxes_at([[5.0, 0.0, 2.0]], [1.0, 3.0])
    >>> [boxes.tolist() for boxes, scores in found]
    [[[0, 0, 1, 1], [2, 0, 3, 1]], [[0, 0, 1, 1]]]
    """
    values = _checked_map(heatmap)
    peak = float(values.max())
    # Below the lowest value that `peak_fraction` leaves in, the threshold decides nothing.
    lowest = values.min()
    if options.get("tighten"):
        lowest = -math.inf  # how far wide hills reach depends on every threshold
    elif peak > 0 and (peak_fraction := options.get("peak_fraction", 0.0)) > 0:
        lowest = max(lowest, np.float32(_EXTENT * peak_fraction * peak))
    known: dict[float, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    found = []
    for threshold in thresholds:
        same = -math.inf if np.float32(threshold) < lowest else min(threshold, peak)
        if same not in known:
            known[same] = find_boxes(values, threshold, **options)
        found.append(known[same])
    return found


def component_mask(heatmap: ArrayLike, threshold: float, **options: Any) -> NDArray[np.bool_]:
    """Mark the pixels of the regions around which `find_boxes` draws its boxes.

    Without `tighten`, a higher threshold never adds pixels, unless `max_boxes` and a `min_area`
    above 1 come together: a region that shrinks below `min_area` then makes room for the next best
    one.

    Parameters
    ----------
    heatmap : array of shape (H, W)
        Higher means more defective. NaN is refused.
    threshold : float
        A pixel belongs to a region where `heatmap > threshold`.
    **options
        As in `find_boxes`.

    Returns
    -------
    mask : bool array of shape (H, W)
        True where the pixel belongs to a region of a kept box.

    Raises
    ------
    ValueError
        If the map is not two-dimensional, is empty or has NaN, or a parameter is out of range.

    Examples
    --------
    >>> component_mask([[5.0, 0.0, 2.0], [0.0, 0.0, 2.0]], threshold=1.0, min_area=2).astype(int)
    array([[0, 0, 1],
           [0, 0, 1]])
    """
    return component_labels(heatmap, threshold, **options) > 0


def component_labels(heatmap: ArrayLike, threshold: float, **options: Any) -> NDArray[np.int32]:
    """Mark the pixels of the regions with the number of their box.

    Boxes may overlap, their regions never do: this tells them apart.

    Parameters
    ----------
    heatmap : array of shape (H, W)
        Higher means more defective. NaN is refused.
    threshold : float
        A pixel belongs to a region where `heatmap > threshold`.
    **options
        As in `find_boxes`.

    Returns
    -------
    labels : int32 array of shape (H, W)
        0 outside; ``1 + i`` in the regions of row i of the boxes of `find_boxes`.

    Raises
    ------
    ValueError
        If the map is not two-dimensional, is empty or has NaN, or a parameter is out of range.

    Examples
    --------
    >>> component_labels([[5.0, 0.0, 2.0], [0.0, 0.0, 2.0]], threshold=1.0)
    array([[1, 0, 2],
           [0, 0, 2]], dtype=int32)
    """
    regions = _find_regions(heatmap, threshold, **options)
    labels = np.zeros(regions.shape, dtype=np.int32)
    labels[regions.place] = regions.box_number[regions.labels]
    return labels


def merge_and_trace(
    boxes: NDArray[np.int64], scores: NDArray[np.float32], merge_distance: float | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.intp]]:
    """Merge boxes near each other, found in different parts of an image, and trace each of them.

    Parameters
    ----------
    boxes : int64 array of shape (n, 4)
        Half-open `xyxy`.
    scores : float32 array of shape (n,)
    merge_distance : float or None
        As in `find_boxes`.

    Returns
    -------
    boxes : int64 array of shape (m, 4)
        Best first; equal scores are ordered by area, then from top to bottom and from left to
        right.
    scores : float32 array of shape (m,)
        The highest score of what was merged.
    rows : int array of shape (n,)
        The row of the merged boxes that each given box is in.

    Examples
    --------
    >>> boxes = np.array([[0, 0, 10, 10], [90, 90, 95, 95], [12, 0, 20, 10]])
    >>> scores = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    >>> merge_and_trace(boxes, scores, merge_distance=2)
    (array([[ 0,  0, 20, 10],
           [90, 90, 95, 95]]), array([3., 2.], dtype=float32), array([0, 1, 0]))
    """
    groups = np.arange(len(boxes))
    if merge_distance is not None:
        groups = _group_until_apart(boxes, lambda parts: _group_within(parts, merge_distance))
    merged = _bounding_boxes(boxes, groups)
    highest = np.full(len(merged), -np.inf, dtype=np.float32)
    np.maximum.at(highest, groups, scores)
    areas = (merged[:, 2] - merged[:, 0]) * (merged[:, 3] - merged[:, 1])
    order = np.lexsort((merged[:, 0], merged[:, 1], -areas, -highest))
    return merged[order], highest[order], np.argsort(order)[groups]


def _group_within(boxes: NDArray[np.int64], distance: float) -> NDArray[np.intp]:
    """Group the boxes that chains of gaps of at most `distance` connect, anywhere.

    So many pairs are looked at in one go that memory does not grow with the square of the boxes.
    """
    from scipy.sparse import coo_array  # boxes of whole maps need no SciPy
    from scipy.sparse.csgraph import connected_components

    n_boxes = len(boxes)
    groups = np.arange(n_boxes)
    n_rows = max(1, _PAIRS_AT_ONCE // n_boxes)
    for start in range(0, n_boxes, n_rows):
        near = _gaps(boxes[start : start + n_rows], boxes) <= distance
        rows, columns = np.nonzero(near)
        _, first = np.unique(groups, return_index=True)  # a box of each group found so far
        ends = (
            np.concatenate([rows + start, np.arange(n_boxes)]).astype(np.int32),
            np.concatenate([columns, first[groups]]).astype(np.int32),
        )
        graph = coo_array((np.ones(len(ends[0]), dtype=bool), ends), (n_boxes, n_boxes))
        groups = connected_components(graph, directed=False)[1].astype(np.intp)
    return groups


def _gaps(boxes: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels from each box to each other one: the larger of the horizontal and vertical gap."""
    low = np.maximum(boxes[:, np.newaxis, :2], others[:, :2])
    high = np.minimum(boxes[:, np.newaxis, 2:], others[:, 2:])
    return (low - high).max(axis=2)


class _Regions(NamedTuple):
    boxes: NDArray[np.int64]
    scores: NDArray[np.float32]
    shape: tuple[int, int]  # of the map
    place: tuple[slice, slice]  # the part of the map that holds all regions
    labels: NDArray[np.int32]  # of that part, 0 = not above the threshold
    box_number: NDArray[np.int32]  # per label: 1 + the row of its box, 0 = dropped


def _find_regions(
    heatmap: ArrayLike,
    threshold: float,
    *,
    min_area: int = 1,
    max_boxes: int | None = None,
    merge_distance: float | None = None,
    peak_fraction: float = 0.0,
    tighten: bool = False,
    point_spread: tuple[float, float] = (0.0, 0.0),
    map_area: int | None = None,
) -> _Regions:
    values = _checked_map(heatmap)
    _check_parameters(threshold, min_area, max_boxes, merge_distance, peak_fraction, point_spread)

    above = values > float(threshold)
    least_peak = -np.inf
    peak = float(values.max())
    if peak_fraction > 0 and peak > 0:
        least_peak = peak_fraction * peak
        above &= values >= _EXTENT * least_peak
    place = _rectangle_around(above)  # mostly a small part of the map, and all that matters
    regions = _label_regions(above[place], values[place])
    is_region = (regions.areas >= min_area) & (regions.peaks >= least_peak)
    if tighten and threshold > 0:
        is_peak = np.zeros(values.shape, dtype=bool)
        is_peak[place] = above[place] & is_region[regions.labels] & (values[place] >= least_peak)
        hills = fit_hills(values, is_peak, float(threshold), min_area, point_spread, map_area)
        regions = _label_hills(hills, values)
        place = slice(0, values.shape[0]), slice(0, values.shape[1])
        is_region = np.ones(len(regions.areas), dtype=bool)
    return _kept(regions, is_region, max_boxes, merge_distance, values.shape, place)


def _kept(
    regions: _Labelled,
    is_region: NDArray[np.bool_],
    max_boxes: int | None,
    merge_distance: float | None,
    shape: tuple[int, int],
    place: tuple[slice, slice],
) -> _Regions:
    """Merge boxes that are near, order them and keep the best, in the pixels of the whole map."""
    candidates = 1 + np.flatnonzero(is_region[1:])  # label 0 is the background
    corners = regions.corners[candidates]
    groups = _group_near_boxes(corners, merge_distance, regions.labels.shape)
    boxes = _bounding_boxes(corners, groups)
    boxes += np.tile([place[1].start, place[0].start], 2)
    scores = np.full(len(boxes), -np.inf, dtype=np.float32)
    np.maximum.at(scores, groups, regions.peaks[candidates])
    box_areas = np.zeros(len(boxes), dtype=np.int64)
    np.add.at(box_areas, groups, regions.areas[candidates])

    order = np.lexsort((boxes[:, 0], boxes[:, 1], -box_areas, -scores))[:max_boxes]
    number_of_group = np.zeros(len(boxes), dtype=np.int32)
    number_of_group[order] = np.arange(1, len(order) + 1)
    box_number = np.zeros(len(is_region), dtype=np.int32)
    box_number[candidates] = number_of_group[groups]
    return _Regions(boxes[order], scores[order], shape, place, regions.labels, box_number)


def _rectangle_around(is_marked: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around what is marked, with a margin of one pixel for its slopes."""
    left, top, width, height = cv2.boundingRect(is_marked.view(np.uint8))
    return (
        slice(max(top - 1, 0), top + height + 1),
        slice(max(left - 1, 0), left + width + 1),
    )


class _Labelled(NamedTuple):
    """Regions by label; label 0 is what belongs to none."""

    labels: NDArray[np.int32]  # (H, W)
    areas: NDArray[np.int64]  # (n_labels,)
    corners: NDArray[np.int64]  # (n_labels, 4), half-open xyxy
    peaks: NDArray[np.float32]  # (n_labels,), -inf for label 0


def _label_regions(is_marked: NDArray[np.bool_], values: NDArray[np.float32]) -> _Labelled:
    """Label the 8-connected regions of what is marked."""
    n_labels, labelled, stats, _ = cv2.connectedComponentsWithStats(
        is_marked.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    labels = labelled.astype(np.int32, copy=False)  # for type checkers
    corners = stats[:, : cv2.CC_STAT_AREA].astype(np.int64)  # left, top, width, height
    corners[:, 2:] += corners[:, :2]
    peaks = np.full(n_labels, -np.inf, dtype=np.float32)
    np.maximum.at(peaks, labels[is_marked], values[is_marked])
    return _Labelled(labels, stats[:, cv2.CC_STAT_AREA].astype(np.int64), corners, peaks)


def _label_hills(hills: list[Hill], values: NDArray[np.float32]) -> _Labelled:
    """Make regions of the hills of a map."""
    corners = np.zeros((1 + len(hills), 4), dtype=np.int64)
    areas = np.zeros(1 + len(hills), dtype=np.int64)
    peaks = np.full(1 + len(hills), -np.inf, dtype=np.float32)
    labels = np.zeros(values.shape, dtype=np.int32)
    for label, hill in enumerate(hills, start=1):
        rows, columns = hill.place
        corners[label] = columns.start, rows.start, columns.stop, rows.stop
        areas[label] = hill.area
        peaks[label] = values[hill.place][hill.pixels].max()
        labels[hill.place][hill.pixels] = label
    return _Labelled(labels, areas, corners, peaks)


def _group_near_boxes(
    boxes: NDArray[np.int64], distance: float | None, shape: tuple[int, ...]
) -> NDArray[np.intp]:
    """Give each box the number, from 0 without a hole, of the group it merges into."""
    if distance is None:
        return np.arange(len(boxes))
    reach = int(min(distance, max(shape)))  # gaps are whole pixels, no larger than the map
    return _group_until_apart(boxes, lambda parts: _group_within_map(parts, reach, shape))


def _group_until_apart(
    boxes: NDArray[np.int64], group: Callable[[NDArray[np.int64]], NDArray[np.intp]]
) -> NDArray[np.intp]:
    """Group boxes, and the boxes around the groups, until none is near another."""
    groups = np.arange(len(boxes))
    while len(boxes):
        near = group(boxes)
        if near.max() + 1 == len(boxes):
            break
        # A merged box is larger than its parts and may come near others: look again.
        groups = near[groups]
        boxes = _bounding_boxes(boxes, near)
    return groups


def _group_within_map(
    boxes: NDArray[np.int64], reach: int, shape: tuple[int, ...]
) -> NDArray[np.intp]:
    """Group the boxes that chains of gaps of at most `reach` pixels connect, on a map.

    The boxes are painted, each grown by `reach` to the right and downwards: two painted boxes are
    8-connected exactly where the gap between the boxes is at most `reach`. So OpenCV labels them,
    in time that does not grow with the square of the number of boxes.
    """
    height, width = shape
    left, top = boxes[:, 0], boxes[:, 1]
    right = np.minimum(boxes[:, 2] + reach, width)
    bottom = np.minimum(boxes[:, 3] + reach, height)
    steps = np.zeros((height + 1, width + 1), dtype=np.int32)  # summed twice, it counts boxes
    np.add.at(steps, (top, left), 1)
    np.add.at(steps, (bottom, right), 1)
    np.add.at(steps, (top, right), -1)
    np.add.at(steps, (bottom, left), -1)
    np.cumsum(steps, axis=0, out=steps)
    np.cumsum(steps, axis=1, out=steps)
    painted = steps[:height, :width] > 0
    _, labels = cv2.connectedComponents(painted.view(np.uint8), connectivity=8)
    return labels[top, left].astype(np.intp) - 1


def _bounding_boxes(boxes: NDArray[np.int64], groups: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the smallest box around each group; `groups` numbers them from 0 without a hole."""
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    bounding = np.empty((n_groups, 4), dtype=np.int64)
    bounding[groups] = boxes  # any member starts its group's box; the others only widen it
    np.minimum.at(bounding[:, :2], groups, boxes[:, :2])
    np.maximum.at(bounding[:, 2:], groups, boxes[:, 2:])
    return bounding


def _checked_map(heatmap: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(heatmap, dtype=np.float32, order="C")  # OpenCV writes into no other
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"heatmap must be a non-empty array of shape (H, W), got shape {values.shape}; "
            "pass the map of one image."
        )
    if np.isnan(values).any():
        raise ValueError(
            f"heatmap has NaN in {np.isnan(values).sum()} of {values.size} pixels; "
            "a map must have a number everywhere."
        )
    return values


def _check_parameters(
    threshold: float,
    min_area: int,
    max_boxes: int | None,
    merge_distance: float | None,
    peak_fraction: float,
    point_spread: tuple[float, float],
) -> None:
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got NaN.")
    if min_area < 1:
        raise ValueError(f"min_area must be at least 1 pixel, got {min_area!r}.")
    if max_boxes is not None and max_boxes < 1:
        raise ValueError(f"max_boxes must be at least 1, or None for all boxes, got {max_boxes!r}.")
    if merge_distance is not None and not merge_distance >= 0:
        raise ValueError(
            f"merge_distance must be at least 0 pixels, or None to merge nothing, "
            f"got {merge_distance!r}."
        )
    if not 0 <= peak_fraction < 1:
        raise ValueError(f"peak_fraction must be at least 0 and below 1, got {peak_fraction!r}.")
    if len(point_spread) != 2 or not all(0 <= width < math.inf for width in point_spread):
        raise ValueError(
            f"point_spread must be a width and a height of at least 0 pixels, got {point_spread!r}."
        )
