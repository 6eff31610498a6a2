"""What scikit-learn builds around an estimator, each at work with images, by name.

Over arrays or paths where the tool takes whatever can be indexed; over `FlatImages` where it
insists on a matrix. Everything is too small to learn much: what is tested is that the parts fit.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import draw_part
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
    learning_curve,
    permutation_test_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.fixes import parse_version

from defectcam import DefectCAMClassifier, FlatImages

BACKBONES = ("test_efficientnet", "test_resnet")
Y = np.array([0] * 8 + [1] * 8)
NAMES = np.array(["good", "scratch"])[Y]


@pytest.fixture
def quick(tiny_classifier):
    """Return a function that makes a still smaller classifier, without novelty and folds."""

    def make(**overrides: Any) -> DefectCAMClassifier:
        small = {
            "image_size": 32,
            "pooling": "average",
            "heatmap": "cam",
            "augmentation": "none",
            "max_epochs": 2,
            "cv": None,
            "precision": "float32",
        }
        return tiny_classifier(**{**small, **overrides})

    return make


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    """Return 8 good and 8 scratched parts, uint8 RGB of shape (16, 32, 32, 3)."""
    rng = np.random.default_rng(3)
    return np.stack([draw_part(rng, scratched=bool(y), size=32) for y in Y])


@pytest.fixture(scope="module")
def flat(arrays: np.ndarray) -> np.ndarray:
    """Return the same images in grey, as a matrix of shape (16, 1024)."""
    return arrays[..., 0].reshape(len(arrays), -1)


@pytest.fixture
def paths(fitted_parts: Path) -> list[str]:
    """Return 8 files of good parts, then 6 of scratched ones."""
    return sorted(str(path) for path in fitted_parts.glob("*/*.png"))


@pytest.fixture
def types(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


def assert_proba(probability: np.ndarray, n: int) -> None:
    assert probability.shape == (n, 2)
    assert np.isfinite(probability).all()
    np.testing.assert_allclose(probability.sum(1), 1)


# --- Thresholds and probabilities ---------------------------------------------------------------


def test_tuned_threshold_classifier_cv(quick, arrays):
    tuned = TunedThresholdClassifierCV(quick(), cv=2, scoring="balanced_accuracy", thresholds=5)
    tuned.fit(arrays, Y)
    defect = tuned.estimator_.predict_proba(arrays)[:, 1]
    assert tuned.predict(arrays).tolist() == (defect >= tuned.best_threshold_).astype(int).tolist()


def test_fixed_threshold_classifier(quick, paths, types):
    fixed = FixedThresholdClassifier(quick(), threshold=0.0, pos_label="scratch").fit(paths, types)
    assert set(fixed.predict(paths)) == {"scratch"}
    assert set(fixed.set_params(threshold=1.1).predict(paths)) == {"good"}


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibrated_classifier_cv(quick, arrays, method):
    calibrated = CalibratedClassifierCV(quick(), method=method, cv=2).fit(arrays, NAMES)
    assert len(calibrated.calibrated_classifiers_) == 2
    assert_proba(calibrated.predict_proba(arrays), 16)
    assert set(calibrated.predict(arrays)) <= {"good", "scratch"}


@pytest.mark.parametrize(
    "wrap",
    [
        CalibratedClassifierCV,
        lambda frozen: TunedThresholdClassifierCV(
            frozen, cv="prefit", refit=False, scoring="balanced_accuracy"
        ),
    ],
    ids=["calibrated", "tuned"],
)
def test_frozen_estimator(quick, paths, types, wrap):
    fitted = quick().fit(paths, types)
    before = fitted.predict_proba(paths)
    frozen = FrozenEstimator(fitted)
    assert clone(frozen).estimator is fitted
    wrapped = wrap(frozen).fit(paths, types)
    assert wrapped.predict_proba(paths).shape == (14, 2)
    np.testing.assert_array_equal(fitted.predict_proba(paths), before)  # nothing was trained


# --- Ensembles ----------------------------------------------------------------------------------


def two_backbones(quick) -> list[tuple[str, DefectCAMClassifier]]:
    return [(name, quick(backbone=name)) for name in BACKBONES]


def test_stacking_classifier_of_two_backbones(quick, arrays):
    stack = StackingClassifier(two_backbones(quick), cv=2).fit(arrays, NAMES)
    assert stack.transform(arrays).shape == (16, 2)  # a probability of each backbone
    assert stack.final_estimator_.coef_.shape == (1, 2)
    assert set(stack.predict(arrays)) <= {"good", "scratch"}


def test_voting_classifier_of_two_backbones(quick, arrays):
    vote = VotingClassifier(two_backbones(quick), voting="soft").fit(arrays, NAMES)
    each = [vote.named_estimators_[name].predict_proba(arrays) for name in BACKBONES]
    assert not np.allclose(each[0], each[1])
    np.testing.assert_allclose(vote.predict_proba(arrays), np.mean(each, axis=0))


def test_bagging_classifier(quick, flat):
    bag = BaggingClassifier(FlatImages(quick()), n_estimators=3, random_state=1)
    bag.fit(flat, NAMES)
    assert_proba(bag.predict_proba(flat), 16)
    fitted = [estimator.estimator_.held_out_probability_ for estimator in bag.estimators_]
    # What was not drawn has weight zero, so it was left out.
    for drawn, probability in zip(bag.estimators_samples_, fitted, strict=True):
        assert np.flatnonzero(np.isfinite(probability)).tolist() == np.unique(drawn).tolist()


def test_self_training_classifier_for_unlabelled_images(quick, flat):
    y = Y.copy()
    y[[3, 4, 5, 11, 12, 13]] = -1
    training = SelfTrainingClassifier(
        FlatImages(quick(max_epochs=3)), criterion="k_best", k_best=3, max_iter=2
    ).fit(flat, y)
    assert (training.labeled_iter_ > 0).sum() == 6
    assert set(training.transduction_) == {0, 1}
    assert training.classes_.tolist() == [0, 1]


# --- Model selection ----------------------------------------------------------------------------


def test_learning_curve(quick, paths, types):
    sizes, train, test = learning_curve(
        quick(), paths, types, train_sizes=[4, 7], cv=2, shuffle=True, random_state=0
    )
    assert sizes.tolist() == [4, 7]
    assert train.shape == test.shape == (2, 2)
    assert np.isfinite(test).all()


def test_permutation_test_score(quick, arrays):
    score, permuted, p_value = permutation_test_score(
        quick(), arrays, NAMES, cv=2, n_permutations=3, random_state=0
    )
    assert permuted.shape == (3,)
    assert p_value == ((permuted >= score).sum() + 1) / 4


def test_cross_val_predict_of_probabilities(quick, paths, types):
    probability = cross_val_predict(quick(), paths, types, cv=2, method="predict_proba")
    assert_proba(probability, 14)


def test_halving_grid_search_cv_spends_epochs(quick, arrays):
    search = HalvingGridSearchCV(
        quick(),
        {"learning_rate": [1e-3, 1e-2], "pooling": ["average", "max"]},
        resource="max_epochs",
        min_resources=1,
        max_resources=2,
        factor=2,
        cv=2,
        random_state=0,
        error_score="raise",
    ).fit(arrays, NAMES)
    assert search.n_candidates_ == [4, 2]
    assert search.best_estimator_.get_params()["max_epochs"] == 2
    assert len(search.best_estimator_.history_["epoch"]) == 2


def test_grid_search_over_nested_parameters_in_a_pipeline(quick, paths, types):
    pipeline = Pipeline([("as is", FunctionTransformer()), ("clf", quick(max_epochs=1))])
    grid = {
        "clf__backbone": list(BACKBONES),
        "clf__pooling": ["average", "max"],
        "clf__image_size": [32, (32, 48)],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(paths, types)
    assert len(search.cv_results_["params"]) == 8
    best = search.best_estimator_["clf"]
    assert {f"clf__{name}": getattr(best, name) for name in ("backbone", "pooling", "image_size")} \
        == search.best_params_  # fmt: skip
    size = best.image_size
    assert best.image_size_ == (size if isinstance(size, tuple) else (size, size))


def test_nested_parameters_of_flat_images(quick, flat):
    search = GridSearchCV(
        FlatImages(quick()), {"estimator__pooling": ["average", "max"]}, cv=2, error_score="raise"
    ).fit(flat, Y)
    best = search.best_estimator_
    assert best.get_params()["estimator__pooling"] == search.best_params_["estimator__pooling"]
    assert best.estimator_.pooling == search.best_params_["estimator__pooling"]


def test_series_of_paths_and_labels(quick, paths, types):
    index = range(100, 114)  # not that of a list
    X, y = pd.Series(paths, index=index), pd.Series(types, index=index)
    scores = cross_val_score(quick(), X, y, cv=2)
    np.testing.assert_array_equal(scores, cross_val_score(quick(), paths, types, cv=2))


# --- Metadata routing, processes, notebooks -----------------------------------------------------


def test_metadata_routing_of_sample_weight(quick, arrays):
    weights = np.array([2, 0] * 4 + [1] * 8)
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = quick().set_fit_request(sample_weight=True)
        classifier.set_score_request(sample_weight=True)
        pipeline = Pipeline([("as is", FunctionTransformer()), ("clf", classifier)])
        pipeline.fit(arrays, NAMES, sample_weight=weights)
        probability = pipeline.predict_proba(arrays)
        score = pipeline.score(arrays, NAMES, sample_weight=weights)
        with pytest.raises(TypeError, match="sample_weight"):  # who does not ask gets an error
            Pipeline([("clf", quick().set_fit_request(sample_weight=False))]).fit(
                arrays, NAMES, sample_weight=weights
            )
    alone = quick().fit(arrays, NAMES, sample_weight=weights)
    np.testing.assert_array_equal(probability, alone.predict_proba(arrays))
    right = alone.predict(arrays) == NAMES
    assert score == pytest.approx(np.average(right, weights=weights))


@pytest.mark.skipif(
    tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8),
    reason="scikit-learn before 1.8 does not ask a pipeline's steps what its own score takes",
)
def test_metadata_routing_reaches_a_pipeline_that_is_cross_validated(quick, arrays):
    weights = np.array([2, 0] * 4 + [1] * 8)
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = quick().set_fit_request(sample_weight=True)
        classifier.set_score_request(sample_weight=True)
        pipeline = Pipeline([("as is", FunctionTransformer()), ("clf", classifier)])
        scores = cross_val_score(pipeline, arrays, NAMES, cv=2, params={"sample_weight": weights})
    assert scores.shape == (2,)


def test_joblib_loky_with_two_processes_sends_paths_not_images(quick, paths, types):
    classifier = quick()
    n_bytes = sum(Path(path).stat().st_size for path in paths)
    assert len(pickle.dumps((classifier, paths, types))) < n_bytes / 10
    with joblib.parallel_config("loky"):
        found = cross_val_score(classifier, paths, types, cv=2, n_jobs=2)
    np.testing.assert_allclose(found, cross_val_score(classifier, paths, types, cv=2))


def test_a_fitted_classifier_carries_no_image_with_it(quick, paths, types):
    few, many = ([*paths[:n], *paths[-n:]] for n in (2, 6))
    sizes = [
        len(pickle.dumps(quick().fit(X, [Path(path).parent.name for path in X])))
        for X in (few, many)
    ]
    assert sizes[1] - sizes[0] < 1000  # eight images more, of 48 x 48 x 3 bytes each


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.7"), reason="scikit-learn shows no table"
)
def test_html_shows_the_parameters(quick):
    html = Pipeline([("clf", quick(backbone="test_resnet"))])._repr_html_()
    assert "DefectCAMClassifier" in html
    assert "pooling_fraction" in html
    assert "test_resnet" in html


def test_scorers_see_what_predict_says(quick, arrays):
    classifier = quick().fit(arrays, NAMES)
    scorer = sklearn.metrics.get_scorer("balanced_accuracy")
    expected = balanced_accuracy_score(NAMES, classifier.predict(arrays))
    assert scorer(classifier, arrays, NAMES) == expected
