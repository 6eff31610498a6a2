"""Large images in tiles: scoring and localising them in bounded memory.

Owns the way from a large image to what its tiles say of it. It knows the classifier, whose
predictor judges each tile; where tiles lie is `tiles`' matter, reading them `large_images`', and
what their scores say of the image `tile_model`'s. It learns nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from defectcam.classifier import DefectCAMClassifier
from defectcam.exceptions import warn_caller
from defectcam.images import ImageReadError
from defectcam.inference import ScoredImages
from defectcam.large_images import PixelRows, open_rows, read_tiles
from defectcam.prediction import Predictor
from defectcam.preprocess import Preprocess
from defectcam.sources import is_path
from defectcam.tile_model import TileModel, uncalibrated
from defectcam.tiled_results import TiledLocalization
from defectcam.tiles import TileGrid, as_overlap, as_tile, choose_tile
from defectcam.views import ImageView, original_of

#: Share of tiles unlike all training images from which the image is called so.
UNFAMILIAR_SHARE = 0.5


class Tiler:
    """How a classifier's images are cut; the grids it makes follow each image's size."""

    def __init__(self, clf: DefectCAMClassifier, tile: Any = None, overlap: Any = None) -> None:
        self.predictor, self.fitted = clf._predictor, clf._tile_model
        self.tile = tile
        self.overlap = clf.overlap if overlap is None else overlap
        self.fitted_overlap: tuple[int, int] | None = None  # in pixels
        if self.fitted is not None and tile is None:
            self.tile = self.fitted.tile
            self.fitted_overlap = self.fitted.overlap if overlap is None else None
        if self.tile != "auto":
            self.tile = as_tile(self.tile)
            self._overlap_of(self.tile)  # refuse a wrong one early
            refuse_padding(self.predictor.preprocess, self.tile)
        if self.predictor.heat_model.kind == "min_max_cam":
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
        self.cells = cells_of(self.predictor)

    def grid(self, size: tuple[int, int]) -> TileGrid:
        """Return the tiles of an image of this height and width."""
        tile = self.tile
        if tile == "auto":
            tile = choose_tile(size, self.predictor.preprocess.image_size, self.overlap)
        return TileGrid(size, tile, self._overlap_of(tile), self.cells)

    def model(self, grid: TileGrid) -> TileModel:
        """Return what the scores of these tiles say of the image."""
        return self.fitted or uncalibrated(grid.tile, grid.overlap)

    def _overlap_of(self, tile: tuple[int, int]) -> tuple[int, int]:
        return self.fitted_overlap or as_overlap(self.overlap, tile)


def cells_of(predictor: Predictor) -> tuple[int, int]:
    """Height and width of a tile's map, which only the network knows."""
    black = np.zeros((*predictor.preprocess.image_size, 3), dtype=np.uint8)
    maps = predictor.grids(next(predictor.forward([black])))
    return maps.shape[1], maps.shape[2]


def refuse_padding(preprocess: Preprocess, tile: tuple[int, int]) -> None:
    """Refuse tiles that the network's input could hold only with margins."""
    if preprocess.geometry(tile).content != (0, 0, *preprocess.image_size):
        raise ValueError(
            f"tile={tile}: with resize='pad' a tile must have the shape of the network's input, "
            f"{preprocess.image_size}, enlarged."
        )


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
    tiler = Tiler(clf, tile, overlap)
    for index, item in enumerate(items):
        with rows_of(index, item) as rows:
            found = _localize(tiler, rows, item)
        yield found


def score_in_tiles(clf: DefectCAMClassifier, items: Iterable[Any]) -> Iterator[ScoredImages]:
    """Score whole images by their tiles; each batch is about one image and has no maps."""
    tiler = Tiler(clf)
    for index, item in enumerate(items):
        with rows_of(index, item) as rows:
            grid = tiler.grid(rows.size)
            worst = Worst()
            for _, batch in judged_tiles(tiler.predictor, rows, grid):
                worst.look_at(tiler.predictor.judge.log_odds(batch), batch)
        log_odds = tiler.model(grid).log_odds(worst.as_array(), grid.n_tiles)
        yield batch_of(worst.logits[None], log_odds)


