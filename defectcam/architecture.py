"""From an estimator's parameters to the network and its preprocessing.

Owns which parameters a network is made with, and what they mean for its parts. It trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from defectcam.backbones import create_backbone
from defectcam.network import DefectCAMNetwork
from defectcam.precision import resolve_device, resolve_precision
from defectcam.preprocess import Preprocess

__all__ = ["OF_NETWORK", "build_network"]

#: Parameters that a network is made with; once there is one, setting them does not change it.
OF_NETWORK = (
    "backbone",
    "weights",
    "image_size",
    "resize",
    "normalisation",
    "trainable_stages",
    "evidence_stages",
    "normalise_evidence",
    "novelty_strides",
    "pooling",
    "pooling_fraction",
    "head_init",
    "heatmap",
    "precision",
)


def build_network(
    parameters: Mapping[str, Any], n_classes: int, good: int
) -> tuple[DefectCAMNetwork, Preprocess]:
    """Make a network, pre-trained but untrained, and what makes its input.

    Parameters
    ----------
    parameters : mapping
        Those of `DefectCAMClassifier`; `OF_NETWORK` and ``device`` are read.
    n_classes : int
    good : int
        Index of the good class.
    """
    backbone = create_backbone(parameters["backbone"], parameters["weights"])
    unit = parameters["normalisation"] == "unit"
    preprocess = Preprocess(
        parameters["image_size"],
        mean=(0.0, 0.0, 0.0) if unit else backbone.mean,
        std=(1.0, 1.0, 1.0) if unit else backbone.std,
        resize=parameters["resize"],
    )
    pooling = parameters["pooling"]
    needs_novelty = parameters["heatmap"] == "fused" or pooling == "novelty_top_k"
    network = DefectCAMNetwork(
        backbone,
        head_options={
            "n_classes": n_classes,
            "normalise": parameters["normalise_evidence"],
            "pooling": pooling,
            "fraction": parameters["pooling_fraction"],
            "reference": None if pooling == "average" else good,
            "init": parameters["head_init"],
        },
        trainable_stages=parameters["trainable_stages"],
        evidence_stages=parameters["evidence_stages"],
        novelty_strides=parameters["novelty_strides"] if needs_novelty else (),
    )
    device = resolve_device(parameters["device"])
    network.to(device, torch.float32).to(memory_format=torch.channels_last)
    network.set_dtype(resolve_precision(parameters["precision"], device))
    return network.eval(), preprocess.to(device)
