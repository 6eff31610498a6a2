"""`FlatImages`: lets tools that know matrices alone work with a classifier of images.

Owns the way from a row of numbers to an image, and what an image classifier has to be told about
labels that nobody named with images in mind. It never looks at pixels and learns nothing but their
range; all else is the wrapped classifier's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context, clone
from sklearn.utils import get_tags
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from defectcam.classifier import DefectCAMClassifier
from defectcam.folders import find_good_label
from defectcam.labels import as_labels
from defectcam.plain_labels import plain_label

__all__ = ["FlatImages"]


def _has(method: str) -> Callable[[FlatImages], bool]:
    """Check for `available_if`: whether the wrapped classifier has a method."""

    def check(self: FlatImages) -> bool:
        getattr(self.estimator_ if hasattr(self, "estimator_") else self._wrapped(), method)
        return True  # else the AttributeError above says what is missing

    return check


class FlatImages(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A classifier of images that takes each image as a row of numbers.

    For whatever in and around scikit-learn insists on a matrix of shape ``(n_samples,
    n_features)``: over-sampling, permutation importance, data sets that come flattened. Give images
    or paths to the classifier itself wherever you can.

    Parameters
    ----------
    estimator : classifier or None, default=None
        What classifies the images: it is given arrays of shape ``(n, H, W, C)``, uint8. None:
        ``DefectCAMClassifier()``. If it has the parameters ``good_label`` and ``target``, as
        `DefectCAMClassifier` has, a clone is told what the labels ask for. With more than two
        labels, ``target="type"``: each stays a class of its own. Where ``good_label`` is None and
        no label can be taken for good by its name (``good``, ``ok``, ...) or as False or 0 of 0
        and 1, the first in sorted order is good: scikit-learn's negative class. Of more than two
        such labels none is a defect, so `predict` names the most probable class, whatever the
        threshold.
    image_shape : (H, W), (H, W, C) or None, default=None
        Shape of an image in pixels; its values lie in a row as ``image.ravel()`` puts them, the
        columns of the first line first, the channels of a pixel together. None: a square grey image
        where the number of features is a square (64 is 8 x 8), else one line of pixels, ``(1,
        n_features)``, which invents no neighbours: colour and rectangles have to be asked for.

    Attributes
    ----------
    estimator_ : classifier
        The fitted clone of ``estimator``.
    classes_ : ndarray of shape (n_classes,)
        Class labels, as those of ``estimator_``.
    image_shape_ : (int, int, int)
        Height, width and channels of an image.
    value_range_ : (float, float)
        Least and greatest value of all training samples, which become 0 and 255. One range for all
        features: a pixel's value has to mean the same everywhere.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where ``X`` was a data frame with names that are strings.

    See Also
    --------
    DefectCAMClassifier : Takes paths, folders and arrays of images.

    Notes
    -----
    Values become 8-bit pixels, so what differs by less than a 255th of the range is equal. Values
    outside the range that training saw are clipped to it.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam import DefectCAMClassifier, FlatImages
    >>> rng = np.random.default_rng(0)
    >>> images = rng.normal(0.4, 0.02, size=(12, 32, 32))
    >>> images[6:, 10:20, 15:18] = 1.0
    >>> y = ["good"] * 6 + ["scratch"] * 6
    >>> tiny = DefectCAMClassifier(image_size=32, max_epochs=3, cv=2, random_state=0)
    >>> clf = FlatImages(tiny).fit(images.reshape(12, -1), y)
    >>> clf.image_shape_, clf.n_features_in_
    ((32, 32, 1), 1024)
    >>> print(clf.predict(images[[0, 11]].reshape(2, -1)))
    ['good' 'scratch']
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "estimator": [HasMethods(["fit", "predict"]), None],
        "image_shape": [tuple, list, None],
    }

    def __init__(self, estimator: Any = None, *, image_shape: Sequence[int] | None = None) -> None:
        self.estimator = estimator
        self.image_shape = image_shape

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> FlatImages:
        """Learn the range of the values, then fit the classifier on the images.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Numbers of any real type, finite.
        y : array-like of shape (n_samples,)
            Labels: strings, booleans or integers.
        sample_weight : array-like of shape (n_samples,), optional
            Passed on, if given. A sample of weight zero is left out of the range too.

        Returns
        -------
        FlatImages
            Itself.

        Raises
        ------
        ValueError
            If ``X`` is no finite matrix, ``image_shape`` has another number of values than ``X``
            has features, or the classifier refuses the labels. All stays as it was then.
        """
        fitted = copy.copy(self)
        X, y = validate_data(fitted, X, y)
        check_classification_targets(y)
        estimator = clone(self._wrapped())
        fitted._takes_most_probable = _tell_labels(estimator, y)
        fitted.image_shape_ = _image_shape(self.image_shape, X.shape[1])
        counted, weighted = X, {}
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X)
            counted, weighted = X[weights > 0], {"sample_weight": weights}
            if not len(counted):
                raise ValueError("Sample weights must contain at least one non-zero number.")
        fitted.value_range_ = float(counted.min()), float(counted.max())
        fitted.estimator_ = estimator.fit(fitted._images(X), y, **weighted)
        self.__dict__ = fitted.__dict__  # also without what an earlier fit had and this one has not
        return self

    @property
    def classes_(self) -> NDArray[Any]:
        """Class labels, as the fitted classifier has them."""
        return self.estimator_.classes_

    def to_images(self, X: Any) -> NDArray[np.uint8]:
        """Turn rows into the images that the classifier is given.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of uint8, shape (n_samples, H, W, C)
            What ``estimator_.localize`` takes, for example.
        """
        check_is_fitted(self)
        return self._images(validate_data(self, X, reset=False))

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels, of ``classes_``.
        """
        images = self.to_images(X)
        if self._takes_most_probable:
            return self.classes_[self.estimator_.predict_proba(images).argmax(1)]
        return self.estimator_.predict(images)

    @available_if(_has("predict_proba"))
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probability of each class, if the classifier gives them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        images = self.to_images(X)
        return self.estimator_.predict_proba(images)

    @available_if(_has("decision_function"))
    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Signed distance from the decision, if the classifier gives it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            The class of the highest is the one that `predict` names. Where that is the most
            probable one, these are logarithms of probabilities.
        """
        images = self.to_images(X)
        if self._takes_most_probable:
            probability = self.estimator_.predict_proba(images)
            return np.log(np.clip(probability, np.finfo(np.float64).tiny, None))
        return self.estimator_.decision_function(images)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Score of the classifier: of `DefectCAMClassifier`, mean accuracy.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        float
        """
        if self._takes_most_probable:
            return super().score(X, y, sample_weight)
        return self.estimator_.score(self.to_images(X), y, sample_weight=sample_weight)

    def __sklearn_tags__(self) -> Any:
        """Say what it takes: a dense matrix, and as many classes as the classifier can tell."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = get_tags(self._wrapped()).classifier_tags.multi_class
        return tags

    def _wrapped(self) -> Any:
        return DefectCAMClassifier() if self.estimator is None else self.estimator

    def _images(self, X: NDArray[Any]) -> NDArray[np.uint8]:
        low, high = self.value_range_
        span = high - low or 1.0
        share = (np.clip(X, low, high).astype(np.float64) - low) / span
        return np.rint(255 * share).astype(np.uint8).reshape(len(X), *self.image_shape_)


def _image_shape(image_shape: Sequence[int] | None, n_features: int) -> tuple[int, int, int]:
    """Height, width and channels of an image of so many values."""
    if image_shape is None:
        side = math.isqrt(n_features)
        return (side, side, 1) if side * side == n_features else (1, n_features, 1)
    shape = tuple(image_shape)
    are_sizes = all(isinstance(size, Integral) and size > 0 for size in shape)
    if len(shape) not in (2, 3) or not are_sizes:
        raise ValueError(
            f"image_shape={image_shape!r}: expected (H, W) or (H, W, C), positive integers."
        )
    if math.prod(shape) != n_features:
        raise ValueError(
            f"image_shape={image_shape!r} has {math.prod(shape)} values, but X has {n_features} "
            "features: give the shape of the images before they were flattened."
        )
    height, width, channels = (*shape, 1)[:3]
    return int(height), int(width), int(channels)


def _tell_labels(estimator: Any, y: Any) -> bool:
    """Set what the labels decide, if the classifier has it; return whether none of many is good."""
    parameters = estimator.get_params(deep=False)
    labels = np.unique(as_labels(y))
    if "target" in parameters and len(labels) > 2:
        estimator.set_params(target="type")
    if len(labels) < 2 or parameters.get("good_label", "") is not None:
        return False
    try:
        estimator.set_params(good_label=find_good_label(labels))
        return False
    except ValueError:
        estimator.set_params(good_label=plain_label(labels[0]))
        return len(labels) > 2
