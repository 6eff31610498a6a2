"""Learning that goes on: `partial_fit`, `warm_start`, callbacks with hooks."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_part
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from defectcam import DefectCAMClassifier, load
from defectcam.callbacks import Callback, Checkpoint, TimeLimit
from defectcam.classifier import AUTO_REPLAY_SIZE
from defectcam.incremental import are_current, first_classes, targets_of_known
from defectcam.network import DefectCAMNetwork
from defectcam.replay import choose_rows, importance
from defectcam.training import TailTraining

pytestmark = pytest.mark.filterwarnings("ignore:The label of")


def parts(n_good: int, n_defective: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return good and scratched parts, and their labels."""
    rng = np.random.default_rng(seed)
    images = [draw_part(rng, scratched=i >= n_good) for i in range(n_good + n_defective)]
    return np.stack(images), np.array(["good"] * n_good + ["scratch"] * n_defective)


FIRST, SECOND = parts(5, 5, seed=1), parts(4, 3, seed=2)


@pytest.fixture(scope="module")
def started(tiny_classifier) -> DefectCAMClassifier:
    """Return a classifier after its first `partial_fit`; deepcopy it to go on."""
    return tiny_classifier().partial_fit(*FIRST)


@pytest.fixture
def going(started) -> DefectCAMClassifier:
    return copy.deepcopy(started)


def weights(classifier: DefectCAMClassifier) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in classifier.network_.parameters()])


def test_an_integer_weight_is_repetition_in_the_updates_after_it(tiny_classifier, tmp_path):
    """What a network has learned from is counted in rows, as it was trained on them."""
    X, y = FIRST
    w = np.full(len(X), 5)
    for replay_size in (None, 0):
        weighted = tiny_classifier(replay_size=replay_size).partial_fit(X, y, sample_weight=w)
        repeated = tiny_classifier(replay_size=replay_size).partial_fit(X.repeat(5, 0), y.repeat(5))
        if replay_size == 0:
            weighted.save(tmp_path / "part.safetensors")
            weighted = load(tmp_path / "part.safetensors")
        assert (weighted.n_images_seen_, repeated.n_images_seen_) == (10, 50)
        for classifier in (weighted, repeated):
            classifier.partial_fit(*SECOND)
        assert torch.equal(weights(weighted), weights(repeated))
        assert weighted.threshold_ == repeated.threshold_
        np.testing.assert_array_equal(
            weighted.held_out_probability_, repeated.held_out_probability_
        )


def test_one_defect_first_is_no_reason_to_forget_what_was_learned(tiny_classifier):
    """None of it could be held out; to learn all anew needs all images."""
    X, y = FIRST
    clf = tiny_classifier(replay_size=4).partial_fit(X[:6], y[:6])
    before = clf.history_["loss"]
    after = clf.partial_fit(*SECOND).history_["loss"]
    assert after[: len(before)] == before and len(after) > len(before)
    # Held out is what it said of the new images, not of those that it had learned.
    assert set(clf._replay.records.experience.tolist()) == {0, 6}
    assert clf._replay.held_out is not None and len(clf.held_out_probability_) == len(SECOND[0])
    clf = tiny_classifier(replay_size=20).partial_fit(X[:6], y[:6]).partial_fit(*SECOND)
    assert set(clf.history_["fold"]) == {0, 1, 2}


def test_images_that_nothing_is_learned_from_are_not_counted(tiny_classifier):
    X, y = FIRST
    for replay_size, what, n_seen in [(0, "forgets", 10), (20, "remembered", 15)]:
        clf = tiny_classifier(replay_size=replay_size).fit(X, y)
        clf._replay = None  # as after loading
        with pytest.warns(UserWarning, match=what):
            clf.partial_fit(X[5:], y[5:])
        assert clf.n_images_seen_ == n_seen
        assert np.isnan(clf.held_out_probability_).all() and len(clf.held_out_probability_) == 5
        assert len(clf.suspects_) == 0


# --- The course of an update ----------------------------------------------------------------------


