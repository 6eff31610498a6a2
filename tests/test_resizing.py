"""The resize, on the processor and in exported graphs, against torch's, for all sizes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from defectcam.geometry import Geometry
from defectcam.resizing import resize, resize_padded, resize_stretched

SIDES = st.integers(1, 300)
INPUT_SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))

#: Of 255. torch finds the place of a pixel in float32, which is off by some 1e-5 pixels.
TOLERANCE = 0.02


def draw(height: int, width: int, n: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    size = (n, height, width, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def resized_by_torch(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    planes = pixels.permute(0, 3, 1, 2).float()
    return F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)


@given(SIDES, SIDES, INPUT_SIZES)
def test_stretched_images_are_torch_s(height: int, width: int, input_size: tuple[int, int]) -> None:
    pixels = draw(height, width)
    resized = resize_stretched(pixels, input_size)
    assert resized.shape == (1, 3, *input_size)
    expected = resized_by_torch(pixels, input_size)
    torch.testing.assert_close(resized, expected, atol=TOLERANCE, rtol=0)
    on_the_processor = torch.from_numpy(resize(pixels[0].numpy(), input_size))
    assert on_the_processor.shape == (*input_size, 3)
    # The same weights, summed in another order.
    torch.testing.assert_close(on_the_processor, resized[0].permute(1, 2, 0), atol=1e-3, rtol=0)


@given(SIDES, SIDES, INPUT_SIZES, st.sampled_from([1, 2, 4, 8]))
def test_padded_images_are_torch_s(
    height: int, width: int, input_size: tuple[int, int], reduction: int
) -> None:
    geometry = Geometry.pad((height, width), input_size)
    pixels = draw(-(-height // reduction), -(-width // reduction))
    resized = resize_padded(pixels, torch.tensor(geometry.content), input_size)
    assert resized.shape == (1, 3, *input_size)
    top, left, *size = geometry.content
    content = resized[:, :, top : top + size[0], left : left + size[1]]
    expected = resized_by_torch(pixels, (size[0], size[1]))
    torch.testing.assert_close(content, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [(3000, 20), (2, 5000), (1, 1)])
def test_extreme_images_too(size: tuple[int, int]) -> None:
    pixels = draw(*size, n=2)
    expected = resized_by_torch(pixels, (64, 96))
    resized = resize_stretched(pixels, (64, 96))
    torch.testing.assert_close(resized, expected, atol=TOLERANCE, rtol=0)
    assert resized.unique().numel() > 1


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_strip_is_not_enlarged_at_its_full_length(size: tuple[int, int]) -> None:
    strip = draw(*size)
    pixels = strip[0].numpy()
    tracemalloc.start()
    resized = resize(pixels, (320, 320))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # 77 MB for 320 lines of such a length
    expected = resized_by_torch(strip, (320, 320))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(resized, expected, atol=TOLERANCE)


def test_an_even_image_stays_even() -> None:
    pixels = torch.full((1, 801, 333, 3), 200, dtype=torch.uint8)
    resized = resize_stretched(pixels, (320, 320))
    torch.testing.assert_close(resized, torch.full_like(resized, 200.0), atol=1e-3, rtol=0)
