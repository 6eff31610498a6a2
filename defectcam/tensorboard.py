"""Writes a training into TensorBoard's files while it runs.

Owns which curves, pictures and texts there are, and what they are called. It is a callback as any
other, and the only module that knows TensorBoard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sized
from typing import Any

from defectcam.callbacks import CURVES, Callback
from defectcam.images import is_path
from defectcam.large_images import check_readable_whole
from defectcam.sources import as_sources, paths_of

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Write curves of each fold, and overlays and settings of what came out.

    Look at them with ``tensorboard --logdir runs``. A second `fit` or `partial_fit` with the same
    folder adds to it; give each run a folder of its own to compare them.

    Parameters
    ----------
    log_dir : str or PathLike
        Folder of the run, made if need be.
    images : folder, or sequence of paths or arrays, optional
        Some images, a dozen say, whose overlays are written after each `fit` and `partial_fit`.

    Raises
    ------
    ImportError
        When a training begins, if TensorBoard is not installed: ``pip install
        'defectcam[tensorboard]'``.
    ImageReadError
        When a training begins, if one of the images cannot be read.
    OSError
        When a training begins, if no file can be written into the folder.

    Examples
    --------
    >>> from defectcam import DefectCAMClassifier
    >>> from defectcam.tensorboard import TensorBoard
    >>> clf = DefectCAMClassifier(callbacks=TensorBoard("runs/first"))
    """

    _writer: Any = None  # open while a training runs

    def __init__(self, log_dir: str | os.PathLike[str], images: Any = ()) -> None:
        self.log_dir = log_dir
        self.images = images

    def on_train_begin(self, classifier: Any) -> None:
        """Open the file, and write the parameters."""
        self._close()  # of a training that has failed
        _check_images(self.images)
        self._writer = _summary_writer()(os.fspath(self.log_dir))
        parameters = {name: repr(value) for name, value in classifier.get_params().items()}
        self._writer.add_text("parameters", _table(parameters))

    def on_epoch_end(self, classifier: Any, record: dict[str, Any]) -> None:
        """Add a point to each curve of the fold; fold 0 is the final network."""
        for name in CURVES:
            self._writer.add_scalar(f"{name}/fold-{record['fold']}", record[name], record["epoch"])
        self._writer.flush()  # somebody may be looking on

    def on_train_end(self, classifier: Any) -> None:
        """Write what the classifier is made of, and the overlays; close the file."""
        step = classifier.n_images_seen_
        self._writer.add_text("model", _table(classifier.info()), step)
        self._writer.add_scalar("threshold", classifier.threshold_, step)
        for number, found in enumerate(classifier.localize_iter(self.images)):
            self._writer.add_image(f"overlays/{number}", found.overlay(), step, dataformats="HWC")
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file out of copies, for which scikit-learn's `clone` asks."""
        return {name: value for name, value in vars(self).items() if name != "_writer"}

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _check_images(images: Any) -> None:
    """Refuse files that could not be read after the training; what is taken once is left alone."""
    if is_path(images) or (isinstance(images, Sized) and len(images)):
        check_readable_whole(paths_of(as_sources(images)))


def _table(values: dict[str, Any]) -> str:
    """Make a table in Markdown, which TensorBoard shows as one."""
    cells = {name: _cell(value) for name, value in values.items()}
    rows = "".join(f"| {name} | {cell} |\n" for name, cell in cells.items())
    return f"| | |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "The callback TensorBoard needs the package tensorboard: "
            "pip install 'defectcam[tensorboard]'."
        ) from error
    return SummaryWriter
