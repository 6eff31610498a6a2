"""First drafts for annotation tools, from what `localize` found, and back what people made of them.

Owns which formats there are, what images and files are called, and what is handed back for training
and evaluation. The formats themselves are in `annotations_json`, `annotations_xml` and
`annotations_yolo`. Images are copied at most, never changed.

===============  ========================================  ==========================  ======
format           files                                     shapes                      scores
===============  ========================================  ==========================  ======
``coco``         ``annotations.json``                      boxes and polygons, or run  yes
                                                           lengths
``yolo``         ``labels/.../<stem>.txt``, ``data.yaml``  boxes, or polygons          no
``voc``          ``Annotations/.../<stem>.xml``            boxes                       no
``labelme``      ``.../<stem>.json``                       boxes, or polygons          yes
``labelstudio``  ``tasks.json``, ``config.xml``            boxes, or polygons          yes
``cvat``         ``annotations.xml``, ``labels.json``      boxes, or polygons and      yes
                                                           masks
===============  ========================================  ==========================  ======
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from defectcam.annotations_json import (
    COCO_FILE,
    TASKS_FILE,
    read_coco_images,
    read_label_studio,
    read_labelme,
    write_coco,
    write_label_studio,
    write_labelme,
)
from defectcam.annotations_xml import (
    CVAT_FILE,
    read_cvat,
    read_voc,
    write_cvat,
    write_voc,
)
from defectcam.annotations_yolo import TABLE_FILE, read_yolo, write_yolo
from defectcam.datasets import labelled_bunch, object_array
from defectcam.exceptions import warn_caller
from defectcam.files import staged_folder
from defectcam.image_files import ImageFiles, relative_name
from defectcam.images import ImageReadError, find_images, is_path
from defectcam.results import Localization
from defectcam.shapes import AnnotatedImage, Shape, box_around

__all__ = ["FORMATS", "check_request", "import_annotations", "write_annotations"]

FORMATS = ("coco", "cvat", "labelme", "labelstudio", "voc", "yolo")

_LABEL_SUFFIX = {"yolo": ".txt", "voc": ".xml", "labelme": ".json"}  # those with a file per image
_LAST_FILE = {
    "coco": COCO_FILE,
    "cvat": CVAT_FILE,
    "labelstudio": TASKS_FILE,
    "yolo": TABLE_FILE,
}
_IMAGE_FOLDERS = ("images", "JPEGImages")
_YOLO_PARTS = "*/images"  # of train, valid and test
_IMAGES_LEFT_OUT = {"labelme": "shapes", "voc": "objects"}  # with what a good image has none of
_HAS_IMAGE_LABELS = ("cvat", "labelme", "labelstudio")
_UNWRITABLE = ("Cc", "Cn", "Zl", "Zp")  # control, unassigned; separators of lines and paragraphs
_MAX_NAMED = 5

#: By how much a segmentation may reach beyond its box, or stay within it, as a share of the box's
#: sides and in pixels, before one of the two must have been changed.
_MOVED_SHARE, _MOVED_PIXELS = 0.05, 2.0


def write_annotations(
    results: Localization | Iterable[Localization],
    folder: str | os.PathLike[str],
    format: str,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[Any] | None = None,
    shapes: str | None = None,
    tolerance: float = 0.0,
    copy_images: bool = False,
    overwrite: bool = False,
) -> None:
    """Write what was found as annotations that a tool for drawing boxes can open.

    Nothing appears in `folder` before everything is written.

    Parameters
    ----------
    results : iterable of Localization, or one
        What `localize` or `localize_iter` returned. Images without boxes are listed too.
    folder : path
        Where the files are written, and nowhere else. It is made if need be.
    format : {"coco", "cvat", "labelme", "labelstudio", "voc", "yolo"}
    names : sequence of str, optional
        What the images are called, one per result, with ``/`` between folders. By default their
        paths, from the deepest folder that holds all of them.
    classes : sequence of labels, optional
        The defect types in the order in which formats number them. By default those of the model;
        others that were found (``"anomaly"``) come after them.
    shapes : {"box", "polygon"}, optional
        What is drawn. None draws boxes, and in COCO, whose annotations have a place for both, boxes
        and polygons. Holes in a region are lost in polygons, but in COCO and CVAT, which have masks
        for such regions.
    tolerance : float, default=0.0
        How far, in pixels, polygons may run beside the region's edge to have fewer corners. 0 is
        exact.
    copy_images : bool, default=False
        Whether the image files are copied to where the format expects them: ``JPEGImages`` for
        VOC, beside the annotations for LabelMe, ``images`` for all others.
    overwrite : bool, default=False
        Whether `folder` may hold files. Those of the same names are replaced, others stay.

    Raises
    ------
    FileExistsError
        If `folder` is not empty and `overwrite` is false.
    OSError
        If a file cannot be written.
    ValueError
        If a parameter is none of its values, there are no results, a name or a label cannot be
        written in a file, or two images would have the same name or file.

    Warns
    -----
    UserWarning
        If images are called defective, but have no box, and the format cannot say so of an image:
        there they look like good ones.

    See Also
    --------
    import_annotations : The way back.
    """
    results = [results] if isinstance(results, Localization) else list(results)
    _check_options(format, shapes, tolerance)
    names = _image_names(results, names)
    target = Path(folder)
    _refuse_existing(target, overwrite)
    label_files = _label_files(names, format)
    sources = [found.source for found in results]
    copies = _copies(sources, names, target, format) if copy_images else []
    images = [found.annotated(name, tolerance) for found, name in zip(results, names, strict=True)]
    listed = _classes(results, images, classes)
    _warn_of_lost_defects(images, format)
    is_polygon = shapes == "polygon" or (shapes is None and format == "coco")
    with staged_folder(target, last=_LAST_FILE.get(format)) as staging:
        if format == "coco":
            write_coco(images, staging, listed, is_polygon)
        elif format == "cvat":
            write_cvat(images, staging, listed, is_polygon)
        elif format == "labelme":
            links = _links(results, names, label_files, target, copy_images)
            write_labelme(images, label_files, staging, links, is_polygon)
        elif format == "labelstudio":
            write_label_studio(images, staging, listed, is_polygon)
        elif format == "voc":
            write_voc(images, label_files, staging, listed)
        else:
            write_yolo(images, label_files, staging, listed, is_polygon)
        for source, place in copies:
            (staging / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staging / place)


def check_request(
    sources: Sequence[Any],
    folder: str | os.PathLike[str],
    format: str,
    names: Sequence[str],
    *,
    shapes: str | None = None,
    tolerance: float = 0.0,
    copy_images: bool = False,
) -> None:
    """Refuse what `write_annotations` would, as far as is known before images are judged.

    Parameters
    ----------
    sources : sequence
        The images.
    folder, format, names, shapes, tolerance, copy_images
        As `write_annotations` takes them.

    Raises
    ------
    ValueError
        As there.
    """
    _check_options(format, shapes, tolerance)
    names = _checked_names(names, len(sources))
    _label_files(names, format)
    if copy_images:
        _copies(sources, names, Path(folder), format)


def import_annotations(
    path: str | os.PathLike[str],
    format: str,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    *,
    good_label: str = "good",
    shapes: str | None = None,
) -> Bunch:
    """Read annotations, drawn or corrected, for training and evaluation.

    Parameters
    ----------
    path : path
        The annotation file, or the folder with the files, as `write_annotations` has made it or as
        a tool exports it. Of YOLO, the folder with ``data.yaml``, ``classes.txt`` or ``obj.names``,
        or that file: the names in it count, and the label files beside or below it.
    format : {"coco", "cvat", "labelme", "labelstudio", "voc", "yolo"}
    images : folder or sequence of paths, optional
        The images: the folder that the names in the annotations start from, or the files. By
        default ``images`` or ``JPEGImages`` in the folder of the annotations (of YOLO also the
        folders ``*/images``), or that folder.
    good_label : str, default="good"
        The type of images without shapes. Shapes with this label mark no defect.
    shapes : {"box", "polygon"}, optional
        What is taken for the defect where the file has both: ``"box"`` is right when boxes were
        corrected by a tool that leaves COCO's segmentation as it was. None takes the polygon.

    Returns
    -------
    Bunch
        As the loaders of `defectcam.datasets` return it: ``paths``, ``types`` (the label of the
        largest box), ``target``, ``is_defect``, ``masks``, ``groups`` (None) and ``good_label``;
        and

        - ``masks``: a `defectcam.coco.CocoMask`, which `numpy.asarray` draws and `evaluate` takes:
          polygons and masks, and of boxes all that is inside; None where nothing is drawn;
        - ``boxes``: object, int64 arrays of shape (n, 4), half-open ``xyxy``: the smallest whole
          pixels around each shape;
        - ``box_types``: object, str arrays of shape (n,), the boxes' labels.

    Raises
    ------
    ImageReadError
        If a file is malformed, which is named with the place in it; if an image is missing, has
        another size than the annotations say, or its name leaves the folder `images`.
    ValueError
        If a parameter is none of its values.

    Warns
    -----
    UserWarning
        If Label Studio's tasks have not been annotated, and their drafts are taken; if boxes do not
        lie around their polygons; if images have no file in a folder of VOC or LabelMe, and are
        left out.

    Notes
    -----
    An image without a label file is a good one in YOLO, as Ultralytics has it. VOC and LabelMe know
    no such rule: nobody may have looked at it yet. Give good images a file without objects.

    See Also
    --------
    write_annotations : The way there.
    defectcam.datasets.load_coco : COCO with masks written as files.
    """
    _check_options(format, shapes, 0.0)
    path = Path(path)
    if not path.exists():
        raise ImageReadError(f"{str(path)!r} does not exist: give the file or folder to import.")
    files = ImageFiles(_default_images(path, format) if images is None else images)
    if format == "labelstudio":
        read, n_drafts = read_label_studio(path, files)
        if n_drafts:
            warn_caller(
                f"{n_drafts} of {len(read)} tasks in {str(path)!r} have not been annotated: their "
                "drafts are taken as they are."
            )
    else:
        read = _READERS[format](path, files)
    if not read:
        raise ImageReadError(f"{str(path)!r} has no images in it: is it of another format?")
    _refuse_twice(read, path)
    if format in _IMAGES_LEFT_OUT and path.is_dir():
        _warn_of_left_out(files.others({image.file_name for image in read}), path, format)
    if shapes is None:
        _warn_of_moved_boxes(read, path)
    return _as_bunch([_of_defects(image, good_label, shapes) for image in read], good_label)


_READERS = {
    "coco": read_coco_images,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "voc": read_voc,
    "yolo": read_yolo,
}


# --- Reading ----------------------------------------------------------------------------------


def _default_images(path: Path, format: str) -> Path | list[str]:
    folder = path if path.is_dir() else path.parent
    named = next((folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()), None)
    parts = sorted(folder.glob(_YOLO_PARTS)) if format == "yolo" and named is None else []
    if parts:  # and not all of the folder, in which curves and examples may lie that are no images
        return [image for part in parts if part.is_dir() for image in find_images(part)]
    return folder if named is None else named


def _refuse_twice(images: Sequence[AnnotatedImage], path: Path) -> None:
    seen: set[str] = set()
    for image in images:
        if image.file_name in seen:
            raise ImageReadError(
                f"{str(path)!r} has annotations of {image.file_name!r} twice: join them, or leave "
                "one out."
            )
        seen.add(image.file_name)


def _warn_of_left_out(left_out: Sequence[str], path: Path, format: str) -> None:
    if left_out:
        what, suffix = _IMAGES_LEFT_OUT[format], _LABEL_SUFFIX[format]
        warn_caller(
            f"{len(left_out)} images have no file *{suffix} in {str(path)!r} and are left out, the "
            f"first is {left_out[0]!r}. Those that are good need a file without {what}."
        )


def _warn_of_moved_boxes(images: Sequence[AnnotatedImage], path: Path) -> None:
    """Tell of boxes that no longer lie around what their segmentation marks."""
    n_moved = 0
    for image in images:
        for shape in image.shapes:
            if shape.outlines:
                around = box_around(np.concatenate(shape.outlines), image.size, repr(str(path)))
                left, top, right, bottom = shape.box
                allowed = _MOVED_PIXELS + _MOVED_SHARE * max(right - left, bottom - top)
                n_moved += bool(np.abs(np.subtract(around, shape.box)).max() > allowed)
    if n_moved:
        warn_caller(
            f"{n_moved} boxes in {str(path)!r} do not lie around their polygons, from which the "
            "masks are drawn. If the boxes were corrected, pass shapes='box'."
        )


def _of_defects(image: AnnotatedImage, good_label: str, shapes: str | None) -> AnnotatedImage:
    kept = tuple(
        Shape(shape.label, shape.box) if shapes == "box" else shape
        for shape in image.shapes
        if shape.label != good_label
    )
    label = None if image.label == good_label else image.label
    return AnnotatedImage(image.file_name, image.size, kept, label)


def _as_bunch(images: Sequence[AnnotatedImage], good_label: str) -> Bunch:
    data = labelled_bunch(
        [image.file_name for image in images],
        [image.type or good_label for image in images],
        good_label,
        [image.mask for image in images],
        None,
    )
    data.boxes = object_array(image.boxes for image in images)
    data.box_types = object_array(
        np.array([shape.label for shape in image.shapes], dtype=str) for image in images
    )
    return data


# --- Writing ----------------------------------------------------------------------------------


def _check_options(format: str, shapes: str | None, tolerance: float) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if shapes not in (None, "box", "polygon"):
        raise ValueError(f"shapes must be 'box', 'polygon' or None, got {shapes!r}.")
    if shapes == "polygon" and format == "voc":
        raise ValueError("shapes='polygon' is nothing that Pascal VOC has a place for: take boxes.")
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance must be a number of pixels of at least 0, got {tolerance!r}.")


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{folder} is not empty: give another folder, or pass overwrite=True to replace files "
            "in it."
        )


def _image_names(results: Sequence[Localization], names: Sequence[str] | None) -> list[str]:
    if not results:
        raise ValueError("results is empty: there is nothing to write.")
    if names is None:
        if not all(is_path(found.source) for found in results):
            raise ValueError("some images are no files: pass names, what they are to be called.")
        paths = [Path(os.path.abspath(found.source)) for found in results]
        base = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(base).as_posix() for path in paths]
    return _checked_names(names, len(results))


def _checked_names(names: Sequence[str], n_results: int) -> list[str]:
    if len(names) != n_results:
        raise ValueError(f"names must hold one name per result, got {len(names)} for {n_results}.")
    checked = []
    for number, name in enumerate(names):
        if isinstance(name, str) and "\\" in name:
            raise ValueError(f"the image {name!r} has a backslash in its name: rename it.")
        checked.append(relative_name(name, f"names[{number}]").as_posix())
        _refuse_unwritable(checked[-1], "the image")
    _refuse_same(checked, checked, "have the same name; pass other names")
    return checked


def _refuse_unwritable(text: str, what: str) -> None:
    """Refuse text that files of these formats cannot hold, or not without harm."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {text!r} is not UTF-8: rename it.") from error
    if any(unicodedata.category(character) in _UNWRITABLE for character in text):
        raise ValueError(f"{what} {text!r} has control characters in its name: rename it.")


