from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import draw_part
from sklearn.exceptions import NotFittedError

import defectcam
from defectcam import DefectCAMClassifier, load
from defectcam.calibration import DefectProbability, HeatScale
from defectcam.novelty import Codebook
from defectcam.persistence import ModelFileError, _decode, _encode, read_metadata, save
from defectcam.tile_model import TileModel

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": None,
    "image_size": (32, 40),
    "max_epochs": 1,
    "cv": 2,
    "augmentation": "none",
    "random_state": 0,
    "device": "cpu",
}


def images_of_parts() -> np.ndarray:
    images = np.random.default_rng(0).integers(90, 110, size=(8, 32, 40, 3), dtype=np.uint8)
    images[4:, 8:20, 10:16] = 255
    return images


IMAGES = images_of_parts()
NAMES = ["good"] * 4 + ["scratch", "dent"] * 2


@pytest.fixture(scope="module")
def clf() -> DefectCAMClassifier:
    return DefectCAMClassifier(**TINY).fit(IMAGES, NAMES)


@pytest.fixture
def path(clf: DefectCAMClassifier, tmp_path: Path) -> Path:
    save(clf, tmp_path / "part.safetensors")
    return tmp_path / "part.safetensors"


def rewrite(path: Path, change_text: Any = None, change_tensors: Any = None) -> None:
    """Let functions change the description and the tensors of a file in place."""
    tensors = {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
    description = read_metadata(path)
    for change, what in ((change_text, description), (change_tensors, tensors)):
        if change is not None:
            change(what)
    safetensors.torch.save_file(tensors, path, {"defectcam": json.dumps(description)})


def assert_same(loaded: DefectCAMClassifier, clf: DefectCAMClassifier) -> None:
    assert vars(loaded).keys() == vars(clf).keys()
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), clf.predict_proba(IMAGES))
    np.testing.assert_array_equal(loaded.predict(IMAGES), clf.predict(IMAGES))
    for ours, theirs in zip(loaded.localize(IMAGES), clf.localize(IMAGES), strict=True):
        np.testing.assert_array_equal(ours.grid, theirs.grid)
    state = clf.network_.state_dict()
    assert loaded.network_.state_dict().keys() == state.keys()
    for name, tensor in loaded.network_.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.stride() == state[name].stride(), name


def test_loaded_model_is_the_saved_one(clf: DefectCAMClassifier, path: Path) -> None:
    loaded = load(path)
    assert_same(loaded, clf)
    assert loaded.get_params() == clf.get_params()
    assert loaded.classes_.tolist() == clf.classes_.tolist() == ["anomaly", "good"]
    assert loaded.classes_.dtype == clf.classes_.dtype
    assert (loaded.good_label_, loaded.defect_labels_) == ("good", ["anomaly"])
    assert loaded.threshold_ == clf.threshold_
    assert loaded.history_ == clf.history_
    assert loaded.image_size_ == (32, 40)
    assert loaded._defect_probability == clf._defect_probability
    assert loaded._heat_model == clf._heat_model
    assert [type(scale) for scale in loaded._heat_model.level_scales] == [HeatScale, HeatScale]
    assert loaded._preprocess.extra_repr() == clf._preprocess.extra_repr()
    np.testing.assert_array_equal(loaded.held_out_probability_, clf.held_out_probability_)
    np.testing.assert_array_equal(loaded.suspects_, clf.suspects_)
    assert loaded.suspects_.dtype == np.int64
    assert loaded._familiarity_limit == clf._familiarity_limit
    assert not any(module.training for module in loaded.network_.modules())
    assert not any(p.requires_grad for p in loaded.network_.trunk.parameters())


