"""Displays of heatmaps: one image, a grid of them, and where defects occur over many parts.

Owns what of a `Localization` is shown and in which order. The scale of heat is fixed, 0 typical of
good parts and the threshold in the middle, so a good part looks calm in every one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.display import middle_of_scale
from defectcam.evaluation import good_label_among, read_mask
from defectcam.labels import as_labels
from defectcam.plots.figures import (
    COUNT_MAP,
    HEAT_MAP,
    add_colour_bar,
    add_image,
    axes_for,
    check_matplotlib,
    draw_boxes,
    draw_heat,
    draw_layer,
    draw_outline,
)
from defectcam.results import Localization
from defectcam.review import labelled_images, review_order, verdicts
from defectcam.transformers import localize

__all__ = ["DefectDensityDisplay", "HeatmapGridDisplay", "LocalizationDisplay"]

_GAP = 0.04  # between pictures of a grid, as a share of its width
_TITLE_INCHES = 0.3  # height of a picture's title
_INCHES = 2.2  # width of a picture in a new grid
_BAR_INCHES = 1.2


class LocalizationDisplay:
    """One image with its heatmap and boxes.

    Made by `from_estimator` or `from_predictions`, drawn by `plot`.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    heatmap : float32 array of shape (H, W)
        0 is typical of good parts, 1 their limit.
    boxes : array of shape (n, 4)
        Half-open `xyxy` in pixels of the image.
    box_texts : sequence of n str
        What is written at each.
    threshold : float, default=1.0
        The value of the map in the middle of the colour scale.
    mask : bool array of shape (H, W), optional
        Where the defect is; its outline is drawn.
    title : str, optional

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    colorbar_ : matplotlib Colorbar or None

    See Also
    --------
    defectcam.display.overlay : The same as an array of pixels, without matplotlib.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam import LocalizationDisplay
    >>> image = np.full((40, 60, 3), 200, np.uint8)
    >>> heatmap = np.zeros((40, 60), np.float32)
    >>> heatmap[10:20, 30:40] = 1.8
    >>> display = LocalizationDisplay(
    ...     image=image, heatmap=heatmap, boxes=[[30, 10, 40, 20]], box_texts=["1.8"]
    ... )
    >>> display.plot().ax_.get_xlim()  # doctest: +SKIP
    (-0.5, 59.5)
    """

    def __init__(
        self,
        *,
        image: NDArray[np.uint8],
        heatmap: NDArray[np.float32],
        boxes: ArrayLike,
        box_texts: Sequence[str],
        threshold: float = 1.0,
        mask: NDArray[np.bool_] | None = None,
        title: str | None = None,
    ) -> None:
        self.image = image
        self.heatmap = heatmap
        self.boxes = boxes
        self.box_texts = box_texts
        self.threshold = threshold
        self.mask = mask
        self.title = title

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, mask: Any = None, ax: Any = None, **kwargs: Any
    ) -> LocalizationDisplay:
        """Localise one image and draw it.

        Parameters
        ----------
        estimator : DefectCAMClassifier or Pipeline
            Fitted.
        X : path, array of shape (H, W[, C]) or PIL.Image.Image
            One image.
        mask : path or array of shape (H, W), optional
            Nonzero where the defect is.
        ax : matplotlib Axes, optional
            Where to draw; None: in a new figure.
        **kwargs
            Passed to `plot`.

        Returns
        -------
        LocalizationDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        found = localize(estimator, X)
        if not isinstance(found, Localization):
            raise ValueError(
                f"X must be one image, got {len(found)}: HeatmapGridDisplay draws several."
            )
        return cls.from_predictions(found, mask=mask, ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls, found: Localization, *, mask: Any = None, ax: Any = None, **kwargs: Any
    ) -> LocalizationDisplay:
        """Draw a result of `localize`.

        Parameters
        ----------
        found : Localization
        mask : path or array of shape (H, W), optional
            Nonzero where the defect is.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        LocalizationDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        return cls._of(found, mask, f"{found.label} ({found.probability:.2f})").plot(ax, **kwargs)

    @classmethod
    def _of(cls, found: Localization, mask: Any, title: str, index: int = 0) -> LocalizationDisplay:
        texts = [f"{score:.2g}" for score in found.box_scores]
        if found.type_grids is not None:
            texts = [f"{label} {text}" for label, text in zip(found.box_labels, texts, strict=True)]
        return cls(
            image=found.image,
            heatmap=found.heatmap,
            boxes=found.boxes,
            box_texts=texts,
            threshold=middle_of_scale(found.threshold),
            mask=read_mask(mask, index, found),
            title=title,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        alpha: float = 0.5,
        colormap: Any = HEAT_MAP,
        colorbar: bool = True,
    ) -> LocalizationDisplay:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            None: new ones.
        alpha : float, default=0.5
            The opacity of the heat at and above the threshold.
        colormap : str or matplotlib Colormap, default="inferno"
            Perceptually uniform, and readable by colour-blind people.
        colorbar : bool, default=True
            Whether to say what the colours mean.

        Returns
        -------
        LocalizationDisplay
            Itself, with ``ax_`` and ``figure_``.
        """
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        add_image(self.ax_, self.image)
        heat = draw_heat(self.ax_, self.heatmap, self.threshold, alpha, colormap)
        if self.mask is not None:
            draw_outline(self.ax_, self.mask)
        boxes = np.asarray(self.boxes).reshape(-1, 4).tolist()
        draw_boxes(self.ax_, boxes, self.box_texts, self.heatmap.shape)
        if self.title:
            self.ax_.set_title(self.title, fontsize="medium")
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = add_colour_bar(self.figure_, self.ax_, heat, self.threshold)
        return self


