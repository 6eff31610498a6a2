"""Splits of folders: by type, by part, and as they are written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectcam.datasets import load_csv, load_folder
from defectcam.images import ImageReadError
from defectcam.splitting import Split, split_folder, write_split


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    return str(path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder of 20 good, 10 scratched, 5 dented images; two of each part; some masks."""
    for name, n in {"good": 20, "scratch": 10, "dent": 6}.items():
        for number in range(n):
            side = "left" if number % 2 else "right"
            touch(tmp_path / "parts" / name / f"{name}{number // 2:02d}_{side}.png")
    for number in range(5):
        mask = f"scratch{number:02d}_left_mask.png"
        touch(tmp_path / "parts" / "ground_truth" / "scratch" / mask)
    return tmp_path / "parts"


def paths_of(split: Split, side: str) -> set[str]:
    return {path for path, *_ in split.rows[side]}


def test_every_type_has_its_share_and_every_image_one_side(parts: Path) -> None:
    split = split_folder(parts, test_size=0.5, random_state=0)
    assert split.counts() == {
        "train": {"dent": 3, "good": 10, "scratch": 5},
        "test": {"dent": 3, "good": 10, "scratch": 5},
    }
    assert not paths_of(split, "train") & paths_of(split, "test")
    everything = set(load_folder(parts).paths.tolist())
    assert paths_of(split, "train") | paths_of(split, "test") == everything
    assert split == split_folder(parts, test_size=0.5, random_state=0)
    assert split != split_folder(parts, test_size=0.5, random_state=1)


def test_pictures_of_one_part_stay_on_one_side(parts: Path) -> None:
    split = split_folder(parts, 0.4, random_state=0, group_pattern="^([^_]+)")
    groups = {side: {group for *_, group in rows} for side, rows in split.rows.items()}
    assert not groups["train"] & groups["test"]
    assert len(groups["train"] | groups["test"]) == 18
    assert {name for name in split.counts()["test"]} == {"good", "scratch", "dent"}


def test_lists_are_read_by_load_csv(parts: Path, tmp_path: Path) -> None:
    split = split_folder(parts, random_state=0, group_pattern="^([^_]+)")
    staging, final = tmp_path / "staging", tmp_path / "deeper" / "split"
    staging.mkdir()
    write_split(split, staging, "lists", final=final)
    final.parent.mkdir()
    staging.rename(final)
    for side, rows in split.rows.items():
        data = load_csv(final / f"{side}.csv", mask_column="mask", group_column="group")
        assert [Path(path).resolve() for path in data.paths] == [Path(path) for path, *_ in rows]
        assert data.types.tolist() == [type_ for _, type_, _, _ in rows]
        masks = [mask and str(Path(mask).resolve()) for mask in data.masks]
        assert masks == [mask for _, _, mask, _ in rows]
        assert data.groups.tolist() == [group for *_, group in rows]


@pytest.mark.parametrize("form", ["links", "copies"])
def test_folders_are_read_by_load_folder(form: str, parts: Path, tmp_path: Path) -> None:
    split = split_folder(parts, random_state=0)
    (tmp_path / "split").mkdir()
    write_split(split, tmp_path / "split", form)
    for side, counts in split.counts().items():
        data = load_folder(tmp_path / "split" / side)
        assert {kind: int((data.types == kind).sum()) for kind in counts} == counts
        assert {Path(path).is_symlink() for path in data.paths} == {form == "links"}
        assert {Path(p).name for p in data.paths} == {Path(p).name for p in paths_of(split, side)}
    masks = {p.name for p in (tmp_path / "split" / "ground_truth" / "scratch").iterdir()}
    assert masks == {f"scratch{number:02d}_left_mask.png" for number in range(5)}


def test_equal_names_of_train_and_test_do_not_meet(tmp_path: Path) -> None:
    root = tmp_path / "product"
    for number in range(6):
        touch(root / "train" / "good" / f"{number}.png")
        touch(root / "test" / "good" / f"{number}.png")
        touch(root / "test" / "dent" / f"{number}.png")
    split = split_folder(root, 0.5, random_state=0)
    (tmp_path / "split").mkdir()
    write_split(split, tmp_path / "split", "copies")
    assert len(list((tmp_path / "split").rglob("*.png"))) == 18
    names = {p.name for p in (tmp_path / "split").rglob("dent/*.png")}
    assert names == {f"{number}.png" for number in range(6)}  # others keep theirs


