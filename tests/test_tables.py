from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from defectcam import Localization, tables
from defectcam.geometry import Geometry
from defectcam.tables import FORMATS, SCHEMA_VERSION, encode_rows, result_row, write_results

COLUMNS = [
    "image",
    "label",
    "probability",
    "is_defect",
    "unfamiliar",
    "decision_threshold",
    "threshold",
    "height",
    "width",
    "n_boxes",
    "boxes",
    "box_scores",
    "box_labels",
    "overlay",
    "schema_version",
]


def result(source: Any, **changes: Any) -> Localization:
    grid = np.zeros((20, 30))
    grid[2:5, 3:9], grid[10:15, 20:28] = 2.1, 1.4
    parameters: dict[str, Any] = {
        "label": "dent",
        "probability": 0.1 + 0.2,
        "is_defect": True,
        "grid": grid,
        "geometry": Geometry.stretch((20, 30), (20, 30)),
        "threshold": 1.0,
        "decision_threshold": 0.25,
        "min_area": 1,
        "max_boxes": None,
        "merge_distance": None,
        "source": source,
        "good_label": "good",
        "defect_label": "dent",
    }
    return Localization(**{**parameters, **changes})


@pytest.fixture
def results() -> list[Localization]:
    good = {"is_defect": False, "label": "good", "decision_threshold": 0.75}
    return [result(Path("a/1.png")), result(Path("b/2.png"), **good), result(None)]


def test_the_schema_is_that_of_the_documentation(results: list[Localization]) -> None:
    row = result_row(results[0])
    assert list(row) == COLUMNS
    assert row["schema_version"] == SCHEMA_VERSION == 1
    documented = re.findall(r"``(\w+)``", tables.__doc__.split("======\n")[-2])
    assert documented == COLUMNS
    page = Path(__file__).parents[1] / "docs" / "guide" / "annotations.md"
    section = page.read_text("utf-8").split("(tables-of-results)=")[1]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(cells)) == COLUMNS


@pytest.mark.parametrize("format", FORMATS)
def test_tables_hold_the_results(format: str, results: list[Localization], tmp_path: Path) -> None:
    path = tmp_path / f"out.{format}"
    write_results(results, path)
    rows = read(path)
    assert [list(row) for row in rows] == [COLUMNS] * 3
    for row, found in zip(rows, results, strict=True):
        assert row["label"] == found.label
        assert row["probability"] == found.probability  # to the last bit
        assert row["is_defect"] is found.is_defect
        assert (row["height"], row["width"]) == found.image_size
        assert row["boxes"] == found.boxes.tolist()
        assert row["box_scores"] == found.box_scores.tolist()
        assert row["box_labels"] == found.box_labels
        assert row["n_boxes"] == len(found.boxes)
    assert [row["image"] for row in rows] == [str(Path("a/1.png")), str(Path("b/2.png")), None]


def read(path: Path) -> list[dict[str, Any]]:
    """Read a table with other people's readers."""
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        assert table.schema.metadata[b"defectcam.schema_version"] == b"1"
        return table.to_pylist()
    if path.suffix == ".jsonl":
        frame = pd.read_json(path, lines=True, precise_float=True)
        assert list(frame) == COLUMNS
        return [json.loads(line) for line in path.read_text().splitlines()]
    assert list(pd.read_csv(path)) == COLUMNS
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: from_cell(k, cell) for k, cell in row.items()} for row in csv.DictReader(file)]


def from_cell(column: str, cell: str) -> Any:
    if column in ("image", "label", "overlay"):
        return cell or None
    return {"True": True, "False": False}[cell] if cell in ("True", "False") else json.loads(cell)


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", " =1", "\uff1d1", 'a,"b\n']
)
def test_spreadsheets_see_no_formula(name: str, tmp_path: Path) -> None:
    found = result(f"{name}.png", defect_label=name, label=name)
    write_results([found], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    for column, value in (("image", f"{name}.png"), ("label", name)):
        assert row[column] == (value if name.startswith("a") else f"'{value}")
        assert row[column].lstrip()[0] not in "=+-@"
    assert json.loads(row["box_labels"]) == [name, name]
    assert row["boxes"].startswith("[")


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    write_results([result(None, threshold=-1.5)], tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["threshold"].tolist() == [-1.5]


@pytest.mark.parametrize("format", FORMATS)
def test_names_and_labels_of_all_kinds(format: str, tmp_path: Path) -> None:
    found = result("\udcff/ü.png", label=True, defect_label=True, good_label=False)
    write_results([found], tmp_path / "out", format)
    row = read((tmp_path / "out").rename(tmp_path / f"out.{format}"))[0]
    assert row["image"] == "\\udcff/ü.png"
    assert row["label"] == "True"


def test_nothing_is_overwritten(results: list[Localization], tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_results(results, path)
    assert path.read_text() == "mine"
    write_results(results, path, overwrite=True)
    assert len(path.read_text().splitlines()) == 4


def test_wrong_formats_are_named(
    results: list[Localization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="does not end in"):
        write_results(results, tmp_path / "out.xlsx")
    with pytest.raises(ValueError, match="format must be one of"):
        encode_rows([], "xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'defectcam\[parquet\]'"):
        write_results(results, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []
