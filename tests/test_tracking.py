"""Trainings, figures and models in MLflow, with a store in a file of SQLite."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from defectcam import tracking
from defectcam.tables import COLUMNS

NEEDS = "needs pip install 'defectcam[mlflow]' sqlalchemy alembic"


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return MLflow with an empty store."""
    for package in ("sqlalchemy", "alembic"):
        pytest.importorskip(package, reason=NEEDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = pytest.importorskip("mlflow", reason=NEEDS)
        folder = tmp_path_factory.mktemp("mlflow")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        artifacts = (folder / "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("parts", artifacts))
        yield mlflow
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def run(mlflow: Any, fitted: Any, fitted_parts: Path) -> Any:
    """Log everything into one run; return it."""
    with mlflow.start_run() as active:
        tracking.log_training(fitted)
        tracking.log_evaluation(fitted, fitted_parts, title="The parts")
    return mlflow.get_run(active.info.run_id)


@pytest.fixture(scope="module")
def model_uri(mlflow: Any, fitted: Any) -> str:
    with mlflow.start_run():
        return str(tracking.log_model(fitted).model_uri)


def text_of(mlflow: Any, run: Any, name: str) -> str:
    return str(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}"))


def test_the_training_is_logged(mlflow, run, fitted) -> None:
    assert run.data.params["backbone"] == "test_efficientnet"
    assert run.data.params["random_state"] == "0"
    assert not {"callbacks", "memory"} & set(run.data.params)
    assert run.data.tags["training_data"] == fitted.training_data_.digest
    assert run.data.metrics["threshold"] == fitted.threshold_
    client = mlflow.MlflowClient()
    for fold in range(3):
        rows = [row for row, of in enumerate(fitted.history_["fold"]) if of == fold]
        points = client.get_metric_history(run.info.run_id, f"fold_{fold}.loss")
        assert [point.value for point in points] == [fitted.history_["loss"][row] for row in rows]
        assert [point.step for point in points] == [fitted.history_["epoch"][row] for row in rows]
    assert json.loads(text_of(mlflow, run, "model_card.json")) == fitted.info()


def test_the_figures_are_those_of_evaluate(mlflow, run, fitted, fitted_parts) -> None:
    expected = fitted.evaluate(fitted_parts).to_dict()
    for name in ("defect_recall", "overkill", "balanced_accuracy", "roc_auc", "n_images"):
        assert run.data.metrics[name] == expected[name]
    assert json.loads(text_of(mlflow, run, "evaluation.json")) == expected
    assert "<title>The parts" in text_of(mlflow, run, "report.html")


def test_figures_of_masks_are_metrics_and_undefined_ones_are_none(
    mlflow, fitted, fitted_parts
) -> None:
    good = sorted((fitted_parts / "good").iterdir())
    bad = sorted((fitted_parts / "scratch").iterdir())
    mask = np.zeros((48, 48), bool)
    mask[10:20, 10:20] = True
    with mlflow.start_run() as active:
        paths, labels = [good[0], bad[0]], ["good", "scratch"]
        found = tracking.log_evaluation(fitted, paths, labels, masks=[None, mask])
    metrics = mlflow.get_run(active.info.run_id).data.metrics
    assert metrics["pixels.pro_auc"] == found.pixels["pro_auc"]
    with mlflow.start_run() as active, pytest.warns(UserWarning, match="No image is labelled"):
        tracking.log_evaluation(fitted, [bad[0]], ["scratch"])
    metrics = mlflow.get_run(active.info.run_id).data.metrics
    assert "overkill" not in metrics and "defect_recall" in metrics


def test_without_labels_there_are_no_figures(mlflow, fitted, fitted_parts) -> None:
    with pytest.raises(ValueError, match="X has no labels"):
        tracking.log_evaluation(fitted, fitted_parts / "good")


def test_the_model_is_the_file_and_no_code(mlflow, model_uri) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(model_uri))
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "part.safetensors" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".py"))]
    lines = (folder / "requirements.txt").read_text().split()
    pinned = dict(line.split("==") for line in lines)
    wanted = {"defectcam", "torch", "torchvision", "timm", "numpy", "scikit-learn"}
    assert wanted <= set(pinned)
    for name in wanted:
        assert metadata.version(name).partition("+")[0] == pinned[name]


