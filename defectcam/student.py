"""Students: linear heads that learn the map's own peaks, to draw what they have in common.

Owns the pseudo-labels of positions and the heads that are fitted to them. It never trains the
network, decides nothing about images, and knows no scale of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

#: Shares of a defective image's hottest value: positions above the first are taken for defective,
#: below the second for good; those between teach nothing.
DEFECTIVE_SHARE = 0.8
GOOD_SHARE = 0.2

#: Least value of the map, where 0 is a typical good pixel and 1 their limit, that is learned from.
LEAST_HEAT = 0.3

#: Most positions of each kind that the head is fitted to.
MAX_DEFECTIVE_POSITIONS = 8_000
MAX_GOOD_POSITIONS = 16_000

#: Share of the loss that the defective positions make up.
DEFECTIVE_WEIGHT = 0.25

#: Of the logistic regression, whose weights sum to one: strong enough that it repeats neither the
#: teacher's blur nor single images.
INVERSE_REGULARISATION = 4.0

#: Images whose features are computed together: all levels on the finest grid, so that a fit's peak
#: of memory would be here if they were many more.
BATCH_SIZE = 8

#: From rows of images to their features, finest first.
FeaturesOf = Callable[[Tensor], list[Tensor]]


class StudentHead(nn.Module):
    """Log-odds of a defect at each position, linear in the network's features there.

    Parameters
    ----------
    n_channels : sequence of int
        Channels of each feature level.

    Attributes
    ----------
    weight : Tensor of shape (sum of n_channels,)
    bias : Tensor of shape ()
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, n_channels: Sequence[int]) -> None:
        super().__init__()
        self.n_channels = list(n_channels)
        self.register_buffer("weight", torch.zeros(sum(n_channels), dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(0.0, dtype=torch.float32))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map of the student.

        Parameters
        ----------
        features : sequence of Tensor of shape (n, channels_i, height_i, width_i)

        Returns
        -------
        Tensor of shape (n, height, width)
            On the finest level's grid.
        """
        # Linear maps commute with up-sampling, which is cheaper on one channel than on all.
        weights = self.weight.split(self.n_channels)
        maps = [
            F.conv2d(level, weight[None, :, None, None])
            for level, weight in zip(features, weights, strict=True)
        ]
        return torch.cat(_on_one_grid(maps), dim=1).sum(1) + self.bias


def fit_students(
    features_of: FeaturesOf,
    n_levels: Sequence[int],
    maps: Tensor,
    is_defect: NDArray[np.bool_],
    random_state: int,
) -> list[StudentHead]:
    """Fit students to the peaks of the maps of training images.

    A defective image's hottest positions are taken for defective, its coldest and all of good
    images for good. A strongly regularised linear model cannot learn each image's noise, nor the
    blur that the maps have from their coarse grids: what it draws is what the peaks of many images
    have in common, where it is, on the features' own grid.

    Parameters
    ----------
    features_of : callable
        Features of some rows, each of shape ``(n, channels_i, height_i, width_i)``.
    n_levels : sequence of int
        How many of the features, from the first on, each student reads.
    maps : Tensor of shape (n_images, height, width)
        0 = a typical good pixel, 1 = their limit; from networks that have not seen the image, where
        there are such.
    is_defect : ndarray of shape (n_images,)
    random_state : int
        Seed of the sample of positions.

    Returns
    -------
    list of StudentHead
        Empty where no defective image is hot anywhere.

    References
    ----------
    Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural
    networks", ICML workshop 2013; Kolesnikov and Lampert, "Seed, expand and constrain: three
    principles for weakly-supervised image segmentation", ECCV 2016, for seeds from activation maps.
    """
    first = features_of(torch.zeros(1, dtype=torch.int64))
    size = max(tuple(level.shape[-2:]) for level in first)
    maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    rng = np.random.RandomState(random_state)
    places, is_hot, weights = _pseudo_labels(maps, torch.as_tensor(is_defect), rng)
    if not is_hot.any():
        return []
    samples = _gather(features_of, places, maps.shape)
    students = [StudentHead([level.shape[1] for level in first[:n]]) for n in n_levels]
    for student in students:
        _fit(student, samples[:, : len(student.weight)], is_hot, weights)
    return [student.to(first[0].device) for student in students]


def draw(students: Sequence[StudentHead], features: Sequence[Tensor]) -> Tensor:
    """Draw each student's map, shape ``(n, n_students, height, width)``."""
    return torch.stack([student(features[: len(student.n_channels)]) for student in students], 1)


@torch.inference_mode()
def draw_all(students: Sequence[StudentHead], features_of: FeaturesOf, n_images: int) -> Tensor:
    """Draw the maps of all images, ``(n_images, n_students, height, width)``, on the CPU."""
    rows = torch.arange(n_images).split(BATCH_SIZE)
    return torch.cat([draw(students, features_of(batch)).cpu() for batch in rows])


def _fit(
    student: StudentHead,
    samples: NDArray[np.float32],
    is_hot: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> None:
    mean, spread = samples.mean(axis=0), samples.std(axis=0)
    # Summed up in float32, many equal values have a deviation, and a mean that is another value.
    is_constant = np.ptp(samples, axis=0) == 0
    mean[is_constant], spread[is_constant] = samples[0, is_constant], 1.0
    model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=200)
    model.fit((samples - mean) / spread, is_hot, weights)
    coefficients = model.coef_[0] / spread
    student.weight.copy_(torch.from_numpy(coefficients))
    student.bias.fill_(float(model.intercept_[0] - mean @ coefficients))


def _pseudo_labels(
    maps: Tensor, is_defect: Tensor, rng: np.random.RandomState
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.float64]]:
    """Sample positions, places in the flattened maps in order; which are defective; their weights.

    Each defective image has the same say, however large its defect.
    """
    hottest = maps.amax((1, 2), keepdim=True)
    defective = is_defect[:, None, None]
    is_hot = defective & (maps > DEFECTIVE_SHARE * hottest) & (maps > LEAST_HEAT)
    is_cold = ~defective | (maps < GOOD_SHARE * hottest)
    hot = _sample(is_hot, MAX_DEFECTIVE_POSITIONS, rng)
    cold = _sample(is_cold, MAX_GOOD_POSITIONS, rng)
    n_hot_in_image = is_hot.sum((1, 2)).numpy()
    say = 1 / n_hot_in_image[hot // maps[0].numel()]
    weights = np.concatenate(
        [
            DEFECTIVE_WEIGHT * say / say.sum(),
            np.full(len(cold), (1 - DEFECTIVE_WEIGHT) / len(cold)),
        ]
    )
    places = np.concatenate([hot, cold])
    order = np.argsort(places)
    return places[order], order < len(hot), weights[order]


def _sample(chosen: Tensor, n_most: int, rng: np.random.RandomState) -> NDArray[np.intp]:
    places = np.flatnonzero(chosen.numpy())
    return rng.choice(places, n_most, replace=False) if len(places) > n_most else places


@torch.inference_mode()
def _gather(
    features_of: FeaturesOf, places: NDArray[np.intp], shape: Sequence[int]
) -> NDArray[np.float32]:
    """Features at places in the flattened maps, in order, shape ``(n_places, n_channels)``."""
    height, width = shape[-2:]
    rows, positions = np.divmod(places, height * width)
    samples = []
    for batch in torch.as_tensor(np.unique(rows)).split(BATCH_SIZE):
        first, last = np.searchsorted(rows, [int(batch[0]), int(batch[-1]) + 1])
        joined = torch.cat(_on_one_grid(features_of(batch)), dim=1).flatten(2)
        of_batch = np.searchsorted(batch.numpy(), rows[first:last])
        samples.append(joined[of_batch, :, positions[first:last]].float().cpu().numpy())
    return np.concatenate(samples)


def _on_one_grid(levels: Sequence[Tensor]) -> list[Tensor]:
    """Up-sample all levels to the grid of the finest."""
    size = max(tuple(level.shape[-2:]) for level in levels)
    return [
        level
        if tuple(level.shape[-2:]) == size
        else F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        for level in levels
    ]
