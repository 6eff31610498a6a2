"""Localises very many images on a Ray cluster: a model per worker, rows of `tables` in Parquet.

Owns how images are dealt out, what a worker writes, and what a second call has left to do. Ray Data
schedules, restarts workers and grows the cluster; the answers are those of
`DefectCAMClassifier.localize_iter`. It is the only module that knows Ray.

The images are cut into parts, in order. A part is one task, and one file whose name is the part's
number and which a worker writes whole or not at all. So a task that is done twice, because its
worker was killed or the network was cut, writes the same file twice: no image is lost or doubled,
and what a file holds does not depend on how many workers there were.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from defectcam.files import write_atomically
from defectcam.images import ImageReadError
from defectcam.persistence import load, read_digest
from defectcam.sources import as_sources, is_path
from defectcam.tables import arrow_table, encode_rows, error_row, result_row

__all__ = ["Localizer", "Summary", "localize"]

#: Names the images and the model that a folder of results belongs to. Readers of Parquet pass over
#: files that begin with an underscore.
MANIFEST = "_manifest.json"

#: Workers that have to die of a part until its images are judged one by one, and then of an image
#: until it is left out. Ray starts new workers for ever.
DEATHS_OF_PART = 2
DEATHS_OF_IMAGE = 2


class Summary(NamedTuple):
    """What a call of `localize` has done.

    Attributes
    ----------
    n_images : int
        Images that it judged, or tried to.
    n_defective : int
        Those called defective.
    n_errors : int
        Those that could not be read.
    n_parts : int
        Files that it wrote.
    n_parts_before : int
        Files that an earlier call had written.
    seconds : float
        From beginning to end, the start of the workers included.
    """

    n_images: int
    n_defective: int
    n_errors: int
    n_parts: int
    n_parts_before: int
    seconds: float


class _Workers(NamedTuple):
    """How many workers there are, and what Ray reserves for each."""

    number: int
    n_cpus: int
    n_gpus: float


def localize(
    images: Any,
    model: Any,
    *,
    output: str | os.PathLike[str],
    part_size: int = 1000,
    n_workers: int | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
) -> Summary:
    """Localise images on all workers of a Ray cluster, and write a folder of Parquet files.

    Ray is started on this machine, unless the program is connected to a cluster (by ``ray.init``)
    or told where one is (by the variable ``RAY_ADDRESS``). Called again after a failure, with the
    same images and model, it goes on with the parts that are missing.

    Parameters
    ----------
    images : folder, sequence of paths, or ray.data.Dataset with a column ``image`` of paths
        Files that every worker can read under these names. Those of a data set are sorted.
    model : path or DefectCAMClassifier
        A file that `DefectCAMClassifier.save` has written, or a fitted classifier. It is sent to
        the workers, who need not see the file.
    output : path
        A folder that every worker can write to. It is made if need be; one that holds other things
        is refused.
    part_size : int, default=1000
        Images per file and task: what is done again when a worker is killed.
    n_workers : int, optional
        By default as many as the cluster has processors or GPUs for at the moment.
    cpus_per_worker : int, default=1
        Processors that Ray reserves for a worker, which reads images in as many threads.
    gpus_per_worker : float, default=0
        GPUs, or the share of one, that Ray reserves for a worker, which then computes there.

    Returns
    -------
    Summary

    Raises
    ------
    FileExistsError
        If the folder holds other files, or results of other images or of another model.
    ImportError
        If Ray is not installed: ``pip install 'defectcam[ray]'``.
    ModelFileError
        If the model cannot be read.
    RuntimeError
        If a worker fails, or cannot write, which it says of which file. What was written stays.
    ValueError
        If a parameter is wrong.

    Notes
    -----
    An image that cannot be read is no error: its row says why. So does the row of an image that
    kills every worker that looks at it, by its size for example.
    """
    ray = _ray()
    began = time.perf_counter()
    _refuse_less("part_size", part_size, 1)
    _refuse_less("cpus_per_worker", cpus_per_worker, 1)
    _refuse_less("gpus_per_worker", gpus_per_worker, 0)
    if n_workers is not None:
        _refuse_less("n_workers", n_workers, 1)
    names = _names_of(images)
    content, digest = _model_bytes(model)
    folder = _opened_folder(output, _manifest(names, part_size, digest))
    numbered = list(enumerate(range(0, len(names), part_size)))
    parts = [
        {"part": number, "names": json.dumps(names[start : start + part_size])}
        for number, start in numbered
        if not (folder / _file_name(number)).exists()
    ]
    counts = [0, 0, 0]
    if parts:
        if not ray.is_initialized():
            ray.init()
        n_workers = n_workers or _places(ray, cpus_per_worker, gpus_per_worker)
        workers = _Workers(n_workers, cpus_per_worker, gpus_per_worker)
        counts = _run(ray, parts, content, folder, workers)
        _remove_temporaries(folder)
    seconds = time.perf_counter() - began
    n_images, n_defective, n_errors = counts
    n_before = len(numbered) - len(parts)
    return Summary(n_images, n_defective, n_errors, len(parts), n_before, seconds)


class Localizer:
    """Localises batches of images: the worker of a pipeline of your own on Ray Data.

    Each worker loads the model once. What comes in is a column ``image`` of paths or of names, and
    in the latter case a column ``bytes`` with the files themselves, as ``read_binary_files`` gives
    them; what goes out, the columns of `defectcam.tables` and ``error``.

    Parameters
    ----------
    model : path or bytes
        A file that `DefectCAMClassifier.save` has written, or its content.
    n_jobs : int, default=1
        Threads that read images.
    device : str, default="cpu"
        What to compute on.
    """

    def __init__(self, model: Any, n_jobs: int = 1, device: str = "cpu") -> None:
        if isinstance(model, bytes):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.safetensors")
                path.write_bytes(model)
                self._clf = load(path, device=device)
        else:
            self._clf = load(model, device=device)
        self._clf.set_params(n_jobs=n_jobs)

    def __call__(self, batch: dict[str, Any]) -> Any:
        """Localise a batch.

        Parameters
        ----------
        batch : dict of array
            The columns.

        Returns
        -------
        pyarrow.Table
            A row per image, in order.
        """
        return arrow_table(self.rows_of(batch["image"], batch.get("bytes")))

    def rows_of(
        self, images: Iterable[Any], files: Iterable[bytes] | None = None
    ) -> list[dict[str, Any]]:
        """Localise files, or what they hold.

        Parameters
        ----------
        images : iterable of str or None
            Paths, or names where there are `files`. A path that is missing, None or NaN, makes a
            row that says so; a name that is missing is the image's number.
        files : iterable of bytes, optional
            The content of each.

        Returns
        -------
        list of dict
            A row per image, in order.
        """
        given = [None if image is None or image != image else str(image) for image in images]
        if files is None:
            paths = [path for path in given if path is not None]
            rows = iter(self.rows(paths, paths))
            nothing = {**error_row("The path is missing: the row has none.", ""), "image": None}
            return [dict(nothing) if path is None else next(rows) for path in given]
        names = [str(number) if name is None else name for number, name in enumerate(given)]
        # As files, images are decoded as they are everywhere else, large JPEG files in part.
        with tempfile.TemporaryDirectory(prefix="defectcam-") as folder:
            paths = [os.path.join(folder, str(number)) for number in range(len(names))]
            for path, content in zip(paths, files, strict=True):
                Path(path).write_bytes(content)
            return self.rows(names, paths)

    def rows(self, names: Sequence[str], paths: Sequence[str]) -> list[dict[str, Any]]:
        """Localise files; make a row of each under its name, in order.

        Parameters
        ----------
        names, paths : sequence of str

        Returns
        -------
        list of dict
            As `defectcam.tables` has them, with ``error``.
        """
        size = self._clf.batch_size
        batches = [slice(start, start + size) for start in range(0, len(names), size)]
        return [row for one in batches for row in self._rows(names[one], paths[one])]

    def _rows(self, names: Sequence[str], paths: Sequence[str]) -> list[dict[str, Any]]:
        """Make the rows of a batch, of each image by itself where one of them cannot be read."""
        try:
            found = list(self._clf.localize_iter(paths))
        except (ImageReadError, MemoryError) as error:
            if len(names) == 1:
                message = str(error).replace(repr(paths[0]), repr(names[0])) or "out of memory"
                return [error_row(message, names[0])]
            pairs = zip(names, paths, strict=True)
            return [row for name, path in pairs for row in self._rows([name], [path])]
        return [
            {**result_row(one, name), "error": None} for one, name in zip(found, names, strict=True)
        ]


class _PartWriter(Localizer):
    """Writes parts into a folder, each whole or not at all."""

    def __init__(self, model: Any, folder: str, root: str, n_jobs: int, device: str) -> None:
        super().__init__(_ray().get(model), n_jobs, device)
        self._folder, self._root = Path(folder), root

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the parts of a batch; return for each the first counts of `Summary`."""
        counts = [self._write(*part) for part in zip(batch["part"], batch["names"], strict=True)]
        return {"counts": np.array(counts)}

    def _write(self, number: int, text: str) -> list[int]:
        names = json.loads(text)
        paths = [os.path.join(self._root, name) for name in names]
        attempts = _Attempts(self._folder / f".part-{number:06d}.attempts")
        if attempts.n_deaths < DEATHS_OF_PART:
            rows = self.rows(names, paths)
        else:
            rows = [row for i in range(len(names)) for row in attempts.watch(self, i, names, paths)]
        target = self._folder / _file_name(number)
        with attempts.blameless(target):
            write_atomically(target, encode_rows(rows, "parquet"))
        attempts.forget()
        n_defective = sum(row.get("is_defect", False) for row in rows)
        return [len(rows), n_defective, sum(row["error"] is not None for row in rows)]


