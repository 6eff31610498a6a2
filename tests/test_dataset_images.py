"""Data sets, data loaders and columns as images that are made when they are read."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections import UserList
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from defectcam.dataset_images import DatasetImage, dataset_images, dataset_labels, named_labels
from defectcam.images import ImageReadError, content_hashes, read_image, read_images

RGB = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)


class Items(Dataset):
    """A map-style data set that counts what is fetched."""

    def __init__(self, items, **attributes):
        self.items = items
        self.fetched = []
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.fetched.append(index)
        return self.items[index]


class Column(Sequence):
    """As Hugging Face's of `datasets` 4 and later: makes its entries when asked."""

    def __init__(self, entries, feature=None):
        self.entries, self.features = entries, feature

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]


class ClassLabel:
    def __init__(self, *names):
        self.names = list(names)


class Rows:
    """As Hugging Face's map-style `Dataset`, whose rows are dictionaries."""

    def __init__(self, features, **columns):
        self.columns, self.features, self.column_names = columns, features, list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return Column(self.columns[key], self.features.get(key))
        return {name: column[key] for name, column in self.columns.items()}


def pillow(value: int) -> Image.Image:
    return Image.fromarray(np.full((5, 6, 3), value, np.uint8))


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        Image.fromarray(RGB),
        RGB.astype(np.float32) / 255,
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        (torch.from_numpy(RGB).permute(2, 0, 1).double() / 255).requires_grad_(),
    ],
    ids=["uint8", "Pillow", "float", "tensor", "float tensor", "tensor with gradient"],
)
@pytest.mark.parametrize("with_label", [False, True, "dict"])
def test_all_kinds_of_images_are_read_alike(image, with_label):
    item = {False: image, True: (image, 1), "dict": {"image": image, "label": 1}}[with_label]
    [source] = dataset_images(Items([item]))
    pixels = read_image(source)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)
    assert dataset_labels(Items([item])) == (None if with_label is False else [1])


def test_a_path_is_read_too(tmp_path):
    pillow(7).save(tmp_path / "a.png")
    [source] = dataset_images(Items([(str(tmp_path / "a.png"), "good")]))
    assert (read_image(source) == 7).all()


def test_grey_tensors_and_bfloat16_are_read():
    grey = torch.full((1, 5, 6), 0.5, dtype=torch.bfloat16)
    for image in (grey, grey[0]):
        [source] = dataset_images(Items([image]))
        assert (read_image(source) == 128).all()


def test_nothing_is_fetched_before_it_is_read():
    data = Items([pillow(value) for value in range(4)])
    sources = dataset_images(data)
    assert data.fetched == []
    assert read_image(sources[2])[0, 0, 0] == 2
    assert data.fetched == [2]
    assert [image[0, 0, 0] for image in read_images(sources, n_workers=3)] == [0, 1, 2, 3]


def test_items_are_fetched_by_one_thread_at_a_time():
    class Careless(Items):
        def __getitem__(self, index):
            assert not self.busy, "fetched by two threads at once"
            self.busy = True
            self.threads.add(threading.get_ident())
            time.sleep(0.01)
            self.busy = False
            return self.items[index]

    data = Careless([RGB] * 12, busy=False, threads=set())
    assert len(list(read_images(dataset_images(data), n_workers=4))) == 12
    assert len(data.threads) > 1  # there was somebody to keep apart


def test_sources_are_pickled_with_one_data_set():
    sources = dataset_images(Items([pillow(value) for value in range(3)]))
    again = pickle.loads(pickle.dumps(sources))
    assert [read_image(source)[0, 0, 0] for source in again] == [0, 1, 2]
    assert again[0]._collection is again[2]._collection
    assert read_image(copy.deepcopy(sources[1]))[0, 0, 0] == 1


def test_equal_images_have_equal_hashes():
    sources = dataset_images(Items([RGB, pillow(3), Image.fromarray(RGB)]))
    first, other, same = content_hashes(sources)
    assert first == same != other


def test_a_bad_image_is_named_by_its_place():
    normalised = torch.full((3, 5, 6), -1.5)
    sources = dataset_images(Items([torch.zeros(3, 5, 6), normalised]))
    with pytest.raises(ImageReadError, match=r"index 1.*normalised"):
        list(read_images(sources))


def test_arrays_of_a_source_are_the_callers():
    [source] = dataset_images(Items([RGB]))
    assert np.asarray(source, dtype=np.float32).dtype == np.float32
    own = np.array(source, copy=True)
    own[:] = 0
    assert RGB.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda data: data,
        lambda data: Subset(data, range(3)),
        lambda data: ConcatDataset([Subset(data, [0]), Subset(data, [1, 2])]),
        lambda data: DataLoader(data, batch_size=2, num_workers=0),
        lambda data: DataLoader(data, batch_size=None),
    ],
    ids=["Dataset", "Subset", "ConcatDataset", "DataLoader", "DataLoader without batches"],
)
def test_data_sets_and_loaders_keep_their_order(make):
    made = make(Items([(pillow(value), "ab"[value % 2]) for value in range(3)]))
    assert [read_image(source)[0, 0, 0] for source in dataset_images(made)] == [0, 1, 2]
    assert dataset_labels(made) == ["a", "b", "a"]


