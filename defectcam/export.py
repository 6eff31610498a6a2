"""Writes a fitted classifier as a graph that runs without PyTorch: ONNX, OpenVINO, `torch.export`.

Owns the files, what they say of themselves, and the way from float32 to int8. What is computed is
`graph`'s matter, whether the files answer alike is `parity`'s, and running them `runtime`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.utils.validation import check_is_fitted

from defectcam.backbones import weights_licence
from defectcam.classifier import DefectCAMClassifier
from defectcam.exceptions import warn_caller
from defectcam.files import check_target, temporary_folder, write_atomically
from defectcam.graph import Decision, DeployedNetwork
from defectcam.images import is_path, read_reduced
from defectcam.parity import Int8Loss, Parity, TorchProgram, measure_int8_loss, verify
from defectcam.results import check_decision_threshold
from defectcam.review import Labelled, labelled_images
from defectcam.runtime import METADATA_KEY, SCHEMA_VERSION, Inspector, graph_inputs
from defectcam.sources import as_sources, spread

__all__ = [
    "LEAST_TORCH",
    "OPSET",
    "SUFFIXES",
    "ExportError",
    "Int8LossError",
    "export",
    "read_description",
    "to_openvino",
    "verify_file",
]

#: Of ONNX: the first whose `Resize` averages when it shrinks.
OPSET = 18

#: Of the files, and what they hold.
SUFFIXES = {".onnx": "ONNX", ".xml": "OpenVINO IR", ".pt2": "torch.export program"}

#: Images that the ranges of int8 activations are learned from, at most.
MAX_CALIBRATION_IMAGES = 100

#: The oldest torch that is known to write all of the graph to ONNX; 2.6 lacks some operators.
LEAST_TORCH = (2, 8)

#: Size of the images that the graph is traced with: no side is that of a usual input.
_TRACED_SIZE = (70, 90)

#: Of a batch and of its images' sides. Without a bound, torch 2.6 takes its own largest integer for
#: a size and refuses that.
_MAX_SIDE = 2**31 - 1

_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "")  # the last is the root logger
_OUTPUTS = (
    "probability",
    "class_probability",
    "unfamiliar",
    "grid",
    "heatmap",
    "mask",
)
_MISSING = "{what} needs the package {package}: pip install 'defectcam[{extra}]'."


class ExportError(ValueError):
    """A model that cannot be written as a graph."""


class Int8LossError(ExportError):
    """An int8 model that is further from the float32 one than allowed; nothing was written."""


def export(
    clf: DefectCAMClassifier,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    int8: Any = None,
    X: Any = None,
    y: Any = None,
    max_auroc_loss: float = 0.01,
    max_probability_change: float = 0.05,
) -> Int8Loss | None:
    """Write a fitted classifier as one graph from pixels to answers.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted.
    path : str or PathLike
        The suffix says what is written: ``.onnx``, ``.xml`` (OpenVINO IR, with the weights in a
        ``.bin`` beside it) or ``.pt2`` (a `torch.export` program).
    overwrite : bool, default=True
        Whether existing files may be replaced.
    int8 : images, optional
        Training images, as `fit` takes them without labels, to which int8 ranges of what the
        backbone's layers take and give are fitted (post-training static quantisation), and so that
        probabilities stay where they were on the median; at most 100 of them are used. None:
        float32. Not for ``.pt2``.
    X, y : images and labels, optional
        On which the loss by int8 is measured, as `DefectCAMClassifier.evaluate` takes them. By
        default the images `int8`, whose labels are known if they are a folder with one per class.
    max_auroc_loss : float, default=0.01
        Largest loss of area under the images' ROC curve by int8.
    max_probability_change : float, default=0.05
        Largest mean absolute change of the probability by int8.

    Returns
    -------
    Int8Loss or None
        What int8 changed; None for float32.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the classifier is not fitted.
    ExportError
        If the model has parts that cannot be written: preprocessing steps of a pipeline, or layers
        of a backbone that ONNX does not have. If the installed torch is older than `LEAST_TORCH`;
        ``.pt2`` needs no newer one.
    Int8LossError
        If int8 costs more than allowed. Nothing is written.
    FileExistsError
        If a file exists and `overwrite` is false.
    ImportError
        If a package is missing: ``pip install 'defectcam[onnx,openvino]'``.

    Warns
    -----
    UserWarning
        If the loss is to be measured on a folder with sub-folders, none of which is of good parts.
    """
    _check_exportable(clf)
    target = Path(path)
    _check_target(target, overwrite, is_int8=int8 is not None)
    module = deployed(clf)
    description = describe(clf, module, "float32" if int8 is None else "int8")
    if _suffix(target) == ".pt2":
        write_atomically(target, _as_pt2(_traced(module), description))
        return None
    _check_torch(target)
    measured = None if int8 is None else _measured(clf, int8 if X is None else X, y)
    with _named_failure(clf):
        model = _as_onnx(_traced(module), description, _outputs_of(module))
    loss = None
    if measured is not None:
        images = as_sources(int8).items
        chosen = spread(images, MAX_CALIBRATION_IMAGES)
        model = _quantised(model, chosen, clf, is_padded=module.takes_original_size)
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder, "int8.onnx")
            trial.write_bytes(model.SerializeToString())
            loss = measure_int8_loss(clf, Inspector(trial), measured)
        _refuse_large(loss, max_auroc_loss, max_probability_change)
    if _suffix(target) == ".onnx":
        write_atomically(target, _with_default_size(model).SerializeToString())
    else:
        _write_openvino(target, model, description)
    return loss


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what an exported file says of itself."""
    return _inspector(Path(path)).description


