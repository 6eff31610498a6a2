"""Draws heatmaps and boxes over images, for people to look at.

The colours are for display only: nothing is measured from them. The scale is the caller's and never
the image's own range, so a good part looks calm. Functions take arrays and return arrays or the
bytes of a picture; this module computes no heatmap, finds no box and writes no file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

__all__ = ["as_base64", "encode_picture", "middle_of_scale", "overlay", "shrunk"]

#: The colour scale of heat ends at this many times the threshold, which is half-way.
FULL_COLOUR = 2.0

# Sky blue of the Okabe-Ito palette: seen by colour-blind people, and absent from the heat colours.
_BOX_COLOUR = (86, 180, 233)
_EDGE_COLOUR = (0, 0, 0)
# Pixels of the image's longer side for one pixel of line.
_SIDE_PER_LINE = 250
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_JPEG_AND_WEBP_QUALITY = 95


def middle_of_scale(box_threshold: float) -> float:
    """Give the map's value in the middle of the colours: the threshold, or the limit 1.

    Parameters
    ----------
    box_threshold : float
        Above which boxes are drawn. What is 0 or less is no middle of a scale from 0.
    """
    return box_threshold if box_threshold > 0 else 1.0


def shrunk(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Shrink a picture, or a map, so that the longer side has at most so many pixels.

    Parameters
    ----------
    pixels : array of shape (H, W) or (H, W, 3)
    side : int

    Returns
    -------
    array
        Each pixel the mean of those that it stands for.
    """
    height, width = pixels.shape[:2]
    share = min(1.0, side / max(height, width))
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def overlay(
    image: NDArray[np.uint8],
    heatmap: ArrayLike,
    boxes: ArrayLike | None = None,
    box_scores: ArrayLike | None = None,
    *,
    box_labels: Sequence[object] | None = None,
    threshold: float = 1.0,
    alpha: float = 0.5,
    colormap: int = cv2.COLORMAP_INFERNO,
) -> NDArray[np.uint8]:
    """Draw a heatmap and boxes over an image.

    Where the map is 0 or less, the image shows unchanged. Colour and opacity grow with the map:
    the opacity is `alpha` from the threshold on, the colour reaches the end of its scale at
    twice the threshold.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    heatmap : array of shape (H, W)
        Higher means more defective, 0 is typical of good parts.
    boxes : array of shape (n, 4), optional
        Half-open `xyxy` in pixels of the image; they are drawn around, not over, what they hold,
        apart from the image's border, where the line lies inside the image.
    box_scores : array of shape (n,), optional
        Written beside the boxes.
    box_labels : sequence of n labels, optional
        Written before the scores, or alone; left out where the image is too narrow for them. The
        font has ASCII characters only.
    threshold : float, default=1.0
        The value of the map in the middle of the colour scale.
    alpha : float, default=0.5
        The opacity of the heat at and above the threshold, between 0 (invisible) and 1.
    colormap : int, default=cv2.COLORMAP_INFERNO
        One of OpenCV's colour maps. Prefer those that are perceptually uniform and can be read by
        colour-blind people: `COLORMAP_INFERNO`, `COLORMAP_CIVIDIS`, `COLORMAP_VIRIDIS`.

    Returns
    -------
    picture : uint8 array of shape (H, W, 3)
        RGB; the image itself is left alone.

    Raises
    ------
    ValueError
        If shapes do not fit together, a box leaves the image, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.full((4, 4, 3), 200, dtype=np.uint8)
    >>> bool((overlay(image, np.zeros((4, 4))) == image).all())
    True
    """
    heat = np.asarray(heatmap, dtype=np.float32)
    _check_picture(image, heat, threshold, alpha)
    heat = np.maximum(heat / threshold, 0.0)
    levels = (np.minimum(heat / FULL_COLOUR, 1.0) * 255).round().astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, colormap), cv2.COLOR_BGR2RGB)
    opacity = (alpha * np.minimum(heat, 1.0))[..., np.newaxis]
    picture = (image + opacity * (colours.astype(np.float32) - image)).round().astype(np.uint8)
    if boxes is not None:
        checked = _checked_boxes(boxes, image.shape[:2])
        _draw_boxes(picture, checked, _tags(len(checked), box_scores, box_labels))
    return picture


def encode_picture(picture: NDArray[np.uint8], suffix: str) -> bytes:
    """Encode a picture in the file format that a suffix stands for.

    Parameters
    ----------
    picture : uint8 array of shape (H, W, 3)
        RGB.
    suffix : str
        Such as `".png"` or `".jpg"`; upper or lower case.

    Returns
    -------
    data : bytes
        What a file with that suffix holds.

    Raises
    ------
    ValueError
        If no picture can be written in that format.

    Examples
    --------
    >>> import numpy as np
    >>> encode_picture(np.zeros((1, 1, 3), dtype=np.uint8), ".png")[1:4]
    b'PNG'
    """
    name = Image.registered_extensions().get(suffix.lower())
    if name is None or name not in Image.SAVE:
        raise ValueError(
            f"the suffix must name a picture format such as .png or .jpg, got {suffix!r}."
        )
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=name, quality=_JPEG_AND_WEBP_QUALITY)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    """Write bytes as text, for a page or JSON to hold a picture in."""
    return base64.b64encode(data).decode("ascii")


