"""Writes a fitted classifier to one safetensors file and reads it back.

Owns the layout of the file: tensors, and JSON metadata for all the rest. A file is hostile until
proved otherwise: nothing in it is ever imported, unpickled or run, nothing is downloaded, and
sizes, names, types and values are checked before anything is made of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import safetensors
import safetensors.torch
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

import defectcam
from defectcam.backbones import count_parameters
from defectcam.calibration import DefectProbability
from defectcam.checkpoints import below, digest_of_tensors, numbered
from defectcam.classifier import DefectCAMClassifier
from defectcam.exceptions import DataError
from defectcam.files import check_target, write_atomically
from defectcam.fingerprint import Fingerprint
from defectcam.heat_model import HeatModel
from defectcam.images import IMAGE_SUFFIXES
from defectcam.isolation import undisturbed
from defectcam.labels import Classes
from defectcam.model_schema import MAX_HEADER, check_description, parse_json
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook
from defectcam.plain_labels import plain_label
from defectcam.preprocess import Preprocess
from defectcam.tile_model import TileModel
from defectcam.validation import check_device

__all__ = ["SCHEMA_VERSION", "ModelFileError", "load", "read_digest", "read_metadata", "save"]

#: Version of the layout; it grows when older releases could not read, or would misread, a file.
SCHEMA_VERSION = 1

_KEY = "defectcam"  # of the metadata, and the name of the format
_NETWORK = "network."  # tensors of the network's state dict
_FITTED = "fitted."  # arrays among the fitted attributes
_DRIFT = "drift_codebook."  # tensors of the folds' codebooks
_FITTED_ARRAYS = {
    "held_out_probability_": torch.float64,
    "suspects_": torch.int64,
    "drift_reference_": torch.float32,
}
_LATER_ARRAYS: dict[str, np.ndarray] = {  # what files of 0.1.0 lack, instead
    "suspects_": np.empty(0, dtype=np.int64),
    "drift_reference_": np.empty((0, 0), dtype=np.float32),
}
_FITTED_DIMENSIONS = {"drift_reference_": 2}  # the others have one
_DIGEST = "defectcam_digest"  # of all the rest, in the metadata
#: What reading wrong content leads to: IndexError and OverflowError are among the first two.
_WRONG_CONTENT = (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RuntimeError)
_EXPORTED = (".onnx", ".xml", ".pt2")  # as of `export`
_TABLES = (".csv", ".html", ".json", ".jsonl", ".parquet", ".toml")
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


#: Parameters of a network that may be made whatever the file holds, some 40 MB.
MANY_PARAMETERS = 10_000_000

#: Types of tensors, by their names in the files.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


class _Shape(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: none that a model has

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape {self.shape}"


class ModelFileError(DataError):
    """A file is not a classifier that this release can read."""


def save(clf: DefectCAMClassifier, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Write a fitted classifier into one safetensors file, whole or not at all.

    Parameters
    ----------
    clf : DefectCAMClassifier
        Fitted. Its callbacks, its memory, the images that `partial_fit` remembers, and a
        ``random_state`` that is not a number, are not saved.
    path : str or PathLike
        Usually ends with ``.safetensors``.
    overwrite : bool, default=True
        Whether an existing file may be replaced.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the classifier is not fitted.
    ValueError
        If a parameter or a fitted attribute that was set since the fit is wrong.
    FileExistsError
        If the file exists and `overwrite` is false.
    OSError
        If the file cannot be written. An old file stays as it was.
    """
    check_is_fitted(clf, "network_")
    target = check_target(path, overwrite)
    description = _describe(clf)
    clf._validate_params()  # a wrong one, set since the fit, makes a file that `load` refuses
    text = _as_checked_json(description)
    tensors = _tensors_of(clf)
    texts = {_KEY: text, _DIGEST: digest_of_tensors(text, tensors)}
    write_atomically(target, safetensors.torch.save(tensors, texts))