def verify_file(clf: DefectCAMClassifier, path: str | os.PathLike[str], X: Any) -> Parity:
    """Compare an exported float32 file with the classifier.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted; it is compared in float32, whatever its ``precision``.
    path : str or PathLike
        A file that `export` has written. An ONNX file is run by ONNX Runtime, and by OpenVINO too
        where that is installed.
    X : images, as `DefectCAMClassifier.localize` takes them

    Returns
    -------
    Parity
        A table to print, with one row per engine.
    """
    file = Path(path)
    engines = {_engine_name(_suffix(file)): _inspector(file)}
    if _suffix(file) != ".onnx" or importlib.util.find_spec("openvino") is None:
        return verify(clf, engines, X)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder, "model.xml")
        to_openvino(file, converted)
        engines[_engine_name(".xml")] = _inspector(converted)
        return verify(clf, engines, X)


def to_openvino(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = True
) -> None:
    """Convert an ONNX file that `export` has written to OpenVINO IR.

    Parameters
    ----------
    source : str or PathLike
        Ends with ``.onnx``; float32 or int8.
    target : str or PathLike
        Ends with ``.xml``; the weights go into a ``.bin`` beside it.
    overwrite : bool, default=True
        Whether existing files may be replaced.

    Raises
    ------
    FileExistsError
        If a file exists and `overwrite` is false.
    defectcam.runtime.ExportedModelError
        If the source is not such a file.
    """
    written = Path(target)
    if _suffix(written) != ".xml":
        raise ValueError(f"{written}: OpenVINO IR has the suffix .xml.")
    _check_target(written, overwrite, is_int8=False)
    description = read_description(source)
    model = _import("onnx", f"{written}", "openvino").load(source)
    _write_openvino(written, _without_default_size(model), description)


def _suffix(file: Path) -> str:
    """Return what a file's name says of its kind, in small letters: capitals mean the same."""
    return file.suffix.lower()


def _inspector(file: Path) -> Inspector:
    return (TorchProgram if _suffix(file) == ".pt2" else Inspector)(file)


