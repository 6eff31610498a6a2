"""Large images in tiles: training on tiles of weakly labelled images, localising in bounded memory.

Owns the order of the steps, and which tiles of a training image are learned from. It knows the
classifier, whose methods judge each tile; where tiles lie is `tiles`' matter, reading them
`large_images`', and what their scores say of the image `tile_model`'s.

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

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor
from tqdm.auto import tqdm

from defectcam.calibration import choose_threshold
from defectcam.callbacks import time_limits, train_begins, train_ends
from defectcam.checkpoints import FitCheckpoint
from defectcam.classifier import DefectCAMClassifier
from defectcam.cross_fitting import held_out_networks
from defectcam.diagnostics import rank_suspects, warn_if_chance
from defectcam.exceptions import warn_caller
from defectcam.fingerprint import fingerprint_of_rows
from defectcam.images import ImageReadError
from defectcam.incremental import Trained, first_classes
from defectcam.inference import ScoredImages
from defectcam.isolation import isolated
from defectcam.labels import as_labels
from defectcam.large_images import PixelRows, open_rows, read_tiles
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import MAX_CODEBOOK_PATCHES, Codebook, novelty_peak
from defectcam.precision import resolve_device
from defectcam.sample_weights import weigh_rows
from defectcam.sources import is_path, labelled_sources
from defectcam.tile_model import TileModel, fit_tile_model, uncalibrated
from defectcam.tiled_results import TiledLocalization
from defectcam.tiles import TileGrid, as_overlap, as_tile, choose_tile
from defectcam.views import ImageView, original_of

__all__ = ["fit_on_tiles", "localize_in_tiles", "score_in_tiles"]

#: Tiles of good images that are learned from, all together; and per image, at least and at most.
GOOD_TILES = 400
GOOD_TILES_PER_IMAGE = (4, 32)

#: Share of them that are the most novel ones, the others are random.
HARD_SHARE = 0.5

#: Most tiles of a defective image that are learned from.
DEFECT_TILES_PER_IMAGE = 4

#: Tiles per good image that the codebooks for choosing are made of.
CODEBOOK_TILES_PER_IMAGE = 12

#: Share of tiles unlike all training images from which the image is called so.
UNFAMILIAR_SHARE = 0.5


class _Tiler:
    """How a classifier's images are cut; the grids it makes follow each image's size."""

    def __init__(self, clf: DefectCAMClassifier, tile: Any = None, overlap: Any = None) -> None:
        self.clf, self.fitted = clf, clf._tile_model
        self.tile = tile
        self.overlap = clf.overlap if overlap is None else overlap
        self.fitted_overlap: tuple[int, int] | None = None  # in pixels
        if self.fitted is not None and tile is None:
            self.tile = self.fitted.tile
            self.fitted_overlap = self.fitted.overlap if overlap is None else None
        if self.tile != "auto":
            self.tile = as_tile(self.tile)
            self._check(self.tile)
        if clf._heat_model.kind == "min_max_cam":
            raise ValueError(
                "heatmap='min_max_cam' scales each tile by its own minimum and maximum, so tiles "
                "cannot be joined: use 'fused' or 'cam'."
            )
        if self.fitted is None:
            warn_caller(
                "The classifier was not fitted on tiles: the probability of an image is that of "
                "its most suspicious tile, so large good images are often called defective. Fit "
                "with tile=... to learn from large images what that tile means."
            )
        elif self.tile != self.fitted.tile:
            warn_caller(
                f"tile={tile!r}: the classifier was fitted on tiles of {self.fitted.tile} pixels, "
                "and its probabilities and map hold for those."
            )
        elif self._overlap_of(self.tile) != self.fitted.overlap:
            warn_caller(
                f"overlap={self.overlap!r}: the classifier was fitted on tiles that overlap by "
                f"{self.fitted.overlap} pixels, and its probabilities hold for those."
            )
        self.cells = _cells_of(clf)

    def grid(self, size: tuple[int, int]) -> TileGrid:
        """Return the tiles of an image of this height and width."""
        tile = self.tile
        if tile == "auto":
            tile = choose_tile(size, self.clf.image_size_, self.overlap)
        return TileGrid(size, tile, self._overlap_of(tile), self.cells)

    def model(self, grid: TileGrid) -> TileModel:
        """Return what the scores of these tiles say of the image."""
        return self.fitted or uncalibrated(grid.tile, grid.overlap)

    def _overlap_of(self, tile: tuple[int, int]) -> tuple[int, int]:
        return self.fitted_overlap or as_overlap(self.overlap, tile)

    def _check(self, tile: tuple[int, int]) -> None:
        self._overlap_of(tile)
        _refuse_padding(self.clf._preprocess, tile)


def _cells_of(clf: DefectCAMClassifier) -> tuple[int, int]:
    """Height and width of a tile's map, which only the network knows."""
    batch = next(clf._forward([np.zeros((*clf.image_size_, 3), dtype=np.uint8)]))
    maps = clf._heat_model.grids(batch.levels, batch.novelty, batch.students)
    return maps.shape[1], maps.shape[2]