def _key(file: str) -> str:
    """Return the same for what some file systems take for one: in case, or composed characters."""
    return unicodedata.normalize("NFC", file).casefold()


def _refuse_same(files: Sequence[str], names: Sequence[str], problem: str) -> None:
    first: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        key = _key(file)
        if key in first:
            raise ValueError(f"the images {first[key]!r} and {name!r} would {problem}.")
        first[key] = name


def _label_files(names: Sequence[str], format: str) -> list[str]:
    """Name the file of each image's annotations as the image, where the format has such files."""
    suffix = _LABEL_SUFFIX.get(format)
    if suffix is None:
        return []
    short = [Path(name).with_suffix(suffix).as_posix() for name in names]
    if format == "yolo":  # which finds a label by the image's name without its suffix
        _refuse_same(short, names, "have the same label file: rename one")
        return short
    keys = [_key(name) for name in short]
    counts = Counter(keys)
    files = [
        one if counts[key] == 1 else f"{name}{suffix}"
        for one, key, name in zip(short, keys, names, strict=True)
    ]
    _refuse_same(files, names, "have the same label file: rename one")
    return files


def _copies(
    sources: Sequence[Any], names: Sequence[str], target: Path, format: str
) -> list[tuple[Path, Path]]:
    """From where to where images are copied; the places are relative to the target."""
    below = {"labelme": Path(), "voc": Path("JPEGImages")}.get(format, Path("images"))
    copies = []
    for given, name in zip(sources, names, strict=True):
        if not is_path(given):
            raise ValueError(f"copy_images: {name!r} is no file that could be copied.")
        source = Path(given)
        if source.resolve() == (target / below / name).resolve():
            raise ValueError(
                f"the copy of {source} would replace the image: give another folder, or leave out "
                "copy_images."
            )
        copies.append((source, below / name))
    return copies


