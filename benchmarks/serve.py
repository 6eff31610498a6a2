"""The service under load on loopback: throughput, latencies, and new model files meanwhile.

    python benchmarks/serve.py

Trains quickly on generated parts (or takes --model), starts `defectcam serve` in a process of its
own and asks it over 127.0.0.1, each client in a thread that sends the next image when it has the
answer, for --seconds at each of --clients. Then the model's file is replaced again and again while
clients ask. Everything is bounded and ends by itself. `localize` over the same files, in batches of
the same size and before the server is started, is what the network alone could do.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from printing import print_line

from defectcam import DefectCAMClassifier
from defectcam.datasets import make_defects
from defectcam.service.models import load_model

N_IMAGES = 64
IMAGE_SIZE = 512  # pixels of a generated part's side, as JPEG
RELOAD_CLIENTS = 8
MOST_SECONDS = 120  # per load: whatever is asked for, a load ends


class Load(NamedTuple):
    """What clients saw."""

    seconds: list[float]  # of each request
    statuses: Counter[Any]
    elapsed: float

    @property
    def rate(self) -> float:
        return self.statuses[200] / self.elapsed

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q)) * 1000

    @property
    def n_failed(self) -> int:
        return sum(n for status, n in self.statuses.items() if status != 200)


def write_images(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Write generated parts as JPEG files; return them and their types."""
    parts = make_defects(n_samples=N_IMAGES, image_size=IMAGE_SIZE, random_state=0)
    paths = []
    for number, image in enumerate(parts.images):
        paths.append(folder / f"{number:03d}.jpg")
        Image.fromarray(image).save(paths[-1], quality=92)
    return paths, np.asarray(parts.types)


@contextlib.contextmanager
def server(model: Path, *options: str) -> Iterator[int]:
    """Run `defectcam serve` on a free port of 127.0.0.1."""
    command = [sys.executable, "-m", "defectcam", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(
            int(found.group(1))
            for line in process.stderr
            if (found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line))
        )
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(port: int, bodies: Sequence[bytes], until: float, first: int) -> list[tuple[float, Any]]:
    """Send one image after the other; return seconds and status of each."""
    asked = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    number = first
    while time.perf_counter() < until:
        start = time.perf_counter()
        try:
            connection.request("POST", "/localize", bodies[number % len(bodies)])
            response = connection.getresponse()
            response.read()
            status: Any = response.status
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
            connection.close()
        asked.append((time.perf_counter() - start, status))
        number += 1
    connection.close()
    return asked


def put_under_load(port: int, bodies: Sequence[bytes], n_clients: int, seconds: float) -> Load:
    start = time.perf_counter()
    until = start + min(seconds, MOST_SECONDS)
    with ThreadPoolExecutor(n_clients) as pool:
        asking = [pool.submit(ask, port, bodies, until, n) for n in range(n_clients)]
        asked = [one for client in asking for one in client.result()]
    elapsed = time.perf_counter() - start
    return Load([s for s, _ in asked], Counter(status for _, status in asked), elapsed)


def get(port: int, address: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", address)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def batches(port: int) -> tuple[float, float]:
    """Return how many images and batches there have been."""
    text = get(port, "/metrics")
    images, number = (
        float(re.search(rf"^defectcam_batch_images_{name}\S* (\S+)$", text, re.M).group(1))
        for name in ("sum", "count")
    )
    return images, number


def measure_loads(port: int, bodies: Sequence[bytes], args: argparse.Namespace) -> None:
    put_under_load(port, bodies, 2, 2.0)  # warm-up
    columns = ("images per second", "p50 ms", "p95 ms", "p99 ms", "images per batch")
    print_line("clients", "requests", "failed", *columns, first=True)
    for n_clients in args.clients:
        images, number = batches(port)
        load = put_under_load(port, bodies, n_clients, args.seconds)
        images, number = (
            now - then for now, then in zip(batches(port), (images, number), strict=True)
        )
        latencies = (f"{load.percentile(q):.0f}" for q in (50, 95, 99))
        row = (f"{load.rate:.1f}", *latencies, f"{images / number:.1f}")
        print_line(n_clients, len(load.seconds), load.n_failed, *row)


def measure_reloads(port: int, bodies: Sequence[bytes], model: Path, seconds: float) -> None:
    data = model.read_bytes()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(put_under_load, port, bodies, RELOAD_CLIENTS, seconds)
        while not loading.done():
            beside = model.with_name("new")
            beside.write_bytes(data)
            os.replace(beside, model)
            time.sleep(2)
        load = loading.result()
    served = next(iter(json.loads(get(port, "/health"))["models"].values()))
    print_line("clients", "requests", "failed", "reloads", "p50 ms", "p99 ms", first=True)
    latencies = (f"{load.percentile(q):.0f}" for q in (50, 99))
    row = (RELOAD_CLIENTS, len(load.seconds), load.n_failed, served["n_reloads"], *latencies)
    print_line(*row)


def measure_localize(model: Path, paths: Sequence[Path], seconds: float) -> float:
    clf = load_model(model)
    clf.localize(paths[:8])
    start, n_images = time.perf_counter(), 0
    while time.perf_counter() - start < min(seconds, MOST_SECONDS):
        n_images += sum(1 for found in clf.localize(paths) if found.to_dict())
    return n_images / (time.perf_counter() - start)


def machine() -> str:
    busy = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return f"{os.cpu_count()} processors ({platform.machine()}), {busy}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help=".safetensors or .onnx; default: fitted")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of each load (default: 10)")
    args = parser.parse_args()
    print(f"{machine()}, JPEG files of {IMAGE_SIZE} x {IMAGE_SIZE} pixels")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, types = write_images(folder)
        model = folder / f"part{args.model.suffix if args.model else '.safetensors'}"
        if args.model is None:
            DefectCAMClassifier(max_epochs=1, cv=2, random_state=0).fit(paths, types).save(model)
        else:
            model.write_bytes(args.model.read_bytes())
        print(
            f"localize alone: {measure_localize(model, paths, args.seconds):.1f} images per second"
        )
        bodies = [path.read_bytes() for path in paths]
        with server(model, "--reload-interval", "0.5") as port:
            measure_loads(port, bodies, args)
            measure_reloads(port, bodies, model, args.seconds)


if __name__ == "__main__":
    main()
