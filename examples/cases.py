"""Look at what a classifier does well on images that it has not seen, and at where it fails.

    python examples/cases.py path/to/deeppcb --output cases/

Takes a folder in the MVTec AD layout with masks (train/good, test/<type>,
ground_truth/<type>/<stem>_mask.png), trains on 80 % of the images, each type by its share, and
localises the rest. The best answers and the worst, the worst of each kind of failure in turn, are
written with a picture and a verdict each: cases/index.html, and the same as cases/index.md.
"""

from __future__ import annotations

import argparse
import html
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path

import cv2
import numpy as np
from sklearn.utils import Bunch

from defectcam import DefectCAMClassifier, Localization, load
from defectcam.datasets import load_mvtec, train_test_split_by_type
from defectcam.display import encode_picture, overlay
from defectcam.images import read_image
from defectcam.metrics import box_iou, mask_boxes

LEAST_IOU = 0.3  # a box overlaps at least so much with the box of a defect, or it is not right
THRESHOLDS = np.arange(3, 21) / 10  # of the map, tried in hindsight
OUTLINE_COLOUR = (213, 94, 0)  # vermilion of the Okabe-Ito palette; the boxes are sky blue
GAP = 8  # pixels between two pictures
QUICK = {"image_size": 64, "max_epochs": 1, "cv": 2}

