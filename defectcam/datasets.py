"""Loads labelled images, from folders, tables and a package, and splits them by defect type.

This module owns what is handed back for it: scikit-learn's `Bunch` of arrays. It downloads nothing
and decodes no files (paths are valid input of the estimator).

Every loader's `Bunch` has the same keys, which hold one entry per image:

- ``paths``: str, the image files;
- ``types``: str, what each image shows: the good label, or the type of defect;
- ``target`` and, as another name of it, ``is_defect``: bool, the type is not the good one;
- ``masks``: object, what marks the defect: a file, something that `numpy.asarray` turns into a mask
  of shape (H, W), or None for good images and where nothing is marked;
- ``groups``: what images of one part have in common, for splitters; None where nothing is known;

and ``good_label``, one name. `make_defects` and `load_elpv` hold their pixels in ``images``; those
of `make_defects` are no files, so it has no ``paths``.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Number
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils import Bunch

from defectcam.coco import CocoImage, read_coco
from defectcam.defects import make_defects
from defectcam.files import write_atomically
from defectcam.folders import (
    find_good_label,
    find_masks,
    labelled_folder,
    mask_folder,
    mask_name,
    skipped_files,
    sub_folder,
    warn_of_skipped,
)
from defectcam.folds import stratified_group_folds
from defectcam.images import ImageReadError, find_images

__all__ = [
    "load_coco",
    "load_csv",
    "load_elpv",
    "load_folder",
    "load_mvtec",
    "load_visa",
    "make_defects",
    "train_test_split_by_type",
]

_MAX_FOLDS = 20
_MAX_NAMES = 20
_VISA_IMAGES = Path("Data", "Images")
_VISA_LAYOUT = (
    "one product's folder of VisA, with Data/Images/Normal, Data/Images/Anomaly and, for masks, "
    "Data/Masks/Anomaly"
)


def load_folder(
    root: str | os.PathLike[str],
    good_label: str | None = None,
    group_pattern: str | None = None,
) -> Bunch:
    r"""List the images of a folder with a sub-folder per class.

    Parameters
    ----------
    root : str or PathLike
        As `defectcam.folders.labelled_folder` takes it. Masks, where there are any, are files
        ``ground_truth/<type>/<stem>_mask.png`` in this folder or beside it; those of images in
        deeper folders may be in such folders too, ``ground_truth/<type>/a/<stem>_mask.png``.
    good_label : str, optional
        Name of the sub-folder of good parts; by default found by its name.
    group_pattern : str, optional
        A regular expression that finds the part's name in an image's file name: its first group, or
        all that it matches. ``r"^(\d+)_"`` takes ``17_left.png`` and ``17_right.png`` for pictures
        of one part.

    Returns
    -------
    Bunch
        The keys that every loader has: ``paths``, ``types`` (the names of the sub-folders),
        ``target``, ``is_defect``, ``masks``, ``groups`` (str, None without `group_pattern`) and
        ``good_label``.

    Raises
    ------
    ImageReadError
        If the folder does not exist or has another layout, or one mask may be of several images.
    ValueError
        If `group_pattern` is no regular expression, or not found in a file name.
    """
    paths, types = labelled_folder(root, good_label)
    warn_of_skipped(root, skipped_files(root))
    good = find_good_label(types, good_label)
    folder = mask_folder(root)
    masks = [None] * len(paths) if folder is None else find_masks(folder, paths, types, good)
    return labelled_bunch(paths, types, good, masks, _groups_of(paths, group_pattern))


def load_mvtec(root: str | os.PathLike[str], group_pattern: str | None = None) -> Bunch:
    """List the images and masks of a data set in the MVTec AD layout.

    Parameters
    ----------
    root : str or PathLike
        One product's folder, with ``train/good``, ``test/<type>`` and, for masks,
        ``ground_truth/<type>/<stem>_mask.png``.
    group_pattern : str, optional
        As in `load_folder`.

    Returns
    -------
    Bunch
        As `load_folder` returns it, train before test, and

        - ``split``: str, ``"train"`` or ``"test"``, the folder the image is in.

    Raises
    ------
    ImageReadError
        If the folder does not exist or has another layout.

    References
    ----------
    P. Bergmann, M. Fauser, D. Sattlegger, C. Steger, "MVTec AD: A Comprehensive Real-World Dataset
    for Unsupervised Anomaly Detection", CVPR 2019.
    """
    missing = [name for name in ("train", "test") if sub_folder(root, name) is None]
    if missing:
        raise ImageReadError(
            f"{os.fspath(root)!r} must have train/good and test/<type> (the MVTec AD layout), but "
            f"has no folder {' and no folder '.join(missing)}. Found: {_folders_in(root)}. For a "
            "sub-folder per class use load_folder."
        )
    data = load_folder(root, group_pattern=group_pattern)
    data.split = np.array([Path(path).relative_to(root).parts[0].lower() for path in data.paths])
    return data


def load_visa(
    root: str | os.PathLike[str],
    split_csv: str | os.PathLike[str] | None = None,
    group_pattern: str | None = None,
) -> Bunch:
    """List the images and masks of one product of the VisA data set, as it is distributed.

    Parameters
    ----------
    root : str or PathLike
        One product's folder, with ``Data/Images/Normal``, ``Data/Images/Anomaly`` and, for masks,
        ``Data/Masks/Anomaly/<stem>.png``.
    split_csv : str or PathLike, optional
        The table of the split, with the columns ``object``, ``split`` and ``image``. By default
        ``split_csv/1cls.csv`` or ``1cls.csv``, in `root` or beside it.
    group_pattern : str, optional
        As in `load_folder`.

    Returns
    -------
    Bunch
        As `load_folder` returns it, with the types ``"Normal"`` and ``"Anomaly"``, and

        - ``split``: str, ``"train"`` or ``"test"`` (or what the table says); None where there is no
          table;
        - ``descriptions``: str, what `root`'s ``image_anno.csv`` says of each image, several
          defects with commas between; None where there is no such file.

    Raises
    ------
    ImageReadError
        If the folder or the table has another layout, or the table lacks images of the folder.

    References
    ----------
    Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer, "SPot-the-Difference Self-Supervised
    Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
    """
    root = Path(root)
    images = root / _VISA_IMAGES
    if not images.is_dir():
        raise ImageReadError(
            f"{str(root)!r} has another layout than expected. Expected: {_VISA_LAYOUT}. Found: "
            f"{_folders_in(root)}. If those are products, pass the folder of one; for train/good "
            "and test/<type> use load_mvtec."
        )
    data = load_folder(images, group_pattern=group_pattern)
    files = [Path(path).relative_to(images) for path in data.paths]
    masks = [root / "Data" / "Masks" / file.with_suffix(".png") for file in files]
    data.masks = object_array(
        str(mask) if bad and mask.is_file() else None
        for mask, bad in zip(masks, data.is_defect, strict=True)
    )
    places = [root / "split_csv" / "1cls.csv", root / "1cls.csv"]
    beside = Path(os.path.abspath(root)).parent  # the parent of "." is "." again
    places += [beside / "split_csv" / "1cls.csv", beside / "1cls.csv"]
    table = split_csv or next((place for place in places if place.is_file()), None)
    data.split = None if table is None else _visa_column(table, "split", root, files)
    notes = root / "image_anno.csv"
    data.descriptions = _visa_column(notes, "label", root, files) if notes.is_file() else None
    return data


def load_coco(
    annotations: str | os.PathLike[str],
    images_root: str | os.PathLike[str] | None = None,
    *,
    good_label: str = "good",
    mask_folder: str | os.PathLike[str] | None = None,
) -> Bunch:
    """List the images of a COCO annotation file, those without annotations as good ones.

    Parameters
    ----------
    annotations : str or PathLike
        The JSON file, with ``images``, ``annotations`` and ``categories``.
    images_root : str or PathLike, optional
        The folder that the files' names start from; by default the one of `annotations`.
    good_label : str, default="good"
        The type of images without annotations. Annotations of a category of this name mark no
        defect.
    mask_folder : str or PathLike, optional
        Where masks are written, as ``<type>/<stem>_mask.png`` with 255 for the defect; existing
        files are replaced. By default nothing is written, and each mask is drawn when it is asked
        for.

    Returns
    -------
    Bunch
        As `load_folder` returns it, with the category of the largest box as an image's type, and

        - ``masks``: a file, or without `mask_folder` a `defectcam.coco.CocoMask`, which
          `numpy.asarray` draws; None where an annotation is a box only;
        - ``boxes``: object, int64 arrays of shape (n, 4), half-open ``xyxy`` in pixels: the
          smallest whole pixels around each annotated box;
        - ``box_types``: object, str arrays of shape (n,), the boxes' categories.

    Raises
    ------
    ImageReadError
        If the file has another layout, a box has no area, or images are missing.
    ValueError
        If a segmentation cannot be drawn, or two masks would have the same file.
    """
    listed = read_coco(annotations, good_label)
    folder = Path(annotations).parent if images_root is None else Path(images_root)
    paths = [os.path.join(folder, image.file_name) for image in listed]
    _refuse_missing(paths, annotations, f"images_root={str(folder)!r}")
    types = [image.type or good_label for image in listed]
    masks: Sequence[Any] = [image.mask for image in listed]
    if mask_folder is not None:
        masks = _write_masks(listed, Path(mask_folder))
    data = labelled_bunch(paths, types, good_label, masks, None)
    data.boxes = object_array(image.boxes for image in listed)
    data.box_types = object_array(image.box_types for image in listed)
    return data


def load_csv(
    path: str | os.PathLike[str],
    path_column: str = "path",
    label_column: str = "label",
    mask_column: str | None = None,
    group_column: str | None = None,
    *,
    good_label: str | int | None = None,
    images_root: str | os.PathLike[str] | None = None,
    delimiter: str = ",",
) -> Bunch:
    r"""List the images of a table, one image a row.

    Parameters
    ----------
    path : str or PathLike
        The file, in UTF-8, with the columns' names in its first line.
    path_column, label_column : str, default="path" and "label"
        The columns of the image files and of their labels: the good label or the type of defect.
    mask_column, group_column : str, optional
        The columns of the masks' files, empty where there is none, and of what images of one part
        have in common.
    good_label : str or int, optional
        The label of good parts; by default found by its name. Cells are text: of 0 and 1, 0 is
        taken for ``"0"``.
    images_root : str or PathLike, optional
        The folder that relative paths start from; by default the one of the table.
    delimiter : str, default=","
        What stands between cells.

    Returns
    -------
    Bunch
        As `load_folder` returns it; ``groups`` are None without `group_column`. Masks of good
        images are left out.

    Raises
    ------
    ImageReadError
        If the file cannot be read, a column, a cell or an image is missing, or several columns have
        the name of one that was asked for.
    ValueError
        If no label, or more than one, can be taken for the good one.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> temporary = tempfile.TemporaryDirectory()
    >>> folder = Path(temporary.name)
    >>> for name in ("a.png", "b.png"):
    ...     Image.new("L", (8, 8)).save(folder / name)
    >>> rows = "file,verdict,serial\na.png,ok,17\nb.png,dent,18\n"
    >>> _ = (folder / "parts.csv").write_text(rows)
    >>> data = load_csv(folder / "parts.csv", "file", "verdict", group_column="serial")
    >>> data.target.tolist(), data.groups.tolist()
    ([False, True], ['17', '18'])
    >>> temporary.cleanup()
    """
    columns = {"path_column": path_column, "label_column": label_column}
    columns |= {"mask_column": mask_column} if mask_column is not None else {}
    columns |= {"group_column": group_column} if group_column is not None else {}
    table = _read_table(path, columns, delimiter)
    _refuse_empty(table, path, [name for name in columns.values() if name != mask_column])
    folder = Path(path).parent if images_root is None else Path(images_root)
    paths = [os.path.join(folder, cell) for cell in table[path_column]]
    asked = None if good_label is None else str(good_label)  # cells are text
    good = find_good_label(table[label_column], asked)
    is_defect = [label != good for label in table[label_column]]
    cells = table[mask_column] if mask_column is not None else [""] * len(paths)
    masks = [
        os.path.join(folder, cell) if cell and bad else None
        for cell, bad in zip(cells, is_defect, strict=True)
    ]
    source = f"images_root={str(folder)!r}"
    _refuse_missing([*paths, *(mask for mask in masks if mask)], path, source)
    groups = np.array(table[group_column]) if group_column is not None else None
    return labelled_bunch(paths, table[label_column], good, masks, groups)


def load_elpv() -> Bunch:
    """Load the ELPV data set: 2624 electroluminescence images of solar cells.

    Returns
    -------
    Bunch
        As `load_folder` returns it, with the types ``"good"`` and ``"defect"``, no masks and no
        groups, and

        - ``images``: uint8, shape (2624, 300, 300), grey: what is in ``paths``;
        - ``probability``: float, of being defective: 0, 1/3, 2/3 or 1, as experts judged it; a cell
          is defective if it is at least 0.5;
        - ``cell_type``: str, ``"mono"`` or ``"poly"`` crystalline.

    Raises
    ------
    ImportError
        If the package ``elpv-dataset``, which contains the images, is not installed.

    References
    ----------
    S. Deitsch et al., "Automatic classification of defective photovoltaic module cells in
    electroluminescence images", Solar Energy 185, 2019. The images are licensed for non-commercial
    use (CC BY-NC-SA 4.0).
    """
    try:
        from elpv_dataset import utils
    except ImportError as error:
        raise ImportError(
            "load_elpv needs the package that contains the images: pip install elpv-dataset"
        ) from error
    images, probability, cell_type = utils.load_dataset()
    paths = find_images(os.path.join(os.path.dirname(utils.__file__), "data", "images"))
    types = np.where(probability >= 0.5, "defect", "good")
    data = labelled_bunch(paths, types, "good", [None] * len(paths), None)
    data.update(images=images, probability=probability, cell_type=cell_type)
    return data


def train_test_split_by_type(
    paths: ArrayLike,
    types: ArrayLike,
    test_size: float = 0.2,
    random_state: int | np.random.RandomState | None = None,
    groups: ArrayLike | None = None,
) -> Bunch:
    """Split images so that every type has its share of the training and of the test images.

    Parameters
    ----------
    paths : array-like of length n
        The images, or whatever stands for them. What is in a list comes back as it is: images of
        other sizes, too.
    types : array-like of length n
        The type of each: the good label, or the kind of defect.
    test_size : float, default=0.2
        Share of the images to test on, between 0 and 1.
    random_state : int or RandomState, optional
        Decides which images; pass a number for the same split every time.
    groups : array-like of length n, optional
        Images of one group (of one part, or one batch) stay on one side. The shares are then met
        as nearly as the groups allow.

    Returns
    -------
    Bunch
        ``train``, ``test``: int, places in `paths`, sorted; and what they select:
        ``paths_train``, ``paths_test``, ``types_train``, ``types_test``.

    Raises
    ------
    ValueError
        If `test_size` is not between 0 and 1, lengths differ, a type or a group is missing, a type
        has a single image, or there are too few groups.

    Examples
    --------
    >>> types = ["good"] * 8 + ["scratch"] * 4
    >>> split = train_test_split_by_type(range(12), types, test_size=0.25, random_state=0)
    >>> split.types_test.tolist()
    ['good', 'good', 'scratch']
    """
    places, kinds = _one_each(paths), np.asarray(types)
    members = None if groups is None else np.asarray(groups)
    _refuse_missing_values(types, "types")
    _refuse_missing_values([] if groups is None else groups, "groups")
    for name, values in {"types": kinds, "groups": members}.items():
        if values is not None and len(values) != len(places):
            raise ValueError(f"There are {len(places)} paths but {len(values)} {name}.")
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be a share between 0 and 1, got {test_size!r}.")
    if members is None:
        train, test = _shuffled(kinds, test_size, random_state)
    else:
        train, test = _grouped(kinds, members, test_size, random_state)
    return Bunch(
        train=train,
        test=test,
        paths_train=places[train],
        paths_test=places[test],
        types_train=kinds[train],
        types_test=kinds[test],
    )


def labelled_bunch(
    paths: Sequence[str],
    types: ArrayLike,
    good_label: str,
    masks: Iterable[Any],
    groups: NDArray[Any] | None,
) -> Bunch:
    """Make what every loader returns."""
    is_defect = np.asarray(types) != good_label
    return Bunch(
        paths=np.array(paths),
        types=np.asarray(types),
        target=is_defect,
        is_defect=is_defect,
        masks=object_array(masks),
        groups=groups,
        good_label=good_label,
    )


def object_array(values: Iterable[Any]) -> NDArray[np.object_]:
    """Put each value in a place of its own; NumPy would make one array of arrays of equal shape."""
    listed = list(values)
    array = np.empty(len(listed), dtype=object)
    for i, value in enumerate(listed):
        array[i] = value
    return array


def _one_each(values: ArrayLike) -> NDArray[Any]:
    """Make an array of what is in a list, and no pixels of images in it."""
    if hasattr(values, "__array__"):
        return np.asarray(values)
    listed = list(values)  # type: ignore[arg-type]
    is_plain = all(isinstance(value, (str, os.PathLike, Number)) for value in listed)
    return np.asarray(listed) if is_plain else object_array(listed)


def _refuse_missing_values(values: ArrayLike, name: str) -> None:
    # Beside strings NumPy would make the text "nan" of NaN, but not in an array of objects.
    is_missing = [_is_missing(value) for value in np.asarray(values, dtype=object).ravel()]
    if any(is_missing):
        raise ValueError(
            f"{name} has {sum(is_missing)} missing values, the first at place "
            f"{is_missing.index(True)}: give each image one, or leave it out."
        )


def _is_missing(value: Any) -> bool:
    """Whether it is None, or not equal to itself: NaN, NaT and pandas' NA."""
    is_itself = value == value  # of NA it is NA, neither true nor false
    return value is None or not (isinstance(is_itself, (bool, np.bool_)) and bool(is_itself))


