"""Every script in `examples/` runs, in a small form."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


def test_every_example_is_run_here() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {f"test_{name}" for name in scripts} <= set(globals())