def _tags(
    n_boxes: int, scores: ArrayLike | None, labels: Sequence[object] | None
) -> list[tuple[str, ...]]:
    """Texts for each box, of which the first one with enough room is written."""
    tags: list[tuple[str, ...]] = [()] * n_boxes
    if scores is not None:
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (n_boxes,):
            raise ValueError(
                f"box_scores must have one score per box, got shape {values.shape} "
                f"for {n_boxes} boxes."
            )
        tags = [(f"{value:.2g}",) for value in values]
    if labels is not None:
        if len(labels) != n_boxes:
            raise ValueError(
                f"box_labels must have one label per box, got {len(labels)} for {n_boxes} boxes."
            )
        tags = [
            (" ".join([str(label), *score]), *score)
            for label, score in zip(labels, tags, strict=True)
        ]
    return tags


def _draw_boxes(
    picture: NDArray[np.uint8], boxes: NDArray[np.int64], tags: list[tuple[str, ...]]
) -> None:
    line = max(1, round(max(picture.shape) / _SIDE_PER_LINE))
    edge = (line + 1) // 2
    for box in boxes:
        _draw_frame(picture, box, line + edge, line + edge, _EDGE_COLOUR)
        _draw_frame(picture, box, line, line, _BOX_COLOUR)
    # Worst first, so that the best box's score is never hidden below another one.
    for box, texts in reversed(list(zip(boxes, tags, strict=True))):
        any(_draw_tag(picture, box, text, line) for text in texts)


def _draw_frame(
    picture: NDArray[np.uint8],
    box: NDArray[np.int64],
    outwards: int,
    width: int,
    colour: tuple[int, int, int],
) -> None:
    """Paint a frame whose outer border lies `outwards` pixels around the box, or at the image's."""
    image_height, image_width = picture.shape[:2]
    left, top = max(int(box[0]) - outwards, 0), max(int(box[1]) - outwards, 0)
    right = min(int(box[2]) + outwards, image_width)
    bottom = min(int(box[3]) + outwards, image_height)
    framed = picture[top:bottom, left:right]  # a view: painting it paints the picture
    framed[:width] = colour
    framed[-width:] = colour
    framed[:, :width] = colour
    framed[:, -width:] = colour


def _draw_tag(picture: NDArray[np.uint8], box: NDArray[np.int64], text: str, line: int) -> bool:
    """Write a text above the box, below it, or over its top, wherever the image has room first.

    Returns whether there was any.
    """
    padding = line + 1
    if 2 * padding >= min(picture.shape[:2]):
        return False  # in a long strip, measuring letters of such thick lines would take minutes
    scale = 0.4 * max(1.0, line * 0.6)
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, line)
    height, width = text_height + baseline + 2 * padding, text_width + 2 * padding
    image_height, image_width = picture.shape[:2]
    if height > image_height or width > image_width:
        return False
    above, below = int(box[1]) - 2 * line - height, int(box[3]) + 2 * line
    if above >= 0:
        top = above
    elif below + height <= image_height:
        top = below
    else:
        top = min(int(box[1]), image_height - height)
    left = min(max(int(box[0]) - line, 0), image_width - width)
    tag = np.full((height, width, 3), _EDGE_COLOUR, dtype=np.uint8)
    origin = (padding, padding + text_height)
    cv2.putText(tag, text, origin, _FONT, scale, _BOX_COLOUR, line, cv2.LINE_AA)
    picture[top : top + height, left : left + width] = tag
    return True


def _check_picture(
    image: NDArray[np.uint8], heat: NDArray[np.float32], threshold: float, alpha: float
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be a uint8 RGB array of shape (H, W, 3), got {image.dtype} of shape "
            f"{image.shape}; defectcam.images.read_image makes one."
        )
    if heat.shape != image.shape[:2]:
        raise ValueError(
            f"heatmap must have the image's size (H, W) = {image.shape[:2]}, got {heat.shape}."
        )
    if not np.isfinite(heat).all():
        raise ValueError("heatmap must be finite, got NaN or infinite values.")
    if not (threshold > 0 and np.isfinite(threshold)):
        raise ValueError(f"threshold must be positive and finite, got {threshold!r}.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}.")


def _checked_boxes(boxes: ArrayLike, size: tuple[int, ...]) -> NDArray[np.int64]:
    checked = np.asarray(boxes, dtype=np.int64).reshape(-1, 4)
    height, width = size
    inside = (checked[:, :2] >= 0).all(axis=1) & (checked[:, :2] < checked[:, 2:]).all(axis=1)
    inside &= (checked[:, 2] <= width) & (checked[:, 3] <= height)
    if not inside.all():
        raise ValueError(
            f"boxes must be non-empty half-open xyxy inside the image of size (H, W) = "
            f"{(height, width)}, got {checked[~inside][0].tolist()}."
        )
    return checked
