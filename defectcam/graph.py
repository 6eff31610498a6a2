"""From RGB pixels to answers as one module: what is written into files for other runtimes.

Owns the joint of preprocessing, network, calibration and the map at the image's size in tensor code
that `torch.export` can follow, for images of any size and number. It learns nothing, writes no file
and finds no boxes: those need connected components, which `boxes` finds in the map.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defectcam.backbones import fold_batch_norm
from defectcam.calibration import CALM_SHARE, DefectProbability, HeatModel, defect_scores_tensor
from defectcam.cam import of_classes
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook
from defectcam.preprocess import Preprocess, seen_again
from defectcam.resizing import resize_padded, resize_stretched

__all__ = ["Decision", "DeployedNetwork"]


class Decision(NamedTuple):
    """How an image is judged.

    Attributes
    ----------
    good : int
        Index of the good class.
    defects : list of int
        Indices of the other classes.
    probability : DefectProbability
        From the image's scores to the probability of a defect.
    threshold : float
        Probability at and above which an image is called defective.
    box_threshold : float
        Value of the map above which a pixel is marked.
    familiarity_limit : float or None
        Novelty of the calmest part above which an image is unlike all training images.
    """

    good: int
    defects: list[int]
    probability: DefectProbability
    threshold: float
    box_threshold: float
    familiarity_limit: float | None


class DeployedNetwork(nn.Module):
    """RGB pixels in, answers out, all in float32.

    Parameters
    ----------
    network : DefectCAMNetwork
        Fitted; it is copied and stays as it is.
    preprocess : Preprocess
    heat_model : HeatModel
    decision : Decision
    second_size : (int, int), optional
        Height and width at which images are seen again; None: they are not.

    Attributes
    ----------
    intercept : Tensor of float32, shape (1,)
        Of the probability's log-odds.
    """

    intercept: Tensor

    def __init__(
        self,
        network: DefectCAMNetwork,
        preprocess: Preprocess,
        heat_model: HeatModel,
        decision: Decision,
        second_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.second_size = second_size
        network = copy.deepcopy(network).cpu().set_dtype(torch.float32).eval()
        stages = [cast(nn.Sequential, stage) for stage in network.tail]
        network.tail = nn.ModuleList(fold_batch_norm(stage) for stage in stages)
        if network.codebook is not None:
            network.codebook = _CentredCodebook(network.codebook)
        network.splits_batches = False  # the graph is for any number of images
        self.network = network.requires_grad_(False)
        self.preprocess = copy.deepcopy(preprocess).cpu()
        self.heat_model = heat_model
        self.decision = decision
        # a tensor with a name: int8 moves it in the file
        self.register_buffer("intercept", torch.tensor([decision.probability.intercept]).float())

    @property
    def takes_original_size(self) -> bool:
        """Whether the place of the image in the network's input depends on its size."""
        return self.preprocess.resize == "pad"

    def forward(self, pixels: Tensor, original_size: Tensor | None = None) -> dict[str, Tensor]:
        """Judge images of one size.

        Parameters
        ----------
        pixels : Tensor of uint8, shape (n, H, W, 3)
            RGB.
        original_size : Tensor of int64, shape (2,), optional
            Where `takes_original_size`: height and width before the images were decoded at a
            reduced size, which decide where they are put, to the pixel; zeros for those of
            `pixels`.

        Returns
        -------
        probability : Tensor of float32, shape (n,)
            Of a defect.
        class_probability : Tensor of float32, shape (n, n_classes)
            In the order of the classes.
        unfamiliar : Tensor of bool, shape (n,)
            Whether an image is unlike all training images.
        grid : Tensor of float32, shape (n, h, w)
            The first look's map on the network's grid: 0 is typical of good parts, 1 their limit.
        heatmap : Tensor of float32, shape (n, H, W)
            The map at the image's size; of images that are called defective, that of both looks
            where there is a second one.
        mask : Tensor of bool, shape (n, H, W)
            Where the heatmap is above the box threshold, in images that are called defective.
        type_grids : Tensor of float32, shape (n, n_types, h', w')
            Evidence of each defect type, where there are several.
        second_grid : Tensor of float32, shape (n, h'', w'')
            The second look's map, where there is one. Only it and `heatmap` and `mask` need the
            second pass: engines that compute what is asked for save it in good images.
        """
        size = (pixels.shape[1], pixels.shape[2])
        content = None
        if original_size is not None:
            content = _padded_content(size, original_size, self.preprocess.image_size)
        prepared = self._prepared(pixels, content)
        output = self.network.infer(prepared)
        levels, novelty = output.levels, output.novelty
        probability, class_probability = self._probabilities(output.logits, novelty)
        grid = self.heat_model.grids(levels, novelty, output.students)
        heatmap = _restore(grid, size, self.preprocess.image_size, content)
        is_defect = (probability >= self.decision.threshold)[:, None, None]
        second = None
        if self.second_size is not None:
            second = self._second_grid(prepared, self.second_size)
            joined = _joined(grid, second)
            finer = _restore(joined, size, self.preprocess.image_size, content)
            heatmap = torch.where(is_defect, finer, heatmap)
        answers = {
            "probability": probability,
            "class_probability": class_probability,
            "unfamiliar": self._is_unfamiliar(novelty, probability),
            "grid": grid,
            "heatmap": heatmap,
            "mask": (heatmap > self.decision.box_threshold) & is_defect,
        }
        if len(self.decision.defects) > 1:
            answers["type_grids"] = self.heat_model.type_grids(levels)
        if second is not None:
            answers["second_grid"] = second
        return answers

    def _second_grid(self, prepared: Tensor, size: tuple[int, int]) -> Tensor:
        again = self.network.infer(seen_again(prepared, size))
        return self.heat_model.grids(again.levels, again.novelty, again.students).flip(2)

    def _probabilities(self, logits: Tensor, novelty: Tensor | None) -> tuple[Tensor, Tensor]:
        good, defects = self.decision.good, self.decision.defects
        seen = novelty if self.heat_model.kind == "fused" else None
        scores = defect_scores_tensor(logits, seen, good)
        weights = torch.tensor(self.decision.probability.coefficients, dtype=torch.float32)
        defect = ((scores * weights).sum(1) + self.intercept).sigmoid()
        types = of_classes(logits, defects).softmax(1) * defect[:, None]
        columns = list(types.unbind(1))
        columns.insert(good, 1 - defect)
        return defect, torch.stack(columns, dim=1)

    def _is_unfamiliar(self, novelty: Tensor | None, like: Tensor) -> Tensor:
        limit = self.decision.familiarity_limit
        if novelty is None or limit is None:
            return torch.zeros_like(like, dtype=torch.bool)
        return _quantile(novelty.flatten(1), CALM_SHARE) > limit

    def _prepared(self, pixels: Tensor, content: Tensor | None) -> Tensor:
        """Resize and normalise as `Preprocess` does."""
        preprocess = self.preprocess
        mean, std = 255 * preprocess.mean, 255 * preprocess.std
        if content is None:
            return (resize_stretched(pixels, preprocess.image_size) - mean) / std
        resized = resize_padded(pixels, content, preprocess.image_size)
        return (resized - mean) / std * _is_within(content, preprocess.image_size)


