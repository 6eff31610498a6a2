"""What a parameter must be, where scikit-learn's declared constraints cannot say it.

Owns rules about single parameters of any estimator, in scikit-learn's wording. It depends on
nothing else in the package, and what a parameter means is not its matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, InvalidParameterError

#: Smallest height and width of the network's input, in pixels.
LEAST_IMAGE_SIZE = 16


def refuse_booleans(estimator: BaseEstimator) -> None:
    """Refuse True and False where a number is expected: in Python they are 1 and 0.

    Parameters
    ----------
    estimator : BaseEstimator
        With ``_parameter_constraints``.

    Raises
    ------
    InvalidParameterError
        Naming the parameter.
    """
    for name, constraints in estimator._parameter_constraints.items():
        value = getattr(estimator, name)
        intervals = [str(one) for one in constraints if isinstance(one, Interval)]
        if intervals and isinstance(value, (bool, np.bool_)):
            raise InvalidParameterError(_must_be(estimator, name, " or ".join(intervals), value))


def check_image_size(estimator: BaseEstimator, image_size: Any) -> None:
    """Refuse what is neither one size nor a height and a width.

    Parameters
    ----------
    estimator : BaseEstimator
        Named in the message.
    image_size : int or (int, int)

    Raises
    ------
    InvalidParameterError
        Naming the parameter.
    """
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size,) * 2
    is_whole = all(isinstance(s, Integral) and not isinstance(s, bool) for s in sides)
    if len(sides) != 2 or not is_whole or min(sides) < LEAST_IMAGE_SIZE:
        allowed = f"an int or a pair (height, width) of ints in the range [{LEAST_IMAGE_SIZE}, inf)"
        raise InvalidParameterError(_must_be(estimator, "image_size", allowed, image_size))


def check_class_weight(estimator: BaseEstimator, class_weight: Any) -> None:
    """Refuse weights of classes that no loss can be weighed with.

    Parameters
    ----------
    estimator : BaseEstimator
        Named in the message.
    class_weight : dict, float, str or None
        Of a dict, the values are looked at; 0 leaves a class out of the loss.

    Raises
    ------
    InvalidParameterError
        If a weight is negative, no number or beyond single precision, or if all are 0.
    """
    if not isinstance(class_weight, (Mapping, Real)):
        return
    weights = list(class_weight.values()) if isinstance(class_weight, Mapping) else [class_weight]
    largest = float(np.finfo(np.float32).max)
    is_fit = all(
        isinstance(w, Real) and not isinstance(w, bool) and 0 <= float(w) <= largest
        for w in weights
    )
    if not is_fit or (weights and not any(weights)):
        allowed = (
            "'balanced', None, or made of floats in the range [0.0, 3.4e+38], not all of them 0"
        )
        raise InvalidParameterError(_must_be(estimator, "class_weight", allowed, class_weight))


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or this machine does not have.

    Parameters
    ----------
    device : str
        ``"auto"``, or torch's name of a device.

    Raises
    ------
    ValueError
        Naming the parameter.
    """
    if device == "auto":
        return
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the latter of "meta"
        why = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device={device!r} cannot be used on this machine; 'auto' always can. ({why}.)"
        ) from error


def _must_be(estimator: BaseEstimator, name: str, allowed: str, value: Any) -> str:
    return (
        f"The {name!r} parameter of {type(estimator).__name__} must be {allowed}. "
        f"Got {value!r} instead."
    )
