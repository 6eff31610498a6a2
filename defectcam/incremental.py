"""One `partial_fit` of a trained network: new images are scored, then learned among earlier ones.

Owns the order of the two, how long and how fast an update trains, and what keeps scores of one day
comparable with those of another. It chooses no threshold, and which earlier images there are is
the replay memory's matter.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from defectcam.cam import signed_cams
from defectcam.labels import ANOMALY, Classes, as_labels, find_classes
from defectcam.network import DefectCAMNetwork
from defectcam.replay import Records, ReplayMemory, choose_rows, draw_keys, features_of, importance
from defectcam.training import (
    FeatureCache,
    FitResult,
    TailTraining,
    TrainingOptions,
    fit_codebook,
    novelty_of_cached,
    predict_cached,
    result_of_good_only,
    update_batch_norm,
)

__all__ = [
    "Lesson",
    "first_classes",
    "has_evidence",
    "options_of_update",
    "start_from",
    "targets_of_known",
]

#: Share of a fit's epochs that an update takes, over new and remembered images together. The fit
#: trains a tail per fold, the update goes on with their mean.
SHARE_OF_EPOCHS = 1 / 3

#: An update's learning rates, in terms of the fit's: the tail has arrived near a good place.
SHARE_OF_RATE = 0.5


@dataclass
class Lesson:
    """New images and those of the replay memory in one cache, the new ones first.

    Attributes
    ----------
    network : DefectCAMNetwork
        Changed in place.
    cache : FeatureCache
    records : Records
        Of all images in the cache. Those of the new ones are from the network as it came in: they
        were scored before they were learned, and so are held out for nothing (prequential
        evaluation).
    n_new : int
    seen : Counter
        Images seen per label, the new ones counted.
    good : int
        Index of the good class.

    References
    ----------
    Dawid, "Present position and potential developments: some personal views: statistical theory:
    the prequential approach", 1984.
    """

    network: DefectCAMNetwork
    cache: FeatureCache
    records: Records
    n_new: int
    seen: Counter[Any]
    good: int

    @classmethod
    def begin(
        cls,
        network: DefectCAMNetwork,
        cache: FeatureCache,
        memory: ReplayMemory | None,
        new: tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float64]],
        good: int,
        seed: int,
    ) -> Lesson:
        """Put the memory behind the new images in the cache, and score all of them.

        Parameters
        ----------
        network : DefectCAMNetwork
        cache : FeatureCache
            With the new images in its first rows and as many rows more as the memory has images.
        memory : ReplayMemory or None
        new : (labels, targets, weights)
            Of the new images.
        good : int
            Index of the good class.
        seed : int
            Of the keys that decide which images are kept.
        """
        labels, targets, weights = new
        n_new, seen = len(labels), Counter(labels.tolist())
        if memory is not None:
            memory.put_into(cache, n_new)
            seen = seen + memory.seen
        novelty = None
        if network.codebook is not None:
            cache.novelty = novelty = novelty_of_cached(network.codebook, cache)
        rows = np.arange(n_new)
        logits, levels = predict_cached(network, cache, rows)
        cams = signed_cams(levels, good)
        # Maps are centred on good images that the network was trained on, where there are such.
        calm = cams[torch.as_tensor(targets == good)]
        if memory is not None:
            earlier = n_new + np.flatnonzero(memory.records.targets == good)
            calm = signed_cams(predict_cached(network, cache, earlier)[1], good)
        if len(calm):
            typical = np.median(calm.transpose(0, 1).flatten(1).numpy(), axis=1)
            cams = cams - cams.new_tensor(typical)[:, None, None]
        records = Records(
            labels,
            targets,
            weights,
            draw_keys(n_new, seed),
            logits,
            cams,
            None if novelty is None else novelty[:n_new].clone(),
            np.ones(n_new, dtype=bool),
        )
        if memory is not None:
            records = records.joined(memory.records)
        return cls(network, cache, records, n_new, seen, good)

    @property
    def is_defect(self) -> NDArray[np.bool_]:
        """Which images in the cache are defective."""
        return self.records.targets != self.good

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each image such that together they stand for all that were seen."""
        return self.records.weights * importance(self.records.labels, self.seen)

    def memory(self, size: int) -> ReplayMemory:
        """Make the memory for the next time. The cache must still have its patches."""
        rows = choose_rows(self.records.labels, self.is_defect, self.records.keys, size)
        return ReplayMemory(
            self.records.take(rows), features_of(self.cache, rows), tuple(self.cache.views),
            self.seen,
        )  # fmt: skip

    def update_codebook(self, n_centres: int, seed: int) -> None:
        """Let k-means go on from its centres, over good patches, new and remembered."""
        if self.network.codebook is None:
            return
        good_rows = np.flatnonzero(~self.is_defect)
        if not len(good_rows):
            return
        self.network.codebook = fit_codebook(
            self.cache, good_rows, n_centres, seed, self.network.codebook
        )
        self.cache.novelty = novelty_of_cached(self.network.codebook, self.cache)

    def scored_anew(self, result: FitResult, novelty: Tensor | None, is_held_out: bool) -> None:
        """Take the scores of a fit on all images in the cache for theirs."""
        self.records = self.records._replace(
            logits=result.logits,
            cams=result.cams,
            novelty=novelty,
            is_held_out=np.full(len(self.records.labels), is_held_out),
        )

    def result_of_good_only(self) -> FitResult:
        """Sum up an update by good images alone of a network that has seen no others."""
        return result_of_good_only(self.network, self.cache)

    def train(self, training: TailTraining) -> FitResult:
        """Train on all images in the cache, then put the scores back on their scale.

        Scores have median 0 on good images trained on, as a fit leaves them, and good and defective
        images of the memory stay as far apart as they were. So held-out scores of earlier days
        still mean the same.
        """
        everything = np.arange(self.cache.n_images)
        remembered = everything[self.n_new :]
        has_both = len(np.unique(self.is_defect[remembered])) == 2
        before = training.scores(remembered).class_distance if has_both else np.nan
        training.run(everything, fold=1 + int(max(training.history["fold"], default=-1)))
        if training.options.train_batch_norm:
            update_batch_norm(self.network, self.cache)
        after = training.scores(remembered).class_distance if has_both else np.nan
        scores = training.centre_scores(everything)
        if before > 0 and after > 0:
            self.network.head.scale_(before / after)
            scores = scores.scaled(before / after)
        return training.result(self.records.logits, self.records.cams, scores)


