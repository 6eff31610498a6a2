"""Every image goes through the trunk once, and not at all where a store has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import network

from defectcam.duplicates import thumbnail
from defectcam.feature_cache import VIEWS, FeatureCache
from defectcam.feature_filling import fill_cache, preprocessed_batches
from defectcam.feature_store import FeatureStore
from defectcam.images import ImageReadError, content_hashes
from defectcam.network import DefectCAMNetwork
from defectcam.preprocess import Preprocess

N_IMAGES = 7
IMAGES = [
    np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(N_IMAGES)
]
HASHES = list(content_hashes(IMAGES))
PREPROCESS = Preprocess(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def cache() -> FeatureCache:
    return FeatureCache(N_IMAGES, VIEWS["flips"], 2**30, torch.float16, batch_size=4)


@pytest.fixture
def net() -> DefectCAMNetwork:
    return network()


@pytest.fixture
def through_trunk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of views of each pass through a trunk."""
    passes: list[int] = []
    run = DefectCAMNetwork.trunk_features

    def watched(self: DefectCAMNetwork, pixels: torch.Tensor) -> object:
        passes.append(len(pixels))
        return run(self, pixels)

    monkeypatch.setattr(DefectCAMNetwork, "trunk_features", watched)
    return passes


def assert_same(one: FeatureCache, other: FeatureCache) -> None:
    for mine, theirs in zip(one.deep, other.deep, strict=True):
        assert torch.equal(mine, theirs)


def test_batches_hold_the_images_in_order_whatever_their_size() -> None:
    batches = list(preprocessed_batches(IMAGES, PREPROCESS, 3, with_thumbnails=True))
    assert [len(pixels) for pixels, _, _ in batches] == [3, 3, 1]
    pixels = torch.cat([pixels for pixels, _, _ in batches])
    assert pixels.shape == (N_IMAGES, 3, 64, 64)
    sizes = [geometry.original_size for _, geometries, _ in batches for geometry in geometries]
    assert sizes == [image.shape[:2] for image in IMAGES]
    small = [one for _, _, thumbnails in batches for one in thumbnails]
    for one, image, row in zip(small, IMAGES, pixels, strict=True):
        np.testing.assert_array_equal(one, thumbnail(image))
        alone, _, none = next(preprocessed_batches([image], PREPROCESS, 1))
        assert torch.equal(alone[0], row) and none == []


def test_the_store_spares_the_trunk_and_changes_nothing(
    net: DefectCAMNetwork, tmp_path: Path, through_trunk: list[int]
) -> None:
    plain, first, second = cache(), cache(), cache()
    expected = fill_cache(plain, net, PREPROCESS, IMAGES)
    for small, image in zip(expected, IMAGES, strict=True):
        np.testing.assert_array_equal(small, thumbnail(image))
    store = FeatureStore(tmp_path)
    # One image has been seen before, among others.
    some = FeatureCache(1, VIEWS["flips"], 2**30, torch.float16, batch_size=4)
    fill_cache(some, net, PREPROCESS, IMAGES[3:4], store=store, hashes=HASHES[3:4])
    through_trunk.clear()
    reported: list[int] = []
    options = {"store": store, "hashes": HASHES, "report": reported.append}
    fill_cache(first, net, PREPROCESS, IMAGES, **options)
    assert len(through_trunk) == N_IMAGES - 1  # four views of an image are a batch
    assert sum(reported) == N_IMAGES
    found = fill_cache(second, net, PREPROCESS, IMAGES, **options)
    assert len(through_trunk) == N_IMAGES - 1  # none any more
    assert sum(reported) == 2 * N_IMAGES
    assert_same(first, plain)
    assert_same(second, plain)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_is_stored_belongs_to_what_was_read(net: DefectCAMNetwork, tmp_path: Path) -> None:
    """A file may change after it was hashed."""
    paths = [tmp_path / f"{i}.png" for i in range(N_IMAGES)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    before = list(content_hashes(paths))
    paths[3].write_bytes(paths[0].read_bytes())
    after, found, store = list(content_hashes(paths)), list(before), FeatureStore(tmp_path)
    filled, recalled = cache(), cache()
    fill_cache(filled, net, PREPROCESS, paths, store=store, hashes=found)
    assert store.read(before[3]) is None and found == after
    fill_cache(recalled, net, PREPROCESS, paths, store=store, hashes=found)
    assert_same(recalled, filled)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_kept(
    net: DefectCAMNetwork, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    store = FeatureStore(tmp_path / "store")
    images = [*IMAGES[:6], broken]
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        fill_cache(cache(), net, PREPROCESS, images, store=store, hashes=HASHES)
    assert store.read(HASHES[0]) is not None and store.read(HASHES[6]) is None
