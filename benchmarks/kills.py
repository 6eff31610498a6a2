"""SIGKILL at random moments: is every file whole afterwards, and does a fit end as if undisturbed?

    python benchmarks/kills.py

Generated parts and networks of random weights. A process that fits with `resume`, saves, exports,
writes a report or watches a folder is killed at a moment drawn evenly from the time that an
undisturbed one takes. Afterwards

  fit     goes on from its checkpoint, and ends with the weights and the threshold of an undisturbed
          one; the checkpoint is gone
  save    the model file is one of the two models that were saved in turn, its digest is right
  export  the graph gives the answers of the old or of the new model
  report  the page is the old or the new one, up to its end
  watch   every line but a torn last one is whole and of another image; in the end each image has
          been judged once

and what was half-written is removed by the next process that writes into the folder. Needs an
operating system with fork.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import watch

from defectcam import DefectCAMClassifier, load
from defectcam.checkpoints import digest_of_weights
from defectcam.cli import main as defectcam
from defectcam.datasets import make_defects

Task = Callable[[], int | None]  # gives the exit code
PARTS = make_defects(16, 48, random_state=0)
PROBES = list(PARTS.images[:4])


class Tally(dict):
    """How many kills there were, how many of them were right afterwards, and what was left."""

    def __init__(self) -> None:
        super().__init__(kills=0, right=0, left_behind=0, seconds=0.0)

    def add(self, is_right: bool, n_left: int = 0) -> None:
        self["kills"] += 1
        self["right"] += bool(is_right)
        self["left_behind"] += n_left


# --- Processes --------------------------------------------------------------------------------


def start(task: Task) -> Any:
    """Run a task in a child; it has all that is imported here."""

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        warnings.simplefilter("ignore")
        sys.exit(task())

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def run(task: Task) -> float:
    """Run a task undisturbed; return the seconds that it took."""
    began = time.monotonic()
    child = start(task)
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{task.__name__} failed with exit code {child.exitcode}")
    return time.monotonic() - began


def killed(task: Task, seconds: float) -> bool:
    """Kill a task after some seconds; False if it was done by then."""
    child = start(task)
    child.join(seconds)
    was_running = child.is_alive()
    child.kill()
    child.join()
    return was_running


def kills(task: Task, n: int, rng: random.Random, seconds: float) -> Iterator[None]:
    """Kill a task n times; each time, what comes of it is looked at before the next."""
    while n:
        if killed(task, rng.uniform(0, seconds)):
            n -= 1
            yield


def left_in(folder: Path) -> int:
    return len(list(folder.rglob("*.tmp")))


# --- What is killed ---------------------------------------------------------------------------


def classifier(seed: int) -> DefectCAMClassifier:
    return DefectCAMClassifier(
        "test_efficientnet",
        weights=None,
        image_size=48,
        codebook_size=16,
        max_epochs=4,
        batch_size=4,
        augmentation="none",
        cv=2,
        device="cpu",
        precision="float32",  # as the exported graph
        n_jobs=1,
        random_state=seed,
    )


def make_models(folder: Path) -> list[Path]:
    """Fit two classifiers that answer differently."""
    paths = [folder / "old.safetensors", folder / "new.safetensors"]

    def fit() -> None:
        for seed, path in enumerate(paths):
            classifier(seed).fit(PARTS.images, PARTS.types).save(path)

    run(fit)
    return paths


def of_fit(folder: Path, models: list[Path], n: int, rng: random.Random) -> Tally:
    resume, model, tally = folder / "fit.checkpoint", folder / "part.safetensors", Tally()

    def fit() -> None:
        classifier(0).fit(PARTS.images, PARTS.types, resume=resume).save(model)

    seconds = run(fit)
    expected = fingerprint(model)
    for _ in kills(fit, n, rng, seconds):
        n_left = left_in(folder)
        tally["went_on"] = tally.get("went_on", 0) + resume.exists()
        model.unlink(missing_ok=True)
        run(fit)
        tally.add(
            fingerprint(model) == expected and not resume.exists() and not left_in(folder), n_left
        )
    return tally


def fingerprint(model: Path) -> tuple[str, float]:
    clf = load(model)
    return digest_of_weights(clf.network_), clf.threshold_


def of_save(folder: Path, models: list[Path], n: int, rng: random.Random) -> Tally:
    model, tally = folder / "part.safetensors", Tally()
    classifiers = [load(path) for path in models]
    whole = [fingerprint(path) for path in models]

    def save() -> None:
        for _ in range(20):
            for clf in classifiers:
                clf.save(model)

    seconds = run(save)
    for _ in kills(save, n, rng, seconds):
        n_left, is_whole = left_in(folder), fingerprint(model) in whole
        run(lambda: classifiers[0].save(folder / "other.safetensors"))
        tally.add(is_whole and not left_in(folder), n_left)
    return tally


def of_export(folder: Path, models: list[Path], n: int, rng: random.Random) -> Tally:
    import onnx  # noqa: F401  the children have them then
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401

    from defectcam.runtime import Inspector

    target, tally = folder / "part.onnx", Tally()
    old, new = (load(path) for path in models)
    run(lambda: old.export(target))
    answers = [[one.probability for one in clf.localize(PROBES)] for clf in (old, new)]

    def export() -> None:
        new.export(target)

    before = target.read_bytes()
    for _ in kills(export, n, rng, run(export)):
        n_left, found = (
            left_in(folder),
            [one.probability for one in Inspector(target).localize(PROBES)],
        )
        same = [np.allclose(found, answer, atol=1e-4) for answer in answers]
        run(lambda: old.save(folder / "other.safetensors"))
        tally.add(any(same) and not left_in(folder), n_left)
        target.write_bytes(before)
    return tally


def of_report(folder: Path, models: list[Path], n: int, rng: random.Random) -> Tally:
    page, tally, clf = folder / "report.html", Tally(), load(models[0])

    def report(title: str = "the new one") -> None:
        clf.report(PARTS.images, PARTS.types, page, title=title)

    run(lambda: report("the old one"))
    before = page.read_bytes()
    for _ in kills(report, n, rng, run(report)):
        n_left, found = left_in(folder), page.read_bytes()
        is_new = b"the new one" in found and found.rstrip().endswith(b"</html>")
        run(lambda: clf.save(folder / "other.safetensors"))
        tally.add((found == before or is_new) and not left_in(folder), n_left)
        page.write_bytes(before)
    return tally


def of_watch(folder: Path, models: list[Path], n: int, rng: random.Random) -> Tally:
    line, output, tally = folder / "line", folder / "results", Tally()
    line.mkdir()

    def judge() -> int:
        options = ["-o", str(output), "--device", "cpu", "--quiet"]
        return defectcam(["watch", str(models[0]), str(line), *options])

    n_images, n_sent = 10 * n, 0
    for _ in range(n):
        child, until = start(judge), time.monotonic() + rng.uniform(0.2, 2.0)
        for sent in range(n_sent, n_sent + 10):
            time.sleep(0.02)
            picture = watch.encoded(sent, PARTS.images[sent % len(PARTS.images)])
            (line / watch.name_of(sent)).write_bytes(picture)
        n_sent += 10
        child.join(max(0.0, until - time.monotonic()))
        child.kill()
        child.join()
        names = [row["image"] for row in watch.lines_of(output)]
        tally.add(len(names) == len(set(names)), left_in(output) if output.exists() else 0)
    child = start(judge)
    watch.wait(lambda: watch.n_lines(output) >= n_images)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    checked = {**watch.check(watch.lines_of(output), n_images, output), "images": n_images}
    if not watch.is_right({**checked, "exit_code": child.exitcode}):
        tally["right"] = 0
    return tally


KINDS = {
    "fit": of_fit,
    "save": of_save,
    "export": of_export,
    "report": of_report,
    "watch": of_watch,
}


def measure(kinds: list[str], n: int, seed: int) -> dict[str, Tally]:
    """Kill each kind of process n times."""
    rng, tallies = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        for kind in kinds:
            own, began = Path(folder, kind), time.monotonic()
            own.mkdir()
            tallies[kind] = KINDS[kind](own, models, n, rng)
            tallies[kind]["seconds"] = round(time.monotonic() - began, 1)
    return tallies


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the tally there")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # others are missing in a forked process, which would wait for them
    tallies = measure(args.only, args.kills, args.seed)
    print("| killed | kills | right afterwards | left half-written, removed later |")
    print("|---|---|---|---|")
    for kind, tally in tallies.items():
        print(f"| {kind} | {tally['kills']} | {tally['right']} | {tally['left_behind']} |")
    right, n = (sum(tally[name] for tally in tallies.values()) for name in ("right", "kills"))
    print(f"{right} of {n}")
    if args.json is not None:
        args.json.write_text(json.dumps(tallies, indent=2) + "\n")
    return 0 if right == n else 1


if __name__ == "__main__":
    sys.exit(main())
