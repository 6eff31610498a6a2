"""What a fit learns from images held out: codebooks and tails of folds, and the final network.

Owns cross-fitting, of `fit` and of updates. How one tail is trained is `defectcam.training`'s; it
reads no file, knows no label names, and decides no threshold.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from defectcam.exceptions import warn_caller
from defectcam.feature_cache import FeatureCache
from defectcam.folds import stratified_group_folds
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import MAX_CODEBOOK_PATCHES, Codebook
from defectcam.student import FeaturesOf
from defectcam.training import (
    CACHE_BATCH,
    HISTORY_COLUMNS,
    CachedScores,
    History,
    TailState,
    TailTraining,
    copy_tail,
    load_tail,
    predict_cached,
)

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
MakeCodebook = Callable[[NDArray[Any], int, int], Codebook]


#: Folds where there are only good images: each costs a codebook, none a training.
GOOD_ONLY_FOLDS = 10


def training_folds(
    labels: NDArray[Any],
    targets: NDArray[np.int64],
    groups: NDArray[np.int64],
    n_folds: int | None,
    seed: int,
) -> list[Fold]:
    """Split the training images, by defect type where each type has enough images.

    Near-duplicates stay on one side where that leaves images of each class on both.

    Parameters
    ----------
    labels : ndarray of shape (n_images,)
        As given; defect types among them.
    targets : ndarray of shape (n_images,), int64
        Class indices.
    groups : ndarray of shape (n_images,), int64
        Near-duplicates have the same number.
    n_folds : int or None
        Fewer where a class has fewer images; at least `GOOD_ONLY_FOLDS` of a single class. None:
        nothing is held out.
    seed : int

    Returns
    -------
    list of (train rows, held-out rows)
        Empty, with a warning, where a class has a single image.
    """
    if n_folds is None:
        return []
    _, per_class = np.unique(targets, return_counts=True)
    # Of few good images, what is left for a codebook should be nearly all that the model has.
    wanted = max(n_folds, GOOD_ONLY_FOLDS) if len(per_class) == 1 else n_folds
    n_splits = min(wanted, int(per_class.min()))
    if n_splits < 2:
        warn_caller(
            "A class has a single training image, so none can be held out: thresholds rest on "
            "the training images themselves. Give at least two images of each class."
        )
        return []
    _, strata, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rare = counts[strata] < n_splits
    strata = np.where(rare, len(counts) + targets, strata)
    with warnings.catch_warnings():  # rare types together may still be fewer than the folds
        warnings.filterwarnings("ignore", message="The least populated class")
        if n_splits <= len(np.unique(groups)) < len(groups):
            folds = stratified_group_folds(strata, groups, n_splits, seed)
            n_present = [len(np.unique(targets[rows])) for fold in folds for rows in fold]
            if min(n_present) == len(per_class):
                return folds
        shuffled = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
        return list(shuffled.split(targets, strata))


def training_folds_of_images(
    labels: NDArray[Any],
    targets: NDArray[np.int64],
    images: NDArray[np.intp],
    n_folds: int | None,
    seed: int,
) -> list[Fold]:
    """Split tiles so that those of an image stay together.

    Parameters
    ----------
    labels, targets, n_folds, seed
        As in `training_folds`.
    images : ndarray of shape (n_tiles,)
        Number of the image that each tile is a part of.
    """
    numbers, first = np.unique(images, return_index=True)
    folds = training_folds(labels[first], targets[first], np.arange(len(first)), n_folds, seed)
    return [
        (
            np.flatnonzero(np.isin(images, numbers[train])),
            np.flatnonzero(np.isin(images, numbers[held_out])),
        )
        for train, held_out in folds
    ]


class FitResult(NamedTuple):
    """What one fit leaves behind besides the trained network.

    Attributes
    ----------
    logits : Tensor of shape (n_images, n_classes)
        Scores of the training images, each from a tail that did not train on it, where there are
        such; else from the final one.
    cams : Tensor of shape (n_images, 1 + n_levels, height, width)
        Signed maps of the whole evidence and of each level's, likewise; each shifted so that that
        of good training images has median 0.
    typical_cams : tuple of float
        Medians of the final network's signed maps over good training images, in the same order.
    history : dict of list
    interrupted : bool
        Whether a KeyboardInterrupt ended the training early.
    tails : tuple of dict of Tensor
        Weights of tail and head of each fold, from which a later training may go on.
    biases : tuple of Tensor of shape (n_classes,)
        Of each fold's head, shifted so that the scores agree with the final network's.
    """

    logits: Tensor
    cams: Tensor
    typical_cams: tuple[float, ...]
    history: History
    interrupted: bool
    tails: tuple[TailState, ...] = ()
    biases: tuple[Tensor, ...] = ()


class HeldOut(NamedTuple):
    """What networks said about some images before they learned from them.

    Attributes
    ----------
    logits : Tensor of shape (n_images, n_classes)
    cams : Tensor of shape (n_images, 1 + n_levels, height, width)
        As `FitResult` has them.
    novelty : Tensor of shape (n_images, height', width') or None
    """

    logits: Tensor
    cams: Tensor
    novelty: Tensor | None

    def take(self, rows: NDArray[np.intp]) -> HeldOut:
        """Return some rows, copied."""
        chosen = torch.as_tensor(rows)
        novelty = None if self.novelty is None else self.novelty[chosen]
        return HeldOut(self.logits[chosen], self.cams[chosen], novelty)


def train_with_folds(
    training: TailTraining, folds: Sequence[Fold], novelty: Tensor | None = None
) -> FitResult:
    """Train a tail on everything, and from the same start one per fold, which scores what it lacks.

    Networks differ by a constant, and one that has seen more is surer: each network's scores and
    maps are shifted to have median 0 on the good images that it was trained on, and the final
    one's are scaled to keep good and defective training images as far apart as the folds' networks
    do. So what is learned from held-out scores holds for the final network.

    Parameters
    ----------
    training : TailTraining
        Its network ends up with the tail that was trained on everything, which is fold 0 in history
        and records; the others count from 1.
    folds : sequence of (train rows, held-out rows)
        Empty: the scores are those of the training images themselves, as they are.
    novelty : Tensor of shape (n_images, height, width), optional
        Held-out maps, as `add_codebook` returns them: a head that pools by novelty scores held-out
        images by these, since the cache's are from a codebook that has seen them.
    """
    network, cache = training.network, training.cache
    everything = np.arange(cache.n_images)
    if not folds:  # as a plain training loop leaves it, which the published recipe has to be
        training.run(everything, fold=0)
        scores = training.scores(everything)
        return _result(training, scores.logits, scores.centred_cams(everything), scores)
    start = copy_tail(network)
    training.run_and_measure(everything, fold=0)
    final = copy_tail(network)
    tails: list[TailState] = []
    biases: list[Tensor] = []
    distances: list[float] = []
    held_out: list[tuple[NDArray[np.intp], Tensor, Tensor]] = []
    for fold, (train_rows, held_out_rows) in enumerate(folds):
        if training.interrupted:
            break
        load_tail(network, start)
        try:
            training.run_and_measure(train_rows, fold=1 + fold)
        except KeyboardInterrupt:
            training.interrupted = True
        if training.interrupted:
            break
        tails.append(copy_tail(network))
        with _novelty_of(cache, held_out_rows, novelty):
            scores = training.centre_scores(train_rows)
        biases.append(network.head.bias.detach().clone())
        distances.append(scores.class_distance)
        held_out.append(
            (held_out_rows, scores.logits[held_out_rows], scores.centred_cams(held_out_rows))
        )
    load_tail(network, final)
    network.eval()
    scores = training.centre_scores(everything)
    if len(tails) < len(folds):  # an interrupt left rows that no tail has scored
        return _result(training, scores.logits, scores.centred_cams(everything), scores)
    if all(distance > 0 for distance in (scores.class_distance, *distances)):  # all have learned
        scores = training.keep_apart(scores, float(np.mean(distances)))
    rows, all_logits, all_cams = zip(*held_out, strict=True)
    order = np.argsort(np.concatenate(rows))
    result = _result(training, torch.cat(all_logits)[order], torch.cat(all_cams)[order], scores)
    return result._replace(tails=tuple(tails), biases=tuple(biases))


@contextlib.contextmanager
def _novelty_of(cache: FeatureCache, rows: NDArray[np.intp], maps: Tensor | None) -> Iterator[None]:
    """Let the cache have other novelty maps of some rows for a while."""
    usual = cache.novelty
    if usual is not None and maps is not None:
        places = torch.as_tensor(rows)
        cache.novelty = usual.index_copy(0, places.to(usual.device), maps[places].to(usual.device))
    try:
        yield
    finally:
        cache.novelty = usual


def _result(training: TailTraining, logits: Tensor, cams: Tensor, final: CachedScores) -> FitResult:
    """Sum up the fit: the training images' scores and maps, and the final network's."""
    return FitResult(logits, cams, final.typical_cams, training.history, training.interrupted)


def judge_then_train(
    training: TailTraining, known: HeldOut | None, novelty: Tensor | None = None
) -> FitResult:
    """Judge new images with the present network, then train it on all (test, then train).

    As in `train_with_folds`, scores and maps are shifted to have median 0 on the good images that
    the network that judged was trained on, and the network is scaled to keep good and defective
    training images as far apart as it did before. So what earlier networks have said about
    remembered images goes on being comparable.

    Parameters
    ----------
    training : TailTraining
        Its network has learned from the last images of its cache and from none of the others.
    known : HeldOut or None
        What was said of the last images when they were new; None: all are new.
    novelty : Tensor of shape (n_images, height, width), optional
        As `update_codebook` returns it: new images are judged by the maps of the present codebook.

    References
    ----------
    Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms", Machine Learning
    90, 2013: prequential evaluation.
    """
    everything = np.arange(training.cache.n_images)
    n_new = len(everything) - (0 if known is None else len(known.logits))
    new, learned = everything[:n_new], everything[n_new:]
    with _novelty_of(training.cache, new, novelty):
        before = training.scores(learned if training.has_good(learned) else everything)
    logits, cams = before.logits[new].clone(), before.centred_cams(new)
    logits[:, training.good] += before.typical_margin
    if known is not None:
        logits, cams = torch.cat((logits, known.logits)), torch.cat((cams, known.cams))
    training.run_and_measure(everything, fold=0)
    scores = training.centre_scores(everything)
    if before.class_distance > 0 and scores.class_distance > 0:  # else one class may be missing
        scores = training.keep_apart(scores, before.class_distance)
    return _result(training, logits, cams, scores)


def held_out_networks(
    network: DefectCAMNetwork, result: FitResult, codebooks: Sequence[Codebook]
) -> Iterator[DefectCAMNetwork]:
    """Make the network of each fold again, one after the other: what it says is held out.

    Parameters
    ----------
    network : DefectCAMNetwork
        The final one, which is left as it is.
    result : FitResult
        Without tails, of good images alone, only the codebooks differ.
    codebooks : sequence of Codebook
        Of the folds; empty where there is no novelty.
    """
    for fold in range(max(len(result.tails), len(codebooks))):
        other = _copy_beside_trunk(network)
        if result.tails:
            load_tail(other, result.tails[fold])
            with torch.no_grad():
                other.head.bias.copy_(result.biases[fold])
        if codebooks:
            other.codebook = codebooks[fold]
        yield other.eval()


def _copy_beside_trunk(network: DefectCAMNetwork) -> DefectCAMNetwork:
    """Copy a network but for its trunk, which no training changes: both have the same."""
    return copy.deepcopy(network, {id(network.trunk): network.trunk})


def result_of_good_only(network: DefectCAMNetwork, cache: FeatureCache) -> FitResult:
    """Sum up a fit to good images alone, which trains nothing: the evidence is zero everywhere."""
    network.head.scale_(0.0)
    logits, levels = predict_cached(network, cache, np.arange(1))
    _, n_levels, _, height, width = levels.shape
    n = cache.n_images
    history: History = {name: [] for name in HISTORY_COLUMNS}
    return FitResult(
        logits.expand(n, -1),
        levels.new_zeros(1, 1 + n_levels, height, width).expand(n, -1, -1, -1),
        (0.0,) * (1 + n_levels),
        history,
        interrupted=False,
    )


def good_patches(cache: FeatureCache, good_rows: NDArray[np.intp], seed: int) -> NDArray[Any]:
    """Draw a bounded sample of the cached patches of good images, shape (n, n_channels)."""
    assert cache.patches is not None
    per_image = -(-MAX_CODEBOOK_PATCHES // len(good_rows))
    rng = np.random.RandomState(seed)
    n_positions = cache.patches.shape[2] * cache.patches.shape[3]
    sample = []
    for row in good_rows:
        patches = cache.patches_batch(torch.tensor([row]))[0].flatten(1).T.cpu()
        chosen = rng.choice(n_positions, min(per_image, n_positions), replace=False)
        sample.append(patches[torch.as_tensor(chosen)].numpy())
    return np.concatenate(sample)


@torch.no_grad()
def novelty_of_cached(
    codebook: Codebook, cache: FeatureCache, rows: NDArray[np.intp] | None = None
) -> Tensor:
    """Novelty maps of cached images, all by default, shape ``(n, height, width)``, on the CPU."""
    chosen = torch.arange(cache.n_images) if rows is None else torch.as_tensor(rows)
    return torch.cat(
        [codebook(cache.patches_batch(batch)).cpu() for batch in chosen.split(CACHE_BATCH)]
    )


def add_codebook(
    network: DefectCAMNetwork,
    cache: FeatureCache,
    is_good: NDArray[np.bool_],
    folds: Sequence[Fold],
    n_centres: int,
    seed: int,
    make_codebook: MakeCodebook = Codebook.fit,
) -> tuple[Tensor, list[Codebook]]:
    """Give the network its codebook and the cache its novelty maps.

    The cached patches are forgotten, unless students will read them. A codebook that the network
    has is updated.

    Parameters
    ----------
    network : DefectCAMNetwork
    cache : FeatureCache
    is_good : ndarray of shape (n_images,), bool
    folds : sequence of (train rows, held-out rows)
    n_centres : int
    seed : int
    make_codebook : callable, optional
        From patches, their number of centres and the seed to a codebook.

    Returns
    -------
    maps : Tensor of shape (n_images, height, width)
        Novelty maps of the training images, each from a codebook that has not seen the image's fold
        (where there are folds): images that a codebook was made of look less novel than others.
    codebooks : list of Codebook
        Of the folds.
    """
    before = network.codebook
    make = make_codebook if before is None else partial(Codebook.fit, start=before)
    patches = good_patches(cache, np.flatnonzero(is_good), seed)
    network.codebook = make(patches, n_centres, seed).to(cache.device)
    cache.novelty = novelty_of_cached(network.codebook, cache)
    maps = cache.novelty.clone()
    codebooks = []
    for train_rows, held_out_rows in folds:
        patches = good_patches(cache, train_rows[is_good[train_rows]], seed)
        codebook = make_codebook(patches, n_centres, seed).to(cache.device)
        if len(held_out_rows):
            maps[torch.as_tensor(held_out_rows)] = novelty_of_cached(codebook, cache, held_out_rows)
        codebooks.append(codebook)
    if not network.students_read_patches:
        cache.patches = None
    return maps, codebooks


def update_codebook(
    network: DefectCAMNetwork,
    cache: FeatureCache,
    is_good: NDArray[np.bool_],
    known: HeldOut | None,
    n_centres: int,
    seed: int,
) -> tuple[Tensor, list[Codebook]]:
    """Do as `add_codebook` where new images are held out by being judged first.

    Parameters
    ----------
    known : HeldOut or None
        As `judge_then_train` takes it.

    Returns
    -------
    maps : Tensor of shape (n_images, height, width)
        Novelty maps, of new images from the codebook as it was.
    codebooks : list of Codebook
        It alone.
    """
    before = network.codebook
    assert before is not None
    n_new = cache.n_images - (0 if known is None else len(known.logits))
    maps = novelty_of_cached(before, cache, np.arange(n_new))
    if known is not None and known.novelty is not None:
        maps = torch.cat((maps, known.novelty))
    add_codebook(network, cache, is_good, (), n_centres, seed)
    return maps, [before]


def student_features_of(
    network: DefectCAMNetwork,
    cache: FeatureCache,
    folds: Sequence[Fold] = (),
    tails: Sequence[TailState] = (),
) -> FeaturesOf:
    """Make the function from rows of the cache to what students read of them (first view).

    A tail's features are tidier on images that it was trained on than they will be on others. So
    where there are tails of folds, each row's features come from the one that has not seen it: all
    start from the same weights, and what a channel means has not drifted apart in so few epochs.
    """
    if not tails:
        return partial(_student_features, network, cache)
    others = [_copy_beside_trunk(network) for _ in tails]
    fold_of = torch.zeros(cache.n_images, dtype=torch.int64)
    for fold, (other, tail) in enumerate(zip(others, tails, strict=True)):
        load_tail(other, tail)
        fold_of[torch.as_tensor(folds[fold][1])] = fold

    def features_of(rows: Tensor) -> list[Tensor]:
        places = [(fold_of[rows] == fold).nonzero()[:, 0] for fold in range(len(others))]
        order = torch.cat(places)
        features = [
            _student_features(other, cache, rows[place])
            for other, place in zip(others, places, strict=True)
            if len(place)
        ]
        return [torch.cat(level)[order.argsort()] for level in zip(*features, strict=True)]

    return features_of


@torch.inference_mode()
def _student_features(network: DefectCAMNetwork, cache: FeatureCache, rows: Tensor) -> list[Tensor]:
    deep = cache.batch(rows, torch.zeros_like(rows))
    patches = cache.patches_batch(rows) if network.students_read_patches else None
    return network.student_features(deep, network.level_features(deep), patches)
