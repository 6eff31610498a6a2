from __future__ import annotations

import hashlib
import itertools
import os
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from defectcam.images import (
    ImageReadError,
    check_readable,
    content_hashes,
    find_images,
    image_size,
    read_hashed,
    read_image,
    read_images,
    read_marked,
    read_reduced,
    read_reduced_images,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


def reader_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("defectcam")]


# Arrays: scale by dtype


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[0, 128, 129, 32768, 65407, 65535]], np.uint16), [0, 0, 1, 128, 255, 255]),
        (np.array([[0, 65535, 257]], ">u2"), [0, 255, 1]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 0.5, 1, 0.001, 0.003]], np.float32), [0, 128, 255, 0, 1]),
        (np.array([[0, 0.25, 1]], np.float64), [0, 64, 255]),
        (np.array([[0, 0.25, 1]], np.float16), [0, 64, 255]),
        (np.array([[0, 1]], ">f8"), [0, 255]),
    ],
)
def test_the_scale_follows_the_dtype(stored: np.ndarray, expected: list[int]) -> None:
    image = read_image(stored)
    assert image.dtype == np.uint8
    assert image.shape == (1, len(expected), 3)
    for channel in range(3):
        assert image[0, :, channel].tolist() == expected


@given(npst.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(deadline=None, max_examples=50)
def test_uint16_is_rounded_to_the_nearest(values: np.ndarray) -> None:
    np.testing.assert_array_equal(read_image(values), grey(np.rint(values / 257)))


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(deadline=None, max_examples=50)
def test_equal_pictures_of_every_dtype_read_equal(values: np.ndarray) -> None:
    expected = grey(values)
    for same in (
        values,
        values * np.uint16(257),
        values / 255,
        (values / 255).astype(np.float32),
        np.asfortranarray(values),
        values[..., None],
    ):
        np.testing.assert_array_equal(read_image(same), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.5, np.nan], [np.nan, 2]], "2 of 4 values are NaN"),
        ([[0.5, np.inf]], "1 of 2 values are infinite"),
        ([[-np.inf, 0.5]], "1 of 2 values are infinite"),
        ([[0, 200.0]], r"range from 0 to 200\. If they are 8-bit values use image\.astype"),
        ([[0, 1.0001]], r"must lie in \[0, 1\], these range from 0 to 1\.0001"),
        ([[0, 40000.0]], "divide by 65535"),
        ([[0, 1e6]], "Divide by the full scale of the camera"),
        ([[-2.1, 2.6]], r"range from -2\.1 to 2\.6. If they are normalised"),
    ],
)
def test_floats_outside_the_unit_interval_are_refused(values: list, message: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        read_image(np.array(values))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.array([[0, 255]], np.int64), r"image\.astype\(np\.uint8\)"),
        (np.array([[0, 1]], np.int8), r"image\.astype\(np\.uint8\)"),
        (np.array([[0, 4095]], np.int32), r"from 0 to 4095.*image\.astype\(np\.uint16\)"),
        (np.array([[-5, 9]], np.int16), r"from -5 to 9.*Divide by it"),
        (np.array([[0, 2**40]], np.uint64), "Divide by it"),
        (np.array([[1j]]), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[None]]), "dtype object"),
    ],
)
def test_other_dtypes_are_refused_with_advice(stored: np.ndarray, message: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        read_image(stored)


# Arrays: channels


def test_colour_is_returned_as_it_is(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(image), image)
    flipped = read_image(image[:, ::-1])
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    assert flipped.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_is_composited_on_white(dtype: type) -> None:
    one = 1 if dtype is np.float32 else np.iinfo(dtype).max
    clear, solid = [0, 0, 0, 0], [one, 0, 0, one]
    image = read_image(np.array([[clear, solid]], dtype=dtype))
    assert image.tolist() == [[list(WHITE), list(RED)]]
    image = read_image(np.array([[[0, 0], [0, one]]], dtype=dtype))  # grey and alpha
    assert image.tolist() == [[list(WHITE), [0, 0, 0]]]


def test_half_transparent_black_is_grey() -> None:
    assert read_image(np.array([[[0, 0, 0, 128]]], np.uint8)).tolist() == [[[127, 127, 127]]]


@given(npst.arrays(np.uint8, (3, 3, 4)))
@settings(deadline=None, max_examples=50)
def test_compositing_is_rounded_to_the_nearest(values: np.ndarray) -> None:
    alpha = values[..., 3:] / 255
    expected = values[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_image(values) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 20, 30), (4, 20, 30), (3, 5, 5)])
