"""The machine around: disks, processes, threads, environment variables."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import defectcam
from faults.catalogue import Bench, Group

group = Group("cases_environment")

ROOT = str(Path(defectcam.__file__).parents[1])


def full_disk(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def left_behind(bench: Bench, save: Callable[[Path], Any]) -> Any:
    """Save over an old file on a disk that is full; return what is there afterwards."""
    target = bench.tmp / "out.png"
    target.write_bytes(b"old")
    bench.patch.setattr(os, "fsync", full_disk)
    try:
        save(target)
    finally:
        assert [path.name for path in bench.tmp.iterdir()] == ["out.png"]
        assert target.read_bytes() == b"old"


group.refused(
    "a full disk while a model is saved: the old file stays",
    OSError,
    "No space left on device",
    lambda b: left_behind(b, b.model.save),
)


def full_cache(bench: Bench) -> Any:
    bench.patch.setattr(os, "posix_fallocate", full_disk)
    return bench.fit(cache_size=0)


if hasattr(os, "posix_fallocate"):
    group.refused(
        "a full disk while features are cached",
        OSError,
        "Make room, name another folder in the environment variable TMPDIR",
        full_cache,
    )


def no_temporary_folder(bench: Bench) -> Any:
    bench.patch.setattr(tempfile, "tempdir", str(bench.tmp / "gone"))
    return bench.fit(cache_size=0)


group.refused("a temporary folder that is gone", FileNotFoundError, "gone", no_temporary_folder)


def read_only_folder(bench: Bench) -> Any:
    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    bench.patch.setattr(Path, "open", refuse)
    return bench.model.save(bench.tmp / "m.safetensors")


group.refused(
    "a folder that may not be written to", PermissionError, "Permission denied", read_only_folder
)
group.refused(
    "a folder to save into that does not exist",
    FileNotFoundError,
    "make the folder",
    lambda b: b.model.save(b.tmp / "none" / "m.safetensors"),
)
group.refused(
    "a folder for a file name", IsADirectoryError, "is a folder", lambda b: b.model.save(b.tmp)
)
group.refused(
    "a model file that is there and may not be replaced",
    FileExistsError,
    "pass overwrite=True",
    lambda b: b.model.save(b.file("m.safetensors", b"old"), overwrite=False),
)
group.refused(
    "a memory that cannot be made",
    ValueError,
    "cannot be made a folder",
    lambda b: b.fit(memory=b.file("taken", b"") + "/sub"),
)
group.works(
    "paths with spaces and other scripts",
    8,
    lambda b: (b.model.save(b.tmp / "ein Teil 部品.st"), len(_load(b, "ein Teil 部品.st")))[1],
)


def _load(bench: Bench, name: str) -> Any:
    return defectcam.load(bench.tmp / name).predict(bench.images)


def threads(bench: Bench) -> Any:
    """Localise in 8 threads at once; return whether all answers are those of one thread."""
    serial = [found.grid.tobytes() for found in bench.model.localize(bench.images)]

    def localize(number: int) -> list[bytes]:
        return [found.grid.tobytes() for found in bench.model.localize(bench.images)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(localize, range(16)))
    modes = {module.training for module in bench.model.network_.modules()}
    return all(answer == serial for answer in answers), modes


group.works("8 threads that call `localize` on one model", (True, {False}), threads)


def threads_while_training(bench: Bench) -> Any:
    network = bench.model.network_.train()
    try:
        right, modes = threads(bench)
        return right, modes, network.training
    finally:
        network.eval()


group.works(
    "the same while its network is in training mode",
    (True, {True, False}, True),  # the frozen trunk never trains
    threads_while_training,
)


def answer_of(pickled: bytes, images: np.ndarray) -> bytes:
    import torch

    torch.set_num_threads(1)  # sums in another order are other bits
    return pickle.loads(pickled).predict_proba(images).tobytes()


def in_process(method: str) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        import torch

        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a forked child has no threads of its parent's pools
        try:
            with multiprocessing.get_context(method).Pool(1) as pool:
                job = pool.apply_async(answer_of, (pickle.dumps(bench.model), bench.images))
                found = job.get(timeout=250)
            return found == answer_of(pickle.dumps(bench.model), bench.images)
        finally:
            torch.set_num_threads(n_threads)

    return act


for method in ("fork", "spawn"):
    if method in multiprocessing.get_all_start_methods():
        group.works(f"a pickled model in a process made by {method}", True, in_process(method))

SCRIPT = """
import sys
import numpy as np
import defectcam
clf = defectcam.load(sys.argv[1])
images = np.load(sys.argv[2])
clf.localize(images[7]).save(sys.argv[3])
clf.fit(images, ["good"] * 4 + ["scratch"] * 4)
print(clf.predict_proba(images).shape[0])
"""


def in_environment(*options: str, **variables: str) -> Callable[[Bench], Any]:
    """Load, localise, save and fit in another interpreter; return what it prints."""

    def act(bench: Bench) -> Any:
        model = bench.file("m.safetensors", bench.saved)
        np.save(bench.tmp / "images.npy", bench.images)
        kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        result = subprocess.run(
            [sys.executable, *options, "-c", SCRIPT, model, "images.npy", "found.png"],
            cwd=bench.tmp,
            env={**environment, "PYTHONPATH": ROOT, **variables},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert result.returncode == 0, result.stderr
        assert (bench.tmp / "found.png").stat().st_size > 0
        return result.stdout.strip()

    return act


group.works(
    "no home directory, a locale that is not UTF-8, PYTHONOPTIMIZE=2",
    "8",
    in_environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONOPTIMIZE="2"),
)
group.works(
    "every warning an error (`-W error`)",
    "8",
    in_environment(
        "-W", "error", "-W", "ignore::defectcam.exceptions.FewDefectsWarning", PYTHONHASHSEED="7"
    ),
)


def clock_jumps(bench: Bench) -> Any:
    import time

    times = iter(range(10**6, 0, -1000))
    bench.patch.setattr(time, "time", lambda: float(next(times)))
    return min(bench.fit().history_["seconds"]) >= 0


group.works("a clock that goes backwards", True, clock_jumps)
