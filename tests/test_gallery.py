"""The gallery: each example compiles, asks a question, uses what exists and is part of the docs.

That each runs without a warning is what building the docs checks (`make docs`).
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "gallery").glob("*.py"))
QUESTIONS = [
    "My first folder",
    "Which threshold?",
    "How many defective images do I need?",
    "Small defects in large images",
    "New defect types",
    "Compare backbones",
    "From draft boxes to a detector",
    "Explain a decision to an auditor",
]


def test_the_gallery_has_these_examples_in_this_order() -> None:
    titles = [ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in EXAMPLES]
    assert [str(title).splitlines()[0] for title in titles] == QUESTIONS


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_compiles_and_imports_what_exists(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    compile(tree, str(path), "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "defectcam":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), alias.name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_for_the_gallery_and_asks_something(path: Path) -> None:
    assert re.fullmatch(r"plot_\d_[a-z_]+", path.stem)  # what sphinx-gallery runs, in this order
    lines = str(ast.get_docstring(ast.parse(path.read_text("utf-8")))).splitlines()
    assert lines[1] == "=" * len(lines[0])
    assert lines[3].startswith("*")


def test_the_docs_execute_the_gallery() -> None:
    configuration = (ROOT / "docs" / "conf.py").read_text("utf-8")
    assert '"sphinx_gallery.gen_gallery"' in configuration
    assert '"examples_dirs": "../examples/gallery"' in configuration
    assert "gallery/index" in (ROOT / "docs" / "index.md").read_text("utf-8")
