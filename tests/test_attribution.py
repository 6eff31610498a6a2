"""Methods of pytorch-grad-cam by name: what they explain, and that nothing is left behind."""

from __future__ import annotations

import copy
import pickle
import sys

import numpy as np
import pytest
import torch

from defectcam.attribution import BOX_THRESHOLD, METHODS, attribution_maps, check_method
from defectcam.cam import min_max, signed_cam
from defectcam.images import find_images

pytest.importorskip("pytorch_grad_cam")


@pytest.fixture(scope="module")
def scratched(fitted_parts):
    return find_images(fitted_parts / "scratch")[:3]


@pytest.fixture(scope="module")
def average(tiny_classifier, fitted_parts):
    """Return a classifier with global average pooling, on which Grad-CAM has a closed form."""
    return tiny_classifier(
        pooling="average", evidence_stages=1, heatmap="cam", precision="float32"
    ).fit(fitted_parts)


@pytest.fixture(scope="module")
def frozen(tiny_classifier, fitted_parts):
    return tiny_classifier(trainable_stages=0).fit(fitted_parts)


def hooks(network):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for m in network.modules() for name in names for hook in getattr(m, name)]


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_the_same_but_for_the_map(fitted, scratched, method):
    for own, found in zip(
        fitted.localize(scratched), fitted.localize(scratched, method=method), strict=True
    ):
        assert (found.label, found.probability) == (own.label, own.probability)
        assert found.is_defect == own.is_defect and found.source == own.source
        assert found.heatmap.shape == own.heatmap.shape == found.image_size
        assert found.heatmap.min() >= 0 and 0.9 < found.heatmap.max() <= 1
        assert (found.threshold, found.peak_fraction, found.tighten) == (BOX_THRESHOLD, 0.0, False)
        above = found.heatmap > BOX_THRESHOLD
        assert not found.mask()[~above].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["frozen", "bfloat16"])
def test_methods_work_where_gradients_are_hard_to_get(
    tiny_classifier, fitted_parts, frozen, scratched, method, kind
):
    clf = frozen
    if kind == "bfloat16":
        clf = copy.deepcopy(frozen)
        clf.network_.set_dtype(torch.bfloat16)
    expected = frozen.localize(scratched, method=method)
    for found, one in zip(clf.localize(scratched, method=method), expected, strict=True):
        assert found.heatmap.max() > 0.9
        assert np.corrcoef(found.grid.ravel(), one.grid.ravel())[0, 1] > 0.98


def test_a_level_that_is_frozen_beside_one_that_is_not(tiny_classifier, fitted_parts, scratched):
    clf = tiny_classifier(trainable_stages=1, evidence_stages=2, max_epochs=1).fit(fitted_parts)
    assert clf.network_.has_frozen_evidence
    assert all(f.heatmap.max() > 0.9 for f in clf.localize(scratched, method="layercam"))


def test_gradcam_explains_the_defect_against_the_good_class(average, scratched):
    evidence = torch.from_numpy(average.evidence(scratched))
    good = list(average.classes_).index(average.good_label_)
    # With average pooling the weights are the head's, and the map the signed one, rectified.
    expected = min_max(signed_cam(evidence, good).relu()).numpy()
    for found, grid in zip(average.localize(scratched, method="gradcam"), expected, strict=True):
        cells = [side // n for side, n in zip(found.grid.shape, grid.shape, strict=True)]
        low = np.add.reduceat(found.grid, np.arange(0, found.grid.shape[0], cells[0]), axis=0)
        low = np.add.reduceat(low, np.arange(0, found.grid.shape[1], cells[1]), axis=1)
        assert np.corrcoef(low.ravel(), grid.ravel())[0, 1] > 0.9
        assert np.unravel_index(low.argmax(), low.shape) == np.unravel_index(
            grid.argmax(), grid.shape
        )


def test_each_image_is_explained_for_itself(fitted, scratched):
    together = fitted.localize(scratched, method="gradcam++")
    alone = [fitted.localize(path, method="gradcam++") for path in scratched]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.grid, other.grid, atol=0.05)


