"""Localization: what holds for every answer, whatever the image's size and the thresholds."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
import math
import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from defectcam import display
from defectcam.boxes import component_mask, find_boxes
from defectcam.geometry import Geometry
from defectcam.images import ImageReadError
from defectcam.results import Localization, check_decision_threshold

COMMON = settings(deadline=None, max_examples=40, derandomize=True)
SIZE = (60, 90)


def make(grid=None, *, size=SIZE, resize="stretch", **changes):
    """Build a defective answer with two hot spots; keywords replace what they name."""
    if grid is None:
        grid = np.zeros((6, 6))
        grid[1, 1], grid[4, 4] = 4.0, 3.0
    fields = dict(
        label="anomaly",
        probability=0.8,
        is_defect=True,
        grid=grid,
        geometry=getattr(Geometry, resize)(size, (48, 48)),
        threshold=1.0,
        decision_threshold=0.5,
        min_area=1,
        max_boxes=None,
        merge_distance=None,
        source=None,
        good_label="good",
        defect_label="anomaly",
    )
    return Localization(**{**fields, **changes})


def make_typed(**changes):
    """Build an answer of a model of three types: a dent, a scratch and what novelty alone sees."""
    grid = np.zeros((12, 12))
    grid[1:3, 1:3], grid[1:3, 9:11], grid[9:11, 9:11] = 4.0, 3.0, 2.0
    types = np.full((3, 6, 6), -0.5)
    types[:, 0, 0], types[:, 0, 5], types[:, 5, 5] = (0.5, 6, 5), (1.1, 2, 9), (0.9, 0.2, 0.8)
    fields = dict(type_grids=types, defect_labels=["crack", "dent", "scratch"], source=None)
    return make(grid, **{**fields, "label": "dent", "defect_label": "dent", **changes})


def same(one, other):
    """Tell whether two answers agree in all they say."""
    return (
        repr(one) == repr(other)
        and json.dumps(one.to_dict()) == json.dumps(other.to_dict())
        and np.array_equal(one.heatmap, other.heatmap)
        and np.array_equal(one.mask(), other.mask())
        and one.good_label == other.good_label
        and one.defect_label == other.defect_label
        and one.defect_labels == other.defect_labels
        and np.array_equal(one.type_grids, other.type_grids)
    )


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def picture_path(picture, tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(picture).save(path)
    return path


@st.composite
def answers(draw):
    """Draw an answer for an image of any size, single pixels and strips included."""
    sides = st.integers(1, 40) | st.sampled_from([1, 2, 300])
    size = (draw(sides), draw(sides))
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    grid = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(0.5, 1.0, shape)
    return make(
        grid,
        size=size,
        resize=draw(st.sampled_from(["stretch", "pad"])),
        threshold=draw(st.floats(-1, 3)),
        is_defect=draw(st.booleans()),
        min_area=draw(st.integers(1, 20)),
        merge_distance=draw(st.sampled_from([None, 0, 3, math.inf])),
        peak_fraction=draw(st.sampled_from([0.0, 0.6])),
        tighten=draw(st.booleans()),
        point_spread=draw(st.sampled_from([0.0, 8.0, 40.0])),
    )


@COMMON
@given(answers())
def test_the_heatmap_is_finite_float32_of_the_original_size(found):
    heatmap = found.heatmap
    assert heatmap.dtype == np.float32 and heatmap.shape == found.image_size
    assert found.image_size == found.geometry.original_size
    assert np.isfinite(heatmap).all()
    assert found.mask().shape == found.image_size and found.mask().dtype == bool


@COMMON
@given(answers())
def test_boxes_lie_inside_the_image_and_hold_the_mask(found):
    height, width = found.image_size
    boxes = found.boxes
    assert boxes.dtype == np.int64 and boxes.shape == (len(found.box_scores), 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    covered = np.zeros(found.image_size, dtype=bool)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] = True
    assert not (found.mask() & ~covered).any()
    assert found.mask().any() == (len(boxes) > 0)


def test_tightened_boxes_are_smaller():
    found = make(tighten=True)
    loose = found.with_threshold(tighten=False)
    assert same(loose, make())
    assert 0 < found.mask().sum() < loose.mask().sum()
    assert found.with_threshold(1.2).tighten


def test_the_point_spread_is_in_cells_of_the_grid():
    found = make(tighten=True, point_spread=1.2)  # 6 x 6 cells in 60 x 90 pixels
    boxes, _ = find_boxes(found.heatmap, 1.0, tighten=True, point_spread=(1.2 * 15, 1.2 * 10))
    assert found.boxes.tolist() == boxes.tolist()
    assert found.mask().sum() < make(tighten=True).mask().sum()


def test_another_peak_fraction_gives_other_boxes():
    found = make(peak_fraction=0.9)  # of two spots, one three quarters as high as the other
    both = found.with_threshold(peak_fraction=0)
    assert (len(found.boxes), len(both.boxes)) == (1, 2)
    assert found.mask().sum() < both.mask().sum()
    assert same(both, make())
    assert found.with_threshold(1.5).peak_fraction == 0.9


@COMMON
@given(answers())
def test_an_image_called_good_has_no_boxes_and_no_mask(found):
    good = found.with_threshold(threshold=-10, decision_threshold=0.9)
    assert not good.is_defect
    assert good.boxes.shape == (0, 4) and good.boxes.dtype == np.int64
    assert good.box_scores.shape == (0,) and good.box_scores.dtype == np.float32
    assert not good.mask().any()
    bad = good.with_threshold(decision_threshold=0.1, peak_fraction=0)
    assert bad.mask().all() == (bad.mask().size >= bad.min_area)


@COMMON
@given(answers(), st.floats(-1, 3), st.floats(-1, 3))
def test_a_higher_threshold_never_adds_mask_pixels(found, one, other):
    low, high = sorted([one, other])
    found = found.with_threshold(tighten=False)  # else regions of other sizes have other slopes
    assert not (found.with_threshold(high).mask() & ~found.with_threshold(low).mask()).any()


@COMMON
@given(st.floats(-1, 3), st.floats(0, 1))
def test_with_threshold_equals_building_anew(threshold, decision_threshold):
    first = make()
    said = repr(first)
    is_defect = decision_threshold <= 0.8
    anew = make(
        threshold=threshold,
        decision_threshold=decision_threshold,
        is_defect=is_defect,
        label="anomaly" if is_defect else "good",
    )
    assert same(first.with_threshold(threshold, decision_threshold), anew)
    assert repr(first) == said


def test_boxes_follow_the_heatmap_and_every_option():
    options = dict(min_area=5, max_boxes=1, merge_distance=2)
    found = make(**options, threshold=1.5)
    boxes, scores = find_boxes(found.heatmap, 1.5, **options)
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.box_scores, scores)
    np.testing.assert_array_equal(found.mask(), component_mask(found.heatmap, 1.5, **options))
    assert len(make().boxes) == 2 and len(found.boxes) == 1


def test_boxes_at_other_thresholds_are_those_of_a_defective_image():
    found = make(is_defect=False, label="good", probability=0.1, tighten=True, peak_fraction=0.6)
    thresholds = [0.2, 1.0, 3.5, 9.0]
    for threshold, (boxes, scores) in zip(thresholds, found.boxes_at(thresholds), strict=True):
        other = found.with_threshold(threshold, decision_threshold=0.0)
        assert boxes.tolist() == other.boxes.tolist()
        assert scores.tolist() == other.box_scores.tolist()


def test_the_decision_threshold_flips_is_defect_and_label():
    found = make(probability=0.8, defect_label="crack", label="crack")
    good = found.with_threshold(decision_threshold=0.81)
    assert (good.is_defect, good.label) == (False, "good")
    back = good.with_threshold(decision_threshold=0.8)  # at the threshold is defective
    assert (back.is_defect, back.label) == (True, "crack")
    assert same(back, found.with_threshold(decision_threshold=0.8))


def test_another_map_threshold_leaves_the_decision_alone():
    found = make(is_defect=False, label="good", decision_threshold=0.5)
    assert found.with_threshold(threshold=2.0).label == "good"


@pytest.mark.parametrize("source", [None, "a/part.png", np.zeros((*SIZE, 3), np.uint8)])
def test_to_dict_round_trips_through_json(source):
    found = make(source=source, label=np.str_("anomaly"), probability=np.float32(0.8))
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["boxes"] == found.boxes.tolist() and len(told["boxes"]) == 2
    assert told["box_scores"] == found.box_scores.tolist()
    assert told["box_labels"] == ["anomaly", "anomaly"]
    assert told["image_size"] == list(SIZE)
    assert told["source"] == (source if isinstance(source, str) else None)
    assert set(told) == {
        *["label", "probability", "is_defect", "unfamiliar", "decision_threshold", "threshold"],
        *["image_size", "boxes", "box_scores", "box_labels", "source"],
    }


@pytest.mark.parametrize("label", [np.str_("bad"), np.bool_(True), np.int64(1)])
def test_labels_become_plain(label):
    found = make(label=label, defect_label=label, good_label=label)
    assert type(found.label) in (str, bool, int)
    json.dumps(found.with_threshold(decision_threshold=0.9).to_dict())


def test_arrays_are_read_only_and_the_callers_stay_writeable(picture):
    grid = np.full((2, 2), 2.0, dtype=np.float32)
    found = make(grid, source=picture)
    for array in (found.grid, found.heatmap, found.boxes, found.box_scores, found.image):
        assert not array.flags.writeable
    grid[:] = 0
    assert (found.grid == 2).all() and picture.flags.writeable
    with pytest.raises(AttributeError):
        found.threshold = 2.0


def test_each_box_is_of_the_type_with_the_most_evidence_in_it():
    found = make_typed()
    assert found.box_labels == ["dent", "scratch", "anomaly"]  # in the last, no type passes 1
    assert found.to_dict()["box_labels"] == found.box_labels
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    found.box_labels.clear()
    assert len(found.box_labels) == 3
    assert make_typed(is_defect=False).box_labels == []
    assert make_typed(max_boxes=1).box_labels == ["dent"]
    assert found.with_threshold(2.5).box_labels == ["dent", "scratch"]


def test_what_no_type_explains_is_no_anomaly_among_numbers():
    numbers = dict(good_label=0, label=2, defect_label=2, defect_labels=np.array([1, 2, 3]))
    found = make_typed(**numbers)
    assert found.box_labels == [2, 3, 1]
    assert all(type(label) is int for label in (*found.box_labels, *found.defect_labels))


@pytest.mark.parametrize(("height", "label"), [(2.0, "scratch"), (0.0, "anomaly")])
def test_a_box_is_named_by_its_own_region_where_another_lies_in_its_box(height, label):
    scratch = np.zeros((24, 24), np.float32)
    scratch[2:4, 2:22] = scratch[2:22, 2:4] = 2
    dent = np.zeros_like(scratch)
    dent[8:20, 8:20] = 3
    found = make(
        scratch + dent,
        geometry=Geometry.stretch((24, 24), (24, 24)),
        type_grids=np.stack([dent, scratch * (height / 2)]),
        defect_labels=["dent", "scratch"],
    )

    by_box = dict(zip(map(tuple, found.boxes.tolist()), found.box_labels, strict=True))

    assert by_box == {(2, 2, 22, 22): label, (8, 8, 20, 20): "dent"}


def test_a_box_that_holds_several_regions_has_the_type_of_their_mean():
    assert make_typed(merge_distance=math.inf).box_labels == ["scratch"]


@COMMON
@given(answers(), st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_the_highest_of_all_types_maps_is_the_heatmap(found, seed, n_types):
    labels = [f"type {number}" for number in range(n_types)]
    grids = np.random.default_rng(seed).normal(0, 3, (n_types, 3, 4))
    typed = dataclasses.replace(found, type_grids=grids, defect_labels=labels)
    maps = [typed.type_heatmap(label) for label in labels]
    assert all(one.dtype == np.float32 and not one.flags.writeable for one in maps)
    np.testing.assert_array_equal(np.max(maps, axis=0), typed.heatmap)
    assert set(typed.box_labels) <= {*labels, "anomaly"}
    assert len(typed.box_labels) == len(typed.boxes)


def test_a_types_map_is_calm_where_another_type_is():
    found = make_typed()
    left, top, right, bottom = found.boxes[1]
    box = slice(top, bottom), slice(left, right)
    scratch, dent = found.type_heatmap("scratch")[box], found.type_heatmap("dent")[box]
    assert scratch.max() == found.box_scores[1]
    assert dent.mean() < scratch.mean() - 1
    with pytest.raises(ValueError, match=r"one of \['crack', 'dent', 'scratch'\], got 'stain'"):
        found.type_heatmap("stain")


def test_without_types_there_is_one_map():
    found = make(defect_label="bad", label="bad")
    assert found.box_labels == ["bad", "bad"]
    np.testing.assert_array_equal(found.type_heatmap("bad"), found.heatmap)
    with pytest.raises(ValueError, match=r"one of \['bad'\]"):
        found.type_heatmap("good")


def test_types_go_where_the_answer_goes(picture):
    found = make_typed(source=picture)
    pickled = pickle.loads(pickle.dumps(found))
    for twin in (copy.deepcopy(found), pickled, found.with_threshold(0.5)):
        np.testing.assert_array_equal(twin.type_grids, found.type_grids)
        assert not twin.type_grids.flags.writeable and twin.defect_labels == found.defect_labels
    np.testing.assert_array_equal(
        found.overlay(),
        display.overlay(
            picture, found.heatmap, found.boxes, found.box_scores, box_labels=found.box_labels
        ),
    )
    assert f"{tuple(found.boxes[0].tolist())}: dent " in found._repr_html_()


@pytest.mark.parametrize(
    "again", [copy.deepcopy, copy.copy, lambda found: pickle.loads(pickle.dumps(found))]
)
def test_pickle_and_copies_say_the_same(again, picture_path):
    found = make(source=picture_path)
    assert len(found.boxes) == 2  # computed before as well as after
    twin = again(found)
    assert same(twin, found)
    assert not twin.grid.flags.writeable
    np.testing.assert_array_equal(twin.image, found.image)


def test_pickles_hold_the_small_map_only():
    found = make(size=(2000, 2000))
    assert found.boxes is found.boxes  # kept, as they are small and cost a search
    assert found.heatmap.nbytes > 1e7 and len(pickle.dumps(found)) < 10_000


@pytest.mark.parametrize("kind", ["path", "str", "array", "pillow"])
def test_the_image_comes_from_its_source(kind, picture, picture_path):
    source = {
        "path": picture_path,
        "str": str(picture_path),
        "array": picture,
        "pillow": Image.fromarray(picture),
    }[kind]
    np.testing.assert_array_equal(make(source=source).image, picture)


def test_a_source_that_is_missing_gone_or_changed_is_named(picture, picture_path):
    with pytest.raises(ValueError, match="no source"):
        make().overlay()
    found = make(source=picture_path)
    Image.fromarray(picture[:10]).save(picture_path)
    with pytest.raises(ValueError, match=r"part\.png has size \(H, W\) = \(10, 90\) now"):
        found.overlay()
    picture_path.unlink()
    with pytest.raises(ImageReadError, match=r"part\.png"):
        found.overlay()
    assert len(found.boxes) == 2 and found.to_dict()["source"] == str(picture_path)


def test_overlay_is_displays_with_the_scale_of_the_threshold(picture):
    found = make(source=picture, threshold=2.0)
    drawn = (found.heatmap, found.boxes, found.box_scores)
    np.testing.assert_array_equal(
        found.overlay(alpha=0.7), display.overlay(picture, *drawn, threshold=2.0, alpha=0.7)
    )
    np.testing.assert_array_equal(
        found.overlay(threshold=0.5), display.overlay(picture, *drawn, threshold=0.5)
    )
    assert found.with_threshold(-1.0).overlay().shape == (*SIZE, 3)


def test_crops_hold_the_boxes_with_their_margin(picture):
    found = make(source=picture)
    bare, wide = found.crops(margin=0), found.crops(margin=0.5)
    assert len(bare) == len(wide) == 2
    for crop, roomy, (left, top, right, bottom) in zip(bare, wide, found.boxes, strict=True):
        np.testing.assert_array_equal(crop, picture[top:bottom, left:right])
        extra = round(0.5 * max(right - left, bottom - top))
        y, x = max(top - extra, 0), max(left - extra, 0)
        np.testing.assert_array_equal(roomy, picture[y : bottom + extra, x : right + extra])
        crop[:] = 0  # a copy
    np.testing.assert_array_equal(found.image, picture)
    assert make(source=picture, is_defect=False).crops() == []
    with pytest.raises(ValueError, match="margin"):
        found.crops(margin=-0.1)


def test_save_writes_the_overlay_in_the_format_of_the_suffix(picture, tmp_path):
    found = make(source=picture)
    found.save(tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), found.overlay())
    found.save(str(tmp_path / "found.JPG"))
    with Image.open(tmp_path / "found.JPG") as saved:
        assert saved.format == "JPEG" and saved.size == SIZE[::-1]
    assert sorted(os.listdir(tmp_path)) == ["found.JPG", "found.png"]


def test_save_refuses_to_overwrite_unless_told(picture, tmp_path):
    path = tmp_path / "found.png"
    path.write_bytes(b"mine")
    found = make(source=picture)
    with pytest.raises(FileExistsError, match=re.escape(str(path))):
        found.save(path)
    assert path.read_bytes() == b"mine"
    found.save(path, overwrite=True)
    assert path.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_save_that_fails_leaves_no_partial_file(failing, picture, tmp_path, monkeypatch):
    path = tmp_path / "found.png"
    path.write_bytes(b"mine")

    def disk_full(*args):
        raise OSError("disk full")

    target = "os.fsync" if failing == "write" else "os.replace"  # the data are half-way by then
    with monkeypatch.context() as patch:
        patch.setattr(target, disk_full)
        with pytest.raises(OSError, match="disk full"):
            make(source=picture).save(path, overwrite=True)
    assert os.listdir(tmp_path) == ["found.png"] and path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("found.txt", ValueError, r"found\.txt.*suffix"),
        ("found", ValueError, "suffix"),
        ("nowhere/found.png", FileNotFoundError, "make the folder"),
    ],
)
def test_save_where_it_cannot_names_the_path(name, error, message, picture, tmp_path):
    with pytest.raises(error, match=message):
        make(source=picture).save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_the_notebook_shows_a_table_and_a_small_picture():
    size = (400, 1600)
    found = make(size=size, source=np.zeros((*size, 3), np.uint8), label="<b>crack</b>")
    page = found._repr_html_()
    assert "&lt;b&gt;crack" in page and "<b>crack" not in page
    data = re.search(r"base64,([^']+)'", page).group(1)
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.format == "PNG" and shown.size == (640, 160)


def test_the_notebook_shows_a_table_when_the_picture_is_gone():
    assert "No picture" in make(source="gone.png")._repr_html_()
    assert "No picture" in make()._repr_html_()


def test_many_boxes_are_cut_short_in_the_notebook():
    grid = np.zeros((12, 12))
    grid[1::3, 1::3] = 5.0
    found = make(grid)
    assert len(found.boxes) == 16 and "and 6 more" in found._repr_html_()


def test_paths_out_of_an_array_are_plain_text():
    path = np.array(["a/part.png"])[0]
    assert "source='a/part.png')" in repr(make(source=path))
    assert type(make(source=path).to_dict()["source"]) is str


def test_repr_is_one_readable_line():
    assert repr(make(source="a/part.png", is_defect=False, label="good")) == (
        "Localization('good', probability=0.8, boxes=0, image_size=(60, 90), source='a/part.png')"
    )
    assert "boxes=2, best_score=" in repr(make()) and "\n" not in repr(make())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": np.zeros((2, 2, 2))}, r"grid .* got shape \(2, 2, 2\)"),
        ({"grid": np.zeros((0, 2))}, "non-empty"),
        ({"grid": np.full((2, 2), np.inf)}, "infinite"),
        ({"probability": 1.1}, "probability must lie between 0 and 1, got 1.1"),
        ({"probability": math.nan}, "probability"),
        ({"threshold": math.inf}, "threshold must be a finite number, got inf"),
        ({"point_spread": -1.0}, "point_spread must be a finite number of cells from 0, got -1.0"),
        ({"point_spread": math.nan}, "point_spread"),
        ({"decision_threshold": math.nan}, "decision_threshold"),
        ({"type_grids": np.zeros((2, 3)), "defect_labels": "ab"}, r"shape \(n_types, h, w\)"),
        ({"type_grids": np.zeros((2, 3, 3)), "defect_labels": ["a"]}, "got 2 grids for the labels"),
        ({"type_grids": np.zeros((2, 3, 3))}, "one entry per defect type"),
        ({"defect_labels": ["a", "b"]}, "got None grids"),
    ],
)
def test_impossible_fields_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("threshold", [None, "0.5", 70, -0.1, float("nan"), np.array([0.5])])
def test_what_is_no_probability_is_no_decision_threshold(threshold):
    with pytest.raises(ValueError, match=r"decision_threshold must be a probability"):
        check_decision_threshold("decision_threshold", threshold)
    for taken in (0, 1, np.float32(0.5), np.array(0.5), True):
        check_decision_threshold("decision_threshold", taken)
