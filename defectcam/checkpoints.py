"""The file from which a `fit` that was interrupted or killed goes on.

Owns the layout of the file, when it may be gone on from, and when it goes. What a training loop is
between two epochs is put into it whole, random numbers to come included, so that the weights in the
end are those of an undisturbed fit. It trains nothing. Like a saved model the file is data, not
code: safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import defectcam
from defectcam.exceptions import warn_caller
from defectcam.files import write_atomically

__all__ = [
    "CheckpointError",
    "FitCheckpoint",
    "TrainingLoop",
    "below",
    "digest_of",
    "digest_of_tensors",
    "digest_of_weights",
    "numbered",
    "parameters_of_training",
]

_T = TypeVar("_T")

#: Version of the layout; only files of the same one are gone on from.
LAYOUT = 2

#: Parameters that change nothing in the trained weights.
WITHOUT_EFFECT = frozenset(
    [
        *("cache_size", "callbacks", "memory", "n_jobs", "threshold", "verbose"),
        *("box_peak_fraction", "box_threshold", "max_boxes", "merge_distance", "min_area"),
        *("second_look", "tighten_boxes"),
    ]
)

#: Parameters of which one number stands for a height and a width.
_SIZES = ("image_size", "tile")

_KEY = "defectcam_checkpoint"  # of the metadata, and the name of the format
_DIGEST = "digest"  # of all the rest, in the metadata
_WHAT = {  # what a fit is told apart by, in the words of the complaint
    "versions": "versions",
    "images": "other images, or in another order",
    "labels": "other labels or sample weights",
    "weights": "other weights to start from",
}


class CheckpointError(ValueError):
    """A file is no checkpoint that this fit can go on from."""


@dataclass
class TrainingLoop:
    """What moves on while a network is trained."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    generator: torch.Generator


