"""Hills: agreement with a slow reference, and defects whose size and blur are known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from defectcam.hills import Hill, fit_hills, width_at_half

COMMON = settings(deadline=None, max_examples=60, derandomize=True)

_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))  # width of a Gaussian at half of its height


def blurred(shape, boxes, sigma):
    """Draw bright boxes, blurred as a coarse grid blurs what it shows."""
    values = np.zeros(shape, dtype=np.float32)
    for left, top, right, bottom in boxes:
        values[top:bottom, left:right] = 4.0
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


@st.composite
def hilly_maps(draw):
    """Draw spots of several widths on low noise; no two pixels are equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(3, 30)), draw(st.integers(3, 30))
    values = np.zeros(shape)
    for sigma in (0.6, 1.5, 3.0):
        spots = np.zeros(shape)
        spots[rng.integers(0, shape[0], 3), rng.integers(0, shape[1], 3)] = rng.uniform(1, 3, 3)
        values += 3 * sigma**2 * ndimage.gaussian_filter(spots, sigma, mode="nearest")
    values += rng.uniform(0, draw(st.sampled_from([1e-3, 0.5])), shape)
    return values.astype(np.float32)


def connected(values, peak, level):
    """Label with SciPy what is connected to a peak."""
    labels, _ = ndimage.label(values >= np.float32(level), structure=np.ones((3, 3)))
    return labels == labels[peak]


def is_wide(values, peak, threshold, feet):
    """Look whether a peak is on one wide hill; return it, or None."""
    wide = connected(values, peak, max(0.25 * float(values[peak]), 0.9 * threshold))
    if wide.sum() <= values.size / 12:
        return None
    touched = [other for other, foot in feet.items() if (wide & foot).any()]
    is_one = all(connected(values, o, 0.5 * float(values[o]))[touched[0]] for o in touched)
    return wide if is_one else None


def reference_hills(values, is_peak, threshold, min_area, spread):
    """Do the same on whole maps, pixel by pixel."""
    maxima = np.argwhere(is_peak & (values == ndimage.maximum_filter(values, 3, mode="nearest")))
    maxima = sorted(map(tuple, maxima.tolist()), key=lambda peak: -values[peak])
    feet, taken = {}, np.zeros(values.shape, bool)
    for peak in maxima:
        foot = connected(values, peak, 0.6 * float(values[peak]))
        if not taken[peak] and not (taken & foot).any():
            feet[peak] = foot
        if not taken[peak]:
            taken |= foot
    found, absorbed = [], set()
    for peak in feet:
        wide = None if peak in absorbed else is_wide(values, peak, threshold, feet)
        touched = {o for o, foot in feet.items() if wide is not None and (wide & foot).any()}
        if wide is not None and absorbed.isdisjoint(touched):
            absorbed |= touched
            found.append(wide)
    for peak, foot in feet.items():
        if peak in absorbed:
            continue
        ys, xs = np.nonzero(foot)
        share = 1.0
        for pixels, width in ((np.ptp(xs) + 1, spread[0]), (np.ptp(ys) + 1, spread[1])):
            at_half = pixels / math.sqrt(math.log2(1 / 0.6))
            share *= max(0.0, 1 - (width / at_half) ** 2)
        level = min(0.6 ** math.sqrt(share), 0.75) * float(values[peak])
        heights = np.sort(values[foot])[::-1]
        level = min(level, float(heights[min(min_area, len(heights)) - 1]))
        found.append(connected(np.where(foot, values, -np.inf), peak, level))
    return found


@COMMON
@given(
    hilly_maps(),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([1, 4, 40]),
    st.sampled_from([(0.0, 0.0), (2.0, 5.0), (9.0, 4.0)]),
)
def test_hills_are_those_of_a_slow_reference(values, threshold, min_area, spread):
    is_peak = values > threshold
    hills = fit_hills(values, is_peak, threshold, min_area, spread)
    found = {frozenset(map(tuple, np.argwhere(painted(values.shape, hill)))) for hill in hills}
    expected = reference_hills(values, is_peak, threshold, min_area, spread)
    assert found == {frozenset(map(tuple, np.argwhere(region))) for region in expected}


def painted(shape, hill):
    pixels = np.zeros(shape, bool)
    pixels[hill.place] = hill.pixels
    return pixels


@COMMON
@given(hilly_maps(), st.sampled_from([0.5, 1.0]), st.sampled_from([1, 9]))
def test_no_pixel_belongs_to_two_hills(values, threshold, min_area):
    hills = fit_hills(values, values > threshold, threshold, min_area, (3.0, 3.0))
    count = sum((painted(values.shape, hill).astype(int) for hill in hills), np.zeros((1, 1), int))
    assert count.max() <= 1
    for hill in hills:
        assert hill.holds(hill.peak) and hill.area == painted(values.shape, hill).sum()
        assert hill.pixels.any(0).all() and hill.pixels.any(1).all()  # nothing smaller holds it


