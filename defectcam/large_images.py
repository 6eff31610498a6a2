"""Reads large images row by row, so that a part of the pixels is in memory at a time.

Owns which sources can be read in parts: arrays, also those that `numpy.memmap` or `numpy.load(...,
mmap_mode="r")` leave in their file, and TIFF files where the package tifffile is installed (extra
``large``). All others are decoded whole. What stored values mean as RGB is `images`' matter, the
same for a part as for the whole.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from defectcam.images import (
    ImageReadError,
    as_array,
    check_readable,
    is_path,
    open_file,
    read_image,
)

__all__ = [
    "PixelRows",
    "check_readable_whole",
    "is_read_in_parts",
    "open_rows",
    "read_shrunk",
    "read_tiles",
]

_TIFF_SUFFIXES = (".tif", ".tiff")

#: Compressions that tifffile undoes without further packages: none, Deflate (two codes), PackBits.
_PLAIN_COMPRESSIONS = (1, 8, 32946, 32773)

#: Rows that are shrunk at a time.
_ROWS = 512


class PixelRows(Protocol):
    """An image whose rows can be read.

    Attributes
    ----------
    size : (int, int)
        Height and width in pixels.
    """

    size: tuple[int, int]

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Read the rows from `top` up to, not including, `bottom`: RGB of shape (h, W, 3)."""


class _ArrayRows:
    """Rows of an array of pixels, which are turned into RGB when they are read."""

    def __init__(self, pixels: NDArray[Any]) -> None:
        self.pixels = pixels
        self.size = (pixels.shape[0], pixels.shape[1])

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        return read_image(np.asarray(self.pixels[top:bottom]))


class _PlainRows:
    """Rows of an uncompressed TIFF page that lies in one piece.

    They are read, not mapped: pages of a mapped file would count as this process's memory.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.size = (page.imagelength, page.imagewidth)

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        shape = (bottom - top, self.size[1], self.page.samplesperpixel)
        dtype = np.dtype(self.page.dtype).newbyteorder(self.page.parent.byteorder)
        n_bytes = dtype.itemsize * int(np.prod(shape))
        file = self.page.parent.filehandle
        file.seek(self.page.dataoffsets[0] + top * n_bytes // shape[0])
        return _as_rgb(np.frombuffer(_all_of(file, n_bytes), dtype).reshape(shape))


def _as_rgb(stored: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn stored values into RGB as `read_image` turns those of the whole file."""
    if stored.shape[2] == 3 and stored.dtype.itemsize == 2:
        stored = (stored >> 8).astype(np.uint8)  # of wide colours, Pillow drops the low bytes
    return read_image(stored)


def _all_of(file: Any, n_bytes: int) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError(f"{len(data)} of {n_bytes} bytes are there")
    return data


class _TiffRows:
    """Rows of a compressed TIFF page, of which the strips or tiles in question are decoded."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.size = (page.imagelength, page.imagewidth)

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        page = self.page
        height, width = self.size
        n_channels = page.samplesperpixel
        part = np.zeros((bottom - top, width, n_channels), dtype=page.dtype)
        length = page.tilelength if page.is_tiled else page.rowsperstrip
        per_row = -(-width // page.tilewidth) if page.is_tiled else 1
        first, last = top // length, (bottom - 1) // length
        for index in range(first * per_row, (last + 1) * per_row):
            segment, y, x = self._segment(index)
            rows = slice(max(y, top), min(y + segment.shape[0], bottom, height))
            inside = segment[rows.start - y : rows.stop - y, : width - x]
            part[rows.start - top : rows.stop - top, x : x + inside.shape[1]] = inside
        return _as_rgb(part)

    def _segment(self, index: int) -> tuple[NDArray[Any], int, int]:
        """Decode a strip or tile; its pixels, first row and first column."""
        file = self.page.parent.filehandle
        file.seek(self.page.dataoffsets[index])
        data = _all_of(file, self.page.databytecounts[index])
        options = {} if self.page.jpegtables is None else {"jpegtables": self.page.jpegtables}
        pixels, place, _ = self.page.decode(data or None, index, **options)
        _, _, y, x, _ = place
        if pixels is None:  # a sparse file leaves out what is empty
            shape = self.page.chunks[:2]
            return np.zeros((*shape, self.page.samplesperpixel), self.page.dtype), y, x
        return pixels[0], y, x


@contextlib.contextmanager
def open_rows(source: Any) -> Iterator[PixelRows]:
    """Open an image to read its rows.

    Parameters
    ----------
    source : path, array, PIL.Image.Image or anything else that `read_image` takes
        Arrays are read in place. Of a TIFF file with one plain first page, of whatever size, the
        strips or tiles that hold the rows are decoded, if tifffile is installed. Anything else is
        decoded whole.

    Yields
    ------
    PixelRows

    Raises
    ------
    ImageReadError
        If the image cannot be read.
    """
    if isinstance(source, np.ndarray):
        is_image = source.ndim == 2 or (source.ndim == 3 and 1 <= source.shape[2] <= 4)
        if not is_image or source.size == 0:
            read_image(source)  # which says what is wrong
        is_masked = isinstance(source, np.ma.MaskedArray)  # a part would lose its mask
        yield _ArrayRows(as_array(source) if is_masked else source)
        return
    if is_read_in_parts(source):
        with _open_tiff(source) as rows:
            yield _ArrayRows(read_image(source)) if rows is None else rows
        return
    yield _ArrayRows(read_image(source))


def is_read_in_parts(source: Any) -> bool:
    """Whether a source is a file that `open_rows` may read without decoding it whole."""
    is_tiff = is_path(source) and os.fspath(source).lower().endswith(_TIFF_SUFFIXES)
    return is_tiff and importlib.util.find_spec("tifffile") is not None


def check_readable_whole(
    paths: Iterable[str | os.PathLike[str]], *, n_workers: int | None = None
) -> None:
    """Refuse files that are no usable images, as `images.check_readable` does, but for some.

    Those that may be read in parts are let through: Pillow refuses the headers of huge ones.

    Parameters
    ----------
    paths : iterable of str or PathLike
    n_workers : int, optional

    Raises
    ------
    ImageReadError
        Naming the files.
    """
    check_readable((path for path in paths if not is_read_in_parts(path)), n_workers=n_workers)


@contextlib.contextmanager
def _open_tiff(path: Any) -> Iterator[PixelRows | None]:
    """Open a TIFF file's first page; None where Pillow has to read it."""
    import tifffile

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(path))
            page = stack.enter_context(tifffile.TiffFile(file)).pages[0]
            is_usable = _is_plain(page)
        except Exception:  # whatever the broken bytes lead to: `read_image` says what is wrong
            is_usable = False
        if not is_usable:
            yield None
            return
        rows = _PlainRows(page) if page.is_memmappable else _TiffRows(page)
        yield _Named(rows, path)


