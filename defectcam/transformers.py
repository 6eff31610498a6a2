"""Image preprocessing as steps of a scikit-learn `Pipeline`, in front of a `DefectCAMClassifier`.

This module owns the transformers: their parameters, what they learn from many images, and
scikit-learn's contract. What is done to one image is `steps`'. A transformer decodes nothing when
it transforms: it returns an `ImageView` for each image, which is read when it is used, and through
which heatmaps and boxes find their way back to the original image's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from defectcam.duplicates import thumbnail
from defectcam.folders import find_good_label
from defectcam.images import read_image, read_images
from defectcam.labels import as_labels
from defectcam.sources import as_sources, spread
from defectcam.steps import (
    MOTIONS,
    AlignToTemplate,
    CropToPart,
    EqualizeContrast,
    FlattenField,
    light_field,
)
from defectcam.views import ImageView, Step

__all__ = [
    "ContrastEqualizer",
    "FlatFieldCorrector",
    "PartCropper",
    "TemplateAligner",
    "localize",
]

_positive = Interval(Real, 0, None, closed="neither")
_share = Interval(Real, 0, 1, closed="both")
_count = Interval(Integral, 1, None, closed="left")


def localize(model: Any, X: Any) -> Any:
    """Say where the defects are, through a pipeline, in the original images' pixels.

    A `Pipeline` has no method `localize`. This does what it would do:
    ``pipeline[-1].localize(pipeline[:-1].transform(X))``.

    Parameters
    ----------
    model : Pipeline, search over one, or DefectCAMClassifier
        Fitted. Of a search (`GridSearchCV`), its ``best_estimator_``.
    X : path, array of shape (H, W[, C]), PIL.Image.Image, or many of them, or a folder

    Returns
    -------
    Localization or list of Localization
        One for one image, a list in order for many.

    Raises
    ------
    TypeError
        If the model, or the pipeline's last step, has no method `localize`.
    """
    model = getattr(model, "best_estimator_", model)
    if isinstance(model, Pipeline):
        return localize(model[-1], model[:-1].transform(X) if len(model) > 1 else X)
    if not hasattr(model, "localize"):
        raise TypeError(
            f"model is, or ends in, a {type(model).__name__}, which cannot localize: expected a "
            "DefectCAMClassifier or a Pipeline that ends in one."
        )
    return model.localize(X)


class _ImageTransformer(TransformerMixin, BaseEstimator):
    """What all have in common: images in, views out, of which no data frame is ever made."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**{"auto_wrap_output_keys": None, **options})

    def _step(self) -> Step:
        """Return what is done to each image."""
        raise NotImplementedError

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: ArrayLike | None = None) -> _ImageTransformer:
        """Check the parameters; nothing is learned.

        Parameters
        ----------
        X : anything
            Not looked at.
        y : anything, optional
            Not looked at.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is wrong.
        """
        self._step()
        return self

    def transform(self, X: Any) -> ImageView | list[ImageView]:
        """Put the step before each image; it is done when the image is read.

        Parameters
        ----------
        X : path, array of shape (H, W[, C]), PIL.Image.Image or ImageView; many of them; a folder

        Returns
        -------
        ImageView or list of ImageView
            One for one image, a list in order for many. To look at one, call its ``read()``.

        Raises
        ------
        NotFittedError
            If something is to be learned and was not.
        """
        self._validate_params()
        step = self._step()
        sources = as_sources(X)
        views = [ImageView(item, [step]) for item in sources.items]
        return views[0] if sources.single else views

    def set_output(self, *, transform: str | None = None) -> _ImageTransformer:
        """Take part in a pipeline's `set_output`; views stay views.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            Not looked at.

        Returns
        -------
        self
        """
        return self

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
        """Names of the columns: the one of the images, as it was.

        Parameters
        ----------
        input_features : array-like of str, optional
            By default ``["x0"]``.

        Returns
        -------
        ndarray of str
        """
        return np.asarray(["x0"] if input_features is None else input_features, dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True
        tags.requires_fit = self._learns()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _learns(self) -> bool:
        return False


class PartCropper(_ImageTransformer):
    """Crop each image to the part in it.

    What differs from the background's colour is the part. The classifier then sees it larger, and
    nothing of what lies around it. An image in which nothing stands out stays whole.

    Parameters
    ----------
    threshold : "otsu" or float, default="otsu"
        How far, of 255, a pixel must be from the background's colour in one channel at least.
        ``"otsu"`` finds the value for each image (Otsu, 1979).
    background : "auto" or sequence of 3 int, default="auto"
        The background's colour, RGB. ``"auto"`` takes the median along the image's border, image by
        image: name the colour if the part covers most of the border.
    keep : {"largest", "all"}, default="largest"
        What makes the part: the largest connected region, or all of them.
    margin : float, default=0.05
        What to add on every side, as a share of the box's longer side; the crop ends at the image's
        border.
    erase : bool, default=False
        Whether to paint over what is left of the background with its colour. Holes in the part are
        kept; what is missing at its outline looks like background, as before.
    min_share : float, default=0.01
        Regions smaller than this share of the image are specks.

    See Also
    --------
    localize : Boxes in the original image's pixels, through a pipeline.

    Notes
    -----
    The part is looked for at 512 pixels of the longer side: of a larger image the crop may be
    larger than asked for by two pixels of those. It learns nothing and need not be fitted.

    Examples
    --------
    >>> image = np.zeros((60, 80, 3), dtype=np.uint8)
    >>> image[20:40, 30:50] = 200
    >>> PartCropper(margin=0.1).transform(image).read().shape
    (24, 24, 3)
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "threshold": [StrOptions({"otsu"}), Interval(Real, 0, 255, closed="left")],
        "background": [StrOptions({"auto"}), tuple, list, np.ndarray],
        "keep": [StrOptions({"largest", "all"})],
        "margin": [Interval(Real, 0, None, closed="left")],
        "erase": ["boolean"],
        "min_share": [_share],
    }

    def __init__(
        self,
        threshold: str | float = "otsu",
        *,
        background: str | Sequence[int] = "auto",
        keep: str = "largest",
        margin: float = 0.05,
        erase: bool = False,
        min_share: float = 0.01,
    ) -> None:
        self.threshold = threshold
        self.background = background
        self.keep = keep
        self.margin = margin
        self.erase = erase
        self.min_share = min_share

    def _step(self) -> Step:
        return CropToPart(
            threshold=self.threshold,
            background=_as_colour(self.background),
            keep=self.keep,
            margin=self.margin,
            erase=self.erase,
            min_share=self.min_share,
        )


class TemplateAligner(_ImageTransformer):
    """Move, turn or warp each image onto a template, so that parts lie alike in all images.

    Parameters
    ----------
    template : path, array, PIL.Image.Image, ImageView or None, default=None
        The image onto which all are aligned. None: `fit` chooses the most typical good image, the
        one with the smallest sum of differences from the others.
    method : {"ecc", "orb"}, default="ecc"
        ``"ecc"`` compares grey values, from coarse to fine, and is precise where parts lie nearly
        as in the template. ``"orb"`` matches features first and so finds any turn, shift and
        scale, but needs corners and texture; grey values then refine it.
    motion : {"translation", "euclidean", "affine"}, default="euclidean"
        What ``"ecc"`` may do: shift; shift and turn; or shear and scale too, as ``"orb"`` does.
    max_side : int, default=512
        Pixels of the template's longer side at which images are compared.
    min_correlation : float, default=0.3
        Where an aligned image's grey values correlate less with the template's, it counts as not
        alignable.
    on_failure : {"keep", "raise"}, default="keep"
        Whether an image that cannot be aligned stays as it is, or is an `ImageReadError` when it is
        read.
    good_label : label, optional
        What good parts are called in ``y``. By default found by its name.
    max_images : int, default=100
        How many good images, evenly spaced over all, `fit` looks at.

    Attributes
    ----------
    template_ : uint8 array of shape (H, W, 3)
        RGB. All aligned images have its size.

    See Also
    --------
    localize : Boxes in the original image's pixels, through a pipeline.

    References
    ----------
    Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient
    maximization", PAMI 2008; Rublee et al., "ORB: an efficient alternative to SIFT or SURF", ICCV
    2011.

    Examples
    --------
    >>> template = np.zeros((60, 80, 3), dtype=np.uint8)
    >>> template[20:40, 30:45] = 200
    >>> image = np.roll(template, (3, -5), axis=(0, 1))
    >>> view = TemplateAligner(template, motion="translation").fit([image]).transform(image)
    >>> view.placements[0].to_outer([[30, 20]]).round(1).tolist()
    [[25.0, 23.0]]
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "template": "no_validation",  # type: ignore[dict-item]  # whatever read_image takes
        "method": [StrOptions({"ecc", "orb"})],
        "motion": [StrOptions(set(MOTIONS))],
        "max_side": [Interval(Integral, 32, None, closed="left")],
        "min_correlation": [Interval(Real, -1, 1, closed="both")],
        "on_failure": [StrOptions({"keep", "raise"})],
        "good_label": "no_validation",  # type: ignore[dict-item]  # any label
        "max_images": [_count],
    }

    def __init__(
        self,
        template: Any = None,
        *,
        method: str = "ecc",
        motion: str = "euclidean",
        max_side: int = 512,
        min_correlation: float = 0.3,
        on_failure: str = "keep",
        good_label: Any = None,
        max_images: int = 100,
    ) -> None:
        self.template = template
        self.method = method
        self.motion = motion
        self.max_side = max_side
        self.min_correlation = min_correlation
        self.on_failure = on_failure
        self.good_label = good_label
        self.max_images = max_images

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: ArrayLike | None = None) -> TemplateAligner:
        """Read the template, or choose one among the good images.

        Parameters
        ----------
        X : folder, sequence of paths, arrays or views
            Not looked at where there is a `template`.
        y : array-like of shape (n,), optional
            Labels; without them all images count as good.

        Returns
        -------
        self

        Raises
        ------
        ImageReadError
            If an image cannot be read.
        ValueError
            If it cannot be told which label is good.
        """
        if self.template is not None:
            self.template_ = read_image(self.template).copy()
            return self
        items = _good_items(self, X, y)
        small = np.array([_thumbnail(image) for image in read_images(items)])
        differences = np.array([np.abs(small - one).sum() for one in small])
        self.template_ = read_image(items[int(differences.argmin())]).copy()
        return self

    def _learns(self) -> bool:
        return True

    def _step(self) -> Step:
        check_is_fitted(self, "template_")
        return AlignToTemplate(
            self.template_,
            method=self.method,
            motion=self.motion,
            max_side=self.max_side,
            min_correlation=self.min_correlation,
            on_failure=self.on_failure,
        )


