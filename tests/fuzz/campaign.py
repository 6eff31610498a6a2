"""A campaign: each target in a process of its own under Atheris, for so many seconds.

``make fuzz`` calls it. What breaks a target is left in ``.fuzz/TARGET/found`` as a file, which
``python -m fuzz.campaign --one TARGET FILE`` runs again; mended, it goes into the corpus.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parent / "corpus"
ROOM = Path(".fuzz")
NAMES = tuple(sorted(folder.name for folder in CORPUS.iterdir()))

#: Packages whose branches guide the fuzzer: ours, and those in Python that read for us.
WATCHED = ["defectcam", "PIL", "tifffile", "yaml", "tomllib", "defusedxml", "starlette"]

#: A target hangs, or takes too much, with more than so many seconds, and megabytes.
PATIENCE, MEMORY = 30, 4096

#: A target that breaks so often is left for its mender.
MAX_FOUND = 3

STRANGE = (
    *(b"", b"-1", b"0", b"1e308", b"-1e-308", b"1e999", b"NaN", b"Infinity", b"0x10", b"9" * 30),
    *(b"null", b"true", b"[]", b"[[]]", b"{}", b'""', b'{"tuple": [1, "x"]}'),
    *(b'{"items": [[1, 2]]}', b"2001-99-99", b"!!timestamp x", b"!!int _", b"!!bool x", b"&a [*a]"),
    *(b"\xff", b"\xef\xbb\xbf", b"../../a.png", b"/", b"C:", b"a.png", b"&#0;", b"-" * 99),
    *(b"\xf0\x9f\x98\x80", b"[" * 300),
)
PNG = b"\x89PNG\r\n\x1a\n"
_TOKEN = re.compile(rb"[\w.+-]+|\"[^\"\n]*\"|[\[{][^\[\]{}\n]*[\]}]")


class Tally(NamedTuple):
    """What a target's run came to."""

    executions: int = 0
    edges: int = 0
    megabytes: int = 0
    found: tuple[str, ...] = ()


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}")
    args = parser.parse_args()
    n_found = 0
    print(f"{'target':<13}{'seconds':>8}{'executions':>12}{'edges':>8}{'peak MB':>9}{'found':>7}")
    for name in args.targets or NAMES:
        start = time.monotonic()
        tally = explore(name, args.seconds)
        seconds = time.monotonic() - start
        n_found += len(tally.found)
        row = f"{name:<13}{seconds:>8.0f}{tally.executions:>12}{tally.edges:>8}"
        print(f"{row}{tally.megabytes:>9}{len(tally.found):>7}", *tally.found, flush=True)
    return 1 if n_found else 0


def explore(name: str, seconds: int) -> Tally:
    """Run a target in processes of its own, anew where it broke, until the time is over."""
    room = ROOM / name
    shutil.rmtree(room, ignore_errors=True)
    shutil.copytree(CORPUS / name, room / "inputs")
    (room / "found").mkdir()
    tally, end = Tally(), time.monotonic() + seconds
    while (left := round(end - time.monotonic())) > 0 and len(tally.found) < MAX_FOUND:
        options = [f"-max_total_time={left}", f"-timeout={PATIENCE}", f"-rss_limit_mb={MEMORY}"]
        options += [f"-report_slow_units={PATIENCE}", "-print_final_stats=1"]
        options += [f"-artifact_prefix={room / 'found'}/"]
        command = [sys.executable, "-m", "fuzz.campaign", "--one", name, *options]
        log = room / f"log-{len(tally.found)}.txt"
        with log.open("wb") as file:
            code = subprocess.call([*command, str(room / "inputs")], stdout=file, stderr=file)
        tally = _added(tally, log.read_text("utf-8", "replace"), room / "found")
        if code and not tally.found:
            return tally._replace(found=(f"did not start: see {log}",))
    return tally


def fuzz(name: str, options: list[str]) -> None:
    """Become the fuzzer of one target; does not return."""
    import atheris

    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with atheris.instrument_imports(include=WATCHED):
        from fuzz.targets import make_target

        target = make_target(name, folder)
        for seed in sorted((CORPUS / name).iterdir()):  # decoders are imported when needed
            target(seed.read_bytes())

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        is_word = rng.random() < 0.5
        mutated = exchanged(data, rng) if is_word else atheris.Mutate(data, max_size)
        return with_checksums(mutated)[:max_size]

    options = ["-max_len=65536", *options]
    atheris.Setup(["fuzz", *options], target, custom_mutator=mutate)
    atheris.Fuzz()


def exchanged(data: bytes, rng: random.Random) -> bytes:
    """Put in the place of a word, a number or a group another one, or something strange."""
    found = list(_TOKEN.finditer(data))
    if not found:
        return data + rng.choice(STRANGE)
    old, other = rng.choice(found), rng.choice(found)
    new = rng.choice([rng.choice(STRANGE), rng.choice(STRANGE), other[0], old[0] * 2])
    return data[: old.start()] + new + data[old.end() :]


def with_checksums(data: bytes) -> bytes:
    """Give the chunks of a PNG file their checksums, without which no decoder looks further."""
    if not data.startswith(PNG):
        return data
    parts, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(parts) + data[at:]


def _added(tally: Tally, log: str, found: Path) -> Tally:
    def last(pattern: str) -> int:
        return max(map(int, re.findall(pattern, log)), default=0)

    return Tally(
        tally.executions + last(r"number_of_executed_units:\s*(\d+)"),
        max(tally.edges, last(r"\bcov: (\d+)")),
        max(tally.megabytes, last(r"peak_rss_mb:\s*(\d+)")),
        tuple(sorted(file.name[:20] for file in found.iterdir())),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
