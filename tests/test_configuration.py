"""Files of parameters: what is written is what is read back, and what the API says."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from defectcam import DefectCAMClassifier
from defectcam.configuration import (
    LEFT_OUT,
    ConfigurationError,
    configuration_text,
    read_configuration,
)
from defectcam.recipes import VGG16_CAM


class Estimator:
    """An estimator.

    Parameters
    ----------
    depth : int or None, default=None
        How deep, in ``mm``,
        in two lines.

        And a second paragraph.
    low, high : float, default=0.5
    name : str
        The name.

    Attributes
    ----------
    depth_ : int
        Not a parameter.
    """

    def __init__(
        self,
        depth: Any = None,
        low: Any = 0.5,
        high: Any = float("inf"),
        name: Any = 'a "b"\\c',
        sizes: Any = (4, 8),
        flag: Any = True,
        verbose: Any = 0,
    ) -> None: ...


def read(tmp_path: Path, text: str, estimator: type = Estimator) -> dict[str, Any]:
    (tmp_path / "parts.toml").write_text(text, encoding="utf-8")
    return read_configuration(tmp_path / "parts.toml", estimator)


def test_the_text_has_each_parameter_with_meaning_and_value() -> None:
    head, *blocks = configuration_text(Estimator).rstrip().split("\n\n")
    assert head.startswith("# Parameters of Estimator")
    assert blocks == [
        "# int or None, default=None\n# How deep, in mm, in two lines. And a second paragraph.\n"
        'depth = "none"',
        "# float, default=0.5\nlow = 0.5",
        "# float, default=0.5\nhigh = inf",
        '# str\n# The name.\nname = "a \\"b\\"\\\\c"',
        "sizes = [4, 8]",
        "flag = true",
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    signature = inspect.signature(Estimator).parameters
    defaults = {name: p.default for name, p in signature.items() if name != "verbose"}
    assert read(tmp_path, configuration_text(Estimator)) == defaults


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufefflow = 0.25\n") == {"low": 0.25}


@pytest.mark.parametrize("values", [{}, VGG16_CAM])
def test_all_parameters_of_the_classifier_are_written(
    values: dict[str, Any], tmp_path: Path
) -> None:
    clf = DefectCAMClassifier(**values)
    text = configuration_text(DefectCAMClassifier, clf.get_params())
    expected = {name: v for name, v in clf.get_params().items() if name not in LEFT_OUT}
    assert read(tmp_path, text, DefectCAMClassifier) == expected
    for block in text.rstrip().split("\n\n")[1:]:  # each is explained by its docstring
        assert block.startswith("# "), block


def test_values_are_turned_into_python(tmp_path: Path) -> None:
    text = 'image_size = [240, 320]\nweights = "None"\nrandom_state = "none"\nbackbone = "none"\n'
    text += "[class_weight]\ngood = 1\nscratch = 5.5\n"
    assert read(tmp_path, text, DefectCAMClassifier) == {
        "image_size": (240, 320),
        "weights": None,
        "random_state": None,
        "backbone": "none",  # which cannot be None
        "class_weight": {"good": 1, "scratch": 5.5},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image_sice = 3", "'image_sice' is no parameter .* Did you mean 'image_size'?"),
        ("image-size = 3", "Did you mean 'image_size'?"),
        ("[training]\nbatch_size = 3", "'training' is no parameter"),
        ("verbose = 1", "'verbose' cannot be given in a file"),
        ("backbone = \nweights = 1", r"is no TOML file: .*line 1"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        read(tmp_path, text, DefectCAMClassifier)
    assert "parts.toml" in str(raised.value)


def test_nothing_is_guessed_from_afar(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, "qqqqqqqq = 3", DefectCAMClassifier)
    assert "Did you mean" not in str(raised.value)
