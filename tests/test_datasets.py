from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.utils import Bunch

from defectcam.coco import CocoMask
from defectcam.datasets import (
    load_coco,
    load_csv,
    load_elpv,
    load_folder,
    load_mvtec,
    load_visa,
    make_defects,
    train_test_split_by_type,
)
from defectcam.exceptions import SkippedFilesWarning
from defectcam.images import ImageReadError, read_image

KEYS = {"types", "target", "is_defect", "masks", "groups", "good_label"}


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), 9).save(root / name)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    names = ["train/good/000.png", "test/good/000.png", "test/dent/000.png", "test/dent/001.jpg"]
    names += ["test/scratch/000.png", "ground_truth/dent/000_mask.png"]
    names += ["ground_truth/dent/001_mask.png", "ground_truth/good/000_mask.png"]
    write_images(tmp_path, *names)
    return tmp_path


def test_load_folder_warns_of_pictures_that_are_not_read(tmp_path: Path) -> None:
    for name in ("good/1.png", "good/2.heic", "dent/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(SkippedFilesWarning, match=r"1 file is skipped .*\.heic") as caught:
        assert len(load_folder(tmp_path).paths) == 2
    assert len(caught) == 1


def test_load_folder(parts: Path) -> None:
    data = load_folder(parts)
    assert isinstance(data, Bunch)
    assert data.good_label == "good"
    assert data.types.tolist() == ["good"] * 8 + ["scratch"] * 6
    assert data.is_defect.tolist() == [False] * 8 + [True] * 6
    assert data.paths[0] == str(parts / "good" / "000.png")
    assert read_image(data.paths[-1]).shape == (48, 48, 3)
    assert load_folder(parts, good_label="scratch").is_defect.sum() == 8
    assert data.masks.tolist() == [None] * 14 and data.groups is None


def test_all_loaders_have_the_same_keys(parts: Path, mvtec: Path, visa: Path, coco: Path) -> None:
    (parts / "parts.csv").write_text("path,label\ngood/000.png,ok\nscratch/000.png,scratch\n")
    loaded = [load_folder(parts), load_mvtec(mvtec), load_visa(visa), load_coco(coco)]
    for data in [*loaded, load_csv(parts / "parts.csv")]:
        assert KEYS | {"paths"} <= set(data)
        assert len(data.paths) == len(data.types) == len(data.target) == len(data.masks)
        assert data.target.dtype == bool and data.target is data.is_defect
        assert data.target.tolist() == (data.types != data.good_label).tolist()
        assert all(mask is None for mask in data.masks[~data.target])
    assert set(make_defects(2, 32)) >= KEYS


def test_groups_are_read_off_the_file_names(tmp_path: Path) -> None:
    names = ["good/17_left.png", "good/17_right.png", "good/18_left.png", "dent/9_left.png"]
    write_images(tmp_path, *names)
    assert load_folder(tmp_path, group_pattern=r"^(\d+)_").groups.tolist() == [
        "9",
        "17",
        "17",
        "18",
    ]
    assert load_folder(tmp_path, group_pattern=r"^\d+").groups.tolist() == ["9", "17", "17", "18"]
    with pytest.raises(ValueError, match=r"group_pattern='right' finds nothing in .*9_left\.png"):
        load_folder(tmp_path, group_pattern="right")
    with pytest.raises(ValueError, match=r"group_pattern='\(\[' is no regular expression"):
        load_folder(tmp_path, group_pattern="([")


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


def test_masks_beside_a_folder_are_found(mvtec: Path) -> None:
    data = load_folder(mvtec / "test")
    masks = [mask and Path(mask).relative_to(mvtec.resolve()).as_posix() for mask in data.masks]
    assert masks[:2] == ["ground_truth/dent/000_mask.png", "ground_truth/dent/001_mask.png"]
    assert masks[2:] == [None, None]


def test_load_mvtec_refuses_other_layouts(parts: Path, mvtec: Path) -> None:
    message = r"no folder train and no folder test.*Found: \w+/, \w+/.*load_folder"
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
    assert set(data) >= KEYS
    for place in (0, 1000, 2623):
        np.testing.assert_array_equal(read_image(data.paths[place])[..., 0], data.images[place])


# VisA --------------------------------------------------------------------------------------------


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """Return one product's folder, beside which there is the table of the split."""
    images = "visa/candle/Data/Images"
    write_images(tmp_path, *[f"{images}/{n}.png" for n in ("Normal/0", "Normal/1", "Anomaly/0")])
    write_images(tmp_path, f"{images}/Anomaly/1.png", "visa/candle/Data/Masks/Anomaly/0.png")
    rows = ["object,split,label,image,mask"]
    for product in ("candle", "pcb1"):
        start = f"{product}/Data/Images"
        rows += [f"{product},train,normal,{start}/Normal/0.png,"]
        rows += [f"{product},test,normal,{start}/Normal/1.png,"]
        rows += [f"{product},test,anomaly,{start}/Anomaly/{n}.png,x" for n in (0, 1)]
    (tmp_path / "visa/split_csv").mkdir()
    (tmp_path / "visa/split_csv/1cls.csv").write_text("\n".join(rows))
    notes = [f"candle/Data/Images/Normal/{n}.png,normal," for n in (0, 1)]
    notes += [f'candle/Data/Images/Anomaly/{n}.png,"wax gone,bent",x' for n in (0, 1)]
    (tmp_path / "visa/candle/image_anno.csv").write_text("\n".join(["image,label,mask", *notes]))
    return tmp_path / "visa/candle"


def test_load_visa(visa: Path) -> None:
    data = load_visa(visa)
    assert data.types.tolist() == ["Anomaly", "Anomaly", "Normal", "Normal"]
    assert data.good_label == "Normal" and data.target.tolist() == [True, True, False, False]
    mask = str(visa / "Data/Masks/Anomaly/0.png")
    assert data.masks.tolist() == [mask, None, None, None]  # one mask is missing
    assert data.split.tolist() == ["test", "test", "train", "test"]
    assert data.descriptions.tolist() == ["wax gone,bent"] * 2 + ["normal"] * 2


def test_load_visa_finds_the_split_beside_the_working_directory(
    visa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(visa)
    assert load_visa(".").split.tolist() == ["test", "test", "train", "test"]


def test_load_visa_without_tables_has_no_split(visa: Path) -> None:
    (visa.parent / "split_csv/1cls.csv").rename(visa.parent / "other.csv")
    (visa / "image_anno.csv").unlink()
    data = load_visa(visa)
    assert data.split is None and data.descriptions is None
    assert load_visa(visa, split_csv=visa.parent / "other.csv").split[2] == "train"


def test_load_visa_says_what_it_expected_and_found(visa: Path, mvtec: Path) -> None:
    with pytest.raises(ImageReadError, match=r"Data/Images/Normal.*Found: candle/, split_csv/\."):
        load_visa(visa.parent)
    with pytest.raises(ImageReadError, match=r"Found: .*test/, train/.*load_mvtec"):
        load_visa(mvtec)
    with pytest.raises(ImageReadError, match="Found: no such folder"):
        load_visa(visa / "none")
    write_images(visa, "Data/Images/Normal/2.png")
    with pytest.raises(ImageReadError, match=r"lacks 1 of 5 images .*Normal/2\.png.*candle, pcb1"):
        load_visa(visa)
    (visa.parent / "split_csv/1cls.csv").write_text("image;split\na;b\n")
    with pytest.raises(ImageReadError, match=r"columns \['image;split'\]; expected .*'image'"):
        load_visa(visa)


# COCO --------------------------------------------------------------------------------------------


def coco_content() -> dict[str, Any]:
    names = ["images/0.png", "images/1.png", "images/2.png", "images/3.png"]
    polygon, box = [[1, 1, 5, 1, 5, 4, 1, 4]], [1, 1, 4, 3]
    return {
        "images": [
            {"id": i, "file_name": name, "height": 6, "width": 8} for i, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(["good", "dent", "hole"])],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": box, "segmentation": polygon},
            {"image_id": 1, "category_id": 2, "bbox": [6, 1, 1, 1], "segmentation": polygon},
            {"image_id": 2, "category_id": 2, "bbox": box},
            {"image_id": 3, "category_id": 0, "bbox": box, "segmentation": polygon},
        ],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    value = coco_content()
    write_images(tmp_path / "coco", *[entry["file_name"] for entry in value["images"]])
    (tmp_path / "coco/labels.json").write_text(json.dumps(value))
    return tmp_path / "coco/labels.json"


def test_load_coco(coco: Path) -> None:
    data = load_coco(coco)
    assert data.paths.tolist() == [str(coco.parent / f"images/{i}.png") for i in range(4)]
    assert data.types.tolist() == ["good", "dent", "hole", "good"]
    assert [len(boxes) for boxes in data.boxes] == [0, 2, 1, 0]
    assert data.boxes[2].tolist() == [[1, 1, 5, 4]]
    assert data.box_types[1].tolist() == ["dent", "hole"]
    assert [mask is None for mask in data.masks] == [True, False, True, True]
    assert isinstance(data.masks[1], CocoMask) and np.asarray(data.masks[1]).sum() == 12


def test_load_coco_writes_masks_where_it_is_told(coco: Path) -> None:
    before = sorted(coco.parent.rglob("*"))
    lazy = load_coco(coco)
    assert sorted(coco.parent.rglob("*")) == before
    data = load_coco(coco, mask_folder=coco.parent / "masks")
    assert data.masks.tolist() == [None, str(coco.parent / "masks/dent/1_mask.png"), None, None]
    written = read_image(data.masks[1])[..., 0]
    np.testing.assert_array_equal(written > 0, np.asarray(lazy.masks[1]))
    assert set(np.unique(written)) == {0, 255}


@pytest.mark.parametrize("name", ["..", "a/b", "/tmp"])
def test_load_coco_writes_nowhere_else(coco: Path, name: str) -> None:
    value = coco_content()
    value["categories"][1]["name"] = name
    coco.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="cannot be the name of a folder"):
        load_coco(coco, mask_folder=coco.parent / "masks")


def test_load_coco_refuses_two_masks_of_one_name(coco: Path) -> None:
    value = coco_content()
    value["images"][2]["file_name"] = "more/1.png"
    value["annotations"][2].update(category_id=1, segmentation=[[1, 1, 5, 1, 5, 4, 1, 4]])
    write_images(coco.parent, "more/1.png")
    coco.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"'more/1.png' and another image"):
        load_coco(coco, mask_folder=coco.parent / "masks")
    assert not (coco.parent / "masks").exists()


