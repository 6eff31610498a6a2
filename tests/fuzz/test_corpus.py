"""The targets hold on the corpus: seeds, and every input that once broke one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuzz.campaign import CORPUS
from fuzz.targets import NAMES, Target, make_target

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Target]]:
    """Return a function that makes a target, each once."""
    made: dict[str, Target] = {}

    def make(name: str) -> Target:
        if name not in made:
            made[name] = make_target(name, tmp_path_factory.mktemp(name))
        return made[name]

    yield make
    for one in made.values():
        one.close()


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=f"{p.parent.name}-{p.name}") for p in sorted(CORPUS.glob("*/*"))]
)
def test_an_input_is_taken_or_refused_as_documented(
    path: Path, target: Callable[[str], Target]
) -> None:
    target(path.parent.name)(path.read_bytes())


def test_every_target_has_a_corpus_and_it_stays_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(NAMES)
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < 300_000
