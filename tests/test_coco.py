from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from defectcam.coco import CocoMask, read_coco
from defectcam.images import ImageReadError


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the slow, obvious run lengths down the columns, beginning with those of False."""
    lengths, current = [0], False
    for value in mask.T.ravel():
        if value != current:
            lengths.append(0)
            current = value
        lengths[-1] += 1
    return lengths


def compressed(lengths: list[int]) -> str:
    """Return the lengths as COCO's own tools write them."""
    text = ""
    for i, length in enumerate(lengths):
        value = length - (lengths[i - 2] if i > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text += chr(bits + (0 if last else 32) + 48)
            if last:
                break
    return text


masks = st_numpy.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
def test_run_lengths_become_the_mask_again(mask: np.ndarray) -> None:
    lengths = run_lengths(mask)
    for counts in (lengths, compressed(lengths)):
        drawn = CocoMask(mask.shape, [{"size": list(mask.shape), "counts": counts}])
        np.testing.assert_array_equal(np.asarray(drawn), mask)


def test_compressed_run_lengths_are_those_of_cocos_tools() -> None:
    mask = np.zeros((30, 40), bool)
    mask[3:20, 5:25] = True
    mask[8:11, 10:14] = False
    text = "i4a0=00000000DF4:LF4:LF4:LF4:800000000000000000000o="  # pycocotools 2.0 wrote it
    assert compressed(run_lengths(mask)) == text
    drawn = CocoMask((30, 40), [{"size": [30, 40], "counts": text}])
    np.testing.assert_array_equal(np.asarray(drawn), mask)


@given(*[st.integers(0, 20)] * 4)
def test_a_rectangle_of_whole_pixels_is_filled_exactly(left, top, width, height) -> None:
    right, bottom = left + width, top + height
    mask = CocoMask((30, 30), [[[left, top, right, top, right, bottom, left, bottom]]])
    expected = np.zeros((30, 30), bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(np.asarray(mask), expected)


def test_polygons_have_their_area() -> None:
    rng = np.random.default_rng(0)
    drawn, exact = [], []
    for _ in range(50):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        x, y = 40 + rng.uniform(10, 38, 7) * [np.cos(angles), np.sin(angles)]
        exact.append(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
        polygon = np.stack([x, y], axis=1).ravel().tolist()
        drawn.append(np.asarray(CocoMask((80, 80), [[polygon]])).sum())
    assert np.allclose(drawn, exact, atol=20)
    # Before release 5, OpenCV draws more of the pixels that lie across an edge.
    share = 0.005 if int(cv2.__version__.split(".")[0]) >= 5 else 0.01
    assert sum(drawn) == pytest.approx(sum(exact), rel=share)


def test_masks_join_what_is_annotated_and_lie_within_the_image() -> None:
    outside = [[-5, -5, 3, -5, 3, 2, -5, 2], [50, 50, 60, 50, 60, 60]]
    inside = {"size": [8, 8], "counts": [62, 2]}
    mask = CocoMask((8, 8), [outside, inside])
    expected = np.zeros((8, 8), bool)
    expected[:2, :3] = True
    expected[6:, 7] = True
    np.testing.assert_array_equal(np.asarray(mask), expected)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(mask))), expected)
    assert np.asarray(mask, np.uint8).dtype == np.uint8
    assert repr(mask) == "CocoMask(shape=(8, 8), 2 segmentations)"


def test_run_lengths_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cover 64 pixels .* \(height, width\) = \(8, 9\)"):
        np.asarray(CocoMask((8, 9), [{"size": [8, 8], "counts": [62, 2]}]))


# Files -------------------------------------------------------------------------------------------


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 8, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 1, "name": "dent"}, {"id": 2, "name": "scratch"}],
        "annotations": [
            {"image_id": 8, "category_id": 1, "bbox": [1.2, 2.9, 2.0, 3.0]},
            {"image_id": 8, "category_id": 2, "bbox": [30, 20, 20, 20]},
        ],
    }


def written(folder: Path, value: Any) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps(value))
    return path


def test_boxes_are_the_whole_pixels_around_the_annotated_ones(tmp_path: Path) -> None:
    good, bad = read_coco(written(tmp_path, content()))
    assert good.type is None and good.boxes.shape == (0, 4) and good.mask is None
    assert bad.boxes.tolist() == [[1, 2, 4, 6], [30, 20, 40, 30]]
    assert bad.box_types.tolist() == ["dent", "scratch"]
    assert bad.type == "scratch"  # the larger one
    assert bad.mask is None


def test_there_is_a_mask_only_if_every_annotation_has_one(tmp_path: Path) -> None:
    value = content()
    value["annotations"][0]["segmentation"] = [[1, 2, 4, 2, 4, 6, 1, 6]]
    assert read_coco(written(tmp_path, value))[1].mask is None
    value["annotations"][1]["segmentation"] = [[30, 20, 40, 20, 40, 30, 30, 30]]
    mask = np.asarray(read_coco(written(tmp_path, value))[1].mask)
    assert mask.sum() == 12 + 100 and mask[25, 35] and mask[3, 2]


def test_a_category_can_be_left_out(tmp_path: Path) -> None:
    assert read_coco(written(tmp_path, content()), "scratch")[1].type == "dent"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), r"the\s+lists images.*Found: images \(list\), categ"),
        (lambda c: c["annotations"][0].update(image_id=99), "there is no 99"),
        (lambda c: c["annotations"][0].update(category_id=99), "there is no 99"),
        (lambda c: c["annotations"][0].pop("bbox"), "there is no 'bbox'"),
        (lambda c: c["images"][0].pop("file_name"), "there is no 'file_name'"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, change, message: str) -> None:
    value = content()
    change(value)
    with pytest.raises(ImageReadError, match=message):
        read_coco(written(tmp_path, value))


@pytest.mark.parametrize("bbox", [[1, 2, 0, 3], [1, 2, 3, 0], [1, 2, 1e-9, 3], [0, 0, 0, 0]])
def test_boxes_without_an_area_are_refused(tmp_path: Path, bbox: list[float]) -> None:
    value = content()
    value["annotations"][0].update(id=17, bbox=bbox)
    with pytest.raises(ImageReadError, match=r"labels\.json', annotation 17 .* has no area"):
        read_coco(written(tmp_path, value))


@pytest.mark.parametrize("bbox", [[-9, 2, 5, 3], [1, -9, 3, 9], [100, 2, 3, 3], [1, 1e6, 3, 3]])
def test_boxes_outside_of_their_image_are_refused(tmp_path: Path, bbox: list[float]) -> None:
    value = content()
    value["annotations"] = [{**value["annotations"][0], "id": 17, "bbox": bbox}]
    value["annotations"][0].pop("segmentation", None)
    with pytest.raises(ImageReadError, match=r"annotation 17 .*outside of its image of 40 x 30"):
        read_coco(written(tmp_path, value))


def test_what_is_no_coco_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="Found: a list"):
        read_coco(written(tmp_path, [1]))
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(ImageReadError, match="cannot be read as JSON"):
        read_coco(tmp_path / "labels.json")
    with pytest.raises(ImageReadError, match=r"cannot be read as JSON.*none\.json"):
        read_coco(tmp_path / "none.json")
