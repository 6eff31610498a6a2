from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defectcam.second_look import join_looks, size_of_second_look

GRIDS = arrays(np.float32, (5, 7), elements=st.floats(-100, 100, width=32))


@pytest.mark.parametrize(
    ("image_size", "factor", "expected"),
    [
        ((320, 320), 1.3, (416, 416)),
        ((64, 96), 1.3, (96, 128)),
        ((320, 320), 1, (320, 320)),
        ((100, 30), 1, (100, 32)),  # never smaller than the first
        ((224, 448), 2, (448, 896)),
    ],
)
def test_sizes(image_size, factor, expected):
    assert size_of_second_look(image_size, factor) == expected


@given(st.integers(16, 2000), st.integers(16, 2000), st.floats(1, 4))
def test_sizes_are_near_the_factor_and_not_smaller(height, width, factor):
    found = size_of_second_look((height, width), factor)
    for side, seen in zip((height, width), found, strict=True):
        assert seen >= side
        assert seen % 32 == 0 or seen == side
        assert abs(seen - factor * side) <= 16


@given(GRIDS)
def test_maps_of_one_grid_are_averaged(first):
    np.testing.assert_allclose(join_looks(first, first), first, atol=1e-4)
    np.testing.assert_allclose(join_looks(first, -first), 0, atol=1e-4)


@given(GRIDS, arrays(np.float32, (8, 9), elements=st.floats(-100, 100, width=32)))
def test_maps_are_joined_on_the_finer_grid_as_torch_interpolates(first, second):
    joined = join_looks(first, second)
    assert joined.dtype == np.float32 and joined.shape == second.shape
    finer = F.interpolate(torch.from_numpy(first)[None, None], size=(8, 9), mode="bilinear")
    np.testing.assert_allclose(joined, (finer[0, 0].numpy() + second) / 2, atol=1e-4)
    mirrored = join_looks(np.ascontiguousarray(first[:, ::-1]), second[:, ::-1])
    np.testing.assert_allclose(mirrored[:, ::-1], joined, atol=1e-4)


@given(st.floats(-100, 100, width=32))
def test_constants_stay(value):
    joined = join_looks(np.full((4, 4), value, np.float32), np.full((6, 6), value, np.float32))
    np.testing.assert_allclose(joined, value, rtol=1e-6)
