"""Has the line changed? Compares what the network sees on new images with training's.

Owns the statistics by which images are compared, the tests and the result. It runs no network and
decides nothing about single images: an image unlike all others is `Localization.unfamiliar`.

An image is described by its evidence and by its map of novelty: how high it rises, where it mostly
lies, how far it is spread, and where in the image it is. Light, focus and another product move the
level and the spread, a moved camera or part the place. Images that are called good are compared
with training images that are called good, and defective ones with defective ones: more defects are
no drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

__all__ = [
    "STATISTICS",
    "Drift",
    "DriftTest",
    "check_drift_options",
    "describe_images",
    "measure_drift",
]

#: What images are compared by, in the order of the columns of a reference, after the probability.
STATISTICS = (
    "evidence",
    "novelty, peak",
    "novelty, level",
    "novelty, spread",
    "novelty, from left",
    "novelty, from top",
)

#: Fewest images, on each side, of which a test is made.
FEWEST = 8

#: What is no change of the line: shifts, in interquartile ranges, and factors by which
#: distributions may differ. A test takes those that speak least for a change. Evidence may differ
#: more: the folds' networks, which judged the training images, have seen less than the final one.
SHIFTS = (-0.25, 0.0, 0.25)
FACTORS = (0.85, 1.0, 1 / 0.85)
EVIDENCE_SHIFTS = (-0.5, -0.25, 0.0, 0.25, 0.5)
EVIDENCE_FACTORS = (0.75, 1.0, 1 / 0.75)

#: Quantiles of a map between which it is said to be spread.
_LOW, _HIGH = 0.1, 0.9


class DriftTest(NamedTuple):
    """One comparison.

    Attributes
    ----------
    statistic : str
        One of `STATISTICS`.
    called : {"good", "defective"}
        Which images were compared.
    distance : float
        Of the two distributions, the largest difference between their cumulative shares (the
        Kolmogorov-Smirnov statistic), from 0 to 1, after the shift and the factor that are no
        change, see `SHIFTS`.
    shift : float
        How much higher the new median is, in interquartile ranges of training.
    p_value : float
        Of this test alone.
    """

    statistic: str
    called: str
    distance: float
    shift: float
    p_value: float


@dataclass(frozen=True)
class Drift:
    """Whether new images differ from training's, how, and which show it best.

    Made by `DefectCAMClassifier.drift`; ``print`` it for a report.

    Attributes
    ----------
    drifted : bool
        Whether `p_value` is below `alpha`.
    p_value : float
        The probability of at least one test as clear as the clearest, if nothing has changed: its
        p-value times the number of tests (Bonferroni), at most 1.
    alpha : float
        Accepted share of false alarms.
    tests : tuple of DriftTest
        The clearest first.
    n_images, n_reference : int
        How many images were compared with how many.
    defective, defective_reference : float
        Share of the images that are called defective, and that of the training images. No test of
        it is made: more defects are no drift.
    examples : tuple of int
        Indices of the images that stand out most in the clearest test.
    """

    drifted: bool
    p_value: float
    alpha: float
    tests: tuple[DriftTest, ...]
    n_images: int
    n_reference: int
    defective: float
    defective_reference: float
    examples: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as plain numbers, strings and lists, ready for JSON."""
        tests = [test._asdict() for test in self.tests]
        return {**vars(self), "tests": tests, "examples": list(self.examples)}

    def __str__(self) -> str:
        verdict = "The line has changed" if self.drifted else "No change to be seen"
        lines = [
            f"{verdict}: p = {self.p_value:.2g} (limit {self.alpha:g}), {self.n_images} images "
            f"against {self.n_reference} of training",
            f"called defective: {self.defective:.1%}, in training {self.defective_reference:.1%}",
            "",
            f"{'statistic':<20}{'called':<12}{'distance':>8}{'shift':>8}{'p':>10}",
        ]
        lines += [
            f"{test.statistic:<20}{test.called:<12}{test.distance:>8.2f}{test.shift:>+8.2f}"
            f"{test.p_value:>10.2g}"
            for test in self.tests
        ]
        if self.drifted:
            shown = ", ".join(map(str, self.examples))
            lines += ["", f"look at the images with the indices {shown}"]
        return "\n".join(lines)


