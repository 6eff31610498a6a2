from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from defectcam.geometry import Geometry

sides = st.integers(1, 70)
sizes = st.tuples(sides, sides)
ways = st.sampled_from([Geometry.stretch, Geometry.pad])
modestly = settings(deadline=None, max_examples=60)


def random_map(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_stretch_fills_the_input() -> None:
    assert Geometry.stretch((30, 50), (8, 9)).content == (0, 0, 8, 9)


@pytest.mark.parametrize(
    ("original", "content"),
    [
        ((100, 100), (0, 0, 32, 32)),
        ((100, 200), (8, 0, 16, 32)),
        ((200, 100), (0, 8, 32, 16)),
        ((10, 7), (0, 5, 32, 22)),
        ((1, 5000), (15, 0, 1, 32)),
    ],
)
def test_pad_keeps_the_aspect_and_centres(
    original: tuple[int, int], content: tuple[int, int, int, int]
) -> None:
    assert Geometry.pad(original, (32, 32)).content == content


@given(sizes, sizes)
@modestly
def test_pad_stays_inside_and_touches_two_opposite_edges(
    original: tuple[int, int], fitted: tuple[int, int]
) -> None:
    top, left, height, width = Geometry.pad(original, fitted).content
    assert height >= 1
    assert width >= 1
    assert height == fitted[0] or width == fitted[1]
    for start, length, room in [(top, height, fitted[0]), (left, width, fitted[1])]:
        assert start in ((room - length) // 2, (room - length + 1) // 2)


@pytest.mark.parametrize("original", [(0, 5), (5, 0), (-1, 5)])
def test_impossible_sizes_are_refused(original: tuple[int, int]) -> None:
    for make in (Geometry.stretch, Geometry.pad):
        with pytest.raises(ValueError, match="original_size must be a height and a width"):
            make(original, (8, 8))
        with pytest.raises(ValueError, match="input_size must be a height and a width"):
            make((8, 8), original)


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (0, 4)])
def test_other_maps_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="map of shape"):
        Geometry.stretch((8, 8), (4, 4)).restore(np.zeros(shape))


@given(sizes, sizes, sizes, ways, st.floats(-1e6, 1e6, width=32))
@modestly
@example((1, 1), (32, 32), (4, 4), Geometry.pad, 0.1)
def test_a_constant_stays_that_constant(original, fitted, grid, way, value) -> None:
    heatmap = way(original, fitted).restore(np.full(grid, value, dtype=np.float32))
    assert heatmap.shape == original
    assert heatmap.dtype == np.float32
    assert (heatmap == np.float32(value)).all()


@given(sizes, sizes, sizes, ways, st.integers(0, 99))
@modestly
def test_the_range_is_kept(original, fitted, grid, way, seed) -> None:
    values = random_map(grid, seed)
    heatmap = way(original, fitted).restore(values)
    assert values.min() <= heatmap.min()
    assert heatmap.max() <= values.max()


@given(sizes, sizes, sizes, st.integers(0, 99))
@modestly
def test_stretch_is_torch_interpolate(original, fitted, grid, seed) -> None:
    values = random_map(grid, seed)
    # In float64: torch's own float32 positions are off by up to 1e-5 on long sides.
    exact = torch.from_numpy(values).double()[None, None]
    expected = F.interpolate(exact, size=original, mode="bilinear", align_corners=False)
    heatmap = Geometry.stretch(original, fitted).restore(values)
    np.testing.assert_allclose(heatmap, expected[0, 0].numpy(), rtol=0, atol=2e-6)


@given(sizes, sizes, sizes, st.sampled_from([0, 1]), st.integers(0, 99))
@modestly
@example((333, 801), (320, 320), (40, 40), 1, 0)
def test_the_map_of_a_flipped_grid_is_the_flipped_map(original, fitted, grid, axis, seed) -> None:
    values = random_map(grid, seed)
    geometry = Geometry.stretch(original, fitted)
    flipped = geometry.restore(np.flip(values, axis))
    np.testing.assert_array_equal(flipped, np.flip(geometry.restore(values), axis))