def _engine_name(suffix: str) -> str:
    names = {".onnx": "ONNX Runtime", ".xml": "OpenVINO", ".pt2": "torch.export"}
    packages = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}
    return f"{names[suffix]} {importlib.metadata.version(packages[suffix])}"


def deployed(clf: DefectCAMClassifier) -> DeployedNetwork:
    """Join the parts of a fitted classifier in one module, in float32 on the processor."""
    check_decision_threshold("threshold_", clf.threshold_)
    classes = clf._classes
    decision = Decision(
        good=classes.good,
        defects=classes.defects,
        probability=clf._defect_probability,
        threshold=clf.threshold_,
        box_threshold=float(clf.box_threshold),
        familiarity_limit=clf._familiarity_limit,
    )
    return DeployedNetwork(
        clf.network_, clf._preprocess, clf._heat_model, decision, clf._second_size
    ).eval()


def describe(clf: DefectCAMClassifier, module: DeployedNetwork, precision: str) -> dict[str, Any]:
    """Return what a file says of itself, ready for JSON."""
    info = clf.info()
    merge_distance = clf.merge_distance
    return {
        "format": METADATA_KEY,
        "schema_version": SCHEMA_VERSION,
        "versions": {name: info[name] for name in ("defectcam", "torch", "python")},
        "opset": OPSET,
        "precision": precision,
        "classes": {"labels": clf.classes_.tolist(), "good": clf._classes.good},
        "preprocessing": {
            "image_size": list(clf.image_size_),
            "resize": module.preprocess.resize,
            "mean": module.preprocess.mean.flatten().tolist(),
            "std": module.preprocess.std.flatten().tolist(),
        },
        "threshold": float(clf.threshold_),
        "heatmap": clf._heat_model.kind,
        "second_look": None if module.second_size is None else list(module.second_size),
        "boxes": {
            "threshold": float(clf.box_threshold),
            "min_area": int(clf.min_area),
            "max_boxes": None if clf.max_boxes is None else int(clf.max_boxes),
            "merge_distance": None if merge_distance is None else str(float(merge_distance)),
            "peak_fraction": float(clf.box_peak_fraction),
            "tighten": bool(clf.tighten_boxes),
            "point_spread": float(clf._heat_model.point_spread),
        },
        "backbone": clf._fitted_backbone,
        "weights": {
            "source": clf.weights_source_,
            "licence": weights_licence(clf._fitted_backbone, clf.weights_source_),
        },
        "n_training_images": int(clf.n_images_seen_),
        "fingerprint": _fingerprint(module),
    }


def _fingerprint(module: DeployedNetwork) -> str:
    """Hash all that decides an answer: equal models have equal fingerprints."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.network.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().numpy()).tobytes())
    rules = (module.heat_model, module.decision, module.preprocess, module.second_size)
    digest.update(repr(rules).encode())
    return digest.hexdigest()


# --- What is refused --------------------------------------------------------------------------


def _check_exportable(clf: Any) -> None:
    if not isinstance(clf, DefectCAMClassifier):
        steps = [type(step).__name__ for _, step in getattr(clf, "steps", [])[:-1]]
        hint = (
            f" Its steps {', '.join(steps)} run before the graph: export the last one, "
            "`pipeline[-1]`, and give `Inspector` what the steps make of the images."
            if steps
            else ""
        )
        raise ExportError(
            f"a {type(clf).__name__} cannot be exported, only a DefectCAMClassifier.{hint}"
        )
    check_is_fitted(clf, "network_")
    if clf.tile_ is not None:
        raise ExportError(
            f"a classifier that was fitted with tiles of {clf.tile_} pixels cannot be exported: "
            "the graph sees a whole image at once, and its scores would not be those that "
            "thresholds and probabilities were learned for. Use the classifier itself, or fit one "
            "without tile."
        )


def check_suffix(target: Path, *, is_int8: bool) -> None:
    """Refuse a file's name that does not say what to write, or says what int8 cannot be."""
    if _suffix(target) not in SUFFIXES:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in SUFFIXES.items())
        raise ValueError(f"{target}: the suffix must say what to write: {known}.")
    if _suffix(target) == ".pt2" and is_int8:
        raise ValueError(f"{target}: int8 is written to .onnx and .xml alone.")


