"""Images of PyTorch data sets, data loaders and Hugging Face columns, each made when it is read.

Owns what such collections are told by, the stand-in for one of their images, and the labels that
they bring. It imports neither torch nor `datasets`: whoever passes one has loaded it. What the
values of an image mean is said by `images`.

An item of a collection is an image, or an image and a label: a pair, or a mapping with the keys
``image`` and ``label``. An image is a Pillow image, a path, an array with its channels last, or a
tensor with its channels first.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectcam.images import read_image

__all__ = ["DatasetImage", "dataset_images", "dataset_labels", "named_labels"]

_IMAGE, _LABEL = "image", "label"

#: Hugging Face formats whose rows are tables: an image in them is none, a label has no names.
_TABLE_FORMATS = ("pandas", "arrow", "polars")


class DatasetImage:
    """Stands for one image of a collection, which is asked for it when the image is read.

    To whoever reads it, it is an array: `numpy.asarray` gives RGB ``uint8`` of shape (H, W, 3).
    Nothing is kept. It is fetched in the thread that reads it, and of one collection by one thread
    at a time, because few data sets are written for more; a Pillow image of a file that is not
    loaded yet is decoded outside of that. It can be pickled if its collection can.

    Parameters
    ----------
    collection : _Collection
    index : int
    """

    def __init__(self, collection: _Collection, index: int) -> None:
        self._collection = collection
        self._index = index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        image, _ = self._collection.fetch(self._index)
        pixels = read_image(image)
        if dtype is not None:
            pixels = pixels.astype(dtype, copy=False)
        return pixels.copy() if copy else pixels

    def __repr__(self) -> str:
        return f"<image {self._index} of a {type(self._collection.items).__name__}>"


class _Collection:
    """A map-style collection, asked for one item at a time."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self._lock = threading.Lock()

    def fetch(self, index: int) -> tuple[Any, Any]:
        with self._lock:
            item = self.items[index]
        return _image_and_label(item)

    def __getstate__(self) -> dict[str, Any]:
        return {"items": self.items}  # a lock cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.items = state["items"]
        self._lock = threading.Lock()


def dataset_images(X: Any) -> list[DatasetImage] | None:
    """List the images of a data set, a data loader or a column, to be fetched later.

    Parameters
    ----------
    X : object
        A map-style `torch.utils.data.Dataset`; a `torch.utils.data.DataLoader` that goes through
        one in its order, whose batches, workers and ``collate_fn`` are not used; a Hugging Face
        data set with a column ``image``, or a column of images; any other immutable sequence whose
        first item is no path.

    Returns
    -------
    list of DatasetImage, or None
        In the order of the data set. None if `X` is nothing of the kind.

    Raises
    ------
    ValueError
        If a data loader shuffles, samples or batches in its own way, or there is no such column.
    TypeError
        If a data set can only be gone through, not indexed.
    """
    items = _indexable(X)
    if items is None:
        return None
    collection = _Collection(items)
    return [DatasetImage(collection, index) for index in range(len(items))]


def dataset_labels(X: Any) -> list[Any] | None:
    """Return the labels that a data set brings with its images.

    All items of a PyTorch data set are fetched once for it. Numbers that the data set has names for
    (torchvision's ``classes``, Hugging Face's ``ClassLabel``) become these names, because of bare
    numbers 0 would be taken for good.

    Parameters
    ----------
    X : object
        As for `dataset_images`.

    Returns
    -------
    list of labels, or None
        None if there are none.

    Raises
    ------
    ValueError
        If only some of the items have a label. -1 is none where there are names.
    """
    items = _indexable(X)
    if items is None or not len(items):
        return None
    if _has_columns(items):
        names, column = _feature_names((items.features or {}).get(_LABEL)), _label_column(items)
        if column is None or (names and all(_is_missing(_plain(label)) for label in column)):
            return None
        return _by_name(column, names)
    collection = _Collection(items)
    labels = [_plain(collection.fetch(index)[1]) for index in range(len(items))]
    n_missing = sum(label is None for label in labels)
    if n_missing == len(labels):
        return None
    if n_missing:
        raise ValueError(
            f"{n_missing} of {len(labels)} items of X ({type(X).__name__}) come without a label: "
            "pass y."
        )
    names, targets = _names_and_targets(items)
    # Where a data set gives other labels than those its names are for, the names are not for them.
    return labels if targets != labels else _by_name(labels, names)


def named_labels(y: Any, X: Any = None) -> Any:
    """Replace the numbers of a Hugging Face label column by their names; others stay as they are.

    Parameters
    ----------
    y : object
        Any labels.
    X : object, optional
        What they are labels of. A column of a Hugging Face data set in the format of pandas, Arrow
        or Polars does not know its names; beside its data set, it gets them from there.
    """
    feature = getattr(y, "features", None)
    if hasattr(feature, "names"):
        return _by_name(y, _feature_names(feature))
    if X is not None and _is_in_tables(X) and hasattr(y, "__len__"):
        column = _label_column(_as_objects(X))
        if column is not None and np.array_equal(np.asarray(y), np.asarray(column)):
            return _by_name(column, _feature_names((X.features or {}).get(_LABEL)))
    return y


def _by_name(labels: Any, names: Sequence[str] | None) -> list[Any]:
    """Name labels, if they are numbers and there are names for them."""
    plain = [_plain(label) for label in labels]
    if names is None:
        return plain
    n_missing = sum(map(_is_missing, plain))
    if n_missing:
        raise ValueError(
            f"{n_missing} of {len(plain)} images have no label, which is -1 or None in a column of "
            f"the classes {list(names)[:10]}: leave them out, in datasets for example "
            f"X.filter(lambda label: label not in (-1, None), input_columns={_LABEL!r})."
        )
    if not all(isinstance(label, int) and 0 <= label < len(names) for label in plain):
        return plain
    return [names[label] for label in plain]