def _groups_of(paths: Sequence[str], pattern: str | None) -> NDArray[np.str_] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern={pattern!r} is no regular expression: {error}.") from error
    found = [compiled.search(os.path.basename(path)) for path in paths]
    groups = [match and match[1 if compiled.groups else 0] for match in found]
    for path, group in zip(paths, groups, strict=True):
        if group is None:
            raise ValueError(f"group_pattern={pattern!r} finds nothing in the name of {path!r}.")
    return np.array(groups)


def _folders_in(root: str | os.PathLike[str]) -> str:
    if not os.path.isdir(root):
        return "no such folder"
    names = sorted(f"{entry.name}/" for entry in os.scandir(root) if entry.is_dir())
    shown = names[:_MAX_NAMES]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more folders")
    return ", ".join(shown) or "no folders"


def _refuse_missing(
    paths: Sequence[str], table: str | os.PathLike[str], folder_parameter: str
) -> None:
    """Refuse a table that names files which are not there."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ImageReadError(
            f"{os.fspath(table)!r} names {len(paths)} files, of which {len(missing)} do not exist: "
            f"the first is {missing[0]!r}. Relative names start from {folder_parameter}: pass "
            "another images_root if the images are elsewhere."
        )


def _read_table(
    path: str | os.PathLike[str], columns: dict[str, str], delimiter: str
) -> dict[str, list[str]]:
    """Read some columns of a CSV file; `columns` says by which parameter each was asked for."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ImageReadError(f"{os.fspath(path)!r} is no file but a pipe or a device: give a file.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            found = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageReadError(f"{os.fspath(path)!r} cannot be read as CSV: {error}") from error
    absent = [f"{parameter}={name!r}" for parameter, name in columns.items() if name not in found]
    if absent or not rows:
        raise ImageReadError(
            f"{os.fspath(path)!r} has {len(rows)} rows and the columns {found}; expected "
            f"at least one row and {', '.join(absent or map(repr, columns.values()))}. If the "
            f"columns run together, pass delimiter (it was {delimiter!r})."
        )
    doubled = [f"{key}={name!r}" for key, name in columns.items() if found.count(name) > 1]
    if doubled:
        raise ImageReadError(
            f"{os.fspath(path)!r} has more than one column of the name {', '.join(doubled)}: "
            f"rename all but one. Found: {found}."
        )
    return {name: [(row[name] or "").strip() for row in rows] for name in columns.values()}


