from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes

from defectcam.coco import CocoMask, run_lengths
from defectcam.images import ImageReadError
from defectcam.shapes import (
    AnnotatedImage,
    Shape,
    box_around,
    joined,
    mask_outlines,
    mask_shape,
    outlined,
    polygon_shape,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

masks = st_numpy.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def flat(outlines: list[np.ndarray]) -> list[list[float]]:
    return [outline.ravel().tolist() for outline in outlines]


@given(masks)
def test_outlines_enclose_exactly_the_pixels(mask: np.ndarray) -> None:
    outlines, has_holes = mask_outlines(mask)
    filled = binary_fill_holes(mask)
    assert has_holes == (filled != mask).any()
    np.testing.assert_array_equal(np.asarray(CocoMask(mask.shape, [flat(outlines)])), filled)
    if outlines:  # and for COCO's own tools
        parts = coco_mask.frPyObjects(flat(outlines), *mask.shape)
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(parts)), filled)
        bridged = [joined(outlines).ravel().tolist()]
        np.testing.assert_array_equal(np.asarray(CocoMask(mask.shape, [bridged])), filled)


def test_a_part_within_the_hole_of_another_is_joined_to_nothing() -> None:
    """Drawn a second time it would be outside for those who count crossings."""
    ring = np.pad(np.pad([[True]], 2), 1, constant_values=True)
    outlines, _ = mask_outlines(ring)
    assert len(outlines) == 2
    bridged = [joined(outlines).ravel().tolist()]
    np.testing.assert_array_equal(
        np.asarray(CocoMask(ring.shape, [bridged])), binary_fill_holes(ring)
    )
    overlapping = [
        np.array([[0, 0], [0, 4], [4, 4], [4, 0.0]]),
        np.array([[3, 3], [3, 9], [9, 9.0]]),
    ]
    assert len(joined(overlapping)) > 4 + 3


@given(masks)
def test_run_lengths_are_those_of_cocos_tools(mask: np.ndarray) -> None:
    counts = {"size": list(mask.shape), "counts": run_lengths(mask)}
    theirs = coco_mask.decode(coco_mask.frPyObjects(counts, *mask.shape))
    np.testing.assert_array_equal(theirs, mask)


def test_no_corner_is_without_need() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 1:8] = True
    [outline], _ = mask_outlines(mask)
    assert sorted(outline.tolist()) == [[1, 2], [1, 7], [8, 2], [8, 7]]


def test_tolerance_leaves_few_corners() -> None:
    rows, columns = np.ogrid[:100, :100]
    mask = (rows - 50) ** 2 + (columns - 50) ** 2 < 40**2
    [exact], _ = mask_outlines(mask)
    [rough], _ = mask_outlines(mask, tolerance=1.5)
    assert len(rough) < len(exact) / 5
    drawn = np.asarray(CocoMask(mask.shape, [flat([rough])]))
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95


def test_regions_are_told_apart_where_boxes_overlap() -> None:
    labels = np.zeros((6, 6), np.int32)
    labels[0, :] = labels[:, 0] = 1
    labels[3:5, 3:5] = 2
    shapes = outlined([[0, 0, 6, 6], [3, 3, 5, 5]], ["dent", 7], [2.0, 1.5], labels)
    assert [(s.label, s.box, s.score) for s in shapes] == [
        ("dent", (0, 0, 6, 6), 2.0),
        ("7", (3, 3, 5, 5), 1.5),
    ]
    for number, shape in enumerate(shapes, start=1):
        drawn = np.asarray(AnnotatedImage("", (6, 6), (shape,)).mask)
        np.testing.assert_array_equal(drawn, labels == number)


def test_holes_are_kept_as_run_lengths() -> None:
    labels = np.ones((5, 5), np.int32)
    labels[2, 2] = 0
    [shape] = outlined([[0, 0, 5, 5]], ["ring"], [1.0], labels)
    assert shape.run_lengths is not None
    np.testing.assert_array_equal(
        np.asarray(AnnotatedImage("", (5, 5), (shape,)).mask), labels == 1
    )


def test_boxes_are_of_whole_pixels_inside_the_image() -> None:
    size = (40, 60)
    assert box_around([[1.2, 3.0], [5.9, 4.4]], size, "x") == (1, 3, 6, 5)
    assert box_around([[1.9999, 3.0001], [6.0001, 4.9999]], size, "x") == (2, 3, 6, 5)
    assert box_around([[-5, -5], [99, 99]], size, "x") == (0, 0, 60, 40)
    assert box_around([[60, 40], [61, 41]], size, "x") == (59, 39, 60, 40)  # never empty
    with pytest.raises(ImageReadError, match=r"line 3 reaches .* another image"):
        box_around([[100, 100], [120, 110]], size, "line 3")
    for wrong in ([[np.nan, 1], [2, 3]], [["a", 1], [2, 3]], [], None, [[1, 2], [3]]):
        with pytest.raises(ImageReadError, match="line 3 needs"):
            box_around(wrong, size, "line 3")


@pytest.mark.parametrize("corner", [(5, 9), (9, 5), (5, 5), (5.0000001, 9)])
def test_boxes_without_an_area_are_refused(corner: tuple[float, float]) -> None:
    with pytest.raises(ImageReadError, match="line 3 has no area"):
        box_around([[5, 5], corner], (40, 60), "line 3")


def test_polygons_on_a_line_are_refused() -> None:
    line, triangle = [[1, 1], [4, 4], [6, 6]], [[1, 1], [4, 1], [4, 3]]
    with pytest.raises(ImageReadError, match="line 3 has no area"):
        polygon_shape("dent", [line], (9, 9), "line 3")
    assert len(polygon_shape("dent", [triangle, line], (9, 9), "line 3").outlines) == 2


def test_polygons_and_masks_from_files_are_checked() -> None:
    shape = polygon_shape("dent", [[[1, 1], [4, 1], [4, 3]]], (9, 9), "x")
    assert shape.box == (1, 1, 4, 3)
    with pytest.raises(ImageReadError, match="three corners"):
        polygon_shape("dent", [[[1, 1], [4, 1]]], (9, 9), "x")
    with pytest.raises(ImageReadError, match="no corners"):
        polygon_shape("dent", [], (9, 9), "x")
    part = np.array([[False, True], [False, True]])
    assert mask_shape("dent", part, (2, 3), (9, 9), "x").box == (3, 3, 4, 5)
    for corner in ((8, 3), (-1, 3), (2, 8)):
        with pytest.raises(ImageReadError, match="lie in its image"):
            mask_shape("dent", part, corner, (9, 9), "x")


def test_the_type_is_that_of_the_largest_box() -> None:
    shapes = (Shape("dent", (0, 0, 2, 2)), Shape("scratch", (1, 1, 9, 3)))
    assert AnnotatedImage("a", (9, 9), shapes).type == "scratch"
    assert AnnotatedImage("a", (9, 9), (), "dent").type == "dent"
    assert AnnotatedImage("a", (9, 9), ()).type is None
    assert AnnotatedImage("a", (9, 9), ()).mask is None