def test_defects_alone_wait_where_no_good_image_is_remembered(tiny_classifier):
    clf = tiny_classifier().fit(FIRST[0][:5], FIRST[1][:5])  # which remembers none
    before = clf.predict_proba(FIRST[0])
    with pytest.warns(UserWarning, match="nothing is trained until there are both"):
        clf.partial_fit(FIRST[0][5:], FIRST[1][5:])
    assert (clf.predict_proba(FIRST[0]) == before).all()
    clf.partial_fit(*SECOND)
    assert set(clf.predict(FIRST[0])) == {"good", "anomaly"}


def test_after_an_update_by_a_full_fit_set_parameters_still_do_not_count(tiny_classifier):
    once, changed = (tiny_classifier().partial_fit(FIRST[0][:5], FIRST[1][:5]) for _ in range(2))
    changed.set_params(backbone="test_resnet", trainable_stages=1, pooling="max")
    for clf in (once, changed):
        clf.partial_fit(*SECOND)  # the first defects: a full fit
    assert weights(changed).equal(weights(once))


def test_a_map_that_is_set_after_the_first_call_does_not_count(tiny_classifier):
    once, changed = (tiny_classifier(max_epochs=1).partial_fit(*FIRST) for _ in range(2))
    once.partial_fit(*SECOND)
    changed.set_params(heatmap="cam").partial_fit(*SECOND)
    assert changed._heat_model == once._heat_model
    np.testing.assert_array_equal(changed.held_out_probability_, once.held_out_probability_)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "foo"},
        {"batch_size": 0},
        {"max_epochs": 0},
        {"replay_size": -3},
        {"learning_rate": -1.0},
        {"class_weight": "equal"},
        {"threshold": "recall"},
    ],
)
def test_a_wrong_parameter_is_refused_by_later_calls_too(started, wrong):
    clf = copy.deepcopy(started).set_params(**wrong)
    before = dict(vars(clf))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        clf.partial_fit(*SECOND)
    assert all(vars(clf)[name] is value for name, value in before.items())


def test_the_first_call_is_a_fit(started, tiny_classifier):
    fitted = tiny_classifier().fit(*FIRST)
    assert torch.equal(weights(started), weights(fitted))
    assert started.threshold_ == fitted.threshold_
    np.testing.assert_array_equal(started.held_out_probability_, fitted.held_out_probability_)


def test_an_update_goes_on_from_the_present_tail_and_trains_no_other(going, monkeypatch):
    starts = []
    run = TailTraining.run

    def watched(self: TailTraining, rows: np.ndarray, fold: int) -> None:
        starts.append({k: v.clone() for k, v in self.network.state_dict().items()})
        run(self, rows, fold)

    present = {k: v.clone() for k, v in going.network_.state_dict().items()}
    monkeypatch.setattr(TailTraining, "run", watched)
    going.partial_fit(*SECOND)
    (start,) = starts
    weights = [k for k in start if k.startswith(("tail", "head")) and k != "head.bias"]
    assert all(torch.equal(start[k], present[k]) for k in weights)


def test_an_update_is_shorter_than_a_fit(going, monkeypatch):
    options = []
    run = TailTraining.run
    monkeypatch.setattr(
        TailTraining,
        "run",
        lambda self, rows, fold: (options.append(self.options), run(self, rows, fold)),
    )
    going.set_params(max_epochs=10).partial_fit(*SECOND)
    assert [(o.max_epochs, o.learning_rate) for o in options] == [(6, going.learning_rate)]


def test_the_trunk_sees_new_images_alone(going, monkeypatch):
    seen = []
    trunk_features = DefectCAMNetwork.trunk_features

    def watched(self: DefectCAMNetwork, pixels: torch.Tensor) -> Any:
        seen.append(int(pixels.flatten(1).any(1).sum()))
        return trunk_features(self, pixels)

    monkeypatch.setattr(DefectCAMNetwork, "trunk_features", watched)
    going.partial_fit(*SECOND)
    assert sum(seen) == 4 * len(SECOND[0])  # each in four views


