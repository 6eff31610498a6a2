from __future__ import annotations

import copy
import inspect
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import draw_part
from PIL import Image
from scipy.special import expit
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import get_tags

from defectcam import (
    ChanceLevelWarning,
    DefectCAMClassifier,
    FewDefectsWarning,
    Localization,
    NearDuplicateWarning,
    OnlyGoodImagesWarning,
    SuspectLabelsWarning,
    images,
    load,
    results,
)
from defectcam.calibration import DefectProbability
from defectcam.cam import signed_cam
from defectcam.cross_fitting import train_with_folds
from defectcam.feature_cache import VIEWS
from defectcam.geometry import Geometry
from defectcam.heat_model import GOOD_PIXEL_QUANTILE, HeatModel
from defectcam.images import ImageReadError
from defectcam.network import DefectCAMNetwork
from defectcam.training import HISTORY_COLUMNS, TailTraining


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    """Return 5 good and 5 scratched parts, uint8 RGB."""
    rng = np.random.default_rng(1)
    return np.stack([draw_part(rng, scratched=number >= 5) for number in range(10)])


Y = np.array(["good"] * 5 + ["scratch"] * 5)


@pytest.fixture
def paths(fitted_parts: Path) -> list[str]:
    """Return the files that `fitted` was fitted on, good ones first."""
    return sorted(str(path) for path in fitted_parts.glob("*/*.png"))


@pytest.fixture
def all_defective(fitted: DefectCAMClassifier) -> DefectCAMClassifier:
    """Return a copy of `fitted` that calls every image defective and draws boxes early."""
    classifier = copy.deepcopy(fitted)
    classifier.threshold_ = 0.0
    classifier.box_threshold = 0.3
    return classifier


def state_bytes(classifier: DefectCAMClassifier) -> bytes:
    return b"".join(
        name.encode() + value.flatten().view(torch.uint8).numpy().tobytes()
        for name, value in classifier.network_.state_dict().items()
    )


def hooks(net: torch.nn.Module) -> list[object]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in net.modules() for name in names for hook in getattr(module, name)]


# --- A second look ------------------------------------------------------------------------------


def passes_of(classifier: DefectCAMClassifier, monkeypatch) -> list[tuple[int, ...]]:
    """Return a list that gets the shape of the pixels of every pass."""
    shapes: list[tuple[int, ...]] = []
    infer = DefectCAMNetwork.infer

    def counted(network: DefectCAMNetwork, pixels: torch.Tensor) -> Any:
        shapes.append(tuple(pixels.shape))
        return infer(network, pixels)

    monkeypatch.setattr(DefectCAMNetwork, "infer", counted)
    return shapes


def test_only_defective_images_are_looked_at_again(fitted, paths, monkeypatch):
    half = copy.copy(fitted).set_params(second_look=1.3)
    half.threshold_ = float(np.median(fitted.predict_proba(paths)[:, 1]))
    once = copy.copy(half).set_params(second_look=None).localize(paths)
    n_defects = sum(one.is_defect for one in once)
    assert 0 < n_defects < len(once)
    shapes = passes_of(half, monkeypatch)
    found = half.localize(paths)
    n_seen = {side: sum(n for n, _, _, width in shapes if width == side) for side in (64, 96)}
    assert n_seen == {64: len(paths), 96: n_defects}
    for one, before in zip(found, once, strict=True):
        assert (one.label, one.probability) == (before.label, before.probability)
        if one.is_defect:
            assert one.grid.shape == (12, 12) and before.grid.shape == (8, 8)
            assert one.point_spread == pytest.approx(1.5 * before.point_spread)
        else:
            assert np.array_equal(one.grid, before.grid)


def test_the_map_is_the_mean_of_both_looks(all_defective, paths):
    all_defective.set_params(second_look=1.3)
    found = all_defective.localize(paths[0])
    first = copy.copy(all_defective).set_params(second_look=None).localize(paths[0]).grid
    pixels = all_defective.preprocess_.batch([images.read_image(paths[0])])
    larger = F.interpolate(pixels, size=(96, 96), mode="bilinear").flip(3)
    with torch.no_grad():
        output = all_defective.network_.infer(larger)
    model = all_defective._heat_model
    second = model.grids(output.levels, output.novelty, output.students)[0].numpy()[:, ::-1]
    finer = cv2.resize(first, (12, 12), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found.grid, (finer + second) / 2, atol=1e-4)


def test_nothing_else_pays_for_a_second_look(
    all_defective, tiny_classifier, paths, arrays, monkeypatch
):
    all_defective.set_params(second_look=1.3)
    pure = tiny_classifier(heatmap="cam", threshold=0.0, max_epochs=1, second_look=1.3)
    pure.fit(arrays, Y)
    shapes = passes_of(all_defective, monkeypatch)
    all_defective.predict(paths)
    all_defective.predict_proba(paths)
    all_defective.localize(paths[:2], method="eigencam")
    assert all(one.is_defect for one in pure.localize(arrays))
    assert {shape[3] for shape in shapes} == {64}


def test_a_lazy_stream_is_looked_at_again_batch_by_batch(all_defective, paths, monkeypatch):
    all_defective.set_params(second_look=1.3)
    shapes = passes_of(all_defective, monkeypatch)
    stream = all_defective.localize_iter(iter(paths))
    next(stream)
    assert [shape[3] for shape in shapes].count(96) == 1


# --- What fit takes -----------------------------------------------------------------------------


def test_a_folder_and_its_files_with_labels_give_the_same_classifier(
    tiny_classifier, fitted, paths
):
    y = [Path(path).parent.name for path in paths]
    from_paths = tiny_classifier().fit(paths, y)
    assert state_bytes(from_paths) == state_bytes(fitted)
    assert from_paths.threshold_ == fitted.threshold_
    assert fitted.classes_.tolist() == ["good", "scratch"]
    assert (fitted.good_label_, fitted.defect_labels_) == ("good", ["scratch"])
    assert fitted.image_size_ == (64, 64)


def test_all_kinds_of_images_give_the_same_classifier(tiny_classifier, arrays, tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(10)]
    for file, array in zip(files, arrays, strict=True):
        Image.fromarray(array).save(file)
    make = tiny_classifier(max_epochs=1).fit
    kinds: list[Any] = [
        arrays,
        list(arrays),
        files,
        pd.Series([str(file) for file in files], index=range(100, 110)),
        np.array([str(file) for file in files]),
        [Image.fromarray(array) for array in arrays],
    ]
    states = {state_bytes(make(X, Y)) for X in kinds}
    assert len(states) == 1


def test_images_of_different_sizes_and_kinds(tiny_classifier):
    rng = np.random.default_rng(2)
    sizes = [40, 48, 100, 33, 64, 50]
    images = [draw_part(rng, scratched=i >= 3, size=size) for i, size in enumerate(sizes)]
    images[0] = images[0][..., 0]
    images[4] = images[4][:, :30]
    classifier = tiny_classifier(max_epochs=1).fit(images, [False] * 3 + [True] * 3)
    found = classifier.localize(images)
    assert [one.heatmap.shape for one in found] == [image.shape[:2] for image in images]


@pytest.mark.parametrize(
    ("good", "defect"), [("ok", "dent"), (False, True), (0, 1), (np.int8(0), np.int8(1))]
)
def test_labels_come_back_as_they_were_given(tiny_classifier, arrays, good, defect):
    y = [good] * 5 + [defect] * 5
    classifier = tiny_classifier(max_epochs=1).fit(arrays, y)
    assert set(classifier.classes_.tolist()) == {good, defect}
    assert classifier.good_label_ == good
    assert classifier.defect_labels_ == [defect]
    assert set(classifier.predict(arrays).tolist()) <= {good, defect}
    assert classifier.score(arrays, y) == np.mean(classifier.predict(arrays) == y)


@pytest.mark.parametrize("y", [pd.Series(Y, index=range(50, 60)), pd.Series(Y, dtype="category"),
                               Y.tolist(), Y.astype(object)])  # fmt: skip
def test_containers_of_labels(tiny_classifier, arrays, y):
    classifier = tiny_classifier(max_epochs=1).fit(arrays, y)
    assert classifier.classes_.tolist() == ["good", "scratch"]


def test_a_column_of_labels_is_taken_with_a_warning(tiny_classifier, arrays):
    with pytest.warns(UserWarning, match="column-vector"):
        classifier = tiny_classifier(max_epochs=1).fit(arrays, Y[:, np.newaxis])
    assert classifier.classes_.tolist() == ["good", "scratch"]


@pytest.mark.parametrize(
    ("y", "good_label", "message"),
    [
        (["a"] * 5 + ["b"] * 5, None, "pass good_label"),
        (Y, "fine", "good_label='fine' is not among the labels"),
        (["bad"] * 10, None, "one class only"),
        (Y[:9], None, "inconsistent numbers of samples"),
        (None, None, "requires y to be passed, but the target y is None"),
    ],
)
def test_labels_that_do_not_do_are_refused(tiny_classifier, arrays, y, good_label, message):
    with pytest.raises(ValueError, match=message):
        tiny_classifier(good_label=good_label).fit(arrays, y)


