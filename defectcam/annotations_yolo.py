"""Annotations in the YOLO format: a line of text per shape, in shares of the image's size.

Owns the format, for detection (class, centre and size of a box) and for segmentation (class and the
corners of a polygon), and how tools lay out such a data set. Which images there are, and where,
`annotations` and `image_files` know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from defectcam.image_files import ImageFiles
from defectcam.images import ImageReadError
from defectcam.shapes import AnnotatedImage, Shape, box_around, joined, numbers, polygon_shape

__all__ = ["read_yolo", "write_yolo"]

TABLE_FILE = "data.yaml"

_LABELS, _IMAGES = "labels", "images"
_NAMES = ("classes.txt", "obj.names")  # a name a line, as Label Studio and as CVAT have it
_TABLES = (TABLE_FILE, *_NAMES)
_CVAT_FOLDERS = "obj_*_data"
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
    """Read a data set, given by its folder or its table of classes.

    Images without a label file are good ones, as Ultralytics takes them.
    """
    table = _table(path)
    names = _class_names(table)
    label_files = _label_files(table.parent, files)
    if not label_files:
        raise ImageReadError(f"{str(table.parent)!r} has no label files (*.txt, one per image).")
    read = []
    for file, stem in label_files:
        image = files.find_stem(stem, repr(str(file)))
        read.append(AnnotatedImage(image, files.size(image), _shapes(file, names, files, image)))
    unlabelled = files.others({image.file_name for image in read})
    return [*read, *(AnnotatedImage(image, files.size(image), ()) for image in unlabelled)]


def _label_files(folder: Path, files: ImageFiles) -> list[tuple[Path, str]]:
    """List the label files, each with what its image is called but for the suffix."""
    labels = folder / _LABELS
    if labels.is_dir():
        return [(file, _stem(file, labels)) for file in sorted(_texts(labels))]
    texts = sorted(_texts(folder))
    of_cvat = [file for file in texts if fnmatch(_stem(file, folder), f"{_CVAT_FOLDERS}/*")]
    if of_cvat:
        return [(file, _cvat_stem(file, folder, files)) for file in of_cvat]
    split = [file for file in texts if _LABELS in file.relative_to(folder).parts[:-1]]
    if split:
        return [(file, _stem_in_images(file, folder)) for file in split]
    tables = [folder / name for name in _NAMES]
    return [(file, _stem(file, folder)) for file in texts if file not in tables]


def _texts(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """List text files, through links too: an image whose file was missed would be called good."""
    real = folder.resolve()
    if real in above:  # a link that leads back would never end
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise ImageReadError(
            f"The folder {str(folder)!r} cannot be listed ({error.strerror}): check its "
            "permissions and its drive."
        ) from error
    for entry in entries:
        if entry.is_dir():
            yield from _texts(entry, above | {real})
        elif entry.suffix == ".txt":
            yield entry


def _stem(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _stem_in_images(file: Path, folder: Path) -> str:
    """Replace the last folder ``labels`` by ``images``, as Ultralytics does the other way round."""
    *parts, name = _stem(file, folder).split("/")
    last = len(parts) - 1 - parts[::-1].index(_LABELS)
    return "/".join([*parts[:last], _IMAGES, *parts[last + 1 :], name])


def _cvat_stem(file: Path, folder: Path, files: ImageFiles) -> str:
    """Name an image that lies beside its label file, or, exported without, where it came from."""
    beside = _stem(file, folder)
    return beside if files.has_stem(beside) else beside.partition("/")[2]


def _shares(shape: Shape, size: tuple[int, int], polygons: bool) -> list[float]:
    height, width = size
    if polygons and shape.outlines:
        return (joined(shape.outlines) / (width, height)).ravel().tolist()
    left, top, right, bottom = shape.box
    centre = (left + right) / 2 / width, (top + bottom) / 2 / height
    return [*centre, (right - left) / width, (bottom - top) / height]


def _table(path: Path) -> Path:
    """Find the file that names the classes."""
    if path.is_file() and (path.suffix in (".yaml", ".yml") or path.name in _NAMES):
        return path
    table = next((path / name for name in _TABLES if (path / name).is_file()), None)
    if table is None:
        raise ImageReadError(
            f"{str(path)!r} has neither {', '.join(_TABLES[:-1])} nor {_TABLES[-1]}, which name "
            f"the classes: pass the folder that holds one of them and {_LABELS}/."
        )
    return table


def _class_names(table: Path) -> dict[int, str]:
    names = _lines(table) if table.name in _NAMES else _listed_names(table)
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
