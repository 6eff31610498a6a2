"""Stratified folds of whole groups, the same with every release of scikit-learn.

Owns the shuffling. It knows no image and no label's meaning, and depends on nothing else in the
package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import check_random_state

__all__ = ["stratified_group_folds"]


def stratified_group_folds(
    strata: ArrayLike,
    groups: ArrayLike,
    n_splits: int,
    random_state: int | np.random.RandomState | None,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split into folds that groups are not torn by, each with its share of every stratum.

    scikit-learn before 1.8 shuffles the groups' counts without the groups, which leaves folds
    without a stratum; so what is shuffled here are the groups' numbers. The folds are those of
    ``StratifiedGroupKFold(n_splits, shuffle=True, random_state=random_state)`` of later releases.

    Parameters
    ----------
    strata, groups : array-like of shape (n,)
    n_splits : int
        At least 2, and no more than there are groups.
    random_state : int, RandomState or None

    Returns
    -------
    list of (train, held_out)
        Places of each fold, ascending.
    """
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    place = np.empty(len(names), dtype=np.intp)
    place[check_random_state(random_state).permutation(len(names))] = np.arange(len(names))
    strata = np.asarray(strata)
    return list(StratifiedGroupKFold(n_splits).split(strata, strata, place[numbers]))
