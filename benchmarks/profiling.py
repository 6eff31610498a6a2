"""Where the time of a call goes: seconds within named functions of the library, by cProfile."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

#: What a step of `fit` and of `localize` does: file and name of the function that does all of it.
#: No function of a list calls another one of it.
FIT_STEPS = {
    "check that files can be read": ("images.py", "check_readable"),
    "wait for images: decoding, resizing": ("threads.py", "_ordered_results"),
    "trunk, all views": ("network.py", "trunk_features"),
    "codebooks": ("cross_fitting.py", "add_codebook"),
    "epochs of the tails": ("training.py", "_epoch"),
    "score images after each tail": ("training.py", "scores"),
    "batch normalisation after each tail": ("training.py", "update_batch_norm"),
    "students": ("fitting.py", "_teach_students"),
    "thresholds and scales": ("classifier.py", "_calibrate"),
}
LOCALIZE_STEPS = {
    "wait for images: decoding, resizing": ("threads.py", "_ordered_results"),
    "trunk": ("network.py", "trunk_features"),
    "tail": ("network.py", "level_features"),
    "evidence": ("heads.py", "level_evidence"),
    "novelty": ("novelty.py", "forward"),
    "fuse and scale the map": ("heat_model.py", "grids"),
    "map at the image's size": ("geometry.py", "restore"),
    "boxes": ("boxes.py", "find_boxes"),
}


def profile(call: Callable[[], object], steps: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Return the seconds of each step, of everything else, and of the whole call."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    stats = pstats.Stats(profiler)
    seconds = dict.fromkeys(steps, 0.0)
    for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        for step, (module, function) in steps.items():
            if name == function and file.replace("\\", "/").endswith(f"defectcam/{module}"):
                seconds[step] += cumulative
    whole = stats.total_tt  # type: ignore[attr-defined]
    return seconds | {"everything else": whole - sum(seconds.values()), "whole": whole}
