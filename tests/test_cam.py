from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from defectcam.cam import (
    STUDENT_SHARE,
    class_cam,
    defect_evidence,
    defect_margin,
    fuse,
    min_max,
    signed_cam,
    signed_cams,
)


def evidence(n_classes: int) -> Tensor:
    values = np.random.default_rng(0).normal(size=(3, n_classes, 4, 5))
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("good", [0, 1])
def test_of_two_classes_the_signed_cam_is_the_difference(good):
    maps = evidence(2)
    assert torch.equal(signed_cam(maps, good), maps[:, 1 - good] - maps[:, good])


def test_the_mean_of_the_signed_cam_is_the_log_odds_of_a_defect():
    maps, bias = evidence(2), torch.tensor([0.3, -0.7])
    logits = maps.mean((2, 3)) + bias
    probability = logits.softmax(1)[:, 0]
    log_odds = signed_cam(maps, good=1).mean((1, 2)) + bias[0] - bias[1]
    torch.testing.assert_close(log_odds, torch.logit(probability))


def test_of_several_types_the_strongest_speaks():
    maps = evidence(4)
    against_good = torch.stack([maps[:, c] - maps[:, 2] for c in (0, 1, 3)], dim=1)
    assert torch.equal(defect_evidence(maps, good=2), against_good)
    assert torch.equal(signed_cam(maps, good=2), against_good.max(1).values)


def test_signed_cams_are_that_of_the_sum_and_those_of_the_levels():
    levels = normal(3, 2, 3, 4, 5)
    whole, fine, coarse = signed_cams(levels, good=1).unbind(1)
    assert torch.equal(whole, signed_cam(levels[:, 0] + levels[:, 1], good=1))
    assert torch.equal(fine, signed_cam(levels[:, 0], good=1))
    assert torch.equal(coarse, signed_cam(levels[:, 1], good=1))
    assert not torch.allclose(whole, fine + coarse)  # each level has its own strongest type


def test_the_class_cam_does_not_see_the_good_class():
    maps = evidence(3)
    before = class_cam(maps, [0, 2])
    maps[:, 1] += 100
    assert torch.equal(class_cam(maps, [0, 2]), before)
    assert torch.equal(before, torch.maximum(maps[:, 0], maps[:, 2]))


def test_min_max_scales_each_map_by_itself():
    maps = torch.tensor([[[1.0, 3.0]], [[-10.0, 0.0]]])
    assert min_max(maps).tolist() == [[[0, 1]], [[0, 1]]]


def test_a_constant_map_becomes_zero():
    assert min_max(torch.full((2, 3, 3), 7.0)).eq(0).all()


@settings(deadline=None, max_examples=50)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_min_max_stays_between_zero_and_one_and_keeps_the_order(values):
    scaled = min_max(torch.from_numpy(values)).numpy()
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    for before, after in zip(values, scaled, strict=True):
        order = before.ravel().argsort()
        assert (np.diff(after.ravel()[order]) >= 0).all()
        if np.ptp(before) > 0:
            assert (after.min(), after.max()) == (0, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def positive(maps: Tensor) -> np.ndarray:
    return np.log1p(np.exp(2 * maps.numpy()))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_levels", [1, 2, 3])
def test_the_fused_map_is_the_geometric_mean_of_positive_maps(share, n_levels):
    cams, novelty = normal(2, n_levels, 4, 5), normal(2, 4, 5, seed=1)
    logarithm = share * np.log(positive(novelty))
    for level in range(n_levels):
        logarithm += (1 - share) / n_levels * np.log(positive(cams[:, level]))
    np.testing.assert_allclose(fuse(cams, novelty, share).numpy(), np.exp(logarithm), rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equal_levels_count_as_one(share):
    cam, novelty = normal(2, 1, 4, 5), normal(2, 8, 10, seed=1)
    thrice = fuse(cam.expand(-1, 3, -1, -1), novelty, share)
    torch.testing.assert_close(thrice, fuse(cam, novelty, share))


def test_all_maps_must_speak_for_a_pixel_to_be_hot():
    fine = torch.tensor([[[4.0, -4.0, 4.0, 4.0]]])
    coarse = torch.tensor([[[4.0, 4.0, -4.0, 4.0]]])
    novelty = torch.tensor([[[4.0, 4.0, 4.0, -4.0]]])
    everywhere, *silent = fuse(torch.stack([fine, coarse], dim=1), novelty, 1 / 3)[0, 0].tolist()
    assert all(everywhere > 10 * one for one in silent)


@pytest.mark.parametrize("n_students", [1, 3])
def test_students_have_their_share_of_the_geometric_mean(n_students):
    cams, novelty, students = normal(2, 2, 5, 6), normal(2, 5, 6), normal(2, n_students, 5, 6)
    drawn = np.log(np.log1p(np.exp(2 * students.double().numpy()))).mean(axis=1)
    fused = np.log(fuse(cams, novelty, 0.3).double().numpy())
    expected = np.exp((1 - STUDENT_SHARE) * fused + STUDENT_SHARE * drawn)
    found = fuse(cams, novelty, 0.3, students)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_maps_of_students_are_brought_to_the_grid_of_the_novelty_without_aligned_corners():
    calm = torch.zeros(1, 1, 4, 4)
    found = fuse(calm, calm[:, 0], 0.5, torch.tensor([[[[-3.0, 3.0]]]]))[0, 0]
    # A quarter and three quarters of the way between the two centres, and beyond them their values.
    widened = torch.tensor([[[[-3.0, -1.5, 1.5, 3.0]]]]).expand(1, 1, 4, 4)
    torch.testing.assert_close(found, fuse(calm, calm[:, 0], 0.5, widened)[0, 0])


def test_the_smallest_span_is_stretched_too():
    found = min_max(torch.tensor([[[1.0, 1.25, 1.5]]]))
    assert found[0, 0].tolist() == [0.0, 0.5, 1.0]


def test_the_fused_map_lies_on_the_grid_of_the_novelty():
    assert fuse(normal(2, 3, 3, 4), normal(2, 12, 16), 0.5).shape == (2, 12, 16)


def test_far_values_give_finite_fused_maps():
    far = torch.tensor([[[-1e3, 1e3]]])
    cams = torch.stack([far, far, far.flip(2)], dim=1)
    for share in (0.0, 0.5, 1.0):
        assert fuse(cams, far, share).isfinite().all()
        assert fuse(cams, far.flip(2), share).isfinite().all()


def test_the_fused_maps_evidence_keeps_its_cells_centres():
    cam = torch.tensor([[[[0.0, 1.0]]]])
    fused = fuse(cam, torch.zeros(1, 1, 4), novelty_share=0.0)
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0])  # half a cell from the border, not on it
    torch.testing.assert_close(fused[0, 0], torch.log1p(torch.exp(2 * expected)))


@pytest.mark.parametrize("good", [0, 1, 2])
def test_the_margin_is_the_log_odds_of_any_defect(good):
    logits = torch.tensor([[1.0, -2.0, 0.5], [9.0, 0.0, -9.0]], dtype=torch.float64)
    share = logits.softmax(1)[:, good]
    torch.testing.assert_close(defect_margin(logits, good), torch.log((1 - share) / share))
