"""Large images in tiles: training on tiles of weakly labelled images.

Owns the order of the steps, and which tiles of a training image are learned from. It knows the
classifier, which is fitted to them; localising in tiles is `tiled_inference`'s matter, and what the
scores of tiles say of the image `tile_model`'s.

The label of a large image says little about one of its tiles: those of a good image are good, but
of a defective one nearly all are good too, and which are not, nobody has said. Learned from are,
of each good image, tiles chosen at random and those that look most novel, to learn what harmless
oddities look like; of each defective image the tiles, up to four, that look more novel than any
tile of a good image. Where there are none, the four most novel ones are taken for defective: the
defect is probably in one of them, and the others are like tiles that good images teach as good.
Novelty is measured against a codebook that has seen nothing of the image.

Where novelty could not tell, what was learned can: tiles are chosen a second time by the score of
the network of the fold that has not seen the image, and learned from anew.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm.auto import tqdm

from defectcam.architecture import build_network
from defectcam.calibration import choose_threshold
from defectcam.callbacks import time_limits, train_begins, train_ends
from defectcam.checkpoints import FitCheckpoint
from defectcam.classifier import DefectCAMClassifier
from defectcam.cross_fitting import held_out_networks
from defectcam.diagnostics import rank_suspects, warn_if_chance
from defectcam.fingerprint import fingerprint_of_rows
from defectcam.incremental import Trained, first_classes
from defectcam.isolation import isolated
from defectcam.labels import as_labels
from defectcam.large_images import read_tiles
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import MAX_CODEBOOK_PATCHES, Codebook, novelty_peak
from defectcam.precision import resolve_device
from defectcam.prediction import Predictor
from defectcam.sample_weights import relative_weights, weigh_rows
from defectcam.sources import labelled_sources
from defectcam.temporary_maps import temporary_map
from defectcam.tile_model import fit_tile_model
from defectcam.tiled_inference import (
    Worst,
    batch_of,
    cells_of,
    judged_tiles,
    refuse_padding,
    rows_of,
    tiles_of,
)
from defectcam.tiles import TileGrid, as_overlap, as_tile, choose_tile

__all__ = ["fit_on_tiles"]

#: Tiles of good images that are learned from, all together; and per image, at least and at most.
GOOD_TILES = 400
GOOD_TILES_PER_IMAGE = (4, 32)

#: Share of them that are the most novel ones, the others are random.
HARD_SHARE = 0.5

#: Most tiles of a defective image that are learned from.
DEFECT_TILES_PER_IMAGE = 4

#: Tiles per good image that the codebooks for choosing are made of.
CODEBOOK_TILES_PER_IMAGE = 12


class _Chosen(NamedTuple):
    """Tiles that are learned from."""

    image: int  # index among the given images
    number: int  # in the order of its grid


#: From an image's height and width to its tiles.
_GridOf = Callable[[tuple[int, int]], TileGrid]

#: A score per tile, of each training image that is used.
_OfTiles = list[NDArray[np.float64]]


class _TrainingImages(NamedTuple):
    """Training images that are used, by their index among those given."""

    items: list[Any]
    labels: NDArray[Any]
    used: NDArray[np.intp]
    is_defect: NDArray[np.bool_]  # of each used one
    weights: NDArray[np.float64]  # likewise


class _Learned(NamedTuple):
    """What the chosen tiles have taught."""

    clf: DefectCAMClassifier  # a copy of the given one, which stays as it was
    tile: tuple[int, int]
    trained: Trained
    held_out: list[NDArray[np.intp]]  # index of the image of each held-out tile, for each fold


def fit_on_tiles(
    clf: DefectCAMClassifier,
    X: Any,
    y: Any,
    sample_weight: ArrayLike | None = None,
    checkpoint: FitCheckpoint | None = None,
) -> DefectCAMClassifier:
    """Do what `DefectCAMClassifier.fit` says, on tiles of the images.

    The tiles of an image go into one fold. After training, all tiles of all training images, also
    those that were not learned from, are scored by the network of the fold that has not seen the
    image; `tile_model` learns from them what the worst tile of an image means.

    Whatever is raised before all this is done, the classifier stays as it was.
    """
    clf._check_parameters()
    images = _training_images(clf, X, y, sample_weight)
    tile = _tile_of_training(clf, images)
    as_overlap(clf.overlap, tile)  # refuse a wrong one early
    seed = clf._seed(checkpoint)  # the tiles that are chosen depend on it
    hashes, labels = clf._hashes(images.items, images.used), images.labels[images.used]
    if checkpoint is not None:
        clf._begin(checkpoint, seed, hashes, images.weights, labels)
    train_begins(clf.callbacks, clf)
    if checkpoint is not None and checkpoint.choice is not None:
        grids, chosen = _chosen_before(clf, images, tile, checkpoint.choice)
    else:
        grids, chosen = _choose(clf, images, tile, sample_weight, seed)
    if checkpoint is not None:
        checkpoint.choice = _as_choice(images, grids, chosen)
    learned = _learn(clf, images, grids, chosen, sample_weight, seed, checkpoint)
    _calibrate(images, learned)
    data = fingerprint_of_rows(hashes, labels, images.used)
    clf.__dict__.update(vars(learned.clf), training_data_=data)
    train_ends(clf.callbacks, clf)
    return clf


def _choose(
    clf: DefectCAMClassifier,
    images: _TrainingImages,
    tile: tuple[int, int],
    sample_weight: ArrayLike | None,
    seed: int,
) -> tuple[_GridOf, list[_Chosen]]:
    """Choose tiles by their novelty, and where that cannot tell by what those have taught."""
    # The map, whose cells are not known yet, moves tiles by less than one of them.
    grids = _grids(clf, tile, tile)
    with isolated(seed, resolve_device(clf.device)):
        novelty = _novelty(clf, images, grids, seed)
        chosen = _choose_tiles(novelty, images, seed)
    if clf.cv is not None and not _tells(novelty, images):
        return _choose_again(clf, images, grids, chosen, sample_weight, seed)
    return grids, chosen


def _as_choice(images: _TrainingImages, grid_of: _GridOf, chosen: list[_Chosen]) -> dict[str, Any]:
    """Turn a choice into what a checkpoint keeps; images by their place among those used."""
    places = np.searchsorted(images.used, [one.image for one in chosen]).tolist()
    numbers = [one.number for one in chosen]
    return {"cells": list(grid_of((1, 1)).cells), "images": places, "numbers": numbers}


def _chosen_before(
    clf: DefectCAMClassifier,
    images: _TrainingImages,
    tile: tuple[int, int],
    choice: dict[str, Any],
) -> tuple[_GridOf, list[_Chosen]]:
    """Turn back what `_as_choice` has made."""
    rows, columns = choice["cells"]
    indices = images.used[choice["images"]].tolist()
    chosen = [_Chosen(*one) for one in zip(indices, choice["numbers"], strict=True)]
    return _grids(clf, tile, (rows, columns)), chosen


def _choose_again(
    clf: DefectCAMClassifier,
    images: _TrainingImages,
    grid_of: _GridOf,
    chosen: list[_Chosen],
    sample_weight: ArrayLike | None,
    seed: int,
) -> tuple[_GridOf, list[_Chosen]]:
    """Learn from tiles once, to choose better ones; return their grids too.

    Of callbacks only time limits hear of it, for which it counts. An interrupt, for which there is
    no network yet that should be kept, goes on.

    References
    ----------
    Andrews, Tsochantaridis and Hofmann, "Support vector machines for multiple-instance learning",
    NIPS 2002 (mi-SVM): choose instances and learn from them in turn.
    """
    parameters = {**clf.get_params(deep=False), "callbacks": time_limits(clf.callbacks)}
    first = type(clf)(**parameters)  # `clone` would copy callbacks, and some cannot be
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second time says it again
        learned = _learn(first, images, grid_of, chosen, sample_weight, seed)
    if learned.trained.result.interrupted:
        raise KeyboardInterrupt
    if not learned.held_out:  # what was chosen scores highest because it was
        return grid_of, chosen
    scores, _ = _judge(images, learned)
    grid_of = _grids(clf, learned.tile, cells_of(learned.clf._predictor))
    return grid_of, _choose_tiles(scores, images, seed)


def _learn(
    clf: DefectCAMClassifier,
    images: _TrainingImages,
    grid_of: _GridOf,
    chosen: list[_Chosen],
    sample_weight: ArrayLike | None,
    seed: int,
    checkpoint: FitCheckpoint | None = None,
) -> _Learned:
    """Fit a copy of a classifier to tiles; those of an image are in one fold."""
    tile = grid_of((1, 1)).tile
    image_of = np.array([one.image for one in chosen])
    weights = None if sample_weight is None else np.asarray(sample_weight)[image_of]
    fitted, taught = clf._fitted(
        list(_cut(images, grid_of, chosen, tile)),
        images.labels[image_of],
        weights,
        classes=None,
        n_kept=0,
        images=image_of,
        seed=seed,
        checkpoint=checkpoint,
    )
    rows = weigh_rows(weights, len(chosen)).rows
    held_out = [image_of[rows[fold]] for _, fold in taught.folds]
    return _Learned(fitted, tile, taught.trained, held_out)


def _training_images(
    clf: DefectCAMClassifier, X: Any, y: Any, sample_weight: ArrayLike | None
) -> _TrainingImages:
    sources, given = labelled_sources(X, y, clf.good_label)
    labels = as_labels(given)
    weighed = weigh_rows(sample_weight, len(labels))
    used, counts = np.unique(weighed.rows, return_counts=True)
    weights = counts.astype(np.float64)
    if len(used) == len(weighed.rows):
        weights = relative_weights(weighed.weights)  # of whole numbers, all are 1
    classes = first_classes(labels[weighed.rows], None, clf.target, clf.good_label)
    is_defect = classes.encode(labels[used]) != classes.good
    return _TrainingImages(sources.items, labels, used, is_defect, weights)


def _tile_of_training(clf: DefectCAMClassifier, images: _TrainingImages) -> tuple[int, int]:
    if clf.tile != "auto":
        return as_tile(clf.tile)
    sizes = []
    for index in images.used.tolist():
        with rows_of(index, images.items[index]) as rows:
            sizes.append(rows.size)
    height, width = np.broadcast_to(np.asarray(clf.image_size), 2).tolist()
    largest = max(sizes, key=lambda size: size[0] * size[1])
    return choose_tile(largest, (height, width), clf.overlap)


def _grids(clf: DefectCAMClassifier, tile: tuple[int, int], cells: tuple[int, int]) -> _GridOf:
    """Make the function from an image's size to its tiles."""
    overlap = as_overlap(clf.overlap, tile)
    return lambda size: TileGrid(size, tile, overlap, cells)


