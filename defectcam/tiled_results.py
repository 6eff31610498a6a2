"""What `localize` returns for an image that was seen in tiles: the same, in bounded memory.

A `TiledLocalization` is a `Localization` whose map is small and whose image may be huge: boxes are
found on the parts that matter, pictures are shrunk, and a map of the original size is made only
when it is asked for. It never runs a network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from defectcam import display
from defectcam.boxes import component_labels, find_boxes_at, merge_and_trace
from defectcam.geometry import Geometry
from defectcam.large_images import open_rows, read_shrunk
from defectcam.results import Localization, read_only

__all__ = ["TiledLocalization"]

#: Pixels of the largest part of the map in which boxes are found at full resolution.
LARGEST_PART = 2**24

#: Pixels of the longer side of a picture of a large image.
PICTURE_SIDE = 4096


class _Part(NamedTuple):
    """A part of the map in which boxes may lie, and where it begins, in pixels of the map."""

    heat: NDArray[np.float32]
    left: int
    top: int


class _Found(NamedTuple):
    """The boxes of the image, and what became of those of its parts."""

    boxes: NDArray[np.int64]
    scores: NDArray[np.float32]
    numbers: list[NDArray[np.int32]]  # of each part's boxes: 1 + the row among these, 0 = dropped


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TiledLocalization(Localization):
    """Where the defects of a large image are, seen in tiles.

    Made by `DefectCAMClassifier.localize` with ``tile``. All that `Localization` says holds, and:

    - Boxes lie in suspicious tiles only: those that alone would make the image be called defective.
      `peak_fraction` and `tighten` compare within a group of tiles that touch, not within the whole
      image: what lies far from the strongest defect is no echo of it.
    - `heatmap`, `mask`, `component_labels` and `image` have the original size and as much memory as
      that takes, so use `heatmap_of` for a part. `overlay` is shrunk to 4096 pixels of the longer
      side.
    - Where more than 16 million pixels are suspicious in one place, boxes are found on a map that
      is shrunk by a whole number, and are exact to that many pixels.

    Parameters
    ----------
    probability_grid : float64 array of shape (h, w)
        On the cells of `grid`, the probability of a defect that the most suspicious tile there
        gives the image. Of what `localize` makes, the highest is `probability`, exactly.
    tile : (int, int)
        Height and width of a tile in pixels.

    See Also
    --------
    defectcam.results.Localization : The other parameters and attributes.
    """

    probability_grid: NDArray[np.float64]
    tile: tuple[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = np.array(self.probability_grid, dtype=np.float64)
        if plain.shape != self.grid.shape:
            raise ValueError(
                f"probability_grid must have the shape of grid, {self.grid.shape}, got "
                f"{plain.shape}."
            )
        plain.setflags(write=False)
        object.__setattr__(self, "probability_grid", plain)  # the way round `frozen`, once

    def heatmap_of(self, box: tuple[int, int, int, int]) -> NDArray[np.float32]:
        """Give a part of the heatmap, without making the rest.

        Parameters
        ----------
        box : (int, int, int, int)
            Left, top, right and bottom in pixels of the original image.

        Returns
        -------
        ndarray of float32, shape (bottom - top, right - left)

        Raises
        ------
        ValueError
            If the box is empty or leaves the image.
        """
        left, top, right, bottom = box
        height, width = self.image_size
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"box {box} is empty or leaves the image of size {self.image_size}.")
        return self._geometry.restore(self.grid, (left, top, right, bottom))

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
            For each threshold those of ``with_threshold(threshold)``. Boxes lie in suspicious tiles
            only, so for a good image those of the `decision_threshold` at which it just becomes
            defective, its `probability`.
        """
        thresholds = list(thresholds)
        if not thresholds:
            return []
        # What surrounds the parts must be calm at each of the thresholds.
        lowest = self.with_threshold(
            min(thresholds), decision_threshold=min(self.decision_threshold, self.probability)
        )
        assert isinstance(lowest, TiledLocalization)
        return [(found.boxes, found.scores) for found in lowest._found_at(thresholds)]

    @property
    def image(self) -> NDArray[np.uint8]:
        """The original image, uint8 RGB of shape (H, W, 3), read whole at each use."""
        if self.source is None:
            return super().image  # which says what to do
        with open_rows(self.source) as rows:
            self._check_size(rows.size)
            image = rows.read(0, rows.size[0])
        return read_only(image)

    def mask(self) -> NDArray[np.bool_]:
        """Mark the pixels of the regions that have a box.

        Returns
        -------
        mask : bool array of shape (H, W)
            All False for a good image.
        """
        mask = np.zeros(self.image_size, dtype=bool)  # a quarter of what numbers would take
        for place, numbers in self._regions():
            mask[place] |= numbers > 0
        return mask

    def component_labels(self) -> NDArray[np.int32]:
        """Mark the pixels of each box's regions with the box's number.

        Returns
        -------
        labels : int32 array of shape (H, W)
            0 outside, ``1 + i`` in the regions of ``boxes[i]``: regions never overlap, boxes may.
        """
        labels = np.zeros(self.image_size, dtype=np.int32)
        for place, numbers in self._regions():
            np.copyto(labels[place], numbers, where=numbers > 0)
        return labels

    def overlay(
        self,
        *,
        threshold: float | None = None,
        alpha: float = 0.5,
        colormap: int = cv2.COLORMAP_INFERNO,
    ) -> NDArray[np.uint8]:
        """Draw the heatmap and the boxes over the image, shrunk to 4096 pixels of the longer side.

        Parameters
        ----------
        threshold, alpha, colormap
            As for `Localization.overlay`.

        Returns
        -------
        picture : uint8 array of shape (h, w, 3)
            RGB.
        """
        if max(self.image_size) <= PICTURE_SIDE or self.source is None:
            return super().overlay(threshold=threshold, alpha=alpha, colormap=colormap)
        if threshold is None:
            threshold = display.middle_of_scale(self.threshold)
        picture = read_shrunk(self.source, PICTURE_SIDE)
        size = (picture.shape[0], picture.shape[1])
        geometry = dataclasses.replace(self._geometry, original_size=size)
        scale = np.array([size[1], size[0]] * 2) / np.array([*self.image_size[::-1]] * 2)
        boxes = self.boxes * scale
        corners = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
        return display.overlay(
            picture,
            geometry.restore(self.grid),
            corners.astype(np.int64),
            self.box_scores,
            box_labels=None if self.type_grids is None else self.box_labels,
            threshold=threshold,
            alpha=alpha,
            colormap=colormap,
        )

    def crops(self, margin: float = 0.1) -> list[NDArray[np.uint8]]:
        """Cut the boxes out of the image, reading only their rows where its format allows.

        Parameters
        ----------
        margin : float, default=0.1
            As for `Localization.crops`.

        Returns
        -------
        crops : list of uint8 arrays of shape (h, w, 3)
        """
        if self.source is None or not margin >= 0:
            return super().crops(margin)  # which says what to do
        crops = []
        with open_rows(self.source) as rows:
            self._check_size(rows.size)
            for left, top, right, bottom in self.boxes.tolist():
                extra = round(margin * max(right - left, bottom - top))
                part = rows.read(max(top - extra, 0), min(bottom + extra, rows.size[0]))
                crops.append(part[:, max(left - extra, 0) : right + extra].copy())
        return crops

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.probability_grid.setflags(write=False)  # pickle and deepcopy forget it

    @property
    def _geometry(self) -> Geometry:
        assert isinstance(self.geometry, Geometry)
        return self.geometry

    @property
    def _boxes_and_scores(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self._found.boxes, self._found.scores

    @cached_property
    def _found(self) -> _Found:
        (found,) = self._found_at([self.threshold])
        return found

    def _found_at(self, thresholds: list[float]) -> list[_Found]:
        """Find the boxes of each threshold, none below the own one, on parts that are made once."""
        of_parts: list[list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = []
        for part, shrink in self._parts() if self.is_defect else ():
            options = self._options_of_parts(shrink)
            origin, ends = np.tile([part.left, part.top], 2), np.tile(self.image_size[::-1], 2)
            found = find_boxes_at(part.heat, thresholds, **options)
            of_parts.append(
                [(np.minimum((boxes + origin) * shrink, ends), peaks) for boxes, peaks in found]
            )
        return [
            self._joined([found[number] for found in of_parts]) for number in range(len(thresholds))
        ]

    def _joined(self, of_parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> _Found:
        """Merge and count the boxes of the parts as those of one image."""
        boxes = [np.empty((0, 4), np.int64), *(found for found, _ in of_parts)]
        scores = [np.empty(0, np.float32), *(peaks for _, peaks in of_parts)]
        merged, highest, rows = merge_and_trace(
            np.concatenate(boxes), np.concatenate(scores), self.merge_distance
        )
        merged, highest = merged[: self.max_boxes], highest[: self.max_boxes]
        numbers = np.where(rows < len(merged), rows + 1, 0).astype(np.int32)
        ends = np.cumsum([len(peaks) for peaks in scores])
        return _Found(read_only(merged), read_only(highest), np.split(numbers, ends[:-1])[1:])

    def _regions(self) -> Iterator[tuple[tuple[slice, slice], NDArray[np.int32]]]:
        """Go through the places of the parts, which may overlap, and their pixels' box numbers."""
        height, width = self.image_size
        for part, shrink, numbers in self._numbered_parts():
            own = numbers.repeat(shrink, axis=0).repeat(shrink, axis=1)
            top, left = part.top * shrink, part.left * shrink
            own = own[: height - top, : width - left]  # a shrunk part may end beyond the image
            yield (slice(top, top + own.shape[0]), slice(left, left + own.shape[1])), own

    def _numbered_parts(self) -> Iterator[tuple[_Part, int, NDArray[np.int32]]]:
        """Go through the parts, how much they are shrunk, and their pixels' box numbers."""
        if not self.is_defect:
            return
        for (part, shrink), numbers in zip(self._parts(), self._found.numbers, strict=True):
            own = component_labels(part.heat, self.threshold, **self._options_of_parts(shrink))
            yield part, shrink, np.concatenate([[0], numbers]).astype(np.int32)[own]

    def _options_of_parts(self, shrink: int) -> dict[str, Any]:
        """Return how regions are found in parts, whose boxes are merged and counted later."""
        across, down = self._point_spread
        height, width = self._shrunk_size(shrink)
        return {
            "min_area": max(1, self.min_area // shrink**2),
            "peak_fraction": self.peak_fraction,
            "tighten": self.tighten,
            "point_spread": (across / shrink, down / shrink),
            "map_area": height * width,
        }

    def _shrunk_size(self, shrink: int) -> tuple[int, int]:
        """Height and width of the map in whose pixels boxes are found."""
        return -(-self.image_size[0] // shrink), -(-self.image_size[1] // shrink)

    def _parts(self) -> Iterator[tuple[_Part, int]]:
        """Go through the parts of the map that suspicious tiles cover, outside of them calm."""
        suspicious = (self.probability_grid >= self.decision_threshold).astype(np.uint8)
        n_labels, labels, stats, _ = cv2.connectedComponentsWithStats(suspicious, connectivity=8)
        windows = [self._pixels_of(stats[label].tolist()) for label in range(1, n_labels)]
        largest = max(((r - x) * (b - y) for x, y, r, b in windows), default=0)
        shrink = max(1, int(np.ceil(np.sqrt(largest / LARGEST_PART))))
        size = self._shrunk_size(shrink)
        geometry = dataclasses.replace(self._geometry, original_size=size)
        for label, (x, y, r, b) in enumerate(windows, start=1):
            window = (x // shrink, y // shrink, -(-r // shrink), -(-b // shrink))
            heat = geometry.restore(self.grid, window)
            rows = self._cells(range(window[1], window[3]), size[0], 0)
            columns = self._cells(range(window[0], window[2]), size[1], 1)
            # Calm, but finite: slopes are looked at. Hills reach below the threshold, but not to 0.
            calm = min(float(heat.min()), self.threshold, 0.0)
            heat[labels[np.ix_(rows, columns)] != label] = calm
            yield _Part(heat, window[0], window[1]), shrink

    def _pixels_of(self, stats: list[int]) -> tuple[int, int, int, int]:
        """Pixels of a rectangle of cells: left, top, right and bottom, within the image."""
        left, top, width, height = stats[:4]
        edges = []
        for axis, (first, last) in enumerate(((top, top + height), (left, left + width))):
            n, side = self.grid.shape[axis], self.image_size[axis]
            length, whole = self._geometry.content[2 + axis], self._geometry.input_size[axis]
            per_cell = whole / n * side / length
            edges.append((int(first * per_cell), min(side, int(np.ceil(last * per_cell)))))
        return edges[1][0], edges[0][0], edges[1][1], edges[0][1]

    def _cells(self, pixels: range, side: int, axis: int) -> NDArray[np.intp]:
        """Cell that each pixel's centre lies in."""
        n, whole = self.grid.shape[axis], self._geometry.input_size[axis]
        length = self._geometry.content[2 + axis]
        per_pixel, denominator = length * n, 2 * side * whole
        common = math.gcd(per_pixel, denominator)  # without it, long images would leave 64 bits
        centres = (2 * np.asarray(pixels, dtype=np.int64) + 1) * (per_pixel // common)
        return np.minimum(centres // (denominator // common), n - 1)

    @cached_property
    def _box_labels(self) -> list[Any]:
        if self.type_grids is None or self.defect_labels is None or len(self.boxes) == 0:
            return [self.defect_label] * len(self.boxes)
        sums = np.zeros((len(self.type_grids), 1 + len(self.boxes)))
        highest = np.full(1 + len(self.boxes), -np.inf)
        for part, shrink, numbers in self._numbered_parts():
            geometry = dataclasses.replace(self._geometry, original_size=self._shrunk_size(shrink))
            height, width = numbers.shape
            window = (part.left, part.top, part.left + width, part.top + height)
            marked = numbers > 0
            for grid, of_type in zip(self.type_grids, sums, strict=True):
                evidence = geometry.restore(grid, window)[marked]
                of_type += np.bincount(numbers[marked], evidence, minlength=len(of_type))
                np.maximum.at(highest, numbers[marked], evidence)
        labels = [self.defect_labels[index] for index in sums[:, 1:].argmax(axis=0)]
        return self._known_labels(labels, highest[1:])
