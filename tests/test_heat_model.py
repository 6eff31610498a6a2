from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defectcam.cam import fuse, signed_cam, signed_cams
from defectcam.heat_model import (
    AUROC_TOLERANCE,
    GOOD_PIXEL_QUANTILE,
    NOVELTY_SHARES,
    PEAK_FRACTION,
    USUAL_POINT_SPREAD,
    HeatModel,
    HeatScale,
    choose_novelty_share,
    fit_heat_model,
    fit_heat_scale,
    fit_point_spread,
    held_out_maps,
    with_students,
)
from defectcam.novelty import smooth_novelty


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("good", [0, 1])
def test_the_heatmap_of_good_images_alone_is_novelty_on_its_scale(good):
    novelty = torch.from_numpy(normal(20, 12, 14))
    cams, is_defect = torch.zeros(20, 3, 6, 7), np.zeros(20, bool)
    model = fit_heat_model("fused", good, cams, novelty, (0.0,) * 3, is_defect, (8, 10))
    maps = model.grids(torch.zeros(20, 2, 2, 6, 7), novelty)
    assert model.novelty_share == 1
    assert maps.median() == pytest.approx(0, abs=1e-2)
    assert np.quantile(maps.numpy(), GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-2)
    order = smooth_novelty(novelty).flatten().argsort()
    assert (maps.flatten()[order].diff() >= -1e-5).all()


UNIT = HeatScale(0.0, 1.0)


def heat_model(kind: str, good: int, **fields: Any) -> HeatModel:
    defaults = {
        "cam_scale": UNIT,
        "novelty_scale": UNIT,
        "novelty_share": 0.5,
        "fused_scale": UNIT,
        "input_size": (8, 10),
        "level_scales": (UNIT, UNIT),
    }
    return HeatModel(kind, good, **{**defaults, **fields})


def levels(n_classes: int = 2, n_levels: int = 2) -> Tensor:
    """Return evidence of 3 images."""
    return torch.from_numpy(normal(3, n_levels, n_classes, 4, 5))


def test_the_median_of_good_pixels_becomes_zero_and_their_quantile_one():
    maps = torch.from_numpy(normal(20, 50, 60) * 3 + 5)
    scaled = fit_heat_scale(maps).apply(maps).numpy()
    assert np.median(scaled) == pytest.approx(0, abs=1e-5)
    assert np.quantile(scaled, GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-5)


def test_a_constant_map_gets_a_usable_scale():
    scale = fit_heat_scale(torch.full((3, 4, 4), 2.0))
    assert scale.apply(torch.tensor([2.0, 3.0])).tolist() == [0, 1]


def test_a_shifted_scale_is_that_of_maps_that_are_higher():
    maps = torch.from_numpy(normal(3, 4, 5))
    scale = HeatScale(0.5, 2.5)
    torch.testing.assert_close(scale.shifted(7.0).apply(maps + 7), scale.apply(maps))


@pytest.mark.parametrize("n_levels", [1, 3])
def test_the_cam_of_all_levels_together_is_put_on_its_scale(n_levels):
    maps = levels(n_levels=n_levels)
    grids = heat_model("cam", 1, cam_scale=HeatScale(0.5, 2.5)).grids(maps, None)
    evidence = maps.sum(1)
    torch.testing.assert_close(grids, (evidence[:, 0] - evidence[:, 1] - 0.5) / 2)


def test_the_published_map_is_scaled_by_each_image_itself():
    maps = levels()
    grids = heat_model("min_max_cam", 0, cam_scale=HeatScale(0.5, 2.5)).grids(maps, None)
    enlarged = F.interpolate(grids[:, None], size=(8, 10), mode="bilinear")[:, 0]
    own = F.interpolate(maps.sum(1)[:, 1:], size=(8, 10), mode="bilinear")[:, 0]
    for shown, map_ in zip(enlarged, own, strict=True):
        torch.testing.assert_close(shown, (map_ - map_.min()) / (map_.max() - map_.min()))


