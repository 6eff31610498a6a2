"""The notebook widget: what follows the sliders, and that a notebook shows it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from conftest import write_parts
from nbclient import NotebookClient
from PIL import Image
from sklearn.metrics import confusion_matrix


@pytest.fixture
def truth(fitted_parts: Path) -> np.ndarray:
    paths = sorted(fitted_parts.glob("*/*.png"))
    return np.array([path.parent.name == "scratch" for path in paths])


def test_counts_follow_the_slider(fitted: Any, fitted_parts: Path, truth) -> None:
    explorer = fitted.explore(fitted_parts)
    probability = fitted.predict_proba(sorted(map(str, fitted_parts.glob("*/*.png"))))[:, 1]
    for threshold in (0.0, 0.3, 0.55, 1.0):
        explorer.threshold = threshold
        called = probability >= threshold
        expected = confusion_matrix(truth, called, labels=[False, True])
        assert np.array_equal(explorer.confusion_matrix, expected)
        assert np.array_equal(explorer.is_defect, called)
        for count in expected.ravel():
            assert f"<td>{count}</td>" in explorer._counts.value
        assert f"clf.threshold_ = {threshold}<" in explorer._counts.value


def test_it_starts_as_the_classifier_stands(fitted: Any, fitted_parts: Path) -> None:
    explorer = fitted.explore(fitted_parts)
    assert explorer.threshold == fitted.threshold_
    assert explorer.box_threshold == fitted.box_threshold
    paths = sorted(map(str, fitted_parts.glob("*/*.png")))
    assert explorer.is_defect.tolist() == (fitted.predict(paths) == "scratch").tolist()


def test_the_code_to_copy_decides_as_the_widget_does(fitted: Any, fitted_parts: Path) -> None:
    explorer = fitted.explore(fitted_parts)
    for threshold in (0.0004, explorer._probability[0]):
        explorer.threshold = threshold
        copied = re.search(r"clf.threshold_ = ([^<]+)<", explorer._counts.value).group(1)
        assert np.array_equal(explorer._probability >= float(copied), explorer.is_defect)
        assert float(copied) == threshold


def test_a_browser_that_rounds_a_slider_changes_no_answer(fitted: Any, fitted_parts: Path) -> None:
    explorer = fitted.explore(fitted_parts)
    exact = float(explorer._probability.max()) - 1e-9
    explorer.threshold, explorer.box_threshold = exact, 0.83
    before = explorer.is_defect.copy()
    assert before.any()
    # What a browser sends back on showing sliders of steps of 0.001 and 0.05.
    explorer._threshold.value, explorer._box_threshold.value = round(exact, 3), 0.85
    assert (explorer.threshold, explorer.box_threshold) == (exact, 0.83)
    assert np.array_equal(explorer.is_defect, before)
    assert f"clf.threshold_ = {exact!r}<" in explorer._counts.value
    explorer._threshold.value, explorer._box_threshold.value = 0.25, 0.9  # moved by hand
    assert (explorer.threshold, explorer.box_threshold) == (0.25, 0.9)
    explorer.threshold = 0.2504
    explorer.threshold = 0.25
    assert explorer.threshold == 0.25


@pytest.mark.parametrize("value", [5, -0.1, np.nan, "0.5", None])
@pytest.mark.parametrize("name", ["threshold", "box_threshold"])
def test_a_threshold_that_no_slider_has_is_refused(fitted, fitted_parts, name, value) -> None:
    explorer = fitted.explore(fitted_parts)
    before = getattr(explorer, name)
    with pytest.raises(ValueError, match=rf"^{name} must be from .*got {value!r}"):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


def test_missed_ones_come_first(fitted: Any, fitted_parts: Path, truth) -> None:
    explorer = fitted.explore(fitted_parts, n_images=4)
    explorer.threshold = 1.0
    first = explorer.order[: truth.sum()]
    assert truth[first].all()
    assert all("missed: scratch" in title.value for title in explorer._titles)


def test_pictures_show_the_boxes_of_the_threshold(fitted: Any, fitted_parts: Path) -> None:
    explorer = fitted.explore(fitted_parts, n_images=1)
    explorer.threshold = 0.0
    explorer.box_threshold = 0.5
    (picture,) = explorer._pictures
    found = explorer._found[explorer.order[0]]
    shown = np.asarray(Image.open(io.BytesIO(picture.value)))
    expected = found.with_threshold(0.5, 0.0).overlay(threshold=found.threshold)
    assert np.array_equal(shown, expected)
    explorer.threshold = 1.0
    without_boxes = np.asarray(Image.open(io.BytesIO(picture.value)))
    assert not np.array_equal(without_boxes, expected)


def test_pages_show_every_image_once(fitted: Any, fitted_parts: Path) -> None:
    explorer = fitted.explore(fitted_parts, n_images=5)
    names = []
    for page in (1, 2, 3):
        explorer._page.value = page
        names += [
            title.value.rsplit("<br>", 1)[1]
            for title, cell in zip(explorer._titles, explorer._cells, strict=True)
            if cell.layout.display != "none"
        ]
    assert len(names) == 14
    assert sorted(names) == sorted(path.name for path in fitted_parts.glob("*/*.png"))


def test_without_labels_the_most_probable_come_first(fitted: Any, fitted_parts: Path) -> None:
    explorer = fitted.explore(sorted(map(str, fitted_parts.glob("*/*.png"))))
    assert explorer.confusion_matrix is None
    probability = np.array([one.probability for one in explorer._found])
    assert (np.diff(probability[explorer.order]) <= 0).all()
    assert "images are called defective" in explorer._counts.value


def test_without_ipywidgets_the_error_says_what_to_install(
    fitted: Any, fitted_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r'pip install "defectcam\[notebook\]"'):
        fitted.explore(fitted_parts)


def test_a_page_holds_at_least_one(fitted: Any, fitted_parts: Path) -> None:
    with pytest.raises(ValueError, match="n_images must be at least 1"):
        fitted.explore(fitted_parts, n_images=0)


@pytest.mark.slow
def test_a_notebook_shows_it(fitted: Any, tmp_path: Path) -> None:
    model, parts = str(tmp_path / "part.safetensors"), str(write_parts(tmp_path))
    fitted.save(model)
    cells = [
        f"import defectcam\nclf = defectcam.load({model!r})",
        f"explorer = clf.explore({parts!r})\nexplorer",
        "explorer.threshold = 0.0\nexplorer.confusion_matrix.tolist()",
    ]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (shown,) = notebook.cells[1].outputs
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    (counts,) = notebook.cells[2].outputs
    assert counts["data"]["text/plain"] == "[[0, 8], [0, 6]]"
