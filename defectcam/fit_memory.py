"""Keeps what was learned, so that no fit learns the same twice: codebooks and whole trainings.

Owns what joblib's memory is asked for, and what tells one training from another. It trains nothing,
and knows neither images nor files: where those lie is joblib's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray

import defectcam
from defectcam.checkpoints import digest_of, digest_of_weights, parameters_of_training
from defectcam.cross_fitting import MakeCodebook
from defectcam.feature_store import checked_memory, folder_of_memory
from defectcam.incremental import Trained
from defectcam.network import DefectCAMNetwork
from defectcam.novelty import Codebook

__all__ = ["Learned", "codebook_maker", "identity_of_training", "learn_once"]

#: What is kept of other releases is not asked for: they may compute something else.
VERSIONS = (defectcam.__version__, torch.__version__, sklearn.__version__, np.__version__)


class Learned(NamedTuple):
    """A trained network, and what else its training leaves behind."""

    network: DefectCAMNetwork
    trained: Trained


class _InterruptedError(Exception):
    """Carries what an interrupted training has learned past a memory that would keep it."""

    def __init__(self, learned: Learned) -> None:
        super().__init__()
        self.learned = learned


def codebook_maker(memory: Any) -> MakeCodebook:
    """Return what `Codebook.fit` is, which looks into the memory first.

    Parameters
    ----------
    memory : str, PathLike, joblib.Memory or None
        As the parameter of scikit-learn's `Pipeline`.
    """
    if folder_of_memory(memory) is None:
        return Codebook.fit
    return partial(_cached(memory, _make_codebook), versions=VERSIONS)


def identity_of_training(
    network: DefectCAMNetwork, parameters: Mapping[str, Any], features: str, **others: Any
) -> str:
    """Hash all that decides what a training learns.

    Parameters
    ----------
    network : DefectCAMNetwork
        As it is before the training.
    parameters : mapping
        Those of the estimator; the ones that only decide later count for nothing.
    features : str
        Fingerprint of how features are made of images.
    **others
        What else it depends on, such as hashes of the images; with a `repr` that tells.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    told = [repr(sorted(parameters_of_training(parameters).items())), repr(sorted(others.items()))]
    return digest_of([features, digest_of_weights(network), *told])


def learn_once(
    memory: Any, identity: str, network: DefectCAMNetwork, train: Callable[[], Trained]
) -> Learned:
    """Train, or recall what the same training has learned before.

    Parameters
    ----------
    memory : str, PathLike or joblib.Memory
        As the parameter of scikit-learn's `Pipeline`.
    identity : str
        Of the training.
    network : DefectCAMNetwork
    train : callable
        Trains it. What is learned is kept unless the training was interrupted.

    Returns
    -------
    Learned
        Its network is the given one only where that was trained.
    """
    recall = _cached(memory, _learn, ignore=["network", "train"])
    try:
        return recall(identity, VERSIONS, network, train)
    except _InterruptedError as interrupted:
        return interrupted.learned


def _cached(memory: Any, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Let the memory keep results. If it has no folder for them, the feature store has warned."""
    try:
        cached: Callable[..., Any] = checked_memory(memory).cache(function, **options)
    except OSError:
        return function
    return cached


def _make_codebook(
    patches: NDArray[np.float32], n_centres: int, random_state: int, versions: tuple[str, ...]
) -> Codebook:
    return Codebook.fit(patches, n_centres, random_state)


def _learn(
    identity: str,
    versions: tuple[str, ...],
    network: DefectCAMNetwork,
    train: Callable[[], Trained],
) -> Learned:
    trained = train()
    # The folds' tails have done their work, and would be most of what is kept.
    lean = trained._replace(result=trained.result._replace(tails=(), biases=()))
    learned = Learned(network, lean)
    if lean.result.interrupted:
        raise _InterruptedError(learned)
    return learned