def test_the_fused_map_lies_on_the_grid_of_the_novelty():
    maps, novelty = levels(), torch.from_numpy(normal(3, 8, 10))
    grids = heat_model("fused", 0, fused_scale=HeatScale(0.5, 2.5)).grids(maps, novelty)
    expected = fuse(maps[:, :, 1] - maps[:, :, 0], smooth_novelty(novelty), 0.5)
    assert grids.shape == (3, 8, 10)
    torch.testing.assert_close(grids, (expected - 0.5) / 2)


def test_each_level_is_fused_on_its_own_scale():
    maps, novelty = levels(n_classes=3), torch.from_numpy(normal(3, 8, 10))
    scales = (HeatScale(-1.0, 3.0), HeatScale(10.0, 10.5))
    grids = heat_model("fused", 1, level_scales=scales).grids(maps, novelty)
    strongest = maps[:, :, [0, 2]].amax(2) - maps[:, :, 1]
    cams = torch.stack([(strongest[:, 0] + 1) / 4, (strongest[:, 1] - 10) / 0.5], dim=1)
    torch.testing.assert_close(grids, fuse(cams, smooth_novelty(novelty), 0.5))


def test_a_model_without_scales_of_the_levels_fuses_their_sum():
    """As 0.1.0 did."""
    maps, novelty = levels(), torch.from_numpy(normal(3, 8, 10))
    scale = HeatScale(-1.0, 3.0)
    older = heat_model("fused", 1, cam_scale=scale, level_scales=())
    one_level = heat_model("fused", 1, level_scales=(scale,))
    together = maps.sum(1, keepdim=True)
    torch.testing.assert_close(older.grids(maps, novelty), one_level.grids(together, novelty))


def test_scales_of_other_levels_are_not_mixed_up():
    with pytest.raises(ValueError, match="zip"):
        heat_model("fused", 0).grids(levels(n_levels=3), torch.zeros(3, 8, 10))


@pytest.mark.parametrize("kind", ["cam", "fused", "min_max_cam"])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_the_maps_of_the_types_are_the_cams_parts(kind, good):
    maps = levels(n_classes=3)
    model = heat_model(kind, good, cam_scale=HeatScale(0.5, 2.5))
    grids = model.type_grids(maps)
    assert torch.equal(grids.amax(1), model._replace(kind="cam").grids(maps, None))
    evidence = maps.sum(1)
    for grid, label in zip(grids.unbind(1), {0, 1, 2} - {good}, strict=True):
        torch.testing.assert_close(grid, (evidence[:, label] - evidence[:, good] - 0.5) / 2)


def trained_model(kind: str, shifts: tuple[float, float]) -> tuple[HeatModel, Tensor, Tensor]:
    """Fit a model to 20 good and 10 defective images; return it, the final evidence and novelty.

    In the final network the evidence of the levels is higher by `shifts` than in the tails that the
    model is fitted to, and these maps are shifted to a median of 0.
    """
    is_defect = np.arange(30) >= 20
    final = torch.from_numpy(normal(30, 2, 2, 6, 7))
    final[:, 1] *= 3
    # Fewer than one half of the positions of either level, but more of the sum: the median of the
    # sum is not the sum of the medians.
    final[:, 0, 1, :, :3] += 20
    final[:, 1, 1, :, 4:] += 20
    final[20:, :, 1, 2:4, 2:4] += 400
    cams = signed_cams(final, 0)
    medians = torch.tensor([float(cam.quantile(0.5)) for cam in cams[:20].unbind(1)])
    novelty = torch.from_numpy(normal(30, 12, 14, seed=1))
    novelty[20:, 4:8, 4:8] += 20
    typical = medians + torch.tensor([sum(shifts), *shifts])
    final[:, :, 1] += torch.tensor(shifts)[:, None, None]
    model = fit_heat_model(
        kind, 0, cams - medians[:, None, None], novelty, typical.tolist(), is_defect, (8, 10)
    )
    return model, final, novelty


SHIFTS = pytest.mark.parametrize("shifts", [(0.0, 0.0), (30.0, 0.0), (-30.0, 10.0)])


@pytest.mark.parametrize("kind", ["cam", "fused"])
@SHIFTS
def test_on_good_images_zero_is_typical_and_one_the_limit(kind, shifts):
    model, final, novelty = trained_model(kind, shifts)
    maps = model.grids(final, novelty)
    good, defective = maps[:20], maps[20:]
    assert good.median() == pytest.approx(0, abs=1e-2)
    assert np.quantile(good.numpy(), GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-2)
    assert (defective.amax((1, 2)) > 1.5).all()


