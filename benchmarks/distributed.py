"""Many images on Ray, on this machine: what it costs per image, and what a killed worker costs.

    python benchmarks/distributed.py

Trains quickly on generated parts (or takes --model) and localises JPEG files of them, in turn by a
plain loop in this process with one thread, by one worker and by two; --repeats times. Given are the
medians, of the time that passes and of the processors' time, which other programs hardly change:
that of the workers per image, and that of all other processes of Ray and of this program as a share
of one processor, which they take whether much is done or little. They are taken from the first part
on disk to the last but one: what is before, the start of the workers, is paid once and given by
itself. Then a worker is killed by SIGKILL, and the rows in the Parquet files are compared with the
plain loop's. One image in fifty is cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from PIL import Image
from printing import print_line
from pyarrow import parquet

from defectcam import DefectCAMClassifier, distributed, load
from defectcam.datasets import make_defects
from defectcam.images import ImageReadError
from defectcam.tables import encode_rows, error_row, result_row

IMAGE_SIZE = 512  # pixels of a generated part's side, as JPEG
N_PICTURES = 50  # that are different; one of them is cut off


def write_images(folder: Path, n_images: int) -> list[str]:
    """Write generated parts as JPEG files, the last of every `N_PICTURES` cut off."""
    parts = make_defects(n_samples=N_PICTURES, image_size=IMAGE_SIZE, random_state=0)
    folder.mkdir()
    for number, image in enumerate(parts.images):
        Image.fromarray(image).save(folder / f"{number:06d}.jpg", quality=92)
    last = folder / f"{N_PICTURES - 1:06d}.jpg"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    for number in range(N_PICTURES, n_images):
        shutil.copy(folder / f"{number % N_PICTURES:06d}.jpg", folder / f"{number:06d}.jpg")
    return sorted(str(path) for path in folder.iterdir())


def train(path: Path) -> Path:
    parts = make_defects(n_samples=40, image_size=128, random_state=1)
    clf = DefectCAMClassifier(cv=None, max_epochs=1, augmentation="none", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 40 images are few, and are said to be
        clf.fit(parts.images, parts.types).save(path)
    return path


def plain_loop(clf: DefectCAMClassifier, paths: list[str], output: Path) -> list[dict[str, Any]]:
    """Localise batch by batch, as anybody would; write one Parquet file."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), clf.batch_size):
        batch = paths[start : start + clf.batch_size]
        try:
            rows += [{**result_row(found), "error": None} for found in clf.localize_iter(batch)]
        except ImageReadError:
            del rows[start:]
            rows += [one_by_one(clf, path) for path in batch]
    output.write_bytes(encode_rows(rows, "parquet"))
    return rows


def one_by_one(clf: DefectCAMClassifier, path: str) -> dict[str, Any]:
    try:
        return {**result_row(clf.localize(path)), "error": None}
    except ImageReadError as error:
        return error_row(str(error), path)


class Clock:
    """Times a call from its first part on disk, at `start`, to the last but one."""

    def __init__(self, output: Path, n_parts: int) -> None:
        self._output, self._n_parts = output, n_parts
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        self._first = self._at(1)
        self._last = self._at(self._n_parts - 1)  # at the last one, workers may just have ended

    def _at(self, n_parts: int) -> tuple[float, ...]:
        while (there := len(list(self._output.glob("part-*")))) < n_parts:
            time.sleep(0.02)
        of_workers = processor_seconds(workers())
        others = time.process_time() + processor_seconds(descendants()) - of_workers
        return there, time.perf_counter(), of_workers, others

    def per_part(self) -> tuple[float, float, float]:
        """Return seconds that passed, processor seconds of workers, and of all else."""
        self._thread.join()
        n_parts, *seconds = (b - a for a, b in zip(self._first, self._last, strict=True))
        wall, of_workers, others = (value / n_parts for value in seconds)
        return wall, of_workers, others

    @property
    def start(self) -> float:
        return self._first[1]


