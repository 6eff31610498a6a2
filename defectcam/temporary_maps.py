"""Memory that lies in a temporary file, which has no name: whatever ends the process, none is left.

Owns how such a file gets its room. It knows nothing of what is kept there.
"""

from __future__ import annotations

import mmap
import os
import tempfile

__all__ = ["temporary_map"]


def temporary_map(n_bytes: int, *, what: str, remedy: str) -> mmap.mmap:
    """Map a temporary file of a fixed size; it goes with the last reference to the map.

    Parameters
    ----------
    n_bytes : int
    what : str
        What needs the file, for the message.
    remedy : str
        What makes it need less, for the message.

    Returns
    -------
    mmap

    Raises
    ------
    OSError
        If there is not that much room, before anything is written.
    """
    with tempfile.TemporaryFile(prefix="defectcam-") as file:  # the map outlives it
        try:
            _reserve(file.fileno(), n_bytes)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{what} needs {n_bytes / 1e9:.2f} GB in a temporary file "
                f"({os.strerror(error.errno or 0)}). Make room, name another folder in the "
                f"environment variable TMPDIR, or {remedy}",
                tempfile.gettempdir(),
            ) from error
        return mmap.mmap(file.fileno(), n_bytes)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Give a file its size and the room on disk; a map of a sparse file would crash on a full one.

    Raises
    ------
    OSError
        If there is not that much room.
    """
    os.ftruncate(descriptor, n_bytes)
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        os.posix_fallocate(descriptor, 0, n_bytes)
