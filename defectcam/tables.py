"""Tables of results: CSV, JSON Lines and Parquet, one row per image.

Owns the schema, which has a version, and how each format writes it. All three have the same columns
in the same order:

======================  ========  ==============================================================
column                  type      meaning
======================  ========  ==============================================================
``image``               text      path of the image; none where it is no file
``label``               text      predicted class
``probability``         number    that the image shows a defect, 0 to 1
``is_defect``           boolean   whether the image is called defective
``unfamiliar``          boolean   whether the image is unlike all training images
``decision_threshold``  number    probability from which an image is called defective
``threshold``           number    value of the heatmap above which there are boxes
``height``, ``width``   integer   of the image, in pixels
``n_boxes``             integer   how many boxes there are
``boxes``               list      of ``[left, top, right, bottom]``, half-open, in pixels, best
                                  first
``box_scores``          list      largest value of the heatmap in each box; 1 is the limit of good
                                  parts
``box_labels``          list      of text: defect type in each box
``overlay``             text      file of the overlay, from the folder of the table; none where
                                  there is none
``schema_version``      integer   `SCHEMA_VERSION`
======================  ========  ==============================================================

Where the images come from many places, in `defectcam.distributed`, there is one column more,
``error``: why the image could not be read, which leaves all others but ``image`` empty.

Columns may be added without a new version; one that goes or changes its meaning makes a new one.
In CSV, lists are JSON in one cell, and a cell of text that a spreadsheet would take for a formula
begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from defectcam.files import check_target, write_atomically
from defectcam.images import is_path
from defectcam.results import Localization

__all__ = [
    "COLUMNS",
    "FORMATS",
    "SCHEMA_VERSION",
    "arrow_table",
    "encode_rows",
    "error_row",
    "format_of",
    "result_row",
    "write_results",
]

SCHEMA_VERSION = 1
FORMATS = ("csv", "jsonl", "parquet")

#: What spreadsheets take for the beginning of a formula (OWASP, "CSV Injection"); the last four are
#: the full-width forms.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def result_row(
    found: Localization, image: Any = None, overlay: str | None = None
) -> dict[str, Any]:
    """Put the result of one image into a row, ready for JSON.

    Parameters
    ----------
    found : Localization
    image : path, optional
        What the image is called. None takes the result's source, if it is a file.
    overlay : str, optional
        File of the overlay.

    Returns
    -------
    dict
        The columns, as the module describes them.
    """
    if image is None and is_path(found.source):
        image = found.source
    height, width = found.image_size
    return {
        "image": None if image is None else _text(os.fspath(image)),
        "label": _text(str(found.label)),
        "probability": found.probability,
        "is_defect": found.is_defect,
        "unfamiliar": found.unfamiliar,
        "decision_threshold": found.decision_threshold,
        "threshold": found.threshold,
        "height": height,
        "width": width,
        "n_boxes": len(found.boxes),
        "boxes": found.boxes.tolist(),
        "box_scores": found.box_scores.tolist(),
        "box_labels": [_text(str(label)) for label in found.box_labels],
        "overlay": None if overlay is None else _text(overlay),
        "schema_version": SCHEMA_VERSION,
    }


def error_row(error: str, image: Any) -> dict[str, Any]:
    """Put the complaint about an image that cannot be read into a row.

    Parameters
    ----------
    error : str
        What it says.
    image : path

    Returns
    -------
    dict
        ``image``, ``error`` and ``schema_version``.
    """
    return {
        "image": _text(os.fspath(image)),
        "error": _text(error),
        "schema_version": SCHEMA_VERSION,
    }


def write_results(
    results: Iterable[Localization],
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a table of results, whole or not at all.

    Parameters
    ----------
    results : iterable of Localization
        What `localize` or `localize_iter` returned.
    path : path
        The file.
    format : {"csv", "jsonl", "parquet"}, optional
        By default what the file's suffix says.
    overwrite : bool, default=False
        Whether an existing file is replaced.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is false.
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If it is a folder.
    ImportError
        If Parquet is asked for, and pyarrow is not installed.
    ValueError
        If the format is none of these.
    """
    format = format_of(path) if format is None else format
    target = check_target(path, overwrite)
    write_atomically(target, encode_rows([result_row(found) for found in results], format))


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format that a file's suffix stands for.

    Raises
    ------
    ValueError
        If it stands for none.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(
            f"{os.fspath(path)!r} does not end in .csv, .jsonl or .parquet: say which format."
        )
    return suffix


def encode_rows(rows: Sequence[dict[str, Any]], format: str) -> bytes:
    """Encode rows as a file.

    Parameters
    ----------
    rows : sequence of dict
        As `result_row` makes them.
    format : {"csv", "jsonl", "parquet"}

    Returns
    -------
    bytes

    Raises
    ------
    ImportError
        If Parquet is asked for, and pyarrow is not installed.
    ValueError
        If the format is none of these.
    """
    if format == "csv":
        return _as_csv(rows).encode()
    if format == "jsonl":
        return "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows).encode()
    if format == "parquet":
        return _as_parquet(rows)
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")


def arrow_table(rows: Sequence[dict[str, Any]]) -> Any:
    """Put rows into a table of Apache Arrow, what Parquet is made of.

    Parameters
    ----------
    rows : sequence of dict
        As `result_row` makes them; all of them with ``error`` besides, or none.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError(
            "Parquet needs the package pyarrow: pip install 'defectcam[parquet]', or take another "
            "format."
        ) from error
    lists = {
        "boxes": pa.list_(pa.list_(pa.int32(), 4)),
        "float64s": pa.list_(pa.float64()),
        "strings": pa.list_(pa.string()),
    }
    types = dict(_TYPES, error="string") if any("error" in row for row in rows) else _TYPES
    fields = [
        (name, lists[kind] if kind in lists else pa.type_for_alias(kind))
        for name, kind in types.items()
    ]
    metadata = {"defectcam.schema_version": str(SCHEMA_VERSION)}
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields, metadata=metadata))


_TYPES = {
    "image": "string",
    "label": "string",
    "probability": "float64",
    "is_defect": "bool",
    "unfamiliar": "bool",
    "decision_threshold": "float64",
    "threshold": "float64",
    "height": "int32",
    "width": "int32",
    "n_boxes": "int32",
    "boxes": "boxes",
    "box_scores": "float64s",
    "box_labels": "strings",
    "overlay": "string",
    "schema_version": "int32",
}

#: Names of the columns, in order.
COLUMNS = tuple(_TYPES)


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(_TYPES), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def _as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    table = arrow_table(rows)
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _text(text: str) -> str:
    """Make text of a file name that is not UTF-8, which some file systems allow."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