def test_new_images_are_judged_by_the_network_that_has_not_seen_them(going, started):
    """Held-out log-odds of new images are the earlier network's, but for calibration."""
    X, y = SECOND
    before = started.decision_function(X)
    going.partial_fit(X, y)
    held_out = going.held_out_probability_
    assert np.argsort(held_out).tolist() == np.argsort(before).tolist()
    (codebook,) = going._drift_codebooks
    assert torch.equal(codebook.centres, started.network_.codebook.centres)


def test_what_was_said_of_an_image_when_it_was_new_is_remembered(going):
    said: dict[float, torch.Tensor] = {}  # an image is known again by its key
    for seed in (2, 3, 4):
        going.partial_fit(*parts(4, 3, seed))
        memory = going._replay
        for key, logits in zip(memory.records.keys, memory.held_out.logits, strict=True):
            assert torch.equal(said.setdefault(key, logits), logits)
    assert set(memory.records.experience.tolist()) == {5, 10, 17, 24}


def test_a_copy_of_a_learned_image_is_not_held_out(going):
    X, y = SECOND
    going.partial_fit(np.concatenate([X, FIRST[0][:2]]), np.concatenate([y, FIRST[1][:2]]))
    experience = going._replay.records.experience
    assert sorted(experience.tolist()) == [0, 0] + [5] * 10 + [10] * 7


def test_answers_of_networks_that_knew_little_count_no_more():
    experience = np.array([30, 70, 100, 0, 20, 41, 0])
    targets = np.array([0, 0, 0, 0, 1, 1, 1])
    expected = [False, True, True, False, False, True, False]
    assert are_current(experience, targets).tolist() == expected
    assert are_current(np.array([0, 0, 9]), np.array([1, 1, 0])).all()  # none of the 1 held out


def test_what_is_known_of_new_images_is_held_out(going):
    """The scores of an image that says the opposite of its label are not those of its label."""
    X, y = SECOND
    wrong = y.copy()
    wrong[0] = "scratch"  # it shows a good part
    going.set_params(max_epochs=30, learning_rate=2e-2).partial_fit(X, wrong)
    assert len(going.held_out_probability_) == len(X)
    assert going.held_out_probability_[0] < 0.5
    assert going.suspects_[0] == 0


def test_thresholds_and_scales_are_learned_anew(going, started):
    going.partial_fit(*SECOND)
    assert going._defect_probability != started._defect_probability
    assert going._heat_model != started._heat_model
    assert going.threshold_ == pytest.approx(8 / 17)  # the share of defective images seen


def test_the_codebook_learns_what_new_good_parts_look_like(started):
    """Inverted parts are novel, and less so once some of them are called good."""
    X, y = parts(6, 3, seed=5)
    inverted = 255 - X[:6]
    unlike = parts(3, 0, seed=6)[0]
    before, after = copy.deepcopy(started), copy.deepcopy(started)
    assert all(found.unfamiliar for found in before.localize(255 - unlike))
    after.partial_fit(np.concatenate([inverted, X[6:]]), y)
    assert not any(found.unfamiliar for found in after.localize(255 - unlike))


def test_the_history_grows_by_a_fold_for_each_update(going, started):
    going.partial_fit(*SECOND)
    n = len(started.history_["epoch"])
    assert {k: v[:n] for k, v in going.history_.items()} == started.history_
    assert set(going.history_["fold"][n:]) == {3}
    assert going.n_images_seen_ == going.info()["n_training_images"] == 17


def test_one_random_state_gives_the_same_bytes(started):
    twice = [copy.deepcopy(started).partial_fit(*SECOND) for _ in range(2)]
    assert torch.equal(weights(twice[0]), weights(twice[1]))


def test_global_generators_are_not_used(going, generators_untouched):
    going.partial_fit(*SECOND)


