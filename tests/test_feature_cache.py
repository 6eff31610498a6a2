"""The cache of trunk features: its values, where they lie, and what is left of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import N_IMAGES, filled, network, pixels

from defectcam import temporary_maps
from defectcam.feature_cache import VIEWS, FeatureCache
from defectcam.network import TrunkFeatures

# --- What it holds ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2**30, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_cache_holds_what_the_trunk_gives_for_each_view(budget, dtype):
    net = network()
    with filled(net, "flips", budget=budget, dtype=dtype) as cache:
        for view, dims in enumerate(VIEWS["flips"]):
            flipped = pixels().flip(dims) if dims else pixels()
            with torch.no_grad():
                expected = net.trunk_features(flipped).deep
            rows = torch.tensor([5, 0, 3])
            found = cache.batch(rows, torch.full((3,), view))
            assert len(found) == len(expected) == 2
            tolerance = 1e-5 if dtype == torch.float32 else 2e-3
            for mine, level in zip(found, expected, strict=True):
                assert mine.dtype == torch.float32
                assert mine.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(mine, level[rows], atol=tolerance, rtol=tolerance)


def test_views_can_be_mixed_in_a_batch():
    with filled(network(), "horizontal_flip") as cache:
        rows = torch.tensor([2, 2])
        mixed = cache.batch(rows, torch.tensor([0, 1]))[0]
        plain, flipped = (cache.batch(rows[:1], torch.tensor([view]))[0] for view in (0, 1))
        assert torch.equal(mixed, torch.cat([plain, flipped]))
        assert not torch.equal(plain, flipped)


@pytest.mark.parametrize("views", ["none", "flips"])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 16])
def test_features_are_the_same_bits_in_any_company(views, batch_size):
    net = network()
    settings = {"budget": 2**30, "dtype": torch.float32, "batch_size": batch_size}
    caches = [FeatureCache(N_IMAGES, VIEWS[views], **settings) for _ in range(3)]
    caches[0].fill(net, pixels().split(batch_size))
    caches[1].fill(net, pixels()[[5]].split(batch_size), [5])
    rest: list[int] = []
    caches[1].fill(net, pixels()[[3, 0, 4, 1, 2]].split(batch_size), [3, 0, 4, 1, 2], rest.extend)
    assert rest == [3, 0, 4, 1, 2]
    for row in reversed(range(N_IMAGES)):
        caches[2].put(row, caches[1].image(row))
    for cache in caches[1:]:
        for mine, level in zip(cache.deep, caches[0].deep, strict=True):
            assert torch.equal(mine, level)


# --- Where it lies ------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the temporary files that are opened from now on."""
    opened: list[Any] = []
    make = tempfile.TemporaryFile

    def temporary_file(**options: Any) -> Any:
        opened.append(make(**options))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    return opened


def test_a_large_cache_lies_in_temporary_files(files):
    net = network()
    with filled(net, "flips") as in_memory, filled(net, "flips", budget=0) as in_file:
        assert len(files) == 2
        for mine, other in zip(in_file.deep, in_memory.deep, strict=True):
            assert torch.equal(mine, other)


def test_a_cache_within_its_budget_needs_no_file(files):
    net = network()
    size = sum(level.nbytes for level in filled(net).deep)
    filled(net, budget=size)
    assert not files
    filled(net, budget=size - 1)
    assert files


@pytest.mark.skipif(os.name == "nt", reason="there the file is deleted when it is closed")
def test_its_files_have_no_name_that_a_killed_process_could_leave(tmp_path):
    script = """
import os, signal, torch
from defectcam.feature_cache import FeatureCache
cache = FeatureCache(2, ((),), 0, torch.float32)
cache._keep(torch.arange(2), [torch.ones(2, 1, 3, 4, 4)], None)
assert float(cache.deep[0].sum()) == 96
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    of_torch = "_remote_module_non_scriptable.py"  # written when it is imported, before 2.8
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != of_torch]
    assert left == []


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted otherwise there")
def test_a_cache_in_a_file_takes_no_memory():
    """Pages that were read or written once would else stay until the system needs them."""
    n_images, n_bytes = 64, 2**20

    def resident() -> int:
        n_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return n_pages * os.sysconf("SC_PAGESIZE")

    with FeatureCache(n_images, ((),), 0, torch.float32) as cache:
        one = torch.ones(1, 1, 1, 512, 512)
        before = resident()
        for row in range(n_images):
            cache.put(row, TrunkFeatures([one[0] * row], None))
        for row in range(n_images):
            assert cache.batch(torch.tensor([row]), torch.tensor([0]))[0][0, 0, 0, 0] == row
        assert resident() - before < n_images * n_bytes / 4


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch, tmp_path):
    def reserve(descriptor: int, n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(temporary_maps, "_reserve", reserve)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(
        OSError, match=r"needs 0.00 GB .*No space left.*TMPDIR.*image_size"
    ) as error:
        filled(network(), budget=0)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path)
