"""Many images on Ray: rows as the plain loop makes them, each once, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from sklearn.model_selection import GridSearchCV

from defectcam import DefectCAMClassifier, distributed
from defectcam.distributed import MANIFEST, Localizer
from defectcam.persistence import ModelFileError, read_digest
from defectcam.tables import SCHEMA_VERSION, error_row, result_row


@pytest.fixture(scope="module")
def model(fitted: DefectCAMClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "part.safetensors"
    fitted.save(path)
    return path


@pytest.fixture
def paths(fitted_parts: Path, tmp_path: Path) -> list[str]:
    """Return six images, of which the fourth is cut off and the fifth is not there."""
    kept = sorted(str(path) for path in fitted_parts.rglob("*.png"))[5:9]
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(kept[0]).read_bytes()[:200])
    return [*kept[:3], str(broken), str(tmp_path / "missing.png"), kept[3]]


def plain_rows(clf: DefectCAMClassifier, paths: list[str]) -> list[dict[str, Any]]:
    """Make the rows one image after the other."""
    rows = []
    for path in paths:
        try:
            rows.append({**result_row(clf.localize(path)), "error": None})
        except ValueError as error:
            rows.append(error_row(str(error), path))
    return rows


def assert_same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare tables up to the rounding of sums, which depends on an image's neighbours."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        theirs = {name: theirs.get(name) for name in ours}
        for numbers in ("probability", "box_scores"):
            if theirs[numbers] is not None:
                theirs[numbers] = pytest.approx(theirs[numbers], abs=1e-4)
        assert ours == theirs


# --- Without Ray ------------------------------------------------------------------------------


def test_a_worker_gives_an_unreadable_image_a_row_that_says_why(fitted, model, paths) -> None:
    table = Localizer(model)({"image": np.array(paths)})
    rows = table.to_pylist()
    assert_same_rows(rows, plain_rows(fitted, paths))
    assert [row["error"] is not None for row in rows] == [False] * 3 + [True] * 2 + [False]
    assert "missing.png" in rows[4]["error"] and rows[4]["label"] is None
    assert {row["schema_version"] for row in rows} == {SCHEMA_VERSION}


def test_a_worker_takes_the_files_themselves(fitted, model, paths) -> None:
    there = [path for path in paths if Path(path).exists()]
    content = np.array([Path(path).read_bytes() for path in there], dtype=object)
    names = [f"s3://bucket/{i}.png" for i in range(len(there))]
    rows = Localizer(model.read_bytes())({"image": names, "bytes": content}).to_pylist()
    assert [row.pop("image") for row in rows] == names
    expected = plain_rows(fitted, there)
    assert rows[3].pop("error").startswith("'s3://bucket/3.png' ")
    assert expected[3].pop("error")
    assert_same_rows(rows, expected)


class Killed(BaseException):
    """The process dies."""


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_missing_path_is_called_missing(fitted, model, paths, missing) -> None:
    worker = Localizer(model)
    [gone, row] = worker.rows_of([missing, paths[0]])
    assert gone["image"] is None and "path is missing" in gone["error"]
    assert_same_rows([row], plain_rows(fitted, paths[:1]))
    [named] = worker.rows_of([missing], [Path(paths[0]).read_bytes()])
    assert named["image"] == "0"


def test_an_image_that_kills_its_workers_is_left_out(model, paths, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(distributed, "_ray", lambda: SimpleNamespace(get=Path.read_bytes))
    worker = distributed._PartWriter(model, str(tmp_path), "/", n_jobs=1, device="cpu")
    clf, deadly = worker._clf, paths[1]

    def localize_iter(asked: list[str]) -> Iterator[Any]:
        if deadly in asked:
            raise Killed
        return clf.localize_iter(asked)

    fake = SimpleNamespace(localize_iter=localize_iter, batch_size=4)
    monkeypatch.setattr(worker, "_clf", fake)
    part = {"part": np.array([3]), "names": np.array([json.dumps(paths)])}
    for _ in range(4):
        with pytest.raises(Killed):
            worker(part)
    assert worker(part)["counts"].tolist()[0][::2] == [6, 3]
    rows = parquet.read_table(tmp_path / "part-000003.parquet").to_pylist()
    assert "2 workers died of it" in rows[1]["error"]
    others = [0, 2, 3, 4, 5]
    assert_same_rows([rows[i] for i in others], plain_rows(clf, [paths[i] for i in others]))
    assert [path.name for path in tmp_path.glob("*part*")] == ["part-000003.parquet"]


@pytest.mark.parametrize("begun", ["", "begun\n0\n1\nbegun\n0\n1\n2\n"])
@pytest.mark.parametrize("is_note", [False, True])
def test_no_image_is_blamed_for_a_place_that_cannot_be_written(
    model, paths, tmp_path, monkeypatch, begun, is_note
) -> None:
    monkeypatch.setattr(distributed, "_ray", lambda: SimpleNamespace(get=Path.read_bytes))
    worker = distributed._PartWriter(model, str(tmp_path), "/", n_jobs=1, device="cpu")
    part = {"part": np.array([3]), "names": np.array([json.dumps(paths)])}
    attempts = tmp_path / ".part-000003.attempts"
    attempts.write_text(begun)

    def full(place: Path, mode: Any, **_: Any) -> Any:
        if mode == "r":
            return open(place, encoding="utf-8")
        with open(place, "a") as file:
            file.write("1")  # as much as there is room for
        raise OSError(28, "No space left on device")

    for _ in range(5):
        with monkeypatch.context() as patch:
            if is_note:
                patch.setattr(Path, "open", full)
            else:
                patch.setattr(distributed, "write_atomically", full)
            with pytest.raises(OSError, match=r"No space left on device.*part-000003") as caught:
                worker(part)
        assert caught.value.errno == 28 and "\n" not in str(caught.value)
        assert attempts.read_text() == begun
    assert worker(part)["counts"].tolist()[0][::2] == [6, 2]
    rows = parquet.read_table(tmp_path / "part-000003.parquet").to_pylist()
    assert_same_rows(rows, plain_rows(worker._clf, paths))


def test_memory_that_runs_out_is_an_error_of_the_image(model, paths, monkeypatch) -> None:
    worker = Localizer(model)

    def localize_iter(asked: list[str]) -> list[Any]:
        raise MemoryError

    monkeypatch.setattr(worker, "_clf", SimpleNamespace(localize_iter=localize_iter, batch_size=4))
    assert {row["error"] for row in worker.rows(paths, paths)} == {"out of memory"}


def test_two_files_of_one_classifier_have_one_digest(fitted, model, tmp_path) -> None:
    fitted.save(tmp_path / "again.safetensors")
    assert read_digest(tmp_path / "again.safetensors") == read_digest(model)


def test_without_ray_the_extra_is_named(monkeypatch, model, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'defectcam\[ray\]'"):
        distributed.localize(["a.png"], model, output=tmp_path / "out")


# --- With Ray ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Start Ray with two processors; nothing of it is left afterwards."""
    ray = pytest.importorskip("ray", reason="needs pip install 'defectcam[ray]'")
    folder = tempfile.mkdtemp(prefix="ray")  # sockets, whose paths must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            num_cpus=2,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield ray
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def workers() -> list[int]:
    """List the processes of this Ray's workers that write parts."""
    parents, found = {}, []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", process, "cmdline").read_text()
            status = Path("/proc", process, "status").read_text()
        except OSError:  # it has just ended
            continue
        parents[int(process)] = int(status.split("PPid:")[1].split()[0])
        if command.startswith("ray::") and "_PartWriter" in command:
            found.append(int(process))

    def is_ours(process: int) -> bool:
        while process and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return [process for process in found if is_ours(process)]


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """Kill a worker by SIGKILL once two parts are there."""
    until = time.monotonic() + 120
    while len(list(folder.glob("part-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    killed += workers()[:1]
    for process in killed:
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for workers in /proc")
def test_no_image_is_lost_or_doubled_when_a_worker_is_killed(
    ray, fitted, model, paths, tmp_path
) -> None:
    many, expected = sorted(paths * 25), []
    for row in sorted(plain_rows(fitted, paths), key=lambda row: row["image"]):
        expected += [row] * 25
    output, killed = tmp_path / "found", []
    killer = threading.Thread(target=kill_a_worker, args=(output, killed), daemon=True)
    killer.start()
    done = distributed.localize(many, model, output=output, part_size=5)
    killer.join()
    assert killed
    n_defective = sum(row.get("is_defect", False) for row in expected)
    assert done[:5] == (150, n_defective, 50, 30, 0)
    files = sorted(path.name for path in output.iterdir())
    assert files == [MANIFEST, *(f"part-{number:06d}.parquet" for number in range(30))]
    assert_same_rows(parquet.read_table(output).to_pylist(), expected)

    (output / "part-000007.parquet").unlink()
    listed = [{"image": path} for path in reversed(many)]
    dataset = ray.data.from_items(listed, override_num_blocks=1)
    again = distributed.localize(dataset, fitted, output=output, part_size=5)
    assert (again.n_images, again.n_parts, again.n_parts_before) == (5, 1, 29)
    assert_same_rows(parquet.read_table(output).to_pylist(), expected)


def test_a_folder_of_other_results_is_refused(ray, model, paths, tmp_path) -> None:
    output = tmp_path / "found"
    output.mkdir()
    (output / MANIFEST).write_text(json.dumps({"n_images": 6}))
    with pytest.raises(FileExistsError, match="with other images, part_size, model"):
        distributed.localize(paths, model, output=output)
    (output / MANIFEST).rename(output / "notes.txt")
    with pytest.raises(FileExistsError, match="is not empty"):
        distributed.localize(paths, model, output=output)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"part_size": 0}, ValueError, "part_size must be at least 1, got 0"),
        ({"n_workers": 0}, ValueError, "n_workers must be at least 1, got 0"),
        ({"cpus_per_worker": 64}, ValueError, "64 processors and 0 GPUs, and the cluster has 2"),
        ({"images": [np.zeros((8, 8))]}, TypeError, "images holds a ndarray: expected paths"),
        ({"output": "s3://bucket/found"}, ValueError, "a folder that all workers can write to"),
        ({"model": __file__}, ModelFileError, "test_distributed.py"),
    ],
)
def test_wrong_parameters_are_refused(ray, model, paths, tmp_path, change, error, message) -> None:
    given = {"images": paths, "model": model, "output": tmp_path / "found", **change}
    with pytest.raises(error, match=message):
        distributed.localize(given.pop("images"), given.pop("model"), **given)


@pytest.mark.slow
def test_a_search_runs_on_ray(ray, tiny_classifier, fitted_parts) -> None:
    from joblib import parallel_config
    from ray.util.joblib import register_ray

    paths = sorted(str(path) for path in fitted_parts.rglob("*.png"))
    y = [Path(path).parent.name for path in paths]
    search = GridSearchCV(
        tiny_classifier(cv=None, max_epochs=1), {"pooling": ["top_k", "average"]}, cv=2
    )
    here = search.fit(paths, y).cv_results_["mean_test_score"]
    register_ray()
    with parallel_config("ray", n_jobs=2):
        there = search.fit(paths, y).cv_results_["mean_test_score"]
    assert there.tolist() == here.tolist()
