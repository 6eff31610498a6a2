from __future__ import annotations

import numpy as np
import pytest
import torch

from defectcam import novelty
from defectcam.novelty import (
    GOOD_PATCH_QUANTILE,
    Codebook,
    describe_patches,
    novelty_peak,
    smooth_novelty,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_codebook(n_channels: int = 5, n_centres: int = 7) -> Codebook:
    codebook = Codebook(n_channels, n_centres)
    codebook.scale.copy_(torch.from_numpy(np.abs(normal(n_channels, seed=1)) + 0.5))
    codebook.centres.copy_(torch.from_numpy(normal(n_centres, n_channels, seed=2)))
    return codebook


def test_the_map_is_the_distance_to_the_nearest_centre():
    codebook, patches = random_codebook(), normal(2, 5, 3, 4)
    scaled = patches / codebook.scale.numpy()[:, None, None]
    differences = scaled[:, None] - codebook.centres.numpy()[None, :, :, None, None]
    expected = np.sqrt((differences**2).sum(2)).min(1)
    np.testing.assert_allclose(codebook(torch.from_numpy(patches)).numpy(), expected, rtol=1e-4)


def test_centres_are_not_novel():
    codebook = random_codebook()
    patches = (codebook.centres * codebook.scale).T[None, :, :, None]
    distance = codebook(patches)
    assert distance.shape == (1, 7, 1)
    assert (distance < 2e-3).all()  # the root of float32's rounding
    assert (distance >= 0).all()


def test_a_patch_seen_on_good_parts_is_less_novel_than_any_other():
    good = normal(200, 5) * np.array([1, 10, 0.1, 1, 1], dtype=np.float32)
    codebook = Codebook.fit(good, n_centres=20, random_state=0)
    seen = codebook(torch.from_numpy(good.T[None, :, :, None])).flatten()
    other = good.copy()
    other[:, 2] += 1.0  # ten deviations in the weakest channel
    unseen = codebook(torch.from_numpy(other.T[None, :, :, None])).flatten()
    assert unseen.min() > seen.max()


def test_the_scale_is_the_deviation_of_each_channel():
    patches = normal(100, 4) * np.array([1, 5, 0, 2], dtype=np.float32)
    codebook = Codebook.fit(patches, n_centres=3, random_state=0)
    expected = patches.std(0)
    expected[2] = 1  # a channel that never varies is not divided by 0
    np.testing.assert_allclose(codebook.scale.numpy(), expected, rtol=1e-6)


def test_a_constant_channel_is_found_however_many_patches_there_are():
    patches = normal(50_000, 2)
    patches[:, 1] = np.float32(np.float16(5.3))  # whose deviation NumPy says is .003
    codebook = Codebook.fit(patches, n_centres=3, random_state=0)
    assert codebook.scale[1] == 1


@pytest.mark.parametrize(("n_patches", "n_centres"), [(3, 1), (48, 6), (400, 50), (9000, 50)])
def test_a_centre_stands_for_several_patches(n_patches, n_centres):
    codebook = Codebook.fit(normal(n_patches, 4), n_centres=50, random_state=0)
    assert codebook.centres.shape == (n_centres, 4)


def test_a_codebook_is_decided_by_its_seed(generators_untouched):
    patches = normal(300, 4)
    first, again = (Codebook.fit(patches, n_centres=10, random_state=3) for _ in range(2))
    other = Codebook.fit(patches, n_centres=10, random_state=4)
    assert torch.equal(first.centres, again.centres)
    assert not torch.equal(first.centres, other.centres)


def test_a_sample_of_many_patches_is_used(monkeypatch):
    monkeypatch.setattr(novelty, "MAX_CODEBOOK_PATCHES", 160)
    codebook = Codebook.fit(normal(1000, 4), n_centres=50, random_state=0)
    assert codebook.centres.shape == (20, 4)


def test_the_patches_given_are_left_as_they_are():
    patches = normal(50, 4)
    before = patches.copy()
    Codebook.fit(patches, n_centres=5, random_state=0)
    assert np.array_equal(patches, before)


def test_a_codebook_is_part_of_the_state_but_is_not_trained():
    codebook = random_codebook()
    assert set(codebook.state_dict()) == {"scale", "centres", "typical", "limit"}
    assert list(codebook.parameters()) == []


@pytest.mark.parametrize("sizes", [[(8, 12)], [(8, 12), (4, 6)], [(16, 24), (8, 12), (3, 5)]])
def test_patches_lie_on_the_coarsest_grid(sizes):
    levels = [torch.from_numpy(normal(2, 3 + i, *size)) for i, size in enumerate(sizes)]
    patches = describe_patches(levels)
    assert patches.shape == (2, sum(level.shape[1] for level in levels), *sizes[-1])


def test_a_patch_is_the_mean_of_its_neighbours_within_the_image():
    values = normal(1, 2, 5, 6)
    expected = np.empty_like(values)
    for row in range(5):
        for column in range(6):
            window = values[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            expected[:, :, row, column] = window.mean((2, 3))
    patches = describe_patches([torch.from_numpy(values)])
    np.testing.assert_allclose(patches.numpy(), expected, atol=1e-6)


def test_finer_levels_come_first_and_are_averaged_down():
    fine = torch.from_numpy(normal(1, 1, 4, 4))
    coarse = torch.full((1, 2, 2, 2), 9.0)
    patches = describe_patches([fine, coarse])
    torch.testing.assert_close(patches[0, 0], fine.mean().expand(2, 2))
    assert patches[0, 1:].eq(9).all()


def test_zero_is_typical_of_good_patches_and_one_their_limit():
    good = normal(400, 4)
    novelty = Codebook.fit(good, n_centres=10, random_state=0)(
        torch.from_numpy(good.T[None, :, :, None])
    )
    assert np.median(novelty.numpy()) == pytest.approx(0, abs=1e-3)
    assert np.quantile(novelty.numpy(), GOOD_PATCH_QUANTILE) == pytest.approx(1, abs=1e-3)


def test_the_scale_of_equal_patches_is_usable():
    codebook = Codebook.fit(np.ones((30, 2), dtype=np.float32), n_centres=1, random_state=0)
    novelty = codebook(torch.tensor([1.0, 3.0]).expand(1, 2, 1, 2))
    assert novelty.isfinite().all()
    assert novelty[0, 0, 0] < novelty[0, 0, 1]


def test_the_peak_is_the_highest_mean_of_five_by_five_patches():
    maps = normal(2, 6, 7)
    expected = [
        max(
            one[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].mean()
            for row in range(6)
            for column in range(7)
        )
        for one in maps
    ]
    np.testing.assert_allclose(novelty_peak(torch.from_numpy(maps)).numpy(), expected, rtol=1e-5)


def test_a_smooth_map_averages_neighbours_within_the_image():
    maps = normal(2, 4, 5)
    smooth = smooth_novelty(torch.from_numpy(maps)).numpy()
    assert smooth.shape == maps.shape
    np.testing.assert_allclose(smooth[:, 1, 2], maps[:, 0:3, 1:4].mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(smooth[:, 0, 0], maps[:, 0:2, 0:2].mean((1, 2)), rtol=1e-4)


def test_a_patch_that_is_a_centre_has_a_finite_gradient():
    patches = torch.tensor([[[[1.0, 4.0]], [[2.0, 6.0]]]], requires_grad=True)
    codebook = Codebook(2, 1)
    codebook.centres.copy_(torch.tensor([[1.0, 2.0]]))
    novelty = codebook(patches)
    assert novelty[0, 0].tolist() == [0.0, 5.0]
    (gradient,) = torch.autograd.grad(novelty.sum(), patches)
    np.testing.assert_allclose(gradient[0, :, 0].numpy(), [[0, 0.6], [0, 0.8]], atol=1e-6)


def test_an_updated_codebook_learns_what_is_new_and_forgets_nothing():
    rng = np.random.default_rng(0)
    old, new = (rng.normal(m, 1, size=(400, 3)).astype(np.float32) for m in (0, 20))
    before = Codebook.fit(old, 16, 0)
    after = Codebook.fit(np.concatenate([old, new]), 16, 0, before)
    alone = Codebook.fit(new, 16, 0, before)

    def novelty(codebook: Codebook, patches: np.ndarray) -> float:
        grid = torch.from_numpy(patches.T.reshape(1, 3, 20, 20).copy())
        scaled = (grid / codebook.scale[:, None, None]).flatten(2)[0].T
        return float(torch.cdist(scaled, codebook.centres).amin(1).median())

    assert novelty(before, new) > 5 * novelty(before, old)
    assert novelty(after, new) < 2 * novelty(after, old) + 1
    # Centres that no new patch is near stay where they were.
    centres = alone.centres * alone.scale
    distance = torch.cdist(before.centres * before.scale, centres).amin(1)
    assert (distance < 1e-3).sum() >= 10
    assert Codebook.fit(new[:4], 16, 0, before) is before
