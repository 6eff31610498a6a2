"""Pictures of a report for the documentation: light, dark, on a phone, and one image in full view.

    python benchmarks/screenshots.py docs/images

Generated plates (`make_defects`), so that anybody may publish them: 180 to train on, 140 others in
the report. Opens it in Chromium through Playwright.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from defectcam import DefectCAMClassifier
from defectcam.datasets import make_defects

SIZE = (288, 384)
DESKTOP = {"viewport": {"width": 1440, "height": 960}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}
PICTURES: dict[str, dict[str, Any]] = {
    "report-light": {**DESKTOP, "color_scheme": "light"},
    "report-dark": {**DESKTOP, "color_scheme": "dark"},
    "report-phone": {**PHONE, "color_scheme": "light"},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--report", type=Path, help="of this report, not of a new one")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        report = options.report or make_report(Path(scratch))
        photograph(report.resolve(), options.output, options.chromium)


def make_report(folder: Path) -> Path:
    train = write_plates(folder / "train", 180, seed=0)
    plates = write_plates(folder / "plates", 140, seed=1)
    clf = DefectCAMClassifier(image_size=256, target="type", max_epochs=8, random_state=0)
    clf.fit(train)
    return clf.report(plates, path=folder / "report.html", title="Metal plates, test split")


def write_plates(folder: Path, n: int, seed: int) -> Path:
    """Write plates and masks in the MVTec AD layout; return the folder of the plates."""
    plates = make_defects(n, SIZE, defect_rate=0.35, severity=(0.15, 1), random_state=seed)
    for number, (image, kind, mask) in enumerate(
        zip(plates.images, plates.types, plates.masks, strict=True)
    ):
        files = {folder / "test" / kind / f"{number:03d}.png": image}
        if kind != "good":
            name = f"{number:03d}_mask.png"
            files[folder / "ground_truth" / kind / name] = mask.astype(np.uint8) * 255
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder / "test"


def photograph(report: Path, output: Path, chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, settings in PICTURES.items():
            page = browser.new_page(**settings)
            page.goto(report.as_uri())
            wait_for_pictures(page)
            if name == "report-phone":
                page.locator("#images").evaluate("section => section.scrollIntoView()")
                page.wait_for_timeout(1500)
                wait_for_pictures(page)
            keep(page, output / f"{name}.webp")
            if name == "report-light":
                page.locator("#group-found .card").nth(3).click()
                page.wait_for_timeout(500)
                keep(page, output / "report-view.webp")
                page.keyboard.press("Escape")
                page.locator("#charts").evaluate("section => section.scrollIntoView()")
                page.wait_for_timeout(1500)
                keep(page, output / "report-figures.webp")
        browser.close()


def wait_for_pictures(page: Any) -> None:
    page.wait_for_function(
        """[...document.querySelectorAll('#groups .card')].every(card => {
            const { top, bottom } = card.getBoundingClientRect();
            const isSeen = bottom > 0 && top < innerHeight;
            return !isSeen || (card.querySelector('img').complete && card.querySelector('img').src);
        })"""
    )
    page.wait_for_timeout(500)


def keep(page: Any, path: Path) -> None:
    Image.open(io.BytesIO(page.screenshot())).save(path, quality=80, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
