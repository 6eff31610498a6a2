"""The display of what each type of defect was called.

Owns the table of true types against predicted labels, which need not be the same ones: a test set
may hold types that training did not know. The counting is scikit-learn's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix
from sklearn.utils import check_consistent_length

from defectcam.folders import find_good_label
from defectcam.labels import as_labels
from defectcam.plots.figures import COUNT_MAP, axes_for, check_matplotlib
from defectcam.review import final_estimator, good_label_of, labelled_images

__all__ = ["TypeConfusionDisplay"]


class TypeConfusionDisplay:
    """What each true type was called, good parts first.

    Colours are shares of a row, so that a rare type is as visible as a frequent one; the numbers
    are counts.

    Parameters
    ----------
    confusion_matrix : int array of shape (n_types, n_labels)
        Number of images of each true type that got each label.
    types : list of n_types labels
        Rows, the good one first.
    labels : list of n_labels labels
        Columns, the good one first.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    text_ : ndarray of matplotlib Text of shape (n_types, n_labels)
    colorbar_ : matplotlib Colorbar or None

    See Also
    --------
    sklearn.metrics.ConfusionMatrixDisplay : The square form.
    """

    def __init__(
        self, *, confusion_matrix: NDArray[np.int64], types: list[Any], labels: list[Any]
    ) -> None:
        self.confusion_matrix = confusion_matrix
        self.types = types
        self.labels = labels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        good_label: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> TypeConfusionDisplay:
        """Predict labelled images and draw the table.

        Parameters
        ----------
        estimator : DefectCAMClassifier or Pipeline
            Fitted.
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class.
        good_label : label, optional
            What good parts are called in ``y``, if not as in training.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        TypeConfusionDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        data = labelled_images(estimator, X, y, good_label)
        assert data.types is not None
        predicted = as_labels(estimator.predict(data.items))
        labels = _good_first(final_estimator(estimator).classes_, good_label_of(estimator))
        return cls._of(data.types, data.good_label, predicted, labels, ax, kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        good_label: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> TypeConfusionDisplay:
        """Draw the table of true and predicted labels.

        Parameters
        ----------
        y_true, y_pred : array-like of shape (n,)
            Labels of one kind: strings, booleans or integers.
        good_label : label, optional
            The one that means good. None: found by its name.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        TypeConfusionDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        check_consistent_length(y_true, y_pred)
        types, predicted = as_labels(y_true), as_labels(y_pred)
        good = find_good_label(np.concatenate([types, predicted]), good_label)
        return cls._of(types, good, predicted, _good_first(predicted, good), ax, kwargs)

    @classmethod
    def _of(
        cls,
        types: NDArray[Any],
        good: Any,
        predicted: NDArray[Any],
        labels: list[Any],
        ax: Any,
        kwargs: dict[str, Any],
    ) -> TypeConfusionDisplay:
        rows = _good_first(types, good)
        names = sorted({*map(str, rows), *map(str, labels)})
        square = confusion_matrix(types.astype(str), predicted.astype(str), labels=names)
        counts = square[
            np.ix_([names.index(str(k)) for k in rows], [names.index(str(k)) for k in labels])
        ]
        return cls(confusion_matrix=counts, types=rows, labels=labels).plot(ax, **kwargs)

    def plot(
        self, ax: Any = None, *, colormap: Any = COUNT_MAP, colorbar: bool = True
    ) -> TypeConfusionDisplay:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            None: new ones.
        colormap : str or matplotlib Colormap, default="cividis"
        colorbar : bool, default=True

        Returns
        -------
        TypeConfusionDisplay
            Itself, with ``ax_`` and ``figure_``.
        """
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        shares = self.confusion_matrix / np.maximum(self.confusion_matrix.sum(1, keepdims=True), 1)
        shown = self.ax_.imshow(shares, cmap=colormap, vmin=0, vmax=1, interpolation="nearest")
        self.text_ = np.empty(shares.shape, object)
        for (row, column), count in np.ndenumerate(self.confusion_matrix):
            colour = "white" if shares[row, column] < 0.5 else "black"
            self.text_[row, column] = self.ax_.text(
                column, row, str(count), ha="center", va="center", color=colour
            )
        self.ax_.set_xticks(range(len(self.labels)), list(map(str, self.labels)))
        self.ax_.set_yticks(range(len(self.types)), list(map(str, self.types)))
        self.ax_.set(xlabel="Called", ylabel="True type")
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = self.figure_.colorbar(
                shown, ax=self.ax_, label="share of the type", format=lambda x, _: f"{100 * x:g}%"
            )
        return self


def _good_first(labels: ArrayLike, good: Any) -> list[Any]:
    unique = np.unique(np.asarray(labels)).tolist()
    return [*(label for label in unique if label == good), *(k for k in unique if k != good)]