class Worst:
    """The most suspicious tile so far."""

    log_odds = -np.inf
    logits: Tensor

    def look_at(self, log_odds: NDArray[np.float64], batch: ScoredImages) -> None:
        """Take notice of some tiles and their log-odds."""
        index = int(log_odds.argmax())
        if log_odds[index] > self.log_odds:
            self.log_odds, self.logits = float(log_odds[index]), batch.logits[index]

    def as_array(self) -> NDArray[np.float64]:
        """Its log-odds, shape ``(1,)``."""
        return np.array([self.log_odds])


def batch_of(logits: Tensor, log_odds: NDArray[np.float64]) -> ScoredImages:
    """Sum up images that were seen in tiles, as far as labels and probabilities need it."""
    return ScoredImages(logits, torch.empty(0), None, None, [], torch.empty(0), log_odds)


def judged_tiles(
    predictor: Predictor, rows: PixelRows, grid: TileGrid
) -> Iterator[tuple[list[tuple[int, int]], ScoredImages]]:
    """Run the network over the tiles of an image; each batch with its tiles' rows and columns."""
    places = iter(grid)
    for batch in predictor.forward(tiles_of(rows, grid)):
        yield list(islice(places, len(batch.geometries))), batch


def tiles_of(rows: PixelRows, grid: TileGrid) -> Iterator[NDArray[np.uint8]]:
    """Read all tiles of an image, a row of them at a time."""
    for i in range(grid.n_rows):
        yield from read_tiles(rows, [grid.box(i, j) for j in range(grid.n_columns)])


def _localize(tiler: Tiler, rows: PixelRows, item: Any) -> TiledLocalization:
    predictor, judge, grid = tiler.predictor, tiler.predictor.judge, tiler.grid(rows.size)
    model, worst, n_unfamiliar = tiler.model(grid), Worst(), 0
    heat = np.zeros(grid.shape, dtype=np.float32)
    # In double precision, as the image's own: rounded, the worst tile could fall short of it.
    highest = np.full(grid.shape, -np.inf)
    types = predictor.defect_types
    type_heat = None if types is None else np.zeros((len(types), *grid.shape), dtype=np.float32)
    for places, batch in judged_tiles(predictor, rows, grid):
        log_odds = judge.log_odds(batch)
        worst.look_at(log_odds, batch)
        n_unfamiliar += int(judge.is_unfamiliar(batch).sum())
        maps = predictor.grids(batch).numpy()
        of_image = model.log_odds(log_odds, grid.n_tiles)
        for place, values, value in zip(places, maps, of_image, strict=True):
            grid.add(heat, *place, values)
            grid.raise_to(highest, *place, value)
        if type_heat is not None:
            type_maps = predictor.heat_model.type_grids(batch.levels)
            type_maps = F.interpolate(type_maps, size=grid.cells, mode="bilinear")
            for place, values in zip(places, type_maps.numpy(), strict=True):
                grid.add(type_heat, *place, values)
    batch = batch_of(worst.logits[None], model.log_odds(worst.as_array(), grid.n_tiles))
    probability = float(judge.defect_probabilities(batch)[0])
    label = judge.labels(batch)[0]
    return TiledLocalization(
        label=label,
        probability=probability,
        is_defect=label != judge.classes.good_label,
        grid=heat,
        geometry=grid.geometry,
        **predictor.settings,
        source=original_of(item),
        defect_label=judge.defect_types(batch)[0],
        type_grids=type_heat,
        defect_labels=types,
        unfamiliar=n_unfamiliar >= UNFAMILIAR_SHARE * grid.n_tiles,
        probability_grid=expit(highest),
        tile=grid.tile,
    )


@contextlib.contextmanager
def rows_of(index: int, source: Any) -> Iterator[PixelRows]:
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
