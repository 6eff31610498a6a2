"""One training: tail and head learn from the trunk's cached features.

Owns the training loop. It never reads a file, knows no label names, and decides no threshold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor, nn

from defectcam.cam import defect_margin, signed_cams
from defectcam.checkpoints import FitCheckpoint, TrainingLoop
from defectcam.exceptions import warn_caller
from defectcam.feature_cache import FeatureCache
from defectcam.network import DefectCAMNetwork

#: Cached images that go through the tail together when nothing is trained.
CACHE_BATCH = 32

#: Scores are multiplied by at most so many times what two classes would need, to keep a distance.
MOST_FACTOR = 1024

History = dict[str, list[float]]
HISTORY_COLUMNS = ("fold", "epoch", "loss", "train_accuracy", "seconds")
EpochCallback = Callable[[dict[str, Any]], object]


class TrainingDivergedError(RuntimeError):
    """The loss stopped being a finite number."""


@dataclass(frozen=True)
class TrainingOptions:
    """How tail and head are trained; the fields are the estimator's parameters of the same name."""

    optimizer: str
    learning_rate: float
    head_learning_rate: float | None
    weight_decay: float
    schedule: str
    max_epochs: int
    batch_size: int
    label_smoothing: float
    deep_supervision: bool
    train_batch_norm: bool
    stop_at_train_accuracy: float | None
    patience: int | None


class CachedScores(NamedTuple):
    """What a network says about all cached images, and where its good and defective ones lie.

    Attributes
    ----------
    logits : Tensor of shape (n_images, n_classes)
    cams : Tensor of shape (n_images, 1 + n_levels, height, width)
        Signed maps of the whole evidence and of each level's.
    typical_margin : float
        Median log-odds of a defect over the reference's good images.
    class_distance : float
        How much higher that of its defective images is; NaN where it has none.
    typical_cams : tuple of float
        Medians of the signed maps over its good images.
    """

    logits: Tensor
    cams: Tensor
    typical_margin: float
    class_distance: float
    typical_cams: tuple[float, ...]

    def centred_cams(self, rows: NDArray[np.intp]) -> Tensor:
        """Signed maps of some rows, shifted so that those of the good have median 0."""
        return self.cams[rows] - self.cams.new_tensor(self.typical_cams)[:, None, None]

    def scaled(self, factor: float) -> CachedScores:
        """Say what the network would say with all evidence and scores times a factor."""
        return CachedScores(
            self.logits * factor,
            self.cams * factor,
            self.typical_margin * factor,
            self.class_distance * factor,
            tuple(factor * value for value in self.typical_cams),
        )


#: Weights of tail and head, by their names in the network.
TailState = dict[str, Tensor]


def copy_tail(network: DefectCAMNetwork) -> TailState:
    """Copy the weights of tail and head; training changes no others."""
    state = network.state_dict().items()
    return {name: w.clone() for name, w in state if name.startswith(("tail.", "head."))}


def load_tail(network: DefectCAMNetwork, tail: TailState) -> None:
    """Put weights of tail and head back into a network."""
    network.load_state_dict(tail, strict=False)


