"""Reads labels off folders: which images a folder holds, of which type, and which type is good.

This module owns the folder layouts and the names by which a class is taken for the good one. It
never opens an image (it goes by file names, as `images.find_images` does) and does not mind a
folder without defects; whoever trains on it may.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defectcam.exceptions import SkippedFilesWarning, warn_caller
from defectcam.images import ImageReadError, find_images, find_skipped, skipped_text
from defectcam.plain_labels import plain_label

__all__ = [
    "GOOD_NAMES",
    "empty_good_folder",
    "find_good_label",
    "find_masks",
    "labelled_folder",
    "mask_folder",
    "mask_name",
    "skipped_files",
    "sub_folder",
    "unused_classes",
    "warn_of_skipped",
]

GOOD_NAMES = (
    "good",
    "ok",
    "okay",
    "normal",
    "pass",
    "passed",
    "defect_free",
    "no_defect",
    "non_defective",
    "undamaged",
    "intact",
    "flawless",
)

_MASK_FOLDER = "ground_truth"
_SPLITS = ("train", "test")
_MAX_NAMES = 20


def labelled_folder(
    root: str | os.PathLike[str], good_label: str | None = None
) -> tuple[list[str], list[str]]:
    """List the images of a folder and their types, which are the names of its sub-folders.

    Parameters
    ----------
    root : str or PathLike
        One of two layouts:

        - a sub-folder per class, one of which is good: ``good/``, ``scratch/``, ``dent/``; or just
          ``good/`` and ``bad/``. Images in deeper folders belong to the class they are below.
        - the MVTec AD layout, ``train/good`` and ``test/<class>``: all images of both are taken,
          with one type for each class name. Give ``root/train`` or ``root/test`` to take only
          those.

        Hidden files, files that are no images, images outside the sub-folders and the masks in
        ``ground_truth`` are skipped.
    good_label : str, optional
        Name of the sub-folder of good parts; by default the one among `GOOD_NAMES`, in upper or
        lower case.

    Returns
    -------
    paths : list of str
        Sorted within each class; classes in alphabetical order, train before test.
    types : list of str
        The class of each image, as its folder is spelled.

    Raises
    ------
    ImageReadError
        If the folder does not exist or has another layout: no sub-folders with images, none or more
        than one with a good name, none called `good_label`. The message lists what was found.
    """
    folder = os.fspath(root)
    classes = _by_first_folder(folder, find_images(folder))
    splits = sorted((name for name in classes if name.lower() in _SPLITS), reverse=True)
    labelled = [(path, name) for name, paths in classes.items() for path in paths]
    if splits and not _good_matches(list(classes), good_label):
        labelled = [
            (path, name)
            for split in splits
            for name, paths in _by_first_folder(os.path.join(folder, split), classes[split]).items()
            for path in paths
        ]
    _refuse_other_layouts(folder, [name for _, name in labelled], good_label)
    return [path for path, _ in labelled], [name for _, name in labelled]


def skipped_files(root: str | os.PathLike[str]) -> list[str]:
    """List the pictures that a folder's classes lack because their format is not read.

    Parameters
    ----------
    root : str or PathLike
        As `labelled_folder` takes it.

    Returns
    -------
    list of str
        Sorted; not those of masks.
    """
    folder = os.fspath(root)
    skipped = find_skipped(folder)
    return [path for path in skipped if _first_folder(folder, path).lower() != _MASK_FOLDER]


def unused_classes(root: str | os.PathLike[str], skipped: Sequence[str]) -> list[str]:
    """Name the sub-folders that hold no image, but skipped files.

    Parameters
    ----------
    root : str or PathLike
        As `labelled_folder` takes it.
    skipped : sequence of str
        As `skipped_files` lists them.

    Returns
    -------
    list of str
        Relative to `root`: ``dent``, or ``test/dent`` in the MVTec AD layout.
    """
    folder = os.fspath(root)
    classes = sorted({os.path.relpath(_class_folder(folder, path), folder) for path in skipped})
    return [
        Path(name).as_posix()
        for name in classes
        if name.lower() not in (os.curdir, _MASK_FOLDER)
        and not find_images(os.path.join(folder, name))
    ]


def warn_of_skipped(folder: str | os.PathLike[str], skipped: Sequence[str]) -> None:
    """Warn of pictures in a folder that are left out because their format is not read."""
    if not skipped:
        return
    unused = unused_classes(folder, skipped)
    nothing_else = f" Nothing else is in {', '.join(f'{name}/' for name in unused)}."
    warn_caller(
        f"In {os.fspath(folder)!r}, {skipped_text(skipped)}.{nothing_else if unused else ''}",
        SkippedFilesWarning,
    )


def empty_good_folder(root: str | os.PathLike[str], good_label: str | None = None) -> str | None:
    """Say which folder of good parts holds no images.

    Parameters
    ----------
    root : str or PathLike
        As `labelled_folder` takes it, and refuses it.
    good_label : str, optional
        Name of the sub-folder of good parts; by default one among `GOOD_NAMES`.

    Returns
    -------
    str or None
        The folder and what is to be done, ``"good/ holds no images: put good images there"``; None
        where there is no such folder.
    """
    folder = os.fspath(root)
    splits = [split for name in _SPLITS if (split := sub_folder(folder, name)) is not None]
    for parent in (Path(folder), *splits):
        names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
        for name in _good_matches(names, good_label):
            if not find_images(parent / name):
                shown = (parent / name).relative_to(folder).as_posix()
                holds = "only skipped files" if find_skipped(parent / name) else "no images"
                return f"{shown}/ holds {holds}: put good images there"
    return None


def sub_folder(root: str | os.PathLike[str], name: str) -> Path | None:
    """Find a folder in another by its name in lower case; ``Test`` is found where no ``test`` is.

    Returns
    -------
    Path or None
        None where there is no such folder.
    """
    exact = Path(root, name)
    if exact.is_dir() or not Path(root).is_dir():
        return exact if exact.is_dir() else None
    alike = (entry for entry in Path(root).iterdir() if entry.name.lower() == name)
    return min((entry for entry in alike if entry.is_dir()), default=None)


def mask_folder(root: str | os.PathLike[str]) -> Path | None:
    """Find the folder ``ground_truth`` of the masks in a folder of images, or beside it."""
    own = sub_folder(root, _MASK_FOLDER)
    return own or sub_folder(Path(root).resolve().parent, _MASK_FOLDER)


def mask_name(path: str | os.PathLike[str], type_: Any) -> Path:
    """Name an image's mask within the folder of masks: ``<type>/<stem>_mask.png``."""
    return Path(str(type_), f"{Path(path).stem}_mask.png")