def _refuse_padding(preprocess: Any, tile: tuple[int, int]) -> None:
    if preprocess.geometry(tile).content != (0, 0, *preprocess.image_size):
        raise ValueError(
            f"tile={tile}: with resize='pad' a tile must have the shape of the network's input, "
            f"{preprocess.image_size}, enlarged."
        )


# --- Prediction -------------------------------------------------------------------------------


def localize_in_tiles(
    clf: DefectCAMClassifier,
    items: Iterable[Any],
    method: str | None = None,
    tile: Any = None,
    overlap: Any = None,
) -> Iterator[TiledLocalization]:
    """Do what `DefectCAMClassifier.localize_iter` says, on tiles.

    One row of tiles is in memory at a time, of images that are read in parts; others are decoded
    whole, as `defectcam.large_images.open_rows` says.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted, on tiles or not.
    items : iterable of image sources
    method : str or None
        None or ``"cam"``.
    tile, overlap
        As `DefectCAMClassifier.localize` takes them.

    Raises
    ------
    ValueError
        If a parameter is wrong, or an image is seen through steps that crop or warp it.
    """
    if method not in (None, "cam"):
        raise ValueError(f"method={method!r} does not work on tiles: leave it out, or tile=None.")
    tiler = _Tiler(clf, tile, overlap)
    for index, item in enumerate(items):
        with _rows_of(index, item) as rows:
            found = _localize(tiler, rows, item)
        yield found


def score_in_tiles(clf: DefectCAMClassifier, items: Iterable[Any]) -> Iterator[ScoredImages]:
    """Score whole images by their tiles; each batch is about one image and has no maps."""
    tiler = _Tiler(clf)
    for index, item in enumerate(items):
        with _rows_of(index, item) as rows:
            grid = tiler.grid(rows.size)
            worst = _Worst()
            for _, batch in _judged(clf, rows, grid):
                worst.look_at(clf._judge.log_odds(batch), batch)
        log_odds = tiler.model(grid).log_odds(worst.as_array(), grid.n_tiles)
        yield _batch_of(worst.logits[None], log_odds)


class _Worst:
    """The most suspicious tile so far."""

    log_odds = -np.inf
    logits: Tensor

    def look_at(self, log_odds: NDArray[np.float64], batch: ScoredImages) -> None:
        index = int(log_odds.argmax())
        if log_odds[index] > self.log_odds:
            self.log_odds, self.logits = float(log_odds[index]), batch.logits[index]

    def as_array(self) -> NDArray[np.float64]:
        """Its log-odds, shape ``(1,)``."""
        return np.array([self.log_odds])


def _batch_of(logits: Tensor, log_odds: NDArray[np.float64]) -> ScoredImages:
    """Sum up images that were seen in tiles, as far as labels and probabilities need it."""
    return ScoredImages(logits, torch.empty(0), None, None, [], torch.empty(0), log_odds)


