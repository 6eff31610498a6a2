"""Prints runs as lines and as Markdown tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from figures import SUSPECTS, calibration_figures

COLUMNS = (
    "balanced accuracy",
    "defect recall",
    "overkill",
    "image AUROC",
    "pixel AUROC",
    "AUPRO",
    "pixel AUROC, defective",
    "AUPRO, defective",
    "pointing",
    "box F1",
    "good with box",
    "ECE",
    SUSPECTS,
    "fit seconds",
    "localize ms per image",
)
WITHOUT_DECIMALS = ("fit seconds", "localize ms per image")
NAMES = ("set", "protocol", "variant", "method")


def title(run: dict[str, Any]) -> str:
    protocol = [] if run["protocol"] == "split" else [run["protocol"], run["variant"]]
    method = run.get("configuration", run["method"])
    return " ".join(map(str, [run["set"], *protocol, method, "split", run["split"]]))


def print_row(run: dict[str, Any]) -> None:
    cells = [f"{name} {run[name]:.{digits(name)}f}" for name in COLUMNS if name in run]
    print(f"{title(run)}: {', '.join(cells)}", flush=True)


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print a Markdown table of means over the splits, with standard deviations."""
    columns = [name for name in COLUMNS if any(name in run for run in runs)]
    print_line(*NAMES, "splits", *columns, first=True)
    for names, chosen in groups(runs):
        cells = []
        for column in columns:
            values = [run[column] for run in chosen if column in run]
            spread = f" ± {np.std(values):.{digits(column)}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits(column)}f}{spread}" if values else "-")
        print_line(*names, len(chosen), *cells)


def print_pooled(runs: list[dict[str, Any]]) -> None:
    """Print a Markdown table of figures over the test images of all splits together."""
    kept = [run for run in runs if "predictions" in run]
    if not kept:
        return
    print("\nPooled over splits:")
    print_line(*NAMES, "splits", "images", "ECE", "Brier", "good with box", first=True)
    for names, chosen in groups(kept):
        print_line(*names, len(chosen), *pooled_cells(chosen))


def pooled_cells(runs: list[dict[str, Any]]) -> list[str]:
    truth = [np.array(run["predictions"]["is_defect"], bool) for run in runs]
    is_defect = np.concatenate(truth)
    calibration = {"ECE": "-", "Brier": "-"}
    if all("probability" in run["predictions"] for run in runs):
        probability = np.concatenate([run["predictions"]["probability"] for run in runs])
        figures = calibration_figures(is_defect, probability)
        calibration = {name: f"{value:.3f}" for name, value in figures.items()}
    with_box = np.average(
        [run["good with box"] for run in runs], weights=[(~bad).sum() for bad in truth]
    )
    return [str(len(is_defect)), calibration["ECE"], calibration["Brier"], f"{with_box:.3f}"]


def groups(runs: list[dict[str, Any]]) -> list[tuple[tuple, list[dict[str, Any]]]]:
    """Runs that differ in their split only, under what names them."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for run in runs:
        variant = "-" if run["variant"] is None else run["variant"]
        found.setdefault((run["set"], run["protocol"], variant, run["method"]), []).append(run)
    return list(found.items())


def print_line(*cells: Any, first: bool = False) -> None:
    if first:
        print()
    print("| " + " | ".join(map(str, cells)) + " |")
    if first:
        print("|---" * len(cells) + "|")


def digits(column: str) -> int:
    return 0 if column in WITHOUT_DECIMALS else 3