def test_defect_types_become_one_class_or_stay_apart(tiny_classifier, arrays):
    y = np.array(["good"] * 5 + ["dent"] * 2 + ["scratch"] * 3)
    merged = tiny_classifier(max_epochs=1).fit(arrays, y)
    assert merged.classes_.tolist() == ["anomaly", "good"]
    apart = tiny_classifier(max_epochs=1, target="type").fit(arrays, y)
    assert apart.classes_.tolist() == ["dent", "good", "scratch"]
    probability = apart.predict_proba(arrays)
    assert probability.shape == (10, 3)
    np.testing.assert_allclose(probability.sum(1), 1)
    apart.threshold_ = float(np.median(1 - probability[:, 1]))  # so that both are predicted
    defective = 1 - probability[:, 1] >= apart.threshold_
    types = np.array(["dent", "scratch"])[probability[:, [0, 2]].argmax(1)]
    predicted = apart.predict(arrays)
    assert predicted.tolist() == np.where(defective, types, "good").tolist()
    assert predicted.tolist() == [one.label for one in apart.localize(arrays)]
    decision = apart.decision_function(arrays)
    assert decision.shape == (10, 3)
    assert predicted.tolist() == apart.classes_[decision.argmax(1)].tolist()
    np.testing.assert_array_equal(decision[:, 1], -decision[:, [0, 2]].max(1))
    np.testing.assert_allclose(  # odds between types are those of the probabilities
        decision[:, 0] - decision[:, 2], np.log(probability[:, 0] / probability[:, 2]), rtol=1e-6
    )


@pytest.mark.parametrize("heatmap", ["cam", "fused", "min_max_cam"])
def test_boxes_carry_their_defect_type(tiny_classifier, arrays, heatmap):
    y = np.array(["good"] * 5 + ["dent"] * 2 + ["scratch"] * 3)
    classifier = tiny_classifier(max_epochs=1, target="type", heatmap=heatmap).fit(arrays, y)
    classifier.threshold_, classifier.box_threshold, classifier.min_area = 0.0, 0.4, 1
    localized = classifier.localize(arrays)
    evidence = classifier.evidence(arrays)
    for found, maps in zip(localized, evidence, strict=True):
        assert found.defect_labels == ("dent", "scratch")
        difference = found.type_grids[0] - found.type_grids[1]
        slope = np.polyfit((maps[0] - maps[2]).ravel(), difference.ravel(), 1)[0]
        np.testing.assert_allclose(difference, slope * (maps[0] - maps[2]), atol=1e-4)
        if heatmap == "cam":
            np.testing.assert_array_equal(found.type_grids.max(0), found.grid)
        of_types = [found.type_heatmap(label) for label in found.defect_labels]
        np.testing.assert_array_equal(np.maximum(*of_types), found.heatmap)
    assert any(len(found.boxes) for found in localized)
    called = {label for found in localized for label in found.box_labels}
    assert called <= {"dent", "scratch", "anomaly"}


def test_the_boxes_of_a_single_defect_class_are_of_that_class(all_defective, arrays):
    localized = all_defective.localize(arrays)
    assert any(len(found.boxes) for found in localized)
    for found in localized:
        assert found.type_grids is None and found.defect_labels is None
        assert found.box_labels == ["scratch"] * len(found.boxes)


# --- What is doubtful about the images ----------------------------------------------------------


def test_few_defective_images_are_remarked_upon_at_the_line_that_called_fit(
    tiny_classifier, arrays
):
    with pytest.warns(FewDefectsWarning, match="only 5 defective images") as caught:
        tiny_classifier(max_epochs=1).fit(arrays, Y)
    assert caught[0].filename == __file__


def test_random_labels_are_told_apart_no_better_than_by_chance(tiny_classifier, arrays):
    y = np.arange(10) % 2 == 0
    with pytest.warns(ChanceLevelWarning, match="no better than by chance"):
        tiny_classifier(max_epochs=1).fit(arrays, y)


def test_suspects_are_the_images_whose_own_label_is_least_probable(fitted, paths):
    held_out = fitted.held_out_probability_
    is_defect = np.array(["scratch" in path for path in paths])
    own = np.where(is_defect, held_out, 1 - held_out)
    assert fitted.suspects_.dtype == np.int64
    assert sorted(fitted.suspects_.tolist()) == list(range(14))
    assert (np.diff(own[fitted.suspects_]) >= 0).all()


@pytest.mark.parametrize("cv", [None, 2])
def test_of_several_types_the_probability_of_the_own_one_ranks_suspects(
    tiny_classifier, arrays, cv
):
    y = ["good"] * 5 + ["dent"] * 2 + ["scratch"] * 3
    classifier = tiny_classifier(max_epochs=1, target="type", cv=cv).fit(arrays, y)
    assert sorted(classifier.suspects_.tolist()) == list(range(10))
    if cv is None:  # then the scores are those of the training images themselves
        rows = classifier.predict_proba(arrays)
        own = rows[np.arange(10), np.searchsorted(classifier.classes_, y)]
        np.testing.assert_allclose(own[classifier.suspects_], np.sort(own), atol=0.02)


def test_labels_that_held_out_predictions_contradict_are_named(
    tiny_classifier, arrays, monkeypatch
):
    def confident(*_: np.ndarray) -> DefectProbability:
        return DefectProbability((0.0, 0.0), 20.0)  # everything is a defect

    monkeypatch.setattr("defectcam.classifier.fit_defect_probability", confident)
    with pytest.warns(
        SuspectLabelsWarning, match=r"5 training images .*image 0 \('good'\)"
    ) as told:
        classifier = tiny_classifier(max_epochs=1).fit(arrays, Y)
    assert [one.filename for one in told if one.category is SuspectLabelsWarning] == [__file__]
    assert sorted(classifier.suspects_[:5].tolist()) == list(range(5))


def test_copies_under_two_labels_are_named(tiny_classifier, arrays):
    images = [*arrays, arrays[7]]
    with pytest.warns(NearDuplicateWarning, match="1 pair .*: image 10 and image 7"):
        tiny_classifier(max_epochs=1).fit(images, [*Y, "good"])


@pytest.mark.parametrize("cv", [2, 3])
@pytest.mark.filterwarnings("ignore::defectcam.NearDuplicateWarning")
def test_copies_are_held_out_together(tiny_classifier, arrays, monkeypatch, cv):
    copies = {10: 0, 11: 5, 12: 5, 13: 3}
    images = [*arrays, *(arrays[original] for original in copies.values())]
    y = [*Y, "good", "scratch", "scratch", "scratch"]
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def watched(training: TailTraining, folds: Any, novelty: torch.Tensor) -> Any:
        seen.extend(folds)
        return train_with_folds(training, folds, novelty)

    monkeypatch.setattr("defectcam.fitting.train_with_folds", watched)
    tiny_classifier(max_epochs=1, cv=cv).fit(images, y)
    assert len(seen) == cv
    assert sorted(np.concatenate([held_out for _, held_out in seen])) == list(range(14))
    for train_rows, held_out in seen:
        for copy_, original in copies.items():
            assert (copy_ in train_rows) == (original in train_rows)
        assert {y[i] for i in held_out} == {y[i] for i in train_rows} == {"good", "scratch"}


@pytest.mark.filterwarnings("ignore::defectcam.NearDuplicateWarning")
def test_where_all_images_are_copies_they_are_split_all_the_same(tiny_classifier, arrays):
    classifier = tiny_classifier(max_epochs=1).fit(arrays[[0] * 4 + [7] * 4], Y[1:9])
    assert set(classifier.history_["fold"]) == {0, 1, 2}
    tiny_classifier(max_epochs=1).fit(arrays[[0] * 8], Y[1:9])


def test_an_image_of_something_else_is_unfamiliar(fitted, paths):
    assert not any(one.unfamiliar for one in fitted.localize(paths))
    others = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    others[1] = 0
    for one in fitted.localize([paths[0], *others]):
        assert one.unfamiliar == (one.source is not paths[0])
        assert one.with_threshold(decision_threshold=0.1).unfamiliar == one.unfamiliar


def test_without_novelty_nothing_is_unfamiliar(tiny_classifier, arrays):
    classifier = tiny_classifier(max_epochs=1, pooling="top_k", heatmap="cam").fit(arrays, Y)
    assert not classifier.localize(np.zeros((48, 48), dtype=np.uint8)).unfamiliar


# --- Good images alone --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_good(tiny_classifier) -> DefectCAMClassifier:
    """Return a classifier that was fitted on 30 good parts."""
    with pytest.warns(OnlyGoodImagesWarning, match=r"only good images \(30\)"):
        return tiny_classifier(cv=3).fit(good_parts(30, seed=0), ["good"] * 30)


