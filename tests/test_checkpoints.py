"""A fit that was interrupted or killed ends as an undisturbed one."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import draw_part
from torch import nn

from defectcam import DefectCAMClassifier, tiled
from defectcam.checkpoints import (
    CheckpointError,
    FitCheckpoint,
    TrainingLoop,
    parameters_of_training,
)
from defectcam.cli import main


class PowerCut(BaseException):
    """Nothing in the package catches it."""


class After:
    """Raises at the end of an epoch; those before it are on disk."""

    def __init__(self, n_epochs: int, error: type[BaseException] = PowerCut) -> None:
        self.left, self.error = n_epochs, error

    def __call__(self, classifier: Any, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


@pytest.fixture(scope="module")
def parts() -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(0)
    images = [draw_part(rng, scratched=i >= 4, size=32) for i in range(8)]
    return images, ["good"] * 4 + ["dent", "dent", "scratch", "scratch"]


@pytest.fixture(scope="module")
def quick(tiny_classifier: Callable[..., DefectCAMClassifier]) -> Callable[..., Any]:
    """Return a function that makes a classifier whose fit has six epochs."""
    return partial(tiny_classifier, image_size=32, max_epochs=2, augmentation="none")


@pytest.fixture(scope="module")
def undisturbed(quick: Callable[..., Any], parts: Any) -> DefectCAMClassifier:
    return quick().fit(*parts)


def everything_of(clf: DefectCAMClassifier) -> tuple[Any, ...]:
    state = {name: tensor.contiguous() for name, tensor in clf.network_.state_dict().items()}
    columns = ("fold", "epoch", "loss", "train_accuracy")
    history = [clf.history_.get(column, []) for column in columns]
    held_out = clf.held_out_probability_.tobytes()
    return safetensors.torch.save(state), held_out, clf.threshold_, clf._heat_model, history


def cut_off(clf: DefectCAMClassifier, n_epochs: int, *args: Any, resume: Path) -> None:
    with pytest.raises(PowerCut):
        clf.set_params(callbacks=After(n_epochs)).fit(*args, resume=resume)
    clf.set_params(callbacks=None)
    assert resume.is_file() == (n_epochs > 0)


@pytest.mark.parametrize("n_epochs", [1, 2, 5])
def test_a_fit_that_was_cut_off_ends_with_the_same_weights(
    quick, parts, undisturbed, tmp_path, n_epochs
):
    resume, epochs = tmp_path / "fit.checkpoint", []
    cut_off(quick(), n_epochs, *parts, resume=resume)
    clf = quick(callbacks=lambda clf, record: epochs.append(record["epoch"]))
    clf.fit(*parts, resume=resume)
    assert everything_of(clf) == everything_of(undisturbed)
    assert len(epochs) == 6 - n_epochs  # the others were not trained again
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "parameters",
    [
        {"optimizer": "sgd", "schedule": "constant", "cv": None},
        {"optimizer": "adam", "early_stopping": True, "train_batch_norm": False},
        {"optimizer": "sgd", "tile": 24, "cv": None},
        {"target": "type", "replay_size": 4, "stop_at_train_accuracy": 0.5},
    ],
)
def test_it_goes_on_whatever_the_parameters(quick, parts, tmp_path, parameters):
    clf, resume = quick(**parameters), tmp_path / "fit.checkpoint"
    undisturbed = everything_of(copy.deepcopy(clf).fit(*parts))
    cut_off(clf, 1, *parts, resume=resume)
    assert everything_of(clf.fit(*parts, resume=resume)) == undisturbed
    assert not resume.exists()


def test_random_numbers_go_on_where_they_were(tmp_path):
    def loop() -> TrainingLoop:
        network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
        return TrainingLoop(network, optimizer, schedule, torch.Generator().manual_seed(1))

    def step(loop: TrainingLoop) -> torch.Tensor:
        order = torch.randperm(4, generator=loop.generator)
        loop.optimizer.zero_grad()
        loop.network(torch.ones(2, 4)[:, order]).sum().backward()
        loop.optimizer.step()
        loop.schedule.step()
        return loop.network[0].weight.detach().clone()

    one, kept = loop(), FitCheckpoint(tmp_path / "c")
    kept.begin(7, {})
    step(one)
    kept.write(0, {f"{k}": v for k, v in one.network.state_dict().items()}, one, [0.5], False)
    expected = step(one)
    other, read = loop(), FitCheckpoint(tmp_path / "c")
    read.begin(8, {})
    assert read.seed == 7
    assert read.restore(1, other) == ([], False)
    assert read.restore(0, other) == ([0.5], False)
    assert step(other).equal(expected)
    assert other.schedule.get_last_lr() == one.schedule.get_last_lr()


def test_an_unseeded_fit_goes_on_with_its_own_seed(quick, parts, tmp_path):
    clf, resume = quick(random_state=None, cv=None), tmp_path / "fit.checkpoint"
    cut_off(clf, 1, *parts, resume=resume)
    kept = shutil.copy(resume, tmp_path / "copy")
    one = everything_of(clf.fit(*parts, resume=resume))
    assert everything_of(clf.fit(*parts, resume=kept)) == one


@pytest.mark.parametrize("cv", [None, 2])
def test_an_unseeded_fit_goes_on_with_the_tiles_that_it_chose(
    quick, parts, tmp_path, monkeypatch, cv
):
    monkeypatch.setattr(tiled, "GOOD_TILES_PER_IMAGE", (1, 2))  # of 9
    monkeypatch.setattr(tiled, "_tells", lambda *_: False)  # with folds, they are chosen twice
    clf, resume = quick(random_state=None, cv=cv, tile=16), tmp_path / "fit.checkpoint"
    cut_off(clf, 1, *parts, resume=resume)
    kept = shutil.copy(resume, tmp_path / "copy")
    one = everything_of(clf.fit(*parts, resume=resume))
    assert everything_of(clf.fit(*parts, resume=kept)) == one


def test_the_choice_of_tiles_is_not_made_again(quick, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(tiled, "GOOD_TILES_PER_IMAGE", (1, 2))  # of 9
    monkeypatch.setattr(tiled, "_tells", lambda *_: False)  # a training chooses once more
    clf, resume = quick(tile=16), tmp_path / "fit.checkpoint"
    undisturbed = everything_of(copy.deepcopy(clf).fit(*parts))
    cut_off(clf, 1, *parts, resume=resume)
    monkeypatch.setattr(tiled, "_choose_tiles", None)
    (images, y), before = parts, resume.read_bytes()
    for other, given in [({}, (images[::-1], y[::-1])), ({"tile": 24}, parts)]:
        with pytest.raises(CheckpointError, match="belongs to another fit"):
            quick(**{"tile": 16, **other}).fit(*given, resume=resume)
        assert resume.read_bytes() == before
    assert everything_of(clf.fit(*parts, resume=resume)) == undisturbed


def test_chosen_tiles_are_found_where_images_of_no_weight_are_gone(quick, parts, tmp_path):
    (images, y), clf, resume = parts, quick(tile=24), tmp_path / "fit.checkpoint"
    cut_off(clf, 1, [images[3], *images], [y[3], *y], [0, *[1] * len(y)], resume=resume)
    clf.fit(images, y, resume=resume)
    assert everything_of(clf) == everything_of(quick(tile=24).fit(images, y))


def test_after_an_interrupt_the_file_stays(quick, parts, undisturbed, tmp_path):
    resume, clf = tmp_path / "fit.checkpoint", quick(callbacks=After(2, KeyboardInterrupt))
    with pytest.warns(UserWarning, match="interrupted after 3 epochs.*goes on with it"):
        clf.fit(*parts, resume=resume)
    assert len(clf.history_["epoch"]) == 3
    clf.set_params(callbacks=None).fit(*parts, resume=resume)
    assert everything_of(clf) == everything_of(undisturbed)


def test_a_fold_that_was_stopped_stays_so(quick, parts, tmp_path):
    def stop(clf, record):
        return True

    once = quick(callbacks=stop).fit(*parts)
    resume = tmp_path / "fit.checkpoint"
    with pytest.raises(PowerCut):
        quick(callbacks=[stop, After(1)]).fit(*parts, resume=resume)
    again = quick(callbacks=stop).fit(*parts, resume=resume)
    assert everything_of(again) == everything_of(once)


def test_another_fit_is_refused_and_the_file_stays(quick, parts, tmp_path):
    (images, y), resume = parts, tmp_path / "fit.checkpoint"
    cut_off(quick(cv=None), 1, images, y, resume=resume)
    before = resume.read_bytes()
    for other, data, complaint in [
        ({}, (images[::-1], y[::-1]), "other images"),
        ({}, (images, ["good"] * 5 + ["scratch"] * 3), "other labels"),
        ({}, (images, y, [0.5] * 4 + [1.5] * 4), "other labels or sample weights"),
        ({"learning_rate": 0.5}, (images, y), "learning_rate 0.01, now 0.5"),
        ({"random_state": 1}, (images, y), "random_state 0, now 1"),
    ]:
        with pytest.raises(CheckpointError, match=complaint) as caught:
            quick(cv=None, **other).fit(*data, resume=resume)
        assert "remove the file" in str(caught.value)
        assert resume.read_bytes() == before
    settings = {"max_boxes": 1, "n_jobs": 2, "verbose": 1, "threshold": 0.25}
    clf = quick(cv=None, **settings).fit(images, y, resume=resume)
    assert not resume.exists()  # those change no weight
    assert clf.threshold_ == 0.25


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"image_size": 32}, {"image_size": (32, 32)}),
        ({"image_size": [32, 40]}, {"image_size": (32, 40)}),
        ({"novelty_strides": (4, 8)}, {"novelty_strides": [4, 8]}),
        ({"tile": np.int64(24)}, {"tile": (24, np.int64(24))}),
        ({"tile": np.array([24, 48])}, {"tile": [24, 48]}),
        ({"class_weight": {"a": 1, "b": 2}}, {"class_weight": {"b": np.float32(2), "a": 1.0}}),
        ({"weights": "a.pth"}, {"weights": Path("a.pth")}),
    ],
)
def test_parameters_may_be_written_otherwise(tmp_path, then, now):
    one = parameters_of_training(then)
    assert json.loads(json.dumps(one)) == one == parameters_of_training(now)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"image_size": 32}, {"image_size": (32, 64)}),
        ({"image_size": (64, 32)}, {"image_size": (32, 64)}),
        ({"class_weight": {1: 1.0}}, {"class_weight": {"1": 1.0}}),
        ({"class_weight": 2}, {"class_weight": (2, 2)}),
        ({"cv": [2, 2]}, {"cv": "[2, 2]"}),
    ],
)
def test_other_parameters_are_told_apart(then, now):
    assert parameters_of_training(then) != parameters_of_training(now)


def test_a_fit_goes_on_with_its_parameters_written_otherwise(quick, parts, tmp_path, undisturbed):
    resume = tmp_path / "fit.checkpoint"
    cut_off(quick(image_size=32, novelty_strides=(4, 8)), 1, *parts, resume=resume)
    clf = quick(image_size=(32, 32), novelty_strides=[4, 8]).fit(*parts, resume=resume)
    assert everything_of(clf) == everything_of(undisturbed)


def test_other_weights_to_start_from_are_refused(quick, parts, undisturbed, tmp_path):
    resume = tmp_path / "fit.checkpoint"
    cut_off(quick(warm_start=True), 1, *parts, resume=resume)
    warm = copy.deepcopy(undisturbed).set_params(warm_start=True)
    with pytest.raises(CheckpointError, match="other weights to start from"):
        warm.fit(*parts, resume=resume)


@pytest.mark.parametrize("is_fitted", [False, True])
@pytest.mark.parametrize("n_interrupts", [1, 2])
def test_a_warm_start_goes_on_after_an_interrupt(quick, parts, tmp_path, is_fitted, n_interrupts):
    """The same object has weights of the interrupted fit, and is not to start from those."""
    clf, resume = quick(warm_start=True), tmp_path / "fit.checkpoint"
    if is_fitted:
        clf.fit(*parts)
    expected = everything_of(copy.deepcopy(clf).fit(*parts))
    for _ in range(n_interrupts):
        clf.set_params(callbacks=After(1, KeyboardInterrupt))
        with pytest.warns(UserWarning, match="goes on with it"):
            clf.fit(*parts, resume=resume)
    clf = pickle.loads(pickle.dumps(clf.set_params(callbacks=None)))
    clf.fit(*parts, resume=resume)
    assert everything_of(clf) == expected
    assert not resume.exists()


def test_after_an_interrupt_another_warm_start_starts_from_the_present(quick, parts, tmp_path):
    clf = quick(warm_start=True, callbacks=After(1, KeyboardInterrupt))
    with pytest.warns(UserWarning, match="goes on with it"):
        clf.fit(*parts, resume=tmp_path / "fit.checkpoint")
    clf.set_params(callbacks=None)
    expected = everything_of(copy.deepcopy(clf).fit(*parts))
    for n_epochs in (1, 2):
        cut_off(clf, n_epochs, *parts, resume=tmp_path / "other.checkpoint")
    assert everything_of(clf.fit(*parts, resume=tmp_path / "other.checkpoint")) == expected


def test_another_fit_whose_long_parameter_ends_otherwise_is_refused(quick, parts, tmp_path):
    images, _ = parts
    y = ["good"] * 4 + 2 * ["x" * 150, "y" * 150]
    weights = {"good": 1.0, "x" * 150: 1.0, "y" * 150: 1.0}
    resume = tmp_path / "fit.checkpoint"
    cut_off(quick(target="type", class_weight=weights), 1, images, y, resume=resume)
    other = quick(target="type", class_weight=weights | {"y" * 150: 9.0})
    with pytest.raises(CheckpointError, match="class_weight") as caught:
        other.fit(images, y, resume=resume)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "something else, or damaged"),
        (b"an image, perhaps" * 9, "something else, or damaged"),
        (safetensors.torch.save({"a": torch.ones(1)}), "it is something else"),
        (None, "not what was written"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_stays(quick, parts, tmp_path, content, complaint):
    resume = tmp_path / "fit.checkpoint"
    if content is None:
        cut_off(quick(cv=None), 1, *parts, resume=resume)
        content = bytearray(resume.read_bytes())
        content[-1] ^= 1
    resume.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        quick().fit(*parts, resume=resume)
    assert resume.read_bytes() == content


def test_places_where_no_file_can_be_are_refused_early(quick, parts, tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        quick().fit(*parts, resume=tmp_path)
    with pytest.raises(FileNotFoundError, match="make the folder"):
        quick().fit(*parts, resume=tmp_path / "no" / "fit.checkpoint")


def test_a_full_disk_does_not_end_the_training(quick, parts, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match=r"resume=.*the disk is full") as warned:
        quick(cv=None).fit(*parts, resume=tmp_path / "fit.checkpoint")
    assert sum("full" in str(one.message) for one in warned) == 1
    assert not list(tmp_path.iterdir())


def test_good_images_alone_leave_no_file(quick, parts, tmp_path):
    with pytest.warns(UserWarning, match="good"):
        quick().fit(parts[0][:4], ["good"] * 4, resume=tmp_path / "fit.checkpoint")
    assert not list(tmp_path.iterdir())


def test_a_file_that_becomes_another_fits_is_left_alone(quick, parts, tmp_path):
    path = tmp_path / "fit.checkpoint"
    cut_off(quick(random_state=5), 1, *parts, resume=path)
    others = path.read_bytes()
    path.unlink()

    def begin_the_other(clf: DefectCAMClassifier, record: dict[str, Any]) -> None:
        path.write_bytes(others)

    clf = quick(callbacks=begin_the_other)
    with pytest.warns(UserWarning, match="has become another fit's.* left alone") as warned:
        clf.fit(*parts, resume=path)
    assert sum("another fit" in str(one.message) for one in warned) == 1
    assert path.read_bytes() == others


def test_a_file_that_cannot_be_removed_does_not_end_the_fit(quick, parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", full_disk)
        with pytest.warns(UserWarning, match="no longer needed and cannot be removed"):
            clf = quick(cv=None).fit(*parts, resume=tmp_path / "fit.checkpoint")
    assert clf.network_ is not None


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_the_command_goes_on_too(fitted_parts, tmp_path, monkeypatch, capsys):
    resume, model = tmp_path / "fit.checkpoint", tmp_path / "part.safetensors"
    options = ["--backbone", "test_efficientnet", "--weights", "none", "--image-size", "32"]
    options += ["--max-epochs", "2", "--cv", "none", "--random-state", "0", "--device", "cpu"]
    command = ["fit", str(fitted_parts), *options, "-o", str(model), "--quiet"]
    command += ["--resume", str(resume)]
    with monkeypatch.context() as patch:
        patch.setattr(DefectCAMClassifier, "_on_epoch", lambda *_: After(0)(*_[:2]))
        with pytest.raises(PowerCut):
            main(command)
    assert main([*command[:-1], str(model)]) == 2  # not into the model itself
    assert "name two files" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(DefectCAMClassifier, "save", full_disk)
        assert main(command) == 3
    assert resume.is_file() and not model.exists()  # else the training would be lost
    assert main(command) == 0 and model.is_file() and not resume.exists()
    resume.write_bytes(b"mine")
    assert main([*command, "--force"]) == 2
    assert "is no checkpoint of a fit" in capsys.readouterr().err
    assert resume.read_bytes() == b"mine"
