"""One fit of a network to cached images: codebook, tail and head, the map's model, students.

Owns the order of these steps, and what an update and a resumed fit go on from. It reads no image
and sets no attribute of an estimator; what a step does is the matter of the modules below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor
from tqdm.auto import tqdm

from defectcam.checkpoints import FitCheckpoint
from defectcam.cross_fitting import (
    FitResult,
    add_codebook,
    judge_then_train,
    result_of_good_only,
    student_features_of,
    train_with_folds,
    update_codebook,
)
from defectcam.feature_cache import FeatureCache
from defectcam.fit_memory import codebook_maker
from defectcam.heat_model import HeatModel, fit_heat_model, held_out_maps, with_students
from defectcam.incremental import Course, Trained
from defectcam.labels import Classes
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook
from defectcam.sample_weights import class_weights
from defectcam.student import draw_all, fit_students
from defectcam.training import EpochCallback, History, TailTraining, TrainingOptions

__all__ = ["FitOptions", "NetworkFit", "TrainingSet", "draw_seed"]


class TrainingSet(NamedTuple):
    """The images that a network is fitted to.

    Attributes
    ----------
    cache : FeatureCache
        What the trunk says of them.
    classes : Classes
    targets : ndarray of shape (n_images,), int64
        Class indices.
    weights : ndarray of shape (n_images,), float64
    """

    cache: FeatureCache
    classes: Classes
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """Which images are of the good class."""
        return self.targets == self.classes.good


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a network is fitted; the fields are the estimator's parameters of the same name.

    Those of the tail's training are in `training`.
    """

    training: TrainingOptions
    class_weight: Any
    codebook_size: int
    heatmap: str
    self_training: bool
    memory: Any
    verbose: int


@dataclass(kw_only=True)
class NetworkFit:
    """One fit, or one update, of a network.

    Attributes
    ----------
    network : DefectCAMNetwork
        Fitted in place; its trunk is not touched.
    images : TrainingSet
    options : FitOptions
    input_size : (int, int)
        Height and width of the network's input.
    seed : int
    on_epoch : callable
        Called after each epoch with its record; returning True ends the training of the fold.
    history : dict of list
        Of the trainings before an update, which goes on with it.
    checkpoint : FitCheckpoint, optional
        What the training goes on from and is kept in.
    """

    network: DefectCAMNetwork
    images: TrainingSet
    options: FitOptions
    input_size: tuple[int, int]
    seed: int
    on_epoch: EpochCallback
    history: History = field(default_factory=dict)
    checkpoint: FitCheckpoint | None = None

    def run(self, course: Course) -> Trained:
        """Learn codebook, tail, head and map from all images."""
        images, is_good = self.images, self.images.is_good
        novelty, codebooks = self._learn_codebook(course)
        if is_good.all():
            result = result_of_good_only(self.network, images.cache)
        else:
            result = self._train_tails(course, novelty)
        heat_model = fit_heat_model(
            self.options.heatmap,
            images.classes.good,
            result.cams,
            novelty,
            result.typical_cams,
            ~is_good,
            self.input_size,
        )
        self.network.students = torch.nn.ModuleList()
        is_taught = self.options.self_training and not is_good.all() and heat_model.kind == "fused"
        if is_taught and novelty is not None:
            heat_model = self._teach_students(course, heat_model, result, novelty)
        return Trained(result, novelty, codebooks, heat_model)

    def _learn_codebook(self, course: Course) -> tuple[Tensor | None, list[Codebook]]:
        """Learn what good patches look like; held-out novelty maps, and the folds' codebooks."""
        network, cache, is_good = self.network, self.images.cache, self.images.is_good
        if not network.novelty_levels:
            return None, []
        size = self.options.codebook_size
        if course.judges_first:
            return update_codebook(network, cache, is_good, course.known, size, self.seed)
        make = codebook_maker(self.options.memory)
        return add_codebook(network, cache, is_good, course.folds, size, self.seed, make)

    def _train_tails(self, course: Course, novelty: Tensor | None) -> FitResult:
        """Train the folds' tails and the final one, from where there is something to go on from."""
        n_epochs = (1 + len(course.folds)) * self.options.training.max_epochs
        with tqdm(
            total=n_epochs, desc="training", unit="epoch", disable=not self.options.verbose
        ) as bar:
            training = self._tail_training(bar)
            if course.is_update:
                training.history = {name: list(column) for name, column in self.history.items()}
                training.first_fold = 1 + int(max(training.history["fold"], default=-1))
            if self.checkpoint is not None:
                training.checkpoint, training.history = self.checkpoint, self.checkpoint.history
                bar.update(len(training.history.get("epoch", ())))
            if course.holds_out and (course.is_update or course.is_warm):
                training.uncentre_scores()
            if course.judges_first:
                return judge_then_train(training, course.known, novelty)
            return train_with_folds(training, course.folds, novelty)

    def _tail_training(self, bar: tqdm) -> TailTraining:
        cache, classes, targets, weights = self.images
        of_classes = class_weights(
            self.options.class_weight, classes.labels, classes.good, targets, weights
        )

        def on_epoch(record: dict[str, Any]) -> object:
            loss, accuracy = record["loss"], record["train_accuracy"]
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
            bar.update()
            return self.on_epoch(record)

        return TailTraining(
            network=self.network,
            cache=cache,
            targets=torch.as_tensor(targets),
            good=classes.good,
            class_weight=torch.as_tensor(of_classes, dtype=torch.float32),
            sample_weight=torch.as_tensor(weights, dtype=torch.float32),
            options=self.options.training,
            seed=self.seed,
            on_epoch=on_epoch,
        )

    def _teach_students(
        self, course: Course, heat_model: HeatModel, result: FitResult, novelty: Tensor
    ) -> HeatModel:
        """Give the network students of the held-out maps, and the map's model their share."""
        network, cache, is_defect = self.network, self.images.cache, ~self.images.is_good
        features_of = student_features_of(network, cache, course.folds, result.tails)
        maps = held_out_maps(heat_model, result.cams, novelty, result.typical_cams)
        students = fit_students(features_of, network.student_depths, maps, is_defect, self.seed)
        network.students = torch.nn.ModuleList(students)
        if not students:
            return heat_model
        drawn = draw_all(students, features_of, cache.n_images)
        return with_students(
            heat_model, result.cams, novelty, drawn, result.typical_cams, is_defect
        )


def draw_seed(random_state: Any) -> int:
    """Draw the seed of a fit, as scikit-learn reads the parameter `random_state`."""
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