def describe_images(
    scores: NDArray[np.float64], novelty: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Describe images by what drift is looked for in.

    Parameters
    ----------
    scores : ndarray of shape (n_images, 1 or 2)
        Log-odds of a defect and, if novelty counts, its peak.
    novelty : ndarray of shape (n_images, height, width) or None

    Returns
    -------
    ndarray of shape (n_images, n_statistics)
        A column for each of `STATISTICS`; without novelty the first alone.
    """
    if novelty is None:
        return scores[:, :1].astype(np.float32)
    flat = novelty.reshape(len(novelty), -1)
    low, level, high = np.quantile(flat, [_LOW, 0.5, _HIGH], axis=1)
    mass = (novelty - flat.min(axis=1)[:, None, None]) ** 2  # what is calm counts for nothing
    total = np.maximum(mass.sum(axis=(1, 2)), np.finfo(np.float32).tiny)
    y, x = ((np.arange(n) + 0.5) / n for n in novelty.shape[1:])
    from_left, from_top = mass.sum(axis=1) @ x / total, mass.sum(axis=2) @ y / total
    columns = [scores[:, 0], flat.max(axis=1), level, high - low, from_left, from_top]
    return np.column_stack(columns).astype(np.float32)


def check_drift_options(alpha: float, n_examples: int) -> None:
    """Refuse options of `measure_drift`, before images are read for it.

    Raises
    ------
    ValueError
        If `alpha` is not a share, or `n_examples` no number of images.
    """
    if not (isinstance(alpha, Real) and 0 < alpha < 1):
        raise ValueError(f"alpha={alpha!r}: a share between 0 and 1 was expected.")
    if not (isinstance(n_examples, Integral) and n_examples >= 0):
        raise ValueError(f"n_examples={n_examples!r}: a whole number of images was expected.")


def measure_drift(
    reference: NDArray[np.float32],
    new: NDArray[np.float32],
    threshold: float,
    *,
    alpha: float = 0.05,
    n_examples: int = 5,
) -> Drift:
    """Compare new images with training's.

    Parameters
    ----------
    reference, new : ndarray of shape (n_images, 1 + n_statistics)
        The probability of a defect, then what `describe_images` says.
    threshold : float
        Probability at and above which an image is called defective.
    alpha : float, default=0.05
        Accepted share of false alarms, over all tests together.
    n_examples : int, default=5

    Returns
    -------
    Drift

    Raises
    ------
    ValueError
        If neither good nor defective images are enough, on both sides, for a test; or `alpha` is
        not a share, or `n_examples` no number of images.

    References
    ----------
    Two-sample test of Kolmogorov and Smirnov, `scipy.stats.ks_2samp`; that univariate tests with
    Bonferroni's correction on a classifier's outputs detect shift well: Rabanser, Günnemann and
    Lipton, "Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift", NeurIPS
    2019.
    """
    check_drift_options(alpha, n_examples)
    tests, outliers = [], []
    is_bad, was_bad = new[:, 0] >= threshold, reference[:, 0] >= threshold
    for called, rows, reference_rows in (
        ("good", np.flatnonzero(~is_bad), np.flatnonzero(~was_bad)),
        ("defective", np.flatnonzero(is_bad), np.flatnonzero(was_bad)),
    ):
        if min(len(rows), len(reference_rows)) < FEWEST:
            continue
        for column, statistic in enumerate(STATISTICS[: new.shape[1] - 1], start=1):
            values, known = new[rows, column], reference[reference_rows, column]
            test, outlying = _compared(statistic, called, values, known)
            tests.append(test)
            outliers.append(rows[outlying])
    if not tests:
        images = "1 image is" if len(new) == 1 else f"{len(new)} images are"
        raise ValueError(
            f"{images} too few to be compared with {len(reference)} of training: at "
            f"least {FEWEST} that are called good, or as many that are called defective, are "
            "needed on both sides."
        )
    order = sorted(range(len(tests)), key=lambda k: (tests[k].p_value, -tests[k].distance))
    p_value = min(1.0, len(tests) * tests[order[0]].p_value)
    return Drift(
        drifted=p_value < alpha,
        p_value=p_value,
        alpha=alpha,
        tests=tuple(tests[k] for k in order),
        n_images=len(new),
        n_reference=len(reference),
        defective=float(is_bad.mean()),
        defective_reference=float(was_bad.mean()),
        examples=tuple(outliers[order[0]][:n_examples].tolist()),
    )


def _compared(
    statistic: str, called: str, values: NDArray[np.float32], known: NDArray[np.float32]
) -> tuple[DriftTest, NDArray[np.intp]]:
    """Compare one statistic; with the order of the new values, those that stand out most first."""
    low, typical, high = np.quantile(known, [0.25, 0.5, 0.75])
    spread = max(float(high - low), float(np.finfo(np.float32).eps))
    shift = float(np.median(values) - typical) / spread
    is_evidence = statistic == STATISTICS[0]
    distance, p_value = _tolerant_test(
        values,
        known,
        typical,
        spread,
        EVIDENCE_SHIFTS if is_evidence else SHIFTS,
        EVIDENCE_FACTORS if is_evidence else FACTORS,
    )
    test = DriftTest(statistic, called, float(distance), shift, float(p_value))
    return test, np.argsort(-np.abs(values - typical), kind="stable")


def _tolerant_test(
    values: NDArray[np.float32],
    known: NDArray[np.float32],
    typical: float,
    spread: float,
    shifts: Sequence[float],
    factors: Sequence[float],
) -> tuple[float, float]:
    """Compare up to a small shift and factor: distance and p-value of the nearest distribution."""
    found = [
        ks_2samp(typical + factor * (values - typical) + shift * spread, known)
        for factor in factors
        for shift in shifts
    ]
    return max(((one.statistic, one.pvalue) for one in found), key=lambda pair: pair[1])