def find_masks(
    folder: str | os.PathLike[str], paths: Sequence[str], types: Sequence[Any], good: Any
) -> list[str | None]:
    """Find the mask of each defective image in a folder of masks.

    Parameters
    ----------
    folder : str or PathLike
        With files ``<type>/<stem>_mask.png``, or below ``<type>`` the folders that the image is in
        below its own: ``scratch/a/0_mask.png`` for ``scratch/a/0.png``, which is looked for first.
    paths : sequence of str
    types : sequence of label
        One per image.
    good : label
        The type whose images have no mask.

    Returns
    -------
    list of str or None
        None where there is no file.

    Raises
    ------
    ImageReadError
        If images of several folders have one mask among them, which cannot be all of theirs.
    """
    masks: list[str | None] = [None] * len(paths)
    defective = [i for i, type_ in enumerate(types) if type_ != good]
    for i in defective:
        files = _nested_masks(folder, paths[i], types[i])
        masks[i] = next((str(file) for file in files if file.is_file()), None)
    taken = set(masks)
    users: dict[Path, dict[Path, str]] = {}
    for i in defective:
        flat = Path(folder, mask_name(paths[i], types[i]))
        if masks[i] is None and str(flat) not in taken and flat.is_file():
            masks[i] = str(flat)
            # Images of one place share a mask: 0.png and 0.bmp, or those of train and test.
            place = next(iter(_nested_masks(folder, paths[i], types[i])), Path(paths[i]).parent)
            users.setdefault(flat, {}).setdefault(place, paths[i])
    for mask, images in users.items():
        if len(images) > 1:
            _refuse_shared_mask(mask, images)
    return masks


def _nested_masks(folder: str | os.PathLike[str], path: str, type_: Any) -> list[Path]:
    """Place a mask in the folders that its image has below its type, outermost first."""
    *folders, _ = Path(path).parts
    below = [folders[i + 1 :] for i, name in enumerate(folders) if name == str(type_)]
    name = mask_name(path, type_)
    return [Path(folder, name.parent, *deeper, name.name) for deeper in below]


def _refuse_shared_mask(mask: Path, images: dict[Path, str]) -> None:
    """Name two of the images, and where the first one's own mask would be looked for."""
    (place, first), (_, second), *_ = images.items()
    own = f"move it to {str(place)!r}, if it is of the former" if place.name == mask.name else ""
    raise ImageReadError(
        f"{str(mask)!r} may be the mask of {first!r} or of {second!r}: "
        f"{own or 'pass masks as a list'}."
    )


