"""Loads labelled images, from folders and from a package, and splits them by defect type.

This module owns what is handed back for it: scikit-learn's `Bunch` of arrays. It downloads nothing
and decodes no files (paths are valid input of the estimator).
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit
from sklearn.utils import Bunch

from defectcam.folders import find_good_label, labelled_folder
from defectcam.images import ImageReadError

__all__ = ["load_elpv", "load_folder", "load_mvtec", "train_test_split_by_type"]

_MAX_FOLDS = 20


def load_folder(root: str | os.PathLike[str], good_label: str | None = None) -> Bunch:
    """List the images of a folder with a sub-folder per class.

    Parameters
    ----------
    root : str or PathLike
        As `defectcam.folders.labelled_folder` takes it.
    good_label : str, optional
        Name of the sub-folder of good parts; by default found by its name.

    Returns
    -------
    Bunch
        Arrays of one entry per image, and one name:

        - ``paths``: str, the image files;
        - ``types``: str, the name of each image's class;
        - ``is_defect``: bool, the class is not the good one;
        - ``good_label``: the name of the good class.

    Raises
    ------
    ImageReadError
        If the folder does not exist or has another layout.
    """
    paths, types = labelled_folder(root, good_label)
    good = find_good_label(types, good_label)
    return Bunch(
        paths=np.array(paths),
        types=np.array(types),
        is_defect=np.array(types) != good,
        good_label=good,
    )


def load_mvtec(root: str | os.PathLike[str]) -> Bunch:
    """List the images and masks of a data set in the MVTec AD layout.

    Parameters
    ----------
    root : str or PathLike
        One product's folder, with ``train/good``, ``test/<type>`` and, for masks,
        ``ground_truth/<type>/<stem>_mask.png``.

    Returns
    -------
    Bunch
        Arrays of one entry per image, train before test, and one name:

        - ``paths``, ``types``, ``is_defect``, ``good_label``: as `load_folder` gives them;
        - ``split``: str, ``"train"`` or ``"test"``, the folder the image is in;
        - ``masks``: object, the mask's file, or None for good images and where there is no file.

    Raises
    ------
    ImageReadError
        If the folder does not exist or has another layout.

    References
    ----------
    P. Bergmann, M. Fauser, D. Sattlegger, C. Steger, "MVTec AD: A Comprehensive Real-World Dataset
    for Unsupervised Anomaly Detection", CVPR 2019.
    """
    missing = [name for name in ("train", "test") if not os.path.isdir(os.path.join(root, name))]
    if missing:
        raise ImageReadError(
            f"{os.fspath(root)!r} must have train/good and test/<type> (the MVTec AD layout), but "
            f"has no folder {' and no folder '.join(missing)}. For a sub-folder per class use "
            "load_folder."
        )
    data = load_folder(root)
    data.split = np.array([Path(path).relative_to(root).parts[0] for path in data.paths])
    data.masks = np.array(
        [
            _mask_of(root, path, name) if is_defect else None
            for path, name, is_defect in zip(data.paths, data.types, data.is_defect, strict=True)
        ],
        dtype=object,
    )
    return data


def load_elpv() -> Bunch:
    """Load the ELPV data set: 2624 electroluminescence images of solar cells.

    Returns
    -------
    Bunch
        Arrays of one entry per cell:

        - ``images``: uint8, shape (2624, 300, 300), grey;
        - ``probability``: float, of being defective: 0, 1/3, 2/3 or 1, as experts judged it;
        - ``is_defect``: bool, the probability is at least 0.5;
        - ``cell_type``: str, ``"mono"`` or ``"poly"`` crystalline.

    Raises
    ------
    ImportError
        If the package ``elpv-dataset``, which contains the images, is not installed.

    References
    ----------
    S. Deitsch et al., "Automatic classification of defective photovoltaic module cells in
    electroluminescence images", Solar Energy 185, 2019. The images are licensed for non-commercial
    use (CC BY-NC-SA 4.0).
    """
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise ImportError(
            "load_elpv needs the package that contains the images: pip install elpv-dataset"
        ) from error
    images, probability, cell_type = load_dataset()
    return Bunch(
        images=images,
        probability=probability,
        is_defect=probability >= 0.5,
        cell_type=cell_type,
    )


def train_test_split_by_type(
    paths: ArrayLike,
    types: ArrayLike,
    test_size: float = 0.2,
    random_state: int | np.random.RandomState | None = None,
    groups: ArrayLike | None = None,
) -> Bunch:
    """Split images so that every type has its share of the training and of the test images.

    Parameters
    ----------
    paths : array-like of length n
        The images, or whatever stands for them.
    types : array-like of length n
        The type of each: the good label, or the kind of defect.
    test_size : float, default=0.2
        Share of the images to test on, between 0 and 1.
    random_state : int or RandomState, optional
        Decides which images; pass a number for the same split every time.
    groups : array-like of length n, optional
        Images of one group (of one part, or one batch) stay on one side. The shares are then met
        as nearly as the groups allow.

    Returns
    -------
    Bunch
        ``train``, ``test``: int, places in `paths`, sorted; and what they select:
        ``paths_train``, ``paths_test``, ``types_train``, ``types_test``.

    Raises
    ------
    ValueError
        If `test_size` is not between 0 and 1, lengths differ, a type has a single image, or there
        are too few groups.

    Examples
    --------
    >>> types = ["good"] * 8 + ["scratch"] * 4
    >>> split = train_test_split_by_type(range(12), types, test_size=0.25, random_state=0)
    >>> split.types_test.tolist()
    ['good', 'good', 'scratch']
    """
    places, kinds = np.asarray(paths), np.asarray(types)
    members = None if groups is None else np.asarray(groups)
    for name, values in {"types": kinds, "groups": members}.items():
        if values is not None and len(values) != len(places):
            raise ValueError(f"There are {len(places)} paths but {len(values)} {name}.")
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be a share between 0 and 1, got {test_size!r}.")
    if members is None:
        train, test = _shuffled(kinds, test_size, random_state)
    else:
        train, test = _grouped(kinds, members, test_size, random_state)
    return Bunch(
        train=train,
        test=test,
        paths_train=places[train],
        paths_test=places[test],
        types_train=kinds[train],
        types_test=kinds[test],
    )


def _mask_of(root: str | os.PathLike[str], path: str, type_: str) -> str | None:
    mask = os.path.join(root, "ground_truth", type_, f"{Path(path).stem}_mask.png")
    return mask if os.path.isfile(mask) else None


def _shuffled(
    types: np.ndarray, test_size: float, random_state: int | np.random.RandomState | None
) -> tuple[np.ndarray, np.ndarray]:
    names, counts = np.unique(types, return_counts=True)
    if counts.min(initial=2) < 2:
        raise ValueError(
            f"Of type '{names[counts.argmin()]}' there is 1 image, which cannot be on both sides: "
            "add images of it, or leave it out."
        )
    splitter = StratifiedShuffleSplit(1, test_size=test_size, random_state=random_state)
    train, test = next(splitter.split(types, types))
    return np.sort(train), np.sort(test)


def _grouped(
    types: np.ndarray,
    groups: np.ndarray,
    test_size: float,
    random_state: int | np.random.RandomState | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Test on k of n stratified folds of whole groups, where k / n is nearest to `test_size`."""
    n_groups = len(np.unique(groups))
    share = Fraction(test_size).limit_denominator(max(2, min(_MAX_FOLDS, n_groups)))
    if n_groups < 2 or not 0 < share < 1:
        raise ValueError(f"{n_groups} groups cannot be split with test_size={test_size}.")
    folds = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=random_state)
    tests = [test for _, test in folds.split(types, types, groups)][: share.numerator]
    test = np.sort(np.concatenate(tests))
    return np.setdiff1d(np.arange(len(types)), test), test
