"""Writes files whole or not at all.

Owns the way a result takes its name on disk. It knows no format and depends on nothing else in the
package.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["staged_folder", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside the target, then rename: the target is never seen half-written.

    Parameters
    ----------
    path : str or PathLike
        A file of that name is replaced, once the new one is safely on disk.
    data : bytes
        What the file is to hold.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    OSError
        If the file cannot be written. Nothing is left behind then, and an old file stays.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: make the folder {target.parent} first.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: str | os.PathLike[str], last: str | None = None) -> Iterator[Path]:
    """Give a folder to write into; its files move to the target at the end if nothing fails.

    Parameters
    ----------
    folder : str or PathLike
        The target; it is made if need be. Files of the same names are replaced, others stay.
    last : str, optional
        Name of the file that takes its place after all others: whoever sees it, sees them.

    Yields
    ------
    Path
        The folder to write into, beside the target.

    Raises
    ------
    FileNotFoundError
        If the folder that is to hold the target does not exist.
    OSError
        If a file cannot be written, or a link in the target leads out of it.
    """
    target = Path(folder).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: make the folder {target.parent} first.")
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    staging.mkdir()
    try:
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        places = {file: target / file.relative_to(staging) for file in files}
        for place in places.values():
            if not place.parent.resolve().is_relative_to(target):
                raise OSError(
                    f"cannot write {place}: a link leads to {place.parent.resolve()}, outside of "
                    f"{target}. Remove the link, or give another folder."
                )
            if place.is_dir():
                raise IsADirectoryError(f"cannot write {place}: there is a folder of that name.")
        target.mkdir(exist_ok=True)
        for file in sorted(files, key=lambda path: path.name == last):
            places[file].parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, places[file])
    finally:
        shutil.rmtree(staging, ignore_errors=True)
