from __future__ import annotations

import copy
import pickle
from typing import Any

import cv2
import numpy as np
import pytest

from defectcam import tiled_results
from defectcam.boxes import component_mask, find_boxes
from defectcam.results import Localization
from defectcam.tiled_results import TiledLocalization
from defectcam.tiles import TileGrid

GRID = TileGrid((300, 410), (80, 80), (20, 20), (10, 10))


def made(**overrides: Any) -> TiledLocalization:
    heat = np.zeros(GRID.shape, dtype=np.float32)
    heat[4:6, 5:8] = 4.0
    heat[30, 40] = 2.0
    parameters: dict[str, Any] = {
        "label": "scratch",
        "probability": 0.9,
        "is_defect": True,
        "grid": heat,
        "geometry": GRID.geometry,
        "threshold": 1.0,
        "decision_threshold": 0.5,
        "min_area": 1,
        "max_boxes": None,
        "merge_distance": None,
        "source": np.full((300, 410, 3), 90, dtype=np.uint8),
        "good_label": "good",
        "defect_label": "scratch",
        "probability_grid": np.full(GRID.shape, 0.9),
        "tile": (80, 80),
    }
    return TiledLocalization(**{**parameters, **overrides})


def suspicious(*cells: tuple[slice, slice]) -> np.ndarray:
    grid = np.full(GRID.shape, 0.1)
    for place in cells:
        grid[place] = 0.9
    return grid


def test_it_is_a_localization() -> None:
    assert isinstance(made(), Localization)
    assert repr(made()).startswith("TiledLocalization") or repr(made()).startswith("Localization")


def test_where_all_is_suspicious_boxes_are_those_of_the_whole_map() -> None:
    found = made(peak_fraction=0.3, tighten=True, point_spread=1.5)
    spread = (1.5 * 8, 1.5 * 8)  # 10 cells in a tile of 80 pixels
    options = {"peak_fraction": 0.3, "tighten": True, "point_spread": spread}
    boxes, scores = find_boxes(found.heatmap, 1.0, **options)
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.box_scores, scores)
    np.testing.assert_array_equal(found.mask(), component_mask(found.heatmap, 1.0, **options))
    assert len(boxes) == 2


def test_boxes_lie_in_suspicious_tiles_only() -> None:
    found = made(probability_grid=suspicious((slice(0, 10), slice(0, 10))))
    assert len(found.boxes) == 1
    left, top, right, bottom = found.boxes[0].tolist()
    assert 30 <= left < right <= 80
    assert 20 <= top < bottom <= 60


def test_a_warm_map_leads_no_region_into_calm_tiles() -> None:
    warm = np.full(GRID.shape, 1.2)
    warm[4, 4] = 1.5
    corner = suspicious((slice(0, 20), slice(0, 10)), (slice(0, 10), slice(0, 30)))
    found = made(grid=warm, probability_grid=corner, tighten=True, point_spread=1.5)
    labels = found.component_labels()
    assert (labels[:80, :240] > 0).any()
    assert not labels[80:, 80:].any()


def test_boxes_at_the_end_of_a_very_long_image_are_found() -> None:
    grid = TileGrid((1_000_000, 4), (320, 4), (0, 0), (80, 1))
    heat, probability = np.zeros(grid.shape), np.full(grid.shape, 0.1)
    heat[-41:-39] = 4.0
    probability[-80:] = 0.9
    found = made(grid=heat, geometry=grid.geometry, probability_grid=probability, tile=(320, 4))
    ((left, top, right, bottom),) = found.boxes.tolist()
    assert (left, right) == (0, 4)
    assert 999_834 <= top < 999_838 and 999_842 < bottom <= 999_846


def test_far_defects_are_no_echoes_of_the_strongest() -> None:
    near = (slice(0, 10), slice(0, 10))
    far = (slice(26, 36), slice(36, 46))
    assert len(made(peak_fraction=0.6).boxes) == 1
    assert len(made(peak_fraction=0.6, probability_grid=suspicious(near, far)).boxes) == 2