def good_parts(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw_part(rng, scratched=False) for _ in range(n)])


def test_good_images_alone_find_defects_by_novelty(from_good, arrays):
    assert from_good.classes_.tolist() == ["anomaly", "good"]
    assert (from_good.good_label_, from_good.defect_labels_) == ("good", ["anomaly"])
    assert from_good.threshold_ == 0.5
    assert from_good.history_ == {name: [] for name in HISTORY_COLUMNS}
    assert from_good.predict(arrays[5:]).tolist() == ["anomaly"] * 5
    new = good_parts(20, seed=7)
    assert (from_good.predict(new) == "good").mean() > 0.8
    assert (from_good.evidence(arrays) == 0).all()
    np.testing.assert_allclose(from_good.predict_proba(arrays).sum(1), 1)
    assert from_good.score(arrays, Y) >= 0.8


def test_the_probability_from_good_images_is_held_out_novelty(from_good):
    held_out = from_good.held_out_probability_
    assert held_out.shape == (30,)
    assert np.median(held_out) == pytest.approx(0.01, abs=2e-3)
    assert (held_out >= 0.5).mean() <= 0.1
    assert from_good.suspects_[0] == held_out.argmax()


def test_the_heatmap_from_good_images_is_novelty_on_its_scale(from_good, arrays):
    calm = np.stack([one.grid for one in from_good.localize(good_parts(20, seed=7))])
    assert np.median(calm) == pytest.approx(0, abs=0.2)
    assert (calm > 1).mean() < 0.02
    for one in from_good.localize(arrays[5:]):
        assert one.grid.max() > 1
        assert one.is_defect
        assert len(one.boxes)
        assert one.label == "anomaly"


@pytest.mark.parametrize(
    ("good", "label", "defect"),
    [("OK", None, "anomaly"), (False, None, True), (0, None, 1), ("A", "A", "anomaly")],
)
@pytest.mark.filterwarnings("ignore::defectcam.OnlyGoodImagesWarning")
def test_labels_of_good_images_alone(tiny_classifier, arrays, good, label, defect):
    classifier = tiny_classifier(good_label=label).fit(arrays[:5], [good] * 5)
    assert classifier.good_label_ == good
    assert classifier.defect_labels_ == [defect]
    assert set(classifier.predict(arrays).tolist()) <= {good, defect}


@pytest.mark.parametrize("layout", ["good", "train/good"])
@pytest.mark.filterwarnings("ignore::defectcam.OnlyGoodImagesWarning")
def test_a_folder_of_good_images_alone_and_the_same_call_with_defects(
    tiny_classifier, parts, layout
):
    scratched = parts.parent / "scratch"
    (parts / "scratch").rename(scratched)
    root = parts.parent / "root"
    (root / layout).parent.mkdir(parents=True)
    (parts / "good").rename(root / layout)
    classifier = tiny_classifier(max_epochs=1).fit(root)
    assert classifier.classes_.tolist() == ["anomaly", "good"]
    assert classifier.history_["epoch"] == []
    scratched.rename((root / layout).parent / "scratch")
    classifier.fit(root)
    assert classifier.classes_.tolist() == ["good", "scratch"]
    assert classifier.history_["epoch"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": "recall>=0.9"}, "threshold='recall>=0.9': use 'balanced'"),
        ({"threshold": "cost=20:1"}, "threshold='cost=20:1': use 'balanced'"),
        ({"heatmap": "cam"}, "heatmap='cam': use 'fused'"),
        ({"heatmap": "min_max_cam"}, "heatmap='min_max_cam': use 'fused'"),
        ({"novelty_strides": ()}, "novelty_strides"),
    ],
)
def test_what_needs_defective_images_is_refused_before_the_trunk_runs(
    tiny_classifier, arrays, trunk_images, parameters, message
):
    with pytest.raises(ValueError, match=rf"good images alone \(label ('good'|False)\).*{message}"):
        tiny_classifier(**parameters).fit(arrays[:5], Y[:5])
    assert trunk_images == []


@pytest.mark.filterwarnings("ignore::defectcam.OnlyGoodImagesWarning")
def test_good_images_alone_are_seen_once_whatever_the_augmentation(
    tiny_classifier, arrays, trunk_images
):
    for cv in (None, 3):
        classifier = tiny_classifier(cv=cv, threshold=0.3).fit(arrays[:5], Y[:5])
        assert classifier.threshold_ == 0.3
    assert sum(trunk_images) == 10


def test_a_single_good_image_is_enough_for_an_answer(tiny_classifier, arrays):
    with (
        pytest.warns(OnlyGoodImagesWarning),
        pytest.warns(UserWarning, match="none can be held out"),
    ):
        classifier = tiny_classifier().fit(arrays[:1], Y[:1])
    assert np.isfinite(classifier.predict_proba(arrays)).all()


# --- Parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 5),
        ("image_size", 8),
        ("resize", "crop"),
        ("trainable_stages", -1),
        ("evidence_stages", 0),
        ("pooling", "median"),
        ("pooling_fraction", 0),
        ("target", "regression"),
        ("class_weight", -1.0),
        ("optimizer", "lbfgs"),
        ("learning_rate", 0),
        ("max_epochs", 0),
        ("batch_size", 0),
        ("deep_supervision", "each"),
        ("schedule", "step"),
        ("augmentation", "mixup"),
        ("cv", 1),
        ("heatmap", "gradcam"),
        ("threshold", 1.5),
        ("box_threshold", "high"),
        ("box_peak_fraction", 1.0),
        ("min_area", 0),
        ("max_boxes", 0),
        ("merge_distance", -1),
        ("memory", 5),
        ("device", None),
        ("precision", "float16"),
        ("random_state", "seed"),
        ("callbacks", 5),
    ],
)
def test_a_wrong_parameter_is_refused_at_fit_in_scikit_learns_words(
    tiny_classifier, arrays, name, value
):
    classifier = tiny_classifier(**{name: value})  # not refused here
    message = f"The '{name}' parameter of DefectCAMClassifier must be"
    with pytest.raises(ValueError, match=message):
        classifier.fit(arrays, Y)


@pytest.mark.parametrize(
    "parameters",
    [
        {"threshold": "best"},
        {"image_size": (64, 64, 3)},
        {"image_size": ("a", "b")},
        {"callbacks": ["not callable"]},
        {"trainable_stages": 17},
        {"backbone": "no_such_backbone"},
        {"class_weight": {"good": 1.0, "no such class": 2.0}},
    ],
    ids=str,
)
def test_what_only_fit_can_judge_is_refused_before_the_trunk_runs(
    tiny_classifier, arrays, monkeypatch, parameters
):
    monkeypatch.setattr(DefectCAMNetwork, "trunk_features", lambda *_: pytest.fail("trunk ran"))
    with pytest.raises((ValueError, TypeError)):
        tiny_classifier(**parameters).fit(arrays, Y)


def test_init_stores_its_arguments_unchanged():
    names = list(inspect.signature(DefectCAMClassifier).parameters)
    values = {name: object() for name in names}
    classifier = DefectCAMClassifier(**values)
    assert vars(classifier) == values
    assert set(names) == set(DefectCAMClassifier._parameter_constraints)


def test_parameters_can_be_read_set_and_cloned(tiny_classifier, fitted):
    classifier = tiny_classifier(image_size=(48, 64), callbacks=[print])
    assert clone(classifier).get_params() == classifier.get_params()
    assert clone(classifier).set_params(cv=None).cv is None
    assert is_classifier(classifier)
    with pytest.raises(NotFittedError):
        clone(fitted).predict([np.zeros((9, 9), dtype=np.uint8)])


def test_tags_say_that_it_takes_images_and_paths(tiny_classifier):
    tags = get_tags(tiny_classifier())
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.three_d_array
    assert tags.input_tags.string
    assert not tags.input_tags.allow_nan
    assert not tags.input_tags.sparse
    assert tags.classifier_tags.multi_class
    assert not tags.no_validation


def test_fit_does_not_change_the_parameters(tiny_classifier, fitted):
    assert fitted.get_params() == tiny_classifier().get_params()


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"expected one of \['vgg16_cam'\]"):
        DefectCAMClassifier.from_recipe("vgg19")


def test_a_recipe_can_be_changed():
    classifier = DefectCAMClassifier.from_recipe("vgg16_cam", max_epochs=3)
    assert (classifier.backbone, classifier.max_epochs) == ("vgg16", 3)


@pytest.mark.parametrize(
    "method",
    ["predict", "predict_proba", "decision_function", "defect_score", "localize", "evidence"],
)
def test_without_fit_there_is_no_answer(tiny_classifier, arrays, method):
    with pytest.raises(NotFittedError):
        getattr(tiny_classifier(), method)(arrays)


