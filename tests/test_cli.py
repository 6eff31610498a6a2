from __future__ import annotations

import argparse
import csv
import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import roc_auc_score
from sklearn.utils._param_validation import StrOptions

import defectcam
from defectcam import DefectCAMClassifier, annotations, cli, cli_options, load, tables
from defectcam.attribution import METHODS
from defectcam.configuration import read_configuration
from defectcam.datasets import load_csv, load_folder, load_mvtec, train_test_split_by_type
from defectcam.images import ImageReadError
from defectcam.recipes import RECIPES, VGG16_CAM
from defectcam.splitting import FORMS
from defectcam.tables import result_row
from defectcam.training import TailTraining
from defectcam.watch import OVERLAYS, Watcher

TINY = ["--backbone", "test_efficientnet", "--weights", "none", "--image-size", "32"]
TINY += ["--max-epochs", "1", "--cv", "2", "--augmentation", "none", "--random-state", "0"]
TINY += ["--pooling", "top_k", "--heatmap", "cam", "--device", "cpu", "--quiet"]

MANY_BOXES = {"box_threshold": -0.9, "box_peak_fraction": 0.0, "min_area": 1}

Output = pytest.CaptureFixture[str]


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    actions = cli_options.make_parser()._actions
    return next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))


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
def decides(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the model with another threshold and other parameters."""

    def decide(threshold: float, **parameters: Any) -> Path:
        clf = load(model).set_params(**parameters)
        clf.threshold_ = threshold
        clf.save(tmp_path / "decided.safetensors")
        return tmp_path / "decided.safetensors"

    return decide


# --- The parser -------------------------------------------------------------------------------


def test_options_have_names_defaults_and_choices_of_the_api() -> None:
    options = {p.name: p for parameters in cli_options.PARAMETERS.values() for p in parameters}
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
    args = vars(cli_options.make_parser().parse_args(text.split()))
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
    parser = cli_options.make_parser()
    for name in RECIPES:
        assert parser.parse_args(["fit", "f", "-o", "m", "--recipe", name]).recipe == name


API = {
    "predict": DefectCAMClassifier.predict,
    "localize": DefectCAMClassifier.localize,
    "evaluate": DefectCAMClassifier.evaluate,
    "query": DefectCAMClassifier.query,
    "split": train_test_split_by_type,
    "watch": Watcher,
}
#: What the API calls otherwise, is passed in there, or has no place on a command line.
NOT_OPTIONS = {"self", "X", "y", "paths", "types", "groups"}
NOT_OPTIONS |= {"folder", "output", "judge", "about", "notify", "warn"}


@pytest.mark.parametrize("name", sorted(API))
def test_other_commands_have_names_and_defaults_of_the_api(name: str) -> None:
    defaults = {action.dest: action.default for action in commands()[name]._actions}
    clf = inspect.signature(DefectCAMClassifier).parameters
    for parameter in inspect.signature(API[name]).parameters.values():
        if parameter.name in NOT_OPTIONS:
            continue
        assert parameter.name in defaults, parameter.name
        expected = parameter.default
        if parameter.name in clf or expected is inspect.Parameter.empty:
            expected = None  # the model's own; or it has to be given
        assert defaults[parameter.name] == expected, parameter.name


def test_fixed_choices_are_those_of_the_api() -> None:
    choices = {
        (name, action.dest): tuple(action.choices)
        for name, command in commands().items()
        for action in command._actions
        if action.choices is not None
    }
    assert choices["watch", "overlays"] == OVERLAYS
    assert choices["split", "form"] == FORMS


def test_all_commands_print_json_are_quiet_on_demand_and_documented() -> None:
    page = Path(__file__).parents[1] / "docs" / "cli.md"
    text = page.read_text(encoding="utf-8")
    for name, command in commands().items():
        assert {"json", "quiet"} <= {action.dest for action in command._actions}, name
        assert f"## {name}\n" in text, name


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(commands()))])
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


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("predict m x --threshhold 0.2", "did you mean --threshold by --threshhold?"),
        ("predict m x --treshold=0.2", "did you mean --threshold by --treshold?"),
        ("localize m x --outptu found", "did you mean --output by --outptu?"),
        ("info m --jsno", "unrecognized arguments: --jsno; did you mean --json by --jsno?"),
    ],
)
def test_a_mistyped_option_gets_the_commands_usage_and_a_near_name(
    call: str, said: str, capsys: Output
) -> None:
    assert cli.main(call.split()) == cli.USAGE
    error = capsys.readouterr().err
    assert f"usage: defectcam {call.split()[0]} " in error
    assert said in error


def test_an_option_like_no_other_is_only_refused(capsys: Output) -> None:
    assert run("info", "m", "--zzz") == cli.USAGE
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: --zzz\n")


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


@pytest.mark.parametrize("terminal", [True, False])
def test_fit_shows_progress_on_a_terminal_alone(
    terminal: bool, parts: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = [argument for argument in TINY if argument != "--quiet"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert run("fit", parts, "-o", tmp_path / "m", *loud) == 0
    printed = capsys.readouterr()
    assert ("training:" in printed.err) == terminal
    assert "training:" not in printed.out


def test_parameters_come_from_a_file_and_options_win(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[DefectCAMClassifier] = []

    def stop_there(clf: DefectCAMClassifier, folder: str, resume: None) -> None:
        fitted.append(clf)
        raise KeyboardInterrupt

    monkeypatch.setattr(DefectCAMClassifier, "fit", stop_there)
    file = tmp_path / "parts.toml"
    file.write_text('cv = 4\nimage_size = [64, 96]\nweights = "none"\nmax_boxes = "none"\n')
    arguments = ("fit", parts, "-o", tmp_path / "m", "--config", file)
    assert run(*arguments, "--cv", "2") == cli.INTERRUPTED
    assert run(*arguments, "--recipe", "vgg16_cam") == cli.INTERRUPTED
    ours, recipe = (clf.get_params() for clf in fitted)
    assert (ours["cv"], ours["image_size"], ours["weights"]) == (2, (64, 96), None)
    assert ours["backbone"] == "efficientnet_lite0"
    assert (recipe["cv"], recipe["backbone"], recipe["max_boxes"]) == (4, "vgg16", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch_sice = 3", "Did you mean 'batch_size'?"),
        ("batch_size = 0", "'batch_size' parameter of DefectCAMClassifier must be"),
        ("batch_size =", "is no TOML file"),
        (None, "there is no such file"),
    ],
)
def test_wrong_files_of_parameters(
    text: str | None, says: str, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    file = tmp_path / "parts.toml"
    if text is not None:
        file.write_text(text)
    assert run("fit", parts, "-o", tmp_path / "m", "--config", file) == cli.USAGE
    printed = capsys.readouterr().err
    assert says in printed
    assert "parts.toml" in printed


def test_init_writes_what_fit_reads(tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "parts.toml"
    assert run("init", "-o", file) == 0
    assert f"--config {file}" in capsys.readouterr().out
    api = DefectCAMClassifier().get_params()
    written = read_configuration(file, DefectCAMClassifier)
    assert written == {n: v for n, v in api.items() if n not in ("callbacks", "verbose")}
    assert run("init", "-o", file) == cli.USAGE
    assert run("init", "-o", file, "--force", "--recipe", "vgg16_cam", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"config": str(file)}
    written = read_configuration(file, DefectCAMClassifier)
    assert {name: written[name] for name in VGG16_CAM} == VGG16_CAM


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


@pytest.mark.parametrize("command", [["fit", "-o", "m.safetensors"], ["doctor"]])
def test_messages_about_the_good_folder_name_the_option(
    command: list[str], tmp_path: Path, capsys: Output
) -> None:
    for name in ("0", "1"):
        (tmp_path / "parts" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "parts" / name / "1.png")
    assert run(*command, tmp_path / "parts") == cli.BAD_DATA
    printed = "".join(capsys.readouterr())
    assert "give --good-label NAME, one of '0', '1'" in printed
    assert run(*command, tmp_path / "parts", "--good-label", "2") == cli.BAD_DATA
    printed += "".join(capsys.readouterr())
    assert "--good-label '2' is not among the labels" in printed
    assert "good_label" not in printed


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
        assert run("info", tmp_path / "m") == 0
        assert re.search(r"^interrupted +True$", capsys.readouterr().out, re.MULTILINE)
        assert run("report", tmp_path / "m", parts, "-o", tmp_path / "r.html") == 0
        assert "interrupted: thresholds rest on" in (tmp_path / "r.html").read_text()
        resume = ["--resume", tmp_path / "r", "--force"]
        calls.clear()
        assert run("fit", parts, "-o", tmp_path / "m", *TINY, *resume) == cli.INTERRUPTED
        warning = capsys.readouterr().err
        assert "The same command, with its --resume, goes on with it if --force is added" in warning
        assert "`resume`" not in warning


def test_what_a_command_reads_is_never_replaced(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    folder, own = shutil.copytree(parts, tmp_path / "parts"), tmp_path / "m"
    shutil.copy(model, own)
    image, other = folder / "good" / "000.png", folder / "good" / "001.png"
    unnamed = shutil.copy(image, tmp_path / "unnamed")
    before = {path: path.read_bytes() for path in (own, image, unnamed)}
    for wrong in (
        ["predict", own, image, "-o", image, "--format", "csv"],
        ["predict", own, "--csv", image, other],
        ["predict", own, unnamed, "--csv", unnamed],
        ["predict", own, image, "--csv", own],
        ["fit", folder, "-o", image, *TINY],
        ["report", own, folder, "-o", own],
        ["report", own, unnamed, "-o", unnamed],
    ):
        assert run(*wrong, "--force") == cli.USAGE, wrong
        said = capsys.readouterr().err
        assert "is read by this command" in said or "would be called as an image is" in said
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.skipif(sys.platform == "win32", reason="no such devices there")
def test_devices_and_standard_output_are_no_files(model: Path, parts: Path, capsys: Output) -> None:
    for name, said in (("/dev/stdout", "a pipe or a device"), ("-", "without -o prints a table")):
        for force in ([], ["--force"]):
            for command in (["predict", model, parts], ["report", model, parts], ["fit", parts]):
                options = ["--format", "csv"] if command[0] == "predict" else []
                assert run(*command, "-o", name, *options, *force) == cli.USAGE
                error = capsys.readouterr().err
                assert said in error and "to overwrite" not in error
    assert run("localize", model, parts, "-o", "-") == cli.USAGE


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


@pytest.fixture
def all_unfamiliar(monkeypatch: pytest.MonkeyPatch) -> None:
    localize = DefectCAMClassifier.localize_iter
    monkeypatch.setattr(
        DefectCAMClassifier,
        "localize_iter",
        lambda *args, **options: (
            dataclasses.replace(found, unfamiliar=True) for found in localize(*args, **options)
        ),
    )


@pytest.mark.usefixtures("all_unfamiliar")
def test_unfamiliar_images_are_marked(
    decides: Callable[[float], Path], parts: Path, tmp_path: Path, capsys: Output
) -> None:
    model, image = decides(1.0), parts / "good" / "000.png"
    calls = [
        ["predict", model, image],
        ["localize", model, image, "-o", tmp_path / "found"],
        ["annotate", model, image, "--format", "coco", "-o", tmp_path / "drafts"],
    ]
    for call in calls:
        assert run(*call) == 0
        printed = capsys.readouterr()
        assert re.match(r"good +0\.\d{3}, unfamiliar  ", printed.out), call
        assert printed.out.endswith(f"  {image}\n")
        assert "1 images: 0 defective, 1 good, 1 unfamiliar" in printed.err


def test_predict_prints_what_tables_hold_as_json(
    decides: Callable[..., Path], parts: Path, capsys: Output
) -> None:
    model = decides(0.0, **MANY_BOXES)
    assert run("predict", model, parts, "--json", "--quiet") == 0
    records = json.loads(capsys.readouterr().out)
    assert records == [result_row(one) for one in load(model).localize(parts)]
    assert run("predict", model, parts, "--json", "--quiet", "--box-threshold", "99") == 0
    assert not any(record["boxes"] for record in json.loads(capsys.readouterr().out))


def test_predict_writes_csv(model: Path, parts: Path, tmp_path: Path, capsys: Output) -> None:
    table = tmp_path / "out.csv"
    assert run("predict", model, parts / "good", "--csv", table) == 0
    assert capsys.readouterr().out == ""
    lines = table.read_text().splitlines()
    assert lines[0].startswith("image,label,probability,is_defect,")
    assert len(lines) == 5
    assert run("predict", model, parts / "good", "--csv", table) == cli.USAGE
    assert run("predict", model, parts / "good", "--csv", table, "--force") == 0


def test_tables_of_all_formats_say_the_same(
    decides: Callable[..., Path], parts: Path, tmp_path: Path, capsys: Output
) -> None:
    model = decides(0.0, **MANY_BOXES)
    tables = {name: tmp_path / f"out.{name}" for name in cli_options.TABLE_FORMATS}
    for table in tables.values():
        assert run("predict", model, parts, "-o", table, "--quiet") == 0
    rows = [json.loads(line) for line in tables["jsonl"].read_text().splitlines()]
    found = load(model).localize(parts)
    assert rows == [result_row(one) for one in found]
    assert sum(row["n_boxes"] for row in rows) > 4
    assert parquet.read_table(tables["parquet"]).to_pylist() == rows
    with tables["csv"].open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [json.loads(row["boxes"]) for row in listed] == [row["boxes"] for row in rows]
    capsys.readouterr()
    assert run("predict", model, parts, "--format", "jsonl", "--quiet") == 0
    assert capsys.readouterr().out == tables["jsonl"].read_text()
    output = tmp_path / "found"
    assert run("localize", model, parts, "-o", output, "--format", "jsonl", "--quiet") == 0
    localized = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    document = json.loads((output / "results.json").read_text())
    overlays = [record["overlay"] for record in document["images"]]
    assert localized == [{**row, "overlay": name} for row, name in zip(rows, overlays, strict=True)]


def test_wrong_requests_for_tables(
    model: Path, parts: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = parts / "good" / "000.png"
    table = tmp_path / "out.parquet"
    assert run("predict", model, image, "-o", tmp_path / "out.txt") == cli.USAGE
    assert run("predict", model, image, "-o", table, "--csv", tmp_path / "o.csv") == cli.USAGE
    assert run("predict", model, image, "--format", "parquet") == cli.USAGE
    assert run("predict", model, image, "--format", "csv", "--json") == cli.USAGE
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run("predict", model, image, "-o", table) == cli.USAGE
    localize = ("localize", model, image, "-o", tmp_path / "found", "--format", "parquet")
    assert run(*localize) == cli.USAGE
    printed = capsys.readouterr()
    assert printed.err.count("pip install 'defectcam[parquet]'") == 2
    assert "Traceback" not in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == []


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
    assert run("predict", decides(1.0), image, "--fail-on-defect") == 0


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
    assert ("cam", *METHODS) == cli_options.METHODS
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
    lower = ["--box-threshold", "0.2", "--quiet", "--force"]
    assert run("localize", model, image, *options, *lower) == 0
    [record] = json.loads((output / "results.json").read_text())["images"]
    assert record["boxes"] == found.with_threshold(0.2).boxes.tolist() != found.boxes.tolist()
    assert record["threshold"] == 0.2
    capsys.readouterr()
    assert run("localize", model, image, *options, "--second-look", "1.3", "--force") == cli.USAGE
    assert "not of --method gradcam++" in capsys.readouterr().err


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


@pytest.mark.parametrize("command", ["predict", "localize", "annotate"])
def test_a_broken_tiff_is_named_before_the_first_answer(
    command: str, model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    images = shutil.copytree(parts, tmp_path / "images")
    (images / "scratch" / "broken.tif").write_bytes(b"no image")
    options: dict[str, tuple[str, ...]] = {
        "localize": ("-o", str(tmp_path / "found")),
        "annotate": ("-o", str(tmp_path / "found"), "--format", "coco"),
    }
    assert (
        run(command, model, images, "--batch-size", "1", *options.get(command, ())) == cli.BAD_DATA
    )
    printed = capsys.readouterr()
    assert "broken.tif" in printed.err
    assert printed.out == ""


def test_only_tiles_spare_tiffs_the_check(model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes(b"no image")
    clf = load(model)
    with pytest.raises(ImageReadError, match=r"broken\.tif"):
        cli._check_read_whole(clf, [str(tmp_path / "broken.tif")])
    cli._check_read_whole(clf, [str(tmp_path / "broken.tif")], tile="auto")


def test_overlays_are_named_as_the_images(tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.jpg", "b/1.tif", "b/2.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths = [str(tmp_path / name) for name in names]
    from_two = cli._overlay_names(paths, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert from_two == ["a/1.png", "b/1.jpg.png", "b/1.tif.png", "b/2.png"]
    assert cli._overlay_names(paths[3:], paths[3:]) == ["2.png"]


def test_no_two_overlays_have_one_name(tmp_path: Path) -> None:
    names = ["x.jpg", "x.tif", "x.jpg.bmp", "x.jpg.bmp.jpg", "y.jpg", "y.png/1.jpg", "z.jpg.bmp"]
    overlays = cli._overlay_names([str(tmp_path / name) for name in names], [str(tmp_path)])
    kept = ["x.jpg.png", "x.tif.png", "x.jpg.bmp.png", "x.jpg.bmp.jpg.png", "y.jpg.png"]
    assert overlays == [*kept, "y.png/1.png", "z.jpg.png"]


# --- annotate ---------------------------------------------------------------------------------


def test_annotate_offers_the_formats_of_the_api() -> None:
    assert cli_options.ANNOTATION_FORMATS == annotations.FORMATS
    assert cli_options.TABLE_FORMATS == tables.FORMATS


@pytest.mark.parametrize("format", cli_options.ANNOTATION_FORMATS)
def test_annotate_writes_what_localize_finds(
    format: str,
    decides: Callable[..., Path],
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, output = decides(0.0, **MANY_BOXES), tmp_path / "drafts"
    options = ["-o", output, "--format", format, "--quiet"]
    assert run("annotate", model, parts, *options) == 0
    monkeypatch.setattr(annotations, "warn_caller", lambda message: None)
    data = annotations.import_annotations(output, format, parts)
    found = {str(one.source): one for one in load(model).localize(parts)}
    assert sorted(data.paths) == sorted(found)
    assert sum(map(len, data.boxes)) > 4
    for path, boxes in zip(data.paths, data.boxes, strict=True):
        np.testing.assert_array_equal(boxes, found[path].boxes)
    assert run("annotate", model, parts, *options) == cli.USAGE
    assert run("annotate", model, parts, *options, "--force", "--fail-on-defect") == 1


def test_annotate_copies_images_and_prints_json(
    decides: Callable[..., Path], parts: Path, tmp_path: Path, capsys: Output
) -> None:
    images = shutil.copytree(parts, tmp_path / "images")
    options = ["-o", images / "drafts", "--format", "coco", "--copy-images", "--json", "--quiet"]
    for _ in range(2):  # the copies are not taken for images
        assert run("annotate", decides(0.0, **MANY_BOXES), images, *options, "--force") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["n_images"] == 8
        assert report["n_boxes"] >= report["n_with_boxes"] > 0
    assert len(list((images / "drafts" / "images").rglob("*.png"))) == 8


def test_annotate_refuses_what_cannot_be_written(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    options = ["-o", tmp_path / "out", "--quiet"]
    assert run("annotate", model, parts, *options) == cli.USAGE
    assert run("annotate", model, parts, *options, "--format", "pdf") == cli.USAGE
    polygons = ["--format", "voc", "--shapes", "polygon"]
    assert run("annotate", model, parts, *options, *polygons) == cli.USAGE
    assert run("annotate", model, parts, *options, "--format", "coco", "--tolerance", "-1") == 2
    beside = ["-o", parts, "--force", "--format", "labelme", "--copy-images"]
    assert run("annotate", model, parts, *beside) == cli.USAGE
    assert "would replace the image" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "yolo"], "have the same label file: rename one"),
        (["--format", "voc", "--shapes", "polygon"], "Pascal VOC"),
        (["--format", "coco", "--tolerance", "-1"], "tolerance must be"),
    ],
)
def test_annotate_refuses_names_and_options_before_the_model_is_loaded(
    options: list[str], message: str, tmp_path: Path, capsys: Output
) -> None:
    images = draw_folder(tmp_path / "images")
    Image.new("L", (8, 8)).save(images / "good" / "000.tif")
    model = tmp_path / "there_is_none.safetensors"
    assert run("annotate", model, images, "-o", tmp_path / "out", *options) == cli.USAGE
    assert message in capsys.readouterr().err


# --- evaluate and info ------------------------------------------------------------------------


def test_evaluate_puts_missed_defects_first(
    decides: Callable[[float], Path], parts: Path, capsys: Output
) -> None:
    assert run("evaluate", decides(1.0), parts, "--quiet") == 0
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


def test_the_case_of_train_and_test_does_not_matter(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    root = tmp_path / "product"
    shutil.copytree(parts, root / "Test")
    shutil.copytree(parts, root / "Train")
    (root / "Ground_Truth" / "scratch").mkdir(parents=True)
    mask = Image.fromarray(np.full((40, 48), 255, dtype=np.uint8))
    mask.save(root / "Ground_Truth" / "scratch" / "000_mask.png")
    assert run("evaluate", model, root, "--json") == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["n_images"], report["pixels"]["n_masks"]) == (8, 1)
    assert f"evaluating on {root / 'Test'}" in output.err
    assert run("doctor", root) == 0
    assert f"defectcam fit {root / 'Train'}" in capsys.readouterr().out
    data = load_mvtec(root)
    assert set(data.split) == {"train", "test"}
    assert sum(mask is not None for mask in data.masks) == 2


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
    assert run("evaluate", model, folder, "--masks", parts, "--quiet") == cli.BAD_DATA
    assert "holds no mask of a defective image" in capsys.readouterr().err


def test_a_report_of_an_empty_folder_is_refused(model: Path, tmp_path: Path, capsys: Output):
    (tmp_path / "empty").mkdir()
    assert run("report", model, tmp_path / "empty", "-o", tmp_path / "r.html") == cli.BAD_DATA
    assert "Found no image" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_pictures_that_are_not_read_are_told_in_one_line(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(parts, folder)
    (folder / "good" / "1.heic").touch()
    (folder / "dent").mkdir()
    (folder / "dent" / "2.HEIC").touch()
    calls = [
        ["fit", folder, "-o", tmp_path / "again", *TINY],
        ["predict", model, folder],
        ["localize", model, folder, "-o", tmp_path / "found"],
        ["annotate", model, folder, "--format", "coco", "-o", tmp_path / "drafts"],
        ["evaluate", model, folder],
        ["split", folder, "-o", tmp_path / "split"],
    ]
    for call in calls:
        assert run(*call) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
        assert len(said) == 1, call
        assert "2 files are skipped for the suffix (2 .heic): convert them" in said[0]
        assert "Nothing else is in dent/." in said[0]
    assert run("predict", model, folder / "dent") == cli.BAD_DATA
    assert "1 file is skipped for the suffix (1 .heic)" in capsys.readouterr().err


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
    assert run("evaluate", model, tmp_path / "typo") == cli.BAD_DATA
    assert "typo" in capsys.readouterr().err


def test_fit_says_that_it_trains_on_test_images_too(
    parts: Path, tmp_path: Path, capsys: Output
) -> None:
    for part in ("train", "test"):
        shutil.copytree(parts, tmp_path / "parts" / part)
    loud = [argument for argument in TINY if argument != "--quiet"]
    options = ["-o", tmp_path / "m.safetensors", *loud, "--max-epochs", "1"]
    assert run("fit", tmp_path / "parts", *options) == 0
    assert "training on the images of train and test" in capsys.readouterr().err
    assert run("fit", tmp_path / "parts" / "train", *options, "--force") == 0
    assert "train and test" not in capsys.readouterr().err


def test_info(model: Path, capsys: Output) -> None:
    assert run("info", model, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["classes"] == ["good", "scratch"]
    assert info["backbone"] == "test_efficientnet"
    assert info["bytes"] == model.stat().st_size
    assert info["written_with"]["defectcam"] == defectcam.__version__
    assert run("info", model) == 0
    printed = capsys.readouterr().out
    assert "good, scratch" in printed
    assert re.search(r"^epochs, all folds +3$", printed, re.MULTILINE)  # of three trainings
    assert re.search(r"^interrupted +False$", printed, re.MULTILINE)
    assert run("info", model.parent) == cli.BAD_DATA


# --- split, query, doctor, completion ---------------------------------------------------------


def test_split_writes_lists_or_folders(parts: Path, tmp_path: Path, capsys: Output) -> None:
    options = ["--test-size", "0.25", "--random-state", "0"]
    assert run("split", parts, "-o", tmp_path / "lists", *options) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train  6 images: 3 good, 3 scratch",
        "test   2 images: 1 good, 1 scratch",
    ]
    assert run("split", parts, "-o", tmp_path / "links", *options, "--form=links", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["test"] == {"good": 1, "scratch": 1}
    listed = load_csv(tmp_path / "lists" / "test.csv")
    linked = load_folder(tmp_path / "links" / "test")
    assert sorted(map(os.path.realpath, linked.paths)) == sorted(
        map(os.path.realpath, listed.paths)
    )


def test_split_refuses_what_exists_and_what_cannot_be(
    parts: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.csv").write_text("mine")
    assert run("split", parts, "-o", tmp_path / "full") == cli.USAGE
    assert (tmp_path / "full" / "train.csv").read_text() == "mine"
    for wrong in (["--test-size", "2"], ["--group-pattern", "("], ["--group-pattern", "part"]):
        assert run("split", parts, "-o", tmp_path / "new", *wrong) == cli.USAGE, wrong
    assert run("split", tmp_path / "none", "-o", tmp_path / "new") == cli.BAD_DATA
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_query_chooses_as_the_api_does(model: Path, parts: Path, capsys: Output) -> None:
    assert run("query", model, parts, "-n", "3", "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    paths = sorted(map(str, parts.rglob("*.png")))
    assert lines == [paths[i] for i in load(model).query(paths, 3)]
    assert run("query", model, parts, "-n", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == lines
    assert run("query", model, parts, "-n", "9") == cli.USAGE
    assert "from 1 to 8" in capsys.readouterr().err


def test_doctor_finds_what_is_broken(
    parts: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(parts, tmp_path / "broken")
    (broken / "good" / "000.png").write_text("no image")
    assert run("doctor", broken, "--json") == cli.BAD_DATA
    report = json.loads(capsys.readouterr().out)
    assert report["worst"] == "error"
    [error] = [f for f in report["findings"] if f["severity"] == "error"]
    assert "000.png" in error["details"][0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert run("doctor", parts) == 0
    printed = capsys.readouterr().out
    assert "\x1b[33mwarning\x1b[0m  class balance" in printed
    assert f"next: defectcam fit {parts}" in printed
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("doctor", parts) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_completion(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "shtab", None)
        assert run("completion", "bash") == cli.USAGE
    assert "pip install 'defectcam[completion]'" in capsys.readouterr().err
    pytest.importorskip("shtab")
    assert run("completion", "zsh") == 0
    assert capsys.readouterr().out.startswith("#compdef defectcam")
    assert run("completion", "bash") == 0
    script = capsys.readouterr().out
    for word in (*commands(), "--fail-on-defect", "--settle"):
        assert word in script
    bash = shutil.which("bash")
    if bash is None:
        return
    asked = "\nCOMP_WORDS=(defectcam ev) COMP_CWORD=1\n_shtab_defectcam\necho ${COMPREPLY[@]}"
    answered = subprocess.run([bash, "-c", script + asked], capture_output=True, text=True)
    assert answered.stdout == "evaluate\n", answered.stderr


# --- watch ------------------------------------------------------------------------------------


def watch(*arguments: str | Path, until: Callable[[], bool]) -> int:
    """Run `watch` in this process until a condition holds, then send it SIGTERM."""

    def end() -> None:
        patience = time.monotonic() + 300
        while not until() and time.monotonic() < patience:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should it come too late
    try:
        thread = threading.Thread(target=end)
        thread.start()
        code = run("watch", *arguments)
        thread.join()
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


def test_watch_records_what_localize_says(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    output, bad = tmp_path / "out", tmp_path / "line" / "bad.png"
    line = shutil.copytree(parts, tmp_path / "line")
    bad.write_bytes(b"no image")

    def n_lines() -> int:
        results = output / "results.jsonl"
        return results.read_bytes().count(b"\n") if results.exists() else 0

    quick = ["--settle", "0.05", "--error-after", "0.2", "--poll", "0.02", "--batch-size", "1"]
    assert watch(model, line, "-o", output, *quick, until=lambda: n_lines() == 9) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 9
    assert "watch: stopped after" in printed.err
    assert "1 unreadable; 0 waiting" in printed.err
    assert "bad.png" in printed.err
    rows = {row["image"]: row for row in map(json.loads, (output / "results.jsonl").open())}
    assert "not an image" in rows.pop("bad.png")["error"]
    clf = load(model).set_params(batch_size=1)
    for name, row in rows.items():
        found = result_row(clf.localize(line / name), name, row["overlay"])
        assert {key: row[key] for key in found} == found
        assert (row["model"], row["error"]) == (str(model), None)
        assert (output / row["overlay"]).is_file()
    shutil.copy(line / "good" / "000.png", line / "good" / "new.png")
    more = ("--overlays", "none", "--json", "--quiet")
    assert watch(model, line, "-o", output, *quick, *more, until=lambda: n_lines() == 10) == 0
    printed = capsys.readouterr()
    tally = json.loads(printed.out)
    assert (tally["n_known"], tally["n_good"] + tally["n_defective"]) == (9, 1)
    assert printed.err == ""


def test_watch_refuses_what_it_cannot_continue(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "out"
    assert run("watch", model, tmp_path / "none", "-o", output) == cli.BAD_DATA
    assert run("watch", tmp_path / "none", parts, "-o", output) == cli.BAD_DATA
    assert run("watch", model, parts, "-o", output, "--settle", "-1") == cli.USAGE
    assert run("watch", model, parts, "-o", output, "--report-every", "0") == cli.USAGE
    assert run("watch", model, parts, "-o", output / "deeper") == cli.USAGE
    assert not output.exists()
    output.mkdir()
    (output / "results.jsonl").write_text("mine\n")
    assert run("watch", model, parts, "-o", output) == cli.BAD_DATA
    assert "is no result of a watch" in capsys.readouterr().err


# --- Other thresholds -------------------------------------------------------------------------


def test_thresholds_of_one_call_are_not_those_of_the_model(
    model: Path, parts: Path, tmp_path: Path, capsys: Output
) -> None:
    before = model.read_bytes()
    assert run("predict", model, parts, "--threshold", "0", "--json", "--quiet") == 0
    assert all(one["is_defect"] for one in json.loads(capsys.readouterr().out))
    options = ["--threshold", "0", "--box-threshold", "0.3", "--json", "--quiet"]
    assert run("localize", model, parts, "-o", tmp_path / "found", *options) == 0
    [one, *_] = json.loads(capsys.readouterr().out)["images"]
    assert (one["decision_threshold"], one["threshold"]) == (0, 0.3)
    assert run("evaluate", model, parts, "--threshold", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["overkill"] == 1
    assert model.read_bytes() == before


def test_a_second_look_is_asked_for(model: Path, parts: Path, tmp_path: Path, capsys, monkeypatch):
    seen: list[float | None] = []
    localize = DefectCAMClassifier.localize_iter
    monkeypatch.setattr(
        DefectCAMClassifier,
        "localize_iter",
        lambda clf, *args, **options: (
            seen.append(clf.second_look) or localize(clf, *args, **options)
        ),
    )
    for extra in ([], ["--second-look", "1.5"]):
        target = tmp_path / f"found{len(seen)}"
        assert run("localize", model, parts, "-o", target, "--quiet", *extra) == 0
    assert seen == [None, 1.5]
    for wrong in ("0.5", "nan", "9"):
        assert run("localize", model, parts, "-o", tmp_path / "no", "--second-look", wrong) == 2
        assert "--second-look" in capsys.readouterr().err


def test_a_second_look_and_tiles_are_switched_off(
    model: Path, parts: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = tmp_path / "looks.safetensors"
    load(model).set_params(second_look=1.3).save(looks)
    image = parts / "good" / "000.png"
    seen = []
    load_model = cli._load
    monkeypatch.setattr(cli, "_load", lambda args: seen.append(load_model(args)) or seen[-1])
    assert (
        run("predict", looks, image) == run("predict", looks, image, "--second-look", "none") == 0
    )
    assert [clf.second_look for clf in seen] == [1.3, None]
    found = ["-o", tmp_path / "found", "--tile", "none"]
    assert run("localize", model, image, *found) == 0
    monkeypatch.setattr(DefectCAMClassifier, "tile_", property(lambda clf: (64, 64)))
    capsys.readouterr()
    assert run("localize", model, image, *found, "--force") == cli.USAGE
    assert "has learned from tiles" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("doctor", "parts"), ("predict", "model", "part.png"), ("fit", "parts", "-o", "model")],
)
def test_no_thread_at_all_is_refused(capsys, arguments):
    assert cli.main([*arguments, "--n-jobs", "0"]) == cli.USAGE
    assert "argument --n-jobs: 0 threads read nothing" in capsys.readouterr().err
    assert cli.main([*arguments, "--n-jobs", "many"]) == cli.USAGE
    assert "argument --n-jobs: invalid int" in capsys.readouterr().err


# --- Wrong calls ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["predict", "query"])
def test_names_that_are_no_text_are_printed_as_they_are(
    command: str, model: Path, parts: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(b"a\xff.png")
    try:
        shutil.copy(parts / "good" / "000.png", tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    options = ["-n", "1"] if command == "query" else []
    call = [sys.executable, "-m", "defectcam", command, str(model), str(tmp_path), *options]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(call, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"a\xff.png" in done.stdout


def test_wrong_calls_of_export_are_told_before_anything_is_done(
    model: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "part.bar"
    assert run("export", model, "-o", target) == cli.USAGE
    assert f"{target}: the suffix must say what to write" in capsys.readouterr().err
    assert run("export", model, "-o", tmp_path / "part.onnx", "--measure", parts) == cli.USAGE
    assert "give --int8 too" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--verify"], ["--int8"], ["--int8", "PARTS", "--measure"]])
def test_an_empty_folder_for_export_is_about_data(
    options: list[str], parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, missing = tmp_path / "empty", tmp_path / "missing.safetensors"
    empty.mkdir()
    options = [str(parts) if option == "PARTS" else option for option in options]
    assert run("export", missing, "-o", tmp_path / "part.onnx", *options, empty) == cli.BAD_DATA
    assert f"found no images in {str(empty)!r}" in capsys.readouterr().err  # before any work


@pytest.mark.usefixtures("torch_writes_onnx")
def test_an_unreadable_image_for_int8_is_about_data(
    model: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(parts, tmp_path / "images")
    (images / "good" / "000.png").write_bytes((parts / "good" / "000.png").read_bytes()[:200])
    assert run("export", model, "-o", tmp_path / "part.onnx", "--int8", images) == cli.BAD_DATA
    assert "000.png" in capsys.readouterr().err


def test_query_of_a_model_of_tiles_is_a_wrong_call(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tiles.safetensors"
    assert run("fit", parts, "-o", model, *TINY, "--tile", "32", "--heatmap", "fused") == 0
    assert run("query", model, parts, "-n", "1") == cli.USAGE
    assert "query does not work on tiles" in capsys.readouterr().err


def test_a_token_file_that_is_no_text_is_named(
    model: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = parts / "good" / "000.png"
    assert run("serve", model, "--token-file", image) == cli.USAGE
    assert f"--token-file {image}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "query"])
def test_thresholds_that_would_change_nothing_are_refused(
    command: str, model: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [model] if command == "serve" else [model, parts, "-n", 1]
    assert run(command, *given, "--threshold", "1.0") == cli.USAGE
    assert "unrecognized arguments: --threshold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("part.onnx", "onnx", "onnx"), ("part.xml", "onnx", "openvino"), ("a.xml", "openvino", None)],
)
def test_a_package_that_export_needs_is_told_before_the_model_is_loaded(
    name: str,
    missing: str,
    extra: str | None,
    model: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("defectcam.persistence.load", lambda *_, **__: pytest.fail("loaded"))
    assert run("export", model, "-o", tmp_path / name) == cli.USAGE
    advice = f"pip install 'defectcam[{extra or missing}]'"
    said = f"{tmp_path / name} needs the package {missing}: {advice}."
    assert said in capsys.readouterr().err