def test_loading_needs_no_network_and_another_process_gives_the_same_bits(
    clf: DefectCAMClassifier, path: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    code = f"""
import os, socket, sys
import numpy as np

def refuse(*args, **kwargs):
    os._exit(9)  # no library can catch this and go on

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from defectcam import load
clf = load({str(path)!r})
sys.stdout.write(clf.predict_proba(np.load({str(tmp_path / "images.npy")!r})).tobytes().hex())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == clf.predict_proba(IMAGES).tobytes().hex()


def test_generators_are_left_alone(
    clf: DefectCAMClassifier, path: Path, generators_untouched: None
) -> None:
    save(clf, path)
    load(path)


@pytest.mark.parametrize(
    "labels",
    [[False] * 4 + [True] * 4, np.repeat([0, 1], 4).astype(np.uint8), ["ok"] * 4 + ["ä"] * 4],
    ids=["bool", "int", "str"],
)
def test_labels_keep_their_type(labels: Any, tmp_path: Path) -> None:
    clf = DefectCAMClassifier(**TINY).fit(IMAGES, labels)
    clf.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.classes_.dtype == clf.classes_.dtype
    assert loaded.good_label_ == clf.good_label_
    assert type(loaded.defect_labels_[0]) is type(clf.defect_labels_[0])


def test_a_class_per_type_other_layers_and_odd_parameters(tmp_path: Path) -> None:
    odd = {
        "target": "type",
        "class_weight": {"good": 1, "scratch": 2, "dent": np.float32(3)},
        "merge_distance": float("inf"),
        "image_size": np.int64(32),
        "resize": "pad",
        "normalisation": "unit",
        "normalise_evidence": False,
        "pooling": "average",
        "trainable_stages": 0,
        "evidence_stages": 1,
        "callbacks": [print],
        "random_state": np.random.RandomState(0),
        "good_label": np.str_("good"),
        "max_epochs": 1,
    }
    clf = DefectCAMClassifier(**(TINY | odd))
    clf.callbacks = [lambda clf, record: None]
    clf.fit(IMAGES, NAMES)
    clf.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert_same(loaded, clf)
    assert loaded.class_weight == clf.class_weight
    assert loaded.merge_distance == float("inf")
    assert loaded.callbacks is None
    assert loaded.random_state is None
    assert loaded.image_size == 32


def test_parameters_set_after_fit_do_not_change_the_network(
    clf: DefectCAMClassifier, tmp_path: Path
) -> None:
    names = ("backbone", "pooling", "trainable_stages", "weights", "heatmap")
    fitted, made_of = {name: getattr(clf, name) for name in names}, clf.info()
    clf.set_params(pooling="max", trainable_stages=1, weights=Path("some/file.pth"))
    clf.set_params(backbone="test_resnet", heatmap="cam")
    try:
        assert clf.info() == made_of
        for _ in range(2):  # what was loaded is saved again
            clf.save(tmp_path / "m.safetensors")
            loaded = load(tmp_path / "m.safetensors")
            assert loaded.info() == made_of
            loaded.save(tmp_path / "m.safetensors")
        assert (loaded.pooling, loaded.weights) == ("max", str(Path("some/file.pth")))
        assert_same(loaded, clf)
    finally:
        clf.set_params(**fitted)


def test_a_codebook_gets_its_size_from_the_file(clf: DefectCAMClassifier, tmp_path: Path) -> None:
    n_channels = clf.network_.codebook.centres.shape[1]
    codebook = Codebook(n_channels, n_centres=3)
    codebook.centres.copy_(torch.arange(3.0 * n_channels).reshape(3, -1))
    before, clf.network_.codebook = clf.network_.codebook, codebook
    try:
        save(clf, tmp_path / "m.safetensors")
    finally:
        clf.network_.codebook = before
    restored = load(tmp_path / "m.safetensors").network_.codebook
    assert torch.equal(restored.centres, codebook.centres)


def test_description_is_strict_json_and_says_what_the_model_is(path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        text = file.metadata()["defectcam"]
    description = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert description == read_metadata(path)
    assert description["schema_version"] == 1
    assert description["versions"]["defectcam"] == defectcam.__version__
    assert description["classes"] == {"labels": ["anomaly", "good"], "dtype": "<U7", "good": 1}
    assert "callbacks" not in description["parameters"]


class Inner(NamedTuple):
    low: float
    weights: tuple[float, ...]


class Outer(NamedTuple):
    name: str
    inner: Inner
    other: Inner | None
    later: int = 7


@pytest.mark.parametrize("other", [None, Inner(float("-inf"), ())])
def test_named_tuples_come_back(other: Inner | None) -> None:
    value = Outer("x", Inner(np.float64(0.1), (1.0, 1 / 3)), other)
    back = _decode(Outer, json.loads(json.dumps(_encode(value, "it"), allow_nan=False)))
    assert back == value
    assert type(back.inner) is Inner
    assert isinstance(back.inner.weights, tuple)


def test_named_tuple_of_an_older_file_gets_the_default_of_a_new_field() -> None:
    assert _decode(Outer, {"name": "x", "inner": None, "other": None}).later == 7


def test_what_json_cannot_say_is_refused_by_name(clf: DefectCAMClassifier, tmp_path: Path) -> None:
    before = clf.good_label
    clf.good_label = object()
    try:
        with pytest.raises(TypeError, match="good_label holds a object"):
            save(clf, tmp_path / "m.safetensors")
    finally:
        clf.good_label = before
    assert list(tmp_path.iterdir()) == []


def test_unfitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        save(DefectCAMClassifier(), tmp_path / "m.safetensors")


def test_overwriting(clf: DefectCAMClassifier, path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(clf, path, overwrite=False)
    assert path.read_bytes() == b"old"
    save(clf, path)
    load(path)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    clf: DefectCAMClassifier, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(clf, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_places_that_cannot_be_written(clf: DefectCAMClassifier, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(clf, tmp_path)
    with pytest.raises(FileNotFoundError, match="make the folder"):
        save(clf, tmp_path / "missing" / "m.safetensors")


def test_other_files_are_refused_by_name(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(ModelFileError, match="is no file"):
        load(tmp_path)
    text = tmp_path / "text.safetensors"
    text.write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.safetensors.*no safetensors file"):
        load(text)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"cut\.safetensors.*damaged"):
        load(cut)
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, weights)
    with pytest.raises(ModelFileError, match=r"weights\.safetensors.*no defectcam model"):
        load(weights)


def test_a_later_layout_is_refused_with_the_release_it_needs(path: Path) -> None:
    def later(description: dict[str, Any]) -> None:
        description["schema_version"] = 2
        description["versions"]["defectcam"] = "3.1.0"

    rewrite(path, later)
    with pytest.raises(ModelFileError, match=r"part\.safetensors.*install defectcam>=3\.1\.0"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["parameters"].update(telepathy=True), "does not know the parameters telep"),
        (lambda d: d["parameters"].update(pooling="sum"), "pooling"),
        (lambda d: d["network"].update(backbone="no_such_net"), "no_such_net"),
        (lambda d: d["classes"].update(dtype="|O"), "classes.dtype is"),
        (lambda d: d["classes"].update(good=2), "good one 2"),
        (lambda d: d.pop("heat_model"), "no entry 'heat_model'"),
        (lambda d: d["heat_model"].update(soul=1), "soul"),
        (lambda d: d.pop("versions"), "no entry 'versions'"),
    ],
)
def test_a_description_that_does_not_fit(path: Path, change: Any, message: str) -> None:
    rewrite(path, change)
    with pytest.raises(ModelFileError, match=rf"part\.safetensors.*{message}"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("network.head.bias"), "head.bias"),
        (lambda t: t.update({"network.head.bias": torch.zeros(7)}), "head.bias"),
        (lambda t: t.update({"network.head.extra": torch.zeros(7)}), "head.extra"),
        (lambda t: t.pop("fitted.held_out_probability_"), "held_out_probability_"),
    ],
)
def test_tensors_that_do_not_fit(path: Path, change: Any, message: str) -> None:
    rewrite(path, change_tensors=change)
    with pytest.raises(ModelFileError, match=rf"(?s)part\.safetensors.*{message}"):
        load(path)


def test_an_older_file_fuses_the_sum_of_the_levels_in_float32(
    clf: DefectCAMClassifier, path: Path
) -> None:
    def as_in_0_1_0(description: dict[str, Any]) -> None:
        description["heat_model"]["novelty_share"] = 0.5
        del description["heat_model"]["level_scales"]
        del description["network"]["precision"]
        for name in ("deep_supervision", "box_peak_fraction", "tighten_boxes", "precision"):
            del description["parameters"][name]

    rewrite(path, as_in_0_1_0)
    loaded = load(path)
    assert loaded.network_.dtype == torch.float32
    newer = copy.deepcopy(clf)
    newer.network_.set_dtype(torch.float32)
    newer._heat_model = clf._heat_model._replace(novelty_share=0.5)
    older = copy.deepcopy(newer)
    older._heat_model = newer._heat_model._replace(level_scales=())
    assert_same(loaded, older)
    grids = [np.stack([one.grid for one in c.localize(IMAGES)]) for c in (loaded, newer)]
    assert not np.allclose(*grids, atol=1e-2)
    loaded.save(path)
    assert_same(load(path), older)


def test_a_network_keeps_its_precision(tmp_path: Path) -> None:
    clf = DefectCAMClassifier(**TINY, precision="bfloat16").fit(IMAGES, NAMES)
    clf.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.network_.dtype == torch.bfloat16
    assert_same(loaded, clf)


def test_an_older_file_knows_no_suspects_and_finds_every_image_familiar(path: Path) -> None:
    rewrite(path, lambda d: d.pop("familiarity_limit"), lambda t: t.pop("fitted.suspects_"))
    loaded = load(path)
    assert loaded.suspects_.tolist() == []
    assert not any(found.unfamiliar for found in loaded.localize(255 - IMAGES))
    loaded.save(path)
    assert load(path).suspects_.dtype == np.int64


def test_a_file_says_whether_the_fit_was_interrupted(clf, path) -> None:
    assert load(path).interrupted_ is clf.interrupted_ is False
    rewrite(path, lambda description: description.update(interrupted=True))
    assert load(path).interrupted_ is load(path).info()["interrupted"] is True
    rewrite(path, lambda description: description.pop("interrupted"))  # of earlier releases
    assert load(path).interrupted_ is None
    rewrite(path, lambda description: description.update(interrupted="yes"))
    with pytest.raises(ModelFileError, match="interrupted is 'yes', expected true, false or null"):
        load(path)


def test_an_older_file_does_not_know_its_training_data(path: Path) -> None:
    def without(description: dict[str, Any]) -> None:
        del description["training_data"]

    rewrite(path, without)
    loaded = load(path)
    assert loaded.training_data_ is None
    assert loaded.info()["training_data"] is None and loaded.info()["training_labels"] == {}
    with pytest.warns(UserWarning, match="remembers no earlier image"):
        loaded.partial_fit(IMAGES, NAMES)
    assert loaded.training_data_ is None  # it would be that of the new images alone
    save(loaded, path)
    assert load(path).training_data_ is None


@pytest.mark.parametrize(
    "data",
    [
        {"digest": "0" * 31, "labels": {}},
        {"digest": "G" * 32, "labels": {}},
        {"digest": "0" * 32, "labels": {"good": -1}},
        {"digest": "0" * 32, "labels": []},
        {"digest": "0" * 32},
        "0" * 32,
    ],
)
def test_a_fingerprint_that_is_none_is_refused(path: Path, data: Any) -> None:
    rewrite(path, lambda description: description.update(training_data=data))
    with pytest.raises(ModelFileError, match=r"its training_data is .+ a fingerprint"):
        load(path)


def test_an_older_file_is_of_a_release_that_looked_once(
    clf: DefectCAMClassifier, path: Path
) -> None:
    save(copy.copy(clf).set_params(second_look=1.3), path)
    assert load(path).second_look == 1.3
    rewrite(path, lambda description: description["parameters"].pop("second_look"))
    loaded = load(path)
    assert loaded.second_look is None
    assert {one.grid.shape for one in loaded.localize(IMAGES)} == {(4, 5)}


def test_an_older_file_has_no_tiles_and_cannot_tell_drift(path: Path) -> None:
    def without_drift(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "drift" in name]:
            del tensors[name]

    rewrite(path, lambda d: d.pop("tile_model"), without_drift)
    loaded = load(path)
    assert loaded.tile_ is None
    with pytest.raises(ValueError, match="earlier release"):
        loaded.drift(IMAGES)
    loaded.save(path)
    assert load(path).drift_reference_.shape == (0, 0)


TILES = TileModel((16, 24), (0, 8), 6.0, 2.5, DefectProbability((1.5,), -0.5))


@pytest.mark.parametrize("rate", [2.5, math.inf])
def test_what_was_learned_from_tiles_is_loaded(clf, tmp_path: Path, rate: float) -> None:
    other = copy.copy(clf)
    other._tile_model = TILES._replace(rate=rate)
    save(other, tmp_path / "part.safetensors")
    assert load(tmp_path / "part.safetensors")._tile_model == other._tile_model


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile": (16, 0)}, "tile_model.tile is"),
        ({"tile": (10**6, 10**6)}, "tile_model.tile is"),
        ({"tile": (16,)}, "tile_model.tile is"),
        ({"tile": "abc"}, "tile_model.tile is 'abc', expected a height and a width up to"),
        ({"overlap": (-1, 0)}, "tile_model.overlap is"),
        ({"overlap": (0, 0.5)}, "tile_model.overlap is"),
        ({"overlap": (0, 24)}, "tile_model.overlap is .*expected less than its tile"),
        ({"n_tiles": 0}, "tile_model.n_tiles is 0"),
        ({"n_tiles": math.nan}, "tile_model.n_tiles is"),
        ({"n_tiles": math.inf}, "tile_model.n_tiles is"),
        ({"rate": 0}, "tile_model.rate is 0"),
        ({"rate": math.nan}, "tile_model.rate is"),
        ({"rate": -math.inf}, "tile_model.rate is"),
        ({"probability": None}, "tile_model.probability is None"),
        ({"probability": DefectProbability((1.0, 1.0), 0.0)}, "coefficients is"),
        ({"probability": DefectProbability((math.nan,), 0.0)}, "coefficients is"),
        ({"probability": DefectProbability((1.0,), math.inf)}, "intercept is"),
    ],
)
def test_what_cannot_have_been_learned_from_tiles_is_neither_loaded_nor_saved(
    clf, path: Path, wrong: dict[str, Any], message: str
) -> None:
    tiles = TILES._replace(**wrong)
    rewrite(path, lambda d: d.update(tile_model=_encode(tiles, "tiles")))
    with pytest.raises(ModelFileError, match=rf"part\.safetensors.*{message}"):
        load(path)
    other = copy.copy(clf)
    other._tile_model = tiles
    with pytest.raises(ValueError, match=rf"cannot be saved.*{message}"):
        save(other, path)


@pytest.mark.parametrize("tiles", [[], "tiles", 1, {}])
def test_a_model_of_tiles_that_is_none_is_refused(path: Path, tiles: Any) -> None:
    rewrite(path, lambda d: d.update(tile_model=tiles))
    with pytest.raises(ModelFileError, match=r"part\.safetensors.*(tile_model|no entry 'tile')"):
        load(path)


def test_a_classifier_of_good_images_alone(tmp_path: Path) -> None:
    with pytest.warns(defectcam.OnlyGoodImagesWarning):
        clf = DefectCAMClassifier(**TINY).fit(IMAGES[:4], ["ok"] * 4)
    clf.save(tmp_path / "good.safetensors")
    loaded = load(tmp_path / "good.safetensors")
    assert_same(loaded, clf)
    assert loaded.history_ == clf.history_
    assert (loaded.classes_.tolist(), loaded.good_label_) == (["anomaly", "ok"], "ok")


def test_a_parameter_that_an_older_file_lacks_gets_its_default(path: Path) -> None:
    rewrite(path, lambda d: d["parameters"].pop("min_area"))
    assert load(path).min_area == DefectCAMClassifier().min_area


def test_device(path: Path) -> None:
    assert load(path).device == "cpu"
    assert load(path, device="auto").device == "auto"


@pytest.mark.parametrize("device", ["cuda:99", "meta"])
def test_a_device_that_this_machine_cannot_use(path: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used"):
        load(path, device=device)
    rewrite(path, lambda d: d["parameters"].update(device=device))
    with pytest.warns(UserWarning, match="now 'auto'"):
        assert load(path).device == "auto"


def test_the_memory_is_not_saved(tmp_path: Path) -> None:
    clf = DefectCAMClassifier(**TINY, memory=tmp_path / "memory").fit(IMAGES, NAMES)
    clf.save(tmp_path / "m.safetensors")
    assert "memory" not in read_metadata(tmp_path / "m.safetensors")["parameters"]
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.memory is None
    assert_same(loaded, clf)


@pytest.mark.parametrize(
    "changed",
    [
        {"novelty_strides": (8,)},
        {"novelty_strides": ()},
        {"head_init": "linear"},
        {"resize": "pad"},
    ],
)
def test_parameters_set_after_a_fit_do_not_count_after_loading_either(
    tiny_classifier, tmp_path, changed
):
    rng = np.random.default_rng(0)
    good = [draw_part(rng, scratched=False) for _ in range(4)]
    bad = [draw_part(rng, scratched=True) for _ in range(4)]
    y = ["good"] * 4 + ["anomaly"] * 4
    clf = tiny_classifier(max_epochs=1, replay_size=0).fit(good, y[:4]).set_params(**changed)
    clf.save(tmp_path / "good.safetensors")
    loaded = load(tmp_path / "good.safetensors")
    found, expected = (one.partial_fit(good + bad, y).predict_proba(bad) for one in (loaded, clf))
    np.testing.assert_array_equal(found, expected)


def test_a_wrong_parameter_set_since_the_fit_is_not_saved(clf, tmp_path):
    path = tmp_path / "model.safetensors"
    clf.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="min_area"):
        copy.copy(clf).set_params(min_area=0).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("threshold", [np.nan, np.inf, 1e305, 70, -0.1])
def test_a_wrong_threshold_set_since_the_fit_is_not_saved(clf, tmp_path, threshold):
    other = copy.copy(clf)
    other.threshold_ = threshold
    with pytest.raises(ValueError, match="cannot be saved: its threshold is"):
        other.save(tmp_path / "part.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("strides", [(), (4,), (2, 4, 8)])
def test_students_of_patches_are_loaded_whatever_strides_are_set_since(
    tiny_classifier, fitted_parts, tmp_path, strides
):
    clf = tiny_classifier(max_epochs=1, trainable_stages=1).fit(fitted_parts)
    assert clf.network_.students_read_patches and len(clf.network_.students)
    clf.set_params(novelty_strides=strides).save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.novelty_strides == strides
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), clf.predict_proba(IMAGES))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("part.onnx", "is an exported model: `defectcam serve` or defectcam.runtime.Inspector"),
        ("part.XML", "is an exported model"),
        ("part.pt2", "give the .safetensors file that it was made from"),
        ("0137.png", "is no model file, but an image: give the file"),
        ("out.csv", "is no model file, but a .csv file"),
    ],
)
def test_files_of_other_kinds_are_told_by_their_suffix(name, says, tmp_path: Path) -> None:
    for content in (b"", b"<?xml version='1.0'?><net>", b"PK" * 99):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=says):
            load(tmp_path / name)
