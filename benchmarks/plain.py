"""The published recipe in plain PyTorch, trained as its authors do.

VGG16 without its last pooling, global average pooling, one dense layer. The whole network is in
training mode, the last three convolutions and the dense layer train, and every image is decoded and
resized again in every epoch, by the process that trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from defectcam.network import DefectCAMNetwork

BATCH_SIZE = 10
LEARNING_RATE = 1e-4
DEFECT_WEIGHT = 3.0  # in the loss, where the good class has 1
N_TRAINED = 3  # convolutions


class PlainVGG(nn.Module):
    """The published network, with the weights of one of ours."""

    def __init__(self, ours: DefectCAMNetwork):
        super().__init__()
        with torch.device("meta"):  # the classifier layers, never used, are most of the weights
            vgg = torchvision.models.vgg16()
        self.features = vgg.features[:-1].to_empty(device="cpu")
        self.dense = nn.Linear(512, 2)
        for layer, source in zip(convolutions(self.features), all_convolutions(ours), strict=True):
            layer.load_state_dict(source.state_dict())
        with torch.no_grad():
            self.dense.weight.copy_(ours.head.convs[0].weight[:, :, 0, 0])
            self.dense.bias.copy_(ours.head.bias)
        for layer in convolutions(self.features)[:-N_TRAINED]:
            layer.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.features(images).mean((2, 3)))

    def trained(self) -> list[Tensor]:
        """Copies of the trained tensors, in the order of `trained_of`."""
        layers = [*convolutions(self.features)[-N_TRAINED:], self.dense]
        return [p.detach().clone() for layer in layers for p in (layer.weight, layer.bias)]


def trained_of(ours: DefectCAMNetwork) -> list[Tensor]:
    tensors = [p for c in all_convolutions(ours)[-N_TRAINED:] for p in (c.weight, c.bias)]
    tensors += [ours.head.convs[0].weight[:, :, 0, 0], ours.head.bias]
    return [tensor.detach().clone() for tensor in tensors]


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def all_convolutions(ours: DefectCAMNetwork) -> list[nn.Conv2d]:
    return convolutions(ours.trunk) + convolutions(ours.tail)


def train(
    model: PlainVGG,
    paths: Sequence[str],
    targets: Tensor,
    class_weight: Tensor,
    *,
    size: int,
    seed: int,
    n_epochs: int,
) -> tuple[list[float], list[Tensor]]:
    """Train; return the seconds of each epoch and the trained tensors after the first one."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], LEARNING_RATE)
    orders = batches_of_epochs(len(paths), seed)
    seconds: list[float] = []
    after_first: list[Tensor] = []
    for _ in range(n_epochs):
        started = time.perf_counter()
        model.train()
        for batch in next(orders):
            images = torch.stack([read(paths[i], size) for i in batch.tolist()])
            loss = F.cross_entropy(model(images), targets[batch], weight=class_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
        after_first = after_first or model.trained()
    return seconds, after_first


def batches_of_epochs(n_images: int, seed: int) -> Iterator[list[Tensor]]:
    """Batches of one epoch after the other, as the estimator draws them from its seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        batches = list(torch.randperm(n_images, generator=generator).split(BATCH_SIZE))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        for batch in batches:  # the estimator draws a view of each image, of which here is one
            torch.randint(1, (len(batch),), generator=generator)
        yield batches


def read(path: str, size: int) -> Tensor:
    with Image.open(path) as image:
        pixels = transforms.pil_to_tensor(image.convert("RGB"))
    return transforms.resize(pixels.float() / 255, [size, size], antialias=True)


def differences(
    ours: list[Tensor], theirs: list[Tensor], start: list[Tensor]
) -> tuple[float, float, float]:
    """How far apart trained tensors are, in three ways.

    The largest difference, as a share of its layer's largest weight; the norm of the difference, as
    a share of the weights' norm, and as a share of the norm of what training changed.
    """
    apart = [a - b for a, b in zip(ours, theirs, strict=True)]
    change = [b - s for b, s in zip(theirs, start, strict=True)]
    layers = range(0, len(theirs), 2)  # weight and bias of each: biases begin at zero
    largest = max(largest_of(apart[i : i + 2]) / largest_of(theirs[i : i + 2]) for i in layers)
    return largest, norm_of(apart) / norm_of(theirs), norm_of(apart) / norm_of(change)


def largest_of(tensors: list[Tensor]) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())
