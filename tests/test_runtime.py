"""Exported models run where PyTorch and scikit-learn are not installed, with the same answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from defectcam.images import find_images, read_images
from defectcam.plain_labels import plain_label
from defectcam.runtime import METADATA_KEY, ExportedModelError, Inspector, _OnnxRuntime
from defectcam.second_look import join_looks

DESCRIPTION = {
    "schema_version": 1,
    "versions": {"defectcam": "0.1.0"},
    "classes": {"labels": ["good", "dent", "scratch"], "good": 0},
    "preprocessing": {"image_size": [8, 8], "resize": "stretch"},
    "threshold": 0.5,
    "boxes": {
        "threshold": 1.0,
        "min_area": 1,
        "max_boxes": 1,
        "merge_distance": "inf",
        "peak_fraction": 0.0,
        "tighten": False,
    },
}

#: Runs a model in a new interpreter in which the named packages cannot be imported.
WITHOUT = """
import json, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is forbidden here")

FORBIDDEN = {"torch", "torchvision", "timm", "sklearn", "scipy", "joblib", "safetensors", "tqdm"}
sys.meta_path.insert(0, Forbidden())
from defectcam.runtime import Inspector

found = Inspector(sys.argv[1]).localize(sys.argv[2:])
print(json.dumps([one.to_dict() for one in found]))
found[0].overlay()
assert not FORBIDDEN & {name.split(".")[0] for name in sys.modules}
"""


def write_graph(
    path: Path, description: dict | str | None = DESCRIPTION, second: int | None = None
) -> Path:
    """Write a graph by hand: brightness is probability, and the map its channels' maximum.

    A second map has so many cells for each of the first.
    """
    grid = ["n", 8, 8]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["values", "white"], ["scaled"]),
        helper.make_node("ReduceMax", ["scaled"], ["grey"], axes=[3], keepdims=0),
        helper.make_node("Mul", ["grey", "two"], ["grid"]),
        helper.make_node("ReduceMean", ["grey"], ["probability"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["scaled"], ["class_probability"], axes=[1, 2], keepdims=0),
        helper.make_node("Greater", ["probability", "two"], ["unfamiliar"]),
        helper.make_node("Transpose", ["scaled"], ["colours"], perm=[0, 3, 1, 2]),
        helper.make_node("Slice", ["colours", "one", "three", "one"], ["type_grids"]),
    ]
    constants = {
        "white": np.float32(255),
        "two": np.float32(2),
        "one": np.array([1]),
        "three": np.array([3]),
    }
    outputs = {
        "probability": (TensorProto.FLOAT, ["n"]),
        "class_probability": (TensorProto.FLOAT, ["n", 3]),
        "unfamiliar": (TensorProto.BOOL, ["n"]),
        "grid": (TensorProto.FLOAT, grid),
        "type_grids": (TensorProto.FLOAT, ["n", 2, 8, 8]),
    }
    if second is not None:
        sizes = {"repeats": np.array([1, 1, second, second], np.float32), "axis": np.array([1])}
        constants |= sizes
        nodes += [
            helper.make_node("Unsqueeze", ["grid", "axis"], ["plane"]),
            helper.make_node("Resize", ["plane", "", "repeats"], ["larger"], mode="nearest"),
            helper.make_node("Squeeze", ["larger", "axis"], ["second_grid"]),
        ]
        outputs["second_grid"] = (TensorProto.FLOAT, ["n", 8 * second, 8 * second])
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if description is not None:
        text = description if isinstance(description, str) else json.dumps(description)
        helper.set_model_props(model, {METADATA_KEY: text})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "part.onnx")


def draw(green: int, blue: int) -> np.ndarray:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[2:4, 1:6] = (0, green, blue)
    image[6, 6] = (0, green, blue)
    return image


def test_answers_become_a_localization(by_hand: Path) -> None:
    inspector = Inspector(by_hand)
    assert inspector.classes_ == ["good", "dent", "scratch"]
    assert inspector.defect_labels_ == ["dent", "scratch"]
    good = inspector.localize(draw(120, 90))
    assert (good.label, good.is_defect, len(good.boxes)) == ("good", False, 0)
    assert good.probability == pytest.approx(11 * 120 / 255 / 64)
    again = good.with_threshold(0.5, decision_threshold=0.0)
    assert (again.label, again.boxes.tolist()) == ("dent", [[1, 2, 7, 7]])  # merged: infinity
    assert good.grid[2, 1] == pytest.approx(2 * 120 / 255)
    assert inspector.localize(draw(90, 120)).defect_label == "scratch"


def test_defective_images_are_looked_at_again(tmp_path: Path, monkeypatch) -> None:
    """A file that says so has a second map, asked for in defective images alone."""
    boxes = {**DESCRIPTION["boxes"], "point_spread": 1.5}
    description = {**DESCRIPTION, "boxes": boxes, "second_look": [12, 12]}
    path = write_graph(tmp_path / "part.onnx", description, second=2)
    inspector = Inspector(path)
    asked: list[list[str]] = []
    run = _OnnxRuntime.run
    monkeypatch.setattr(
        _OnnxRuntime, "run", lambda s, n, *a: asked.append(list(n)) or run(s, n, *a)
    )
    good = inspector.localize(draw(120, 90))
    assert good.grid.shape == (8, 8) and len(asked) == 1
    bright = np.full((8, 8, 3), 200, dtype=np.uint8)
    bright[2, 3] = 255
    found = inspector.localize(bright)
    assert asked[1:] == [asked[0], ["second_grid"]]
    first = bright.max(2) * np.float32(2 / 255)
    second = np.repeat(np.repeat(first, 2, 0), 2, 1)
    np.testing.assert_allclose(found.grid, join_looks(first, second), atol=1e-5)
    assert (good.point_spread, found.point_spread) == (1.5, 3.0)
    old = write_graph(tmp_path / "old.onnx", DESCRIPTION, second=2)
    assert Inspector(old).localize(bright).grid.shape == (8, 8)


def test_many_images_come_back_in_order(by_hand: Path) -> None:
    images = [draw(0, level) for level in range(0, 250, 25)]
    found = list(Inspector(by_hand, n_jobs=2).localize_iter(iter(images)))
    assert [one.grid.max() for one in found] == pytest.approx(np.arange(0, 250, 25) * 2 / 255)
    assert all(one.source is image for one, image in zip(found, images, strict=True))
    assert Inspector(by_hand).predict(images) == ["good"] * len(images)
    assert Inspector(by_hand).predict(images[0]) == ["good"]


def test_a_file_that_is_replaced_changes_no_answer(by_hand: Path) -> None:
    """Engines are opened when they are needed, but what they run was read at the beginning."""
    inspector = Inspector(by_hand, n_threads=2)
    one = inspector.localize(draw(90, 120))
    by_hand.write_bytes(b"another model, or half of one")
    found = inspector.localize([draw(90, 120)] * 3)
    assert [other.probability for other in found] == pytest.approx([one.probability] * 3)


def test_runs_without_torch_and_scikit_learn(by_hand: Path, tmp_path: Path) -> None:
    paths = []
    for number, level in enumerate((40, 250)):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(draw(level, 0)).save(paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(by_hand), *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = [one.to_dict() for one in Inspector(by_hand).localize(paths)]
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "none of defectcam's"),
        ({**DESCRIPTION, "schema_version": 99}, r"install defectcam>=0\.1\.0"),
        ("our model of cameras", r"strange\.onnx.*Expecting value"),
        ("[" * 100_000, r"strange\.onnx.*recursion"),
        ("[]", r"strange\.onnx"),
        ("{}", r"strange\.onnx.*no entry 'schema_version'"),
        ({**DESCRIPTION, "schema_version": None}, r"strange\.onnx"),
        ({**DESCRIPTION, "schema_version": 99, "versions": []}, r"strange\.onnx"),
        ({"schema_version": 1}, r"strange\.onnx.*no entry 'classes'"),
        ({**DESCRIPTION, "classes": {"labels": ["good"], "good": 1}}, r"strange\.onnx"),
        ({**DESCRIPTION, "classes": []}, r"strange\.onnx"),
        ({**DESCRIPTION, "threshold": "high"}, r"strange\.onnx.*'high'"),
        ({**DESCRIPTION, "threshold": 10**400}, r"strange\.onnx"),
        ({**DESCRIPTION, "boxes": {}}, r"strange\.onnx.*no entry 'merge_distance'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_strange_graphs_are_refused(tmp_path: Path, description, message: str) -> None:
    path = write_graph(tmp_path / "strange.onnx", description)
    with pytest.raises(ExportedModelError, match=message):
        Inspector(path)


def test_a_suffix_may_be_in_capitals(tmp_path: Path, by_hand: Path) -> None:
    openvino = pytest.importorskip("openvino")
    graph = openvino.convert_model(by_hand)
    graph.set_rt_info(json.dumps(DESCRIPTION), METADATA_KEY)
    openvino.save_model(graph, tmp_path / "part.xml")
    (tmp_path / "part.xml").rename(tmp_path / "PART.XML")
    (tmp_path / "part.bin").rename(tmp_path / "PART.bin")
    by_hand.rename(tmp_path / "PART.ONNX")
    image = draw(255, 0)
    for name in ("PART.ONNX", "PART.XML"):
        assert Inspector(tmp_path / name).localize(image).label == "good"


def test_files_that_cannot_be_run_are_named(tmp_path: Path, by_hand: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(by_hand.read_bytes()[:100])
    (tmp_path / "part.pt").write_bytes(b"")
    (tmp_path / "lonely.xml").write_text("<net")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Inspector(tmp_path / "nowhere.onnx")
    with pytest.raises(ExportedModelError, match=r"broken\.onnx.*export the model again"):
        Inspector(tmp_path / "broken.onnx")
    with pytest.raises(ExportedModelError, match=r"lonely\.xml"):
        Inspector(tmp_path / "lonely.xml")
    with pytest.raises(ValueError, match=r"ends with \.onnx or \.xml"):
        Inspector(tmp_path / "part.pt")


def test_precisions(by_hand: Path) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        Inspector(by_hand, precision="float16")
    with pytest.raises(ValueError, match=r"export to \.xml"):
        Inspector(by_hand, precision="bfloat16")


def test_no_threads_are_refused(by_hand: Path) -> None:
    with pytest.raises(ValueError, match="n_threads=0: give a number"):
        Inspector(by_hand, n_threads=0)


def test_missing_engine_says_what_to_install(by_hand: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Inspector(by_hand)


@pytest.mark.parametrize("has_gather_nd", [False, True])
def test_openvino_fixes_no_shapes_of_what_it_then_computes_wrongly(
    by_hand: Path, has_gather_nd: bool
) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    model = openvino.Core().read_model(by_hand)
    if has_gather_nd:
        (result,) = (r for r in model.get_results() if "unfamiliar" in r.output(0).get_names())
        gathered = opset13.gather_nd(result.input_value(0), [[0]])
        gathered.output(0).set_names({"unfamiliar"})
        model.remove_result(result)
        model.add_results([opset13.result(gathered)])
    model.set_rt_info(json.dumps(DESCRIPTION), METADATA_KEY)
    openvino.save_model(model, by_hand.with_suffix(".xml"))
    inspector = Inspector(by_hand.with_suffix(".xml"))
    assert inspector.localize(draw(120, 90)).probability == pytest.approx(11 * 120 / 255 / 64)
    assert inspector._engine._fixes_shapes == (not has_gather_nd)
    ((shape,),) = inspector._engine._compiled.values()
    assert shape == (None if has_gather_nd else (1, 8, 8, 3))


def test_images_are_read_in_threads_without_joblib(monkeypatch, fitted_parts: Path) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    paths = find_images(fitted_parts)
    assert len(list(read_images(paths))) == len(paths)


def test_requirements_of_the_runtime_are_the_package_s() -> None:
    root = Path(__file__).parents[1]
    lines = (root / "docs" / "requirements-runtime.txt").read_text("utf-8").splitlines()
    needed = [line for line in lines if line and not line.startswith("#")]
    stated = re.findall(r'"([\w-]+>=[\d.]+)"', (root / "pyproject.toml").read_text("utf-8"))
    assert len(needed) == 4
    assert set(needed) <= set(stated)


def test_plain_labels() -> None:
    labels = [np.str_("good"), np.bool_(True), np.int64(3), "bad"]
    assert [type(plain_label(label)) for label in labels] == [str, bool, int, str]