def test_a_tensor_data_set_is_one():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 5, 6)
    data = TensorDataset(images, torch.tensor([0, 1, 1]))
    assert [read_image(source)[0, 0, 0] for source in dataset_images(data)] == [0, 1, 2]
    labels = dataset_labels(data)
    assert labels == [0, 1, 1] and all(type(label) is int for label in labels)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"sampler": [0, 0]},
        {"sampler": WeightedRandomSampler([0.5, 0.5], 2)},
        {"batch_sampler": [[1], [0]]},
    ],
    ids=["shuffle", "list", "weighted", "batches"],
)
def test_loaders_with_an_order_of_their_own_are_refused(options):
    loader = DataLoader(Items([RGB, RGB]), **options)
    for use in (dataset_images, dataset_labels):
        with pytest.raises(ValueError, match=r"pass X\.dataset"):
            use(loader)


def test_streams_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield RGB

    with pytest.raises(TypeError, match=r"stream.*localize_iter"):
        dataset_images(Stream())
    with pytest.raises(TypeError, match="stream"):
        dataset_images(DataLoader(Stream()))


def test_a_data_set_without_a_length_is_refused():
    class Endless(Dataset):
        def __getitem__(self, index):
            return RGB

    with pytest.raises(TypeError, match="__len__"):
        dataset_images(Endless())


@pytest.mark.parametrize(
    "other",
    [
        [RGB],
        (RGB,),
        RGB,
        "a.png",
        b"a.png",
        range(3),
        UserList([RGB]),
        Column(["a.png", "b.png"]),
        iter([RGB]),
        None,
        5,
        Column([]),
    ],
    ids=lambda other: type(other).__name__,
)
def test_other_collections_are_none(other):
    assert dataset_images(other) is None
    assert dataset_labels(other) is None


# Hugging Face -------------------------------------------------------------------------------------


def test_a_column_of_images():
    column = Column([pillow(value) for value in range(3)])
    assert [read_image(source)[0, 0, 0] for source in dataset_images(column)] == [0, 1, 2]
    assert dataset_labels(column) is None


def test_rows_with_image_and_label():
    rows = Rows({"label": ClassLabel("bad", "good")}, image=[pillow(0), pillow(1)], label=[1, 0])
    assert [read_image(source)[0, 0, 0] for source in dataset_images(rows)] == [0, 1]
    assert dataset_labels(rows) == ["good", "bad"]
    assert dataset_labels(DataLoader(rows)) == ["good", "bad"]


def test_rows_without_label_or_image():
    assert dataset_labels(Rows({}, image=[pillow(0)])) is None
    with pytest.raises(ValueError, match=r"'photo'.*X\[name\]"):
        dataset_images(Rows({}, photo=[pillow(0)]))
    with pytest.raises(TypeError, match="'photo'"):
        read_image(dataset_images(Items([{"photo": RGB}]))[0])


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (Column([1, 0], ClassLabel("bad", "good")), ["good", "bad"]),
        (Column(np.array([1, 0]), ClassLabel("bad", "good")), ["good", "bad"]),
        (Column([1, 0], ClassLabel("0", "1")), [1, 0]),  # made of a number of classes alone
        (Column(["good", "bad"], ClassLabel("bad", "good")), ["good", "bad"]),
        (Column([2, 0], ClassLabel("bad", "good")), [2, 0]),
        ([-1, 1], [-1, 1]),  # numbers of the user's own
        ([1, 0], [1, 0]),
        (None, None),
    ],
)
def test_label_columns_are_named(y, expected):
    assert named_labels(y) == expected


@pytest.mark.parametrize("missing", [-1, None])
def test_images_without_a_label_are_counted(missing):
    names, images = {"label": ClassLabel("bad", "good")}, [pillow(0)] * 3
    rows = Rows(names, image=images, label=[1, missing, 0])
    told = r"1 of 3 images have no label, .*\['bad', 'good'\]: leave them out.*X\.filter"
    with pytest.raises(ValueError, match=told):
        dataset_labels(rows)
    with pytest.raises(ValueError, match=told):
        named_labels(rows["label"])
    assert dataset_labels(Rows(names, image=images, label=[missing] * 3)) is None


def test_a_missing_label_of_a_subset_is_not_the_last_name():
    data = Items([(RGB, 1), (RGB, -1)], classes=["bad", "good"], targets=[1, -1])
    with pytest.raises(ValueError, match="1 of 2 images have no label"):
        dataset_labels(data)


