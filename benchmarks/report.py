"""Size of a report and how quickly it is made, opens and follows its slider.

    python benchmarks/report.py path/to/pill path/to/deeppcb --n-images 1000

Of each data set in the MVTec AD layout a classifier is fitted on the training part of a split, as
quickly as it can (one epoch, no folds): the fit is not what is measured. The report is that of the
test part, and, with --n-images, of that many images of the first set, its own ones repeated. It is
opened in Chromium through Playwright, in a new browser each time: `opens` is the time from the
navigation to the first picture on the screen, `slider` the milliseconds from a move of the decision
threshold to the end of the frame that shows it, over a sweep of the whole range. Everything runs on
the processor; leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocols import DataSet

from defectcam import DefectCAMClassifier
from defectcam.report import write_report

SEED = 0
N_OPENED = 3
N_MOVES = 120
FIRST_PICTURE = """() => {
    const image = document.querySelector('#groups .card img');
    return image !== null && image.complete && image.naturalWidth > 0;
}"""
SWEEP = """async (n) => {
    const slider = document.getElementById('threshold');
    const [low, high] = [Number(slider.min), Number(slider.max)];
    const frame = () => new Promise(requestAnimationFrame);
    const task = () => new Promise((done) => {
        const channel = new MessageChannel();
        channel.port1.onmessage = done;
        channel.port2.postMessage(0);
    });
    const took = [];
    for (let i = 0; i <= n; i += 1) {
        await frame();
        const start = performance.now();
        slider.value = low + (i / n) * (high - low);
        slider.dispatchEvent(new Event('input'));
        await frame();
        await task();  // after layout and paint of that frame
        took.push(performance.now() - start);
    }
    return took;
}"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", help="folders in the MVTec AD layout")
    parser.add_argument("--n-images", type=int, help="also a report of so many images")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--same-stem", nargs="*", default=["deeppcb"], metavar="SET")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the reports there")
    options = parser.parse_args(argv)
    columns = ["report", "images", "MB", "made, s", "ms an image", "opens, s"]
    columns += ["slider, ms: median", "95 %", "most"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        for number, place in enumerate(options.sets):
            data = DataSet.read(place, options.same_stem)
            clf, test = fitted(data, options.image_size)
            show(measure(data, clf, test, folder / f"{data.name}.html", options.chromium))
            if number == 0 and options.n_images:
                many = np.resize(test, options.n_images)
                path = folder / f"{data.name}-{options.n_images}.html"
                show(measure(data, clf, many, path, options.chromium))


def fitted(data: DataSet, image_size: int) -> tuple[DefectCAMClassifier, np.ndarray]:
    train, test = data.split(SEED, 0.2)
    clf = DefectCAMClassifier(
        image_size=image_size,
        target="type",
        cv=None,
        max_epochs=1,
        augmentation="none",
        random_state=SEED,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(list(data.images[train]), data.types[train])
    return clf, test


def measure(
    data: DataSet, clf: DefectCAMClassifier, test: np.ndarray, path: Path, chromium: str
) -> dict[str, Any]:
    masks = None if data.masks is None else [data.masks[i] for i in test]
    start = time.perf_counter()
    write_report(clf, list(data.images[test]), data.types[test], path, masks)
    seconds = time.perf_counter() - start
    opened, moves = in_browser(path, chromium)
    return {
        "report": path.stem,
        "images": len(test),
        "MB": os.path.getsize(path) / 1e6,
        "made": seconds,
        "opens": float(np.median(opened)),
        "moves": moves,
    }


def in_browser(path: Path, chromium: str) -> tuple[list[float], list[float]]:
    """Open the report some times; in the last browser move the slider."""
    from playwright.sync_api import sync_playwright

    opened, moves = [], []
    with sync_playwright() as playwright:
        for _ in range(N_OPENED):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            start = time.perf_counter()
            page.goto(path.resolve().as_uri(), wait_until="commit")
            page.wait_for_function(FIRST_PICTURE)
            opened.append(time.perf_counter() - start)
            page.wait_for_load_state("load")
            moves = page.evaluate(SWEEP, N_MOVES)
            browser.close()
    return opened, moves


def show(row: dict[str, Any]) -> None:
    median, high, most = np.percentile(row["moves"], [50, 95, 100])
    each = 1000 * row["made"] / row["images"]
    print(
        f"| {row['report']} | {row['images']} | {row['MB']:.1f} | {row['made']:.0f} | {each:.0f} | "
        f"{row['opens']:.2f} | {median:.0f} | {high:.0f} | {most:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
