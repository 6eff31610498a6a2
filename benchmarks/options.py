"""The options that all benchmarks on data sets share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("benchmarks/results")


def make_parser(
    description: str | None,
    results: str,
    *,
    splits: Sequence[int] = (0, 1, 2),
    test_size: float = 0.2,
    parameters: dict | None = None,
) -> argparse.ArgumentParser:
    """Parser of data sets, splits, the classifier's parameters and the file to keep runs in."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", help="folders in the MVTec AD layout, or elpv")
    parser.add_argument("--splits", nargs="+", type=int, default=list(splits), help="seeds")
    parser.add_argument(
        "--test-size", type=float, default=test_size, help="for another one use another --json"
    )
    parser.add_argument("--same-stem", nargs="*", default=["deeppcb"], metavar="SET")
    parser.add_argument("--json", default=RESULTS / results, type=Path)
    parser.add_argument(
        "--set",
        default=parameters or {},
        type=json.loads,
        dest="parameters",
        metavar="JSON",
        help="""the classifier's parameters set otherwise, e.g. '{"image_size": 224}'""",
    )
    return parser
