"""What the description in a model file may say, checked before anything is made of it.

Owns the schema of the JSON part and its limits. It reads no file and knows neither torch nor the
classifier: whether tensors fit the description is `persistence`'s matter.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["MAX_HEADER", "check_description", "parse_json"]

#: Most bytes of a file's header, the description and the list of tensors; real ones have 20 kB.
MAX_HEADER = 2**24

#: Largest side and area of the network's input, in pixels.
MAX_SIDE = 2**16
MAX_AREA = 2**28

#: Most classes, and most characters of all labels as NumPy keeps them.
MAX_CLASSES = 2**14
MAX_LABEL_CHARACTERS = 2**22

#: What a file may not set: code, and folders of the machine that reads it.
NOT_IN_FILES = ("callbacks", "memory")

_DIGEST = re.compile(r"[0-9a-f]{32}")
_LABEL_DTYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|U(\d{1,7}))")


def parse_json(text: str) -> Any:
    """Read strict JSON, which knows neither NaN nor infinity.

    Raises
    ------
    ValueError
        If it is not JSON, or nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"its description holds {constant}, which is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("its description is nested too deeply") from error


def check_description(description: Any) -> None:
    """Refuse a description whose entries are not of the kind and in the range that `save` writes.

    Parameters
    ----------
    description : dict
        Entries that it has besides are left alone: a later release may add some.

    Raises
    ------
    KeyError
        If an entry is missing.
    ValueError
        Naming the entry, what was expected and what was found.
    """
    _check_rules(description, _RULES)
    if description.get("tile_model") is not None:
        _check_tile_model(description)
    _check_columns(description["history"])
    excess = sorted(set(description["parameters"]) & set(NOT_IN_FILES))
    if excess:
        raise ValueError(f"its parameters set {', '.join(excess)}, which no file may")
    unknown = sorted(set(description["network"]) - _NETWORK_PARAMETERS)
    if unknown:
        raise ValueError(f"this release does not know its network's {', '.join(unknown)}")


class _Rule(NamedTuple):
    name: str  # entries within entries, joined by dots
    expected: str
    holds: Callable[[Any], bool]
    is_optional: bool = False  # files of 0.1.0 lack it


def _check_rules(description: Any, rules: Sequence[_Rule]) -> None:
    for rule in rules:
        value, is_there = _look_up(description, rule)
        if is_there and not rule.holds(value):
            raise ValueError(f"its {rule.name} is {_short(value)}, expected {rule.expected}")


def _look_up(description: Any, rule: _Rule) -> tuple[Any, bool]:
    value = description
    for key in rule.name.split("."):
        if not isinstance(value, dict):
            raise ValueError(f"its description is no JSON object where {rule.name} should be")
        if key not in value:
            if rule.is_optional:
                return None, False
            raise KeyError(key)
        value = value[key]
    return value, True


def _check_columns(history: dict[str, Any]) -> None:
    if len({len(column) for column in history.values()}) > 1:
        raise ValueError("its history has columns of different lengths")


def _check_tile_model(description: dict[str, Any]) -> None:
    _check_rules(description, _TILE_RULES)
    tile, overlap = (_listed(description["tile_model"][name]) for name in ("tile", "overlap"))
    if any(shared >= side for shared, side in zip(overlap, tile, strict=True)):
        raise ValueError(f"its tile_model.overlap is {overlap}, expected less than its tile {tile}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) < 1e300 and math.isfinite(value)


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_version(value: Any) -> bool:
    return _is_count(value) and value >= 1


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(column, list) for column in value.values())


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _are_spreads(value: Any) -> bool:
    return _are_numbers(value) and min(value) > 0


def _is_size(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))):
        return False
    return min(value) >= 1 and max(value) <= MAX_SIDE and value[0] * value[1] <= MAX_AREA


