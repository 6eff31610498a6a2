"""Makes pictures of surfaces with and without defects, and the masks of the defects.

This module owns the generator: what the surfaces look like, what can be wrong with them, and how
light and camera blur the difference. It reads and writes no files and knows no estimator. All
drawing is NumPy and OpenCV, a few milliseconds an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

__all__ = ["DEFECT_TYPES", "SURFACES", "make_defects"]

_GOOD = "good"
_MIN_SIZE = 32  # pixels; below, the thinnest scratch is as wide as the part's features
_UNITS = 128  # of length in the shorter side, so that everything grows with the image
_SUB_PIXEL = 4  # bits of the fraction in OpenCV's drawing coordinates

_TURN, _SHIFT = 1.5, 0.02  # how far parts lie apart: degrees, share of the shorter side

# Grey levels. The camera's range leaves room for the noise on both sides, so that saturation never
# hides a change.
_NOISE = (1.5, 3.0)  # standard deviation of the sensor's noise, from image to image
_MAX_NOISE = 12.0
_RANGE = (_MAX_NOISE, 255 - _MAX_NOISE)
_CONTRAST = (14.0, 100.0)  # of a defect of severity 0, lost in the texture at a glance, and 1

# A pixel is marked where the defect changes it by this share of its strongest change, and by more
# than rounding could hide.
_MARKED_SHARE = 0.25
_MIN_CHANGE = 1.01
_MIN_MARKED = 4  # pixels
_APART = 0.5  # of the largest difference to the bare surface: where something can be missing
_MAX_TRIALS = 50

_Array = NDArray[Any]  # float32, (H, W) or (H, W, channels)
_Points = NDArray[np.float64]  # (x, y), or rows of them
_Size = tuple[int, int]  # height, width


class _Surface(NamedTuple):
    """A part before light and camera, shape (H, W, 3), in grey levels."""

    scene: _Array
    bare: _Array  # what shows where material is missing


def make_defects(
    n_samples: int = 100,
    image_size: int | tuple[int, int] = 128,
    *,
    kind: str = "metal",
    defect_rate: float = 0.3,
    defect_types: Sequence[str] | None = None,
    severity: tuple[float, float] = (0.0, 1.0),
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Generate images of one product's surface, some of them with a defect, and their masks.

    Parts differ from image to image as they do in front of a camera: texture, position (shifted by
    up to 2 % and turned by up to 1.5 degrees), lighting and sensor noise. Defects are
    anti-aliased and lit with the surface. The product is the same for every
    `random_state`: train on one and test on another.

    Parameters
    ----------
    n_samples : int, default=100
        Number of images.
    image_size : int or (int, int), default=128
        Height and width in pixels, at least 32. Texture, part and defects scale with the shorter
        side.
    kind : {"metal", "fabric", "cast", "print"}, default="metal"
        The surface: brushed metal with drilled holes, woven cloth, a rough casting with a raised
        ring, printed marks on paper.
    defect_rate : float, default=0.3
        Share of the images that have a defect, between 0 and 1. Their number is rounded to the
        nearest integer; which they are is drawn.
    defect_types : sequence of str, optional
        Which of ``"scratch"``, ``"spot"``, ``"crack"``, ``"stain"`` and ``"missing"`` (a piece is
        gone) there are, in equal shares; by default all.
    severity : (float, float), default=(0.0, 1.0)
        Range of the defects' contrast, from 0, hardly to be seen in the texture, to 1, clear at a
        glance. It is drawn uniformly; the size of a defect is drawn on its own.
    random_state : int, RandomState or None, default=None
        Decides everything random; a number gives the same bits every time on the same machine.

    Returns
    -------
    Bunch
        Arrays of one entry per image, and two names:

        - ``images``: uint8, shape (n_samples, H, W, 3), RGB;
        - ``types``: str, ``"good"`` or the type of defect;
        - ``target``, ``is_defect``: bool, the type is not good;
        - ``masks``: bool, shape (n_samples, H, W), the pixels of the defect;
        - ``severity``: float, NaN for good images;
        - ``groups``: None, every image shows a part of its own;
        - ``good_label``: ``"good"``;
        - ``kind``: as given.

    Raises
    ------
    ValueError
        If a parameter is out of range or a name is unknown.

    Notes
    -----
    Image number i shows the same part, in the same light, for every `n_samples`, `defect_rate`,
    `defect_types` and `severity`. With ``defect_rate=0``, the same call gives the defect-free twin
    of each image.

    Examples
    --------
    >>> from defectcam.datasets import make_defects
    >>> data = make_defects(20, kind="fabric", defect_rate=0.25, random_state=0)
    >>> data.images.shape, data.images.dtype
    ((20, 128, 128, 3), dtype('uint8'))
    >>> int(data.target.sum()), data.masks.any(axis=(1, 2)).tolist() == data.target.tolist()
    (5, True)
    >>> sorted(set(data.types.tolist()))
    ['crack', 'good', 'missing', 'scratch', 'spot', 'stain']
    """
    size = _checked_size(image_size)
    names = _checked_types(defect_types)
    _refuse_other_values(n_samples, kind, defect_rate, severity)
    entropy = check_random_state(random_state).randint(0, 2**32, size=4, dtype=np.uint64)
    root = np.random.SeedSequence(entropy.tolist())
    plan_seed, *seeds = root.spawn(1 + n_samples)
    types, severities = _plan(
        np.random.default_rng(plan_seed), n_samples, defect_rate, names, severity
    )
    images = np.empty((n_samples, *size, 3), np.uint8)
    masks = np.zeros((n_samples, *size), bool)
    for i, seed in enumerate(seeds):
        images[i], masks[i] = _picture(seed, size, kind, types[i], severities[i])
    is_defect = types != _GOOD
    return Bunch(
        images=images,
        types=types,
        target=is_defect,
        is_defect=is_defect,
        masks=masks,
        severity=severities,
        groups=None,
        good_label=_GOOD,
        kind=kind,
    )