def processor_seconds(processes: Iterable[int]) -> float:
    """Sum up what these have used."""
    return sum(
        sum(map(int, line.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
        for process in processes
        if (line := text_of(process, "stat"))
    )


def measure(args: argparse.Namespace, folder: Path, model: Path) -> dict[str, Any]:
    paths = write_images(folder / "images", args.images)
    clf = load(model, device="cpu").set_params(n_jobs=1)
    plain_loop(clf, paths[: 2 * clf.batch_size], folder / "plain.parquet")  # to warm up
    names = ["plain", *map(str, args.workers)]
    walls, processors = {n: [] for n in names}, {n: [] for n in names}
    start, others = [], []
    for repeat in range(args.repeats):
        began = time.perf_counter(), time.process_time()
        rows = plain_loop(clf, paths, folder / "plain.parquet")
        walls["plain"].append((time.perf_counter() - began[0]) / len(paths))
        processors["plain"].append((time.process_time() - began[1]) / len(paths))
        for n_workers in args.workers:
            output = folder / f"{n_workers}-{repeat}"
            clock = Clock(output, -(-len(paths) // args.part_size))
            called = time.perf_counter()
            distributed.localize(
                paths, model, output=output, part_size=args.part_size, n_workers=n_workers
            )
            wall, of_workers, of_others = clock.per_part()
            walls[str(n_workers)].append(wall / args.part_size)
            processors[str(n_workers)].append(of_workers / args.part_size)
            others.append(of_others / wall)
            start.append(clock.start - called - args.part_size * walls["plain"][-1])
    return {
        "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
        "versions": {"ray": ray.__version__, "torch": torch.__version__},
        "images": len(paths),
        "part_size": args.part_size,
        "repeats": args.repeats,
        "bytes_per_image": sum(os.path.getsize(path) for path in paths) / len(paths),
        "parquet_bytes_per_image": (folder / "plain.parquet").stat().st_size / len(paths),
        "start_seconds": statistics.median(start),
        "ms_per_image": {name: 1000 * statistics.median(walls[name]) for name in names},
        "processor_ms_per_image": {
            name: 1000 * statistics.median(processors[name]) for name in names
        },
        "others_share_of_a_processor": statistics.median(others),
        "kill": kill(args, paths, model, folder / "killed", rows),
    }


def kill(
    args: argparse.Namespace,
    paths: list[str],
    model: Path,
    output: Path,
    expected: list[dict[str, Any]],
) -> dict[str, Any]:
    """Kill a worker when a third of the parts is there; compare with the plain loop's rows."""
    killed: list[int] = []

    def kill_one() -> None:
        while len(list(output.glob("part-*"))) < len(paths) / args.part_size / 3:
            time.sleep(0.01)
        killed.extend(list(workers())[:1])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    done = distributed.localize(
        paths, model, output=output, part_size=args.part_size, n_workers=max(args.workers)
    )
    killer.join()
    found = parquet.read_table(output).to_pylist()
    counts = Counter(row["image"] for row in found)
    by_name = {row["image"]: row for row in expected}
    read = [(row, by_name[row["image"]]) for row in found if row["error"] is None]
    return {
        "killed": len(killed),
        "seconds": done.seconds,
        "rows": len(found),
        "lost": len(set(paths) - set(counts)),
        "doubled": sum(count > 1 for count in counts.values()),
        "errors": done.n_errors,
        "errors_of_plain_loop": sum(row["error"] is not None for row in expected),
        "other_labels": sum(ours["label"] != theirs["label"] for ours, theirs in read),
        "other_boxes": sum(ours["boxes"] != theirs["boxes"] for ours, theirs in read),
        "largest_difference_of_probability": max(
            abs(ours["probability"] - theirs["probability"]) for ours, theirs in read
        ),
    }


def workers() -> Iterator[int]:
    """List the workers that this program's Ray has started."""
    for process in descendants():
        command = text_of(process, "cmdline")
        if command.startswith("ray::") and "_PartWriter" in command:
            yield process


def descendants() -> list[int]:
    """List the processes that this one has started, and those that they have."""
    parents = {}
    for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if status := text_of(process, "status"):
            parents[process] = int(status.split("PPid:")[1].split()[0])
    found, added = set(), {os.getpid()}
    while added:
        added = {process for process, parent in parents.items() if parent in added}
        found |= added
    return sorted(found)


def text_of(process: int, name: str) -> str:
    try:
        return Path("/proc", str(process), name).read_text()
    except OSError:  # it has just ended
        return ""


def print_tables(figures: dict[str, Any]) -> None:
    wall, processor = figures["ms_per_image"], figures["processor_ms_per_image"]
    columns = ("ms per image", "processor ms per image", "of the plain loop's", "images per second")
    print_line("", *columns, first=True)
    for name, ms in wall.items():
        titles = {"plain": "plain loop, one thread", "1": "1 worker"}
        ratio = processor[name] / processor["plain"]
        cells = (f"{ms:.1f}", f"{processor[name]:.1f}", f"{ratio:.2f}", f"{1000 / ms:.1f}")
        print_line(titles.get(name, f"{name} workers"), *cells)
    share = figures["others_share_of_a_processor"]
    print(f"\nall other processes: {share:.2f} of a processor")
    print(f"start of the workers: {figures['start_seconds']:.1f} s")
    print(
        f"bytes per image: {figures['bytes_per_image']:.0f} in, "
        f"{figures['parquet_bytes_per_image']:.0f} out"
    )
    print_line(*(name.replace("_", " ") for name in figures["kill"]), first=True)
    cells = figures["kill"].values()
    print_line(*(f"{cell:.2g}" if isinstance(cell, float) else cell for cell in cells))


def is_right(figures: dict[str, Any]) -> bool:
    outcome = figures["kill"]
    return (
        outcome["killed"] == 1
        and outcome["rows"] == figures["images"]
        and outcome["lost"] == outcome["doubled"] == outcome["other_labels"] == 0
        and outcome["errors"] == outcome["errors_of_plain_loop"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--part-size", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="runs whose median is given")
    parser.add_argument("--model", type=Path, help="a file that `save` has written")
    parser.add_argument("--json", default="benchmarks/results/distributed.json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as Ray's workers have
    ray.init(
        num_cpus=max(args.workers),
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = args.model or train(folder / "part.safetensors")
            figures = measure(args, folder, model)
    finally:
        ray.shutdown()
    print_tables(figures)
    print(
        f"{os.cpu_count()} processors; " + ("all as it must be" if is_right(figures) else "WRONG")
    )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if is_right(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
