"""The callback that writes a training into TensorBoard's files."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.base import clone

from defectcam.images import ImageReadError
from defectcam.tensorboard import TensorBoard


@pytest.fixture(scope="module")
def tensorboard() -> Any:
    return pytest.importorskip("tensorboard", reason="needs pip install 'defectcam[tensorboard]'")


def read(folder: Path) -> Any:
    """Return all that TensorBoard finds in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_curves_texts_and_overlays_are_written(
    tensorboard, tiny_classifier, fitted_parts, tmp_path
) -> None:
    images = sorted(str(path) for path in fitted_parts.rglob("*.png"))[6:9]
    callback = TensorBoard(tmp_path / "run", images)
    clf = tiny_classifier(max_epochs=2, callbacks=callback).fit(fitted_parts)
    assert len(list((tmp_path / "run").iterdir())) == 1
    events = read(tmp_path / "run")
    folds = [f"fold-{fold}" for fold in range(3)]
    curves = [f"{name}/{fold}" for name in ("loss", "train_accuracy", "seconds") for fold in folds]
    assert sorted(events.Tags()["scalars"]) == sorted([*curves, "threshold"])
    for fold in range(3):
        rows = [row for row, of in enumerate(clf.history_["fold"]) if of == fold]
        points = events.Scalars(f"loss/fold-{fold}")
        assert [point.step for point in points] == [clf.history_["epoch"][row] for row in rows]
        expected = pytest.approx([clf.history_["loss"][row] for row in rows])
        assert [point.value for point in points] == expected
    assert events.Tags()["images"] == ["overlays/0", "overlays/1", "overlays/2"]
    assert (events.Images("overlays/0")[0].height, events.Images("overlays/0")[0].step) == (48, 14)
    [text] = events.Tensors("model/text_summary")
    assert clf.training_data_.digest in text.tensor_proto.string_val[0].decode()


def test_a_second_training_adds_to_the_folder(
    tensorboard, tiny_classifier, fitted_parts, tmp_path
) -> None:
    callback = TensorBoard(tmp_path)
    clf = tiny_classifier(max_epochs=1, cv=None, callbacks=callback)
    clf.partial_fit(fitted_parts).partial_fit(fitted_parts)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_training_that_fails_leaves_a_callback_that_can_be_copied(
    tensorboard, tiny_classifier, fitted_parts, tmp_path
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the training fails")

    clf = tiny_classifier(max_epochs=1, callbacks=[TensorBoard(tmp_path), fail])
    with pytest.raises(RuntimeError, match="the training fails"):
        clf.fit(fitted_parts)
    assert clone(clf).callbacks[0].log_dir == tmp_path
    copy = pickle.loads(pickle.dumps(clf.callbacks[0]))
    tiny_classifier(max_epochs=1, cv=None, callbacks=copy).fit(fitted_parts)


def test_what_could_not_be_read_or_written_after_the_training_is_told_before(
    tensorboard, tiny_classifier, fitted_parts, tmp_path
) -> None:
    epochs: list[Any] = []
    gone, file = tmp_path / "gone.png", tmp_path / "file"
    file.touch()
    for callback in (TensorBoard(tmp_path / "run", [gone]), TensorBoard(file)):
        callbacks = [callback, lambda _, record: epochs.append(record)]
        clf = tiny_classifier(max_epochs=1, cv=None, callbacks=callbacks)
        with pytest.raises((ImageReadError, FileExistsError), match=r"gone\.png|exists"):
            clf.fit(fitted_parts)
    assert not epochs and not (tmp_path / "run").exists()


def test_without_tensorboard_the_extra_is_named(
    monkeypatch, tiny_classifier, fitted_parts, tmp_path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'defectcam\[tensorboard\]'"):
        tiny_classifier(callbacks=TensorBoard(tmp_path)).fit(fitted_parts)