def find_good_label(labels: ArrayLike, good_label: Any = None) -> Any:
    """Find out which of the labels means good.

    Parameters
    ----------
    labels : array-like
        Labels, of each image or each once: strings, booleans or integers.
    good_label : label, optional
        The one that means good. By default: the one string that is among `GOOD_NAMES` (in upper or
        lower case, with ``-``, ``_`` or a space between words); False of booleans; 0 of the
        integers 0 and 1.

    Returns
    -------
    label
        The good one, as a plain Python value.

    Raises
    ------
    ValueError
        If `good_label` is not among the labels; or, without it, if not exactly one label is good by
        the rules above.

    Examples
    --------
    >>> find_good_label(["scratch", "OK", "OK", "dent"])
    'OK'
    >>> find_good_label([True, False, False])
    False
    >>> find_good_label(["A", "B"], good_label="B")
    'B'
    """
    found = _unique(labels)
    if good_label is not None:
        for label in found:
            if label == good_label and isinstance(label, str) == isinstance(good_label, str):
                return label
        raise ValueError(f"good_label={good_label!r} is not among the labels: {_listed(found)}.")
    matches = _good_matches(found)
    if len(matches) == 1:
        return matches[0]
    what = f"{len(matches)} labels ({_listed(matches)})" if matches else "None of the labels"
    names = f"one name of {', '.join(GOOD_NAMES)}"
    are_names = bool(found) and all(isinstance(label, str) for label in found)
    known = f"is {names}" if are_names else f"are False, 0 of 0 and 1, and {names}"
    raise ValueError(
        f"{what} can be taken for good parts: pass good_label=..., one of {_listed(found)}. "
        f"Found without it {known}."
    )


def _good_matches(labels: Sequence[Any], good_label: Any = None) -> list[Any]:
    """Return the labels that mean good: by their names, or the one that was named."""
    if good_label is not None:
        return [label for label in labels if label == good_label]
    if all(isinstance(label, bool) for label in labels):
        return [label for label in labels if label is False]
    if all(isinstance(label, int) and label in (0, 1) for label in labels):
        return [label for label in labels if label == 0]
    return [label for label in labels if isinstance(label, str) and _is_good_name(label)]


def _is_good_name(name: str) -> bool:
    return name.strip().lower().replace("-", "_").replace(" ", "_") in GOOD_NAMES


def _unique(labels: ArrayLike) -> list[Any]:
    """Return each label once, in order where they can be ordered, as plain Python values."""
    values: list[Hashable] = [plain_label(value) for value in np.asarray(labels).ravel().tolist()]
    # By type too: True and 1 are equal, but not the same label.
    typed = ((type(value), value) for value in values)
    plain = [value for _, value in dict.fromkeys(typed)]
    try:
        return sorted(plain)
    except TypeError:
        return plain


def _listed(labels: Sequence[Any]) -> str:
    shown = [repr(label) for label in labels[:_MAX_NAMES]]
    if len(labels) > len(shown):
        shown.append(f"and {len(labels) - len(shown)} more")
    return ", ".join(shown) if shown else "(there are none)"


def _first_folder(root: str, path: str) -> str:
    """Name the sub-folder of `root` that a file is in; empty for a file of its own."""
    name, *deeper = Path(path).relative_to(root).parts
    return name if deeper else ""


def _class_folder(root: str, path: str) -> str:
    """Give the folder by which a file is labelled: of `root`, or of train and test in it."""
    first, *deeper = Path(path).relative_to(root).parts[:-1] or ("",)
    is_split = first.lower() in _SPLITS and len(deeper) > 0
    return os.path.join(root, first, deeper[0]) if is_split else os.path.join(root, first)


def _by_first_folder(root: str, paths: Sequence[str]) -> dict[str, list[str]]:
    """Group paths by the sub-folder of `root` they are in; not masks, nor `root`'s own images."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        name, *deeper = Path(path).relative_to(root).parts
        if deeper and name.lower() != _MASK_FOLDER:
            groups.setdefault(name, []).append(path)
    return dict(sorted(groups.items()))


def _refuse_other_layouts(folder: str, types: Sequence[str], good_label: str | None) -> None:
    problem: ValueError | None = None
    if types:
        try:
            find_good_label(types, good_label)
            return
        except ValueError as error:
            problem = error
    empty = None
    if not _good_matches(sorted(set(types)), good_label):
        empty = empty_good_folder(folder, good_label)
    raise ImageReadError(
        f"{folder!r} has another layout than expected. Expected: a sub-folder of images for each "
        "class, one of them good (good/ and scratch/, say), or train/good and test/<class> as in "
        f"MVTec AD. Found: {_contents(folder)}."
        + (f" {empty}." if empty else f" {problem}" if problem else "")
    ) from problem


def _contents(folder: str) -> str:
    """Describe what a folder holds: its sub-folders and how many images each has."""
    n_loose = sum(1 for path in find_images(folder) if os.path.dirname(path) == folder)
    sub_folders = sorted(
        f"{entry.name}/ ({len(find_images(entry.path))} images)"
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    shown = sub_folders[:_MAX_NAMES]
    if len(sub_folders) > len(shown):
        shown.append(f"{len(sub_folders) - len(shown)} more sub-folders")
    skipped = skipped_files(folder)
    left_out = f"; {skipped_text(skipped)}" if skipped else ""
    return ", ".join(shown or ["no sub-folders"]) + f"; {n_loose} images outside them{left_out}"
