from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from defectcam.image_files import ImageFiles, relative_name
from defectcam.images import ImageReadError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("good/1.png", "dent/1.png", "dent/2.jpg", "top.png"):
        file = tmp_path / "parts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 20)).save(file)
    return tmp_path / "parts"


def test_names_lead_to_files_of_a_folder_or_a_list(root: Path) -> None:
    listed = sorted(str(path) for path in root.rglob("*.*"))
    for files in (ImageFiles(root), ImageFiles(listed)):
        for name in ("good/1.png", "dent/1.png", "dent\\2.jpg", "top.png"):
            expected = root.joinpath(*name.replace("\\", "/").split("/"))
            assert Path(files.find(name, "x")) == expected
        assert Path(files.find_stem("dent/2", "x")) == root / "dent" / "2.jpg"


@pytest.mark.parametrize("name", ["3.png", "good/2.jpg", "no/1.png", "1.png"])
def test_missing_and_ambiguous_images_are_named_with_their_place(root: Path, name: str) -> None:
    listed = [str(path) for path in root.rglob("*.png")]
    for files in (ImageFiles(root), ImageFiles(listed)):
        with pytest.raises(ImageReadError, match=f"labels.json, line 7 .*{name}.* there are"):
            files.find(name, "labels.json, line 7")


@pytest.mark.parametrize(
    "name", ["../1.png", "/etc/passwd", "a/../../b.png", "C:\\b.png", "\\b.png", "", None, 7, ".."]
)
def test_names_that_leave_the_folder_are_refused(root: Path, name: object) -> None:
    with pytest.raises(ImageReadError, match=r"labels.json has .* for the name of an image"):
        ImageFiles(root).find(name, "labels.json")


def test_time_stamps_are_no_drives() -> None:
    assert relative_name("12:30:15.png", "x").name == "12:30:15.png"


def test_sizes_are_compared_with_the_headers(root: Path) -> None:
    files = ImageFiles(root)
    path = files.find("top.png", "x")
    assert files.size(path) == (20, 30)
    assert files.checked_size(path, "20", 30.0, "x") == (20, 30)
    for height, width in ((30, 20), (None, 30), ("a", 30), (float("inf"), 30)):
        with pytest.raises(ImageReadError, match=r"^x "):
            files.checked_size(path, height, width, "x")
