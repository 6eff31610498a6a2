"""What `import defectcam` promises: these names, quickly, and nothing of the caller's changed."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import metadata, resources

import pytest

import defectcam

PUBLIC = [
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
    "SkippedFilesWarning",
    "PROCurveDisplay",
    "PartCropper",
    "SuspectLabelsWarning",
    "TemplateAligner",
    "ThresholdDisplay",
    "TypeConfusionDisplay",
    "__version__",
    "find_near_duplicates",
    "load",
    "localize",
]


def run_python(code: str) -> str:
    """Return what a new interpreter prints for `code`."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_all_lists_exactly_the_public_names() -> None:
    assert sorted(defectcam.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(defectcam))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_can_be_imported(name: str) -> None:
    value = getattr(defectcam, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_version_is_the_installed_one() -> None:
    assert defectcam.__version__ == metadata.version("defectcam")


def test_module_of_annotations_is_not_the_feature_of_that_name() -> None:
    code = "from defectcam import annotations; print(annotations.__name__)"
    assert run_python(code) == "defectcam.annotations"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'DefectClassifier'"):
        _ = defectcam.DefectClassifier


def test_package_is_typed() -> None:
    assert (resources.files("defectcam") / "py.typed").is_file()


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'cv2', 'sklearn', 'PIL'}"
    assert run_python(f"import sys, defectcam; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_localization_needs_no_torch() -> None:
    code = "import sys; from defectcam import Localization; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_import_is_quick() -> None:
    start = time.perf_counter()
    run_python("import defectcam")
    assert time.perf_counter() - start < 5  # far above what it takes, far below loading torch twice


def test_importing_every_module_leaves_global_state_alone() -> None:
    code = """
import importlib, logging, os, pkgutil, random, sys
import cv2, numpy, torch

def settings():
    return {
        "torch threads": torch.get_num_threads(),
        "torch dtype": torch.get_default_dtype(),
        "torch gradients": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "cv2 threads": cv2.getNumThreads(),
        "logging": list(logging.root.handlers),
        "threads of libraries": {k: v for k, v in os.environ.items() if k.endswith("_THREADS")},
    }

def generators():
    _, keys, *rest = numpy.random.get_state()
    return {
        "random": random.getstate(),
        "numpy": (keys.tobytes(), *rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }

def import_all():
    import defectcam
    for module in pkgutil.iter_modules(defectcam.__path__):
        importlib.import_module(f"defectcam.{module.name}")

def changed(before, after):
    return [name for name in before if before[name] != after[name]]

before = settings()
import_all()
print(changed(before, settings()))

# What other packages draw when first imported (scikit-learn does) is theirs: look a second time.
for name in [name for name in sys.modules if name.split(".")[0] == "defectcam"]:
    del sys.modules[name]
random.seed(123)
numpy.random.seed(123)
torch.manual_seed(123)
before = generators()
import_all()
print(changed(before, generators()))
"""
    assert run_python(code).split("\n") == ["[]", "[]"]
