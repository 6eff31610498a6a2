"""The targets: each takes any bytes and fails where the library's answer is not a documented one.

A target is made with a folder of its own, prepares there what it needs, and is then called with the
bytes, again and again: by `test_corpus` with those of the corpus, by `campaign` with what a fuzzer
makes of these. It knows nothing of the fuzzer.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from defectcam.annotations import FORMATS, import_annotations
from defectcam.images import (
    ImageReadError,
    check_readable,
    content_hashes,
    image_size,
    read_image,
    read_reduced,
)
from defectcam.large_images import open_rows

#: What stands between the parts of an input.
GAP = b"\0"

#: Most pixels of an image: with Pillow's own limit, a header of 30 bytes fills gigabytes.
MAX_PIXELS = 2**20

#: Sizes of the images that annotations are for, by name.
ANNOTATED = {"a.png": (12, 16), "folder/b.png": (9, 7)}

#: Targets that need torch, which takes seconds to import: their classes in `model_targets`.
WITH_MODEL = {
    "cli": "CommandLine",
    "config": "Configuration",
    "model": "ModelBytes",
    "service": "Requests",
}
NAMES = ("image", "large", *FORMATS, *WITH_MODEL)

_T = TypeVar("_T")


class Target(ABC):
    """Takes bytes; raises nothing, or there is a bug."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def __call__(self, data: bytes) -> None: ...

    def close(self) -> None:  # noqa: B027, most have nothing to end
        """End what `__init__` has begun."""


def make_target(name: str, folder: Path) -> Target:
    """Prepare one of `NAMES` in a folder of its own."""
    if name == "image":
        return ImageBytes(folder)
    if name == "large":
        return LargeImage(folder)
    if name in FORMATS:
        return AnnotationBytes(folder, name)
    module = importlib.import_module("fuzz.model_targets")
    target: Target = getattr(module, WITH_MODEL[name])(folder)
    return target


class ImageBytes(Target):
    """The content of an image file, read in every way that there is."""

    def __call__(self, data: bytes) -> None:
        path = self.folder / "image"
        path.write_bytes(data)
        with _few_pixels():
            sizes = [
                unless(ImageReadError, lambda: read_image(path).shape),
                unless(ImageReadError, lambda: (*image_size(path), 3)),
                unless(ImageReadError, lambda: (*read_reduced(path, (2, 2))[1], 3)),
            ]
            unless(ImageReadError, lambda: check_readable([path], n_workers=1))
        assert len(next(content_hashes([path], n_workers=1))) == 32
        if sizes[0] is not None:  # whoever can read an image finds it of this size
            assert sizes == [sizes[0]] * 3, sizes


class LargeImage(Target):
    """The content of a TIFF file, read in parts."""

    def __call__(self, data: bytes) -> None:
        path = self.folder / "image.tif"
        path.write_bytes(data)
        with _few_pixels():
            unless(ImageReadError, lambda: self._read(path))

    @staticmethod
    def _read(path: Path) -> None:
        with open_rows(path) as rows:
            height, width = rows.size
            n_rows = min(height, 8, MAX_PIXELS // max(width, 1))
            if n_rows:
                assert rows.read(height - n_rows, height).shape == (n_rows, width, 3)


class AnnotationBytes(Target):
    """An annotation file of one format; of YOLO, the table of classes, a gap, and the labels."""

    def __init__(self, folder: Path, format: str) -> None:
        super().__init__(folder)
        self.format = format
        self.images = folder / "images"
        for name, (height, width) in ANNOTATED.items():
            (self.images / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (width, height)).save(self.images / name)
        self.path = folder / f"annotations{'.xml' if format in ('cvat', 'voc') else '.json'}"
        if format == "yolo":
            self.path = folder / "yolo"
            (self.path / "labels").mkdir(parents=True)

    def __call__(self, data: bytes) -> None:
        if self.format == "yolo":
            table, _, labels = data.partition(GAP)
            (self.path / "data.yaml").write_bytes(table)
            (self.path / "labels" / "a.txt").write_bytes(labels)
        else:
            self.path.write_bytes(data)
        for shapes in (None, "box"):
            self._imported(shapes)

    def _imported(self, shapes: str | None) -> None:
        read = unless(
            ImageReadError,
            lambda: import_annotations(self.path, self.format, self.images, shapes=shapes),
        )
        if read is None:
            return
        for path, boxes, mask in zip(read.paths, read.boxes, read.masks, strict=True):
            height, width = image_size(path)
            assert (boxes >= 0).all() and (boxes <= (width, height, width, height)).all()
            if mask is not None:
                assert np.asarray(mask).shape == (height, width)


def unless(refusal: type[Exception], act: Callable[[], _T]) -> _T | None:
    """Return what `act` returns; None where it refuses by the documented error, with a message."""
    try:
        return act()
    except refusal as error:
        assert str(error)
        return None


@contextlib.contextmanager
def _few_pixels() -> Iterator[None]:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
