"""Maps functions over streams in threads, in order.

Owns how many threads that takes and how far they look ahead. It knows nothing of images, and works
where joblib is not installed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["count_threads", "ordered_map"]

#: Threads that are used where nothing else is said; more contend for one disk.
_MAX_DEFAULT_THREADS = 8

_Item = TypeVar("_Item")
_T = TypeVar("_T")


def ordered_map(
    function: Callable[[_Item], _T], items: Iterable[_Item], n_threads: int | None
) -> Generator[_T, None, None]:
    """Map in threads, in order, with a bounded look-ahead; no thread outlives the generator.

    Parameters
    ----------
    function : callable
        Called from several threads at once.
    items : iterable
        Taken lazily, in the caller's thread.
    n_threads : int or None
        As for `count_threads`.

    Yields
    ------
    What `function` returns, in the order of `items`.
    """
    return _ordered_results(function, items, count_threads(n_threads))


def count_threads(n_threads: int | None) -> int:
    """Read a number of threads as joblib does: -1 is one per processor, -2 one less.

    Parameters
    ----------
    n_threads : int or None
        None: one per processor, at most 8.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        For 0.
    """
    try:
        import joblib
    except ImportError:  # exported models run without it, by the same rule
        n_processors = os.cpu_count() or 1
        if n_threads is None:
            return min(n_processors, _MAX_DEFAULT_THREADS)
        if n_threads == 0:
            raise ValueError("n_jobs == 0 has no meaning: give a number of threads.") from None
        return n_threads if n_threads > 0 else max(1, n_processors + 1 + n_threads)
    if n_threads is None:
        n_threads = min(joblib.cpu_count(), _MAX_DEFAULT_THREADS)
    return joblib.effective_n_jobs(n_threads)


def _ordered_results(
    function: Callable[[_Item], _T], items: Iterable[_Item], n_threads: int
) -> Generator[_T, None, None]:
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="defectcam")
    pending: deque[Future[_T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * n_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
