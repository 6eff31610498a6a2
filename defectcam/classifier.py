"""`DefectCAMClassifier`: the estimator that joins all parts.

Owns the parameters, their validation, the fitted attributes and the scikit-learn contract. The work
itself is done by the modules below it.
"""

from __future__ import annotations

import collections
import copy
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

import defectcam
from defectcam.active import Describer, choose_queries
from defectcam.architecture import OF_NETWORK, build_network
from defectcam.attribution import check_method
from defectcam.calibration import (
    DefectProbability,
    check_threshold,
    choose_threshold,
    defect_scores,
    fit_defect_probability,
    fit_familiarity_limit,
    fit_novelty_probability,
)
from defectcam.callbacks import HOOKS, check_callbacks, told_to_stop, train_begins, train_ends
from defectcam.checkpoints import FitCheckpoint, digest_of, digest_of_weights
from defectcam.cross_fitting import FitResult, Fold, training_folds, training_folds_of_images
from defectcam.diagnostics import (
    rank_suspects,
    warn_if_chance,
    warn_if_duplicates,
    warn_if_few_defects,
    warn_if_only_good,
    warn_if_suspects,
)
from defectcam.drift import Drift, check_drift_options, describe_images, measure_drift
from defectcam.duplicates import duplicate_groups, duplicate_pairs
from defectcam.evaluation import Evaluation, evaluate, labelled_types
from defectcam.exceptions import warn_caller
from defectcam.explorer import Explorer, explore
from defectcam.feature_cache import VIEWS, FeatureCache
from defectcam.feature_filling import fill_cache, preprocessed_batches
from defectcam.feature_store import FeatureStore, fingerprint_of_features, folder_of_memory
from defectcam.fingerprint import Fingerprint, fingerprint_of_rows
from defectcam.fit_memory import identity_of_training, learn_once
from defectcam.fitting import FitOptions, NetworkFit, TrainingSet, draw_seed
from defectcam.geometry import Geometry
from defectcam.heads import INITS, POOLINGS
from defectcam.images import (
    ImageReadError,
    check_readable,
    content_hashes,
    read_images,
)
from defectcam.incremental import (
    Course,
    Trained,
    first_classes,
    options_of_update,
    start_from,
)
from defectcam.inference import ScoredImages
from defectcam.isolation import isolated
from defectcam.judging import Judge
from defectcam.labels import Classes, as_labels
from defectcam.network import DefectCAMNetwork, Description
from defectcam.novelty import Codebook
from defectcam.plain_labels import plain_label
from defectcam.precision import PRECISIONS, resolve_device
from defectcam.prediction import Predictor
from defectcam.preprocess import Preprocess
from defectcam.recipes import RECIPES
from defectcam.replay import Keeper, ReplayMemory, judged_in_folds, new_records
from defectcam.results import Localization, check_decision_threshold
from defectcam.sample_weights import WeighedRows, class_weights, relative_weights, weigh_rows
from defectcam.second_look import MAX_FACTOR, size_of_second_look
from defectcam.sources import as_sources, is_stream, labelled_sources, paths_of
from defectcam.tile_model import TileModel
from defectcam.training import TrainingOptions
from defectcam.validation import (
    LEAST_IMAGE_SIZE,
    check_class_weight,
    check_device,
    check_image_size,
    refuse_booleans,
)

if TYPE_CHECKING:
    from defectcam.parity import Int8Loss

#: ``max_epochs="auto"``: images seen in a training, fewest and most epochs.
AUTO_IMAGES_SEEN = 6000
AUTO_EPOCHS = (8, 10)

#: ``replay_size=None``: images that `partial_fit` keeps.
AUTO_REPLAY_SIZE = 400

_DEFAULT_OVERLAP = 0.125


class _Given(NamedTuple):
    """The images that a fit is given; arrays are of the rows that are fitted.

    Attributes
    ----------
    items : list of path or ndarray
        As given, before weights repeat them or leave them out.
    labels : ndarray of shape (n_rows,)
    weighed : WeighedRows
    classes : Classes
    targets : ndarray of shape (n_rows,), int64
        Class indices.
    images : ndarray of shape (n_rows,) or None
        Of which image each row is a tile; None: rows are whole images.
    """

    items: list[Any]
    labels: NDArray[Any]
    weighed: WeighedRows
    classes: Classes
    targets: NDArray[np.int64]
    images: NDArray[np.intp] | None

    @property
    def is_defect(self) -> NDArray[np.bool_]:
        return self.targets != self.classes.good

    @property
    def are_only_good(self) -> bool:
        return not self.is_defect.any()

    @property
    def are_tiles(self) -> bool:
        return self.images is not None

    @property
    def first_of_images(self) -> NDArray[np.intp]:
        """One row of each image."""
        if self.images is None:
            return np.arange(len(self.targets))
        return np.unique(self.images, return_index=True)[1]


class _Start(NamedTuple):
    """What a fit begins from.

    Attributes
    ----------
    weights : str
        Digest of the network's.
    previous : DefectCAMNetwork or None
        Whose they are in a warm start.
    """

    weights: str
    previous: DefectCAMNetwork | None


class _Learned(NamedTuple):
    """What a fit has learned, before the classifier takes it over."""

    start: _Start | None  # where there is a checkpoint
    network: DefectCAMNetwork
    preprocess: Preprocess
    folds: list[Fold]
    keeper: Keeper | None
    trained: Trained


