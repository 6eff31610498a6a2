"""Runs exported models: the same answers as `DefectCAMClassifier.localize`, without PyTorch.

Owns the way from an exported file to `Localization` results. It needs NumPy, OpenCV, Pillow and
ONNX Runtime (or OpenVINO) and imports neither torch nor scikit-learn or SciPy; it trains nothing,
writes no file, and what is in the graph is `export`'s matter.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from defectcam.exceptions import DataError
from defectcam.geometry import Geometry
from defectcam.images import read_reduced_images
from defectcam.results import Localization
from defectcam.second_look import join_looks
from defectcam.sources import as_sources, is_stream
from defectcam.threads import count_threads, ordered_map
from defectcam.views import original_of, placed

__all__ = ["METADATA_KEY", "SCHEMA_VERSION", "ExportedModelError", "Inspector"]

#: Under which a file keeps its description, as JSON.
METADATA_KEY = "defectcam"

#: Version of the description and of the graph's outputs; it grows when older releases would misread
#: a file.
SCHEMA_VERSION = 1

_PRECISIONS = ("float32", "bfloat16")
_ANSWERS = ("probability", "class_probability", "unfamiliar", "grid")


class ExportedModelError(DataError):
    """A file is not an exported model that this release can run."""


class Engine(Protocol):
    """What runs a graph, called from several threads at once."""

    description: str | None  # JSON, None where the file has none

    def run(
        self,
        names: Sequence[str],
        pixels: NDArray[np.uint8],
        original_size: tuple[int, int] | None,
    ) -> list[NDArray[Any]]:
        """Compute these outputs for pixels of shape ``(n, H, W, 3)``."""

    def of_many(self, n_threads: int) -> Engine:
        """Run the same graph, whatever the file holds by now, with a thread for each image."""


class Inspector:
    """An exported model: a file in, `Localization` results out.

    Parameters
    ----------
    path : str or PathLike
        What `DefectCAMClassifier.export` has written: ``.onnx``, which runs on ONNX Runtime, or
        ``.xml`` with its ``.bin`` beside it, on OpenVINO.
    precision : {"float32", "bfloat16"}, default="float32"
        What convolutions compute in. ``"bfloat16"`` is for OpenVINO alone: faster on processors
        that have instructions for it, and less exact.
    n_threads : int or None, default=None
        Threads of the engine; None: one per processor, at most 8; -1: one per processor. They share
        the work on a single image; of many images, each thread is at one of its own.
    n_jobs : int or None, default=None
        Threads that read images; None: one per processor, at most 8.

    Attributes
    ----------
    classes_ : list of labels
        As the classifier's.
    good_label_ : label
    defect_labels_ : list of labels
    threshold_ : float
        Probability of a defect at and above which an image is called defective.
    image_size_ : (int, int)
        Height and width of the network's input.
    description : dict
        All that the file says about itself: versions, opset, box parameters, weights and their
        licence, fingerprint.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ExportedModelError
        If the file is damaged, no model of defectcam's, or written by a later release.
    ImportError
        If the engine for this kind of file is not installed.
    ValueError
        If the suffix or the precision is none of these, or there are no threads.

    See Also
    --------
    defectcam.DefectCAMClassifier.export : Write such a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        precision: str = "float32",
        n_threads: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        if precision not in _PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {_PRECISIONS}.")
        if n_threads == 0:
            raise ValueError("n_threads=0: give a number, -1 for one per processor, or None.")
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{os.fspath(path)!r} does not exist: give a file that `export` has written."
            )
        self.path = os.fspath(path)
        self.n_jobs = n_jobs
        self._n_threads = count_threads(n_threads)
        self._engine = self._open(file, precision)
        self.description = _read_description(self.path, self._engine.description)
        with _complaining_of(self.path):
            self._follow(self.description)

    def localize(self, X: Any) -> Localization | list[Localization]:
        """Say where the defects are, as `DefectCAMClassifier.localize` does.

        Parameters
        ----------
        X : path, array of shape (H, W[, C]), PIL.Image.Image, or many of them, or a folder

        Returns
        -------
        Localization or list of Localization
            One for one image, a list in order for many.

        Raises
        ------
        ImageReadError
            If an image cannot be read; it is named.
        """
        sources = as_sources(X)
        found = list(self._localized_items(sources.items))
        return found[0] if sources.single else found

    def localize_iter(self, X: Iterable[Any]) -> Iterator[Localization]:
        """Localise a stream of images, which need not fit in memory.

        Parameters
        ----------
        X : iterable of paths, arrays or Pillow images, or a folder, or a data set
            An iterable is taken lazily, a few images ahead.

        Yields
        ------
        Localization
            In order.
        """
        yield from self._localized_items(X if is_stream(X) else as_sources(X).items)

    def predict(self, X: Any) -> list[Any]:
        """Label each image.

        Parameters
        ----------
        X : as for `localize_iter`

        Returns
        -------
        list of labels
        """
        return [found.label for found in self.localize_iter(X)]

    def _follow(self, description: dict[str, Any]) -> None:
        """Set what the file says of itself."""
        classes = description["classes"]
        self.classes_: list[Any] = classes["labels"]
        self.good_label_ = self.classes_[classes["good"]]
        self._defects = [i for i in range(len(self.classes_)) if i != classes["good"]]
        self.defect_labels_ = [self.classes_[i] for i in self._defects]
        self.threshold_ = float(description["threshold"])
        height, width = description["preprocessing"]["image_size"]
        self.image_size_ = (int(height), int(width))
        self._is_padded = description["preprocessing"]["resize"] == "pad"
        boxes = dict(description["boxes"])
        if boxes["merge_distance"] is not None:
            boxes["merge_distance"] = float(boxes["merge_distance"])  # JSON knows no infinity
        self._box_options = boxes
        # Files of releases that looked once say nothing of it.
        self._looks_again = description.get("second_look") is not None

    @cached_property
    def _engine_of_many(self) -> Engine:
        """The engine for many images: whole images side by side, none waits for another's rest."""
        return self._engine if self._n_threads == 1 else self._engine.of_many(self._n_threads)

    def _open(self, file: Path, precision: str) -> Engine:
        if file.suffix.lower() == ".onnx":
            if precision != "float32":
                raise ValueError(
                    f"precision={precision!r}: ONNX Runtime computes in what the file holds; "
                    "export to .xml and install openvino for bfloat16."
                )
            return _OnnxRuntime(file, file.read_bytes(), self._n_threads)
        if file.suffix.lower() == ".xml":
            return _OpenVino(file, precision, self._n_threads)
        raise ValueError(f"{self.path!r}: expected a file that ends with .onnx or .xml.")

    def _localized_items(self, items: Iterable[Any]) -> Iterator[Localization]:
        if isinstance(items, Sized) and len(items) == 1:
            return self._localized(items, self._engine, n_at_once=1)
        return self._localized(items, self._engine_of_many, self._n_threads)

    def _localized(
        self, stream: Iterable[Any], engine: Engine, n_at_once: int
    ) -> Iterator[Localization]:
        items: deque[Any] = deque()

        def remembered() -> Iterator[Any]:
            for item in stream:
                items.append(item)
                yield item

        def judged(image: tuple[NDArray[np.uint8], tuple[int, int]]) -> tuple[Any, _Answers]:
            return image[1], self._answers(engine, *image)

        read = read_reduced_images(remembered(), self.image_size_, n_workers=self.n_jobs)
        for size, answers in ordered_map(judged, read, n_at_once):
            yield self._localization(items.popleft(), size, answers)

    def _answers(
        self, engine: Engine, pixels: NDArray[np.uint8], size: tuple[int, int]
    ) -> _Answers:
        names = [*_ANSWERS, *(["type_grids"] if len(self._defects) > 1 else [])]
        original_size = size if self._is_padded else None
        outputs = engine.run(names, pixels[np.newaxis], original_size)
        answers = _Answers(*(output[0] for output in outputs))
        if not self._looks_again or float(answers.probability) < self.threshold_:
            return answers
        (second,) = engine.run(["second_grid"], pixels[np.newaxis], original_size)
        joined = join_looks(answers.grid, second[0])
        return answers._replace(grid=joined, finer=joined.shape[0] / answers.grid.shape[0])

    def _localization(self, item: Any, size: tuple[int, int], answers: _Answers) -> Localization:
        make = Geometry.pad if self._is_padded else Geometry.stretch
        likeliest = int(np.argmax(answers.class_probability[self._defects]))
        defect_label = self.defect_labels_[likeliest]
        is_defect = float(answers.probability) >= self.threshold_
        has_types = answers.type_grids is not None
        return Localization(
            label=defect_label if is_defect else self.good_label_,
            probability=float(answers.probability),
            is_defect=is_defect,
            grid=answers.grid,
            geometry=placed(make(size, self.image_size_), item),
            decision_threshold=self.threshold_,
            source=original_of(item),
            good_label=self.good_label_,
            defect_label=defect_label,
            type_grids=answers.type_grids,
            defect_labels=self.defect_labels_ if has_types else None,
            unfamiliar=bool(answers.unfamiliar),
            **self._box_options
            | {"point_spread": answers.finer * self._box_options.get("point_spread", 0.0)},
        )


