from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectcam.labels import as_labels, find_classes
from defectcam.plain_labels import ANOMALY


@pytest.mark.parametrize(
    ("y", "labels", "good"),
    [
        (["scratch", "good", "good"], ["good", "scratch"], 0),
        (["dent", "OK", "dent"], ["OK", "dent"], 0),
        (["Normal", "A", "A"], ["A", "Normal"], 1),
        ([True, False, False], [False, True], 0),
        ([1, 0, 1], [0, 1], 0),
        ([1.0, 0.0], [0, 1], 0),
        (np.array([0, 1], dtype=np.uint8), [0, 1], 0),
        (np.array(["good", "bad"], dtype=object), ["bad", "good"], 1),
        (pd.Series(["good", "bad"], index=[7, 3]), ["bad", "good"], 1),
        (pd.Series(["good", "bad"], dtype="category"), ["bad", "good"], 1),
    ],
)
def test_two_labels_stay_as_they_are(y, labels, good):
    for target in ("anomaly", "type"):
        classes = find_classes(y, target, None)
        assert classes.labels.tolist() == labels
        assert classes.good == good
        assert classes.good_label == labels[good]
        assert classes.defects == [1 - good]


def test_several_defect_types_become_one_class_for_the_target_anomaly():
    y = ["dent", "good", "scratch", "good"]
    classes = find_classes(y, "anomaly", None)
    assert classes.labels.tolist() == [ANOMALY, "good"]
    assert classes.encode(y).tolist() == [0, 1, 0, 1]
    assert classes.merge(y).tolist() == [ANOMALY, "good", ANOMALY, "good"]


def test_several_defect_types_stay_apart_for_the_target_type():
    y = ["dent", "good", "scratch", "good"]
    classes = find_classes(y, "type", None)
    assert classes.labels.tolist() == ["dent", "good", "scratch"]
    assert classes.defects == [0, 2]
    assert classes.encode(y).tolist() == [0, 1, 2, 1]
    with pytest.raises(ValueError, match=r"unknown at fit: \['crack'\]"):
        classes.encode([*y, "crack"])


def test_numbers_can_be_defect_types_with_a_good_label():
    classes = find_classes([3, 1, 2, 1], "type", 1)
    assert classes.labels.tolist() == [1, 2, 3]
    assert classes.good == 0
    with pytest.raises(ValueError, match=r"pass y != good.*apart\.$"):
        find_classes([3, 1, 2, 1], "anomaly", 1)


@pytest.mark.parametrize("good_label", [None, "good", 0])
def test_labels_that_scikit_learn_has_numbered_are_told_what_to_do(good_label):
    numbered = (
        r"numbered them in sorted order.*CalibratedClassifierCV\(ensemble=False\).*"
        r"give it y != good.*target='type' and good_label="
    )
    with pytest.raises(ValueError, match=numbered):
        find_classes([1, 0, 2, 1], "anomaly", good_label)
    names = np.array(["good", "dent", "scratch", "good"])
    labels, numbers = np.unique(names, return_inverse=True)
    assert find_classes(numbers, "type", labels.tolist().index("good")).good == 1
    assert not find_classes(names != "good", "anomaly", None).good_label


def test_a_defect_type_unknown_at_fit_counts_as_the_one_defect_class():
    classes = find_classes(["good", "scratch"], "anomaly", None)
    assert classes.merge(["dent", "good", "scratch"]).tolist() == ["scratch", "good", "scratch"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["good", "a", "b", "zz"]), min_size=1))
def test_encoding_and_looking_up_gives_the_merged_labels(y):
    classes = find_classes([*y, "good", "zz"], "anomaly", None)
    assert np.array_equal(classes.labels[classes.encode(y)], classes.merge(y))
    assert np.array_equal(classes.encode(y) == classes.good, np.array(y) == "good")


@pytest.mark.parametrize(
    ("y", "good_label", "labels", "good"),
    [
        (["OK", "OK"], None, ["OK", "anomaly"], 0),
        (["good"], None, ["anomaly", "good"], 1),
        (["A"], "A", ["A", "anomaly"], 0),
        ([False, False], None, [False, True], 0),
        ([True, True], True, [False, True], 1),
        ([0, 0], None, [0, 1], 0),
        ([1, 1], 1, [0, 1], 1),
    ],
)
@pytest.mark.parametrize("target", ["anomaly", "type"])
def test_good_images_alone_get_a_defect_class_without_images(y, good_label, labels, good, target):
    classes = find_classes(y, target, good_label)
    assert classes.labels.tolist() == labels
    assert classes.labels.dtype.kind == np.asarray(y).dtype.kind
    assert classes.good == good
    assert classes.defects == [1 - good]
    assert set(classes.encode(y)) == {good}


def test_a_label_named_good_by_the_user_wins():
    classes = find_classes(["good", "perfect"], "anomaly", "perfect")
    assert classes.good_label == "perfect"


@pytest.mark.parametrize(
    ("y", "good_label", "message"),
    [
        (["bad", "bad"], None, r"one class only \(\['bad'\]\).*pass good_label='bad'"),
        ([True, True], None, "pass good_label=True"),
        ([1, 1], None, "pass good_label=1"),
        ([5, 5], 5, "pass False for all"),
        (["anomaly", "anomaly"], "anomaly", "name good images 'good'"),
        (["a", "b"], None, r"good_label=\.\.\., one of 'a', 'b'"),
        (["good", "bad"], "fine", "'fine' is not among the labels"),
        ([2, 5], None, "pass good_label"),
    ],
)
def test_classes_that_cannot_be_told_are_refused(y, good_label, message):
    with pytest.raises(ValueError, match=message):
        find_classes(y, "anomaly", good_label)


@pytest.mark.parametrize(
    "y",
    [
        ["good", None],
        ["good", float("nan")],
        np.array(["good", 1], dtype=object),
        [0.5, 1.0],
        [0.0, float("nan")],
        [0.0, float("inf")],
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        [["good", "bad"], ["good", "bad"]],
    ],
)
def test_what_are_no_labels_is_refused(y):
    with pytest.raises(ValueError):
        as_labels(np.asarray(y, dtype=object) if None in np.ravel(y) else y)


def test_a_column_of_labels_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="column-vector"):
        assert as_labels(np.array([[0], [1]])).tolist() == [0, 1]


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="needs NumPy 2")
def test_numpys_strings_of_any_length_are_strings():
    y = np.array(["good", "scratch"], dtype=np.dtypes.StringDType())
    assert as_labels(y).tolist() == ["good", "scratch"]