class DefectCAMClassifier(ClassifierMixin, BaseEstimator):
    """Good/anomaly classifier of images that also says where the defect is.

    Trains on image-level labels alone. A frozen, pre-trained trunk is run once per image; a tail
    and an evidence head are fine-tuned on its cached features. The head's evidence maps are the
    class activation maps, so localising costs no second pass.

    Parameters
    ----------
    backbone : str, default="efficientnet_lite0"
        Name of a torchvision or timm network, see `create_backbone`.
    weights : "imagenet", path or None, default="imagenet"
        Pre-trained weights; those of the default backbone come with a package, others from the
        library's cache or download. A path: a ``.pth`` or ``.safetensors`` file. None: random.
    image_size : int or (int, int), default=320
        Height and width in pixels that every image is resized to.
    resize : {"stretch", "pad"}, default="stretch"
        Whether the resize fills the input or keeps the aspect ratio and pads.
    normalisation : {"backbone", "unit"}, default="backbone"
        Mean and standard deviation of the input: the backbone's own, or none, pixels in [0, 1].
    trainable_stages : float, default=1.5
        How many of the backbone's last stages are trained; 0 freezes all. A stage is all layers
        that work at one stride; of 1.5, the last one and the later half of the one before.
    evidence_stages : int, default=2
        How many of the last stages the evidence head reads.
    normalise_evidence : bool, default=True
        Whether each level is batch-normalised before the head.
    novelty_strides : sequence of int, default=(4, 8)
        Strides of the frozen stages whose features describe a patch; of those given, the frozen
        ones are used. Novelty maps lie on the grid of the coarsest.
    codebook_size : int, default=1000
        Number of k-means centres that stand for all good patches.
    pooling : {"novelty_top_k", "top_k", "average", "max"}, default="novelty_top_k"
        How an evidence map becomes a class score, see `defectcam.heads.pool_evidence`.
    pooling_fraction : float, default=0.02
        Share of the positions that the top-k poolings average.
    head_init : {"normal", "linear"}, default="normal"
        Initial weights of the head: small normal ones, or those of a PyTorch linear layer.
    target : {"anomaly", "type"}, default="anomaly"
        Whether all defect types are one class or a class each.
    good_label : str, bool, int or None, default=None
        The label of good parts. None: found by name (``good``, ``ok``, ``normal``, ...).
    class_weight : "balanced", dict, float or None, default="balanced"
        Weights in the loss. A dict is keyed by class label; a number is the weight of every defect
        class where the good class has 1.
    optimizer : {"adamw", "adam", "sgd"}, default="adamw"
    learning_rate : float, default=3e-4
        Of the tail; the highest one when ``schedule="one_cycle"``.
    head_learning_rate : float or None, default=1e-2
        Of the evidence head; None: as the tail's.
    weight_decay : float, default=1e-2
    schedule : {"one_cycle", "constant"}, default="one_cycle"
        Course of the learning rates. With ``"one_cycle"`` the momentum runs against them, between
        .85 and .95, as `torch.optim.lr_scheduler.OneCycleLR` has it, also where ``"sgd"`` by itself
        has none.
    max_epochs : int or "auto", default="auto"
        Passes over the training images, per fold. ``"auto"``: 10, fewer when there are more than
        600 images so that about 6000 are seen, but at least 8.
    batch_size : int, default=16
        Images per training step and per forward pass.
    label_smoothing : float, default=0.0
    deep_supervision : bool, default=True
        Whether each evidence level has a loss of its own (Lee et al., "Deeply-supervised nets",
        2015) instead of one for their sum. The fine level then has to find the defects itself, and
        the map is sharper; without it, the deepest level explains the labels best and leads.
    train_batch_norm : bool, default=True
        Whether the tail's batch normalisation uses the statistics of each batch while training.
    early_stopping : bool, default=False
        Whether to stop when the training loss has not improved for ``n_iter_no_change`` epochs.
    n_iter_no_change : int, default=3
    stop_at_train_accuracy : float or None, default=None
        Stop after an epoch with at least this share of training images right.
    augmentation : {"flips", "horizontal_flip", "none"}, default="flips"
        Views of each training image; each is one more trunk pass.
    cv : int or None, default=2
        Number of folds. Beside the tail that is trained on all images, one is trained without each
        fold and scores it; these held-out scores decide thresholds and scales. None: thresholds
        rest on the training images themselves. Good images alone, for which no tail is trained, are
        cut into at least 10.
    heatmap : {"fused", "cam", "min_max_cam"}, default="fused"
        ``"fused"``: evidence and novelty together, on a fixed scale, 0 = typical of good parts, 1 =
        the limit that good parts stay below; novelty then also counts in the image's probability.
        ``"cam"``: the signed class activation map alone, on the same scale. ``"min_max_cam"``: as
        published, the defect class's map scaled by each image's own minimum and maximum.
    threshold : "balanced", str or float, default="balanced"
        Probability of a defect at and above which an image is called defective:
        ``"balanced"`` for the best balanced accuracy, ``"recall>=0.99"`` to find at least that
        share of the held-out defective images, ``"cost=20:1"`` where an escape costs 20 times an
        overkill, or a probability.
    self_training : bool, default=True
        Whether the ``"fused"`` map also follows linear heads, the students, that are fitted to the
        peaks of the training images' maps (see `defectcam.student`). They draw what defects have in
        common, on a finer grid than the evidence has. Without defective images there are none.
    second_look : float or None, default=None
        A factor, such as 1.3: images that are called defective are seen once more, mirrored and so
        much larger, for a finer ``"fused"`` heatmap, the mean of both looks. It serves small
        defects, costs one to two passes for each of these images, in `localize` alone, and changes
        no decision. Nothing of it is learned: it may be set after `fit`. None: all are seen once,
        as images seen in tiles always are.
    box_threshold : float, default=1.0
        Boxes are drawn where the heatmap rises above this.
    box_peak_fraction : float, default=0.6
        Boxes are drawn only where the heatmap also reaches this share of the highest value in the
        image: weaker regions of a defective image are mostly echoes of the strongest. Lower it to
        see more of them, to 0 for all.
    tighten_boxes : bool, default=True
        Whether boxes are fitted to the hills of the heatmap, see `defectcam.hills`: the grid of
        the map blurs it, so that the regions of small defects above a threshold are too large, and
        large defects are faint at their edges.
    min_area : int, default=16
        Smallest region that gets a box, in pixels of the original image.
    max_boxes : int or None, default=None
        Most boxes per image; None for all.
    merge_distance : float or None, default=None
        Boxes at most this many pixels of the original image apart are merged; None: none are.
    tile : int, (int, int), "auto" or None, default=None
        Height and width in pixels of the tiles that `fit` and everything after it see large images
        in, see `defectcam.tiled`. ``"auto"``: chosen by the size of the largest training image.
        None: images are seen whole, shrunk to ``image_size``.
    overlap : float or int, default=0.125
        How far neighbouring tiles overlap: a float is a share of the tile, an integer is pixels.
    warm_start : bool, default=False
        Whether `fit` starts from the present weights, where classes and architecture agree with
        those of the fit before; a warning says so where they do not.
    replay_size : int or None, default=None
        Earlier images whose trunk features are kept for `partial_fit`, so that nothing is
        forgotten; 0.7 MB each with the defaults, in proportion to the area of ``image_size``. None:
        ``fit`` keeps none, ``partial_fit`` up to 400.
    cache_size : int, default=2**28
        Bytes of trunk features held in memory; a larger cache goes to a temporary file.
    memory : str, PathLike, joblib.Memory or None, default=None
        Where what fits compute is kept on disk, as in scikit-learn's `Pipeline`. Folds and grid
        points of a search then share trunk features where images, preprocessing and frozen stages
        are the same, codebooks where the good images and the seed are too, and whole trainings
        where only parameters differ that decide later, such as ``threshold`` or ``min_area``; an
        integer ``random_state`` makes seeds the same. With ``callbacks`` or ``resume`` trainings
        are neither kept nor recalled, and none are on tiles. Changes no result, except that the
        seconds in ``history_`` of a recalled training are the first one's. Trainings are pickles:
        name a folder that only those can write to whom you trust. None: nothing is kept.
    device : str, default="auto"
        ``"auto"``: CUDA or Apple's MPS when present, else the processor; or a torch device.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        What convolutions compute in. ``"auto"``: bfloat16 where the device has instructions for it,
        which is faster, else float32. The trunk's features are kept in 16 bits, with ``"float32"``
        in 32: training then takes a plain loop's steps up to rounding, and twice the memory.
    n_jobs : int or None, default=None
        Threads that read images; None: one per processor, at most 8.
    random_state : int, RandomState instance or None, default=None
        Decides everything random; the same number on the same machine gives the same weights.
    verbose : int, default=0
        Whether to show progress bars on standard error.
    callbacks : callable, object with hooks, list of them or None, default=None
        Called after each epoch as ``callback(classifier, record)``; one that returns True ends the
        training of the fold. A record is one row of ``history_``. Objects may have the methods
        ``on_train_begin``, ``on_epoch_end`` and ``on_train_end``, see `defectcam.callbacks`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    good_label_ : label
        The class of good parts.
    defect_labels_ : list of labels
        The other classes.
    network_ : DefectCAMNetwork
        The trained network, an ordinary `torch.nn.Module` from normalised pixels to class scores.
    preprocess_ : Preprocess
        Makes its input: ``clf.network_(clf.preprocess_.batch([image]))``, the image RGB uint8.
    history_ : dict of list
        A table of the training: fold, epoch, loss, train_accuracy, seconds. Accuracy is of the
        images as they are trained on, each batch before its step; with ``deep_supervision`` by the
        mean of the levels' scores, where ``predict`` judges by the score of their sum.
    threshold_ : float
        Probability of a defect, from 0 to 1, at and above which an image is called defective. It
        may be set anew; what is no probability is refused when it is used.
    image_size_ : (int, int)
        Height and width of the network's input.
    tile_ : (int, int) or None
        Height and width in pixels of the tiles that images are seen in.
    interrupted_ : bool or None
        Whether Ctrl-C ended the fit early, so that thresholds rest on what was finished; calls of
        `partial_fit` after it leave this as it is. None where a release that did not note it has
        saved the model.
    n_images_seen_ : int
        Images that were learned from, in all calls of `partial_fit` together.
    training_data_ : Fingerprint or None
        Of those images and their labels, see `defectcam.fingerprint`. None where a release that
        made none has saved the model.
    held_out_probability_ : ndarray of shape (n_images,)
        Probability of a defect for each training image of the last call of `fit` or `partial_fit`,
        from a tail that did not see it.
    suspects_ : ndarray of shape (n_images,)
        Indices of all these training images, from the most to the least likely mislabelled: by the
        probability of their own labels, held out likewise. The first ones are worth a look.
    weights_source_ : str or None
        Where the pre-trained weights that training started from came from; None: random ones.
    drift_reference_ : ndarray of shape (n_images, 1 + n_statistics), float32
        What `drift` compares new images with: of each training image the held-out probability of a
        defect and `defectcam.drift.STATISTICS`.

    See Also
    --------
    defectcam.load : Read a saved classifier.

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam import DefectCAMClassifier
    >>> rng = np.random.default_rng(0)
    >>> images = rng.integers(90, 110, size=(12, 64, 64), dtype=np.uint8)
    >>> images[6:, 20:40, 30:36] = 255
    >>> y = ["good"] * 6 + ["scratch"] * 6
    >>> clf = DefectCAMClassifier(image_size=64, max_epochs=4, cv=2, random_state=0).fit(images, y)
    >>> print(clf.predict(images[[0, 11]]))
    ['good' 'scratch']
    >>> clf.localize(images[11]).label
    'scratch'
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn's protocol
        "backbone": [str],
        "weights": [str, os.PathLike, None],
        "image_size": [Interval(Integral, LEAST_IMAGE_SIZE, None, closed="left"), tuple, list],
        "resize": [StrOptions({"stretch", "pad"})],
        "normalisation": [StrOptions({"backbone", "unit"})],
        "trainable_stages": [Interval(Real, 0, None, closed="left")],
        "evidence_stages": [Interval(Integral, 1, None, closed="left")],
        "normalise_evidence": ["boolean"],
        "novelty_strides": [list, tuple],
        "codebook_size": [Interval(Integral, 1, None, closed="left")],
        "pooling": [StrOptions(set(POOLINGS))],
        "pooling_fraction": [Interval(Real, 0, 1, closed="right")],
        "head_init": [StrOptions(set(INITS))],
        "target": [StrOptions({"anomaly", "type"})],
        "good_label": [str, bool, Integral, None],
        "class_weight": [
            StrOptions({"balanced"}),
            dict,
            Interval(Real, 0, None, closed="neither"),
            None,
        ],
        "optimizer": [StrOptions({"adam", "adamw", "sgd"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "head_learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"one_cycle", "constant"})],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "deep_supervision": ["boolean"],
        "train_batch_norm": ["boolean"],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "stop_at_train_accuracy": [Interval(Real, 0, 1, closed="right"), None],
        "augmentation": [StrOptions(set(VIEWS))],
        "cv": [Interval(Integral, 2, None, closed="left"), None],
        "heatmap": [StrOptions({"fused", "cam", "min_max_cam"})],
        "threshold": [str, Interval(Real, 0, 1, closed="both")],
        "box_threshold": [Interval(Real, None, None, closed="neither")],
        "box_peak_fraction": [Interval(Real, 0, 1, closed="left")],
        "tighten_boxes": ["boolean"],
        "self_training": ["boolean"],
        "second_look": [Interval(Real, 1, MAX_FACTOR, closed="both"), None],
        "min_area": [Interval(Integral, 1, None, closed="left")],
        "max_boxes": [Interval(Integral, 1, None, closed="left"), None],
        "merge_distance": [Interval(Real, 0, None, closed="both"), None],
        "tile": [
            Interval(Integral, 1, None, closed="left"),
            tuple,
            list,
            StrOptions({"auto"}),
            None,
        ],
        "overlap": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "replay_size": [Interval(Integral, 0, None, closed="left"), None],
        "cache_size": [Interval(Integral, 0, None, closed="left")],
        "memory": [str, os.PathLike, HasMethods("cache"), None],
        "device": [str],
        "precision": [StrOptions(set(PRECISIONS))],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, callable, *(HasMethods(hook) for hook in HOOKS), None],
    }

    network_: DefectCAMNetwork
    good_label_: Any
    interrupted_: bool | None = None  # pickles of earlier releases have none
    n_images_seen_: int
    _n_rows_seen: int | None = None  # likewise; each image as often as its integer weight says
    training_data_: Fingerprint | None = None  # likewise
    held_out_probability_: NDArray[np.float64]
    suspects_: NDArray[np.int64]
    drift_reference_: NDArray[np.float32]
    _drift_codebooks: list[Codebook]
    _preprocess: Preprocess
    _classes: Classes
    _replay: ReplayMemory | None
    _built_with: Mapping[str, Any] = MappingProxyType({})  # pickles of earlier releases have none
    _tile_model: TileModel | None = None  # pickles of earlier releases have none
    _interrupted: _Start | None = None  # likewise; of the last fit, if `resume` goes on with it

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | os.PathLike[str] | None = "imagenet",
        image_size: int | tuple[int, int] = 320,
        resize: str = "stretch",
        normalisation: str = "backbone",
        trainable_stages: float = 1.5,
        evidence_stages: int = 2,
        normalise_evidence: bool = True,
        novelty_strides: Sequence[int] = (4, 8),
        codebook_size: int = 1000,
        pooling: str = "novelty_top_k",
        pooling_fraction: float = 0.02,
        head_init: str = "normal",
        target: str = "anomaly",
        good_label: str | bool | int | None = None,
        class_weight: str | dict[Any, float] | float | None = "balanced",
        optimizer: str = "adamw",
        learning_rate: float = 3e-4,
        head_learning_rate: float | None = 1e-2,
        weight_decay: float = 1e-2,
        schedule: str = "one_cycle",
        max_epochs: int | str = "auto",
        batch_size: int = 16,
        label_smoothing: float = 0.0,
        deep_supervision: bool = True,
        train_batch_norm: bool = True,
        early_stopping: bool = False,
        n_iter_no_change: int = 3,
        stop_at_train_accuracy: float | None = None,
        augmentation: str = "flips",
        cv: int | None = 2,
        heatmap: str = "fused",
        threshold: str | float = "balanced",
        box_threshold: float = 1.0,
        box_peak_fraction: float = 0.6,
        tighten_boxes: bool = True,
        self_training: bool = True,
        second_look: float | None = None,
        min_area: int = 16,
        max_boxes: int | None = None,
        merge_distance: float | None = None,
        tile: int | tuple[int, int] | str | None = None,
        overlap: float | int = _DEFAULT_OVERLAP,
        warm_start: bool = False,
        replay_size: int | None = None,
        cache_size: int = 2**28,
        memory: Any = None,
        device: str = "auto",
        precision: str = "auto",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        callbacks: Any = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.resize = resize
        self.normalisation = normalisation
        self.trainable_stages = trainable_stages
        self.evidence_stages = evidence_stages
        self.normalise_evidence = normalise_evidence
        self.novelty_strides = novelty_strides
        self.codebook_size = codebook_size
        self.pooling = pooling
        self.pooling_fraction = pooling_fraction
        self.head_init = head_init
        self.target = target
        self.good_label = good_label
        self.class_weight = class_weight
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.label_smoothing = label_smoothing
        self.deep_supervision = deep_supervision
        self.train_batch_norm = train_batch_norm
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.stop_at_train_accuracy = stop_at_train_accuracy
        self.augmentation = augmentation
        self.cv = cv
        self.heatmap = heatmap
        self.threshold = threshold
        self.box_threshold = box_threshold
        self.box_peak_fraction = box_peak_fraction
        self.tighten_boxes = tighten_boxes
        self.self_training = self_training
        self.second_look = second_look
        self.min_area = min_area
        self.max_boxes = max_boxes
        self.merge_distance = merge_distance
        self.tile = tile
        self.overlap = overlap
        self.warm_start = warm_start
        self.replay_size = replay_size
        self.cache_size = cache_size
        self.memory = memory
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    def __sklearn_tags__(self) -> Tags:
        """Say what it takes: paths and images, not rows of numbers (for those, `FlatImages`)."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    @classmethod
    def from_recipe(cls, name: str, **overrides: Any) -> DefectCAMClassifier:
        """Make a classifier with the parameters of a named configuration.

        Parameters
        ----------
        name : {"vgg16_cam"}
            ``"vgg16_cam"``: the published ancestor, "Explainable Defect Detection using CNNs".
        **overrides
            Parameters to set otherwise, ``backbone="efficientnet_lite0"`` for example.

        Returns
        -------
        DefectCAMClassifier
            Not fitted.

        Examples
        --------
        >>> DefectCAMClassifier.from_recipe("vgg16_cam").learning_rate
        0.0001
        """
        if name not in RECIPES:
            raise ValueError(f"recipe {name!r} is unknown: expected one of {sorted(RECIPES)}.")
        return cls(**{**RECIPES[name], **overrides})

    # --- Fitting ------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        resume: str | os.PathLike[str] | FitCheckpoint | None = None,
    ) -> DefectCAMClassifier:
        """Learn good and defective from labelled images.

        Good images alone will do for a start: novelty alone then decides, and a warning says so.
        With the parameter ``tile``, large images are learned from and judged in tiles, see
        `defectcam.tiled` for which.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
            Training images. A folder brings its labels: one sub-folder per class, or the MVTec AD
            layout. Here and wherever many images are taken, a PyTorch `Dataset` or `DataLoader` and
            a Hugging Face data set or column will do too, see `defectcam.dataset_images`.
        y : array-like of shape (n,), optional
            Labels: strings, booleans or integers; left out when ``X`` is a folder, or a data set
            whose items have labels.
        sample_weight : array-like of shape (n,), optional
            Weights of the images, 0 or more. Integers are repetition, exactly: the fit is the one
            on ``np.repeat(X, sample_weight, axis=0)``, and costs as much (nearly that one with
            ``tile``, where an image is cut into tiles once). If any weight is a fraction, they
            count in the loss, ``class_weight="balanced"``, the calibration of the probability and
            ``threshold_``, but neither in the codebook nor in the heatmap's scale, nor anywhere
            where all images are good.
            An image of weight 0 is left out: ``held_out_probability_`` is NaN there.
        resume : str, PathLike or FitCheckpoint, optional
            File that the training is kept in after each epoch. If it is there, left by a fit that
            was interrupted or killed, training goes on from it, and ends with the weights that an
            undisturbed fit ends with. It is removed at the end; a `FitCheckpoint` in place of a
            path is left for the caller to close.

        Returns
        -------
        DefectCAMClassifier
            Itself.

        Raises
        ------
        ImageReadError
            If an image cannot be read; it is named.
        ValueError
            If a parameter or the labels are wrong.
        CheckpointError
            If the file `resume` belongs to a fit to other images or labels, or with other
            parameters, or is something else. It stays as it is.
        KeyboardInterrupt
            If interrupted before the first epoch is finished, or after training. Later in training
            it ends there with a warning and the classifier can be used. Whatever is raised before
            the fit is done, the classifier stays as it was; an error of a callback's
            ``on_train_end`` comes after it.

        Warns
        -----
        OnlyGoodImagesWarning, FewDefectsWarning, NearDuplicateWarning
            Before training, about the images. All are in `defectcam.exceptions`.
        ChanceLevelWarning, SuspectLabelsWarning
            After it, about what held-out predictions showed.
        """
        checkpoint: FitCheckpoint | None
        if resume is None or isinstance(resume, FitCheckpoint):
            checkpoint = resume
        else:
            checkpoint = FitCheckpoint(resume)
        if self.tile is None and self.overlap != _DEFAULT_OVERLAP:
            warn_caller(
                f"overlap={self.overlap!r} is about tiles, and images are seen whole: give tile "
                "too."
            )
        if self.tile is not None:
            from defectcam.tiled import fit_on_tiles  # tiles know the classifier, not the reverse

            fit_on_tiles(self, X, y, sample_weight, checkpoint)
        else:
            n_kept = self.replay_size or 0
            self._fit(X, y, sample_weight, classes=None, n_kept=n_kept, checkpoint=checkpoint)
        if checkpoint is not None and checkpoint is not resume:  # whoever gives one closes it
            checkpoint.close()
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> DefectCAMClassifier:
        """Learn from more images, as they arrive, without forgetting the earlier ones.

        The first call is a `fit` that also remembers. In a later one, the present network first
        judges the new images, which it has not seen; then codebook, tail and head go on from where
        they are, with three fifths of a fit's epochs over the new images and those of a bounded
        memory (``replay_size``). Calibration and thresholds are learned anew from what was said of
        images when they were new, as far as the network that said it had learned from half as many
        images as the latest. After good images alone, the first defective ones are learned by a
        full fit on both.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
            New images, one or more; see `fit`.
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder. Later calls may hold one class alone.
        classes : array-like, optional
            All labels that will ever come, for the first call. By default those in ``y``. With
            ``target="anomaly"`` and several defect types, later types are welcome without it.
        sample_weight : array-like of shape (n,), optional
            Weights of the images, as in `fit`.

        Returns
        -------
        DefectCAMClassifier
            Itself.

        Raises
        ------
        ValueError
            If a label is none of the classes, or ``classes`` are not those of the first call.
        ImageReadError
            If an image cannot be read; it is named.
        KeyboardInterrupt
            If interrupted: in the first call as in `fit`, in a later one at any time. After an
            error a classifier that was fitted stays as it was.

        Warns
        -----
        UserWarning
            If no image is remembered: after `load`, which reads no memory, or a `fit` with
            ``replay_size=None``. A memory is then started with the new images.

        Notes
        -----
        Parameters of the network, the labels (``target``, ``good_label``) and the preprocessing
        count in the first call alone.
        ``held_out_probability_`` and ``suspects_`` are about the images of the last call, and
        ``history_`` grows: each update is one more fold in it.

        References
        ----------
        Chaudhry et al., "On tiny episodic memories in continual learning", 2019: experience replay.
        Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms", Machine Learning
        90, 2013: test, then train.
        """
        self._refuse_tiles("partial_fit")
        if hasattr(self, "network_"):
            from defectcam.updates import learn_more  # updates know the classifier, not the reverse

            return learn_more(self, X, y, sample_weight, classes)
        self._fit(X, y, sample_weight, classes=classes, n_kept=self._replay_places())
        return self

    def _fit(self, *args: Any, **options: Any) -> None:
        """Fit to whole images, given as to `_fitted`. All stays as it was until that is done."""
        fitted, _ = self._fitted(*args, **options)
        self.__dict__.update(vars(fitted))
        train_ends(self.callbacks, self)

    def _fitted(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None,
        *,
        classes: Any,
        n_kept: int,
        images: NDArray[np.intp] | None = None,
        seed: int | None = None,
        checkpoint: FitCheckpoint | None = None,
    ) -> tuple[DefectCAMClassifier, _Learned]:
        """Return a fitted shallow copy, and what it has learned.

        Where rows are tiles, ``images`` says of which image each is a part, and the caller tells
        callbacks of beginning and end, the checkpoint whose it is, and the copy what it was fitted
        to.
        """
        self._check_parameters()
        given = self._given(X, y, sample_weight, classes, images)
        if seed is None:
            seed = self._seed(checkpoint)
        hashes: list[str] = []
        if not given.are_tiles or self.memory is not None:
            hashes = self._hashes(given.items, given.weighed.rows)
        if checkpoint is not None and not given.are_tiles:
            self._begin(checkpoint, seed, hashes, given.weighed.weights, given.labels)
        warn_if_only_good(given.is_defect)
        warn_if_few_defects(given.is_defect[given.first_of_images])
        if not given.are_tiles:
            train_begins(self.callbacks, self)
        with isolated(seed, resolve_device(self.device)):
            learned = self._learn(given, hashes, seed, n_kept, checkpoint)
        result = learned.trained.result
        if checkpoint is not None:
            checkpoint.is_complete = not result.interrupted
        _warn_if_interrupted(result, checkpoint)
        fitted = copy.copy(self)  # made now: callbacks may have set parameters
        fitted._take_over(given, learned)
        if result.interrupted:
            fitted._interrupted = learned.start
        if not given.are_tiles:
            fitted.training_data_ = fingerprint_of_rows(hashes, given.labels, given.weighed.rows)
        return fitted, learned

    def _seed(self, checkpoint: FitCheckpoint | None) -> int:
        """Draw the seed of a fit, or take the one of the fit that is gone on with."""
        seed = draw_seed(self.random_state)
        return seed if checkpoint is None or checkpoint.seed is None else checkpoint.seed

    def _given(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None,
        classes: Any,
        images: NDArray[np.intp] | None,
    ) -> _Given:
        """Find images, labels, classes and weights, and refuse what is wrong with them."""
        sources, labels = labelled_sources(X, y, self.good_label)
        weighed = weigh_rows(sample_weight, len(sources.items))
        labels = as_labels(labels)[weighed.rows]
        classes = first_classes(labels, classes, self.target, self.good_label)
        given = _Given(
            sources.items,
            labels,
            weighed,
            classes,
            classes.encode(labels),
            None if images is None else images[weighed.rows],
        )
        if given.are_only_good:
            self._check_for_good_only(classes.good_label)
        if given.is_defect.all():
            raise ValueError(
                f"y holds no good image (label {plain_label(classes.good_label)!r}), and the first "
                "call needs some: what is good is learned from them."
            )
        check_readable(paths_of(sources), n_workers=self.n_jobs)
        if not given.are_only_good:
            # Refuse a wrong one early.
            class_weights(
                self.class_weight, classes.labels, classes.good, given.targets, weighed.weights
            )
        return given

    def _learn(
        self,
        given: _Given,
        hashes: list[str],
        seed: int,
        n_kept: int,
        checkpoint: FitCheckpoint | None,
    ) -> _Learned:
        """Build a network and train it on the images; the fitted attributes stay as they are."""
        classes = given.classes
        network, preprocess = self._build_network(len(classes.labels), classes.good)
        start, is_warm = self._begin_from(network, classes, checkpoint)
        views = VIEWS["none" if given.are_only_good and not n_kept else self.augmentation]
        with self._feature_cache(len(given.targets), views, network) as cache:
            rows = given.weighed.rows
            thumbnails = self._fill(cache, network, preprocess, given.items, rows, hashes)
            images = TrainingSet(cache, classes, given.targets, given.weighed.weights)
            folds = self._folds(given, thumbnails, seed)
            keeper = None
            if n_kept:
                records = new_records(
                    given.labels, images.targets, images.weights, thumbnails, seed
                )
                judged = judged_in_folds(records, folds)
                keeper = Keeper(cache, judged, given.is_defect, n_kept)
            course = Course(folds, is_warm=is_warm)
            fit = self._network_fit(
                network,
                images,
                course,
                seed,
                heatmap=self.heatmap,
                input_size=preprocess.image_size,
                checkpoint=checkpoint,
            )
            network, trained = self._run(fit, course, given, hashes, preprocess)
        return _Learned(start, network, preprocess, folds, keeper, trained)

    def _run(
        self,
        fit: NetworkFit,
        course: Course,
        given: _Given,
        hashes: list[str],
        preprocess: Preprocess,
    ) -> tuple[DefectCAMNetwork, Trained]:
        """Run a fit, or recall it where `memory` has it: the fitted network is then another one."""
        # Callbacks wait for epochs, and tiles for the folds' tails.
        is_plain = self.callbacks is None and not given.are_tiles and fit.checkpoint is None
        if not is_plain or folder_of_memory(self.memory) is None:
            return fit.network, fit.run(course)
        images = fit.images
        identity = identity_of_training(
            fit.network,
            self.get_params(deep=False),
            self._features_fingerprint(fit.network, preprocess, images.cache),
            seed=fit.seed,
            is_warm=course.is_warm,
            images=hashes,
            labels=given.labels.tolist(),
            classes=images.classes.labels.tolist(),
            good=images.classes.good,
            weights=images.weights.tolist(),
        )
        return learn_once(self.memory, identity, fit.network, partial(fit.run, course))

    def _folds(self, given: _Given, thumbnails: list[NDArray[np.uint8]], seed: int) -> list[Fold]:
        """Split the images so that copies, and tiles of one image, stay together."""
        labels, targets = given.labels, given.targets
        if given.images is not None:
            return training_folds_of_images(labels, targets, given.images, self.cv, seed)
        pairs = duplicate_pairs(thumbnails)
        warn_if_duplicates(pairs, given.is_defect, given.items, given.weighed.rows)
        groups = duplicate_groups(pairs, len(targets))
        return training_folds(labels, targets, groups, self.cv, seed)

    def _take_over(self, given: _Given, learned: _Learned) -> None:
        """Set the fitted attributes, calibrate, and warn of what the held-out scores show."""
        weighed, is_defect = given.weighed, given.is_defect
        folds, trained = learned.folds, learned.trained
        interrupted = trained.result.interrupted
        self._set_network(learned.network, learned.preprocess, given.classes)
        self.interrupted_ = bool(interrupted)
        self.n_images_seen_, self._n_rows_seen = weighed.n_used, len(weighed.rows)
        self.history_ = trained.result.history
        weights = relative_weights(weighed.weights)
        self._calibrate(trained, given.targets, weights, calibrated=bool(folds))
        if learned.keeper is not None:
            held_out = trained.held_out if folds and not interrupted else None
            self._replay = learned.keeper.memory(Counter(given.labels.tolist()), held_out)
        if folds and not (given.are_tiles or given.are_only_good or interrupted):
            warn_if_chance(is_defect, self.held_out_probability_)
            warn_if_suspects(
                is_defect, self.held_out_probability_, given.labels, given.items, weighed.rows
            )
        self.held_out_probability_ = weighed.per_given(self.held_out_probability_)
        self.suspects_ = weighed.given(self.suspects_)

    def _hashes(self, items: Sequence[Any], rows: NDArray[np.intp]) -> list[str]:
        """Hash what the images in these rows consist of, each image once."""
        used, places = np.unique(rows, return_inverse=True)
        try:
            hashes = list(content_hashes((items[row] for row in used), n_workers=self.n_jobs))
        except ImageReadError:
            if len(used) != len(items):
                _complain_in_place(items, rows)
            raise
        return [hashes[place] for place in places]

    def _check_parameters(self) -> None:
        """Refuse early what scikit-learn's constraints cannot tell."""
        refuse_booleans(self)
        check_image_size(self, self.image_size)
        check_class_weight(self, self.class_weight)
        check_device(self.device)
        check_threshold(self.threshold)
        check_callbacks(self.callbacks)
        folder_of_memory(self.memory)

    def _begin(
        self,
        checkpoint: FitCheckpoint,
        seed: int,
        hashes: Sequence[str],
        weights: NDArray[np.float64],
        labels: NDArray[Any],
    ) -> None:
        """Say which fit a checkpoint is of; one of each per image."""
        checkpoint.begin(
            seed,
            self.get_params(deep=False),
            images=digest_of(hashes),
            labels=digest_of([repr(labels.tolist()), weights]),
        )

    def _begin_from(
        self, network: DefectCAMNetwork, classes: Classes, checkpoint: FitCheckpoint | None
    ) -> tuple[_Start | None, bool]:
        """Give a new network the weights to start from; tell them, and if they are earlier ones."""
        previous = self._previous_network(checkpoint)
        is_warm = previous is not None and self._warm_start(network, classes, previous)
        if checkpoint is None:
            return None, is_warm
        start = _Start(digest_of_weights(network), previous if is_warm else None)
        checkpoint.expect(weights=start.weights)
        return start, is_warm

    def _previous_network(self, checkpoint: FitCheckpoint | None) -> DefectCAMNetwork | None:
        """Return what a warm start begins from: the present network, as a rule.

        Where the fit is gone on with that left the present network when it was interrupted, it is
        what that one began from.
        """
        if not self.warm_start:
            return None
        if checkpoint is not None and self._interrupted is not None:
            weights, previous = self._interrupted
            if checkpoint.weights_to_start_from == weights:
                return previous
        return getattr(self, "network_", None)

    def _warm_start(
        self, network: DefectCAMNetwork, classes: Classes, previous: DefectCAMNetwork
    ) -> bool:
        """Start from the previous weights, if they fit; tell whether they do."""
        other = None
        if not np.array_equal(classes.labels, self.classes_) or classes.good != self._classes.good:
            other = f"other classes ({self.classes_.tolist()}, now {classes.labels.tolist()})"
        elif not start_from(network, previous):
            other = "another architecture"
        if other is not None:
            warn_caller(f"warm_start: the present weights are of {other}; fit starts anew.")
            return False
        network.weights_source = self.weights_source_
        return True

    def _replay_places(self) -> int:
        return AUTO_REPLAY_SIZE if self.replay_size is None else self.replay_size

    def _check_for_good_only(self, good_label: Any) -> None:
        """Refuse parameters that mean nothing where there is no defective image."""
        kind, _ = check_threshold(self.threshold)
        problem = None
        if kind in ("recall", "cost"):
            problem = f"threshold={self.threshold!r}: use 'balanced' or a probability"
        elif self.heatmap != "fused":
            problem = f"heatmap={self.heatmap!r}: use 'fused', which learns from good images too"
        elif not self.novelty_strides:
            problem = f"novelty_strides={self.novelty_strides!r}: use (4, 8)"
        if problem:
            raise ValueError(
                f"y holds good images alone (label {plain_label(good_label)!r}), and there must be "
                f"defective ones for {problem}."
            )

    def _build_network(self, n_classes: int, good: int) -> tuple[DefectCAMNetwork, Preprocess]:
        return build_network(self.get_params(deep=False), n_classes, good)

    def _set_network(
        self, network: DefectCAMNetwork, preprocess: Preprocess, classes: Classes
    ) -> None:
        self.network_ = network.eval()
        self.weights_source_ = network.weights_source
        self._preprocess = preprocess
        self._classes = classes
        self.classes_ = classes.labels
        self.good_label_ = classes.good_label
        self.defect_labels_ = classes.labels[classes.defects].tolist()
        self.image_size_ = preprocess.image_size
        self._built_with = {name: getattr(self, name) for name in OF_NETWORK}
        self._tile_model = None
        self._replay = None
        self._interrupted = None

    @property
    def _fitted_backbone(self) -> str:
        return self._built_with.get("backbone", self.backbone)

    def _calibrate(
        self,
        trained: Trained,
        targets: NDArray[np.int64],
        weights: NDArray[np.float64],
        calibrated: bool,
        current: NDArray[np.bool_] | slice = slice(None),
    ) -> None:
        """Learn from the training images' scores what a score and a map value mean.

        ``current`` tells which images' scores count.
        """
        result, novelty, good = trained.result, trained.novelty, self._classes.good
        is_defect = targets != good
        uses_novelty = trained.heat_model.kind == "fused"
        scores = defect_scores(result.logits, novelty if uses_novelty else None, good)
        only_good = not is_defect.any()
        self._defect_probability = _fit_probability(
            scores[current], is_defect[current], weights[current], calibrated
        )
        self.held_out_probability_ = self._defect_probability.probability(scores)
        threshold = self.threshold
        if threshold == "balanced" and only_good:
            threshold = 0.5  # at their limit
        elif threshold == "balanced" and not calibrated:
            threshold = self._share_in_softmax(targets, weights)
        self.threshold_ = choose_threshold(
            threshold,
            is_defect[current],
            self.held_out_probability_[current],
            weights[current],
        )
        self._keep_drift_reference(trained, scores, current if calibrated else slice(0))
        self._familiarity_limit = None if novelty is None else fit_familiarity_limit(novelty)
        self._heat_model = trained.heat_model
        probabilities = self._judge.class_probabilities(
            self._defect_probability.log_odds(scores), result.logits
        )
        self.suspects_ = rank_suspects(np.take_along_axis(probabilities, targets[:, None], 1)[:, 0])

    def _share_in_softmax(self, targets: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
        """Probability of a defect, of several types, that the loss teaches if nothing else does."""
        labels, good = self._classes.labels, self._classes.good
        if len(labels) == 2:
            return 0.5
        of_class = class_weights(self.class_weight, labels, good, targets, weights)
        shares = of_class * np.bincount(targets, weights, minlength=len(labels))
        return float(1 - shares[good] / shares.sum())

    def _keep_drift_reference(
        self,
        trained: Trained,
        scores: NDArray[np.float64],
        rows: NDArray[np.bool_] | slice,
    ) -> None:
        """Keep held-out answers to some training images, and what novelty was measured with."""
        if not len(scores[rows]):
            self.drift_reference_ = np.empty((0, 0), dtype=np.float32)
            self._drift_codebooks = []
            return
        novelty = None if trained.novelty is None else trained.novelty.numpy()[rows]
        statistics = describe_images(scores[rows], novelty)
        self.drift_reference_ = np.column_stack(
            (self.held_out_probability_[rows], statistics)  # the one a vector, the other a matrix
        ).astype(np.float32)
        self._drift_codebooks = list(trained.codebooks)

    def _network_fit(
        self,
        network: DefectCAMNetwork,
        images: TrainingSet,
        course: Course,
        seed: int,
        *,
        heatmap: str,
        input_size: tuple[int, int],
        checkpoint: FitCheckpoint | None = None,
    ) -> NetworkFit:
        """Make ready what `course` asks for, with the present parameters."""
        return NetworkFit(
            network=network,
            images=images,
            options=FitOptions(
                training=self._training_options(course, len(images.targets)),
                class_weight=self.class_weight,
                codebook_size=self.codebook_size,
                heatmap=heatmap,
                self_training=self.self_training,
                memory=self.memory,
                verbose=self.verbose,
            ),
            input_size=input_size,
            seed=seed,
            on_epoch=self._on_epoch,
            history=self.history_ if course.is_update else {},
            checkpoint=checkpoint,
        )

    def _training_options(self, course: Course, n_images: int) -> TrainingOptions:
        """How a fit or an update trains: one of few new images replays many more."""
        if course.is_update:
            n_images = max(n_images, self.n_images_seen_)
        options = TrainingOptions(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            max_epochs=self._max_epochs(n_images),
            batch_size=self.batch_size,
            label_smoothing=self.label_smoothing,
            deep_supervision=self.deep_supervision,
            train_batch_norm=self.train_batch_norm,
            stop_at_train_accuracy=self.stop_at_train_accuracy,
            patience=self.n_iter_no_change if self.early_stopping else None,
        )
        return options_of_update(options) if course.is_update else options

    def _on_epoch(self, record: dict[str, Any]) -> bool:
        return told_to_stop(self.callbacks, self, record)

    def _max_epochs(self, n_images: int) -> int:
        if self.max_epochs != "auto":
            return int(self.max_epochs)
        return int(np.clip(round(AUTO_IMAGES_SEEN / n_images), *AUTO_EPOCHS))

    def _feature_cache(
        self, n_images: int, views: Sequence[tuple[int, ...]], network: DefectCAMNetwork
    ) -> FeatureCache:
        device = next(network.parameters()).device
        dtype = torch.float32 if self.precision == "float32" else torch.float16
        return FeatureCache(n_images, views, self.cache_size, dtype, self.batch_size, device)

    def _feature_store(
        self,
        network: DefectCAMNetwork,
        preprocess: Preprocess,
        cache: FeatureCache,
    ) -> FeatureStore | None:
        folder = folder_of_memory(self.memory)
        if folder is None:
            return None
        return FeatureStore(folder / self._features_fingerprint(network, preprocess, cache))

    def _features_fingerprint(
        self, network: DefectCAMNetwork, preprocess: Preprocess, cache: FeatureCache
    ) -> str:
        return fingerprint_of_features(
            network,
            preprocess,
            backbone=self.backbone,
            views=cache.views,
            dtype=cache.dtype,
            batch_size=cache.batch_size,
        )

    def _fill(
        self,
        cache: FeatureCache,
        network: DefectCAMNetwork,
        preprocess: Preprocess,
        items: list[Any],
        rows: NDArray[np.intp],
        hashes: list[str],
    ) -> list[NDArray[np.uint8]]:
        """Fill the cache with these rows of the given images; return their thumbnails.

        The hashes are asked for where `memory` is given; those of images that have changed since
        are set right.
        """
        store = self._feature_store(network, preprocess, cache)
        chosen = [items[row] for row in rows]
        try:
            with tqdm(
                total=len(rows), desc="features", unit="image", disable=not self.verbose
            ) as bar:
                return fill_cache(
                    cache,
                    network,
                    preprocess,
                    chosen,
                    n_workers=self.n_jobs,
                    store=store,
                    hashes=hashes,
                    report=bar.update,
                )
        except ImageReadError:
            if len(rows) != len(items) or (np.diff(rows) != 1).any():
                _complain_in_place(items, rows)
            raise

    def _batches(
        self, items: Iterable[Any], preprocess: Preprocess
    ) -> Iterator[tuple[torch.Tensor, list[Geometry]]]:
        for pixels, geometries, _ in preprocessed_batches(
            items, preprocess, self.batch_size, n_workers=self.n_jobs
        ):
            yield pixels, geometries

    # --- Prediction ---------------------------------------------------------------------------

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each image.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays

        Returns
        -------
        ndarray of shape (n,)
            Labels, of ``classes_``.
        """
        return np.concatenate([self._judge.labels(batch) for batch in self._scored(X)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probability of each class, calibrated on held-out training images.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays

        Returns
        -------
        ndarray of shape (n, n_classes)
            Columns as in ``classes_``. Note that ``predict`` compares the probability of a defect
            with ``threshold_``, which need not be one half.
        """
        return np.concatenate([self._judge.probabilities(batch) for batch in self._scored(X)])

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithm of the probabilities of `predict_proba`.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays

        Returns
        -------
        ndarray of shape (n, n_classes)
            Columns as in ``classes_``.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Signed distance from the decision, in log-odds.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays

        Returns
        -------
        ndarray of shape (n,) or (n, n_classes)
            For two classes, positive means ``classes_[1]``, as everywhere in scikit-learn,
            whichever of them is the defect: see `defect_score` for a score that always grows with
            the defect. For more, the class that `predict` names has the highest: the likeliest type
            has half the distance of a defect from the decision, the good class the negative of it,
            and other types less than the likeliest, by how much less likely they are.
        """
        return np.concatenate([self._judge.decisions(batch) for batch in self._scored(X)])

    def defect_score(self, X: Any) -> NDArray[np.float64]:
        """Log-odds of a defect: the higher, the more defective.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays

        Returns
        -------
        ndarray of shape (n,)
        """
        return np.concatenate([self._judge.log_odds(batch) for batch in self._scored(X)])

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Mean accuracy.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class. A defect type
            that training did not know is right when it is called any defect. Of labels of another
            kind than the training's, truth values instead of names, the good one is found as
            `fit` finds it.
        sample_weight : array-like of shape (n,), optional

        Returns
        -------
        float

        Warns
        -----
        UserWarning
            If no image is labelled good.
        """
        check_is_fitted(self)
        sources, labels, good = labelled_types(X, y, plain_label(self.good_label_))
        is_good = labels == good
        predicted = self.predict(sources.items)
        is_right = (predicted == self.good_label_) == is_good
        if len(self._classes.defects) > 1:
            is_right &= (predicted == labels) | is_good | ~np.isin(labels, self.classes_)
        everything = np.ones_like(is_right)
        return float(accuracy_score(everything, is_right, sample_weight=sample_weight))

    def evaluate(
        self, X: Any, y: ArrayLike | None = None, masks: Any = None, *, good_label: Any = None
    ) -> Evaluation:
        """Measure how well labelled images are judged: a report, the missed defects first.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class. Defect types that
            training did not know count as defects.
        masks : folder, sequence of n paths, arrays of shape (H, W) or None, optional
            Where the defects are, in the images' size. By default those of a folder
            ``ground_truth`` in or beside the folder ``X``, if there is one.
        good_label : label, optional
            What good parts are called here, if not as in training.

        Returns
        -------
        Evaluation
            Figures as attributes; ``print`` it for a report, ``to_dict`` is ready for JSON.

        See Also
        --------
        defectcam.evaluation.evaluate : The same as a function, with more details.
        """
        return evaluate(self, X, y, masks, good_label=good_label)

    def report(
        self,
        X: Any,
        y: ArrayLike | None = None,
        path: str | os.PathLike[str] = "report.html",
        masks: Any = None,
        *,
        good_label: Any = None,
        title: str | None = None,
        overwrite: bool = True,
    ) -> Path:
        """Judge images and write a report: one HTML file, in which the thresholds can be moved.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels; left out when ``X`` is a folder with one sub-folder per class, and where nothing
            is known: the report then tells what is called defective, not whether that is right.
        path : str or PathLike, default="report.html"
            The file to write, whole or not at all. It needs no network and no other file.
        masks : folder, sequence of n paths, arrays of shape (H, W) or None, optional
            Where the defects are, as for `evaluate`.
        good_label : label, optional
            What good parts are called here, if not as in training.
        title : str, optional
            By default the name of the folder ``X``.
        overwrite : bool, default=True
            Whether an existing file may be replaced.

        Returns
        -------
        Path
            The file.

        See Also
        --------
        defectcam.report.write_report : The same as a function, with more details.
        """
        from defectcam.report import write_report  # templates, which nothing else needs

        return write_report(
            self, X, y, path, masks, good_label=good_label, title=title, overwrite=overwrite
        )

    def explore(
        self, X: Any, y: ArrayLike | None = None, *, good_label: Any = None, n_images: int = 8
    ) -> Explorer:
        """Look through images in a notebook: sliders for both thresholds, counts and pictures.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        y : array-like of shape (n,), optional
            Labels: with them there are counts, and missed defects come first. Left out when ``X``
            is a folder with one sub-folder per class.
        good_label : label, optional
            What good parts are called in ``y``, if not as in training.
        n_images : int, default=8
            Pictures on a page.

        Returns
        -------
        Explorer
            Shown by itself as the last line of a cell. The classifier is not changed: set
            ``clf.threshold_ = explorer.threshold`` to keep what the slider says.

        Raises
        ------
        ImportError
            If ipywidgets is not installed: ``pip install "defectcam[notebook]"``.
        """
        check_is_fitted(self)
        return explore(self, X, y, good_label=good_label, n_images=n_images)

    def localize(
        self,
        X: Any,
        *,
        method: str | None = None,
        tile: int | tuple[int, int] | str | None = None,
        overlap: float | int | None = None,
    ) -> Localization | list[Localization]:
        """Say where the defects are.

        Parameters
        ----------
        X : path, array of shape (H, W[, C]), PIL.Image.Image, or many of them, or a folder
        method : str or None, default=None
            What makes the heatmap. None or ``"cam"``: the classifier, as its parameter `heatmap`
            says. ``"gradcam"``, ``"gradcam++"``, ``"scorecam"``, ``"layercam"`` or ``"eigencam"``:
            that method of the package grad-cam, see `defectcam.attribution`. Label and probability
            are the same. Its map is scaled by each image's own minimum and maximum, so good images
            look as hot as defective ones; boxes, in images called defective, are drawn where it is
            above 0.5, whatever the parameters of the boxes.
        tile : int, (int, int), "auto" or None, default=None
            Height and width in pixels of the tiles that large images are seen in. ``"auto"``:
            chosen by each image's size. None: as in `fit`, whose parameter ``tile`` calibrates the
            probability of an image for its many tiles; without it, a warning says what that means.
        overlap : float or int, optional
            As the parameter of the classifier, which is the default. A warning says where it is
            another than in `fit`, or there are no tiles.

        Returns
        -------
        Localization or list of Localization
            One for one image, a list in order for many; `TiledLocalization` where tiles were used.

        Raises
        ------
        ImportError
            If `method` needs grad-cam and it is not installed: ``pip install 'defectcam[cam]'``.
        """
        check_is_fitted(self)
        sources = as_sources(X)
        found = list(self.localize_iter(sources.items, method=method, tile=tile, overlap=overlap))
        return found[0] if sources.single else found

    def localize_iter(
        self,
        X: Iterable[Any],
        *,
        method: str | None = None,
        tile: int | tuple[int, int] | str | None = None,
        overlap: float | int | None = None,
    ) -> Iterator[Localization]:
        """Localise a stream of images, which need not fit in memory.

        Parameters
        ----------
        X : iterable of paths, arrays or Pillow images, or a folder, or a data set
            An iterable is taken lazily, a few batches ahead.
        method, tile, overlap
            As for `localize`.

        Yields
        ------
        Localization
            In order.
        """
        check_is_fitted(self)
        check_decision_threshold("threshold_", self.threshold_)
        if method == "cam":
            method = None
        if method is not None:
            check_method(method)
        stream = X if is_stream(X) else as_sources(X).items
        if tile is not None or self._tile_model is not None:
            from defectcam.tiled_inference import localize_in_tiles

            yield from localize_in_tiles(self, stream, method, tile, overlap)
            return
        if overlap is not None:
            warn_caller(
                f"overlap={overlap!r} is about tiles, and images are seen whole: give tile too."
            )
        items: list[Any] = []

        def remembered() -> Iterator[Any]:
            for item in stream:
                items.append(item)
                yield item

        for batch in self._forward(remembered()):
            n, predictor = len(batch.geometries), self._predictor
            second_size = self._second_size if method is None else None
            found = predictor.localize(batch, items[:n], second_size)
            yield from found if method is None else predictor.attribute(batch, found, method)
            del items[:n]

    def evidence(self, X: Any) -> NDArray[np.float32]:
        """Signed evidence maps of each class, on the network's grid.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays

        Returns
        -------
        ndarray of shape (n, n_classes, height, width)
            With ``pooling="average"``, ``network_(...)`` is its mean over positions plus
            ``network_.head.bias``.
        """
        self._refuse_tiles("evidence")
        return np.concatenate([batch.levels.sum(1).numpy() for batch in self._forward(_many(X))])

    def query(self, X: Any, n: int) -> NDArray[np.int64]:
        """Choose which of these unlabelled images to label next.

        Those from which most is to be learned: near the border between good and defective ones, or
        unlike all training images, and different from one another; see
        `defectcam.active.choose_queries` for the method. The border is put where the share of
        defective images among those of ``X`` is that of the training images.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n_images, H, W[, C]), or sequence of arrays
            Unlabelled images.
        n : int
            How many to choose; at most as many as there are.

        Returns
        -------
        ndarray of shape (n,)
            Indices into ``X``, in the order in which they were chosen. A folder's images count in
            the order of `defectcam.images.find_images`.
        """
        check_is_fitted(self)
        self._refuse_tiles("query")
        describer = Describer(
            self.network_.head, self._classes.good, self._familiarity_limit, self._defect_share()
        )
        for batch, description in self._described(_many(X)):
            margin = self._judge.distance(batch)
            describer.add(margin, description.level_features, batch.levels, batch.novelty)
        return choose_queries(*describer.summary(), n, check_random_state(self.random_state))

    def _defect_share(self) -> float | None:
        """Share of defective images among those learned; None if there are none, or not known."""
        data = self.training_data_
        if data is None or len(data.labels) < 2:
            return None
        n_good = data.labels.get(str(plain_label(self.good_label_)), 0)
        return 1 - n_good / sum(data.labels.values())

    def drift(self, X: Any, *, alpha: float = 0.05, n_examples: int = 5) -> Drift:
        """Tell whether new images differ from training's as a whole: light, focus, place, product.

        Parameters
        ----------
        X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
            New images of the line, unlabelled; some dozens, as they come, good and defective.
        alpha : float, default=0.05
            Accepted share of false alarms.
        n_examples : int, default=5
            How many images that show it best are named.

        Returns
        -------
        Drift
            Whether, how and with which p-value; ``print`` it for a report.

        Raises
        ------
        ValueError
            If `alpha` or `n_examples` is wrong, which is found out before images are read; if there
            are too few images; if the classifier sees images in tiles, was fitted without folds, or
            was saved by a release that did not keep what new images are compared with.

        See Also
        --------
        defectcam.drift.measure_drift : The tests.
        """
        check_is_fitted(self)
        self._refuse_tiles("drift")
        check_drift_options(alpha, n_examples)
        if not len(getattr(self, "drift_reference_", ())):
            raise ValueError(
                "There are no held-out answers to training images to compare with: the classifier "
                "was fitted without folds, or saved by an earlier release. Fit it again, with cv=2."
            )
        return measure_drift(
            self.drift_reference_,
            self._drift_rows(_many(X)),
            self.threshold_,
            alpha=alpha,
            n_examples=n_examples,
        )

    def info(self) -> dict[str, Any]:
        """Return what the fitted classifier is made of, for logs and model cards.

        Returns
        -------
        dict
            Ready for JSON.
        """
        check_is_fitted(self)
        parameters, data = list(self.network_.parameters()), self.training_data_
        return {
            "defectcam": defectcam.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "backbone": self._fitted_backbone,
            "weights": self.weights_source_,
            "n_parameters": sum(p.numel() for p in parameters),
            "n_trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "device": str(parameters[0].device),
            "precision": str(self.network_.dtype).removeprefix("torch."),
            "image_size": list(self.image_size_),
            "classes": self.classes_.tolist(),
            "good_label": plain_label(self.good_label_),
            "tile": None if self.tile_ is None else list(self.tile_),
            "n_training_images": self.n_images_seen_,
            "training_labels": {} if data is None else dict(data.labels),
            "training_data": None if data is None else data.digest,
            "epochs": len(self.history_["epoch"]),
            "interrupted": self.interrupted_,
            "threshold": self.threshold_,
            "box_threshold": float(self.box_threshold),
            "heatmap": self._heat_model.kind,
        }

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Write the classifier into one safetensors file: data, no code. See `defectcam.load`.

        Parameters
        ----------
        path : str or PathLike
        overwrite : bool, default=True
            Whether an existing file may be replaced.
        """
        from defectcam.persistence import save  # persistence knows the classifier, not the reverse

        save(self, path, overwrite=overwrite)

    def export(
        self, path: str | os.PathLike[str], *, overwrite: bool = True, **options: Any
    ) -> Int8Loss | None:
        """Write the classifier as one graph from RGB pixels to answers, to run without PyTorch.

        Parameters
        ----------
        path : str or PathLike
            ``.onnx``, ``.xml`` (OpenVINO IR, its weights in a ``.bin`` beside it) or ``.pt2``
            (`torch.export`).
        overwrite : bool, default=True
            Whether existing files may be replaced.
        **options
            ``int8`` with training images for int8, and its limits: see `defectcam.export.export`,
            also for what is raised.

        Returns
        -------
        Int8Loss or None
            What int8 changed; None for float32.

        See Also
        --------
        defectcam.runtime.Inspector : Runs the file.
        """
        from defectcam.export import export  # it knows the classifier, not the reverse

        return export(self, path, overwrite=overwrite, **options)

    @property
    def preprocess_(self) -> Preprocess:
        """What makes the network's input of RGB images, the same in training and prediction."""
        check_is_fitted(self, "_preprocess")
        return self._preprocess

    def _result_settings(self) -> dict[str, Any]:
        """Return what results of whole images and of tiles have in common."""
        return {
            "threshold": self.box_threshold,
            "decision_threshold": self.threshold_,
            "min_area": self.min_area,
            "max_boxes": self.max_boxes,
            "merge_distance": self.merge_distance,
            "peak_fraction": self.box_peak_fraction,
            "tighten": self.tighten_boxes,
            "point_spread": self._heat_model.point_spread,
            "good_label": self.good_label_,
        }

    def _scored(self, X: Any) -> Iterator[ScoredImages]:
        """Run the network over images, in tiles where it was fitted on tiles."""
        check_is_fitted(self)
        check_decision_threshold("threshold_", self.threshold_)
        if self._tile_model is None:
            return self._forward(_many(X))
        from defectcam.tiled_inference import score_in_tiles

        return score_in_tiles(self, _many(X))

    def _refuse_tiles(self, method: str) -> None:
        if self.tile is not None or self._tile_model is not None:
            raise ValueError(
                f"{method} does not work on tiles: fit a classifier with tile=None, on tiles that "
                "you cut yourself where images are large."
            )

    @property
    def tile_(self) -> tuple[int, int] | None:
        """Height and width in pixels of the tiles that images are seen in; None: seen whole."""
        check_is_fitted(self, "network_")
        return None if self._tile_model is None else self._tile_model.tile

    def _forward(self, items: Iterable[Any]) -> Iterator[ScoredImages]:
        """Run the network over images."""
        check_is_fitted(self)
        return self._predictor.forward(items)

    def _described(self, items: Iterable[Any]) -> Iterator[tuple[ScoredImages, Description]]:
        """Run the network over images and hand out its features too."""
        check_is_fitted(self)
        return self._predictor.described(items)

    @property
    def _predictor(self) -> Predictor:
        """What judges images, with the present thresholds and settings of boxes."""
        return Predictor(
            self.network_,
            self._preprocess,
            self._judge,
            self._heat_model,
            self._result_settings(),
            self.batch_size,
            self.n_jobs,
        )

    @property
    def _judge(self) -> Judge:
        return Judge(
            self._classes,
            self._defect_probability,
            self.threshold_,
            self._heat_model.kind == "fused",
            self._familiarity_limit,
        )

    def _drift_rows(self, items: Iterable[Any]) -> NDArray[np.float32]:
        """Say of images what ``drift_reference_`` says of training's.

        Novelty is measured with the folds' codebooks in turn, as that of training images was: the
        final one has seen more good parts, and all new images would look less novel to it.
        """
        rows: list[NDArray[np.float64]] = []
        n_codebooks = len(self._drift_codebooks)
        for batch, description in self._described(items):
            novelty = None
            if description.patches is not None and n_codebooks:
                first = sum(len(part) for part in rows)
                with torch.inference_mode():
                    maps = [
                        self._drift_codebooks[(first + i) % n_codebooks](patches[None]).cpu()
                        for i, patches in enumerate(description.patches)
                    ]
                novelty = torch.cat(maps).numpy()
            scores = defect_scores(batch.logits, None, self._classes.good)
            described = describe_images(scores, novelty)
            rows.append(np.column_stack((self._judge.defect_probabilities(batch), described)))
        return np.concatenate(rows).astype(np.float32)

    @property
    def _second_size(self) -> tuple[int, int] | None:
        """At what size defective images are seen again; None: they are not."""
        if self.second_look is None or self._heat_model.kind != "fused":
            return None
        return size_of_second_look(self.image_size_, self.second_look)


def _fit_probability(
    scores: NDArray[np.float64],
    is_defect: NDArray[np.bool_],
    weights: NDArray[np.float64],
    calibrated: bool,
) -> DefectProbability:
    """Learn what scores mean; of scores that are not held out, the network's own softmax."""
    if not is_defect.any():
        return fit_novelty_probability(scores)
    if calibrated:
        return fit_defect_probability(scores, is_defect, weights)
    return DefectProbability((1.0,) + (0.0,) * (scores.shape[1] - 1), 0.0)


def _warn_if_interrupted(result: FitResult, checkpoint: FitCheckpoint | None) -> None:
    if result.interrupted:
        how = "" if checkpoint is None else " The same call goes on with it from `resume`."
        warn_caller(
            f"Training was interrupted after {len(result.history['epoch'])} epochs; the "
            f"classifier can be used, its thresholds rest on what was finished.{how}"
        )


def _many(X: Any) -> list[Any]:
    sources = as_sources(X)
    if sources.single:
        raise ValueError(
            "Expected a folder or a sequence of images, got one image: pass [image], or use "
            "localize."
        )
    return sources.items


def _complain_in_place(items: Sequence[Any], rows: NDArray[np.intp]) -> None:
    """Raise the complaint about an image again, with its index among all that were given."""
    fitted = set(rows.tolist())
    unused = np.zeros((1, 1), dtype=np.uint8)
    read = read_images(item if i in fitted else unused for i, item in enumerate(items))
    collections.deque(read, maxlen=0)
