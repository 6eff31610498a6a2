"""Writes files whole or not at all.

Owns the way a result takes its name on disk. It knows no format and depends on nothing else in the
package.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["write_atomically"]


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