def _judged(
    clf: DefectCAMClassifier, rows: PixelRows, grid: TileGrid
) -> Iterator[tuple[list[tuple[int, int]], ScoredImages]]:
    """Run the network over the tiles of an image; each batch with its tiles' rows and columns."""
    places = iter(grid)
    for batch in clf._forward(_tiles_of(rows, grid)):
        yield list(islice(places, len(batch.geometries))), batch


def _tiles_of(rows: PixelRows, grid: TileGrid) -> Iterator[NDArray[np.uint8]]:
    for i in range(grid.n_rows):
        yield from read_tiles(rows, [grid.box(i, j) for j in range(grid.n_columns)])


def _localize(tiler: _Tiler, rows: PixelRows, item: Any) -> TiledLocalization:
    clf, grid = tiler.clf, tiler.grid(rows.size)
    model, worst, n_unfamiliar = tiler.model(grid), _Worst(), 0
    heat = np.zeros(grid.shape, dtype=np.float32)
    # In double precision, as the image's own: rounded, the worst tile could fall short of it.
    highest = np.full(grid.shape, -np.inf)
    types = clf.defect_labels_ if len(clf.defect_labels_) > 1 else None
    type_heat = None if types is None else np.zeros((len(types), *grid.shape), dtype=np.float32)
    for places, batch in _judged(clf, rows, grid):
        log_odds = clf._judge.log_odds(batch)
        worst.look_at(log_odds, batch)
        n_unfamiliar += int(clf._judge.is_unfamiliar(batch).sum())
        maps = clf._heat_model.grids(batch.levels, batch.novelty, batch.students).numpy()
        of_image = model.log_odds(log_odds, grid.n_tiles)
        for place, values, value in zip(places, maps, of_image, strict=True):
            grid.add(heat, *place, values)
            grid.raise_to(highest, *place, value)
        if type_heat is not None:
            type_maps = clf._heat_model.type_grids(batch.levels)
            type_maps = F.interpolate(type_maps, size=grid.cells, mode="bilinear")
            for place, values in zip(places, type_maps.numpy(), strict=True):
                grid.add(type_heat, *place, values)
    batch = _batch_of(worst.logits[None], model.log_odds(worst.as_array(), grid.n_tiles))
    probability = float(clf._judge.defect_probabilities(batch)[0])
    label = clf._judge.labels(batch)[0]
    return TiledLocalization(
        label=label,
        probability=probability,
        is_defect=label != clf.good_label_,
        grid=heat,
        geometry=grid.geometry,
        **clf._result_settings(),
        source=original_of(item),
        defect_label=clf._judge.defect_types(batch)[0],
        type_grids=type_heat,
        defect_labels=types,
        unfamiliar=n_unfamiliar >= UNFAMILIAR_SHARE * grid.n_tiles,
        probability_grid=expit(highest),
        tile=grid.tile,
    )


@contextlib.contextmanager
def _rows_of(index: int, source: Any) -> Iterator[PixelRows]:
    """Open an image to read its rows, where they are those of the original image."""
    with _named(index, source), open_rows(source) as rows:
        if isinstance(source, ImageView) and source.placements:
            raise ValueError(
                "tiles cannot follow steps that crop or warp an image: crop first, and pass arrays."
            )
        yield rows


@contextlib.contextmanager
def _named(index: int, source: Any) -> Iterator[None]:
    """Name an image that has no file name by its place, in complaints about it."""
    try:
        yield
    except ImageReadError as error:
        if is_path(source):
            raise
        raise ImageReadError(f"Image at index {index}: {error}") from error


