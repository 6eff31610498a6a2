from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from defectcam.calibration import (
    AUROC_TOLERANCE,
    GOOD_PIXEL_QUANTILE,
    INVERSE_REGULARISATION,
    LEAST_FAMILIARITY_LIMIT,
    NOVELTY_SHARES,
    NOVELTY_TRUST,
    PEAK_FRACTION,
    USUAL_POINT_SPREAD,
    DefectProbability,
    HeatModel,
    HeatScale,
    calm_novelty,
    choose_novelty_share,
    choose_threshold,
    defect_scores,
    fit_defect_probability,
    fit_familiarity_limit,
    fit_heat_model,
    fit_heat_scale,
    fit_novelty_probability,
    fit_point_spread,
    held_out_maps,
    with_students,
)
from defectcam.cam import fuse, signed_cam, signed_cams
from defectcam.novelty import smooth_novelty


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def held_out(n: int = 60, distance: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    is_defect = np.arange(n) % 3 == 0
    scores = normal(n).astype(np.float64) + distance * is_defect
    return scores[:, None], is_defect


# --- Scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [0, 1])
def test_of_two_classes_the_score_is_the_difference_of_the_logits(good):
    logits = torch.from_numpy(normal(5, 2))
    expected = logits[:, 1 - good].double() - logits[:, good].double()
    np.testing.assert_allclose(defect_scores(logits, None, good)[:, 0], expected.numpy(), rtol=1e-5)


def test_of_several_classes_the_score_is_the_log_odds_of_any_defect():
    logits = torch.from_numpy(normal(5, 4))
    probability = logits.double().softmax(1)
    any_defect = probability[:, [0, 2, 3]].sum(1)
    expected = torch.log(any_defect / probability[:, 1])
    np.testing.assert_allclose(
        defect_scores(logits, None, 1)[:, 0], expected.numpy(), rtol=1e-4, atol=1e-6
    )


def test_the_peak_of_the_novelty_is_a_second_score():
    logits, novelty = torch.from_numpy(normal(3, 2)), torch.zeros(3, 8, 9)
    novelty[1, 2:7, 2:7] = 2.0
    scores = defect_scores(logits, novelty, 0)
    assert np.array_equal(scores[:, :1], defect_scores(logits, None, 0))
    assert scores[:, 1].tolist() == [0, 2, 0]


# --- Probability --------------------------------------------------------------------------------


def test_the_probability_grows_with_the_score_and_is_calibrated_on_average():
    scores, is_defect = held_out()
    model = fit_defect_probability(scores, is_defect)
    probability = model.probability(scores)
    assert (np.diff(probability[scores[:, 0].argsort()]) > 0).all()
    assert probability.mean() == pytest.approx(is_defect.mean(), abs=1e-3)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_scores_does_not_matter(unit):
    scores, is_defect = held_out()
    expected = fit_defect_probability(scores, is_defect).probability(scores)
    model = fit_defect_probability(unit * scores + 3 * unit, is_defect)
    np.testing.assert_allclose(model.probability(unit * scores + 3 * unit), expected, rtol=1e-4)


@pytest.mark.parametrize("distance", [10.0, 1e6])
def test_separable_scores_give_finite_slopes(distance):
    scores, is_defect = held_out(distance=distance)
    model = fit_defect_probability(scores, is_defect)
    assert all(math.isfinite(c) for c in (*model.coefficients, model.intercept))
    probability = model.probability(scores)
    assert (probability[is_defect] > 0.5).all()
    assert (probability[~is_defect] < 0.5).all()
    assert 0 < probability.min() < probability.max() < 1


def test_weights_of_scores_are_repetition():
    scores, is_defect = held_out()
    weights = np.random.default_rng(5).integers(1, 4, size=len(scores))
    weighted = fit_defect_probability(scores, is_defect, weights.astype(float))
    repeated = fit_defect_probability(scores.repeat(weights, 0), is_defect.repeat(weights))
    np.testing.assert_allclose(
        weighted.log_odds(scores), repeated.log_odds(scores), rtol=1e-3, atol=1e-3
    )
    ones = fit_defect_probability(scores, is_defect, np.ones(len(scores)))
    plain = fit_defect_probability(scores, is_defect)
    assert ones == plain
    assert not np.allclose(weighted.log_odds(scores), plain.log_odds(scores), rtol=1e-3, atol=1e-3)


def penalised_log_odds(scores: np.ndarray, is_defect: np.ndarray, weights: np.ndarray) -> Any:
    """Minimise what ridge logistic regression minimises; return the log-odds' slopes, intercept."""
    mean = (weights @ scores) / weights.sum()
    scale = np.sqrt((weights @ (scores - mean) ** 2) / weights.sum())
    standardised = (scores - mean) / scale
    side = np.where(is_defect, 1.0, -1.0)

    def cost(parameters: np.ndarray) -> float:
        margin = side * (standardised @ parameters[1:] + parameters[0])
        fit = weights @ np.logaddexp(0, -margin)
        return INVERSE_REGULARISATION * fit + parameters[1:] @ parameters[1:] / 2

    found = minimize(cost, np.zeros(1 + scores.shape[1]), tol=1e-9).x
    slopes = np.maximum(found[1:], 0) / scale
    return slopes, found[0] - mean @ slopes


@pytest.mark.parametrize("novelty", ["helps", "misleads"])
def test_the_probability_is_that_of_a_slow_reference(novelty):
    """Few images of little weight, scores of different units: penalty and scale matter."""
    rng = np.random.default_rng(1)
    is_defect = np.arange(24) % 4 == 0
    towards = {"helps": 30.0, "misleads": -30.0}[novelty]
    scores = rng.normal(size=(24, 2)) * [0.02, 40.0] + [5.0, -300.0]
    scores += is_defect[:, None] * [0.02, towards]
    weights = rng.uniform(0.01, 0.1, size=24) * np.where(scores[:, 0] > 5.0, 9, 1)
    slopes, _ = penalised_log_odds(scores, is_defect, weights)
    assert (slopes[1] > 0) == (novelty == "helps")
    slopes = slopes * [1, NOVELTY_TRUST]
    (slope,), intercept = penalised_log_odds(scores @ slopes[:, None], is_defect, weights)
    expected = scores @ slopes * slope + intercept
    model = fit_defect_probability(scores, is_defect, weights)
    np.testing.assert_allclose(model.log_odds(scores), expected, rtol=1e-2, atol=1e-2)
    if novelty == "misleads":
        assert model.coefficients[1] == 0


def test_equal_scores_give_the_share_of_defects():
    model = fit_defect_probability(np.full((30, 1), 2.0), np.arange(30) % 3 == 0)
    assert model.probability(np.array([[2.0]]))[0] == pytest.approx(1 / 3, abs=1e-3)


def test_far_scores_do_not_overflow():
    model = DefectProbability((2.0,), 0.5)
    with np.errstate(over="raise"):
        assert model.probability(np.array([[-1e6], [1e6]])).tolist() == [0, 1]
    assert model.log_odds(np.array([[3.0]])).tolist() == [6.5]


# --- Good images alone --------------------------------------------------------------------------


def peaks_of_good(n: int) -> np.ndarray:
    """Return scores of good images whose peaks follow a Gumbel distribution, as maxima do."""
    return np.column_stack([np.zeros(n), np.random.default_rng(0).gumbel(2.0, 0.3, size=n)])


def test_of_good_images_the_limit_is_passed_by_one_in_a_hundred_and_has_one_half():
    scores = peaks_of_good(20_000)
    model = fit_novelty_probability(scores)
    probability = model.probability(scores)
    assert (probability >= 0.5).mean() == pytest.approx(0.01, abs=2e-3)
    assert np.median(probability) == pytest.approx(0.01, abs=1e-4)
    assert (np.diff(probability[scores[:, 1].argsort()]) > 0).all()


def test_evidence_does_not_count_where_only_good_images_were_seen():
    model = fit_novelty_probability(peaks_of_good(50))
    assert np.ptp(model.probability(np.array([[-9.0, 1.0], [9.0, 1.0]]))) == 0


def test_a_few_defective_images_among_the_good_do_not_move_the_limit():
    scores = peaks_of_good(100)
    expected = fit_novelty_probability(scores)
    scores[:3, 1] += 10
    model = fit_novelty_probability(scores)
    at_limit = np.array([[0.0, -expected.intercept / expected.coefficients[1]]])
    assert model.probability(at_limit)[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("n", [1, 5])
def test_equal_good_images_give_a_usable_probability(n):
    model = fit_novelty_probability(np.full((n, 2), 0.7))
    probability = model.probability(np.array([[0, 0.7], [0, 1.7], [0, 2.7]]))
    np.testing.assert_allclose(probability, [0.01, 0.5, 0.99], atol=1e-6)


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


# --- Familiarity --------------------------------------------------------------------------------


def test_a_defect_of_half_the_image_leaves_the_calm_part_calm():
    novelty = torch.from_numpy(normal(30, 12, 14)) * 0.1
    assert len(calm_novelty(novelty)) == 30
    limit = fit_familiarity_limit(novelty)
    defective = novelty.clone()
    defective[:, :, :7] += 5
    assert (calm_novelty(defective) < limit).all()
    assert (calm_novelty(novelty + 5) > limit).all()


def test_the_familiarity_limit_is_twice_as_far_as_the_training_images_reach():
    novelty = torch.arange(101.0)[:, None, None].expand(101, 4, 4)  # image i has novelty i
    assert fit_familiarity_limit(novelty) == pytest.approx(2 * 99 - 50)
    one_odd = torch.cat([novelty[50:51].expand(200, 4, 4), novelty[100:] * 50])
    assert fit_familiarity_limit(one_odd) == pytest.approx(50)
    assert fit_familiarity_limit(torch.zeros(3, 4, 4)) == LEAST_FAMILIARITY_LIMIT


# --- Threshold ----------------------------------------------------------------------------------


def test_balanced_is_the_share_of_defects():
    is_defect = np.array([True, False, False, False])
    assert choose_threshold("balanced", is_defect, np.zeros(4)) == 0.25


@pytest.mark.parametrize("criterion", ["balanced", "recall>=0.5", "recall>=0.7", "recall>=1.0"])
def test_weights_of_images_are_repetition(criterion):
    is_defect = np.array([False, True, True, True, False])
    probability = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    weights = np.array([1, 2, 1, 3, 2])
    weighted = choose_threshold(criterion, is_defect, probability, weights.astype(float))
    repeated = choose_threshold(criterion, is_defect.repeat(weights), probability.repeat(weights))
    assert weighted == repeated


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30),
    st.sampled_from([0.05, 0.5, 0.75, 0.99, 1.0]),
)
def test_recall_finds_the_share_asked_for_with_the_highest_threshold(images, target):
    is_defect = np.array([d for d, _ in images] + [True, False])
    probability = np.array([p for _, p in images] + [7, 7]) / 20
    threshold = choose_threshold(f"recall>={target}", is_defect, probability)

    def recall(at: float) -> float:
        return (probability[is_defect] >= at).mean()

    assert math.isfinite(threshold)
    assert recall(threshold) >= target
    higher = probability[probability > threshold]
    assert all(recall(at) < target for at in higher)


