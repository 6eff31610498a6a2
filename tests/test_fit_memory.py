"""With a memory no fit learns the same twice, and never takes another fit's for its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV

from defectcam import DefectCAMClassifier, fit_memory
from defectcam.novelty import Codebook
from defectcam.training import TailTraining

Y = np.array(["good"] * 6 + ["scratch"] * 4)


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    images = [rng.integers(90, 130, (48, 48, 3), dtype=np.uint8) for _ in Y]
    for image in images[6:]:
        image[20:24, 8:40] = 250
    return images


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the epochs and the codebooks of all fits from now on."""
    counts = {"epochs": 0, "codebooks": 0}
    epoch, fit = TailTraining._epoch, Codebook.fit.__func__

    def counted_epoch(*arguments: Any) -> Any:
        counts["epochs"] += 1
        return epoch(*arguments)

    def counted_fit(cls: type[Codebook], *arguments: Any, **options: Any) -> Codebook:
        counts["codebooks"] += 1
        return fit(cls, *arguments, **options)

    monkeypatch.setattr(TailTraining, "_epoch", counted_epoch)
    monkeypatch.setattr(Codebook, "fit", classmethod(counted_fit))
    return counts


def assert_same(found: DefectCAMClassifier, expected: DefectCAMClassifier, images: Any) -> None:
    theirs = expected.network_.state_dict()
    assert found.network_.state_dict().keys() == theirs.keys()
    for name, tensor in found.network_.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    for attribute in ("held_out_probability_", "suspects_", "drift_reference_"):
        mine, other = getattr(found, attribute), getattr(expected, attribute)
        np.testing.assert_array_equal(mine, other, err_msg=attribute)
    assert found.threshold_ == expected.threshold_
    for mine, other in zip(found.localize(images), expected.localize(images), strict=True):
        np.testing.assert_array_equal(mine.heatmap, other.heatmap)
        assert mine.boxes.tolist() == other.boxes.tolist()
        assert mine.probability == other.probability


@pytest.mark.parametrize("place", [str, Path, joblib.Memory])
def test_what_was_learned_is_recalled(tiny_classifier, arrays, tmp_path, learned, place):
    memory = place(tmp_path) if place is not joblib.Memory else place(tmp_path, verbose=0)
    expected = tiny_classifier().fit(arrays, Y)
    first = tiny_classifier(memory=memory).fit(arrays, Y)
    assert_same(first, expected, arrays)
    learned.update(epochs=0, codebooks=0)
    again = tiny_classifier(memory=memory).fit(arrays, Y)
    assert learned == {"epochs": 0, "codebooks": 0}
    assert_same(again, expected, arrays)
    assert again.history_ == first.history_
    assert again.training_data_ == expected.training_data_
    memory = joblib.Memory(tmp_path, verbose=0)
    memory.clear(warn=False)
    tiny_classifier(memory=memory).fit(arrays, Y)
    assert learned["epochs"] > 0


def test_a_search_trains_once_where_only_later_decisions_differ(
    tiny_classifier, arrays, tmp_path, learned
):
    grid = {"threshold": ["balanced", 0.9], "min_area": [1, 9]}
    found = {}
    for memory in (None, tmp_path):
        learned.update(epochs=0, codebooks=0)
        one = tiny_classifier(max_epochs=1, memory=memory)
        search = GridSearchCV(one, grid, cv=2, scoring="balanced_accuracy").fit(arrays, Y)
        found[memory] = search.cv_results_["mean_test_score"].tolist()
        n_fits = 4 * 2 + 1 if memory is None else 2 + 1  # one for each fold, and the refit
        assert learned["epochs"] == n_fits * 3  # of three tails
    assert found[None] == found[tmp_path]