@COMMON
@given(hilly_maps(), st.sampled_from([0.25, 4.0, 1024.0]))
def test_only_shares_of_heights_count(values, factor):
    hills = fit_hills(values, values > 1, 1.0, 3, (2.0, 2.0))
    scaled = fit_hills(values * np.float32(factor), values > 1, factor, 3, (2.0, 2.0))
    assert [hill.place for hill in hills] == [hill.place for hill in scaled]


@pytest.mark.parametrize("sigma", [3.0, 5.0])
@pytest.mark.parametrize(("width", "height"), [(40, 40), (20, 20), (10, 10), (6, 40), (2, 2)])
def test_a_hill_is_cut_to_the_defect_that_was_blurred(width, height, sigma):
    box = (80, 90, 80 + width, 90 + height)
    values = blurred((200, 200), [box], sigma)
    (hill,) = fit_hills(values, values > 0.2 * values.max(), 0.2, 1, (_PER_SIGMA * sigma,) * 2)
    (loose,) = fit_hills(values, values > 0.2 * values.max(), 0.2)
    assert hill.area <= loose.area
    rows, columns = hill.place
    if min(width, height) >= 2 * sigma:
        found = (columns.start, rows.start, columns.stop, rows.stop)
        assert np.abs(np.subtract(found, box)).max() <= 0.25 * max(width, height)
    else:
        truth = width * height
        assert abs(hill.area - truth) < abs(loose.area - truth)


def test_a_large_defect_is_taken_down_to_its_faint_edges():
    values = blurred((100, 120), [(20, 20, 80, 80)], 3)
    values[40:46, 40:46] = 10.0  # a steep spot on it
    (hill,) = fit_hills(values, values > 1, 1.0)
    edges = [edge for side in hill.place for edge in (side.start, side.stop)]
    assert np.abs(np.subtract(edges, (20, 80, 20, 80))).max() <= 4


def test_a_deep_valley_parts_large_defects():
    boxes = [(10, 20, 50, 80), (62, 20, 102, 80)]
    joined = blurred((100, 120), boxes, 8)  # the valley is lower than half, and above 0.3
    assert 0.3 < joined[50, 56] / joined.max() < 0.5
    assert len(fit_hills(joined, joined > 1, 1.0)) == 2
    shallow = np.maximum(joined, 0.55 * (joined > 0.1))
    shallow[20:80, 10:102] = np.maximum(shallow[20:80, 10:102], 0.55 * joined.max())
    assert len(fit_hills(shallow, shallow > 1, 1.0)) == 1


def test_the_foot_of_a_wide_hill_is_no_lower_than_a_share_of_the_threshold():
    values = np.full((40, 40), 0.8, dtype=np.float32)
    values[10:14, 10:14] = 2.0
    (hill,) = fit_hills(values, values > 1, 1.0)
    assert hill.area == 16  # though 0.8 is more than a quarter of 2
    values[:20] = np.maximum(values[:20], 0.95)
    (hill,) = fit_hills(values, values > 1, 1.0)
    assert hill.place == (slice(0, 20), slice(0, 40))


def test_a_plateau_is_one_hill():
    values = np.zeros((30, 40), dtype=np.float32)
    values[3:6, 4:9] = 2.0
    values[20, 30] = 1.5
    hills = fit_hills(values, values > 1, 1.0)
    assert [hill.area for hill in hills] == [15, 1]
    assert [hill.height for hill in hills] == [2.0, 1.5]


def test_no_peak_no_hill():
    values = np.ones((5, 6), dtype=np.float32)
    assert fit_hills(values, np.zeros((5, 6), bool), 1.0) == []


@pytest.mark.parametrize("sigma", [4.0, 7.5, 16.0])
def test_the_width_of_a_gaussian_is_measured(sigma):
    y, x = np.mgrid[:150, :160]
    values = 3 * np.exp(-((y - 70) ** 2 + (x - 82) ** 2) / (2 * sigma**2)).astype(np.float32)
    values[:20] += 1.0  # what is elsewhere does not matter
    assert width_at_half(values) == pytest.approx(_PER_SIGMA * sigma, rel=0.1)


def test_what_touches_at_a_corner_is_connected():
    hill = Hill.above(np.eye(4, dtype=np.float32), (0, 0), 0.5)
    assert hill.area == 4 and not hill.holds((0, 1)) and not hill.holds((4, 4))
