"""What the scores of images say: log-odds, probabilities, labels, whether an image is unfamiliar.

Owns the way from scores to answers, by what calibration has learned. It learns nothing and runs no
network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

from defectcam.calibration import DefectProbability, calm_novelty, defect_scores
from defectcam.inference import ScoredImages
from defectcam.labels import Classes

__all__ = ["Judge"]


class Judge(NamedTuple):
    """Turns scores into answers.

    Attributes
    ----------
    classes : Classes
    probability : DefectProbability
        From scores to the log-odds of a defect.
    threshold : float
        Probability from which an image is defective.
    uses_novelty : bool
        Whether novelty counts in the scores.
    familiarity_limit : float or None
        Calm novelty above which an image is unfamiliar; None: none is.
    """

    classes: Classes
    probability: DefectProbability
    threshold: float
    uses_novelty: bool
    familiarity_limit: float | None

    def log_odds(self, images: ScoredImages) -> NDArray[np.float64]:
        """Log-odds of a defect, shape ``(n,)``."""
        if images.log_odds is not None:
            return images.log_odds
        novelty = images.novelty if self.uses_novelty else None
        scores = defect_scores(images.logits, novelty, self.classes.good)
        return self.probability.log_odds(scores)

    def distance(self, images: ScoredImages) -> NDArray[np.float64]:
        """Log-odds of a defect above those of the threshold, shape ``(n,)``."""
        return self.log_odds(images) - float(logit(np.clip(self.threshold, 1e-300, 1 - 1e-16)))

    def decisions(self, images: ScoredImages) -> NDArray[np.float64]:
        """Answers as `DefectCAMClassifier.decision_function` gives them."""
        distance, defects = self.distance(images), self.classes.defects
        if len(defects) == 1:
            return -distance if self.classes.good == 1 else distance
        types = images.logits[:, defects].double().numpy()
        result = np.empty((len(distance), len(self.classes.labels)))
        result[:, self.classes.good] = -distance / 2
        behind = types - types.max(1)[:, None]  # first: it is exactly 0 for the likeliest
        result[:, defects] = (distance / 2)[:, None] + behind
        return result

    def defect_probabilities(self, images: ScoredImages) -> NDArray[np.float64]:
        """Probability of a defect, shape ``(n,)``."""
        return expit(self.log_odds(images))

    def probabilities(self, images: ScoredImages) -> NDArray[np.float64]:
        """Probability of each class, shape ``(n, n_classes)``."""
        return self.class_probabilities(self.log_odds(images), images.logits)

    def class_probabilities(
        self, log_odds: NDArray[np.float64], logits: Tensor
    ) -> NDArray[np.float64]:
        """Share out the probability of a defect among its types, as the network weighs them."""
        result = np.empty((len(log_odds), len(self.classes.labels)))
        result[:, self.classes.good] = expit(-log_odds)  # 1 - p would round a small one to 0
        types = logits[:, self.classes.defects].double().softmax(1).numpy()
        result[:, self.classes.defects] = expit(log_odds)[:, None] * types
        return result

    def labels(self, images: ScoredImages) -> NDArray[Any]:
        """Labels, shape ``(n,)``."""
        is_defect = self.defect_probabilities(images) >= self.threshold
        return np.where(is_defect, self.defect_types(images), self.classes.good_label)

    def defect_types(self, images: ScoredImages) -> NDArray[Any]:
        """Label of the likeliest defect class of each image, defective or not."""
        return self.classes.labels[self.likely_defects(images)]

    def likely_defects(self, images: ScoredImages) -> NDArray[np.int64]:
        """Index of the likeliest defect class of each image."""
        defects = self.classes.defects
        return np.asarray(defects)[images.logits[:, defects].argmax(1).numpy()]

    def is_unfamiliar(self, images: ScoredImages) -> NDArray[np.bool_]:
        """Tell which images are unlike all training images."""
        if images.novelty is None or self.familiarity_limit is None:
            return np.zeros(len(images.logits), dtype=bool)
        return calm_novelty(images.novelty) > self.familiarity_limit
