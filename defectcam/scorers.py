"""Scorers for scikit-learn's tools: the rates of inspection, and the heatmap against masks.

Owns how a metric of `defectcam.metrics` is called by `cross_validate` or `GridSearchCV`: which
label means good, and where masks come from. It computes no score itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import make_scorer

from defectcam.folders import find_good_label
from defectcam.metrics import defect_recall_score, escape_rate, overkill_rate, pro_auc_score
from defectcam.transformers import localize

__all__ = [
    "aupro_scorer",
    "defect_recall_scorer",
    "escape_rate_scorer",
    "overkill_rate_scorer",
]


class _RateScorer(type(make_scorer(defect_recall_score))):  # type: ignore[misc]
    """A scorer of predicted labels, which tells the metric which of them is good.

    The classes that the estimator has learned are looked through too: a fold may hold defects
    alone, all of them found.
    """

    def _score(
        self, method_caller: Any, estimator: Any, X: Any, y_true: ArrayLike, **kwargs: Any
    ) -> float:
        predicted = method_caller(estimator, "predict", X)
        labels = [np.unique(y_true), np.unique(predicted), getattr(estimator, "classes_", [])]
        good = find_good_label(np.concatenate([known for known in labels if len(known)]))
        truth, called = np.asarray(y_true) != good, np.asarray(predicted) != good
        return self._sign * self._score_func(truth, called, pos_label=True, **kwargs)


class _LocalizationScorer(type(make_scorer(pro_auc_score))):  # type: ignore[misc]
    """A scorer of heatmaps, which are not one of the responses that scikit-learn asks for itself.

    Through a pipeline they come from its last step, in the original images' pixels.
    """

    def _score(
        self, method_caller: Any, estimator: Any, X: Any, y_true: ArrayLike, **kwargs: Any
    ) -> float:
        found = localize(estimator, X)
        return self._sign * self._score_func(y_true, found, **self._kwargs, **kwargs)


def _aupro(y_true: ArrayLike, y_pred: Any, masks: Any, max_fpr: float = 0.3) -> float:
    return pro_auc_score(list(masks), [found.heatmap for found in y_pred], max_fpr=max_fpr)


#: Defect recall; see `defectcam.metrics.defect_recall_score`. The good label is found as in `fit`,
#: by its name; for another, ``make_scorer(defect_recall_score, good_label="A")``.
defect_recall_scorer = _RateScorer(defect_recall_score, 1, {}, "predict")

#: Negative escape rate: as with all of scikit-learn's scorers, higher is better.
escape_rate_scorer = _RateScorer(escape_rate, -1, {}, "predict")

#: Negative overkill rate.
overkill_rate_scorer = _RateScorer(overkill_rate, -1, {}, "predict")

#: AUPRO of the heatmaps that `defectcam.localize` gives, of a classifier or through a pipeline; see
#: `defectcam.metrics.pro_auc_score`. It needs ``masks``, one per image, of shape (H, W) or None for
#: a good one, by scikit-learn's metadata routing:
#: ``aupro_scorer.set_score_request(masks=True)`` and ``params={"masks": masks}``.
aupro_scorer = _LocalizationScorer(_aupro, 1, {}, "localize")
