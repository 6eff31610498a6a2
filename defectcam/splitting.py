"""Splits a folder into training and test images, and writes the split down.

Owns what a written split looks like: lists that `load_csv` reads, or folders of links or copies.
Which images go where is decided by `train_test_split_by_type`. It never changes what it splits.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from defectcam.datasets import load_folder, train_test_split_by_type
from defectcam.folders import mask_name

__all__ = ["FORMS", "Split", "split_folder", "write_split"]

#: What a split can be written as.
FORMS = ("lists", "links", "copies")

_SIDES = ("train", "test")

_Row = tuple[str, str, str | None, str | None]  # path, type, mask, group


class Split(NamedTuple):
    """Which images of a folder are trained on, and which tested on.

    Attributes
    ----------
    root : str
        The folder.
    rows : dict of str to list of (path, type, mask, group)
        Of ``"train"`` and ``"test"``; mask and group are None where there is none.
    """

    root: str
    rows: dict[str, list[_Row]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the images of each type on each side."""
        return {
            side: dict(sorted(Counter(type_ for _, type_, _, _ in rows).items()))
            for side, rows in self.rows.items()
        }


def split_folder(
    folder: str | os.PathLike[str],
    test_size: float = 0.2,
    random_state: int | None = None,
    group_pattern: str | None = None,
    good_label: str | None = None,
) -> Split:
    """Split the images of a folder so that every type has its share of both sides.

    Parameters
    ----------
    folder : str or PathLike
        As `defectcam.folders.labelled_folder` takes it; of the MVTec AD layout, ``train`` and
        ``test`` are thrown together.
    test_size : float, default=0.2
        Share of the images to test on, between 0 and 1.
    random_state : int, optional
        A number gives the same split every time.
    group_pattern : str, optional
        A regular expression that finds a part's name in the images' file names, see
        `defectcam.datasets.load_folder`: pictures of one part stay on one side.
    good_label : str, optional
        Name of the sub-folder of good parts; by default found by its name.

    Returns
    -------
    Split

    Raises
    ------
    ImageReadError
        If the folder has another layout.
    ValueError
        If the pattern finds nothing in a file name, a type has a single image, or the images or
        groups cannot be split so.
    """
    data = load_folder(folder, good_label=good_label, group_pattern=group_pattern)
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be a share between 0 and 1, got {test_size!r}.")
    split = train_test_split_by_type(
        data.paths, data.types, test_size, random_state=random_state, groups=data.groups
    )
    groups = [None] * len(data.paths) if data.groups is None else data.groups.tolist()
    rows = list(
        zip(data.paths.tolist(), data.types.tolist(), data.masks.tolist(), groups, strict=True)
    )
    sides = {side: [rows[i] for i in getattr(split, side)] for side in _SIDES}
    return Split(os.fspath(folder), sides)