def test_without_fit_there_is_no_other_answer(tiny_classifier, arrays):
    classifier = tiny_classifier()
    for call in (
        lambda: classifier.score(arrays, Y),
        lambda: list(classifier.localize_iter(arrays)),
        classifier.info,
    ):
        with pytest.raises(NotFittedError):
            call()


# --- Prediction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("good", ["good", "zero defects"])
def test_answers_agree_with_each_other(tiny_classifier, arrays, good):
    y = np.where(Y == "good", good, "scratch")  # the good class comes first or last
    classifier = tiny_classifier(good_label=good).fit(arrays, y)
    assert classifier.classes_.tolist() == sorted([good, "scratch"])
    defect = classifier.classes_.tolist().index("scratch")
    probability = classifier.predict_proba(arrays)
    np.testing.assert_allclose(probability.sum(1), 1)
    classifier.threshold_ = float(np.median(probability[:, defect]))  # so that both are predicted
    predicted = classifier.predict(arrays)
    assert sorted(set(predicted)) == sorted([good, "scratch"])
    is_defect = probability[:, defect] >= classifier.threshold_
    assert (predicted == np.where(is_defect, "scratch", good)).all()
    decision = classifier.decision_function(arrays)
    assert decision.shape == (10,)
    assert (predicted == classifier.classes_[(decision > 0).astype(int)]).all()
    np.testing.assert_allclose(expit(classifier.defect_score(arrays)), probability[:, defect])
    assert classifier.score(arrays, y) == (predicted == y).mean()
    for one, label, row in zip(classifier.localize(arrays), predicted, probability, strict=True):
        assert one.label == label
        assert one.is_defect == (label == "scratch")
        assert one.probability == pytest.approx(row[defect])


def test_the_threshold_can_be_moved(fitted, paths):
    classifier = copy.deepcopy(fitted)
    for threshold, label in ((0.0, "scratch"), (1.0, "good")):
        classifier.threshold_ = threshold
        assert set(classifier.predict(paths)) == {label}
        assert {one.label for one in classifier.localize(paths)} == {label}


@pytest.mark.parametrize("wrong", [70, -0.1, np.nextafter(1, 2), np.nan, np.inf])
def test_a_threshold_that_is_no_probability_is_refused_when_it_is_used(fitted, paths, wrong):
    classifier = copy.deepcopy(fitted)
    found = classifier.localize(paths[0])
    classifier.threshold_ = wrong
    for use in (classifier.predict, classifier.localize, classifier.decision_function):
        with pytest.raises(ValueError, match=r"threshold_ must be a probability, from 0 to 1.*got"):
            use(paths)
    with pytest.raises(ValueError, match="decision_threshold must be a probability"):
        found.with_threshold(decision_threshold=wrong)


def test_a_recall_asked_for_is_reached_on_held_out_images(tiny_classifier, arrays):
    classifier = tiny_classifier(threshold="recall>=1.0").fit(arrays, Y)
    held_out = classifier.held_out_probability_
    assert held_out.shape == (10,)
    assert classifier.threshold_ == held_out[5:].min()


def test_score_takes_a_folder_and_unknown_defect_types(fitted, fitted_parts, arrays):
    paths = sorted(str(path) for path in fitted_parts.glob("*/*.png"))
    y = [Path(path).parent.name for path in paths]
    assert fitted.score(fitted_parts) == fitted.score(paths, y)
    other = np.where(Y == "good", "good", "dent")
    assert fitted.score(arrays, other) == fitted.score(arrays, Y)
    weights = np.arange(10)
    right = fitted.predict(arrays) == Y
    assert fitted.score(arrays, Y, weights) == pytest.approx(np.average(right, weights=weights))


def test_an_unknown_type_is_right_where_it_is_called_any_defect(tiny_classifier, arrays):
    y = np.array(["good"] * 5 + ["scratch"] * 3 + ["dent"] * 2)
    classifier = tiny_classifier(max_epochs=1, target="type").fit(arrays, y)
    predicted = classifier.predict(arrays)
    unknown = np.where(y == "good", "good", "stain")
    is_right = (predicted == "good") == (y == "good")
    assert classifier.score(arrays, unknown) == is_right.mean()
    assert classifier.score(arrays, y) == (predicted == y).mean()
    classifier.threshold_ = 0.0  # all are called defective
    assert classifier.score(arrays, unknown) == 0.5
    classifier.threshold_ = 1.0  # none is
    assert classifier.score(arrays, unknown) == 0.5


@pytest.mark.parametrize("target", ["anomaly", "type"])
def test_score_takes_labels_of_another_kind_as_evaluate_does(tiny_classifier, arrays, target):
    names = np.array(["good"] * 5 + ["scratch"] * 3 + ["dent"] * 2)
    is_defect = names != "good"
    for learned in (names, is_defect) if target == "anomaly" else (names,):
        classifier = tiny_classifier(max_epochs=1, target=target).fit(arrays, learned)
        for asked in (is_defect, is_defect.astype(int), np.where(is_defect, "bad", "good")):
            accuracy = classifier.evaluate(arrays, asked).accuracy
            assert classifier.score(arrays, asked) == pytest.approx(accuracy)


def test_a_classifier_of_truth_values_scores_folders(tiny_classifier, arrays, fitted_parts):
    classifier = tiny_classifier(max_epochs=1).fit(arrays, Y != "good")
    assert classifier.score(fitted_parts) == classifier.evaluate(fitted_parts).accuracy


def test_score_says_where_no_label_is_the_good_one(fitted, arrays):
    with pytest.warns(UserWarning, match="No image is labelled 'good'"):
        fitted.score(arrays, np.where(Y == "good", "OK", "NG"))


def test_logarithms_of_probabilities(fitted, arrays):
    np.testing.assert_array_equal(
        fitted.predict_log_proba(arrays), np.log(fitted.predict_proba(arrays))
    )


def test_single_images_many_images_and_folders(fitted, fitted_parts, paths):
    many = fitted.localize(paths)
    assert isinstance(many, list)
    assert [one.source for one in many] == paths
    for X in (paths[0], Path(paths[0]), cv2.imread(paths[0])[..., ::-1], Image.open(paths[0])):
        one = fitted.localize(X)
        assert isinstance(one, Localization)
        np.testing.assert_allclose(one.grid, many[0].grid, atol=1e-5)
        assert one.source is X
    assert [one.source for one in fitted.localize(fitted_parts)] == paths
    assert len(fitted.localize(paths[:1])) == 1
    with pytest.raises(ValueError, match=r"pass \[image\], or use localize"):
        fitted.predict(paths[0])


def test_images_are_taken_from_a_stream_as_needed(fitted, paths):
    taken: list[str] = []

    def stream():
        for path in paths:
            taken.append(path)
            yield path

    found = fitted.localize_iter(stream())
    assert taken == []
    assert next(found).source == paths[0]
    assert len(taken) < len(paths)
    assert [one.source for one in found] == paths[1:]


def test_the_order_is_kept_with_many_readers(fitted, paths):
    classifier = copy.deepcopy(fitted).set_params(n_jobs=4, batch_size=3)
    order = np.random.default_rng(0).permutation(len(paths))
    np.testing.assert_allclose(
        classifier.defect_score([paths[i] for i in order]), fitted.defect_score(paths)[order],
        rtol=1e-5, atol=1e-4,
    )  # fmt: skip


def test_a_batch_gives_what_its_images_give_alone(fitted, paths):
    together = copy.deepcopy(fitted).set_params(batch_size=len(paths))
    alone = copy.deepcopy(fitted).set_params(batch_size=1)
    np.testing.assert_allclose(together.predict_proba(paths), alone.predict_proba(paths), atol=1e-5)
    np.testing.assert_allclose(together.evidence(paths), alone.evidence(paths), atol=1e-5)
    for one, other in zip(together.localize(paths), alone.localize(paths), strict=True):
        np.testing.assert_allclose(one.grid, other.grid, atol=1e-4)


def test_only_defective_images_have_boxes(all_defective, paths):
    found = all_defective.localize(paths)
    assert any(len(one.boxes) for one in found)
    all_defective.threshold_ = float(np.median([one.probability for one in found]))
    again = all_defective.localize(paths)
    assert {one.is_defect for one in again} == {True, False}
    for one, before in zip(again, found, strict=True):
        assert np.array_equal(one.boxes, before.boxes if one.is_defect else np.empty((0, 4)))