def _plan(
    rng: np.random.Generator,
    n_samples: int,
    rate: float,
    names: Sequence[str],
    severity: tuple[float, float],
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Say what each image shows: its type, and how severe the defect is."""
    n_defects = round(rate * n_samples)
    types = np.full(n_samples, _GOOD, dtype=f"<U{max(map(len, [_GOOD, *DEFECT_TYPES]))}")
    severities = np.full(n_samples, np.nan)
    chosen = rng.permutation(n_samples)[:n_defects]
    types[chosen] = [names[i % len(names)] for i in range(n_defects)]
    severities[chosen] = rng.uniform(*severity, size=n_defects)
    return types, severities


def _picture(
    seed: np.random.SeedSequence, size: _Size, kind: str, type_: str, severity: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Take one picture. Each stage has a generator of its own, so that good twins stay the same."""
    of_surface, of_camera, of_defect = map(np.random.default_rng, seed.spawn(3))
    surface = SURFACES[kind](of_surface, size, _pose(of_surface, size))
    light = _light(of_camera, size)
    noise = of_camera.standard_normal((*size, 1), np.float32) * of_camera.uniform(*_NOISE)
    noise = noise.clip(-_MAX_NOISE, _MAX_NOISE)
    exposed = _exposed(surface.scene, light)
    mask = np.zeros(size, bool)
    if type_ != _GOOD:
        exposed, mask = _with_defect(of_defect, surface, exposed, light, type_, severity)
    return np.floor(exposed + noise + 0.5).astype(np.uint8), mask


def _with_defect(
    rng: np.random.Generator,
    surface: _Surface,
    good: _Array,
    light: _Array,
    type_: str,
    severity: float,
) -> tuple[_Array, NDArray[np.bool_]]:
    """Draw a defect, and another one if nothing can be seen of it (grey on the same grey, say)."""
    for _ in range(_MAX_TRIALS):
        exposed = _exposed(DEFECT_TYPES[type_](rng, surface, float(severity)), light)
        change = np.abs(exposed - good).max(axis=2)
        mask = change >= max(_MIN_CHANGE, _MARKED_SHARE * float(change.max()))
        if mask.sum() >= _MIN_MARKED:
            return exposed, mask
    raise RuntimeError(f"{_MAX_TRIALS} times, a {type_} of severity {severity} changed nothing.")


# Light and camera --------------------------------------------------------------------------------


def _pose(rng: np.random.Generator, size: _Size) -> NDArray[np.float64]:
    """Say where the part lies: a matrix (2, 3) turns it about the centre and shifts it."""
    height, width = size
    angle = rng.uniform(-_TURN, _TURN)
    turn = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0), float)
    turn[:, 2] += rng.uniform(-_SHIFT, _SHIFT, 2) * min(size)
    return turn


