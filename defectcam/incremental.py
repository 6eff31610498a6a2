"""How `partial_fit` goes on from what there is: classes, epochs, and which answers still count.

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

from defectcam.cross_fitting import FitResult, Fold, HeldOut
from defectcam.heat_model import HeatModel
from defectcam.labels import Classes, as_labels, find_classes
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook
from defectcam.plain_labels import ANOMALY
from defectcam.training import TrainingOptions

__all__ = [
    "Course",
    "Trained",
    "are_current",
    "first_classes",
    "has_evidence",
    "options_of_update",
    "start_from",
    "targets_of_known",
]

#: Share of a fit's epochs that an update takes, over new and remembered images together.
SHARE_OF_EPOCHS = 0.6

#: Share of the latest network's experience that one whose answers still count must have had.
CURRENT_SHARE = 0.5


class Course(NamedTuple):
    """What a training starts from and goes through.

    Attributes
    ----------
    folds : list of (train rows, held-out rows)
        Of a fit; empty: no image is held out, or new ones are by being judged first.
    is_update : bool
        Whether it goes on from the present weights and takes the epochs of an update.
    judges_first : bool
        Whether an update has the present network judge new images before it learns from them.
    known : HeldOut or None
        What was said of the last images of the cache when they were new; None: all are new.
    is_anew : bool
        Whether the present tail has to be replaced by an untrained one: it has seen all images, so
        none could be held out.
    is_warm : bool
        Whether a fit starts from the weights of an earlier one.
    """

    folds: list[Fold]
    is_update: bool = False
    judges_first: bool = False
    known: HeldOut | None = None
    is_anew: bool = False
    is_warm: bool = False

    @property
    def holds_out(self) -> bool:
        """Whether scores of images come from networks that have not seen them."""
        return bool(self.folds) or self.judges_first


class Trained(NamedTuple):
    """What a training leaves behind besides the network.

    Attributes
    ----------
    result : FitResult
    novelty : Tensor of shape (n_images, height, width) or None
        Maps of the training images, from codebooks that have not seen them.
    codebooks : list of Codebook
        Of the folds, or that which judged new images.
    heat_model : HeatModel
    """

    result: FitResult
    novelty: Tensor | None
    codebooks: list[Codebook]
    heat_model: HeatModel

    @property
    def held_out(self) -> HeldOut:
        """What was said of the training images by networks that had not seen them."""
        return HeldOut(self.result.logits, self.result.cams, self.novelty)


def are_current(experience: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which held-out answers still speak of the present network.

    A network that had learned from few images was less sure, and more often wrong.

    Parameters
    ----------
    experience : ndarray of shape (n_images,), int64
        Images that the network which judged each one had learned from; 0: it was not held out.
    targets : ndarray of shape (n_images,)

    Returns
    -------
    ndarray of bool, shape (n_images,)
        Of each class those judged by a network with at least `CURRENT_SHARE` of the highest
        experience; all, where none was held out.
    """
    current = np.zeros(len(targets), dtype=bool)
    for target in np.unique(targets):
        own = targets == target
        current |= own & (experience >= CURRENT_SHARE * experience[own].max())
    return current


def options_of_update(options: TrainingOptions) -> TrainingOptions:
    """Turn the options of a fit into those of an update, which has fewer epochs."""
    return dataclasses.replace(
        options, max_epochs=max(1, round(SHARE_OF_EPOCHS * options.max_epochs))
    )


def has_evidence(network: DefectCAMNetwork) -> bool:
    """Whether the network was trained on defective images: of good ones alone its head is zero."""
    return any(bool(parameter.any()) for parameter in network.head.convs.parameters())


def targets_of_known(known: Classes, y: ArrayLike, classes: ArrayLike | None) -> NDArray[np.int64]:
    """Class index of each new label; refuse labels, or ``classes``, that training does not know.

    Parameters
    ----------
    known : Classes
        Of the fitted classifier.
    y : array-like of shape (n,)
    classes : array-like or None
        What was passed as `partial_fit`'s parameter of that name.
    """
    if classes is not None:
        # Not the parameter `target`, which counts in the first call alone and may be set since.
        target = "type" if len(known.defects) > 1 else "anomaly"
        asked = find_classes(np.unique(as_labels(classes)), target, known.good_label)
        if not np.array_equal(asked.labels, known.labels):
            raise ValueError(
                f"classes={np.asarray(classes).tolist()!r} is not the same as at the first call, "
                f"which made the classes {known.labels.tolist()}: leave it out, or call fit to "
                "start anew."
            )
        _refuse_others(y, classes, target)
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
    found = find_classes(np.unique(as_labels(classes)), target, good_label)
    _refuse_others(y, classes, target)
    return found


def _refuse_others(y: ArrayLike, classes: ArrayLike, target: str) -> None:
    """Refuse labels that ``classes`` does not name, unless its types are one class, open to all."""
    named = set(as_labels(classes).tolist())
    others = sorted(set(as_labels(y).tolist()) - named, key=str)
    is_open = target == "anomaly" and len(named) > 2
    if others and not is_open:
        raise ValueError(
            f"y holds the labels {others}, which are not in classes={sorted(named, key=str)}: name "
            "all labels that will ever come, or give these images one of those."
        )
