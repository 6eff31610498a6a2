"""Small trainings for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defectcam.backbones import create_backbone
from defectcam.feature_cache import VIEWS, FeatureCache
from defectcam.network import DefectCAMNetwork
from defectcam.training import TailTraining, TrainingOptions

N_IMAGES = 6
ROWS = np.arange(N_IMAGES)
OPTIONS = TrainingOptions(
    optimizer="adam",
    learning_rate=1e-3,
    head_learning_rate=None,
    weight_decay=0.0,
    schedule="constant",
    max_epochs=2,
    batch_size=2,
    label_smoothing=0.0,
    deep_supervision=True,
    train_batch_norm=True,
    stop_at_train_accuracy=None,
    patience=None,
)
FOLDS = [
    (np.array([1, 2, 4, 5]), np.array([3, 0])),
    (np.array([0, 2, 3, 5]), np.array([1, 4])),
    (np.array([0, 1, 3, 4]), np.array([5, 2])),
]


def pixels(n: int = N_IMAGES) -> Tensor:
    values = np.random.default_rng(0).normal(size=(n, 3, 64, 64))
    return torch.from_numpy(values.astype(np.float32))


def network(
    evidence_stages: int = 2, novelty_strides: Sequence[int] = (), **options: Any
) -> DefectCAMNetwork:
    head_options = {"n_classes": 2, "pooling": "average", **options}
    return DefectCAMNetwork(
        create_backbone("test_efficientnet", None),
        head_options=head_options,
        trainable_stages=1,
        evidence_stages=evidence_stages,
        novelty_strides=novelty_strides,
    ).eval()


def filled(net: DefectCAMNetwork, views: str = "none", **options: Any) -> FeatureCache:
    settings = {"budget": 2**30, "dtype": torch.float32, **options}
    cache = FeatureCache(N_IMAGES, VIEWS[views], **settings)
    cache.fill(net, pixels().split(4))
    return cache


def tail_training(net: DefectCAMNetwork | None = None, **settings: Any) -> TailTraining:
    net = net or network()
    options = dataclasses.replace(
        OPTIONS, **{k: settings.pop(k) for k in list(settings) if hasattr(OPTIONS, k)}
    )
    values = {
        "cache": filled(net) if "cache" not in settings else settings.pop("cache"),
        "targets": torch.tensor([0, 1] * 3),
        "good": 0,
        "class_weight": torch.ones(2),
        "sample_weight": torch.ones(N_IMAGES),
        "seed": 0,
        **settings,
    }
    return TailTraining(network=net, options=options, **values)


def weights(net: DefectCAMNetwork) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int, n_batches: int) -> None:
    """Interrupt the last step of the epoch with this number, counted from 1 over all folds."""
    calls = {"n": 0}
    loss = TailTraining._loss
    losses_per_epoch = 2 * n_batches  # one for each level and batch

    def watched(self: TailTraining, logits: Tensor, batch: Tensor) -> Tensor:
        calls["n"] += 1
        if calls["n"] == number * losses_per_epoch:
            raise KeyboardInterrupt
        return loss(self, logits, batch)

    monkeypatch.setattr(TailTraining, "_loss", watched)
