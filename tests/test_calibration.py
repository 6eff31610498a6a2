from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from defectcam.calibration import (
    INVERSE_REGULARISATION,
    LEAST_FAMILIARITY_LIMIT,
    NOVELTY_TRUST,
    DefectProbability,
    calm_novelty,
    choose_threshold,
    defect_scores,
    fit_defect_probability,
    fit_familiarity_limit,
    fit_novelty_probability,
)


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