def test_five_days_are_as_good_as_one_fit_and_nothing_is_forgotten(tiny_classifier):
    """Each day brings defects at another place; the first day's are found on the last."""

    def day(number: int, seed: int, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        X = np.clip(rng.normal(110, 4, size=(2 * n, 48, 48)), 0, 255).astype(np.uint8)
        X[n:, 4 + 8 * number : 8 + 8 * number, 10:36] = (20, 60, 170, 220, 250)[number]
        return X, np.repeat(["good", "defect"], n)

    days = [day(number, seed=number) for number in range(5)]
    test = [day(number, seed=10 + number) for number in range(5)]
    daily = tiny_classifier(max_epochs=5, replay_size=24)
    for X, y in days:
        daily.partial_fit(X, y)
        assert len(daily._replay) <= 24
    once = tiny_classifier(max_epochs=5).fit(*map(np.concatenate, zip(*days, strict=True)))
    scores = [[clf.score(*images) for images in test] for clf in (daily, once)]
    assert np.mean(scores[0]) >= np.mean(scores[1]) - 0.02
    assert scores[0][0] >= 0.9


def test_sample_weights_leave_out_and_repeat(started):
    X, y = SECOND
    w = np.array([2, 1, 0, 1, 1, 0, 1])
    weighted = copy.deepcopy(started).partial_fit(X, y, sample_weight=w)
    repeated = copy.deepcopy(started).partial_fit(np.repeat(X, w, axis=0), np.repeat(y, w))
    assert torch.equal(weights(weighted), weights(repeated))
    assert np.flatnonzero(np.isnan(weighted.held_out_probability_)).tolist() == [2, 5]
    assert weighted.n_images_seen_ == 15


# --- What may come --------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(0, 4), slice(4, 7)])
def test_images_of_one_class_are_learned_among_remembered_ones(going, chosen):
    before = weights(going)
    X, y = SECOND
    going.partial_fit(X[chosen], y[chosen])
    assert not torch.equal(weights(going), before)
    assert len(going.held_out_probability_) == len(X[chosen])
    assert going.score(*FIRST) >= 0.9


@pytest.mark.filterwarnings("ignore::defectcam.exceptions.OnlyGoodImagesWarning")
def test_good_images_alone_then_defects(tiny_classifier):
    X, y = FIRST
    clf = tiny_classifier().partial_fit(X[:5], y[:5], classes=["good", "scratch"])
    assert not clf.evidence(X).any()
    clf.partial_fit(parts(4, 0, seed=3)[0], ["good"] * 4)
    assert not clf.evidence(X).any() and clf.n_images_seen_ == 9
    clf.partial_fit(X[5:], y[5:])
    assert clf.evidence(X).any()
    assert set(clf.history_["fold"]) == {0, 1, 2}  # a full fit, on remembered and new images
    assert clf.score(*SECOND) == 1
    clf.partial_fit(*SECOND)
    assert set(clf.history_["fold"]) == {0, 1, 2, 3}


def test_a_type_that_comes_later_is_refused_with_advice(going):
    X, _ = SECOND
    before = pickle.dumps(going)
    with pytest.raises(ValueError, match=r"'dent'.*'good', 'scratch'.*Start anew with all"):
        going.partial_fit(X, ["good"] * 4 + ["dent"] * 3)
    assert pickle.dumps(going) == before


def test_classes_say_what_will_come(tiny_classifier):
    X, y = FIRST
    classes = ["good", "scratch", "dent"]
    merged = tiny_classifier().partial_fit(X, y, classes=classes)
    assert merged.classes_.tolist() == ["anomaly", "good"]
    merged.partial_fit(SECOND[0], ["good"] * 4 + ["dent", "scratch", "crack"], classes=classes)
    apart = tiny_classifier(target="type").partial_fit(X, y, classes=classes)
    assert apart.classes_.tolist() == ["dent", "good", "scratch"]
    apart.partial_fit(SECOND[0], ["good"] * 4 + ["dent"] * 3)
    assert np.isfinite(apart.predict_proba(X)).all()


@pytest.mark.parametrize("target", ["anomaly", "type"])
def test_a_target_that_is_set_since_does_not_count(tiny_classifier, target):
    other = {"anomaly": "type", "type": "anomaly"}[target]
    X, labels = FIRST[0], np.unique(TYPES)
    clf = tiny_classifier(target=target, max_epochs=1).partial_fit(X, TYPES)
    changed = copy.deepcopy(clf).set_params(target=other)
    for one in (clf, changed):
        one.partial_fit(X, TYPES, classes=labels)
    assert changed.classes_.tolist() == clf.classes_.tolist()
    assert torch.equal(weights(changed), weights(clf))


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (SECOND[1], ["good", "dent"], r"classes=\['good', 'dent'\] is not the same"),
        ([0] * 4 + [1] * 3, None, r"y holds the labels \[0, 1\]"),
        (SECOND[1][:3], None, "inconsistent numbers"),
    ],
)
def test_labels_that_do_not_fit_the_first_call_are_refused(going, y, classes, message):
    with pytest.raises(ValueError, match=message):
        going.partial_fit(SECOND[0], y, classes=classes)


