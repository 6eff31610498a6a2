"""One screen of each command, as docs/cli.md shows them.

    python benchmarks/screens.py > screens.txt

Runs the commands on generated parts in a temporary folder and prints each with what it answers.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from defectcam.datasets import make_defects

MOST_LINES = 14  # but of `info` all
COMMANDS = (
    "doctor parts",
    "doctor broken",
    "init -o parts.toml",
    "split parts -o split --form links --random-state 0",
    "fit split/train -o part.safetensors --config parts.toml --image-size 128 --random-state 0",
    "info part.safetensors",
    "predict part.safetensors split/test/scratch",
    "localize part.safetensors split/test/scratch -o found",
    "evaluate part.safetensors split/test",
    "query part.safetensors new -n 3",
    "watch part.safetensors new -o judged",
)


def draw(folder: Path, n_samples: int, seed: int, typed: bool = True) -> None:
    data = make_defects(n_samples, 128, random_state=seed, severity=(0.5, 1.0))
    for number, (image, type_) in enumerate(zip(data.images, data.types, strict=True)):
        path = folder / (type_ if typed else "") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def break_some(folder: Path) -> None:
    whole = (folder / "good" / "000.png").read_bytes()
    (folder / "good" / "000.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(next((folder / "scratch").iterdir()), folder / "good" / "copy.png")


def show(command: str, folder: Path) -> None:
    arguments = [sys.executable, "-m", "defectcam", *shlex.split(command)]
    with (folder / ".printed").open("w+") as printed:
        streams = {"stdout": printed, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(arguments, cwd=folder, **streams)  # type: ignore[call-overload]
        if command.startswith("watch"):
            results = folder / "judged" / "results.jsonl"
            while not results.exists() or results.read_bytes().count(b"\n") < 8:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
        code = process.wait()
        printed.seek(0)
        lines = printed.read().splitlines()
    print(f"$ defectcam {command}")
    most = len(lines) if command.startswith("info") else MOST_LINES
    print("\n".join(lines[:most] + ["..."] * (len(lines) > most)))
    print(f"(exit code {code})\n" if code else "", flush=True)


def main() -> None:
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder / "parts", 120, seed=0)
        shutil.copytree(folder / "parts", folder / "broken")
        break_some(folder / "broken")
        draw(folder / "new", 8, seed=1, typed=False)
        for command in ("--help", *COMMANDS):
            show(command, folder)


if __name__ == "__main__":
    main()