@pytest.mark.parametrize("form", ["links", "copies"])
def test_a_name_with_folders_may_be_an_image_s_own(tmp_path: Path, form: str) -> None:
    rows: dict[str, list] = {"train": [], "test": []}
    for number, name in enumerate(("dent/a/1.png", "dent/b/1.png", "dent/dent-a-1.png")):
        path, mask = touch(tmp_path / "parts" / name), touch(tmp_path / "masks" / f"{number}.png")
        Image.new("L", (4, 4), number).save(path)
        Image.new("L", (4, 4), number).save(mask)
        rows["train"].append((path, "dent", mask, None))
    other = touch(tmp_path / "parts" / "dent" / "c" / "dent-b-1.png")
    Image.new("L", (4, 4), 3).save(other)
    rows["test"].append((other, "dent", None, None))
    out = tmp_path / "out"
    out.mkdir()
    write_split(Split(str(tmp_path / "parts"), rows), out, form)
    written = sorted(out.rglob("t*/dent/*.png"))
    assert {np.asarray(Image.open(path))[0, 0] for path in written} == {0, 1, 2, 3}
    assert len(written) == 4
    for path in written:
        mask = out / "ground_truth" / "dent" / f"{path.stem}_mask.png"
        value = np.asarray(Image.open(path))[0, 0]
        assert not mask.exists() if value == 3 else np.asarray(Image.open(mask))[0, 0] == value
    assert {"dent-a-1.png", "dent-b-1.png"} <= {path.name for path in written}  # as they were


def test_nothing_replaces_a_file(parts: Path, tmp_path: Path) -> None:
    split = split_folder(parts)
    (tmp_path / "split").mkdir()
    write_split(split, tmp_path / "split", "copies")
    with pytest.raises(FileExistsError, match="Rename one of the two"):
        write_split(split, tmp_path / "split", "copies")


def test_a_form_that_there_is_not_writes_nothing(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"form must be one of .*'copies'.* got 'link'"):
        write_split(split_folder(parts), tmp_path / "split", "link")
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize("test_size", [0, 1, 1.5, -0.2])
def test_sizes_that_are_no_shares(test_size: float, parts: Path) -> None:
    with pytest.raises(ValueError, match="test_size"):
        split_folder(parts, test_size)


def test_what_cannot_be_split_is_named(parts: Path, tmp_path: Path) -> None:
    touch(parts / "crack" / "only.png")
    with pytest.raises(ValueError, match="'crack' there is 1 image"):
        split_folder(parts)
    with pytest.raises(ValueError, match="group_pattern"):
        split_folder(parts, group_pattern="part-([0-9]+)")
    with pytest.raises(ImageReadError, match="does not exist"):
        split_folder(tmp_path / "none")


def test_links_that_the_file_system_refuses(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "split").mkdir()
    with pytest.raises(OSError, match="use copies or lists"):
        write_split(split_folder(parts), tmp_path / "split", "links")


@pytest.mark.parametrize("form", ["links", "copies"])
def test_images_of_one_stem_share_their_mask(tmp_path, form):
    root = tmp_path / "parts"
    for name in ("good/0.png", "good/1.png", "scratch/0.png", "scratch/0.bmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)
    (root / "ground_truth" / "scratch").mkdir(parents=True)
    Image.new("L", (4, 4), 255).save(root / "ground_truth" / "scratch" / "0_mask.png")
    (tmp_path / "out").mkdir()
    write_split(split_folder(root, 0.5, 0), tmp_path / "out", form)
    assert (tmp_path / "out" / "ground_truth" / "scratch" / "0_mask.png").is_file()


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_masks_of_nested_classes_stay_with_their_images(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "parts"
    for name in ("good/0.png", "good/1.png", "scratch/a/0.png", f"scratch/b/0.{suffix}"):
        touch(root / name)
    for number, name in enumerate(("a", "b")):
        mask = root / "ground_truth" / "scratch" / name / "0_mask.png"
        mask.parent.mkdir(parents=True)
        Image.new("L", (4, 4), number + 1).save(mask)
    out = tmp_path / "out"
    out.mkdir()
    write_split(split_folder(root, 0.5, 0), out, "copies")
    data = load_folder(out)
    pixels = {
        Path(path).stem: np.asarray(Image.open(mask))[0, 0]
        for path, mask in zip(data.paths, data.masks, strict=True)
        if mask is not None
    }
    assert pixels == {"scratch-a-0": 1, "scratch-b-0": 2}


def test_a_name_that_is_no_text_stands_in_no_table(tmp_path):
    rows = [(os.fsdecode(b"bad/\xff.png"), "bad", None, None)]
    with pytest.raises(OSError, match="no text, and cannot stand in a table: use links or copies"):
        write_split(Split(str(tmp_path), {"train": rows}), tmp_path, "lists")