def check_packages(target: Path, *, is_int8: bool) -> None:
    """Refuse to write a file for which a package is missing, by an `ImportError`."""
    needed = {".onnx": ("onnx", "onnxscript"), ".xml": ("onnx", "onnxscript", "openvino")}
    extra = "openvino" if _suffix(target) == ".xml" else "onnx"
    for package in needed.get(_suffix(target), ()):
        _import(package, f"{target}", extra)
    if is_int8:
        _import("onnxruntime", "int8", extra)


def _check_target(target: Path, overwrite: bool, is_int8: bool) -> None:
    check_suffix(target, is_int8=is_int8)
    for file in [target, *([target.with_suffix(".bin")] if _suffix(target) == ".xml" else [])]:
        check_target(file, overwrite)
    check_packages(target, is_int8=is_int8)


def _check_torch(target: Path) -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST_TORCH:
        raise ExportError(
            f"{target}: {SUFFIXES[_suffix(target)]} is written by torch {LEAST_TORCH[0]}."
            f"{LEAST_TORCH[1]} and later, this is {torch.__version__}: "
            "pip install --upgrade torch torchvision."
        )


def _import(package: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = _MISSING.format(what=what, package=package, extra=extra)
        raise ImportError(message) from error


@contextlib.contextmanager
def _named_failure(clf: DefectCAMClassifier) -> Iterator[None]:
    try:
        yield
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ExportError(
            f"the network with backbone={clf._fitted_backbone!r} cannot be written as a graph of "
            f"ONNX opset {OPSET} ({error}). efficientnet_lite0, resnet18 and vgg16 can."
        ) from error


def _measured(clf: DefectCAMClassifier, X: Any, y: Any) -> Labelled:
    """List the images that the loss is measured on, with their labels if they have any."""
    measured = labelled_images(clf, X, y, needed=False)
    if measured.types is None and is_path(X):
        parts = (Path(path).relative_to(X).parts for path in measured.items)
        folders = sorted({first for first, *below in parts if below})
        if folders:  # else a limit that was asked for would silently hold nothing
            warn_caller(
                f"The loss of ROC AUC is not measured: no folder in {os.fspath(X)!r} "
                f"({', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''}) has the name of "
                "good parts."
            )
    return measured


# --- Graphs -----------------------------------------------------------------------------------


def _traced(module: DeployedNetwork) -> torch.export.ExportedProgram:
    """Follow the module once, for any number of images of any size."""
    n, height, width = (torch.export.Dim(name, max=_MAX_SIDE) for name in ("n", "height", "width"))
    shapes: dict[str, Any] = {"pixels": {0: n, 1: height, 2: width}}
    inputs: tuple[torch.Tensor, ...] = (torch.zeros(2, *_TRACED_SIZE, 3, dtype=torch.uint8),)
    if module.takes_original_size:
        shapes["original_size"] = {}
        inputs += (torch.zeros(2, dtype=torch.int64),)
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def _as_pt2(program: torch.export.ExportedProgram, description: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_KEY: json.dumps(description)})
    return buffer.getvalue()


def _outputs_of(module: DeployedNetwork) -> list[str]:
    """Names of the answers, in order."""
    types = ["type_grids"] if len(module.decision.defects) > 1 else []
    return [*_OUTPUTS, *types, *(["second_grid"] if module.second_size is not None else [])]