@dataclass(kw_only=True)
class TailTraining:
    """Trainings of tail and head on one cache, which share data, options and history.

    Attributes
    ----------
    network : DefectCAMNetwork
        Trained in place; its trunk is not touched.
    cache : FeatureCache
    targets : Tensor of shape (n_images,), int64
        Class index per cached image.
    good : int
        Index of the good class.
    class_weight : Tensor of shape (n_classes,)
    sample_weight : Tensor of shape (n_images,)
    options : TrainingOptions
    seed : int
        Decides order and views.
    on_epoch : callable, optional
        Called after each epoch with its record; returning True ends the training.
    first_fold : int, default=0
        Added to the number of a fold in history and records.
    checkpoint : FitCheckpoint, optional
        Kept after each epoch; what it says is done is not trained again.
    history : dict of list
        One entry per finished epoch in each list.
    interrupted : bool
        Whether a KeyboardInterrupt ended the last training early.
    """

    network: DefectCAMNetwork
    cache: FeatureCache
    targets: Tensor
    good: int
    class_weight: Tensor
    sample_weight: Tensor
    options: TrainingOptions
    seed: int
    on_epoch: EpochCallback | None = None
    first_fold: int = 0
    checkpoint: FitCheckpoint | None = None
    history: History = field(default_factory=dict)
    interrupted: bool = False

    def run(self, rows: np.ndarray, fold: int) -> None:
        """Train on some rows of the cache.

        After an interrupt the network holds the weights of the last finished epoch and
        ``interrupted`` is set; without a finished epoch the KeyboardInterrupt goes on. It holds
        them too, and a warning says so, where a later epoch breaks the weights.

        Raises
        ------
        TrainingDivergedError
            If the loss or the scores become infinite or NaN in the first epoch.
        """
        options = self.options
        generator = torch.Generator().manual_seed(self.seed + fold)
        optimizer = _make_optimizer(self.network, options)
        n_batches = len(_batches(torch.as_tensor(rows), options.batch_size))
        n_steps = options.max_epochs * n_batches
        schedule = _make_schedule(optimizer, options.schedule, n_steps)
        loop = TrainingLoop(self.network, optimizer, schedule, generator)
        losses: list[float] = []
        is_done = False
        if self.checkpoint is not None:
            losses, is_done = self.checkpoint.restore(fold, loop)
        finished = copy_tail(self.network) if losses else None
        while len(losses) < options.max_epochs and not is_done:
            started = time.perf_counter()
            try:
                loss, accuracy = self._epoch(torch.as_tensor(rows), generator, optimizer, schedule)
            except KeyboardInterrupt:
                if finished is None:
                    raise
                load_tail(self.network, finished)
                self.interrupted = True
                break
            except TrainingDivergedError as error:
                if finished is None:
                    raise
                load_tail(self.network, finished)
                warn_caller(
                    f"{error} The weights of epoch {len(losses)} of {options.max_epochs} are kept"
                    + (f" (fold {fold})." if fold else ".")
                )
                break
            finished = copy_tail(self.network)
            losses.append(loss)
            try:
                stop_asked = self._record(fold, len(losses), loss, accuracy, started)
                is_done = stop_asked or _is_done(options, losses, accuracy)
                if self.checkpoint is not None:
                    tail = copy_tail(self.network)  # anew: callbacks may have changed it
                    self.checkpoint.write(fold, tail, loop, losses, is_done)
            except KeyboardInterrupt:
                self.interrupted = True
                break
        self.network.eval()

    def run_and_measure(self, rows: NDArray[np.intp], fold: int) -> None:
        """Train on some rows and measure the statistics of batch normalisation on them."""
        tail = self.checkpoint.finished_tail(fold) if self.checkpoint else None
        if tail is not None:
            load_tail(self.network, tail)
            self.network.eval()
            return
        self.run(rows, fold)
        if self.options.train_batch_norm:
            trained = copy_tail(self.network)
            try:
                update_batch_norm(self.network, self.cache, rows)
            except KeyboardInterrupt:
                load_tail(self.network, trained)
                self.interrupted = True
            self.network.eval()
        if self.checkpoint is not None and not self.interrupted:
            self.checkpoint.finish(fold, copy_tail(self.network))

    def scores(self, rows: NDArray[np.intp]) -> CachedScores:
        """Score all cached images; the reference is the good and defective among these rows."""
        logits, levels = predict_cached(self.network, self.cache, np.arange(self.cache.n_images))
        margin = defect_margin(logits, self.good)
        cams = signed_cams(levels, self.good)
        good = self._good_among(rows)
        defective = np.setdiff1d(rows, good)
        typical_margin = float(margin[good].quantile(0.5))
        distance = math.nan
        if len(defective):
            distance = float(margin[defective].quantile(0.5)) - typical_margin
        return CachedScores(
            logits,
            cams,
            typical_margin=typical_margin,
            class_distance=distance,
            typical_cams=tuple(float(np.median(cam.numpy())) for cam in cams[good].unbind(1)),
        )

    def centre_scores(self, rows: NDArray[np.intp]) -> CachedScores:
        """Shift the good class's bias so that the median score of these rows' good images is 0.

        Returns the scores of all cached images after the shift.
        """
        scores = self.scores(rows)
        self._shift_good(scores.logits, scores.typical_margin)
        return scores._replace(typical_margin=0.0)

    def keep_apart(self, scores: CachedScores, distance: float) -> CachedScores:
        """Scale evidence and scores so that good and defective images lie as far apart as asked.

        Returns the centred scores of all cached images with that scale.

        Parameters
        ----------
        scores : CachedScores
            Of the network as it is, centred on the good among all images.
        distance : float
            What their `CachedScores.class_distance` shall be.
        """
        factor = distance / scores.class_distance
        if scores.logits.shape[1] > 2:  # of several defects, log-odds do not grow as scores do
            factor = self._factor_of_distance(scores.logits, distance, factor)
        self.network.head.scale_(factor)
        scores = scores.scaled(factor)
        if scores.logits.shape[1] > 2:
            margin, _ = self._margins(scores.logits)
            self._shift_good(scores.logits, margin)
            scores = scores._replace(typical_margin=0.0, class_distance=distance)
        return scores

    def _factor_of_distance(self, logits: Tensor, distance: float, about: float) -> float:
        """Find the factor of the scores with which good and defective lie so far apart."""

        def surplus(factor: float) -> float:
            good, defective = self._margins(logits.double() * factor)
            return defective - good - distance

        low = high = about
        while surplus(low) > 0:
            low /= 2
        while surplus(high) < 0:
            high *= 2
            if high > about * MOST_FACTOR:  # what is scored highest does not tell them apart
                return about
        return low if low == high else float(brentq(surplus, low, high))

    def _margins(self, logits: Tensor) -> tuple[float, float]:
        """Median log-odds of a defect of the good and of the defective images."""
        margin = defect_margin(logits, self.good)
        is_good = self.targets == self.good
        return float(margin[is_good].quantile(0.5)), float(margin[~is_good].quantile(0.5))

    def _shift_good(self, logits: Tensor, shift: float) -> None:
        with torch.no_grad():
            self.network.head.bias[self.good] += shift
        logits[:, self.good] += shift

    def uncentre_scores(self) -> None:
        """Put the bias of a network that was centred back to between the classes.

        Training on from where good images have even odds would first unlearn evidence: a bias moves
        slowly. Where there is no such distance, nothing changes.
        """
        scores = self.scores(np.arange(self.cache.n_images))
        if scores.class_distance > 0:
            with torch.no_grad():
                self.network.head.bias[self.good] += (
                    scores.typical_margin + scores.class_distance / 2
                )

    def has_good(self, rows: NDArray[np.intp]) -> bool:
        """Whether any of these rows is of the good class."""
        return len(self._good_among(rows)) > 0

    def _good_among(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        return rows[self.targets.numpy()[rows] == self.good]

    def _epoch(
        self,
        rows: Tensor,
        generator: torch.Generator,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler | None,
    ) -> tuple[float, float]:
        """Train one epoch; return the mean loss and the running accuracy.

        Of several judged levels, the mean of their scores says what is right.
        """
        network = self.network.train()
        if not self.options.train_batch_norm:
            network.tail.eval()
        loss_sum, n_correct = 0.0, 0
        batch = rows[:1]
        order = rows[torch.randperm(len(rows), generator=generator)]
        for batch in _batches(order, self.options.batch_size):
            views = torch.randint(len(self.cache.views), (len(batch),), generator=generator)
            novelty = self.cache.novelty_batch(batch, views)
            levels = self._evidence_to_train(batch, views)
            judged = levels.unbind(1) if self.options.deep_supervision else [levels.sum(1)]
            scores = [network.head.logits(evidence, novelty) for evidence in judged]
            losses = [self._loss(score, batch) for score in scores]
            loss = torch.stack(losses).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            loss_sum += loss.item() * len(batch)
            if not math.isfinite(loss_sum):
                raise self._diverged(f"The training loss became {loss.item()}.")
            logits = torch.stack(scores).detach().mean(0)
            n_correct += int((logits.argmax(1).cpu() == self.targets[batch]).sum())
        # No loss has seen the weights after the last step.
        logits, _ = predict_cached(network.eval(), self.cache, batch.numpy())
        if not logits.isfinite().all():
            raise self._diverged("The scores after training became infinite or NaN.")
        return loss_sum / len(rows), n_correct / len(rows)

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} Lower learning_rate (now {self.options.learning_rate}) or head_learning_rate."
        )

    def _evidence_to_train(self, batch: Tensor, views: Tensor) -> Tensor:
        try:
            return self.network.level_evidence(self.cache.batch(batch, views))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch_size={self.options.batch_size} leaves batch normalisation a single value, "
                "which has no spread: raise batch_size or image_size, or pass "
                "train_batch_norm=False and normalise_evidence=False."
            ) from error

    def _loss(self, logits: Tensor, batch: Tensor) -> Tensor:
        targets = self.targets[batch]
        weights = (self.class_weight[targets] * self.sample_weight[batch]).to(logits.device)
        targets = targets.to(logits.device)
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.options.label_smoothing
        )
        tiny = torch.finfo(weights.dtype).tiny  # a batch may hold ignored images alone
        return (losses * weights).sum() / weights.sum().clamp_min(tiny)

    def _record(self, fold: int, epoch: int, loss: float, accuracy: float, started: float) -> bool:
        record = {
            "fold": self.first_fold + fold,
            "epoch": epoch,
            "loss": loss,
            "train_accuracy": accuracy,
            "seconds": time.perf_counter() - started,
        }
        for name, value in record.items():
            self.history.setdefault(name, []).append(value)
        return self.on_epoch is not None and self.on_epoch(record) is True


