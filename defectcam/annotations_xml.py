"""Annotations in XML: Pascal VOC, a file per image, and CVAT for images 1.1, one for all.

Owns the two formats: their elements, and how they count pixels. Files are parsed by defusedxml,
which refuses entities and document types, so that no file can grow in memory or fetch another.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET  # nosec B405
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException

from defectcam.coco import CocoMask, run_lengths
from defectcam.image_files import ImageFiles, relative_name
from defectcam.images import ImageReadError
from defectcam.shapes import (
    AnnotatedImage,
    Shape,
    add_part,
    box_around,
    ellipse,
    label_text,
    mask_shape,
    numbers,
    polygon_shape,
    rotated,
)

__all__ = ["read_cvat", "read_voc", "write_cvat", "write_voc"]

CVAT_FILE = "annotations.xml"

_VOC_FOLDER = "Annotations"
_BOX_CORNERS = ("xtl", "ytl", "xbr", "ybr")


# --- Pascal VOC -------------------------------------------------------------------------------


def write_voc(
    images: Sequence[AnnotatedImage],
    label_files: Sequence[str],
    folder: Path,
    classes: Sequence[str],
) -> None:
    """Write ``Annotations/`` with a file per image, without objects for a good one.

    ``ImageSets/Main/default.txt`` lists the images and ``labelmap.txt`` the classes, as CVAT and
    Datumaro look for them; a class whose name has a colon cannot be listed there.
    """
    for image, file in zip(images, label_files, strict=True):
        target = folder / _VOC_FOLDER / file
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, _voc_tree(image))
    names = [f"{file.removesuffix('.xml')}\n" for file in label_files]
    target = folder / "ImageSets" / "Main" / "default.txt"
    target.parent.mkdir(parents=True)
    target.write_text("".join(names), encoding="utf-8")
    listed = [name for name in classes if ":" not in name and not name.startswith("#")]
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:::" for name in listed]
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_voc(path: Path, files: ImageFiles) -> list[AnnotatedImage]:
    """Read a folder of files, or the one in it called ``Annotations``, or a single file."""
    folder = path / _VOC_FOLDER if (path / _VOC_FOLDER).is_dir() else path
    listed = [folder] if folder.is_file() else sorted(folder.rglob("*.xml"))
    if not listed:
        raise ImageReadError(f"{str(folder)!r} has no files *.xml, one per image.")
    root = folder.parent if folder.is_file() else folder
    return [_voc_image(file, file.parent.relative_to(root), files) for file in listed]


def _voc_tree(image: AnnotatedImage) -> ET.Element:
    name = Path(image.file_name)
    tree = ET.Element("annotation")
    _add(tree, "folder", name.parent.as_posix() if name.parent.name else "")
    _add(tree, "filename", name.name)
    source = ET.SubElement(tree, "source")
    for tag in ("database", "annotation", "image"):
        _add(source, tag, "defectcam")
    height, width = image.size
    size = ET.SubElement(tree, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, value)
    _add(tree, "segmented", 0)
    for shape in image.shapes:
        thing = ET.SubElement(tree, "object")
        _add(thing, "name", shape.label)
        _add(thing, "pose", "Unspecified")
        _add(thing, "truncated", 0)
        _add(thing, "difficult", 0)
        left, top, right, bottom = shape.box
        box = ET.SubElement(thing, "bndbox")
        # The first pixel is number 1, and the last one is still inside.
        for tag, value in zip(
            ("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom), strict=True
        ):
            _add(box, tag, value)
    return tree


def _voc_image(file: Path, folder: Path, files: ImageFiles) -> AnnotatedImage:
    place = repr(str(file))
    tree = _parse(file, "annotation")
    name = relative_name(tree.findtext("filename"), place).name
    image = files.find((folder / name).as_posix(), place)
    size = files.checked_size(
        image, tree.findtext("size/height"), tree.findtext("size/width"), place
    )
    shapes = []
    for number, thing in enumerate(tree.iter("object"), start=1):
        at = f"{place}, object {number},"
        corners = [thing.findtext(f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = numbers(corners, at)
        if right < left or bottom < top:
            raise ImageReadError(f"{at} has a box whose corners are exchanged: {corners}.")
        box = box_around([[left - 1, top - 1], [right, bottom]], size, at)
        shapes.append(Shape(label_text(thing.findtext("name"), at), box))
    return AnnotatedImage(image, size, tuple(shapes))


# --- CVAT -------------------------------------------------------------------------------------


def write_cvat(
    images: Sequence[AnnotatedImage], folder: Path, classes: Sequence[str], polygons: bool
) -> None:
    """Write ``annotations.xml``, and ``labels.json`` to make a task with these labels."""
    tree = ET.Element("annotations")
    _add(tree, "version", "1.1")
    task = ET.SubElement(ET.SubElement(tree, "meta"), "task")
    _add(task, "name", "defectcam")
    _add(task, "size", len(images))
    _add(task, "mode", "annotation")
    labels = ET.SubElement(task, "labels")
    score = {"name": "score", "mutable": False, "input_type": "text", "default_value": ""}
    for name in classes:
        label = ET.SubElement(labels, "label")
        _add(label, "name", name)
        _add(label, "type", "any")
        attribute = ET.SubElement(ET.SubElement(label, "attributes"), "attribute")
        for tag, value in score.items():
            _add(attribute, tag, value)
        _add(attribute, "values", "")
    for number, image in enumerate(images):
        tree.append(_cvat_image(number, image, polygons))
    _write(folder / CVAT_FILE, tree)
    spec = [{"name": name, "attributes": [{**score, "values": [""]}]} for name in classes]
    text = json.dumps(spec, indent=2, ensure_ascii=False)
    (folder / "labels.json").write_text(f"{text}\n", encoding="utf-8")


def read_cvat(path: Path, files: ImageFiles) -> list[AnnotatedImage]:
    """Read a file of CVAT for images 1.1, or ``annotations.xml`` in a folder."""
    file = path / CVAT_FILE if path.is_dir() else path
    read = []
    for number, entry in enumerate(_parse(file, "annotations").iter("image"), start=1):
        place = f"{str(file)!r}, image {number},"
        image = files.find(entry.get("name"), place)
        size = files.checked_size(image, entry.get("height"), entry.get("width"), place)
        shapes: list[Shape] = []
        groups: dict[tuple[str, str], int] = {}
        for at, element in enumerate(entry, start=1):
            if element.tag == "tag":
                continue
            shape = _cvat_shape(element, size, f"{place} {element.tag} {at},")
            group = element.get("group_id", "0")
            key = None if group == "0" else (group, shape.label)
            add_part(shapes, groups, key, shape, size, place)
        tag = entry.find("tag")
        label = None if tag is None else label_text(tag.get("label"), place)
        read.append(AnnotatedImage(image, size, tuple(shapes), label))
    return read


def _cvat_image(number: int, image: AnnotatedImage, polygons: bool) -> ET.Element:
    height, width = image.size
    texts = {"id": str(number), "name": image.file_name}
    entry = ET.Element("image", {**texts, "width": str(width), "height": str(height)})
    for group, shape in enumerate(image.shapes, start=1):
        common = {"label": shape.label, "source": "auto", "occluded": "0", "z_order": "0"}
        if not polygons:
            corners = zip(_BOX_CORNERS, map(str, shape.box), strict=True)
            drawn = [ET.SubElement(entry, "box", {**common, **dict(corners)})]
        elif shape.run_lengths is not None:
            drawn = [ET.SubElement(entry, "mask", {**common, **_cvat_mask(shape, image)})]
        else:
            if len(shape.outlines) > 1:
                common["group_id"] = str(group)
            points = [";".join(f"{x:.12g},{y:.12g}" for x, y in o) for o in shape.outlines]
            drawn = [ET.SubElement(entry, "polygon", {**common, "points": p}) for p in points]
        for element in drawn:
            if shape.score is not None:
                _add(element, "attribute", shape.score).set("name", "score")
    if image.label is not None:
        ET.SubElement(entry, "tag", {"label": image.label, "source": "auto"})
    return entry


def _cvat_mask(shape: Shape, image: AnnotatedImage) -> dict[str, str]:
    left, top, right, bottom = shape.box
    whole = np.asarray(CocoMask(image.size, [shape.segmentation]))
    lengths = run_lengths(whole[top:bottom, left:right].T)  # as COCO's, but along the rows
    place = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {"rle": ", ".join(map(str, lengths)), **{k: str(v) for k, v in place.items()}}


def _cvat_shape(element: ET.Element, size: tuple[int, int], place: str) -> Shape:
    label = label_text(element.get("label"), place)
    if element.tag == "box":
        left, top, right, bottom = numbers([element.get(name) for name in _BOX_CORNERS], place)
        degrees = float(numbers(element.get("rotation", "0"), place))
        if degrees:
            # CVAT turns a box about its centre.
            corners = rotated((0, 0), (right - left, bottom - top), degrees)
            corners += ((left + right) / 2, (top + bottom) / 2) - corners.mean(axis=0)
            return polygon_shape(label, [corners], size, place)
        return Shape(label, box_around([[left, top], [right, bottom]], size, place))
    if element.tag == "polygon":
        pairs = [pair.split(",") for pair in (element.get("points") or "").split(";")]
        return polygon_shape(label, [_pairs(pairs, place)], size, place)
    if element.tag == "ellipse":
        names = ("cx", "cy", "rx", "ry", "rotation")
        x, y, rx, ry, degrees = numbers([element.get(n, "0") for n in names], place)
        return polygon_shape(label, [ellipse((x, y), (rx, ry), float(degrees))], size, place)
    if element.tag == "mask":
        return _cvat_read_mask(element, label, size, place)
    raise ImageReadError(
        f"{place} has no area that could be a defect. Expected: box, polygon, ellipse or mask."
    )


def _cvat_read_mask(element: ET.Element, label: str, size: tuple[int, int], place: str) -> Shape:
    names = ("left", "top", "width", "height")
    values = numbers([element.get(name) for name in names], place)
    left, top, width, height = values.astype(int).tolist()
    text = element.get("rle") or ""
    lengths = [
        int(cell) if re.fullmatch(r"\s*\d{1,9}\s*", cell) else -1 for cell in text.split(",")
    ]
    is_inside = 0 < width <= size[1] and 0 < height <= size[0]
    if not is_inside or min(lengths) < 0 or sum(lengths) != width * height:
        raise ImageReadError(f"{place} has run lengths that do not fill {width} x {height} pixels.")
    part = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
    return mask_shape(label, part, (left, top), size, place)


# --- XML --------------------------------------------------------------------------------------


def _parse(file: Path, root: str) -> ET.Element:
    try:
        tree = defusedxml.ElementTree.parse(file, forbid_dtd=True).getroot()
    except (OSError, ET.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        what = f"{type(error).__name__}: {error}" if not str(error) else error
        raise ImageReadError(f"{str(file)!r} cannot be read as XML: {what}") from error
    if tree.tag != root:
        raise ImageReadError(
            f"{str(file)!r} begins with <{tree.tag[:40]}>, expected <{root}>: is it another format?"
        )
    return tree


def _write(file: Path, tree: ET.Element) -> None:
    ET.indent(tree)
    file.write_bytes(ET.tostring(tree, encoding="utf-8", xml_declaration=True) + b"\n")


def _add(parent: ET.Element, tag: str, text: Any) -> ET.Element:
    element = ET.SubElement(parent, tag)
    element.text = str(text)
    return element


def _pairs(pairs: list[list[str]], place: str) -> list[list[str]]:
    if any(len(pair) != 2 for pair in pairs):
        raise ImageReadError(f"{place} has corners that are no pairs x,y.")
    return pairs
