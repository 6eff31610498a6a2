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
    from defectcam.evidence_transformer import EvidenceTransformer
    from defectcam.exceptions import (
        ChanceLevelWarning,
        FewDefectsWarning,
        NearDuplicateWarning,
        OnlyGoodImagesWarning,
        SkippedFilesWarning,
        SuspectLabelsWarning,
    )
    from defectcam.flat import FlatImages
    from defectcam.persistence import load
    from defectcam.plots import (
        DefectDensityDisplay,
        HeatmapGridDisplay,
        HistoryDisplay,
        LocalizationDisplay,
        PROCurveDisplay,
        ThresholdDisplay,
        TypeConfusionDisplay,
    )
    from defectcam.results import Localization
    from defectcam.transformers import (
        ContrastEqualizer,
        FlatFieldCorrector,
        PartCropper,
        TemplateAligner,
        localize,
    )

del annotations  # the feature of `__future__` would hide the module of that name

__version__ = "0.1.0"
__all__ = [
    "ChanceLevelWarning",
    "ContrastEqualizer",
    "DefectCAMClassifier",
    "DefectDensityDisplay",
    "EvidenceTransformer",
    "FewDefectsWarning",
    "FlatFieldCorrector",
    "FlatImages",
    "HeatmapGridDisplay",
    "HistoryDisplay",
    "Localization",
    "LocalizationDisplay",
    "NearDuplicateWarning",
    "OnlyGoodImagesWarning",
    "PROCurveDisplay",
    "PartCropper",
    "SkippedFilesWarning",
    "SuspectLabelsWarning",
    "TemplateAligner",
    "ThresholdDisplay",
    "TypeConfusionDisplay",
    "__version__",
    "find_near_duplicates",
    "load",
    "localize",
]

_MODULE_OF = {
    "ChanceLevelWarning": "defectcam.exceptions",
    "ContrastEqualizer": "defectcam.transformers",
    "DefectCAMClassifier": "defectcam.classifier",
    "DefectDensityDisplay": "defectcam.plots",
    "EvidenceTransformer": "defectcam.evidence_transformer",
    "FewDefectsWarning": "defectcam.exceptions",
    "FlatFieldCorrector": "defectcam.transformers",
    "FlatImages": "defectcam.flat",
    "HeatmapGridDisplay": "defectcam.plots",
    "HistoryDisplay": "defectcam.plots",
    "Localization": "defectcam.results",
    "LocalizationDisplay": "defectcam.plots",
    "NearDuplicateWarning": "defectcam.exceptions",
    "OnlyGoodImagesWarning": "defectcam.exceptions",
    "SkippedFilesWarning": "defectcam.exceptions",
    "PROCurveDisplay": "defectcam.plots",
    "PartCropper": "defectcam.transformers",
    "SuspectLabelsWarning": "defectcam.exceptions",
    "TemplateAligner": "defectcam.transformers",
    "ThresholdDisplay": "defectcam.plots",
    "TypeConfusionDisplay": "defectcam.plots",
    "find_near_duplicates": "defectcam.duplicates",
    "load": "defectcam.persistence",
    "localize": "defectcam.transformers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'defectcam' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULE_OF))
