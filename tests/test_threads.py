"""Mapping in threads: order, look-ahead, and numbers of threads with and without joblib."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from defectcam.threads import count_threads, ordered_map


@pytest.mark.parametrize("has_joblib", [True, False])
def test_threads_are_counted_as_joblib_counts_them(has_joblib: bool, monkeypatch) -> None:
    if not has_joblib:
        monkeypatch.setitem(sys.modules, "joblib", None)
    assert count_threads(3) == 3
    assert 1 <= count_threads(None) <= 8
    assert count_threads(-1) >= 1
    with pytest.raises(ValueError, match="n_jobs"):
        count_threads(0)


def test_results_come_in_order_whatever_is_ready_first() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(ordered_map(slow_first, range(20), 4)) == [i * i for i in range(20)]


def test_an_endless_stream_is_taken_a_few_items_ahead() -> None:
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = ordered_map(str, endless(), 2)
    assert [next(results) for _ in range(3)] == ["0", "1", "2"]
    assert len(taken) == 6
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("defectcam")]


def test_a_failure_reaches_the_caller_in_its_place() -> None:
    results = ordered_map(lambda item: 1 / item, [1, 2, 0, 4], 2)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
