"""What `localize` returns: one image's answer, from the class to the boxes.

A `Localization` holds the network's small map and the thresholds, and derives everything else from
them when asked: heatmap, boxes, pictures. It never runs a network, so another threshold costs
nothing, and it needs no torch. Reading is `images`' work, drawing `display`'s.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam import display
from defectcam.annotations_json import coco_document
from defectcam.boxes import component_labels, find_boxes, find_boxes_at
from defectcam.files import check_target, write_atomically
from defectcam.geometry import Geometry
from defectcam.images import is_path, read_image
from defectcam.placement import PlacedGeometry
from defectcam.plain_labels import ANOMALY, plain_label
from defectcam.shapes import AnnotatedImage, outlined

__all__ = ["Localization", "check_decision_threshold"]

_NOTEBOOK_SIDE = 640  # pixels of the longer side of the picture shown in a notebook
_NOTEBOOK_BOXES = 10

#: Of a map on its scale, what good parts stay below: evidence above it is that of a known type.
GOOD_LIMIT = 1.0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Localization:
    """Where the defects of one image are, and how sure the classifier is.

    Made by `DefectCAMClassifier.localize`. It cannot be changed; `with_threshold` gives another.
    Its arrays are read-only: copy them to work on them. The heatmap and the image are made again at
    each use and not kept, so that many results fit in memory: hold on to them in a variable.

    Parameters
    ----------
    label : str, bool or int
        The predicted class.
    probability : float
        The probability that the image shows a defect.
    is_defect : bool
        Whether the image is called defective. Only then are there boxes.
    grid : float32 array of shape (h, w)
        The map of defect evidence on the network's grid: 0 is typical of good parts, 1 the limit.
    geometry : Geometry or PlacedGeometry
        Where the image lies in the network's input, also through preprocessing steps.
    threshold : float
        Boxes are drawn where `heatmap > threshold`, see also `peak_fraction` and `tighten`.
    decision_threshold : float
        The probability at and above which an image is called defective.
    min_area : int
        The smallest region that gets a box, in pixels of the original image.
    max_boxes : int or None
        The largest number of boxes; None for all.
    merge_distance : float or None
        Boxes this near, in pixels of the original image, are merged; None for no merging.
    source : path, array, Pillow image or None
        Where the image comes from. A path is read again when the picture is needed; an array is
        referred to, not copied.
    good_label, defect_label : str, bool or int
        The label when the image is called good, and when it is called defective.
    type_grids : float32 array of shape (n_types, h', w'), optional
        Where there are several defect types, the evidence of each against good, on a grid of its
        own: 0 is typical of good parts, 1 the limit. None where there is one.
    defect_labels : sequence of labels, optional
        The defect types, in the order of `type_grids`.
    peak_fraction : float, default=0.0
        Boxes are drawn only where the heatmap also reaches this share of its highest value.
    tighten : bool, default=False
        Whether boxes are fitted to the heatmap's hills, see `find_boxes`.
    point_spread : float, default=0.0
        How wide a point becomes in the map, in cells of `grid`; for `tighten`.
    unfamiliar : bool, default=False
        Whether the image is unlike all training images, good and defective: another product, a
        covered lens, another exposure. Its label and probability then mean little.

    Attributes
    ----------
    heatmap : float32 array of shape (H, W)
        The map at the original image's size.
    boxes : int64 array of shape (n, 4)
        Half-open `xyxy` in the original image's pixels, best first; empty unless `is_defect`.
    box_scores : float32 array of shape (n,)
        The largest value of the map in each box's regions.
    box_labels : list of labels
        The defect type in each box.
    image : uint8 array of shape (H, W, 3)
        The original image, RGB.
    image_size : tuple of int
        The original image's `(H, W)`.

    Raises
    ------
    ValueError
        If a grid has another number of dimensions or is not finite, its types do not have one label
        each, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam.geometry import Geometry
    >>> grid = np.zeros((4, 4))
    >>> grid[1, 2] = 3.0
    >>> found = Localization(
    ...     label="anomaly", probability=0.98, is_defect=True, grid=grid,
    ...     geometry=Geometry.stretch((40, 80), (32, 32)), threshold=1.0, decision_threshold=0.5,
    ...     min_area=1, max_boxes=None, merge_distance=0, source=None,
    ...     good_label="good", defect_label="anomaly",
    ... )
    >>> found
    Localization('anomaly', probability=0.98, boxes=1, best_score=2.78, image_size=(40, 80))
    >>> found.with_threshold(decision_threshold=0.99).label
    'good'
    """

    label: Any
    probability: float
    is_defect: bool
    grid: NDArray[np.float32]
    geometry: Geometry | PlacedGeometry
    threshold: float
    decision_threshold: float
    min_area: int
    max_boxes: int | None
    merge_distance: float | None
    source: Any
    good_label: Any
    defect_label: Any
    type_grids: NDArray[np.float32] | None = None
    defect_labels: Sequence[Any] | None = None
    peak_fraction: float = 0.0
    tighten: bool = False
    point_spread: float = 0.0
    unfamiliar: bool = False

    def __post_init__(self) -> None:
        labels = self.defect_labels
        plain = {
            "grid": _checked_grid("grid", self.grid, ("h", "w")),
            "defect_labels": None if labels is None else tuple(map(plain_label, labels)),
            "label": plain_label(self.label),
            "good_label": plain_label(self.good_label),
            "defect_label": plain_label(self.defect_label),
            "probability": float(self.probability),
            "is_defect": bool(self.is_defect),
            "unfamiliar": bool(self.unfamiliar),
            "tighten": bool(self.tighten),
            "point_spread": float(self.point_spread),
            "threshold": float(self.threshold),
            "decision_threshold": float(self.decision_threshold),
        }
        if self.type_grids is not None:
            axes = ("n_types", "h", "w")
            plain["type_grids"] = _checked_grid("type_grids", self.type_grids, axes)
        n_grids, n_labels = (
            None if entries is None else len(entries) for entries in (self.type_grids, labels)
        )
        if n_grids != n_labels:
            raise ValueError(
                f"type_grids and defect_labels must have one entry per defect type, got {n_grids} "
                f"grids for the labels {labels!r}."
            )
        if not 0 <= plain["probability"] <= 1:
            raise ValueError(f"probability must lie between 0 and 1, got {self.probability!r}.")
        check_decision_threshold("decision_threshold", plain["decision_threshold"])
        if not np.isfinite(plain["threshold"]):
            raise ValueError(f"threshold must be a finite number, got {plain['threshold']!r}.")
        if not 0 <= plain["point_spread"] < float("inf"):
            raise ValueError(
                f"point_spread must be a finite number of cells from 0, got {self.point_spread!r}."
            )
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the way round `frozen`, once

    @property
    def image_size(self) -> tuple[int, int]:
        """The original image's `(H, W)`."""
        height, width = self.geometry.original_size
        return int(height), int(width)

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """The map at the original image's size, read-only float32 of shape (H, W)."""
        # Not kept, nor is the image: a list of thousands of results must fit in memory.
        return read_only(self.geometry.restore(self.grid))

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Half-open `xyxy` in the original image's pixels, best first; empty for a good image."""
        return self._boxes_and_scores[0]

    @property
    def box_scores(self) -> NDArray[np.float32]:
        """The largest value of the map in each box's regions, in the order of `boxes`."""
        return self._boxes_and_scores[1]

    @property
    def box_labels(self) -> list[Any]:
        """The defect type in each box, in the order of `boxes`.

        Of several types the one with the most evidence, averaged over the box's regions. If no
        type's evidence passes there what good parts show, only novelty has raised the map: the
        defect is of a kind that training did not know, and is called ``"anomaly"`` where labels are
        strings.
        """
        return list(self._box_labels)

    @property
    def image(self) -> NDArray[np.uint8]:
        """The original image, read-only uint8 RGB of shape (H, W, 3), read at each use."""
        if self.source is None:
            raise ValueError(
                "this Localization has no source to read its image from; draw with "
                "defectcam.display.overlay(image, found.heatmap, found.boxes) instead."
            )
        image = read_image(self.source)
        self._check_size(image.shape[:2])
        return read_only(image)

    def type_heatmap(self, label: Any) -> NDArray[np.float32]:
        """Give the map of one defect type, at the original image's size.

        It is the `heatmap`, lowered by as much as the type's evidence falls short of the strongest
        type's. So the highest of all types' maps is the heatmap, exactly, in every pixel.

        Parameters
        ----------
        label : str, bool or int
            One of the model's defect types.

        Returns
        -------
        heatmap : float32 array of shape (H, W)
            Read-only; on the scale of `heatmap`.

        Raises
        ------
        ValueError
            If there is no such defect type.
        """
        labels = (self.defect_label,) if self.defect_labels is None else self.defect_labels
        if label not in labels:
            raise ValueError(f"label must be a defect type, one of {list(labels)}, got {label!r}.")
        if self.type_grids is None:
            return self.heatmap
        strongest = own = self.geometry.restore(self.type_grids[labels.index(label)])
        for grid in self.type_grids:
            strongest = np.maximum(strongest, self.geometry.restore(grid))
        return read_only(self.heatmap - (strongest - own))

    def with_threshold(
        self,
        threshold: float | None = None,
        decision_threshold: float | None = None,
        *,
        peak_fraction: float | None = None,
        tighten: bool | None = None,
    ) -> Localization:
        """Answer again with another threshold, without another forward pass.

        Parameters
        ----------
        threshold : float, optional
            The new threshold of the map: other boxes. None keeps the present one.
        decision_threshold : float, optional
            The new threshold of the probability, in [0, 1]: perhaps another `is_defect` and
            `label`. None keeps the present one.
        peak_fraction : float, optional
            The new share of the map's highest value that boxes must reach, 0 for none. None keeps
            the present one.
        tighten : bool, optional
            Whether boxes are fitted to the map's hills from now on. None keeps it as it is.

        Returns
        -------
        found : Localization
            A new result; this one stays as it is.
        """
        changes: dict[str, Any] = {}
        if threshold is not None:
            changes["threshold"] = threshold
        if peak_fraction is not None:
            changes["peak_fraction"] = peak_fraction
        if tighten is not None:
            changes["tighten"] = tighten
        if decision_threshold is not None:
            is_defect = self.probability >= decision_threshold
            changes["decision_threshold"] = decision_threshold
            changes["is_defect"] = is_defect
            changes["label"] = self.defect_label if is_defect else self.good_label
        return dataclasses.replace(self, **changes)

    def boxes_at(
        self, thresholds: Iterable[float]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Find the boxes that other thresholds of the map would give, if the image is defective.

        Parameters
        ----------
        thresholds : iterable of float

        Returns
        -------
        list of (boxes, box_scores)
            For each threshold those of ``with_threshold(threshold, decision_threshold=0)``, in a
            fraction of the time.
        """
        return find_boxes_at(self.heatmap, thresholds, **self._box_options)

    def mask(self) -> NDArray[np.bool_]:
        """Mark the pixels of the regions that have a box.

        Returns
        -------
        mask : bool array of shape (H, W)
            All False for a good image.
        """
        return self.component_labels() > 0

    def component_labels(self) -> NDArray[np.int32]:
        """Mark the pixels of each box's regions with the box's number.

        Returns
        -------
        labels : int32 array of shape (H, W)
            0 outside, ``1 + i`` in the regions of ``boxes[i]``: regions never overlap, boxes may.
        """
        if not self.is_defect:
            return np.zeros(self.image_size, dtype=np.int32)
        return component_labels(self.heatmap, self.threshold, **self._box_options)

    def annotated(self, file_name: str, tolerance: float = 0.0) -> AnnotatedImage:
        """Give the boxes and outlines as annotation formats have them.

        Parameters
        ----------
        file_name : str
            What the image is called in the annotations.
        tolerance : float, default=0.0
            How far, in pixels, outlines may run beside the true ones to have fewer corners.

        Returns
        -------
        image : AnnotatedImage
            A `Shape` per box, best first.
        """
        shapes = outlined(
            self.boxes, self.box_labels, self.box_scores, self.component_labels(), tolerance
        )
        label = str(self.label) if self.is_defect and not shapes else None
        return AnnotatedImage(file_name, self.image_size, shapes, label)

    def to_coco(self, file_name: str | None = None, tolerance: float = 0.0) -> dict[str, Any]:
        """Give the result in the layout of COCO's annotation files, ready for JSON.

        Parameters
        ----------
        file_name : str, optional
            What the image is called there. None takes the name of the source's file.
        tolerance : float, default=0.0
            How far, in pixels, polygons may run beside the outlines to have fewer corners. 0 is
            exact.

        Returns
        -------
        document : dict
            ``info``, ``images`` (this one), ``annotations``, one per box, with ``segmentation``
            (polygons, or run lengths where a region has a hole) and ``score``, and ``categories``.

        Raises
        ------
        ValueError
            If there is neither a `file_name` nor a source that is a file.

        See Also
        --------
        defectcam.annotations.write_annotations : Many images, and other formats.
        """
        if file_name is None:
            if not is_path(self.source):
                raise ValueError("the image is no file: pass file_name, what COCO is to call it.")
            file_name = Path(self.source).name
        types = (self.defect_label,) if self.defect_labels is None else self.defect_labels
        classes = list(dict.fromkeys(str(label) for label in (*types, *self.box_labels)))
        return coco_document([self.annotated(file_name, tolerance)], classes)

    def overlay(
        self,
        *,
        threshold: float | None = None,
        alpha: float = 0.5,
        colormap: int = cv2.COLORMAP_INFERNO,
    ) -> NDArray[np.uint8]:
        """Draw the heatmap and the boxes over the image.

        Parameters
        ----------
        threshold : float, optional
            The value of the map in the middle of the colour scale. None takes the threshold of
            the boxes (or 1 if that is not positive): one scale for all images of a model.
        alpha : float, default=0.5
            The opacity of the heat at and above the threshold.
        colormap : int, default=cv2.COLORMAP_INFERNO
            One of OpenCV's colour maps.

        Returns
        -------
        picture : uint8 array of shape (H, W, 3)
            RGB.

        Raises
        ------
        ImageReadError
            If the source cannot be read any more.
        ValueError
            If there is no source, or a parameter is out of range.
        """
        if threshold is None:
            threshold = display.middle_of_scale(self.threshold)
        return display.overlay(
            self.image,
            self.heatmap,
            self.boxes,
            self.box_scores,
            box_labels=None if self.type_grids is None else self.box_labels,
            threshold=threshold,
            alpha=alpha,
            colormap=colormap,
        )

    def crops(self, margin: float = 0.1) -> list[NDArray[np.uint8]]:
        """Cut the boxes out of the image.

        Parameters
        ----------
        margin : float, default=0.1
            What to add on every side, as a share of the box's longer side; the crop ends at the
            image's border.

        Returns
        -------
        crops : list of uint8 arrays of shape (h, w, 3)
            RGB copies, in the order of `boxes`.

        Raises
        ------
        ImageReadError
            If the source cannot be read any more.
        ValueError
            If there is no source, or the margin is negative.
        """
        if not 0 <= margin < np.inf:
            raise ValueError(f"margin must be a share of at least 0, got {margin!r}.")
        image = self.image
        crops = []
        for left, top, right, bottom in self.boxes.tolist():
            extra = round(margin * max(right - left, bottom - top))
            rows = slice(max(top - extra, 0), bottom + extra)  # slices end at the border themselves
            columns = slice(max(left - extra, 0), right + extra)
            crops.append(image[rows, columns].copy())
        return crops

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the overlay picture to a file, whole or not at all.

        Parameters
        ----------
        path : path
            The suffix decides the format: .png, .jpg, .webp and others that Pillow writes.
        overwrite : bool, default=False
            Whether an existing file is replaced.

        Raises
        ------
        FileExistsError
            If the file exists and `overwrite` is false.
        FileNotFoundError
            If the folder does not exist.
        IsADirectoryError
            If it is a folder.
        ImageReadError
            If the source cannot be read any more.
        ValueError
            If there is no source, or the suffix names no picture format.
        """
        target = check_target(path, overwrite)
        picture = self.overlay()
        try:
            data = display.encode_picture(picture, target.suffix)
        except ValueError as error:
            raise ValueError(f"cannot write {target}: {error}") from error
        write_atomically(target, data)

    def to_dict(self) -> dict[str, Any]:
        """Give the result as plain numbers, strings and lists, ready for JSON.

        Returns
        -------
        result : dict
            `label`, `probability`, `is_defect`, `unfamiliar`, `decision_threshold`, `threshold`,
            `image_size` (H, W), `boxes`, `box_scores`, `box_labels` and `source` (None unless it is
            a path).
        """
        return {
            "label": self.label,
            "probability": self.probability,
            "is_defect": self.is_defect,
            "unfamiliar": self.unfamiliar,
            "decision_threshold": self.decision_threshold,
            "threshold": self.threshold,
            "image_size": list(self.image_size),
            "boxes": self.boxes.tolist(),
            "box_scores": self.box_scores.tolist(),
            "box_labels": self.box_labels,
            "source": _path_text(self.source) if is_path(self.source) else None,
        }

    def __repr__(self) -> str:
        parts = [f"{self.label!r}", f"probability={self.probability:.3g}"]
        parts.append(f"boxes={len(self.boxes)}")
        if len(self.boxes):
            parts.append(f"best_score={self.box_scores[0]:.3g}")
        parts.append(f"image_size={self.image_size}")
        if is_path(self.source):
            parts.append(f"source={_path_text(self.source)!r}")
        return f"Localization({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = {
            "label": str(self.label),
            "probability of defect": f"{self.probability:.3f} "
            f"(defective from {self.decision_threshold:.3f})",
            "source": self._source_name,
            "boxes (left, top, right, bottom)": self._boxes_text(),
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in rows.items()
        )
        return f"<div><table>{cells}</table>{self._picture_html()}</div>"

    def _picture_html(self) -> str:
        try:
            picture = self.overlay()
        except (OSError, ValueError) as error:  # showing a result must not fail with its file
            return f"<p>No picture: {html.escape(str(error))}</p>"
        small = display.shrunk(picture, _NOTEBOOK_SIDE)
        data = display.as_base64(display.encode_picture(small, ".png"))
        return f"<img alt='heatmap and boxes' src='data:image/png;base64,{data}'/>"

    def __getstate__(self) -> dict[str, Any]:
        # What is derived is left out: it can be derived again, and results stay small.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for grid in (self.grid, self.type_grids):
            if grid is not None:
                grid.setflags(write=False)  # pickle and deepcopy forget it

    @cached_property
    def _boxes_and_scores(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self.is_defect:
            boxes, scores = find_boxes(self.heatmap, self.threshold, **self._box_options)
        else:
            boxes, scores = np.empty((0, 4), dtype=np.int64), np.empty(0, dtype=np.float32)
        return read_only(boxes), read_only(scores)

    @cached_property
    def _box_labels(self) -> list[Any]:
        if self.type_grids is None or self.defect_labels is None or len(self.boxes) == 0:
            return [self.defect_label] * len(self.boxes)
        regions = self.component_labels()  # boxes may overlap, their regions do not
        means = np.empty((len(self.type_grids), len(self.boxes)))
        highest = np.full(len(self.boxes), -np.inf)
        for grid, mean in zip(self.type_grids, means, strict=True):
            evidence = self.geometry.restore(grid)  # one large map at a time
            for number, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
                box = slice(top, bottom), slice(left, right)
                marked = evidence[box][regions[box] == number + 1]
                mean[number] = marked.mean()
                highest[number] = max(highest[number], marked.max())
        labels = [self.defect_labels[index] for index in means.argmax(axis=0)]
        return self._known_labels(labels, highest)

    def _known_labels(self, labels: list[Any], highest: NDArray[np.float64]) -> list[Any]:
        """Call what no type explains, by the highest evidence of any, an anomaly."""
        if not isinstance(self.good_label, str):
            return labels  # a string among numbers would be no label
        is_known = highest > GOOD_LIMIT
        return [label if known else ANOMALY for label, known in zip(labels, is_known, strict=True)]

    def _boxes_text(self) -> str:
        if len(self.boxes) == 0:
            return "none"
        boxes = self.boxes[:_NOTEBOOK_BOXES].tolist()
        types = [f"{label} " if self.type_grids is not None else "" for label in self.box_labels]
        shown = [
            f"{tuple(box)}: {type_}{score:.3g}"
            for box, type_, score in zip(boxes, types, self.box_scores, strict=False)
        ]
        more = len(self.boxes) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    @property
    def _box_options(self) -> dict[str, Any]:
        return {
            "min_area": self.min_area,
            "max_boxes": self.max_boxes,
            "merge_distance": self.merge_distance,
            "peak_fraction": self.peak_fraction,
            "tighten": self.tighten,
            "point_spread": self._point_spread,
        }

    @property
    def _point_spread(self) -> tuple[float, float]:
        """Of the map at the original size, across and down."""
        width, height = self.geometry.cell_size((self.grid.shape[0], self.grid.shape[1]))
        return self.point_spread * width, self.point_spread * height

    def _check_size(self, size: tuple[int, ...]) -> None:
        """Refuse a source that is another image by now."""
        if size != self.image_size:
            raise ValueError(
                f"{self._source_name} has size (H, W) = {size} now, but had {self.image_size} when "
                "it was localized; localize it again."
            )

    @property
    def _source_name(self) -> str:
        if is_path(self.source):
            return _path_text(self.source)
        return "none" if self.source is None else "an image in memory"


def check_decision_threshold(name: str, value: float) -> None:
    """Refuse what is no threshold of a probability.

    Raises
    ------
    ValueError
        Naming it and its value.
    """
    is_number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"
    if not (is_number and 0 <= value <= 1):  # NaN is neither
        raise ValueError(
            f"{name} must be a probability, from 0 to 1, as images are called defective from there "
            f"on; got {value!r}."
        )


def _path_text(path: str | os.PathLike[str]) -> str:
    return str(os.fspath(path))  # of an array of paths, each is a NumPy string, which shows itself


def _checked_grid(name: str, grid: ArrayLike, axes: tuple[str, ...]) -> NDArray[np.float32]:
    checked = np.array(grid, dtype=np.float32)  # a copy: keeps no batch alive
    is_finite = np.isfinite(checked).all()
    if checked.ndim != len(axes) or checked.size == 0 or not is_finite:
        raise ValueError(
            f"{name} must be a finite, non-empty array of shape ({', '.join(axes)}), got shape "
            f"{checked.shape}{'' if is_finite else ' with NaN or infinite values'}."
        )
    checked.setflags(write=False)
    return checked


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: the array itself may be the caller's."""
    view = array.view()
    view.setflags(write=False)
    return view
