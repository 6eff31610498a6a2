"""What is done to one image before a network sees it: crop, align, even out light and contrast.

This module owns the image processing, OpenCV's. A step is a small frozen object: pixels in, pixels
out, with the `Placement` that says where they were if they moved. It learns nothing and reads no
file; what is learned from many images, and scikit-learn's manners, are `transformers`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from defectcam.placement import Placement, shifted_from_centres, shifted_to_centres

__all__ = [
    "MOTIONS",
    "AlignToTemplate",
    "CropToPart",
    "EqualizeContrast",
    "FlattenField",
    "light_field",
]

Pixels: TypeAlias = NDArray[np.uint8]

MOTIONS = {
    "translation": cv2.MOTION_TRANSLATION,
    "euclidean": cv2.MOTION_EUCLIDEAN,
    "affine": cv2.MOTION_AFFINE,
}

_SEARCH_SIDE = 512  # pixels of the longer side in which a part is looked for
_ROUNDING = 1e-9  # pixels
_SPECK = 3  # pixels of the median filter's side
_FIELD_SIDE = 256  # likewise for a field of light, which is smooth
_ECC_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-6)
_ECC_BLUR = 5
_N_FEATURES = 1000
_RATIO = 0.8  # of a match's distance to the second best's: Lowe, IJCV 2004
_FEWEST_INLIERS = 8
_INLIER_DISTANCE = 2.0


@dataclass(frozen=True)
class CropToPart:
    """Crop to what stands out from the background; see `defectcam.PartCropper`.

    Parameters
    ----------
    threshold : "otsu" or number
    background : "auto" or tuple of 3 int
    keep : {"largest", "all"}
    margin : float
    erase : bool
    min_share : float
    """

    threshold: str | float = "otsu"
    background: str | tuple[int, int, int] = "auto"
    keep: str = "largest"
    margin: float = 0.05
    erase: bool = False
    min_share: float = 0.01

    def __call__(self, pixels: Pixels) -> tuple[Pixels, Placement | None]:
        """Return the crop; the whole image where there is no part."""
        colour = self._background_of(pixels)
        small = _shrunk(pixels, _SEARCH_SIDE)
        part = self._find_part(small, colour)
        if part is None:
            return pixels, None
        if small is not pixels:
            part = _grown(part)  # by the cells of which the part covers too little to be found
        if self.erase:
            # The median filter has cut the part's corners.
            full = cv2.resize(_grown(part), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            pixels = np.where(full[..., np.newaxis] > 0, pixels, colour)
        left, top, right, bottom = box = self._box(part, pixels.shape[:2])
        return pixels[top:bottom, left:right], Placement.crop(pixels.shape[:2], box)

    def _background_of(self, pixels: Pixels) -> Pixels:
        if not isinstance(self.background, str):
            return np.asarray(self.background, dtype=np.uint8)
        border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        return np.median(np.concatenate(border), axis=0).astype(np.uint8)

    def _find_part(self, pixels: Pixels, colour: Pixels) -> Pixels | None:
        """Mark the part with 255, holes filled; None if nothing large enough stands out."""
        difference = np.abs(pixels.astype(np.int16) - colour).max(axis=2).astype(np.uint8)
        difference = np.asarray(cv2.medianBlur(difference, _SPECK), dtype=np.uint8)
        if self.threshold == "otsu":
            limit, _ = cv2.threshold(difference, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        else:
            limit = float(self.threshold)
        marked = (difference > limit).astype(np.uint8)
        outlines, _ = cv2.findContours(marked, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        least = self.min_share * marked.size
        large = [outline for outline in outlines if cv2.contourArea(outline) >= least]
        if not large:
            return None
        chosen = large if self.keep == "all" else [max(large, key=cv2.contourArea)]
        part = np.zeros(marked.shape, dtype=np.uint8)
        cv2.drawContours(part, chosen, -1, 255, cv2.FILLED)
        return part

    def _box(self, part: Pixels, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Box of the marked cells with the margin, in the pixels of the image of `size`."""
        columns, rows = np.any(part, axis=0), np.any(part, axis=1)
        spans = _span(columns, size[1]), _span(rows, size[0])
        extra = self.margin * max(last - first for first, last in spans)
        (left, right), (top, bottom) = (
            (max(0, floor(first - extra + _ROUNDING)), min(n, ceil(last + extra - _ROUNDING)))
            for (first, last), n in zip(spans, (size[1], size[0]), strict=True)
        )
        return left, top, right, bottom


