"""Class activation maps of other libraries, run on our network unchanged, equal our evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defectcam.backbones import create_backbone
from defectcam.cam import min_max
from defectcam.network import DefectCAMNetwork


@pytest.fixture
def network() -> DefectCAMNetwork:
    """Return a network with global average pooling and a linear head on its last stage."""
    net = DefectCAMNetwork(
        create_backbone("test_efficientnet", None),
        head_options={"n_classes": 3, "normalise": False, "pooling": "average", "init": "linear"},
        trainable_stages=1,
        evidence_stages=1,
    )
    return net.eval()


@pytest.fixture
def image() -> Tensor:
    values = np.random.default_rng(0).normal(size=(1, 3, 96, 128))
    return torch.from_numpy(values.astype(np.float32))


def hooks(net: nn.Module) -> list[object]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in net.modules() for name in names for hook in getattr(module, name)]


@pytest.mark.parametrize("class_index", [0, 1, 2])
def test_torchcam_gives_our_evidence(network, image, class_index):
    from torchcam.methods import CAM

    expected = network.infer(image).evidence[0, class_index].detach()
    with CAM(network, network.tail[-1], network.head.convs[0]) as extractor:
        assert hooks(network)
        network(image)
        (raw,) = extractor(class_idx=class_index, normalized=False)
        network(image)
        (scaled,) = extractor(class_idx=class_index)
    torch.testing.assert_close(raw[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scaled, min_max(expected[None]), atol=1e-4, rtol=1e-4)
    assert hooks(network) == []


@pytest.mark.parametrize("class_index", [0, 1, 2])
def test_grad_cam_gives_our_evidence_up_to_scale_and_sign(network, image, class_index):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    evidence = network.infer(image).evidence[:, class_index].detach()
    with GradCAM(network, [network.tail[-1]]) as grad_cam:
        assert hooks(network)
        heatmap = grad_cam(image, [ClassifierOutputTarget(class_index)])[0]
    # With global average pooling the gradient is the head's weight over the number of positions.
    # The other library rectifies, up-samples with OpenCV, and scales to [0, 1] before and after.
    rectified = evidence.relu()
    assert 0 < (rectified > 0).float().mean() <= 1
    enlarged = F.interpolate(min_max(rectified)[None], image.shape[2:], mode="bilinear")[0]
    np.testing.assert_allclose(heatmap, min_max(enlarged)[0].numpy(), atol=1e-3)
    assert hooks(network) == []