class InTables(Rows):
    """As `Rows` in the format of pandas: rows and columns are theirs, without names."""

    def __init__(self, features, hidden=(), **columns):
        super().__init__(features, **columns)
        shown = [name for name in columns if name not in hidden]
        self.format = {"type": "pandas", "columns": shown, "output_all_columns": False}

    def __getitem__(self, key):
        if isinstance(key, str):
            return pd.Series(self.columns[key], name=key)
        return pd.DataFrame({name: [column[key]] for name, column in self.columns.items()})

    def with_format(self, kind, columns, output_all_columns):
        assert kind is None and not output_all_columns
        return Rows(self.features, **{name: self.columns[name] for name in columns})


def test_a_format_of_tables_is_undone():
    images, names = [pillow(0), pillow(1), pillow(2)], {"label": ClassLabel("bad", "good")}
    rows = InTables(names, image=images, label=[1, 0, 1])
    assert [read_image(source)[0, 0, 0] for source in dataset_images(rows)] == [0, 1, 2]
    assert dataset_labels(rows) == ["good", "bad", "good"]
    assert named_labels(rows["label"], rows) == ["good", "bad", "good"]
    assert named_labels([0, 0, 1], rows) == [0, 0, 1]  # somebody else's
    assert dataset_labels(InTables(names, ("label",), image=images, label=[1, 0, 1])) is None


def test_an_item_that_is_a_table_is_refused():
    rows = InTables({}, image=[pillow(0)])
    with pytest.raises(TypeError, match=r"table \(DataFrame\).*with_format\(None\)"):
        read_image(dataset_images(Subset(rows, [0]))[0])


def test_a_column_that_a_format_hides_is_found_out_when_read():
    class Hidden(Rows):
        def __getitem__(self, key):
            return Lazy() if key == "label" else super().__getitem__(key)

    class Lazy(Sequence):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise KeyError("label")

    assert dataset_labels(Hidden({}, image=[pillow(0)], label=[1])) is None


# Names of torchvision's data sets -----------------------------------------------------------------


def test_numbers_with_names_become_names():
    data = Items([(RGB, 0), (RGB, 1)], classes=["broken", "good"], targets=[0, 1])
    assert dataset_labels(data) == ["broken", "good"]
    assert dataset_labels(Subset(data, [1])) == ["good"]
    assert dataset_labels(Subset(Subset(data, [1, 0]), [1, 0])) == ["broken", "good"]
    tensors = Items([(RGB, 1)], classes=["broken", "good"], targets=torch.tensor([1]))
    assert dataset_labels(tensors) == ["good"]


def test_labels_that_a_data_set_changes_are_not_named():
    turned = Items([(RGB, 1), (RGB, 0)], classes=["broken", "good"], targets=[0, 1])
    assert dataset_labels(turned) == [1, 0]


def test_labels_of_some_items_only_are_refused():
    with pytest.raises(ValueError, match="1 of 2 items"):
        dataset_labels(Items([(RGB, "good"), RGB]))


def test_a_source_says_what_it_is():
    [source] = dataset_images(Items([RGB]))
    assert isinstance(source, DatasetImage)
    assert repr(source) == "<image 0 of a Items>"


def test_parts_of_a_joined_data_set_keep_their_names(parts, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    (tmp_path / "other" / "broken").mkdir(parents=True)
    (tmp_path / "other" / "good").mkdir()
    for name in ("broken", "good"):
        Image.new("RGB", (8, 8)).save(tmp_path / "other" / name / "0.png")
    folder = torchvision.datasets.ImageFolder
    first, second = folder(parts), folder(tmp_path / "other")
    joined = ConcatDataset([first, Subset(first, [13, 0])])
    assert dataset_labels(joined) == ["good"] * 8 + ["scratch"] * 6 + ["scratch", "good"]
    with pytest.raises(ValueError, match="different classes"):
        dataset_labels(ConcatDataset([first, second]))


def test_views_of_a_hugging_face_data_set_keep_its_names():
    """`datasets` is not needed: what it has that others have not is columns and features."""

    class Columns(Dataset):
        column_names = ["image", "label"]  # noqa: RUF012
        features = {"label": SimpleNamespace(names=["broken", "good"])}  # noqa: RUF012

        def __init__(self, labels: list[int]) -> None:
            self.labels = labels

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, key: Any) -> Any:
            if key == "label":
                return self.labels
            return {"image": np.zeros((4, 4), np.uint8), "label": self.labels[key]}

    whole = Columns([1, 1, 0])
    assert dataset_labels(whole) == ["good", "good", "broken"]
    assert dataset_labels(Subset(whole, [2, 0])) == ["broken", "good"]
    joined = ConcatDataset([whole, Columns([0])])
    assert dataset_labels(joined) == ["good", "good", "broken", "broken"]


def test_labels_that_a_format_hides_are_none():
    class Hidden(list):
        column_names = ["image", "label"]  # noqa: RUF012
        features = {"label": None}  # noqa: RUF012

        def __getitem__(self, key: Any) -> Any:
            if key == "label":
                raise KeyError(key)
            return super().__getitem__(key)

    assert dataset_labels(Hidden([{"image": np.zeros((4, 4), np.uint8)}])) is None