def _as_onnx(
    program: torch.export.ExportedProgram, description: dict[str, Any], outputs: list[str]
) -> Any:
    """Translate to a checked ONNX model with names and metadata."""
    import onnx

    with _hushed():
        translated = torch.onnx.export(program, opset_version=OPSET, dynamo=True, verbose=False)
    assert translated is not None
    model = translated.model_proto
    _name_outputs(model, outputs)
    model.producer_name, model.producer_version = "defectcam", description["versions"]["defectcam"]
    model.doc_string = "RGB pixels (n, H, W, 3), uint8, to the probability and place of a defect."
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(description)})
    onnx.checker.check_model(model, full_check=True)  # with strict shape inference
    return model


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the exporter's remarks on its own progress from the user's terminal."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_outputs(model: Any, outputs: list[str]) -> None:
    """Call outputs and axes what they are."""
    graph = model.graph
    new = {output.name: name for output, name in zip(graph.output, outputs, strict=True)}
    for node in graph.node:
        node.output[:] = [new.get(name, name) for name in node.output]
        node.input[:] = [new.get(name, name) for name in node.input]
    for value in [*graph.output, *graph.value_info]:
        value.name = new.get(value.name, value.name)
    shape = graph.input[0].type.tensor_type.shape.dim
    axes = dict(zip((axis.dim_param for axis in shape[:3]), ("n", "H", "W"), strict=True))
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in axes:
                axis.dim_param = axes[axis.dim_param]


def _with_default_size(model: Any) -> Any:
    """Let `original_size` be left out: zeros stand for the size of the pixels."""
    import onnx

    names = [value.name for value in model.graph.input]
    if "original_size" in names:
        zeros = onnx.numpy_helper.from_array(np.zeros(2, dtype=np.int64), "original_size")
        model.graph.initializer.append(zeros)
    return model