def test_the_flipped_map_is_exact_with_padding_too() -> None:
    values = random_map((10, 10))
    for original in [(100, 200), (300, 150)]:  # equal margins on both sides
        geometry = Geometry.pad(original, (32, 32))
        flipped = geometry.restore(values[:, ::-1])
        np.testing.assert_array_equal(flipped, geometry.restore(values)[:, ::-1])


def test_padding_is_left_out() -> None:
    geometry = Geometry.pad((16, 32), (32, 32))
    values = np.full((32, 32), 1e9, dtype=np.float32)
    inside = random_map((16, 32))
    values[8:24] = inside
    np.testing.assert_array_equal(geometry.restore(values), inside)


@given(sizes, sizes, st.sampled_from([1, 2, 5]))
@modestly
def test_a_ramp_in_the_input_is_a_ramp_in_the_original(original, fitted, cells_per_pixel) -> None:
    """The map that holds each input column's position comes back as each pixel's position."""
    geometry = Geometry.pad(original, fitted)
    _, left, _, width = geometry.content
    n_cells = fitted[1] * cells_per_pixel
    ramp = np.tile((np.arange(n_cells) + 0.5) / cells_per_pixel, (3, 1))
    expected = left + (np.arange(original[1]) + 0.5) * width / original[1]
    half_cell = 0.5 / cells_per_pixel  # beyond the outermost centres the edge values continue
    expected = expected.clip(half_cell, fitted[1] - half_cell)
    np.testing.assert_allclose(geometry.restore(ramp)[0], expected, atol=1e-4)


@pytest.mark.parametrize("original", [(1, 1), (1, 40_000), (70_000, 1), (2, 33_000)])
@pytest.mark.parametrize("way", [Geometry.stretch, Geometry.pad])
def test_any_size_of_image(original: tuple[int, int], way) -> None:
    values = random_map((7, 5))
    heatmap = way(original, (320, 320)).restore(values)
    assert heatmap.shape == original
    assert np.isfinite(heatmap).all()


def test_an_equal_grid_comes_back_unchanged_and_unshared() -> None:
    values = random_map((6, 9))
    heatmap = Geometry.stretch((6, 9), (18, 18)).restore(values)
    np.testing.assert_array_equal(heatmap, values)
    assert not np.shares_memory(heatmap, values)


@given(sizes, sizes, ways)
@modestly
def test_a_map_of_one_cell_has_the_size_of_the_input(original, grid, make) -> None:
    geometry = make(original, (64, 48))
    width, height = geometry.cell_size((1, 1))
    across, down = geometry.cell_size(grid)
    assert (across * grid[1], down * grid[0]) == pytest.approx((width, height))
    _, _, rows, columns = geometry.content
    assert (width * columns / 48, height * rows / 64) == pytest.approx(original[::-1])


@given(sizes, sizes, ways, st.data())
@modestly
def test_a_window_is_a_part_of_the_whole(
    original: tuple[int, int], grid: tuple[int, int], make: Any, data: st.DataObject
) -> None:
    height, width = original
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    geometry, heatmap = make(original, (64, 48)), random_map(grid)
    part = geometry.restore(heatmap, (left, top, right, bottom))
    np.testing.assert_array_equal(part, geometry.restore(heatmap)[top:bottom, left:right])


@pytest.mark.parametrize("original", [(1, 1_500_000), (1_500_000, 1), (3, 1_100_000)])
@pytest.mark.parametrize("way", [Geometry.stretch, Geometry.pad])
def test_the_map_of_a_long_strip_takes_little_more_than_itself(original, way) -> None:
    geometry, grid = way(original, (320, 320)), random_map((40, 40))
    tracemalloc.start()
    whole = geometry.restore(grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * whole.nbytes + 100_000_000
    height, width = original
    corner = (max(0, width - 9), max(0, height - 9), width, height)
    np.testing.assert_array_equal(geometry.restore(grid, corner), whole[-9:, -9:])
    flipped = geometry.restore(grid[::-1, ::-1])
    if way is Geometry.stretch:  # padding may be a pixel wider on one side
        np.testing.assert_array_equal(flipped, whole[::-1, ::-1])
