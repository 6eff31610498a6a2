"""The same fit in different circumstances: are its weights and answers the same bits?

    python benchmarks/determinism.py

A classifier of a random network is fitted on generated parts, once as the reference and then with
one circumstance changed: again in the same process, in other processes, with other hash seeds of
Python, from files that were written to disk in another order, with several reading threads, with
features on disk, with two threads of torch. Printed is the largest difference of the weights: zero
means the same bits. What may differ is in `CIRCUMSTANCES` with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from defectcam import DefectCAMClassifier
from defectcam.datasets import make_defects

SIZE = 48


class Circumstance(NamedTuple):
    """What is changed, how far answers may move for it, and why."""

    how: dict[str, Any]
    tolerance: float | None = 0.0  # of a probability; None: it says nothing, weights differ
    reason: str = "same bits"


CIRCUMSTANCES = {
    "again in the same process": Circumstance({"times": 2}),
    "in another process": Circumstance({}),
    "PYTHONHASHSEED=1": Circumstance({"hash_seed": "1"}),
    "PYTHONHASHSEED=random": Circumstance({"hash_seed": "random"}),
    "files written in another order": Circumstance({"shuffled": True}),
    "n_jobs=4": Circumstance({"parameters": {"n_jobs": 4}}),
    "cache_size=0": Circumstance({"parameters": {"cache_size": 0}}),
    "global generators moved before": Circumstance({"global_seed": 5}),
    "two threads of torch in fit": Circumstance(
        {"threads": 2}, None, "sums in another order, which training amplifies"
    ),
}


class Answer(NamedTuple):
    """What one fit ended with."""

    weights: NDArray[np.float32]
    probabilities: NDArray[np.float64]


def write_parts(folder: Path, shuffled: bool) -> Path:
    """Write a folder per class; the order in which a disk lists files follows their making."""
    data = make_defects(16, SIZE, random_state=0)
    order = list(range(len(data.images)))
    if shuffled:
        random.Random(1).shuffle(order)
    for number in order:
        path = folder / "parts" / str(data.types[number]) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), data.images[number][..., ::-1])
    return folder / "parts"


def answer(parts: Path, how: dict[str, Any]) -> Answer:
    """Fit, in this process, and answer."""
    np.random.seed(how.get("global_seed", 0))
    torch.manual_seed(how.get("global_seed", 0))
    torch.set_num_threads(how.get("threads", 1))
    parameters = {"n_jobs": 1, **how.get("parameters", {})}
    for _ in range(how.get("times", 1)):
        clf = DefectCAMClassifier(
            "test_efficientnet",
            weights=None,
            image_size=SIZE,
            codebook_size=16,
            max_epochs=4,
            learning_rate=1e-2,  # it has to learn something, or all answers are one number
            batch_size=4,
            cv=2,
            device="cpu",
            random_state=0,
            **parameters,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few images are said to be few
            clf.fit(parts)
    torch.set_num_threads(how.get("predict_threads", how.get("threads", 1)))
    clf.set_params(batch_size=how.get("batch_size", 4))
    weights = [tensor.flatten().float().numpy() for tensor in clf.network_.state_dict().values()]
    return Answer(np.concatenate(weights), clf.predict_proba(parts))


def start(hows: list[dict[str, Any]], folder: Path) -> subprocess.Popen[bytes]:
    """Answer under several circumstances, one after the other, in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": hows[0].get("hash_seed", "0")}
    command = [sys.executable, __file__, "--answer", str(folder), json.dumps(hows)]
    return subprocess.Popen(command, env=environment)


def answer_all(hows: list[dict[str, Any]], folder: Path) -> None:
    """Do what `start` says, in this process; `read` gives what comes of it."""
    for number, how in enumerate(hows):
        parts = write_parts(folder / str(number), how.get("shuffled", False))
        np.savez(folder / f"{number}.npz", **answer(parts, how)._asdict())


def read(folder: Path, number: int) -> Answer:
    with np.load(folder / f"{number}.npz") as arrays:
        return Answer(arrays["weights"], arrays["probabilities"])


def compare(names: list[str]) -> dict[str, dict[str, Any]]:
    """Fit in each circumstance, and tell how far that is from the reference.

    Circumstances that are another process, by name or by its hash seed, get one; all others follow
    the reference in its process.
    """
    apart = [name for name in names if "process" in name or "hash_seed" in CIRCUMSTANCES[name].how]
    apart = [name for name in apart if "same process" not in name]
    together = [name for name in names if name not in apart]
    groups: list[list[str | None]] = [[None, *together], *([name] for name in apart)]
    found: dict[str | None, Answer] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(groups))]
        processes = []
        for group, place in zip(groups, places, strict=True):
            place.mkdir()
            processes.append(start([CIRCUMSTANCES[n].how if n else {} for n in group], place))
        for process, group, place in zip(processes, groups, places, strict=True):
            if process.wait():
                raise RuntimeError(f"the process of {group} failed")
            found |= {name: read(place, number) for number, name in enumerate(group)}
    return {name: _row(found[None], found[name], CIRCUMSTANCES[name]) for name in names}


def _row(reference: Answer, other: Answer, circumstance: Circumstance) -> dict[str, Any]:
    weights = float(np.abs(other.weights - reference.weights).max())
    distance = float(np.abs(other.probabilities - reference.probabilities).max())
    limit = circumstance.tolerance
    return {
        "weights": weights,
        "probability": distance,
        "tolerance": limit,
        "reason": circumstance.reason,
        "is_right": limit is None or (distance <= limit and (limit > 0 or weights == 0)),
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("| what is changed | weights, largest difference | allowed | |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        allowed = "any" if row["tolerance"] is None else f"{row['tolerance']:.0e}"
        allowed = "0" if row["tolerance"] == 0 else allowed
        print(
            f"| {name} | {row['weights']:.2g} | {allowed} "
            f"| {row['reason'] if row['is_right'] else 'WRONG'} |"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CIRCUMSTANCES, default=list(CIRCUMSTANCES))
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--answer", nargs=2, help=argparse.SUPPRESS)  # what the processes are told
    args = parser.parse_args(argv)
    if args.answer:
        answer_all(json.loads(args.answer[1]), Path(args.answer[0]))
        return 0
    rows = compare(args.only)
    print_table(rows)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["is_right"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
