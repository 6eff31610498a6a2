from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from defectcam.exceptions import SkippedFilesWarning
from defectcam.images import ImageReadError, read_image
from defectcam.sources import as_sources, is_stream, labelled_sources, paths_of, spread

GREY = np.zeros((5, 6), dtype=np.uint8)
RGB = np.zeros((5, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        RGB,
        GREY[..., None],
        np.zeros((5, 6, 4), dtype=np.uint8),
        GREY.astype(np.float32),
        Image.fromarray(RGB),
        "part.png",
        Path("part.png"),
    ],
    ids=lambda image: type(image).__name__,
)
def test_one_image_is_single(image):
    sources = as_sources(image)
    assert sources.single
    assert sources.items[0] is image
    assert len(sources.items) == 1


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((7, 5, 6), dtype=np.uint8),
        np.zeros((7, 5, 6, 3), dtype=np.uint8),
        [GREY] * 7,
        (RGB,) * 7,
        [RGB, GREY] * 3 + ["part.png"],
        np.array([f"{i}.png" for i in range(7)]),
        pd.Series([f"{i}.png" for i in range(7)], index=range(10, 17)),
        (Path(f"{i}.png") for i in range(7)),
    ],
)
def test_many_images_are_listed_in_order(images):
    sources = as_sources(images)
    assert not sources.single
    assert len(sources.items) == 7


def test_columns_of_arrow_are_listed():
    pyarrow = pytest.importorskip("pyarrow")
    paths = ["a.png", "b.png"]
    for column in (pyarrow.array(paths), pyarrow.chunked_array([paths[:1], paths[1:]])):
        assert as_sources(column).items == paths
        assert not is_stream(column)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_is_refused_with_its_columns(library):
    table = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "table"}[library]
    make = getattr(pytest.importorskip(library), table)
    X = make({"path": ["a.png", "b.png"], "label": ["good", "dent"]})
    message = r"X is a (DataFrame|Table) with the columns \['path', 'label'\]: pass the one"
    with pytest.raises(TypeError, match=message):
        as_sources(X)
    assert not is_stream(X)  # which would go through the names of columns


def test_order_is_kept():
    names = ["b.png", "a.png", "c.png"]
    assert as_sources(pd.Series(names, index=[2, 0, 1])).items == names
    assert as_sources(np.array(names)).items == names
    stack = np.stack([GREY + value for value in (6, 0, 3)])
    assert [image[0, 0] for image in as_sources(stack).items] == [6, 0, 3]


def test_a_list_of_one_is_not_single():
    assert not as_sources(["part.png"]).single
    assert not as_sources(RGB[None]).single


def test_a_folder_stands_for_all_images_below_it(parts):
    sources = as_sources(parts)
    assert not sources.single
    assert len(sources.items) == 14
    assert sources.items == as_sources(os.fspath(parts)).items


def test_only_files_are_paths():
    sources = as_sources(["a.png", RGB, Path("b.png"), Image.fromarray(RGB)])
    assert paths_of(sources) == ["a.png", Path("b.png")]


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 5, 6, 3)), ()])
def test_nothing_is_refused(nothing):
    with pytest.raises(ValueError, match="0 sample"):
        as_sources(nothing)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Found no image"):
        as_sources(tmp_path)


@pytest.mark.parametrize("wrong", [5, None, b"part.png", {"a": 1}])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(TypeError, match="expected a folder"):
        as_sources(wrong)


@pytest.mark.parametrize("shape", [(5,), (1, 2, 3, 4, 5)])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        as_sources(np.zeros(shape))


def test_a_folder_brings_its_labels(parts):
    sources, labels = labelled_sources(parts, None, None)
    assert [Path(path).parent.name for path in sources.items] == list(labels)
    assert sorted(set(labels)) == ["good", "scratch"]


def test_a_folder_with_labels_is_refused(parts):
    with pytest.raises(ValueError, match="leave y out"):
        labelled_sources(parts, ["good"] * 14, None)


def test_images_need_labels():
    with pytest.raises(ValueError, match="requires y to be passed"):
        labelled_sources([GREY, GREY], None, None)


def test_as_many_labels_as_images():
    with pytest.raises(ValueError, match="inconsistent numbers of samples: 2 images and 3 labels"):
        labelled_sources([GREY, GREY], [0, 1, 0], None)


def test_one_image_cannot_be_learned_from():
    with pytest.raises(ValueError, match=r"got one 'part\.png'"):
        labelled_sources("part.png", ["good"], None)


# Data sets: what is one, and what its items are, is tested with `dataset_images` ------------------


class Pairs(torch.utils.data.Dataset):
    def __init__(self, *pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def test_a_data_set_is_many_images_and_brings_its_labels():
    data = Pairs((RGB, "good"), (RGB, "dent"), (GREY, "good"))
    sources, labels = labelled_sources(data, None, None)
    assert not sources.single
    assert [read_image(source).shape for source in sources.items] == [(5, 6, 3)] * 3
    assert list(labels) == ["good", "dent", "good"]
    assert paths_of(sources) == []
    assert as_sources(sources.items[0]) == ([sources.items[0]], True)


def test_labels_that_are_given_come_before_those_of_the_data_set():
    _, labels = labelled_sources(Pairs((RGB, 0), (RGB, 1)), ["good", "dent"], None)
    assert labels == ["good", "dent"]
    with pytest.raises(ValueError, match="2 images and 1 labels"):
        labelled_sources(Pairs((RGB, 0), (RGB, 1)), ["good"], None)


def test_a_data_set_without_labels_needs_some():
    with pytest.raises(ValueError, match="requires y to be passed"):
        labelled_sources(Pairs(RGB, RGB), None, None)
    with pytest.raises(ValueError, match="0 sample"):
        as_sources(Pairs())


def test_what_is_a_stream():
    assert is_stream([RGB]) and is_stream(iter([RGB])) and is_stream(RGB[None])
    assert not is_stream("parts") and not is_stream(Path("parts")) and not is_stream(Pairs(RGB))


def test_one_image_is_no_stream_of_its_rows():
    for image in (RGB, RGB[..., 0], RGB[..., :1], torch.zeros(4, 6, 3), Image.new("RGB", (6, 4))):
        assert not is_stream(image)
    assert is_stream(np.stack([RGB[..., 0]] * 5))


def test_pictures_in_a_folder_that_are_not_read_are_warned_of(tmp_path: Path) -> None:
    for name in ("good/1.png", "good/2.heic", "dent/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for take in (as_sources, lambda X: labelled_sources(X, None, None)[0]):
        with pytest.warns(SkippedFilesWarning, match=r"1 file is skipped .*\.heic") as caught:
            assert len(take(tmp_path).items) == 2
        assert len(caught) == 1
    (tmp_path / "good" / "1.png").unlink()
    with pytest.raises(ImageReadError, match=r"Found no image .*1 file is skipped"):
        as_sources(tmp_path / "good")


def test_chosen_items_are_spread_over_those_given() -> None:
    assert spread(list(range(1000)), 100)[::33] == [0, 333, 666, 999]
    assert spread([5, 6], 100) == [5, 6]