def test_parameters_of_the_boxes_count_without_another_fit(all_defective, paths):
    all_defective.set_params(max_boxes=1, min_area=2, merge_distance=5.0, box_peak_fraction=0.3)
    all_defective.set_params(tighten_boxes=False)
    for one in all_defective.localize(paths[:3]):
        assert (one.max_boxes, one.min_area, one.merge_distance) == (1, 2, 5.0)
        assert (one.peak_fraction, one.tighten) == (0.3, False)
        assert one.threshold == all_defective.box_threshold
        assert len(one.boxes) <= 1


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_the_heatmap_lies_on_the_original_pixels(tiny_classifier, arrays, resize):
    classifier = tiny_classifier(max_epochs=1, resize=resize, image_size=(48, 96))
    classifier.fit(arrays, Y)
    one = classifier.localize(arrays[0, :30])
    assert one.heatmap.shape == (30, 48)
    make = Geometry.stretch if resize == "stretch" else Geometry.pad
    assert one.geometry == make((30, 48), (48, 96))
    assert one.grid.shape[0] * 2 == one.grid.shape[1]


@pytest.mark.parametrize("cv", [None, 2])
def test_with_average_pooling_the_evidence_is_the_class_activation_map(tiny_classifier, arrays, cv):
    classifier = tiny_classifier(max_epochs=6, pooling="average", heatmap="cam", cv=cv)
    classifier.fit(arrays, Y)
    evidence = classifier.evidence(arrays)
    net, preprocess = classifier.network_, classifier._preprocess
    with torch.no_grad():
        logits = net(preprocess.batch(list(arrays))).numpy()
    log_odds = evidence[:, 1].mean((1, 2)) - evidence[:, 0].mean((1, 2))
    bias = net.head.bias.detach().numpy()
    np.testing.assert_allclose(log_odds + bias[1] - bias[0], logits[:, 1] - logits[:, 0], atol=1e-5)
    # the map that is shown is the same evidence on another scale
    signed = evidence[:, 1] - evidence[:, 0]
    grids = np.stack([one.grid for one in classifier.localize(arrays)])
    slope, offset = np.polyfit(signed.ravel(), grids.ravel(), 1)
    assert slope > 0
    np.testing.assert_allclose(grids, slope * signed + offset, atol=1e-3)
    # the training's features were kept in half precision
    assert np.median(grids[:5]) == pytest.approx(0, abs=5e-2)
    if cv is None:  # else the limit is that of held-out images
        assert np.quantile(grids[:5], GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-3)