def test_labels_outside_of_classes_are_refused_at_the_first_call(tiny_classifier):
    with pytest.raises(ValueError, match="'scratch'"):
        tiny_classifier(target="type").partial_fit(*FIRST, classes=["good", "dent"])


@pytest.mark.parametrize("target", ["anomaly", "type"])
@pytest.mark.parametrize("classes", [["good"], ["good", "dent"]])
def test_labels_outside_of_classes_are_told_from_those_of_an_earlier_call(target, classes):
    with pytest.raises(ValueError, match=r"\['scratch'\], which are not in classes=") as caught:
        first_classes(["good", "scratch"], classes, target, None)
    assert "first call" not in str(caught.value)
    known = first_classes(["good"], classes, target, None)
    with pytest.raises(ValueError, match=r"\['scratch'\], which are not in classes="):
        targets_of_known(known, ["scratch"], classes)


def test_several_types_that_are_one_class_are_open_to_others():
    known = first_classes(["good", "crack"], ["good", "dent", "scratch"], "anomaly", None)
    assert known.labels.tolist() == ["anomaly", "good"]


def test_without_folds_a_single_tail_goes_on(tiny_classifier):
    clf = tiny_classifier(cv=None).partial_fit(*FIRST)
    before = weights(clf)
    clf.partial_fit(*SECOND)
    assert clf.history_["fold"][-1] == 1
    assert 0 < float((weights(clf) - before).abs().max()) < 1
    assert clf.threshold_ == 0.5


@pytest.mark.filterwarnings("ignore:A class has a single")
def test_a_first_day_with_a_single_defect(tiny_classifier):
    X, y = FIRST
    clf = tiny_classifier().partial_fit(X[:6], y[:6])
    clf.partial_fit(*SECOND)  # now images can be held out
    assert set(clf.history_["fold"]) == {0, 1, 2}
    assert clf.score(X, y) == 1


def test_an_interrupt_leaves_the_classifier_as_it_was(going, monkeypatch):
    calls = Counter[str]()
    loss = TailTraining._loss

    def watched(self: TailTraining, *args: torch.Tensor) -> torch.Tensor:
        calls["loss"] += 1
        if calls["loss"] == 2:  # after the first step
            raise KeyboardInterrupt
        return loss(self, *args)

    monkeypatch.setattr(TailTraining, "_loss", watched)
    before = pickle.dumps(going)
    with pytest.raises(KeyboardInterrupt):
        going.partial_fit(*SECOND)
    assert pickle.dumps(going) == before


# --- Memory ---------------------------------------------------------------------------------------


def test_a_pickled_classifier_goes_on_alike(started):
    copied = pickle.loads(pickle.dumps(started)).partial_fit(*SECOND)
    assert torch.equal(weights(copied), weights(copy.deepcopy(started).partial_fit(*SECOND)))


