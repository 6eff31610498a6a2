"""Writes files whole or not at all.

Owns the way a result takes its name on disk, and what a killed process has left of one. It knows no
format and depends on nothing else in the package.

While it is written a file has a temporary name, and its writer holds a lock on it, which ends with
the process. So the next process that writes into the folder can tell what was left behind from what
another one is writing, and removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing can be told apart there, so what is left behind stays
    fcntl = None  # type: ignore[assignment]

#: Temporary names, of files and folders; earlier releases put the target's name before the digits.
_TEMPORARY = re.compile(r"\.(?:.+\.)?[0-9a-f]{32}\.tmp", re.DOTALL)

#: Folders that this process has looked through.
_tidied: set[str] = set()

__all__ = [
    "check_target",
    "check_writable",
    "is_temporary",
    "refuse_special",
    "remove_leftovers",
    "staged_folder",
    "temporary_folder",
    "write_atomically",
]


def check_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Refuse a file that cannot or may not be written, before the work that it is to hold.

    Parameters
    ----------
    path : str or PathLike
    overwrite : bool
        Whether it may exist.

    Returns
    -------
    Path
        The file's.

    Raises
    ------
    IsADirectoryError
        If it is a folder.
    FileExistsError
        If it exists and `overwrite` is false.
    FileNotFoundError
        If the folder that is to hold it does not exist.
    OSError
        If it is a pipe or a device.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of a file in it.")
    _refuse_missing_parent(target)
    refuse_special(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass overwrite=True to replace it.")
    return target


def refuse_special(path: str | os.PathLike[str]) -> None:
    """Refuse pipes and devices: a file that takes their name would put them out of use.

    Raises
    ------
    OSError
        If it is there and no regular file, nor a link to one, or lies where the system keeps
        devices: ``/dev/stdout`` may lead to a regular file.
    """
    target = Path(path)
    parent = os.path.realpath(target.parent)
    in_devices = parent == "/dev" or parent.startswith(("/dev/fd", "/proc/"))
    is_device = os.name == "posix" and in_devices
    if target.exists():  # not through a broken link, nor below a file
        mode = target.stat().st_mode
        is_device |= not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    if is_device:
        raise OSError(f"cannot write {target}: it is a pipe or a device, give the name of a file.")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a file that cannot be written, before the work that it is to hold; it may exist.

    Raises
    ------
    OSError
        As `check_target` does, and if the folder takes no file.
    """
    target = check_target(path, overwrite=True)
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {target}: its folder takes no file ({error.strerror}), give another",
        ) from error


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside the target, then rename: the target is never seen half-written.

    Parameters
    ----------
    path : str or PathLike
        A file of that name is replaced, once the new one is safely on disk. So is a link: what it
        leads to stays as it was.
    data : bytes
        What the file is to hold.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    OSError
        If the file cannot be written, a pipe or a device for example. Nothing is left behind then,
        and an old file stays.
    """
    target = Path(path)
    _refuse_missing_parent(target)
    refuse_special(target)
    with _temporary(target, Path.touch) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder beside a target, on the same disk, that goes at the end.

    Parameters
    ----------
    path : str or PathLike
        The target, which need not exist; nothing is done to it.

    Yields
    ------
    Path

    Raises
    ------
    FileNotFoundError
        If the folder that is to hold the target does not exist.
    """
    target = Path(path)
    _refuse_missing_parent(target)
    with _temporary(target, Path.mkdir) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
    with temporary_folder(target) as staging:
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
            refuse_special(place)
        target.mkdir(exist_ok=True)
        for file in sorted(files, key=lambda path: path.name == last):
            places[file].parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, places[file])


def is_temporary(name: str) -> bool:
    """Whether files and folders have such names while they are written.

    Parameters
    ----------
    name : str
        Without its folder.
    """
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes have left of what they were writing into a folder.

    What another process is writing, or what cannot be removed, stays. On Windows all stays.

    Parameters
    ----------
    folder : str or PathLike
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name):
                _remove_if_left(Path(entry.path))


def _remove_if_left(path: Path) -> None:
    with contextlib.suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_missing_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: make the folder {target.parent} first.")


@contextlib.contextmanager
def _temporary(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make something under a temporary name beside the target, locked within the block."""
    parent = os.path.realpath(target.parent)
    if parent not in _tidied:  # once: a folder may hold very many files
        _tidied.add(parent)
        remove_leftovers(parent)
    while True:
        # Without the target's name, which may be as long as the file system allows.
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        make(temporary)
        if fcntl is None:
            yield temporary
            return
        with contextlib.ExitStack() as stack:
            # Some network drives know no locks; what is left there stays too, then.
            with contextlib.suppress(OSError):
                stack.enter_context(_locked(temporary, fcntl.LOCK_EX))
            if temporary.exists():  # else taken for left behind before it was locked
                yield temporary
                return


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Lock a file or folder within the block, or until the process ends.

    Raises
    ------
    OSError
        If it is gone, another process has locked it, or the drive knows no locks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
