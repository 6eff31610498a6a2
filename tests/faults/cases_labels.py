"""Labels and sample weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from defectcam.labels import as_labels
from faults.catalogue import Bench, Group

group = Group("cases_labels")

TWO = ["good"] * 4 + ["scratch"] * 4
one_type = "y must hold labels of one type"


def refused(title: str, error: type[Exception], says: str, y: Any) -> None:
    group.refused(title, error, says, lambda b: b.fit(b.images, y))


for title, says, y in (
    (
        "labels that are None",
        f"{one_type}, strings, booleans or integers, got ['NoneType']",
        [None] * 8,
    ),
    ("NaN among strings", "got ['float', 'str']", [*TWO[:7], float("nan")]),
    ("NaN in a column", "got ['float', 'str']", pd.Series([*TWO[:7], float("nan")], dtype=object)),
    ("a missing text of pandas", "'NAType'", pd.Series([*TWO[:7], None], dtype="string")),
    (
        "a missing truth value of pandas",
        "'NAType'",
        pd.Series([True] * 7 + [None], dtype="boolean"),
    ),
    ("NaN among numbers", "fractions or NaN", [0.0] * 7 + [float("nan")]),
    ("strings and numbers", "got ['int', 'str']", ["good"] * 4 + [1] * 4),
    ("truth values and numbers", "got ['bool', 'int']", [False] * 4 + [1] * 4),
    ("fractions", "fractions or NaN", [0.5] * 8),
    ("infinite labels", "fractions or NaN", [0.0] * 7 + [float("inf")]),
    ("integers beyond 64 bits", "beyond 64 bits", [0] * 7 + [2**70]),
    ("labels of bytes", "y has dtype |S4", [b"good"] * 4 + [b"okay"] * 4),
    ("dates", "y has dtype datetime64", np.array(["2020-01-01"] * 8, "datetime64[D]")),
    ("two columns", "y should be a 1d array", np.array([TWO, TWO]).T),
    ("one column per class", "y should be a 1d array", np.eye(2)[[0] * 4 + [1] * 4]),
    ("fewer labels than images", "8 images and 5 labels", TWO[:5]),
    ("more labels than images", "8 images and 16 labels", TWO * 2),
    ("no labels", "requires y to be passed", None),
    ("one class that is not known to be good", "y holds one class only", ["scratch"] * 8),
    ("no class that can be good", "pass good_label", ["a"] * 4 + ["b"] * 4),
    ("two classes that can be good", "2 labels ('good', 'ok')", ["good"] * 4 + ["ok"] * 4),
    ("two spellings of good", "2 labels (' good ', 'good')", ["good"] * 4 + [" good "] * 4),
    ("numbers for several defect types", "pass good_label", [0] * 4 + [1, 2] * 2),
    ("-1 and 1", "pass good_label", [-1] * 4 + [1] * 4),
    (
        "labels that end with a null character",
        "ends with a null character",
        ["good"] * 4 + ["a\0"] * 4,
    ),
):
    refused(title, ValueError, says, y)
for title, says, y in (
    ("one text for all labels", "y is a str", "good"),
    ("a set of labels", "y is a set", {"good", "scratch"}),
    ("a dict of labels", "y is a dict", dict(enumerate(TWO))),
    ("a generator of labels", "y is a generator", (label for label in TWO)),
):
    refused(title, TypeError, says, y)

group.refused(
    "labels beside a folder",
    ValueError,
    "is a folder, whose sub-folders are the labels",
    lambda b: b.new().fit(b.parts, TWO),
)
for title, expected, y in (
    ("whole floats are integers", [0, 1], [0.0] * 4 + [1.0] * 4),
    (
        "truth values of pandas stay truth values",
        [False, True],
        pd.Series([False, True], dtype="boolean"),
    ),
    ("objects that are all integers", [0, 1], np.array([0, 1], dtype=object)),
    ("objects that are all truth values", [False, True], np.array([False, True], dtype=object)),
    ("categories", ["good", "scratch"], pd.Series(TWO, dtype="category")),
    (
        "a column with another index: by place",
        ["good", "scratch"],
        pd.Series(TWO, index=range(8)[::-1]),
    ),
):
    group.works(title, expected, lambda b, y=y: np.unique(as_labels(y)).tolist())


def classes(y: Any, weights: Any = None) -> Any:
    return lambda b: b.fit(b.images, y, sample_weight=weights).classes_.tolist()


group.warned(
    "one sample of a class",
    "A class has a single training image",
    ["good", "scratch"],
    lambda b: b.fit(b.images, ["good"] * 7 + ["scratch"], cv=3).classes_.tolist(),
)
group.works(
    "a class per image: defect types are one class",
    ["anomaly", "good"],
    classes([*"abcdefg", "good"]),
)
group.works("one good image", ["good", "scratch"], classes(["good"] + ["scratch"] * 7))
group.works(
    "1 defective image among 200",
    True,
    lambda b: bool(
        np.isfinite(
            b.fit(
                np.repeat(b.images, 25, 0)[:200], [False] * 199 + [True], augmentation="none"
            ).held_out_probability_
        ).all()
    ),
)
group.warned(
    "the same picture as good and as defective",
    "near-duplicates, labelled good and defective",
    8,
    lambda b: len(b.fit(np.repeat(b.images[:1], 8, 0), TWO).predict(b.images)),
)


def unseen(bench: Bench) -> Any:
    return bench.model.score(bench.images, ["good"] * 4 + ["never seen"] * 4) >= 0.5


group.works("a defect type unseen in training counts as a defect", True, unseen)

for title, says, weights in (
    ("negative weights", "Negative values in data passed to `sample_weight`", [-1] * 8),
    ("weights that are NaN", "sample_weight contains NaN", [np.nan] * 8),
    ("infinite weights", "sample_weight contains infinity", [np.inf] * 8),
    ("weights that are all zero", "at least one non-zero number", [0] * 8),
    ("fewer weights than images", "sample_weight.shape == (3,), expected (8,)", [1] * 3),
    ("weights in two columns", "must be 1D array or scalar", np.ones((8, 2))),
    ("weights that are text", "could not convert string to float", ["a"] * 8),
    ("repetitions beyond all memory", "divide it by its mean", [10**9] * 8),
    ("weights beyond single precision", "single precision", [1e30 + 0.5, *[0.5] * 7]),
    ("weights below single precision", "single precision", [1e-300] * 8),
    ("weights that leave no good image", "y holds one class only", [0] * 4 + [1] * 4),
):
    group.refused(title, ValueError, says, lambda b, w=weights: b.fit(sample_weight=w))
group.warned(
    "weights that leave no defective image",
    "There are only good images",
    ["anomaly", "good"],
    lambda b: b.fit(sample_weight=[1] * 4 + [0] * 4).classes_.tolist(),
)