@dataclass(frozen=True, eq=False, repr=False)
class AlignToTemplate:
    """Warp onto a template; see `defectcam.TemplateAligner`.

    Parameters
    ----------
    template : uint8 array of shape (h, w, 3)
    method : {"ecc", "orb"}
    motion : {"translation", "euclidean", "affine"}
    max_side : int
    min_correlation : float
    on_failure : {"keep", "raise"}
    """

    template: Pixels
    method: str = "ecc"
    motion: str = "euclidean"
    max_side: int = 512
    min_correlation: float = 0.3
    on_failure: str = "keep"

    def __call__(self, pixels: Pixels) -> tuple[Pixels, Placement | None]:
        """Return the image in the template's frame; the image itself where that fails.

        Raises
        ------
        ValueError
            If the image cannot be aligned and `on_failure` says so.
        """
        matrix, correlation = self._register(pixels)
        if matrix is None or correlation < self.min_correlation:
            if self.on_failure == "raise":
                raise ValueError(
                    f"the image cannot be aligned to the template (correlation {correlation:.2f}, "
                    f"min_correlation={self.min_correlation}): is it upright, and the same part? "
                    "Try method='orb', or on_failure='keep'."
                )
            return pixels, None
        placement = Placement(pixels.shape[:2], self.template.shape[:2], _as_matrix(matrix))
        return _warped(pixels, matrix, self.template.shape[:2]), placement

    def __repr__(self) -> str:
        height, width = self.template.shape[:2]
        return f"AlignToTemplate({height} x {width}, method={self.method!r})"

    def _register(self, pixels: Pixels) -> tuple[NDArray[np.float64] | None, float]:
        """Find the map from the template's points to the image's, and how well it fits."""
        scale = min(1.0, self.max_side / max(self.template.shape[:2]))
        small, template = (_grey(_scaled(image, scale)) for image in (pixels, self.template))
        if self.method == "orb":
            start = _match_features(template, small)
            ends = [] if start is None else [start, _climb(template, small, start, "affine")]
        else:
            ends = [_search_ecc(template, small, self.motion)]
        fits = [
            (_correlation(template, _warped(small, end, template.shape)), end)
            for end in ends
            if end is not None
        ]
        if not fits:
            return None, 0.0
        correlation, found = max(fits, key=lambda fit: fit[0])
        to_small = _diagonal(template.shape, self.template.shape)
        from_small = _diagonal(pixels.shape, small.shape)
        linear = from_small @ found[:, :2] @ to_small
        return np.column_stack([linear, from_small @ found[:, 2]]), correlation


@dataclass(frozen=True, eq=False, repr=False)
class FlattenField:
    """Divide by a field of light; see `defectcam.FlatFieldCorrector`.

    Parameters
    ----------
    field : float32 array of shape (h, w) or None
        The same for all images, stretched to each; None for each image's own.
    smoothness : float
    max_gain : float
    """

    field: NDArray[np.float32] | None = None
    smoothness: float = 0.1
    max_gain: float = 4.0

    def __call__(self, pixels: Pixels) -> tuple[Pixels, Placement | None]:
        """Return the image as under even light, as bright in the mean."""
        field = light_field(pixels, self.smoothness) if self.field is None else self.field
        light = np.asarray(field, dtype=np.float64)
        gain = light.mean() / np.maximum(light, np.finfo(np.float32).tiny)
        gain = gain.clip(1 / self.max_gain, self.max_gain).astype(np.float32)
        full = cv2.resize(gain, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        flat = np.rint(pixels * full[..., np.newaxis])
        return flat.clip(0, 255).astype(np.uint8), None

    def __repr__(self) -> str:
        which = "of each image" if self.field is None else "learned"
        return f"FlattenField({which}, max_gain={self.max_gain})"


@dataclass(frozen=True)
class EqualizeContrast:
    """Equalise local contrast (CLAHE); see `defectcam.ContrastEqualizer`.

    Parameters
    ----------
    clip_limit : float
    n_tiles : int
    """

    clip_limit: float = 2.0
    n_tiles: int = 8

    def __call__(self, pixels: Pixels) -> tuple[Pixels, Placement | None]:
        """Return the image with its lightness equalised; colours keep their hue."""
        # Made anew each time: it keeps buffers, and steps run in several threads.
        clahe = cv2.createCLAHE(self.clip_limit, (self.n_tiles, self.n_tiles))
        lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
        lab[..., 0] = clahe.apply(np.ascontiguousarray(lab[..., 0]))
        return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8), None


def light_field(pixels: Pixels, smoothness: float) -> NDArray[np.float32]:
    """Estimate how bright the light is in each place, from one image.

    Parameters
    ----------
    pixels : uint8 array of shape (H, W, 3)
    smoothness : float
        Standard deviation of the blur, as a share of the longer side.

    Returns
    -------
    ndarray of float32, shape (h, w)
        Grey values, blurred; the longer side has at most 256 pixels.
    """
    grey = _grey(_shrunk(pixels, _FIELD_SIDE)).astype(np.float32)
    sigma = max(smoothness * max(grey.shape), 0.5)
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma), dtype=np.float32)