def test_a_loaded_classifier_says_that_it_remembers_nothing_and_goes_on(started, tmp_path):
    started.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.n_images_seen_ == 10
    before = weights(loaded)
    with pytest.warns(UserWarning, match="remembers no earlier image"):
        loaded.partial_fit(*SECOND)
    assert 0 < float((weights(loaded) - before).abs().max()) < 1
    assert len(loaded._replay) == 7 and loaded.n_images_seen_ == 17
    assert loaded.score(*FIRST) >= 0.9
    loaded.partial_fit(*parts(2, 2, seed=4))  # no warning now
    assert len(loaded._replay) == 11


def test_without_memory_one_class_alone_is_remembered_but_not_learned(tiny_classifier):
    clf = tiny_classifier().fit(*FIRST)
    before, state = weights(clf), clf.threshold_
    X, y = SECOND
    with (
        pytest.warns(UserWarning, match="remembers no earlier image"),
        pytest.warns(UserWarning, match="nothing is trained until there are both"),
    ):
        clf.partial_fit(X[:4], y[:4])
    assert torch.equal(weights(clf), before) and clf.threshold_ == state
    assert len(clf._replay) == 4
    clf.partial_fit(X[4:], y[4:])  # goes on from the present weights
    assert 0 < float((weights(clf) - before).abs().max()) < 1


def test_fit_remembers_where_it_is_asked_to(tiny_classifier):
    assert tiny_classifier().fit(*FIRST)._replay is None
    clf = tiny_classifier(replay_size=6).fit(*FIRST)
    assert len(clf._replay) == 6
    clf.partial_fit(*SECOND)  # no warning
    assert len(clf._replay) == 6
    assert clf._replay.seen == {"good": 9, "scratch": 8}
    assert clone(clf).replay_size == 6
    assert tiny_classifier().replay_size is None and AUTO_REPLAY_SIZE >= 100


@given(
    st.lists(st.sampled_from("gabc"), min_size=1, max_size=40), st.integers(0, 45), st.integers(0)
)
def test_kept_images_fill_the_places_in_balance(letters, size, seed):
    labels = np.array(letters)
    keys = np.random.RandomState(seed % 2**32).uniform(size=len(labels))
    rows = choose_rows(labels, labels != "g", keys, size)
    assert len(rows) == len(set(rows.tolist())) == min(size, len(labels))
    assert (np.diff(rows) > 0).all()
    kept, had = Counter(labels[rows].tolist()), Counter(letters)
    n_types = len(set(letters) - {"g"})
    for label in had:
        share = size if not n_types else size / 2 if label == "g" else size / (2 * n_types)
        if "g" not in had:
            share = size / n_types
        assert kept[label] >= min(had[label], int(share))
        in_label = np.flatnonzero(labels == label)
        lowest = in_label[np.argsort(keys[in_label])[: kept[label]]]
        assert set(lowest) == set(rows[labels[rows] == label])


def test_kept_images_stand_for_all_that_were_seen():
    labels = np.array(["good"] * 2 + ["dent"])
    assert importance(labels, Counter(good=10, dent=1)).tolist() == [5, 5, 1]


# --- warm_start -----------------------------------------------------------------------------------


def test_warm_start_is_better_than_starting_anew_in_the_same_time(tiny_classifier):
    X, y = map(np.concatenate, zip(FIRST, SECOND, strict=True))
    warm = tiny_classifier(warm_start=True, max_epochs=1, learning_rate=2e-3)
    losses = [np.mean(warm.fit(X, y).history_["loss"]) for _ in range(4)]
    anew = clone(warm).set_params(warm_start=False)
    assert np.mean(anew.fit(X, y).history_["loss"]) == losses[0]
    assert losses[3] < 0.8 * losses[0]
    unseen = parts(10, 10, seed=9)
    assert warm.score(*unseen) >= anew.score(*unseen)


def test_a_warm_start_says_where_its_weights_came_from(tiny_classifier):
    clf = tiny_classifier(warm_start=True, max_epochs=1).fit(*FIRST)
    clf.weights_source_ = "a file of weights"
    assert clf.fit(*FIRST).weights_source_ == "a file of weights"


