from types import SimpleNamespace

import pytest
import torch
from torch import nn

from defectcam.precision import _GroupedConv2d, mixed_precision, resolve_precision

CPU = torch.device("cpu")


def conv(**options):
    torch.manual_seed(0)
    return nn.Conv2d(8, 16, 3, groups=8, **options)


def test_float32_changes_nothing():
    layer, x = conv(), torch.randn(2, 8, 9, 9)
    with mixed_precision(torch.float32, CPU):
        assert torch.equal(layer(x), layer(x))
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2, "padding": (1, 2)}, {"dilation": 2}, {"padding": "same"}],
)
def test_grouped_gradients_agree_with_float32(options):
    layer = conv(**options)
    x = torch.randn(2, 8, 9, 9).bfloat16().float().requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    with mixed_precision(torch.bfloat16, CPU):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    gradients = torch.autograd.grad(output.float().square().sum(), [x, *layer.parameters()])
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        error = (gradient - reference).norm() / reference.norm()
        assert error < 0.02


def test_frozen_weights_get_no_gradient():
    layer = conv().requires_grad_(False)
    x = torch.randn(1, 8, 5, 5, requires_grad=True)
    with mixed_precision(torch.bfloat16, CPU):
        layer(x).float().sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is None


def test_only_grouped_convolutions_of_a_training_are_special(monkeypatch):
    calls = []
    apply = _GroupedConv2d.apply
    monkeypatch.setattr(_GroupedConv2d, "apply", lambda *args: calls.append(1) or apply(*args))
    dense, depthwise = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=8)
    x = torch.randn(1, 8, 4, 4)
    with mixed_precision(torch.bfloat16, CPU):
        dense(x)
        with torch.no_grad():
            depthwise(x)
        assert not calls
        depthwise(x)
    assert len(calls) == 1


def test_the_automatic_choice_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert resolve_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("name, dtype", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_named_precision_is_used_whatever_the_processor(name, dtype):
    assert resolve_precision(name, CPU) == dtype


@pytest.mark.parametrize(
    ("major", "rocm", "dtype"),
    [(7, None, torch.float32), (8, None, torch.bfloat16), (9, "6.0", torch.bfloat16)],
)
def test_the_automatic_choice_asks_the_gpu_that_is_used_for_instructions(
    monkeypatch, major, rocm, dtype
):
    def properties(device: torch.device) -> SimpleNamespace:
        assert device == torch.device("cuda", 1)
        return SimpleNamespace(major=major)

    monkeypatch.setattr(torch.version, "hip", rocm)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert resolve_precision("auto", torch.device("cuda", 1)) == dtype


@pytest.mark.parametrize("groups", [1, 4])
def test_weights_that_were_trained_are_read_anew_within_the_callers_block(groups):
    layer, x = nn.Conv2d(4, 4, 3, groups=groups), torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        with mixed_precision(torch.bfloat16, CPU):
            before = layer(x)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(2)
        with mixed_precision(torch.bfloat16, CPU):
            torch.testing.assert_close(layer(x), 2 * before)