def _is_missing(label: Any) -> bool:
    """Whether a label is what Hugging Face has for none."""
    return label is None or (isinstance(label, int) and label == -1)


def _feature_names(feature: Any) -> Sequence[str] | None:
    """Return the names that a Hugging Face feature has for numbers, unless they are these."""
    names = list(getattr(feature, "names", None) or ())
    return names if names and names != [str(number) for number in range(len(names))] else None


def _label_column(items: Any) -> Any:
    """Return the labels of a Hugging Face data set; None if it has none, or hides them."""
    if _LABEL not in items.column_names:
        return None
    try:
        return items[_LABEL][:]  # at once: the column itself is found to be missing only when read
    except KeyError:  # left out by the format that was set, or by a transform
        return None


def _indexable(X: Any) -> Any:
    """Return what images are indexed from; None if `X` is no data set, loader or column."""
    if _is_torch(X, "DataLoader"):
        items = _indexable(X.dataset)
        _refuse_own_order(X)
        return items
    if _is_torch(X, "IterableDataset"):
        raise TypeError(
            f"X is a {type(X).__name__}, a stream of items: pass a map-style Dataset, or the "
            "images of its items to localize_iter."
        )
    if _has_columns(X):
        if _IMAGE not in X.column_names:
            raise ValueError(
                f"X has the columns {list(X.column_names)}, none is called {_IMAGE!r}: pass the "
                "column with the images, X[name], and the labels as y."
            )
        return _as_objects(X)
    if _is_torch(X, "Dataset"):
        if not hasattr(X, "__len__"):
            raise TypeError(f"X is a {type(X).__name__} without a length: give it a __len__.")
        return X
    is_made_when_asked = isinstance(X, Sequence) and not isinstance(
        X, (str, bytes, tuple, range, MutableSequence)
    )
    if is_made_when_asked and len(X) and not isinstance(X[0], (str, os.PathLike)):
        return X
    return None


def _is_torch(X: Any, name: str) -> bool:
    """Whether `X` is of a class of `torch.utils.data`, which then somebody has imported."""
    module = sys.modules.get("torch.utils.data")
    return module is not None and isinstance(X, getattr(module, name))


def _has_columns(X: Any) -> bool:
    """Whether `X` looks like a map-style data set of Hugging Face."""
    return all(hasattr(X, name) for name in ("column_names", "features", "__len__", "__getitem__"))


def _is_in_tables(X: Any) -> bool:
    """Whether `X` is a Hugging Face data set in a format whose rows are tables."""
    form = getattr(X, "format", None)
    return _has_columns(X) and isinstance(form, Mapping) and form.get("type") in _TABLE_FORMATS


def _as_objects(X: Any) -> Any:
    """Undo a Hugging Face format whose rows are tables; what it hides stays hidden."""
    if not _is_in_tables(X):
        return X
    hides = {name: X.format[name] for name in ("columns", "output_all_columns")}
    return X.with_format(None, **hides)


def _refuse_own_order(loader: Any) -> None:
    module = sys.modules["torch.utils.data"]
    in_order = type(loader.sampler) is module.SequentialSampler
    in_plain_batches = loader.batch_sampler is None or (
        type(loader.batch_sampler) is module.BatchSampler
    )
    if not (in_order and in_plain_batches):
        own = loader.sampler if not in_order else loader.batch_sampler
        raise ValueError(
            f"X is a DataLoader with a {type(own).__name__}, but answers come in the order of the "
            "data set, of which no item is left out: pass X.dataset (fit shuffles by itself), or "
            "torch.utils.data.Subset for some of its items."
        )


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if _IMAGE not in item:
            raise TypeError(
                f"An item of X is a mapping with the keys {list(item)}: {_IMAGE!r} is missing."
            )
        image, label = item[_IMAGE], item.get(_LABEL)
    elif isinstance(item, (tuple, list)):
        image, label = item[0], item[1] if len(item) > 1 else None
    elif hasattr(item, "columns"):
        raise TypeError(
            f"An item of X is a table ({type(item).__name__}): a Hugging Face data set gives "
            "images without that format, with_format(None)."
        )
    else:
        image, label = item, None
    return _channels_last(image), label


def _channels_last(image: Any) -> Any:
    """Turn a tensor, whose channels come first, into an array with its channels last."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(image, torch.Tensor):
        return image
    if image.is_floating_point():
        image = image.float()  # NumPy has no bfloat16
    array = image.detach().cpu().numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _plain(label: Any) -> Any:
    """Turn a number of NumPy or torch into one of Python."""
    return label.item() if hasattr(label, "item") and getattr(label, "ndim", 1) == 0 else label


def _names_and_targets(items: Any) -> tuple[Sequence[str] | None, list[Any]]:
    """Return the class names of a data set, and the numbers that they are for."""
    if _is_torch(items, "Subset"):
        names, targets = _names_and_targets(items.dataset)
        return names, [targets[index] for index in items.indices] if names else []
    if _is_torch(items, "ConcatDataset"):
        parts = [_names_and_targets(part) for part in items.datasets]
        if any(names != parts[0][0] for names, _ in parts):
            raise ValueError(
                "The parts of X (ConcatDataset) have different classes, so that a number means "
                f"another one in each: {[names for names, _ in parts]}. Pass y."
            )
        return parts[0][0], [target for _, targets in parts for target in targets]
    if _has_columns(items):
        names, numbers = _feature_names((items.features or {}).get(_LABEL)), _label_column(items)
    else:
        names, numbers = getattr(items, "classes", None), getattr(items, "targets", None)
    if names is None or numbers is None:
        return None, []
    return names, [_plain(number) for number in numbers]
