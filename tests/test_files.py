from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from defectcam.files import check_target, check_writable, staged_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="full"):
            write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]
    with pytest.raises(FileNotFoundError, match="make the folder"):
        write_atomically(tmp_path / "no" / "a", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="whole paths are short there")
@pytest.mark.parametrize("name", ["n" * 255, "缺" * 85], ids=["latin", "cjk"])
def test_a_name_may_be_as_long_as_the_file_system_allows(name: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / name, b"new")
    with staged_folder(tmp_path / name[::-1].replace(name[0], "f")) as folder:
        (folder / name).write_text("1")
    assert (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / ("f" * len(name)) / name).read_text() == "1"


def test_a_place_that_takes_no_file_is_told_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"old")
    check_writable(tmp_path / "a")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match="make the folder"):
        check_writable(tmp_path / "no" / "a")

    def refuse(**_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*a: .*\(Permission denied\)"):
        check_writable(tmp_path / "a")


def fail(*_: object) -> None:
    raise OSError("the disk is full")


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged_folder(target, last="list") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "1").write_text("1")
        (folder / "list").write_text("1")
        assert not target.exists()
    assert names(target) == ["deep", "deep/1", "list"]
    with pytest.raises(ZeroDivisionError), staged_folder(target) as folder:
        (folder / "list").write_text("2")
        _ = 1 / 0
    assert (target / "list").read_text() == "1"
    assert names(tmp_path) == ["out", "out/deep", "out/deep/1", "out/list"]


def test_a_folder_is_left_alone_where_it_cannot_be_written(tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    target.mkdir()
    (target / "link").symlink_to(elsewhere, target_is_directory=True)
    (target / "taken").mkdir()
    for name in ("link/1", "taken"):
        with pytest.raises(OSError, match="cannot write"), staged_folder(target) as folder:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("1")
            (folder / "other").write_text("1")
    assert names(elsewhere) == []
    assert names(target) == ["link", "taken"]
    with pytest.raises(FileNotFoundError, match="make the folder"), staged_folder(target / "a/b"):
        pass


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    left = ".a.{}.tmp"  # as 0.1.0 named them
    (tmp_path / left.format("0" * 32)).write_bytes(b"half")
    (tmp_path / f".{'0' * 32}.tmp").write_bytes(b"half")
    (tmp_path / left.format("1" * 32)).mkdir()
    (tmp_path / left.format("1" * 32) / "half").write_bytes(b"half")
    others = [".a.tmp", left.format("0" * 31), "a" + left.format("0" * 32)]
    for name in others:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a", b"new")
    assert names(tmp_path) == sorted(["a", *others])


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    write_atomically(tmp_path / "a", b"old")
    with staged_folder(tmp_path / "out") as folder:
        (folder / "1").touch()
        code = "import sys; from defectcam.files import *; write_atomically(sys.argv[1], b'new')"
        subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=True)
        assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "out", "out/1"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes there")
def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "folder" / "pipe"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", "/dev/null", "/dev/stdout", "/dev/fd/1"):
        for write in (lambda p: check_target(p, True), lambda p: write_atomically(p, b"new")):
            with pytest.raises(OSError, match="it is a pipe or a device"):
                write(path)
    with pytest.raises(OSError, match="pipe"), staged_folder(pipe.parent) as folder:
        (folder / "pipe").write_text("new")
    assert pipe.is_fifo()


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "old").read_bytes() == b"old"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"


def test_a_file_below_a_file_and_a_link_to_itself_are_no_devices(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"make the folder .*a\.txt first"):
        check_target(tmp_path / "a.txt" / "x.csv", True)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert check_target(loop, True) == loop
