"""Finds the images that annotation files name, and nothing outside of where they were said to be.

Owns what a name in an annotation file may be, and how it leads to a file. Annotation files come
from other machines and other people: a name that would leave the images' folder is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from defectcam.images import IMAGE_SUFFIXES, ImageReadError, find_images, image_size

__all__ = ["ImageFiles", "relative_name"]

_DRIVE = re.compile("[A-Za-z]:")


class ImageFiles:
    """The images that annotations may be for.

    Parameters
    ----------
    images : folder, or iterable of paths
        Names are relative to a folder; of paths, a name is the end of exactly one.

    Raises
    ------
    ImageReadError
        If the folder does not exist.
    """

    def __init__(self, images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]):
        self._root: Path | None = None
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._folders: dict[Path, dict[str, list[str]]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        if isinstance(images, (str, os.PathLike)):
            self._root = Path(images)
            if not self._root.is_dir():
                raise ImageReadError(f"images={str(self._root)!r} is no folder: give the images'.")
            return
        for path in (os.fspath(image) for image in images):
            self._by_name.setdefault(Path(path).name, []).append(path)
            self._by_stem.setdefault(Path(path).stem, []).append(path)

    def find(self, name: Any, place: str) -> str:
        """Return the path of an image.

        Parameters
        ----------
        name : str
            As the annotation file has it.
        place : str
            Where it has it, for the error.

        Raises
        ------
        ImageReadError
            If there is no such image, or more than one, or the name leaves the folder.
        """
        wanted = relative_name(name, place)
        if self._root is None:
            paths = self._ending_in(wanted, self._by_name.get(wanted.name, []))
        else:
            path = str(self._root / wanted)
            paths = [path] if os.path.isfile(path) else []
        return self._one_of(paths, str(wanted), place)

    def find_stem(self, stem: str, place: str) -> str:
        """Return the path of an image whose name is known but for its suffix."""
        wanted = relative_name(stem, place)
        return self._one_of(self._with_stem(wanted), f"{wanted}.*", place)

    def has_stem(self, stem: str) -> bool:
        """Whether there is an image whose name is known but for its suffix."""
        return bool(self._with_stem(PurePosixPath(stem)))

    def others(self, found: Collection[str]) -> list[str]:
        """List the images that are not among those found so far, each once."""
        if self._root is None:
            paths = [path for paths in self._by_name.values() for path in paths]
        else:  # names as `find` makes them, which begin with no "./"
            paths = [str(Path(path)) for path in find_images(self._root)]
        return [path for path in dict.fromkeys(paths) if path not in found]

    def size(self, path: str) -> tuple[int, int]:
        """Return height and width of an image, of which only the header is read."""
        if path not in self._sizes:
            self._sizes[path] = image_size(path)
        return self._sizes[path]

    def checked_size(self, path: str, height: Any, width: Any, place: str) -> tuple[int, int]:
        """Return the image's size, and refuse a file that says another."""
        size = self.size(path)
        try:
            said = int(float(height)), int(float(width))
        except (TypeError, ValueError, OverflowError) as error:
            raise ImageReadError(
                f"{place} has no size: height {height!r}, width {width!r}."
            ) from error
        if said != size:
            raise ImageReadError(
                f"{place} says that {path!r} has (height, width) = {said}, but it has {size}: pass "
                "the images that were annotated."
            )
        return size

    def _with_stem(self, wanted: PurePosixPath) -> list[str]:
        if self._root is None:
            return self._ending_in(wanted, self._by_stem.get(wanted.name, []))
        return self._stems_in(self._root / wanted.parent).get(wanted.name, [])

    def _stems_in(self, folder: Path) -> dict[str, list[str]]:
        """List the images of a folder by their names without suffix, each folder once."""
        if folder not in self._folders:
            stems: dict[str, list[str]] = {}
            for name in os.listdir(folder) if os.path.isdir(folder) else []:
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    stems.setdefault(Path(name).stem, []).append(str(folder / name))
            self._folders[folder] = stems
        return self._folders[folder]

    @staticmethod
    def _ending_in(wanted: PurePosixPath, paths: list[str]) -> list[str]:
        above = wanted.parts[:-1]
        return [
            path for path in paths if not above or Path(path).parts[:-1][-len(above) :] == above
        ]

    def _one_of(self, paths: list[str], shown: str, place: str) -> str:
        if len(paths) == 1:
            return paths[0]
        where = "the images" if self._root is None else f"images={str(self._root)!r}"
        raise ImageReadError(
            f"{place} names the image {shown!r}, of which there are {len(paths)} in {where}: "
            "pass the folder that the names start from, or a list of the images."
        )


def relative_name(name: Any, place: str) -> PurePosixPath:
    r"""Return a name as a path below some folder, or refuse it.

    Parameters
    ----------
    name : str
        With ``/`` or, as Windows has it, ``\`` between folders.
    place : str
        Where it was found, for the error.

    Raises
    ------
    ImageReadError
        If it is no text, is empty, absolute or has ``..`` in it.
    """
    text = name.replace("\\", "/") if isinstance(name, str) else ""
    path = PurePosixPath(text)
    if not path.name or path.is_absolute() or ".." in path.parts or _DRIVE.match(text):
        raise ImageReadError(
            f"{place} has {name!r} for the name of an image. Expected: a name relative to the "
            "folder of the images, without '..'."
        )
    return path