class FlatFieldCorrector(_ImageTransformer):
    """Divide each image by its field of light, so that bright and dark places look alike.

    Parameters
    ----------
    field : {"image", "learned"}, default="image"
        ``"image"``: the image itself, heavily blurred. It needs no fixed lamp, but fades what is
        large: a big part against its background, a broad stain. ``"learned"``: the median of the
        good training images, blurred; right where lamp and camera stay, before any crop.
    smoothness : float, default=0.1
        Standard deviation of the blur, as a share of the image's longer side.
    max_gain : float, default=4.0
        How much brighter or darker a pixel may become at most.
    good_label : label, optional
        What good parts are called in ``y``. By default found by its name.
    max_images : int, default=100
        How many good images, evenly spaced over all, `fit` looks at.

    Attributes
    ----------
    field_ : float32 array of shape (h, w)
        Only with ``field="learned"``: grey values of the light, stretched over each image.

    Notes
    -----
    All channels get the same gain, so colours keep their hue. The mean brightness is kept too, but
    for what is clipped at 255.

    Examples
    --------
    >>> image = np.tile(np.linspace(0.2, 0.8, 80), (60, 1))
    >>> flat = FlatFieldCorrector(smoothness=0.05).transform(image).read()
    >>> float(image.std() * 255) > 3 * float(flat.std())
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "field": [StrOptions({"image", "learned"})],
        "smoothness": [_positive],
        "max_gain": [Interval(Real, 1, None, closed="left")],
        "good_label": "no_validation",  # type: ignore[dict-item]  # any label
        "max_images": [_count],
    }

    def __init__(
        self,
        field: str = "image",
        *,
        smoothness: float = 0.1,
        max_gain: float = 4.0,
        good_label: Any = None,
        max_images: int = 100,
    ) -> None:
        self.field = field
        self.smoothness = smoothness
        self.max_gain = max_gain
        self.good_label = good_label
        self.max_images = max_images

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: ArrayLike | None = None) -> FlatFieldCorrector:
        """Learn the field from good images, with ``field="learned"``; else look at nothing.

        Parameters
        ----------
        X : folder, sequence of paths, arrays or views
        y : array-like of shape (n,), optional
            Labels; without them all images count as good.

        Returns
        -------
        self

        Raises
        ------
        ImageReadError
            If an image cannot be read.
        ValueError
            If it cannot be told which label is good.
        """
        if self.field == "learned":
            items = _good_items(self, X, y)
            fields = [light_field(image, self.smoothness) for image in read_images(items)]
            size = fields[0].shape[::-1]
            self.field_ = np.median([cv2.resize(one, size) for one in fields], axis=0)
            self.field_ = self.field_.astype(np.float32)
        elif hasattr(self, "field_"):
            del self.field_
        return self

    def _learns(self) -> bool:
        return self.field == "learned"

    def _step(self) -> Step:
        learned = None
        if self.field == "learned":
            check_is_fitted(self, "field_")
            learned = self.field_
        return FlattenField(learned, smoothness=self.smoothness, max_gain=self.max_gain)


class ContrastEqualizer(_ImageTransformer):
    """Equalise the local contrast of each image's lightness (CLAHE).

    Parameters
    ----------
    clip_limit : float, default=2.0
        The most that contrast is raised by, as a multiple of an even histogram; higher shows more,
        noise as well.
    n_tiles : int, default=8
        Contrast is equalised within each of so many by so many tiles.

    Notes
    -----
    It learns nothing and need not be fitted.

    References
    ----------
    Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.

    Examples
    --------
    >>> image = np.random.default_rng(0).integers(100, 120, (64, 64), dtype=np.uint8)
    >>> bool(ContrastEqualizer().transform(image).read().std() > image.std())
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "clip_limit": [_positive],
        "n_tiles": [_count],
    }

    def __init__(self, clip_limit: float = 2.0, *, n_tiles: int = 8) -> None:
        self.clip_limit = clip_limit
        self.n_tiles = n_tiles

    def _step(self) -> Step:
        return EqualizeContrast(float(self.clip_limit), int(self.n_tiles))


