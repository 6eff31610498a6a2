"""Any sequence of calls leaves the classifier in a state that agrees with itself.

`make test` runs a few short sequences; thousands of steps are run by

    python -m pytest tests/test_state_machine.py --hypothesis-profile=long -s
"""

from __future__ import annotations

import copy
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import draw_part
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from defectcam import DefectCAMClassifier, load

pytestmark = pytest.mark.slow

SHORT = settings(
    max_examples=8,
    stateful_step_count=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
LONG = settings(
    SHORT,
    max_examples=400,
    stateful_step_count=50,
    derandomize=False,
    phases=[Phase.generate],  # a sequence takes seconds, and to shrink it takes hundreds
)

IS_LONG = settings.default.max_examples >= LONG.max_examples

#: What counts in the next training alone; nothing that is learned may change before.
OF_TRAINING: dict[str, tuple[Any, ...]] = {
    "backbone": ("test_efficientnet", "test_resnet"),
    "image_size": (32, (32, 48)),
    "resize": ("stretch", "pad"),
    "normalisation": ("backbone", "unit"),
    "trainable_stages": (0, 1, 2),
    "evidence_stages": (1, 2),
    "normalise_evidence": (True, False),
    "novelty_strides": ((4, 8), (8,), ()),
    "codebook_size": (4, 8),
    "pooling": ("novelty_top_k", "top_k", "average", "max"),
    "pooling_fraction": (0.02, 0.5, 1.0),
    "head_init": ("normal", "linear"),
    "target": ("anomaly", "type"),
    "good_label": (None, "good"),
    "class_weight": ("balanced", None, 3.0),
    "optimizer": ("adamw", "adam", "sgd"),
    "learning_rate": (1e-2, 1e-3),
    "head_learning_rate": (None, 1e-2),
    "schedule": ("one_cycle", "constant"),
    "max_epochs": (1, 2),
    "label_smoothing": (0.0, 0.1),
    "deep_supervision": (True, False),
    "train_batch_norm": (True, False),
    "early_stopping": (True, False),
    "stop_at_train_accuracy": (None, 0.5),
    "augmentation": ("none", "horizontal_flip", "flips"),
    "cv": (None, 2, 3),
    "heatmap": ("fused", "cam", "min_max_cam"),
    "threshold": ("balanced", "recall>=0.9", "cost=5:1", 0.3),
    "self_training": (True, False),
    "tile": (None, 24),
    "overlap": (0.125, 4),
    "warm_start": (True, False),
    "replay_size": (None, 0, 6),
    "cache_size": (0, 2**30),
    "precision": ("auto", "float32"),
    "n_jobs": (1, 2),
    "random_state": (0, 1),
}

#: What is asked anew whenever boxes are drawn; labels and probabilities do not depend on it.
OF_BOXES: dict[str, tuple[Any, ...]] = {
    "box_threshold": (1.0, 0.2),
    "box_peak_fraction": (0.6, 0.0),
    "tighten_boxes": (True, False),
    "min_area": (1, 16),
    "max_boxes": (None, 1),
    "merge_distance": (None, 4.0),
}

_rng = np.random.default_rng(0)
IMAGES = [draw_part(_rng, scratched=i >= 6, size=32) for i in range(11)]
LABELS = ["good"] * 6 + ["scratch", "scratch", "dent", "dent", "scratch"]
PROBES = [
    IMAGES[0],
    IMAGES[7],
    draw_part(_rng, scratched=True, size=40),
    np.full((32, 32), 9, "u1"),
]

#: Rows of training sets; the last one has good parts alone, as lines have on their first day.
SETS = ([0, 1, 2, 3, 6, 7, 8, 9], list(range(11)), [0, 1, 2, 3, 4, 5])
MORE = ([4, 5, 10], [6], [0, 1, 8, 9])


class Answers(NamedTuple):
    """What a classifier says of the probes."""

    probabilities: bytes
    score: bytes
    labels: list[Any]
    maps: list[bytes]
    boxes: list[Any]

    @classmethod
    def of(cls, clf: DefectCAMClassifier) -> Answers:
        found = clf.localize(PROBES)
        return cls(
            clf.predict_proba(PROBES).tobytes(),
            clf.decision_function(PROBES).tobytes(),
            clf.predict(PROBES).tolist(),
            [one.heatmap.tobytes() for one in found],
            [(one.boxes.tolist(), one.box_scores.tolist()) for one in found],
        )


class Classifier(RuleBasedStateMachine):
    """Calls of the public methods in any order; ``answers`` is None until it is fitted."""

    n_steps = 0  # of all sequences

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")  # so few images are said to be few
        self.clf = DefectCAMClassifier(
            "test_efficientnet",
            weights=None,
            image_size=32,
            codebook_size=8,
            learning_rate=1e-2,
            max_epochs=1,
            batch_size=4,
            augmentation="none",
            cv=2,
            device="cpu",
            n_jobs=1,
            random_state=0,
        )
        self.answers: Answers | None = None
        self.fitted_on: list[int] | None = None  # where fitting a clone must give the same

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.warnings.__exit__(None, None, None)
            self.folder.cleanup()
        if IS_LONG:
            print(f"\r{Classifier.n_steps} steps", end="", flush=True)

    # Training ---------------------------------------------------------------------------------

    @rule(rows=st.sampled_from(SETS))
    def fit(self, rows: list[int]) -> None:
        if self._learns(lambda: self.clf.fit(*_parts(rows))):
            self.fitted_on = None if self.clf.warm_start else rows

    @rule(rows=st.sampled_from((*SETS, *MORE)))
    def partial_fit(self, rows: list[int]) -> None:
        self._learns(lambda: self.clf.partial_fit(*_parts(rows)))
        self.fitted_on = None

    @rule()
    def fit_to_what_it_refuses(self) -> None:
        with pytest.raises(ValueError, match=r"image 1\b|index 1\b|number 1\b|X\[1\]|nan|NaN"):
            self.clf.fit([IMAGES[0], np.full((32, 32), np.nan), IMAGES[7]], LABELS[5:8])

    def _learns(self, call: Any) -> bool:
        """Train; a refusal names what to change and changes nothing."""
        try:
            call()
        except ValueError as error:
            words = (*OF_TRAINING, *OF_BOXES, "batch_size", "classes", "class", "partial_fit")
            assert any(word in str(error) for word in words), error
            return False
        self.answers = Answers.of(self.clf)
        return True

    # Parameters -------------------------------------------------------------------------------

    @rule(data=st.data(), name=st.sampled_from(sorted(OF_TRAINING)))
    def set_a_parameter_of_training(self, data: st.DataObject, name: str) -> None:
        self.clf.set_params(**{name: data.draw(st.sampled_from(OF_TRAINING[name]))})
        self.fitted_on = None

    @rule(data=st.data(), name=st.sampled_from(sorted(OF_BOXES)))
    def set_a_parameter_of_boxes(self, data: st.DataObject, name: str) -> None:
        self.clf.set_params(**{name: data.draw(st.sampled_from(OF_BOXES[name]))})
        if self.answers is not None:
            boxes = Answers.of(self.clf).boxes
            self.answers = self.answers._replace(boxes=boxes)

    @rule(batch_size=st.sampled_from((3, 4, 16)))
    def set_batch_size(self, batch_size: int) -> None:
        self.clf.set_params(batch_size=batch_size)
        self.fitted_on = None
        if self.answers is not None:
            before = np.frombuffer(self.answers.probabilities)
            self.answers = Answers.of(self.clf)
            after = np.frombuffer(self.answers.probabilities)
            assert np.abs(before - after).max() < 1e-5

    @precondition(lambda self: self.answers is not None)
    @rule(threshold=st.floats(0, 1))
    def set_threshold(self, threshold: float) -> None:
        before = self.answers
        self.clf.threshold_ = threshold
        self.answers = Answers.of(self.clf)
        assert self.answers.probabilities == before.probabilities
        assert self.answers.maps == before.maps
        self.fitted_on = None

    # Copies -----------------------------------------------------------------------------------

    @rule(goes_on=st.booleans())
    def clone(self, goes_on: bool) -> None:
        copied = clone(self.clf)
        assert copied.get_params() == self.clf.get_params()
        with pytest.raises(NotFittedError):
            copied.predict(PROBES)
        if goes_on:
            self.clf, self.answers, self.fitted_on = copied, None, None

    @precondition(lambda self: self.fitted_on is not None)
    @rule()
    def fit_a_clone(self) -> None:
        again = clone(self.clf).fit(*_parts(self.fitted_on))
        assert Answers.of(again) == self.answers
        for name, tensor in self.clf.network_.state_dict().items():
            assert tensor.equal(again.network_.state_dict()[name]), name

    @precondition(lambda self: self.answers is not None)
    @rule(goes_on=st.booleans())
    def save_and_load(self, goes_on: bool) -> None:
        path = Path(self.folder.name, "part.safetensors")
        self.clf.save(path)
        loaded = load(path)
        assert Answers.of(loaded) == self.answers
        assert loaded.get_params() == self.clf.get_params()
        assert loaded.info() == self.clf.info()
        if goes_on:
            self.clf = loaded

    @rule()
    def save_unfitted(self) -> None:
        path = Path(self.folder.name, "unfitted.safetensors")
        if self.answers is None:
            with pytest.raises(NotFittedError):
                self.clf.save(path)
            assert not path.exists()

    @rule(goes_on=st.booleans(), how=st.sampled_from(["pickle", "deepcopy"]))
    def pickle_and_unpickle(self, goes_on: bool, how: str) -> None:
        way = {"pickle": lambda clf: pickle.loads(pickle.dumps(clf)), "deepcopy": copy.deepcopy}
        other = way[how](self.clf)
        if self.answers is not None:
            assert Answers.of(other) == self.answers
        if goes_on:
            self.clf = other

    # What holds at any time -------------------------------------------------------------------

    @invariant()
    def what_it_says_is_of_one_piece(self) -> None:
        if not hasattr(self, "clf"):
            return
        Classifier.n_steps += 1
        if self.answers is None:
            for method in (self.clf.predict, self.clf.localize, self.clf.info):
                with pytest.raises(NotFittedError):
                    method() if method == self.clf.info else method(PROBES)
            return
        assert Answers.of(self.clf) == self.answers
        probabilities = self.clf.predict_proba(PROBES)
        assert np.allclose(probabilities.sum(1), 1)
        good = self.clf.classes_.tolist().index(self.clf.good_label_)
        is_defect = 1 - probabilities[:, good] >= self.clf.threshold_
        near = np.abs(1 - probabilities[:, good] - self.clf.threshold_) < 1e-12
        labels = np.array(self.answers.labels)
        assert ((labels != self.clf.good_label_) == is_defect)[~near].all()
        for one, label in zip(self.clf.localize(PROBES), labels, strict=True):
            assert (one.label, one.is_defect) == (label, label != self.clf.good_label_)
            assert one.is_defect or not len(one.boxes)
            height, width = one.heatmap.shape
            for left, top, right, bottom in one.boxes.tolist():
                assert 0 <= left < right <= width and 0 <= top < bottom <= height


def _parts(rows: list[int]) -> tuple[list[np.ndarray], list[str]]:
    return [IMAGES[row] for row in rows], [LABELS[row] for row in rows]


class TestAnySequence(Classifier.TestCase):
    settings = LONG if IS_LONG else SHORT