def test_each_image_is_explained_as_its_own_type(fitted):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    good = list(fitted.classes_).index(fitted.good_label_)
    maps = attribution_maps(fitted.network_, pixels, "gradcam", [1 - good, 1 - good], good)
    turned = attribution_maps(fitted.network_, pixels, "gradcam", [good, 1 - good], 1 - good)
    np.testing.assert_array_equal(
        attribution_maps(fitted.network_, pixels, "gradcam", [1 - good] * 2, good), maps
    )
    assert not turned[1].any()  # a class against itself: nothing speaks for it
    assert np.abs(turned[0] - maps[0]).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(fitted, scratched, method, capsys):
    clf = copy.deepcopy(fitted)
    network = clf.network_
    first, *others = list(network.parameters())
    first.grad = torch.ones_like(first)
    modes = [module.training for module in network.modules()]
    before = clf.predict_proba(scratched)
    clf.localize(scratched, method=method)
    assert (first.grad == 1).all() and all(p.grad is None for p in others)
    assert [module.training for module in network.modules()] == modes
    assert hooks(network) == []
    assert (clf.predict_proba(scratched) == before).all()
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_nothing_is_left_behind_by_an_error(fitted, scratched, monkeypatch):
    import pytorch_grad_cam

    def broken(*_):
        raise IndexError("of the library")

    monkeypatch.setattr(pytorch_grad_cam.GradCAM, "get_cam_weights", broken)
    clf = copy.deepcopy(fitted)
    with pytest.raises(IndexError, match="of the library"):
        clf.localize(scratched, method="gradcam")
    assert hooks(clf.network_) == []
    assert all(p.grad is None for p in clf.network_.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(fitted, scratched, context, tmp_path):
    from defectcam import load

    fitted.save(tmp_path / "m.safetensors")
    expected = fitted.localize(scratched, method="layercam")
    with context():
        loaded = load(tmp_path / "m.safetensors")
        for clf in (fitted, loaded):
            found = clf.localize(scratched, method="layercam")
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one.grid, other.grid)


def test_types_are_not_told_apart_on_a_map_of_another_method(
    tiny_classifier, fitted_parts, scratched
):
    y = ["good"] * 8 + ["scratch"] * 3 + ["dent"] * 3
    clf = tiny_classifier(target="type", max_epochs=1, threshold=0.0)
    clf.fit(find_images(fitted_parts), y)
    own, found = (clf.localize(scratched[0], method=m) for m in (None, "gradcam"))
    assert own.type_grids is not None and found.type_grids is None
    assert set(found.box_labels) <= {found.label}
    np.testing.assert_array_equal(found.type_heatmap(found.label), found.heatmap)


@pytest.mark.parametrize("name", [None, "cam"])
def test_cam_is_the_classifiers_own(fitted, scratched, name):
    own, same = fitted.localize(scratched[0]), fitted.localize(scratched[0], method=name)
    np.testing.assert_array_equal(same.grid, own.grid)
    assert (same.threshold, same.peak_fraction) == (own.threshold, own.peak_fraction)


def test_a_stream_is_explained_too(fitted, scratched):
    stream = fitted.localize_iter(iter(scratched), method="eigencam")
    assert [found.source for found in stream] == scratched


def test_results_can_be_pickled(fitted, scratched):
    found = fitted.localize(scratched[0], method="gradcam")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).heatmap, found.heatmap)


def test_an_unknown_method_is_refused(fitted, scratched):
    with pytest.raises(ValueError, match=r"'gradcam\+\+'.*own heatmap"):
        fitted.localize(scratched, method="grad-cam")


def test_a_missing_package_is_named_with_its_extra(fitted, scratched, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match=r"pip install 'defectcam\[cam\]'"):
        fitted.localize(scratched, method="gradcam")
    with pytest.raises(ImportError, match="grad-cam"):
        check_method("scorecam")
    fitted.localize(scratched, method="cam")