@pytest.mark.parametrize("criterion", ["recall>=0.9", "recall >= 0.9", " recall>=.9 "])
def test_recall_may_be_written_with_spaces(criterion):
    is_defect = np.array([False, True, True])
    assert choose_threshold(criterion, is_defect, np.array([0.1, 0.4, 0.8])) == 0.4


@pytest.mark.parametrize("number", [0, 0.3, 1, 1.0])
def test_a_number_is_taken_as_it_is(number):
    assert choose_threshold(number, np.array([True, False]), np.array([0.9, 0.1])) == number


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [("cost=20:1", 1 / 21), ("cost=1:1", 0.5), ("cost = 0.5 : 2.", 0.8), ("cost=1e3:1", 1 / 1001)],
)
def test_a_ratio_of_costs_is_the_probability_at_which_both_errors_cost_the_same(
    criterion, expected
):
    threshold = choose_threshold(criterion, np.array([True, False]), np.array([0.9, 0.1]))
    assert threshold == pytest.approx(expected)


def test_the_threshold_of_a_cost_ratio_is_the_cheapest_one_for_calibrated_probabilities():
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=200_000)
    is_defect = rng.uniform(size=200_000) < probability
    chosen = choose_threshold("cost=4:1", is_defect, probability)

    def cost(at: float) -> float:
        called = probability >= at
        return 4 * (is_defect & ~called).sum() + (~is_defect & called).sum()

    assert cost(chosen) < min(cost(chosen - 0.05), cost(chosen + 0.05))


