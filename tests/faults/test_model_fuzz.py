"""Mutated model files load as equal models or are refused by the documented error alone."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import defectcam
from defectcam.persistence import ModelFileError

FIXED = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PACKAGE = Path(defectcam.__file__).parent

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    "",
    "x",
    "\0",
    [],
    [[]],
    [None] * 3,
    {},
    {"tuple": 1},
    {"tuple": [1, "x"]},
    {"items": [[[], 1]]},
    {"items": 7},
    {"float": "nan"},
    {"float": []},
)


def load_or_refuse(content: bytes, path: Path) -> Any:
    path.write_bytes(content)
    try:
        return defectcam.load(path)
    except ModelFileError:
        return None


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    place=st.floats(0, 1, exclude_max=True),
    in_header=st.booleans(),
    how=st.sampled_from(["flip", "cut", "insert", "overwrite"]),
    bits=st.integers(1, 255),
)
@FIXED
def test_a_damaged_file_is_refused_or_the_same_model(
    shared: dict[str, Any],
    tmp_path: Path,
    place: float,
    in_header: bool,
    how: str,
    bits: int,
) -> None:
    content = bytearray(shared["saved"])
    n_header = 8 + int.from_bytes(content[:8], "little")
    at = int(place * (n_header if in_header else len(content)))
    if how == "flip":
        content[at] ^= bits
    elif how == "cut":
        del content[at:]
    elif how == "insert":
        content.insert(at, bits)
    else:
        content[at : at + 8] = random.Random(bits).randbytes(8)
    loaded = load_or_refuse(bytes(content), tmp_path / "m.safetensors")
    if loaded is not None:
        np.testing.assert_array_equal(
            loaded.predict_proba(shared["images"]), shared["model"].predict_proba(shared["images"])
        )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All entries of a description, and entries of those."""
    found = [path] if path else []
    keys = value if isinstance(value, dict) else range(len(value) if type(value) is list else 0)
    for key in keys:
        found += places(value[key], (*path, key))
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(place=st.floats(0, 1, exclude_max=True), strange=st.sampled_from(STRANGE))
@FIXED
def test_a_strange_description_is_refused_or_taken(
    shared: dict[str, Any], tmp_path: Path, place: float, strange: Any
) -> None:
    n_header = int.from_bytes(shared["saved"][:8], "little")
    header = json.loads(shared["saved"][8 : 8 + n_header])
    description = json.loads(header["__metadata__"]["defectcam"])
    *way, last = (all_places := places(description))[int(place * len(all_places))]
    within = description
    for key in way:
        within = within[key]
    within[last] = strange
    tensors = safetensors.torch.load(shared["saved"])
    content = safetensors.torch.save(tensors, {"defectcam": json.dumps(description)})
    load_or_refuse(content, tmp_path / "m.safetensors")


def test_nothing_on_the_way_of_a_model_file_unpickles_or_runs() -> None:
    harmful = re.compile(
        r"\b(pickle|joblib|marshal|shelve|eval\(|exec\(|import_module|__import__|allow_pickle)\b"
    )
    for name in ("persistence", "model_schema", "labels", "network", "novelty", "preprocess"):
        source = (PACKAGE / f"{name}.py").read_text("utf-8")
        code = re.sub(r'""".*?"""|#[^\n]*', "", source, flags=re.DOTALL)
        assert harmful.findall(code) == [], name


def test_weights_are_only_ever_read_as_weights() -> None:
    n_calls = 0
    for path in PACKAGE.glob("*.py"):
        for call in re.findall(
            r"(?:(?<!safetensors\.)torch\.load|load_state_dict_from_url)\([^)]*\)",
            path.read_text("utf-8"),
        ):
            assert "weights_only=True" in call, f"{path.name}: {call}"
            n_calls += 1
    assert n_calls >= 2  # or the pattern finds them no longer
