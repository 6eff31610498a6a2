from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defectcam import student as student_module
from defectcam.student import StudentHead, _fit, draw, draw_all, fit_students


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def blurred(maps: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(maps[:, None], width, 1, width // 2)[:, 0]


class Parts:
    """Images with one spot each among the second half; features know spots, a teacher blurs them.

    The spot shows in one channel at a fine grid; other channels and the coarse level are noise.
    """

    def __init__(self, n: int = 24, size: int = 16):
        self.is_defect = np.arange(n) >= n // 2
        self.spots = torch.zeros(n, size, size)
        for i in np.flatnonzero(self.is_defect):
            y, x = 3 + i % 9, 3 + (5 * i) % 9
            self.spots[i, y : y + 2, x : x + 2] = 1.0
        fine = 0.2 * normal(n, 3, size, size)
        fine[:, 1] += self.spots
        self.levels = [fine, normal(n, 2, size // 2, size // 2, seed=1)]
        self.teacher = 9 / 4 * blurred(self.spots, 5)

    def features_of(self, rows: Tensor) -> list[Tensor]:
        return [level[rows] for level in self.levels]

    def student(self, seed: int = 0) -> StudentHead:
        return self.students([2], seed)[0]

    def students(self, depths: list[int], seed: int = 0) -> list[StudentHead]:
        return fit_students(self.features_of, depths, self.teacher, self.is_defect, seed)


def test_the_map_is_linear_in_the_features_on_the_finest_grid():
    student = StudentHead([3, 2])
    student.weight.copy_(normal(5))
    student.bias.fill_(0.5)
    fine, coarse = normal(2, 3, 8, 6), normal(2, 2, 4, 3, seed=1)
    joined = torch.cat([fine, F.interpolate(coarse, size=(8, 6), mode="bilinear")], dim=1)
    expected = torch.einsum("nchw,c->nhw", joined, student.weight) + 0.5
    torch.testing.assert_close(student([fine, coarse]), expected)
    turned = StudentHead([2, 3])
    turned.weight.copy_(torch.cat([student.weight[3:], student.weight[:3]]))
    turned.bias.fill_(0.5)
    torch.testing.assert_close(turned([coarse, fine]), expected)


def test_the_student_draws_spots_more_sharply_than_its_teacher():
    parts = Parts()
    drawn = draw_all([parts.student()], parts.features_of, len(parts.is_defect))[:, 0]
    defective = torch.from_numpy(parts.is_defect)
    inside = parts.spots[defective] > 0
    around = ~inside & (parts.teacher[defective] > 0.3)

    def contrast(maps: Tensor) -> float:
        """Distance of the spots from what surrounds them, in spreads of what is farther away."""
        far = maps[defective][~inside & ~around]
        difference = maps[defective][inside].mean() - maps[defective][around].mean()
        return float(difference / (maps[defective][inside].mean() - far.mean()))

    assert contrast(drawn) > 0.9
    assert contrast(parts.teacher) < 0.6


def test_the_same_seed_gives_the_same_student(monkeypatch):
    monkeypatch.setattr(student_module, "MAX_GOOD_POSITIONS", 200)
    parts = Parts()
    first, again, other = parts.student(0), parts.student(0), parts.student(1)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_a_sample_of_the_positions_teaches_nearly_the_same(monkeypatch):
    parts = Parts()
    everything = parts.student().weight
    monkeypatch.setattr(student_module, "MAX_DEFECTIVE_POSITIONS", 20)
    monkeypatch.setattr(student_module, "MAX_GOOD_POSITIONS", 1000)
    sampled = parts.student().weight
    assert F.cosine_similarity(everything, sampled, dim=0) > 0.9


def test_where_nothing_is_hot_there_is_no_student():
    parts = Parts()
    cold = 0.1 * parts.teacher
    assert fit_students(parts.features_of, [2], cold, parts.is_defect, 0) == []
    nothing = np.zeros_like(parts.is_defect)
    assert fit_students(parts.features_of, [2], parts.teacher, nothing, 0) == []


def test_each_student_reads_the_features_up_to_its_depth():
    parts = Parts()
    shallow, deep = parts.students([1, 2])
    assert (shallow.n_channels, deep.n_channels) == ([3], [3, 2])
    assert torch.equal(shallow.weight, parts.students([1])[0].weight)
    features = parts.features_of(torch.tensor([0, 20]))
    maps = draw([shallow, deep], features)
    assert torch.equal(maps[:, 0], shallow(features[:1]))
    assert torch.equal(maps[:, 1], deep(features))


def test_a_large_defect_has_no_more_say_than_a_small_one():
    maps = torch.zeros(3, 6, 6)
    maps[1, :4] = 1.0
    maps[2, 0, 0] = 1.0
    is_defect = torch.tensor([False, True, True])
    rng = np.random.RandomState(0)
    places, is_hot, weights = student_module._pseudo_labels(maps, is_defect, rng)
    assert np.all(np.diff(places) > 0)
    images = places // 36
    large, small = (weights[is_hot & (images == i)].sum() for i in (1, 2))
    assert large == pytest.approx(small)
    assert weights[is_hot].sum() == pytest.approx(student_module.DEFECTIVE_WEIGHT)
    assert weights.sum() == pytest.approx(1.0)


@given(seed=st.integers(0, 10_000))
def test_hot_positions_lie_in_defective_images_and_good_images_teach_cold_ones(seed):
    maps = normal(6, 5, 4, seed=seed)
    is_defect = torch.from_numpy(np.random.default_rng(seed).random(6) < 0.5)
    rng = np.random.RandomState(0)
    places, is_hot, weights = student_module._pseudo_labels(maps, is_defect, rng)
    assert len(places) == len(is_hot) == len(weights) == len(np.unique(places))
    images, values = places // 20, maps.flatten().numpy()[places]
    assert is_defect.numpy()[images[is_hot]].all()
    assert (values[is_hot] > student_module.LEAST_HEAT).all()
    good = np.flatnonzero(~is_defect.numpy())
    assert np.isin(np.flatnonzero(~is_defect.numpy().repeat(20)), places).all()
    assert not np.isin(images[is_hot], good).any()
    assert (weights > 0).all()


def test_a_channel_that_never_changes_counts_nothing():
    parts = Parts()
    parts.levels[0] = F.pad(parts.levels[0], (0, 0, 0, 0, 0, 1), value=7.0)
    weight = parts.student().weight
    assert weight.isfinite().all()
    assert weight[3] == 0


def test_a_constant_channel_counts_nothing_however_many_positions_there_are():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(50_000, 2)).astype(np.float32)
    samples[:, 1] = np.float32(np.float16(5.3))
    student = StudentHead([2])
    _fit(student, samples, samples[:, 0] > 0, np.full(len(samples), 1 / len(samples)))
    assert student.weight[1] == 0