def test_load_coco_says_where_it_looked(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"4 files, of which 4 do not exist.*images_root="):
        load_coco(coco, images_root=tmp_path)


def test_masks_of_coco_are_measured_against(fitted, fitted_parts: Path, tmp_path: Path) -> None:
    polygon = [[5, 5, 20, 5, 20, 20, 5, 20]]
    files = [f"good/{i:03d}.png" for i in range(4)] + [f"scratch/{i:03d}.png" for i in range(4)]
    value = {
        "images": [
            {"id": i, "file_name": name, "height": 48, "width": 48} for i, name in enumerate(files)
        ],
        "categories": [{"id": 0, "name": "scratch"}],
        "annotations": [
            {"image_id": i, "category_id": 0, "bbox": [5, 5, 15, 15], "segmentation": polygon}
            for i in range(4, 8)
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(value))
    data = load_coco(tmp_path / "labels.json", images_root=fitted_parts)
    report = fitted.evaluate(data.paths, data.types, masks=data.masks)
    assert report.pixels["n_masks"] == 4


# Tables ------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_images(tmp_path, "a.png", "b.png", "sub/c.png", "c_mask.png")
    rows = ["file,verdict,mask,serial", "a.png,ok,c_mask.png,17", "b.png,dent,,17"]
    rows += ["sub/c.png, scratch ,c_mask.png,18"]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    return tmp_path / "table.csv"


def test_load_csv(table: Path) -> None:
    data = load_csv(table, "file", "verdict", "mask", "serial")
    assert data.paths.tolist() == [str(table.parent / n) for n in ("a.png", "b.png", "sub/c.png")]
    assert data.types.tolist() == ["ok", "dent", "scratch"] and data.good_label == "ok"
    assert data.masks.tolist() == [None, None, str(table.parent / "c_mask.png")]
    assert data.groups.tolist() == ["17", "17", "18"]
    plain = load_csv(table, "file", "verdict", good_label="dent")
    assert plain.groups is None and plain.masks.tolist() == [None] * 3
    assert plain.target.tolist() == [True, False, True]


@pytest.mark.parametrize("good_label", [0, "0", np.int64(0)])
def test_load_csv_takes_a_number_for_its_text(table: Path, good_label: Any) -> None:
    table.write_text("path,label\na.png,0\nb.png,1\n")
    data = load_csv(table, good_label=good_label)
    assert data.good_label == "0" and data.is_defect.tolist() == [False, True]


def test_load_csv_takes_other_places_and_delimiters(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "table.csv"
    other.parent.mkdir()
    other.write_text(f"path;label\na.png;0\n{tmp_path / 'b.png'};1\n")
    data = load_csv(other, images_root=tmp_path, delimiter=";", good_label="0")
    assert data.paths.tolist() == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;verdict\na.png;ok\n", r"columns \['file;verdict'\].*path_column='file', label_co"),
        ("file,label\na.png,ok\n", r"1 rows and the columns \['file', 'label'\]; .*'verdict'"),
        ("file,verdict\n", "has 0 rows"),
        ("", r"the columns \[\]"),
        ("file,verdict\na.png,ok\nb.png\n", "no 'verdict' in row 2 below the header"),
        ("file,verdict\n,ok\n", "no 'file' in row 1"),
        ("file,verdict\na.png,ok\nx.png,dent\n", r"2 files, of which 1 do not exist.*x\.png"),
        ("file,verdict\na.png,A\nb.png,B\n", "pass good_label"),
        (
            "file,verdict,verdict\na.png,ok,ok\n",
            r"table\.csv.*more than one .*label_column='verdict'",
        ),
    ],
)
def test_load_csv_says_what_it_expected_and_found(table: Path, text: str, message: str) -> None:
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_csv(table, "file", "verdict")
    with pytest.raises(ImageReadError, match="cannot be read as CSV"):
        load_csv(table.parent)