def test_a_higher_decision_threshold_takes_boxes_away() -> None:
    found = made(probability_grid=suspicious((slice(0, 10), slice(0, 10))))
    assert len(found.with_threshold(decision_threshold=0.05).boxes) == 2
    calm = found.with_threshold(decision_threshold=0.95)
    assert isinstance(calm, TiledLocalization)
    assert (calm.label, len(calm.boxes)) == ("good", 0)
    assert not calm.mask().any()


@pytest.mark.parametrize("is_shrunk", [False, True])
def test_what_is_wide_is_so_in_the_image_not_in_its_suspicious_part(
    is_shrunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_shrunk:  # by 2, of the part alone
        monkeypatch.setattr(tiled_results, "LARGEST_PART", 80 * 80 // 3)
    spot = np.zeros(GRID.shape)
    spot[5, 5] = 100.0
    options = {"grid": cv2.GaussianBlur(spot, (0, 0), 2.0), "tighten": True, "point_spread": 1.5}
    part = made(probability_grid=suspicious((slice(0, 10), slice(0, 10))), **options)
    boxes, _ = find_boxes(part.heatmap, 1.0, tighten=True, point_spread=(12.0, 12.0))
    assert (part.heatmap > 0.9).sum() < part.heatmap.size / 12  # nothing can be wide
    np.testing.assert_allclose(part.boxes, boxes, atol=2 if is_shrunk else 0)


@pytest.mark.parametrize("tighten", [False, True])
@pytest.mark.parametrize("threshold", [1.0, -0.5])
def test_boxes_for_several_thresholds_are_those_of_each(threshold: float, tighten: bool) -> None:
    rng = np.random.default_rng(0)
    found = made(
        grid=cv2.GaussianBlur(rng.normal(size=GRID.shape), (0, 0), 1.5) * 10,
        probability_grid=np.kron(rng.random((4, 6)), np.ones((10, 10)))[: GRID.shape[0], :52],
        probability=0.99,
        decision_threshold=0.6,
        merge_distance=3,
        threshold=threshold,
        peak_fraction=0.2,
        tighten=tighten,
        point_spread=1.5,
    )
    stops = [-1.0, 0.5, threshold, 2.0, 99.0]
    for stop, (boxes, scores) in zip(stops, found.boxes_at(iter(stops)), strict=True):
        one = found.with_threshold(stop)
        np.testing.assert_array_equal(boxes, one.boxes)
        np.testing.assert_array_equal(scores, one.box_scores)
    assert len(found.boxes) > 1
    assert found.boxes_at([]) == []


def test_boxes_of_a_good_image_are_those_that_it_has_once_it_is_called_defective() -> None:
    good = made(
        probability=0.3,
        is_defect=False,
        label="good",
        probability_grid=suspicious((slice(0, 10), slice(0, 10))) / 3,
    )
    assert len(good.boxes) == 0
    ((boxes, _),) = good.boxes_at([1.0])
    called = good.with_threshold(decision_threshold=good.probability)
    np.testing.assert_array_equal(boxes, called.boxes)
    assert len(boxes) == 1


def test_boxes_of_a_shrunk_map_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = made().boxes
    monkeypatch.setattr(tiled_results, "LARGEST_PART", 300 * 410 // 9)
    shrunk = made().boxes
    assert np.abs(shrunk - exact).max() <= 4
    assert (shrunk[:, 2:] <= [410, 300]).all()


def test_near_boxes_are_merged_across_tiles() -> None:
    assert len(made(merge_distance=np.inf).boxes) == 1
    assert len(made(max_boxes=1).boxes) == 1


def test_a_part_of_the_heatmap_is_that_of_the_whole() -> None:
    found = made()
    assert found.heatmap.shape == (300, 410)
    np.testing.assert_array_equal(found.heatmap_of((33, 20, 90, 71)), found.heatmap[20:71, 33:90])
    with pytest.raises(ValueError, match="leaves the image"):
        found.heatmap_of((0, 0, 411, 10))


def test_the_mask_lies_in_the_boxes() -> None:
    found = made()
    mask = found.mask()
    assert mask.shape == (300, 410)
    assert mask.any()
    for left, top, right, bottom in found.boxes.tolist():
        mask[top:bottom, left:right] = False
    assert not mask.any()


@pytest.mark.parametrize("is_shrunk", [False, True])
@pytest.mark.parametrize("merge_distance", [None, 0, 40])
@pytest.mark.parametrize("tighten", [False, True])
def test_regions_have_the_numbers_of_their_boxes(
    tighten: bool, merge_distance: float | None, is_shrunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_shrunk:  # by 2, 3 or 4
        monkeypatch.setattr(tiled_results, "LARGEST_PART", 300 * 410 // 9)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = made(
            grid=cv2.GaussianBlur(rng.normal(size=GRID.shape), (0, 0), 1.5) * 10,
            probability_grid=np.kron(rng.random((4, 6)), np.ones((10, 10)))[: GRID.shape[0], :52],
            decision_threshold=0.6,
            merge_distance=merge_distance,
            max_boxes=5,
            tighten=tighten,
            point_spread=1.5,
        )
        labels = found.component_labels()
        assert (labels.shape, labels.dtype) == (found.image_size, np.int32)
        np.testing.assert_array_equal(found.mask(), labels > 0)
        assert len(found.boxes) > 0
        assert set(np.unique(labels).tolist()) == set(range(1 + len(found.boxes)))
        for number, box in enumerate(found.boxes.tolist(), start=1):
            rows, columns = np.nonzero(labels == number)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert around == box
            if not is_shrunk:
                assert found.heatmap[rows, columns].max() == found.box_scores[number - 1]


def test_outlines_are_those_of_the_suspicious_region() -> None:
    """The hotter spot lies in tiles that are calm."""
    found = made(probability_grid=suspicious((slice(26, 36), slice(36, 46))))
    labels = found.component_labels()
    ((left, top, right, bottom),) = found.boxes.tolist()
    assert np.count_nonzero(labels) == np.count_nonzero(labels[top:bottom, left:right]) > 0
    (annotation,) = found.to_coco("part.png")["annotations"]
    assert annotation["bbox"] == [left, top, right - left, bottom - top]
    assert annotation["area"] == np.count_nonzero(labels == 1)


def test_no_region_is_marked_in_a_good_image() -> None:
    assert not made(is_defect=False).component_labels().any()


def test_pictures_are_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().overlay().shape == (300, 410, 3)
    monkeypatch.setattr(tiled_results, "PICTURE_SIDE", 205)
    assert made().overlay().shape == (150, 205, 3)
    assert [crop.shape[2] for crop in made().crops()] == [3, 3]
    assert made().image.shape == (300, 410, 3)


def test_types_are_told_apart() -> None:
    types = np.zeros((2, *GRID.shape), dtype=np.float32)
    types[1, 4:6, 5:8] = 3.0
    found = made(type_grids=types, defect_labels=["dent", "scratch"])
    assert found.box_labels == ["scratch", "anomaly"]


@pytest.mark.parametrize("is_shrunk", [False, True])
def test_a_box_is_named_by_its_own_region_where_another_lies_in_its_box(
    is_shrunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_shrunk:
        monkeypatch.setattr(tiled_results, "LARGEST_PART", 300 * 410 // 9)
    scratch = np.zeros(GRID.shape, dtype=np.float32)
    scratch[2, 2:22] = scratch[2:22, 2] = 2.0
    dent = np.zeros_like(scratch)
    dent[8:20, 8:20] = 3.0
    for evidence, label in [(scratch, "scratch"), (0 * scratch, "anomaly")]:
        types = np.stack([dent, evidence])
        found = made(grid=scratch + dent, type_grids=types, defect_labels=["dent", "scratch"])
        assert found.box_labels == ["dent", label]
        assert found.with_threshold(2.5).box_labels == ["dent"]


def test_it_survives_copying() -> None:
    for again in (copy.deepcopy(made()), pickle.loads(pickle.dumps(made()))):
        np.testing.assert_array_equal(again.boxes, made().boxes)
        assert not again.probability_grid.flags.writeable


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="probability_grid must have the shape of grid"):
        made(probability_grid=np.zeros((3, 3)))
