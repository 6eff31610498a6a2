from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectcam.boxes import find_boxes
from defectcam.geometry import Geometry
from defectcam.placement import (
    PlacedGeometry,
    Placement,
    shifted_from_centres,
    shifted_to_centres,
)

modestly = settings(deadline=None, max_examples=60)


@st.composite
def crops(draw, outer: tuple[int, int] | None = None) -> Placement:
    height, width = outer or (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return Placement.crop((height, width), (left, top, right, bottom))


@st.composite
def crops_of_crops(draw, depth: int = 3) -> list[Placement]:
    chain = [draw(crops())]
    while len(chain) < depth:
        chain.append(draw(crops(chain[-1].view_size)))
    return chain


def random_map(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def turned(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


@given(crops())
@modestly
def test_a_map_of_a_crop_lies_where_the_crop_was(placement: Placement) -> None:
    left, top, right, bottom = placement.box
    values = random_map(placement.view_size)
    restored = placement.restore(values)
    assert restored.shape == placement.outer_size
    np.testing.assert_array_equal(restored[top:bottom, left:right], values)
    restored[top:bottom, left:right] = 0
    assert not restored.any()


@given(crops_of_crops(), st.integers(1, 9), st.integers(1, 9))
@modestly
def test_chains_of_crops_are_associative_and_one_crop(chain, height, width) -> None:
    """Inner crops first or outer ones first, one by one or at once: the same bits."""
    inner = Geometry.stretch(chain[-1].view_size, (32, 32))
    grid = random_map((height, width))
    expected = PlacedGeometry(inner, tuple(chain)).restore(grid)
    left, top = np.sum([placement.box[:2] for placement in chain], axis=0).tolist()
    box = (left, top, left + chain[-1].view_size[1], top + chain[-1].view_size[0])
    one = PlacedGeometry(inner, (Placement.crop(chain[0].outer_size, box),))
    np.testing.assert_array_equal(one.restore(grid), expected)
    nested = chain[0].restore(PlacedGeometry(inner, tuple(chain[1:])).restore(grid))
    np.testing.assert_array_equal(nested, expected)


@given(st.integers(1, 40), st.integers(1, 40))
@modestly
def test_the_whole_image_as_a_crop_changes_no_bit(height: int, width: int) -> None:
    geometry = Geometry.pad((height, width), (32, 32))
    whole = Placement.crop((height, width), (0, 0, width, height))
    grid = random_map((5, 4))
    np.testing.assert_array_equal(
        PlacedGeometry(geometry, (whole,)).restore(grid), geometry.restore(grid)
    )
    assert PlacedGeometry(geometry, ()).original_size == (height, width)


@given(crops(), st.data())
@modestly
def test_a_box_found_in_a_crop_is_that_box_in_the_original(placement, data) -> None:
    height, width = placement.view_size
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = (
        data.draw(st.integers(left + 1, width)),
        data.draw(st.integers(top + 1, height)),
    )
    values = np.zeros(placement.view_size, dtype=np.float32)
    values[top:bottom, left:right] = 2
    boxes, _ = find_boxes(placement.restore(values), 1.0)
    expected = placement.to_outer([[left, top], [right, bottom]]).ravel()
    assert boxes.tolist() == [expected.astype(int).tolist()]


@given(st.floats(-np.pi, np.pi), st.floats(0.5, 2), st.floats(20, 60), st.floats(20, 60), st.data())
@modestly
def test_a_spot_of_a_warped_view_comes_back_within_a_pixel(angle, scale, x, y, data) -> None:
    centre = np.array([20, 25])
    matrix = turned(angle, scale, (0, 0))
    matrix[:, 2] = (x, y) - matrix[:, :2] @ centre  # the view's centre falls on (x, y)
    placement = Placement((80, 80), (50, 40), matrix)
    values = np.zeros((50, 40), dtype=np.float32)
    values[23:27, 18:22] = 1  # its centre is the view's centre
    restored = placement.restore(values)
    rows, columns = np.indices(restored.shape) + 0.5
    found = [(restored * columns).sum(), (restored * rows).sum()] / restored.sum()
    assert np.abs(found - (x, y)).max() < 1


@given(st.integers(-9, 9), st.integers(-9, 9))
@modestly
def test_a_shifted_image_gets_its_map_shifted_back(dx: int, dy: int) -> None:
    """Also where the frame leaves the image: what lies outside is dropped, what is missing is 0."""
    placement = Placement((30, 40), (30, 40), ((1, 0, dx), (0, 1, dy)))
    values = random_map((30, 40))
    expected = np.zeros((30, 40), dtype=np.float32)
    expected[max(dy, 0) : 30 + min(dy, 0), max(dx, 0) : 40 + min(dx, 0)] = values[
        max(-dy, 0) : 30 + min(-dy, 0), max(-dx, 0) : 40 + min(-dx, 0)
    ]
    np.testing.assert_allclose(placement.restore(values), expected, atol=1e-6)


def test_points_go_where_the_matrix_says() -> None:
    placement = Placement((9, 9), (4, 4), turned(np.pi / 2, 2, (1, 3)))
    np.testing.assert_allclose(placement.to_outer([[1, 0], [0, 1]]), [[1, 5], [-1, 3]], atol=1e-12)


def test_shifts_to_pixel_centres_and_back_cancel() -> None:
    matrix = turned(0.3, 1.7, (4, -2))
    np.testing.assert_allclose(shifted_from_centres(shifted_to_centres(matrix)), matrix)
    doubled = shifted_to_centres(np.array([[2.0, 0, 0], [0, 2.0, 0]]))
    assert doubled[:, 2].tolist() == [0.5, 0.5]  # pixel 0 of a half covers pixels 0 and 1


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 3, 3), (0, 0, 11, 5), (2, 6, 3, 5)])
def test_boxes_outside_the_image_are_refused(box) -> None:
    with pytest.raises(ValueError, match="empty or leaves the image"):
        Placement.crop((10, 10), box)


@pytest.mark.parametrize(
    "matrix", [np.zeros((2, 3)), np.eye(2), [[1, 0, np.nan], [0, 1, 0]], [[1, 2, 0], [2, 4, 0]]]
)
def test_maps_without_an_inverse_are_refused(matrix) -> None:
    with pytest.raises(ValueError, match="invertible affine map"):
        Placement((4, 4), (4, 4), matrix)


def test_a_cell_of_a_crop_is_as_large_as_without_it_and_a_scaled_one_is_not() -> None:
    view = Geometry.stretch((30, 20), (64, 64))
    crop = Placement.crop((100, 200), (30, 10, 50, 40))
    assert PlacedGeometry(view, (crop,)).cell_size((8, 8)) == view.cell_size((8, 8)) == (2.5, 3.75)
    larger = Placement((100, 200), (30, 20), turned(0.3, 2.0, (50.0, 10.0)))
    assert PlacedGeometry(view, (larger,)).cell_size((8, 8)) == pytest.approx((5.0, 7.5))


def test_sizes_that_do_not_follow_are_refused() -> None:
    placement = Placement.crop((10, 10), (0, 0, 5, 5))
    with pytest.raises(ValueError, match="do not follow one another"):
        PlacedGeometry(Geometry.stretch((4, 4), (8, 8)), (placement,))
    with pytest.raises(ValueError, match="shape"):
        placement.restore(np.zeros((4, 4), dtype=np.float32))