def _are_levels(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_labels(value: Any) -> bool:
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_CLASSES:
        return False
    kinds = {type(label) for label in value}
    return kinds in ({str}, {bool}, {int}) and all(a < b for a, b in itertools.pairwise(value))


def _is_class_table(value: Any) -> bool:
    return isinstance(value, dict) and not _take_too_much(value.get("dtype"), value.get("labels"))


def _take_too_much(dtype: Any, labels: Any) -> bool:
    """Whether labels of this type would take more memory than any real ones."""
    match = _LABEL_DTYPE.fullmatch(dtype) if isinstance(dtype, str) else None
    if match is None or match[1] is None or not isinstance(labels, Sequence):
        return False
    return int(match[1]) * len(labels) > MAX_LABEL_CHARACTERS


def _is_label_dtype(value: Any) -> bool:
    return isinstance(value, str) and _LABEL_DTYPE.fullmatch(value) is not None


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _listed(value: Any) -> Any:
    """Return what stands for a tuple as a list; None of anything else."""
    return value["tuple"] if isinstance(value, dict) and value.keys() == {"tuple"} else None


def _is_tile(value: Any) -> bool:
    return _is_size(_listed(value))


def _is_overlap(value: Any) -> bool:
    pixels = _listed(value)
    return isinstance(pixels, list) and len(pixels) == 2 and all(map(_is_count, pixels))


def _is_number_of_tiles(value: Any) -> bool:
    return _is_number(value) and value >= 1


def _is_rate(value: Any) -> bool:
    return value == {"float": "inf"} or (_is_number(value) and value > 0)


def _is_coefficient(value: Any) -> bool:
    numbers = _listed(value)
    return isinstance(numbers, list) and len(numbers) == 1 and _is_number(numbers[0])


def _is_fingerprint(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"digest", "labels"}:
        return False
    digest, labels = value["digest"], value["labels"]
    is_digest = isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
    return is_digest and isinstance(labels, dict) and all(map(_is_count, labels.values()))


def _short(value: Any) -> str:
    return f"{value!r:.60}"


_RULES = (
    _Rule("schema_version", "a whole number from 1", _is_version),
    _Rule("versions", "an object of texts", _are_texts),
    _Rule("versions.defectcam", "text", _is_text),
    _Rule("parameters", "an object", _is_object),
    _Rule("network", "an object", _is_object),
    _Rule("network.backbone", "a name", _is_text),
    _Rule("built_with", "an object", _is_object, is_optional=True),
    _Rule("novelty_levels", "a list of whole numbers", _are_levels),
    _Rule("weights_source", "text or null", _or_null(_is_text)),
    _Rule("preprocessing", "an object", _is_object),
    _Rule("preprocessing.image_size", f"a height and a width up to {MAX_SIDE}", _is_size),
    _Rule("preprocessing.mean", "three numbers", _are_numbers),
    _Rule("preprocessing.std", "three positive numbers", _are_spreads),
    _Rule("preprocessing.resize", "text", _is_text),
    _Rule("classes", "an object of labels that fit into memory", _is_class_table),
    _Rule("classes.dtype", "the type of texts, booleans or integers", _is_label_dtype),
    _Rule("classes.labels", "two or more sorted labels of one type", _are_labels),
    _Rule("classes.good", "a whole number", _is_count),
    _Rule("threshold", "a probability, from 0 to 1", _is_probability),
    _Rule("defect_probability", "an object", _is_object),
    _Rule("heat_model", "an object", _is_object),
    _Rule("familiarity_limit", "a number or null", _or_null(_is_number), is_optional=True),
    _Rule("tile_model", "an object or null", _or_null(_is_object), is_optional=True),
    _Rule("interrupted", "true, false or null", _or_null(_is_switch), is_optional=True),
    _Rule("n_images_seen", "a whole number", _is_count, is_optional=True),
    _Rule("n_rows_seen", "a whole number or null", _or_null(_is_count), is_optional=True),
    _Rule("training_data", "a fingerprint or null", _or_null(_is_fingerprint), is_optional=True),
    _Rule("history", "an object of lists", _is_table),
)

#: Of the model of tiles, where there is one.
_TILE_RULES = (
    _Rule("tile_model.tile", f"a height and a width up to {MAX_SIDE}", _is_tile),
    _Rule("tile_model.overlap", "a height and a width from 0", _is_overlap),
    _Rule("tile_model.n_tiles", "a number from 1", _is_number_of_tiles),
    _Rule("tile_model.rate", "a positive number or infinity", _is_rate),
    _Rule("tile_model.probability", "an object", _is_object),
    _Rule("tile_model.probability.coefficients", "one number", _is_coefficient),
    _Rule("tile_model.probability.intercept", "a number", _is_number),
)

_NETWORK_PARAMETERS = frozenset(
    [
        "backbone",
        "trainable_stages",
        "evidence_stages",
        "normalise_evidence",
        "precision",
        "pooling",
        "pooling_fraction",
        "heatmap",
    ]
)