def load(path: str | os.PathLike[str], *, device: str | None = None) -> DefectCAMClassifier:
    """Read a classifier that `DefectCAMClassifier.save` has written.

    Parameters
    ----------
    path : str or PathLike
    device : str, optional
        Replaces the parameter ``device``. By default the saved one, or ``"auto"`` with a warning
        where this machine has no such device.

    Returns
    -------
    DefectCAMClassifier
        Fitted. On the same machine and versions it gives the same probabilities, bit for bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, not a classifier, or written by a later release.
    ValueError
        If this machine does not have the `device`.
    """
    if device is not None:
        check_device(device)
    with _opened(path) as file:
        description = _description_of(path, file)
        # Weights made in the caller's inference mode could have no gradients, now or later.
        with torch.inference_mode(False), _explained(path):
            clf = DefectCAMClassifier(**_known_parameters(description["parameters"]))
            clf.device = _device_here(clf.device) if device is None else device
            clf._validate_params()
            _restore(clf, description, file)
    return clf


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a file says about its classifier, without making the network.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    dict
        Plain data: ``versions``, ``parameters``, ``classes``, ``preprocessing``, ``threshold`` and
        more.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, not a classifier, or written by a later release.
    """
    with _opened(path) as file:
        return _description_of(path, file)


def read_digest(path: str | os.PathLike[str]) -> str:
    """Read what tells a file's classifier from any other.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    str
        32 hexadecimal digits, the same for each file that one classifier is saved to, although
        their bytes may be in another order. Of a file of 0.1.0, a hash of its bytes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, not a classifier, or written by a later release.
    """
    with _opened(path) as file:
        _description_of(path, file)
        digest = file.metadata().get(_DIGEST)
    if digest is None:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    return str(digest)


# --- Writing ----------------------------------------------------------------------------------


def _tensors_of(clf: DefectCAMClassifier) -> dict[str, Tensor]:
    network = {_NETWORK + name: tensor for name, tensor in clf.network_.state_dict().items()}
    fitted = {_FITTED + name: torch.as_tensor(getattr(clf, name)) for name in _FITTED_ARRAYS}
    codebooks = {
        f"{_DRIFT}{number}.{name}": tensor
        for number, codebook in enumerate(clf._drift_codebooks)
        for name, tensor in codebook.state_dict().items()
    }
    tensors = network | fitted | codebooks
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _as_checked_json(description: dict[str, Any]) -> str:
    """Write a description that `load` takes."""
    try:
        check_description(json.loads(json.dumps(description)))  # as it will be read
        return json.dumps(description, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"The classifier cannot be saved: {error}. Set again what was set since the fit."
        ) from error


def _describe(clf: DefectCAMClassifier) -> dict[str, Any]:
    """All but the tensors, as JSON."""
    preprocess, classes, data = clf._preprocess, clf._classes, clf.training_data_
    return {
        "format": _KEY,
        "schema_version": SCHEMA_VERSION,
        "versions": _versions(),
        "parameters": {name: _encode(value, name) for name, value in _parameters_of(clf).items()},
        "network": _network_parameters(clf),
        "built_with": {name: _encode(value, name) for name, value in clf._built_with.items()},
        "novelty_levels": clf.network_.novelty_levels,
        "weights_source": clf.weights_source_,
        "preprocessing": {
            "image_size": list(preprocess.image_size),
            "mean": preprocess.mean.flatten().tolist(),
            "std": preprocess.std.flatten().tolist(),
            "resize": preprocess.resize,
        },
        "classes": {
            "labels": classes.labels.tolist(),
            "dtype": classes.labels.dtype.str,
            "good": classes.good,
        },
        "threshold": float(clf.threshold_),
        "defect_probability": _encode(clf._defect_probability, "the probability of a defect"),
        "heat_model": _encode(clf._heat_model, "the heatmap's model"),
        "familiarity_limit": clf._familiarity_limit,
        "tile_model": _encode(clf._tile_model, "the model of tiles"),
        "interrupted": clf.interrupted_,
        "n_images_seen": clf.n_images_seen_,
        "n_rows_seen": clf._n_rows_seen,
        "training_data": data and data._asdict(),
        "history": {name: _encode(column, name) for name, column in clf.history_.items()},
    }


def _versions() -> dict[str, str]:
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"defectcam": defectcam.__version__, "python": platform.python_version(), **libraries}


def _parameters_of(clf: DefectCAMClassifier) -> dict[str, Any]:
    parameters = clf.get_params(deep=False)
    del parameters["callbacks"]  # code
    del parameters["memory"]  # a folder of this machine
    if not isinstance(parameters["random_state"], (int, np.integer)):
        parameters["random_state"] = None
    return parameters


def _network_parameters(clf: DefectCAMClassifier) -> dict[str, Any]:
    """Parameters that the network was made with: those of the classifier may be set since."""
    network = clf.network_
    return {
        "backbone": clf._fitted_backbone,
        "trainable_stages": network.trainable_stages,
        "evidence_stages": len(network.evidence_levels),
        "normalise_evidence": isinstance(network.head.norms[0], nn.BatchNorm2d),
        "precision": str(network.dtype).removeprefix("torch."),
        "pooling": network.head.pooling,
        "pooling_fraction": float(network.head.fraction),
        "heatmap": clf._heat_model.kind,
    }


def _encode(value: Any, what: str) -> Any:
    """Turn a value into what JSON can say; `_decode` is the way back."""
    value = plain_label(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON knows neither infinity nor NaN
    if isinstance(value, dict):  # JSON's keys are strings, labels need not be
        return {"items": [[_encode(key, what), _encode(v, what)] for key, v in value.items()]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _encode(v, what) for name, v in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple):  # JSON knows lists only
        return {"tuple": [_encode(v, what) for v in value]}
    if isinstance(value, list):
        return [_encode(v, what) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{what} holds a {type(value).__name__}, which cannot be saved: {value!r}.")


# --- Reading ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file, once for all that is read of it, after a look at its size."""
    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"{name!r} does not exist: give a file that `save` has written.")
    if not os.path.isfile(name):
        raise ModelFileError(f"{name!r} is no file: give a file that `save` has written.")
    with open(name, "rb") as start:
        n_header = int.from_bytes(start.read(8), "little")
    if MAX_HEADER < n_header <= os.path.getsize(name):
        raise ModelFileError(
            _other_kind(name)
            or f"{name!r} has a header of {n_header} bytes, more than any model's: it is no "
            "defectcam model."
        )
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ModelFileError(
            _other_kind(name)
            or f"{name!r} is no safetensors file, or a damaged one ({error}): copy it again, or "
            "save the model again."
        ) from error