@dataclass
class FitCheckpoint:
    """How far a fit has come: kept on disk after each epoch, read where there is such a file.

    Parameters
    ----------
    path : str or PathLike
        The file; the folder has to exist.

    Attributes
    ----------
    seed : int or None
        Of the fit that is gone on with; None where it begins.
    history : dict of list
        Its epochs so far; whoever trains adds to it.
    choice : dict or None
        What the training that follows rests on and took long to choose, as JSON gives it back; set
        by whoever has chosen, before the first epoch.
    is_complete : bool
        Whether the fit has ended without an interrupt: set by whoever trains.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    CheckpointError
        If the file is something else, or damaged.
    """

    path: str | os.PathLike[str]
    seed: int | None = None
    history: dict[str, list[Any]] = field(default_factory=dict)
    choice: dict[str, Any] | None = None
    is_complete: bool = False
    _identity: dict[str, Any] = field(default_factory=dict, init=False)
    _fold: int = field(default=-1, init=False)
    _losses: list[float] = field(default_factory=list, init=False)
    _is_done: bool = field(default=False, init=False)
    _loop: dict[str, Any] = field(default_factory=dict, init=False)
    _tensors: dict[str, Tensor] = field(default_factory=dict, init=False)
    _finished: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False)
    _can_write: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        target = Path(self.path)
        if target.is_dir():
            raise CheckpointError(f"resume={str(target)!r} is a folder: name a file in it.")
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"resume={str(target)!r}: make the folder {target.parent} first."
            )
        if target.exists():
            self._read(target)

    # --- Whose it is --------------------------------------------------------------------------

    def begin(self, seed: int, parameters: Mapping[str, Any], **digests: str) -> None:
        """Say which fit this is.

        Parameters
        ----------
        seed : int
            Used where the fit begins, and where an integer ``random_state`` decides it.
        parameters : mapping
            Those of the estimator.
        **digests
            Of what the fit learns from, see `digest_of`.

        Raises
        ------
        CheckpointError
            If the file is another fit's; it stays as it is.
        """
        told = parameters_of_training(parameters)
        versions = {"defectcam": defectcam.__version__, "torch": torch.__version__}
        identity = {"versions": versions, "parameters": told, **digests}
        if self.seed is None:
            self.seed = seed
            self._identity = identity
        for name, now in identity.items():
            self._compare(name, now)

    @property
    def weights_to_start_from(self) -> str | None:
        """Digest of what the fit that is gone on with began from; None where a fit begins."""
        return self._identity.get("weights")

    def expect(self, **digests: str) -> None:
        """Say more of which fit this is, as soon as it is known.

        Raises
        ------
        CheckpointError
            If the file is another fit's.
        """
        for name, now in digests.items():
            if name in self._identity:
                self._compare(name, now)
            self._identity[name] = now

    def _compare(self, name: str, now: Any) -> None:
        then = self._identity.get(name)
        if then == now:
            return
        what = _WHAT.get(name, name)
        if isinstance(now, dict) and isinstance(then, dict):
            changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
            what = ", ".join(
                f"{key} {then.get(key)!s:.200}, now {now.get(key)!s:.200}" for key in changed
            )
        raise CheckpointError(
            f"resume={os.fspath(self.path)!r} belongs to another fit ({what}): call fit as it was "
            "called then, or remove the file to start anew."
        )

    # --- While it trains ----------------------------------------------------------------------

    def finished_tail(self, fold: int) -> dict[str, Tensor] | None:
        """Return the weights of a fold that is done; None if it has to be trained."""
        return self._finished.get(fold)

    def finish(self, fold: int, tail: dict[str, Tensor]) -> None:
        """Keep the weights of a fold that is done; the next `write` puts them on disk."""
        self._finished[fold] = tail

    def restore(self, fold: int, loop: TrainingLoop) -> tuple[list[float], bool]:
        """Put a loop where it was after its last epoch on disk.

        Returns
        -------
        losses : list of float
            Of its epochs so far; empty where this fold begins.
        is_done : bool
            Whether no epoch follows.
        """
        if fold != self._fold:
            return [], False
        try:
            self._restore(loop)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise self._refusal(f"its content does not fit ({error})") from error
        return list(self._losses), self._is_done

    def _restore(self, loop: TrainingLoop) -> None:
        loop.network.load_state_dict(below("now.", self._tensors), strict=False)
        states = numbered(below("optimizer.", self._tensors))
        groups = self._loop["groups"]
        loop.optimizer.load_state_dict({"state": states, "param_groups": groups})
        for parameter, state in loop.optimizer.state.items():
            for key, tensor in state.items():
                if tensor.shape == parameter.shape:  # in memory as it was: sums keep their order
                    state[key] = torch.empty_like(parameter).copy_(tensor)
        if loop.schedule is not None:
            loop.schedule.load_state_dict(self._loop["schedule"])
        loop.generator.set_state(self._tensors["generator"])
        torch.set_rng_state(self._tensors["rng"])
        if "cuda_rng" in self._tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._tensors["cuda_rng"], _device_of(loop.network))

    def write(
        self,
        fold: int,
        tail: dict[str, Tensor],
        loop: TrainingLoop,
        losses: list[float],
        is_done: bool,
    ) -> None:
        """Put everything on disk. Where that fails, training goes on: a warning says so once.

        Parameters
        ----------
        fold : int
            That is being trained.
        tail : dict of Tensor
            All that training changes in the network.
        loop : TrainingLoop
        losses : list of float
            Of the epochs of this fold.
        is_done : bool
            Whether it has no more.
        """
        if not self._can_write:
            return
        if self._is_anothers():
            self._can_write = False
            warn_caller(
                f"resume={os.fspath(self.path)!r} has become another fit's, or something else, and "
                "is left alone: this fit keeps no checkpoint. Name a file for each fit."
            )
            return
        tensors = {f"now.{name}": tensor for name, tensor in tail.items()}
        for done, other in self._finished.items():
            tensors |= {f"finished.{done}.{name}": tensor for name, tensor in other.items()}
        optimizer = loop.optimizer.state_dict()
        for number, state in optimizer["state"].items():
            kept = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in kept.items()}
        tensors |= {"generator": loop.generator.get_state(), "rng": torch.get_rng_state()}
        device = _device_of(loop.network)
        if device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(device)
        description = {
            "layout": LAYOUT,
            "seed": self.seed,
            "identity": self._identity,
            "fold": fold,
            "losses": losses,
            "is_done": is_done,
            "history": self.history,
            "choice": self.choice,
            "groups": optimizer["param_groups"],
            "schedule": None if loop.schedule is None else loop.schedule.state_dict(),
        }
        try:
            write_atomically(self.path, _packed(description, tensors))
        except OSError as error:
            self._can_write = False
            warn_caller(f"resume={os.fspath(self.path)!r} cannot be written ({error}).")

    def close(self) -> None:
        """Remove the file of a fit that is complete."""
        if not self.is_complete or self._is_anothers():
            return
        try:
            Path(self.path).unlink(missing_ok=True)
        except OSError as error:
            warn_caller(
                f"resume={os.fspath(self.path)!r} is no longer needed and cannot be removed "
                f"({error})."
            )

    # --- The file -----------------------------------------------------------------------------

    def _is_anothers(self) -> bool:
        """Tell whether the file is no longer, or was never, this fit's."""
        if not os.path.exists(self.path):
            return False
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                other = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        except (safetensors.SafetensorError, OSError):
            return True
        return (other.get("seed"), other.get("identity")) != (self.seed, self._identity)

    def _read(self, target: Path) -> None:
        try:
            with safetensors.safe_open(target, framework="pt") as file:
                texts = file.metadata() or {}
                if _KEY not in texts:
                    raise self._refusal("it is something else")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise self._refusal("it is something else, or damaged") from error
        if texts.get(_DIGEST) != digest_of_tensors(texts[_KEY], tensors):
            raise self._refusal("its content is not what was written")
        description = json.loads(texts[_KEY])
        if description["layout"] != LAYOUT:
            raise self._refusal("it is of another release")
        self.seed, self._identity = description["seed"], description["identity"]
        self.history, self.choice = description["history"], description["choice"]
        self._fold, self._losses = description["fold"], description["losses"]
        self._is_done, self._loop, self._tensors = description["is_done"], description, tensors
        self._finished = numbered(below("finished.", tensors))

    def _refusal(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"resume={os.fspath(self.path)!r} is no checkpoint of a fit: {why}. Name a file that "
            "does not exist yet, or one that an interrupted fit has left."
        )