def _is_plain(page: Any) -> bool:
    """Whether a page is RGB or grey as `images` knows them, upright and compressed simply."""
    orientation = page.tags.get("Orientation")
    is_wide = page.dtype is not None and page.dtype.kind == "u" and page.bitspersample in (8, 16)
    return (
        is_wide
        and (page.photometric.name, page.samplesperpixel) in (("MINISBLACK", 1), ("RGB", 3))
        and page.planarconfig == 1
        and page.imagedepth == 1
        and page.compression in _PLAIN_COMPRESSIONS
        and (orientation is None or orientation.value == 1)
    )


class _Named:
    """Rows of a file, whose name goes into every complaint."""

    def __init__(self, rows: PixelRows, path: Any) -> None:
        self.rows, self.path, self.size = rows, path, rows.size

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        try:
            return self.rows.read(top, bottom)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever the broken bytes lead them to
            raise ImageReadError(
                f"{os.fspath(self.path)!r} cannot be read, it may be damaged or cut off "
                f"({type(error).__name__}: {error}): remove it or copy it again."
            ) from error


def read_tiles(
    rows: PixelRows, boxes: list[tuple[int, int, int, int]]
) -> Iterator[NDArray[np.uint8]]:
    """Cut tiles out of one row of tiles; what lies beyond the image mirrors it.

    Parameters
    ----------
    rows : PixelRows
    boxes : list of (int, int, int, int)
        Left, top, right and bottom; all have the same top and bottom, and begin in the image.

    Yields
    ------
    ndarray of uint8, shape (h, w, 3)
    """
    height, width = rows.size
    _, top, _, bottom = boxes[0]
    beyond = bottom - height
    # A mirror image needs what lies before the edge too.
    first = top if beyond <= 0 else max(0, min(top, height - beyond))
    strip = rows.read(first, min(bottom, height))
    if beyond > 0:
        strip = np.pad(strip, ((0, beyond), (0, 0), (0, 0)), mode="symmetric")
    strip = strip[top - first :]
    for left, _, right, _ in boxes:
        part = strip[:, left : min(right, width)]
        if right > width:
            start = max(0, min(left, 2 * width - right))
            part = np.pad(
                strip[:, start:width], ((0, 0), (0, right - width), (0, 0)), mode="symmetric"
            )[:, left - start :]
        yield np.ascontiguousarray(part)


def read_shrunk(source: Any, max_side: int) -> NDArray[np.uint8]:
    """Read an image shrunk to at most `max_side` pixels of the longer side, some rows at a time.

    Parameters
    ----------
    source : as for `open_rows`
    max_side : int

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        Each pixel the mean of those that it stands for; the image itself where it is small enough.
    """
    with open_rows(source) as rows:
        height, width = rows.size
        step = -(-max(height, width) // max_side)
        if step == 1:
            return rows.read(0, height)
        parts = []
        block = step * max(1, _ROWS // step)
        for top in range(0, height, block):
            part = rows.read(top, min(top + block, height))
            size = (-(-width // step), -(-part.shape[0] // step))
            parts.append(np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8))
        return np.concatenate(parts)
