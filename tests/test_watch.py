"""Watching a folder: when a file is taken, what is recorded, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectcam.geometry import Geometry
from defectcam.images import ImageReadError, read_image
from defectcam.results import Localization
from defectcam.tables import result_row
from defectcam.watch import RESULTS, ResultsFileError, Tally, Watcher, stopped_by_signals


class Clock:
    """Stands in for `time` in `defectcam.watch`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("defectcam.watch.time", clock)
    return clock


def judged(path: str) -> Localization:
    """Call an image defective whose first pixel is bright."""
    image = read_image(path)
    is_defect = bool(image[0, 0, 0] > 128)
    return Localization(
        label="scratch" if is_defect else "good",
        probability=float(image[0, 0, 0]) / 255,
        is_defect=is_defect,
        grid=np.full((2, 2), 2.0 * is_defect),
        geometry=Geometry.stretch(image.shape[:2], (8, 8)),
        threshold=1.0,
        decision_threshold=0.5,
        min_area=1,
        max_boxes=None,
        merge_distance=None,
        source=path,
        good_label="good",
        defect_label="scratch",
    )


def judge(paths: Sequence[str]) -> list[Localization]:
    return [judged(path) for path in paths]


def draw(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / RESULTS).read_text().splitlines()]


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Return a folder that images arrive in."""
    (tmp_path / "line").mkdir()
    return tmp_path / "line"


def step(watcher: Watcher) -> list[str]:
    """Look once and judge what is ready; return what was ready."""
    ready = watcher.look()
    if ready:
        watcher.judge(ready)
    return [file.name for file in ready]


# --- When a file is taken ---------------------------------------------------------------------


def test_a_file_is_taken_once_it_has_settled(line: Path, tmp_path: Path, clock: Clock) -> None:
    with Watcher(line, tmp_path / "out", judge, settle=0.5) as watcher:
        assert step(watcher) == []
        draw(line / "a.png")
        assert step(watcher) == []
        clock.now += 0.4
        with (line / "a.png").open("ab") as file:  # still being written
            file.write(b"more")
        assert step(watcher) == []
        clock.now += 0.4
        assert step(watcher) == []
        clock.now += 0.2
        assert step(watcher) == ["a.png"]
        clock.now += 10
        assert step(watcher) == []
    [row] = rows_of(tmp_path / "out")
    assert row["image"] == "a.png"
    assert row["latency"] == pytest.approx(1.0)


def test_a_renamed_file_is_taken_at_first_sight_when_told_so(line: Path, tmp_path: Path) -> None:
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        shutil.move(draw(line / "a.png"), line / "a.png.tmp")
        assert step(watcher) == []
        (line / "a.png.tmp").rename(line / "a.png")
        assert step(watcher) == ["a.png"]


def test_pictures_that_are_not_read_are_told_once(line: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (line / "a.HEIC").touch()
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        assert step(watcher) == step(watcher) == []
    assert said == ["a.HEIC is left out: .heic is not read, convert it to PNG or TIFF."]


def test_what_is_no_image_and_the_output_are_left_alone(line: Path, tmp_path: Path) -> None:
    (line / "notes.txt").write_text("shift 2")
    draw(line / ".hidden.png")
    draw(line / "2024" / "b.png")
    with Watcher(line, line / "out", judge, settle=0) as watcher:
        assert step(watcher) == ["2024/b.png"]
        assert (line / "out" / "overlays" / "2024" / "b.png").is_file()
        assert step(watcher) == []


def test_overlays_are_no_images_where_the_output_is_the_watched_folder(line: Path) -> None:
    draw(line / "a.jpg")
    with Watcher(line, line, judge, settle=0) as watcher:
        assert step(watcher) == ["a.jpg"]
        assert (line / "overlays" / "a.jpg.png").is_file()
        assert step(watcher) == []


def test_no_two_images_share_an_overlay(line: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.jpg.png", "a.jpg.png.png", "a.png"):
        draw(line / name)
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        step(watcher)
    assert len({row["overlay"] for row in rows_of(tmp_path / "out")}) == 4


def test_no_overlay_stands_in_the_way_of_a_folder_of_overlays(line: Path, tmp_path: Path) -> None:
    names = ["cam/x.jpg", "cam/x.jpg.png/y.jpg", "cam/x.jpg.png.folder/y.jpg", "n.d/a.png"]
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        for name in names:
            draw(line / name)
            assert step(watcher) == [name]
    overlays = [row["overlay"] for row in rows_of(tmp_path / "out")]
    assert overlays[::3] == ["overlays/cam/x.jpg.png", "overlays/n.d/a.png"]
    assert len(set(overlays)) == 4
    assert all((tmp_path / "out" / overlay).is_file() for overlay in overlays)


def test_the_oldest_comes_first(line: Path, tmp_path: Path) -> None:
    for name, second in (("a.png", 30), ("b.png", 10), ("c.png", 20)):
        os.utime(draw(line / name), (second, second))
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        assert step(watcher) == ["b.png", "c.png", "a.png"]


def test_a_name_that_is_used_again_is_another_image(line: Path, tmp_path: Path) -> None:
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        os.utime(draw(line / "a.png", 0), (10, 10))
        step(watcher)
        os.utime(draw(line / "a.png", 255), (20, 20))
        step(watcher)
        step(watcher)
    assert [row["label"] for row in rows_of(tmp_path / "out")] == ["good", "scratch"]


def test_an_answer_about_a_file_that_changed_meanwhile_is_dropped(
    line: Path, tmp_path: Path
) -> None:
    changes = [True, False]

    def judge_and_change(paths: Sequence[str]) -> list[Localization]:
        found = judge(paths)
        if changes.pop(0):
            draw(Path(paths[0]), 255, size=(9, 9))
        return found

    draw(line / "a.png", 0)
    with Watcher(line, tmp_path / "out", judge_and_change, settle=0, overlays="none") as watcher:
        step(watcher)
        assert rows_of(tmp_path / "out") == []
        step(watcher)
    assert [row["label"] for row in rows_of(tmp_path / "out")] == ["scratch"]


def test_files_that_go_are_noticed(line: Path, tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    draw(line / "a.png")
    with Watcher(line, tmp_path / "out", judge, warn=said.append) as watcher:
        step(watcher)
        (line / "a.png").unlink()
        step(watcher)
        assert watcher.tally.n_gone == 1
    assert said == ["a.png was removed or renamed before it was judged."]


def test_a_folder_that_is_away_for_a_while_loses_nothing(line: Path, tmp_path: Path) -> None:
    said: list[str] = []
    draw(line / "a.png")
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        line.rename(tmp_path / "away")
        assert step(watcher) == step(watcher) == []
        (tmp_path / "away").rename(line)
        assert step(watcher) == ["a.png"]
    assert ["at the moment" in said[0], "again" in said[1], len(said)] == [True, True, 2]


def test_a_closed_sub_folder_keeps_no_other_waiting(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    scandir = os.scandir

    def refuse(folder: str) -> Any:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    draw(line / "closed" / "a.png")
    draw(line / "open" / "b.png")
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        assert step(watcher) == ["open/b.png"]
        assert step(watcher) == []
    assert len(said) == 1
    assert "the sub-folder closed/ is left out" in said[0]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_an_entry_that_cannot_be_looked_at_keeps_no_other_waiting(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("closed.png"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    draw(line / "a.png")
    draw(line / "closed.png")
    (line / "file.png").symlink_to(line / "a.png" / "within.png")
    (line / "long.png").symlink_to("n" * 256)
    (line / "loop.png").symlink_to("loop.png")
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        assert step(watcher) == ["a.png"]
        assert step(watcher) == []
    names = ("closed.png", "long.png", "loop.png")
    assert [sum(f"{name} is left out" in one for one in said) for name in names] == [1, 1, 1]
    assert len(said) == len(names)


def test_a_file_that_is_closed_after_it_was_judged_is_recorded(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(line / "a.png")
    stat = os.stat

    def judge_and_close(paths: Sequence[str]) -> list[Localization]:
        found = judge(paths)

        def refuse(path: Any, **options: Any) -> os.stat_result:
            if str(path).endswith("a.png") and "line" in str(path):
                raise PermissionError(13, "Permission denied", path)
            return stat(path, **options)

        monkeypatch.setattr(os, "stat", refuse)
        return found

    with Watcher(line, tmp_path / "out", judge_and_close, settle=0, overlays="none") as watcher:
        assert step(watcher) == ["a.png"]
    [row] = rows_of(tmp_path / "out")
    assert (row["image"], row["error"]) == ("a.png", None)


# --- What cannot be read ----------------------------------------------------------------------


def test_a_bad_file_is_recorded_after_a_while_and_spoils_no_other(
    line: Path, tmp_path: Path, clock: Clock
) -> None:
    draw(line / "a.png")
    (line / "b.png").write_bytes(draw(line / "b.png").read_bytes()[:40])
    (line / "c.png").write_bytes(b"")
    draw(line / "d.png", 255)
    with Watcher(line, tmp_path / "out", judge, settle=0.5, error_after=5) as watcher:
        for _ in range(8):
            step(watcher)
            clock.now += 1
        clock.now += 10
        step(watcher)
        tally = watcher.tally
    assert (tally.n_good, tally.n_defective, tally.n_errors) == (1, 1, 2)
    rows = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert list(rows) == ["a.png", "d.png", "b.png", "c.png"]
    assert [rows[name]["error"] for name in ("a.png", "d.png")] == [None, None]
    assert "b.png" in rows["b.png"]["error"]
    assert "is empty (0 bytes)" in rows["c.png"]["error"]
    assert rows["b.png"]["overlay"] is None
    assert rows["b.png"]["latency"] >= 5


def test_a_slow_file_is_not_called_bad(line: Path, tmp_path: Path, clock: Clock) -> None:
    whole = draw(line / "a.png", size=(80, 60)).read_bytes()
    (line / "a.png").write_bytes(whole[:60])
    with Watcher(line, tmp_path / "out", judge, settle=0.5, error_after=5) as watcher:
        step(watcher)
        clock.now += 1
        assert step(watcher) == ["a.png"]  # as much as there is cannot be read
        clock.now += 3
        assert step(watcher) == []
        (line / "a.png").write_bytes(whole)
        step(watcher)
        clock.now += 1
        assert step(watcher) == ["a.png"]
    [row] = rows_of(tmp_path / "out")
    assert row["error"] is None


def test_what_is_no_fault_of_the_file_ends_the_watch_and_records_nothing(
    line: Path, tmp_path: Path
) -> None:
    draw(line / "a.png")

    def without_device(paths: Sequence[str]) -> list[Localization]:
        raise RuntimeError("the device is lost")

    out = tmp_path / "out"
    with (
        pytest.raises(RuntimeError, match="lost"),
        Watcher(line, out, without_device, settle=0) as w,
    ):
        step(w)
    assert rows_of(tmp_path / "out") == []


def test_an_image_that_memory_does_not_suffice_for_keeps_no_other_waiting(
    line: Path, tmp_path: Path, clock: Clock
) -> None:
    draw(line / "a.png")
    draw(line / "huge.png")
    is_short = [True]

    def judge_in_little_memory(paths: Sequence[str]) -> list[Localization]:
        if is_short[0] and any(path.endswith("huge.png") for path in paths):
            raise MemoryError
        return judge(paths)

    said: list[str] = []
    for output, is_short_for_good in (("out", True), ("later", False)):
        is_short[0] = True
        with Watcher(
            line, tmp_path / output, judge_in_little_memory, settle=0, warn=said.append
        ) as watcher:
            assert step(watcher) == ["a.png", "huge.png"]  # tried again for a while: it may pass
            assert [row["image"] for row in rows_of(tmp_path / output)] == ["a.png"]
            clock.now += 10
            is_short[0] = is_short_for_good
            assert step(watcher) == ["huge.png"]
            assert step(watcher) == []
    assert (rows_of(tmp_path / "later")[1]["error"], len(said)) == (None, 1)
    row = rows_of(tmp_path / "out")[1]
    assert row["image"] == "huge.png"
    assert "huge.png" in row["error"] and "out of memory" in row["error"]


def test_an_overlay_that_memory_does_not_suffice_for_is_left_out(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Localization) -> Any:
        raise MemoryError

    monkeypatch.setattr(Localization, "overlay", refuse)
    draw(line / "a.png")
    said: list[str] = []
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        step(watcher)
    [row] = rows_of(tmp_path / "out")
    assert (row["label"], row["error"], row["overlay"]) == ("good", None, None)
    [sentence] = said
    assert "no overlay of a.png" in sentence and "out of memory" in sentence


# --- What is written --------------------------------------------------------------------------


def test_rows_say_what_localize_says(line: Path, tmp_path: Path) -> None:
    path = draw(line / "a.jpg", 255)
    told: list[dict[str, Any]] = []
    about = {"model": "part.safetensors"}
    with Watcher(line, tmp_path / "out", judge, settle=0, about=about, notify=told.append) as w:
        step(w)
    [row] = rows_of(tmp_path / "out")
    assert told == [row]
    expected = result_row(judged(str(path)), "a.jpg", "overlays/a.jpg.png")
    assert {key: row[key] for key in expected} == expected
    assert row["model"] == "part.safetensors"
    assert row["schema_version"] == 1
    assert row["overlay"] == "overlays/a.jpg.png"
    with Image.open(tmp_path / "out" / row["overlay"]) as overlay:
        assert overlay.size == (8, 6)
    assert (row["size"], row["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)


@pytest.mark.parametrize(("overlays", "drawn"), [("all", 2), ("defects", 1), ("none", 0)])
def test_overlays_of_the_images_that_were_asked_for(
    overlays: str, drawn: int, line: Path, tmp_path: Path
) -> None:
    draw(line / "a.png", 0)
    draw(line / "b.png", 255)
    with Watcher(line, tmp_path / "out", judge, settle=0, overlays=overlays) as watcher:
        step(watcher)
    assert len(list((tmp_path / "out").rglob("*.png"))) == drawn
    assert sum(row["overlay"] is not None for row in rows_of(tmp_path / "out")) == drawn


def test_an_image_that_goes_before_it_is_drawn_is_recorded_without_overlay(
    line: Path, tmp_path: Path
) -> None:
    def judge_and_take(paths: Sequence[str]) -> list[Localization]:
        found = judge(paths)
        os.remove(line / "a.png")
        return found

    draw(line / "a.png", 255)
    warned: list[str] = []
    with Watcher(
        line, tmp_path / "out", judge_and_take, settle=0, overlays="all", warn=warned.append
    ) as watcher:
        step(watcher)
    (row,) = rows_of(tmp_path / "out")
    assert (row["image"], row["label"], row["overlay"]) == ("a.png", "scratch", None)
    assert len(warned) == 1
    assert "no overlay" in warned[0]
    assert "a.png" in warned[0]


@pytest.mark.skipif(sys.platform == "win32", reason="whole paths are short there")
def test_an_overlay_whose_name_would_be_too_long_is_left_out(line: Path, tmp_path: Path) -> None:
    long, longest = "n" * 247 + ".jpg", "缺" * 83 + ".jpg"  # an overlay is named NAME.jpg.png
    folder = "f" * 247 + ".png"
    draw(line / long)
    draw(line / longest)
    draw(line / folder / "a.png")
    said: list[str] = []
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        step(watcher)
    rows = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert rows[long]["overlay"] == f"overlays/{long}.png"
    assert (tmp_path / "out" / rows[long]["overlay"]).is_file()
    assert [rows[name]["overlay"] for name in (longest, f"{folder}/a.png")] == [None, None]
    assert [row["label"] for row in rows.values()] == ["good"] * 3
    assert len(said) == 2 and all("no overlay" in one and "too long" in one for one in said)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_nowhere_is_no_image(line: Path, tmp_path: Path) -> None:
    (line / "a.png").symlink_to(tmp_path / "gone.png")
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        assert step(watcher) == []


def test_sub_folders_that_are_links_are_watched_once(line: Path, tmp_path: Path) -> None:
    draw(tmp_path / "camera" / "a.png")
    draw(line / "real" / "b.png")
    (tmp_path / "camera" / "back").symlink_to(line, target_is_directory=True)
    for link, target in (
        ("one", tmp_path / "camera"),
        ("two", tmp_path / "camera"),
        ("again", line / "real"),
        ("round.png", line),
        ("loop", line / "loop"),
        ("out", tmp_path / "out"),
    ):
        (line / link).symlink_to(target, target_is_directory=True)
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        assert sorted(step(watcher)) == ["one/a.png", "real/b.png"]
        assert step(watcher) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_names_that_are_no_unicode_lead_to_the_image_and_its_overlay(line, tmp_path: Path) -> None:
    draw(line / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.jpg"))
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        step(watcher)
    [row] = rows_of(tmp_path / "out")
    assert (line / row["image"]).is_file()
    assert (tmp_path / "out" / row["overlay"]).is_file()
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        assert step(watcher) == []


def test_a_restart_goes_on_and_mends_a_torn_line(line: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    draw(line / "a.png")
    draw(line / "b.png")
    with Watcher(line, out, judge, settle=0) as watcher:
        step(watcher)
    whole = (out / RESULTS).read_bytes()
    for cut in (1, 40):
        (out / RESULTS).write_bytes(whole[:-cut])  # killed while the last line was written
        left = out / "overlays" / f".{'0' * 32}.tmp"
        older = out / "overlays" / f".b.png.{'0' * 32}.tmp"  # as 0.1.0 named it
        left.write_bytes(b"half")
        older.write_bytes(b"half")
        mine = out / "overlays" / ".mine.tmp"
        mine.write_bytes(b"not ours")
        with Watcher(line, out, judge, settle=0, warn=said.append) as watcher:
            assert watcher.tally.n_known == 1
            assert (out / RESULTS).read_bytes() == whole.splitlines(keepends=True)[0]
            assert step(watcher) == ["b.png"]
        assert [row["image"] for row in rows_of(out)] == ["a.png", "b.png"]
        assert "torn line" in said.pop()
        assert not left.exists()
        assert not older.exists()
        assert mine.exists()


def test_a_line_that_is_written_in_part_is_taken_back(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(line / "a.png")
    write = os.write
    with Watcher(line, tmp_path / "out", judge, settle=0) as watcher:
        with monkeypatch.context() as patch:  # as on a full disk
            patch.setattr(os, "write", lambda file, data: write(file, data[:20]))
            with pytest.raises(OSError, match=r"results\.jsonl: only 20 of"):
                step(watcher)
        assert (tmp_path / "out" / RESULTS).read_bytes() == b""
        step(watcher)
    assert len(rows_of(tmp_path / "out")) == 1


def move_results(output: Path) -> None:
    (output / RESULTS).rename(output / "old.jsonl")


def remove_results(output: Path) -> None:
    (output / RESULTS).unlink()


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be moved there")
@pytest.mark.parametrize("away", [move_results, remove_results, shutil.rmtree])
def test_a_file_of_results_that_goes_away_is_begun_anew(
    away: Callable[[Path], None], line: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with Watcher(line, tmp_path / "out", judge, settle=0, warn=said.append) as watcher:
        for name in ("a.png", "b.png", "c.png"):
            draw(line / name)
            assert step(watcher) == [name]  # and no other again
            if name == "a.png":
                away(tmp_path / "out")
        with (
            pytest.raises(ResultsFileError, match="another watch"),
            Watcher(line, tmp_path / "out", judge),
        ):
            pass
    assert [row["image"] for row in rows_of(tmp_path / "out")] == ["b.png", "c.png"]
    assert all((tmp_path / "out" / row["overlay"]).is_file() for row in rows_of(tmp_path / "out"))
    [warning] = said
    assert "results.jsonl was moved or removed: going on in a new file" in warning


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be moved there")
def test_results_that_cannot_be_begun_anew_end_the_watch(line: Path, tmp_path: Path) -> None:
    draw(line / "a.png")
    with (
        pytest.raises(ResultsFileError, match="line 1, is no result"),
        Watcher(line, tmp_path / "out", judge, settle=0) as watcher,
    ):
        (tmp_path / "other").write_text("{}\n")
        (tmp_path / "other").replace(tmp_path / "out" / RESULTS)
        step(watcher)
    with Watcher(line, tmp_path / "new", judge):  # all is let go of
        pass


def test_two_watches_do_not_share_their_results(line: Path, tmp_path: Path) -> None:
    other = Watcher(line, tmp_path / "out", judge)
    with (
        Watcher(line, tmp_path / "out", judge),
        pytest.raises(ResultsFileError, match="another watch writes"),
    ):
        other.__enter__()
    with Watcher(line, tmp_path / "out", judge):
        pass


@pytest.mark.parametrize("content", ["hello\n", '{"image": "a.png"}\n', "[]\n"])
def test_other_files_of_results_are_refused(content: str, line: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RESULTS).write_text(content)
    for _ in range(2):  # the lock is given back
        with pytest.raises(ResultsFileError, match=r"line 1, is no result of a watch"):
            Watcher(line, tmp_path / "out", judge).__enter__()
    assert (tmp_path / "out" / RESULTS).read_text() == content


@pytest.mark.parametrize(
    "wrong", [{"overlays": "some"}, {"settle": -1}, {"poll": float("inf")}, {"batch_size": 0}]
)
def test_wrong_parameters_are_named(wrong: dict[str, Any], line: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Watcher(line, tmp_path / "out", judge, **wrong)


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="does not exist"):
        Watcher(tmp_path / "none", tmp_path / "out", judge)


# --- Running, stopping, being killed ----------------------------------------------------------


def test_run_reports_and_stops(line: Path, tmp_path: Path) -> None:
    stop, reports = threading.Event(), []

    def notify(row: dict[str, Any]) -> None:
        if row["image"] == "last.png":
            stop.set()

    for name in ("a.png", "b.png", "last.png"):
        draw(line / name)
        os.utime(line / name, (10, 10))
    with Watcher(
        line, tmp_path / "out", judge, settle=0.05, poll=0.01, batch_size=2, notify=notify
    ) as watcher:
        tally = watcher.run(stop, lambda tally: reports.append(str(tally)), report_every=0)
    assert tally.n_done == tally.n_good == 3
    assert tally.n_waiting == 0
    assert tally.rate > 0
    assert tally.latency_median is not None
    assert 0.05 <= tally.latency_median <= (tally.latency_p95 or 0)
    assert reports and "good" in reports[0]
    assert json.loads(json.dumps(tally.to_dict()))["n_good"] == 3
    assert "none judged yet" in str(Tally())


def test_signals_set_the_event_and_a_second_interrupt_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopped_by_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


WATCH = """
import sys
sys.path.insert(0, sys.argv[3])
from test_watch import judge
from defectcam.watch import Watcher, stopped_by_signals
with stopped_by_signals() as stop, Watcher(
    sys.argv[1], sys.argv[2], judge, settle=0.05, error_after=0.1, poll=0.01, batch_size=3
) as watcher:
    watcher.run(stop)