def test_channels_first_says_how_to_move_them(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageReadError, match=r"channels first: .*np\.moveaxis\(image, 0, -1\)"):
        read_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 5), "empty"),
        ((5, 0, 3), "empty"),
        ((0,), "not an image"),
        ((), "not an image"),
        ((20,), "not an image"),
        ((20, 30, 5), "not an image"),
        ((20, 30, 0), "not an image"),
        ((2, 20, 30, 3), "One image expected, got an array of shape"),
        ((1, 2, 20, 30, 3), "not an image"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        read_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("source", [None, 3, b"a.png", [[1, 2], [3, 4]]])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(TypeError, match="is a path, an array or a PIL"):
        read_image(source)


# Files: formats


def save_1_bit(path: Path) -> np.ndarray:
    Image.fromarray(np.array([[True, False, True]])).save(path)
    return grey([[255, 0, 255]])


def save_grey(path: Path) -> np.ndarray:
    values = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(values).save(path)
    return grey(values)


def save_colour(path: Path) -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return values


def save_lossless_webp(path: Path) -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, lossless=True)
    return values


def save_rgba(path: Path) -> np.ndarray:
    values = np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 128)]], np.uint8)
    Image.fromarray(values).save(path, lossless=True)  # only WebP minds
    return np.array([[RED, WHITE, (127, 127, 127)]], np.uint8)


def save_grey_with_alpha(path: Path) -> np.ndarray:
    Image.fromarray(np.array([[(9, 255), (9, 0)]], np.uint8)).save(path)
    return grey([[9, 255]])


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    image.putpalette([*RED, *GREEN, *BLUE])  # makes it "P"
    return image


def save_palette(path: Path) -> np.ndarray:
    palette_image().save(path)
    return np.array([[RED, GREEN, BLUE]], np.uint8)


def save_palette_with_a_transparent_index(path: Path) -> np.ndarray:
    palette_image().save(path, transparency=1)
    return np.array([[RED, WHITE, BLUE]], np.uint8)


def save_palette_with_alphas(path: Path) -> np.ndarray:
    palette_image().save(path, transparency=bytes([255, 0, 51]))
    return np.array([[RED, WHITE, (204, 204, 255)]], np.uint8)


def save_grey_with_a_transparent_value(path: Path) -> np.ndarray:
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(path, transparency=9)
    return grey([[7, 255]])


WIDE = np.array([[0, 128, 129, 5000], [32768, 65407, 65000, 65535]], np.uint16)


def save_16_bit(path: Path) -> np.ndarray:
    Image.fromarray(WIDE).save(path)
    return grey(np.rint(WIDE / 257))


def save_16_bit_with_a_transparent_value(path: Path) -> np.ndarray:
    Image.fromarray(WIDE).save(path)
    data = path.read_bytes()
    end_of_header = 8 + 25
    chunk = b"tRNS" + struct.pack(">H", 5000)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:end_of_header] + chunk + data[end_of_header:])
    return grey(np.where(WIDE == 5000, 255, np.rint(WIDE / 257)))


