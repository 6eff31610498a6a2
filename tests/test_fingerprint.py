"""The fingerprint of training data: what changes it, what does not, and where it is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import defectcam.classifier as classifier_module
from defectcam import load
from defectcam.fingerprint import Fingerprint, fingerprint
from defectcam.images import ImageReadError, content_hashes

IMAGES = np.random.default_rng(0).integers(0, 255, size=(4, 8, 8), dtype=np.uint8)
LABELS = ["good", "good", "dent", "scratch"]


def test_neither_order_nor_names_nor_places_matter(parts: Path, tmp_path: Path) -> None:
    expected = fingerprint(parts)
    assert expected.labels == {"good": 8, "scratch": 6}
    moved = tmp_path / "moved"
    shutil.copytree(parts, moved)
    (moved / "good" / "000.png").rename(moved / "good" / "zzz.png")
    assert fingerprint(moved) == expected
    paths = sorted(map(str, parts.rglob("*.png")), reverse=True)
    assert fingerprint(paths, [Path(path).parent.name for path in paths]) == expected


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_a_pixel_a_label_and_a_copy_matter(n_jobs: int) -> None:
    expected = fingerprint(IMAGES, LABELS, n_jobs=n_jobs).digest
    other = IMAGES.copy()
    other[2, 3, 4] ^= 1
    changed = [
        fingerprint(other, LABELS),
        fingerprint(IMAGES, ["good", "dent", "good", "scratch"]),
        fingerprint([*IMAGES, IMAGES[0]], [*LABELS, "good"]),
        fingerprint(IMAGES[:3], LABELS[:3]),
    ]
    assert len({expected, *(one.digest for one in changed)}) == 5
    assert all(len(one.digest) == 32 for one in changed)


def test_a_file_counts_by_its_bytes(parts: Path) -> None:
    before = fingerprint(parts)
    with (parts / "good" / "000.png").open("ab") as file:
        file.write(b"\0")  # shows the same picture
    assert fingerprint(parts).digest != before.digest


def test_parts_of_a_set_join_to_its_fingerprint() -> None:
    both = fingerprint(IMAGES[:1], LABELS[:1]).joined(fingerprint(IMAGES[1:], LABELS[1:]))
    assert both == fingerprint(IMAGES, LABELS)
    largest = Fingerprint("f" * 32, {"good": 1})
    assert largest.joined(Fingerprint(f"{1:032x}", {"dent": 2})) == (
        "0" * 32,
        {"good": 1, "dent": 2},
    )


def test_labels_may_be_numbers() -> None:
    assert fingerprint(IMAGES, np.array([0, 0, 1, 1])).labels == {"0": 2, "1": 2}


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="nowhere"):
        fingerprint([str(tmp_path / "nowhere.png")], ["good"])


def test_a_classifier_keeps_that_of_its_images(fitted, fitted_parts: Path, tmp_path: Path) -> None:
    assert fitted.training_data_ == fingerprint(fitted_parts)
    fitted.save(tmp_path / "part.safetensors")
    assert load(tmp_path / "part.safetensors").training_data_ == fitted.training_data_


def test_images_count_once_and_those_of_weight_0_not_at_all(tiny_classifier, parts: Path) -> None:
    paths = sorted(map(str, parts.rglob("*.png")))
    y = [Path(path).parent.name for path in paths]
    weights = [0, 2, *[1] * 12]
    clf = tiny_classifier(max_epochs=1).fit(paths, y, sample_weight=weights)
    assert clf.training_data_ == fingerprint(paths[1:], y[1:])


def test_learning_in_calls_gives_that_of_all_images(tiny_classifier, parts: Path) -> None:
    paths = sorted(map(str, parts.rglob("*.png")))
    y = [Path(path).parent.name for path in paths]
    clf = tiny_classifier(max_epochs=1)
    clf.partial_fit(paths[::2], y[::2]).partial_fit(paths[1::2], y[1::2])
    assert clf.training_data_ == fingerprint(paths, y)


def test_with_tiles_it_is_that_of_the_whole_images(tiny_classifier, parts: Path) -> None:
    clf = tiny_classifier(max_epochs=1, tile=32, image_size=32).fit(parts)
    assert clf.training_data_ == fingerprint(parts)


def test_each_image_is_hashed_once_for_all_that_asks(
    tiny_classifier, fitted_parts: Path, tmp_path: Path, monkeypatch
) -> None:
    hashed: list[str] = []

    def counted(sources, **options):
        given = list(sources)
        hashed.extend(given)
        return content_hashes(given, **options)

    monkeypatch.setattr(classifier_module, "content_hashes", counted)
    weights = [0.0, 2.0] + [1.0] * 12
    clf = tiny_classifier(max_epochs=1, memory=tmp_path / "features")
    clf.fit(fitted_parts, sample_weight=weights, resume=tmp_path / "fit.checkpoint")
    assert len(hashed) == len(set(hashed)) == 13
    assert sum(clf.training_data_.labels.values()) == 13


def test_an_update_names_an_unreadable_image_by_its_place_among_all(tiny_classifier) -> None:
    images = list(np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8))
    labels = np.array(["good", "dent"] * 4)
    clf = tiny_classifier(max_epochs=1, replay_size=8).fit(images, labels)
    images[3] = np.full((32, 32, 3), np.nan)
    with pytest.raises(ImageReadError, match="index 3"):
        clf.partial_fit(images, labels, sample_weight=[0.0] + [1.0] * 7)