def _other_kind(name: str) -> str | None:
    """Say of a file that is no model what else it is by its suffix, and what to give."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _EXPORTED:
        return (
            f"{name!r} is an exported model: `defectcam serve` or defectcam.runtime.Inspector runs "
            "it. Here, give the .safetensors file that it was made from."
        )
    if suffix in IMAGE_SUFFIXES or suffix in _TABLES:
        kind = "an image" if suffix in IMAGE_SUFFIXES else f"a {suffix} file"
        return f"{name!r} is no model file, but {kind}: give the file that `save` or `fit` wrote."
    return None


def _description_of(path: str | os.PathLike[str], file: Any) -> dict[str, Any]:
    """Read and check the JSON part."""
    name = os.fspath(path)
    texts = file.metadata() or {}
    if _KEY not in texts:
        raise ModelFileError(
            f"{name!r} holds no defectcam model, only tensors: weights alone go into "
            "DefectCAMClassifier(weights=...)."
        )
    with _explained(path):
        description = parse_json(texts[_KEY])
        written = description["schema_version"]
        release = description["versions"]["defectcam"]
    if isinstance(written, int) and written > SCHEMA_VERSION:
        raise ModelFileError(
            f"{name!r} was written by defectcam {release} in version {written} of the layout. This "
            f"is defectcam {defectcam.__version__}, which reads up to version {SCHEMA_VERSION}: "
            f"install defectcam>={release}."
        )
    with _explained(path):
        check_description(description)
    return description


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of which file it is that something in it does not fit."""
    name = os.fspath(path)
    try:
        yield
    except KeyError as error:
        raise ModelFileError(f"{name!r} is incomplete: it has no entry {error}.") from error
    except ModelFileError:
        raise
    except _WRONG_CONTENT as error:
        raise ModelFileError(f"{name!r} cannot be restored: {error}") from error


