"""Folds of whole groups."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn
from sklearn.model_selection import StratifiedGroupKFold

from defectcam.folds import stratified_group_folds


def grouped(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return strata and groups, the groups of several sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=24)
    groups = np.repeat(rng.permutation(24) * 10, sizes)
    return np.repeat(np.arange(24) % 3, sizes), groups


@pytest.mark.parametrize("seed", range(6))
def test_groups_stay_whole_and_each_fold_has_its_share(seed):
    strata, groups = grouped(seed)
    folds = stratified_group_folds(strata, groups, 3, seed)
    held_out = np.concatenate([rows for _, rows in folds])
    assert sorted(held_out) == list(range(len(strata)))
    for train, rows in folds:
        assert sorted([*train, *rows]) == list(range(len(strata)))
        assert not set(groups[train]) & set(groups[rows])
        expected = np.bincount(strata) / 3
        assert np.abs(np.bincount(strata[rows], minlength=3) - expected).max() < 4


def test_the_seed_decides():
    strata, groups = grouped(0)

    def held_out(seed):
        return [rows.tolist() for _, rows in stratified_group_folds(strata, groups, 3, seed)]

    assert held_out(1) == held_out(1)
    assert len({str(held_out(seed)) for seed in range(5)}) > 1


@pytest.mark.skipif(
    tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8),
    reason="scikit-learn before 1.8 shuffles the counts of the groups, not the groups",
)
@pytest.mark.parametrize("seed", range(6))
def test_folds_are_those_of_scikit_learn_since_1_8(seed):
    strata, groups = grouped(seed)
    theirs = StratifiedGroupKFold(3, shuffle=True, random_state=seed).split(strata, strata, groups)
    for ours, other in zip(stratified_group_folds(strata, groups, 3, seed), theirs, strict=True):
        np.testing.assert_array_equal(ours[0], other[0])
        np.testing.assert_array_equal(ours[1], other[1])
