"""The fingerprint of training data: which images, under which labels, a model has learned from.

Owns what is hashed, and how fingerprints of several days become one. An auditor who has the images
can make it again; it says nothing of them to those who have not. It knows no classifier.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectcam.images import content_hashes
from defectcam.labels import as_labels
from defectcam.plain_labels import plain_label
from defectcam.sources import labelled_sources

__all__ = ["Fingerprint", "fingerprint", "fingerprint_of_rows"]

_BITS = 128


class Fingerprint(NamedTuple):
    """What identifies labelled images.

    Attributes
    ----------
    digest : str
        32 hexadecimal digits: the sum, modulo 2**128, of a hash for each image and its label. So
        neither order, names nor places matter, and what was learned in several calls has the
        fingerprint of all of it together. It notices accidents; against people who want two sets to
        look alike, a sum is no protection.
    labels : dict of str to int
        How many images of each label there are.
    """

    digest: str
    labels: dict[str, int]

    def joined(self, other: Fingerprint) -> Fingerprint:
        """Give the fingerprint of both sets together.

        Parameters
        ----------
        other : Fingerprint

        Returns
        -------
        Fingerprint
        """
        total = int(self.digest, 16) + int(other.digest, 16)
        return Fingerprint(_digits(total), dict(Counter(self.labels) + Counter(other.labels)))


def fingerprint(
    X: Any, y: ArrayLike | None = None, *, good_label: Any = None, n_jobs: int | None = None
) -> Fingerprint:
    """Make the fingerprint of labelled images, to compare with ``clf.training_data_``.

    Parameters
    ----------
    X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        As `DefectCAMClassifier.fit` takes it.
    y : array-like of shape (n,), optional
        Labels; left out when ``X`` is a folder with one sub-folder per class.
    good_label : label, optional
        What good parts are called, if it is not found by name.
    n_jobs : int, optional
        Threads that read.

    Returns
    -------
    Fingerprint

    Raises
    ------
    ImageReadError
        If an image cannot be read; it is named.
    ValueError
        If the labels do not fit the images.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.zeros((3, 8, 8), dtype=np.uint8)
    >>> fingerprint(images, ["good", "good", "dent"]).labels
    {'good': 2, 'dent': 1}
    """
    sources, labels = labelled_sources(X, y, good_label)
    hashes = list(content_hashes(sources.items, n_workers=n_jobs))
    return fingerprint_of_rows(hashes, as_labels(labels), np.arange(len(hashes)))


def fingerprint_of_rows(
    hashes: Sequence[str], labels: NDArray[Any], rows: NDArray[np.intp]
) -> Fingerprint:
    """Make the fingerprint of images that are hashed already, each counted once.

    Parameters
    ----------
    hashes : sequence of str
        One per row, as `defectcam.images.content_hashes` gives them.
    labels : ndarray of shape (n_rows,)
    rows : ndarray of shape (n_rows,)
        Which image each row is; one that counts more has several rows.

    Returns
    -------
    Fingerprint
    """
    _, first = np.unique(rows, return_index=True)
    named = [str(plain_label(label)) for label in labels[first].tolist()]
    total = 0
    for image, label in zip((hashes[i] for i in first), named, strict=True):
        pair = hashlib.blake2b(f"{image} {label}".encode(), digest_size=_BITS // 8)
        total += int.from_bytes(pair.digest(), "big")
    return Fingerprint(_digits(total), dict(Counter(named)))


def _digits(total: int) -> str:
    return f"{total % 2**_BITS:0{_BITS // 4}x}"