def _known_parameters(encoded: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(encoded) - set(DefectCAMClassifier._get_param_names()))
    if unknown:
        raise ValueError(f"this release does not know the parameters {', '.join(unknown)}.")
    return {name: _decode(Any, value) for name, value in encoded.items()}


def _device_here(saved: str) -> str:
    try:
        check_device(saved)
    except ValueError:
        warnings.warn(
            f"The model was saved with device={saved!r}, which cannot be used on this machine: now "
            "'auto'.",
            stacklevel=3,
        )
        return "auto"
    return saved


def _restore(clf: DefectCAMClassifier, description: dict[str, Any], file: Any) -> None:
    """Set the fitted attributes."""
    classes = _restore_classes(description["classes"])
    shapes = _shapes_of(file)
    _refuse_larger_network(description["network"]["backbone"], classes, shapes)
    network = _make_network(clf, description, classes, shapes)
    tensors = _read_tensors(file, shapes, network)
    _refuse_damage(file, tensors)
    network.load_state_dict(below(_NETWORK, tensors))
    if description["weights_source"] is not None:
        network.keep_depthwise_kernels()
    network.eval()
    preprocess = Preprocess(**description["preprocessing"])
    clf._set_network(network, preprocess.to(next(network.parameters()).device), classes)
    built_with = _known_parameters(description.get("built_with", {}))
    clf._built_with = {**clf._built_with, **built_with, **description["network"]}
    for name in _FITTED_ARRAYS:
        if name in _LATER_ARRAYS and _FITTED + name not in tensors:
            setattr(clf, name, _LATER_ARRAYS[name].copy())
        else:
            setattr(clf, name, tensors[_FITTED + name].numpy().copy())
    clf._drift_codebooks = _restore_drift_codebooks(tensors, next(network.parameters()).device)
    # Files of 0.1.0 lack it, when there was no other call than one `fit`.
    clf.n_images_seen_ = int(description.get("n_images_seen", len(clf.held_out_probability_)))
    clf._n_rows_seen = description.get("n_rows_seen")
    clf.interrupted_ = description.get("interrupted")
    data = description.get("training_data")
    clf.training_data_ = None if data is None else Fingerprint(data["digest"], data["labels"])
    clf.weights_source_ = description["weights_source"]
    clf.threshold_ = float(description["threshold"])
    clf.history_ = {name: _decode(Any, value) for name, value in description["history"].items()}
    clf._defect_probability = _decode(DefectProbability, description["defect_probability"])
    clf._heat_model = _decode(HeatModel, description["heat_model"])
    clf._familiarity_limit = description.get("familiarity_limit")
    clf._tile_model = _decode(TileModel | None, description.get("tile_model"))
    _refuse_misfits(clf, description)


def _restore_classes(encoded: dict[str, Any]) -> Classes:
    dtype, good = np.dtype(encoded["dtype"]), encoded["good"]
    labels = np.array(encoded["labels"], dtype=dtype)
    if good >= len(labels):
        raise ValueError(f"classes of dtype {dtype}, {labels.tolist()}, good one {good}.")
    return Classes(labels, int(good))


