from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectcam.folders import (
    GOOD_NAMES,
    find_good_label,
    find_masks,
    labelled_folder,
    skipped_files,
    unused_classes,
)
from defectcam.images import ImageReadError, find_skipped


def touch(root: Path, *names: str) -> Path:
    """Create empty files: labels come from names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def listed(root: Path, good_label: str | None = None) -> list[tuple[str, str]]:
    """Return what was found, relative to the folder, as (path, type)."""
    paths, types = labelled_folder(root, good_label)
    return [
        (Path(path).relative_to(root).as_posix(), name)
        for path, name in zip(paths, types, strict=True)
    ]


MVTEC = [
    "train/good/000.png",
    "train/good/001.png",
    "test/good/000.png",
    "test/scratch/000.png",
    "test/dent/000.png",
    "ground_truth/scratch/000_mask.png",
    "ground_truth/dent/000_mask.png",
]


def test_sub_folders_are_types(tmp_path: Path) -> None:
    touch(tmp_path, "scratch/2.png", "scratch/1.jpg", "Good/b.png", "Good/a.BMP", "dent/deep/x.tif")
    assert listed(tmp_path) == [
        ("Good/a.BMP", "Good"),
        ("Good/b.png", "Good"),
        ("dent/deep/x.tif", "dent"),
        ("scratch/1.jpg", "scratch"),
        ("scratch/2.png", "scratch"),
    ]


def test_good_and_bad(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", "bad/1.png")
    assert listed(tmp_path) == [("bad/1.png", "bad"), ("good/1.png", "good")]


def test_the_mvtec_layout_takes_train_and_test_without_masks(tmp_path: Path) -> None:
    touch(tmp_path, *MVTEC)
    assert listed(tmp_path) == [
        ("train/good/000.png", "good"),
        ("train/good/001.png", "good"),
        ("test/dent/000.png", "dent"),
        ("test/good/000.png", "good"),
        ("test/scratch/000.png", "scratch"),
    ]


def test_a_part_of_the_mvtec_layout_is_a_folder_of_types(tmp_path: Path) -> None:
    touch(tmp_path, *MVTEC)
    assert listed(tmp_path / "train") == [("good/000.png", "good"), ("good/001.png", "good")]
    assert {name for _, name in listed(tmp_path / "test")} == {"dent", "good", "scratch"}


def test_mvtec_without_good_test_images(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/000.png", "test/defective/000.png")
    assert [name for _, name in listed(tmp_path)] == ["good", "defective"]


def test_a_defect_may_be_called_test(tmp_path: Path) -> None:
    touch(tmp_path, "ok/1.png", "test/1.png", "train/1.png")
    assert [name for _, name in listed(tmp_path)] == ["ok", "test", "train"]


def test_what_is_no_image_of_a_type_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", "good/.2.png", "good/notes.txt", ".cache/1.png", "overview.png")
    touch(tmp_path, "ground_truth/1.png", "empty/readme.md")
    assert listed(tmp_path) == [("good/1.png", "good")]


def test_good_may_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "A/1.png", "B/1.png", "ok/1.png")
    assert len(listed(tmp_path, good_label="B")) == 3
    touch(tmp_path / "split", "train/B/1.png", "test/A/1.png")
    assert [name for _, name in listed(tmp_path / "split", good_label="B")] == ["B", "A"]


@pytest.mark.parametrize(
    ("files", "good_label", "message"),
    [
        ([], None, "Found: no sub-folders; 0 images outside them"),
        (["1.png", "2.png"], None, "Found: no sub-folders; 2 images outside them"),
        (["a/1.png", "b/2.png"], None, r"Found: a/ \(1 images\), b/ \(1 images\).*good_label="),
        (["good/1.png", "OK/1.png"], None, "2 labels.*can be taken for good.*pass good_label"),
        (["good/1.txt", "bad/1.png"], None, r"bad/ \(1 images\), good/ \(0 images\)"),
        (["good/1.png", "bad/1.png"], "fine", "good_label='fine' is not among the labels: 'bad', "),
        (["train/1.png", "test/1.png"], None, r"test/ \(1 images\), train/ \(1 images\)"),
        (["train/a/1.png", "test/b/1.png"], None, "one of 'a', 'b'"),
        (["good/1.txt", "bad/1.png"], None, "good/ holds no images: put good images there.$"),
        (["OK/1.heic", "bad/1.png"], None, "OK/ holds only skipped files: put good images there.$"),
        (["A/1.txt", "bad/1.png"], "A", "A/ holds no images: put good images there.$"),
        (["train/good/1.txt", "test/b/1.png"], None, "train/good/ holds no images: put good"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(
    tmp_path: Path, files: list[str], good_label: str | None, message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ImageReadError, match=message) as caught:
        labelled_folder(tmp_path, good_label)
    assert f"{str(tmp_path)!r} has another layout than expected. Expected: " in str(caught.value)


def test_very_many_folders_are_not_all_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"class{i:03d}/1.png" for i in range(25)))
    with pytest.raises(
        ImageReadError, match=r"class019/.*5 more sub-folders.*and 5 more"
    ) as caught:
        labelled_folder(tmp_path)
    assert "class020" not in str(caught.value)


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="nowhere' does not exist"):
        labelled_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["scratch", "good", "dent"], "good"),
        (["NG", "OK"], "OK"),
        (["Defect-Free", "defective"], "Defect-Free"),
        (["no defect", "defect"], "no defect"),
        (["good"], "good"),
        (["not good", "good"], "good"),
        ([True, False], False),
        ([False], False),
        ([0, 1, 1], 0),
        ([0], 0),
        (np.array([1, 0], np.uint8), 0),
        (np.array(["normal", "anomaly"], dtype=object), "normal"),
        (np.array([True, False], dtype=object), False),
        (pd.Series(["ok", "bad"], dtype="category"), "ok"),
    ],
)
def test_the_good_label_is_found(labels, expected) -> None:
    found = find_good_label(labels)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], "None of the labels can be taken for good parts: pass good_label=..., one of"),
        (["a", "b"], "one of 'a', 'b'"),
        (["good", "ok", "bad"], r"2 labels \('good', 'ok'\) can be taken"),
        ([1, 2], "one of 1, 2"),
        ([0, 1, 2], "one of 0, 1, 2"),
        ([1], "one of 1"),
        ([True], "one of True"),
        ([0.0, 1.0], "one of 0.0, 1.0"),
        (["0", "1"], "one of '0', '1'. Found without it is one name of good, ok"),
        ([], "there are none"),
    ],
)
def test_labels_that_say_nothing_ask_for_good_label(labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("...", r"\.\.\.")):
        find_good_label(labels)


def test_good_label_wins() -> None:
    assert find_good_label(["good", "ok"], good_label="ok") == "ok"
    assert find_good_label([0, 1], good_label=1) == 1
    assert find_good_label([True, False], good_label=True) is True
    assert find_good_label(np.array(["a", "b"]), good_label=np.str_("b")) == "b"


@pytest.mark.parametrize(
    ("labels", "good_label"),
    [(["good", "bad"], "fine"), (["good", "bad"], "GOOD"), (["0", "1"], 0), ([0, 1], "0")],
)
def test_a_good_label_that_is_not_there_is_refused(labels: list, good_label: object) -> None:
    with pytest.raises(ValueError, match="is not among the labels"):
        find_good_label(labels, good_label=good_label)


@given(st.sampled_from(GOOD_NAMES), st.permutations(["scratch", "bad", "NG", "pill"]))
def test_every_good_name_is_found_in_any_place_and_case(name: str, others: list[str]) -> None:
    for spelled in (name, name.upper(), name.title().replace("_", " "), name.replace("_", "-")):
        assert find_good_label([*others[:2], spelled, *others[2:]]) == spelled


def masks_of(folder: Path, *names: str) -> list[str | None]:
    types = [Path(name).parts[0] for name in names]
    masks = find_masks(folder, [str(folder / name) for name in names], types, "good")
    return [mask and Path(mask).relative_to(folder).as_posix() for mask in masks]


def test_masks_of_nested_classes_are_apart(tmp_path: Path) -> None:
    images = ("scratch/a/0.png", "scratch/b/0.png", "scratch/b/1.png", "good/0.png")
    touch(tmp_path, "scratch/a/0_mask.png", "scratch/0_mask.png", "scratch/1_mask.png")
    touch(tmp_path, "scratch/scratch/0_mask.png")
    touch(tmp_path, "good/0_mask.png")
    # A flat mask serves an image that no other could share it with.
    flat = ["scratch/0_mask.png", "scratch/1_mask.png"]
    assert masks_of(tmp_path, *images) == ["scratch/a/0_mask.png", *flat, None]
    # What is of one image by its name is not of another.
    assert masks_of(tmp_path, "scratch/0.png", "scratch/b/0.png") == [flat[0], None]
    # Nor does a folder above that is called as the type hide it.
    assert masks_of(tmp_path / "scratch", "scratch/0.png") == ["scratch/0_mask.png"]
    (tmp_path / "scratch" / "a" / "0_mask.png").unlink()
    own = r"0_mask.png' may be the mask of .*a.0.png' or of .*b.0.png': move it to .*a.0_mask.png'"
    with pytest.raises(ImageReadError, match=own):
        masks_of(tmp_path, *images)


def test_masks_of_images_whose_folders_do_not_name_their_type(tmp_path: Path) -> None:
    touch(tmp_path, "dent/0_mask.png")
    mask = str(tmp_path / "dent" / "0_mask.png")
    assert find_masks(tmp_path, ["x/0.png"], ["dent"], "good") == [mask]
    with pytest.raises(ImageReadError, match=r"x/0.png' or of 'y/0.png': pass masks as a list"):
        find_masks(tmp_path, ["x/0.png", "y/0.png"], ["dent"] * 2, "good")


def test_pictures_that_are_not_read_are_counted_but_not_those_of_masks(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", "good/2.HEIC", "dent/1.heic", "dent/.2.heic", "dent/2.txt")
    touch(tmp_path, "scratch/a/1.jxl", "scratch/2.png", "3.psd", "ground_truth/dent/1.psd")
    skipped = skipped_files(tmp_path)
    names = [Path(path).relative_to(tmp_path).as_posix() for path in skipped]
    assert names == ["3.psd", "dent/1.heic", "good/2.HEIC", "scratch/a/1.jxl"]
    assert unused_classes(tmp_path, skipped) == ["dent"]
    touch(tmp_path / "mvtec", "train/good/1.png", "test/dent/1.dng", "test/good/1.png")
    assert unused_classes(tmp_path / "mvtec", skipped_files(tmp_path / "mvtec")) == ["test/dent"]


def test_a_refused_layout_names_what_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.heic", "bad/1.heic", "bad/2.dng")
    with pytest.raises(ImageReadError, match=r"3 files are skipped for the suffix \(2 .heic, 1 "):
        labelled_folder(tmp_path)


def test_a_folder_of_masks_is_no_class_without_images(tmp_path: Path) -> None:
    for name in ("good/1.png", "dent/a.heic", "ground_truth/dent/a.psd"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert unused_classes(tmp_path, find_skipped(tmp_path)) == ["dent"]
