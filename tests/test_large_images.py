from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from defectcam.images import ImageReadError, read_image
from defectcam.large_images import open_rows, read_shrunk, read_tiles
from defectcam.tiles import TileGrid


def picture(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, size=shape).astype(dtype)


@pytest.mark.parametrize("layout", [{}, {"tile": (64, 48)}, {"rowsperstrip": 17}])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("shape", [(150, 107), (150, 107, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rows_of_a_tiff_file_are_those_of_the_image(
    layout: dict, compression: Any, shape: tuple[int, ...], dtype: Any, tmp_path: Path
) -> None:
    image, path = picture(shape, dtype), tmp_path / "a.tif"
    kind = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, image, photometric=kind, compression=compression, **layout)
    whole = read_image(path)
    with open_rows(path) as rows:
        assert rows.size == (150, 107)
        np.testing.assert_array_equal(rows.read(33, 120), whole[33:120])
        np.testing.assert_array_equal(rows.read(149, 150), whole[149:])
    if len(shape) == 2 or dtype == np.uint8:  # of wide colours, Pillow drops the low bytes
        np.testing.assert_array_equal(whole, read_image(image))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_wide_colours_are_those_of_the_whole_file_in_either_byte_order(
    byteorder: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture((40, 30, 3), np.uint16), photometric="rgb", byteorder=byteorder)
    with open_rows(path) as rows:
        np.testing.assert_array_equal(rows.read(7, 31), read_image(path)[7:31])


def test_a_part_of_a_tiff_file_is_decoded_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decoded = tmp_path / "a.tif", []
    tifffile.imwrite(path, picture((200, 64)), compression="zlib", rowsperstrip=10)
    with open_rows(path) as rows:
        segment = rows.rows._segment
        monkeypatch.setattr(
            rows.rows, "_segment", lambda index: (decoded.append(index), segment(index))[1]
        )
        rows.read(95, 111)
    assert decoded == [9, 10, 11]


def test_tiff_files_that_tifffile_is_not_asked_for_are_read_by_pillow(tmp_path: Path) -> None:
    image, path = picture((40, 30, 4)), tmp_path / "alpha.tif"
    Image.fromarray(image).save(path)
    with open_rows(path) as rows:
        np.testing.assert_array_equal(rows.read(5, 20), read_image(image)[5:20])


def test_without_tifffile_files_are_decoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture((40, 30)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with open_rows(path) as rows:
        np.testing.assert_array_equal(rows.read(0, 40), read_image(path))


def test_mapped_arrays_are_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "image.npy"
    np.save(path, picture((50, 40), np.uint16))
    mapped = np.load(path, mmap_mode="r")
    with open_rows(mapped) as rows:
        assert rows.pixels is mapped
        np.testing.assert_array_equal(rows.read(10, 12), read_image(np.array(mapped))[10:12])


def test_masked_values_are_refused() -> None:
    pixels = np.ma.masked_greater(picture((50, 40)), 250)
    n_masked = int(np.ma.count_masked(pixels))
    complaint = f"{n_masked} of 2000 values are masked"
    with pytest.raises(ImageReadError, match=complaint), open_rows(pixels) as rows:
        rows.read(0, 10)
    with open_rows(np.ma.masked_array(pixels.data)) as rows:
        np.testing.assert_array_equal(rows.read(3, 10), read_image(pixels.data)[3:10])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    path, messages = tmp_path / "pipe.tif", []
    os.mkfifo(path)

    def opens() -> None:
        try:
            with open_rows(path):
                pass
        except ImageReadError as error:
            messages.append(str(error))

    thread = threading.Thread(target=opens, daemon=True)  # the tests end, even if it waits
    thread.start()
    thread.join(20)
    assert messages and "pipe.tif' cannot be used: it is a pipe, no file" in messages[0]


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_broken_files_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"II*\0 and no more")
    with pytest.raises(ImageReadError, match=name), open_rows(path):
        pass


def test_a_cut_off_tiff_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, picture((200, 64)), compression="zlib", rowsperstrip=10)
    path.write_bytes(path.read_bytes()[:-3000])
    with open_rows(path) as rows, pytest.raises(ImageReadError, match=r"cut\.tif.*copy it again"):
        rows.read(180, 200)


@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers(4, 30), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_tiles_are_cut_out_of_the_mirrored_image(
    size: tuple[int, int], tile: int, overlap: int
) -> None:
    image = picture((*size, 3))
    grid = TileGrid(size, (tile, tile), (overlap, overlap), (2, 2))
    beyond = tuple(
        max(0, grid.box(grid.n_rows - 1, grid.n_columns - 1)[3 - k] - size[k]) for k in (0, 1)
    )
    whole = np.pad(image, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="symmetric")
    with open_rows(image) as rows:
        for i in range(grid.n_rows):
            boxes = [grid.box(i, j) for j in range(grid.n_columns)]
            for (left, top, right, bottom), cut in zip(boxes, read_tiles(rows, boxes), strict=True):
                np.testing.assert_array_equal(cut, whole[top:bottom, left:right])


def test_a_shrunk_image_is_the_mean_of_its_pixels() -> None:
    image = cv2.GaussianBlur(picture((1200, 900, 3)), (0, 0), 9)
    shrunk = read_shrunk(image, 300)
    assert shrunk.shape == (300, 225, 3)
    blocks = image.reshape(300, 4, 225, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - blocks).max() <= 1
    assert read_shrunk(image, 1200).shape == image.shape