@pytest.mark.parametrize("kind", ["cam", "fused"])
@SHIFTS
def test_each_level_of_the_final_network_has_its_typical_value_and_its_limit(kind, shifts):
    model, final, _ = trained_model(kind, shifts)
    assert len(model.level_scales) == 2
    for scale, level in zip(model.level_scales, final[:20].unbind(1), strict=True):
        good = scale.apply(signed_cam(level, 0)).numpy()
        assert np.median(good) == pytest.approx(0, abs=1e-4)
        assert np.quantile(good, GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-4)


@SHIFTS
def test_held_out_maps_are_those_of_the_final_network_where_both_agree(shifts):
    model, final, novelty = trained_model("fused", shifts)
    cams = signed_cams(final, 0)
    typical = [float(cam.quantile(0.5)) for cam in cams[:20].unbind(1)]
    centred = cams - torch.tensor(typical)[:, None, None]
    maps = held_out_maps(model, centred, novelty, typical)
    torch.testing.assert_close(maps, model.grids(final, novelty), rtol=1e-3, atol=1e-3)


@SHIFTS
def test_with_students_good_images_stay_calm_and_what_students_see_is_hotter(shifts):
    model, final, novelty = trained_model("fused", shifts)
    students = torch.from_numpy(normal(30, 2, 8, 10, seed=2))
    students[20:25, :, 2:5, 2:5] += 20
    is_defect = np.arange(30) >= 20
    cams = signed_cams(final, 0)
    typical = [float(cam.quantile(0.5)) for cam in cams[:20].unbind(1)]
    centred = cams - torch.tensor(typical)[:, None, None]
    taught = with_students(model, centred, novelty, students, typical, is_defect)
    assert len(taught.student_scales) == 2 and not model.student_scales
    maps = taught.grids(final, novelty, students)
    good, seen, unseen = maps[:20], maps[20:25], maps[25:]
    assert good.median() == pytest.approx(0, abs=1e-2)
    assert np.quantile(good.numpy(), GOOD_PIXEL_QUANTILE) == pytest.approx(1, abs=1e-2)
    assert seen.amax((1, 2)).min() > unseen.amax((1, 2)).max()


def test_a_model_without_students_scales_takes_no_notice_of_students():
    model, final, novelty = trained_model("fused", (0.0, 0.0))
    students = torch.from_numpy(normal(30, 2, 8, 10))
    assert torch.equal(model.grids(final, novelty, students), model.grids(final, novelty))


