"""Arrays, tensors and what else may be passed as images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from defectcam.images import ImageReadError, read_image, read_images
from faults.cases_files import PIXELS
from faults.catalogue import Bench, Group

group = Group("cases_arrays")

HALF = np.full((8, 9), 0.5)


def refused(title: str, says: str, array: Any) -> None:
    group.refused(title, ImageReadError, says, lambda b: read_image(array))


def same(title: str, array: Any) -> None:
    """The array gives the pixels of PIXELS."""
    group.works(title, PIXELS, lambda b: read_image(array))


def changed(value: float, dtype: type = np.float32) -> np.ndarray:
    array = HALF.astype(dtype)
    array[3, 4] = value
    return array


refused("NaN in floats", "1 of 72 values are NaN", changed(np.nan))
refused("infinity in floats", "1 of 72 values are infinite", changed(np.inf))
refused("negative infinity in floats", "1 of 72 values are infinite", changed(-np.inf))
refused("negative floats", "If they are normalised", changed(-0.1))
refused("floats a little above 1", "must lie in [0, 1]", changed(1.001))
refused("floats up to 255", "divide by 255", changed(255))
refused("NaN in half precision", "are NaN", changed(np.nan, np.float16))
refused("int64", "image.astype(np.uint8)", PIXELS.astype(np.int64))
refused("int64 with negative values", "Divide by it", PIXELS.astype(np.int64) - 200)
refused("complex numbers", "dtype complex128", HALF * 1j)
refused("an array of objects", "dtype object", np.array([[1, 2], [3, None]], dtype=object))
refused("an array of text", "dtype <U1", np.array([["a", "b"]]))
refused("an array of dates", "dtype datetime64", np.zeros((3, 3), "datetime64[s]"))
refused("a structured array", "are not accepted", np.zeros((3, 3), [("a", int)]))
refused("no pixels", "is empty", np.zeros((0, 5), np.uint8))
refused("7 channels", "is not an image", np.zeros((8, 9, 7), np.uint8))
refused("one dimension", "is not an image", np.zeros(9, np.uint8))
refused("channels first", "np.moveaxis(image, 0, -1)", np.zeros((3, 8, 9), np.uint8))
refused("a batch for one image", "One image expected", np.zeros((2, 8, 9, 3), np.uint8))
refused(
    "masked values",
    "1 of 4 values are masked",
    np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [1, 0]]),
)
refused("a tensor with its channels first", "np.moveaxis", torch.zeros(3, 8, 9))


class Failing:
    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise OSError(5, "Input/output error")


group.refused(
    "an array-like that fails, among others",
    ImageReadError,
    "Image at index 1: The Failing cannot be made an array",
    lambda b: list(read_images([PIXELS, Failing()], n_workers=1)),
)
group.refused(
    "None among images",
    TypeError,
    "got NoneType",
    lambda b: b.model.predict([PIXELS, None]),
)

same("negative strides", np.flip(np.flip(PIXELS, 0).copy(), 0))
same("a part of a larger array", np.pad(PIXELS, ((3, 3), (2, 2), (0, 0)))[3:-3, 2:-2])
same("Fortran order", np.asfortranarray(PIXELS))
same("floats in [0, 1]", PIXELS / 255)
same("half precision", (PIXELS / 255).astype(np.float16))
same("16 bits of the other byte order", (PIXELS.astype(np.uint16) * 257).astype(">u2"))
same("opaque alpha", np.dstack([PIXELS, np.full((20, 24), 255, np.uint8)]))
same("a tensor with its channels last", torch.from_numpy(PIXELS))
same("a tensor that has gradients", torch.tensor(PIXELS / 255, requires_grad=True))
same("nothing masked", np.ma.array(PIXELS))


def read_only(bench: Bench) -> Any:
    array = PIXELS.copy()
    array.flags.writeable = False
    return bench.model.predict_proba([array])[0, 0] == bench.model.predict_proba([PIXELS])[0, 0]


def memory_mapped(bench: Bench) -> Any:
    np.save(bench.tmp / "a.npy", PIXELS)
    return read_image(np.load(bench.tmp / "a.npy", mmap_mode="r"))


group.works("read-only", True, read_only)
group.works("memory-mapped", PIXELS, memory_mapped)
group.works(
    "truth values: black and white",
    [0, 255],
    lambda b: read_image(np.array([[False, True]]))[0, :, 0].tolist(),
)
group.works("subnormal floats: black", 0, lambda b: int(read_image(np.full((2, 2), 1e-310)).max()))
group.works("negative zero: black", 0, lambda b: int(read_image(np.full((2, 2), -0.0)).max()))
group.works("images of 1 x 1 pixel", 2, lambda b: len(b.model.predict([PIXELS[:1, :1]] * 2)))
group.works(
    "several types in one list: each by its own scale",
    1,
    lambda b: len(
        set(
            b.model.predict_proba(
                [PIXELS, PIXELS / 255, PIXELS.astype(np.uint16) * 257, torch.from_numpy(PIXELS)]
            )[:, 0].tolist()
        )
    ),
)
group.works(
    "a tensor of grey images",
    2,
    lambda b: len(b.model.predict(torch.from_numpy(b.images[:2]))),
)
group.works(
    "a column of arrays of a data frame",
    8,
    lambda b: len(b.model.predict(pd.Series(list(b.images)))),
)
group.works(
    "a tensor in bfloat16",
    (8, 9, 3),
    lambda b: read_image(torch.zeros(8, 9).bfloat16()).shape,
)


def dask_array(array: Any, **options: Any) -> Any:
    """Return an array that is computed when it is asked for, in chunks; skip without Dask."""
    return pytest.importorskip("dask.array").from_array(np.asarray(array), **options)


def odd(images: Any) -> Any:
    """Leave each second image, so that a Dask array does not know how many it has."""
    return images[dask_array(np.arange(len(images)) % 2 == 1)]


group.works(
    "a Dask array of images and one of labels: as of NumPy",
    True,
    lambda b: np.array_equal(
        b.fit(dask_array(b.images, chunks=(3, 32, 32)), dask_array(b.labels)).predict_proba(
            dask_array(b.images, chunks=(2, 16, 32))
        ),
        b.fit().predict_proba(b.images),
    ),
)
group.works(
    "Dask arrays of unknown length, as masks leave them",
    True,
    lambda b: np.array_equal(
        b.fit(odd(dask_array(b.images)), odd(dask_array(b.labels))).predict_proba(b.images),
        b.fit(b.images[1::2], b.labels[1::2]).predict_proba(b.images),
    ),
)
group.works("a list of Dask arrays", PIXELS, lambda b: next(read_images([dask_array(PIXELS)])))
group.refused(
    "a Dask array of more labels than images",
    ValueError,
    "8 images and 16 labels",
    lambda b: b.fit(b.images, dask_array(b.labels * 2)),
)


def failing_chunks(bench: Bench) -> Any:
    def fail(block: Any) -> Any:
        raise OSError(5, "Input/output error")

    images = dask_array(bench.images, chunks=(2, 32, 32))
    return bench.model.predict(images.map_blocks(fail, dtype=np.uint8, meta=np.zeros((), np.uint8)))


group.refused(
    "a Dask array whose chunks cannot be loaded",
    ImageReadError,
    "Input/output error",
    failing_chunks,
)
group.works("a generator of images", 2, lambda b: len(b.model.predict(x for x in b.images[:2])))
group.works("an empty stream", [], lambda b: list(b.model.localize_iter(iter([]))))

for title, error, says, X in (
    ("no images", ValueError, "0 sample(s) while a minimum of 1", []),
    ("an array of no images", ValueError, "0 sample(s)", np.zeros((0, 8, 8), np.uint8)),
    ("None instead of images", TypeError, "X is a NoneType", None),
    ("bytes instead of images", TypeError, "X is a bytes", b"abc"),
    ("a dict of images", TypeError, "X is a dict", {"a": PIXELS}),
    ("a set of paths", TypeError, "whose order is arbitrary", {"a.png", "b.png"}),
    ("a data frame", TypeError, "pass the one that holds", pd.DataFrame({"path": ["a.png"]})),
    ("numbers instead of images", TypeError, "got int", [1, 2]),
    ("an array without dimensions", ValueError, "X is an array of shape ()", np.array("a.png")),
    ("five dimensions", ValueError, "expected (n, H, W)", np.zeros((1, 1, 8, 8, 3), np.uint8)),
    ("complex images", ImageReadError, "dtype complex128", np.zeros((2, 8, 8), complex)),
    (
        "a batch with its channels first",
        ImageReadError,
        "channels first",
        np.zeros((2, 3, 40, 40), np.uint8),
    ),
    (
        "a batch of tensors with their channels first",
        ImageReadError,
        "channels first",
        torch.zeros(2, 3, 40, 40),
    ),
    ("one image where many are expected", ValueError, "got one image: pass [image]", PIXELS),
):
    group.refused(title, error, says, lambda b, X=X: b.model.predict(X))