def tiff_bytes(values: np.ndarray, order: str, bits: int) -> bytes:
    """Write one strip of unsigned grey, by hand: Pillow does not write these."""
    data = values.astype(f"{order}u2").tobytes()
    if bits == 12:
        digits = "".join(f"{value:03x}" for value in values.ravel())
        data = bytes.fromhex(digits)
    tags = [(256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 4, bits), (259, 4, 1)]
    tags += [(262, 4, 1), (273, 4, 8), (277, 4, 1), (278, 4, values.shape[0]), (279, 4, len(data))]
    header = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, kind, 1, v) for tag, kind, v in tags)
    return header + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def save_big_endian_16_bit(path: Path) -> np.ndarray:
    path.write_bytes(tiff_bytes(WIDE, ">", 16))
    return grey(np.rint(WIDE / 257))


def save_12_bit(path: Path) -> np.ndarray:
    values = np.array([[0, 1000, 2048, 4095]], np.uint16)
    path.write_bytes(tiff_bytes(values, "<", 12))
    return grey(np.rint(values / 4095 * 255))


def save_16_bit_pgm(path: Path) -> np.ndarray:
    path.write_bytes(b"P5 4 2 65535\n" + WIDE.astype(">u2").tobytes())
    return grey(np.rint(WIDE / 257))


def save_float(path: Path) -> np.ndarray:
    Image.fromarray(np.array([[0, 0.25, 0.5, 1]], np.float32)).save(path)
    return grey([[0, 64, 128, 255]])


def save_animation(path: Path) -> np.ndarray:
    first = Image.new("RGB", (4, 3), RED)
    first.save(path, save_all=True, append_images=[Image.new("RGB", (4, 3), BLUE)], lossless=True)
    return np.full((3, 4, 3), RED, np.uint8)


@pytest.mark.parametrize(
    ("save", "suffix"),
    [
        (save_1_bit, ".png"),
        (save_1_bit, ".bmp"),
        (save_1_bit, ".tif"),
        (save_grey, ".png"),
        (save_grey, ".bmp"),
        (save_grey, ".tiff"),
        (save_grey, ".pgm"),
        (save_colour, ".png"),
        (save_colour, ".bmp"),
        (save_colour, ".tif"),
        (save_colour, ".ppm"),
        (save_lossless_webp, ".webp"),
        (save_rgba, ".png"),
        (save_rgba, ".tif"),
        (save_rgba, ".webp"),
        (save_grey_with_alpha, ".png"),
        (save_palette, ".png"),
        (save_palette, ".gif"),
        (save_palette, ".bmp"),
        (save_palette_with_a_transparent_index, ".png"),
        (save_palette_with_a_transparent_index, ".gif"),
        (save_palette_with_alphas, ".png"),
        (save_grey_with_a_transparent_value, ".png"),
        (save_16_bit, ".png"),
        (save_16_bit, ".tif"),
        (save_16_bit_with_a_transparent_value, ".png"),
        (save_big_endian_16_bit, ".tif"),
        (save_12_bit, ".tif"),
        (save_16_bit_pgm, ".pgm"),
        (save_float, ".tif"),
        (save_animation, ".gif"),
        (save_animation, ".webp"),
        (save_animation, ".png"),
    ],
)
def test_a_file_of_every_format_gives_its_pixels(tmp_path: Path, save, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    expected = save(path)
    check_readable([path])
    for source in (path, str(path)):
        image = read_image(source)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, expected, strict=True)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_image(opened), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_near_its_pixels(tmp_path: Path, mode: str) -> None:
    values = np.full((16, 16, 3), (200, 120, 40), np.uint8)
    values[8:] = (20, 90, 220)
    picture = Image.fromarray(values).convert(mode)
    picture.save(tmp_path / "image.jpg", quality=95, subsampling=0)
    expected = np.asarray(picture.convert("RGB"), dtype=int)
    assert np.abs(read_image(tmp_path / "image.jpg") - expected).max() <= 4


