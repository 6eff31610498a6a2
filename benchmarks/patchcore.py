"""PatchCore of anomalib (2.7) with the default backbone, as a method to compare with.

It learns from the good training images alone. Same weights, input size, preprocessing and metrics
as the default here; features of strides 8 and 16, a coreset of 1 % of the patches, the image score
and the smoothed map as anomalib gives them. What it has no rule for that uses image-level labels is
decided on the training split, good and defective images alike, without holding any out:

- an image is called defective from the score of the best balanced accuracy on those images;
- boxes are drawn, in images called defective, around regions above what 0.1 % of the pixels of the
  good training images exceed.

Its score is not a probability, so figures of calibration are left out. Needs
`pip install anomalib==2.7.0`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from protocols import GOOD
from sklearn.metrics import roc_curve
from torch import nn

from defectcam.backbones import Backbone, create_backbone
from defectcam.boxes import find_boxes
from defectcam.geometry import Geometry
from defectcam.images import read_reduced_images
from defectcam.preprocess import Preprocess

GOOD_PIXEL_QUANTILE = 0.999
PIXEL_STEP = 4  # rows and columns of the map that are looked at: it is smooth on this scale


@dataclass
class Found:
    """What PatchCore says about one image."""

    score: float
    grid: np.ndarray
    geometry: Geometry
    threshold: float
    box_threshold: float
    min_area: int
    probability: None = None

    @property
    def is_defect(self) -> bool:
        return self.score >= self.threshold

    @property
    def heatmap(self) -> np.ndarray:
        return self.geometry.restore(self.grid)

    @cached_property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.is_defect:
            return np.zeros((0, 4), np.int64), np.zeros(0, np.float32)
        return find_boxes(self.heatmap, self.box_threshold, min_area=self.min_area)

    @property
    def boxes(self) -> np.ndarray:
        return self._found[0]

    @property
    def box_scores(self) -> np.ndarray:
        return self._found[1]


class Stages(nn.Module):
    """The backbone's stages at these places, in the form of anomalib's feature extractor."""

    def __init__(self, backbone: Backbone, places: list[int]):
        super().__init__()
        self.backbone = backbone
        self.places = places

    def forward(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        self.backbone.eval()  # the model around it trains, but not this
        outputs = self.backbone(pixels)
        return {place: outputs[place] for place in self.places}


class PatchCore:
    """`fit` and `localize` as of the classifier, whose other parameters are taken and ignored."""

    def __init__(
        self,
        *,
        backbone: str = "efficientnet_lite0",
        weights: str | None = "imagenet",
        image_size: int = 320,
        strides: tuple[int, ...] = (8, 16),
        coreset: float = 0.01,
        batch_size: int = 16,
        min_area: int = 16,
        device: str = "auto",
        random_state: int = 0,
        **_: Any,
    ):
        try:
            from anomalib.models.image.patchcore.torch_model import PatchcoreModel
        except ImportError as error:
            raise ImportError(
                f"the method patchcore needs anomalib: pip install anomalib==2.7.0 ({error})"
            ) from error
        self.coreset = coreset
        self.batch_size = batch_size
        self.min_area = min_area
        self.random_state = random_state
        features = create_backbone(backbone, weights)
        self.preprocess = Preprocess(image_size, features.mean, features.std)
        places = [features.strides.index(stride) for stride in strides]
        # The model makes a network of its own by timm's name; ours takes its place.
        self.model = PatchcoreModel(places, "tf_efficientnet_lite0", pre_trained=False)
        self.model.feature_extractor = Stages(features, places)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device)
        self.preprocess.to(device)

    def fit(self, images: Any, labels: np.ndarray) -> PatchCore:
        torch.manual_seed(self.random_state)
        np.random.seed(self.random_state)  # its random projection draws from the global generator
        is_good = np.asarray(labels) == GOOD
        with torch.inference_mode():
            self.model.train()
            for pixels, _ in self._batches([images[i] for i in np.flatnonzero(is_good)]):
                self.model(pixels)  # keeps the embedding
            self.model.subsample_embedding(self.coreset)
        scores, good_pixels = [], []
        for index, (score, grid, _) in enumerate(self._scored(images)):
            scores.append(score)
            if is_good[index]:
                good_pixels.append(grid[::PIXEL_STEP, ::PIXEL_STEP].ravel())
        self.threshold = best_balanced_threshold(~is_good, np.array(scores))
        self.box_threshold = float(np.quantile(np.concatenate(good_pixels), GOOD_PIXEL_QUANTILE))
        return self

    def localize(self, images: Any) -> list[Found]:
        return [
            Found(*scored, self.threshold, self.box_threshold, self.min_area)
            for scored in self._scored(images)
        ]

    def _scored(self, images: Any) -> Iterator[tuple[float, np.ndarray, Geometry]]:
        self.model.eval()
        for pixels, geometries in self._batches(images):
            with torch.inference_mode():
                output = self.model(pixels)
            grids = output.anomaly_map[:, 0].cpu().numpy()
            yield from zip(output.pred_score.flatten().tolist(), grids, geometries, strict=True)

    def _batches(self, images: Any) -> Iterator[tuple[torch.Tensor, list[Geometry]]]:
        for start in range(0, len(images), self.batch_size):
            chosen = list(images[start : start + self.batch_size])
            read = list(read_reduced_images(chosen, self.preprocess.image_size))
            sizes = [size for _, size in read]
            pixels = self.preprocess.batch([image for image, _ in read], sizes)
            yield pixels, [self.preprocess.geometry(size) for size in sizes]


def best_balanced_threshold(is_defect: np.ndarray, score: np.ndarray) -> float:
    """Score at and above which calling images defective gives the best balanced accuracy.

    Half-way between the two neighbouring scores that it separates.
    """
    false_positives, true_positives, thresholds = roc_curve(
        is_defect, score, drop_intermediate=False
    )
    best = np.argmax(true_positives - false_positives)
    return float(np.mean(thresholds[best : best + 2]))
