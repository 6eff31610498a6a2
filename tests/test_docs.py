"""The code in the documentation's `{doctest}` blocks does what the pages say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def code_of(page: Path) -> str:
    """Return the code of a page's blocks, which share their names, each on the lines it has there.

    All else becomes blank lines.
    """
    lines, inside = [], False
    for line in page.read_text("utf-8").splitlines():
        if inside and line.startswith("```"):
            inside = False
        lines.append(line if inside else "")
        inside = inside or line == "```{doctest}"
    return "\n".join(lines)


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if code_of(page).strip()]


def test_pages_with_code_that_runs_are_found() -> None:
    assert {"boxes.md", "scikit_learn.md"} <= {page.name for page in PAGES}


@pytest.mark.filterwarnings("ignore")  # examples are small, and are told so
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(code_of(page), {}, page.name, str(page), 0)
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)