class HeatmapGridDisplay:
    """Many images with their heatmaps and boxes, those to look at first coming first.

    With labels: missed defects, false alarms, then found defects and good parts that passed.

    Parameters
    ----------
    displays : list of LocalizationDisplay
        One per picture, in the order in which they are drawn.
    order : int array of shape (n_pictures,)
        Place of each among the images that were given.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes within which the grid lies.
    axes_ : ndarray of matplotlib Axes of shape (n_pictures,)
    figure_ : matplotlib Figure
    colorbar_ : matplotlib Colorbar or None
    """

    def __init__(self, *, displays: list[LocalizationDisplay], order: NDArray[np.int64]) -> None:
        self.displays = displays
        self.order = order

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        masks: Sequence[Any] | None = None,
        good_label: Any = None,
        n_images: int | None = 12,
        ax: Any = None,
        **kwargs: Any,
    ) -> HeatmapGridDisplay:
        """Localise images and draw the first ones that somebody should look at.

        Parameters
        ----------
        estimator : DefectCAMClassifier or Pipeline
            Fitted.
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class. Without any, the
            images with the highest probability come first.
        masks : sequence of n paths, arrays of shape (H, W) or None, optional
            Where the defects are: their outlines are drawn.
        good_label : label, optional
            What good parts are called in ``y``, if not as in training.
        n_images : int or None, default=12
            How many are drawn; None for all.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        HeatmapGridDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        _check_n_images(n_images)
        data = labelled_images(estimator, X, y, good_label, needed=False)
        found = localize(estimator, data.items)
        return cls.from_predictions(
            found,
            data.types,
            masks=masks,
            good_label=data.good_label,
            n_images=n_images,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        found: Localization | Iterable[Localization],
        y_true: ArrayLike | None = None,
        *,
        masks: Sequence[Any] | None = None,
        good_label: Any = None,
        n_images: int | None = 12,
        ax: Any = None,
        **kwargs: Any,
    ) -> HeatmapGridDisplay:
        """Draw results of `localize`.

        Parameters
        ----------
        found : iterable of Localization, or one
        y_true : array-like of shape (n,), optional
            Labels.
        masks, good_label, n_images, ax, **kwargs
            As for `from_estimator`.

        Returns
        -------
        HeatmapGridDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        _check_n_images(n_images)
        found = _listed(found)
        for name, values in {"y_true": y_true, "masks": masks}.items():
            if values is not None and len(values) != len(found):  # type: ignore[arg-type]
                raise ValueError(f"{name} has {len(values)} entries for {len(found)} images.")  # type: ignore[arg-type]
        if not found:
            raise ValueError("found is empty: there is nothing to draw.")
        called = np.array([one.is_defect for one in found])
        names, is_defect = [one.label for one in found], None
        if y_true is not None:
            types = as_labels(y_true)
            is_defect = types != good_label_among(types, found[0].good_label, good_label)
            kinds = verdicts(is_defect, called)
            names = [
                f"{kind}: {type_}" if kind != "passed" else kind
                for kind, type_ in zip(kinds.tolist(), types.tolist(), strict=True)
            ]
        order = review_order([one.probability for one in found], called, is_defect)[:n_images]
        displays = [
            LocalizationDisplay._of(
                found[i],
                None if masks is None else masks[i],
                f"{names[i]} ({found[i].probability:.2f})",
                index=i,
            )
            for i in order.tolist()
        ]
        return cls(displays=displays, order=order).plot(ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        n_cols: int = 4,
        alpha: float = 0.5,
        colormap: Any = HEAT_MAP,
        colorbar: bool = True,
    ) -> HeatmapGridDisplay:
        """Draw the grid.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes within which the pictures get axes of their own. None: a new figure that fits.
        n_cols : int, default=4
            Pictures beside each other.
        alpha, colormap, colorbar
            As for `LocalizationDisplay.plot`.

        Returns
        -------
        HeatmapGridDisplay
            Itself, with ``ax_``, ``axes_`` and ``figure_``.
        """
        if n_cols < 1:
            raise ValueError(f"n_cols={n_cols!r}: at least 1.")
        n_cols = min(n_cols, len(self.displays))
        n_rows = math.ceil(len(self.displays) / n_cols)
        is_new = ax is None
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        if is_new:
            height, width = self.displays[0].image.shape[:2]
            row = _INCHES * height / width + _TITLE_INCHES
            self.figure_.set_size_inches(_INCHES * n_cols + _BAR_INCHES * colorbar, row * n_rows)
        self.ax_.set_axis_off()
        bar_of = self.displays[0]
        heat = draw_heat(self.ax_, np.zeros((1, 1)), bar_of.threshold, alpha, colormap)
        self.ax_.images[-1].remove()
        self.ax_.set_aspect("auto")
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = add_colour_bar(self.figure_, self.ax_, heat, bar_of.threshold)
        row_inches = self.ax_.get_window_extent().height / self.figure_.dpi / n_rows
        title = min(_TITLE_INCHES / row_inches, 0.5)
        self.axes_ = np.empty(len(self.displays), object)
        for i, display in enumerate(self.displays):
            row, column = divmod(i, n_cols)
            place = (
                column / n_cols + _GAP / n_cols / 2,
                1 - (row + 1) / n_rows,
                (1 - _GAP) / n_cols,
                (1 - title) / n_rows,
            )
            self.axes_[i] = self.ax_.inset_axes(place)
            display.plot(self.axes_[i], alpha=alpha, colormap=colormap, colorbar=False)
            display.ax_.title.set_fontsize("small")
        return self


