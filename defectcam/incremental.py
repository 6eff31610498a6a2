"""How `partial_fit` goes on from what there is: classes, folds, epochs and rates of an update.

Owns these rules. It trains nothing, and which earlier images there are is the replay memory's
matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from defectcam.calibration import HeatModel
from defectcam.labels import Classes, as_labels, find_classes
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook
from defectcam.plain_labels import ANOMALY
from defectcam.replay import Records
from defectcam.training import FitResult, Fold, TailState, TrainingOptions

__all__ = [
    "Course",
    "Trained",
    "are_usable",
    "first_classes",
    "has_evidence",
    "more_folds",
    "options_of_update",
    "start_from",
    "targets_of_known",
]

#: Share of a fit's epochs that an update takes, over new and remembered images together.
SHARE_OF_EPOCHS = 0.2

#: An update's learning rates, in terms of the fit's: it has few epochs to reach new images in.
SHARE_OF_RATE = 2.0


class Course(NamedTuple):
    """What a training starts from and goes through.

    Attributes
    ----------
    folds : list of (train rows, held-out rows)
        Each image belongs to one fold for good. So the tail of that fold has never seen it, on
        whatever day it came, and its score is held out.
    tails : sequence of dict of Tensor
        What each fold's tail starts from; empty: all from the network's weights.
    codebooks : sequence of Codebook
        Likewise; empty: made anew.
    is_update : bool
        Whether it takes the few epochs of an update, not those of a fit.
    is_anew : bool
        Whether the present tail has to be replaced by an untrained one: it has seen all images, so
        none could be held out.
    is_warm : bool
        Whether a fit starts from the weights of an earlier one.
    """

    folds: list[Fold]
    tails: Sequence[TailState] = ()
    codebooks: Sequence[Codebook] = ()
    is_update: bool = False
    is_anew: bool = False
    is_warm: bool = False


class Trained(NamedTuple):
    """What a training leaves behind besides the network.

    Attributes
    ----------
    result : FitResult
    novelty : Tensor of shape (n_images, height, width) or None
        Maps of the training images, from codebooks that have not seen them.
    codebooks : list of Codebook
        Of the folds.
    heat_model : HeatModel
    """

    result: FitResult
    novelty: Tensor | None
    codebooks: list[Codebook]
    heat_model: HeatModel


def more_folds(records: Records, groups: NDArray[np.int64], n_folds: int) -> list[Fold]:
    """Put images that are in no fold yet into one, evenly by label; the others stay where they are.

    Parameters
    ----------
    records : Records
    groups : ndarray of shape (n_images,)
        Copies of one picture have one number, and go into one fold: that of a remembered copy, if
        there is one.
    n_folds : int
    """
    fold_of = records.folds.copy()
    filled: dict[Any, NDArray[np.int64]] = {}
    for label in np.unique(records.labels).tolist():
        chosen = fold_of[(records.labels == label) & (fold_of >= 0)]
        filled[label] = np.bincount(chosen, minlength=n_folds)
    for row in np.flatnonzero(fold_of < 0):
        if fold_of[row] >= 0:
            continue
        members = np.flatnonzero(groups == groups[row])
        known = fold_of[members][fold_of[members] >= 0]
        label = records.labels[row].item()
        fold = int(known[0] if len(known) else np.argmin(filled[label]))
        new = members[fold_of[members] < 0]
        fold_of[new] = fold
        for other in records.labels[new].tolist():
            filled[other][fold] += 1
    numbers = range(n_folds)
    return [(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in numbers]


def are_usable(folds: Sequence[Fold], targets: NDArray[np.int64]) -> bool:
    """Whether every tail has images of all classes to learn from."""
    n_classes = len(np.unique(targets))
    return all(len(np.unique(targets[train_rows])) == n_classes for train_rows, _ in folds)


def options_of_update(options: TrainingOptions) -> TrainingOptions:
    """Turn the options of a fit into those of an update: fewer epochs, higher learning rates."""
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
    """Give a network the weights of another, if all of them fit; codebook and students are none.

    Returns
    -------
    bool
        Whether they did.
    """
    weights = {
        name: tensor
        for name, tensor in previous.state_dict().items()
        if not name.startswith(("codebook.", "students."))
    }
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