@pytest.mark.parametrize("change", ["classes", "architecture"])
def test_where_nothing_fits_warm_start_says_so(tiny_classifier, change):
    X, y = FIRST
    clf = tiny_classifier(warm_start=True, max_epochs=1).fit(X, y)
    if change == "classes":
        y = np.where(y == "scratch", "dent", y)
    else:
        clf.set_params(evidence_stages=1)
    what = {"classes": "other classes", "architecture": "another architecture"}[change]
    with pytest.warns(UserWarning, match=f"are of {what}.*; fit starts anew"):
        clf.fit(X, y)
    expected = tiny_classifier(max_epochs=1, evidence_stages=clf.evidence_stages).fit(X, y)
    assert torch.equal(weights(clf), weights(expected))


TYPES = np.array(["good"] * 4 + ["dent"] * 3 + ["scratch"] * 3)


def test_several_kinds_of_defects_alone_wait_for_good_images(tiny_classifier):
    X = FIRST[0]
    clf = tiny_classifier(target="type", max_epochs=1).fit(X, TYPES)
    before = weights(clf)
    with (
        pytest.warns(UserWarning, match="remembers no earlier image"),
        pytest.warns(UserWarning, match="defective images alone and remembers no good one"),
    ):
        clf.partial_fit(X[4:], TYPES[4:])
    assert torch.equal(weights(clf), before)


def test_a_first_call_without_good_images_is_refused(tiny_classifier):
    clf, X = tiny_classifier(target="type"), FIRST[0]
    with pytest.raises(ValueError, match=r"no good image \(label 'good'\)"):
        clf.partial_fit(X[4:], TYPES[4:], classes=["good", "dent", "scratch"])
    assert not hasattr(clf, "network_")


@pytest.mark.parametrize("changed", [{"threshold": "recall>=0.9"}, {"heatmap": "cam"}])
def test_what_good_images_alone_cannot_teach_is_refused_and_changes_nothing(
    tiny_classifier, changed
):
    X, y = FIRST
    clf = tiny_classifier(replay_size=20, max_epochs=1).fit(X[:5], y[:5])
    before = dict(vars(clf.set_params(**changed)))
    with pytest.raises(ValueError, match=next(iter(changed))):
        clf.partial_fit(SECOND[0][:3], SECOND[1][:3])
    assert {name: value is before[name] for name, value in vars(clf).items()} == dict.fromkeys(
        before, True
    )


def test_an_update_that_fails_late_changes_nothing(tiny_classifier, monkeypatch):
    clf = tiny_classifier(max_epochs=1).partial_fit(*FIRST)
    before = dict(vars(clf))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ArithmeticError

    monkeypatch.setattr("defectcam.classifier.choose_threshold", fail)
    with pytest.raises(ArithmeticError):
        clf.partial_fit(*SECOND)
    assert all(vars(clf)[name] is value for name, value in before.items())


class _FailsAtTheEnd(Callback):
    def on_train_end(self, classifier: DefectCAMClassifier) -> None:
        raise FileNotFoundError


@pytest.mark.parametrize("callback", [_FailsAtTheEnd(), Checkpoint("gone/part.safetensors")])
def test_an_update_whose_callback_fails_changes_nothing(tiny_classifier, callback):
    clf = tiny_classifier(max_epochs=1).partial_fit(*FIRST)
    clf.set_params(callbacks=callback)
    before = dict(vars(clf))
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            clf.partial_fit(*SECOND)
        assert vars(clf).keys() == before.keys()
        assert all(vars(clf)[name] is value for name, value in before.items())
    clf.set_params(callbacks=None).partial_fit(*SECOND)
    assert clf.n_images_seen_ == len(FIRST[1]) + len(SECOND[1])


# --- Callbacks ------------------------------------------------------------------------------------


class Diary(Callback):
    def __init__(self) -> None:
        self.entries: list[Any] = []

    def on_train_begin(self, classifier: DefectCAMClassifier) -> None:
        self.entries.append(("begin", hasattr(classifier, "network_")))

    def on_epoch_end(self, classifier: DefectCAMClassifier, record: dict[str, Any]) -> bool:
        self.entries.append((record["fold"], record["epoch"]))
        return record["epoch"] == 2

    def on_train_end(self, classifier: DefectCAMClassifier) -> None:
        self.entries.append(("end", classifier.n_images_seen_))