@pytest.mark.parametrize(
    "criterion",
    [-0.1, 1.1, float("nan"), "best", "recall>=0", "recall>=1.5", "recall>=", "recall>0.9",
     "recall>=0.9 or so", "recall>=0..9", "cost=20", "cost=20:0", "cost=0:1", "cost=-1:1",
     "cost=20:1:1", "cost=a:b", "cost=1e999:1", "20:1"],
)  # fmt: skip
def test_other_criteria_are_refused(criterion):
    with pytest.raises(ValueError, match="threshold="):
        choose_threshold(criterion, np.array([True, False]), np.array([0.9, 0.1]))


# --- Scale of the map ---------------------------------------------------------------------------


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


def test_novelty_keeps_half_of_its_weight_and_the_sum_is_calibrated_again():
    rng = np.random.default_rng(0)
    is_defect = np.repeat([False, True], 200)
    scores = rng.normal(size=(400, 2)) + is_defect[:, None] * [2.0, 1.5]
    standardised = (scores - scores.mean(0)) / scores.std(0)
    weights = LogisticRegression(C=10.0).fit(standardised, is_defect).coef_[0] / scores.std(0)
    model = fit_defect_probability(scores, is_defect)
    evidence, novelty = model.coefficients
    assert novelty / evidence == pytest.approx(NOVELTY_TRUST * weights[1] / weights[0])
    assert model.probability(scores).mean() == pytest.approx(0.5, abs=1e-2)