def parameters_of_training(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Pick an estimator's parameters that change what is trained, as JSON gives them back.

    However they are written: ``image_size=32`` is ``(32, 32)`` and ``[32, 32]``.
    """
    told = {name: _told(v) for name, v in parameters.items() if name not in WITHOUT_EFFECT}
    squares = {name: 2 * [told[name]] for name in _SIZES if isinstance(told.get(name), int)}
    return {**told, **squares}


def digest_of(parts: Iterable[str | NDArray[np.float64]]) -> str:
    """Hash texts and numbers in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def digest_of_tensors(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash all that a file says, so that damage is noticed where each number looks possible."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_weights(network: nn.Module) -> str:
    """Hash all weights of a network."""
    return digest_of_tensors("", network.state_dict())


def _told(value: Any) -> Any:
    """Turn a parameter into what JSON gives back unchanged, the same however it is written."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    if isinstance(value, dict):  # as pairs: keys of JSON are texts, and those of labels need not be
        return sorted(([_told(key), _told(one)] for key, one in value.items()), key=repr)
    return repr(value) if not isinstance(value, np.random.RandomState) else None


def _packed(description: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    text = json.dumps(description)
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(plain, {_KEY: text, _DIGEST: digest_of_tensors(text, plain)})


def below(prefix: str, tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Pick the tensors, or what is known of them, whose names have a prefix, which they lose."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def numbered(tensors: Mapping[str, _T]) -> dict[int, dict[str, _T]]:
    """Part tensors by the number that their names begin with, before a dot."""
    parts: dict[int, dict[str, _T]] = {}
    for name, tensor in tensors.items():
        number, _, own = name.partition(".")
        parts.setdefault(int(number), {})[own] = tensor
    return parts


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