def predict_cached(
    network: DefectCAMNetwork, cache: FeatureCache, rows: NDArray[np.intp]
) -> tuple[Tensor, Tensor]:
    """Scores and evidence of cached images as they are (first view).

    Returns
    -------
    logits : Tensor of shape (len(rows), n_classes)
    levels : Tensor of shape (len(rows), n_levels, n_classes, height, width)
    """
    outputs = []
    with torch.inference_mode():
        for batch in torch.as_tensor(rows).split(CACHE_BATCH):
            views = torch.zeros_like(batch)
            levels = network.level_evidence(cache.batch(batch, views))
            novelty = cache.novelty_batch(batch, views)
            outputs.append((network.head.logits(levels.sum(1), novelty).cpu(), levels.cpu()))
    logits, levels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return logits, levels


def update_batch_norm(
    network: DefectCAMNetwork, cache: FeatureCache, rows: NDArray[np.intp]
) -> None:
    """Measure the trained part's batch-normalisation statistics anew, on the images trained on.

    Running means follow a training of few steps too slowly: a network that learned from few images
    would answer with the statistics of the weights it started from.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = set(network.trunk.modules())
    norms = [norm for norm in norms if norm not in frozen]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    network.train()
    # Neighbouring images are often of one class: the batches must mix them.
    order = torch.as_tensor(rows)[
        torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    ]
    try:
        with torch.no_grad():
            for batch in order.tensor_split(-(-len(rows) // CACHE_BATCH)):
                network.level_evidence(cache.batch(batch, torch.zeros_like(batch)))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Split rows into batches; a single one left over joins the batch before it.

    One image on a grid of one position has no spread for batch normalisation to divide by.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _is_done(options: TrainingOptions, losses: list[float], accuracy: float) -> bool:
    limit = options.stop_at_train_accuracy
    if limit is not None and accuracy >= limit:
        return True
    best = int(np.argmin(losses))
    return options.patience is not None and len(losses) - 1 - best >= options.patience


def _make_optimizer(network: DefectCAMNetwork, options: TrainingOptions) -> torch.optim.Optimizer:
    head_rate = options.head_learning_rate
    groups = [
        {"params": list(network.tail.parameters()), "lr": options.learning_rate},
        {
            "params": list(network.head.parameters()),
            "lr": options.learning_rate if head_rate is None else head_rate,
        },
    ]
    groups = [group for group in groups if group["params"]]
    kind: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
    }
    # Torch by itself updates tensor by tensor on a processor, which takes several times as long.
    fused = True if next(network.parameters()).device.type in ("cpu", "cuda") else None
    return kind[options.optimizer](groups, weight_decay=options.weight_decay, fused=fused)


def _make_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if schedule == "constant":
        return None
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=n_steps)