def _novelty(
    clf: DefectCAMClassifier,
    images: _TrainingImages,
    grid_of: _GridOf,
    seed: int,
) -> _OfTiles:
    """Novelty of all tiles, against codebooks that have not seen the image."""
    network, preprocess = build_network(clf.get_params(deep=False), 2, 0)
    refuse_padding(preprocess, grid_of((1, 1)).tile)
    if not network.novelty_levels:
        raise ValueError(
            "tile needs novelty, to find the tiles of defective images that show the defect: use "
            "heatmap='fused' with novelty_strides=(4, 8), or pooling='novelty_top_k'."
        )
    rng = np.random.RandomState(seed)
    good = images.used[~images.is_defect]
    scan = _Scan(clf, network, preprocess, images, grid_of)
    halves = [half for half in (good[0::2], good[1::2]) if len(half)]
    codebooks = [scan.codebook(half.tolist(), clf.codebook_size, rng) for half in halves]
    novelty = []
    with tqdm(total=len(images.used), desc="tiles", unit="image", disable=not clf.verbose) as bar:
        for index in images.used.tolist():
            unseen = [
                codebook
                for half, codebook in zip(halves, codebooks, strict=True)
                if index not in half or len(halves) == 1
            ]
            novelty.append(scan.novelty(index, unseen))
            bar.update()
    return novelty


