"""Scorers for scikit-learn's tools: the rates of inspection, and the heatmap against masks.

Owns how a metric of `defectcam.metrics` is called by `cross_validate` or `GridSearchCV`: which
label means good, and where masks come from. It computes no score itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import make_scorer

from defectcam.folders import find_good_label
from defectcam.metrics import defect_recall_score, escape_rate, overkill_rate, pro_auc_score

__all__ = [
    "aupro_scorer",
    "defect_recall_scorer",
    "escape_rate_scorer",
    "overkill_rate_scorer",
]


def _defect_recall(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    return _with_good_label(defect_recall_score, y_true, y_pred, sample_weight)


def _escape_rate(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    return _with_good_label(escape_rate, y_true, y_pred, sample_weight)


def _overkill_rate(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    return _with_good_label(overkill_rate, y_true, y_pred, sample_weight)


def _with_good_label(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sample_weight: ArrayLike | None,
) -> float:
    labels = np.concatenate([np.unique(y_true), np.unique(y_pred)])
    good = find_good_label(np.unique(labels))
    return metric(y_true, y_pred, good_label=good, sample_weight=sample_weight)


def _aupro(
    y_true: ArrayLike, found: Iterable[Any], masks: Iterable[ArrayLike | None], max_fpr: float = 0.3
) -> float:
    return pro_auc_score(list(masks), [one.heatmap for one in found], max_fpr=max_fpr)


#: Defect recall; see `defectcam.metrics.defect_recall_score`. The good label is found as in `fit`,
#: by its name; for another, ``make_scorer(defect_recall_score, good_label="A")``.
defect_recall_scorer = make_scorer(_defect_recall)

#: Negative escape rate: as with all of scikit-learn's scorers, higher is better.
escape_rate_scorer = make_scorer(_escape_rate, greater_is_better=False)

#: Negative overkill rate.
overkill_rate_scorer = make_scorer(_overkill_rate, greater_is_better=False)

#: AUPRO of the heatmaps that the estimator's ``localize`` gives; see
#: `defectcam.metrics.pro_auc_score`. It needs ``masks``, one per image, of shape (H, W) or None for
#: a good one, by scikit-learn's metadata routing:
#: ``aupro_scorer.set_score_request(masks=True)`` and ``params={"masks": masks}``.
aupro_scorer = make_scorer(_aupro, response_method=("localize",))
