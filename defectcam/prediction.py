"""What a fitted classifier says of images: scores, maps, and localisations of whole images.

Owns the way from images to answers, a batch at a time. It learns nothing, and what scores and maps
mean is `judging`'s and `heat_model`'s matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectcam.attribution import BOX_THRESHOLD, attribution_maps
from defectcam.feature_filling import preprocessed_batches
from defectcam.geometry import Geometry
from defectcam.heat_model import HeatModel
from defectcam.inference import ScoredImages, described, evaluating, scored
from defectcam.judging import Judge
from defectcam.network import DefectCAMNetwork, Description
from defectcam.preprocess import Preprocess, seen_again
from defectcam.results import Localization
from defectcam.second_look import join_looks
from defectcam.views import original_of, placed

__all__ = ["Predictor"]


class Predictor(NamedTuple):
    """Judges images and localises defects with what a classifier has learned.

    Attributes
    ----------
    network : DefectCAMNetwork
    preprocess : Preprocess
    judge : Judge
        From scores to answers.
    heat_model : HeatModel
        From evidence, novelty and students to the map.
    settings : dict
        What all results have in common, by the names of `Localization`'s fields.
    batch_size : int
    n_jobs : int or None
        Threads that read images.
    """

    network: DefectCAMNetwork
    preprocess: Preprocess
    judge: Judge
    heat_model: HeatModel
    settings: dict[str, Any]
    batch_size: int
    n_jobs: int | None

    @property
    def defect_types(self) -> list[Any] | None:
        """Labels of the defect classes where there are several."""
        classes = self.judge.classes
        return classes.labels[classes.defects].tolist() if len(classes.defects) > 1 else None

    def batches(self, items: Iterable[Any]) -> Iterator[tuple[Tensor, list[Geometry]]]:
        """Preprocess images."""
        for pixels, geometries, _ in preprocessed_batches(
            items, self.preprocess, self.batch_size, n_workers=self.n_jobs
        ):
            yield pixels, geometries

    def forward(self, items: Iterable[Any]) -> Iterator[ScoredImages]:
        """Run the network over images."""
        return scored(self.network, self.batches(items))

    def described(self, items: Iterable[Any]) -> Iterator[tuple[ScoredImages, Description]]:
        """Run the network over images and hand out its features too."""
        return described(self.network, self.batches(items))

    def grids(self, batch: ScoredImages) -> Tensor:
        """Return maps on the network's grid, shape ``(n, height, width)``."""
        return self.heat_model.grids(batch.levels, batch.novelty, batch.students)

    def localize(
        self, batch: ScoredImages, items: Sequence[Any], second_size: tuple[int, int] | None = None
    ) -> Iterator[Localization]:
        """Say where the defects are in a batch of whole images.

        Parameters
        ----------
        batch : ScoredImages
        items : sequence
            The images, as they were given.
        second_size : (int, int) or None
            At what height and width defective ones are seen again; None: they are not.
        """
        labels, types = self.judge.labels(batch), self.defect_types
        probabilities = self.judge.defect_probabilities(batch)
        defect_types = self.judge.defect_types(batch)
        is_defect = labels != self.judge.classes.good_label
        firsts = self.grids(batch).numpy()
        grids, rows = list(firsts), np.flatnonzero(is_defect)
        if second_size is not None and len(rows):
            for row, second in zip(rows, self._second_grids(batch, rows, second_size), strict=True):
                grids[row] = join_looks(firsts[row], second)
        spread = self.settings["point_spread"]  # in cells of the first look
        type_grids = None if types is None else self.heat_model.type_grids(batch.levels).numpy()
        unfamiliar = self.judge.is_unfamiliar(batch)
        for i, item in enumerate(items):
            yield Localization(
                label=labels[i],
                probability=probabilities[i],
                is_defect=is_defect[i],
                grid=grids[i],
                geometry=placed(batch.geometries[i], item),
                **self.settings | {"point_spread": spread * grids[i].shape[0] / firsts.shape[1]},
                source=original_of(item),
                defect_label=defect_types[i],
                type_grids=None if type_grids is None else type_grids[i],
                defect_labels=types,
                unfamiliar=unfamiliar[i],
            )

    def _second_grids(
        self, batch: ScoredImages, rows: NDArray[np.intp], size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Look at some images of a batch again; their maps, mirrored back."""
        pixels = seen_again(batch.pixels[torch.as_tensor(rows)], size)
        again = next(scored(self.network, [(pixels, [])]))
        return self.grids(again).flip(2).numpy()

    def attribute(
        self, batch: ScoredImages, found: Iterable[Localization], method: str
    ) -> Iterator[Localization]:
        """Put another method's maps in the place of the classifier's own."""
        defects, good = self.judge.likely_defects(batch).tolist(), self.judge.classes.good
        with evaluating(self.network):
            maps = attribution_maps(self.network, batch.pixels, method, defects, good)
        for one, grid in zip(found, maps, strict=True):
            yield dataclasses.replace(
                one,
                grid=grid,
                threshold=BOX_THRESHOLD,
                peak_fraction=0.0,
                tighten=False,
                type_grids=None,  # they would explain the classifier's own map
                defect_labels=None,
            )
