"""The code in the documentation's `{doctest}` blocks does what the pages say."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import defectcam

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


# --- Troubleshooting --------------------------------------------------------------------------

#: Headings that quote another library.
OF_OTHERS = {
    "ImportError: libGL.so.1: cannot open shared object file",
    "This DefectCAMClassifier instance is not fitted yet. ...",
    "The '...' parameter of DefectCAMClassifier must be ...",
}


def quoted_messages() -> list[str]:
    """Return the messages that the page of troubleshooting has as headings."""
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    headings = re.findall(r"^### (.*`.*)$", text, re.MULTILINE)
    quoted = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    return sorted({message for message in quoted if " " in message})


def messages_of_the_library() -> Iterator[str]:
    """Give the text of each string in the code, each value in it as `...`."""
    for path in sorted(Path(defectcam.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "..." for v in node.values]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


MESSAGES = [message for message in messages_of_the_library() if len(message) >= 12]


@pytest.mark.parametrize("quoted", quoted_messages())
def test_a_message_in_troubleshooting_is_one_of_the_library(quoted: str) -> None:
    """The longest of what the heading says between values, or three words of it, is in the code."""
    if quoted in OF_OTHERS:
        return
    words = max(quoted.split("..."), key=len).strip(" '.:();,").split()
    runs = [" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))]
    assert any(run in message for run in runs for message in MESSAGES), quoted
