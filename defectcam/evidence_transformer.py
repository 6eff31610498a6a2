"""`EvidenceTransformer`: images as rows of numbers, for any model of scikit-learn.

Owns which numbers describe an image and their names. It trains nothing itself: the network, and
what is learned from labels, are a `DefectCAMClassifier`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from defectcam.architecture import build_network
from defectcam.calibration import calm_novelty, defect_scores
from defectcam.cam import defect_evidence
from defectcam.classifier import DefectCAMClassifier
from defectcam.fitting import draw_seed
from defectcam.inference import evaluating
from defectcam.isolation import isolated
from defectcam.network import NetworkOutput
from defectcam.novelty import novelty_peak
from defectcam.precision import resolve_device
from defectcam.sources import as_sources, brings_labels, is_path

__all__ = ["EvidenceTransformer"]


class EvidenceTransformer(TransformerMixin, BaseEstimator):
    """Turn images into a matrix: pooled features of the network, evidence and novelty.

    Without labels, the features are those of the pre-trained network. With labels, a classifier is
    fitted, and the features are those that it has learned.

    Parameters
    ----------
    classifier : DefectCAMClassifier, FrozenEstimator or None, default=None
        Its parameters say which network and preprocessing are used, and how it is fitted; a copy is
        fitted. ``FrozenEstimator(clf)`` around a fitted classifier: it is used as it is. None: the
        defaults.
    columns : {"auto", "pooled", "evidence", "all"}, default="auto"
        ``"pooled"``: mean and maximum over the positions, of each channel of the patches that
        novelty compares and of each level that evidence is read from; needs no labels, and pays no
        heed to them. ``"evidence"``: image score and evidence of each defect class, and novelty,
        of a classifier fitted with labels (or frozen). ``"all"``: both. ``"auto"``: ``"all"``
        where there are labels or a frozen classifier, else ``"pooled"``.

    Attributes
    ----------
    classifier_ : DefectCAMClassifier or FrozenEstimator
        Fitted where there is evidence among the columns, else only the owner of the parameters.
    n_features_out_ : int

    See Also
    --------
    DefectCAMClassifier : Classifies and localises by itself.

    Notes
    -----
    Evidence of images that the classifier was fitted on is surer than that of new ones. A model
    that is fitted on it, in a `Pipeline` behind this transformer, takes it for what it will get
    later. Use ``columns="pooled"`` there, or a frozen classifier that was fitted on other images.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.pipeline import make_pipeline
    >>> from defectcam import DefectCAMClassifier, EvidenceTransformer
    >>> images = np.random.default_rng(0).integers(90, 110, size=(8, 32, 32), dtype=np.uint8)
    >>> features = EvidenceTransformer(DefectCAMClassifier(image_size=32))
    >>> model = make_pipeline(features, IsolationForest(random_state=0)).fit(images)
    >>> model.predict(images).shape
    (8,)
    >>> model[0].get_feature_names_out()[:2].tolist()
    ['patch_mean_0', 'patch_mean_1']
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "classifier": [HasMethods(["localize", "fit"]), FrozenEstimator, None],
        "columns": [StrOptions({"auto", "pooled", "evidence", "all"})],
    }

    def __init__(self, classifier: Any = None, *, columns: str = "auto") -> None:
        self.classifier = classifier
        self.columns = columns

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike | None = None) -> EvidenceTransformer:
        """Make the network ready, and fit the classifier where the columns need it.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), sequence of arrays, or a \
data frame or array of shape (n, 1) with a column of paths
        y : array-like of shape (n,), optional
            Labels, as `DefectCAMClassifier.fit` takes them: left out where ``X`` brings them.

        Returns
        -------
        EvidenceTransformer
            Itself.

        Raises
        ------
        ValueError
            If ``columns`` ask for evidence, and there are neither labels nor a frozen classifier;
            if the classifier sees images in tiles.
        """
        classifier = DefectCAMClassifier() if self.classifier is None else clone(self.classifier)
        classifier._refuse_tiles("EvidenceTransformer")
        is_frozen = isinstance(classifier, FrozenEstimator)
        images = _column(X)
        if isinstance(images, Iterator):
            images = list(images)  # asked for twice
        is_labelled = is_frozen or y is not None or brings_labels(images, classifier.good_label)
        columns = self.columns
        if columns == "auto":
            columns = "all" if is_labelled else "pooled"
        if columns != "pooled" and not is_labelled:
            raise ValueError(
                f"columns={self.columns!r} needs labels: pass y, or FrozenEstimator(clf) with a "
                'fitted classifier, or use columns="pooled".'
            )
        if is_frozen:
            check_is_fitted(classifier)
        elif columns == "pooled":
            _prepare(classifier)
        else:
            classifier.fit(images, y)
        self.classifier_ = classifier
        self._columns = columns
        names, _ = next(self._described(as_sources(images).items[:1]))
        self._names = np.array(names, dtype=object)
        self.n_features_out_ = len(self._names)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Describe images.

        Parameters
        ----------
        X : as in `fit`

        Returns
        -------
        ndarray of float32, shape (n, n_features)
            Or a data frame with named columns, after ``set_output(transform="pandas")``.
        """
        check_is_fitted(self)
        items = as_sources(_column(X)).items
        return np.concatenate([values for _, values in self._described(items)])

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns.

        Parameters
        ----------
        input_features : ignored
            For the sake of scikit-learn's conventions.

        Returns
        -------
        ndarray of str, shape (n_features,)
            ``patch_mean_3`` is channel 3 of the patches, ``level0_max_7`` channel 7 of the finest
            evidence level; ``score``, ``evidence_mean_scratch``, ``evidence_max_scratch`` and
            ``novelty_peak``, ``novelty_mean``, ``novelty_calm``.
        """
        check_is_fitted(self)
        return self._names

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` has been called; a pipeline asks."""
        return hasattr(self, "_names")

    def __sklearn_tags__(self) -> Tags:
        """Say what it takes: paths and images."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def _described(self, items: Sequence[Any]) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Names and values of the columns, batch by batch."""
        classifier = self.classifier_
        network = classifier.network_
        for pixels, _ in classifier._batches(items, classifier._preprocess):
            with torch.inference_mode(), evaluating(network):
                if self._columns == "pooled":  # there may be no codebook, which scores need
                    features = network.trunk_features(pixels)
                    columns = _pooled(network.level_features(features.deep), features.patches)
                else:
                    description = network.describe(pixels)
                    columns = self._evidence(description.output)
                    if self._columns == "all":
                        columns = _pooled(*description[1:]) | columns
            values = [column.float().cpu() for column in columns.values()]
            yield list(columns), torch.stack(values, dim=1).numpy()

    def _evidence(self, output: NetworkOutput) -> dict[str, Tensor]:
        classes = self.classifier_._classes
        scores = torch.as_tensor(defect_scores(output.logits.float().cpu(), None, classes.good))
        columns = {"score": scores[:, 0]}
        maps = defect_evidence(output.evidence.float().cpu(), classes.good)
        for label, of_class in zip(classes.labels[classes.defects], maps.unbind(1), strict=True):
            columns[f"evidence_mean_{label}"] = of_class.mean((1, 2))
            columns[f"evidence_max_{label}"] = of_class.amax((1, 2))
        if output.novelty is not None:
            novelty = output.novelty.float().cpu()
            columns["novelty_peak"] = novelty_peak(novelty)
            columns["novelty_mean"] = novelty.mean((1, 2))
            columns["novelty_calm"] = torch.as_tensor(calm_novelty(novelty))
        return columns


def _prepare(classifier: DefectCAMClassifier) -> None:
    """Give an unfitted classifier its network, pre-trained but untrained."""
    classifier._validate_params()
    classifier._check_parameters()
    with isolated(draw_seed(classifier.random_state), resolve_device(classifier.device)):
        parameters = classifier.get_params(deep=False)
        classifier.network_, classifier._preprocess = build_network(parameters, 2, good=0)


def _pooled(level_features: Sequence[Tensor], patches: Tensor | None) -> dict[str, Tensor]:
    maps = {f"level{i}": features for i, features in enumerate(level_features)}
    if patches is not None:
        maps = {"patch": patches} | maps
    columns: dict[str, Tensor] = {}
    for name, features in maps.items():
        for how, values in (("mean", features.mean((2, 3))), ("max", features.amax((2, 3)))):
            columns |= {f"{name}_{how}_{i}": column for i, column in enumerate(values.unbind(1))}
    return columns


def _column(X: Any) -> Any:
    """Take the paths out of a table's single column; leave all else as it is."""
    if hasattr(X, "iloc") and getattr(X, "ndim", 1) == 2:
        X = X.to_numpy()
    is_table = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OUT"
    if not is_table:
        return X
    if X.shape[1] != 1 or not all(is_path(value) for value in X[:, 0]):
        raise ValueError(
            f"X is a table of shape {X.shape}: expected one column, which holds paths. In a "
            'ColumnTransformer, name that column: (EvidenceTransformer(), "path").'
        )
    return X[:, 0]
