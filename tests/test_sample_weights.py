from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defectcam.sample_weights import class_weights, weigh_rows

counts = st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any)


@given(counts)
def test_integers_repeat_whatever_their_type(weights: list[int]) -> None:
    expected = np.repeat(np.arange(len(weights)), weights).tolist()
    for dtype in (np.int64, np.float32, np.uint8):
        weighed = weigh_rows(np.array(weights, dtype=dtype), len(weights))
        assert weighed.rows.tolist() == expected
        assert (weighed.weights == 1).all()


@given(counts, st.integers(0, 11))
def test_a_fraction_makes_all_of_them_weights(weights: list[int], place: int) -> None:
    mixed = np.array(weights, dtype=float)
    mixed[place % len(mixed)] += 0.5
    weighed = weigh_rows(mixed, len(mixed))
    assert weighed.rows.tolist() == np.flatnonzero(mixed).tolist()
    assert weighed.weights.tolist() == mixed[mixed > 0].tolist()


@given(counts, st.randoms(use_true_random=False))
def test_the_way_back_finds_each_given_image_once(weights: list[int], random) -> None:
    weighed = weigh_rows(weights, len(weights))
    values = np.arange(len(weights)) * 10.0
    back = weighed.per_given(values[weighed.rows])
    expected = np.where(np.array(weights) > 0, values, np.nan)
    np.testing.assert_array_equal(back, expected)
    order = list(range(len(weighed.rows)))
    random.shuffle(order)
    found = weighed.given(np.array(order)).tolist()
    assert sorted(found) == np.flatnonzero(weights).tolist()
    firsts = [weighed.rows[order].tolist().index(image) for image in found]
    assert firsts == sorted(firsts)


def test_no_weights_are_ones() -> None:
    weighed = weigh_rows(None, 3)
    assert weighed.rows.tolist() == [0, 1, 2]
    assert weighed.weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -0.5], "Negative values in data passed to `sample_weight`: the least is -0.5"),
        ([0, 0], "at least one non-zero"),
        ([1, np.inf], "infinity"),
        ([1, 2, 3], "shape"),
        ([[1, 2]], "1D"),
    ],
)
def test_weights_that_do_not_do_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weigh_rows(weights, 2)


@pytest.mark.parametrize(
    ("class_weight", "expected"),
    [
        ("balanced", [2.0, 0.5, 2.0]),  # 6 images' weight, over 3 classes and each one's
        (3.0, [3.0, 1.0, 3.0]),
        (None, [1.0, 1.0, 1.0]),
        ({"dent": 2.0, "good": 1.0, "scratch": 5.0}, [2.0, 1.0, 5.0]),
    ],
)
def test_what_classes_weigh(class_weight: object, expected: list[float]) -> None:
    classes = np.array(["dent", "good", "scratch"])
    targets = np.array([0, 1, 1, 1, 2])
    weights = np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    found = class_weights(class_weight, classes, 1, targets, weights)
    np.testing.assert_allclose(found, expected)


def test_a_class_that_is_yet_to_come_weighs_nothing() -> None:
    classes = np.array(["dent", "good"])
    found = class_weights("balanced", classes, 1, np.array([1, 1]), np.ones(2))
    assert found.tolist() == [0.0, 0.5]