SUCCESS = "success"
# From the worst; within one kind the worst case has the lowest figure.
FAILURES: dict[str, Callable[[Case], float]] = {
    "missed": lambda case: case.found.probability,
    "false alarm": lambda case: -case.found.probability,
    "points beside": lambda case: -case.peak_distance,
    "box misplaced": lambda case: case.iou,
    "map not calm": lambda case: -case.peak,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder in the MVTec AD layout, with masks")
    parser.add_argument("--output", type=Path, default=Path("cases"), help="folder to write into")
    parser.add_argument(
        "--model", type=Path, help="saved by an earlier call with the same --random-state"
    )
    parser.add_argument("--random-state", type=int, default=0, help="of split and training")
    parser.add_argument(
        "--same-stem",
        action="store_true",
        help="images with one file stem show one part, and stay on one side of the split",
    )
    parser.add_argument("--n", type=int, default=6, help="best, and failures (default: 6 each)")
    parser.add_argument("--quick", action="store_true", help=f"a trial that learns little: {QUICK}")
    options = parser.parse_args()

    data = load_mvtec(options.data)
    stems = [Path(path).stem for path in data.paths] if options.same_stem else None
    split = train_test_split_by_type(
        data.paths, data.types, 0.2, random_state=options.random_state, groups=stems
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if options.model:
        clf = load(options.model)
    else:
        clf = DefectCAMClassifier(random_state=options.random_state, verbose=1)
        clf.set_params(**QUICK if options.quick else {})
        clf.fit(split.paths_train, split.types_train)
        clf.save(options.output / "model.safetensors")
    cases = list(localized(clf, data, split.test))
    best, worst = choose_best(cases, options.n), choose_failures(cases, options.n)
    name = options.data.resolve().name
    write_pages(options.output, name, cases, [*best, *worst])
    print(f"Wrote {len(best)} of the best and {len(worst)} failures: {options.output}/index.html")


# --- What was found, and whether it is right --------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A test image with the answer to it. The figures are computed when asked for, and kept."""

    type: str
    is_defect: bool
    mask: np.ndarray | None  # of a defective image, where there is one that marks anything
    found: Localization
    heatmap: np.ndarray

    @property
    def stem(self) -> str:
        return Path(self.found.source).stem

    @property
    def peak(self) -> float:
        return float(self.heatmap.max())

    @cached_property
    def overlaps(self) -> np.ndarray:
        """Return the intersection over union of each defect's box with each box found."""
        return box_iou(mask_boxes(self.mask), self.found.boxes)

    @property
    def iou(self) -> float:
        return float(self.overlaps.max(initial=0.0))

    @property
    def n_right(self) -> int:
        return n_right(self.overlaps)

    def in_hindsight(self) -> str:
        """Say whether another threshold of the map would have given more boxes that fit.

        If so, the map is right and only higher or lower than expected.
        """
        boxes = mask_boxes(self.mask)
        count, threshold = self.n_right, None
        for candidate in THRESHOLDS.tolist():
            found = self.found.with_threshold(candidate, decision_threshold=0, peak_fraction=0)
            if n_right(box_iou(boxes, found.boxes)) > count:
                count, threshold = n_right(box_iou(boxes, found.boxes)), candidate
        if threshold is None:
            return "no other threshold would have fitted more boxes"
        return f"{count} would have one with box_threshold={threshold}, box_peak_fraction=0"

    @cached_property
    def peak_distance(self) -> float:
        """Return the pixels from the map's highest value to the nearest defect, 0 within it."""
        outside = cv2.distanceTransform((~self.mask).astype(np.uint8), cv2.DIST_L2, 5)
        return float(outside.flat[self.heatmap.argmax()])

    @cached_property
    def kind(self) -> str:
        """Return "success", or the worst thing that can be said."""
        if self.is_defect != self.found.is_defect:
            return "missed" if self.is_defect else "false alarm"
        if not self.is_defect:
            return SUCCESS if self.peak <= self.found.threshold else "map not calm"
        if self.mask is None:
            return SUCCESS
        if self.peak_distance > 0:
            return "points beside"
        return SUCCESS if self.iou >= LEAST_IOU else "box misplaced"

    @property
    def verdict(self) -> str:
        """Return the kind in words and figures, and what else a defective image's mask says."""
        probability = f"probability {self.found.probability:.2f}"
        limit = f"{self.found.decision_threshold:.2f}"
        peak = f"the heatmap reaches {self.peak:.2g}, the limit of good parts is 1"
        texts = {
            SUCCESS: "found" if self.is_defect else f"passed, and calm: {peak}",
            "missed": f"missed: {probability} below {limit}; {peak}",
            "false alarm": f"false alarm: {probability}, defective from {limit}; {peak}",
            "box misplaced": "found, but no box fits",
            "map not calm": f"passed, but not calm: {peak}",
        }
        if self.mask is None:
            return texts[self.kind] + (", no mask to compare with" if self.is_defect else "")
        texts["points beside"] = (
            f"pointed beside the defect: the highest value is {self.peak_distance:.0f} pixels away"
        )
        return f"{texts[self.kind]}; {self.in_detail()}"

    def in_detail(self) -> str:
        boxes = mask_boxes(self.mask)
        sides = boxes[:, 2:] - boxes[:, :2]
        width, height = sides[sides.prod(axis=1).argmin()].tolist()
        rows, columns = self.found.grid.shape
        cell = f"{self.mask.shape[1] / columns:.0f}×{self.mask.shape[0] / rows:.0f}"
        n_found = len(self.found.boxes)
        n_loose = int((self.overlaps.max(axis=0, initial=0.0) < LEAST_IOU).sum())
        return (
            f"{self.n_right} of {len(boxes)} marked defects have a box that fits "
            f"({n_found} {'box' if n_found == 1 else 'boxes'}, {n_loose} of them without a fit); "
            f"the smallest is {width}×{height} pixels, a cell of the map {cell}"
        )

    def facts(self) -> dict[str, str]:
        """Return what a page says beside the picture."""
        facts = {
            "type": self.type,
            "probability of a defect": f"{self.found.probability:.2f}",
            "decision threshold": f"{self.found.decision_threshold:.2f}",
            "verdict": self.verdict,
        }
        if self.mask is not None:
            facts["in hindsight"] = self.in_hindsight()
            facts["best box IoU"] = f"{self.iou:.2f}"
        return facts

    def picture(self) -> np.ndarray:
        """Return the image with mask outline and boxes, and beside it the heatmap's overlay."""
        image, found = self.found.image.copy(), self.found
        if self.mask is not None:
            outlines, _ = cv2.findContours(
                self.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(image, outlines, -1, OUTLINE_COLOUR, max(1, max(image.shape) // 250))
        calm = np.zeros_like(self.heatmap)
        left = overlay(image, calm, found.boxes, found.box_scores)
        left = np.pad(left, ((0, 0), (0, GAP), (0, 0)), constant_values=255)
        return np.hstack([left, found.overlay()])


def n_right(overlaps: np.ndarray) -> int:
    return int((overlaps.max(axis=1, initial=0.0) >= LEAST_IOU).sum())


def localized(clf: DefectCAMClassifier, data: Bunch, chosen: np.ndarray) -> Iterable[Case]:
    for place, found in zip(chosen, clf.localize_iter(data.paths[chosen]), strict=True):
        mask = None
        if data.masks[place] is not None:
            marked = read_image(data.masks[place]).any(axis=2)
            mask = marked if marked.any() else None
        is_defect = bool(data.is_defect[place])
        yield Case(str(data.types[place]), is_defect, mask, found, found.heatmap)


# --- Which cases are shown --------------------------------------------------------------------


def choose_best(cases: list[Case], n: int) -> list[Case]:
    """Take one good image and defective ones, the best of each type in turn."""

    def goodness(case: Case) -> tuple[float, ...]:
        if case.mask is None:
            return (-1.0, -case.peak)
        return (case.n_right / len(case.overlaps), case.iou)

    successes = [case for case in cases if case.kind == SUCCESS]
    successes.sort(key=goodness, reverse=True)
    good = [case for case in successes if not case.is_defect][:1]
    types = sorted({case.type for case in successes if case.is_defect})
    in_turn = take_turns([c for c in successes if c.type == name] for name in types)
    return [*good, *in_turn][:n]


def choose_failures(cases: list[Case], n: int) -> list[Case]:
    """Take the worst of each kind in turn; missed defects come first."""
    kinds = list(FAILURES)
    of_kind = [sorted((c for c in cases if c.kind == k), key=FAILURES[k]) for k in kinds]
    return sorted(take_turns(of_kind)[:n], key=lambda case: kinds.index(case.kind))


def take_turns(columns: Iterable[list[Case]]) -> list[Case]:
    rows = zip_longest(*columns)
    return [case for case in chain.from_iterable(rows) if case is not None]


# --- Pages ------------------------------------------------------------------------------------


def counted(cases: list[Case]) -> str:
    counts = Counter(case.kind for case in cases)
    return ", ".join(f"{counts[k]} {k}" for k in (SUCCESS, *FAILURES) if counts[k]) or "none"


def write_pages(folder: Path, name: str, cases: list[Case], shown: list[Case]) -> None:
    """Write a picture of each case that is shown, and the pages that hold them."""
    summary = "".join(
        f"Of {len(group)} {what} test images: {counted(group)}. "
        for what, group in {
            "good": [case for case in cases if not case.is_defect],
            "defective": [case for case in cases if case.is_defect],
        }.items()
    )
    masked = [case for case in cases if case.mask is not None]
    summary += (
        f"{sum(case.n_right for case in masked)} of {sum(len(c.overlaps) for c in masked)} "
        f"marked defects have a box that fits: intersection over union at least {LEAST_IOU}."
    )
    legend = (
        "Left the image, with the outline of what was marked as defective (orange, never shown to "
        "the classifier) and the boxes that were found (blue, numbers are scores). Right the "
        "heatmap, on a scale on which good parts stay below 1."
    )
    markdown = [f"# Cases: {name}", summary, legend]
    page = [f"<h1>Cases: {html.escape(name)}</h1><p>{html.escape(summary)}</p><p>{legend}</p>"]
    for number, case in enumerate(shown, start=1):
        title = f"{number}. {case.kind.capitalize()}: {case.type} {case.stem}"
        file = f"{number:02d}.jpg"
        (folder / file).write_bytes(encode_picture(case.picture(), ".jpg"))
        facts = case.facts().items()
        rows = "\n".join(f"- {key}: {value}" for key, value in facts)
        markdown += [f"## {title}", f"![{title}]({file})", rows]
        cells = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
            for key, value in facts
        )
        title = html.escape(title)
        page.append(f'<h2>{title}</h2><img src="{file}" alt="{title}"><table>{cells}</table>')
    (folder / "index.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    head = f'<!doctype html><meta charset="utf-8"><title>Cases: {html.escape(name)}</title>'
    style = "body{font-family:sans-serif;max-width:80em;margin:auto}img{max-width:100%}"
    style += "th{text-align:left;font-weight:normal;color:#666;padding-right:1em}"
    text = "\n".join([f"{head}<style>{style}</style>", *page])
    (folder / "index.html").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
