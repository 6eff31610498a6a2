"""Boxes: properties over random maps, and agreement with slow, obvious references."""

from __future__ import annotations

import math
import tracemalloc
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from defectcam.boxes import (
    component_labels,
    component_mask,
    find_boxes,
    find_boxes_at,
    merge_and_trace,
)

COMMON = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def maps(draw, max_side=14):
    """Draw a map of distinct values in (0, 1), strips and single pixels included."""
    shape = draw(st.tuples(st.integers(1, max_side), st.integers(1, max_side)))
    seed = draw(st.integers(0, 2**32 - 1))
    n_pixels = shape[0] * shape[1]
    values = np.random.default_rng(seed).permutation(n_pixels) + 1
    return (values.reshape(shape) / (n_pixels + 1)).astype(np.float32)


thresholds = st.floats(-0.125, 1.125, width=32)
min_areas = st.integers(1, 5)
box_limits = st.none() | st.integers(1, 4)
distances = st.sampled_from([0, 0.5, 1, 2, 5, math.inf])
merge_distances = st.none() | distances


def rows(boxes):
    return {tuple(box) for box in boxes.tolist()}


def gap(a, b):
    return max(0, a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def reference_components(heatmap, threshold, min_area):
    """Label with SciPy: a list of (box, score, mask)."""
    labels, n_labels = ndimage.label(heatmap > threshold, structure=np.ones((3, 3)))
    found = []
    for label, (ys, xs) in enumerate(ndimage.find_objects(labels, n_labels), start=1):
        mask = labels == label
        if mask.sum() >= min_area:
            found.append(((xs.start, ys.start, xs.stop, ys.stop), heatmap[mask].max(), mask))
    return found


def reference_merge(boxes, distance):
    """Merge the first pair that is near enough, again and again."""
    boxes = list(boxes)
    while True:
        pairs = [(i, j) for j in range(len(boxes)) for i in range(j)]
        near = [(i, j) for i, j in pairs if gap(boxes[i], boxes[j]) <= distance]
        if not near:
            return set(boxes)
        i, j = near[0]
        b, a = boxes.pop(j), boxes.pop(i)
        boxes.append((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))


@COMMON
@given(maps(), thresholds, min_areas, box_limits, merge_distances)
def test_boxes_lie_inside_are_nonempty_sorted_and_at_most_max_boxes(
    heatmap, threshold, min_area, max_boxes, merge_distance
):
    boxes, scores = find_boxes(
        heatmap, threshold, min_area=min_area, max_boxes=max_boxes, merge_distance=merge_distance
    )
    height, width = heatmap.shape
    assert boxes.dtype == np.int64 and boxes.shape == (len(scores), 4)
    assert scores.dtype == np.float32
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (np.diff(scores) <= 0).all() and (scores > threshold).all()
    assert max_boxes is None or len(boxes) <= max_boxes


@COMMON
@given(maps(), thresholds, min_areas)
def test_each_unmerged_component_has_at_least_min_area_pixels(heatmap, threshold, min_area):
    mask = component_mask(heatmap, threshold, min_area=min_area)
    labels, n_labels = ndimage.label(mask, structure=np.ones((3, 3)))
    boxes, _ = find_boxes(heatmap, threshold, min_area=min_area)
    assert n_labels == len(boxes)
    assert (np.bincount(labels.ravel())[1:] >= min_area).all()


@COMMON
@given(maps(), thresholds, min_areas)
def test_boxes_agree_with_scipy_label(heatmap, threshold, min_area):
    expected = reference_components(heatmap, threshold, min_area)
    boxes, scores = find_boxes(heatmap, threshold, min_area=min_area)
    got = [(tuple(b), s) for b, s in zip(boxes.tolist(), scores.tolist(), strict=True)]
    assert sorted(got) == sorted((box, float(score)) for box, score, _ in expected)
    expected_mask = np.any([mask for *_, mask in expected] or [heatmap != heatmap], axis=0)
    np.testing.assert_array_equal(
        component_mask(heatmap, threshold, min_area=min_area), expected_mask
    )


@COMMON
@given(maps(), thresholds, min_areas, box_limits, merge_distances)
def test_union_of_boxes_covers_every_pixel_of_the_kept_components(
    heatmap, threshold, min_area, max_boxes, merge_distance
):
    options = dict(min_area=min_area, max_boxes=max_boxes, merge_distance=merge_distance)
    boxes, scores = find_boxes(heatmap, threshold, **options)
    mask = component_mask(heatmap, threshold, **options)
    assert mask.dtype == bool and mask.shape == heatmap.shape
    covered = np.zeros_like(mask)
    for (left, top, right, bottom), score in zip(boxes, scores, strict=True):
        covered[top:bottom, left:right] = True
        inside = np.where(mask, heatmap, -np.inf)[top:bottom, left:right]
        assert (inside == score).any()
        # A box is tight: each of its four edges has a pixel of its regions.
        kept = mask[top:bottom, left:right]
        assert kept[0].any() and kept[-1].any() and kept[:, 0].any() and kept[:, -1].any()
    assert (covered | ~mask).all()
    assert (heatmap[mask] > threshold).all()
    if min_area == 1 and max_boxes is None:
        np.testing.assert_array_equal(mask, heatmap > threshold)


@COMMON
@given(maps(), thresholds, thresholds, min_areas, merge_distances)
def test_a_higher_threshold_never_adds_pixels(heatmap, one, other, min_area, merge_distance):
    low, high = sorted([one, other])
    options = dict(min_area=min_area, merge_distance=merge_distance)
    assert not (
        component_mask(heatmap, high, **options) & ~component_mask(heatmap, low, **options)
    ).any()


@COMMON
@given(maps(), thresholds, thresholds, st.integers(1, 3), merge_distances)
def test_a_higher_threshold_never_adds_pixels_with_max_boxes(
    heatmap, one, other, max_boxes, merge_distance
):
    low, high = sorted([one, other])
    options = dict(max_boxes=max_boxes, merge_distance=merge_distance)
    assert not (
        component_mask(heatmap, high, **options) & ~component_mask(heatmap, low, **options)
    ).any()


@COMMON
@given(maps(), thresholds, min_areas, box_limits, merge_distances)
def test_flipping_or_transposing_a_map_flips_or_transposes_its_boxes(
    heatmap, threshold, min_area, max_boxes, merge_distance
):
    options = dict(min_area=min_area, max_boxes=max_boxes, merge_distance=merge_distance)
    height, width = heatmap.shape
    boxes, scores = find_boxes(heatmap, threshold, **options)
    flipped, flipped_scores = find_boxes(heatmap[:, ::-1], threshold, **options)
    assert rows(flipped) == {(width - r, t, width - x, b) for x, t, r, b in rows(boxes)}
    upended, upended_scores = find_boxes(heatmap[::-1], threshold, **options)
    assert rows(upended) == {(x, height - b, r, height - t) for x, t, r, b in rows(boxes)}
    transposed, transposed_scores = find_boxes(heatmap.T, threshold, **options)
    assert rows(transposed) == {(t, x, b, r) for x, t, r, b in rows(boxes)}
    for others in (flipped_scores, upended_scores, transposed_scores):
        np.testing.assert_array_equal(others, scores)


@COMMON
@given(maps(), thresholds, box_limits, merge_distances, st.integers(0, 9), st.integers(0, 9))
def test_shifting_a_map_shifts_its_boxes(heatmap, threshold, max_boxes, distance, down, right):
    options = dict(max_boxes=max_boxes, merge_distance=distance)
    height, width = heatmap.shape
    canvas = np.full((height + 9, width + 9), -1.0, dtype=np.float32)
    canvas[down : down + height, right : right + width] = heatmap
    boxes, scores = find_boxes(heatmap, threshold, **options)
    moved, moved_scores = find_boxes(canvas, threshold, **options)
    np.testing.assert_array_equal(moved - [right, down, right, down], boxes)
    np.testing.assert_array_equal(moved_scores, scores)


@COMMON
@given(maps(max_side=24), st.floats(0.625, 1, width=32), distances)
def test_merged_boxes_are_further_apart_than_merge_distance(heatmap, threshold, distance):
    assume(len(find_boxes(heatmap, threshold)[0]) > 1)
    boxes = find_boxes(heatmap, threshold, merge_distance=distance)[0].tolist()
    assert all(gap(boxes[i], boxes[j]) > distance for j in range(len(boxes)) for i in range(j))


@COMMON
@given(maps(max_side=24), st.floats(0.625, 1, width=32), distances, st.integers(1, 3))
def test_merging_agrees_with_merging_pair_by_pair(heatmap, threshold, distance, min_area):
    apart = [box for box, *_ in reference_components(heatmap, threshold, min_area)]
    assume(len(apart) > 1)
    merged, _ = find_boxes(heatmap, threshold, min_area=min_area, merge_distance=distance)
    assert rows(merged) == reference_merge(apart, distance)


@COMMON
@given(maps(), thresholds)
def test_infinite_merge_distance_gives_the_published_ancestors_box(heatmap, threshold):
    boxes, scores = find_boxes(heatmap, threshold, merge_distance=math.inf)
    ys, xs = np.nonzero(heatmap > threshold)
    if len(ys) == 0:
        assert boxes.shape == (0, 4) and scores.shape == (0,)
    else:
        assert boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        assert scores.tolist() == [heatmap.max()]


def test_row_0_column_0_and_the_last_ones_are_found():
    heatmap = np.zeros((5, 7))
    heatmap[0, 3] = heatmap[2, 0] = heatmap[4, 3] = heatmap[2, 6] = 1.0
    boxes, _ = find_boxes(heatmap, 0.5)
    assert boxes.tolist() == [[3, 0, 4, 1], [0, 2, 1, 3], [6, 2, 7, 3], [3, 4, 4, 5]]


def test_the_threshold_itself_is_not_above_it():
    assert len(find_boxes(np.full((2, 2), 0.1, dtype=np.float32), 0.1)[0]) == 0
    assert len(find_boxes(np.full((2, 2), 0.1, dtype=np.float32), np.float64(0.1))[0]) == 0


def test_pixels_that_touch_at_a_corner_belong_together():
    assert find_boxes(np.eye(3), 0.5)[0].tolist() == [[0, 0, 3, 3]]


def test_equal_scores_are_ordered_by_area_then_position():
    heatmap = np.zeros((5, 9))
    heatmap[0, 0] = heatmap[0, 4] = heatmap[4, 0] = 1.0
    heatmap[4, 7:9] = 1.0
    boxes, _ = find_boxes(heatmap, 0.5)
    assert boxes.tolist() == [[7, 4, 9, 5], [0, 0, 1, 1], [4, 0, 5, 1], [0, 4, 1, 5]]


@given(maps(), thresholds, st.sampled_from([0.25, 0.5, 0.9]))
def test_peak_fraction_keeps_regions_near_the_peak(heatmap, threshold, fraction):
    peak = float(heatmap.max())
    marked = component_mask(heatmap, threshold, peak_fraction=fraction)
    least_peak = fraction * peak if peak > 0 else -np.inf
    above = (heatmap > threshold) & (heatmap >= 1 / 2 * least_peak)
    labels, n_labels = ndimage.label(above, structure=np.ones((3, 3)))
    expected = np.zeros_like(marked)
    for label in range(1, n_labels + 1):
        region = labels == label
        if heatmap[region].max() >= least_peak:
            expected |= region
    np.testing.assert_array_equal(marked, expected)


def test_what_is_weaker_than_the_peak_fraction_gets_no_box():
    heatmap = np.zeros((1, 9))
    heatmap[0, [1, 4, 5, 7]] = [10, 6, 4, 5]
    boxes, _ = find_boxes(heatmap, 1.0, peak_fraction=0.6)
    assert boxes.tolist() == [[1, 0, 2, 1], [4, 0, 6, 1]]
    assert len(find_boxes(heatmap, 1.0)[0]) == 3


def blurred(shape, box, sigma):
    """Draw a bright box, blurred as a coarse grid blurs what it shows."""
    heatmap = np.zeros(shape, dtype=np.float32)
    left, top, right, bottom = box
    heatmap[top:bottom, left:right] = 4.0
    return cv2.GaussianBlur(heatmap, (0, 0), sigma)


@pytest.mark.parametrize("box", [(40, 50, 64, 62), (0, 0, 20, 30), (108, 60, 120, 72)])
def test_a_tightened_box_is_the_one_that_was_blurred(box):
    heatmap = blurred((100, 120), box, sigma=3)
    (loose,), _ = find_boxes(heatmap, 0.2)
    (tight,), _ = find_boxes(heatmap, 0.2, tighten=True, point_spread=(7.0, 7.0))
    assert np.abs(tight - box).max() <= 2
    assert np.abs(loose - box).max() >= 4


def test_tightening_parts_what_the_blur_joined():
    heatmap = blurred((100, 120), (30, 40, 40, 50), 4) + blurred((100, 120), (52, 40, 62, 50), 4)
    assert len(find_boxes(heatmap, 0.3)[0]) == 1
    boxes, _ = find_boxes(heatmap, 0.3, tighten=True)
    assert sorted(boxes[:, 0] < 45) == [False, True]


@COMMON
@given(maps(max_side=24), thresholds, min_areas, st.sampled_from([0.0, 0.6]))
def test_a_tightened_box_is_around_a_region_that_had_one(heatmap, threshold, min_area, fraction):
    options = dict(min_area=min_area, peak_fraction=fraction)
    loose_scores = find_boxes(heatmap, threshold, **options)[1].tolist()
    tight, tight_scores = find_boxes(heatmap, threshold, tighten=True, **options)
    loose_mask = component_mask(heatmap, threshold, **options)
    assert loose_scores[:1] == tight_scores[:1].tolist()  # the highest hill is no other's part
    assert (tight_scores > threshold).all()
    labels = component_labels(heatmap, threshold, tighten=True, **options)
    for number in range(1, 1 + len(tight)):
        assert (loose_mask & (labels == number)).any()


@COMMON
@given(maps(), thresholds, st.floats(-1.5, 0))
def test_without_a_threshold_above_0_there_are_no_heights_to_tighten(heatmap, shift, threshold):
    loose, scores = find_boxes(heatmap - shift, threshold)
    tight, tight_scores = find_boxes(heatmap - shift, threshold, tighten=True)
    assert (tight.tolist(), tight_scores.tolist()) == (loose.tolist(), scores.tolist())


def test_tightening_keeps_a_region_of_one_pixel():
    heatmap = np.zeros((9, 9))
    heatmap[0, 0] = heatmap[4, 5] = 2.0
    boxes, _ = find_boxes(heatmap, 1.0, tighten=True, point_spread=(9.0, 9.0))
    assert boxes.tolist() == [[0, 0, 1, 1], [5, 4, 6, 5]]


def test_gap_of_exactly_merge_distance_merges_and_one_more_does_not():
    heatmap = np.zeros((1, 6))
    heatmap[0, 0] = heatmap[0, 4] = 1.0  # three pixels between
    assert len(find_boxes(heatmap, 0.5, merge_distance=2.9)[0]) == 2
    assert find_boxes(heatmap, 0.5, merge_distance=3)[0].tolist() == [[0, 0, 5, 1]]


def test_min_area_counts_component_pixels_before_merging():
    heatmap = np.zeros((3, 5))
    heatmap[1, 0] = heatmap[1, 2] = heatmap[1, 4] = 1.0
    assert len(find_boxes(heatmap, 0.5, min_area=2, merge_distance=5)[0]) == 0


def test_the_input_map_is_left_alone_and_its_dtype_does_not_matter():
    heatmap = np.arange(12).reshape(3, 4)
    heatmap.setflags(write=False)
    integer, _ = find_boxes(heatmap, 6)
    floating, _ = find_boxes(heatmap.astype(np.float64).tolist(), 6)
    assert integer.tolist() == floating.tolist() == [[0, 1, 4, 3]]


@pytest.mark.parametrize("find", [find_boxes, component_mask])
@pytest.mark.parametrize(
    ("heatmap", "options", "message"),
    [
        (np.full((2, 2), np.nan), {}, "heatmap has NaN in 4 of 4 pixels"),
        (np.zeros((2, 2, 1)), {}, r"got shape \(2, 2, 1\)"),
        (np.zeros((0, 3)), {}, "non-empty"),
        (np.zeros((2, 2)), {"threshold": math.nan}, "threshold"),
        (np.zeros((2, 2)), {"min_area": 0}, "min_area must be at least 1 pixel, got 0"),
        (np.zeros((2, 2)), {"max_boxes": 0}, "max_boxes"),
        (np.zeros((2, 2)), {"merge_distance": -1}, "merge_distance"),
        (np.zeros((2, 2)), {"peak_fraction": 1.0}, "peak_fraction"),
        (np.zeros((2, 2)), {"peak_fraction": -0.1}, "peak_fraction"),
        (np.zeros((2, 2)), {"merge_distance": math.nan}, "merge_distance"),
        (np.zeros((2, 2)), {"tighten": True, "point_spread": (1.0, -1.0)}, "point_spread must be"),
        (np.zeros((2, 2)), {"tighten": True, "point_spread": (1.0,)}, "point_spread must be"),
    ],
)
def test_bad_input_is_refused_by_name(find, heatmap, options, message):
    with pytest.raises(ValueError, match=message):
        find(heatmap, **{"threshold": 0.5, **options})


@COMMON
@given(
    maps(),
    st.lists(st.floats(-1.5, 1.125, width=32), max_size=8),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.booleans(),
)
def test_boxes_at_several_thresholds_are_those_of_each(heatmap, several, peak_fraction, tighten):
    options = {"min_area": 2, "peak_fraction": peak_fraction, "tighten": tighten}
    for shift in (0, -0.5, -1.5):  # maps with few and without positive values too
        together = find_boxes_at(heatmap + shift, several, **options)
        for threshold, (boxes, scores) in zip(several, together, strict=True):
            expected_boxes, expected_scores = find_boxes(heatmap + shift, threshold, **options)
            assert boxes.tolist() == expected_boxes.tolist()
            assert scores.tolist() == expected_scores.tolist()


def test_how_far_a_wide_hill_reaches_is_asked_for_each_threshold():
    heatmap = np.zeros((30, 30))
    heatmap[:12] = 1.03
    heatmap[4, 4] = 4.0
    options = {"peak_fraction": 0.6, "tighten": True}
    low, high = find_boxes_at(heatmap, [0.5, 1.19], **options)  # 0.9 x 0.5 < 4 / 4 < 0.9 x 1.19
    assert low[0].tolist() == [[0, 0, 30, 12]]
    assert high[0].tolist() == find_boxes(heatmap, 1.19, **options)[0].tolist() == [[4, 4, 5, 5]]


def test_thresholds_that_decide_nothing_are_not_looked_at_again(monkeypatch):
    calls = []

    def counted(*args, **options):
        calls.append(args)
        return find_boxes(*args, **options)

    monkeypatch.setattr("defectcam.boxes.find_boxes", counted)
    heatmap = [[4.0, 2.0, 0.0]]
    find_boxes_at(heatmap, [0.5, 1.0, 1.5, 2.5, 4.0, 5.0, 6.0], peak_fraction=0.8)
    assert len(calls) == 3  # below half of 0.8 x 4, between, and from the peak on


@COMMON
@given(maps(), merge_distances, st.sampled_from([0.0, 0.5]), st.booleans())
def test_component_labels_number_the_boxes(heatmap, merge_distance, peak_fraction, tighten) -> None:
    options = {"merge_distance": merge_distance, "peak_fraction": peak_fraction, "tighten": tighten}
    boxes, scores = find_boxes(heatmap, 0.5, **options)
    labels = component_labels(heatmap, 0.5, **options)
    np.testing.assert_array_equal(labels > 0, component_mask(heatmap, 0.5, **options))
    assert labels.max(initial=0) == len(boxes)
    for number, (box, score) in enumerate(zip(boxes.tolist(), scores, strict=True), start=1):
        y, x = np.nonzero(labels == number)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert np.asarray(heatmap, np.float32)[labels == number].max() == score


@given(maps(), st.floats(0.5, 1), merge_distances)
@COMMON
def test_merging_afterwards_is_merging_at_once(
    heatmap: np.ndarray, threshold: float, distance: float | None
) -> None:
    apart, scores = find_boxes(heatmap, threshold)
    boxes, highest, _ = merge_and_trace(apart, scores, distance)
    expected, expected_scores = find_boxes(heatmap, threshold, merge_distance=distance)
    assert sorted(map(tuple, boxes.tolist())) == sorted(map(tuple, expected.tolist()))
    np.testing.assert_array_equal(highest, expected_scores)


def test_of_equal_boxes_the_larger_then_the_upper_then_the_left_one_comes_first() -> None:
    boxes = np.array([[0, 8, 2, 9], [9, 0, 11, 1], [5, 0, 7, 1], [20, 20, 23, 23], [0, 30, 5, 32]])
    merged, scores, _ = merge_and_trace(boxes, np.array([1, 1, 1, 1, 1], np.float32), None)
    # The areas are 2, 2, 2, 9 and 10.
    assert merged.tolist() == boxes[[4, 3, 2, 1, 0]].tolist()
    assert scores.tolist() == [1.0] * 5


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@COMMON
def test_how_many_pairs_are_looked_at_in_one_go_does_not_matter(seed: int, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, size=(rng.integers(0, 20), 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 9, size=corners.shape)], axis=1)
    scores = rng.random(len(boxes)).astype(np.float32)
    expected = merge_and_trace(boxes, scores, 2)
    with patch("defectcam.boxes._PAIRS_AT_ONCE", at_once):
        found = merge_and_trace(boxes, scores, 2)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_memory_of_merging_does_not_grow_with_the_square_of_the_boxes() -> None:
    corners = 10 * np.stack(np.mgrid[:70, :70], axis=-1).reshape(-1, 2)
    boxes = np.concatenate([corners, corners + 3], axis=1)
    tracemalloc.start()
    merged, *_ = merge_and_trace(boxes, np.ones(len(boxes), np.float32), 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(merged) == len(boxes) == 4900
    assert peak < 100e6


def test_the_order_of_a_map_in_memory_does_not_matter():
    heatmap = np.zeros((40, 50), dtype=np.float32)
    heatmap[10:15, 20:30] = np.linspace(1, 3, 50).reshape(5, 10)
    expected, scores = find_boxes(heatmap, 0.5, tighten=True)
    found, its_scores = find_boxes(np.asfortranarray(heatmap), 0.5, tighten=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(its_scores, scores)
