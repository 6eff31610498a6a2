"""Lets requests share one worker thread and, in it, one forward pass.

Owns the queue, its order and who is put together with whom. It knows no image and no network: what
is done with a batch is given to it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Batcher", "ClosedError"]

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")


class ClosedError(RuntimeError):
    """Work was handed in while nobody works."""


class _Job(NamedTuple):
    key: object
    item: object
    future: Future


class Batcher(Generic[K, T, R]):
    """Collects items of one key and works on them together, in one thread.

    Parameters
    ----------
    run : callable
        Takes a key and a list of items; returns, in order, a result or an exception for each. What
        it raises becomes every item's exception.
    batch_size : callable
        Takes a key; returns the most items of a batch.
    wait : float
        Seconds that a batch's first item waits for others.
    """

    def __init__(
        self,
        run: Callable[[K, list[T]], Sequence[R | Exception]],
        *,
        batch_size: Callable[[K], int],
        wait: float,
    ) -> None:
        self._run = run
        self._batch_size = batch_size
        self._wait = wait
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = True
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker thread; also again, after `close`."""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="defectcam-batches", daemon=True)
        self._thread.start()

    def submit(self, key: K, item: T) -> Future[R]:
        """Queue one item.

        Parameters
        ----------
        key : hashable
            Only items of equal keys are worked on together.
        item : object

        Returns
        -------
        concurrent.futures.Future
            Of the item's result. Cancelled before its turn, the item is left out.

        Raises
        ------
        ClosedError
            Before `start` or after `close`.
        """
        job = _Job(key, item, Future())
        with self._changed:
            if self._closed:
                raise ClosedError("the service is shutting down.")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Take no more work, finish what is queued, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __len__(self) -> int:
        return len(self._jobs)

    def _work(self) -> None:
        while batch := self._next_batch():
            live = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _next_batch(self) -> list[_Job]:
        """Wait for the next batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return []
            key = self._jobs[0].key
            size = self._batch_size(key)  # type: ignore[arg-type]
            until = time.monotonic() + self._wait
            while sum(job.key == key for job in self._jobs) < size and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            batch = [job for job in self._jobs if job.key == key][:size]
            taken = set(map(id, batch))
            self._jobs = deque(job for job in self._jobs if id(job) not in taken)
        return batch

    def _answer(self, jobs: list[_Job]) -> None:
        outcomes: Sequence[R | Exception]
        try:
            outcomes = self._run(jobs[0].key, [job.item for job in jobs])  # type: ignore[arg-type, misc]
            if len(outcomes) != len(jobs):
                raise RuntimeError(f"{len(outcomes)} results for {len(jobs)} items.")
        except Exception as error:  # the thread must outlive whatever a batch does
            outcomes = [error] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
