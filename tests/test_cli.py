from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.utils._param_validation import StrOptions

import defectcam
from defectcam import DefectCAMClassifier, cli, load
from defectcam.attribution import METHODS
from defectcam.classifier import RECIPES
from defectcam.training import TailTraining

TINY = ["--backbone", "test_efficientnet", "--weights", "none", "--image-size", "32"]
TINY += ["--max-epochs", "1", "--cv", "2", "--augmentation", "none", "--random-state", "0"]
TINY += ["--pooling", "top_k", "--heatmap", "cam", "--device", "cpu", "--quiet"]

Output = pytest.CaptureFixture[str]


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def draw_folder(folder: Path, n_good: int = 4, n_bad: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for kind, n in {"good": n_good, "scratch": n_bad}.items():
        (folder / kind).mkdir(parents=True)
        for number in range(n):
            image = rng.integers(90, 110, size=(40, 48, 3), dtype=np.uint8)
            if kind == "scratch":
                image[8:20, 10:16] = 255
            Image.fromarray(image).save(folder / kind / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("data") / "parts")


@pytest.fixture(scope="module")
def model(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "part.safetensors"
    assert run("fit", parts, "-o", path, *TINY) == 0
    return path


@pytest.fixture
def decides(model: Path, tmp_path: Path) -> Callable[[float], Path]:
    """Return a function that copies the model with another decision threshold."""

    def decide(threshold: float) -> Path:
        clf = load(model)
        clf.threshold_ = threshold
        clf.save(tmp_path / "decided.safetensors")
        return tmp_path / "decided.safetensors"

    return decide


# --- The parser -------------------------------------------------------------------------------


def test_options_have_names_defaults_and_choices_of_the_api() -> None:
    options = {p.name: p for parameters in cli._PARAMETERS.values() for p in parameters}
    signature = inspect.signature(DefectCAMClassifier).parameters
    api = {name: p.default for name, p in signature.items()}
    assert {name: p.default for name, p in options.items()} == {
        name: default for name, default in api.items() if name not in ("verbose", "callbacks")
    }
    for name, constraints in DefectCAMClassifier._parameter_constraints.items():
        strings = [c.options for c in constraints if isinstance(c, StrOptions)]
        if strings and name not in ("class_weight", "max_epochs", "tile"):  # these take numbers too
            assert set(options[name].choices or ()) == strings[0], name


def test_options_are_parsed_into_the_types_of_the_api() -> None:
    text = "fit folder -o m --image-size 64x48 --class-weight 3 --threshold recall>=0.9 --cv none "
    text += "--merge-distance inf --max-boxes 2 --no-train-batch-norm --early-stopping "
    text += "--good-label none --novelty-strides 4,16 --head-learning-rate none "
    text += "--no-deep-supervision --box-peak-fraction 0.3 --no-tighten-boxes "
    text += "--precision float32 --memory some/folder"
    args = vars(cli._make_parser().parse_args(text.split()))
    expected: dict[str, Any] = {
        "image_size": (64, 48),
        "class_weight": 3.0,
        "threshold": "recall>=0.9",
        "cv": None,
        "merge_distance": float("inf"),
        "max_boxes": 2,
        "train_batch_norm": False,
        "early_stopping": True,
        "good_label": None,
        "novelty_strides": (4, 16),
        "head_learning_rate": None,
        "deep_supervision": False,
        "box_peak_fraction": 0.3,
        "tighten_boxes": False,
        "precision": "float32",
        "memory": "some/folder",
    }
    assert {name: args[name] for name in expected} == expected
    assert "pooling" not in args  # left to the API


def test_the_forms_of_a_threshold_are_listed(capsys: Output) -> None:
    assert run("fit", "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for form in ("balanced", "'recall>=0.99'", "'cost=20:1'", "or a number"):
        assert form in printed, form


def test_recipes_are_those_of_the_api() -> None:
    parser = cli._make_parser()
    for name in RECIPES:
        assert parser.parse_args(["fit", "f", "-o", "m", "--recipe", name]).recipe == name


@pytest.mark.parametrize("command", [[], ["fit"], ["localize"]])
def test_help_is_quick_and_lists_exit_codes(command: list[str]) -> None:
    code = f"""
import sys
from defectcam.cli import main
code = main({[*command, "--help"]!r})
heavy = {{"torch", "numpy", "cv2", "sklearn", "PIL"}} & set(sys.modules)
sys.exit(f"{{code}}, loaded {{heavy}}" if code or heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "exit codes:" in result.stdout


def test_version(capsys: Output) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"defectcam {defectcam.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["paint"], ["fit", "f"], ["fit", "f", "-o", "m", "--cv", "x"], ["predict", "m"]],
)
def test_wrong_commands(arguments: list[str], capsys: Output) -> None:
    assert run(*arguments) == cli.USAGE
    assert capsys.readouterr().err.startswith("usage: ")


# --- fit --------------------------------------------------------------------------------------


def test_fit_writes_the_model_of_the_api(model: Path, parts: Path) -> None:
    clf = load(model)
    api = DefectCAMClassifier(
        "test_efficientnet",
        weights=None,
        image_size=32,
        max_epochs=1,
        cv=2,
        augmentation="none",
        random_state=0,
        pooling="top_k",
        heatmap="cam",
        device="cpu",
    ).fit(parts)
    assert clf.get_params() == api.get_params()
    images = [str(parts / "good" / "000.png"), str(parts / "scratch" / "000.png")]
    np.testing.assert_array_equal(clf.predict_proba(images), api.predict_proba(images))


def test_fit_prints_json(parts: Path, tmp_path: Path, capsys: Output) -> None:
    assert run("fit", parts, "-o", tmp_path / "m", "--json", *TINY) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["classes"] == ["good", "scratch"]
    assert all(line.startswith("defectcam: warning: ") for line in printed.err.splitlines())


def test_fit_takes_good_images_alone_with_a_warning(tmp_path: Path, capsys: Output) -> None:
    only_good = draw_folder(tmp_path / "only_good", n_bad=0)
    fused = ["fused" if argument == "cam" else argument for argument in TINY]
    assert run("fit", only_good, "-o", tmp_path / "m", *fused, "--image-size", "64") == 0
    assert "defectcam: warning: " in capsys.readouterr().err
    assert load(tmp_path / "m").classes_.tolist() == ["anomaly", "good"]
    assert run("fit", only_good, "-o", tmp_path / "cam", *TINY) == cli.USAGE
    assert "heatmap='cam'" in capsys.readouterr().err


def test_fit_shows_progress_on_standard_error(parts: Path, tmp_path: Path, capsys: Output) -> None:
    loud = [argument for argument in TINY if argument != "--quiet"]
    assert run("fit", parts, "-o", tmp_path / "m", *loud) == 0
    printed = capsys.readouterr()
    assert "training" in printed.err
    assert "training:" not in printed.out


def test_nothing_is_overwritten_without_force(
    parts: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(DefectCAMClassifier, "fit", lambda *_: pytest.fail("trained in vain"))
        assert run("fit", parts, "-o", target, *TINY) == cli.USAGE
        assert run("fit", parts, "-o", tmp_path, *TINY) == cli.USAGE
        assert run("fit", parts, "-o", tmp_path / "no" / "m", *TINY) == cli.USAGE
    assert "--force" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert run("fit", parts, "-o", target, "--force", *TINY) == 0
    load(target)


def test_fit_refuses_bad_folders(parts: Path, tmp_path: Path, capsys: Output) -> None:
    assert run("fit", tmp_path / "missing", "-o", tmp_path / "m", *TINY) == cli.BAD_DATA
    only_bad = draw_folder(tmp_path / "only_bad", n_good=0, n_bad=2)
    assert run("fit", only_bad, "-o", tmp_path / "m", *TINY) == cli.BAD_DATA
    broken = shutil.copytree(parts, tmp_path / "broken")
    (broken / "good" / "000.png").write_text("no image")
    assert run("fit", broken, "-o", tmp_path / "m", *TINY) == cli.BAD_DATA
    printed = capsys.readouterr()
    assert "another layout" in printed.err
    assert "000.png" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "wrong", [["--image-size", "3"], ["--backbone", "no_such_net"], ["--trainable-stages", "99"]]
)
def test_fit_refuses_bad_parameters(
    wrong: list[str], parts: Path, tmp_path: Path, capsys: Output
) -> None:
    assert run("fit", parts, "-o", tmp_path / "m", *TINY, *wrong) == cli.USAGE
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("finished_epochs", [0, 1])
def test_interrupted_fit(
    finished_epochs: int,
    parts: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_epoch, calls = TailTraining._epoch, []

    def interrupted(self: TailTraining, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > finished_epochs:
            raise KeyboardInterrupt
        return train_epoch(self, *arguments)

    monkeypatch.setattr(TailTraining, "_epoch", interrupted)
    assert run("fit", parts, "-o", tmp_path / "m", *TINY) == cli.INTERRUPTED
    assert (tmp_path / "m").exists() == bool(finished_epochs)
    if finished_epochs:
        assert "warning: Training was interrupted" in capsys.readouterr().err


# --- predict ----------------------------------------------------------------------------------


def test_predict_gives_the_answers_of_the_api(model: Path, parts: Path, capsys: Output) -> None:
    single = parts / "good" / "001.png"
    assert run("predict", model, single, parts, "--json", "--quiet") == 0
    printed = capsys.readouterr()
    records = json.loads(printed.out)
    images = [str(single), *(str(p) for p in sorted(parts.rglob("*.png")) if p != single)]
    assert [record["image"] for record in records] == images
    clf = load(model)
    assert [record["label"] for record in records] == clf.predict(images).tolist()
    assert [r["probability"] for r in records] == [f.probability for f in clf.localize(images)]
    assert printed.err == ""


def test_predict_prints_a_row_per_image(
    decides: Callable[[float], Path], parts: Path, capsys: Output
) -> None:
    assert run("predict", decides(0.0), parts / "good", "--batch-size", "3") == 0
    printed = capsys.readouterr()
    rows = printed.out.splitlines()
    assert len(rows) == 4
    assert rows[0].split()[::2] == ["scratch", str(parts / "good" / "000.png")]
    assert "4 images: 4 defective, 0 good" in printed.err


def test_predict_writes_csv(model: Path, parts: Path, tmp_path: Path, capsys: Output) -> None:
    table = tmp_path / "out.csv"
    assert run("predict", model, parts / "good", "--csv", table) == 0
    assert capsys.readouterr().out == ""
    lines = table.read_text().splitlines()
    assert lines[0] == "image,label,probability,is_defect"
    assert len(lines) == 5
    assert run("predict", model, parts / "good", "--csv", table) == cli.USAGE
    assert run("predict", model, parts / "good", "--csv", table, "--force") == 0


def test_exit_code_tells_of_defects_when_asked(
    decides: Callable[[float], Path], parts: Path, tmp_path: Path
) -> None:
    image = parts / "good" / "000.png"
    model = decides(0.0)
    assert run("predict", model, image) == 0
    assert run("predict", model, image, "--fail-on-defect") == cli.DEFECTS_FOUND
    found = tmp_path / "found"
    assert run("localize", model, image, "-o", found, "--fail-on-defect") == cli.DEFECTS_FOUND
    assert (found / "results.json").exists()
    assert run("predict", decides(2.0), image, "--fail-on-defect") == 0


def test_predict_refuses_what_it_cannot_read(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes((parts / "good" / "000.png").read_bytes()[:900])
    image = parts / "good" / "000.png"
    table = tmp_path / "out.csv"
    assert run("predict", model, tmp_path / "missing.png") == cli.BAD_DATA
    assert run("predict", model, tmp_path / "empty") == cli.BAD_DATA
    assert run("predict", model, image, tmp_path / "cut.png", "--csv", table) == cli.BAD_DATA
    assert run("predict", image, image) == cli.BAD_DATA
    assert run("predict", tmp_path / "no_model", image) == cli.BAD_DATA
    assert run("predict", model, image, "--device", "cuda:99") == cli.USAGE
    printed = capsys.readouterr()
    for name in ("missing.png", "empty", "cut.png", "000.png", "no_model", "cuda:99"):
        assert name in printed.err
    assert "Traceback" not in printed.err
    assert not table.exists()


def test_interrupt_bug_and_closed_pipe(
    model: Path, parts: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = parts / "good" / "000.png"
    for error, code in ((KeyboardInterrupt, cli.INTERRUPTED), (ZeroDivisionError, cli.BUG)):

        def fail(*_: Any, error: type[BaseException] = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(DefectCAMClassifier, "localize_iter", fail)
        assert run("predict", model, image) == code
    printed = capsys.readouterr()
    assert "interrupted" in printed.err
    assert "ZeroDivisionError" in printed.err


# --- localize ---------------------------------------------------------------------------------


def test_localize_writes_overlays_and_results(
    decides: Callable[[float], Path], parts: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "found"
    assert run("localize", decides(0.0), parts, "-o", output, "--json") == 0
    document = json.loads((output / "results.json").read_text())
    assert json.loads(capsys.readouterr().out) == document
    written = sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png"))
    kept = sorted(p.relative_to(parts).as_posix() for p in parts.rglob("*.png"))
    assert written == kept == sorted(record["overlay"] for record in document["images"])
    with Image.open(output / "good" / "000.png") as overlay:
        assert overlay.size == (48, 40)
    clf = load(tmp_path / "decided.safetensors")
    for record, found in zip(document["images"], clf.localize(parts), strict=True):
        assert {k: v for k, v in record.items() if k != "overlay"} == found.to_dict()


def test_localize_by_another_method(
    decides: Callable[[float], Path],
    parts: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ("cam", *METHODS) == cli._METHODS
    model, image, output = decides(0.0), parts / "scratch" / "000.png", tmp_path / "found"
    options = ["-o", output, "--method", "gradcam++"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_grad_cam", None)
        assert run("localize", model, image, *options) == cli.USAGE
    assert "pip install 'defectcam[cam]'" in capsys.readouterr().err
    assert not output.exists()
    pytest.importorskip("pytorch_grad_cam")
    assert run("localize", model, image, *options, "--quiet") == 0
    document = json.loads((output / "results.json").read_text())
    assert document["method"] == "gradcam++"
    [record] = document["images"]
    found = load(model).localize(image, method="gradcam++")
    assert record["boxes"] == found.boxes.tolist() != load(model).localize(image).boxes.tolist()
    assert run("localize", model, image, *options, "--method", "cams") == cli.USAGE


def test_localize_prints_rows(model: Path, parts: Path, tmp_path: Path, capsys: Output) -> None:
    assert run("localize", model, parts, "-o", tmp_path / "found") == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 8
    assert all("box" in row for row in rows)


def test_localize_overwrites_only_with_force(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "found"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "000.png").write_text("old")
    image = parts / "good" / "000.png"
    assert run("localize", model, image, "-o", output) == cli.USAGE
    assert "--force" in capsys.readouterr().err
    assert (output / "000.png").read_text() == "old"
    assert run("localize", model, image, "-o", output, "--force") == 0
    assert (output / "notes.txt").read_text() == "mine"
    with Image.open(output / "000.png") as overlay:
        assert overlay.size == (48, 40)
    assert run("localize", model, image, "-o", output / "notes.txt") == cli.USAGE


def test_localize_never_draws_over_the_images(model: Path, parts: Path, capsys: Output) -> None:
    before = (parts / "good" / "000.png").read_bytes()
    assert run("localize", model, parts, "-o", parts, "--force") == cli.USAGE
    assert "would replace the image" in capsys.readouterr().err
    assert (parts / "good" / "000.png").read_bytes() == before


def test_localize_skips_its_own_overlays(model: Path, parts: Path, tmp_path: Path) -> None:
    images = shutil.copytree(parts, tmp_path / "images")
    for _ in range(2):
        assert run("localize", model, images, "-o", images / "found", "--force") == 0
    assert len(json.loads((images / "found" / "results.json").read_text())["images"]) == 8


def test_a_failing_localize_leaves_nothing(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    images = shutil.copytree(parts, tmp_path / "images")
    (images / "scratch" / "003.png").write_bytes(
        (images / "scratch" / "003.png").read_bytes()[:900]
    )
    arguments = ("localize", model, images, "-o", tmp_path / "found", "--batch-size", "2")
    assert run(*arguments) == cli.BAD_DATA
    assert "003.png" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def test_overlays_are_named_as_the_images(tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.jpg", "b/1.tif", "b/2.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths = [str(tmp_path / name) for name in names]
    from_two = cli._overlay_names(paths, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert from_two == ["a/1.png", "b/1.jpg.png", "b/1.tif.png", "b/2.png"]
    assert cli._overlay_names(paths[3:], paths[3:]) == ["2.png"]


# --- evaluate and info ------------------------------------------------------------------------


def test_evaluate_puts_missed_defects_first(
    decides: Callable[[float], Path], parts: Path, capsys: Output
) -> None:
    assert run("evaluate", decides(2.0), parts, "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "defect recall 0.000 0 of 4 defects found"
    assert all(line.startswith("  missed  ") for line in lines[1:5])
    assert " ".join(lines[5].split()) == "overkill 0.000 0 of 4 good images rejected"
    assert run("evaluate", decides(0.0), parts, "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "defect recall 1.000 4 of 4 defects found"
    assert lines[1].split()[:2] == ["overkill", "1.000"]
    assert all(line.startswith("  false alarm  ") for line in lines[2:6])


def test_evaluate_reports_what_was_measured(
    decides: Callable[[float], Path], model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    probability = load(model).predict_proba(parts)[:, 1]
    threshold = float(np.sort(probability)[3:5].mean())
    assert run("evaluate", decides(threshold), parts, "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    called, truth = probability >= threshold, np.repeat([False, True], 4)
    assert report["n_images"] == 8
    assert report["n_defective"] == 4
    assert report["defect_recall"] == np.mean(called[truth])
    assert report["overkill"] == np.mean(called[~truth])
    assert report["accuracy"] == np.mean(called == truth)
    assert report["confusion_matrix"] == [
        [int(np.sum((truth == t) & (called == c))) for c in (False, True)] for t in (False, True)
    ]
    assert report["by_type"]["scratch"]["scratch"] == int(called[truth].sum())
    assert len(report["missed_defects"]) == int((truth & ~called).sum())
    assert report["roc_auc"] == pytest.approx(roc_auc_score(truth, probability))
    assert "pixels" not in report
    assert report == load(tmp_path / "decided.safetensors").evaluate(parts).to_dict()


@pytest.mark.parametrize("root_given", [True, False])
def test_evaluate_measures_heatmaps_where_there_are_masks(
    root_given: bool, model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    root = tmp_path / "product"
    shutil.copytree(parts, root / "test")
    shutil.copytree(parts / "good", root / "train" / "good")
    masks = root / "ground_truth" / "scratch"
    masks.mkdir(parents=True)
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[8:20, 10:16] = 255
    for number in range(3):  # the fourth has none
        Image.fromarray(mask).save(masks / f"{number:03d}_mask.png")
    folder = root if root_given else root / "test"
    assert run("evaluate", model, folder, "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_images"] == 8  # of test/, not those of train/
    pixels = report["pixels"]
    assert (pixels["n_masks"], pixels["n_defective_without_mask"]) == (3, 1)
    assert all(0 <= pixels[name] <= 1 for name in ("pixel_roc_auc", "pro_auc", "pointing"))
    assert run("evaluate", model, folder, "--quiet") == 0
    assert "heatmaps and boxes against 3 masks" in capsys.readouterr().out
    Image.fromarray(mask[:20]).save(masks / "000_mask.png")
    assert run("evaluate", model, folder, "--quiet") == cli.BAD_DATA
    assert "000_mask.png" in capsys.readouterr().err


def test_evaluate_needs_to_know_the_good_folder(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    other = shutil.copytree(parts, tmp_path / "other")
    (other / "good").rename(other / "A")
    assert run("evaluate", model, other) == cli.BAD_DATA
    assert run("evaluate", model, other, "--good-label", "A", "--json") == 0
    by_type = json.loads(capsys.readouterr().out)["by_type"]
    assert list(by_type) == ["A", "scratch"]
    assert run("evaluate", model, parts, "--masks", tmp_path / "none") == cli.USAGE


def test_info(model: Path, capsys: Output) -> None:
    assert run("info", model, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["classes"] == ["good", "scratch"]
    assert info["backbone"] == "test_efficientnet"
    assert info["bytes"] == model.stat().st_size
    assert info["written_with"]["defectcam"] == defectcam.__version__
    assert run("info", model) == 0
    assert "good, scratch" in capsys.readouterr().out
    assert run("info", model.parent) == cli.BAD_DATA
