"""One `partial_fit` after the first: new images are learned among remembered ones.

Owns the order of the steps, and when nothing can be learned or all has to be learned anew. It knows
the classifier, whose methods do the work; what an update starts from, and what is remembered, are
`defectcam.incremental`'s and `defectcam.replay`'s matter.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.architecture import build_network
from defectcam.callbacks import train_begins, train_ends
from defectcam.classifier import DefectCAMClassifier
from defectcam.cross_fitting import training_folds
from defectcam.diagnostics import warn_if_duplicates, warn_if_few_defects
from defectcam.duplicates import duplicate_groups, duplicate_pairs
from defectcam.exceptions import warn_caller
from defectcam.feature_cache import VIEWS
from defectcam.fingerprint import fingerprint_of_rows
from defectcam.fitting import TrainingSet, draw_seed
from defectcam.images import check_readable
from defectcam.incremental import (
    Course,
    Trained,
    are_current,
    has_evidence,
    targets_of_known,
)
from defectcam.isolation import isolated
from defectcam.labels import as_labels
from defectcam.network import DefectCAMNetwork
from defectcam.replay import (
    Keeper,
    Records,
    ReplayMemory,
    importance,
    judged_in_folds,
    new_records,
)
from defectcam.sample_weights import WeighedRows, relative_weights, weigh_rows
from defectcam.sources import Sources, labelled_sources, paths_of

__all__ = ["learn_more"]


class _New(NamedTuple):
    """New images that were found fit to be learned; a row each, but for ``sources``."""

    sources: Sources
    weighed: WeighedRows
    labels: NDArray[Any]
    targets: NDArray[np.int64]


class _Learned(NamedTuple):
    """What new and remembered images have taught; ``trained`` is None where it was nothing."""

    network: DefectCAMNetwork
    records: Records
    seen: Counter[Any]
    course: Course | None
    trained: Trained | None
    memory: ReplayMemory


def learn_more(
    clf: DefectCAMClassifier, X: Any, y: Any, sample_weight: ArrayLike | None, classes: Any
) -> DefectCAMClassifier:
    """Do what `DefectCAMClassifier.partial_fit` says of a later call.

    Whatever is raised, the classifier stays as it was.
    """
    clf._validate_params()  # which scikit-learn leaves out where an estimator is fitted
    clf._check_parameters()
    new = _accept(clf, X, y, sample_weight, classes)
    if not has_evidence(clf.network_) and (new.targets == clf._classes.good).all():
        clf._check_for_good_only(clf._classes.good_label)
    memory = _remembered(clf)
    largest = np.iinfo(np.int32).max
    seed = (draw_seed(clf.random_state) + _n_rows_seen(clf)) % largest  # another one each day
    train_begins(clf.callbacks, clf)
    hashes = clf._hashes(new.sources.items, new.weighed.rows)
    with isolated(seed, next(clf.network_.parameters()).device):
        learned = _learn(clf, new, hashes, memory, seed)
    before = dict(vars(clf))
    updated = copy.copy(clf)  # calibration may be refused after the first attributes are set
    if learned.trained is not None:
        _take_over(updated, learned, learned.trained, new.weighed)
    else:
        updated.held_out_probability_ = np.full(new.weighed.n_given, np.nan)
        updated.suspects_ = np.empty(0, dtype=np.int64)
    is_kept = learned.trained is not None or clf._replay_places() > 0
    if is_kept:
        updated.n_images_seen_ += new.weighed.n_used
        updated._n_rows_seen = _n_rows_seen(clf) + len(new.weighed.rows)
    if is_kept and clf.training_data_ is not None:  # else earlier images are not known
        data = fingerprint_of_rows(hashes, new.labels, new.weighed.rows)
        updated.training_data_ = clf.training_data_.joined(data)
    updated._replay = learned.memory if clf._replay_places() else None
    clf.__dict__.update(vars(updated))
    try:
        train_ends(clf.callbacks, clf)
    except BaseException:
        clf.__dict__.clear()
        clf.__dict__.update(before)
        raise
    return clf


def _accept(
    clf: DefectCAMClassifier, X: Any, y: Any, sample_weight: ArrayLike | None, classes: Any
) -> _New:
    sources, labels = labelled_sources(X, y, clf.good_label_)
    weighed = weigh_rows(sample_weight, len(sources.items))
    labels = as_labels(labels)[weighed.rows]
    targets = targets_of_known(clf._classes, labels, classes)
    if {labels.dtype.kind, clf.classes_.dtype.kind} <= set("biu"):
        labels = labels.astype(clf.classes_.dtype)  # True and 1 are one label, and counted as one
    check_readable(paths_of(sources), n_workers=clf.n_jobs)
    return _New(sources, weighed, labels, targets)


def _remembered(clf: DefectCAMClassifier) -> ReplayMemory | None:
    memory = getattr(clf, "_replay", None)
    if memory is None and clf.replay_size != 0:
        warn_caller(
            "partial_fit remembers no earlier image, so what they showed may be forgotten: `load` "
            "reads no memory, and `fit` keeps one only where replay_size is a number. The new "
            "images start one."
        )
    return memory


def _learn(
    clf: DefectCAMClassifier,
    new: _New,
    hashes: list[str],
    memory: ReplayMemory | None,
    seed: int,
) -> _Learned:
    """Learn on a copy of the network."""
    network, n_new = copy.deepcopy(clf.network_), len(new.targets)
    views = VIEWS[clf.augmentation] if memory is None else memory.views
    n_images = n_new + (0 if memory is None else len(memory))
    with clf._feature_cache(n_images, views, network) as cache:
        thumbnails = clf._fill(
            cache, network, clf._preprocess, new.sources.items, new.weighed.rows, hashes
        )
        records = new_records(new.labels, new.targets, new.weighed.weights, thumbnails, seed)
        seen = Counter(new.labels.tolist())
        if memory is not None:  # the new images come first
            memory.put_into(cache, n_new)
            records, seen = records.joined(memory.records), seen + memory.seen
        is_defect = records.targets != clf._classes.good
        pairs = duplicate_pairs(list(records.thumbnails))
        new_pairs = pairs[(pairs < n_new).all(1)]
        warn_if_duplicates(new_pairs, is_defect[:n_new], new.sources.items, new.weighed.rows)
        course = _course(clf, network, records, memory, duplicate_groups(pairs, n_images), seed)
        if course is not None:
            n_unlearned = n_images if memory is None or not memory.is_learned else n_new
            records = _judged(records, course, pairs, n_unlearned, _n_rows_seen(clf))
        keeper = Keeper(cache, records, is_defect, clf._replay_places())
        weights = records.weights * importance(records.labels, seen)
        trained: Trained | None = None
        if course is not None:
            warn_if_few_defects(is_defect)
            images = TrainingSet(cache, clf._classes, records.targets, weights)
            network, trained = _train(clf, network, images, course, seed)
    if trained is None:
        kept = keeper.memory(seen, None, is_learned=False)
    else:
        is_held_out = course is not None and course.holds_out
        kept = keeper.memory(seen, trained.held_out if is_held_out else None)
    return _Learned(network, records, seen, course, trained, kept)


def _train(
    clf: DefectCAMClassifier,
    network: DefectCAMNetwork,
    images: TrainingSet,
    course: Course,
    seed: int,
) -> tuple[DefectCAMNetwork, Trained]:
    """Train the network, or one with an untrained tail; an interrupt goes on."""
    if course.is_anew:
        network = _untrained(clf, network)
    fit = clf._network_fit(
        network,
        images,
        course,
        seed,
        heatmap=clf._built_with.get("heatmap", clf.heatmap),
        input_size=clf.image_size_,
    )
    trained = fit.run(course)
    if trained.result.interrupted:
        raise KeyboardInterrupt
    return network, trained


def _n_rows_seen(clf: DefectCAMClassifier) -> int:
    return clf.n_images_seen_ if clf._n_rows_seen is None else clf._n_rows_seen


def _judged(
    records: Records, course: Course, pairs: NDArray[np.intp], n_unlearned: int, n_learned: int
) -> Records:
    """Note in the records how much the networks that judge images have learned from.

    An image that was learned before it is judged is not held out, nor is a copy of one.
    """
    if not course.judges_first:
        return judged_in_folds(records, course.folds)
    n_judged = len(records.labels) - (0 if course.known is None else len(course.known.logits))
    n_new = min(n_judged, n_unlearned)
    experience = records.experience.copy()
    experience[:n_new], experience[n_new:n_judged] = n_learned, 0
    experience[pairs[(pairs < n_new).any(1) & (pairs >= n_new).any(1)].min(1)] = 0
    return records._replace(experience=experience)


def _untrained(clf: DefectCAMClassifier, present: DefectCAMNetwork) -> DefectCAMNetwork:
    """Make a network with an untrained tail behind the present trunk and codebook."""
    # Parameters may be set since.
    parameters = {**clf.get_params(deep=False), **clf._built_with}
    network, _ = build_network(parameters, len(clf.classes_), clf._classes.good)
    network.trunk.load_state_dict(present.trunk.state_dict())
    network.codebook = present.codebook
    return network


def _course(
    clf: DefectCAMClassifier,
    network: DefectCAMNetwork,
    records: Records,
    memory: ReplayMemory | None,
    groups: NDArray[np.int64],
    seed: int,
) -> Course | None:
    """Decide how new and remembered images are learned; None where they are of one class."""
    n_classes = len(np.unique(records.targets))
    is_trained = has_evidence(network)
    has_good = bool((records.targets == clf._classes.good).any())
    if not has_good or (n_classes == 1 and is_trained):
        given, missing = ("good", "defective") if has_good else ("defective", "good")
        what_becomes = (
            "they are remembered, and nothing is trained until there are both."
            if clf._replay_places()
            else "nothing is trained, and replay_size=0 forgets them. Give both together."
        )
        warn_caller(
            f"partial_fit was given {given} images alone and remembers no {missing} one: "
            + what_becomes
        )
        return None
    is_first_defect = n_classes > 1 and not is_trained
    has_learned = memory is not None and memory.is_learned
    if not is_first_defect and clf.cv is not None:
        if memory is None or not has_learned:  # the network has seen none of these images
            return Course([], is_update=True, judges_first=True)
        if memory.held_out is not None:
            return Course([], is_update=True, judges_first=True, known=memory.held_out)
        if sum(memory.seen.values()) > len(memory):  # to learn anew would forget the others
            return Course([], is_update=True, judges_first=True)
    if is_trained and clf.cv is None:  # nothing is held out
        return Course([], is_update=True)
    folds = training_folds(records.labels, records.targets, groups, clf.cv, seed)
    return Course(folds, is_anew=n_classes > 1)


def _take_over(
    clf: DefectCAMClassifier, learned: _Learned, trained: Trained, weighed: WeighedRows
) -> None:
    """Set the fitted attributes; those of single images are about the new ones."""
    clf.network_, clf.history_ = learned.network, trained.result.history
    records = learned.records
    current = are_current(records.experience, records.targets)
    weights = relative_weights(records.weights)
    weights[current] *= importance(records.labels[current], learned.seen)
    is_held_out = learned.course is not None and learned.course.holds_out
    clf._calibrate(trained, records.targets, weights, is_held_out, current)
    n_new = len(weighed.rows)
    clf.held_out_probability_ = weighed.per_given(clf.held_out_probability_[:n_new])
    clf.suspects_ = weighed.given(clf.suspects_[clf.suspects_ < n_new])