def test_ycck_jpeg_is_converted(tmp_path: Path) -> None:
    """Say in the Adobe marker of a CMYK file that its channels are YCCK, as Photoshop does.

    Such files hold complements: of red, cyan; and Pillow complements what it is given once more.
    """
    path = tmp_path / "image.jpg"
    stored = Image.new("RGB", (1, 1), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))
    Image.new("CMYK", (16, 16), (*(255 - v for v in stored), 0)).save(path, quality=100)
    data = path.read_bytes()
    transform = data.index(b"Adobe") + 11
    path.write_bytes(data[:transform] + b"\x02" + data[transform + 1 :])
    with Image.open(path) as opened:
        assert opened.info["adobe_transform"] == 2
    assert np.abs(read_image(path) - np.array(RED)).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stored_from_upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(stored_from_upright[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image{suffix}"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_image(opened), upright)
        if suffix == ".png":  # Pillow turns TIFF files itself, while loading
            assert opened.size == stored.size  # the caller's image is as it was


def test_exif_orientation_of_16_bit_grey(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(WIDE).save(tmp_path / "image.png", exif=exif)
    expected = grey(np.rint(np.rot90(WIDE, -1) / 257))
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), expected)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_means_nothing_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(WIDE).save(tmp_path / "image.png", exif=exif)
    assert read_image(tmp_path / "image.png").shape == (2, 4, 3)


def test_pillow_images_of_memory_are_read() -> None:
    assert read_image(Image.new("HSV", (2, 1), (0, 255, 255))).tolist() == [[list(RED)] * 2]
    wide = Image.fromarray(np.array([[0, 65535]], np.int32))
    assert read_image(wide)[0, :, 0].tolist() == [0, 255]
    assert read_image(Image.new("1", (1, 1), 1)).tolist() == [[list(WHITE)]]
    with pytest.raises(ImageReadError, match="range from 0 to 65536, beyond 16 bits"):
        read_image(Image.fromarray(np.array([[0, 65536]], np.int32)))
    with pytest.raises(ImageReadError, match="mode 'F' cannot be used: Float values must lie"):
        read_image(Image.fromarray(np.array([[0, 7]], np.float32)))


# Files: what is wrong


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("I am no image.")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    expected = {
        "empty.png": "is empty (0 bytes): remove it or copy it again",
        "text.png": "is not an image that Pillow can open (it begins with b'I am no imag')",
        "folder.png": "is a folder: give a file",
        "missing.png": "does not exist: check the path",
    }
    for name, message in expected.items():
        path = tmp_path / name
        for refuse in (read_image, lambda p: check_readable([p])):
            with pytest.raises(ImageReadError) as caught:
                refuse(path)
            assert f"{str(path)!r} {message}" in str(caught.value)
        with pytest.raises(ImageReadError) as caught:
            read_image(path)
        assert caught.value.__cause__ is not None
    with pytest.raises(ImageReadError, match=r"dangling\.png"):
        read_image(tmp_path / "dangling.png")
    with pytest.raises(ImageReadError, match="nul"):
        read_image("nul\0byte.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".pgm"])
def test_truncated_files_are_refused_by_name(
    tmp_path: Path, rng: np.random.Generator, suffix: str
) -> None:
    path = tmp_path / f"image{suffix}"
    mode = "L" if suffix == ".pgm" else "RGB"
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageReadError, match=rf"image\{suffix}' .*(damaged|not an image)"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".gif", ".bmp"])
@pytest.mark.filterwarnings("ignore:::PIL")
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_image_read_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"image{suffix}"
    save_colour(path)
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=5)):
        content[place] = byte
    path.write_bytes(content)
    try:
        image = read_image(path)
    except ImageReadError as error:
        assert path.name in str(error)
    else:
        assert image.ndim == 3
        assert image.shape[2] == 3


def test_integers_of_unknown_scale_in_tiff_are_refused_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, 255]], np.int32)).save(path)
    for refuse in (read_image, lambda p: check_readable([p])):
        with pytest.raises(ImageReadError, match=r"image\.tif' cannot be used: it holds signed or"):
            refuse(path)


def test_float_tiff_outside_the_unit_interval_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, 255]], np.float32)).save(path)
    with pytest.raises(ImageReadError, match=r"image\.tif' cannot be used: Float values must"):
        read_image(path)


