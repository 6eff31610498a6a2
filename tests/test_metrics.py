"""`defectcam.metrics` against slow, obvious references, and the invariants of each score."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, make_scorer, roc_auc_score
from sklearn.model_selection import cross_val_score

from defectcam import metrics

PIXEL_SCORES = [
    metrics.pixel_roc_auc_score,
    metrics.pixel_average_precision_score,
    metrics.pro_auc_score,
]
EIGHT = np.ones((3, 3))

few = settings(deadline=None, max_examples=40)


# Random cases and references ---------------------------------------------------------------------


def random_case(seed, *, ties=None):
    """Masks and maps of mixed sizes, the first image with both kinds of pixel."""
    rng = np.random.default_rng(seed)
    ties = bool(rng.integers(2)) if ties is None else ties
    masks, maps = [], []
    for index in range(rng.integers(1, 5)):
        shape = tuple(rng.integers(3, 10, size=2))
        mask = rng.random(shape) < rng.choice([0.0, 0.2, 0.5])
        if index == 0:
            mask.flat[:2] = True, False
        heatmap = rng.normal(size=shape) + mask * rng.choice([0.0, 1.0, 3.0])
        masks.append(mask)
        maps.append((np.round(heatmap) if ties else heatmap).astype(np.float32))
    return masks, maps


cases = st.integers(0, 2**32 - 1).map(random_case)


def pooled(masks, maps):
    return np.concatenate([m.ravel() for m in masks]), np.concatenate([h.ravel() for h in maps])


def slow_roc_auc(masks, maps):
    truth, score = pooled(masks, maps)
    defective, good = score[truth][:, None], score[~truth][None]
    return np.mean((defective > good) + 0.5 * (defective == good))


def slow_average_precision(masks, maps):
    truth, score = pooled(masks, maps)
    area = last_recall = 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        called = score >= threshold
        recall = called[truth].mean()
        area += (recall - last_recall) * truth[called].mean()
        last_recall = recall
    return area


def slow_pro_curve(masks, maps):
    truth, score = pooled(masks, maps)
    regions = []
    for mask, heatmap in zip(masks, maps, strict=True):
        labels, n_regions = ndimage.label(mask, EIGHT)
        regions += [heatmap[labels == region] for region in range(1, n_regions + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(score.tolist()), reverse=True):
        overlap = np.mean([(region >= threshold).mean() for region in regions])
        points.append(((score[~truth] >= threshold).mean(), overlap))
    return points


def slow_pro_auc(masks, maps, max_fpr):
    points = slow_pro_curve(masks, maps)
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > max_fpr:
            if x0 < max_fpr:
                y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
                area += (max_fpr - x0) * (y0 + y1) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / max_fpr


def slow_boxes(foreground):
    slices = ndimage.find_objects(ndimage.label(foreground, EIGHT)[0])
    return [(x.start, y.start, x.stop, y.stop) for y, x in slices]


def slow_iou(a, b):
    """By counting pixels."""
    canvas = np.zeros((2, 40, 40), bool)
    for layer, (x0, y0, x1, y1) in zip(canvas, (a, b), strict=True):
        layer[y0:y1, x0:x1] = True
    union = canvas.any(axis=0).sum()
    return canvas.all(axis=0).sum() / union if union else 0.0


def slow_max_box_accuracy(masks, maps, iou_thresholds, n_thresholds=None, thresholds=None):
    accuracies = []
    for iou_threshold in iou_thresholds:
        per_level = []
        for level in thresholds if n_thresholds is None else range(n_thresholds):
            right = []
            for mask, heatmap in zip(masks, maps, strict=True):
                if not mask.any():
                    continue
                limit = level
                if n_thresholds is not None:
                    low, high = float(heatmap.min()), float(heatmap.max())
                    limit = low + level / n_thresholds * (high - low)
                ious = [
                    slow_iou(a, b) for a in slow_boxes(heatmap > limit) for b in slow_boxes(mask)
                ]
                right.append(max(ious, default=0) >= iou_threshold)
            per_level.append(np.mean(right))
        accuracies.append(max(per_level))
    return np.mean(accuracies)


def slow_matches(true, pred, iou_threshold):
    free, matched = list(range(len(true))), []
    for box in pred:
        overlaps = [(slow_iou(box, true[index]), -index) for index in free]
        if overlaps and max(overlaps)[0] >= iou_threshold:
            iou, index = max(overlaps)
            matched.append(iou)
            free.remove(-index)
    return matched


def random_boxes(rng, n_boxes):
    start = rng.integers(0, 12, size=(n_boxes, 2))
    return np.hstack([start, start + rng.integers(1, 9, size=(n_boxes, 2))])


# Image level -------------------------------------------------------------------------------------


def test_image_rates_count_what_their_names_say():
    y_true = ["good"] * 4 + ["bad"] * 5
    y_pred = ["good", "bad", "good", "good", "bad", "bad", "good", "bad", "bad"]
    assert metrics.defect_recall_score(y_true, y_pred, pos_label="bad") == 4 / 5
    assert metrics.escape_rate(y_true, y_pred, pos_label="bad") == pytest.approx(1 / 5)
    assert metrics.overkill_rate(y_true, y_pred, good_label="good") == 1 / 4


def test_every_type_is_a_defect_where_the_good_label_is_named():
    y_true, y_pred = ["good", "scratch", "dent", "dent"], ["good", "anomaly", "scratch", "good"]
    recall = metrics.defect_recall_score(y_true, y_pred, good_label="good")
    assert recall == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (False, True)])
def test_one_is_the_defect_in_binary_numbers(labels):
    truth = np.take(labels, [0, 0, 0, 1])
    assert metrics.overkill_rate(truth, np.take(labels, [0, 0, 1, 1])) == pytest.approx(1 / 3)


def test_sample_weight_weighs_images():
    recall = metrics.defect_recall_score([1, 1, 0], [1, 0, 0], sample_weight=[3, 1, 7])
    assert recall == 0.75
    assert metrics.overkill_rate([0, 0, 1], [1, 0, 0], sample_weight=[3, 1, 7]) == 0.75


@pytest.mark.parametrize(
    ("score", "labels"),
    [
        (metrics.defect_recall_score, [0, 0]),
        (metrics.defect_recall_score, []),
        (metrics.escape_rate, [0, 0]),
        (metrics.escape_rate, []),
        (metrics.overkill_rate, []),
        (metrics.overkill_rate, [1, 1]),
    ],
)
def test_image_rates_are_nan_without_images_to_count(score, labels):
    with pytest.warns(UndefinedMetricWarning, match="no (good|defective) image"):
        assert np.isnan(score(labels, labels))


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (["good", "bad"], {}, "pass good_label"),
        ([0, 2], {}, "pass good_label"),
        (["good", "bad"], {"pos_label": "anomaly"}, "not among the labels"),
        (["good", "dent", "scratch"], {"pos_label": "dent"}, "at most two labels"),
    ],
)
def test_labels_that_do_not_tell_the_defect_are_refused(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.defect_recall_score(labels, labels, **arguments)


def test_a_good_label_that_never_occurs_warns():
    with pytest.warns(UserWarning, match="'ok' occurs neither"):
        metrics.defect_recall_score(["good", "bad"], ["good", "bad"], good_label="ok")


@pytest.mark.parametrize("naming", [{"good_label": "good"}, {"pos_label": "bad"}])
def test_image_rates_make_scorers(naming):
    y = np.array(["good", "bad"] * 10)
    always_bad = DummyClassifier(strategy="constant", constant="bad")
    for score, expected in [(metrics.defect_recall_score, 1.0), (metrics.overkill_rate, 1.0)]:
        scorer = make_scorer(score, **naming)
        assert cross_val_score(always_bad, np.zeros((20, 1)), y, scoring=scorer, cv=2).tolist() == [
            expected,
            expected,
        ]
    loss = make_scorer(metrics.escape_rate, greater_is_better=False, **naming)
    assert loss(always_bad.fit(np.zeros((20, 1)), y), np.zeros((20, 1)), y) == 0.0


# Image level: weights ----------------------------------------------------------------------------


def random_predictions(seed):
    """True labels (both kinds), called ones, probabilities with ties, and whole weights."""
    rng = np.random.default_rng(seed)
    n_images = rng.integers(2, 40)
    truth = rng.random(n_images) < 0.4
    truth[:2] = True, False
    probability = rng.random(n_images)
    if rng.integers(2):
        probability = np.round(probability * 8) / 8  # on the edges of bins
    weight = rng.integers(0, 4, n_images)
    weight[:2] += 1
    return truth, rng.random(n_images) < 0.5, probability, weight


predictions = st.integers(0, 2**32 - 1).map(random_predictions)


def slow_calibration_error(truth, probability, edges):
    error = 0.0
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = [
            i for i, p in enumerate(probability) if low < p <= high or (index == 0 and p == low)
        ]
        if inside:
            confidence = sum(probability[i] for i in inside) / len(inside)
            share = sum(bool(truth[i]) for i in inside) / len(inside)
            error += len(inside) / len(truth) * abs(confidence - share)
    return error


def slow_quantile_edges(probability, n_bins):
    """For each k the smallest probability that at least k of `n_bins` parts do not exceed."""
    inner = [
        next(
            p
            for p in sorted(probability)
            if n_bins * sum(q <= p for q in probability) >= k * len(probability)
        )
        for k in range(1, n_bins)
    ]
    return [0.0, *inner, 1.0]


@few
@given(
    predictions,
    st.sampled_from([metrics.defect_recall_score, metrics.escape_rate, metrics.overkill_rate]),
)
def test_a_whole_weight_in_an_image_rate_is_so_many_images(case, score):
    truth, called, _, weight = case
    repeated = score(np.repeat(truth, weight), np.repeat(called, weight))
    assert score(truth, called, sample_weight=weight) == pytest.approx(repeated)


@few
@given(predictions, st.integers(1, 12), st.sampled_from(["uniform", "quantile"]))
def test_a_whole_weight_in_the_calibration_error_is_so_many_images(case, n_bins, strategy):
    truth, _, probability, weight = case
    options = {"n_bins": n_bins, "strategy": strategy}
    repeated = metrics.expected_calibration_error(
        np.repeat(truth, weight), np.repeat(probability, weight), **options
    )
    for weights in (weight, 0.1 * weight):  # only their ratios count
        weighted = metrics.expected_calibration_error(
            truth, probability, sample_weight=weights, **options
        )
        assert weighted == pytest.approx(repeated)


# Image level: calibration ------------------------------------------------------------------------


@few
@given(predictions, st.integers(1, 12))
def test_calibration_error_agrees_with_a_loop_over_equally_wide_bins(case, n_bins):
    truth, _, probability, _ = case
    found = metrics.expected_calibration_error(truth, probability, n_bins=n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    assert found == pytest.approx(slow_calibration_error(truth, probability, edges))


@few
@given(predictions, st.integers(1, 12))
def test_calibration_error_agrees_with_a_loop_over_quantiles(case, n_bins):
    truth, _, probability, _ = case
    found = metrics.expected_calibration_error(
        truth, probability, n_bins=n_bins, strategy="quantile"
    )
    edges = slow_quantile_edges(probability, n_bins)
    assert found == pytest.approx(slow_calibration_error(truth, probability, edges))


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from(["uniform", "quantile"]))
def test_calibration_bins_are_those_of_scikit_learn(seed, n_bins, strategy):
    rng = np.random.default_rng(seed)
    n_images = 10 * n_bins  # ten in each bin, by either strategy
    probability = rng.permutation((np.arange(n_images) + rng.uniform(0.1, 0.9)) / n_images)
    truth = rng.random(n_images) < probability
    options = {"n_bins": n_bins, "strategy": strategy}
    shares, means = calibration_curve(truth, probability, **options)
    found = metrics.expected_calibration_error(truth, probability, **options)
    assert found == pytest.approx(np.mean(np.abs(shares - means)))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_calibration_error_at_its_extremes(strategy):
    truth = np.array([False, True, True, False])
    error = metrics.expected_calibration_error
    assert error(truth, truth, strategy=strategy) == 0
    assert error(truth, ~truth, strategy=strategy) == 1
    assert error(truth, np.full(4, 0.5), strategy=strategy) == 0
    assert error(truth, np.full(4, 0.75), strategy=strategy) == 0.25


def test_calibration_error_names_the_defect_and_makes_a_scorer():
    y = np.array(["anomaly", "good", "good", "good"] * 5)
    prior = DummyClassifier(strategy="prior").fit(np.zeros((20, 1)), y)
    scorer = make_scorer(
        metrics.expected_calibration_error,
        greater_is_better=False,
        response_method="predict_proba",
        pos_label="anomaly",
    )
    assert scorer(prior, np.zeros((20, 1)), y) == pytest.approx(0)
    assert scorer(prior, np.zeros((2, 1)), ["anomaly", "good"]) == pytest.approx(-0.25)


def test_calibration_error_without_images_is_nan():
    for arguments in ({"y_true": [], "y_prob": []}, {"y_true": [1], "y_prob": [0.5]}):
        weight = np.zeros(len(arguments["y_true"]))
        with pytest.warns(UndefinedMetricWarning, match="there is no image"):
            assert np.isnan(metrics.expected_calibration_error(**arguments, sample_weight=weight))


@pytest.mark.parametrize(
    ("y_true", "y_prob", "options", "message"),
    [
        (["good", "bad"], [0, 1], {}, r"pass pos_label=\.\.\."),
        (["good", "dent", "hole"], [0, 1, 1], {"pos_label": "dent"}, "whether each image"),
        ([0, 1], [0, 1.1], {}, r"y_prob must be finite numbers from 0 to 1, got 1\.1"),
        ([0, 1], [0, np.nan], {}, "y_prob"),
        ([0, 1], [0, 1], {"sample_weight": [1, -1]}, "sample_weight"),
        ([0, 1], [0, 1], {"sample_weight": [1, np.inf]}, "sample_weight"),
        ([0, 1], [0, 1], {"sample_weight": [1]}, "inconsistent numbers of samples"),
        ([0, 1], [0], {}, "inconsistent numbers of samples"),
        ([0, 1], [0, 1], {"n_bins": 0}, "n_bins"),
        ([0, 1], [0, 1], {"strategy": "width"}, "strategy"),
    ],
)
def test_calibration_arguments_that_do_not_fit_are_refused(y_true, y_prob, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.expected_calibration_error(y_true, y_prob, **options)


# Pixel level: references -------------------------------------------------------------------------


@few
@given(cases)
def test_pixel_roc_auc_agrees_with_all_pairs(case):
    score = metrics.pixel_roc_auc_score(*case)
    assert score == pytest.approx(slow_roc_auc(*case))
    assert score == pytest.approx(roc_auc_score(*pooled(*case)))


@few
@given(cases)
def test_pixel_average_precision_agrees_with_a_loop_over_thresholds(case):
    score = metrics.pixel_average_precision_score(*case)
    assert score == pytest.approx(slow_average_precision(*case))
    assert score == pytest.approx(average_precision_score(*pooled(*case)))


@few
@given(cases, st.sampled_from([0.05, 0.3, 1.0]))
def test_pro_auc_agrees_with_a_loop_over_thresholds(case, max_fpr):
    score = metrics.pro_auc_score(*case, max_fpr=max_fpr)
    assert score == pytest.approx(slow_pro_auc(*case, max_fpr))
    fpr, pro, _ = metrics.pro_curve(*case)
    assert metrics.pro_curve_area(fpr, pro, max_fpr) == score


@few
@given(cases)
def test_pro_curve_holds_points_of_the_slow_curve(case):
    fpr, pro, thresholds = metrics.pro_curve(*case)
    slow = slow_pro_curve(*case)
    assert fpr[0] == pro[0] == 0 and thresholds[0] == np.inf
    assert fpr[-1] == pytest.approx(1) and pro[-1] == pytest.approx(1)
    assert np.all(np.diff(thresholds) < 0)
    for point in zip(fpr, pro, strict=True):
        assert np.abs(np.array(slow) - point).max(axis=1).min() < 1e-9
    truth, score = pooled(*case)
    for threshold, share in zip(thresholds, fpr, strict=True):
        assert share == pytest.approx((score[~truth] >= threshold).mean())


@pytest.mark.parametrize("max_fpr", [0.05, 0.3])
def test_pro_auc_agrees_with_anomalib(max_fpr):
    aupro = pytest.importorskip("anomalib.metrics.aupro", exc_type=ImportError)
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.random((4, 48, 48)), (0, 3, 3))
    masks = ndimage.gaussian_filter(rng.random((4, 48, 48)), (0, 2, 2)) > 0.56
    maps = noise + 0.02 * ndimage.gaussian_filter(masks.astype(float), (0, 2, 2))
    maps = ((maps - maps.min()) / np.ptp(maps)).astype(np.float32)
    theirs = aupro._AUPRO(fpr_limit=max_fpr)
    theirs.update(torch.from_numpy(maps), torch.from_numpy(masks.astype(np.int64)))
    # It resamples each region's curve before averaging, which without ties comes to the same.
    assert metrics.pro_auc_score(masks, maps, max_fpr=max_fpr) == pytest.approx(
        float(theirs.compute()), abs=1e-5
    )


def test_diagonal_pixels_are_one_region_and_regions_count_alike():
    mask = np.zeros((4, 40), bool)
    mask[[0, 1, 2, 3], [0, 1, 2, 3]] = True  # one region by diagonals
    mask[:, 20:] = True
    heatmap = np.where(mask, -1.0, 0.0)
    heatmap[:, :4] = np.where(mask[:, :4], 1.0, 0.0)
    assert metrics.pro_auc_score([mask], [heatmap]) == pytest.approx(0.5)


# Pixel level: invariants -------------------------------------------------------------------------


@pytest.mark.parametrize("score", PIXEL_SCORES)
@pytest.mark.parametrize("n_bins", [None, 2**12])
def test_perfect_maps_score_one(score, n_bins):
    masks, _ = random_case(1)
    assert score(masks, [mask * 0.5 for mask in masks], n_bins=n_bins) == pytest.approx(1)


@pytest.mark.parametrize("n_bins", [None, 2**12])
def test_constant_maps_score_as_chance(n_bins):
    masks, maps = random_case(2)
    flat = [np.full(m.shape, 0.7) for m in maps]
    share = np.concatenate([m.ravel() for m in masks]).mean()
    assert metrics.pixel_roc_auc_score(masks, flat, n_bins=n_bins) == pytest.approx(0.5)
    assert metrics.pro_auc_score(masks, flat, n_bins=n_bins) == pytest.approx(0.15)
    average_precision = metrics.pixel_average_precision_score(masks, flat, n_bins=n_bins)
    assert average_precision == pytest.approx(share)


@pytest.mark.parametrize(
    "score", [*PIXEL_SCORES, metrics.pointing_game_score, metrics.max_box_accuracy_score]
)
def test_the_order_of_images_does_not_matter(score):
    masks, maps = random_case(0)
    assert len(masks) > 2
    assert score(masks, maps) == pytest.approx(score(masks[::-1], maps[::-1]))
    assert score(iter(masks), (m for m in maps)) == score(masks, maps)


@few
@given(cases)
def test_rising_transforms_of_the_map_change_nothing(case):
    masks, maps = case
    risen = [np.exp(2 * m.astype(np.float64)) - 5 for m in maps]
    for score in (*PIXEL_SCORES, metrics.pointing_game_score):
        assert score(masks, risen) == pytest.approx(score(masks, maps))


@few
@given(cases)
def test_roc_of_the_negated_map_is_the_complement(case):
    masks, maps = case
    score = metrics.pixel_roc_auc_score(masks, maps)
    assert metrics.pixel_roc_auc_score(masks, [-m for m in maps]) == pytest.approx(1 - score)


def test_none_is_a_mask_without_defect_and_any_nonzero_value_a_defect():
    masks, maps = random_case(0)
    masks[1] = np.zeros_like(masks[1])
    as_read = [255 * m.astype(np.uint8) for m in masks]
    as_read[1] = None
    for score in (*PIXEL_SCORES, metrics.pointing_game_score, metrics.max_box_accuracy_score):
        assert score(as_read, maps) == score(masks, maps)


# Pixel level: histograms -------------------------------------------------------------------------


def counts_between(scores, edges):
    """How many scores lie from each falling edge up to the one before."""
    at_or_above = (scores[None] >= edges[:, None]).sum(axis=1)
    return np.diff(np.append(0, at_or_above))


@few
@given(cases, st.sampled_from([512, 1000, 4096]))
def test_histograms_keep_the_stated_bounds(case, n_bins):
    truth, score = pooled(*case)
    fpr, pro, edges = metrics.pro_curve(*case, n_bins=n_bins)
    good = counts_between(score[~truth], edges[1:])
    defective = counts_between(score[truth], edges[1:])
    assert good.sum() == (~truth).sum() and np.diff(fpr) == pytest.approx(good / good.sum())

    bound = 0.5 * np.sum(good * defective) / (good.sum() * defective.sum())
    binned = metrics.pixel_roc_auc_score(*case, n_bins=n_bins)
    assert abs(binned - slow_roc_auc(*case)) <= bound + 1e-9

    within = fpr[:-1] < 0.3
    bound = 0.5 * np.sum((np.diff(fpr) * np.diff(pro))[within]) / 0.3
    binned = metrics.pro_auc_score(*case, n_bins=n_bins)
    assert abs(binned - slow_pro_auc(*case, 0.3)) <= bound + 1e-9

    t1, f1 = np.cumsum(defective), np.cumsum(good)
    t0, f0 = t1 - defective, f1 - good
    precision, lowest, highest = (
        t1 / (t1 + f1),
        (t0 + 1) / (t0 + 1 + f1),
        t1 / np.maximum(t1 + f0, 1),
    )
    farther = np.maximum(np.abs(precision - lowest), np.abs(highest - precision))
    bound = np.sum(defective * farther) / defective.sum()
    binned = metrics.pixel_average_precision_score(*case, n_bins=n_bins)
    assert abs(binned - slow_average_precision(*case)) <= bound + 1e-9


@pytest.mark.parametrize("score", PIXEL_SCORES)
def test_a_million_bins_tell_scores_apart_that_differ_by_a_thousandth(score):
    rng = np.random.default_rng(0)
    steps = rng.permutation(400).reshape(2, 10, 20)
    maps = 1.001 ** (steps - 200.0) * rng.choice([-1.0, 1.0], size=steps.shape)  # both signs
    masks = ndimage.gaussian_filter(rng.random(steps.shape), (0, 1, 1)) > 0.55
    exact = score(masks, maps)
    assert 0.1 < exact < 0.9
    assert score(masks, maps, n_bins=2**20) == pytest.approx(exact, abs=1e-12)
    assert score(masks, maps, n_bins=2**10) != pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("n_bins", [2, 1000, 4096])
def test_bins_start_at_their_edges(n_bins):
    edges = metrics._bin_edges(n_bins).astype(np.float32)
    finite = np.flatnonzero(np.isfinite(edges))
    with np.errstate(over="ignore"):  # below the lowest finite number
        below = np.nextafter(edges[finite], np.float32(-np.inf))
    assert (metrics._float_rank(edges[finite]) * n_bins >> 32).tolist() == finite.tolist()
    assert (metrics._float_rank(below) * n_bins >> 32).tolist() == (finite - 1).tolist()


@pytest.mark.parametrize("n_bins", [16, 2**12])
@given(cases)
@few
def test_pixel_counts_score_as_the_functions_do(n_bins, case):
    masks, maps = case
    counts = metrics.PixelCounts(n_bins)
    for mask, heatmap in zip(masks, maps, strict=True):
        counts.add(mask, heatmap)
    assert counts.roc_auc() == pytest.approx(
        metrics.pixel_roc_auc_score(masks, maps, n_bins=n_bins)
    )
    assert counts.pro_auc(0.2) == pytest.approx(
        metrics.pro_auc_score(masks, maps, max_fpr=0.2, n_bins=n_bins)
    )


def test_pixel_counts_say_what_is_wrong():
    counts = metrics.PixelCounts()
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(counts.roc_auc())
    counts.add(None, np.zeros((2, 2)))
    with pytest.warns(UndefinedMetricWarning, match="no pixel of the masks is defective"):
        assert np.isnan(counts.pro_auc())
    with pytest.raises(ValueError, match="resize the map"):
        counts.add(np.ones((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="n_bins"):
        metrics.PixelCounts(1)
    with pytest.raises(ValueError, match="max_fpr"):
        counts.pro_auc(0)


def test_minus_zero_equals_zero_in_histograms():
    mask = np.array([[True, False]])
    heatmap = np.array([[-0.0, 0.0]], dtype=np.float32)
    assert metrics.pixel_roc_auc_score([mask], [heatmap], n_bins=2**20) == 0.5


@pytest.mark.parametrize("score", PIXEL_SCORES)
def test_memory_with_bins_does_not_grow_with_the_number_of_images(score):
    def peak(n_images):
        rng = np.random.default_rng(0)
        mask = rng.random((64, 64)) < 0.1
        tracemalloc.start()
        score(
            (mask for _ in range(n_images)),
            (rng.random((64, 64), dtype=np.float32) for _ in range(n_images)),
            n_bins=2**10,
        )
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)  # what the first call allocates for good
    assert peak(60) < 1.2 * peak(4)


def test_too_few_bins_are_refused():
    with pytest.raises(ValueError, match="n_bins"):
        metrics.pixel_roc_auc_score(*random_case(0), n_bins=1)


# Pixel level: undefined and unfit ----------------------------------------------------------------


@pytest.mark.parametrize("n_bins", [None, 512])
def test_pixel_scores_are_nan_where_undefined(n_bins):
    heatmap = np.arange(12.0).reshape(3, 4)
    for score in PIXEL_SCORES:
        with pytest.warns(UndefinedMetricWarning, match="no pixel of the masks is defective"):
            assert np.isnan(score([None], [heatmap], n_bins=n_bins))
    for score in (metrics.pixel_roc_auc_score, metrics.pro_auc_score):
        with pytest.warns(UndefinedMetricWarning, match="none is good"):
            assert np.isnan(score([np.ones((3, 4))], [heatmap], n_bins=n_bins))
    ap = metrics.pixel_average_precision_score([np.ones((3, 4))], [heatmap], n_bins=n_bins)
    assert ap == pytest.approx(1)


def test_pro_curve_says_which_side_is_undefined():
    heatmap = np.arange(12.0).reshape(3, 4)
    with pytest.warns(UndefinedMetricWarning):
        fpr, pro, _ = metrics.pro_curve([None], [heatmap])
    assert np.isnan(pro).all() and fpr[-1] == 1
    with pytest.warns(UndefinedMetricWarning):
        fpr, pro, _ = metrics.pro_curve([np.ones((3, 4))], [heatmap])
    assert np.isnan(fpr).all() and pro[-1] == pytest.approx(1)


@pytest.mark.parametrize(("fpr", "pro"), [([0, 1], [np.nan] * 2), ([np.nan] * 2, [0, 1])])
def test_the_area_of_an_undefined_curve_is_nan(fpr, pro):
    with pytest.warns(UndefinedMetricWarning, match=r"set to nan: (fpr|pro) is nan"):
        assert np.isnan(metrics.pro_curve_area(fpr, pro))


@pytest.mark.parametrize("score", [metrics.pointing_game_score, metrics.max_box_accuracy_score])
def test_scores_of_defective_images_are_nan_without_any(score):
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(score([None, None], [np.ones((2, 2))] * 2))


@pytest.mark.parametrize("score", [*PIXEL_SCORES, metrics.pointing_game_score])
@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        ([np.ones((2, 3))], [], "heatmaps ended after 0"),
        ([np.ones((2, 3))], [np.ones((2, 3))] * 2, "masks ended after 1"),
        ([np.ones((2, 3))], [np.ones((3, 2))], r"masks\[0\] is \(2, 3\)"),
        ([np.ones((2, 3))], [np.full((2, 3), np.nan)], r"heatmaps\[0\] holds NaN"),
        ([np.ones(3)], [np.ones((1, 3))], "2-D"),
        (np.ones((2, 3)), np.ones((2, 3)), "into a list"),
    ],
)
def test_masks_and_maps_that_do_not_fit_are_refused(score, masks, maps, message):
    with pytest.raises(ValueError, match=message):
        score(masks, maps)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.1])
def test_a_limit_outside_zero_to_one_is_refused(max_fpr):
    with pytest.raises(ValueError, match="max_fpr"):
        metrics.pro_auc_score(*random_case(0), max_fpr=max_fpr)


# Pointing ----------------------------------------------------------------------------------------


def test_pointing_counts_defective_images_hit_and_shares_ties():
    mask = np.array([[1, 0], [0, 0]])
    hit, miss = np.array([[2, 1], [0, 0]]), np.array([[2, 3], [0, 0]])
    assert metrics.pointing_game_score([mask] * 3 + [None], [hit, miss, miss, hit]) == (
        pytest.approx(1 / 3)
    )
    assert metrics.pointing_game_score([mask], [np.ones((2, 2))]) == 0.25


# Boxes -------------------------------------------------------------------------------------------


@few
@given(cases)
def test_mask_boxes_agree_with_scipy(case):
    for mask in case[0]:
        found = metrics.mask_boxes(mask)
        assert found.dtype == np.int64 and found.shape[1:] == (4,)
        assert [tuple(b) for b in found.tolist()] == sorted(
            slow_boxes(mask), key=lambda b: (b[1], b[0], b[2], b[3])
        )


@few
@given(st.integers(0, 2**32 - 1))
def test_box_iou_agrees_with_counted_pixels(seed):
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, rng.integers(5)), random_boxes(rng, rng.integers(5))
    found = metrics.box_iou(a, b)
    assert found.shape == (len(a), len(b))
    assert found == pytest.approx(
        np.array([[slow_iou(p, q) for q in b] for p in a]).reshape(len(a), len(b))
    )


def test_touching_and_empty_boxes_do_not_overlap():
    assert metrics.box_iou([[0, 0, 2, 2]], [[2, 0, 4, 2], [1, 1, 1, 1]]).tolist() == [[0, 0]]
    assert metrics.box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0]]
    assert metrics.box_iou([], [[0, 0, 1, 1]]).shape == (0, 1)


@pytest.mark.parametrize("boxes", [[0, 0, 2, 2], [[0, 0, 2]], [[2, 0, 0, 2]], [[0, 0, np.nan, 2]]])
def test_what_is_no_box_is_refused(boxes):
    with pytest.raises(ValueError, match="boxes_a"):
        metrics.box_iou(boxes, [[0, 0, 2, 2]])


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.5]))
def test_box_scores_agree_with_slow_greedy_matching(seed, iou_threshold):
    rng = np.random.default_rng(seed)
    n_images = rng.integers(1, 5)
    true = [random_boxes(rng, rng.integers(1, 5)) for _ in range(n_images)]
    pred = [random_boxes(rng, rng.integers(1, 6)) for _ in range(n_images)]
    matched = []
    for of_image in zip(true, pred, strict=True):
        matched += slow_matches(*of_image, iou_threshold)
    found = metrics.box_precision_recall_f1(true, pred, iou_threshold=iou_threshold)
    n_true, n_pred = sum(map(len, true)), sum(map(len, pred))
    assert found["true_positives"] == len(matched)
    assert found["false_positives"] == n_pred - len(matched)
    assert found["false_negatives"] == n_true - len(matched)
    assert found["precision"] == pytest.approx(len(matched) / n_pred)
    assert found["recall"] == pytest.approx(len(matched) / n_true)
    assert found["f1"] == pytest.approx(2 * len(matched) / (n_true + n_pred))
    if matched:
        assert found["mean_iou"] == pytest.approx(np.mean(matched))


def test_box_scores_put_the_best_first():
    true = [[[0, 0, 10, 10]]]
    pred = [[[0, 0, 10, 4], [0, 0, 10, 9]]]  # both would do; the first to come takes the box
    assert metrics.box_precision_recall_f1(true, pred)["mean_iou"] == 0.4
    assert metrics.box_precision_recall_f1(true, pred, [[0.1, 0.9]])["mean_iou"] == 0.9


def test_one_box_finds_one_defect_and_good_images_add_false_boxes_only():
    box = [0, 0, 4, 4]
    twice = metrics.box_precision_recall_f1([[box], []], [[box, box], []])
    assert (twice["precision"], twice["recall"]) == (0.5, 1.0)
    on_good = metrics.box_precision_recall_f1([[box], []], [[box], [box]])
    assert (on_good["precision"], on_good["recall"]) == (0.5, 1.0)
    # An overlap exactly at the threshold is enough.
    assert metrics.box_precision_recall_f1([[box]], [[[0, 0, 4, 2]]], iou_threshold=0.5)["f1"] == 1


def test_box_scores_may_be_whole_numbers_of_any_type():
    right, wrong = [0, 0, 4, 4], [0, 0, 4, 3]
    for dtype in (np.uint8, np.int64, bool):
        scores = np.array([0, 1], dtype=dtype)
        found = metrics.box_precision_recall_f1([[right]], [[wrong, right]], [scores])
        assert found["mean_iou"] == 1.0


@pytest.mark.parametrize("wrong", [[], [[0.5]], [0.0], [1.1], 0.5])
def test_overlaps_that_are_required_are_a_list_of_shares(wrong):
    with pytest.raises(ValueError, match="iou_thresholds"):
        metrics.max_box_accuracy_score([[[0, 0, 2, 2]]], [np.ones((4, 4))], iou_thresholds=wrong)


def test_the_wrong_one_of_two_lists_of_boxes_is_named():
    box = [[0, 0, 2, 2]]
    with pytest.raises(ValueError, match="boxes_a"):
        metrics.box_iou([[0, 0, 2]], box)
    with pytest.raises(ValueError, match="boxes_b"):
        metrics.box_iou(box, [[0, 0, 2]])


def test_box_scores_without_boxes():
    box = [0, 0, 4, 4]
    with pytest.warns(UndefinedMetricWarning, match="precision"):
        none_found = metrics.box_precision_recall_f1([[box]], [[]])
    assert np.isnan(none_found["precision"])
    assert (none_found["recall"], none_found["f1"]) == (0, 0)
    with pytest.warns(UndefinedMetricWarning, match="recall"):
        none_true = metrics.box_precision_recall_f1([[]], [[box]])
    assert np.isnan(none_true["recall"])
    assert (none_true["precision"], none_true["f1"]) == (0, 0)
    with pytest.warns(UndefinedMetricWarning):
        neither = metrics.box_precision_recall_f1([[]], [np.zeros((0, 4))])
    assert np.isnan([neither[name] for name in ("precision", "recall", "f1", "mean_iou")]).all()


def test_box_arguments_that_do_not_fit_are_refused():
    box = [[0, 0, 4, 4]]
    with pytest.raises(ValueError, match="boxes_pred ended after 1"):
        metrics.box_precision_recall_f1([box, box], [box])
    with pytest.raises(ValueError, match=r"scores\[0\]"):
        metrics.box_precision_recall_f1([box], [box], [[0.5, 0.2]])
    with pytest.raises(ValueError, match="iou_threshold"):
        metrics.box_precision_recall_f1([box], [box], iou_threshold=0)


@few
@given(cases, st.sampled_from([(0.3, 0.5, 0.7), (0.5,)]))
def test_max_box_accuracy_agrees_with_a_loop_over_thresholds(case, iou_thresholds):
    found = metrics.max_box_accuracy_score(*case, iou_thresholds=iou_thresholds, thresholds=8)
    assert found == pytest.approx(slow_max_box_accuracy(*case, iou_thresholds, n_thresholds=8))


@few
@given(cases)
def test_max_box_accuracy_at_thresholds_common_to_all_maps(case):
    levels = [1.5, -1.0, 0.5, 2.5]
    found = metrics.max_box_accuracy_score(*case, thresholds=levels)
    assert found == pytest.approx(slow_max_box_accuracy(*case, (0.3, 0.5, 0.7), thresholds=levels))


@few
@given(cases)
def test_max_box_accuracy_takes_boxes_for_masks(case):
    masks, maps = case
    boxes = [metrics.mask_boxes(mask) for mask in masks]
    # A map of the boxes' own shape would make them a mask.
    if all(np.shape(b) != m.shape for b, m in zip(boxes, maps, strict=True)):
        from_boxes = metrics.max_box_accuracy_score(boxes, maps, thresholds=8)
        assert from_boxes == metrics.max_box_accuracy_score(*case, thresholds=8)


def test_max_box_accuracy_of_smooth_maps_agrees_with_the_slow_one():
    rng = np.random.default_rng(3)
    maps = ndimage.gaussian_filter(rng.random((6, 36, 30)), (0, 3, 3))
    masks = ndimage.gaussian_filter(rng.random((6, 36, 30)), (0, 3, 3)) > 0.53
    maps += 0.1 * ndimage.gaussian_filter(masks.astype(float), (0, 2, 2))
    found = metrics.max_box_accuracy_score(masks, maps, thresholds=20)
    assert 0 < found < 1
    expected = slow_max_box_accuracy(masks, maps, (0.3, 0.5, 0.7), n_thresholds=20)
    assert found == pytest.approx(expected)


def test_map_pixels_at_the_threshold_are_not_above_it():
    box, heatmap = [[1, 1, 3, 3]], np.zeros((5, 5))
    heatmap[1:3, 1:3] = 1.0
    assert metrics.max_box_accuracy_score([box], [heatmap], thresholds=[1.0]) == 0
    assert metrics.max_box_accuracy_score([box], [heatmap], thresholds=[0.999]) == 1


def test_a_component_seen_through_anothers_box_is_not_cut_to_it():
    heatmap = np.zeros((40, 30))
    heatmap[2:, 10:20] = 1.0  # reaches far below the true box
    heatmap[0, :] = heatmap[:10, [0, -1]] = 1.0  # an arch around the true box
    score = metrics.max_box_accuracy_score([[[10, 2, 20, 10]]], [heatmap], thresholds=[0.2, 0.5])
    assert score == 0


def test_max_box_accuracy_needs_thresholds():
    masks, maps = random_case(0)
    with pytest.raises(ValueError, match="thresholds"):
        metrics.max_box_accuracy_score(masks, maps, thresholds=0)
    with pytest.raises(ValueError, match="iou_thresholds"):
        metrics.max_box_accuracy_score(masks, maps, iou_thresholds=(0.0,))
    with pytest.raises(ValueError, match=r"masks\[0\].*boxes"):
        metrics.max_box_accuracy_score([np.ones((2, 3))], [np.ones((4, 5))])


def test_a_number_of_thresholds_may_be_a_numpy_integer():
    heatmap = np.zeros((8, 8))
    heatmap[2:6, 2:6] = 1.0
    for number in (100, np.int64(100)):
        score = metrics.max_box_accuracy_score([[[2, 2, 6, 6]]], [heatmap], thresholds=number)
        assert score == 1.0


def test_an_empty_map_is_called_one():
    with pytest.raises(ValueError, match=r"with pixels, got shape \(0, 4\)"):
        metrics.pro_auc_score([None], [np.zeros((0, 4))])