def _links(
    results: Sequence[Localization],
    names: Sequence[str],
    label_files: Sequence[str],
    target: Path,
    copy_images: bool,
) -> list[str]:
    """Where LabelMe finds each image, from the folder of its annotations."""
    links = []
    for found, name, file in zip(results, names, label_files, strict=True):
        if copy_images or not is_path(found.source):
            links.append(Path(name).name)
            continue
        start = (target.resolve() / file).parent
        source = Path(found.source)
        # A link may lead to a file of another name, by which the image would not be found again.
        place = source.parent.resolve() / source.name
        links.append(Path(os.path.relpath(place, start)).as_posix())
    return links


def _classes(
    results: Sequence[Localization],
    images: Sequence[AnnotatedImage],
    classes: Sequence[Any] | None,
) -> list[str]:
    if classes is None:
        of_models = [found.defect_labels or (found.defect_label,) for found in results]
        classes = [label for labels in of_models for label in labels]
    drawn = [shape.label for image in images for shape in image.shapes]
    drawn += [image.label for image in images if image.label is not None]
    listed = list(dict.fromkeys([*map(str, classes), *drawn]))
    for label in listed:
        _refuse_unwritable(label, "the label")
    return listed


def _warn_of_lost_defects(images: Sequence[AnnotatedImage], format: str) -> None:
    lost = [image.file_name for image in images if image.label is not None]
    if lost and format not in _HAS_IMAGE_LABELS:
        more = f" and {len(lost) - _MAX_NAMED} more" if len(lost) > _MAX_NAMED else ""
        warn_caller(
            f"{len(lost)} images are called defective, but have no box, and look like good ones in "
            f"{format}: {', '.join(lost[:_MAX_NAMED])}{more}."
        )