# Splits ------------------------------------------------------------------------------------------


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
        ({"groups": ["a", None] * 45}, "groups has 45 missing values, the first at place 1"),
        ({"groups": ["a", np.nan] * 45}, "groups has 45 missing values"),
        ({"groups": pd.array([1, pd.NA] * 45)}, "groups has 45 missing values"),
        ({"groups": np.where(np.arange(90) == 7, np.nan, 1)}, "groups has 1 .* place 7"),
        ({"types": [None, *TYPES[1:]]}, "types has 1 missing values"),
    ],
)
def test_impossible_splits_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_test_split_by_type(**{"paths": PATHS, "types": TYPES, **arguments})


@pytest.mark.parametrize("heights", [[6] * 4, [6, 7, 6, 8]])
@pytest.mark.parametrize("as_pillow", [False, True])
def test_images_in_a_list_stay_what_they_are(heights: list[int], as_pillow: bool) -> None:
    images: list[Any] = [np.zeros((height, 8), np.uint8) for height in heights]
    if as_pillow:
        images = [Image.fromarray(image) for image in images]
    split = train_test_split_by_type(images, ["good", "good", "x", "x"], 0.5, random_state=0)
    assert all(one is images[i] for one, i in zip(split.paths_train, split.train, strict=True))
    assert all(one is images[i] for one, i in zip(split.paths_test, split.test, strict=True))
    stacked = train_test_split_by_type(np.zeros((4, 6, 8)), ["good", "good", "x", "x"], 0.5)
    assert stacked.paths_test.shape == (2, 6, 8)