def options_of_update(options: TrainingOptions) -> TrainingOptions:
    """Turn the options of a fit into those of an update: fewer epochs, lower learning rates."""
    head_rate = options.head_learning_rate
    return dataclasses.replace(
        options,
        max_epochs=max(1, round(SHARE_OF_EPOCHS * options.max_epochs)),
        learning_rate=SHARE_OF_RATE * options.learning_rate,
        head_learning_rate=None if head_rate is None else SHARE_OF_RATE * head_rate,
    )


def has_evidence(network: DefectCAMNetwork) -> bool:
    """Whether the network was trained on defective images: of good ones alone its head is zero."""
    return any(bool(parameter.any()) for parameter in network.head.convs.parameters())


def targets_of_known(
    known: Classes, y: ArrayLike, classes: ArrayLike | None, target: str
) -> NDArray[np.int64]:
    """Class index of each new label; refuse labels, or ``classes``, that training does not know.

    Parameters
    ----------
    known : Classes
        Of the fitted classifier.
    y : array-like of shape (n,)
    classes : array-like or None
        What was passed as `partial_fit`'s parameter of that name.
    target : {"anomaly", "type"}
    """
    if classes is not None:
        asked = find_classes(np.unique(as_labels(classes)), target, known.good_label)
        if not np.array_equal(asked.labels, known.labels):
            raise ValueError(
                f"classes={np.asarray(classes).tolist()!r} is not the same as at the first call, "
                f"which made the classes {known.labels.tolist()}: leave it out, or call fit to "
                "start anew."
            )
    labels = as_labels(y)
    takes_any = known.labels[known.defects].tolist() == [ANOMALY]
    unknown = sorted(set(labels.tolist()) - set(known.labels.tolist()), key=str)
    if unknown and not takes_any:
        raise ValueError(
            f"y holds the labels {unknown}, but the classes are {known.labels.tolist()}, from the "
            "first call. Start anew with all of them, partial_fit(X, y, classes=[...]) or fit; or "
            f"give these images the label of a known class. With target='anomaly' and more than "
            f"one defect type in classes, all types, later ones too, are one class, {ANOMALY!r}."
        )
    return known.encode(labels)


def start_from(network: DefectCAMNetwork, previous: DefectCAMNetwork) -> bool:
    """Give a network the weights of another, if all of them fit; the codebook is not a weight.

    Returns
    -------
    bool
        Whether they did.
    """
    weights = {k: v for k, v in previous.state_dict().items() if not k.startswith("codebook.")}
    own = network.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        return False
    network.load_state_dict(weights)
    return True


def first_classes(
    y: ArrayLike, classes: Sequence[Any] | ArrayLike | None, target: str, good_label: Any
) -> Classes:
    """Classes of a first call: those of ``classes`` where given, else those of ``y``."""
    if classes is None:
        return find_classes(y, target, good_label)
    named = np.unique(as_labels(classes))
    found = find_classes(named, target, good_label)
    targets_of_known(found, y, None, target)
    return found
