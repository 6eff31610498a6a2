"""What `localize` returns: one image's answer, from the class to the boxes.

A `Localization` holds the network's small map and the thresholds, and derives everything else from
them when asked: heatmap, boxes, pictures. It never runs a network, so another threshold costs
nothing, and it needs no torch. Reading is `images`' work, drawing `display`'s.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectcam import display
from defectcam.boxes import component_mask, find_boxes
from defectcam.files import write_atomically
from defectcam.geometry import Geometry
from defectcam.images import read_image

__all__ = ["Localization"]

_NOTEBOOK_SIDE = 640  # pixels of the longer side of the picture shown in a notebook
_NOTEBOOK_BOXES = 10


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
    geometry : Geometry
        Where the image lies in the network's input.
    threshold : float
        Boxes are drawn around the regions where `heatmap > threshold`.
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

    Attributes
    ----------
    heatmap : float32 array of shape (H, W)
        The map at the original image's size.
    boxes : int64 array of shape (n, 4)
        Half-open `xyxy` in the original image's pixels, best first; empty unless `is_defect`.
    box_scores : float32 array of shape (n,)
        The largest value of the map in each box's regions.
    image : uint8 array of shape (H, W, 3)
        The original image, RGB.
    image_size : tuple of int
        The original image's `(H, W)`.

    Raises
    ------
    ValueError
        If the grid is not a finite two-dimensional array, or a number is out of range.

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
    geometry: Geometry
    threshold: float
    decision_threshold: float
    min_area: int
    max_boxes: int | None
    merge_distance: float | None
    source: Any
    good_label: Any
    defect_label: Any

    def __post_init__(self) -> None:
        grid = np.array(self.grid, dtype=np.float32)  # a copy: keeps no batch alive
        if grid.ndim != 2 or grid.size == 0 or not np.isfinite(grid).all():
            raise ValueError(
                f"grid must be a finite, non-empty array of shape (h, w), got shape {grid.shape}"
                f"{'' if np.isfinite(grid).all() else ' with NaN or infinite values'}."
            )
        grid.setflags(write=False)
        plain = {
            "grid": grid,
            "label": _plain(self.label),
            "good_label": _plain(self.good_label),
            "defect_label": _plain(self.defect_label),
            "probability": float(self.probability),
            "is_defect": bool(self.is_defect),
            "threshold": float(self.threshold),
            "decision_threshold": float(self.decision_threshold),
        }
        if not 0 <= plain["probability"] <= 1:
            raise ValueError(f"probability must lie between 0 and 1, got {self.probability!r}.")
        for name in ("threshold", "decision_threshold"):
            if not np.isfinite(plain[name]):
                raise ValueError(f"{name} must be a finite number, got {plain[name]!r}.")
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
        return _read_only(self.geometry.restore(self.grid))

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Half-open `xyxy` in the original image's pixels, best first; empty for a good image."""
        return self._boxes_and_scores[0]

    @property
    def box_scores(self) -> NDArray[np.float32]:
        """The largest value of the map in each box's regions, in the order of `boxes`."""
        return self._boxes_and_scores[1]

    @property
    def image(self) -> NDArray[np.uint8]:
        """The original image, read-only uint8 RGB of shape (H, W, 3), read at each use."""
        if self.source is None:
            raise ValueError(
                "this Localization has no source to read its image from; draw with "
                "defectcam.display.overlay(image, found.heatmap, found.boxes) instead."
            )
        image = read_image(self.source)
        if image.shape[:2] != self.image_size:
            raise ValueError(
                f"{self._source_name} has size (H, W) = {image.shape[:2]} now, but had "
                f"{self.image_size} when it was localized; localize it again."
            )
        return _read_only(image)

    def with_threshold(
        self, threshold: float | None = None, decision_threshold: float | None = None
    ) -> Localization:
        """Answer again with another threshold, without another forward pass.

        Parameters
        ----------
        threshold : float, optional
            The new threshold of the map: other boxes. None keeps the present one.
        decision_threshold : float, optional
            The new threshold of the probability: perhaps another `is_defect` and `label`. None
            keeps the present one.

        Returns
        -------
        found : Localization
            A new result; this one stays as it is.
        """
        changes: dict[str, Any] = {}
        if threshold is not None:
            changes["threshold"] = threshold
        if decision_threshold is not None:
            is_defect = self.probability >= decision_threshold
            changes["decision_threshold"] = decision_threshold
            changes["is_defect"] = is_defect
            changes["label"] = self.defect_label if is_defect else self.good_label
        return dataclasses.replace(self, **changes)

    def mask(self) -> NDArray[np.bool_]:
        """Mark the pixels of the regions that have a box.

        Returns
        -------
        mask : bool array of shape (H, W)
            All False for a good image.
        """
        if not self.is_defect:
            return np.zeros(self.image_size, dtype=bool)
        return component_mask(self.heatmap, self.threshold, **self._box_options)

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
            threshold = self.threshold if self.threshold > 0 else 1.0
        return display.overlay(
            self.image,
            self.heatmap,
            self.boxes,
            self.box_scores,
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
        ImageReadError
            If the source cannot be read any more.
        ValueError
            If there is no source, or the suffix names no picture format.
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists; pass overwrite=True to replace it.")
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {target}: make the folder {target.parent} first."
            )
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
            `label`, `probability`, `is_defect`, `decision_threshold`, `threshold`, `image_size`
            (H, W), `boxes`, `box_scores` and `source` (None unless it is a path).
        """
        return {
            "label": self.label,
            "probability": self.probability,
            "is_defect": self.is_defect,
            "decision_threshold": self.decision_threshold,
            "threshold": self.threshold,
            "image_size": list(self.image_size),
            "boxes": self.boxes.tolist(),
            "box_scores": self.box_scores.tolist(),
            "source": os.fspath(self.source) if _is_path(self.source) else None,
        }

    def __repr__(self) -> str:
        parts = [f"{self.label!r}", f"probability={self.probability:.3g}"]
        parts.append(f"boxes={len(self.boxes)}")
        if len(self.boxes):
            parts.append(f"best_score={self.box_scores[0]:.3g}")
        parts.append(f"image_size={self.image_size}")
        if _is_path(self.source):
            parts.append(f"source={os.fspath(self.source)!r}")
        return f"Localization({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = {
            "label": str(self.label),
            "probability of defect": f"{self.probability:.3f} "
            f"(defective from {self.decision_threshold:.3f})",
            "source": self._source_name,
            "boxes (left, top, right, bottom)": _boxes_text(self.boxes, self.box_scores),
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
        height, width = picture.shape[:2]
        scale = _NOTEBOOK_SIDE / max(height, width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        data = base64.b64encode(display.encode_picture(picture, ".png")).decode("ascii")
        return f"<img alt='heatmap and boxes' src='data:image/png;base64,{data}'/>"

    def __getstate__(self) -> dict[str, Any]:
        # What is derived is left out: it can be derived again, and results stay small.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.grid.setflags(write=False)  # pickle and deepcopy forget it

    @cached_property
    def _boxes_and_scores(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self.is_defect:
            boxes, scores = find_boxes(self.heatmap, self.threshold, **self._box_options)
        else:
            boxes, scores = np.empty((0, 4), dtype=np.int64), np.empty(0, dtype=np.float32)
        return _read_only(boxes), _read_only(scores)

    @property
    def _box_options(self) -> dict[str, Any]:
        return {
            "min_area": self.min_area,
            "max_boxes": self.max_boxes,
            "merge_distance": self.merge_distance,
        }

    @property
    def _source_name(self) -> str:
        if _is_path(self.source):
            return os.fspath(self.source)
        return "none" if self.source is None else "an image in memory"


def _plain(label: Any) -> Any:
    """Turn NumPy's strings, booleans and integers into Python's, as JSON wants them."""
    return label.item() if isinstance(label, np.generic) else label


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: the array itself may be the caller's."""
    view = array.view()
    view.setflags(write=False)
    return view


def _boxes_text(boxes: NDArray[np.int64], scores: NDArray[np.float32]) -> str:
    if len(boxes) == 0:
        return "none"
    shown = [
        f"{tuple(box)}: {score:.3g}"
        for box, score in zip(boxes[:_NOTEBOOK_BOXES].tolist(), scores, strict=False)
    ]
    more = len(boxes) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