class _Attempts:
    """What workers who died of a part were doing, noted in a file beside it.

    Attributes
    ----------
    n_deaths : int
        How many have begun it before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size_before = path.stat().st_size if path.exists() else 0
        noted = path.read_text("utf-8") if path.exists() else ""
        attempts = [attempt.split() for attempt in noted.split("begun\n")[1:]]
        self.n_deaths = len(attempts)
        self._last = Counter(int(attempt[-1]) for attempt in attempts if attempt)
        self._note("begun")

    def watch(
        self, worker: Localizer, image: int, names: Sequence[str], paths: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Make the row of an image by itself, unless it was the last thing that workers did."""
        name, n_deaths = names[image], self._last[image]
        if n_deaths >= DEATHS_OF_IMAGE:
            message = f"{name!r} was left out: {n_deaths} workers died of it. Look at it by itself."
            return [error_row(message, name)]
        self._note(str(image))
        return worker.rows([name], [paths[image]])

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def blameless(self, target: Path) -> Iterator[None]:
        """Name the file that cannot be written within the block.

        No image is to blame for that: what this attempt has noted is taken back.
        """
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):  # the first error says more
                os.truncate(self._path, self._size_before)
            raise OSError(
                error.errno,
                f"cannot write ({error.strerror or error}): make room there, or see to its "
                "permissions",
                os.fspath(target),
            ) from error

    def _note(self, what: str) -> None:
        with self.blameless(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{what}\n")


def _run(
    ray: Any, parts: list[dict[str, Any]], content: bytes, folder: Path, workers: _Workers
) -> list[int]:
    """Have the parts written; return the sums of their counts."""
    written = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _PartWriter,
        batch_size=1,  # a part, so that each is a task
        compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(parts))),
        fn_constructor_kwargs={
            "model": ray.put(content),
            "folder": os.fspath(folder),
            "root": os.getcwd(),
            "n_jobs": workers.n_cpus,
            "device": "cuda" if workers.n_gpus else "cpu",
        },
        num_cpus=workers.n_cpus,
        num_gpus=workers.n_gpus,
    )
    try:
        return np.sum([row["counts"] for row in written.iter_rows()], axis=0).tolist()
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"Ray gave up ({type(error).__name__}: {_last_line(error)}). The parts that were "
            f"written are in {folder}; the same call does the others."
        ) from error


