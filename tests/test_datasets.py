from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.utils import Bunch

from defectcam.datasets import load_elpv, load_folder, load_mvtec, train_test_split_by_type
from defectcam.images import ImageReadError, read_image


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    names = ["train/good/000.png", "test/good/000.png", "test/dent/000.png", "test/dent/001.jpg"]
    names += ["test/scratch/000.png", "ground_truth/dent/000_mask.png"]
    names += ["ground_truth/dent/001_mask.png", "ground_truth/good/000_mask.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 9).save(tmp_path / name)
    return tmp_path


def test_load_folder(parts: Path) -> None:
    data = load_folder(parts)
    assert isinstance(data, Bunch)
    assert data.good_label == "good"
    assert data.types.tolist() == ["good"] * 8 + ["scratch"] * 6
    assert data.is_defect.tolist() == [False] * 8 + [True] * 6
    assert data.paths[0] == str(parts / "good" / "000.png")
    assert read_image(data.paths[-1]).shape == (48, 48, 3)
    assert load_folder(parts, good_label="scratch").is_defect.sum() == 8


def test_load_mvtec_pairs_images_with_masks(mvtec: Path) -> None:
    data = load_mvtec(mvtec)
    names = [Path(path).relative_to(mvtec).as_posix() for path in data.paths]
    masks = [mask and Path(mask).relative_to(mvtec).as_posix() for mask in data.masks]
    assert list(zip(names, data.types, data.split, masks, strict=True)) == [
        ("train/good/000.png", "good", "train", None),
        ("test/dent/000.png", "dent", "test", "ground_truth/dent/000_mask.png"),
        ("test/dent/001.jpg", "dent", "test", "ground_truth/dent/001_mask.png"),
        ("test/good/000.png", "good", "test", None),
        ("test/scratch/000.png", "scratch", "test", None),  # its mask is missing
    ]
    assert data.is_defect.tolist() == [False, True, True, False, True]


def test_load_mvtec_refuses_other_layouts(parts: Path, mvtec: Path) -> None:
    message = r"no folder train and no folder test.*load_folder"
    for root in (parts, mvtec / "test"):
        with pytest.raises(ImageReadError, match=message):
            load_mvtec(root)


def test_load_elpv_without_its_package_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    with pytest.raises(ImportError, match="pip install elpv-dataset"):
        load_elpv()


def test_load_elpv() -> None:
    pytest.importorskip("elpv_dataset")
    data = load_elpv()
    assert data.images.shape == (2624, 300, 300)
    assert data.images.dtype == np.uint8
    assert np.unique(np.round(data.probability * 3)).tolist() == [0, 1, 2, 3]
    assert data.is_defect.tolist() == (data.probability > 0.4).tolist()
    assert set(data.cell_type) == {"mono", "poly"}


TYPES = np.array(["good"] * 60 + ["scratch"] * 20 + ["dent"] * 10)
PATHS = np.array([f"{i}.png" for i in range(90)])


@pytest.mark.parametrize("test_size", [0.2, 0.5, 0.8])
def test_every_type_has_its_share_on_both_sides(test_size: float) -> None:
    split = train_test_split_by_type(PATHS, TYPES, test_size, random_state=0)
    assert sorted([*split.train, *split.test]) == list(range(90))
    for name, count in {"good": 60, "scratch": 20, "dent": 10}.items():
        assert (split.types_test == name).sum() == count * test_size
    np.testing.assert_array_equal(split.paths_train, PATHS[split.train])
    np.testing.assert_array_equal(split.paths_test, PATHS[split.test])
    np.testing.assert_array_equal(split.types_train, TYPES[split.train])
    assert split.train.tolist() == sorted(split.train)


@pytest.mark.parametrize("groups", [None, np.arange(90) // 2])
def test_the_split_is_decided_by_the_random_state(generators_untouched, groups) -> None:
    first, again, other = (
        train_test_split_by_type(PATHS, TYPES, random_state=seed, groups=groups).test.tolist()
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("test_size", [0.1, 0.2, 0.25, 0.3, 0.5, 0.7])
def test_groups_stay_on_one_side(test_size: float) -> None:
    groups = np.arange(90) % 45  # of two images each, of different types for the most part
    split = train_test_split_by_type(PATHS, TYPES, test_size, random_state=0, groups=groups)
    assert sorted([*split.train, *split.test]) == list(range(90))
    assert not set(groups[split.train]) & set(groups[split.test])
    assert len(split.test) == pytest.approx(90 * test_size, abs=4)
    for name in ("good", "scratch", "dent"):
        count = (name == TYPES).sum()
        assert (split.types_test == name).sum() == pytest.approx(count * test_size, abs=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"types": TYPES[:-1]}, "90 paths but 89 types"),
        ({"test_size": 0}, "share between 0 and 1, got 0"),
        ({"test_size": 20}, "share between 0 and 1, got 20"),
        ({"types": ["good"] * 89 + ["dent"]}, "Of type 'dent' there is 1 image"),
        ({"groups": np.zeros(90)}, "1 groups cannot be split"),
        ({"groups": np.arange(90) % 3, "test_size": 0.01}, "3 groups cannot be split"),
        ({"groups": np.arange(89)}, "90 paths but 89 groups"),
    ],
)
def test_impossible_splits_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_test_split_by_type(**{"paths": PATHS, "types": TYPES, **arguments})
