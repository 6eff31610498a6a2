"""Displays of curves: decision thresholds, per-region overlap, and the course of a training.

Owns which points a curve has. Rates come from scikit-learn and `metrics`; the display of thresholds
adds what the two kinds of errors cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_curve
from sklearn.utils import check_consistent_length, column_or_1d

from defectcam.evaluation import list_masks, read_mask
from defectcam.folders import find_good_label
from defectcam.labels import as_labels
from defectcam.metrics import pro_curve, pro_curve_area
from defectcam.plots.figures import (
    BLUE,
    GREEN,
    VERMILION,
    axes_for,
    check_matplotlib,
    percent_axis,
)
from defectcam.results import Localization
from defectcam.review import defect_probability, final_estimator, labelled_images
from defectcam.sources import Sources
from defectcam.transformers import localize

__all__ = ["HistoryDisplay", "PROCurveDisplay", "ThresholdDisplay"]

_ROUNDING = 1e-6  # by which a sum of float32 probabilities may leave [0, 1]


class ThresholdDisplay:
    """Defect recall, overkill and cost against the decision threshold.

    Between two neighbouring probabilities nothing changes, so the curves are steps.

    Parameters
    ----------
    thresholds : float array of shape (n,)
        Rising: the distinct probabilities, and ``inf``, at which nothing is called defective. An
        image is called defective where its probability is at least the threshold.
    recall : float array of shape (n,)
        Share of the defective images that are called defective.
    overkill : float array of shape (n,)
        Share of the good images that are called defective.
    cost : float array of shape (n,)
        Mean cost of an image.
    escape_cost, overkill_cost : float
        What an escape and an overkill cost, in any unit.
    threshold : float, optional
        The classifier's present one.

    Attributes
    ----------
    best_threshold : float
        Where the cost is lowest: the middle of that step, of several the lowest one, which finds
        most defects. An image of probability 1 passes at no threshold, so that passing everything
        is then left out.
    best_cost : float
        The cost there.
    ax_, ax_cost_ : matplotlib Axes
        Of the rates, on the left, and of the cost, on the right.
    figure_ : matplotlib Figure

    Notes
    -----
    A threshold that was chosen on the images it is judged by looks better than it is: choose it on
    held-out images (``held_out_probability_`` has them) or with scikit-learn's
    `TunedThresholdClassifierCV`. ``threshold="cost=20:1"`` does it in `fit`.
    """

    def __init__(
        self,
        *,
        thresholds: NDArray[np.float64],
        recall: NDArray[np.float64],
        overkill: NDArray[np.float64],
        cost: NDArray[np.float64],
        escape_cost: float = 1.0,
        overkill_cost: float = 1.0,
        threshold: float | None = None,
    ) -> None:
        self.thresholds = thresholds
        self.recall = recall
        self.overkill = overkill
        self.cost = cost
        self.escape_cost = escape_cost
        self.overkill_cost = overkill_cost
        self.threshold = threshold

    @property
    def best_threshold(self) -> float:
        """The middle of the cheapest step."""
        best = self._best_step
        below, top = 0.0 if best == 0 else self.thresholds[best - 1], self.thresholds[best]
        top = min(1.0, top)
        middle = (below + top) / 2
        return float(middle if middle > below else top)  # neighbouring numbers have none between

    @property
    def best_cost(self) -> float:
        """The lowest mean cost of an image."""
        return float(self.cost[self._best_step])

    @property
    def _best_step(self) -> int:
        """Which step is the cheapest of those that a threshold of at most 1 can reach."""
        return int(np.argmin(self.cost[: 1 + np.count_nonzero(self.thresholds < 1)]))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        escape_cost: float = 1.0,
        overkill_cost: float = 1.0,
        good_label: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ThresholdDisplay:
        """Predict labelled images and draw what each threshold would do.

        Parameters
        ----------
        estimator : DefectCAMClassifier, Pipeline or other classifier with ``predict_proba``
            Fitted. Its ``threshold_``, if it has one, is marked.
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class.
        escape_cost, overkill_cost : float, default=1.0
            What a defect that passes costs, and a good part that is rejected.
        good_label : label, optional
            What good parts are called in ``y``, if not as in training.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        ThresholdDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        data = labelled_images(estimator, X, y, good_label)
        return cls.from_predictions(
            data.is_defect,
            defect_probability(estimator, data.items),
            escape_cost=escape_cost,
            overkill_cost=overkill_cost,
            threshold=getattr(final_estimator(estimator), "threshold_", None),
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike | None,
        y_prob: ArrayLike,
        *,
        escape_cost: float = 1.0,
        overkill_cost: float = 1.0,
        good_label: Any = None,
        threshold: float | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ThresholdDisplay:
        """Draw what each threshold would do with these probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            Labels, of several types of defect too.
        y_prob : array-like of shape (n,)
            Probability of a defect.
        escape_cost, overkill_cost : float, default=1.0
        good_label : label, optional
            The one that means good. None: found by its name.
        threshold : float, optional
            One to mark.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        ThresholdDisplay

        Raises
        ------
        ValueError
            If there is no good image, or no defective one, a cost is negative, or a probability is
            none.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        types = as_labels(y_true)  # type: ignore[arg-type]
        is_defect = np.asarray(types != find_good_label(types, good_label))
        probability = _probabilities(y_prob)
        check_consistent_length(is_defect, probability)
        if not is_defect.any() or is_defect.all():
            raise ValueError("y_true must hold good and defective images, to tell their rates.")
        for name, value in {"escape_cost": escape_cost, "overkill_cost": overkill_cost}.items():
            if not (value >= 0 and np.isfinite(value)):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")
        overkill, recall, thresholds = roc_curve(is_defect, probability, drop_intermediate=False)
        share = is_defect.mean()
        cost = escape_cost * share * (1 - recall) + overkill_cost * (1 - share) * overkill
        return cls(
            thresholds=thresholds[::-1],
            recall=recall[::-1],
            overkill=overkill[::-1],
            cost=cost[::-1],
            escape_cost=escape_cost,
            overkill_cost=overkill_cost,
            threshold=threshold,
        ).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, show_cost: bool = True) -> ThresholdDisplay:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            None: new ones.
        show_cost : bool, default=True
            Whether to draw the cost, on an axis of its own on the right, and its lowest point.

        Returns
        -------
        ThresholdDisplay
            Itself, with ``ax_`` and ``figure_``.
        """
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        # A step holds up to its threshold; below the lowest probability all are called defective.
        x = np.append(0.0, np.minimum(self.thresholds, 1.0))

        def steps(axes: Any, y: NDArray[np.float64], label: str, colour: str, style: str) -> Any:
            values = np.append(y[0], y)
            return axes.step(x, values, style, where="pre", color=colour, label=label)[0]

        lines = [
            steps(self.ax_, self.recall, "defect recall", BLUE, "-"),
            steps(self.ax_, self.overkill, "overkill", VERMILION, "--"),
        ]
        self.ax_cost_ = None
        if show_cost:
            self.ax_cost_ = self.ax_.twinx()
            lines.append(steps(self.ax_cost_, self.cost, "cost", GREEN, "-."))
            best = self.best_threshold, self.best_cost
            label = f"cheapest: {best[0]:.2g}"
            lines += self.ax_cost_.plot(*best, "o", color=GREEN, label=label)
            costs = f"escape {self.escape_cost:g}, overkill {self.overkill_cost:g}"
            self.ax_cost_.set_ylabel(f"Mean cost of an image ({costs})")
            self.ax_cost_.set_ylim(bottom=0)
        if self.threshold is not None:
            label = f"present: {self.threshold:.2g}"
            lines.append(self.ax_.axvline(self.threshold, color="grey", ls=":", label=label))
        self.ax_.set(xlabel="Decision threshold", ylabel="Share of the images", xlim=(0, 1))
        percent_axis(self.ax_.yaxis)
        # Above, where it hides neither curve: two axes lie on each other.
        self.ax_.legend(
            handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small"
        )
        return self


class PROCurveDisplay:
    """Mean per-region overlap against the false-positive rate of pixels, and the area (AUPRO).

    Parameters
    ----------
    fpr, pro : float arrays of shape (n_points,)
        As `defectcam.metrics.pro_curve` gives them.
    pro_auc : float
        Area up to ``max_fpr``, as a share of it.
    max_fpr : float, default=0.3
        Limit of the false-positive rate.
    name : str, optional
        For the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    """

    def __init__(
        self,
        *,
        fpr: NDArray[np.floating[Any]],
        pro: NDArray[np.floating[Any]],
        pro_auc: float,
        max_fpr: float = 0.3,
        name: str | None = None,
    ) -> None:
        self.fpr = fpr
        self.pro = pro
        self.pro_auc = pro_auc
        self.max_fpr = max_fpr
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        masks: Any = None,
        *,
        max_fpr: float = 0.3,
        n_bins: int | None = 2**20,
        good_label: Any = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> PROCurveDisplay:
        """Localise images and hold the heatmaps against masks.

        Parameters
        ----------
        estimator : DefectCAMClassifier or Pipeline
            Fitted.
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class.
        masks : folder, sequence of n paths, arrays of shape (H, W) or None, optional
            As for `DefectCAMClassifier.evaluate`: defective images without are left out.
        max_fpr : float, default=0.3
        n_bins : int or None, default=2**20
            As for `defectcam.metrics.pro_curve`: None is exact and holds all pixels in memory.
        good_label : label, optional
            What good parts are called in ``y``, if not as in training.
        name : str, optional
            For the legend; by default the estimator's class.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        PROCurveDisplay

        Raises
        ------
        ValueError
            If no image has a mask.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        data = labelled_images(estimator, X, y, good_label)
        is_defect = data.is_defect
        assert is_defect is not None and data.types is not None
        sources = Sources(data.items, single=False)
        listed = list_masks(masks, X, sources, data.types, is_defect)
        kept = [i for i, mask in enumerate(listed) if mask is not None or not is_defect[i]]
        if not any(listed[i] is not None for i in kept):
            raise ValueError(
                "no defective image has a mask: pass masks, one of shape (H, W) or None per image."
            )
        found = localize(estimator, [data.items[i] for i in kept])
        given = _read_masks([(i, listed[i]) for i in kept], found)
        return cls.from_predictions(
            given,
            (one.heatmap for one in found),
            max_fpr=max_fpr,
            n_bins=n_bins,
            name=type(final_estimator(estimator)).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        masks: Iterable[ArrayLike | None],
        heatmaps: Iterable[ArrayLike],
        *,
        max_fpr: float = 0.3,
        n_bins: int | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> PROCurveDisplay:
        """Draw the curve of heatmaps against masks.

        Parameters
        ----------
        masks, heatmaps, n_bins
            As for `defectcam.metrics.pro_curve`.
        max_fpr : float, default=0.3
        name : str, optional
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        PROCurveDisplay

        Raises
        ------
        ValueError
            If no pixel of the masks is defective, or none good.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # an error says it
            fpr, pro, _ = pro_curve(masks, heatmaps, n_bins=n_bins)
        if np.isnan(pro).any():
            raise ValueError("no pixel of the masks is defective: pass a mask with a defect.")
        if np.isnan(fpr).any():
            raise ValueError(
                "every pixel of the masks is defective, so none can be a false alarm: pass masks "
                "that are nonzero on the defect alone."
            )
        area = pro_curve_area(fpr, pro, max_fpr)
        display = cls(fpr=fpr, pro=pro, pro_auc=area, max_fpr=max_fpr, name=name)
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> PROCurveDisplay:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            None: new ones.
        name : str, optional
            For the legend, in place of the one it was made with.
        **kwargs
            Passed to matplotlib's ``plot``.

        Returns
        -------
        PROCurveDisplay
            Itself, with ``ax_`` and ``figure_``.
        """
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        name = self.name if name is None else name
        label = f"AUPRO {self.pro_auc:.3f}"
        label = label if name is None else f"{name} ({label})"
        (self.line_,) = self.ax_.plot(self.fpr, self.pro, **{"label": label, **kwargs})
        inside = self.fpr <= self.max_fpr
        at_limit = np.interp(self.max_fpr, self.fpr, self.pro)
        self.ax_.fill_between(
            np.append(self.fpr[inside], self.max_fpr),
            np.append(self.pro[inside], at_limit),
            alpha=0.15,
            color=self.line_.get_color(),
            lw=0,
        )
        self.ax_.axvline(self.max_fpr, color="grey", ls=":")
        self.ax_.set(
            xlabel="False-positive rate of pixels",
            ylabel="Mean overlap of a defect",
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
        )
        self.ax_.legend(loc="lower right", fontsize="small")
        return self


class HistoryDisplay:
    """The course of a training: one line per fold.

    Parameters
    ----------
    history : dict of list
        A table as `DefectCAMClassifier.history_`: ``fold``, ``epoch``, ``loss``,
        ``train_accuracy``, ``seconds``.

    Attributes
    ----------
    lines_ : dict
        The matplotlib Line2D of each fold.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Notes
    -----
    Both columns are of training images: they tell whether the training has converged, not how good
    the classifier is. `held_out_probability_` and `evaluate` do.
    """

    def __init__(self, *, history: dict[str, list[Any]]) -> None:
        self.history = history

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> HistoryDisplay:
        """Draw the training of a fitted classifier.

        Parameters
        ----------
        estimator : DefectCAMClassifier or Pipeline
            Fitted.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        HistoryDisplay
        """
        return cls.from_history(final_estimator(estimator).history_, ax=ax, **kwargs)

    @classmethod
    def from_history(
        cls, history: dict[str, Sequence[Any]], *, ax: Any = None, **kwargs: Any
    ) -> HistoryDisplay:
        """Draw a table of a training.

        Parameters
        ----------
        history : dict of sequences, or DataFrame
            With the columns ``fold``, ``epoch`` and what is to be drawn.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        HistoryDisplay

        Raises
        ------
        ValueError
            If it has no row, for of good images alone nothing is trained, no ``fold`` or ``epoch``,
            or columns of unequal length.
        """
        check_matplotlib(f"{cls.__name__}.from_history")
        table = {name: list(history[name]) for name in history}
        missing = [name for name in ("fold", "epoch") if name not in table]
        if table and missing:
            raise ValueError(
                f"history must have the columns 'fold' and 'epoch', of which {missing} are "
                f"missing: it has {list(table)}."
            )
        if not table.get("epoch"):
            raise ValueError(
                "history has no epoch: nothing was trained, as with good images alone, so there is "
                "nothing to draw."
            )
        n_rows = {name: len(column) for name, column in table.items()}
        if len(set(n_rows.values())) > 1:
            raise ValueError(f"history must have columns of one length, got {n_rows}.")
        return cls(history=table).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, column: str = "loss", **kwargs: Any) -> HistoryDisplay:
        """Draw one column.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            None: new ones.
        column : str, default="loss"
            Which: also ``"train_accuracy"`` or ``"seconds"``.
        **kwargs
            Passed to matplotlib's ``plot``.

        Returns
        -------
        HistoryDisplay
            Itself, with ``ax_`` and ``figure_``.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        if column not in self.history:
            raise ValueError(f"column must be one of {list(self.history)}, got {column!r}.")
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        folds, epochs, values = (np.array(self.history[k]) for k in ("fold", "epoch", column))
        self.lines_ = {}
        for fold in np.unique(folds).tolist():
            rows = folds == fold
            options = {"label": f"fold {fold}", "marker": ".", **kwargs}
            (self.lines_[fold],) = self.ax_.plot(epochs[rows], values[rows], **options)
        self.ax_.set(xlabel="Epoch", ylabel=column.replace("_", " ").capitalize())
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        if column == "train_accuracy":
            percent_axis(self.ax_.yaxis)
        self.ax_.legend(fontsize="small")
        return self


def _probabilities(y_prob: ArrayLike) -> NDArray[np.float64]:
    """Refuse what is no probability, but for the rounding of a sum over types."""
    values = column_or_1d(y_prob, dtype=np.float64)
    is_wrong = ~((values >= -_ROUNDING) & (values <= 1 + _ROUNDING))  # NaN is wrong too
    if is_wrong.any():
        first = int(is_wrong.argmax())
        raise ValueError(
            "y_prob must hold probabilities of a defect, from 0 to 1, got "
            f"y_prob[{first}]={values[first]:g}."
        )
    return np.clip(values, 0.0, 1.0)


def _read_masks(
    listed: list[tuple[int, Any]], found: Sequence[Localization]
) -> Iterator[NDArray[np.bool_] | None]:
    for (index, mask), one in zip(listed, found, strict=True):
        yield read_mask(mask, index, one)
