"""Which images are chosen to be labelled next."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import draw_part
from hypothesis import given
from hypothesis import strategies as st

from defectcam.active import choose_queries, uncertainties

N = 40


def random_state() -> np.random.RandomState:
    return np.random.RandomState(0)


def described(n: int = N, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(n, 8))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_uncertain_images_are_chosen() -> None:
    uncertainty = np.full(N, 0.001)
    uncertainty[[3, 14, 15, 30]] = (0.5, 0.9, 0.6, 0.7)
    chosen = choose_queries(uncertainty, np.zeros(N), described(), 4, random_state())
    assert chosen[0] == 14
    assert set(chosen.tolist()) == {3, 14, 15, 30}


def test_unfamiliar_images_are_chosen_however_sure_the_network_is() -> None:
    unfamiliarity = np.zeros(N)
    unfamiliarity[7] = 1.0
    uncertainty = np.full(N, 0.01)
    assert choose_queries(uncertainty, unfamiliarity, described(), 1, random_state()) == [7]


def test_images_that_differ_are_chosen() -> None:
    """Of the uncertain images most are of one kind, some of two others: one of each is chosen."""
    kinds = np.repeat([0, 1, 2, 3], [4, 1, 1, 34])
    uncertainty = np.where(kinds == 3, 0.1, 0.9)
    points = np.eye(4)[kinds] + 0.001 * described(N)[:, :4]
    for seed in range(10):
        state = np.random.RandomState(seed)
        chosen = choose_queries(uncertainty, np.zeros(N), points, 3, state)
        assert set(kinds[chosen]) == {0, 1, 2}


def test_the_border_parts_off_the_expected_share() -> None:
    margins = np.random.default_rng(2).normal(size=101)
    order = np.argsort(margins)
    assert np.argmax(uncertainties(margins, 0.3)) == order[70]
    assert np.argmax(uncertainties(margins, 0.0)) == order[-1]
    assert np.argmax(uncertainties(margins, None)) == np.argmin(np.abs(margins))


@given(offset=st.floats(-20, 20), share=st.floats(0, 1))
def test_the_level_of_all_scores_does_not_matter(offset: float, share: float) -> None:
    margins = np.random.default_rng(4).normal(size=30)
    expected = uncertainties(margins, share)
    np.testing.assert_allclose(uncertainties(margins + offset, share), expected, atol=1e-9)
    assert expected.min() >= 0 and expected.max() <= 1


@given(n=st.integers(1, 12), copies=st.integers(1, 4), seed=st.integers(0, 100))
def test_no_image_is_chosen_twice_though_there_are_copies(n: int, copies: int, seed: int) -> None:
    points = np.repeat(described(3, seed), copies, axis=0)
    uncertainty = np.random.default_rng(seed).uniform(size=len(points))
    uncertainty[0] = 0
    if n > len(points):
        with pytest.raises(ValueError, match=f"from 1 to {len(points)}"):
            choose_queries(uncertainty, 0 * uncertainty, points, n, random_state())
        return
    chosen = choose_queries(uncertainty, 0 * uncertainty, points, n, random_state())
    assert len(set(chosen.tolist())) == len(chosen) == n
    assert chosen.dtype == np.int64


def test_a_classifier_asks_for_what_it_does_not_know(fitted, generators_untouched) -> None:
    """Among ordinary parts are faint scratches, near the decision, and something else entirely."""
    rng = np.random.default_rng(3)
    ordinary = [draw_part(rng, scratched=i % 2 == 0) for i in range(12)]
    part, scratched = draw_part(rng, scratched=False), draw_part(rng, scratched=True)
    faint = (0.75 * part.astype(float) + 0.25 * scratched).astype(np.uint8)
    other = rng.integers(0, 255, size=(48, 48, 3), dtype=np.uint8)
    pool = np.stack([*ordinary, faint, other])
    scores = np.abs(fitted.defect_score(pool) - np.log(fitted.threshold_ / (1 - fitted.threshold_)))
    assert fitted.localize(other).unfamiliar and scores[13] > np.median(scores[:12]) / 2
    chosen = fitted.query(pool, 2)
    assert 13 in chosen
    np.testing.assert_array_equal(chosen, fitted.query(list(pool), 2))


def test_all_images_can_be_asked_for_and_no_more(fitted, fitted_parts) -> None:
    assert sorted(fitted.query(fitted_parts, 14)) == list(range(14))
    with pytest.raises(ValueError, match="n=15: expected an integer from 1 to 14"):
        fitted.query(fitted_parts, 15)


def test_the_expected_share_is_that_of_the_training_images(fitted, fitted_parts) -> None:
    labels = fitted.training_data_.labels
    assert fitted._defect_share() == pytest.approx(6 / 14)
    assert labels == {"good": 8, "scratch": 6}
    of_earlier_release = copy.copy(fitted)
    of_earlier_release.training_data_ = None
    assert of_earlier_release._defect_share() is None
    assert len(of_earlier_release.query(fitted_parts, 3)) == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{"heatmap": "cam", "pooling": "average"}, {"target": "type"}])
def test_every_kind_of_classifier_can_ask(tiny_classifier, options) -> None:
    rng = np.random.default_rng(1)
    images = np.stack([draw_part(rng, scratched=i >= 5) for i in range(10)])
    y = ["good"] * 5 + ["dent"] * 2 + ["scratch"] * 3
    asked = tiny_classifier(max_epochs=1, **options).fit(images, y).query(images, 3)
    assert len(set(asked.tolist())) == 3
    good = tiny_classifier(max_epochs=1).fit(images[:5], y[:5])
    assert set(good.query(images, 5)) & set(range(5, 10))


def test_a_share_of_the_images_is_no_number_of_them():
    points = described(3, 0)
    with pytest.raises(ValueError, match=r"n=2\.5: expected an integer"):
        choose_queries(np.ones(3), np.zeros(3), points, 2.5, random_state())
