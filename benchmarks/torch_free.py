"""An exported model where PyTorch is not installed: what is, how soon it answers, and what.

    python benchmarks/torch_free.py path/to/pill path/to/deeppcb path/to/magnetic_tile \
        --model pill.safetensors

Makes an empty virtual environment, installs this project's wheel and docs/requirements-runtime.txt
into it as the documentation says, and lists what that takes. There, in new processes, an image of
the first set is localised, --repeats times (from the start of the import to its boxes), and images
of all sets are compared with the classifier's answers in float32 here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from printing import print_line

from defectcam import load
from defectcam.datasets import load_mvtec
from defectcam.parity import in_float32

ROOT = Path(__file__).parents[1]

SIZES = """
import importlib.metadata, json

def size(distribution):
    places = [file.locate() for file in distribution.files or []]
    return sum(place.stat().st_size for place in places if place.exists())

print(json.dumps([(d.name, d.version, size(d)) for d in importlib.metadata.distributions()]))
"""

ANSWER = """
import time
started = time.perf_counter()
import json, sys
from defectcam.runtime import Inspector
inspector = Inspector(sys.argv[1], n_threads=1)
inspector.localize(sys.argv[2]).boxes
figures = {"seconds": time.perf_counter() - started, "processor": time.process_time()}
if sys.platform == "linux":  # not `getrusage`, whose peak is that of the parent process too
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    figures["MB"] = int(status["VmHWM"].split()[0]) / 1024
assert not {"torch", "sklearn", "scipy"} & set(sys.modules)
figures["answers"] = [found.to_dict() for found in inspector.localize(sys.argv[2:])]
print(json.dumps(figures))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", help="folders in the MVTec AD layout")
    parser.add_argument("--model", required=True, help="a file that `save` has written")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5, help="cold starts")
    options = parser.parse_args()
    clf = load(options.model, device="cpu")
    images = spread(options.sets, options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = install(folder)
        print_sizes(json.loads(output(python, SIZES)))
        clf.export(folder / "part.onnx")
        command = (python, ANSWER, folder / "part.onnx")
        starts = [json.loads(output(*command, images[0])) for _ in range(options.repeats)]
        answers = json.loads(output(*command, *images))["answers"]
    del starts[0]["answers"]
    medians = {key: statistics.median(one[key] for one in starts) for key in starts[0]}
    print("cold start to the first image's boxes, one thread, medians: ", end="")
    print(", ".join(f"{key} {value:.2f}" for key, value in medians.items()))
    print_differences(answers, [found.to_dict() for found in in_float32(clf).localize(images)])


def spread(sets: list[str], n: int) -> list[str]:
    """Images of all sets in turn, spread evenly over each."""
    paths = [[str(path) for path in load_mvtec(one).paths] for one in sets]
    share = -(-n // len(sets))
    chosen = [one[i * len(one) // share] for i in range(share) for one in paths]
    return chosen[:n]


def install(folder: Path) -> Path:
    """Make the environment as docs/guide/export.md says; return its interpreter."""
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    venv.create(folder / "venv", with_pip=False)
    python = next((folder / "venv").glob("[bS]*/python*"))
    into = (*pip, "--python", python, "install", "--quiet")
    run(*into, "--no-deps", next(folder.glob("*.whl")))
    run(*into, "-r", ROOT / "docs" / "requirements-runtime.txt")
    return python


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    return done.stdout


def output(python: Path, code: str, *arguments: object) -> str:
    return run(python, "-c", code, *arguments)


def print_sizes(distributions: list[tuple[str, str, int]]) -> None:
    print_line("package", "version", "MB installed", first=True)
    for name, version, n_bytes in sorted(distributions):
        print_line(name, version, f"{n_bytes / 1e6:.1f}")
    print_line("all", "", f"{sum(size for _, _, size in distributions) / 1e6:.0f}")
    print()


def print_differences(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    pairs = list(zip(answers, expected, strict=True))
    probability = max(abs(a["probability"] - e["probability"]) for a, e in pairs)
    others = {key: sum(a[key] != e[key] for a, e in pairs) for key in ("label", "boxes")}
    print(
        f"{len(pairs)} images with {sum(len(e['boxes']) for e in expected)} boxes: probabilities "
        f"within {probability:.1e}, {others['label']} other labels, {others['boxes']} other boxes"
    )


if __name__ == "__main__":
    main()