def _light(rng: np.random.Generator, size: _Size) -> _Array:
    """Return brightness, gradient and the lens's dark corners as factors, shape (H, W, 1)."""
    y, x = _grid(size)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.12)
    gradient = slope * (np.cos(angle) * x + np.sin(angle) * y)
    corners = rng.uniform(0, 0.06) * (x**2 + y**2)
    light = rng.uniform(0.93, 1.07) * (1 + gradient - corners)
    return light.astype(np.float32)[..., None]


def _exposed(scene: _Array, light: _Array) -> _Array:
    """Return what the sensor sees before its noise: lit, blurred by the lens, within range."""
    blurred = cv2.GaussianBlur(scene * light, (3, 3), 0.55)
    return blurred.clip(*_RANGE)


def _grid(size: _Size) -> tuple[_Array, _Array]:
    """Return rows and columns from -1 to 1, to be broadcast."""
    height, width = size
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return y, x


# Surfaces ----------------------------------------------------------------------------------------


def _grain(rng: np.random.Generator, size: _Size, across: float, down: float) -> _Array:
    """Return noise of unit variance, smooth over so many units across and down."""
    sigmas = np.array([down, across]) * _unit(size)
    steps = np.maximum(1, sigmas / 2)  # drawn coarser where it is smooth: a wide blur is slow
    coarse = tuple(int(np.ceil(side / step)) for side, step in zip(size, steps, strict=True))
    noise = rng.standard_normal(coarse, np.float32)
    sigma_y, sigma_x = sigmas / steps
    blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    smooth = cv2.resize(blurred, size[::-1], interpolation=cv2.INTER_LINEAR)
    return smooth / smooth.std()