def test_without_folds_the_fused_map_has_its_fixed_scale_too(tiny_classifier, arrays):
    classifier = tiny_classifier(max_epochs=2, heatmap="fused", cv=None).fit(arrays, Y)
    grids = np.stack([one.grid for one in classifier.localize(arrays[:5])])
    assert np.median(grids) == pytest.approx(0, abs=1e-3)
    assert np.quantile(grids, GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("heatmap", ["fused", "cam"])
def test_without_folds_each_level_has_its_fixed_scale_too(tiny_classifier, arrays, heatmap):
    classifier = tiny_classifier(max_epochs=2, heatmap=heatmap, cv=None).fit(arrays, Y)
    pixels = classifier._preprocess.batch(list(arrays[:5]))
    with torch.no_grad():
        levels = classifier.network_.infer(pixels).levels
    scales = classifier._heat_model.level_scales
    assert len(scales) == classifier.evidence_stages == 2
    for scale, level in zip(scales, levels.unbind(1), strict=True):
        good = scale.apply(signed_cam(level, 0)).numpy()
        assert np.median(good) == pytest.approx(0, abs=5e-2)
        assert np.quantile(good, GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_learned_the_processor_answers_alike(tiny_classifier, arrays, tmp_path):
    learned = tiny_classifier(device="cuda", precision="float32").fit(arrays, Y)
    assert next(learned.network_.parameters()).is_cuda
    learned.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    probabilities = (clf.predict_proba(arrays) for clf in (learned, loaded))
    np.testing.assert_allclose(*probabilities, atol=1e-2)
    maps = (clf.localize(arrays[0]).heatmap for clf in (learned, loaded))
    np.testing.assert_allclose(*maps, atol=5e-2)


@pytest.mark.parametrize(
    ("parameters", "n_students"),
    [
        ({}, 2),
        ({"evidence_stages": 1}, 1),
        ({"trainable_stages": 0}, 2),
        ({"trainable_stages": 2}, 2),
        ({"trainable_stages": 3}, 2),
        ({"trainable_stages": 1.5, "backbone": "resnet18", "image_size": 64}, 2),
        ({"self_training": False}, 0),
        ({"heatmap": "cam"}, 0),
    ],
)
def test_there_is_a_student_per_level_of_a_fused_map(
    tiny_classifier, arrays, tmp_path, parameters, n_students
):
    classifier = tiny_classifier(max_epochs=1, **parameters).fit(arrays, Y)
    assert len(classifier.network_.students) == n_students
    classifier.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert len(loaded.network_.students) == n_students
    maps = (clf.localize(arrays[0]).heatmap for clf in (classifier, loaded))
    np.testing.assert_array_equal(*maps)


def test_self_training_changes_the_heatmap_and_no_decision(tiny_classifier, arrays):
    plain, taught = (
        tiny_classifier(max_epochs=1, self_training=value).fit(arrays, Y) for value in (False, True)
    )
    np.testing.assert_array_equal(plain.predict_proba(arrays), taught.predict_proba(arrays))
    maps = (clf.localize(arrays[0]).heatmap for clf in (plain, taught))
    assert not np.array_equal(*maps)


def test_good_images_alone_have_no_students(tiny_classifier, arrays):
    with pytest.warns(OnlyGoodImagesWarning):
        classifier = tiny_classifier().fit(arrays[:6], ["good"] * 6)
    assert len(classifier.network_.students) == 0


@pytest.mark.parametrize("evidence_stages", [1, 2])
def test_deep_supervision_matters_where_there_are_levels(tiny_classifier, arrays, evidence_stages):
    deep, joint = (
        tiny_classifier(max_epochs=1, evidence_stages=evidence_stages, deep_supervision=deep)
        for deep in (True, False)
    )
    states = {state_bytes(one.fit(arrays, Y)) for one in (deep, joint)}
    assert len(states) == evidence_stages


def test_answers_in_bfloat16_are_close_to_those_in_float32(tiny_classifier, arrays):
    exact = tiny_classifier(precision="float32").fit(arrays, Y)
    halved = copy.deepcopy(exact)
    halved.network_.set_dtype(torch.bfloat16)
    fitted_so = tiny_classifier(precision="bfloat16").fit(arrays, Y)
    for one in (halved, fitted_so):
        assert one.info()["precision"] == "bfloat16"
        assert {p.dtype for p in one.network_.trunk.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in one.network_.tail.parameters()} == {torch.float32}
        assert one.evidence(arrays).dtype == np.float32
        np.testing.assert_allclose(one.predict_proba(arrays), exact.predict_proba(arrays), atol=0.1)
    for one, other in zip(halved.localize(arrays), exact.localize(arrays), strict=True):
        assert one.grid.dtype == np.float32
        assert 0 < np.abs(one.grid - other.grid).max() < 0.3


@pytest.mark.parametrize("heatmap", ["fused", "cam", "min_max_cam"])
@pytest.mark.parametrize("target", ["anomaly", "type"])
def test_every_heatmap_can_be_had_for_every_target(tiny_classifier, arrays, heatmap, target):
    y = ["good"] * 5 + ["dent"] * 2 + ["scratch"] * 3
    classifier = tiny_classifier(max_epochs=1, heatmap=heatmap, target=target).fit(arrays, y)
    for one in classifier.localize(arrays[[0, 9]]):
        assert np.isfinite(one.heatmap).all()
        if heatmap == "min_max_cam":
            at_input = F.interpolate(
                torch.from_numpy(one.grid.copy())[None, None],
                size=classifier.image_size_,
                mode="bilinear",
            )
            assert at_input.min().item() == pytest.approx(0, abs=1e-5)
            assert at_input.max().item() == pytest.approx(1, abs=1e-5)


def test_no_map_is_made_for_a_prediction(fitted, paths, monkeypatch):
    monkeypatch.setattr(HeatModel, "grids", lambda *_: pytest.fail("made a map"))
    monkeypatch.setattr(Geometry, "restore", lambda *_: pytest.fail("enlarged a map"))
    fitted.predict(paths)
    fitted.predict_proba(paths)
    fitted.decision_function(paths)
    fitted.score(paths, [Path(path).parent.name for path in paths])


def test_no_map_is_enlarged_before_it_is_looked_at(fitted, paths, monkeypatch):
    monkeypatch.setattr(Geometry, "restore", lambda *_: pytest.fail("enlarged a map"))
    assert len(fitted.localize(paths)) == len(paths)


def test_info_can_be_written_as_json(fitted):
    import json

    info = json.loads(json.dumps(fitted.info()))
    assert info["classes"] == ["good", "scratch"]
    assert info["n_training_images"] == 14
    assert info["training_labels"] == {"good": 8, "scratch": 6}
    assert info["training_data"] == fitted.training_data_.digest
    assert info["epochs"] == len(fitted.history_["epoch"])
    assert info["interrupted"] is False


# --- State --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_answer_alike_and_are_independent(fitted, paths, way):
    other = way(fitted)
    assert np.array_equal(other.predict_proba(paths), fitted.predict_proba(paths))
    before = state_bytes(fitted)
    with torch.no_grad():
        other.network_.head.bias += 1
    assert state_bytes(fitted) == before


def test_one_random_state_gives_the_same_bytes(tiny_classifier, fitted, fitted_parts):
    np.random.seed(99)
    torch.manual_seed(99)
    again = tiny_classifier().fit(fitted_parts)
    assert state_bytes(again) == state_bytes(fitted)
    assert np.array_equal(again.held_out_probability_, fitted.held_out_probability_)
    assert again.history_["loss"] == fitted.history_["loss"]
    other = tiny_classifier(random_state=1).fit(fitted_parts)
    assert state_bytes(other) != state_bytes(fitted)


def test_global_generators_are_not_used(tiny_classifier, arrays, generators_untouched):
    classifier = tiny_classifier(max_epochs=1, n_jobs=2).fit(arrays, Y)
    classifier.predict(arrays)
    classifier.localize(arrays)


def test_fitting_twice_is_fitting_once(tiny_classifier, fitted, fitted_parts, arrays):
    classifier = tiny_classifier().fit(arrays, np.where(Y == "good", "OK", "dent"))
    classifier.fit(fitted_parts)
    assert state_bytes(classifier) == state_bytes(fitted)
    assert classifier.history_["loss"] == fitted.history_["loss"]
    assert set(vars(classifier)) == set(vars(fitted))


def torch_settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        cv2.getNumThreads(),
        {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
    )


def test_settings_of_the_process_stay_as_found(tiny_classifier, arrays):
    before = torch_settings()
    classifier = tiny_classifier(max_epochs=1).fit(arrays, Y)
    classifier.predict(arrays)
    classifier.localize(arrays)
    assert torch_settings() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_fitted_where_gradients_are_off(tiny_classifier, arrays, mode):
    expected = tiny_classifier(max_epochs=1).fit(arrays, Y)
    with mode():
        classifier = tiny_classifier(max_epochs=1).fit(arrays, Y)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert state_bytes(classifier) == state_bytes(expected)


def test_another_default_dtype_does_no_harm(tiny_classifier, arrays):
    torch.set_default_dtype(torch.float64)
    try:
        classifier = tiny_classifier(max_epochs=1).fit(arrays, Y)
        classifier.predict(arrays)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_network_stays_in_the_mode_it_was_found_in(fitted, paths):
    classifier = copy.deepcopy(fitted)
    assert not classifier.network_.training
    expected = classifier.predict_proba(paths)
    gradients = [p.requires_grad for p in classifier.network_.parameters()]
    assert True in gradients
    assert False in gradients
    classifier.network_.train()
    modes = [module.training for module in classifier.network_.modules()]
    before = state_bytes(classifier)
    assert np.array_equal(classifier.predict_proba(paths), expected)
    classifier.localize(paths)
    assert [module.training for module in classifier.network_.modules()] == modes
    assert state_bytes(classifier) == before
    assert [p.requires_grad for p in classifier.network_.parameters()] == gradients
    assert all(p.grad is None for p in fitted.network_.parameters() if not p.requires_grad)
    assert hooks(classifier.network_) == []


def test_the_mode_is_given_back_after_an_error_too(fitted, monkeypatch, paths):
    classifier = copy.deepcopy(fitted)
    classifier.network_.train()
    monkeypatch.setattr(DefectCAMNetwork, "infer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        classifier.predict(paths)
    assert classifier.network_.training


# --- The course of a fit ------------------------------------------------------------------------


@pytest.fixture
def trunk_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of images of each trunk pass, without its filling."""
    seen: list[int] = []
    trunk_features = DefectCAMNetwork.trunk_features

    def watched(self: DefectCAMNetwork, pixels: torch.Tensor) -> Any:
        seen.append(int(pixels.flatten(1).any(1).sum()))
        return trunk_features(self, pixels)

    monkeypatch.setattr(DefectCAMNetwork, "trunk_features", watched)
    return seen


@pytest.mark.parametrize("augmentation", ["none", "flips"])
@pytest.mark.parametrize(("max_epochs", "cv"), [(1, None), (3, None), (2, 3)])
def test_the_trunk_sees_each_image_and_view_once(
    tiny_classifier, arrays, trunk_images, augmentation, max_epochs, cv
):
    tiny_classifier(augmentation=augmentation, max_epochs=max_epochs, cv=cv).fit(arrays, Y)
    assert sum(trunk_images) == len(arrays) * len(VIEWS[augmentation])


def test_the_trunk_sees_each_image_once_per_prediction(fitted, paths, trunk_images):
    fitted.predict(paths)
    assert sum(trunk_images) == len(paths)
    for one in fitted.localize(paths):
        _ = one.heatmap, one.boxes
    assert sum(trunk_images) == 2 * len(paths)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets the size of each image file that is decoded."""
    seen: list[Any] = []
    to_rgb = images._pillow_to_rgb

    def watched(image: Image.Image) -> np.ndarray:
        seen.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(images, "_pillow_to_rgb", watched)
    return seen


@pytest.mark.parametrize("max_epochs", [1, 3])
def test_each_file_is_decoded_once_in_a_fit(tiny_classifier, paths, decoded, max_epochs):
    y = [Path(path).parent.name for path in paths]
    tiny_classifier(max_epochs=max_epochs).fit(paths, y)
    assert len(decoded) == len(paths)


def test_each_file_is_decoded_once_per_answer(fitted, paths, decoded):
    for answer in (fitted.predict, fitted.predict_proba, fitted.localize):
        decoded.clear()
        answer(paths)
        assert len(decoded) == len(paths)


def test_predicting_makes_no_map(fitted, paths, monkeypatch):
    monkeypatch.setattr(HeatModel, "grids", lambda *_: pytest.fail("a map was made"))
    fitted.predict(paths)
    fitted.predict_proba(paths)
    fitted.decision_function(paths)


def test_full_size_maps_and_boxes_are_made_when_asked_for(all_defective, paths, monkeypatch):
    calls = []
    restore, find = Geometry.restore, results.find_boxes
    monkeypatch.setattr(Geometry, "restore", lambda *a: calls.append("map") or restore(*a))
    monkeypatch.setattr(
        results, "find_boxes", lambda *a, **k: calls.append("boxes") or find(*a, **k)
    )
    found = all_defective.localize(paths[:3])
    assert calls == []
    _ = [one.boxes for one in found], [one.box_scores for one in found]
    assert calls == ["map", "boxes"] * 3


def test_an_unreadable_file_is_named_before_the_trunk_runs(tiny_classifier, parts, trunk_images):
    (parts / "good" / "broken.png").write_bytes(b"this is no picture")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        tiny_classifier().fit(parts)
    assert trunk_images == []


def test_the_history_is_a_table(fitted):
    table = pd.DataFrame(fitted.history_)
    assert table["epoch"].tolist() == 3 * [1, 2, 3]
    assert table["fold"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert np.isfinite(table["loss"]).all()
    assert table["train_accuracy"].between(0, 1).all()
    assert (table["seconds"] > 0).all()


def test_callbacks_get_each_row_and_may_end_a_fold(tiny_classifier, arrays):
    told: list[dict[str, Any]] = []

    def note(classifier: DefectCAMClassifier, record: dict[str, Any]) -> None:
        told.append(dict(record))

    def stop(classifier: DefectCAMClassifier, record: dict[str, Any]) -> bool:
        assert isinstance(classifier, DefectCAMClassifier)
        return record["epoch"] == 2

    classifier = tiny_classifier(max_epochs=4, callbacks=[stop, note]).fit(arrays, Y)
    assert [row["epoch"] for row in told] == 3 * [1, 2]
    assert pd.DataFrame(told).to_dict("list") == classifier.history_
    told.clear()
    tiny_classifier(max_epochs=1, callbacks=note).fit(arrays, Y)
    assert len(told) == 3


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the training step with this number, counted from 1; each of 2 levels has a loss."""
    calls = {"n": 0}
    loss = TailTraining._loss

    def watched(self: TailTraining, *args: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == 2 * step:
            raise KeyboardInterrupt
        return loss(self, *args)

    monkeypatch.setattr(TailTraining, "_loss", watched)


def test_an_interrupt_in_the_first_epoch_leaves_it_unfitted(tiny_classifier, arrays, monkeypatch):
    interrupt(monkeypatch, 1)
    classifier = tiny_classifier()
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(arrays, Y)
    with pytest.raises(NotFittedError):
        classifier.predict(arrays)
    assert not [name for name in vars(classifier) if name.endswith("_")]


@pytest.mark.parametrize(("cv", "step"), [(None, 4), (2, 4), (2, 11)])
def test_an_interrupt_later_leaves_it_usable_with_a_warning(
    tiny_classifier, arrays, monkeypatch, cv, step
):
    interrupt(monkeypatch, step)  # an epoch of all images has 3 steps, one of a fold 1
    classifier = tiny_classifier(cv=cv)
    n_finished = {4: 1, 11: 4}[step]
    with pytest.warns(UserWarning, match=f"interrupted after {n_finished} epochs"):
        classifier.fit(arrays, Y)
    assert len(classifier.history_["epoch"]) == n_finished
    assert classifier.interrupted_ is classifier.info()["interrupted"] is True
    assert np.isfinite(classifier.predict_proba(arrays)).all()
    assert len(classifier.localize(arrays)) == 10
    if cv is not None:  # scores are centred on good images, which must not make these defective
        assert classifier.held_out_probability_.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_a_fit_that_fails_after_training_leaves_it_unfitted(
    tiny_classifier, arrays, monkeypatch, error
):
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr("defectcam.classifier.choose_threshold", fail)
    classifier = tiny_classifier(cv=None, max_epochs=1)
    with pytest.raises(error):
        classifier.fit(arrays, Y)
    assert not [name for name in vars(classifier) if name.endswith("_")]


def test_without_folds_balanced_is_one_half_of_the_weighted_softmax(tiny_classifier, arrays):
    chosen = [*range(5), 5, 6]
    labels = ["good"] * 5 + ["scratch"] * 2
    classifier = tiny_classifier(cv=None, max_epochs=1).fit(arrays[chosen], labels)
    assert classifier.threshold_ == 0.5


def test_an_interrupt_in_a_callback_leaves_it_usable_with_a_warning(tiny_classifier, arrays):
    def stop(classifier: DefectCAMClassifier, record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    try:
        with pytest.warns(UserWarning, match="interrupted after 2 epochs"):
            classifier = tiny_classifier(cv=None, callbacks=stop).fit(arrays, Y)
    except KeyboardInterrupt:  # which would end pytest
        pytest.fail("the finished epochs are lost")
    classifier.predict(arrays)


def test_a_class_of_a_single_image_cannot_be_held_out(tiny_classifier, arrays):
    with pytest.warns(UserWarning, match="at least two images of each class"):
        classifier = tiny_classifier(max_epochs=1).fit(arrays[:6], Y[:6])
    assert np.isfinite(classifier.predict_proba(arrays)).all()


def test_rare_defect_types_are_spread_over_the_folds(tiny_classifier, arrays):
    y = ["good"] * 5 + ["a", "b", "c", "d", "d"]
    classifier = tiny_classifier(max_epochs=1, cv=5).fit(arrays, y)
    assert set(classifier.history_["fold"]) == set(range(6))


def test_a_large_cache_gives_the_same_weights_from_a_file(tiny_classifier, fitted, fitted_parts):
    assert state_bytes(tiny_classifier(cache_size=0).fit(fitted_parts)) == state_bytes(fitted)


# --- Sample weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"cv": None, "heatmap": "cam", "pooling": "average"},
        {"threshold": "recall>=0.9", "class_weight": None, "augmentation": "none"},
    ],
    ids=str,
)
def test_an_integer_weight_is_repetition_and_zero_leaves_out(tiny_classifier, arrays, parameters):
    weights = np.array([1, 3, 0, 1, 1, 0, 2, 1, 1, 1])
    weighted = tiny_classifier(**parameters).fit(arrays, Y, sample_weight=weights)
    repeated = tiny_classifier(**parameters).fit(arrays.repeat(weights, 0), Y.repeat(weights))
    assert state_bytes(weighted) == state_bytes(repeated)
    assert weighted.threshold_ == repeated.threshold_
    for answer in ("predict_proba", "evidence"):
        found, expected = (getattr(c, answer)(arrays) for c in (weighted, repeated))
        np.testing.assert_array_equal(found, expected)
    maps = [[one.heatmap for one in c.localize(arrays)] for c in (weighted, repeated)]
    np.testing.assert_array_equal(*maps)


def test_attributes_speak_of_the_images_that_were_given(tiny_classifier, arrays):
    weights = np.array([1, 3, 0, 1, 1, 0, 2, 1, 1, 1])
    weighted = tiny_classifier().fit(arrays, Y, sample_weight=weights)
    repeated = tiny_classifier().fit(arrays.repeat(weights, 0), Y.repeat(weights))
    assert np.flatnonzero(np.isnan(weighted.held_out_probability_)).tolist() == [2, 5]
    np.testing.assert_array_equal(
        weighted.held_out_probability_.repeat(weights), repeated.held_out_probability_
    )
    assert sorted(weighted.suspects_) == [0, 1, 3, 4, 6, 7, 8, 9]
    own = np.where(Y == "good", 1 - weighted.held_out_probability_, weighted.held_out_probability_)
    assert (np.diff(own[weighted.suspects_]) >= 0).all()
    assert weighted.info()["n_training_images"] == 8


def test_equal_weights_change_nothing(tiny_classifier, fitted, fitted_parts):
    assert state_bytes(tiny_classifier().fit(fitted_parts, sample_weight=[1] * 14)) == state_bytes(
        fitted
    )
    halves = tiny_classifier().fit(fitted_parts, sample_weight=np.full(14, 0.5))
    assert state_bytes(halves) == state_bytes(fitted)  # the loss is a weighted mean
    assert halves.threshold_ == fitted.threshold_
    np.testing.assert_array_equal(halves.held_out_probability_, fitted.held_out_probability_)


@pytest.mark.parametrize("scale", [1 / 64, 1 / 4])
def test_weights_mean_the_same_at_any_scale(tiny_classifier, arrays, scale):
    weights = np.where(np.arange(10) % 3, 0.5, 1.5)
    classifier, scaled = (
        tiny_classifier().fit(arrays, Y, sample_weight=weights * by) for by in (1, scale)
    )
    np.testing.assert_allclose(
        scaled.held_out_probability_, classifier.held_out_probability_, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("class_weight", "target", "share"),
    [
        ("balanced", "anomaly", 1 / 2),
        (None, "anomaly", 1 / 2),
        ("balanced", "type", 2 / 3),
        (None, "type", 3 / 5),
        ({"good": 3, "dent": 1, "scratch": 1}, "type", 1 / 3),
    ],
)
def test_without_held_out_images_the_threshold_is_what_an_untrained_network_says(
    tiny_classifier, arrays, class_weight, target, share
):
    y = np.array(["good"] * 4 + ["dent"] * 3 + ["scratch"] * 3)
    classifier = tiny_classifier(cv=None, class_weight=class_weight, target=target, max_epochs=1)
    assert classifier.fit(arrays, y).threshold_ == pytest.approx(share)


def test_a_fraction_weighs_in_loss_classes_and_threshold(tiny_classifier, arrays):
    weights = np.where(Y == "good", 0.5, 1.5)
    classifier = tiny_classifier().fit(arrays, Y, sample_weight=weights)
    assert classifier.threshold_ == 0.75
    # "balanced" takes back what the weights gave to a class: 0.5 * 2 and 1.5 * 2/3 are both 1.
    assert state_bytes(classifier) == state_bytes(tiny_classifier().fit(arrays, Y))
    within = tiny_classifier().fit(arrays, Y, sample_weight=np.linspace(0.25, 1.75, 10))
    assert state_bytes(within) != state_bytes(classifier)
    plain = {"class_weight": None, "cv": None, "heatmap": "cam", "max_epochs": 1}
    unweighted = tiny_classifier(**plain).fit(arrays, Y)
    weighted = tiny_classifier(**plain).fit(arrays, Y, sample_weight=weights**3)
    assert weighted.held_out_probability_.mean() > unweighted.held_out_probability_.mean()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 9, "sample_weight"),
        ([-1] + [1] * 9, "Negative values"),
        ([0] * 10, "at least one non-zero"),
        ([np.nan] * 10, "NaN"),
        ([0] * 5 + [1] * 5, r"one class only \(\['scratch'\]\)"),
    ],
)
def test_weights_that_do_not_do_are_refused(tiny_classifier, arrays, weights, message):
    with pytest.raises(ValueError, match=message):
        tiny_classifier().fit(arrays, Y, sample_weight=weights)


def test_complaints_name_images_by_their_place_among_all(tiny_classifier, arrays, monkeypatch):
    weights = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    copied = arrays.copy()
    copied[7] = copied[3]
    with pytest.warns(NearDuplicateWarning, match="1 pair .*: image 3 and image 7"):
        tiny_classifier(max_epochs=1).fit(copied, Y, sample_weight=weights)
    images: list[Any] = [np.zeros((0, 5)), *arrays[1:]]
    tiny_classifier(max_epochs=1).fit(images, Y, sample_weight=weights)  # left out, so never read
    images[7] = np.full((5, 5), np.nan)
    with pytest.raises(ImageReadError, match=r"^Image at index 7: .* NaN"):
        tiny_classifier().fit(images, Y, sample_weight=weights)
    monkeypatch.setattr(
        "defectcam.classifier.fit_defect_probability",
        lambda *_: DefectProbability((0.0, 0.0), 20.0),
    )
    with pytest.warns(
        SuspectLabelsWarning, match=r"4 training images .*image 1 \('good'\), image 2"
    ):
        tiny_classifier().fit(arrays, Y, sample_weight=weights)


# --- scikit-learn around it ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:A class has a single")
def test_cross_validation_and_search_on_paths(tiny_classifier, paths):
    y = [Path(path).parent.name for path in paths]
    scores = cross_val_score(tiny_classifier(max_epochs=1), paths, y, cv=2)
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()
    search = GridSearchCV(
        tiny_classifier(max_epochs=1),
        {"pooling": ["average", "max"]},
        cv=2,
        scoring="roc_auc",
        error_score="raise",
    ).fit(paths, y)
    assert search.best_params_["pooling"] in ("average", "max")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert isinstance(search.best_estimator_.localize(paths[0]), Localization)


# --- Memory -------------------------------------------------------------------------------------


def stored(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.features"))


def no_score(classifier: DefectCAMClassifier, X: Any, y: Any) -> float:
    return 0.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_with_memory_a_fit_gives_the_same_bits(
    tiny_classifier, arrays, paths, tmp_path, precision, kind
):
    X, y = (arrays, Y) if kind == "arrays" else (paths, [Path(path).parent.name for path in paths])
    settings = {"precision": precision, "max_epochs": 1, "batch_size": 8}
    expected = tiny_classifier(**settings).fit(X, y)
    remembering = tiny_classifier(**settings, memory=tmp_path)
    remembering.fit([*X[:3], *X[-3:]], [*y[:3], *y[-3:]])
    assert len(stored(tmp_path)) == 6
    for _ in ("other batches", "no batch at all"):
        remembering.fit(X, y)
        assert len(stored(tmp_path)) == len(X)
        assert state_bytes(remembering) == state_bytes(expected)
        assert remembering.threshold_ == expected.threshold_
        np.testing.assert_array_equal(
            remembering.held_out_probability_, expected.held_out_probability_
        )


def test_a_search_runs_the_trunk_once_per_image_and_view(
    tiny_classifier, paths, tmp_path, trunk_images
):
    search = GridSearchCV(
        tiny_classifier(max_epochs=1, memory=str(tmp_path)),
        [{"pooling_fraction": [0.2]}, {"learning_rate": [1e-3]}],
        scoring=no_score,
        cv=3,
    ).fit(paths, [Path(path).parent.name for path in paths])
    assert len(search.cv_results_["params"]) == 2
    assert sum(trunk_images) == len(paths) * len(VIEWS["flips"])


@pytest.mark.parametrize(
    ("changes", "is_shared"),
    [
        ({"pooling": "top_k", "heatmap": "fused"}, True),
        ({"label_smoothing": 0.1, "deep_supervision": False, "target": "type"}, True),
        ({"evidence_stages": 1, "cv": None, "codebook_size": 8, "head_init": "linear"}, True),
        ({"image_size": (64, 96)}, False),
        ({"resize": "pad"}, False),
        ({"normalisation": "unit"}, False),
        ({"augmentation": "none"}, False),
        ({"trainable_stages": 1}, False),
        ({"evidence_stages": 3}, False),
        ({"novelty_strides": (4,)}, False),
        ({"pooling": "top_k", "heatmap": "cam"}, False),
        ({"random_state": 1}, False),  # other random weights
        ({"precision": "bfloat16"}, False),
        ({"batch_size": 8}, False),
    ],
    ids=str,
)
def test_features_are_shared_where_they_would_be_the_same(
    tiny_classifier, arrays, tmp_path, trunk_images, changes, is_shared
):
    settings = {"precision": "float32", "max_epochs": 1, "memory": tmp_path}
    tiny_classifier(**settings).fit(arrays, Y)
    trunk_images.clear()
    tiny_classifier(**(settings | changes)).fit(arrays, Y)
    assert (sum(trunk_images) == 0) == is_shared
    assert len(stored(tmp_path)) == (10 if is_shared else 20)


def test_what_is_remembered_is_not_decoded_again(tiny_classifier, paths, tmp_path, monkeypatch):
    y = [Path(path).parent.name for path in paths]
    make = tiny_classifier(max_epochs=1, memory=tmp_path).fit
    expected = make(paths, y)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("an image was decoded"))
    assert state_bytes(make(paths, y)) == state_bytes(expected)


def test_a_changed_file_is_noticed_and_a_moved_one_found_again(
    tiny_classifier, parts, tmp_path, trunk_images
):
    make = tiny_classifier(max_epochs=1, augmentation="none", memory=tmp_path / "memory").fit
    make(parts)
    trunk_images.clear()
    changed = parts / "good" / "003.png"
    stat = changed.stat()
    Image.fromarray(draw_part(np.random.default_rng(9), scratched=False)).save(changed)
    os.utime(changed, (stat.st_atime, stat.st_mtime))
    (parts / "good" / "004.png").rename(parts / "good" / "104.png")
    after = make(parts)
    assert sum(trunk_images) == 1
    expected = tiny_classifier(max_epochs=1, augmentation="none").fit(parts)
    assert state_bytes(after) == state_bytes(expected)


@pytest.mark.parametrize("n_kept", [0, 5, 1000, None])
def test_a_damaged_file_of_the_memory_is_computed_again(
    tiny_classifier, arrays, tmp_path, trunk_images, n_kept
):
    make = tiny_classifier(max_epochs=1, augmentation="none", memory=tmp_path).fit
    expected = state_bytes(make(arrays, Y))
    trunk_images.clear()
    damaged = stored(tmp_path)[4]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:n_kept] if n_kept is not None else whole[:-1] + b"?")
    assert state_bytes(make(arrays, Y)) == expected
    assert sum(trunk_images) == 1
    assert damaged.read_bytes() == whole


def test_copies_are_found_among_remembered_images_too(tiny_classifier, arrays, tmp_path):
    images, y = [*arrays, arrays[7] + 1], [*Y, "good"]
    for _ in ("fresh", "remembered"):
        with pytest.warns(NearDuplicateWarning, match="1 pair .*: image 10 and image 7"):
            tiny_classifier(max_epochs=1, memory=tmp_path).fit(images, y)


def test_a_wrong_array_is_named_by_its_place_among_all(tiny_classifier, arrays, tmp_path):
    remembering = tiny_classifier(max_epochs=1, memory=tmp_path).fit(arrays, Y)
    images = [*arrays[:-1], np.full((48, 48), np.nan)]
    with pytest.raises(ImageReadError, match="Image at index 9"):
        remembering.fit(images, Y)


def test_where_nothing_can_be_kept_training_goes_on(tiny_classifier, arrays, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("defectcam.feature_store.write_atomically", full)
    with pytest.warns(UserWarning, match="no features can be kept") as caught:
        classifier = tiny_classifier(max_epochs=1, memory=tmp_path).fit(arrays, Y)
    assert len([one for one in caught if "kept" in str(one.message)]) == 1
    assert caught[0].filename == __file__
    assert state_bytes(classifier) == state_bytes(tiny_classifier(max_epochs=1).fit(arrays, Y))


def test_where_no_folder_can_be_made_training_goes_on(tiny_classifier, arrays, tmp_path):
    make = tiny_classifier(max_epochs=1)
    (tmp_path / "joblib").mkdir()
    (tmp_path / "joblib" / "defectcam").write_bytes(b"in the way")
    with pytest.warns(UserWarning, match="no features can be kept") as caught:
        classifier = make.set_params(memory=tmp_path, cv=None).fit(arrays, Y)
    assert len([one for one in caught if "features can be kept" in str(one.message)]) == 1
    expected = tiny_classifier(max_epochs=1, cv=None).fit(arrays, Y)
    assert state_bytes(classifier) == state_bytes(expected)


def test_prediction_leaves_the_memory_alone(tiny_classifier, arrays, tmp_path):
    classifier = tiny_classifier(max_epochs=1, memory=tmp_path).fit(arrays[1:], Y[1:])
    classifier.localize(arrays)
    assert len(stored(tmp_path)) == 9


@pytest.mark.slow
def test_processes_share_a_memory(tiny_classifier, arrays, tmp_path):
    grid = {"pooling_fraction": [0.05, 0.2]}
    results = []
    for memory in (None, tmp_path):
        one = tiny_classifier(max_epochs=1, precision="float32", memory=memory)
        search = GridSearchCV(one, grid, cv=2, n_jobs=2, scoring="neg_log_loss", refit=False)
        search.fit(arrays, Y == "scratch")
        results.append(search.cv_results_["mean_test_score"].tolist())
    assert results[0] == results[1]
    assert len(stored(tmp_path)) == 10
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
