"""What is kept of an image comes back whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch

from defectcam.feature_store import FeatureStore, StoredImage, folder_of_memory
from defectcam.network import TrunkFeatures


def some_image(seed: int = 0, *, with_patches: bool = True) -> StoredImage:
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float16))

    deep = [values(4, 8, 6, 5), values(4, 16, 3, 2)]
    patches = values(6, 12, 10) if with_patches else None
    thumbnail = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    return StoredImage(TrunkFeatures(deep, patches), thumbnail)


def assert_same(found: StoredImage | None, expected: StoredImage) -> None:
    assert found is not None
    assert len(found.features.deep) == len(expected.features.deep)
    for mine, theirs in zip(found.features.deep, expected.features.deep, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if expected.features.patches is None:
        assert found.features.patches is None
    else:
        assert torch.equal(found.features.patches, expected.features.patches)
    np.testing.assert_array_equal(found.thumbnail, expected.thumbnail)


@pytest.mark.parametrize("with_patches", [True, False])
def test_what_is_written_is_read(tmp_path: Path, with_patches: bool) -> None:
    store = FeatureStore(tmp_path / "a" / "b")
    assert store.read("0a") is None
    store.write("0a", some_image(with_patches=with_patches))
    assert_same(store.read("0a"), some_image(with_patches=with_patches))
    assert store.read("0b") is None


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.write("0a", some_image())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in (0, 20, 40, len(whole) // 2, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1
        file.write_bytes(broken)
        assert store.read("0a") is None
        file.write_bytes(whole[:place])
        assert store.read("0a") is None
    file.write_bytes(whole)
    assert_same(store.read("0a"), some_image())


def test_a_reader_beside_writers_sees_whole_files_only(tmp_path: Path) -> None:
    images = [some_image(seed) for seed in (1, 2)]
    FeatureStore(tmp_path).write("0a", images[0])

    def write(image: StoredImage) -> None:
        store = FeatureStore(tmp_path)
        for _ in range(20):
            store.write("0a", image)

    writers = [threading.Thread(target=write, args=(image,)) for image in images]
    for writer in writers:
        writer.start()
    n_seen = 0
    while n_seen == 0 or any(writer.is_alive() for writer in writers):
        found = FeatureStore(tmp_path).read("0a")
        assert found is not None
        matching = [i for i in images if (i.thumbnail == found.thumbnail).all()]
        assert_same(found, matching[0])
        n_seen += 1
    for writer in writers:
        writer.join()
    assert [file.name for file in tmp_path.iterdir()] == ["0a.features"]


@pytest.mark.parametrize("make", [str, Path, joblib.Memory])
def test_a_memory_is_what_a_pipeline_takes(tmp_path: Path, make: Any) -> None:
    memory = make(tmp_path, verbose=0) if make is joblib.Memory else make(tmp_path)
    folder = folder_of_memory(memory)
    assert folder is not None and tmp_path in folder.parents


@pytest.mark.parametrize("memory", [None, joblib.Memory(None)])
def test_a_memory_without_a_place_keeps_nothing(memory: Any) -> None:
    assert folder_of_memory(memory) is None


def test_clearing_the_memory_removes_the_features(tmp_path: Path) -> None:
    memory = joblib.Memory(str(tmp_path), verbose=0)
    folder = folder_of_memory(memory)
    assert folder is not None
    store = FeatureStore(folder / "kind")
    store.write("0a", some_image())
    memory.clear(warn=False)
    assert store.read("0a") is None


def test_what_is_no_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="same interface as joblib"):
        folder_of_memory(5)
