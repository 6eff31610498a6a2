"""What the displays draw with: the one module that knows matplotlib.

Owns the colours, the fixed scale of heat and the error where matplotlib is not installed. It knows
no display and changes no global setting of matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.display import FULL_COLOUR

__all__ = [
    "BLUE",
    "COUNT_MAP",
    "GREEN",
    "HEAT_MAP",
    "VERMILION",
    "add_colour_bar",
    "add_image",
    "axes_for",
    "check_matplotlib",
    "draw_boxes",
    "draw_heat",
    "draw_layer",
    "draw_outline",
    "percent_axis",
]

# Of the Okabe-Ito palette, which colour-blind people can tell apart.
BLUE, VERMILION, GREEN, SKY_BLUE = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
#: Perceptually uniform: heat, as in `display.overlay`, and counts.
HEAT_MAP, COUNT_MAP = "inferno", "cividis"
# Height of a box's text, at most, as a share of the image's.
_ROOM_FOR_TEXT = 0.12


def check_matplotlib(caller: str) -> None:
    """Refuse to go on without matplotlib, before anything costly is computed.

    Parameters
    ----------
    caller : str
        The name of the function that needs it.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller} requires matplotlib. Install it with `pip install "defectcam[plot]"`.'
        ) from error


def axes_for(ax: Any, caller: str) -> tuple[Any, Any]:
    """Return the axes to draw into, new ones where none are given, and their figure."""
    check_matplotlib(caller)
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(layout="constrained")  # nothing is cut off
    return ax, ax.figure


def add_image(ax: Any, image: NDArray[np.uint8]) -> None:
    """Show an image without ticks: pixels are square and not blended."""
    ax.imshow(image)
    ax.set(xticks=[], yticks=[])


def draw_heat(
    ax: Any, heatmap: NDArray[np.floating[Any]], threshold: float, alpha: float, colormap: Any
) -> Any:
    """Lay heat over an image as `display.overlay` does: opacity and colour grow with the map.

    Returns the mappable for a colour bar, whose scale is 0 to twice the threshold whatever the map.
    """
    opacity = alpha * np.clip(heatmap / threshold, 0, 1)
    return draw_layer(ax, heatmap, FULL_COLOUR * threshold, opacity, colormap)


def draw_layer(
    ax: Any, values: NDArray[np.floating[Any]], vmax: float, opacity: ArrayLike, colormap: Any
) -> Any:
    """Draw values from 0 to `vmax` in colour, each pixel with its own opacity.

    Returns the mappable for a colour bar, which is opaque.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(0, vmax, clip=True), colormap)
    colours = mappable.to_rgba(values)
    colours[..., 3] = opacity
    ax.imshow(colours, interpolation="nearest")
    return mappable


def draw_boxes(
    ax: Any, boxes: Iterable[Sequence[int]], texts: Iterable[str], size: tuple[int, int]
) -> None:
    """Draw half-open boxes around the pixels that they hold, each with its text.

    Texts stay within the image, of which `size` is the ``(H, W)``: below a box at its upper border,
    and to the left of one in its right half.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    for (left, top, right, bottom), text in zip(boxes, texts, strict=True):
        corner = left - 0.5, top - 0.5  # pixel 0 reaches from -0.5 to 0.5
        frame = Rectangle(corner, right - left, bottom - top, fill=False, ec=SKY_BLUE, lw=1.5)
        frame.set_path_effects([withStroke(linewidth=3, foreground="black")])
        ax.add_patch(frame)
        if not text:
            continue
        is_high, is_right = top < _ROOM_FOR_TEXT * size[0], left + right > size[1]
        written = ax.annotate(
            text,
            (right - 0.5 if is_right else left - 0.5, bottom - 0.5 if is_high else top - 0.5),
            xytext=(0, -3 if is_high else 3),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="top" if is_high else "bottom",
            color=SKY_BLUE,
            fontsize="small",
        )
        written.set_path_effects([withStroke(linewidth=2, foreground="black")])


def draw_outline(ax: Any, mask: NDArray[np.bool_]) -> None:
    """Draw the outline of what is marked, dashed and white."""
    if mask.any() and not mask.all():
        ax.contour(mask.astype(float), [0.5], colors="white", linewidths=1, linestyles="dashed")


def add_colour_bar(figure: Any, ax: Any, mappable: Any, threshold: float) -> Any:
    """Add a bar that says what heat means: typical of good parts, their limit, beyond."""
    ticks = [0, threshold, FULL_COLOUR * threshold]
    bar = figure.colorbar(mappable, ax=ax, fraction=0.04, pad=0.02, aspect=25, ticks=ticks)
    names = "typical", "limit" if threshold == 1 else "threshold", "and more"
    bar.ax.set_yticklabels([f"{n:g} {name}" for n, name in zip(ticks, names, strict=True)])
    return bar


def percent_axis(axis: Any) -> None:
    """Write an axis' shares as percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))
