"""Callbacks: what is told of a training while it runs, and may end it.

Owns the hooks, who has them, and two callbacks for what no parameter does: a file after each
training, and a limit of time. (Progress bars are ``verbose=1``; ``early_stopping`` and
``stop_at_train_accuracy`` end a training by its loss and accuracy.) It trains nothing, and knows of
the package only how files are written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from defectcam.files import check_writable

__all__ = ["Callback", "Checkpoint", "TimeLimit"]

#: Methods that an object may have to be told.
HOOKS = ("on_train_begin", "on_epoch_end", "on_train_end")

#: What of an epoch's record, and so which columns of ``history_``, can be drawn as curves.
CURVES = ("loss", "train_accuracy", "seconds")


class Callback:
    """Base of callbacks, with hooks that do nothing. Objects with some of these methods do too.

    Examples
    --------
    >>> class Losses(Callback):
    ...     def on_train_begin(self, classifier):
    ...         self.losses = []
    ...
    ...     def on_epoch_end(self, classifier, record):
    ...         self.losses.append(record["loss"])
    """

    def on_train_begin(self, classifier: Any) -> None:
        """Take notice that a call has accepted its arguments; no image is decoded yet.

        Parameters
        ----------
        classifier : DefectCAMClassifier
            As it was before the call: not fitted in a first one.
        """

    def on_epoch_end(self, classifier: Any, record: dict[str, Any]) -> bool | None:
        """Take notice of a finished epoch of a fold.

        Parameters
        ----------
        classifier : DefectCAMClassifier
            As it was before the call.
        record : dict
            The row of ``history_``: fold, epoch, loss, train_accuracy, seconds.

        Returns
        -------
        bool or None
            True ends the training of this fold; the others are trained.
        """
        return None

    def on_train_end(self, classifier: Any) -> None:
        """Take notice that `fit` or `partial_fit` is done. Not called after an error.

        Parameters
        ----------
        classifier : DefectCAMClassifier
            Fitted.
        """


class Checkpoint(Callback):
    """Save the classifier after each `fit` and `partial_fit`, whole or not at all.

    Parameters
    ----------
    path : str or PathLike
        Replaced each time. ``{n}`` in it stands for the number of images seen so far, so that
        each day's model can be kept: ``"model-{n}.safetensors"``.

    Raises
    ------
    OSError
        When a training begins, if no file can be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def on_train_begin(self, classifier: Any) -> None:
        """Refuse a path that could not be written."""
        if "{n}" not in os.path.dirname(self.path):  # the number is not known yet
            check_writable(self.path)

    def on_train_end(self, classifier: Any) -> None:
        """Write the file."""
        classifier.save(os.fspath(self.path).replace("{n}", str(classifier.n_images_seen_)))


class TimeLimit(Callback):
    """End the training when its time is over: every fold is then left after its current epoch.

    Folds that were not begun by then are trained for one epoch each, so that thresholds rest on
    held-out images in any case.

    Parameters
    ----------
    seconds : float
        From the beginning of the call, the pass through the trunk included.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_begin(self, classifier: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, classifier: Any, record: dict[str, Any]) -> bool:
        """Say whether the time is over."""
        return time.perf_counter() - self._started >= self.seconds


def check_callbacks(callbacks: Any) -> None:
    """Refuse what cannot be told anything.

    Parameters
    ----------
    callbacks : callable, object with hooks, sequence of them or None
    """
    for callback in _listed(callbacks):
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks holds the class {callback.__name__}: pass an object of it, "
                f"{callback.__name__}(...)."
            )
        if not callable(callback) and not any(hasattr(callback, hook) for hook in HOOKS):
            raise TypeError(
                f"callbacks holds {callback!r}, which cannot be called and has none of the methods "
                f"{', '.join(HOOKS)}."
            )


def time_limits(callbacks: Any) -> list[TimeLimit]:
    """Pick the time limits, for a training within a training."""
    return [callback for callback in _listed(callbacks) if isinstance(callback, TimeLimit)]


def train_begins(callbacks: Any, classifier: Any) -> None:
    """Call `Callback.on_train_begin` of those that have it."""
    for hook in _hooks(callbacks, "on_train_begin"):
        hook(classifier)


def train_ends(callbacks: Any, classifier: Any) -> None:
    """Call `Callback.on_train_end` of those that have it."""
    for hook in _hooks(callbacks, "on_train_end"):
        hook(classifier)


def told_to_stop(callbacks: Any, classifier: Any, record: dict[str, Any]) -> bool:
    """Tell all of them of an epoch; return whether one of them asks for the end."""
    answers = [hook(classifier, record) for hook in _hooks(callbacks, "on_epoch_end")]
    return any(isinstance(answer, (bool, np.bool_)) and bool(answer) for answer in answers)


def _hooks(callbacks: Any, name: str) -> list[Any]:
    """Methods of that name; what can only be called is called after each epoch."""
    hooks = []
    for callback in _listed(callbacks):
        if hasattr(callback, name):
            hooks.append(getattr(callback, name))
        elif name == "on_epoch_end" and callable(callback):
            hooks.append(callback)
    return hooks


def _listed(callbacks: Any) -> Sequence[Any]:
    if callbacks is None:
        return ()
    return callbacks if isinstance(callbacks, (list, tuple)) else (callbacks,)
