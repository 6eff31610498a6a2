"""scikit-learn's own checks, on matrices: `FlatImages` around a classifier that is tiny and whole.

The estimator checks draw their data in two dimensions, so they pass by an estimator of images that
says so in its tags. `FlatImages` takes such data and hands every call on, so what is checked here
is `DefectCAMClassifier` with it: validation, weights, pickling, idempotence, untouched arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from defectcam import DefectCAMClassifier, FlatImages

#: The two checks that do not pass as they stand, and why.
NOT_PASSED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "it shuffles one of the two data sets that it compares, and mini-batches are drawn in the "
        "order of the images, as in every estimator trained by stochastic gradient descent; "
        "test_integer_weights_are_repetition runs the same check without the shuffle"
    ),
    "check_array_api_input": (
        "scikit-learn skips it unless SCIPY_ARRAY_API=1 was set before SciPy was imported; images "
        "are decoded into NumPy arrays, and the tags promise no other namespace"
    ),
}


def tiny() -> FlatImages:
    """Return the smallest configuration that learns scikit-learn's blobs."""
    classifier = DefectCAMClassifier(
        "test_efficientnet",
        weights=None,
        image_size=32,
        pooling="average",
        heatmap="cam",
        augmentation="none",
        learning_rate=1e-2,
        max_epochs=4,
        batch_size=20,
        cv=None,
        device="cpu",
        precision="float32",
        n_jobs=1,
        random_state=0,
    )
    return FlatImages(classifier)


def not_passed(estimator: Any) -> dict[str, str]:
    return NOT_PASSED


@parametrize_with_checks([tiny()], expected_failed_checks=not_passed)
@pytest.mark.filterwarnings("ignore")  # the checks' odd data is remarked upon, by others too
def test_estimator_check(estimator: FlatImages, check: Callable[[FlatImages], None]) -> None:
    check(estimator)


def test_the_checks_are_many_and_the_exceptions_two() -> None:
    names = [
        getattr(check, "func", check).__name__ for _, check in estimator_checks_generator(tiny())
    ]
    assert len(NOT_PASSED) == 2
    assert len(names) - len(NOT_PASSED) >= 50


@pytest.mark.filterwarnings("ignore")
def test_integer_weights_are_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator_checks, "shuffle", lambda *arrays, **_: arrays)
    estimator_checks.check_sample_weight_equivalence_on_dense_data("FlatImages", tiny())