def hills(*sigmas: float, height: float = 3.0) -> Tensor:
    """Draw a hill per map, as wide as a Gaussian of so many cells."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij")
    squares = (y - 17) ** 2 + (x - 20) ** 2
    return torch.stack([height * torch.exp(-squares / (2 * s**2)) for s in sigmas])


def test_the_narrowest_hills_are_what_points_become():
    wide, narrow = hills(*[5.0] * 92), hills(*[2.5] * 8)
    spread = fit_point_spread(torch.cat((wide, narrow)))
    assert spread == pytest.approx(2.355 * 2.5, rel=0.1)
    assert fit_point_spread(wide) == pytest.approx(2.355 * 5, rel=0.1)


def test_maps_that_do_not_pass_the_limit_do_not_say_what_points_become():
    assert fit_point_spread(hills(3.0, 4.0, height=1.0)) == USUAL_POINT_SPREAD
    assert fit_point_spread(hills(3.0)[:0]) == USUAL_POINT_SPREAD
    both = torch.cat((hills(4.0), hills(2.0, height=0.9)))
    assert fit_point_spread(both) == fit_point_spread(hills(4.0))


@pytest.mark.parametrize("kind", ["fused", "cam", "min_max_cam"])
def test_a_model_knows_what_a_point_becomes_in_its_maps(kind):
    cams = torch.from_numpy(normal(40, 3, 40, 36)) * 0.01
    novelty = torch.from_numpy(normal(40, 40, 36)) * 0.01
    is_defect = np.arange(40) % 2 == 0
    cams[::2] += hills(*[3.0] * 20)[:, None]
    novelty[::2] += hills(*[3.0] * 20)
    model = fit_heat_model(kind, 0, cams, novelty, (0.0,) * 3, is_defect, (320, 288))
    if kind == "min_max_cam":  # has no fixed heights
        assert model.point_spread == 0
        return
    assert model.point_spread == pytest.approx(2.355 * 3, rel=0.25)  # more where it is steeper
    sharper = fit_heat_model(
        kind, 0, cams[:, :, ::2, ::2], novelty[:, ::2, ::2], (0.0,) * 3, is_defect, (160, 144)
    )
    assert sharper.point_spread == pytest.approx(model.point_spread / 2, rel=0.25)


def maps_with(peaks: np.ndarray, seed: int) -> Tensor:
    """Return a map per image, noise with one peak of the given height."""
    maps = torch.from_numpy(normal(len(peaks), 12, 14, seed=seed))
    maps[:, 5, 5] += torch.from_numpy(peaks.astype(np.float32))
    return maps


@pytest.mark.parametrize(
    ("evidence", "novelty", "expected"),
    [("right", "right", 1.0), ("right", "wrong", 0.0), ("wrong", "right", 1.0)],
)
def test_novelty_leads_the_fused_map_unless_its_peaks_mislead(evidence, novelty, expected):
    is_defect = np.arange(40) >= 20
    peaks = {"right": np.where(is_defect, 30, 0), "wrong": np.where(is_defect, 0, 30)}
    cams = torch.stack([maps_with(peaks[evidence], seed) for seed in (0, 2)], dim=1)
    share = choose_novelty_share(cams, maps_with(peaks[novelty], 1), is_defect)
    assert (share > 0.5) == (expected > 0.5)
    if evidence == novelty or novelty == "right":
        assert share == 1


@pytest.mark.parametrize(("wrong", "lasts"), [(0, True), (3, True), (12, False)])
def test_the_largest_share_is_taken_that_costs_no_more_than_the_tolerance(wrong, lasts):
    """Evidence tells all images apart; novelty overlooks some of 100 defective ones."""
    is_defect = np.arange(200) >= 100
    cam = maps_with(np.where(is_defect, 30, 0), 0)
    peaks = np.where(is_defect, 30, 0)
    peaks[100 : 100 + wrong] = 0
    share = choose_novelty_share(cam[:, None], maps_with(peaks, 1), is_defect)
    assert (share == 1) == lasts
    if not lasts:
        assert 0 < share < 1


def area_under_curve(is_defect: np.ndarray, peaks: list[float]) -> float:
    """Share of the pairs of a defective and a good image that the peaks order rightly."""
    pairs = [
        (peaks[d] > peaks[g]) + (peaks[d] == peaks[g]) / 2
        for d in np.flatnonzero(is_defect)
        for g in np.flatnonzero(~is_defect)
    ]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("size", [(4, 5), (12, 14), (20, 24)])
@pytest.mark.parametrize("seed", range(12))
def test_no_larger_share_of_novelty_than_the_chosen_one_is_borne_out(size, seed):
    """Of 7 x 9 pairs, one is less than the tolerance and two are more."""
    is_defect = np.arange(16) >= 9
    cams = torch.from_numpy(normal(16, 2, *size, seed=seed))
    novelty = torch.from_numpy(normal(16, *size, seed=100 + seed))
    cams[9:, :, 1:3, 1:3] += 2.5
    novelty[9:, 1:3, 1:3] += seed % 3
    n_peak = max(1, round(PEAK_FRACTION * size[0] * size[1]))
    areas = {}
    for share in NOVELTY_SHARES:
        fused = fuse(cams, novelty, share).reshape(16, -1).double().tolist()
        peaks = [sum(sorted(values)[-n_peak:]) / n_peak for values in fused]
        areas[share] = area_under_curve(is_defect, peaks)
    best = max(areas.values())
    borne_out = [share for share, area in areas.items() if best - area < AUROC_TOLERANCE]
    assert choose_novelty_share(cams, novelty, is_defect) == max(borne_out)
