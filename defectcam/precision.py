"""Devices and number types: where layers compute, and in float32 or bfloat16.

Owns the choice by the machine's abilities and the mixed precision that is fast there. It knows no
network and no parameters besides the names of device and precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRECISIONS = ("auto", "float32", "bfloat16")

_AMPERE = 8  # the first compute capability with instructions for bfloat16


def resolve_device(device: str) -> torch.device:
    """Choose the device: of ``"auto"`` a GPU where there is one, else the processor."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Choose the number type of the convolutions.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        ``"auto"``: bfloat16 where the device has instructions for it, else float32.
    device : torch.device
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # `torch.cuda.is_bf16_supported` counts emulation, and asks the current device.
        is_rocm = torch.version.hip is not None
        return is_rocm or torch.cuda.get_device_properties(device).major >= _AMPERE
    if device.type != "cpu":
        return False
    # Before it could be asked, torch emulated what it did not find, which is slower than float32.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def mixed_precision(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Compute convolutions in ``dtype`` within the block, with weights kept in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()  # torch 2.6 exports no block that is a generator
    return _reduced_precision(dtype, device)


@contextlib.contextmanager
def _reduced_precision(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(_GroupedGradientsInFloat32(dtype))
        # What was cast is forgotten when the outermost block ends only, which may be the caller's.
        stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=False))
        yield


class _GroupedGradientsInFloat32(TorchFunctionMode):
    """Send grouped convolutions through `_GroupedConv2d`, other calls as they are."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled():
            call = _conv2d_arguments(*args, **kwargs)
            if call["groups"] > 1 and not isinstance(call["padding"], str):
                with torch.autocast("cpu", enabled=False):
                    return _GroupedConv2d.apply(call.pop("input").to(self.dtype), *call.values())
        return func(*args, **kwargs)


def _conv2d_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> dict[str, Any]:
    return {
        "input": input,
        "weight": weight,
        "bias": bias,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


class _GroupedConv2d(torch.autograd.Function):
    """Grouped convolution in half precision whose gradients are computed in float32.

    On processors the depthwise gradient has no fast kernel for bfloat16: there it takes three times
    as long as in float32, and with it the whole training step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (_pair(stride), _pair(padding), _pair(dilation))
        ctx.groups = groups
        halved_bias = None if bias is None else bias.to(x.dtype)
        return torch.conv2d(x, weight.to(x.dtype), halved_bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient.float(),
            x.float(),
            weight,
            [weight.shape[0]] if wanted[2] else None,
            *ctx.geometry,
            False,
            [0, 0],
            ctx.groups,
            wanted,
        )
        of_x = None if of_x is None else of_x.to(x.dtype)
        return of_x, of_weight, of_bias, None, None, None, None


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]