def _refuse_empty(
    table: dict[str, list[str]], path: str | os.PathLike[str], columns: Sequence[str]
) -> None:
    for name in columns:
        if "" in table[name]:
            row = table[name].index("") + 1
            raise ImageReadError(
                f"{os.fspath(path)!r} has no {name!r} in row {row} below the header: fill it in, "
                "or take the row out."
            )


def _visa_column(
    table: str | os.PathLike[str], column: str, root: Path, files: Sequence[Path]
) -> NDArray[np.str_]:
    """Look up the images of a product in one of VisA's tables."""
    cells = _read_table(table, {"image": "image", column: column}, ",")
    start = len(_VISA_IMAGES.parts)
    values = {
        (Path(image).parts[0], *Path(image).parts[-2:]): value
        for image, value in zip(cells["image"], cells[column], strict=True)
        if len(Path(image).parts) > start + 1
    }
    products = {product for product, *_ in values}
    names = (Path(os.path.abspath(root)).name, root.resolve().name)  # a link may have another name
    product = next((name for name in names if name in products), names[0])
    wanted = [(product, *file.parts[-2:]) for file in files]
    absent = [file for file, key in zip(files, wanted, strict=True) if key not in values]
    if absent:
        raise ImageReadError(
            f"{os.fspath(table)!r} lacks {len(absent)} of {len(files)} images of {str(root)!r}, "
            f"the first is {absent[0].as_posix()!r}. Expected: a row for each, with image = "
            f"{product}/Data/Images/... Found: images of "
            f"{', '.join(sorted(products)[:_MAX_NAMES])}."
        )
    return np.array([values[key] for key in wanted])


