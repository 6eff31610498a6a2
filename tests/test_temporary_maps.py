from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from defectcam import temporary_maps
from defectcam.temporary_maps import temporary_map

ASKED = {"what": "The file of tiles", "remedy": "take smaller tiles"}


def test_what_is_written_is_read_again() -> None:
    values = np.frombuffer(temporary_map(8, **ASKED), dtype=np.uint8)
    values[:] = range(8)
    gc.collect()  # the array holds the map
    assert values.tolist() == list(range(8))


@pytest.mark.skipif(sys.platform == "win32", reason="open files have names there")
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    script = f"""
import os, signal
from defectcam.temporary_maps import temporary_map
temporary_map(1 << 20, **{ASKED})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve room")
def test_room_is_reserved_and_not_only_promised() -> None:
    with tempfile.TemporaryFile() as file:
        temporary_maps._reserve(file.fileno(), 2**20)
        status = os.fstat(file.fileno())
        assert status.st_size == 2**20 <= 512 * status.st_blocks
