"""Prints the peak resident memory of one fit, in bytes above what the imported libraries take.

    python benchmarks/peak.py task.json

The file holds `parameters` of the classifier, `images` and `labels`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from defectcam import DefectCAMClassifier


def main(task_file: str) -> None:
    task = json.loads(Path(task_file).read_text())
    warnings.simplefilter("ignore", UserWarning)
    before = resident()
    DefectCAMClassifier(**task["parameters"]).fit(task["images"], task["labels"])
    print(peak() - before)


def resident() -> int:
    """Bytes now; where the system does not say, the most so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def peak() -> int:
    import resource  # not on Windows

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


if __name__ == "__main__":
    main(sys.argv[1])