@pytest.mark.parametrize(("n_good", "n_bad", "test_size"), [(8, 4, 0.3), (15, 10, 0.15)])
def test_small_data_can_be_split_by_groups(n_good, n_bad, test_size):
    types = ["good"] * n_good + ["x"] * n_bad
    n = len(types)
    split = train_test_split_by_type(range(n), types, test_size, random_state=0, groups=range(n))
    assert len(split.test) == pytest.approx(test_size * n, abs=2)
    for side in (split.train, split.test):
        assert {types[i] for i in side} == {"good", "x"}


@pytest.mark.parametrize("test_size", [0.02, 0.99])
def test_small_and_large_shares_of_many_groups(test_size):
    types, groups = ["good", "x"] * 200, np.arange(400) // 2
    split = train_test_split_by_type(range(400), types, test_size, random_state=0, groups=groups)
    assert len(split.test) == pytest.approx(400 * test_size, abs=4)


def test_a_group_that_does_not_take_part_is_not_found(tmp_path: Path) -> None:
    write_images(tmp_path, "good/p.png", "dent/p.png")
    with pytest.raises(ValueError, match="finds nothing in the name of"):
        load_folder(tmp_path, group_pattern="(x)?p")


def test_load_visa_takes_a_product_through_a_link(visa: Path, tmp_path: Path) -> None:
    """The table names the product as the link does, or as the folder it leads to."""
    raw, table = tmp_path / "raw", visa.parent / "split_csv" / "1cls.csv"
    visa.rename(raw)
    visa.symlink_to(raw)
    named_as_the_link = load_visa(visa, split_csv=table)
    raw.rename(tmp_path / "candle")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "candle")
    named_as_the_folder = load_visa(link, split_csv=table)
    assert named_as_the_link.split.tolist() == named_as_the_folder.split.tolist()