class _CentredCodebook(Codebook):
    """A codebook that compares all images at once, and takes patches relative to its own middle.

    An exported graph has no loop over images. Distances are the same, but the products that they
    are made of are smaller, and lose less where an engine rounds them to bfloat16 or int8.
    """

    middle: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, codebook: Codebook) -> None:
        n_centres, n_channels = codebook.centres.shape
        super().__init__(n_channels, n_centres)
        self.load_state_dict(codebook.state_dict())
        middle = self.centres.mean(0)
        centres = self.centres - middle
        self.register_buffer("middle", middle)
        self.register_buffer("weight", -2 * centres)
        self.register_buffer("bias", centres.square().sum(1))

    def forward(self, patches: Tensor) -> Tensor:
        """Novelty map of shape ``(n, height, width)``; see `Codebook.forward`."""
        scaled = patches.permute(0, 2, 3, 1) / self.scale - self.middle
        nearest = F.linear(scaled, self.weight, self.bias).amin(-1)
        squared = (scaled.square().sum(-1) + nearest).clamp(min=0)
        return (squared.sqrt() - self.typical) / (self.limit - self.typical)


def _padded_content(
    size: tuple[int, int], original_size: Tensor, input_size: tuple[int, int]
) -> Tensor:
    """Top, left, height and width of the image within the input; see `Geometry.pad`."""
    own = torch.stack([torch.full((), side, dtype=torch.float64) for side in size])
    given = original_size.double()
    original = torch.where(given > 0, given, own)
    room = torch.tensor(input_size, dtype=torch.float64)
    scale = (room / original).amin(0)
    sides = (original * scale).round().clamp(min=1).minimum(room)
    return torch.cat([((room - sides) / 2).floor(), sides]).long()


def _is_within(content: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Return 1.0 where the image lies in the input, 0.0 around it; shape ``(h, w)``."""
    top, left, height, width = content.unbind()
    rows, columns = (torch.arange(side) for side in input_size)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return (in_rows[:, None] & in_columns).float()


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Do as `join_looks`."""
    size = (second.shape[1], second.shape[2])
    finer = F.interpolate(first[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return (finer + second) / 2


def _quantile(values: Tensor, share: float) -> Tensor:
    """Quantile of each row, interpolated linearly, as `numpy.quantile`."""
    place = (values.shape[1] - 1) * share
    lower = int(place)
    lowest = values.topk(min(lower + 2, values.shape[1]), dim=1, largest=False).values
    first, second = lowest[:, lower], lowest[:, -1]
    return first + (second - first) * (place - lower)


def _restore(
    grid: Tensor, size: tuple[int, int], input_size: tuple[int, int], content: Tensor | None
) -> Tensor:
    """Take maps back to the image's size, shape ``(n, H, W)``; see `Geometry.restore`."""
    top, left, height, width = (0.0, 0.0, *map(float, input_size)) if content is None else content
    widened = _interpolate(grid.transpose(1, 2), size[1], left, width, input_size[1])
    return _interpolate(widened.transpose(1, 2), size[0], top, height, input_size[0])


def _interpolate(
    grid: Tensor, n_pixels: int, start: Tensor | float, length: Tensor | float, input_length: int
) -> Tensor:
    """Look up `n_pixels` rows of grids of shape ``(n, h, w)``, linearly."""
    n_cells = grid.shape[1]
    centres = (torch.arange(n_pixels).float() + 0.5) * (length / n_pixels) + start
    centres = centres * (n_cells / input_length) - 0.5
    first = centres.floor()
    weight = (centres - first)[:, None]
    upper, lower = (
        grid.index_select(1, rows.clamp(0, n_cells - 1).long()) for rows in (first, first + 1)
    )
    return upper * (1 - weight) + lower * weight
