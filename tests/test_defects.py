from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from defectcam.defects import DEFECT_TYPES, SURFACES, make_defects

kinds = st.sampled_from(list(SURFACES))
seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=30, deadline=None)


@few_examples
@given(kinds, seeds, st.tuples(st.integers(32, 90), st.integers(32, 90)), st.floats(0, 1))
def test_masks_lie_where_the_image_differs_from_its_good_twin(kind, seed, size, severity) -> None:
    shared = {"n_samples": 5, "image_size": size, "kind": kind, "random_state": seed}
    data = make_defects(**shared, defect_rate=1, severity=(severity, severity))
    twins = make_defects(**shared, defect_rate=0)
    changed = (data.images != twins.images).any(axis=3)
    assert changed[data.masks].all()
    assert data.masks.sum(axis=(1, 2)).min() >= 4
    assert not twins.masks.any() and not twins.target.any()
    # What changes outside the mask is the soft rim: far weaker than what is inside.
    change = np.abs(data.images.astype(int) - twins.images).max(axis=3)
    for of_image, mask in zip(change, data.masks, strict=True):
        assert of_image[~mask].max() <= 0.25 * of_image[mask].max() + 2


@few_examples
@given(st.integers(1, 40), st.floats(0, 1), seeds)
def test_the_share_of_defects_is_as_asked_and_good_images_have_none(n, rate, seed) -> None:
    data = make_defects(n, 32, defect_rate=rate, random_state=seed)
    assert data.target.sum() == round(n * rate)
    assert (data.types == "good").tolist() == (~data.target).tolist()
    assert data.masks.any(axis=(1, 2)).tolist() == data.target.tolist()
    assert np.isnan(data.severity).tolist() == (~data.target).tolist()
    counts = Counter(data.types[data.target].tolist())
    assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 1


@pytest.mark.parametrize("kind", SURFACES)
def test_the_seed_decides_every_bit(kind: str, generators_untouched) -> None:
    first, again, other = (make_defects(6, 48, kind=kind, random_state=s) for s in (0, 0, 1))
    for key in ("images", "masks", "types", "severity"):
        np.testing.assert_array_equal(first[key], again[key])
    assert (first.images != other.images).any(axis=(1, 2, 3)).all()
    more = make_defects(9, 48, kind=kind, defect_rate=0, random_state=0)
    good = ~first.target
    np.testing.assert_array_equal(more.images[:6][good], first.images[good])


def test_shapes_and_names() -> None:
    data = make_defects(8, (40, 56), kind="print", defect_types=["crack"], random_state=0)
    assert data.images.shape == (8, 40, 56, 3) and data.images.dtype == np.uint8
    assert data.masks.shape == (8, 40, 56) and data.masks.dtype == bool
    assert set(data.types) == {"good", "crack"}
    assert data.target is data.is_defect and data.good_label == "good" and data.groups is None


def test_a_random_state_that_is_used_twice_goes_on() -> None:
    random_state = np.random.RandomState(0)
    first, second = (make_defects(2, 32, random_state=random_state) for _ in range(2))
    assert (first.images != second.images).any()


@pytest.mark.parametrize("kind", SURFACES)
@pytest.mark.parametrize("type_", DEFECT_TYPES)
def test_severity_is_contrast(kind: str, type_: str) -> None:
    shared = {"n_samples": 12, "image_size": 64, "kind": kind, "random_state": 0}
    twins = make_defects(**shared, defect_rate=0).images.astype(int)
    change = []
    for severity in (0.0, 0.5, 1.0):
        data = make_defects(
            **shared, defect_rate=1, defect_types=[type_], severity=(severity, severity)
        )
        change.append(np.abs(data.images - twins).max(axis=3)[data.masks].mean())
    assert 2 < change[0] < change[1] < change[2] < 140


def test_good_parts_vary_more_than_faint_defects_change_them() -> None:
    data = make_defects(60, 64, defect_rate=0.5, severity=(0, 0.3), random_state=0)
    brightness = data.images.mean(axis=(1, 2, 3))
    spread = data.images.std(axis=(1, 2, 3))
    for feature in (brightness, spread):  # no global figure gives the label away
        assert 0.25 < roc_auc_score(data.target, feature) < 0.75


def test_defects_look_alike_at_every_image_size() -> None:
    small, large = (make_defects(40, s, defect_rate=1, random_state=0).masks for s in (64, 256))
    shares = small.mean(axis=(1, 2)), large.mean(axis=(1, 2))
    assert np.corrcoef(*np.log(shares))[0, 1] > 0.8
    assert 0.0005 < np.median(shares[1]) < 0.05


def test_it_is_fast() -> None:
    make_defects(2, 224, random_state=0)
    start = time.perf_counter()
    make_defects(20, 224, random_state=0)
    assert (time.perf_counter() - start) / 20 < 0.1  # ten times what it takes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples=0"),
        ({"image_size": 31}, "image_size=31 .* at least 32"),
        ({"image_size": (64, 64, 3)}, "image_size"),
        ({"image_size": 64.0}, "image_size=64.0"),
        ({"kind": "wood"}, r"kind='wood' is unknown: pass one of \['metal'"),
        ({"defect_rate": 1.5}, "defect_rate=1.5 must be a share"),
        ({"defect_types": ["dent"]}, r"defect_types=\['dent'\] must name"),
        ({"defect_types": []}, "must name at least one"),
        ({"defect_types": "crack"}, "must be a sequence"),
        ({"severity": (0.5, 0.2)}, "severity"),
        ({"severity": 0.5}, "severity=0.5"),
    ],
)
def test_impossible_parameters_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_defects(**arguments)


def test_the_classifier_learns_them(tiny_classifier) -> None:
    shared = {"image_size": 64, "kind": "cast", "defect_rate": 0.5, "severity": (0.8, 1)}
    shared["defect_types"] = ("missing", "stain")
    train = make_defects(40, **shared, random_state=0)
    test = make_defects(40, **shared, random_state=1)
    clf = tiny_classifier(max_epochs=4, image_size=96).fit(train.images, train.target)
    probability = clf.predict_proba(test.images)[:, 1]
    assert roc_auc_score(test.target, probability) > 0.8
    report = clf.evaluate(test.images, test.target, masks=test.masks)
    assert report.pixels["n_masks"] == 20 and report.pixels["pixel_roc_auc"] > 0.7
