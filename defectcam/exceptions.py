"""What complaints have in common: the categories of warnings, and the base of errors about files.

Owns the names of the warnings about the images that were given, the line of the caller's
that they are attributed to, and `DataError`. Depends on nothing else in the package; what a warning
or an error says is written where it is found out.
"""

from __future__ import annotations

import sys
import warnings

__all__ = [
    "ChanceLevelWarning",
    "DataError",
    "FewDefectsWarning",
    "NearDuplicateWarning",
    "OnlyGoodImagesWarning",
    "SkippedFilesWarning",
    "SuspectLabelsWarning",
    "warn_caller",
]

_PASSED_THROUGH = ("defectcam", "sklearn")


class DataError(ValueError):
    """A file or an array that cannot be used, while the call itself was right.

    The base of `defectcam.images.ImageReadError`, `defectcam.persistence.ModelFileError`,
    `defectcam.runtime.ExportedModelError` and the like.
    """


class OnlyGoodImagesWarning(UserWarning):
    """`fit` was given good images alone, so novelty alone decides.

    Defective images, even a few, add what novelty does not know: which oddities matter.
    """


class FewDefectsWarning(UserWarning):
    """`fit` was given so few defective images that what it measured on them is uncertain."""


class ChanceLevelWarning(UserWarning):
    """Held-out good and defective images could not be told apart better than by chance."""


class SuspectLabelsWarning(UserWarning):
    """Held-out predictions confidently contradict the labels of some training images.

    `DefectCAMClassifier.suspects_` lists the images, the most suspect ones first.
    """


class NearDuplicateWarning(UserWarning):
    """Training images that are copies of one another are labelled good and defective."""


class SkippedFilesWarning(UserWarning):
    """A folder holds pictures in a format that is not read, HEIC for example; they are left out."""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, attributed to the line outside this package and scikit-learn that called in.

    How many frames lie between depends on decorators and on who calls `fit`: an estimator may be
    fitted by `cross_val_score`.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_globals.get("__name__", "").split(".")[0] in _PASSED_THROUGH and frame.f_back:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
