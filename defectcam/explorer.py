"""A notebook widget: move the thresholds and see what they do to counts and pictures.

Owns which controls there are and what follows which; the one module that knows ipywidgets, which is
optional and imported when a widget is made. Images are localised once, before: everything that a
slider changes is derived from those results, and no model is changed.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix

from defectcam import display
from defectcam.images import is_path
from defectcam.results import Localization
from defectcam.review import Labelled, labelled_images, review_order, verdicts
from defectcam.transformers import localize

__all__ = ["Explorer", "explore"]

_PICTURE_SIDE = 256  # pixels of the longer side of a picture
_MAX_BOX_THRESHOLD = 3.0
_MAX_KEPT = 256  # drawn pictures, some 100 kB each


def explore(
    estimator: Any,
    X: Any,
    y: ArrayLike | None = None,
    *,
    good_label: Any = None,
    n_images: int = 8,
) -> Explorer:
    """Localise images and look through the results in a notebook.

    Parameters
    ----------
    estimator : DefectCAMClassifier or Pipeline
        Fitted.
    X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
    y : array-like of shape (n,), optional
        Labels: with them there are counts, and missed defects come first. Left out when ``X`` is a
        folder with one sub-folder per class.
    good_label : label, optional
        What good parts are called in ``y``, if not as in training.
    n_images : int, default=8
        Pictures on a page.

    Returns
    -------
    Explorer
        Shown by itself as the last line of a cell.

    Raises
    ------
    ImportError
        If ipywidgets is not installed: ``pip install "defectcam[notebook]"``.
    """
    _widgets("explore")  # before the images are read
    data = labelled_images(estimator, X, y, good_label, needed=False)
    return Explorer(localize(estimator, data.items), data, n_images=n_images)


class Explorer:
    """Sliders for both thresholds, the counts, and pictures, those to look at first coming first.

    Made by `explore` or `DefectCAMClassifier.explore`.

    Parameters
    ----------
    found : sequence of n Localization
    data : Labelled
        Their images and labels.
    n_images : int, default=8
        Pictures on a page.

    Attributes
    ----------
    threshold : float
        The decision threshold, where the slider stands now; until it is moved, the classifier's
        to the last digit, although a browser shows the nearest step. Setting it moves the slider;
        a ValueError says from where to where it goes.
    box_threshold : float
        The heatmap's threshold for boxes, likewise.
    is_defect : bool ndarray of shape (n,)
        What each image is called at that threshold.
    confusion_matrix : int ndarray of shape (2, 2) or None
        Rows: good and defective images; columns: called good and called defective. None without
        labels.
    order : int ndarray of shape (n,)
        The images as they are shown.
    widget : ipywidgets.VBox
        What is shown.
    """

    def __init__(self, found: Sequence[Localization], data: Labelled, *, n_images: int = 8) -> None:
        if n_images < 1:
            raise ValueError(f"n_images must be at least 1, got {n_images!r}.")
        self._found = list(found)
        self._data = data
        self._n_images = min(n_images, len(self._found))
        self._probability = np.array([one.probability for one in found])
        self._drawn: dict[tuple[int, bool, float], bytes] = {}
        self._build(_widgets("Explorer"))
        self._update()

    @property
    def threshold(self) -> float:
        """The decision threshold, where its slider stands."""
        return self._exact["threshold"]

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._move("threshold", value)

    @property
    def box_threshold(self) -> float:
        """The heatmap's threshold for boxes, where its slider stands."""
        return self._exact["box_threshold"]

    @box_threshold.setter
    def box_threshold(self, value: float) -> None:
        self._move("box_threshold", value)

    def _build(self, widgets: Any) -> None:
        first = self._found[0]
        style = {"description_width": "10em"}
        wide = widgets.Layout(width="32em")
        self._threshold = widgets.FloatSlider(
            value=first.decision_threshold,
            min=0.0,
            max=1.0,
            step=0.001,
            readout_format=".3f",
            description="decision threshold",
            style=style,
            layout=wide,
        )
        self._box_threshold = widgets.FloatSlider(
            value=first.threshold,
            min=min(0.1, first.threshold),
            max=max(_MAX_BOX_THRESHOLD, first.threshold),
            step=0.05,
            description="box threshold",
            style=style,
            layout=wide,
        )
        n_pages = -(-len(self._found) // self._n_images)
        self._page = widgets.IntSlider(
            value=1, min=1, max=n_pages, description="page", style=style, layout=wide
        )
        self._counts = widgets.HTML()
        self._pictures = [widgets.Image(format="png") for _ in range(self._n_images)]
        self._titles = [widgets.HTML() for _ in self._pictures]
        cells = [
            widgets.VBox([title, picture])
            for title, picture in zip(self._titles, self._pictures, strict=True)
        ]
        flow = widgets.Layout(display="flex", flex_flow="row wrap", grid_gap="8px")
        controls = [self._threshold, self._box_threshold]
        if n_pages > 1:
            controls.append(self._page)
        self._sliders = {"threshold": self._threshold, "box_threshold": self._box_threshold}
        self._exact = {name: float(slider.value) for name, slider in self._sliders.items()}
        for slider in self._sliders.values():
            slider.observe(self._follow, "value")
        self._page.observe(self._update, "value")
        self._cells = cells
        self.widget = widgets.VBox([*controls, self._counts, widgets.Box(cells, layout=flow)])

    def _follow(self, change: Any) -> None:
        """Take a slider's new value, unless it is the present one at the nearest of its steps.

        A browser that shows a slider moves it there and sends that back; a learned threshold lies
        between the steps, and images between it and the step would be called something else.
        """
        slider = change["owner"]
        name = next(name for name, one in self._sliders.items() if one is slider)
        steps = round((self._exact[name] - slider.min) / slider.step)
        if abs(slider.min + steps * slider.step - change["new"]) < slider.step / 1000:
            return
        self._exact[name] = float(change["new"])
        self._update()

    def _move(self, name: str, value: float) -> None:
        """Set a slider; by itself it takes its end for what lies beyond."""
        slider = self._sliders[name]
        if not (isinstance(value, Real) and slider.min <= value <= slider.max):
            raise ValueError(
                f"{name} must be from {slider.min:g} to {slider.max:g}, got {value!r}."
            )
        self._exact[name] = slider.value = float(value)
        self._update()

    def _update(self, change: Any = None) -> None:
        """Follow the thresholds and the page."""
        self.is_defect = self._probability >= self.threshold
        truth = self._data.is_defect
        self.confusion_matrix: NDArray[np.int64] | None = None
        if truth is not None:
            self.confusion_matrix = confusion_matrix(truth, self.is_defect, labels=[False, True])
        self.order = review_order(self._probability, self.is_defect, truth)
        self._counts.value = self._counts_html()
        start = (self._page.value - 1) * self._n_images
        shown = self.order[start : start + self._n_images].tolist()
        for place, cell in enumerate(self._cells):
            cell.layout.display = None if place < len(shown) else "none"
            if place < len(shown):
                self._titles[place].value = self._title_html(shown[place])
                self._pictures[place].value = self._picture(shown[place])

    def _counts_html(self) -> str:
        # Not rounded: a learned threshold is the score of an image, which rounding may flip.
        code = f"<code>clf.threshold_ = {self.threshold!r}</code>"
        if self.confusion_matrix is None:
            n_called, n = int(self.is_defect.sum()), len(self.is_defect)
            return f"<p>{n_called} of {n} images are called defective. {code}</p>"
        (passed, rejected), (missed, found) = self.confusion_matrix.tolist()
        return (
            "<table><tr><th></th><th>called good</th><th>called defective</th><th></th></tr>"
            f"<tr><th>good</th><td>{passed}</td><td>{rejected}</td>"
            f"<td>overkill {_share(rejected, passed + rejected)}</td></tr>"
            f"<tr><th>defective</th><td>{missed}</td><td>{found}</td>"
            f"<td>defect recall {_share(found, missed + found)}</td></tr></table><p>{code}</p>"
        )

    def _title_html(self, index: int) -> str:
        found, types = self._found[index], self._data.types
        if types is None:
            text = "defective" if self.is_defect[index] else "good"
        else:
            truth = types[index] != self._data.good_label
            text = f"{verdicts([truth], [self.is_defect[index]])[0]}: {types[index]}"
        name = f"image {index}"
        if is_path(found.source):
            name = str(found.source).replace("\\", "/").rsplit("/", 1)[-1]
        text = f"{text} ({found.probability:.2f})"
        return f"<b>{html.escape(text)}</b><br>{html.escape(name)}"

    def _picture(self, index: int) -> bytes:
        """Draw an image as it is called now; what was drawn before is kept."""
        key = index, bool(self.is_defect[index]), self.box_threshold
        if key not in self._drawn:
            found = self._found[index].with_threshold(self.box_threshold, self.threshold)
            if len(self._drawn) >= _MAX_KEPT:
                self._drawn.clear()
            # The colours keep their scale: only boxes follow the slider.
            middle = display.middle_of_scale(self._found[index].threshold)
            picture = found.overlay(threshold=middle)
            small = display.shrunk(picture, _PICTURE_SIDE)
            self._drawn[key] = display.encode_picture(small, ".png")
        return self._drawn[key]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)


def _widgets(caller: str) -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            f'{caller} requires ipywidgets. Install it with `pip install "defectcam[notebook]"`.'
        ) from error
    return ipywidgets


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "undefined"