# --- Registration -----------------------------------------------------------------------------


def _search_ecc(template: Pixels, image: Pixels, motion: str) -> NDArray[np.float64] | None:
    """Register from coarse to fine, beginning with centre on centre."""
    offset = (np.array(image.shape[1::-1]) - template.shape[1::-1]) / 2
    start, found = np.column_stack([np.eye(2), offset]), None
    for scale in (0.25, 0.5, 1.0):
        small, small_template = (_scaled(values, scale) for values in (image, template))
        found = _climb(small_template, small, start * (1, 1, scale), motion)
        if found is not None:
            start = found / (1, 1, scale)
    return found


def _climb(
    template: Pixels, image: Pixels, start: NDArray[np.float64], motion: str
) -> NDArray[np.float64] | None:
    """Maximise the enhanced correlation coefficient; None where that leads nowhere.

    Georgios Evangelidis and Emmanouil Psarakis, "Parametric Image Alignment using Enhanced
    Correlation Coefficient Maximization", PAMI 2008.
    """
    if min(*image.shape, *template.shape) < 2 * _ECC_BLUR:
        return None
    try:
        _, end = cv2.findTransformECC(
            template,
            image,
            shifted_to_centres(start).astype(np.float32),
            MOTIONS[motion],
            _ECC_CRITERIA,
            np.ones(image.shape, dtype=np.uint8),
            _ECC_BLUR,
        )
    except cv2.error:  # it does not converge: the images have too little in common
        return None
    found = shifted_from_centres(np.asarray(end, dtype=np.float64))
    return found if np.isfinite(found).all() else None


def _match_features(template: Pixels, image: Pixels) -> NDArray[np.float64] | None:
    """Match ORB features and fit turn, scale and shift by RANSAC."""
    orb = cv2.ORB.create(nfeatures=_N_FEATURES, fastThreshold=7)
    (points, features), (image_points, image_features) = (
        orb.detectAndCompute(values, None) for values in (template, image)
    )
    if features is None or image_features is None or len(image_features) < 2:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(features, image_features, k=2)
    clear = [best for best, second in matches if best.distance < _RATIO * second.distance]
    if len(clear) < _FEWEST_INLIERS:
        return None
    found, inliers = cv2.estimateAffinePartial2D(
        np.array([points[match.queryIdx].pt for match in clear]),
        np.array([image_points[match.trainIdx].pt for match in clear]),
        method=cv2.RANSAC,
        ransacReprojThreshold=_INLIER_DISTANCE,
    )
    if found is None or inliers.sum() < _FEWEST_INLIERS:
        return None
    return shifted_from_centres(np.asarray(found, dtype=np.float64))


def _correlation(first: Pixels, second: Pixels) -> float:
    """Pearson's correlation of two images' grey values, 0 where one is of one colour."""
    a, b = (values.astype(np.float64) - values.mean() for values in (first, second))
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else 0.0


def _warped(pixels: Pixels, matrix: NDArray[np.float64], size: tuple[int, ...]) -> Pixels:
    """Look up each pixel of the frame of `size`; the image's edge continues beyond it."""
    warped = cv2.warpAffine(
        pixels,
        shifted_to_centres(matrix),
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(warped, dtype=np.uint8)


def _as_matrix(
    matrix: NDArray[np.float64],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    (a, b, x), (c, d, y) = matrix.tolist()
    return (a, b, x), (c, d, y)


def _diagonal(shape: tuple[int, ...], other: tuple[int, ...]) -> NDArray[np.float64]:
    """Scale points ``(x, y)`` of an image of shape `other` to those of `shape`."""
    return np.diag([shape[1] / other[1], shape[0] / other[0]])


# --- Sizes and colours ------------------------------------------------------------------------


def _grown(part: Pixels) -> Pixels:
    return np.asarray(cv2.dilate(part, np.ones((3, 3), dtype=np.uint8)), dtype=np.uint8)


def _span(marked: NDArray[Any], n_pixels: int) -> tuple[float, float]:
    """Find the first and the last edge of what is marked along an axis, in pixels."""
    cells, scale = np.flatnonzero(marked), n_pixels / len(marked)
    return float(cells[0] * scale), float((cells[-1] + 1) * scale)


def _grey(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def _shrunk(pixels: Pixels, side: int) -> Pixels:
    """Shrink to at most `side` pixels of the longer side."""
    return _scaled(pixels, min(1.0, side / max(pixels.shape[:2])))


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    if scale == 1:
        return pixels
    size = tuple(max(1, round(n * scale)) for n in pixels.shape[1::-1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size, interpolation=interpolation), dtype=np.uint8)
