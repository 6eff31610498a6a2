"""Parameters in a TOML file: writes one with all of them explained, reads one back.

Owns the file's form. What the parameters are, what they mean and which of them may be None comes
from the estimator class that is passed in: its signature, its docstring and scikit-learn's
constraints; so nothing here can go stale.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ConfigurationError", "configuration_text", "read_configuration"]

#: Not to be written in a file: functions, and what the command line decides.
LEFT_OUT = ("callbacks", "verbose")

_NONE = "none"
_WIDTH = 96


class ConfigurationError(ValueError):
    """A file of parameters that cannot be used: the message names the file and the key."""


def configuration_text(estimator: type, values: Mapping[str, Any] | None = None) -> str:
    """Write all parameters of an estimator as a TOML file, with their meaning as comments.

    Parameters
    ----------
    estimator : type
        An estimator class with a NumPy-style docstring.
    values : mapping, optional
        In the place of defaults.

    Returns
    -------
    str
        None is written as ``"none"``, since TOML has no null.
    """
    meanings = _meanings(estimator)
    blocks = [
        f"# Parameters of {estimator.__name__}, each with its value. Lines that you do not change "
        "can go:\n# what is not here has its default. Used by: defectcam fit FOLDER -o MODEL "
        "--config THIS_FILE"
    ]
    for name, default in _parameters(estimator).items():
        value = (values or {}).get(name, default)
        comments = [f"# {line}" for line in meanings[name]]
        blocks.append("\n".join([*comments, f"{name} = {_toml(value)}"]))
    return "\n\n".join(blocks) + "\n"


def read_configuration(path: str | os.PathLike[str], estimator: type) -> dict[str, Any]:
    """Read parameters of an estimator from a TOML file.

    Parameters
    ----------
    path : str or PathLike
    estimator : type
        The class whose parameters they are.

    Returns
    -------
    dict
        Keyword arguments. Arrays are tuples, ``"none"`` is None where None is allowed.

    Raises
    ------
    ConfigurationError
        If the file is no TOML, or has a key that is no parameter; the nearest name is suggested.
    OSError
        If the file cannot be read.
    """
    try:
        # Editors on Windows may begin a file with a byte-order mark, which TOML does not know.
        found = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML file: {error}.") from error
    known = _parameters(estimator)
    for name in found:
        if name not in known:
            raise ConfigurationError(f"{path}: {_unknown(name, list(known), estimator)}")
    constraints: Mapping[str, Any] = getattr(estimator, "_parameter_constraints", {})
    return {
        name: _python(value, known[name] is None or None in constraints.get(name, ()))
        for name, value in found.items()
    }


def _parameters(estimator: type) -> dict[str, Any]:
    parameters = inspect.signature(estimator).parameters
    return {name: p.default for name, p in parameters.items() if name not in LEFT_OUT}


def _unknown(name: str, known: list[str], estimator: type) -> str:
    if name in LEFT_OUT:
        return f"{name!r} cannot be given in a file."
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return (
        f"{name!r} is no parameter of {estimator.__name__}. {hint}"
        "`defectcam init` writes a file with all of them."
    )


def _meanings(estimator: type) -> dict[str, list[str]]:
    """Return each parameter's type line and description, as lines of the docstring's text."""
    text = inspect.getdoc(estimator) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", text, re.S | re.M)
    entries = re.split(r"^(?=\w.* : )", section.group(1) if section else "", flags=re.M)
    meanings: dict[str, list[str]] = {name: [] for name in _parameters(estimator)}
    for entry in entries:
        head, _, description = entry.partition("\n")
        names, _, kind = head.partition(" : ")
        plain = " ".join(textwrap.dedent(description).replace("`", "").split())
        for name in names.split(", "):
            if name in meanings:
                meanings[name] = [kind.strip(), *textwrap.wrap(plain, _WIDTH)]
    return meanings


def _toml(value: Any) -> str:
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)  # TOML too writes inf and 3e-04 so
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(os.fspath(value), ensure_ascii=False)  # a basic string has JSON's escapes


def _python(value: Any, may_be_none: bool) -> Any:
    if may_be_none and isinstance(value, str) and value.lower() == _NONE:
        return None
    return tuple(value) if isinstance(value, list) else value