class _Answers(NamedTuple):
    """The graph's answers about one image."""

    probability: NDArray[np.float32]
    class_probability: NDArray[np.float32]
    unfamiliar: NDArray[np.bool_]
    grid: NDArray[np.float32]
    type_grids: NDArray[np.float32] | None = None
    finer: float = 1.0  # cells of the grid for each of the first look's, along an axis


def graph_inputs(
    pixels: NDArray[np.uint8], original_size: tuple[int, int] | None
) -> dict[str, NDArray[Any]]:
    """Name a graph's inputs: pixels of shape ``(n, H, W, 3)`` and, where it pads, their size."""
    inputs: dict[str, NDArray[Any]] = {"pixels": pixels}
    if original_size is not None:
        inputs["original_size"] = np.asarray(original_size, dtype=np.int64)
    return inputs


class _OnnxRuntime:
    """Runs a graph on ONNX Runtime."""

    def __init__(self, file: Path, content: bytes, n_threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"{file} needs ONNX Runtime: pip install onnxruntime (or 'defectcam[onnx]')."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3  # errors; what its optimiser would like is no user's concern
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes of errors have no common base
            raise ExportedModelError(
                f"{os.fspath(file)!r} cannot be run by ONNX Runtime {onnxruntime.__version__}: "
                f"{error}. Copy it again, or export the model again."
            ) from error
        self._file, self._content = file, content  # kept: by the next engine it may be replaced
        self._run_options = onnxruntime.RunOptions()
        # Else the map would be made at the image's size too, whatever is asked for.
        self._run_options.only_execute_path_to_fetches = True
        self.description = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def run(
        self,
        names: Sequence[str],
        pixels: NDArray[np.uint8],
        original_size: tuple[int, int] | None,
    ) -> list[NDArray[Any]]:
        inputs = graph_inputs(pixels, original_size)
        return self._session.run(list(names), inputs, self._run_options)

    def of_many(self, n_threads: int) -> Engine:
        return _OnnxRuntime(self._file, self._content, 1)  # a session is run by many threads


class _OpenVino:
    """Runs a graph on OpenVINO, images in as many threads at once as there are streams."""

    def __init__(self, file: Path, precision: str, n_threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                f"{file} needs OpenVINO: pip install openvino (or 'defectcam[openvino]')."
            ) from error
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": 1,
        }
        self._core = openvino.Core()
        # A file that is mapped and then written over would take the process down with it.
        self._core.set_property({"ENABLE_MMAP": False})
        try:
            self._model = self._core.read_model(os.fspath(file))
        except RuntimeError as error:
            raise ExportedModelError(
                f"{os.fspath(file)!r} cannot be read by OpenVINO: {error}. It needs the .bin of "
                "the same name beside it: copy both again, or export the model again."
            ) from error
        has_description = METADATA_KEY in self._model.get_rt_info()
        self.description = (
            str(self._model.get_rt_info(METADATA_KEY).value) if has_description else None
        )
        # For fixed shapes OpenVINO (2026.4) computes GatherND wrongly, and writes past its buffer.
        self._fixes_shapes = all(n.get_type_name() != "GatherND" for n in self._model.get_ops())
        self._compiled: dict[tuple[str, ...], dict[tuple[int, ...] | None, _Compiled]] = {}
        self._compiling = threading.Lock()

    def run(
        self,
        names: Sequence[str],
        pixels: NDArray[np.uint8],
        original_size: tuple[int, int] | None,
    ) -> list[NDArray[Any]]:
        inputs = graph_inputs(pixels, original_size)
        with self._compiled_for(tuple(names), pixels.shape).request() as request:
            request.infer(inputs, share_inputs=True)
            # Copied: the request's buffers are used again.
            return [request.get_tensor(name).data.copy() for name in names]

    def of_many(self, n_threads: int) -> Engine:
        many = copy.copy(self)
        many._options = {**self._options, "NUM_STREAMS": n_threads}
        many._compiled = {}
        return many

    def _compiled_for(self, names: tuple[str, ...], shape: tuple[int, ...]) -> _Compiled:
        """Compile for the first images' shape; should others come, once more for all shapes.

        A camera gives one size, and what depends on it is then computed once, not for each image.
        """
        with self._compiling:
            compiled = self._compiled.setdefault(names, {})
            if shape not in compiled:
                shape_or_any = None if compiled or not self._fixes_shapes else shape
                if shape_or_any not in compiled:
                    compiled[shape_or_any] = self._compile(names, shape_or_any)
            return compiled[shape if shape in compiled else None]

    def _compile(self, names: tuple[str, ...], shape: tuple[int, ...] | None) -> _Compiled:
        """Compile the graph for these outputs alone: OpenVINO computes all that there are."""
        model = self._model.clone()
        for result in model.get_results():
            if not set(names) & result.output(0).get_names():
                model.remove_result(result)
        if shape is not None:
            model.reshape({"pixels": list(shape)})
        return _Compiled(self._core.compile_model(model, "CPU", self._options))


