from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import draw_part
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags

from defectcam import DefectCAMClassifier, FlatImages

NAMES = np.array(["scratch"] * 6 + ["good"] * 6)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Return 6 scratched and 6 good parts, colour, of shape (12, 24, 32, 3), from 0 to 255."""
    rng = np.random.default_rng(4)
    parts = np.stack([draw_part(rng, scratched=i < 6, size=32)[4:28] for i in range(12)])
    parts[0, 0, 0], parts[0, 0, 1] = 0, 255
    return parts


@pytest.fixture
def make(tiny_classifier) -> Callable[..., FlatImages]:
    def make(image_shape: Any = (24, 32, 3), **parameters: Any) -> FlatImages:
        return FlatImages(tiny_classifier(image_size=32, **parameters), image_shape=image_shape)

    return make


def rows(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.reshape(len(images), -1)


class Mirror(ClassifierMixin, BaseEstimator):
    """An image classifier that keeps what it is given."""

    def fit(self, X: Any, y: Any) -> Mirror:
        self.images_, self.classes_ = X, np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return self.classes_[np.zeros(len(X), dtype=int)]


# --- From rows to images ------------------------------------------------------------------------


def test_rows_of_images_give_what_the_images_give(make, images):
    flat = make().fit(rows(images), NAMES)
    plain = clone(flat.estimator).fit(images, NAMES)
    np.testing.assert_array_equal(flat.to_images(rows(images)), images)
    for answer in ("predict", "predict_proba", "decision_function"):
        found = getattr(flat, answer)(rows(images))
        np.testing.assert_array_equal(found, getattr(plain, answer)(images))
    assert flat.score(rows(images), NAMES) == plain.score(images, NAMES)
    weights = np.arange(12)
    assert flat.score(rows(images), NAMES, weights) == plain.score(images, NAMES, weights)
    assert flat.classes_.tolist() == ["good", "scratch"]
    assert flat.n_features_in_ == 24 * 32 * 3


@pytest.mark.parametrize(
    ("image_shape", "n_features", "expected"),
    [
        (None, 64, (8, 8, 1)),
        (None, 63, (1, 63, 1)),
        (None, 1, (1, 1, 1)),
        (None, 48, (1, 48, 1)),  # not (4, 4, 3): colour has to be asked for
        ((4, 4, 3), 48, (4, 4, 3)),
        ([6, 8], 48, (6, 8, 1)),
    ],
)
def test_shape_of_an_image(image_shape, n_features, expected):
    X = np.arange(2 * n_features, dtype=float).reshape(2, n_features)
    flat = FlatImages(Mirror(), image_shape=image_shape).fit(X, [0, 1])
    assert flat.image_shape_ == expected
    assert flat.estimator_.images_.shape == (2, *expected)
    assert flat.image_shape == image_shape


def test_one_range_for_all_features_and_later_values_are_clipped():
    X = np.array([[-1.0, 0.0, 1.0, 4.0], [-1.0, -1.0, -1.0, 0.25]])
    flat = FlatImages(Mirror()).fit(X, [0, 1])
    assert flat.value_range_ == (-1.0, 4.0)
    assert flat.estimator_.images_[0].ravel().tolist() == [0, 51, 102, 255]
    assert flat.estimator_.images_.dtype == np.uint8
    later = flat.to_images([[-1e300, 1e300, 4.0, -1.0]])
    assert later.ravel().tolist() == [0, 255, 255, 0]
    assert FlatImages(Mirror()).fit(np.full((2, 4), 7), [0, 1]).to_images(X).max() == 0


def test_a_sample_of_weight_zero_is_left_out_of_the_range_too(make, images):
    X = rows(images).astype(float)
    X[3] = 1e6
    weights = np.where(np.arange(12) == 3, 0, 1)
    flat = make().fit(X, NAMES, sample_weight=weights)
    assert flat.value_range_ == (0, 255)
    kept = np.flatnonzero(weights)
    without = make().fit(X[kept], NAMES[kept])
    np.testing.assert_array_equal(flat.predict_proba(X), without.predict_proba(X))


def test_names_of_columns_are_kept(make, images):
    frame = pd.DataFrame(rows(images)).add_prefix("pixel")
    flat = make().fit(frame, NAMES)
    assert flat.feature_names_in_[1] == "pixel1"
    with pytest.raises(ValueError, match="feature names"):
        flat.predict(frame.iloc[:, ::-1])


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        ((5, 5), r"image_shape=\(5, 5\) has 25 values, but X has 16 features"),
        ((16,), "positive integers"),
        ((4, 4, 1, 1), "positive integers"),
        ((4, 4.0), "positive integers"),
        ((-4, -4), "positive integers"),
        (16, "'image_shape' parameter of FlatImages must be"),
    ],
)
def test_a_wrong_shape_is_refused(image_shape, message):
    with pytest.raises(ValueError, match=message):
        FlatImages(Mirror(), image_shape=image_shape).fit(np.eye(2, 16), [0, 1])


# --- Labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "good", "target"),
    [
        (["dent", "good"], "good", "anomaly"),
        ([1, 0], 0, "anomaly"),
        ([True, False], False, "anomaly"),
        (["two", "one"], "one", "anomaly"),
        ([3, 7], 3, "anomaly"),
        (["dent", "scratch", "OK"], "OK", "type"),
        ([2, 1, 0], 0, "type"),
        (["one", "two", "three"], "one", "type"),
        ([-1.0, 1.0, 2.0], -1, "type"),
    ],
)
def test_what_labels_ask_for(make, images, labels, good, target):
    y = np.resize(labels, 12)
    flat = make(max_epochs=1).fit(rows(images), y)
    assert flat.estimator_.good_label_ == good
    assert flat.estimator_.target == target
    assert flat.classes_.tolist() == sorted(labels)
    assert set(flat.predict(rows(images)).tolist()) <= set(labels)
    assert (flat.estimator.good_label, flat.estimator.target) == (None, "anomaly")  # untouched


def test_what_the_user_said_is_good_stays_so(make, images):
    y = np.resize(["one", "two", "three"], 12)
    flat = make(good_label="two", max_epochs=1).fit(rows(images), y)
    assert flat.estimator_.good_label_ == "two"


def test_among_labels_that_are_no_defects_the_most_probable_is_predicted(make, images):
    X = rows(images)
    flat = make(threshold=1.0).fit(X, np.resize(["one", "two", "three"], 12))
    assert set(flat.estimator_.predict(images)) == {"one"}  # no defect is that probable
    probability = flat.predict_proba(X)
    predicted = flat.classes_[probability.argmax(1)]
    assert set(predicted) != {"one"}
    assert flat.predict(X).tolist() == predicted.tolist()
    assert flat.decision_function(X).argmax(1).tolist() == probability.argmax(1).tolist()
    assert flat.score(X, predicted) == 1


def test_among_defect_types_the_threshold_decides(make, images):
    X = rows(images)
    flat = make(threshold=1.0).fit(X, np.resize(["good", "two", "three"], 12))
    assert set(flat.predict(X)) == {"good"}
    assert flat.decision_function(X).argmax(1).tolist() == [0] * 12


# --- Around the classifier ----------------------------------------------------------------------


def test_parameters_are_nested(make):
    flat = make()
    assert flat.get_params()["estimator__backbone"] == "test_efficientnet"
    assert flat.set_params(estimator__pooling="max").estimator.pooling == "max"
    assert clone(flat).estimator is not flat.estimator
    assert FlatImages().get_params() == {"estimator": None, "image_shape": None}
    assert isinstance(FlatImages()._wrapped(), DefectCAMClassifier)


def test_without_fit_there_is_no_answer(make, images):
    for answer in ("predict", "predict_proba", "decision_function", "to_images"):
        with pytest.raises(NotFittedError):
            getattr(make(), answer)(rows(images))


def test_after_a_fit_that_failed_all_is_as_it_was(make, images):
    X, y = rows(images), [1] * 6 + [0] * 6
    flat = make()
    with pytest.raises(ValueError):
        flat.fit(X, [1] * 12)  # defects alone
    with pytest.raises(NotFittedError):
        flat.predict(X)
    before = flat.fit(X, y).predict_proba(X)
    for other in (100.0 * X, X[:, :12]):
        with pytest.raises(ValueError):
            flat.fit(other, [1] * 12)
    np.testing.assert_array_equal(flat.predict_proba(X), before)


def test_it_has_what_the_classifier_has():
    flat = FlatImages(Mirror())
    assert hasattr(FlatImages(), "predict_proba")
    assert hasattr(FlatImages(DummyClassifier()), "predict_proba")
    assert not hasattr(flat, "predict_proba")
    assert not hasattr(flat, "decision_function")
    with pytest.raises(TypeError, match="sample_weight"):
        flat.fit(np.eye(2, 16), [0, 1], sample_weight=[1, 2])


def test_tags_say_that_it_takes_dense_matrices(make):
    tags = get_tags(make())
    assert tags.input_tags.two_d_array
    assert not tags.input_tags.three_d_array
    assert not tags.input_tags.sparse
    assert tags.classifier_tags.multi_class
