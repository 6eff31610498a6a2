from __future__ import annotations

import numpy as np
import pytest

from defectcam.calibration import choose_threshold
from defectcam.tile_model import fit_tile_model, uncalibrated

TILE, OVERLAP = (64, 64), (8, 8)


def image(rng: np.random.Generator, n_tiles: int, defect: float = 0.0) -> np.ndarray:
    """Draw log-odds of an image's tiles, neighbours correlated; a defect raises one of them."""
    scores = rng.exponential(size=n_tiles + 1)
    scores = np.maximum(scores[1:], scores[:-1]) - 5
    scores[0] += defect
    return scores


def false_alarms(n_tiles: int, rng: np.random.Generator) -> float:
    """Share of new good images of `n_tiles` tiles that are called defective."""
    is_defect = np.arange(400) % 2 == 1
    scores = [image(rng, 100, 15.0 * bad) for bad in is_defect]
    model, log_odds = fit_tile_model(TILE, OVERLAP, scores, is_defect)
    threshold = choose_threshold("cost=1:20", is_defect, 1 / (1 + np.exp(-log_odds)))
    new = [image(rng, n_tiles) for _ in range(400)]
    highest = np.array([model.log_odds(one.max(), len(one)) for one in new])
    return float((1 / (1 + np.exp(-highest)) >= threshold).mean())


def test_the_threshold_holds_for_images_with_other_numbers_of_tiles() -> None:
    rng = np.random.default_rng(0)
    rates = [false_alarms(n, rng) for n in (25, 100, 1600)]
    assert max(rates) < 0.05, rates


def test_a_tile_alone_says_less_of_a_larger_image() -> None:
    rng = np.random.default_rng(0)
    is_defect = np.arange(40) % 2 == 1
    model, _ = fit_tile_model(
        TILE, OVERLAP, [image(rng, 100, 8.0 * bad) for bad in is_defect], is_defect
    )
    assert model.n_tiles == 100
    of_sizes = [float(model.log_odds(np.array(2.0), n)) for n in (10, 100, 1000)]
    assert of_sizes == sorted(of_sizes, reverse=True)
    assert model.rate == pytest.approx(1, rel=0.2)


def test_training_images_get_what_the_model_says() -> None:
    rng = np.random.default_rng(0)
    is_defect = np.arange(20) % 2 == 1
    scores = [image(rng, n, 9.0 * bad) for n, bad in zip(range(30, 50), is_defect, strict=True)]
    model, log_odds = fit_tile_model(TILE, OVERLAP, scores, is_defect)
    again = [float(model.log_odds(one, len(one)).max()) for one in scores]
    np.testing.assert_allclose(log_odds, again)


def test_good_images_alone_put_one_half_at_their_limit() -> None:
    rng = np.random.default_rng(0)
    scores = [image(rng, 100) for _ in range(200)]
    _, log_odds = fit_tile_model(TILE, OVERLAP, scores, np.zeros(200, bool))
    assert 0 <= (log_odds > 0).mean() <= 0.05
    assert np.median(log_odds) == pytest.approx(np.log(0.01 / 0.99))


def test_equal_tiles_have_no_tail() -> None:
    is_defect = np.array([False, True])
    model, _ = fit_tile_model(TILE, OVERLAP, [np.zeros(4), np.ones(4)], is_defect)
    assert model.rate == np.inf


def test_without_calibration_the_worst_tile_is_the_image() -> None:
    model = uncalibrated(TILE, OVERLAP)
    assert model.log_odds(np.array([1.5, -2.0]), 900).tolist() == [1.5, -2.0]
