"""Changes of a line that `DefectCAMClassifier.drift` finds, and how often it finds one for nothing.

    python benchmarks/drift.py

A classifier is fitted on generated parts (`make_defects`). New parts of the same product, 30 %
of them defective, are made darker, blurred, shifted, or mixed with another product, each in three
strengths. Detection is the share of --draws draws of --new images in which a change is found, at
p < 0.05; false alarms are the same for parts as they are.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import cv2
import numpy as np

from defectcam import DefectCAMClassifier
from defectcam.datasets import make_defects
from defectcam.drift import measure_drift

ALPHA = 0.05
Image = np.ndarray


def darker(image: Image, strength: float) -> Image:
    return (image * (1 - strength)).round().astype(np.uint8)


def blurred(image: Image, strength: float) -> Image:
    return cv2.GaussianBlur(image, (0, 0), strength)


def shifted(image: Image, strength: float) -> Image:
    """Move to the right by a share of the width; what comes in repeats the edge."""
    step = round(strength * image.shape[1])
    moved = cv2.copyMakeBorder(image, 0, 0, step, 0, cv2.BORDER_REPLICATE)
    return moved[:, : image.shape[1]]


CHANGES: dict[str, tuple[Callable[[Image, float], Image], tuple[float, ...], str]] = {
    "darker, by": (darker, (0.05, 0.1, 0.2), "{:.0%}"),
    "blurred, sigma in pixels": (blurred, (0.5, 0.7, 1.0), "{}"),
    "shifted, by": (shifted, (0.02, 0.05, 0.1), "{:.0%}"),
}
OTHER_SHARES = (0.1, 0.25, 0.5)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="metal")
    parser.add_argument("--other", default="cast", help="the other product")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--train", type=int, default=80, help="images")
    parser.add_argument("--pool", type=int, default=160, help="new images that are drawn from")
    parser.add_argument("--new", type=int, default=40, help="images per draw")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--changed", type=int, default=80, help="of the pool, for each change")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", UserWarning)

    train = make_defects(options.train, options.size, kind=options.kind, random_state=0)
    pool = make_defects(options.pool, options.size, kind=options.kind, random_state=1).images
    other = make_defects(options.changed, options.size, kind=options.other, random_state=2).images
    clf = DefectCAMClassifier(image_size=options.size, random_state=0, n_jobs=1)
    clf.fit(train.images, train.types)

    rng = np.random.default_rng(0)

    def found(rows: np.ndarray) -> tuple[float, str]:
        """Share of draws with a change, and the statistic that is most often the clearest."""
        results = [
            measure_drift(
                clf.drift_reference_,
                rows[rng.choice(len(rows), options.new, replace=False)],
                clf.threshold_,
                alpha=ALPHA,
            )
            for _ in range(options.draws)
        ]
        names, counts = np.unique([r.tests[0].statistic for r in results], return_counts=True)
        return float(np.mean([r.drifted for r in results])), str(names[counts.argmax()])

    print("| change | strength | detected | clearest in |\n|---|---|---|---|")
    unchanged = clf._drift_rows(pool)
    print(f"| none (false alarms) | - | {found(unchanged)[0]:.1%} | - |", flush=True)
    some = pool[: options.changed]
    for name, (change, strengths, form) in CHANGES.items():
        for strength in strengths:
            share, statistic = found(clf._drift_rows([change(image, strength) for image in some]))
            print(f"| {name} | {form.format(strength)} | {share:.1%} | {statistic} |", flush=True)
    strange = clf._drift_rows(other)
    for share_other in OTHER_SHARES:
        n_other = round(share_other * options.changed)
        mixed = np.concatenate([unchanged[: options.changed - n_other], strange[:n_other]])
        share, statistic = found(mixed)
        print(f"| another product, share | {share_other:.0%} | {share:.1%} | {statistic} |")


if __name__ == "__main__":
    main()
