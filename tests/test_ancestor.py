"""The recipe ``vgg16_cam`` computes what its published ancestor does, written here in plain torch.

The ancestor is "Explainable Defect Detection using Convolutional Neural Networks: Case Study" and
its code: VGG16 without its last pooling, of which the last three convolutions train; global average
pooling and a linear layer; the heatmap is the class activation map of the defect class.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from defectcam import DefectCAMClassifier
from defectcam.backbones import create_backbone
from defectcam.feature_cache import FeatureCache
from defectcam.network import DefectCAMNetwork
from defectcam.training import TailTraining, TrainingOptions

GOOD, ANOMALY = 0, 1
BOX_THRESHOLD = 0.8


class Ancestor(nn.Module):
    """The published network; images are float32 in [0, 1], 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        vgg = torchvision.models.vgg16(init_weights=False)
        self.features = vgg.features[:-1]
        self.dense = nn.Linear(512, 2)
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        for layer in convolutions[:-3]:
            layer.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1))

    def heatmap(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        weight = self.dense.weight[ANOMALY][None, :, None, None]
        cam = (weight * self.features(images)).sum(1, keepdim=True)
        cam = F.interpolate(cam, size, mode="bilinear", align_corners=False)[:, 0]
        low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
        return (cam - low) / (high - low)


def published_box(heatmap: NDArray[np.float32]) -> list[int]:
    """One half-open box around all pixels above the threshold."""
    rows, columns = np.nonzero(heatmap > BOX_THRESHOLD)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def randomise(net: Ancestor) -> None:
    """Draw weights that keep the activations near 1 through all layers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                gain = 2 if isinstance(layer, nn.Conv2d) else 100
                std = (gain / layer.weight[0].numel()) ** 0.5
                layer.weight.normal_(0, std, generator=generator)
                layer.bias.normal_(0, 0.1, generator=generator)


def copy_weights(source: Ancestor, target: DefectCAMNetwork) -> None:
    """Give our network the ancestor's weights, layer after layer."""
    theirs = [layer for layer in source.features if isinstance(layer, nn.Conv2d)]
    ours = [m for part in (target.trunk, target.tail) for m in part.modules()]
    ours = [module for module in ours if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for mine, layer in zip(ours, theirs, strict=True):
            mine.weight.copy_(layer.weight)
            mine.bias.copy_(layer.bias)
        target.head.convs[0].weight.copy_(source.dense.weight[:, :, None, None])
        target.head.bias.copy_(source.dense.bias)


def blobs(n: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return smooth random pictures."""
    small = np.random.default_rng(0).integers(0, 256, size=(n, 3, 9, 9)).astype(np.float32)
    pictures = F.interpolate(torch.from_numpy(small), size, mode="bicubic").clip(0, 255)
    return pictures.permute(0, 2, 3, 1).round().byte().numpy()


@dataclass
class Pair:
    ancestor: Ancestor
    classifier: DefectCAMClassifier
    pictures: NDArray[np.uint8]
    images: Tensor


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Return the ancestor and a fitted classifier with its weights, and what to show both."""
    ancestor = Ancestor()
    randomise(ancestor)
    pictures = blobs(2, (224, 224))
    classifier = DefectCAMClassifier.from_recipe(
        "vgg16_cam", weights=None, max_epochs=1, n_jobs=1, device="cpu", random_state=0
    ).fit(pictures, ["good", "scratch"])
    assert classifier.classes_.tolist() == ["good", "scratch"]
    copy_weights(ancestor, classifier.network_)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    return Pair(ancestor, classifier, pictures, images)


def test_the_same_layers_are_trained(pair):
    ours = pair.classifier.network_
    trained = [p for p in pair.ancestor.parameters() if p.requires_grad]
    assert len(trained) == 3 * 2 + 2
    assert sum(p.numel() for p in trained) == sum(
        p.numel() for p in ours.parameters() if p.requires_grad
    )
    assert not any(p.requires_grad for p in ours.trunk.parameters())
    options = pair.classifier.get_params()
    assert (options["optimizer"], options["learning_rate"]) == ("adam", 1e-4)
    assert (options["head_learning_rate"], options["weight_decay"]) == (None, 0)
    assert (options["class_weight"], options["box_threshold"]) == (3.0, BOX_THRESHOLD)


@torch.no_grad()
def test_features_and_scores_are_equal(pair):
    ours = pair.classifier.network_
    expected = pair.ancestor.features(pair.images)
    assert 0.05 < expected.mean() < 20  # the comparison means something
    levels = ours.trunk_features(pair.images).deep
    x = levels[-1]
    for stage in ours.tail:
        x = stage(x)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)
    logits = pair.ancestor(pair.images)
    assert logits.abs().mean() > 0.1
    torch.testing.assert_close(ours(pair.images), logits, atol=1e-4, rtol=1e-4)
    scores = pair.classifier.defect_score(pair.pictures)
    np.testing.assert_allclose(scores, logits[:, ANOMALY] - logits[:, GOOD], atol=1e-3)


@pytest.fixture(scope="module")
def all_defective(pair: Pair) -> DefectCAMClassifier:
    """Return the classifier, which now calls every image defective, so that all have boxes."""
    classifier = copy.copy(pair.classifier)
    classifier.threshold_ = 0.0
    return classifier


@torch.no_grad()
def test_heatmaps_and_boxes_are_equal(pair, all_defective):
    expected = pair.ancestor.heatmap(pair.images, (224, 224)).numpy()
    for found, heatmap in zip(all_defective.localize(pair.pictures), expected, strict=True):
        np.testing.assert_allclose(found.heatmap, heatmap, atol=1e-5)
        assert found.boxes.tolist() == [published_box(heatmap)]


@torch.no_grad()
def test_heatmaps_of_images_of_another_size_lie_on_their_own_pixels(pair, all_defective):
    pictures = blobs(2, (150, 190))
    stacked = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    images = F.interpolate(stacked, (224, 224), mode="bilinear", antialias=True) / 255
    expected = pair.ancestor.heatmap(images, (150, 190)).numpy()
    for found, heatmap in zip(all_defective.localize(pictures), expected, strict=True):
        ours = found.heatmap  # the ancestor took the extreme values of the map of the input's size
        np.testing.assert_allclose((ours - ours.min()) / np.ptp(ours), heatmap, atol=1e-5)
        assert found.boxes.tolist() == [published_box(ours)]


def test_loss_and_one_training_step_are_equal():
    ancestor = Ancestor()
    randomise(ancestor)
    recipe = DefectCAMClassifier.from_recipe("vgg16_cam").get_params()
    network = DefectCAMNetwork(
        create_backbone("vgg16", None),
        head_options={
            "n_classes": 2,
            "normalise": recipe["normalise_evidence"],
            "pooling": recipe["pooling"],
            "init": recipe["head_init"],
        },
        trainable_stages=recipe["trainable_stages"],
        evidence_stages=recipe["evidence_stages"],
    )
    copy_weights(ancestor, network)
    images = torch.from_numpy(blobs(3, (64, 64))).permute(0, 3, 1, 2) / 255
    targets = torch.tensor([GOOD, ANOMALY, GOOD])

    optimizer = torch.optim.Adam((p for p in ancestor.parameters() if p.requires_grad), lr=1e-4)
    loss = F.cross_entropy(ancestor(images), targets, weight=torch.tensor([1.0, 3.0]))
    loss.backward()
    optimizer.step()

    options = TrainingOptions(
        **{
            name: recipe[name]
            for name in TrainingOptions.__dataclass_fields__
            if name in recipe and name != "max_epochs"
        },
        max_epochs=1,
        patience=None,
    )
    with FeatureCache(3, ((),), 2**30, torch.float32) as cache:
        cache.fill(network, [images])
        training = TailTraining(
            network=network,
            cache=cache,
            targets=targets,
            good=GOOD,
            class_weight=torch.tensor([1.0, 3.0]),
            sample_weight=torch.ones(3),
            options=options,
            seed=0,
        )
        training.run(np.arange(3), fold=0)
    assert loss.item() > 0.01
    assert training.history["loss"] == [pytest.approx(loss.item(), rel=1e-4)]
    expected = copy.deepcopy(network)
    copy_weights(ancestor, expected)
    before = Ancestor()
    randomise(before)
    start = copy.deepcopy(network)
    copy_weights(before, start)
    parameters = zip(network.parameters(), expected.parameters(), start.parameters(), strict=True)
    for ours, theirs, initial in parameters:
        # Adam's first step is the learning rate in the gradient's direction; where the gradient is
        # almost nothing, its sign is rounding.
        close = torch.isclose(ours, theirs, atol=2e-6, rtol=0)
        assert close.float().mean() > 0.995
        assert torch.equal(ours, initial) == (not ours.requires_grad)