def _as_colour(background: str | Sequence[int]) -> str | tuple[int, int, int]:
    if isinstance(background, str):
        return background
    colour = np.asarray(background)
    is_colour = colour.shape == (3,) and colour.dtype.kind in "iu"
    if not is_colour or colour.min() < 0 or colour.max() > 255:
        raise ValueError(
            "background must be 'auto' or the red, green and blue of a colour, each a whole number "
            f"from 0 to 255, got {background!r}."
        )
    red, green, blue = colour.tolist()
    return red, green, blue


def _good_items(
    step: TemplateAligner | FlatFieldCorrector, X: Any, y: ArrayLike | None
) -> list[Any]:
    """List the good images of ``X``, at most as many as the step asks for, evenly spaced."""
    items = as_sources(X).items
    if y is not None:
        labels = as_labels(y)
        if len(labels) != len(items):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: "
                f"{len(items)} images and {len(labels)} labels."
            )
        try:
            good = find_good_label(labels, step.good_label)
        except ValueError as error:  # of a pipeline's steps, each has its own good_label
            raise ValueError(f"{type(step).__name__}: {error}") from error
        items = [item for item, label in zip(items, labels, strict=True) if label == good]
    return spread(items, step.max_images)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrink to a small grey square of zero mean, for comparing what is shown."""
    small = thumbnail(image).astype(np.float32)
    return np.asarray(small - small.mean(), dtype=np.float32)
