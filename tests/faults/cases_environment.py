"""The machine around: disks, processes, threads, environment variables."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from PIL import Image
from sklearn.model_selection import cross_val_score

import defectcam
from defectcam.watch import Watcher
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
    real = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if bench.tmp not in self.parents:
            return real(self, *args, **options)
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


IN_POOL = """
import multiprocessing, pickle, sys
import numpy as np
import torch
from defectcam import load

def answer_of(pickled, images):
    torch.set_num_threads(1)  # sums in another order are other bits
    return pickle.loads(pickled).predict_proba(images).tobytes()

if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked child has no threads of its parent's pools
    method, model, images = sys.argv[1], pickle.dumps(load(sys.argv[2])), np.load(sys.argv[3])
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply_async(answer_of, (model, images)).get(timeout=200)
    print(found == answer_of(model, images))
"""


def in_process(method: str) -> Callable[[Bench], Any]:
    """Let a program do it whose threads are its own: those of the tests must not be forked."""

    def act(bench: Bench) -> Any:
        bench.model.save(bench.tmp / "part.safetensors")
        np.save(bench.tmp / "images.npy", bench.images)
        (bench.tmp / "pool.py").write_text(IN_POOL)
        arguments = [bench.tmp / "pool.py", method, "part.safetensors", "images.npy"]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=bench.tmp,
            capture_output=True,
            text=True,
            check=True,
            timeout=250,
        )
        return done.stdout.strip() == "True"

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
    times = iter(range(10**6, 0, -1000))
    bench.patch.setattr(time, "time", lambda: float(next(times)))
    return min(bench.fit().history_["seconds"]) >= 0


def clock_jumps_while_watching(bench: Bench) -> Any:
    """Judge files from the past and the future; return how many, and how many a second time."""
    times = iter(range(10**6, 0, -1000))
    bench.patch.setattr(time, "time", lambda: float(next(times)))
    (bench.tmp / "in").mkdir()
    for number, stamp in enumerate((0, 1_000_000_000, 7_000_000_000)):
        path = bench.tmp / "in" / f"{number}.png"
        Image.fromarray(bench.images[number]).save(path)
        os.utime(path, (stamp, stamp))
    counts = []
    for _ in range(2):
        judge = bench.model.localize_iter
        with Watcher(bench.tmp / "in", bench.tmp / "out", judge, settle=0) as watcher:
            watcher.judge(watcher.look())
            counts.append(watcher.tally.n_done)
    return counts


group.works("a clock that goes backwards", True, clock_jumps)
group.works(
    "a clock that goes backwards while a folder is watched, and files from the future",
    [3, 0],
    clock_jumps_while_watching,
)


# --- Workers of joblib --------------------------------------------------------------------------


def in_workers(bench: Bench, work: Callable[[], Any]) -> Any:
    """Let joblib start workers of its own; return or raise what comes, once none of them is left.

    Whatever they leave behind in the folder of temporary files is an error.
    """
    room = bench.tmp / "room"
    room.mkdir()
    for variable in ("TMPDIR", "JOBLIB_TEMP_FOLDER"):
        bench.patch.setenv(variable, str(room))
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    try:
        return work()
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        deadline = time.monotonic() + 20  # joblib's resource tracker removes files in its own time
        while left := [path.name for path in room.rglob("*") if _is_left(path)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def _is_left(path: Path) -> bool:
    """Whether it is a file, and not one that torch before 2.8 writes when it is imported."""
    return not path.is_dir() and path.name != "_remote_module_non_scriptable.py"


class Killed:
    """A callback that kills the process of its training in the middle, as the kernel does."""

    def __call__(self, estimator: Any, record: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_worker(bench: Bench) -> Any:
    clf = bench.new(callbacks=[Killed()], cache_size=0)
    return in_workers(
        bench,
        lambda: cross_val_score(clf, bench.images, bench.labels, cv=2, n_jobs=2),
    )


if hasattr(signal, "SIGKILL"):
    group.refused(
        "a worker of a cross-validation that is killed",
        TerminatedWorkerError,
        "A worker process managed by the executor was unexpectedly terminated",
        killed_worker,
    )


def read_with_little_memory(path: str) -> Any:
    import resource

    from defectcam.images import read_image

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**26, resource.RLIM_INFINITY))
    return read_image(path).shape


def worker_without_memory(bench: Bench) -> Any:
    path = str(bench.tmp / "large.png")
    Image.new("RGB", (9000, 9000)).save(path, compress_level=1)
    tasks = [joblib.delayed(read_with_little_memory)(path)] * 2
    return in_workers(bench, lambda: joblib.Parallel(n_jobs=2)(tasks))


if sys.platform == "linux":
    group.refused(
        "a worker whose memory does not suffice for an image",
        MemoryError,
        "",
        worker_without_memory,
    )


def no_shared_memory(bench: Bench) -> Any:
    """Cross-validate on images large enough to be shared, where there is no /dev/shm."""
    from joblib import _memmapping_reducer

    bench.patch.setattr(_memmapping_reducer, "SYSTEM_SHARED_MEM_FS", str(bench.tmp / "none"))
    images = np.repeat(np.repeat(bench.images, 16, 1), 16, 2)
    clf = bench.new(image_size=32)
    return in_workers(
        bench, lambda: len(cross_val_score(clf, images, bench.labels, cv=2, n_jobs=2))
    )


group.works("no /dev/shm", 2, no_shared_memory)
