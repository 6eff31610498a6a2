"""The network: frozen trunk, codebook, trainable tail and evidence head as one ordinary module.

Owns which backbone stages are frozen, what a cached trunk pass has to keep, and the way from pixels
to class scores, evidence maps and novelty. It never trains, thresholds or resizes to an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from defectcam.backbones import Backbone, cut_stage, fold_batch_norm
from defectcam.heads import EvidenceHead
from defectcam.novelty import Codebook, describe_patches
from defectcam.precision import mixed_precision
from defectcam.student import StudentHead, draw

#: Images go through the trunk together on a processor as long as one channel of them all takes no
#: more than this. The largest feature map takes 24 (EfficientNet-Lite0) to 64 (VGG16) times that.
PASS_BYTES = 2**20


class TrunkFeatures(NamedTuple):
    """What the frozen trunk leaves behind for the rest of the network.

    Attributes
    ----------
    deep : list of Tensor of shape (n, channels_i, height_i, width_i)
        Trunk levels that the evidence head reads, finest first, then the tail's input if any
        stage is trained.
    patches : Tensor of shape (n, channels, height, width) or None
        Patch descriptions for the codebook; None when novelty is not used.
    """

    deep: list[Tensor]
    patches: Tensor | None


class NetworkOutput(NamedTuple):
    """One forward pass.

    Attributes
    ----------
    logits : Tensor of shape (n, n_classes)
        Class scores.
    levels : Tensor of shape (n, n_levels, n_classes, height, width)
        Evidence map per level and class, on the grid of the finest evidence level.
    novelty : Tensor of shape (n, height, width) or None
        Distance of each patch to the nearest good one.
    students : Tensor of shape (n, n_students, height, width) or None
        The students' maps, on the grid of the finest features that they read.
    """

    logits: Tensor
    levels: Tensor
    novelty: Tensor | None
    students: Tensor | None = None

    @property
    def evidence(self) -> Tensor:
        """Evidence map per class, summed over the levels, ``(n, n_classes, height, width)``."""
        return self.levels.sum(1)


class Description(NamedTuple):
    """One forward pass with the features on its way.

    Attributes
    ----------
    output : NetworkOutput
    level_features : list of Tensor of shape (n, channels_i, height_i, width_i)
        What the evidence head reads, finest level first.
    patches : Tensor of shape (n, channels, height, width) or None
        Patch descriptions; None without novelty.
    """

    output: NetworkOutput
    level_features: list[Tensor]
    patches: Tensor | None


class DefectCAMNetwork(nn.Module):
    """Trunk, tail and evidence head; its forward pass gives class scores.

    Parameters
    ----------
    backbone : Backbone
        Feature stages; the network takes them over.
    head_options : dict
        Arguments of `EvidenceHead` except the channels.
    trainable_stages : float
        How many of the last stages train; 0 freezes all of them. Of the first stage of a number
        that is not whole, the last layers train: of 1.5, the later half of the last but one.
    evidence_stages : int
        How many of the last stages the evidence head reads.
    novelty_strides : sequence of int
        Strides of the trunk levels that describe patches; those that are not frozen are left out.
        Empty for a network without novelty.
    """

    #: Whether a large batch goes through the trunk in parts where that is quicker.
    splits_batches = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        head_options: dict[str, object],
        trainable_stages: float,
        evidence_stages: int,
        novelty_strides: Sequence[int] = (),
    ) -> None:
        super().__init__()
        n_stages = len(backbone.stages)
        _check_stages("trainable_stages", trainable_stages, 0, n_stages)
        _check_stages("evidence_stages", evidence_stages, 1, n_stages)
        self.trainable_stages = trainable_stages
        backbone, n_frozen, levels = _cut_before_trained(backbone, trainable_stages)
        stages = [cast(nn.Sequential, stage) for stage in backbone.stages]
        self.trunk = nn.ModuleList(fold_batch_norm(stage) for stage in stages[:n_frozen])
        # A tail that opens with a pooling would make the cache hold what it then throws away.
        self.entry, tail = _split_entry(stages[n_frozen:])
        self.tail = nn.ModuleList(tail)
        self.evidence_levels = levels[n_stages - evidence_stages :]
        self.novelty_levels = _levels_of_strides(backbone.strides[:n_frozen], novelty_strides)
        self.head = EvidenceHead(
            [backbone.channels[i] for i in self.evidence_levels],
            **head_options,  # type: ignore[arg-type]
        )
        entry_channels = [backbone.channels[n_frozen - 1] if n_frozen else 3]
        self._student_channels = entry_channels if trainable_stages else []
        self._student_channels += [backbone.channels[i] for i in self.evidence_levels]
        self._patch_channels = sum(backbone.channels[i] for i in self.novelty_levels)
        #: Whether students read patches too: where these are finer than all else that they read.
        self.students_read_patches = bool(
            trainable_stages
            and self.novelty_levels
            and backbone.strides[max(self.novelty_levels)] < backbone.strides[n_frozen - 1]
        )
        self.codebook: Codebook | None = None
        self.students = nn.ModuleList()
        self.dtype = torch.float32
        self.weights_source = backbone.weights_source
        for parameter in self.trunk.parameters():
            parameter.requires_grad_(False)
        if self.weights_source is not None:
            self.keep_depthwise_kernels()

    def keep_depthwise_kernels(self) -> None:
        """Train no kernel of the tail that filters one channel: for pre-trained weights.

        They are a few per cent of the weights, but their gradients are slow on a processor, and
        what is found does not change without them. Random ones have to be trained.
        """
        for kernel in _depthwise_kernels(self.tail):
            kernel.requires_grad_(False)

    def train(self, mode: bool = True) -> DefectCAMNetwork:
        """Set the mode of the trained part; the frozen trunk always evaluates."""
        super().train(mode)
        self.trunk.eval()
        return self

    @property
    def evidence_layers(self) -> list[nn.Module]:
        """Layers whose outputs the evidence is read from, finest level first.

        The ones to give to other libraries' methods: their outputs are float32, whatever trunk and
        tail compute in.
        """
        return list(self.head.norms)

    @property
    def has_frozen_evidence(self) -> bool:
        """Whether an evidence level is frozen, so that gradients reach it from the pixels only."""
        return any(level < len(self.trunk) for level in self.evidence_levels)

    def set_dtype(self, dtype: torch.dtype) -> DefectCAMNetwork:
        """Let trunk and tail compute in ``dtype``; head, codebook and trained weights are float32.

        The frozen trunk's weights are rounded to it.
        """
        self.dtype = dtype
        self.trunk.to(dtype)
        return self

    def trunk_features(self, pixels: Tensor) -> TrunkFeatures:
        """Run the frozen stages.

        Parameters
        ----------
        pixels : Tensor of shape (n, 3, height, width)
            Normalised images.

        Returns
        -------
        TrunkFeatures
            In float32, whatever the trunk computes in.
        """
        n_passes = self._n_passes(pixels)
        if n_passes == 1:
            return self._trunk_pass(pixels)
        parts = [self._trunk_pass(part) for part in pixels.tensor_split(n_passes)]
        deep = [torch.cat(level) for level in zip(*(part.deep for part in parts), strict=True)]
        patches = [part.patches for part in parts if part.patches is not None]
        return TrunkFeatures(deep, torch.cat(patches) if patches else None)

    def _n_passes(self, pixels: Tensor) -> int:
        """In how many parts a batch goes through the frozen stages: several on a processor.

        Their feature maps are large. Above 32 MiB the C library gets the memory of each of them
        from the system and gives it back, and its pages are zeroed every time; and what one layer
        has written is still in the processor's cache when the next one reads it if it is small.
        """
        on_processor = pixels.device.type == "cpu"
        if not (self.splits_batches and on_processor) or torch.is_grad_enabled():
            return 1
        largest = max(1, PASS_BYTES // (self.dtype.itemsize * math.prod(pixels.shape[2:])))
        return max(1, -(-len(pixels) // largest))

    def _trunk_pass(self, pixels: Tensor) -> TrunkFeatures:
        x, levels = pixels.to(self.dtype), []
        for stage in self.trunk:
            x = stage(x)
            levels.append(x)
        deep = [levels[i].float() for i in self.evidence_levels if i < len(levels)]
        if self.tail:
            deep.append(self.entry(x).float())
        patches = None
        if self.novelty_levels:
            patches = describe_patches([levels[i].float() for i in self.novelty_levels])
        return TrunkFeatures(deep, patches)

    def evidence(self, deep: Sequence[Tensor]) -> Tensor:
        """Evidence maps from cached or fresh trunk features, shape ``(n, n_classes, h, w)``."""
        return self.level_evidence(deep).sum(1)

    def level_evidence(self, deep: Sequence[Tensor]) -> Tensor:
        """Evidence maps of each level, shape ``(n, n_levels, n_classes, h, w)``."""
        return self.head.level_evidence(self.level_features(deep))

    def level_features(self, deep: Sequence[Tensor]) -> list[Tensor]:
        """Run the tail; what the head reads, ``(n, channels_i, h_i, w_i)``, finest level first."""
        levels = list(deep)
        if self.tail:
            x = levels.pop()
            outputs = []
            with mixed_precision(self.dtype, x.device):
                for stage in self.tail:
                    x = stage(x)
                    outputs.append(x)
            n_from_tail = len(self.evidence_levels) - len(levels)
            levels += [level.float() for level in outputs[len(outputs) - n_from_tail :]]
        return levels

    def infer(self, pixels: Tensor) -> NetworkOutput:
        """One pass from normalised images to scores, evidence and novelty."""
        return self.describe(pixels).output

    def describe(self, pixels: Tensor) -> Description:
        """One pass that also hands out the features that scores, evidence and novelty rest on."""
        features = self.trunk_features(pixels)
        level_features = self.level_features(features.deep)
        levels = self.head.level_evidence(level_features)
        novelty = self.novelty(features.patches)
        students = None
        if self.students:
            heads = cast("Sequence[StudentHead]", self.students)
            read = self.student_features(features.deep, level_features, features.patches)
            students = draw(heads, read)
        output = NetworkOutput(self.head.logits(levels.sum(1), novelty), levels, novelty, students)
        return Description(output, level_features, features.patches)

    def student_features(
        self, deep: Sequence[Tensor], level_features: Sequence[Tensor], patches: Tensor | None
    ) -> list[Tensor]:
        """Pick what students read: what the tail starts from, and the evidence levels.

        Before them come the patches, where these are finer.
        """
        if not self.tail:
            return list(level_features)
        features = [*deep[-1:], *level_features]
        if self.students_read_patches and patches is not None:
            features.insert(0, patches)
        return features

    @property
    def student_depths(self) -> range:
        """How many of these features each student reads: up to one evidence level or the next."""
        n_features = len(self.student_channels)
        return range(n_features - len(self.evidence_levels) + 1, n_features + 1)

    @property
    def student_channels(self) -> list[int]:
        """Channels of what students read, in order."""
        patches = [self._patch_channels] if self.students_read_patches else []
        return patches + self._student_channels

    def add_untrained_students(self) -> None:
        """Add a student per evidence level, whose weights another network has."""
        heads = [StudentHead(self.student_channels[:depth]) for depth in self.student_depths]
        self.students = nn.ModuleList(heads).to(self.head.bias.device)

    def novelty(self, patches: Tensor | None) -> Tensor | None:
        """Novelty maps of described patches, shape ``(n, h, w)``; None without a codebook."""
        if self.codebook is None or patches is None:
            return None
        return self.codebook(patches)

    def forward(self, pixels: Tensor) -> Tensor:
        """Class scores of normalised images, shape ``(n, n_classes)``.

        Parameters
        ----------
        pixels : Tensor of shape (n, 3, height, width)
        """
        return self.infer(pixels).logits


def _cut_before_trained(
    backbone: Backbone, trainable_stages: float
) -> tuple[Backbone, int, list[int]]:
    """Cut the stage of which the last layers train.

    Returns
    -------
    backbone : Backbone
    n_frozen : int
        How many of its first stages are frozen.
    levels : list of int
        With which of its stages each of the given backbone's ends.
    """
    n_stages, n_trained = len(backbone.stages), math.ceil(trainable_stages)
    n_frozen, levels = n_stages - n_trained, list(range(n_stages))
    if n_trained == trainable_stages:
        return backbone, n_frozen, levels
    backbone = cut_stage(backbone, n_frozen, n_trained - trainable_stages)
    n_cut = len(backbone.stages) - n_stages  # 0 where the stage is a single block
    levels = [level + n_cut * (level >= n_frozen) for level in levels]
    return backbone, n_frozen + n_cut, levels


def _depthwise_kernels(tail: nn.Module) -> Iterator[Tensor]:
    """Kernels that filter one channel each."""
    for layer in tail.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            yield layer.weight


def _check_stages(name: str, value: float, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(
            f"{name}={value!r}: this backbone has {high} stages, expected a number from {low} "
            f"to {high}."
        )


def _split_entry(stages: list[nn.Sequential]) -> tuple[nn.Sequential, list[nn.Module]]:
    """Take the leading layers without parameters off the first trained stage."""
    if not stages:
        return nn.Sequential(), []
    layers = list(stages[0].children())
    n_fixed = 0
    while n_fixed < len(layers) and not any(True for _ in layers[n_fixed].parameters()):
        n_fixed += 1
    return nn.Sequential(*layers[:n_fixed]), [nn.Sequential(*layers[n_fixed:]), *stages[1:]]


def _levels_of_strides(strides: Sequence[int], wanted: Sequence[int]) -> list[int]:
    levels = [level for level, stride in enumerate(strides) if stride in wanted]
    if wanted and not levels:
        raise ValueError(
            f"novelty_strides={tuple(wanted)!r}: the frozen stages of this backbone have strides "
            f"{tuple(strides)}. Name some of them, or train fewer stages."
        )
    return levels
