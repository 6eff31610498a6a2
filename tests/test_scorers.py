"""Scorers, and the splits that parts ask for, in scikit-learn's tools."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import sklearn
from conftest import draw_part
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    LeaveOneGroupOut,
    PredefinedSplit,
    StratifiedGroupKFold,
    TunedThresholdClassifierCV,
    cross_validate,
)
from sklearn.pipeline import Pipeline

from defectcam import ContrastEqualizer, localize
from defectcam.metrics import (
    defect_recall_score,
    escape_rate,
    overkill_rate,
    pro_auc_score,
)
from defectcam.scorers import (
    aupro_scorer,
    defect_recall_scorer,
    escape_rate_scorer,
    overkill_rate_scorer,
)

Y = np.array(["good"] * 6 + ["dent"] * 3 + ["scratch"] * 3)
SCORERS = {
    "recall": defect_recall_scorer,
    "escape": escape_rate_scorer,
    "overkill": overkill_rate_scorer,
}


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([draw_part(rng, scratched=number >= 6) for number in range(12)])


@pytest.fixture(scope="module")
def masks(arrays) -> list[np.ndarray | None]:
    return [None] * 6 + [image.max(2) > 160 for image in arrays[6:]]


class Says(ClassifierMixin, BaseEstimator):
    """Predicts what it is told to."""

    def __init__(self, labels: list) -> None:
        self.classes_ = np.unique(labels)
        self.labels = np.array(labels)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.labels


@pytest.mark.parametrize(
    ("truth", "called"),
    [
        (["ok", "ok", "ok", "dent", "hole"], ["ok", "anomaly", "ok", "anomaly", "ok"]),
        ([0, 0, 0, 1, 1], [0, 1, 0, 1, 0]),
        ([False, False, False, True, True], [False, True, False, True, False]),
    ],
)
def test_rates_find_the_good_label_and_losses_are_negative(truth, called):
    good = truth[0]
    found = {
        name: scorer(Says(called), np.zeros((5, 1)), truth) for name, scorer in SCORERS.items()
    }
    assert found == {
        "recall": defect_recall_score(truth, called, good_label=good),
        "escape": -escape_rate(truth, called, good_label=good),
        "overkill": -overkill_rate(truth, called, good_label=good),
    }
    assert found == pytest.approx({"recall": 1 / 2, "escape": -1 / 2, "overkill": -1 / 3})


def test_images_have_weights():
    weights = [1, 1, 1, 3, 1]
    estimator = Says([0, 1, 0, 1, 0])
    score = defect_recall_scorer(
        estimator, np.zeros((5, 1)), [0, 0, 0, 1, 1], sample_weight=weights
    )
    assert score == 3 / 4


class Calls(Says):
    """Predicts what it is told to by a parameter, whatever it is fitted to."""

    def __init__(self, labels: tuple = ()) -> None:
        self.labels = labels

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Calls:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.array(self.labels)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize(("name", "expected"), [("recall", 3 / 4), ("escape", -1 / 4)])
def test_images_have_weights_in_a_search(name, expected, routing):
    folds = [(np.arange(5), np.arange(5))]
    search = {"param_grid": {"labels": [(0, 1, 0, 1, 0)]}, "cv": folds, "refit": False}
    weights = {"sample_weight": np.array([1, 1, 1, 3, 1])}
    with sklearn.config_context(enable_metadata_routing=routing):
        estimator, scorer = Calls(), SCORERS[name]
        if routing:
            estimator.set_fit_request(sample_weight=True)
            scorer = copy.deepcopy(scorer).set_score_request(sample_weight=True)
        found = GridSearchCV(estimator, scoring=scorer, **search).fit(
            np.zeros((5, 1)), [0, 0, 0, 1, 1], **weights
        )
    assert found.cv_results_["mean_test_score"].tolist() == [expected]


def test_other_names_are_for_make_scorer():
    scorer = make_scorer(defect_recall_score, good_label="A")
    assert scorer(Says(["A", "B"]), np.zeros((2, 1)), ["A", "B"]) == 1
    with pytest.raises(ValueError, match="good_label"):
        defect_recall_scorer(Says(["A", "B"]), np.zeros((2, 1)), ["A", "B"])


def test_in_cross_validation_and_search(tiny_classifier, arrays):
    clf = tiny_classifier(max_epochs=2)
    found = cross_validate(clf, arrays, Y, cv=2, scoring=SCORERS, return_estimator=True)
    np.testing.assert_allclose(found["test_escape"], found["test_recall"] - 1)
    thirds = 3 * found["test_overkill"]
    np.testing.assert_allclose(thirds, thirds.round(), atol=1e-9)
    assert (thirds <= 0).all()
    search = GridSearchCV(
        clf, {"threshold": [0.0, 0.5]}, scoring=SCORERS, refit="overkill", cv=2
    ).fit(arrays, Y)
    assert search.best_params_ == {"threshold": 0.5}  # 0 calls everything defective
    assert search.cv_results_["mean_test_recall"][0] == 1
    assert search.cv_results_["mean_test_overkill"][0] == -1


def test_aupro_gets_its_masks_by_metadata(tiny_classifier, arrays, masks):
    clf = tiny_classifier()
    is_defect = Y != "good"
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = aupro_scorer.set_score_request(masks=True)
        found = cross_validate(
            clf,
            arrays,
            is_defect,
            cv=2,
            scoring={"aupro": scorer, "recall": defect_recall_scorer},
            params={"masks": masks},
            return_estimator=True,
            return_indices=True,
        )
        search = GridSearchCV(clf, {"heatmap": ["cam", "fused"]}, scoring=scorer, cv=2)
        search.fit(arrays, is_defect, masks=masks)
    for fold, test in enumerate(found["indices"]["test"]):
        maps = [one.heatmap for one in found["estimator"][fold].localize(arrays[test])]
        expected = pro_auc_score([masks[i] for i in test], maps)
        assert found["test_aupro"][fold] == pytest.approx(expected)
    assert 0 <= search.best_score_ <= 1


def test_aupro_without_masks_says_how_they_are_passed(tiny_classifier, arrays):
    told = r"set_score_request\(masks=True\).*params=\{\"masks\": masks\}"
    with pytest.raises(TypeError, match=told):  # before any image is looked at
        aupro_scorer(tiny_classifier(), arrays, Y)


def test_aupro_through_a_pipeline_and_a_search(tiny_classifier, arrays, masks):
    """Maps and masks are both in the original images' pixels, whatever the steps cut away."""
    is_defect = Y != "good"
    steps = [("equalise", ContrastEqualizer()), ("classify", tiny_classifier())]
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = aupro_scorer.set_score_request(masks=True)
        search = GridSearchCV(
            Pipeline(steps), {"classify__heatmap": ["cam", "fused"]}, scoring=scorer, cv=2
        ).fit(arrays, is_defect, masks=masks)
        whole = scorer(search, arrays, is_defect, masks=masks)
    maps = [one.heatmap for one in localize(search.best_estimator_, arrays)]
    assert whole == pytest.approx(pro_auc_score(masks, maps))
    assert "_aupro" in repr(aupro_scorer)