# --- Training ---------------------------------------------------------------------------------


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
    return _grids(clf, learned.tile, _cells_of(learned.clf)), _choose_tiles(scores, images, seed)


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
    with tempfile.TemporaryDirectory(prefix="defectcam-tiles-") as folder:
        tiles = _cut(images, grid_of, chosen, tile, Path(folder))
        fitted, taught = clf._fitted(
            list(tiles),
            images.labels[image_of],
            weights,
            classes=None,
            n_kept=0,
            images=image_of,
            seed=seed,
            checkpoint=checkpoint,
        )
        del tiles  # before its file goes
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
        weights = weighed.weights
    classes = first_classes(labels[weighed.rows], None, clf.target, clf.good_label)
    is_defect = classes.encode(labels[used]) != classes.good
    return _TrainingImages(sources.items, labels, used, is_defect, weights)


def _tile_of_training(clf: DefectCAMClassifier, images: _TrainingImages) -> tuple[int, int]:
    if clf.tile != "auto":
        return as_tile(clf.tile)
    sizes = []
    for index in images.used.tolist():
        with _rows_of(index, images.items[index]) as rows:
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
    network, preprocess = clf._build_network(2, 0)
    _refuse_padding(preprocess, grid_of((1, 1)).tile)
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
            with _rows_of(index, item) as rows:
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
        with _rows_of(index, item) as rows:
            grid = self.grid_of(rows.size)
            for patches in self._patches(_tiles_of(rows, grid)):
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
    folder: Path,
) -> NDArray[np.uint8]:
    """Cut the chosen tiles into a temporary file, which memory need not hold."""
    shape = (len(chosen), *tile, 3)
    tiles = np.memmap(folder / "tiles", dtype=np.uint8, mode="w+", shape=shape)
    for index in dict.fromkeys(one.image for one in chosen):
        item = images.items[index]
        with _rows_of(index, item) as rows:
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
    grid_of = _grids(clf, learned.tile, _cells_of(clf))
    judges: dict[int, DefectCAMClassifier] = {}
    networks = held_out_networks(clf.network_, learned.trained.result, learned.trained.codebooks)
    for tested, network in zip(learned.held_out, networks, strict=False):
        judge = copy.copy(clf)
        judge.network_ = network
        judges |= dict.fromkeys(tested.tolist(), judge)
    log_odds, logits = [], []
    with tqdm(
        total=len(images.used), desc="held-out tiles", unit="image", disable=not clf.verbose
    ) as bar:
        for index in images.used.tolist():
            scores, worst = _scores(judges.get(index, clf), images.items[index], index, grid_of)
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
    batch = _batch_of(torch.stack(logits), of_images)
    probability = clf._judge.defect_probabilities(batch)
    is_half = clf.threshold == "balanced" and not images.is_defect.any()
    clf.threshold_ = choose_threshold(
        0.5 if is_half else clf.threshold, images.is_defect, probability, images.weights
    )
    clf._tile_model = model
    clf.drift_reference_ = np.empty((0, 0), dtype=np.float32)  # of tiles, which nobody asks about
    clf._drift_codebooks = []
    clf.n_images_seen_ = len(images.used)
    clf.held_out_probability_ = np.full(len(images.items), np.nan)
    clf.held_out_probability_[images.used] = probability
    targets = clf._classes.encode(images.labels[images.used])
    own = np.take_along_axis(clf._judge.probabilities(batch), targets[:, None], 1)[:, 0]
    clf.suspects_ = images.used[rank_suspects(own)].astype(np.int64)
    is_held_out = bool(learned.held_out) and not learned.trained.result.interrupted
    if is_held_out and images.is_defect.any():
        warn_if_chance(images.is_defect, probability)


def _scores(
    judge: DefectCAMClassifier,
    item: Any,
    index: int,
    grid_of: _GridOf,
) -> tuple[NDArray[np.float64], _Worst]:
    """Log-odds of a defect in each tile of an image, as the network judges tiles."""
    found, worst = [], _Worst()
    with _rows_of(index, item) as rows:
        for _, batch in _judged(judge, rows, grid_of(rows.size)):
            found.append(judge._judge.log_odds(batch))
            worst.look_at(found[-1], batch)
    return np.concatenate(found), worst
