"""What torch keeps for a whole process, while a network is made or trained.

Owns that one seed gives one network whatever the caller has set, or does in other threads, and that
the caller's settings and random generators are as they were afterwards.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["isolated", "undisturbed", "usual_settings"]

#: Torch draws for all threads from one generator, so those that train wait for each other.
_training = threading.RLock()

#: Held for as long as a generator is in a state that somebody else's must be put back into.
_exchange = threading.RLock()


@contextlib.contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Train within the block as if nobody else used torch: own random numbers, own settings.

    Gradients are kept, and `usual_settings` hold. Blocks of other threads wait until this one is
    left.

    Parameters
    ----------
    seed : int
        Of the generators of the processor and of ``device``.
    device : torch.device
        Of the network. Those of other devices are not touched, nor made ready for use.
    """
    with _training, contextlib.ExitStack() as settings:
        settings.enter_context(_seeded(seed, device))
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        settings.enter_context(usual_settings(device))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            settings.callback(torch.set_default_dtype, dtype)
        yield


@contextlib.contextmanager
def usual_settings(device: torch.device) -> Iterator[None]:
    """Compute as the network says, not in the caller's automatic precision or default device."""
    with contextlib.ExitStack() as settings:
        if torch.is_autocast_enabled(device.type):
            settings.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":  # else each operation would pay for the mode
            settings.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Draw what does not matter, and leave the processor's generator as it was."""
    with _exchange, torch.random.fork_rng(devices=[]):
        yield


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    generators = _generators(device)
    with _exchange:
        states = [generator.get_state() for generator in generators]
        for generator in generators:
            generator.manual_seed(seed)
    try:
        yield
    finally:
        with _exchange:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _generators(device: torch.device) -> list[torch.Generator]:
    """Those that a network on this device draws from."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    return generators