def _without_default_size(model: Any) -> Any:
    kept = [value for value in model.graph.initializer if value.name != "original_size"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


# --- OpenVINO ---------------------------------------------------------------------------------


def _write_openvino(target: Path, model: Any, description: dict[str, Any]) -> None:
    """Convert, and write both files under their names once both are complete."""
    import openvino

    with temporary_folder(target) as folder:
        source = folder / "model.onnx"
        source.write_bytes(model.SerializeToString())
        converted = openvino.Core().read_model(source)
        converted.set_rt_info(json.dumps(description), METADATA_KEY)
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
        del converted
        target.unlink(missing_ok=True)  # a kill never leaves a graph beside another one's weights
        os.replace(folder / "model.bin", target.with_suffix(".bin"))
        os.replace(folder / "model.xml", target)


# --- int8 -------------------------------------------------------------------------------------


#: Channels of the images.
_N_COLOURS = 3

#: What is computed in int8, and what else passes on what a convolution has made.
_QUANTISED = ("Conv", "Relu", "Clip", "Add", "MaxPool")
_PASSING = (
    *_QUANTISED,
    *("Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul"),  # other activations
    *("AveragePool", "GlobalAveragePool", "ReduceMean"),
)


def _quantised(model: Any, images: list[Any], clf: DefectCAMClassifier, is_padded: bool) -> Any:
    """Quantise backbone and codebook, activations by the ranges that the images show."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    description = {entry.key: entry.value for entry in model.metadata_props}
    product = _codebook_product(model.graph)
    nodes = [*_of_backbone(model.graph), *(node.name for node in product)]
    # OpenVINO computes products in int8 only where 0 is 0.
    symmetric = [{"quant_type": QuantType.QInt8, "symmetric": True}]
    with tempfile.TemporaryDirectory() as folder, _hushed():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        quantize_static(
            source,
            target,
            _Calibration(images, clf.image_size_, is_padded),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_QUANTISED, "MatMul"],
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "TensorQuantOverrides": {node.input[0]: symmetric for node in product},
            },
        )
        quantised = onnx.load(target)
        onnx.helper.set_model_props(quantised, description)
        target.write_bytes(quantised.SerializeToString())
        moved = _log_odds(target, images) - _log_odds(source, images)
    if np.isfinite(moved).any():
        _shift_intercept(quantised, -float(np.nanmedian(moved)))
    onnx.checker.check_model(quantised)
    return quantised


def _of_backbone(graph: Any) -> list[str]:
    """Names of the nodes that are computed in int8.

    Not among them are the first convolution of each look, whose three channels are slower in int8,
    and the heads, which take little time, and decide.
    """
    weights = {value.name: tuple(value.dims) for value in graph.initializer}
    made: set[str] = set()  # by the backbone
    names = []
    for node in graph.node:
        if node.op_type not in _PASSING or (
            node.op_type == "Conv" and node.input[1] not in weights
        ):
            continue
        inputs = [name for name in node.input if name and name not in weights]
        follows = bool(inputs) and made.issuperset(inputs)
        is_first = node.op_type == "Conv" and weights[node.input[1]][1] == _N_COLOURS
        if follows and not is_first and node.op_type in _QUANTISED:
            names.append(node.name)
        if follows or is_first:
            made.update(node.output)
    return names


def _codebook_product(graph: Any) -> list[Any]:
    """Return the nodes that multiply patches by centres, one in each look; none without novelty.

    Their factors are relative to the centres' middle, so rounding moves novelty by little. The
    lengths of patches and centres stay in float32.
    """
    weights = {value.name for value in graph.initializer}
    sums = {node.input[0] for node in graph.node if node.op_type == "ReduceMin"}
    sums |= {name for node in graph.node if node.output[0] in sums for name in node.input}
    products = (node for node in graph.node if node.op_type == "MatMul" and node.output[0] in sums)
    return [node for node in products if node.input[1] in weights]


def _log_odds(path: Path, images: list[Any]) -> NDArray[np.float64]:
    """Log-odds of a defect; NaN where rounding has made the probability 0 or 1, or nearly so."""
    probability = np.array([found.probability for found in Inspector(path).localize_iter(images)])
    is_open = (probability > 1e-6) & (probability < 1 - 1e-6)
    return logit(np.where(is_open, probability, np.nan))


def _shift_intercept(model: Any, by: float) -> None:
    """Move the log-odds of a defect.

    Rounding makes all patches a little less familiar, so novelty rises everywhere alike.
    """
    import onnx

    (intercept,) = (value for value in model.graph.initializer if value.name == "intercept")
    moved = onnx.numpy_helper.to_array(intercept) + np.float32(by)
    intercept.CopyFrom(onnx.numpy_helper.from_array(moved, "intercept"))


class _Calibration:
    """Gives the images to ONNX Runtime one by one, as its `CalibrationDataReader` does."""

    def __init__(self, images: list[Any], image_size: tuple[int, int], is_padded: bool) -> None:
        self._images = iter(images)
        self._image_size = image_size
        self._is_padded = is_padded

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next image's inputs; None after the last."""
        for image in self._images:
            pixels, size = read_reduced(image, self._image_size)
            return graph_inputs(pixels[np.newaxis], size if self._is_padded else None)
        return None


def _refuse_large(loss: Int8Loss, max_auroc_loss: float, max_probability_change: float) -> None:
    problem = None
    # Asked the other way round, a limit of NaN would allow everything.
    if loss.auroc_loss is not None and not loss.auroc_loss <= max_auroc_loss:
        problem = (
            f"the ROC AUC falls from {loss.auroc:.4f} to {loss.auroc_int8:.4f}, by more than "
            f"max_auroc_loss={max_auroc_loss}"
        )
    elif not loss.mean_change <= max_probability_change:
        problem = (
            f"the probability changes by {loss.mean_change:.4f} on average, more than "
            f"max_probability_change={max_probability_change}"
        )
    if problem:
        raise Int8LossError(
            f"int8 costs too much on {loss.n_images} images: {problem}. Nothing was written: "
            "export float32, calibrate with more varied training images, or raise the limit."
        )