def test_codebooks_are_shared_where_the_training_differs(
    tiny_classifier, arrays, tmp_path, learned
):
    for rate in (1e-2, 1e-3):
        found = tiny_classifier(learning_rate=rate, memory=tmp_path).fit(arrays, Y)
        assert_same(found, tiny_classifier(learning_rate=rate).fit(arrays, Y), arrays)
    assert learned["codebooks"] == 3 + 2 * 3  # three with the memory, and three each without
    assert learned["epochs"] == 4 * 3 * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        {"max_epochs": 2},
        {"cv": None},
        {"heatmap": "cam"},
        {"self_training": False},
        {"pooling_fraction": 0.5},
        {"class_weight": 5.0},
        {"codebook_size": 8},
        {"random_state": 1},
        {"precision": "bfloat16"},
        {"replay_size": 3},
        {"target": "type"},
    ],
    ids=str,
)
def test_another_training_is_another(tiny_classifier, arrays, tmp_path, learned, changes):
    settings: dict[str, Any] = {"precision": "float32", "max_epochs": 1}
    tiny_classifier(memory=tmp_path, **settings).fit(arrays, Y)
    learned.update(epochs=0)
    settings |= changes
    found = tiny_classifier(memory=tmp_path, **settings).fit(arrays, Y)
    assert learned["epochs"] > 0
    assert_same(found, tiny_classifier(**settings).fit(arrays, Y), arrays)


def another_image(images: list, y: list) -> dict[str, Any]:
    changed = images[0].copy()
    changed[5, 5] ^= 1
    return {"X": [changed, *images[1:]], "y": y}


@pytest.mark.parametrize(
    "call",
    [
        another_image,
        lambda images, y: {"X": images[::-1], "y": y[::-1]},
        lambda images, y: {"X": images, "y": [*y[:-1], "good"]},
        lambda images, y: {"X": images, "y": ["dent" if one == "scratch" else one for one in y]},
        lambda images, y: {"X": images, "y": y, "sample_weight": np.linspace(0.5, 1, 10)},
    ],
    ids=["image", "order", "label", "name of a class", "weights"],
)
def test_other_images_and_labels_are_another_training(
    tiny_classifier, arrays, tmp_path, learned, call: Callable[..., dict[str, Any]]
):
    make = partial(tiny_classifier, max_epochs=1)
    make(memory=tmp_path).fit(arrays, Y)
    learned.update(epochs=0)
    found = make(memory=tmp_path).fit(**call(arrays, Y.tolist()))
    assert learned["epochs"] > 0
    assert_same(found, make().fit(**call(arrays, Y.tolist())), arrays)


def test_weights_to_start_from_count(tiny_classifier, arrays, tmp_path, learned):
    warm = tiny_classifier(memory=tmp_path, warm_start=True)
    first = warm.fit(arrays, Y).network_.head.bias.clone()
    learned.update(epochs=0)
    second = warm.fit(arrays, Y).network_.head.bias.clone()
    assert learned["epochs"] > 0 and not torch.equal(first, second)
    learned.update(epochs=0)
    other = tiny_classifier(memory=tmp_path, warm_start=True)
    assert torch.equal(other.fit(arrays, Y).network_.head.bias, first)
    assert torch.equal(other.fit(arrays, Y).network_.head.bias, second)
    assert learned["epochs"] == 0


def test_another_release_is_not_asked(tiny_classifier, arrays, tmp_path, learned, monkeypatch):
    tiny_classifier(memory=tmp_path).fit(arrays, Y)
    learned.update(epochs=0, codebooks=0)
    monkeypatch.setattr(fit_memory, "VERSIONS", ("9.9.9", *fit_memory.VERSIONS[1:]))
    tiny_classifier(memory=tmp_path).fit(arrays, Y)
    assert learned["epochs"] > 0 and learned["codebooks"] == 3


def test_callbacks_see_every_epoch(tiny_classifier, arrays, tmp_path):
    tiny_classifier(memory=tmp_path).fit(arrays, Y)
    seen: list[Any] = []
    tiny_classifier(memory=tmp_path, callbacks=lambda _, record: seen.append(record)).fit(arrays, Y)
    assert len(seen) == 9


def test_a_resumed_fit_trains(tiny_classifier, arrays, tmp_path, learned):
    clf = tiny_classifier(memory=tmp_path / "memory").fit(arrays, Y)
    learned.update(epochs=0)
    assert_same(
        clf.fit(arrays, Y, resume=tmp_path / "fit"), tiny_classifier().fit(arrays, Y), arrays
    )
    assert learned["epochs"] == 2 * 9


