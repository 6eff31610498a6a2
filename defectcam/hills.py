"""The hills of a heatmap, and how far each of them is a defect rather than blur.

Pure functions of NumPy arrays. A map is blurred by the grid it comes from, so that a point becomes
a hill, whose width at half of its height is the map's *point spread*. This module finds hills and
cuts each of them where it is as wide as what it shows. It draws no box and knows no image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Hill", "fit_hills", "width_at_half"]

#: A hill is what is connected to a peak above this share of its height.
FOOT = 0.6

#: The share at which a hill as narrow as a point's is cut. Where all defects are large, those that
#: the spread is measured on are no points: the box should still cover most of such a hill.
HIGHEST_CUT = 0.75

#: A wide hill reaches down to this share of its height, not below that of the threshold, and
#: covers more than this share of the map.
WIDE_FOOT = 0.25
WIDE_LEAST = 0.9
WIDE_SHARE = 1 / 12

#: Peaks with a valley between them that is lower than this share of the lower one are no one hill.
VALLEY = 0.5

#: At this share of a peak's height its width is measured.
NEAR_PEAK = 0.9

#: Marks of pixels that reach the lowest level of interest.
_UNSEEN, _SEEN, _DONE = 1, 2, 3

_Peak = tuple[int, int]  # row and column


class Hill(NamedTuple):
    """What is connected to a peak above some level.

    Attributes
    ----------
    peak : (int, int)
        Row and column.
    height : float
    place : (slice, slice)
        Rows and columns of the smallest rectangle around it.
    pixels : bool array
        Which pixels of that rectangle belong to it.
    """

    peak: _Peak
    height: float
    place: tuple[slice, slice]
    pixels: NDArray[np.bool_]

    @classmethod
    def above(cls, values: NDArray[np.float32], peak: _Peak, level: float) -> Hill:
        """Find what is 8-connected to a peak and reaches a level.

        Parameters
        ----------
        values : float32 array of shape (H, W)
        peak : (int, int)
            Row and column.
        level : float
            At most the peak's height.
        """
        reaches = (values >= np.float32(level)).view(np.uint8)
        _, _, _, (left, top, width, height) = cv2.floodFill(
            reaches, None, (peak[1], peak[0]), 2, flags=8
        )
        place = slice(top, top + height), slice(left, left + width)
        return cls(peak, float(values[peak]), place, reaches[place] == 2)

    @property
    def area(self) -> int:
        """Number of its pixels."""
        return int(np.count_nonzero(self.pixels))

    def moved(self, down: int, right: int) -> Hill:
        """Return it as part of a larger map, in which what it was found in begins there."""
        rows, columns = self.place
        return self._replace(
            peak=(self.peak[0] + down, self.peak[1] + right),
            place=(
                slice(rows.start + down, rows.stop + down),
                slice(columns.start + right, columns.stop + right),
            ),
        )

    def holds(self, peak: _Peak) -> bool:
        """Whether a pixel, given by row and column, belongs to it."""
        y, x = peak[0] - self.place[0].start, peak[1] - self.place[1].start
        height, width = self.pixels.shape
        return 0 <= y < height and 0 <= x < width and bool(self.pixels[y, x])


def fit_hills(
    values: NDArray[np.float32],
    is_peak: NDArray[np.bool_],
    threshold: float,
    min_area: int = 1,
    point_spread: tuple[float, float] = (0.0, 0.0),
    map_area: int | None = None,
) -> list[Hill]:
    r"""Find the hills, and cut each to what it shows.

    Parameters
    ----------
    values : float32 array of shape (H, W)
        0 is typical: heights count from there.
    is_peak : bool array of shape (H, W)
        Where peaks of hills are looked for; only values above 0.
    threshold : float
        Above 0, see Notes.
    min_area : int, default=1
        No hill is cut to fewer pixels, as far as it has them.
    point_spread : (float, float), default=(0.0, 0.0)
        Width and height in pixels, at half of its height, of the hill that a point becomes.
    map_area : int, optional
        Pixels of the map that `values` are a part of. None: they are all of it.

    Returns
    -------
    list of Hill
        No pixel belongs to two of them.

    Notes
    -----
    A hill is what is connected to a local maximum above 60 % of its height and touches no higher
    one. Let a defect of the widths :math:`w_x, w_y` be blurred like a Gaussian, which makes it
    :math:`f = \sqrt{w^2 + p^2}` wide at half of its height, where the point spread is :math:`p`.
    Then the hill is as large as the defect at the share :math:`2^{-s}` of its height with
    :math:`s = w_x w_y / (f_x f_y) = \sqrt{(1 - p_x^2 / f_x^2)(1 - p_y^2 / f_y^2)}`: a hill much
    wider than a point's at one half, a point's at its peak. Hills are cut at :math:`0.6^s`, their
    foot at the lowest, and at 75 % of their height at the highest.

    Large defects are faint at their edges. So what covers more than a twelfth of the map above 25 %
    of a hill's height, and above 90 % of the threshold, is one wide hill, unless it holds another
    one behind a valley that is lower than half of it.
    """
    rows, columns = _local_maxima(values, is_peak)
    if not len(rows):
        return []
    wide_area = WIDE_SHARE * (values.size if map_area is None else map_area)
    # Whatever is connected at a level of interest is connected at this one too: each hill is looked
    # for in a small part of the map.
    least_height = float(values[rows[-1], columns[-1]])
    wide_level = max(WIDE_FOOT * least_height, WIDE_LEAST * threshold)
    lowest = min(VALLEY * least_height, wide_level)
    reaches = (values >= np.float32(lowest)).view(np.uint8)
    fitted: list[Hill] = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if reaches[row, column] != _UNSEEN:
            continue
        _, _, _, (left, top, width, height) = cv2.floodFill(
            reaches, None, (column, row), _SEEN, flags=8
        )
        part = slice(top, top + height), slice(left, left + width)
        own = reaches[rows, columns] == _SEEN
        reaches[part][reaches[part] == _SEEN] = _DONE
        peaks = list(zip((rows[own] - top).tolist(), (columns[own] - left).tolist(), strict=True))
        hills = _find_hills(values[part], peaks)
        found = _fit(values[part], hills, threshold, wide_area, min_area, point_spread)
        fitted += [hill.moved(top, left) for hill in found]
    return fitted


def width_at_half(values: NDArray[np.float32]) -> float:
    """Measure how wide a map's highest hill would be at half of its height, were it a Gaussian.

    It is measured near the peak, where other hills are not in the way.

    Parameters
    ----------
    values : float32 array of shape (H, W)
        Its highest value is above 0.

    Returns
    -------
    float
        In pixels: the diameter of a circle of the same area.
    """
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    peak = int(row), int(column)
    hill = Hill.above(values, peak, NEAR_PEAK * float(values[peak]))
    return 2 * math.sqrt(hill.area / math.pi) / _times_half(NEAR_PEAK)


def _times_half(share: float) -> float:
    """How wide a Gaussian is at a share of its height, in its widths at half of it."""
    return math.sqrt(math.log2(1 / share))


def _fit(
    values: NDArray[np.float32],
    hills: list[Hill],
    threshold: float,
    wide_area: float,
    min_area: int,
    point_spread: tuple[float, float],
) -> list[Hill]:
    """Make wide hills of those that are parts of one, and cut the others."""
    fitted: list[Hill] = []
    absorbed: set[int] = set()
    for number, hill in enumerate(hills):
        wide = None if number in absorbed else _wide_hill(values, hill, threshold, wide_area)
        if wide is None:
            continue
        is_wide = np.zeros(values.shape, dtype=bool)
        is_wide[wide.place] = wide.pixels
        touched = [n for n, h in enumerate(hills) if is_wide[h.place][h.pixels].any()]
        if absorbed.isdisjoint(touched) and _is_one(values, [hills[n] for n in touched]):
            absorbed.update(touched)
            fitted.append(wide)
    rest = [hill for number, hill in enumerate(hills) if number not in absorbed]
    return fitted + [_cut(values, hill, min_area, point_spread) for hill in rest]


def _find_hills(values: NDArray[np.float32], peaks: list[_Peak]) -> list[Hill]:
    """Find the hills, highest first, that do not touch the foot of a higher one."""
    is_taken = np.zeros(values.shape, dtype=bool)
    hills = []
    for peak in peaks:
        if is_taken[peak]:
            continue
        hill = Hill.above(values, peak, FOOT * float(values[peak]))
        if not is_taken[hill.place][hill.pixels].any():
            hills.append(hill)
        is_taken[hill.place] |= hill.pixels
    return hills


def _local_maxima(
    values: NDArray[np.float32], is_peak: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of what nothing around is higher than, highest first, one per plateau."""
    left, top, width, height = cv2.boundingRect(is_peak.view(np.uint8))
    top, left = max(top - 1, 0), max(left - 1, 0)  # neighbours count too
    part = slice(top, top + height + 2), slice(left, left + width + 2)
    if not width:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    highest_around = cv2.dilate(values[part], np.ones((3, 3)))
    is_maximum = is_peak[part] & (values[part] >= highest_around)
    _, labels = cv2.connectedComponents(is_maximum.view(np.uint8), connectivity=8)
    rows, columns = np.nonzero(is_maximum)
    _, first = np.unique(labels[rows, columns], return_index=True)
    rows, columns = top + rows[first], left + columns[first]
    order = np.argsort(-values[rows, columns], kind="stable")
    return rows[order], columns[order]


