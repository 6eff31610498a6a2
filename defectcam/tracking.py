"""Puts trainings, figures and models into MLflow.

Owns which parameters, metrics and files a run gets and what they are called, and the model as
MLflow's `pyfunc`: the safetensors file and the name of this module, which loads it. Nothing is
pickled. It is the only module that knows MLflow.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from defectcam.callbacks import CURVES
from defectcam.distributed import Localizer
from defectcam.evaluation import Evaluation
from defectcam.model_schema import NOT_IN_FILES
from defectcam.persistence import read_metadata
from defectcam.report import make_report
from defectcam.tables import COLUMNS

__all__ = ["log_evaluation", "log_model", "log_training"]

#: Most characters of a parameter's value that MLflow takes.
MOST_CHARACTERS = 6000


def log_training(clf: Any) -> None:
    """Log how a classifier was trained: parameters, curves, and what it is made of.

    Into the active run, which MLflow starts if there is none.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted. The curves are metrics like ``fold_0.loss``, fold 0 being the final network; a file
        ``model_card.json`` is ``clf.info()``, and the fingerprint of its images the tag
        ``training_data``.

    Raises
    ------
    ImportError
        If MLflow is not installed: ``pip install 'defectcam[mlflow]'``.
    """
    check_is_fitted(clf)
    mlflow = _mlflow()
    given = {n: v for n, v in clf.get_params(deep=False).items() if n not in NOT_IN_FILES}
    mlflow.log_params({name: str(value)[:MOST_CHARACTERS] for name, value in given.items()})
    history = clf.history_
    for row, (fold, epoch) in enumerate(zip(history["fold"], history["epoch"], strict=True)):
        curves = {f"fold_{fold}.{name}": history[name][row] for name in CURVES}
        mlflow.log_metrics(curves, step=epoch)
    info = clf.info()
    mlflow.log_metric("threshold", info["threshold"])
    mlflow.log_dict(info, "model_card.json")
    if info["training_data"] is not None:
        mlflow.set_tag("training_data", info["training_data"])


def log_evaluation(
    clf: Any,
    X: Any,
    y: ArrayLike | None = None,
    masks: Any = None,
    *,
    good_label: Any = None,
    title: str | None = None,
) -> Evaluation:
    """Measure a classifier on labelled images, and log figures and report.

    Into the active run, which MLflow starts if there is none: each figure that is a number as a
    metric of the same name, those of heatmaps and boxes as ``pixels.pro_auc`` for example; all of
    them in ``evaluation.json``; and ``report.html``.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted.
    X, y, masks, good_label
        As for `defectcam.evaluation.evaluate`.
    title : str, optional
        Of the report; by default the name of the folder ``X``.

    Returns
    -------
    Evaluation

    Raises
    ------
    ImportError
        If MLflow is not installed: ``pip install 'defectcam[mlflow]'``.
    ValueError
        If there are no labels.
    """
    mlflow = _mlflow()
    report = make_report(clf, X, y, masks, good_label=good_label, title=title)
    if report.evaluation is None:
        raise ValueError("X has no labels: pass y, or a folder with a sub-folder per class.")
    figures = report.evaluation.to_dict()
    pixels = figures.get("pixels", {})
    numbers = figures | {f"pixels.{name}": value for name, value in pixels.items()}
    mlflow.log_metrics({name: v for name, v in numbers.items() if _is_number(v)})
    mlflow.log_dict(figures, "evaluation.json")
    mlflow.log_text(report.page, "report.html")
    return report.evaluation


def log_model(clf: Any, name: str = "model", **options: Any) -> Any:
    """Log a classifier as a model that `mlflow.pyfunc.load_model` loads.

    Its artifact is the safetensors file, its requirements this library and the versions of those
    that decide the answer. The loaded model takes a data frame with a column ``image`` of paths; or
    with a column ``bytes`` of image files as well or instead, as a client over HTTP has them. It
    gives a data frame with a row per image, as `defectcam.tables` has them, and a column ``error``
    that says why an image could not be read. MLflow itself takes nothing else, no list of paths.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted.
    name : str, default="model"
        Of the model.
    **options
        For ``mlflow.pyfunc.log_model``: ``registered_model_name``, ``pip_requirements``, ``tags``
        and others.

    Returns
    -------
    mlflow.models.model.ModelInfo
        Its ``model_uri`` is what `load_model` takes.

    Raises
    ------
    ImportError
        If MLflow is not installed: ``pip install 'defectcam[mlflow]'``.
    """
    mlflow = _mlflow()
    with tempfile.TemporaryDirectory(prefix="defectcam-") as folder:
        path = Path(folder, "part.safetensors")
        clf.save(path)
        versions = read_metadata(path)["versions"]
        return mlflow.pyfunc.log_model(
            name=name,
            loader_module=__name__,
            data_path=os.fspath(path),
            **{
                "pip_requirements": _requirements(versions),
                "signature": _signature(),
                "metadata": {"training_data": clf.info()["training_data"]},
                **options,
            },
        )


class _PyfuncModel:
    """What MLflow calls: data frames in, data frames out."""

    def __init__(self, path: str) -> None:
        self._localizer = Localizer(path)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Localise the images of a data frame.

        A sequence of paths gets this far without the signature, ``log_model(clf, signature=None)``:
        with it, MLflow makes a data frame without columns of one.
        """
        import pandas

        frame = model_input
        if not hasattr(frame, "columns"):
            frame = pandas.DataFrame({"image": list(model_input)})
        files = frame["bytes"] if "bytes" in frame and frame["bytes"].notna().any() else None
        if files is not None and files.isna().any():
            raise ValueError(
                f"The column 'bytes' is empty in rows {frame.index[files.isna()].tolist()[:10]}, "
                "and not in others: pass image files or paths, one kind in a data frame."
            )
        if "image" not in frame and files is None:
            found = f"has the columns {list(frame.columns)}"
            if not len(frame.columns):  # what was in it, or in a list, MLflow has left out
                found = "has none of the columns of the model's signature"
            raise ValueError(
                f"The data frame {found}: expected 'image' with paths, or 'bytes' with image "
                "files, as in pandas.DataFrame({'image': paths})."
            )
        # An object, because pandas would make NaN of None in a column of strings.
        names = frame.get("image", pandas.Series(None, frame.index, dtype=object)).astype(object)
        rows = self._localizer.rows_of(names.where(names.notna(), None), files)
        return pandas.DataFrame(rows, columns=[*COLUMNS, "error"])


def _load_pyfunc(path: str) -> _PyfuncModel:
    """Load the model's file; MLflow looks for a function of this name."""
    return _PyfuncModel(path)


def _requirements(versions: dict[str, str]) -> list[str]:
    """List what the answers rest on, as it was when the model was saved."""
    # Builds for a device are told by what follows a plus sign, and are no versions of the index.
    return [
        f"{name}=={version.partition('+')[0]}"
        for name, version in versions.items()
        if name != "python"
    ]


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = [("string", "image"), ("binary", "bytes")]
    return ModelSignature(Schema([ColSpec(kind, name, required=False) for kind, name in columns]))


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _mlflow() -> Any:
    try:
        import mlflow
        import mlflow.pyfunc
    except ImportError as error:
        raise ImportError(
            "Tracking needs the packages mlflow-skinny and pandas: pip install 'defectcam[mlflow]'."
        ) from error
    return mlflow
