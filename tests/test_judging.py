from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax

from defectcam.calibration import DefectProbability, calm_novelty, defect_scores
from defectcam.inference import ScoredImages
from defectcam.judging import Judge
from defectcam.labels import Classes

TYPES = np.array(["dent", "good", "scratch"])


def images(logits: Any, novelty: Any = None, log_odds: Any = None) -> ScoredImages:
    values = torch.as_tensor(np.asarray(logits, dtype=np.float32))
    maps = None if novelty is None else torch.as_tensor(np.asarray(novelty, dtype=np.float32))
    empty = torch.empty(0)
    return ScoredImages(values, empty, maps, None, [], empty, log_odds)


def judge(labels: Any = TYPES, good: int = 1, **options: Any) -> Judge:
    defaults = {
        "probability": DefectProbability((1.0,), 0.0),
        "threshold": 0.5,
        "uses_novelty": False,
        "familiarity_limit": None,
    }
    return Judge(Classes(np.asarray(labels), good), **(defaults | options))


@st.composite
def judged(draw: st.DrawFn) -> tuple[Judge, ScoredImages]:
    n_classes = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    one = judge(
        np.arange(n_classes),
        draw(st.integers(0, n_classes - 1)),
        probability=DefectProbability((draw(st.floats(0.1, 3)),), draw(st.floats(-2, 2))),
        threshold=draw(st.floats(0.01, 0.99)),
    )
    return one, images(3 * rng.normal(size=(20, n_classes)))


@given(judged())
def test_the_label_is_the_class_with_the_highest_decision(given_):
    one, scores = given_
    decisions = one.decisions(scores)
    if decisions.ndim == 1:
        decisions = np.column_stack((-decisions / 2, decisions / 2))
    assert np.array_equal(one.labels(scores), decisions.argmax(1))


@given(judged())
def test_an_image_is_defective_from_the_threshold_on(given_):
    one, scores = given_
    is_defect = one.labels(scores) != one.classes.good_label
    assert np.array_equal(is_defect, one.defect_probabilities(scores) >= one.threshold)
    sure = np.abs(one.distance(scores)) > 1e-9
    assert np.array_equal((one.distance(scores) > 0)[sure], is_defect[sure])


@given(judged())
def test_probabilities_sum_to_1_and_share_out_that_of_a_defect(given_):
    one, scores = given_
    probabilities = one.probabilities(scores)
    assert np.allclose(probabilities.sum(1), 1)
    assert np.allclose(1 - probabilities[:, one.classes.good], one.defect_probabilities(scores))
    types = softmax(scores.logits.numpy()[:, one.classes.defects].astype(float), axis=1)
    of_types = probabilities[:, one.classes.defects]
    assert np.allclose(of_types, one.defect_probabilities(scores)[:, None] * types)


def test_the_probability_of_good_is_as_fine_as_that_of_a_defect():
    one = judge(["good", "scratch"], good=0)
    scores = images([[100, 0], [0, 100]], log_odds=np.array([-60.0, 60.0]))
    probabilities = one.probabilities(scores)
    np.testing.assert_array_equal(probabilities[0], probabilities[1, ::-1])
    assert probabilities.min() == pytest.approx(np.exp(-60))


@given(judged())
def test_the_likeliest_type_is_said_of_good_images_too(given_):
    one, scores = given_
    likeliest = one.defect_types(scores)
    assert (likeliest != one.classes.good_label).all()
    named = one.probabilities(scores)
    named[:, one.classes.good] = -1
    assert np.array_equal(one.classes.labels[named.argmax(1)], likeliest)


def test_novelty_counts_where_it_should():
    scores = images([[0.0, 1.0]] * 2, np.stack((np.zeros((8, 8)), np.full((8, 8), 2.0))))
    learned = DefectProbability((1.0, 2.0), -1.0)
    with_novelty = judge(["bad", "good"], probability=learned, uses_novelty=True)
    both = defect_scores(scores.logits, scores.novelty, 1)
    assert np.allclose(with_novelty.log_odds(scores), both @ [1, 2] - 1)
    without = judge(["bad", "good"])
    assert np.allclose(without.log_odds(scores), -1)


def test_log_odds_of_an_image_in_tiles_are_taken_as_they_are():
    scores = images([[0.0, 9.0, 0.0]], log_odds=np.array([0.7]))
    one = judge(threshold=0.6)
    assert one.log_odds(scores) == [0.7]
    assert one.distance(scores) == pytest.approx(0.7 - logit(0.6))
    assert one.defect_probabilities(scores) == pytest.approx(expit(0.7))
    assert one.labels(scores).tolist() == ["dent"]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_distances_stay_finite_at_thresholds_that_no_image_passes_or_all(threshold):
    assert np.isfinite(judge(threshold=threshold).distance(images([[0.0, 1.0, 0.0]]))).all()


def test_an_image_is_unfamiliar_above_the_limit():
    maps = np.random.default_rng(0).random((4, 8, 8)) + np.arange(4)[:, None, None]
    scores = images(np.zeros((4, 2)), maps)
    limit = float(np.sort(calm_novelty(scores.novelty))[1])
    one = judge(["bad", "good"], familiarity_limit=limit)
    assert one.is_unfamiliar(scores).tolist() == [False, False, True, True]
    assert not judge(["bad", "good"]).is_unfamiliar(scores).any()
    assert not one.is_unfamiliar(images(np.zeros((4, 2)))).any()