def _shapes_of(file: Any) -> dict[str, _Shape]:
    """Shapes and types of a file's tensors, from its header alone."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
    return {
        name: _Shape(tuple(part.get_shape()), _DTYPES.get(part.get_dtype()))
        for name, part in slices.items()
    }


def _refuse_larger_network(backbone: str, classes: Classes, shapes: dict[str, _Shape]) -> None:
    """Refuse to make a network that is far larger than what the file holds."""
    n_classes = shapes[_NETWORK + "head.bias"].shape
    if n_classes != (len(classes.labels),):
        raise ValueError(f"head.bias has shape {n_classes}, for {len(classes.labels)} classes")
    n_held = sum(math.prod(shape.shape) for shape in shapes.values())
    n_needed = count_parameters(backbone)
    # Batch normalisations that were folded are gone from the file; they are a small part.
    if n_needed > 2 * n_held + MANY_PARAMETERS:
        raise ValueError(
            f"it names the backbone {backbone!r} of {n_needed} parameters, but holds {n_held}"
        )


def _make_network(
    clf: DefectCAMClassifier,
    description: dict[str, Any],
    classes: Classes,
    shapes: dict[str, _Shape],
) -> DefectCAMNetwork:
    """Make the network that the file describes, with random weights."""
    state = below(_NETWORK, shapes)
    builder = DefectCAMClassifier(**clf.get_params(deep=False))
    built_with = _known_parameters(description.get("built_with", {}))
    if "novelty_strides" in built_with:
        builder.novelty_strides = built_with["novelty_strides"]
    # 0.1.0, whose files name no precision, knew float32 alone.
    builder.set_params(**{"precision": "float32", **description["network"]}, weights=None)
    builder._validate_params()
    if builder.precision != "float32":
        builder.precision = clf.precision  # this machine may lack what the other one had
    # The first weights, which the file's replace, are random: drawn where nobody notices.
    with undisturbed():
        network, _ = builder._build_network(len(classes.labels), classes.good)
    network.novelty_levels = [range(len(network.trunk))[i] for i in description["novelty_levels"]]
    if "codebook.centres" in state:
        n_centres, n_channels = state["codebook.centres"].shape
        device = next(network.parameters()).device
        network.codebook = Codebook(n_channels, n_centres).to(device)
    if any(name.startswith("students.") for name in state):
        # Files of models that train whole stages are older than students that read patches.
        n_read = state["students.0.weight"].shape[0]
        network.students_read_patches &= n_read == sum(
            network.student_channels[: network.student_depths[0]]
        )
        network.add_untrained_students()
    return network


def _read_tensors(
    file: Any, shapes: dict[str, _Shape], network: DefectCAMNetwork
) -> dict[str, Tensor]:
    """Read the tensors, once names, shapes and types are what this network has."""
    expected = {
        _NETWORK + name: _Shape(tuple(tensor.shape), tensor.dtype)
        for name, tensor in network.state_dict().items()
    }
    expected |= _expected_drift_codebooks(shapes, network)
    fitted = {_FITTED + name: dtype for name, dtype in _FITTED_ARRAYS.items()}
    known = expected.keys() | fitted.keys()
    required = known - {_FITTED + name for name in _LATER_ARRAYS}
    for names, what in ((required - shapes.keys(), "lacks"), (shapes.keys() - known, "also holds")):
        if names:
            raise ValueError(f"it {what} the tensors {', '.join(sorted(names)[:5])}")
    for name, found in shapes.items():
        n_dimensions = _FITTED_DIMENSIONS.get(name.removeprefix(_FITTED), 1)
        any_shape = (*found.shape, 0, 0)[:n_dimensions]
        wanted = expected.get(name, _Shape(any_shape, fitted.get(name)))
        if found.shape != wanted.shape or not _is_same_kind(found.dtype, wanted.dtype):
            raise ValueError(f"its tensor {name} is {found}, expected {wanted}")
    tensors = {name: file.get_tensor(name) for name in shapes}
    for name, tensor in tensors.items():
        if name in expected and not tensor.isfinite().all():
            raise ValueError(f"its tensor {name} holds NaN or infinity")
    return tensors


def _expected_drift_codebooks(
    shapes: dict[str, _Shape], network: DefectCAMNetwork
) -> dict[str, _Shape]:
    """Say what the folds' codebooks have to be: as the network's, with any number of centres."""
    if network.codebook is None:
        return {}
    numbers = {name.removeprefix(_DRIFT).partition(".")[0] for name in shapes if _DRIFT in name}
    expected = {}
    for number in filter(str.isdecimal, numbers):
        for own, tensor in network.codebook.state_dict().items():
            name = f"{_DRIFT}{number}.{own}"
            shape = tuple(tensor.shape)
            if own == "centres" and name in shapes:
                shape = (*shapes[name].shape[:1], *shape[1:])
            expected[name] = _Shape(shape, tensor.dtype)
    return expected


def _is_same_kind(found: torch.dtype | None, wanted: torch.dtype | None) -> bool:
    """Whether a tensor may be copied: a trunk in bfloat16 is kept in float32 on some machines."""
    both = (torch.float32, torch.bfloat16)
    return found is not None and (found == wanted or (found in both and wanted in both))


def _refuse_damage(file: Any, tensors: dict[str, Tensor]) -> None:
    """Compare with the digest, which files of 0.1.0 lack."""
    texts = file.metadata()
    if _DIGEST in texts and texts[_DIGEST] != digest_of_tensors(texts[_KEY], tensors):
        raise ValueError("its content is not what was written: copy it again, or save it again")


def _refuse_misfits(clf: DefectCAMClassifier, description: dict[str, Any]) -> None:
    """Refuse numbers beside the network that do not belong to it."""
    network, heat = clf.network_, clf._heat_model
    scales = [heat.cam_scale, heat.novelty_scale, heat.fused_scale]
    scales += [*heat.level_scales, *heat.student_scales]
    numbers = [n for scale in scales for n in scale] + [heat.novelty_share, heat.point_spread]
    numbers += [*clf._defect_probability.coefficients, clf._defect_probability.intercept]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError("its heat_model or defect_probability holds what is no number")
    n_scores = 2 if heat.kind == "fused" and network.codebook is not None else 1
    n_levels, n_students = len(network.evidence_levels), len(network.students)
    fits = {
        "heat_model.kind": heat.kind == description["network"]["heatmap"],
        "heat_model.good": heat.good == clf._classes.good,
        "heat_model.input_size": tuple(heat.input_size) == clf.image_size_,
        "heat_model.level_scales": len(heat.level_scales) in (0, n_levels),
        "heat_model.student_scales": len(heat.student_scales) in (0, n_students),
        "defect_probability": len(clf._defect_probability.coefficients) == n_scores,
    }
    wrong = [name for name, is_right in fits.items() if not is_right]
    if wrong:
        raise ValueError(f"its {wrong[0]} does not fit its network")


def _restore_drift_codebooks(tensors: dict[str, Tensor], device: torch.device) -> list[Codebook]:
    """Make the folds' codebooks again; files of 0.1.0 have none."""
    codebooks = []
    for _, state in sorted(numbered(below(_DRIFT, tensors)).items()):
        n_centres, n_channels = state["centres"].shape
        codebook = Codebook(n_channels, n_centres)
        codebook.load_state_dict(state)
        codebooks.append(codebook.to(device))
    return codebooks


def _decode(kind: Any, value: Any) -> Any:
    """Undo `_encode`, where `kind` is the type to make or `Any`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # X | None
        if value is None:
            return None
        return _decode(next(option for option in arguments if option is not NoneType), value)
    if isinstance(kind, type) and hasattr(kind, "_fields") and isinstance(value, dict):
        hints = get_type_hints(kind)
        return kind(**{name: _decode(hints.get(name, Any), v) for name, v in value.items()})
    if isinstance(value, list):
        return [_decode(arguments[0] if arguments else Any, v) for v in value]
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_decode(kind, value["tuple"]))
    if isinstance(value, dict) and "items" in value:
        return {_decode(Any, key): _decode(Any, v) for key, v in value["items"]}
    if isinstance(value, dict) and "float" in value:
        return float(value["float"])
    return value