def _limit(scores: _OfTiles, images: _TrainingImages) -> float:
    """Highest score of a good image's tile."""
    pairs = zip(scores, images.is_defect, strict=True)
    return max(float(own.max()) for own, is_defect in pairs if not is_defect)


def _tells(scores: _OfTiles, images: _TrainingImages) -> bool:
    """Whether in each defective image a tile scores higher than any of a good one."""
    limit = _limit(scores, images)
    pairs = zip(scores, images.is_defect, strict=True)
    return all(float(own.max()) > limit for own, is_defect in pairs if is_defect)


def _choose_tiles(scores: _OfTiles, images: _TrainingImages, seed: int) -> list[_Chosen]:
    """Choose the tiles that are learned from."""
    rng = np.random.RandomState(seed)
    limit, n_good = _limit(scores, images), int((~images.is_defect).sum())
    per_good = int(np.clip(GOOD_TILES // n_good, *GOOD_TILES_PER_IMAGE))
    chosen = []
    for index, is_defect, own in zip(images.used.tolist(), images.is_defect, scores, strict=True):
        numbers = _defect_tiles(own, limit) if is_defect else _good_tiles(own, per_good, rng)
        chosen += [_Chosen(index, int(number)) for number in sorted(numbers)]
    return chosen


def _defect_tiles(novelty: NDArray[np.float64], limit: float) -> list[int]:
    """Choose the most novel tiles: those above the limit, or more where novelty cannot tell."""
    n = int((novelty > limit).sum())
    if n == 0:  # the defect is probably among some; what they share with good tiles is unlearned
        n = max(1, len(novelty) // 4)
    order = np.argsort(-novelty, kind="stable")
    return order[: min(n, DEFECT_TILES_PER_IMAGE)].tolist()


def _good_tiles(novelty: NDArray[np.float64], n: int, rng: np.random.RandomState) -> list[int]:
    """Choose the most novel tiles, and others at random."""
    n = min(n, len(novelty))
    order = np.argsort(-novelty, kind="stable")
    n_hard = round(HARD_SHARE * n)
    others = rng.choice(order[n_hard:], n - n_hard, replace=False)
    return [*order[:n_hard].tolist(), *others.tolist()]


class _Scan:
    """Runs the frozen trunk over training images to see how novel their tiles are."""

    def __init__(
        self,
        clf: DefectCAMClassifier,
        network: DefectCAMNetwork,
        preprocess: Any,
        images: _TrainingImages,
        grid_of: _GridOf,
    ) -> None:
        self.clf, self.network, self.preprocess = clf, network, preprocess
        self.images, self.grid_of = images, grid_of

    def codebook(self, indices: list[int], n_centres: int, rng: np.random.RandomState) -> Codebook:
        """Make a codebook of random tiles of good images."""
        per_tile = -(-MAX_CODEBOOK_PATCHES // (len(indices) * CODEBOOK_TILES_PER_IMAGE))
        sample = []
        for index in indices:
            item = self.images.items[index]
            with rows_of(index, item) as rows:
                grid = self.grid_of(rows.size)
                n = min(CODEBOOK_TILES_PER_IMAGE, grid.n_tiles)
                places = sorted(rng.choice(grid.n_tiles, n, replace=False).tolist())
                boxes = [grid.box(*divmod(place, grid.n_columns)) for place in places]
                tiles = (next(read_tiles(rows, [box])) for box in boxes)
                for patches in self._patches(tiles):
                    flat = patches.flatten(2).transpose(1, 2).cpu().numpy()
                    for one in flat:
                        some = rng.choice(len(one), min(per_tile, len(one)), replace=False)
                        sample.append(one[some])
        device = next(self.network.parameters()).device
        return Codebook.fit(np.concatenate(sample), n_centres, 0).to(device)

    def novelty(self, index: int, codebooks: list[Codebook]) -> NDArray[np.float64]:
        """Return the peak of novelty of each tile, the mean over the codebooks."""
        item = self.images.items[index]
        peaks = []
        with rows_of(index, item) as rows:
            grid = self.grid_of(rows.size)
            for patches in self._patches(tiles_of(rows, grid)):
                with torch.inference_mode():
                    maps = torch.stack([codebook(patches) for codebook in codebooks]).mean(0)
                    peaks.append(novelty_peak(maps).double().cpu().numpy())
        return np.concatenate(peaks)

    def _patches(self, tiles: Iterable[NDArray[np.uint8]]) -> Iterator[Tensor]:
        for pixels, _ in self.clf._batches(tiles, self.preprocess):
            with torch.inference_mode():
                patches = self.network.trunk_features(pixels).patches
            assert patches is not None
            yield patches


def _cut(
    images: _TrainingImages,
    grid_of: _GridOf,
    chosen: list[_Chosen],
    tile: tuple[int, int],
) -> NDArray[np.uint8]:
    """Cut the chosen tiles into a temporary file, which memory need not hold."""
    shape = (len(chosen), *tile, 3)
    file = temporary_map(math.prod(shape), what="The file of tiles", remedy="take smaller tiles")
    tiles = np.frombuffer(file, dtype=np.uint8).reshape(shape)
    for index in dict.fromkeys(one.image for one in chosen):
        item = images.items[index]
        with rows_of(index, item) as rows:
            grid = grid_of(rows.size)
            for place, one in enumerate(chosen):
                if one.image == index:
                    box = grid.box(*divmod(one.number, grid.n_columns))
                    tiles[place] = next(read_tiles(rows, [box]))
    return tiles


def _judge(images: _TrainingImages, learned: _Learned) -> tuple[_OfTiles, list[Tensor]]:
    """Log-odds of all tiles, each held out, and the scores per class of each image's worst tile.

    Without folds all networks are the final one. It has seen few of the tiles.
    """
    clf = learned.clf
    predictor = clf._predictor
    grid_of = _grids(clf, learned.tile, cells_of(predictor))
    predictors: dict[int, Predictor] = {}
    networks = held_out_networks(clf.network_, learned.trained.result, learned.trained.codebooks)
    for tested, network in zip(learned.held_out, networks, strict=False):
        predictors |= dict.fromkeys(tested.tolist(), predictor._replace(network=network))
    log_odds, logits = [], []
    with tqdm(
        total=len(images.used), desc="held-out tiles", unit="image", disable=not clf.verbose
    ) as bar:
        for index in images.used.tolist():
            unseen = predictors.get(index, predictor)
            scores, worst = _scores(unseen, images.items[index], index, grid_of)
            log_odds.append(scores)
            logits.append(worst.logits)
            bar.update()
    return log_odds, logits


def _calibrate(images: _TrainingImages, learned: _Learned) -> None:
    """Learn the image's probability and threshold from all tiles, each held out."""
    clf, tile = learned.clf, learned.tile
    log_odds, logits = _judge(images, learned)
    overlap = as_overlap(clf.overlap, tile)
    model, of_images = fit_tile_model(tile, overlap, log_odds, images.is_defect, images.weights)
    judge, batch = clf._predictor.judge, batch_of(torch.stack(logits), of_images)
    probability = judge.defect_probabilities(batch)
    is_half = clf.threshold == "balanced" and not images.is_defect.any()
    clf.threshold_ = choose_threshold(
        0.5 if is_half else clf.threshold, images.is_defect, probability, images.weights
    )
    clf._tile_model = model
    clf.drift_reference_ = np.empty((0, 0), dtype=np.float32)  # of tiles, which nobody asks about
    clf._drift_codebooks = []
    clf.n_images_seen_ = clf._n_rows_seen = len(images.used)
    clf.held_out_probability_ = np.full(len(images.items), np.nan)
    clf.held_out_probability_[images.used] = probability
    targets = judge.classes.encode(images.labels[images.used])
    own = np.take_along_axis(judge.probabilities(batch), targets[:, None], 1)[:, 0]
    clf.suspects_ = images.used[rank_suspects(own)].astype(np.int64)
    is_held_out = bool(learned.held_out) and not learned.trained.result.interrupted
    if is_held_out and images.is_defect.any():
        warn_if_chance(images.is_defect, probability)


def _scores(
    predictor: Predictor,
    item: Any,
    index: int,
    grid_of: _GridOf,
) -> tuple[NDArray[np.float64], Worst]:
    """Log-odds of a defect in each tile of an image, as the network judges tiles."""
    found, worst = [], Worst()
    with rows_of(index, item) as rows:
        for _, batch in judged_tiles(predictor, rows, grid_of(rows.size)):
            found.append(predictor.judge.log_odds(batch))
            worst.look_at(found[-1], batch)
    return np.concatenate(found), worst