def _clouds(rng: np.random.Generator, size: _Size, cells: int) -> _Array:
    """Return noise of about unit variance that varies over 1 / `cells` of the image."""
    height, width = size
    coarse = rng.standard_normal((cells + 3, cells + 3), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 1.3


def _coloured(grey: _Array, tint: Sequence[float]) -> _Array:
    return grey[..., None] * np.array(tint, np.float32)


def _metal(rng: np.random.Generator, size: _Size, pose: NDArray[np.float64]) -> _Surface:
    """Brush metal along the rows; four drilled holes have bright rims."""
    tint = (0.97, 0.99, 1.0)
    grey = 146 + 9 * _grain(rng, size, 14, 0.5) + 4 * _grain(rng, size, 3, 0.4)
    grey += 5 * _clouds(rng, size, 2)
    rims, holes = (_placed(drawing, pose, size) for drawing in _drilled(size))
    grey += rims * (196 - grey)
    grey += holes * (52 - grey)
    bare = 78 + 7 * _grain(rng, size, 1, 1)
    return _Surface(_coloured(grey, tint), _coloured(bare, tint))


def _fabric(rng: np.random.Generator, size: _Size, pose: NDArray[np.float64]) -> _Surface:
    """Weave cloth; the yarns are not evenly thick and do not run quite straight."""
    tint = (0.72, 0.88, 1.05)
    unit = _unit(size)
    y, x = (axis * side / 2 for axis, side in zip(_grid(size), size, strict=True))
    ways, levels = [], []
    for row in pose:
        way = (row[0] * x + row[1] * y + row[2]) / (5.0 * unit) + 0.18 * _clouds(rng, size, 4)
        yarns = np.floor(way).astype(np.int64)
        ways.append(way)
        levels.append(rng.standard_normal(np.ptp(yarns) + 1, np.float32)[yarns - yarns.min()])
    over = np.sin(np.pi * ways[0]) * np.sin(np.pi * ways[1])  # which yarn lies on top
    gaps = np.maximum(np.cos(2 * np.pi * ways[0]), np.cos(2 * np.pi * ways[1]))
    grey = 128 + 20 * over - 16 * gaps + 4 * (levels[0] + levels[1])
    grey += 4 * _clouds(rng, size, 3) + 3 * _grain(rng, size, 0.7, 0.7)
    bare = 44 + 4 * _clouds(rng, size, 4)
    return _Surface(_coloured(grey.astype(np.float32), tint), _coloured(bare, (1.0, 1.0, 1.0)))


def _cast(rng: np.random.Generator, size: _Size, pose: NDArray[np.float64]) -> _Surface:
    """Cast a rough and speckled part, with harmless pores and a raised ring."""
    tint = (1.02, 0.99, 0.95)
    grey = 128 + 9 * _grain(rng, size, 0.7, 0.7) + 8 * _grain(rng, size, 2, 2)
    grey += 6 * _clouds(rng, size, 3)
    n_pores = int(rng.integers(6, 18))
    places = rng.uniform(0, 1, (n_pores, 2)) * size[::-1]
    grey -= 22 * _discs(size, places, rng.uniform(0.4, 0.8, n_pores) * _unit(size))
    grey += 34 * _placed(_relief(size), pose, size)
    bare = 62 + 9 * _grain(rng, size, 1.5, 1.5)
    return _Surface(_coloured(grey, tint), _coloured(bare, tint))


def _print(rng: np.random.Generator, size: _Size, pose: NDArray[np.float64]) -> _Surface:
    """Print marks in three inks on paper; the ink covers more here and less there."""
    paper = 204 + 3 * _clouds(rng, size, 3) + 3 * _grain(rng, size, 0.8, 0.8)
    scene = bare = _coloured(paper, (1.0, 0.98, 0.94))
    density = np.clip(0.88 + 0.05 * _clouds(rng, size, 4), 0.7, 1.0)
    for marks, ink in zip(_artwork(size), _INKS, strict=True):
        cover = (_placed(marks, pose, size) * density)[..., None]
        scene = scene + cover * (np.array(ink, np.float32) - scene)
    return _Surface(scene, bare)


SURFACES: dict[str, Callable[[np.random.Generator, _Size, NDArray[np.float64]], _Surface]] = {
    "metal": _metal,
    "fabric": _fabric,
    "cast": _cast,
    "print": _print,
}

_INKS = ((40.0, 52.0, 96.0), (168.0, 48.0, 44.0), (38.0, 110.0, 70.0))


@lru_cache(maxsize=8)
def _drilled(size: _Size) -> tuple[_Array, _Array]:
    height, width = size
    corners = np.array([(x * width, y * height) for x in (0.17, 0.83) for y in (0.17, 0.83)])
    radii = np.full(4, _unit(size))
    return _discs(size, corners, 8.5 * radii), _discs(size, corners, 7 * radii)


@lru_cache(maxsize=8)
def _relief(size: _Size) -> _Array:
    """Shade a raised ring: light falls from the top left."""
    y, x = (axis * side / min(size) for axis, side in zip(_grid(size), size, strict=True))
    away = np.hypot(x, y)
    slope = np.exp(-(((away - 0.62) / 0.045) ** 2)) * np.sign(away - 0.62)
    slope = cv2.GaussianBlur(slope.astype(np.float32), (0, 0), 0.8 * _unit(size))
    return slope * -(x + y) / np.maximum(away, 1e-6) / np.sqrt(2, dtype=np.float32)


@lru_cache(maxsize=8)
def _artwork(size: _Size) -> tuple[_Array, ...]:
    """Draw each ink's marks: a grid of discs, rings, crosses and bars, the same for all parts."""
    height, width = size
    layers = [np.zeros(size, np.float32) for _ in _INKS]
    for place in range(16):
        row, column = divmod(place, 4)
        centre = np.array([(column + 0.5) * width, (row + 0.5) * height]) / 4
        mark = _mark(size, centre, (3 * row + column) % 4)
        layer = layers[(row + 2 * column) % len(layers)]
        np.maximum(layer, mark, out=layer)
    return tuple(layers)


def _mark(size: _Size, centre: _Points, shape: int) -> _Array:
    unit = _unit(size)
    across, down = np.array([9.0, 0.0]) * unit, np.array([0.0, 9.0]) * unit
    if shape < 2:
        outer, inner = (_discs(size, centre[None], np.array([r * unit])) for r in (9, 5))
        return outer - shape * inner
    arms, width = ((across, down), 4 * unit) if shape == 2 else ((across,), 7 * unit)
    return _lines(size, [np.stack([centre - arm, centre + arm]) for arm in arms], width)


def _placed(drawing: _Array, pose: NDArray[np.float64], size: _Size) -> _Array:
    """Move what belongs to the part to where the part lies."""
    return cv2.warpAffine(
        drawing, pose, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


# Defects: each returns the scene with the defect -------------------------------------------------


def _scratch(rng: np.random.Generator, surface: _Surface, severity: float) -> _Array:
    """Cut a groove, slightly bent: a bright edge beside a dark one."""
    size = surface.scene.shape[:2]
    length = _log_uniform(rng, 15, 75) * _unit(size)
    heading = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(-0.6, 0.6), 12)
    points = _path(rng, size, heading, length / 12)
    width = _log_uniform(rng, 0.6, 1.6) * _unit(size)
    aside = np.array([-np.sin(heading.mean()), np.cos(heading.mean())]) * 1.2 * width
    edge = _lines(size, [points], width)
    groove = edge - 0.7 * _lines(size, [points + aside], width) * (1 - edge)
    return surface.scene + _contrast(severity) * groove[..., None]


def _spot(rng: np.random.Generator, surface: _Surface, severity: float) -> _Array:
    """Drop one to four small blots close together, sharp at the edge."""
    size = surface.scene.shape[:2]
    centre = _somewhere(rng, size)
    n_blots = int(rng.integers(1, 5))
    centres = centre + rng.normal(0, 4 * _unit(size), (n_blots, 2))
    radii = np.array([_log_uniform(rng, 1.0, 4.0) for _ in range(n_blots)]) * _unit(size)
    tint = np.array(rng.uniform(0.7, 1.0, 3), np.float32)
    return surface.scene - _contrast(severity) * _discs(size, centres, radii)[..., None] * tint


def _crack(rng: np.random.Generator, surface: _Surface, severity: float) -> _Array:
    """Draw a dark line that wanders and forks, thinner towards its ends."""
    size = surface.scene.shape[:2]
    n_steps = int(rng.integers(8, 22))
    step = _log_uniform(rng, 1.5, 4.0) * _unit(size)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.45, n_steps))
    branches = [_path(rng, size, heading, step)]
    for _ in range(rng.integers(0, 3)):
        fork = int(rng.integers(2, n_steps - 2))
        turn = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        away = heading[fork] + turn + np.cumsum(rng.normal(0, 0.4, n_steps // 2))
        branches.append(branches[0][fork] + np.cumsum(_steps(away, step), axis=0))
    width = _log_uniform(rng, 0.7, 1.5) * _unit(size)
    ends = _lines(size, branches, 0.6 * width)
    middle = _lines(size, [branch[: 2 * len(branch) // 3] for branch in branches], width)
    return surface.scene - _contrast(severity) * np.maximum(ends, middle)[..., None]


def _stain(rng: np.random.Generator, surface: _Surface, severity: float) -> _Array:
    """Lay on a film with a soft, ragged rim that takes some of each colour's light."""
    size = surface.scene.shape[:2]
    radius = _log_uniform(rng, 6, 23) * _unit(size)
    cover = _blob(rng, size, _somewhere(rng, size), radius, softness=0.35)
    taken = _contrast(0.6 * severity) / 100 * rng.permutation(np.array([0.6, 0.8, 1.0]))
    return surface.scene * (1 - cover[..., None] * taken.astype(np.float32))


def _missing(rng: np.random.Generator, surface: _Surface, severity: float) -> _Array:
    """Take a piece away (of a print: the ink), wholly or, where less severe, in part."""
    size = surface.scene.shape[:2]
    away_from_edge = tuple(slice(side // 10, side - side // 10) for side in size)
    apart = np.abs(surface.scene - surface.bare)[away_from_edge].max(axis=2)
    places = np.flatnonzero(apart >= _APART * apart.max())
    place = np.unravel_index(rng.choice(places), apart.shape)
    y, x = (int(p) + part.start + 0.5 for p, part in zip(place, away_from_edge, strict=True))
    radius = _log_uniform(rng, 4, 13) * _unit(size)
    cover = _blob(rng, size, np.array([x, y]), radius, softness=0.06)
    share = _contrast(severity) / _CONTRAST[1]
    return surface.scene + share * cover[..., None] * (surface.bare - surface.scene)


DEFECT_TYPES: dict[str, Callable[[np.random.Generator, _Surface, float], _Array]] = {
    "scratch": _scratch,
    "spot": _spot,
    "crack": _crack,
    "stain": _stain,
    "missing": _missing,
}


def _contrast(severity: float) -> float:
    low, high = _CONTRAST
    return low + (high - low) * severity


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _somewhere(rng: np.random.Generator, size: _Size) -> _Points:
    """Draw a place (x, y), not at the edge of the image."""
    height, width = size
    return rng.uniform(0.1, 0.9, 2) * (width, height)


def _steps(heading: NDArray[np.float64], step: float) -> _Points:
    return step * np.stack([np.cos(heading), np.sin(heading)], axis=1)


def _path(
    rng: np.random.Generator, size: _Size, heading: NDArray[np.float64], step: float
) -> _Points:
    """Return points (x, y) one step apart, the middle one somewhere in the image."""
    points = np.cumsum(_steps(heading, step), axis=0)
    return points - points[len(points) // 2] + _somewhere(rng, size)


def _blob(
    rng: np.random.Generator, size: _Size, centre: _Points, radius: float, *, softness: float
) -> _Array:
    """Cover a round shape; its ragged rim takes the share `softness` of the radius."""
    x, y = (
        np.arange(side, dtype=np.float32) + 0.5 - place
        for side, place in zip(size[::-1], centre, strict=True)
    )
    x, y = x[None], y[:, None]
    stretch = _log_uniform(rng, 0.7, 1.4)
    away, angle = np.hypot(x * stretch, y / stretch), np.arctan2(y, x)
    edge = np.full(size, radius)
    for waves in range(2, 7):
        ripple = np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
        edge += radius * rng.uniform(0, 0.7 / waves) * ripple
    rim = max(softness * radius, 1.0)  # not narrower than a pixel: it is anti-aliased
    return np.clip((edge - away) / rim + 0.5, 0, 1).astype(np.float32)


# Drawing, anti-aliased: coordinates (x, y) and lengths in pixels, covers from 0 to 1 -------------


def _unit(size: _Size) -> float:
    return min(size) / _UNITS


def _discs(size: _Size, centres: _Points, radii: _Points) -> _Array:
    canvas = np.zeros(size, np.uint8)
    for centre, radius in zip(centres, radii, strict=True):
        place, length = _fixed(centre).tolist(), int(_fixed(radius))
        cv2.circle(canvas, place, length, 255, -1, cv2.LINE_AA, _SUB_PIXEL)
    return _cover(canvas)


def _lines(size: _Size, paths: Sequence[_Points], width: float) -> _Array:
    """Draw lines through points; one thinner than a pixel is as much fainter."""
    canvas = np.zeros(size, np.uint8)
    thickness, value = max(1, round(width)), round(255 * min(1.0, max(width, 0.4)))
    corners = [_fixed(path) for path in paths]
    cv2.polylines(canvas, corners, False, value, thickness, cv2.LINE_AA, _SUB_PIXEL)
    return _cover(canvas)


def _fixed(coordinates: _Points | float) -> NDArray[np.int32]:
    return np.round(np.asarray(coordinates) * 2**_SUB_PIXEL).astype(np.int32)


def _cover(canvas: NDArray[np.uint8]) -> _Array:
    return canvas.astype(np.float32) / 255


# Parameters --------------------------------------------------------------------------------------


def _checked_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = np.broadcast_to(image_size, 2) if np.ndim(image_size) == 0 else np.asarray(image_size)
    if size.shape != (2,) or size.dtype.kind not in "iu" or size.min() < _MIN_SIZE:
        raise ValueError(
            f"image_size={image_size!r} must be an integer or (height, width), in pixels and at "
            f"least {_MIN_SIZE}."
        )
    return int(size[0]), int(size[1])


def _checked_types(defect_types: Sequence[str] | None) -> list[str]:
    if isinstance(defect_types, str):
        raise ValueError(
            f"defect_types={defect_types!r} must be a sequence of names: ({defect_types!r},)."
        )
    names = list(DEFECT_TYPES if defect_types is None else defect_types)
    unknown = [name for name in names if name not in DEFECT_TYPES]
    if unknown or not names:
        raise ValueError(
            f"defect_types={names!r} must name at least one of {list(DEFECT_TYPES)}, and no other."
        )
    return names


def _refuse_other_values(
    n_samples: int, kind: str, defect_rate: float, severity: tuple[float, float]
) -> None:
    if not isinstance(n_samples, Integral) or int(n_samples) < 1:
        raise ValueError(f"n_samples={n_samples!r} must be an integer of at least 1.")
    if kind not in SURFACES:
        raise ValueError(f"kind={kind!r} is unknown: pass one of {list(SURFACES)}.")
    if not isinstance(defect_rate, Real) or not 0 <= defect_rate <= 1:
        raise ValueError(f"defect_rate={defect_rate!r} must be a share between 0 and 1.")
    if np.shape(severity) != (2,) or not 0 <= severity[0] <= severity[1] <= 1:
        raise ValueError(f"severity={severity!r} must be (lowest, highest), from 0 to 1.")
