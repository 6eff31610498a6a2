"""Which images a method is trained on and which it is tested on: data sets, and protocols by name.

Every protocol starts from one split by defect type, and changes what is trained on. It draws from
the split's seed alone, so that all methods see the same images and labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from defectcam.datasets import load_elpv, load_mvtec, make_defects, train_test_split_by_type

GOOD, DEFECT = "good", "anomaly"


class DataSet:
    """Images, types and masks under one name; images of a group show the same part."""

    def __init__(
        self,
        name: str,
        images: Any,
        types: np.ndarray,
        masks: list[str | np.ndarray | None] | None = None,  # files, or bool arrays (H, W)
        groups: np.ndarray | None = None,
    ):
        self.name = name
        self.images = images
        self.types = types
        self.masks = masks
        self.groups = groups

    @classmethod
    def read(cls, place: str, same_stem: list[str]) -> DataSet:
        if place == "elpv":
            cells = load_elpv()
            types = np.where(cells.is_defect, DEFECT, GOOD)
            return cls("elpv", np.asarray(cells.images), types)
        parts = load_mvtec(place)
        name = Path(place).name
        stems = np.array([Path(path).stem for path in parts.paths])
        types = np.where(parts.is_defect, parts.types, GOOD)
        groups = stems if name in same_stem else None
        return cls(name, np.asarray(parts.paths), types, list(parts.masks), groups)

    @classmethod
    def generated(cls, kind: str, n_samples: int, size: int) -> DataSet:
        """Parts of a kind of surface, always the same ones: the split has the seed."""
        parts = make_defects(n_samples, size, kind=kind, random_state=0)
        name = f"generated-{kind}-{n_samples}x{size}"
        masks = [mask if bad else None for mask, bad in zip(parts.masks, parts.target, strict=True)]
        return cls(name, parts.images, parts.types, masks)

    @property
    def defect_types(self) -> list[str]:
        return [str(name) for name in np.unique(self.types) if name != GOOD]

    def labels(self, chosen: np.ndarray) -> np.ndarray:
        return np.where(self.types[chosen] == GOOD, GOOD, DEFECT)

    def split(self, seed: int, test_size: float) -> tuple[np.ndarray, np.ndarray]:
        split = train_test_split_by_type(
            np.arange(len(self.types)),
            self.types,
            test_size,
            random_state=seed,
            groups=self.groups,
        )
        return split.train, split.test


@dataclass(frozen=True)
class Case:
    """One training and one test set: places in the data set, and what training is told."""

    variant: str | int | float | None
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray  # of the training images
    flipped: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # places in `train`


def split(
    data: DataSet, train: np.ndarray, test: np.ndarray, seed: int, options: argparse.Namespace
) -> Iterator[Case]:
    """Train and test on all types, in equal shares."""
    yield Case(None, train, test, data.labels(train))


def leave_one_type_out(
    data: DataSet, train: np.ndarray, test: np.ndarray, seed: int, options: argparse.Namespace
) -> Iterator[Case]:
    """Test on all images of one defect type, which training never sees, and on good ones."""
    chosen = [name for name in data.defect_types if not options.types or name in options.types]
    if len(data.defect_types) < 2 or not chosen:
        raise ValueError(
            f"{data.name} has the defect types {data.defect_types}: leave-one-type-out needs two, "
            f"and at least one of --types (now {options.types or 'all'})."
        )
    good = test[data.types[test] == GOOD]
    for name in chosen:
        unseen = np.flatnonzero(data.types == name)
        seen = train[data.types[train] != name]
        if data.groups is not None:
            seen = seen[~np.isin(data.groups[seen], data.groups[unseen])]
        yield Case(name, seen, np.sort(np.concatenate([unseen, good])), data.labels(seen))


def few_labels(
    data: DataSet, train: np.ndarray, test: np.ndarray, seed: int, options: argparse.Namespace
) -> Iterator[Case]:
    """Train on all good images of the split but on few of the defective ones."""
    defects = in_every_share(train, data.types, np.random.default_rng(seed))
    for n_defects in options.n_defects:
        if n_defects > len(defects):
            print(f"{data.name} split {seed} has {len(defects)} defects, not {n_defects}: left out")
            continue
        good = train[data.types[train] == GOOD]
        kept = np.sort(np.concatenate([good, defects[:n_defects]]))
        yield Case(n_defects, kept, test, data.labels(kept))


def in_every_share(train: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order the defective images so that the first n, for every n, hold each type's share.

    Each type's images lie evenly spaced on a line from 0 to 1, from a random start; so a type's
    number among the first n differs from its share by about one at most.
    """
    places, members = [], []
    for name in np.unique(types[train]):
        if name == GOOD:
            continue
        of_type = rng.permutation(train[types[train] == name])
        members.append(of_type)
        places.append((np.arange(len(of_type)) + rng.random()) / len(of_type))
    order = np.argsort(np.concatenate(places)) if places else np.zeros(0, int)
    return np.concatenate([*members, np.zeros(0, int)])[order]


def mislabelled(
    data: DataSet, train: np.ndarray, test: np.ndarray, seed: int, options: argparse.Namespace
) -> Iterator[Case]:
    """Train on labels of which some are wrong; the test labels are right."""
    order = np.random.default_rng(seed).permutation(len(train))
    for share in options.flipped:
        flipped = np.sort(order[: round(share * len(train))])
        labels = data.labels(train)
        labels[flipped] = np.where(labels[flipped] == GOOD, DEFECT, GOOD)
        yield Case(share, train, test, labels, flipped)


PROTOCOLS: dict[str, Callable[..., Iterator[Case]]] = {
    "split": split,
    "leave-one-type-out": leave_one_type_out,
    "few-labels": few_labels,
    "mislabelled": mislabelled,
}
