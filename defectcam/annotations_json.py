"""Annotations in JSON: COCO, LabelMe and Label Studio.

Owns the three formats: their keys, and in what they measure. How COCO's segmentations become masks,
`coco` knows; which images there are, and where, `annotations` and `image_files`.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
import xml.etree.ElementTree as ET  # nosec B405
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectcam.coco import CocoMask, read_coco, read_json
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

__all__ = [
    "coco_document",
    "read_coco_images",
    "read_label_studio",
    "read_labelme",
    "write_coco",
    "write_label_studio",
    "write_labelme",
]

COCO_FILE, TASKS_FILE = "annotations.json", "tasks.json"

_LABELME_VERSION = "5.5.0"  # of the layout, which has been the same since 5.2
_LOCAL_FILES = "/data/local-files/?d="  # where Label Studio serves files of its own machine


# --- COCO -------------------------------------------------------------------------------------


def coco_document(
    images: Iterable[AnnotatedImage], classes: Sequence[str], polygons: bool = True
) -> dict[str, Any]:
    """Put images into the layout of COCO.

    Parameters
    ----------
    images : iterable of AnnotatedImage
    classes : sequence of str
        The categories; their numbers begin with 1.
    polygons : bool, default=True
        Whether annotations have a ``segmentation``: polygons, or run lengths where a region has a
        hole. Without, they are boxes only.

    Returns
    -------
    dict
        ``info``, ``images``, ``annotations`` (with ``score``) and ``categories``, ready for JSON.
    """
    number_of = {name: number for number, name in enumerate(classes, start=1)}
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        height, width = image.size
        entry = {"id": image_id, "file_name": image.file_name, "width": width, "height": height}
        listed.append(entry)
        for shape in image.shapes:
            left, top, right, bottom = shape.box
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": number_of[shape.label],
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            if polygons:
                annotation["segmentation"] = shape.segmentation
                marked = np.asarray(CocoMask(image.size, [shape.segmentation]))
                annotation["area"] = int(np.count_nonzero(marked))
            if shape.score is not None:
                annotation["score"] = shape.score
            annotations.append(annotation)
    return {
        "info": {"description": "drafts by defectcam"},
        "images": listed,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "defect"}
            for name, number in number_of.items()
        ],
    }


def write_coco(
    images: Sequence[AnnotatedImage], folder: Path, classes: Sequence[str], polygons: bool
) -> None:
    """Write ``annotations.json``."""
    _write(folder / COCO_FILE, coco_document(images, classes, polygons))


def read_coco_images(path: Path, files: ImageFiles) -> list[AnnotatedImage]:
    """Read a file, or ``annotations.json`` in a folder."""
    file = path / COCO_FILE if path.is_dir() else path
    read = []
    for image in read_coco(file):
        place = f"{str(file)!r}, image {image.file_name!r},"
        found = files.find(image.file_name, place)
        size = files.size(found)
        if image.size is not None:
            files.checked_size(found, *image.size, place)
        shapes = tuple(
            _coco_shape(box, label, segmentation, size, place)
            for box, label, segmentation in zip(
                image.boxes.tolist(), image.box_types.tolist(), image.segmentations, strict=True
            )
        )
        read.append(AnnotatedImage(found, size, shapes))
    return read


def _coco_shape(
    box: list[int], label: str, segmentation: Any, size: tuple[int, int], place: str
) -> Shape:
    left, top, right, bottom = box_around(np.reshape(box, (2, 2)), size, f"{place} bbox")
    whole = (left, top, right, bottom)
    if isinstance(segmentation, dict):
        return Shape(label, whole, run_lengths=segmentation)
    if not segmentation:
        return Shape(label, whole)
    outlines = polygon_shape(label, segmentation, size, f"{place} segmentation").outlines
    return Shape(label, whole, outlines)


# --- LabelMe ----------------------------------------------------------------------------------


def write_labelme(
    images: Sequence[AnnotatedImage],
    label_files: Sequence[str],
    folder: Path,
    links: Sequence[str],
    polygons: bool,
) -> None:
    """Write a file per image, without shapes for a good one; `links` lead to the images."""
    for image, file, link in zip(images, label_files, links, strict=True):
        height, width = image.size
        document = {
            "version": _LABELME_VERSION,
            "flags": {} if image.label is None else {image.label: True},
            "shapes": [
                entry
                for group, shape in enumerate(image.shapes, start=1)
                for entry in _labelme_shapes(shape, group, polygons)
            ],
            "imagePath": link,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, document)


def read_labelme(path: Path, files: ImageFiles) -> list[AnnotatedImage]:
    """Read a folder of files, or a single one."""
    listed = [path] if path.is_file() else sorted(path.rglob("*.json"))
    if not listed:
        raise ImageReadError(f"{str(path)!r} has no files *.json, one per image.")
    root = path.parent if path.is_file() else path
    return [_labelme_image(file, file.parent.relative_to(root), files) for file in listed]


def _labelme_shapes(shape: Shape, group: int, polygons: bool) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"label": shape.label, "group_id": None, "description": ""}
    common |= {"flags": {}, "mask": None}
    if shape.score is not None:
        common["score"] = shape.score
    if not polygons or not shape.outlines:
        left, top, right, bottom = shape.box
        points = [[left, top], [right, bottom]]
        return [{**common, "shape_type": "rectangle", "points": points}]
    if len(shape.outlines) > 1:
        common["group_id"] = group
    return [
        {**common, "shape_type": "polygon", "points": outline.tolist()}
        for outline in shape.outlines
    ]


def _labelme_image(file: Path, folder: Path, files: ImageFiles) -> AnnotatedImage:
    place = repr(str(file))
    document = _mapping(read_json(file), place)
    # Of the path only the name counts: the file lies where its image does, in some other folder.
    link = document.get("imagePath")
    if not isinstance(link, str):
        raise ImageReadError(f"{place} has no imagePath: is it a file of LabelMe?")
    name = relative_name(link.replace("\\", "/").rpartition("/")[2], place).name
    image = files.find((folder / name).as_posix(), place)
    size = files.checked_size(image, document.get("imageHeight"), document.get("imageWidth"), place)
    shapes: list[Shape] = []
    groups: dict[Any, int] = {}
    for number, entry in enumerate(_listed(document.get("shapes"), f"{place}, shapes"), start=1):
        at = f"{place}, shape {number},"
        entry = _mapping(entry, at)
        shape = _labelme_shape(entry, size, at)
        group = entry.get("group_id")
        key = None if group is None else (str(group), shape.label)
        add_part(shapes, groups, key, shape, size, at)
    flags = _mapping(document.get("flags") or {}, f"{place}, flags")
    label = next((str(name) for name, is_set in flags.items() if is_set is True), None)
    return AnnotatedImage(image, size, tuple(shapes), label)


def _labelme_shape(entry: dict[str, Any], size: tuple[int, int], place: str) -> Shape:
    label, kind = label_text(entry.get("label"), place), entry.get("shape_type", "polygon")
    points = _points(entry.get("points"), place)
    if kind == "polygon":
        return polygon_shape(label, [points], size, place)
    if kind == "rectangle" and len(points) in (2, 4):
        return Shape(label, box_around(points, size, place))
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*(points[1] - points[0])))
        return polygon_shape(label, [ellipse(points[0], (radius, radius))], size, place)
    if kind == "mask" and len(points) == 2:
        left, top = np.round(points[0]).astype(int).tolist()
        return mask_shape(label, _picture(entry.get("mask"), size, place), (left, top), size, place)
    raise ImageReadError(
        f"{place} is a {kind!r} of {len(points)} points, which has no area that could be a defect. "
        "Expected: rectangle, polygon, circle or mask."
    )


def _picture(text: Any, size: tuple[int, int], place: str) -> NDArray[np.bool_]:
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True))) as image:
            if image.height > size[0] or image.width > size[1]:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            return np.array(image.convert("L")) > 0
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        raise ImageReadError(f"{place} has a mask that cannot be read: {error}.") from error


# --- Label Studio -----------------------------------------------------------------------------


def write_label_studio(
    images: Sequence[AnnotatedImage], folder: Path, classes: Sequence[str], polygons: bool
) -> None:
    """Write ``tasks.json``, with the drafts as predictions, and ``config.xml`` for the project."""
    tasks = [_task(number, image, polygons) for number, image in enumerate(images, start=1)]
    _write(folder / TASKS_FILE, tasks)
    view = ET.Element("View")
    ET.SubElement(view, "Image", {"name": "image", "value": "$image"})
    for tag, name, entry in (
        ("PolygonLabels" if polygons else "RectangleLabels", "label", "Label"),
        ("Choices", "defect", "Choice"),
    ):
        group = ET.SubElement(view, tag, {"name": name, "toName": "image"})
        for value in classes:
            ET.SubElement(group, entry, {"value": value})
    ET.indent(view)
    (folder / "config.xml").write_bytes(ET.tostring(view, encoding="utf-8") + b"\n")


def read_label_studio(path: Path, files: ImageFiles) -> tuple[list[AnnotatedImage], int]:
    """Read tasks as Label Studio exports them in JSON, or ``tasks.json`` in a folder.

    Returns
    -------
    images : list of AnnotatedImage
    n_drafts : int
        Of how many of them the drafts were taken, because nobody has annotated them.
    """
    file = path / TASKS_FILE if path.is_dir() else path
    read, n_drafts = [], 0
    for number, task in enumerate(_listed(read_json(file), repr(str(file))), start=1):
        place = f"{str(file)!r}, task {number},"
        task = _mapping(task, place)
        image = files.find(_task_name(task, place), place)
        done = [
            annotation
            for annotation in _listed(task.get("annotations") or [], f"{place} annotations")
            if not _mapping(annotation, place).get("was_cancelled")
        ]
        drafts = _listed(task.get("predictions") or [], f"{place} predictions")
        chosen = max(done, key=lambda one: str(one.get("created_at", ""))) if done else None
        if chosen is None:
            n_drafts += 1
            chosen = _mapping(drafts[-1], place) if drafts else {}
        results = _listed(chosen.get("result") or [], f"{place} result")
        read.append(_label_studio_image(results, image, files.size(image), place))
    return read, n_drafts


def _task(number: int, image: AnnotatedImage, polygons: bool) -> dict[str, Any]:
    height, width = image.size
    common = {
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    results: list[dict[str, Any]] = []
    for shape in image.shapes:
        score = {} if shape.score is None else {"score": shape.score}
        first: str | None = None
        for kind, value in _percentages(shape, image.size, polygons):
            name = f"{number}-{len(results) + 1}"
            parent = {} if first is None else {"parentID": first}
            first = first or name
            result = {"id": name, "from_name": "label", "type": kind, "value": value}
            results.append({**result, **common, **score, **parent})
    if image.label is not None:
        choice = {"id": f"{number}-0", "from_name": "defect", "to_name": "image"}
        results.append({**choice, "type": "choices", "value": {"choices": [image.label]}})
    url = _LOCAL_FILES + urllib.parse.quote(image.file_name)
    prediction: dict[str, Any] = {"model_version": "defectcam", "result": results}
    scores = [shape.score for shape in image.shapes if shape.score is not None]
    if scores:
        prediction["score"] = max(scores)
    return {
        "id": number,
        "data": {"image": url, "file_name": image.file_name},
        "predictions": [prediction],
    }


def _percentages(
    shape: Shape, size: tuple[int, int], polygons: bool
) -> list[tuple[str, dict[str, Any]]]:
    height, width = size
    if polygons and shape.outlines:
        kind = "polygonlabels"
        return [
            (kind, {"points": (o * 100 / (width, height)).tolist(), kind: [shape.label]})
            for o in shape.outlines
        ]
    left, top, right, bottom = shape.box
    value: dict[str, Any] = {"x": 100 * left / width, "y": 100 * top / height}
    value |= {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
    return [("rectanglelabels", {**value, "rotation": 0, "rectanglelabels": [shape.label]})]


def _task_name(task: dict[str, Any], place: str) -> str:
    data = _mapping(task.get("data"), f"{place} data")
    if isinstance(data.get("file_name"), str):
        return data["file_name"]
    url = data.get("image")
    if not isinstance(url, str):
        raise ImageReadError(f"{place} data has neither file_name nor image.")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ImageReadError(f"{place} data has an image that is no address: {error}.") from error
    served = urllib.parse.parse_qs(parts.query).get("d")
    return served[0] if served else urllib.parse.unquote(parts.path).lstrip("/")


def _label_studio_image(
    results: list[Any], image: str, size: tuple[int, int], place: str
) -> AnnotatedImage:
    shapes: list[Shape] = []
    label: str | None = None
    polygon_of: dict[str, int] = {}
    for number, entry in enumerate(results, start=1):
        at = f"{place} result {number},"
        result = _mapping(entry, at)
        kind = str(result.get("type"))
        value = _mapping(result.get("value") or {}, at)
        if kind == "choices":
            label = _first_label(value, kind, at)
        elif kind in ("rectanglelabels", "polygonlabels", "ellipselabels"):
            shape = _label_studio_shape(result, value, kind, size, at)
            parent = polygon_of.get(str(result.get("parentID")))
            if shape.outlines and parent is not None and shapes[parent].label == shape.label:
                outlines = (*shapes[parent].outlines, *shape.outlines)
                shapes[parent] = polygon_shape(shape.label, outlines, size, at)
                continue
            if shape.outlines:
                polygon_of[str(result.get("id"))] = len(shapes)
            shapes.append(shape)
        elif {"x", "points", "rle", "vertices"} & set(value):
            raise ImageReadError(
                f"{at} is of type {kind!r}. Expected: rectanglelabels, polygonlabels or "
                "ellipselabels; export brush strokes as polygons."
            )
    return AnnotatedImage(image, size, tuple(shapes), label)


def _label_studio_shape(
    result: dict[str, Any], value: dict[str, Any], kind: str, size: tuple[int, int], place: str
) -> Shape:
    if result.get("image_rotation"):
        raise ImageReadError(f"{place} was drawn in an image that had been turned: turn it back.")
    height, width = size
    said = result.get("original_height", height), result.get("original_width", width)
    if said != (height, width):
        raise ImageReadError(
            f"{place} was drawn in an image of (height, width) = {said}, but the image has {size}: "
            "pass the images that were annotated."
        )
    label = _first_label(value, kind, place)
    share = np.array([width, height]) / 100
    if kind == "polygonlabels":
        return polygon_shape(label, [_points(value.get("points"), place) * share], size, place)
    sides = ("radiusX", "radiusY") if kind == "ellipselabels" else ("width", "height")
    corner = numbers([value.get("x"), value.get("y")], place, ndim=1) * share
    extent = numbers([value.get(side) for side in sides], place, ndim=1) * share
    degrees = float(numbers(value.get("rotation") or 0, place, ndim=0))
    if kind == "ellipselabels":
        return polygon_shape(label, [ellipse(corner, extent, degrees)], size, place)
    if degrees:
        return polygon_shape(label, [rotated(corner, extent, degrees)], size, place)
    return Shape(label, box_around([corner, corner + extent], size, place))


def _first_label(value: dict[str, Any], kind: str, place: str) -> str:
    labels = _listed(value.get(kind), f"{place} {kind}")
    return label_text(labels[0] if labels else None, place)


# --- JSON -------------------------------------------------------------------------------------


def _write(file: Path, document: Any) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(f"{text}\n", encoding="utf-8")


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageReadError(f"{place} must be an object {{...}}, got {type(value).__name__}.")
    return value


def _listed(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ImageReadError(f"{place} must be a list [...], got {type(value).__name__}.")
    return value


def _points(value: Any, place: str) -> NDArray[np.float64]:
    points = numbers(value, place)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ImageReadError(f"{place} needs points as pairs [x, y].")
    return points
