"""Scorers for scikit-learn's tools: the rates of inspection, and the heatmap against masks.

Owns how a metric of `defectcam.metrics` is called by `cross_validate` or `GridSearchCV`: which
label means good, and where masks come from. It computes no score itself.
"""

from __future__ import annotations

from collections.abc import Callable
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


# scikit-learn looks for `sample_weight` among a function's parameters, and takes them from there.


def _defect_recall(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: ArrayLike = (),
    sample_weight: ArrayLike | None = None,
) -> float:
    return _rate(defect_recall_score, y_true, y_pred, classes, sample_weight)


def _escape_rate(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: ArrayLike = (),
    sample_weight: ArrayLike | None = None,
) -> float:
    return _rate(escape_rate, y_true, y_pred, classes, sample_weight)


def _overkill_rate(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: ArrayLike = (),
    sample_weight: ArrayLike | None = None,
) -> float:
    return _rate(overkill_rate, y_true, y_pred, classes, sample_weight)


def _rate(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_pred: ArrayLike,
    classes: ArrayLike,
    sample_weight: ArrayLike | None,
) -> float:
    labels = [np.unique(y_true), np.unique(y_pred), np.asarray(classes)]
    good = find_good_label(np.concatenate([known for known in labels if len(known)]))
    return metric(
        np.asarray(y_true) != good,
        np.asarray(y_pred) != good,
        pos_label=True,
        sample_weight=sample_weight,
    )


class _RateScorer(type(make_scorer(_defect_recall))):  # type: ignore[misc]
    """A scorer of predicted labels, whose good one is looked for among the learned classes too.

    A fold may hold defects alone, all of them found. Where scikit-learn takes the function out of
    the scorer, as for thresholds, there are the labels alone.
    """

    def _score(
        self, method_caller: Any, estimator: Any, X: Any, y_true: ArrayLike, **kwargs: Any
    ) -> float:
        predicted = method_caller(estimator, "predict", X)
        classes = getattr(estimator, "classes_", ())
        return self._sign * self._score_func(y_true, predicted, classes=classes, **kwargs)


class _LocalizationScorer(type(make_scorer(pro_auc_score))):  # type: ignore[misc]
    """A scorer of heatmaps, which are not one of the responses that scikit-learn asks for itself.

    Through a pipeline they come from its last step, in the original images' pixels.
    """

    def _score(
        self, method_caller: Any, estimator: Any, X: Any, y_true: ArrayLike, **kwargs: Any
    ) -> float:
        if {**self._kwargs, **kwargs}.get("masks") is None:
            raise TypeError(
                "aupro_scorer needs masks, which scikit-learn passes on by metadata routing: "
                "sklearn.set_config(enable_metadata_routing=True), "
                "scoring=aupro_scorer.set_score_request(masks=True), and "
                'params={"masks": masks} of cross_validate or masks=masks of a search\'s fit.'
            )
        found = localize(estimator, X)
        return self._sign * self._score_func(y_true, found, **self._kwargs, **kwargs)


def _aupro(y_true: ArrayLike, y_pred: Any, masks: Any, max_fpr: float = 0.3) -> float:
    return pro_auc_score(list(masks), [found.heatmap for found in y_pred], max_fpr=max_fpr)


#: Defect recall; see `defectcam.metrics.defect_recall_score`. The good label is found as in `fit`,
#: by its name; for another, ``make_scorer(defect_recall_score, good_label="A")``.
defect_recall_scorer = _RateScorer(_defect_recall, 1, {}, "predict")

#: Negative escape rate: as with all of scikit-learn's scorers, higher is better.
escape_rate_scorer = _RateScorer(_escape_rate, -1, {}, "predict")

#: Negative overkill rate.
overkill_rate_scorer = _RateScorer(_overkill_rate, -1, {}, "predict")

#: AUPRO of the heatmaps that `defectcam.localize` gives, of a classifier or through a pipeline; see
#: `defectcam.metrics.pro_auc_score`. It needs ``masks``, one per image, of shape (H, W) or None for
#: a good one, by scikit-learn's metadata routing:
#: ``aupro_scorer.set_score_request(masks=True)`` and ``params={"masks": masks}``.
aupro_scorer = _LocalizationScorer(_aupro, 1, {}, "localize")