class DefectDensityDisplay:
    """Where defects occur: the share of the parts that are marked at each place.

    It makes sense for parts that lie alike in all images. Images called good count as unmarked.

    Parameters
    ----------
    density : float32 array of shape (H, W)
        Share of the images whose boxes' regions cover the pixel, in [0, 1].
    n_images : int
        How many images that rests on.
    mean_image : uint8 array of shape (H, W, 3), optional
        What is shown below it: the mean of all images, RGB.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    colorbar_ : matplotlib Colorbar or None
    """

    def __init__(
        self,
        *,
        density: NDArray[np.float32],
        n_images: int,
        mean_image: NDArray[np.uint8] | None = None,
    ) -> None:
        self.density = density
        self.n_images = n_images
        self.mean_image = mean_image

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any = None, *, ax: Any = None, **kwargs: Any
    ) -> DefectDensityDisplay:
        """Localise images and draw where they are marked.

        Parameters
        ----------
        estimator : DefectCAMClassifier or Pipeline
            Fitted.
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : ignored
            Other displays take labels there.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        DefectDensityDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        _check_vmax(kwargs.get("vmax"))
        return cls.from_predictions(localize(estimator, X), ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls, found: Localization | Iterable[Localization], *, ax: Any = None, **kwargs: Any
    ) -> DefectDensityDisplay:
        """Draw results of `localize`.

        Parameters
        ----------
        found : iterable of Localization, or one
            Of any size; all are resized to that of the first. Where one has no image to read,
            nothing is shown below the density.
        ax : matplotlib Axes, optional
        **kwargs
            Passed to `plot`.

        Returns
        -------
        DefectDensityDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        _check_vmax(kwargs.get("vmax"))
        found = _listed(found)
        if not found:
            raise ValueError("found is empty: there is nothing to draw.")
        height, width = found[0].image_size
        marked = np.zeros((height, width), np.float32)
        picture = np.zeros((height, width, 3), np.float32)
        has_images = all(one.source is not None for one in found)
        for one in found:
            if one.is_defect:
                mask = one.mask().astype(np.float32)
                marked += cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
            if has_images:
                picture += cv2.resize(one.image, (width, height), interpolation=cv2.INTER_AREA)
        mean = (picture / len(found)).round().astype(np.uint8) if has_images else None
        density = (marked / len(found)).astype(np.float32)
        return cls(density=density, n_images=len(found), mean_image=mean).plot(ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        vmax: float | None = None,
        alpha: float = 0.8,
        colormap: Any = COUNT_MAP,
        colorbar: bool = True,
    ) -> DefectDensityDisplay:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            None: new ones.
        vmax : float, optional
            The share at the end of the colour scale, which starts at 0. None: the highest that
            occurs, but not less than one image.
        alpha : float, default=0.8
            The opacity there.
        colormap : str or matplotlib Colormap, default="cividis"
        colorbar : bool, default=True

        Returns
        -------
        DefectDensityDisplay
            Itself, with ``ax_`` and ``figure_``.
        """
        _check_vmax(vmax)
        self.ax_, self.figure_ = axes_for(ax, f"{type(self).__name__}.plot")
        if vmax is None:
            vmax = max(float(self.density.max()), 1 / self.n_images)
        if self.mean_image is not None:
            grey = cv2.cvtColor(self.mean_image, cv2.COLOR_RGB2GRAY).astype(np.uint8)
            add_image(self.ax_, np.repeat(grey[..., np.newaxis], 3, axis=2))
        opacity = alpha * np.clip(self.density / vmax, 0, 1) if self.mean_image is not None else 1.0
        shown = draw_layer(self.ax_, self.density, vmax, opacity, colormap)
        self.ax_.set(xticks=[], yticks=[], title=f"Marked, of {self.n_images} parts")
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = self.figure_.colorbar(
                shown, ax=self.ax_, fraction=0.046, pad=0.04, format=lambda x, _: f"{100 * x:g}%"
            )
        return self


def _listed(found: Localization | Iterable[Localization]) -> list[Localization]:
    """List results, of one image too, and of `localize_iter`."""
    return [found] if isinstance(found, Localization) else list(found)


def _check_n_images(n_images: int | None) -> None:
    if n_images is not None and not (isinstance(n_images, Integral) and n_images >= 1):
        raise ValueError(f"n_images={n_images!r}: a whole number of at least 1, or None for all.")


def _check_vmax(vmax: float | None) -> None:
    if vmax is not None and not vmax > 0:
        raise ValueError(f"vmax must be a positive share, got {vmax!r}.")