def test_too_large_images_say_which_setting_refuses_them(tmp_path, monkeypatch) -> None:
    save_grey(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ImageReadError, match=r"image\.png' .*set PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "image.png")


def test_check_readable_names_all_and_counts_the_rest(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    save_grey(good)
    check_readable([])
    check_readable([good, str(good)])
    bad = [tmp_path / f"bad{i:02d}.png" for i in range(13)]
    with pytest.raises(ImageReadError) as caught:
        check_readable([good, *bad, good])
    lines = str(caught.value).splitlines()
    assert lines[0] == "13 images cannot be read:"
    assert len(lines) == 12
    assert all(path.name in line for path, line in zip(bad, lines[1:11], strict=False))
    assert lines[-1] == "and 3 more."
    assert "good.png" not in str(caught.value)


# Reduced JPEG decoding


def save_jpeg(path: Path, height: int, width: int, orientation: int = 1) -> None:
    ramp = np.linspace(0, 250, height * width).reshape(height, width).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp).save(path, exif=exif, quality=95)


@pytest.mark.parametrize(
    ("min_size", "reduced"),
    [
        ((30, 40), (75, 101)),  # 1/8 would be 38 x 51: less than twice 30 x 40
        ((10, 10), (38, 51)),  # 1/8, rounded up
        ((75, 100), (150, 201)),
        ((80, 10), (300, 401)),
        ((10, 101), (300, 401)),
        ((500, 500), (300, 401)),
    ],
)
def test_a_reduced_image_keeps_twice_the_size_asked_for(
    tmp_path: Path, min_size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    path = tmp_path / "image.jpg"
    save_jpeg(path, 300, 401)
    image, original_size = read_reduced(path, min_size)
    assert original_size == (300, 401)
    assert image.shape == (*reduced, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_image_is_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "image.jpg"
    save_jpeg(path, 160, 480, orientation)
    full = read_image(path)
    image, original_size = read_reduced(path, (20, 60) if orientation < 5 else (60, 20))
    assert original_size == full.shape[:2]
    assert image.shape[:2] == (full.shape[0] // 4, full.shape[1] // 4)
    blocks = full.reshape(image.shape[0], 4, image.shape[1], 4, 3).mean(axis=(1, 3))
    assert np.abs(image - blocks).max() < 6


def test_an_image_on_its_side_is_reduced_as_its_upright_height_allows(tmp_path: Path) -> None:
    save_jpeg(tmp_path / "image.jpg", 160, 480, orientation=6)
    image, original_size = read_reduced(tmp_path / "image.jpg", (200, 10))
    assert original_size == (480, 160)
    assert image.shape == (480, 160, 3)  # half of the height would be less than twice 200


def test_a_pillow_image_that_cannot_be_used_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "signed.tif"
    Image.fromarray(np.zeros((3, 4), np.int32)).save(path)
    with Image.open(path) as image, pytest.raises(ImageReadError, match=r"signed\.tif.*mode 'I'"):
        read_image(image)


def test_only_jpeg_files_are_reduced(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("L", (80, 60)).save(path)
    array = np.zeros((60, 80), np.uint8)
    save_jpeg(tmp_path / "image.jpg", 60, 80)
    with Image.open(tmp_path / "image.jpg") as opened:
        for source in (path, array, opened):
            image, original_size = read_reduced(source, (2, 2))
            assert image.shape == (60, 80, 3)
            assert original_size == (60, 80)


@pytest.mark.parametrize("size", [(2, 5_001), (5_001, 2)])
def test_long_strips_are_averaged_to_64_times_what_is_made_of_them(tmp_path, rng, size) -> None:
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    kept = (2, 256) if size[0] == 2 else (256, 2)
    first_run = np.flatnonzero(np.arange(5_001) + 0.5 < 5_001 / 256)  # whose centres lie in it
    for source in (tmp_path / "strip.png", pixels):
        image, original_size = read_reduced(source, (4, 4))
        assert (image.shape, original_size) == ((*kept, 3), size)
        np.testing.assert_array_equal(read_hashed(source, (4, 4))[0], image)
        long = 1 if size[0] == 2 else 0
        assert image.mean(long) == pytest.approx(pixels.mean(long), abs=0.5)
        first = pixels.take(first_run, long).mean(long)
        assert image.take(0, long) == pytest.approx(first, abs=0.5)
    for enough in (2, 100):  # no strip is widened; it is not that long
        assert read_reduced(pixels, (enough, enough))[0].shape == (*size, 3)
    assert read_image(pixels).shape == (*size, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_on_its_side_is_read_upright(tmp_path: Path, rng, dtype: type) -> None:
    """Pillow, given its path, reads such a file of grey with height and width exchanged."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = rng.integers(0, np.iinfo(dtype).max, (60, 80), dtype=dtype)
    Image.fromarray(stored).save(tmp_path / "image.tif", exif=exif)
    image, original_size = read_reduced(tmp_path / "image.tif", (2, 2))
    assert original_size == (80, 60)
    np.testing.assert_array_equal(image, read_image(np.rot90(stored, -1)))


def test_reduced_images_come_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, path in enumerate(paths):
        save_jpeg(path, 64 + i, 64)
    sizes = [size for _, size in read_reduced_images(paths, (8, 8))]
    assert sizes == [(64 + i, 64) for i in range(5)]
    (tmp_path / "3.jpg").unlink()
    with pytest.raises(ImageReadError, match=r"3\.jpg"):
        list(read_reduced_images(paths, (8, 8)))


# Many images


@pytest.mark.parametrize("n_workers", [None, 1, 2, 5, -1])
def test_images_come_in_order(tmp_path: Path, n_workers: int | None) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.new("L", (1 if i % 3 else 400, 2), i).save(path)
    images = list(read_images(paths, n_workers=n_workers))
    assert [int(image[0, 0, 0]) for image in images] == list(range(20))
    assert reader_threads() == []


def test_no_images_give_none() -> None:
    assert list(read_images([])) == []


def test_an_endless_stream_is_read_as_far_as_needed() -> None:
    taken = []

    def stream():
        for i in itertools.count():
            taken.append(i)
            yield np.full((2, 2), i % 256, np.uint8)

    images = read_images(stream(), n_workers=2)
    assert taken == []
    first = [int(next(images)[0, 0, 0]) for _ in range(3)]
    assert first == [0, 1, 2]
    assert len(taken) <= 3 + 2 * 2
    assert reader_threads() != []
    images.close()
    assert reader_threads() == []
    assert list(images) == []


def test_the_first_error_in_order_stops_the_reading(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for i in (0, 1, 2, 3, 5, 7, 8):
        save_grey(paths[i])
    images = read_images(paths, n_workers=4)
    for _ in range(4):
        next(images)
    with pytest.raises(ImageReadError, match=r"4\.png' does not exist"):
        next(images)
    assert reader_threads() == []


def test_an_array_that_cannot_be_read_is_named_by_its_index() -> None:
    arrays = [np.zeros((2, 2)), np.ones((2, 2)), np.full((2, 2), 7.0)]
    with pytest.raises(ImageReadError, match="Image at index 2: Float values must lie"):
        list(read_images(arrays))


@pytest.mark.parametrize("n_workers", [None, 2])
def test_one_path_instead_of_many_is_refused_at_once(n_workers: int | None) -> None:
    for many in (read_images, check_readable, lambda p, **k: read_reduced_images(p, (2, 2), **k)):
        with pytest.raises(TypeError, match=r"pass a list, \['a\.png'\]"):
            many("a.png", n_workers=n_workers)


def test_zero_workers_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="n_jobs"):
        read_images([], n_workers=0)


# What only looks like an image or a path


class Wrapped:
    """Has an array, but is none."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.full((2, 3), 7, dtype=np.uint8)


class Tensor(Wrapped):
    """Has to be detached and brought here, as a tensor with gradients has."""

    dtype = "torch.float32"

    def detach(self) -> Any:
        return self

    def cpu(self) -> Any:
        return Wrapped()


def test_what_has_an_array_is_read_as_one() -> None:
    assert read_image(Wrapped()).tolist() == np.full((2, 3, 3), 7).tolist()
    tensor = Tensor()
    tensor.cpu = lambda: np.full((2, 3), 9, np.uint8)  # type: ignore[method-assign]
    assert (read_image(tensor) == 9).all()


def test_masked_values_are_refused_and_masks_without_any_are_not() -> None:
    image = np.ma.masked_array(np.full((2, 3), 5, np.uint8), mask=[[0, 0, 1], [0, 1, 0]])
    with pytest.raises(ImageReadError, match=r"2 of 6 values are masked.*image\.filled\(value\)"):
        read_image(image)
    assert (read_image(np.ma.masked_array(np.full((2, 3), 5, np.uint8))) == 5).all()


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("http://host/1.png", "is a URL, and nothing is downloaded"),
        ("https://host/1.png", "is a URL, and nothing is downloaded"),
        ("ftp://host/1.png", "is a URL, and nothing is downloaded"),
        ("s3://host/1.png", "is a URL, and nothing is downloaded"),
        ("~/1.png", r"'~' is not expanded, use os\.path\.expanduser"),
    ],
)
def test_paths_that_others_expand_or_fetch_are_refused_with_advice(path: str, advice: str) -> None:
    with pytest.raises(ImageReadError, match=advice):
        read_image(path)


# Finding files


def test_images_are_found_below_a_folder_sorted(tmp_path: Path) -> None:
    wanted = ["a/2.PNG", "a/10.png", "a/deep/er/1.jpeg", "b.tif", "c d/ä.webp"]
    skipped = [".hidden.png", "a/._2.png", ".cache/1.png", "a/notes.txt", "Thumbs.db", "png"]
    for name in wanted + skipped:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(str(tmp_path / name) for name in wanted)
    assert find_images(str(tmp_path / "folder.png")) == []


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1.png").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "good").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "again").symlink_to(root, target_is_directory=True)
    assert find_images(root) == [str(root / "good" / "1.png")]


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="nowhere' does not exist: give a folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ImageReadError, match="file' is a file: give a folder"):
        find_images(tmp_path / "file")


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    listed = os.scandir

    def scan(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(ImageReadError, match=r"locked.*Permission denied\): check its .* drive"):
        find_images(tmp_path)


# Hashes


def test_equal_images_have_equal_hashes_and_others_have_not(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    pixels = rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    files = [tmp_path / name for name in ("a.png", "b.PNG", "c.png", "d.bmp")]
    for file in (files[0], files[3]):
        Image.fromarray(pixels).save(file)
    files[1].write_bytes(files[0].read_bytes())
    other = pixels.copy()
    other[4, 7, 2] ^= 1
    Image.fromarray(other).save(files[2])
    same_file = {*content_hashes([files[0], str(files[1])])}
    same_pixels = {*content_hashes([pixels, pixels[:, ::-1][:, ::-1], Image.fromarray(pixels)])}
    same_pixels |= {*content_hashes([pixels.astype(np.uint16) * 257])}
    others = {*content_hashes([files[2], files[3], other, pixels.reshape(8, 5, 3)])}
    assert (len(same_file), len(same_pixels), len(others)) == (1, 1, 4)
    assert len(same_file | same_pixels | others) == 6


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_an_image_is_read_and_hashed_at_once(rng: np.random.Generator, tmp_path, name: str) -> None:
    pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    for source in (tmp_path / name, pixels, Image.fromarray(pixels)):
        expected, size = read_reduced(source, (8, 8))
        found, found_size, content = read_hashed(source, (8, 8))
        np.testing.assert_array_equal(found, expected)
        assert (found_size, [content]) == (size, list(content_hashes([source])))
    with pytest.raises(ImageReadError, match=r"nowhere\.png' does not exist"):
        read_hashed(tmp_path / "nowhere.png", (8, 8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, bool])
@pytest.mark.parametrize("shape", [(2000, 1500), (1700, 1300, 3), (1600, 1200, 4)])
def test_hashes_are_those_of_all_bytes_with_some_in_memory(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8).astype(dtype))
    mapped = np.load(path, mmap_mode="r")
    rgb, content = read_image(mapped), path.read_bytes()
    tracemalloc.start()
    of_pixels, of_file = content_hashes([mapped, path], n_workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    key = f"RGB {rgb.shape}".encode()
    assert of_pixels == hashlib.blake2b(rgb.tobytes(), digest_size=16, key=key).hexdigest()
    assert of_file == hashlib.blake2b(content, digest_size=16, key=b"file").hexdigest()
    assert peak < rgb.nbytes


def test_complaints_about_hashed_pixels_are_about_the_whole_array() -> None:
    pixels = np.zeros((3000, 2000), np.float32)
    pixels[5, 7] = pixels[2990, 3] = np.nan
    with pytest.raises(ImageReadError, match="2 of 6000000 values are NaN"):
        list(content_hashes([pixels]))
    with pytest.raises(ImageReadError, match="is empty"):
        list(content_hashes([np.zeros((0, 5), np.uint8)]))


def test_hashing_names_what_cannot_be_hashed(tmp_path: Path) -> None:
    good = np.zeros((2, 2), np.uint8)
    with pytest.raises(ImageReadError, match=r"Image at index 1: .* NaN"):
        list(content_hashes([good, np.full((2, 2), np.nan)]))
    with pytest.raises(ImageReadError, match=r"nowhere\.png' does not exist"):
        list(content_hashes([good, tmp_path / "nowhere.png"]))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_is_that_of_the_image_that_is_read(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"a{suffix}", exif=exif)
    expected = (30, 20) if orientation > 4 else (20, 30)
    assert image_size(tmp_path / f"a{suffix}") == expected
    assert read_image(tmp_path / f"a{suffix}").shape[:2] == expected


def test_image_size_names_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    for name, problem in (("a.png", "is not an image"), ("b.png", "does not exist")):
        with pytest.raises(ImageReadError, match=f"{name}.*{problem}"):
            image_size(tmp_path / name)


def test_one_pillow_image_many_times_is_loaded_once(tmp_path):
    """A bootstrap of images that are not loaded yet reads each of them in several threads."""
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    for _ in range(5):
        with Image.open(path) as image:
            for read in read_images([image] * 8, n_workers=4):
                np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_what_is_no_image_is_named_by_its_place(missing):
    images = [np.zeros((4, 4), np.uint8), missing]
    with pytest.raises(TypeError, match=r"Image at index 1: An image is a path.*(NoneType|float)"):
        list(read_images(images))


# --- Marks ------------------------------------------------------------------------------------

MARKS = np.array([[0, 1, 0], [0, 0, 2]])


def test_marks_are_what_is_not_zero_whatever_the_values_mean(tmp_path):
    grey = MARKS.astype(np.uint8)
    palette = Image.fromarray(grey, "L").convert("P")
    palette.putdata(grey.ravel())
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    transparent = np.zeros((2, 3, 4), np.uint8)  # below it, black
    transparent[MARKS > 0] = (255, 0, 0, 255)
    images = {
        "grey.png": Image.fromarray(grey),
        "wide.png": Image.fromarray(MARKS.astype(np.uint16)),
        "wide.tif": Image.fromarray(MARKS.astype(np.uint16)),
        "bits.png": Image.fromarray(MARKS > 0),
        "colours.png": Image.fromarray(np.stack([grey, 0 * grey, 0 * grey], axis=2)),
        "palette.png": palette,
        "transparent.png": Image.fromarray(transparent),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_marked(tmp_path / name), MARKS > 0, err_msg=name)


def test_a_file_of_marks_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"missing\.png' does not exist"):
        read_marked(tmp_path / "missing.png")
