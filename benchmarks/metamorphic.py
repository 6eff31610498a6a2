"""Does a decision stay when the image is changed in ways that mean nothing?

    python benchmarks/metamorphic.py path/to/pill path/to/deeppcb path/to/magnetic_tile

A data set is what benchmarks/accuracy.py takes. A classifier is fitted on the training images of a
split, and judges the test images as they are and changed: brighter and darker by 5 %, JPEG of
quality 95, 90 and 85, moved by 2 pixels to each side, flipped. Printed are the share of decisions
that change, how far probabilities move, and the median overlap (IoU) of each best box with the best
box of the unchanged image, moved along with the image: once more for images with a single box,
where no other can take its place. At most 3 % of the decisions may change, of all sets together.
Where a change means something, they should: a part with print on it is another one when it is
flipped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from options import make_parser
from protocols import DataSet

from defectcam import DefectCAMClassifier, Localization, load
from defectcam.images import read_image

Image = NDArray[np.uint8]
Box = NDArray[np.int64]
Table = dict[str, dict[str, float]]

#: Largest share of decisions that may change.
LIMIT = 0.03
SHIFT = 2  # pixels


def brightened(image: Image, factor: float) -> Image:
    return np.clip(np.rint(image.astype(np.float32) * factor), 0, 255).astype(np.uint8)


def compressed(image: Image, quality: int) -> Image:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def shifted(image: Image, right: int, down: int) -> Image:
    """Move an image; what comes in repeats the border."""
    top, bottom = max(down, 0), max(-down, 0)
    left, rest = max(right, 0), max(-right, 0)
    grown = cv2.copyMakeBorder(image, top, bottom, left, rest, cv2.BORDER_REPLICATE)
    height, width = image.shape[:2]
    return grown[bottom : bottom + height, rest : rest + width]


def moved_box(right: int, down: int) -> Callable[[Box, tuple[int, int]], Box]:
    return lambda box, size: box + np.array([right, down, right, down])


def mirrored_box(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return np.array([size[1] - right, top, size[1] - left, bottom])


def upturned_box(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return np.array([left, size[0] - bottom, right, size[0] - top])


def _same_box(box: Box, size: tuple[int, int]) -> Box:
    return box


CHANGES: dict[str, tuple[Callable[[Image], Image], Callable[[Box, tuple[int, int]], Box]]] = {
    "5 % brighter": (lambda image: brightened(image, 1.05), _same_box),
    "5 % darker": (lambda image: brightened(image, 0.95), _same_box),
    "JPEG quality 95": (lambda image: compressed(image, 95), _same_box),
    "JPEG quality 90": (lambda image: compressed(image, 90), _same_box),
    "JPEG quality 85": (lambda image: compressed(image, 85), _same_box),
    "2 pixels to the right": (lambda image: shifted(image, SHIFT, 0), moved_box(SHIFT, 0)),
    "2 pixels to the left": (lambda image: shifted(image, -SHIFT, 0), moved_box(-SHIFT, 0)),
    "2 pixels down": (lambda image: shifted(image, 0, SHIFT), moved_box(0, SHIFT)),
    "2 pixels up": (lambda image: shifted(image, 0, -SHIFT), moved_box(0, -SHIFT)),
    "flipped left to right": (lambda image: image[:, ::-1], mirrored_box),
    "flipped upside down": (lambda image: image[::-1], upturned_box),
}


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = float(np.prod(np.clip(high - low, 0, None)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one, other)]
    return common / (sum(areas) - common)


def compare(
    before: list[Localization],
    after: list[Localization],
    move: Callable[[Box, tuple[int, int]], Box],
) -> dict[str, float]:
    changed = [a.is_defect != b.is_defect for a, b in zip(before, after, strict=True)]
    distance = [abs(a.probability - b.probability) for a, b in zip(before, after, strict=True)]
    overlaps, of_single = [], []
    for a, b in zip(before, after, strict=True):
        if len(a.boxes) and len(b.boxes):
            overlaps.append(overlap(move(a.boxes[0], a.image_size), b.boxes[0]))
            if len(a.boxes) == len(b.boxes) == 1:
                of_single.append(overlaps[-1])
    return {
        "images": len(before),
        "changed": float(np.mean(changed)),
        "median_distance": float(np.median(distance)),
        "p95_distance": float(np.quantile(distance, 0.95)),
        "box_overlap": float(np.median(overlaps)) if overlaps else float("nan"),
        "single_box_overlap": float(np.median(of_single)) if of_single else float("nan"),
    }


def measure(clf: DefectCAMClassifier, images: list[Image]) -> Table:
    """Compare the answers to images with those to each change of them."""
    before = list(clf.localize_iter(images))
    return {
        name: compare(before, list(clf.localize_iter(map(change, images))), move)
        for name, (change, move) in CHANGES.items()
    }


def fitted(
    images: Any, labels: Any, model: Path | None, parameters: dict[str, Any]
) -> DefectCAMClassifier:
    if model is not None and model.is_file():
        return load(model)
    clf = DefectCAMClassifier(random_state=0, **parameters)
    clf.fit(images, labels, resume=None if model is None else f"{model}.checkpoint")
    if model is not None:
        clf.save(model)
    return clf


def pooled(tables: list[Table]) -> dict[str, float]:
    """The share of decisions that each change changes, of all sets' images together."""
    images = [next(iter(table.values()))["images"] for table in tables]
    return {
        name: float(np.average([table[name]["changed"] for table in tables], weights=images))
        for name in CHANGES
    }


def print_table(rows: Table) -> None:
    print(
        "| change | decisions changed | probability moves, median | 95 % | box IoU | single box |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['changed']:.1%} of {row['images']} | {row['median_distance']:.4f} "
            f"| {row['p95_distance']:.4f} | {row['box_overlap']:.2f} "
            f"| {row['single_box_overlap']:.2f} |"
        )


def print_changed(tables: dict[str, Table]) -> None:
    """Print the shares of changed decisions, a column per set and one for all together."""
    print(f"\n| change | {' | '.join(tables)} | together |")
    print("|---" * (len(tables) + 2) + "|")
    for name, together in pooled(list(tables.values())).items():
        cells = [f"{table[name]['changed']:.1%}" for table in tables.values()]
        print(f"| {name} | {' | '.join(cells)} | {together:.1%} |")


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "metamorphic.json", splits=[0])
    parser.add_argument("--models", type=Path, help="folder: fitted once, loaded the next time")
    options = parser.parse_args(arguments)
    tables: dict[str, Table] = {}
    for place in options.sets:
        data = DataSet.read(place, options.same_stem)
        for seed in options.splits:
            train, test = data.split(seed, options.test_size)
            name = f"{data.name} {seed}" if len(options.splits) > 1 else data.name
            model = options.models and options.models / f"{data.name}-{seed}.safetensors"
            clf = fitted(data.images[train], data.types[train], model, options.parameters)
            tables[name] = measure(clf, [read_image(path) for path in data.images[test]])
            print(f"\n{name}\n")
            print_table(tables[name])
    print_changed(tables)
    options.json.write_text(json.dumps(tables, indent=2) + "\n")
    worst = max(pooled(list(tables.values())).values())
    print(f"at most {worst:.1%} of all decisions change, {LIMIT:.0%} are allowed")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