def test_what_an_interrupted_training_learned_is_not_kept(
    tiny_classifier, arrays, tmp_path, monkeypatch
):
    epoch, calls = TailTraining._epoch, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TailTraining, "_epoch", interrupted)
        with pytest.warns(UserWarning, match="interrupted after 1 epochs"):
            tiny_classifier(memory=tmp_path).fit(arrays, Y)
    found = tiny_classifier(memory=tmp_path).fit(arrays, Y)
    assert_same(found, tiny_classifier().fit(arrays, Y), arrays)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of joblib, that it cannot be read
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_file_is_learned_again(tiny_classifier, arrays, tmp_path, learned, share):
    expected = tiny_classifier(memory=tmp_path).fit(arrays, Y)
    kept = sorted(tmp_path.rglob("output.pkl"))
    assert len(kept) == 3 + 1
    for file in kept:
        whole = file.read_bytes()
        file.write_bytes(whole[: int(share * len(whole))])
    learned.update(epochs=0)
    assert_same(tiny_classifier(memory=tmp_path).fit(arrays, Y), expected, arrays)
    assert learned["epochs"] == 9


def test_a_recalled_classifier_goes_on_as_any_other(tiny_classifier, arrays, tmp_path):
    settings = {"replay_size": 10}
    tiny_classifier(**settings, memory=tmp_path / "memory").fit(arrays, Y)
    recalled = tiny_classifier(**settings, memory=tmp_path / "memory").fit(arrays, Y)
    expected = tiny_classifier(**settings).fit(arrays, Y)
    for one in (recalled, expected):
        one.partial_fit(arrays[:2], Y[:2])
    assert_same(recalled, expected, arrays)


def test_tiles_are_learned_each_time(tiny_classifier, arrays, tmp_path, learned):
    settings = {"tile": 32, "max_epochs": 1}
    expected = tiny_classifier(**settings).fit(arrays, Y)
    tiny_classifier(**settings, memory=tmp_path).fit(arrays, Y)
    learned.update(epochs=0)
    again = tiny_classifier(**settings, memory=tmp_path).fit(arrays, Y)
    assert learned["epochs"] > 0
    assert again.predict(arrays).tolist() == expected.predict(arrays).tolist()


def test_what_was_learned_with_other_classes_is_not_recalled(tiny_classifier, arrays, tmp_path):
    """The labels are the same, but the good class has another number."""
    tiny_classifier(heatmap="cam", memory=tmp_path).fit(arrays, Y)
    more = ["good", "scratch", "dent"]
    expected = tiny_classifier(heatmap="cam").partial_fit(arrays, Y, classes=more)
    found = tiny_classifier(heatmap="cam", memory=tmp_path).partial_fit(arrays, Y, classes=more)
    assert_same(found, expected, arrays)


def test_long_parameters_are_told_apart_to_their_end(tiny_classifier, arrays, tmp_path):
    types = [f"a defect whose name is really rather long, {i}" for i in range(4)]
    y = np.array(["good"] * 6 + types)
    for last in (1.0, 50.0):
        weights = {name: 1.0 for name in ["good", *types[:3]]} | {types[3]: last}
        assert len(repr(weights)) > 200
        one = partial(tiny_classifier, target="type", class_weight=weights, max_epochs=1)
        assert_same(one(memory=tmp_path).fit(arrays, y), one().fit(arrays, y), arrays)


def test_a_file_that_changes_during_a_fit_is_kept_as_what_was_read(
    tiny_classifier, arrays, tmp_path, monkeypatch
):
    paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
    for path, image in zip(paths, arrays, strict=True):
        Image.fromarray(image).save(path)
    before, other = paths[0].read_bytes(), arrays[0][::-1]
    hashed = DefectCAMClassifier._hashes

    def hashed_and_changed(*arguments: Any) -> list[str]:
        hashes = hashed(*arguments)
        Image.fromarray(other).save(paths[0])
        return hashes

    make = partial(tiny_classifier, memory=tmp_path / "memory")
    with monkeypatch.context() as patch:
        patch.setattr(DefectCAMClassifier, "_hashes", hashed_and_changed)
        changed = make().fit(paths, Y)
    assert changed.training_data_ == tiny_classifier(max_epochs=1).fit(paths, Y).training_data_
    paths[0].write_bytes(before)
    assert_same(make().fit(paths, Y), tiny_classifier().fit(paths, Y), arrays)