def _write_masks(images: Sequence[CocoImage], folder: Path) -> list[str | None]:
    """Write the masks, and return their files, as the evaluation looks for them in a folder."""
    files = _mask_files(images, folder)
    for image, file in zip(images, files, strict=True):
        if file is None:
            continue
        os.makedirs(os.path.dirname(file), exist_ok=True)
        encoded = cv2.imencode(".png", np.asarray(image.mask, np.uint8) * 255)[1]
        write_atomically(file, encoded.tobytes())
    return files


def _mask_files(images: Sequence[CocoImage], folder: Path) -> list[str | None]:
    """Name the file of each mask, or refuse all of them before the first is written."""
    files: list[str | None] = []
    taken: set[str] = set()
    for image in images:
        if image.mask is None:
            files.append(None)
            continue
        file = folder / mask_name(image.file_name, image.type)
        if file.parent.parent != folder or str(image.type) in (".", ".."):
            raise ValueError(f"The category {image.type!r} cannot be the name of a folder.")
        if str(file) in taken:
            raise ValueError(
                f"{image.file_name!r} and another image would both have the mask {str(file)!r}: "
                "leave mask_folder out, and masks are drawn when they are asked for."
            )
        taken.add(str(file))
        files.append(str(file))
    return files


def _shuffled(
    types: np.ndarray, test_size: float, random_state: int | np.random.RandomState | None
) -> tuple[np.ndarray, np.ndarray]:
    names, counts = np.unique(types, return_counts=True)
    if counts.min(initial=2) < 2:
        raise ValueError(
            f"Of type '{names[counts.argmin()]}' there is 1 image, which cannot be on both sides: "
            "add images of it, or leave it out."
        )
    splitter = StratifiedShuffleSplit(1, test_size=test_size, random_state=random_state)
    train, test = next(splitter.split(types, types))
    return np.sort(train), np.sort(test)


def _grouped(
    types: np.ndarray,
    groups: np.ndarray,
    test_size: float,
    random_state: int | np.random.RandomState | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Test on k of n stratified folds of whole groups, where k / n is nearest to `test_size`."""
    n_groups = len(np.unique(groups))
    most = max(2, min(n_groups, int(np.unique(types, return_counts=True)[1].max())))
    share = Fraction(test_size).limit_denominator(min(_MAX_FOLDS, most))
    if not 0 < share < 1:  # nearer to none or all than to one of so few folds
        share = Fraction(test_size).limit_denominator(most)
    if n_groups < 2 or not 0 < share < 1:
        raise ValueError(f"{n_groups} groups cannot be split with test_size={test_size}.")
    with warnings.catch_warnings():  # a rare type cannot be in every fold, and need not
        warnings.filterwarnings("ignore", "The least populated class")
        folds = stratified_group_folds(types, groups, share.denominator, random_state)
    tests = [test for _, test in folds[: share.numerator]]
    test = np.sort(np.concatenate(tests))
    return np.setdiff1d(np.arange(len(types)), test), test
