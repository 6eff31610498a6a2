from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectcam.geometry import Geometry
from defectcam.images import ImageReadError, content_hashes, read_image, read_images
from defectcam.placement import Placement
from defectcam.sources import Sources, as_sources, paths_of
from defectcam.views import ImageView, original_of, placed


def halve(pixels):
    """Cut off the right half."""
    height, width = pixels.shape[:2]
    return pixels[:, : width // 2], Placement.crop((height, width), (0, 0, width // 2, height))


def invert(pixels):
    return 255 - pixels, None


def refuse(pixels):
    raise ValueError("too dull")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    return tmp_path / "part.png"


def test_steps_are_done_in_order(file: Path) -> None:
    pixels = read_image(file)
    np.testing.assert_array_equal(ImageView(file, [halve, invert]).read(), 255 - pixels[:, :16])


def test_a_view_of_a_view_is_the_view_with_all_steps(file: Path) -> None:
    nested = ImageView(ImageView(file, [halve, invert]), [halve])
    assert nested.source == file
    assert nested.steps == (halve, invert, halve)
    assert [placement.view_size for placement in nested.placements] == [(20, 16), (20, 8)]
    np.testing.assert_array_equal(nested.read(), ImageView(file, [halve, invert, halve]).read())


def test_nothing_is_decoded_before_use() -> None:
    view = ImageView("nowhere.png", [halve])
    assert repr(view).startswith("ImageView('nowhere.png'")
    with pytest.raises(ImageReadError, match=r"nowhere\.png.*does not exist"):
        view.read()


def test_a_view_takes_an_images_place(file: Path) -> None:
    view = ImageView(file, [halve])
    expected = read_image(file)[:, :16]
    np.testing.assert_array_equal(read_image(view), expected)
    [first, second] = read_images([view, file], n_workers=1)
    assert first.shape == (20, 16, 3) and second.shape == (20, 32, 3)
    assert as_sources(view).single
    assert not as_sources([view]).single
    assert paths_of(Sources([view, np.zeros((4, 4))], single=False)) == [file]
    assert list(content_hashes([view])) == list(content_hashes([expected]))


def test_a_view_never_changes_its_source() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    np.asarray(ImageView(image))[:] = 7
    assert not image.any()


def test_a_step_that_cannot_be_done_names_the_image(file: Path) -> None:
    with pytest.raises(ImageReadError, match=r"part\.png.*too dull"):
        ImageView(file, [refuse]).read()
    with pytest.raises(ImageReadError, match="Image at index 1: an image in memory: too dull"):
        list(read_images([file, ImageView(np.zeros((4, 4)), [refuse])], n_workers=1))


def test_a_view_pickles_small_and_reads_the_same(file: Path) -> None:
    view = ImageView(file, [halve])
    view.read()
    data = pickle.dumps(view)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).read(), view.read())


def test_only_moved_pixels_change_a_geometry(file: Path) -> None:
    geometry = Geometry.stretch((20, 16), (8, 8))
    assert placed(geometry, file) is geometry
    assert placed(geometry, ImageView(file, [invert])) is geometry
    assert placed(geometry, ImageView(file, [halve])).original_size == (20, 32)
    assert original_of(ImageView(file, [halve])) == file
    assert original_of(file) is file