def _wide_hill(
    values: NDArray[np.float32], hill: Hill, threshold: float, wide_area: float
) -> Hill | None:
    """Return what a hill is part of down to the foot of wide ones, if that is large enough."""
    level = max(WIDE_FOOT * hill.height, WIDE_LEAST * threshold)
    if np.count_nonzero(values >= np.float32(level)) <= wide_area:
        return None
    wide = Hill.above(values, hill.peak, level)
    return wide if wide.area > wide_area else None


def _is_one(values: NDArray[np.float32], hills: list[Hill]) -> bool:
    """Whether no deep valley parts the highest of these hills from the others."""
    highest = hills[0].peak
    return all(
        Hill.above(values, hill.peak, VALLEY * hill.height).holds(highest) for hill in hills[1:]
    )


def _cut(
    values: NDArray[np.float32], hill: Hill, min_area: int, point_spread: tuple[float, float]
) -> Hill:
    """Cut a hill where it is as large as what it shows, but leave `min_area` pixels of it."""
    height, width = hill.pixels.shape
    shares = [
        max(0.0, 1 - (spread * _times_half(FOOT) / side) ** 2)
        for side, spread in zip((width, height), point_spread, strict=True)
    ]
    level = min(FOOT ** math.sqrt(shares[0] * shares[1]), HIGHEST_CUT) * hill.height
    heights = values[hill.place][hill.pixels]
    n_least = min(min_area, len(heights))
    level = min(level, float(np.partition(heights, -n_least)[-n_least]))
    (rows, columns), (y, x) = hill.place, hill.peak
    cut = Hill.above(values[hill.place], (y - rows.start, x - columns.start), level)
    return cut.moved(rows.start, columns.start)
