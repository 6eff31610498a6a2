"""Train on good and defective images, without boxes or masks, and see where the defect is.

This module owns the public names. They are imported on first use, so that `import defectcam`, the
command line's `--help` and all that needs no network start without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.duplicates import find_near_duplicates
    from defectcam.exceptions import (
        ChanceLevelWarning,
        FewDefectsWarning,
        NearDuplicateWarning,
        OnlyGoodImagesWarning,
        SuspectLabelsWarning,
    )
    from defectcam.flat import FlatImages
    from defectcam.persistence import load
    from defectcam.results import Localization
    from defectcam.transformer import EvidenceTransformer

__version__ = "0.1.0"
__all__ = [
    "ChanceLevelWarning",
    "DefectCAMClassifier",
    "EvidenceTransformer",
    "FewDefectsWarning",
    "FlatImages",
    "Localization",
    "NearDuplicateWarning",
    "OnlyGoodImagesWarning",
    "SuspectLabelsWarning",
    "__version__",
    "find_near_duplicates",
    "load",
]

_MODULE_OF = {
    "ChanceLevelWarning": "defectcam.exceptions",
    "DefectCAMClassifier": "defectcam.classifier",
    "EvidenceTransformer": "defectcam.transformer",
    "FewDefectsWarning": "defectcam.exceptions",
    "FlatImages": "defectcam.flat",
    "Localization": "defectcam.results",
    "NearDuplicateWarning": "defectcam.exceptions",
    "OnlyGoodImagesWarning": "defectcam.exceptions",
    "SuspectLabelsWarning": "defectcam.exceptions",
    "find_near_duplicates": "defectcam.duplicates",
    "load": "defectcam.persistence",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'defectcam' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULE_OF))
