"""What users may pass as ``X``: a folder, one image or many, as files, arrays or Pillow images.

Owns the way from ``X`` to a list of image sources. It reads no pixels; what is a data set,
`dataset_images` knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from defectcam.dataset_images import (
    DatasetImage,
    dataset_images,
    dataset_labels,
    named_labels,
)
from defectcam.folders import labelled_folder, skipped_files, warn_of_skipped
from defectcam.images import (
    ImageReadError,
    as_array,
    find_images,
    find_skipped,
    is_path,
    skipped_text,
)
from defectcam.views import ImageView, original_of


class Sources(NamedTuple):
    """Images to read.

    Attributes
    ----------
    items : list of path, array, PIL.Image.Image, DatasetImage or ImageView
    single : bool
        Whether ``X`` was one image, not a collection.
    """

    items: list[Any]
    single: bool


def labelled_sources(X: Any, y: Any, good_label: Any) -> tuple[Sources, Any]:
    """Images and labels: a folder and a data set may bring their own, else ``y`` must."""
    if is_path(X) and os.path.isdir(X):
        if y is None:
            paths, types = labelled_folder(X, good_label)
            warn_of_skipped(X, skipped_files(X))
            return Sources(list(paths), single=False), types
        raise ValueError(
            f"X={os.fspath(X)!r} is a folder, whose sub-folders are the labels: leave y out, or "
            "pass a list of files."
        )
    sources = as_sources(X)
    if sources.single:
        raise ValueError(
            f"Expected a folder of labelled images or a sequence of images, got one {_named(X)}."
        )
    y = dataset_labels(X) if y is None else _listed(named_labels(y, X))
    if y is None:
        raise ValueError(
            "requires y to be passed, but the target y is None: labels come from the sub-folders "
            "only when X is a folder, and from a data set whose items are images with labels."
        )
    if len(sources.items) != len(y):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: {len(sources.items)} "
            f"images and {len(y)} labels."
        )
    return sources, y


def brings_labels(X: Any, good_label: Any = None) -> bool:
    """Whether ``X`` is a folder with a sub-folder per class, or a data set with labels.

    Parameters
    ----------
    X : anything that `as_sources` takes
    good_label : label, optional
        Of a folder: by default, the good sub-folder must have one of the usual names.
    """
    if not is_path(X):
        return dataset_labels(X) is not None
    if not os.path.isdir(X):
        return False
    try:
        labelled_folder(X, good_label if isinstance(good_label, str) else None)
    except ValueError:  # a folder of images, whose names are not labels
        return False
    return True


def _listed(y: Any) -> Any:
    """Refuse what has no order or is no collection, and would be counted all the same."""
    if isinstance(y, (str, bytes, Mapping, Set)) or not hasattr(y, "__len__"):
        raise TypeError(
            f"y is a {type(y).__name__}: expected a list or an array of labels, one per image."
        )
    if any(n != n for n in getattr(y, "shape", ())):
        y = np.asarray(y)  # a lazy array, of Dask for one, that a mask has left without a length
    return y


def as_sources(X: Any) -> Sources:
    """List the images of ``X``.

    Parameters
    ----------
    X : path, array, PIL.Image.Image, ImageView or sequence of them, or data set
        A folder stands for all images below it. Of arrays, ``(H, W)`` and ``(H, W, 1 to 4)`` are
        one image; ``(n, H, W)`` and ``(n, H, W, C)`` are n of them. Of a data set, see
        `defectcam.dataset_images.dataset_images`, images are fetched when they are read.

    Raises
    ------
    TypeError
        If ``X`` is none of these.
    ValueError
        If ``X`` is empty.
    """
    if is_path(X):
        if os.path.isdir(X):
            found = _non_empty(find_images(X), X)
            warn_of_skipped(X, find_skipped(X))
            return found
        return Sources([X], single=True)
    if isinstance(X, (Image.Image, DatasetImage, ImageView)):
        return Sources([X], single=True)
    if _is_array(X):
        X = _own_array(X)
    if isinstance(X, np.ndarray) and X.dtype.kind in "buifc":
        if _is_one_image(X):
            return Sources([X], single=True)
        if X.ndim not in (3, 4):
            raise ValueError(
                f"X has shape {X.shape}: expected (n, H, W), (n, H, W, C) or one image."
            )
        return _non_empty(list(X), X)
    of_dataset = dataset_images(X)
    if of_dataset is not None:
        return _non_empty(of_dataset, X)
    if isinstance(X, (set, frozenset)):
        raise TypeError("X is a set, whose order is arbitrary, so no answer would say whose it is.")
    if _is_table(X):
        names = getattr(X, "column_names", X.columns)  # the columns of an Arrow table are no names
        raise TypeError(
            f"X is a {_named(X)} with the columns {list(names)[:10]}: pass the one that holds "
            "the images or their paths, X[name]."
        )
    if _is_arrow(X):
        X = X.to_pylist()
    if not isinstance(X, Iterable) or isinstance(X, (bytes, dict)):
        raise TypeError(
            f"X is a {_named(X)}: expected a folder, a file, an array, a Pillow image, a sequence "
            "of files or images, or a data set."
        )
    return _non_empty(list(X), X)


def paths_of(sources: Sources) -> list[Any]:
    """Return the files among the sources, also those that are seen through views."""
    return [item for item in map(original_of, sources.items) if is_path(item)]


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Choose at most so many items, evenly spaced over all."""
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[index] for index in chosen]


def is_stream(X: Any) -> bool:
    """Whether images can be taken from ``X`` one after the other without `as_sources`."""
    if isinstance(X, (Image.Image, DatasetImage, ImageView)) or (_is_array(X) and _is_one_image(X)):
        return False  # going through it would give its rows
    return not (is_path(X) or _is_table(X) or _is_arrow(X)) and dataset_images(X) is None


def _is_table(X: Any) -> bool:
    """Whether `X` is a data frame, of pandas or Polars, or an Arrow table."""
    return hasattr(X, "shape") and hasattr(X, "columns")


def _is_arrow(X: Any) -> bool:
    """Whether `X` is an Arrow array, whose entries are scalars of its own, no paths or images."""
    return hasattr(X, "to_pylist")


def _is_array(X: Any) -> bool:
    """Whether `X` is an array of some library, or a tensor, and so no list of images."""
    return all(hasattr(X, name) for name in ("__array__", "shape", "ndim", "dtype")) and (
        not hasattr(X, "iloc")  # a column of a data frame holds paths or images
    )


def _is_one_image(array: Any) -> bool:
    return array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[2] <= 4)


def _own_array(X: Any) -> Any:
    array = X if isinstance(X, np.ndarray) else as_array(X)
    if array.ndim == 0:
        raise ValueError(
            f"X is an array of shape (): {array.item()!r:.80}. Pass an image or a path."
        )
    return array


def _named(X: Any) -> str:
    return repr(os.fspath(X)) if is_path(X) else type(X).__name__


def _non_empty(items: list[Any], X: Any) -> Sources:
    if not items:
        error = ImageReadError if is_path(X) else ValueError
        skipped = find_skipped(X) if is_path(X) else []
        raise error(
            f"Found no image in X ({_named(X)}): 0 sample(s) while a minimum of 1 is required."
            + (f" {skipped_text(skipped)}." if skipped else "")
        )
    return Sources(items, single=False)