"""


def started(line: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WATCH, line, output, Path(__file__).parent]
    return subprocess.Popen(list(map(str, command)))


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def n_lines(output: Path) -> int:
    results = output / RESULTS
    return results.read_bytes().count(b"\n") if results.exists() else 0


def test_no_image_is_lost_or_repeated_when_the_process_is_killed(
    line: Path, tmp_path: Path
) -> None:
    output, n_images = tmp_path / "out", 60
    bad = {f"{number:03d}.png" for number in range(0, n_images, 20)}
    process = started(line, output)
    try:
        for number in range(n_images):
            arriving = draw(tmp_path / "arriving" / f"{number:03d}.png", 255 * (number % 2))
            if arriving.name in bad:
                arriving.write_bytes(arriving.read_bytes()[:40])
            arriving.rename(line / arriving.name)
            if number in (20, 40):
                wait_for(lambda number=number: n_lines(output) > number // 2)
                process.kill()
                process.wait()
                process = started(line, output)
        wait_for(lambda: n_lines(output) >= n_images)
        process.terminate()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    rows = rows_of(output)
    assert sorted(row["image"] for row in rows) == [f"{n:03d}.png" for n in range(n_images)]
    assert {row["image"] for row in rows if row["error"]} == bad
    for row in rows:
        if not row["error"]:
            assert row["is_defect"] == bool(int(row["image"][:3]) % 2)
            with Image.open(output / row["overlay"]) as overlay:
                overlay.load()
    assert [p.name for p in output.rglob("*.tmp")] == []