def test_a_loaded_model_answers_in_another_process(
    mlflow, model_uri, fitted, fitted_parts, tmp_path
) -> None:
    paths = sorted(str(path) for path in fitted_parts.rglob("*.png"))[6:10]
    paths.insert(2, str(tmp_path / "missing.png"))
    code = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
print(model.predict(pandas.DataFrame({"image": sys.argv[3:]})).to_json(orient="records"))
"""
    command = [sys.executable, "-c", code, mlflow.get_tracking_uri(), model_uri, *paths]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])
    assert list(rows[0]) == [*COLUMNS, "error"]
    assert "missing.png" in rows[2]["error"] and rows[2]["label"] is None
    del rows[2], paths[2]
    for row, found in zip(rows, fitted.localize(paths), strict=True):
        assert (row["label"], row["boxes"]) == (found.label, found.boxes.tolist())
        assert row["probability"] == pytest.approx(found.probability, abs=1e-4)
        assert row["error"] is None


def test_a_loaded_model_takes_the_files_themselves(mlflow, model_uri, fitted, fitted_parts) -> None:
    paths = sorted(str(path) for path in fitted_parts.rglob("*.png"))[:3]
    model = mlflow.pyfunc.load_model(model_uri)
    expected = [found.label for found in fitted.localize(paths)]
    files = [Path(path).read_bytes() for path in paths]
    answers = model.predict(pandas.DataFrame({"bytes": files}))
    assert answers["label"].tolist() == expected and answers["image"].tolist() == ["0", "1", "2"]


def test_a_model_takes_paths_by_themselves_and_says_which_columns_it_needs(
    fitted, fitted_parts, tmp_path
) -> None:
    fitted.save(tmp_path / "part.safetensors")
    model = tracking._load_pyfunc(str(tmp_path / "part.safetensors"))
    paths = sorted(str(path) for path in fitted_parts.rglob("*.png"))[6:9]
    expected = [found.label for found in fitted.localize(paths)]
    assert model.predict(paths)["label"].tolist() == expected
    with pytest.raises(ValueError, match=r"\['path'\]: expected 'image' with paths, or 'bytes'"):
        model.predict(pandas.DataFrame({"path": paths}))


def test_a_missing_path_has_a_row_that_says_so(fitted, fitted_parts, tmp_path) -> None:
    fitted.save(tmp_path / "part.safetensors")
    model = tracking._load_pyfunc(str(tmp_path / "part.safetensors"))
    path = str(min(fitted_parts.rglob("*.png")))
    for missing in (None, np.nan, pandas.NA):
        rows = model.predict(pandas.DataFrame({"image": [missing, path]}))
        assert "path is missing" in rows["error"][0] and rows["image"][1] == path


def test_what_mlflow_takes_for_no_columns_is_told(mlflow, model_uri, fitted_parts) -> None:
    model = mlflow.pyfunc.load_model(model_uri)
    paths = sorted(map(str, fitted_parts.rglob("*.png")))[:2]
    for wrong in (paths, pandas.DataFrame({"path": paths})):
        with pytest.raises(
            ValueError, match=r"none of the columns .*DataFrame\({'image': paths}\)"
        ):
            model.predict(wrong)


def test_files_in_some_rows_alone_are_refused(fitted, tmp_path) -> None:
    fitted.save(tmp_path / "part.safetensors")
    model = tracking._load_pyfunc(str(tmp_path / "part.safetensors"))
    frame = pandas.DataFrame({"image": ["a.png", "b.png"], "bytes": [None, b"..."]})
    with pytest.raises(ValueError, match=r"'bytes' is empty in rows \[0\], and not in others"):
        model.predict(frame)


def test_without_mlflow_the_extra_is_named(monkeypatch, fitted) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"pip install 'defectcam\[mlflow\]'"):
        tracking.log_model(fitted)
