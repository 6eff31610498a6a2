"""Judges the images that a camera writes into a folder: each once, also through kills and restarts.

Owns when a file counts as completely written, the file of results, and what a restart has to mend.
It knows no classifier: the function that judges is passed in. It never changes, moves or removes an
image.

The folder is looked at again and again, because notifications of the operating system do not cross
network drives, and one that gets lost would lose an image. A file is taken once its size and its
time of modification have stayed the same for a while, or at first sight where the camera writes
under another name and renames (`settle=0`). What cannot be read then may still be on its way: it is
called bad only after it has not changed for longer, and so is an image that takes more memory than
there is.

A result is a line of JSON, appended by one write and on disk before the next image is begun; the
overlay is written before its line. So after a kill at any moment each line is the whole truth of
one image, but perhaps for a torn last one, which a restart cuts off to judge its image again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from defectcam.display import encode_picture
from defectcam.exceptions import DataError
from defectcam.files import is_temporary, write_atomically
from defectcam.images import IMAGE_SUFFIXES, SKIPPED_SUFFIXES, ImageReadError
from defectcam.results import Localization
from defectcam.tables import SCHEMA_VERSION, result_row

__all__ = ["OVERLAYS", "RESULTS", "ResultsFileError", "Tally", "Watcher", "stopped_by_signals"]

#: Name of the file of results in the output folder.
RESULTS = "results.jsonl"

#: Of which images overlays are written.
OVERLAYS = ("all", "defects", "none")

_OVERLAY_FOLDER = "overlays"
#: Folders whose names could be those of overlays, and what such folders are called.
_LIKE_OVERLAY = re.compile(r".*\.png(\.folder)*", re.IGNORECASE | re.DOTALL)
_LATENCIES_KEPT = 10_000
_NO_MEMORY = "out of memory"  # where the error says nothing itself

#: Of a file that is gone, or a link that leads to none.
_NOWHERE = (FileNotFoundError, NotADirectoryError)

#: Size in bytes and time of modification in nanoseconds: another stamp is another image.
Stamp = tuple[int, int]


class ResultsFileError(DataError):
    """The file of results cannot be continued: the message says why and what to do."""


@dataclass
class Tally:
    """What a watch has done so far.

    Attributes
    ----------
    n_good, n_defective : int
        Images judged in this run.
    n_errors : int
        Files that could not be read, recorded with the reason.
    n_known : int
        Images that earlier runs had recorded.
    n_waiting : int
        Files seen but not judged yet.
    n_gone : int
        Files that were removed or renamed before they were judged.
    seconds : float
        Since the watch began.
    rate : float
        Images and bad files per second, from the first sight of one to the line of the last.
    latency_median, latency_p95 : float or None
        Seconds from the first sight of a file to its line on disk, of the last 10,000 images; bad
        files are left out, which wait on purpose. None before the first.
    """

    n_good: int = 0
    n_defective: int = 0
    n_errors: int = 0
    n_known: int = 0
    n_waiting: int = 0
    n_gone: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    latency_median: float | None = None
    latency_p95: float | None = None

    @property
    def n_done(self) -> int:
        """Images and bad files recorded in this run."""
        return self.n_good + self.n_defective + self.n_errors

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as a dict, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        latency = "none judged yet"
        if self.latency_median is not None:
            latency = f"latency {self.latency_median:.2f} s median, {self.latency_p95:.2f} s p95"
        gone = f", {self.n_gone} gone" if self.n_gone else ""
        return (
            f"{self.n_done} images: {self.n_defective} defective, {self.n_good} good, "
            f"{self.n_errors} unreadable{gone}; {self.n_waiting} waiting; "
            f"{self.rate:.1f} a second, {latency}"
        )


@dataclass
class _File:
    """A file that is not judged yet."""

    name: str
    stamp: Stamp
    seen: float  # when it was first seen, of any stamp
    since: float  # when it was first seen with this stamp
    failed: bool = False
    path: str = field(default="", repr=False)


class Watcher:
    """Judges images as they arrive in a folder, and records each exactly once.

    Use it as a context manager: it holds a lock on the output folder, so that two of them never
    write the same results.

    Parameters
    ----------
    folder : str or PathLike
        Where images arrive, in its sub-folders too, through symbolic links as well. Hidden files
        and files without an image's suffix are skipped, and so is `output` where it lies inside.
    output : str or PathLike
        Gets ``results.jsonl`` and ``overlays/``; made if it does not exist. Results that it holds
        are continued: an image recorded there, of the same name, size and time of modification, is
        not judged again.
    judge : callable
        Takes a list of paths, gives a `Localization` for each, in order, and raises
        `ImageReadError` for a file that cannot be read: `DefectCAMClassifier.localize_iter`.
    overlays : {"all", "defects", "none"}, default="all"
        Of which images overlays are written.
    settle : float, default=0.5
        Seconds for which a file must not have changed before it is read. 0 for cameras that write
        under another name (``.tmp``, say) and rename.
    error_after : float, default=5.0
        Seconds for which a file that cannot be read must not have changed before it is recorded as
        an error; at least `settle`.
    poll : float, default=0.2
        Seconds between looks at the folder.
    batch_size : int, default=16
        Most images judged together.
    about : dict, optional
        What every line says too, the model's name for example.
    notify : callable, optional
        Called with each row once it is on disk.
    warn : callable, optional
        Called with a sentence about what went wrong and is made good: a folder that cannot be read
        at the moment, a torn line, a file of results that was moved away.

    Attributes
    ----------
    tally : Tally

    Raises
    ------
    ImageReadError
        If `folder` does not exist.
    ResultsFileError
        On entering, or where the file of results was moved or removed meanwhile: if another watcher
        writes there, or the file holds other lines.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        output: str | os.PathLike[str],
        judge: Callable[[Sequence[str]], Iterable[Localization]],
        *,
        overlays: str = "all",
        settle: float = 0.5,
        error_after: float = 5.0,
        poll: float = 0.2,
        batch_size: int = 16,
        about: dict[str, Any] | None = None,
        notify: Callable[[dict[str, Any]], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = os.fspath(folder)
        if not os.path.isdir(self.folder):
            what = "is a file" if os.path.exists(self.folder) else "does not exist"
            raise ImageReadError(f"{self.folder!r} {what}: give the folder that images arrive in.")
        if overlays not in OVERLAYS:
            raise ValueError(f"overlays must be one of {', '.join(OVERLAYS)}, got {overlays!r}.")
        for name, value in (("settle", settle), ("error_after", error_after), ("poll", poll)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or a finite number of seconds, got {value!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size!r}.")
        self.output = Path(output)
        self.overlays = overlays
        self.settle = settle
        self.error_after = max(error_after, settle)
        self.poll = poll
        self.batch_size = batch_size
        self.tally = Tally()
        self._judge = judge
        self._about = about or {}
        self._notify = notify or (lambda row: None)
        self._warn = warn or (lambda sentence: None)
        self._waiting: dict[str, _File] = {}
        self._recorded: dict[str, Stamp] = {}
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._unreachable = False
        self._closed: set[str] = set()
        self._started = time.monotonic()
        self._first_seen: float | None = None
        self._last_done = 0.0

    def __enter__(self) -> Watcher:
        self._open()
        self.tally.n_known = self._results.n_lines
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._results.close()
        self._lock.release()

    def _open(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        # The output may be the watched folder itself, and overlays are images.
        own = (self.output, self.output / _OVERLAY_FOLDER)
        self._own_folders = frozenset(os.path.realpath(folder) for folder in own)
        self._lock = FileLock(self.output / f".{RESULTS}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise ResultsFileError(
                f"another watch writes to {self.output}: end that one, or give another folder."
            ) from error
        try:
            self._results = _ResultsFile(self.output / RESULTS, self._warn)
            self._recorded.update(self._results.stamps)
            _remove_temporaries(self.output / _OVERLAY_FOLDER)
        except BaseException:
            self._lock.release()
            raise

    def _open_again(self) -> None:
        """Go on in a new file of results; what the old one holds is not judged again."""
        self._warn(
            f"{self.output / RESULTS} was moved or removed: going on in a new file. The next start "
            "knows only what stands there then."
        )
        self._results.close()
        self._lock.release()
        self._open()

    def run(
        self,
        stop: threading.Event,
        report: Callable[[Tally], None] | None = None,
        report_every: float = 10.0,
    ) -> Tally:
        """Watch until told to stop; the batch that is being judged is finished first.

        Parameters
        ----------
        stop : threading.Event
            Ends the watch once it is set.
        report : callable, optional
            Called with the tally every `report_every` seconds if anything was done meanwhile.
        report_every : float, default=10.0
            Seconds.

        Returns
        -------
        Tally
        """
        reported_at, reported = time.monotonic(), 0
        while not stop.is_set():
            began = time.monotonic()
            ready = self.look()
            looked = time.monotonic() - began
            for start in range(0, len(ready), self.batch_size):
                self.judge(ready[start : start + self.batch_size])
                if stop.is_set() or time.monotonic() - began > max(self.poll, looked):
                    break  # to look again: newer files must settle while a backlog is worked off
            now = time.monotonic()
            if report and now - reported_at >= report_every and self.tally.n_done > reported:
                self._measure(now)
                report(self.tally)
                reported_at, reported = now, self.tally.n_done
            # A folder so large that looking takes long is not looked at all the time.
            stop.wait(max(0.0, max(self.poll, looked) - (now - began - looked)))
        self._measure(time.monotonic())
        return self.tally

    def look(self) -> list[_File]:
        """List the folder once; return the files that are ready to be judged, oldest first."""
        try:
            listed = dict(self._list())
        except OSError as error:
            if not self._unreachable:
                self._warn(f"{self.folder} cannot be read at the moment ({error}); trying again.")
            self._unreachable = True
            return []
        if self._unreachable:
            self._warn(f"{self.folder} can be read again.")
            self._unreachable = False
        now = time.monotonic()
        for name in [name for name in self._waiting if name not in listed]:
            del self._waiting[name]
            self.tally.n_gone += 1
            self._warn(f"{name} was removed or renamed before it was judged.")
        if listed and self._first_seen is None:
            self._first_seen = now
        for name, stamp in listed.items():
            file = self._waiting.get(name)
            if file is None:
                path = os.path.join(self.folder, name)
                self._waiting[name] = _File(name, stamp, seen=now, since=now, path=path)
            elif file.stamp != stamp:
                file.stamp, file.since, file.failed = stamp, now, False
        ready = [file for file in self._waiting.values() if self._is_ready(file, now)]
        return sorted(ready, key=lambda file: (file.stamp[1], file.name))

    def judge(self, files: Sequence[_File]) -> None:
        """Judge some files that are ready, and record them."""
        for file, found in self._found(files):
            if isinstance(found, ImageReadError):
                self._fail(file, found)
            else:
                self._record(file, found)

    def _is_ready(self, file: _File, now: float) -> bool:
        # A file that is empty or was unreadable may still be on its way.
        patient = file.failed or file.stamp[0] == 0
        return now - file.since >= (self.error_after if patient else self.settle)

    def _list(self) -> Iterator[tuple[str, Stamp]]:
        """Name the images that are not recorded, each with its stamp."""
        entered: set[str] = set()
        folders = [(self.folder, "")]
        links: list[tuple[str, str]] = []
        while folders or links:
            if not folders:
                # Last, and in one order: a folder that is found in two places keeps its name.
                links.sort(reverse=True)
                folders.append(links.pop())
            folder, prefix = folders.pop()
            real = os.path.realpath(folder)
            # A link that leads back to one of its own parents would otherwise never end.
            if real in entered or (prefix and real in self._own_folders):
                continue
            entered.add(real)
            for entry in self._entries(folder, prefix):
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    links.append((entry.path, f"{prefix}{entry.name}/"))
                elif (suffix := os.path.splitext(entry.name)[1].lower()) in SKIPPED_SUFFIXES:
                    self._leave_out(prefix + entry.name, suffix)
                elif suffix in IMAGE_SUFFIXES:
                    name = prefix + entry.name
                    stamp = self._stamp_if_new(name, entry)
                    if stamp is not None:
                        yield name, stamp

    def _entries(self, folder: str | os.PathLike[str], prefix: str) -> Iterator[os.DirEntry[str]]:
        """Go through what a folder shows; a sub-folder that cannot be listed is passed over."""
        try:
            listing = os.scandir(folder)
        except (FileNotFoundError, PermissionError) as error:
            if not prefix:
                raise
            self._skip(prefix, error)
            return
        with listing as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))

    def _skip(self, name: str, error: OSError) -> None:
        """Pass over what is removed meanwhile, or cannot be looked at, which is said once."""
        if isinstance(error, _NOWHERE) or name in self._closed:
            return
        self._closed.add(name)
        what = f"the sub-folder {name}" if name.endswith("/") else name
        self._warn(f"{what} is left out: {error}.")

    def _leave_out(self, name: str, suffix: str) -> None:
        """Say once of a picture that its format is not read."""
        if name not in self._closed:
            self._closed.add(name)
            self._warn(f"{name} is left out: {suffix} is not read, convert it to PNG or TIFF.")

    def _stamp_if_new(self, name: str, entry: os.DirEntry[str]) -> Stamp | None:
        known = self._recorded.get(name)
        try:
            if known is not None and _stamp(entry.stat()) == known:
                return None
            # Asked anew: on Windows, an entry tells the size that an open file had earlier.
            stamp = _stamp(os.stat(entry.path))
        except OSError as error:  # gone between the two calls; a link to nowhere or to itself
            if not _is_of_one_entry(error):
                raise
            self._skip(name, error)
            return None
        return None if stamp == known else stamp

    def _found(
        self, files: Sequence[_File]
    ) -> Iterator[tuple[_File, Localization | ImageReadError]]:
        """Judge files together; one by one where one of them cannot be read."""
        try:
            found = list(self._judge([file.path for file in files]))
        except (ImageReadError, MemoryError) as error:
            if len(files) == 1:
                yield files[0], _as_read_error(files[0].path, error)
                return
            for file in files:
                yield from self._found([file])
            return
        yield from zip(files, found, strict=True)

    def _fail(self, file: _File, error: ImageReadError) -> None:
        if not os.path.exists(file.path):
            return  # the next look will say so
        if _stamp_of(file.path) != file.stamp:
            return  # it has changed; the next look will see it
        if time.monotonic() - file.since < self.error_after:
            file.failed = True
            return
        self._append(file, {"error": str(error), "overlay": None})
        self.tally.n_errors += 1
        self._warn(f"recorded as unreadable: {error}")

    def _record(self, file: _File, found: Localization) -> None:
        overlay = self._draw(file, found) if self._is_drawn(found) else None
        if _stamp_of(file.path) not in (file.stamp, None):
            return  # it was written to while it was read
        name = None if overlay is None else self._write_overlay(file, overlay)
        # The name unchanged, as the image's, which the row would make printable.
        latency = self._append(file, {"error": None, **result_row(found), "overlay": name})
        self._latencies.append(latency)
        if found.is_defect:
            self.tally.n_defective += 1
        else:
            self.tally.n_good += 1

    def _is_drawn(self, found: Localization) -> bool:
        return self.overlays == "all" or (self.overlays == "defects" and found.is_defect)

    def _draw(self, file: _File, found: Localization) -> bytes | None:
        try:
            return encode_picture(found.overlay(), ".png")
        except (ImageReadError, ValueError) as error:  # gone, or of another size, since it was read
            self._warn(f"no overlay: {error}")
            return None
        except MemoryError as error:
            self._warn(f"no overlay of {file.name}: {str(error) or _NO_MEMORY}.")
            return None

    def _write_overlay(self, file: _File, overlay: bytes) -> str | None:
        """Write it and return its name, which is longer than the image's; None where too long."""
        name = f"{_OVERLAY_FOLDER}/{_overlay_name(file.name)}"
        try:
            (self.output / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.output / name, overlay)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._warn(f"no overlay of {file.name}: {name} is too long a name.")
            return None
        return name

    def _append(self, file: _File, result: dict[str, Any]) -> float:
        now = time.monotonic()
        latency = now - file.seen
        row = {
            **result,
            "image": file.name,  # unchanged, whatever its characters: a restart knows it by this
            "size": file.stamp[0],
            "mtime_ns": file.stamp[1],
            "judged_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "latency": round(latency, 4),
            **self._about,
            "schema_version": SCHEMA_VERSION,
        }
        if not self._results.is_in_place():
            self._open_again()
        self._results.append(row)
        self._recorded[file.name] = file.stamp
        del self._waiting[file.name]
        self._last_done = now
        self._notify(row)
        return latency

    def _measure(self, now: float) -> None:
        tally = self.tally
        tally.n_waiting = len(self._waiting)
        tally.seconds = now - self._started
        if self._latencies:
            tally.latency_median = statistics.median(self._latencies)
            ordered = sorted(self._latencies)
            tally.latency_p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        if self._first_seen is not None and self._last_done > self._first_seen:
            tally.rate = tally.n_done / (self._last_done - self._first_seen)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT (Ctrl-C) set; a second SIGINT interrupts as usual.

    Works in the main thread alone, as Python's signals do. The handlers from before come back.
    """
    stop = threading.Event()

    def handle(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _ResultsFile:
    """Lines of JSON, each appended whole and on disk when `append` returns.

    Parameters
    ----------
    path : Path
        Made if it does not exist; a torn last line is cut off.
    warn : callable
        Told of such a line.

    Attributes
    ----------
    stamps : dict of str to Stamp
        The latest recorded stamp of each image.
    n_lines : int
        That the file held on opening.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        try:
            self.stamps, self.n_lines, end = self._read()
            torn = os.fstat(self._descriptor).st_size - end
            if torn:
                warn(f"{path} ended in a torn line of {torn} bytes, which was cut off.")
                os.ftruncate(self._descriptor, end)
                os.fsync(self._descriptor)
        except BaseException:
            self.close()
            raise

    def is_in_place(self) -> bool:
        """Whether the path still leads to the file: it may be moved or removed at any time."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OSError(error.errno, f"{self._path}: {error.strerror}") from error
        if written < len(line):
            os.ftruncate(self._descriptor, before)
            raise OSError(f"{self._path}: only {written} of {len(line)} bytes could be written.")
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _read(self) -> tuple[dict[str, Stamp], int, int]:
        """Return the stamps, the number of whole lines, and where the last one ends."""
        stamps: dict[str, Stamp] = {}
        number = end = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                number, end = number + 1, end + len(line)
                try:
                    row = json.loads(line)
                    stamps[row["image"]] = int(row["size"]), int(row["mtime_ns"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ResultsFileError(
                        f"{self._path}, line {number}, is no result of a watch ({error!r}): move "
                        "the file away, or give another folder."
                    ) from error
        return stamps, number, end


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns


def _stamp_of(path: str) -> Stamp | None:
    try:
        return _stamp(os.stat(path))
    except OSError:  # gone, or closed to us since
        return None


def _as_read_error(path: str, error: ImageReadError | MemoryError) -> ImageReadError:
    """Blame an image that alone takes more memory than there is: each start would end at it."""
    if isinstance(error, ImageReadError):
        return error
    return ImageReadError(f"{path!r} cannot be judged: {str(error) or _NO_MEMORY}")


def _is_of_one_entry(error: OSError) -> bool:
    """Whether one file is at fault, and not the folder or the drive, which may come back."""
    is_odd = isinstance(error, (*_NOWHERE, PermissionError))
    return is_odd or error.errno in (errno.ELOOP, errno.ENAMETOOLONG)


def _overlay_name(image: str) -> str:
    """Name a PNG file after an image, no two after different ones, and none as a folder is named.

    A folder called ``a.jpg.png`` would lie where the overlay of ``a.jpg`` does.
    """
    *folders, file = image.split("/")
    folders = [f"{name}.folder" if _LIKE_OVERLAY.fullmatch(name) else name for name in folders]
    stem, suffix = os.path.splitext(file)
    is_named_after_other = os.path.splitext(stem)[1].lower() in IMAGE_SUFFIXES  # a.jpg.png
    is_kept = suffix.lower() == ".png" and not is_named_after_other
    return "/".join([*folders, file if is_kept else f"{file}.png"])


def _remove_temporaries(folder: Path) -> None:
    """Remove what a kill has left of overlays that were being written.

    All of it, also on Windows, where `remove_leftovers` leaves everything: the watch's lock on the
    results says that nobody else is writing here.
    """
    for path in folder.rglob(".*.tmp"):
        if is_temporary(path.name):
            path.unlink(missing_ok=True)
