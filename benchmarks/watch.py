"""A line camera and `defectcam watch`, which is killed in between: is each image judged once?

    python benchmarks/watch.py

Images of generated parts arrive at a steady rate, as a camera writes them: in two pieces under
their final name, one in fifty cut off for good. `defectcam watch` runs with a quickly trained model
of random weights, is killed twice by SIGKILL and started anew, and stopped by SIGTERM at the end.
Printed are the tally of the results, checked against what was sent, the throughput, and the latency
from the last byte of an image to its line of results: of all images, and of those that came while
no process was starting or working off what had come meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from defectcam import DefectCAMClassifier
from defectcam.datasets import make_defects

ONE_IN = 50  # is corrupt
IMAGE_SIZE = 128


def train(path: Path, backbone: str, image_size: int) -> None:
    data = make_defects(40, IMAGE_SIZE, random_state=0)
    weights = None if backbone.startswith("test_") else "imagenet"
    clf = DefectCAMClassifier(
        backbone,
        weights=weights,
        image_size=image_size,
        cv=None,
        max_epochs=1,
        augmentation="none",
        codebook_size=64,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 40 images are few, and are said to be
        clf.fit(data.images, data.types).save(path)


def encoded(number: int, image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    data = file.getvalue()
    return data[: len(data) // 2] if is_corrupt(number) else data


def is_corrupt(number: int) -> bool:
    return number % ONE_IN == ONE_IN // 2


def name_of(number: int) -> str:
    return f"{number:05d}.png"


def start(model: Path, line: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "defectcam", "watch", str(model), str(line)]
    command += ["-o", str(output), "--device", "cpu", "--report-every", "5"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


class StartUp:
    """Lasts until what had been sent when a process wrote its first line is done."""

    def __init__(self, done_before: int) -> None:
        self._done_before = done_before
        self._backlog: int | None = None

    def lasts(self, done: int, sent: int) -> bool:
        if self._backlog is None and done > self._done_before:
            self._backlog = sent - sent // ONE_IN - 1  # corrupt ones wait
        return self._backlog is None or done < self._backlog


def lines_of(output: Path) -> list[dict[str, Any]]:
    results = output / "results.jsonl"
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_bytes().split(b"\n")[:-1]]


def n_lines(output: Path) -> int:
    results = output / "results.jsonl"
    return results.read_bytes().count(b"\n") if results.exists() else 0


def run(
    folder: Path, n_images: int, rate: float, kills: int, backbone: str, image_size: int
) -> dict[str, Any]:
    model, line, output = folder / "part.safetensors", folder / "line", folder / "results"
    line.mkdir()
    train(model, backbone, image_size)
    images = make_defects(min(n_images, 100), IMAGE_SIZE, random_state=1).images
    pictures = [encoded(i, images[i % len(images)]) for i in range(n_images)]
    kill_at = [(k + 1) * n_images // (kills + 1) for k in range(kills)]
    written: dict[str, float] = {}
    disturbed: set[str] = set()
    process = start(model, line, output)
    try:
        wait(lambda: (output / ".results.jsonl.lock").exists())
        began, start_up = time.time(), StartUp(0)
        for number, data in enumerate(pictures):
            time.sleep(max(0.0, began + number / rate - time.time()))
            with (line / name_of(number)).open("wb") as file:
                file.write(data[: len(data) // 3])
                file.flush()
                file.write(data[len(data) // 3 :])
            written[name_of(number)] = time.time()
            if number in kill_at:
                process.kill()
                process.wait()
                process, start_up = start(model, line, output), StartUp(n_lines(output))
            if start_up.lasts(n_lines(output), number + 1):
                disturbed.add(name_of(number))
        sent = time.time()
        wait(lambda: n_lines(output) >= n_images)
        done = time.time()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    rows = lines_of(output)
    return {
        **check(rows, n_images, output),
        "exit_code": code,
        "images": n_images,
        "sent_per_second": n_images / (sent - began),
        "done_per_second": n_images / (done - began),
        "latency": latency(rows, written, set()),
        "latency_undisturbed": latency(rows, written, disturbed),
    }


def check(rows: list[dict[str, Any]], n_images: int, output: Path) -> dict[str, Any]:
    counts = Counter(row["image"] for row in rows)
    corrupt = {name_of(i) for i in range(n_images) if is_corrupt(i)}
    listed = {row["image"] for row in rows if row["error"]}
    overlays = sum((output / row["overlay"]).is_file() for row in rows if row["overlay"])
    return {
        "once": sum(count == 1 for count in counts.values()),
        "repeated": sum(count > 1 for count in counts.values()),
        "lost": n_images - len(counts),
        "corrupt": len(corrupt),
        "corrupt_listed": len(listed & corrupt),
        "wrongly_listed": len(listed - corrupt),
        "overlays": overlays,
        "left_over": len(list(output.rglob("*.tmp"))),
    }


def latency(
    rows: list[dict[str, Any]], written: dict[str, float], left_out: set[str]
) -> dict[str, float]:
    """Seconds from an image's last byte to its line; corrupt ones, which wait on purpose, not."""
    seconds = [
        datetime.fromisoformat(row["judged_at"]).timestamp() - written[row["image"]]
        for row in rows
        if not row["error"] and row["image"] not in left_out
    ]
    p50, p95 = np.percentile(seconds, [50, 95]) if seconds else (np.nan, np.nan)
    return {"p50": float(p50), "p95": float(p95), "n": len(seconds)}


def wait(condition: Any, seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("waited in vain")
        time.sleep(0.02)


def is_right(tally: dict[str, Any]) -> bool:
    return (
        tally["once"] == tally["images"]
        and tally["repeated"] == tally["lost"] == tally["wrongly_listed"] == 0
        and tally["corrupt_listed"] == tally["corrupt"]
        and tally["overlays"] == tally["images"] - tally["corrupt"]
        and tally["left_over"] == tally["exit_code"] == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rate", type=float, default=20.0, help="images a second")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--backbone", default="test_efficientnet", help="test_...: random weights")
    parser.add_argument("--image-size", type=int, default=96, help="of the network's input")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = run(
            Path(folder), args.images, args.rate, args.kills, args.backbone, args.image_size
        )
    print(json.dumps(tally, indent=2))
    for name in ("latency", "latency_undisturbed"):
        figures = tally[name]
        print(f"{name}: p50 {figures['p50']:.2f} s, p95 {figures['p95']:.2f} s ({figures['n']})")
    print(f"{os.cpu_count()} processors; " + ("all as it must be" if is_right(tally) else "WRONG"))
    return 0 if is_right(tally) else 1


if __name__ == "__main__":
    sys.exit(main())