def _refuse_less(name: str, value: float, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}.")


def _places(ray: Any, cpus: int, gpus: float) -> int:
    """Count the workers that the cluster has room for."""
    has = ray.cluster_resources()
    wanted = [(has.get("CPU", 0), cpus), (has.get("GPU", 0), gpus)]
    number = min(int(there // needed) for there, needed in wanted if needed)
    if number < 1:
        raise ValueError(
            f"A worker is to have {cpus} processors and {gpus:g} GPUs, and the cluster has "
            f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g} in all: ask for fewer, or say with "
            "n_workers how many there will be."
        )
    return number


def _names_of(images: Any) -> list[str]:
    """List the paths, as they were given."""
    if hasattr(images, "iter_rows"):
        # Sorted, since rows come in whichever order they are ready.
        return sorted(row["image"] for row in images.select_columns("image").iter_rows())
    items = as_sources(images).items
    others = [item for item in items if not is_path(item)]
    if others:
        raise TypeError(
            f"images holds a {type(others[0]).__name__}: expected paths, which workers can read. "
            "For other sources, put `Localizer` into a pipeline of Ray Data."
        )
    return [os.fspath(item) for item in items]


def _model_bytes(model: Any) -> tuple[bytes, str]:
    """Return a model's file and its digest; refuse a wrong one here, not on every worker."""
    if is_path(model):
        return Path(model).read_bytes(), read_digest(model)
    with tempfile.TemporaryDirectory(prefix="defectcam-") as folder:
        path = Path(folder, "model.safetensors")
        model.save(path)
        return path.read_bytes(), read_digest(path)


def _manifest(names: list[str], part_size: int, model: str) -> dict[str, Any]:
    paths = json.dumps([os.path.abspath(name) for name in names])
    images = hashlib.blake2b(paths.encode(), digest_size=16).hexdigest()
    return {"n_images": len(names), "images": images, "part_size": part_size, "model": model}


def _opened_folder(output: str | os.PathLike[str], manifest: dict[str, Any]) -> Path:
    """Make the folder, or see that it holds parts of the same call."""
    folder = Path(output).absolute()
    if "://" in os.fspath(output):
        raise ValueError(
            f"output={os.fspath(output)!r}: expected a folder that all workers can write to. To "
            "write elsewhere, put `Localizer` into a pipeline of Ray Data."
        )
    known = folder / MANIFEST
    if known.exists():
        there = json.loads(known.read_text("utf-8"))
        other = [name for name, value in manifest.items() if there.get(name) != value]
        if other:
            raise FileExistsError(
                f"{folder} holds results of a call with other {', '.join(other)}: give another "
                "folder, or remove it."
            )
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(known, f"{json.dumps(manifest, indent=2)}\n".encode())
    return folder


def _remove_temporaries(folder: Path) -> None:
    """Remove what killed workers have left beside files that they were writing."""
    for path in folder.glob(".part-*"):
        path.unlink(missing_ok=True)


def _file_name(part: int) -> str:
    return f"part-{part:06d}.parquet"


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "Many machines need the packages ray and pyarrow: pip install 'defectcam[ray]'."
        ) from error
    return ray
