"""Annotations in the YOLO format: a line of text per shape, in shares of the image's size.

Owns the format, for detection (class, centre and size of a box) and for segmentation (class and the
corners of a polygon). Which images there are, and where, `annotations` and `image_files` know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from defectcam.image_files import ImageFiles
from defectcam.images import ImageReadError
from defectcam.shapes import AnnotatedImage, Shape, box_around, joined, numbers, polygon_shape

__all__ = ["read_yolo", "write_yolo"]

TABLE_FILE = "data.yaml"

_LABELS, _NAMES = "labels", "classes.txt"
_MAX_NAMES = 20
_LARGEST_NAME = 10**18


def write_yolo(
    images: Sequence[AnnotatedImage],
    label_files: Sequence[str],
    folder: Path,
    classes: Sequence[str],
    polygons: bool,
) -> None:
    """Write ``labels/`` with a text file per image, empty for a good one, and ``data.yaml``."""
    numbers_of = {name: number for number, name in enumerate(classes)}
    for image, file in zip(images, label_files, strict=True):
        lines = [
            " ".join([str(numbers_of[shape.label]), *(f"{x:.12g}" for x in values)])
            for shape in image.shapes
            for values in [_shares(shape, image.size, polygons)]
        ]
        target = folder / _LABELS / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    table = {"train": "images", "val": "images", "names": dict(enumerate(classes))}
    text = yaml.safe_dump(table, allow_unicode=True, sort_keys=False)
    (folder / TABLE_FILE).write_text(text, encoding="utf-8")


def read_yolo(path: Path, files: ImageFiles) -> list[AnnotatedImage]:
    """Read a folder of label files; images without one are not among those returned."""
    names = _class_names(path)
    labels = path / _LABELS if (path / _LABELS).is_dir() else path
    label_files = sorted(file for file in labels.rglob("*.txt") if file != path / _NAMES)
    if not label_files:
        raise ImageReadError(f"{str(labels)!r} has no label files (*.txt, one per image).")
    read = []
    for file in label_files:
        stem = file.relative_to(labels).with_suffix("").as_posix()
        image = files.find_stem(stem, repr(str(file)))
        read.append(AnnotatedImage(image, files.size(image), _shapes(file, names, files, image)))
    return read


def _shares(shape: Shape, size: tuple[int, int], polygons: bool) -> list[float]:
    height, width = size
    if polygons and shape.outlines:
        return (joined(shape.outlines) / (width, height)).ravel().tolist()
    left, top, right, bottom = shape.box
    centre = (left + right) / 2 / width, (top + bottom) / 2 / height
    return [*centre, (right - left) / width, (bottom - top) / height]


def _class_names(path: Path) -> dict[int, str]:
    table = path / TABLE_FILE if (path / TABLE_FILE).is_file() else path / _NAMES
    if not table.is_file():
        raise ImageReadError(
            f"{str(path)!r} has neither {TABLE_FILE} nor {_NAMES}, which name the classes: "
            f"pass the folder that holds one of them and {_LABELS}/."
        )
    names = _lines(table) if table.name == _NAMES else _listed_names(table)
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(
        type(number) is int and _is_name(name) for number, name in names.items()
    ):
        raise ImageReadError(f"{str(table)!r} needs 'names', the classes' names in order.")
    return {number: str(name) for number, name in names.items()}


def _listed_names(table: Path) -> Any:
    try:
        content = yaml.safe_load(table.read_text(encoding="utf-8-sig"))
    except MemoryError:
        raise
    except Exception as error:  # PyYAML raises whatever a date or a number leads it to
        raise ImageReadError(f"{str(table)!r} cannot be read as YAML: {error}") from error
    return content.get("names") if isinstance(content, dict) else None


def _is_name(name: Any) -> bool:
    if isinstance(name, int):
        return abs(name) < _LARGEST_NAME  # of those with thousands of digits Python makes no text
    return isinstance(name, str) and bool(name.strip())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageReadError(f"{str(file)!r} cannot be read as text: {error}") from error


def _shapes(file: Path, names: dict[int, str], files: ImageFiles, image: str) -> tuple[Shape, ...]:
    return tuple(
        _shape(line.split(), names, files.size(image), f"{str(file)!r}, line {number},")
        for number, line in enumerate(_lines(file), start=1)
        if line.strip()
    )


def _shape(cells: list[str], names: dict[int, str], size: tuple[int, int], place: str) -> Shape:
    kind, *shares = cells
    if not re.fullmatch("[0-9]{1,9}", kind) or int(kind) not in names:
        shown = dict(list(names.items())[:_MAX_NAMES])
        raise ImageReadError(f"{place} has the class {kind[:20]!r}, which is none of {shown}.")
    label = names[int(kind)]
    values: Any = numbers(shares, place)
    height, width = size
    if len(values) in (4, 5):  # a fifth is the confidence of a prediction
        x, y, w, h = values[:4] * (width, height, width, height)
        corners = np.array([[x - w / 2, y - h / 2], [x + w / 2, y + h / 2]])
        return Shape(label, box_around(corners, size, place))
    if len(values) % 2:
        raise ImageReadError(
            f"{place} has {len(values)} numbers after the class. Expected: centre, width and "
            "height of a box, or x and y of each corner of a polygon."
        )
    return polygon_shape(label, [values.reshape(-1, 2) * (width, height)], size, place)