def test_hooks_are_called_in_order_and_may_end_a_fold(tiny_classifier):
    diary = Diary()
    clf = tiny_classifier(callbacks=diary).partial_fit(*FIRST)
    first = [("begin", False), *itertools.product(range(3), (1, 2)), ("end", 10)]
    assert diary.entries == first
    clf.set_params(callbacks=[diary, lambda classifier, record: None]).partial_fit(*SECOND)
    later = [("begin", True), (3, 1), (3, 2), ("end", 17)]
    assert diary.entries[len(first) :] == later


@pytest.mark.parametrize(("answer", "n_epochs"), [(True, 1), (np.True_, 1), (np.False_, 2), (1, 2)])
def test_truth_ends_a_training_and_nothing_else(tiny_classifier, answer, n_epochs):
    clf = tiny_classifier(callbacks=lambda *_: answer, max_epochs=2, cv=None).fit(*FIRST)
    assert len(clf.history_["epoch"]) == n_epochs


def test_an_object_with_one_hook_will_do(tiny_classifier):
    class End:
        def on_train_end(self, classifier: DefectCAMClassifier) -> None:
            self.classes = classifier.classes_.tolist()

    end = End()
    tiny_classifier(callbacks=[end], max_epochs=1).fit(*FIRST)
    assert end.classes == ["good", "scratch"]


def test_a_checkpoint_is_written_after_each_call(tiny_classifier, tmp_path):
    callbacks = [Checkpoint(tmp_path / "last.safetensors"), Checkpoint(f"{tmp_path}/{{n}}.st")]
    clf = tiny_classifier(callbacks=callbacks, max_epochs=1).partial_fit(*FIRST)
    clf.partial_fit(*SECOND)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10.st", "17.st", "last.safetensors"]
    X = FIRST[0]
    last = load(tmp_path / "last.safetensors").predict_proba(X)
    np.testing.assert_array_equal(last, clf.predict_proba(X))


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("name", ["gone/part.st", "."])
def test_a_checkpoint_that_cannot_be_written_is_told_before_the_training(
    tiny_classifier, tmp_path, name, tile
):
    epochs: list[Any] = []
    callbacks = [Checkpoint(tmp_path / name), lambda _, record: epochs.append(record)]
    clf = tiny_classifier(callbacks=callbacks, tile=tile)
    with pytest.raises((FileNotFoundError, IsADirectoryError), match=r"gone|is a folder"):
        clf.fit(*FIRST)
    assert not epochs and not hasattr(clf, "network_")


def test_a_folder_of_checkpoints_may_be_named_after_the_number_of_images(tiny_classifier, tmp_path):
    (tmp_path / "10").mkdir()
    checkpoint = Checkpoint(f"{tmp_path}/{{n}}/part.st")
    tiny_classifier(callbacks=checkpoint, max_epochs=1, cv=None).fit(*FIRST)
    assert (tmp_path / "10" / "part.st").is_file()


def test_a_time_limit_leaves_each_fold_after_its_epoch(tiny_classifier, monkeypatch):
    now = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(now))  # which no library looks at
    monkeypatch.setattr("defectcam.callbacks.time", clock)
    clf = tiny_classifier(max_epochs=50, callbacks=TimeLimit(2.5)).fit(*FIRST)
    assert clf.history_["fold"] == [0, 0, 0, 1, 2]
    assert len(clf.held_out_probability_) == 10


def test_truth_values_and_their_numbers_are_one_label(tiny_classifier):
    images, _ = parts(4, 4, seed=0)
    is_defect = np.arange(8) >= 4
    clf = tiny_classifier(max_epochs=1).partial_fit(images, is_defect)
    clf.partial_fit(255 - images, is_defect.astype(int))
    assert set(clf.training_data_.labels) == {"False", "True"}
