"""The catalogue of what can go wrong: what a case is, how it is judged, and the page of the docs.

`python -m faults.catalogue`, called in `tests`, writes docs/faults.md anew; a test compares them.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

#: The modules that hold the cases, each of one group, in the order of the page.
GROUPS = {
    "cases_files": "Files",
    "cases_arrays": "Arrays",
    "cases_labels": "Labels and weights",
    "cases_parameters": "Parameters",
    "cases_numerics": "Numerics",
    "cases_environment": "Environment",
    "cases_models": "Model files and weights",
}


INTRODUCTION = (
    "Every bad input and fault has a stated outcome: an error that names what was wrong, a",
    "warning, or a right answer. This page is written by the catalogue in `tests/faults`, which is",
    "run with the tests; `make faults` runs it alone and prints the summary by group. The text of",
    "an error is a part of its message.",
)


@dataclass(frozen=True)
class Bench:
    """What a case may use: a folder of its own, and things that all cases share."""

    tmp: Path
    patch: pytest.MonkeyPatch
    parts: Path  # a folder of good/ and scratch/
    model: Any  # fitted on `images` and `labels`; not to be changed
    images: np.ndarray  # of shape (8, 32, 32), the last four with a bright bar
    labels: list[str]
    new: Callable[..., Any]  # makes a small classifier, not fitted
    saved: bytes  # the model's file

    def fit(
        self, X: Any = None, y: Any = None, *, sample_weight: Any = None, **parameters: Any
    ) -> Any:
        """Fit on the shared images, or on others."""
        images = self.images if X is None else X
        labels = self.labels if y is None and X is None else y
        return self.new(**parameters).fit(images, labels, sample_weight)

    def file(self, name: str, content: bytes) -> str:
        path = self.tmp / name
        path.write_bytes(content)
        return str(path)


@dataclass(frozen=True)
class Case:
    """Something that goes wrong, and what comes of it.

    Either `act` raises `error`, whose message holds `says`, or it returns `value`.
    """

    group: str
    name: str
    act: Callable[[Bench], Any]
    error: type[BaseException] | None = None
    says: str = ""
    value: Any = None
    warns: str | None = None

    def check(self, bench: Bench) -> None:
        if self.error is not None:
            with pytest.raises(self.error, match=re.escape(self.says)) as raised:
                self.act(bench)
            # Not a more special one that happens to be of this kind, but ours.
            assert raised.type is self.error or raised.type.__module__.startswith("sklearn")
        elif self.warns is not None:
            with pytest.warns(UserWarning, match=re.escape(self.warns)):
                self._compare(self.act(bench))
        else:
            self._compare(self.act(bench))

    def _compare(self, found: Any) -> None:
        if isinstance(self.value, np.ndarray):
            np.testing.assert_array_equal(found, self.value)
        else:
            assert found == self.value

    @property
    def outcome(self) -> str:
        """The outcome in a line of the page."""
        if self.error is not None:
            return f"`{self.error.__name__}`: {_inline(self.says)}"
        warned = f"warns: {_inline(self.warns)}" if self.warns is not None else "works"
        return warned


def _inline(text: str) -> str:
    """Put text into a cell of a table, as it is."""
    return "`" + text.replace("|", "\\|").replace("\0", "␀").replace("\n", " ") + "`"


CASES: list[Case] = []


class Group:
    """Adds the cases of one module."""

    def __init__(self, module: str) -> None:
        self.name = GROUPS[module]

    def refused(
        self, name: str, error: type[BaseException], says: str, act: Callable[[Bench], Any]
    ) -> None:
        CASES.append(Case(self.name, name, act, error=error, says=says))

    def works(self, name: str, value: Any, act: Callable[[Bench], Any]) -> None:
        CASES.append(Case(self.name, name, act, value=value))

    def warned(self, name: str, warns: str, value: Any, act: Callable[[Bench], Any]) -> None:
        CASES.append(Case(self.name, name, act, value=value, warns=warns))


def all_cases() -> list[Case]:
    """Import the modules, which register their cases, and return these."""
    if not CASES:
        for module in GROUPS:
            importlib.import_module(f"faults.{module}")
    return CASES


def page() -> str:
    """Return docs/faults.md."""
    cases = all_cases()
    counts = Counter(case.group for case in cases)
    refused = Counter(case.group for case in cases if case.error is not None)
    lines = [
        "# What can go wrong",
        "",
        *INTRODUCTION,
        "",
        "| group | cases | refused with an error | answered |",
        "|---|---|---|---|",
    ]
    for group in GROUPS.values():
        n, r = counts[group], refused[group]
        lines.append(f"| [{group}](#{group.lower().replace(' ', '-')}) | {n} | {r} | {n - r} |")
    n, r = len(cases), sum(refused.values())
    lines.append(f"| all | {n} | {r} | {n - r} |")
    for group in GROUPS.values():
        lines += ["", f"## {group}", "", "| what goes wrong | what comes of it |", "|---|---|"]
        lines += [f"| {c.name} | {c.outcome} |" for c in cases if c.group == group]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    catalogue = importlib.import_module(
        "faults.catalogue"
    )  # the module that the cases register with
    PAGE.write_text(catalogue.page(), encoding="utf-8")