def test_leave_one_defect_type_out(tiny_classifier, arrays):
    """The recipe of the guide: good images are dealt out among the types."""
    groups = Y.astype(object)
    good = np.flatnonzero(Y == "good")
    types = np.unique(Y[Y != "good"])
    groups[good] = types[np.random.RandomState(0).permutation(len(good)) % len(types)]
    splits = list(LeaveOneGroupOut().split(arrays, Y, groups))
    assert len(splits) == 2
    for train, test in splits:
        assert len(set(Y[test]) - {"good"}) == 1
        assert set(Y[test]) & set(Y[train]) == {"good"}
    found = cross_validate(
        tiny_classifier(),
        arrays,
        Y != "good",
        groups=groups,
        cv=LeaveOneGroupOut(),
        scoring=SCORERS,
    )
    assert np.isfinite(found["test_recall"]).all() and np.isfinite(found["test_overkill"]).all()


def test_photographs_of_one_part_stay_together(tiny_classifier, arrays):
    parts = np.repeat(np.arange(6), 2)  # each part was photographed twice
    splitter = StratifiedGroupKFold(n_splits=2, shuffle=True, random_state=0)
    for train, test in splitter.split(arrays, Y != "good", parts):
        assert not set(parts[train]) & set(parts[test])
    found = cross_validate(
        tiny_classifier(max_epochs=1), arrays, Y != "good", groups=parts, cv=splitter,
        scoring=SCORERS,
    )  # fmt: skip
    assert len(found["test_recall"]) == 2


@pytest.mark.parametrize(
    "labels", [["good", "scratch"], [0, 1], [False, True]], ids=["names", "numbers", "truth"]
)
def test_a_fold_of_defects_alone_that_are_all_found_has_a_score(labels):
    class Trained(Says):
        def __init__(self, said: list) -> None:
            super().__init__(said)
            self.classes_ = np.array(labels)

    defects = [labels[1]] * 2
    found = {
        name: scorer(Trained(defects), np.zeros((2, 1)), defects)
        for name, scorer in SCORERS.items()
        if name != "overkill"  # there is none to be told
    }
    assert found == {"recall": 1, "escape": 0}


def test_a_search_prefers_full_recall_in_folds_without_good_images(tiny_classifier, arrays):
    folds = PredefinedSplit([-1] * 6 + [0] * 2 + [1] * 2 + [-1] * 2)
    search = GridSearchCV(
        tiny_classifier(max_epochs=1), {"threshold": [0.0, 1.0]}, cv=folds, refit=False,
        scoring=defect_recall_scorer,
    ).fit(arrays, Y)  # fmt: skip
    assert search.cv_results_["mean_test_score"].tolist() == [1, 0]


@pytest.mark.parametrize("name", SCORERS)
def test_thresholds_can_be_tuned_for_the_rates(tiny_classifier, arrays, name):
    names = np.where(Y == "good", "good", "scratch")
    tuned = TunedThresholdClassifierCV(
        tiny_classifier(max_epochs=1), scoring=SCORERS[name], cv=2, store_cv_results=True
    ).fit(arrays, names)
    assert np.isfinite(tuned.cv_results_["scores"]).all()
