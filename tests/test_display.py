"""Display: calm where the map is, bright where it is not, and never outside the image."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from defectcam.display import encode_picture, overlay

#: Those of OpenCV before release 5 are larger, and may cover a box that is no larger than they are.
OLD_LETTERS = int(cv2.__version__.split(".")[0]) < 5

BOX_BLUE = (86, 180, 233)


def grey(height, width, value=120):
    return np.full((height, width, 3), value, dtype=np.uint8)


def is_blue(picture):
    return (picture == BOX_BLUE).all(axis=-1)


def test_the_image_shows_unchanged_where_the_map_is_zero_or_less():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    heatmap = np.zeros((6, 5))
    heatmap[2] = -3.0
    heatmap[4] = 1.0
    picture = overlay(image, heatmap)
    calm = heatmap <= 0
    np.testing.assert_array_equal(picture[calm], image[calm])
    assert (picture[~calm] != image[~calm]).any()


def test_the_image_is_left_alone_and_may_be_read_only():
    image = grey(8, 8)
    image.setflags(write=False)
    picture = overlay(image, np.ones((8, 8)), [[0, 0, 8, 8]], [1.0])
    assert (image == 120).all() and picture.flags.writeable
    assert picture.dtype == np.uint8 and picture.shape == image.shape


def test_the_scale_is_fixed_and_not_the_maps_own():
    faint, strong = np.full((1, 2), 0.2), np.array([[0.2, 5.0]])
    np.testing.assert_array_equal(
        overlay(grey(1, 2), faint)[0, 0], overlay(grey(1, 2), strong)[0, 0]
    )


def test_the_scale_follows_the_threshold_and_ends_at_twice_it():
    heatmap = np.array([[0.5, 1.0, 2.0, 9.0]])
    picture = overlay(grey(1, 4), heatmap)
    np.testing.assert_array_equal(overlay(grey(1, 4), heatmap * 3, threshold=3.0), picture)
    np.testing.assert_array_equal(picture[0, 2], picture[0, 3])
    assert len(np.unique(picture[0, :3], axis=0)) == 3


def test_opaque_heat_has_the_colour_maps_colours_in_rgb_order():
    picture = overlay(grey(1, 1), [[2.0]], alpha=1.0, colormap=cv2.COLORMAP_INFERNO)
    expected_bgr = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0]
    assert picture[0, 0].tolist() == expected_bgr[::-1].tolist()
    assert (overlay(grey(1, 1), [[2.0]], alpha=0.0) == 120).all()


@pytest.mark.parametrize("size", [(20, 30), (300, 700), (1500, 900)])
def test_box_lines_lie_around_the_box_and_scale_with_the_image(size):
    height, width = size
    box = (width // 3, height // 3, width // 2, height // 2)
    picture = overlay(grey(*size), np.zeros(size), [box])
    left, top, right, bottom = box
    assert (picture[top:bottom, left:right] == 120).all()
    line = max(1, round(max(size) / 250))
    blue = is_blue(picture)
    assert blue[top - line : bottom + line, left - line].all()
    assert blue[top:bottom, right : right + line].all()
    assert blue.sum() == (bottom - top + 2 * line) * (right - left + 2 * line) - (bottom - top) * (
        right - left
    )


def test_a_box_around_the_whole_image_is_seen_inside_it():
    blue = is_blue(overlay(grey(12, 9), np.zeros((12, 9)), [[0, 0, 9, 12]]))
    assert blue[0].all() and blue[-1].all() and blue[:, 0].all() and blue[:, -1].all()
    assert not blue[1:-1, 1:-1].any()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data(), st.integers(1, 60), st.integers(1, 60))
def test_any_box_in_any_image_can_be_drawn_with_its_score(data, height, width):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right = data.draw(st.integers(left + 1, width))
    bottom = data.draw(st.integers(top + 1, height))
    drawn = grey(height, width), np.zeros((height, width)), [[left, top, right, bottom]]
    picture = overlay(*drawn, [12.3])
    assert picture.shape == (height, width, 3)
    if OLD_LETTERS and min(right - left, bottom - top) < 18:  # the letters hide smaller boxes
        picture = overlay(*drawn)
    assert is_blue(picture).any()


def test_scores_are_written_where_there_is_room():
    size, box = (200, 300), [[100, 80, 160, 120]]
    without = overlay(grey(*size), np.zeros(size), box)
    written = overlay(grey(*size), np.zeros(size), box, [2.5])
    rows, columns = np.nonzero((without != written).any(axis=-1))
    assert len(rows) and rows.max() < 80 and columns.min() >= 90


def test_labels_are_written_before_the_scores_or_alone():
    size, box = (200, 300), [[100, 80, 160, 120]]
    written = [
        overlay(grey(*size), np.zeros(size), box, scores, box_labels=labels)
        for scores, labels in [(None, None), ([2.5], None), ([2.5], ["dent"]), (None, ["dent"])]
    ]
    widths = []
    for picture in written[1:]:
        rows, columns = np.nonzero((written[0] != picture).any(axis=-1))
        assert rows.max() < 80 and columns.min() >= 90
        widths.append(np.ptp(columns))
    assert widths[0] < widths[2] < widths[1]


def test_a_label_wider_than_the_image_leaves_the_score():
    size, box = (60, 80), [[20, 30, 40, 50]]
    plain = overlay(grey(*size), np.zeros(size), box, [2.5])
    assert (plain != overlay(grey(*size), np.zeros(size), box)).any()
    named = overlay(grey(*size), np.zeros(size), box, [2.5], box_labels=["a very long name"])
    np.testing.assert_array_equal(named, plain)


def test_no_boxes_are_fine():
    empty = np.empty((0, 4), dtype=np.int64)
    assert (overlay(grey(3, 3), np.zeros((3, 3)), empty, np.empty(0)) == 120).all()
    assert (overlay(grey(3, 3), np.zeros((3, 3)), empty, box_labels=[]) == 120).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 6, 3))}, "uint8 RGB"),
        ({"image": np.zeros((4, 6), dtype=np.uint8)}, r"shape \(4, 6\)"),
        ({"heatmap": np.zeros((6, 4))}, r"image's size \(H, W\) = \(4, 6\), got \(6, 4\)"),
        ({"heatmap": np.full((4, 6), np.nan)}, "finite"),
        ({"boxes": [[0, 0, 7, 4]]}, r"inside the image .* got \[0, 0, 7, 4\]"),
        ({"boxes": [[2, 2, 2, 4]]}, "non-empty"),
        ({"boxes": [[0, 0, 1, 1]], "box_scores": [1.0, 2.0]}, "one score per box"),
        ({"boxes": [[0, 0, 1, 1]], "box_labels": ["a", "b"]}, "one label per box, got 2 for 1"),
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    arguments = {"image": grey(4, 6), "heatmap": np.zeros((4, 6)), **changes}
    with pytest.raises(ValueError, match=message):
        overlay(arguments.pop("image"), arguments.pop("heatmap"), **arguments)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp"])
def test_lossless_pictures_come_back_as_they_were(suffix):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_picture(picture, suffix))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), picture)


@pytest.mark.parametrize("suffix", ["", ".txt", "png"])
def test_a_suffix_without_picture_format_is_refused(suffix):
    with pytest.raises(ValueError, match="suffix"):
        encode_picture(grey(1, 1), suffix)


def test_letters_that_have_no_room_in_a_strip_are_not_measured(monkeypatch) -> None:
    """OpenCV takes seconds for those of a strip of a million pixels, minutes for some more."""
    monkeypatch.setattr(cv2, "getTextSize", None)
    picture = overlay(
        np.zeros((3, 9_000, 3), np.uint8), np.zeros((3, 9_000)), [[0, 0, 9, 3]], box_scores=[2.0]
    )
    assert picture.any()