def write_split(split: Split, folder: Path, form: str, final: Path | None = None) -> None:
    """Write a split into a folder that exists and is empty.

    Parameters
    ----------
    split : Split
    folder : Path
    form : {"lists", "links", "copies"}
        ``train.csv`` and ``test.csv``, which `defectcam.datasets.load_csv` reads; or the folders
        ``train/<type>`` and ``test/<type>`` with links to the images or copies of them, and
        ``ground_truth/<type>`` with those of their masks.
    final : Path, optional
        Where the folder will be moved to; paths in lists are relative to it where they can be.
        Links lead to absolute paths.

    Raises
    ------
    ValueError
        If there is no such form.
    OSError
        If a file cannot be written, or the file system knows no links.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}.")
    if form == "lists":
        for side, rows in split.rows.items():
            table = _as_csv(rows, (final or folder).resolve())
            try:
                (folder / f"{side}.csv").write_text(table, encoding="utf-8")
            except UnicodeEncodeError as error:
                raise OSError(
                    errno.EILSEQ,
                    f"{table[error.start - 20 : error.end + 20]!r} holds a file name that is no "
                    "text, and cannot stand in a table: use links or copies",
                ) from error
        return
    place = _link if form == "links" else shutil.copy2
    for (side, (path, type_, mask, _)), name in _named(split):
        _placed(place, path, folder / side / type_ / name)
        if mask is None:
            continue
        target = folder / "ground_truth" / mask_name(name, type_)
        if not target.exists():  # images of one name, on either side, may share their mask
            _placed(place, mask, target)


def _as_csv(rows: Sequence[_Row], base: Path) -> str:
    has_masks = any(mask is not None for _, _, mask, _ in rows)
    has_groups = any(group is not None for *_, group in rows)
    header = ["path", "label"] + ["mask"] * has_masks + ["group"] * has_groups
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    for path, type_, mask, group in rows:
        cells: list[Any] = [_relative(path, base), type_]
        cells += ["" if mask is None else _relative(mask, base)] * has_masks
        table.writerow(cells + [group] * has_groups)
    return text.getvalue()


def _relative(path: str, base: Path) -> str:
    try:
        return Path(os.path.relpath(os.path.abspath(path), base)).as_posix()
    except ValueError:  # on another drive
        return os.path.abspath(path)


def _shared_names(rows: Sequence[_Row]) -> set[tuple[str, str]]:
    """Find the types and stems of images, on both sides, that have several masks or lack one."""
    masks: dict[tuple[str, str], set[str | None]] = {}
    for path, type_, mask, _ in rows:
        masks.setdefault((type_, Path(path).stem.lower()), set()).add(mask)
    return {name for name, files in masks.items() if len(files) > 1}


def _named(split: Split) -> list[tuple[tuple[str, _Row], str]]:
    """Name each image as it is; with its folders before it where two of a type share a name.

    A name of the latter kind may be that of another image: it has a number after it then.
    """
    placed = [(side, row) for side, rows in split.rows.items() for row in rows]
    shared = _shared_names([row for _, row in placed])
    taken = Counter((side, row[1], Path(row[0]).name.lower()) for side, row in placed)
    names: dict[int, str] = {}
    used = _UsedNames()
    longer = []
    for i, (side, (path, type_, mask, _)) in enumerate(placed):
        name = Path(path).name
        if taken[side, type_, name.lower()] > 1 or (type_, Path(path).stem.lower()) in shared:
            longer.append(i)
            continue
        names[i] = name
        used.add(side, type_, name, mask)
    for i in longer:
        side, (path, type_, mask, _) = placed[i]
        whole = Path("-".join(Path(os.path.relpath(path, split.root)).parts))
        numbered = (f"{whole.stem}-{n}{whole.suffix}" for n in itertools.count(2))
        names[i] = next(
            name
            for name in itertools.chain([whole.name], numbered)
            if used.is_free(side, type_, name, mask)
        )
        used.add(side, type_, names[i], mask)
    return [(one, names[i]) for i, one in enumerate(placed)]


class _UsedNames:
    """The names that images have got, and the masks that are found by those names' stems."""

    def __init__(self) -> None:
        self._names: set[tuple[str, str, str]] = set()
        self._masks: dict[tuple[str, str], str | None] = {}

    def is_free(self, side: str, type_: str, name: str, mask: str | None) -> bool:
        stem = Path(name).stem.lower()
        is_own_mask = self._masks.get((type_, stem), mask) == mask
        return is_own_mask and (side, type_, name.lower()) not in self._names

    def add(self, side: str, type_: str, name: str, mask: str | None) -> None:
        self._names.add((side, type_, name.lower()))
        self._masks[type_, Path(name).stem.lower()] = mask


def _placed(place: Any, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):  # where the file system takes two names for one
        raise FileExistsError(
            errno.EEXIST,
            f"cannot write {target.name} for {source!r}: another file of the split has that name "
            "here. Rename one of the two, or use lists",
        )
    place(source, target)


def _link(source: str, target: Path) -> None:
    try:
        target.symlink_to(os.path.abspath(source))
    except OSError as error:
        raise OSError(
            error.errno, f"cannot link {target.name} ({error.strerror}): use copies or lists"
        ) from error