class _Compiled:
    """A compiled OpenVINO model, and as many requests as threads have asked at once so far."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._idle: deque[Any] = deque()

    @contextlib.contextmanager
    def request(self) -> Iterator[Any]:
        """Lend a request, which one thread alone may use."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        yield request
        self._idle.append(request)  # not one that failed


@contextlib.contextmanager
def _complaining_of(name: str) -> Iterator[None]:
    """Say of which file it is that its description is not one of ours, or no longer."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        what = f"it has no entry {e}" if isinstance(e, KeyError) else str(e)
        raise ExportedModelError(
            f"{name!r} has a description that cannot be understood ({what}): it is no graph of "
            "defectcam's, or a damaged one. Give a file that `export` has written, or export again."
        ) from e


def _read_description(name: str, text: str | None) -> dict[str, Any]:
    if text is None:
        raise ExportedModelError(
            f"{name!r} is a graph, but none of defectcam's: give a file that `export` has written."
        )
    with _complaining_of(name):
        description: dict[str, Any] = json.loads(text)
        written = int(description["schema_version"])
        release = description["versions"]["defectcam"] if written > SCHEMA_VERSION else None
    if release is not None:
        raise ExportedModelError(
            f"{name!r} was written by defectcam {release} in version {written} of the layout, this "
            f"release reads up to version {SCHEMA_VERSION}: install defectcam>={release}."
        )
    return description
