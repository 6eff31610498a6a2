"""Every script in `examples/` runs, in a small form."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from defectcam.images import find_images

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_generated_parts(tmp_path: Path) -> None:
    picture = tmp_path / "parts.png"
    printed = run("generated_parts.py", "--quick", "--output", picture)
    parts = [line.split(":")[0].strip() for line in printed.splitlines()[:4]]
    assert parts == ["good", "scratch", "dent", "stain"]
    with Image.open(picture) as image:
        assert image.size == (4 * (320 + 4), 2 * 240)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None, reason="needs the package elpv-dataset"
)
def test_solar_cells(tmp_path: Path) -> None:
    options = ("--n-images", 40, "--image-size", 64, "--max-epochs", 1, "--output", tmp_path)
    printed = run("solar_cells.py", *options)
    assert "balanced accuracy" in printed
    assert "confusion matrix" in printed
    assert (tmp_path / "solar_cells.safetensors").is_file()
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 12


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs the package pyspark, and Java",
)
def test_spark_images(fitted, tmp_path: Path) -> None:
    import pandas

    folder = write_spotted_squares(tmp_path / "squares")
    (folder / "broken.png").write_text("broken")
    fitted.save(tmp_path / "part.safetensors")
    printed = run("spark_images.py", tmp_path / "part.safetensors", folder, tmp_path / "found")
    assert "1 of them could not be read" in printed
    table = pandas.read_parquet(tmp_path / "found").set_index("image").sort_index()
    paths = find_images(folder)
    assert table.index.tolist() == sorted(map(str, paths))
    assert "broken.png" in table.error.dropna().item()
    table = table[table.error.isna()]
    expected = [fitted.localize(path) for path in table.index]
    assert table.label.tolist() == [found.label for found in expected]
    np.testing.assert_allclose(
        table.probability, [found.probability for found in expected], atol=1e-5
    )
    assert [[box.tolist() for box in boxes] for boxes in table.boxes] == [
        found.boxes.tolist() for found in expected
    ]


@pytest.mark.slow
def test_cases(tmp_path: Path) -> None:
    data = write_spotted_squares(tmp_path / "squares")
    shared = (data, "--same-stem", "--output", tmp_path / "cases")
    printed = run("cases.py", *shared, "--quick")
    assert "best and" in printed
    page = (tmp_path / "cases" / "index.md").read_text(encoding="utf-8")
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert page.startswith("# Cases: squares")
    assert len(titles) == len(list((tmp_path / "cases").glob("*.jpg"))) > 0
    assert page.count("- verdict: ") == len(titles)
    with Image.open(tmp_path / "cases" / "01.jpg") as picture:
        assert picture.size == (2 * 64 + 8, 64)
    # The model that was saved gives the same page again.
    run("cases.py", *shared, "--model", tmp_path / "cases" / "model.safetensors")
    assert (tmp_path / "cases" / "index.md").read_text(encoding="utf-8") == page
    html = (tmp_path / "cases" / "index.html").read_text(encoding="utf-8")
    assert html.count("<img ") == len(titles)


def write_spotted_squares(root: Path) -> Path:
    """Write 10 good images and 10 of the same stems with a bright spot, and masks of the spots."""
    rng = np.random.default_rng(0)
    folders = [root / name for name in ("train/good", "test/spot", "ground_truth/spot")]
    for folder in folders:
        folder.mkdir(parents=True)
    good, spotted, masks = folders
    for stem in range(10):
        image = rng.integers(90, 110, size=(64, 64), dtype=np.uint8)
        cv2.imwrite(str(good / f"{stem}.png"), image)
        mask = np.zeros_like(image)
        left, top = rng.integers(8, 44, size=2)
        mask[top : top + 12, left : left + 12] = 255
        cv2.imwrite(str(spotted / f"{stem}.png"), np.maximum(image, mask))
        cv2.imwrite(str(masks / f"{stem}_mask.png"), mask)
    return root


def test_every_example_is_run_here() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {f"test_{name}" for name in scripts} <= set(globals())
