"""Changes the code in small ways, one at a time, and counts which changes the tests notice.

``make mutation`` calls it. Modules and test files are set under ``tool.mutmut`` in pyproject.toml;
``--sample`` takes so many changes of each module, always the same ones. ``mutmut show NAME`` shows
a change that survived.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOM = ROOT / "mutants"

#: Exit codes of a mutant's tests: those of pytest, and of signals; 36 and -24 are time-outs.
SURVIVED, NO_TESTS, NOT_RUN = (0,), (5, 33), (None,)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="mutants of each module (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args()
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(args.jobs)]
    if args.sample is None:
        subprocess.call(command, cwd=ROOT)
    else:
        if not list(ROOM.glob("defectcam/*.meta")):  # a run of one module makes those of all
            subprocess.call([*command, "defectcam.cam.x_signed_cam__mutmut_1"], cwd=ROOT)
        chosen = [name for names in outcomes().values() for name in sampled(names, args.sample)]
        subprocess.call([*command, *chosen], cwd=ROOT)
    print(f"{'module':<13}{'mutants':>8}{'run':>6}{'killed':>8}{'share':>8}")
    for module, codes in outcomes().items():
        n_run = sum(code not in NOT_RUN for code in codes.values())
        survivors = [name for name, code in codes.items() if code in (*SURVIVED, *NO_TESTS)]
        n_killed = n_run - len(survivors)
        share = f"{100 * n_killed / max(n_run, 1):.1f} %"
        print(f"{module:<13}{len(codes):>8}{n_run:>6}{n_killed:>8}{share:>8}")
        print(*(f"    {name}\n" for name in survivors), sep="", end="")
    return 0


def outcomes() -> dict[str, dict[str, int | None]]:
    """Return the exit code of each mutant's tests by module; None of those that were not run."""
    found = {}
    for path in sorted(ROOM.glob("defectcam/*.py.meta")):
        codes = json.loads(path.read_text("utf-8"))["exit_code_by_key"]
        if codes:
            found[path.name.partition(".")[0]] = codes
    return found


def sampled(names: dict[str, int | None], n: int) -> list[str]:
    """Choose always the same ones."""
    listed = sorted(names)
    return random.Random(0).sample(listed, min(n, len(listed)))


if __name__ == "__main__":
    sys.exit(main())
