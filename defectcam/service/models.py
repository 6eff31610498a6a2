"""The models behind the service: which file answers to which name, and its successor.

Owns loading by suffix and the change from a file to its new version while requests go on. It knows
nothing of HTTP.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from defectcam.results import Localization

__all__ = ["Model", "ModelStore", "ServedModel", "load_model"]

_LOG = logging.getLogger("defectcam.service")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEFAULT_BATCH_SIZE = 8  # of models that name none
_TRIAL_SIDE = 32  # pixels of the image that a new model is tried on

Signature = tuple[int, ...]


class Model(Protocol):
    """What can be served."""

    def localize(self, X: Any, /) -> Any:
        """Return a list of `Localization` for a list of images."""


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    batch_size: int | None = None,
    n_jobs: int | None = None,
) -> Model:
    """Load a model; the suffix says of which kind.

    Parameters
    ----------
    path : str or PathLike
        ``.onnx`` or ``.xml``: an exported model, run without torch. Any other: what
        `DefectCAMClassifier.save` has written.
    device : str, optional
        Of a classifier, in place of its own. Of no effect on an exported model.
    batch_size : int, optional
        Of a classifier, the most images of a forward pass, in place of its own.
    n_jobs : int, optional
        Threads that read images, in place of the model's own.

    Returns
    -------
    DefectCAMClassifier or Inspector

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError, ExportedModelError
        If the file is not a model of this kind.
    ImportError
        If what an exported model needs is not installed.
    ValueError
        If this machine does not have the `device`.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no model file {os.fspath(path)!r}: check the path.")
    if Path(path).suffix.lower() in (".onnx", ".xml"):
        from defectcam.runtime import Inspector

        return Inspector(path, n_jobs=n_jobs)
    from defectcam.persistence import load

    clf = load(path, device=device)
    given = {"batch_size": batch_size, "n_jobs": n_jobs}
    clf.set_params(verbose=0, **{k: value for k, value in given.items() if value is not None})
    return clf


@dataclass(eq=False)
class ServedModel:
    """One name, the file behind it and the model that answers now.

    Attributes
    ----------
    name : str
    path : Path
    model : Model
        Replaced as a whole; a batch that has begun keeps the one that it began with.
    loaded_at : float
        Seconds since the epoch.
    n_reloads : int
    reload_error : str or None
        Why the file's present version is not the one that answers.
    """

    name: str
    path: Path
    model: Model
    signature: Signature
    loaded_at: float = field(default_factory=time.time)
    n_reloads: int = 0
    reload_error: str | None = None
    _seen: Signature | None = field(default=None, init=False)
    _refused: Signature | None = field(default=None, init=False)

    @property
    def batch_size(self) -> int:
        """The most images that the model takes in one forward pass."""
        return int(getattr(self.model, "batch_size", _DEFAULT_BATCH_SIZE))

    def has_new_file(self) -> bool:
        """Whether the file has changed and, since the last look, not changed again.

        A file that is being copied grows between two looks, and is left to be finished.
        """
        try:
            signature = _signature(self.path)
        except OSError:  # between the removal of the old and the arrival of the new
            self._seen = None
            return False
        is_settled = signature == self._seen
        self._seen = signature
        if is_settled and signature == self.signature:
            self._refused = self.reload_error = None  # the one that answers is back in its place
        return is_settled and signature not in (self.signature, self._refused)

    def reload(self, load: Callable[[Path], Model]) -> bool:
        """Load the file's new version beside the old one, try it, and let it take over.

        Returns
        -------
        bool
            Whether it did. If not, the old one goes on answering and `reload_error` says why.
        """
        signature = self._seen if self._seen is not None else _signature(self.path)
        try:
            model = load(self.path)
            _try(model)
        except Exception as error:  # whatever a broken file leads to, the service goes on
            self._refused = signature
            self.reload_error = f"{type(error).__name__}: {error}"
            _LOG.error("model %s: the new %s is not used: %s", self.name, self.path, error)
            return False
        self.model = model
        self.signature = signature
        self.loaded_at = time.time()
        self.n_reloads += 1
        self.reload_error = None
        _LOG.info("model %s: %s has changed, its new version answers now", self.name, self.path)
        return True


class ModelStore(Mapping[str, ServedModel]):
    """The served models by name, the default one first.

    Parameters
    ----------
    paths : mapping of str to path
        Names and files; the first is the default.
    load : callable
        Takes a path and returns the model.
    on_reload : callable, optional
        Told the name, and whether the new version took over.

    Raises
    ------
    ValueError
        If there is no model, or a name cannot stand in an address.
    """

    def __init__(
        self,
        paths: Mapping[str, str | os.PathLike[str]],
        load: Callable[[Path], Model],
        on_reload: Callable[[str, bool], None] = lambda name, done: None,
    ) -> None:
        if not paths:
            raise ValueError("paths must name at least one model.")
        for name in paths:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the model name {name!r} cannot stand in an address: use letters, digits, "
                    "'.', '_' and '-', as in NAME=MODEL."
                )
        self._load = load
        self._on_reload = on_reload
        self._models = {name: self._served(name, Path(path)) for name, path in paths.items()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def default(self) -> ServedModel:
        """The first model."""
        return next(iter(self._models.values()))

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def reload_changed(self) -> None:
        """Look at each file once; load those that have changed and settled."""
        for served in self._models.values():
            if served.has_new_file():
                self._on_reload(served.name, served.reload(self._load))

    def watch(self, interval: float) -> None:
        """Call `reload_changed` every `interval` seconds in a thread, until `close`."""
        self._stop.clear()

        def look() -> None:
            while not self._stop.wait(interval):
                self.reload_changed()

        self._thread = threading.Thread(target=look, name="defectcam-reload", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _served(self, name: str, path: Path) -> ServedModel:
        try:
            signature = _signature(path)
        except FileNotFoundError:
            signature = ()  # `load` complains
        return ServedModel(name, path, self._load(path), signature)


def localize_batch(model: Model, paths: Sequence[Path]) -> Sequence[Localization | Exception]:
    """Localise a batch; an image that cannot be used spoils no other one's answer."""
    try:
        return list(model.localize(list(paths)))
    except Exception as error:  # of one image, most likely: ask for each alone
        if len(paths) == 1:
            return [error]
    return [outcome for path in paths for outcome in localize_batch(model, [path])]


def _try(model: Model) -> None:
    grey = np.full((_TRIAL_SIDE, _TRIAL_SIDE, 3), 128, dtype=np.uint8)
    model.localize([grey])[0].to_dict()


def _signature(path: Path) -> Signature:
    """Tell versions of a model's file apart; of OpenVINO's two files, either makes a new one."""
    files = [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]
    stats = [file.stat() for file in files]
    return tuple(n for stat in stats for n in (stat.st_mtime_ns, stat.st_size, stat.st_ino))
