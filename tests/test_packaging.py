"""What is published: a wheel and an sdist that are complete, small and well described."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import defectcam

ROOT = Path(__file__).parents[1]
MOST_BYTES = 1_000_000

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the sources are not here"
)


def run(*command: str | Path, **options: object) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT)  # the wheel from the sdist
    return folder


def test_the_wheel_holds_the_package_and_is_small(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"defectcam-{defectcam.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < MOST_BYTES
    package = ROOT / "defectcam"
    files = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files
    assert {"defectcam/py.typed", "defectcam/service/page.html"} <= names


def test_the_sdist_holds_what_builds_tests_and_documents_it(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"}
    wanted |= {"docs/index.md", "docs/conf.py", "examples/solar_cells.py", "tests/conftest.py"}
    assert wanted <= names
    assert not any("__pycache__" in name or name.startswith("docs/_build") for name in names)


def test_the_metadata_is_in_order(dist: Path) -> None:
    run("-m", "twine", "check", "--strict", *dist.iterdir())


@pytest.mark.slow
def test_the_installed_wheel_runs_the_demo(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    environment = tmp_path / "environment"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    run(*pip, "--no-deps", "--target", environment, wheel)
    code = "import defectcam; print(defectcam.__file__)"
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(environment)}}
    assert Path(run("-c", code, **options).strip()).is_relative_to(environment)
    run(ROOT / "examples" / "generated_parts.py", "--quick", "--output", "overlay.jpg", **options)
    assert (tmp_path / "overlay.jpg").stat().st_size > 0
