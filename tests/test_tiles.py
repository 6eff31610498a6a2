from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectcam.tiles import AUTO_TILES, TileGrid, as_overlap, as_tile, choose_tile

modestly = settings(deadline=None, max_examples=80)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    tile = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    cells = tuple(draw(st.integers(1, side)) for side in tile)
    overlap = tuple(draw(st.integers(0, side - 1)) for side in tile)
    size = draw(st.tuples(st.integers(1, 150), st.integers(1, 150)))
    return TileGrid(size, tile, overlap, (cells[0], cells[1]))  # type: ignore[arg-type]


@given(grids())
@modestly
def test_every_pixel_is_covered_and_every_tile_begins_in_the_image(grid: TileGrid) -> None:
    covered = np.zeros(grid.image_size, dtype=bool)
    for place in grid:
        left, top, right, bottom = grid.box(*place)
        assert 0 <= left < grid.image_size[1]
        assert 0 <= top < grid.image_size[0]
        assert (bottom - top, right - left) == grid.tile
        covered[top:bottom, left:right] = True
    assert covered.all()


@given(grids())
@modestly
def test_tiles_end_beyond_the_image_by_less_than_a_cell(grid: TileGrid) -> None:
    *_, right, bottom = grid.box(grid.n_rows - 1, grid.n_columns - 1)
    ends = zip((bottom, right), grid.image_size, grid.tile, grid.cells, strict=True)
    for end, side, tile, cells in ends:
        assert end - side < tile / cells or side < tile


@given(grids())
@modestly
def test_weights_sum_to_one(grid: TileGrid) -> None:
    total = np.zeros(grid.shape, dtype=np.float32)
    for place in grid:
        weights = grid.weights(*place)
        assert weights.shape == grid.cells
        assert (weights >= 0).all()
        grid.add(total, *place, np.ones(grid.cells))
    np.testing.assert_allclose(total, 1, atol=1e-5)


@given(grids())
@modestly
def test_a_map_cut_into_tiles_is_blended_into_itself(grid: TileGrid) -> None:
    whole = np.random.default_rng(0).normal(size=(2, *grid.shape)).astype(np.float32)
    total = np.zeros_like(whole)
    for place in grid:
        rows, columns = grid.place(*place)
        grid.add(total, *place, whole[:, rows, columns])
    np.testing.assert_allclose(total, whole, atol=1e-5)


@given(grids())
@modestly
def test_neighbours_overlap_by_as_much_as_asked(grid: TileGrid) -> None:
    """To half a cell, by which the overlap is rounded, and a pixel, by which starts are."""
    lefts = [grid.box(0, j)[0] for j in range(grid.n_columns)]
    cell = grid.tile[1] / grid.cells[1]
    for left, following in itertools.pairwise(lefts):
        assert left < following or grid.tile[1] == grid.cells[1] == 1
        if grid.overlap[1] <= grid.tile[1] - cell:
            assert left + grid.tile[1] - following >= grid.overlap[1] - cell / 2 - 1


@given(grids())
@modestly
def test_a_cell_lies_where_the_geometry_says(grid: TileGrid) -> None:
    """The map of the pixels' rows, restored, grows by one per pixel."""
    cell = grid.tile[0] / grid.cells[0]
    rows = (np.arange(grid.shape[0]) + 0.5) * cell
    restored = grid.geometry.restore(np.repeat(rows[:, None], grid.shape[1], axis=1))
    pixels = np.arange(grid.image_size[0]) + 0.5
    np.testing.assert_allclose(
        restored[:, 0], pixels.clip(rows[0], rows[-1]), atol=1e-3 * max(1.0, cell)
    )


@pytest.mark.parametrize("shrink", [1, 3])
@pytest.mark.parametrize("cells", [80, 77])
@pytest.mark.parametrize("length", [700_000, 10_000_000])
def test_the_end_of_a_very_long_image_is_found(length: int, cells: int, shrink: int) -> None:
    grid = TileGrid((length, 4), (320, 4), (0, 0), (cells, 1))
    n_cells = grid.shape[0]
    values = np.zeros((n_cells, 1), dtype=np.float32)
    values[-40:, 0] = np.arange(40)
    size = (-(-length // shrink), 4)
    geometry = dataclasses.replace(grid.geometry, original_size=size)
    end = geometry.restore(values, (0, size[0] - 5, 1, size[0]))[:, 0]
    centres = (np.arange(size[0] - 5, size[0]) + 0.5) * length / size[0] * cells / 320 - 0.5
    np.testing.assert_allclose(end, (centres - (n_cells - 40)).clip(0, 39), atol=1e-5)


def test_the_highest_of_the_tiles_that_count_is_kept() -> None:
    grid = TileGrid((10, 16), (10, 10), (4, 4), (10, 10))
    highest = np.full(grid.shape, -np.inf, dtype=np.float32)
    for place, value in zip(grid, (1.0, 2.0), strict=True):
        grid.raise_to(highest, *place, value)
    assert highest[0].tolist() == [1.0] * 7 + [2.0] * 9  # the outer quarter does not count


def test_one_tile_is_the_whole_image() -> None:
    grid = TileGrid((64, 64), (64, 64), (8, 8), (8, 8))
    assert grid.n_tiles == 1
    assert grid.box(0, 0) == (0, 0, 64, 64)
    assert (grid.weights(0, 0) == 1).all()


@pytest.mark.parametrize("overlap", [(-1, 0), (10, 0), (0, 10)])
def test_impossible_overlaps_are_refused(overlap: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="overlap must be at least 0 and less than the tile"):
        TileGrid((50, 50), (10, 10), overlap, (5, 5))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="cells must be at least 1"):
        TileGrid((50, 50), (10, 10), (0, 0), (0, 5))


def test_a_tile_is_one_number_or_two() -> None:
    assert as_tile(320) == as_tile((320, 320)) == as_tile(np.array([320, 320])) == (320, 320)
    for wrong in ("large", (1, 2, 3), 0, (10, -1), 2.5):
        with pytest.raises(ValueError, match="expected a number of pixels"):
            as_tile(wrong)


def test_an_overlap_is_a_share_or_pixels() -> None:
    assert as_overlap(0.25, (40, 80)) == (10, 20)
    assert as_overlap(10, (40, 80)) == (10, 10)
    for wrong in (1.0, 40, -1, -0.5, 1e308, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a share of the tile"):
            as_overlap(wrong, (40, 80))


@pytest.mark.parametrize(
    ("side", "tile"), [(300, 320), (4096, 320), (8192, 320), (20_000, 640), (100_000, 2560)]
)
def test_the_tile_is_chosen_by_the_image(side: int, tile: int) -> None:
    chosen = choose_tile((side, side), (320, 320), 0.125)
    assert chosen == (tile, tile)
    n_tiles = TileGrid((side, side), chosen, as_overlap(0.125, chosen), (40, 40)).n_tiles
    assert n_tiles <= AUTO_TILES or tile == 2560
