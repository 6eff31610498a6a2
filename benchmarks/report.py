"""Size of a report and how quickly it is made, opens and follows its slider.

    python benchmarks/report.py path/to/pill path/to/deeppcb --n-images 1000

Of each data set in the MVTec AD layout a classifier is fitted on 80 images of the training part of
a split, as quickly as it can (one epoch, no folds): the fit is not what is measured. The report is
that of the test part; with --n-images, also one of so many images, in which those of the test part
are there again and again. It is opened in Chromium through Playwright, in a new browser each time.

  made       seconds, and those of the processor: where it is busy otherwise, the second is right
  opens      seconds from the navigation to the first picture on the screen; the median of three
  main       of these, seconds of work in the page's main thread
  slider     milliseconds from a move of the decision threshold to the end of the frame that shows
             it, over a sweep of the whole range; up to 17 are spent waiting for that frame
  work       milliseconds of work in the main thread for a move, the mean

Everything runs on the processor; leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocols import DataSet

from defectcam import DefectCAMClassifier
from defectcam.report import write_report

SEED = 0
N_TRAINED = 80
DATA = '<script type="application/json" id="data">'
PICTURES = r'<script type="text/plain" id="(picture|map)-(\d+)">(.*?)</script>'
N_OPENED = 3
N_MOVES = 120
FIRST_PICTURE = """() => new Promise(resolve => {
    const look = () => {
        const image = document.querySelector('#groups .card img');
        const is_there = image !== null && image.complete && image.naturalWidth > 0;
        is_there ? resolve() : requestAnimationFrame(look);
    };
    look();
})"""
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
    columns = ["report", "images", "MB", "made, s", "of the processor", "opens, s", "main, s"]
    columns += ["slider, ms: median", "95 %", "work, ms"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        for place in options.sets:
            data = DataSet.read(place, options.same_stem)
            clf, test = fitted(data, options.image_size)
            path = folder / f"{data.name}.html"
            show(measure(data, clf, test, path, options.chromium))
            if options.n_images:
                many = repeated(path, options.n_images)
                show(describe(many, options.n_images, options.chromium))


def fitted(data: DataSet, image_size: int) -> tuple[DefectCAMClassifier, np.ndarray]:
    train, test = data.split(SEED, 0.2)
    few = np.linspace(0, len(train) - 1, min(N_TRAINED, len(train))).astype(int)
    train = train[np.argsort(data.types[train], kind="stable")][few]  # of every type
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
    start, worked = time.perf_counter(), time.process_time()
    write_report(clf, list(data.images[test]), data.types[test], path, masks)
    made = {"made": time.perf_counter() - start, "worked": time.process_time() - worked}
    return describe(path, len(test), chromium) | made


def describe(path: Path, n_images: int, chromium: str) -> dict[str, Any]:
    megabytes = os.path.getsize(path) / 1e6
    opened = in_browser(path, chromium)
    return {"report": path.stem, "images": n_images, "MB": megabytes, **opened}


def repeated(path: Path, n_images: int) -> Path:
    """Write a report of so many images, each with its own copy of a picture and a map of `path`."""
    page = path.read_text("utf-8")
    start, rest = page.split(DATA, 1)
    data, rest = rest.split("</script>", 1)
    content = json.loads(data)
    parts = re.findall(PICTURES, rest)
    again = [number % len(content["images"]) for number in range(n_images)]
    content["images"] = [content["images"][number] for number in again]
    pictures = [
        f'<script type="text/plain" id="{kind}-{number}">{parts[2 * source + at][2]}</script>'
        for number, source in enumerate(again)
        for at, kind in enumerate(("picture", "map"))
    ]
    script = rest[rest.rindex("<script>") :]
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    target = path.with_name(f"{path.stem}-{n_images}.html")
    page = f"{start}{DATA}{text}</script>\n" + "\n".join(pictures) + "\n" + script
    target.write_text(page, "utf-8")
    return target


def in_browser(path: Path, chromium: str) -> dict[str, Any]:
    """Open the report some times; each time, move the slider."""
    from playwright.sync_api import sync_playwright

    opened, main, moves, work = [], [], [], []
    with sync_playwright() as playwright:
        for _ in range(N_OPENED):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            seconds = main_thread(page)
            start = time.perf_counter()
            page.goto(path.resolve().as_uri(), wait_until="commit")
            page.evaluate(FIRST_PICTURE)
            opened.append(time.perf_counter() - start)
            main.append(seconds())
            page.wait_for_load_state("load")
            before = seconds()
            moves += page.evaluate(SWEEP, N_MOVES)
            work.append((seconds() - before) / (N_MOVES + 1))
            browser.close()
    return {"opens": np.median(opened), "main": np.median(main), "moves": moves, "work": work}


def main_thread(page: Any) -> Callable[[], float]:
    """Return a function that tells how many seconds the page's main thread has worked."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds() -> float:
        metrics = devtools.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "TaskDuration")

    return seconds


def show(row: dict[str, Any]) -> None:
    median, high = np.percentile(row["moves"], [50, 95])
    made, worked = (f"{row[name]:.0f}" if name in row else "" for name in ("made", "worked"))
    print(
        f"| {row['report']} | {row['images']} | {row['MB']:.1f} | {made} | "
        f"{worked} | {row['opens']:.2f} | {row['main']:.2f} | {median:.0f} | {high:.0f} "
        f"| {1000 * np.mean(row['work']):.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
