"""The web service: equal answers, refusals in place of crashes, and no request lost."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi import checks as openapi_checks

from defectcam import DefectCAMClassifier, Localization, cli, cli_options, load
from defectcam.geometry import Geometry
from defectcam.images import read_image
from defectcam.runtime import Inspector
from defectcam.service import ServiceSettings, create_app, load_model
from defectcam.service.batching import Batcher, ClosedError
from defectcam.service.models import ModelStore
from defectcam.service.server import _listening

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged files

SECONDS = 20  # that a test waits for what must come, before it fails


class StubModel:
    """Calls every readable image defective with probability `answer`; waits for `gate` first."""

    def __init__(self, answer: float = 0.75, batch_size: int = 4) -> None:
        self.answer = answer
        self.batch_size = batch_size
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def localize(self, X: Sequence[Any]) -> list[Localization]:
        self.batches.append(len(X))
        self.entered.set()
        assert self.gate.wait(SECONDS)
        return [self._found(source) for source in X]

    def _found(self, source: Any) -> Localization:
        size = read_image(source).shape[:2]
        grid = np.zeros((4, 4), dtype=np.float32)
        grid[1, 2] = 3
        return Localization(
            label="scratch",
            probability=self.answer,
            is_defect=True,
            grid=grid,
            geometry=Geometry.stretch(size, (32, 32)),
            threshold=1.0,
            decision_threshold=0.5,
            min_area=1,
            max_boxes=None,
            merge_distance=None,
            source=source,
            good_label="good",
            defect_label="scratch",
        )


def encoded(format: str = "PNG", size: tuple[int, int] = (48, 40), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


PNG = encoded()


def stub_app(
    tmp_path: Path, model: StubModel | None = None, **options: Any
) -> tuple[FastAPI, StubModel]:
    model = model or StubModel()
    path = tmp_path / "part.stub"
    path.touch()
    settings = ServiceSettings(reload_interval=0, **options)
    return create_app({"part": path}, settings, load=lambda _: model), model


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of a service with a stub, whose own errors are answers, not exceptions."""
    app, _ = stub_app(tmp_path, max_body_bytes=200_000, max_pixels=10_000)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def model_file(fitted: DefectCAMClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "part.safetensors"
    fitted.save(path)
    return path


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[tuple[str, int, uvicorn.Server]]:
    """Run a real server on loopback; at the end, as at a signal, it finishes and stops."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=10))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield "127.0.0.1", port, server
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


def wait_for(is_so: Callable[[], Any]) -> None:
    until = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.005)


def plain(found: Localization, **more: Any) -> dict[str, Any]:
    return {**found.to_dict(), "source": None, "model": "part", **more}


# --- Answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["raw", "image type", "form", "json", "data url"])
def test_each_kind_of_body_gives_the_answer_of_localize(
    model_file: Path, fitted_parts: Path, encoding: str
) -> None:
    path = fitted_parts / "scratch" / "000.png"
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    body: dict[str, Any] = {
        "raw": {"content": data},
        "image type": {"content": data, "headers": {"Content-Type": "image/png"}},
        "form": {"files": {"image": ("000.png", data, "image/png")}},
        "json": {"json": {"image": text, "source": "000.png"}},
        "data url": {"json": {"image": f"data:image/png;base64,{text}"}},
    }[encoding]
    with TestClient(create_app({"part": model_file})) as client:
        answer = client.post("/localize", **body)
    assert answer.status_code == 200
    name = "000.png" if encoding in ("form", "json") else None
    assert answer.json() == plain(load(model_file).localize(path), source=name)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"size": (400, 600), "quality": 90}),  # decoded at a fraction of its size
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
    ],
)
def test_files_are_read_as_localize_reads_files(
    model_file: Path, tmp_path: Path, format: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(format, **options))
    with TestClient(create_app({"part": model_file})) as client:
        answer = client.post("/localize", content=path.read_bytes())
    assert answer.json() == plain(load(model_file).localize(path))


def test_many_requests_at_once_get_each_its_own_answer(
    model_file: Path, fitted_parts: Path
) -> None:
    paths = sorted(fitted_parts.rglob("*.png"))
    with (
        TestClient(create_app({"part": model_file}, ServiceSettings(batch_wait=0.05))) as client,
        ThreadPoolExecutor(len(paths)) as pool,
    ):
        answers = list(
            pool.map(lambda p: client.post("/localize", content=p.read_bytes()).json(), paths)
        )
        sizes = client.get("/metrics").text
    for answer, found in zip(answers, load(model_file).localize(paths), strict=True):
        assert answer["probability"] == pytest.approx(found.probability, abs=1e-5)
        assert answer["boxes"] == found.boxes.tolist()
        assert answer["label"] == found.label
    assert f'defectcam_batch_images_sum{{model="part"}} {len(paths)}.0' in sizes
    n_batches = float(re.search(r"defectcam_batch_images_count\S+ (\S+)", sizes).group(1))
    assert n_batches < len(paths)


def test_overlay_and_heatmap_are_those_of_the_localization(
    model_file: Path, fitted_parts: Path
) -> None:
    path = fitted_parts / "scratch" / "001.png"
    found = load(model_file).localize(path)
    with TestClient(create_app({"part": model_file})) as client:
        address = "/localize?include=overlay&include=heatmap"
        answer = client.post(address, content=path.read_bytes()).json()
    overlay = Image.open(io.BytesIO(base64.b64decode(answer["overlay"])))
    assert overlay.format == "PNG"
    np.testing.assert_array_equal(np.asarray(overlay), found.overlay())
    heatmap = np.load(io.BytesIO(base64.b64decode(answer["heatmap"])), allow_pickle=False)
    np.testing.assert_array_equal(heatmap, found.heatmap)


def test_models_answer_by_name_and_the_first_by_default(tmp_path: Path) -> None:
    answers = {"front": 0.6, "back.v2": 0.9}
    for name in answers:
        (tmp_path / name).touch()
    app = create_app(
        {name: tmp_path / name for name in answers},
        load=lambda path: StubModel(answers[path.name]),
    )
    with TestClient(app) as client:
        for name, probability in answers.items():
            answer = client.post(f"/models/{name}/localize", content=PNG).json()
            assert (answer["model"], answer["probability"]) == (name, probability)
        assert client.post("/localize", content=PNG).json()["model"] == "front"
        missing = client.post("/models/left/localize", content=PNG)
        assert missing.status_code == 404
        assert "front, back.v2" in missing.json()["detail"]
        health = client.get("/health").json()
        assert list(health["models"]) == list(answers)
        assert health["default_model"] == "front"


def test_an_application_can_be_started_again(tmp_path: Path) -> None:
    app, _ = stub_app(tmp_path)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.post("/localize", content=PNG).status_code == 200


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=\"?(https?:)?//", page.text)
    assert "innerHTML" not in page.text  # labels and messages are text, never markup


@pytest.mark.parametrize("address", ["/localize", "/models/part/localize"])
def test_an_unknown_parameter_is_named(address: str, client: TestClient) -> None:
    answer = client.post(f"{address}?threshold=0.2&include=overlay", content=PNG)
    assert answer.status_code == 422
    said = "query threshold: there is no such parameter; there is: include"
    assert answer.json() == {"detail": said}
    assert 'defectcam_requests_total{model="part",status="422"} 1.0' in client.get("/metrics").text


def test_figures_count_answers_and_refusals(client: TestClient) -> None:
    client.post("/localize", content=PNG)
    client.post("/localize", content=b"no image")
    client.post("/models/none/localize", content=PNG)
    figures = client.get("/metrics").text
    for line in (
        'defectcam_requests_total{model="part",status="200"} 1.0',
        'defectcam_requests_total{model="part",status="422"} 1.0',
        'defectcam_requests_total{model="-",status="404"} 1.0',
        'defectcam_images_total{is_defect="true",model="part"} 1.0',
        "defectcam_requests_in_progress 0.0",
        "defectcam_queue_length 0.0",
    ):
        assert line in figures


def test_figures_count_what_never_came_to_an_image_too(tmp_path: Path) -> None:
    app, _ = stub_app(tmp_path, token="secret")
    with TestClient(app) as client:
        for address in ("/localize", "/models/part/localize", "/models/none/localize"):
            assert client.post(address, content=PNG).status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.post("/localize?include=pixels", content=PNG).status_code == 422
        figures = client.get("/metrics").text
    for line in (
        'defectcam_requests_total{model="part",status="401"} 2.0',
        'defectcam_requests_total{model="-",status="401"} 1.0',
        'defectcam_requests_total{model="part",status="422"} 1.0',
    ):
        assert line in figures


@pytest.mark.parametrize("extra", ["overlay", "heatmap"])
def test_large_images_are_not_sent_back(tmp_path: Path, extra: str) -> None:
    app, model = stub_app(tmp_path, max_included_pixels=48 * 40)
    large = encoded(size=(49, 40))
    with TestClient(app) as client:
        assert client.post(f"/localize?include={extra}", content=PNG).status_code == 200
        assert client.post("/localize", content=large).status_code == 200
        answer = client.post(f"/localize?include={extra}", content=large)
    assert answer.status_code == 413
    assert answer.json()["detail"] == (
        "the image has 49 x 40 pixels; at most 1920 pixels are taken. Ask without ?include=, or "
        "send it smaller."
    )
    assert model.batches == [1, 1]  # by its header alone


# --- Refusals ---------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(side: int, announced: int | None = None) -> bytes:
    """Return a small file of many pixels, or one that only announces them."""
    size = side if announced is None else announced
    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 1 + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_with_huge_text() -> bytes:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    return PNG[:33] + text + PNG[33:]


HOSTILE: dict[str, tuple[int, bytes]] = {
    "empty": (422, b""),
    "text": (422, b"hello"),
    "svg": (422, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "postscript": (
        422,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage",
    ),
    "archive": (422, b"PK\x03\x04" + bytes(100)),
    "gzipped image": (422, gzip.compress(PNG)),
    "png signature alone": (422, PNG[:8]),
    "png cut off": (422, PNG[: len(PNG) // 2]),
    "jpeg cut off": (422, encoded("JPEG")[:400]),
    "jpeg header alone": (422, encoded("JPEG")[:200]),
    "gif cut off": (422, encoded("GIF")[:900]),
    "tiff cut off": (422, encoded("TIFF")[:3000]),
    "tiff that points nowhere": (422, b"II*\0\xff\xff\xff\x7f"),
    "tiff that points to itself": (422, b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0"),
    "webp cut off": (422, encoded("WEBP")[:60]),
    "ppm of no size": (422, b"P6 0 0 255\n"),
    "ppm of negative size": (422, b"P6 -5 4 255\n"),
    "png of no size": (422, png_of_zeros(8, announced=0)),
    "many pixels in few bytes": (413, png_of_zeros(4000)),
    "pixels beyond Pillow's limit": (413, png_of_zeros(8, announced=2**24)),
    "unpacking metadata": (422, png_with_huge_text()),
    "bytes beyond the limit": (413, bytes(200_001)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_are_refused_and_the_next_is_answered(client: TestClient, case: str) -> None:
    status, body = HOSTILE[case]
    answer = client.post("/localize", content=body)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert os.sep + "defectcam-" not in answer.text  # no path of the server's
    assert client.post("/localize", content=PNG).status_code == 200


def nested(depth: int) -> bytes:
    return b'{"image":' + b"[" * depth + b"]" * depth + b"}"


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
JSON = {"Content-Type": "application/json"}
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (422, JSON, b""),
        (422, JSON, b"{"),
        (422, JSON, b"null"),
        (422, JSON, b"[]"),
        (422, JSON, b'{"image": 7}'),
        (422, JSON, b'{"image": ""}'),
        (422, JSON, b'{"image": "data:"}'),
        (422, JSON, b'{"image": "\xff"}'),
        (422, JSON, b'{"image": "a"}'),
        (422, JSON, b'{"image": "\\u00e9\\u00e9\\u00e9\\u00e9"}'),
        (422, JSON, b'{"image": "AAAA", "source": "\\ud800"}'),
        (422, JSON, b'{"image": "AAAA", "more": 1}'),
        (422, JSON, b'{"image": ' + b"9" * 10_000 + b"}"),
        (422, JSON, nested(50_000)),
        (422, {"Content-Type": "multipart/form-data"}, PART + PNG + b"\r\n--b--\r\n"),
        (422, FORM, b""),
        (422, FORM, b"--b--\r\n"),
        (422, FORM, PART),
        (422, FORM, PART.replace(b'name="image"; ', b"") + PNG + b"\r\n--b--\r\n"),
        (422, FORM, PART.replace(b'; filename="a"', b"") + b"text\r\n--b--\r\n"),
        (422, FORM, PART.replace(b"image", b"other") + PNG + b"\r\n--b--\r\n"),
        (422, FORM, PART + PNG + b"\r\n" + PART + PNG + b"\r\n--b--\r\n"),
        (422, {"Content-Type": b"multipart/form-data; boundary=\xff"}, PART + PNG),
        (422, {"Content-Type": "multipart/form-data; boundary=b; charset=none"}, PART + b"\xff"),
        (415, {"Content-Type": "text/plain"}, PNG),
        (415, {"Content-Type": "application/x-www-form-urlencoded"}, b"image=1"),
        (415, {"Content-Encoding": "gzip"}, gzip.compress(PNG)),
        (400, {"Content-Length": "many"}, PNG),
    ],
)
def test_malformed_bodies_are_refused(
    client: TestClient, status: int, headers: dict[str, Any], body: bytes
) -> None:
    answer = client.post("/localize", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert client.post("/localize", content=PNG).status_code == 200


@pytest.mark.parametrize("head", ["", "data:image/png;base64,\n"])
def test_base64_may_have_line_breaks(client: TestClient, head: str) -> None:
    text = head + base64.encodebytes(PNG).decode().replace("\n", "\r\n")
    answer = client.post("/localize", json={"image": text})
    assert answer.status_code == 200, answer.text
    assert answer.json()["image_size"] == [48, 40]


def test_a_body_without_a_length_is_counted_as_it_comes(client: TestClient) -> None:
    answer = client.post("/localize", content=(bytes(10_000) for _ in range(21)))
    assert answer.status_code == 413
    assert "200000 bytes" in answer.json()["detail"]


def test_an_odd_file_name_comes_back_as_text(client: TestClient) -> None:
    name = "../../Ä\u202e<script>" + "x" * 400
    answer = client.post("/localize", files={"image": (name, PNG)})
    assert answer.status_code == 200
    assert len(answer.json()["source"]) == 255


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    format=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM"]),
    changes=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=4),
    length=st.floats(0.1, 1),
)
def test_damaged_files_never_break_the_service(
    client: TestClient, format: str, changes: list[tuple[int, int]], length: float
) -> None:
    data = bytearray(encoded(format))
    for place, value in changes:
        data[place % len(data)] = value
    answer = client.post("/localize", content=bytes(data[: round(length * len(data))]))
    assert answer.status_code in (200, 413, 422), answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic c2VjcmV0"}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
    ],
)
def test_with_a_token_only_its_bearer_is_answered(
    tmp_path: Path, headers: dict[str, Any], status: int
) -> None:
    app, _ = stub_app(tmp_path, token="secret")
    with TestClient(app) as client:
        for answer in (
            client.post("/localize", content=PNG, headers=headers),
            client.post("/models/part/localize", content=PNG, headers=headers),
            client.get("/metrics", headers=headers),
        ):
            assert answer.status_code == status
            assert ("www-authenticate" in answer.headers) == (status == 401)
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200
    assert "secret" not in repr(app.state.service.settings)


def test_a_full_queue_sends_requests_away_until_there_is_room(tmp_path: Path) -> None:
    app, model = stub_app(tmp_path, queue_size=2)
    model.gate.clear()
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/localize", content=PNG) for _ in range(2)]
        wait_for(lambda: app.state.service.in_progress == 2)
        refused = client.post("/localize", content=PNG)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        model.gate.set()
        assert [answer.result(SECONDS).status_code for answer in waiting] == [200, 200]
        assert client.post("/localize", content=PNG).status_code == 200


def test_what_takes_too_long_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    app, model = stub_app(tmp_path, request_timeout=0.2)
    model.gate.clear()
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        working = pool.submit(client.post, "/localize", content=PNG)
        assert model.entered.wait(SECONDS)
        queued = pool.submit(client.post, "/localize", content=PNG)
        for late in (working, queued):
            answer = late.result(SECONDS)
            assert (answer.status_code, list(answer.json())) == (504, ["detail"])
        model.gate.set()
        assert client.post("/localize", content=PNG).status_code == 200
        assert model.batches == [1, 1]  # the one that waited was not worked on for nobody
        wait_for(lambda: not list(app.state.service.folder.iterdir()))


def test_an_image_that_is_still_being_kept_at_the_time_out_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(data: bytes, max_pixels: int) -> None:
        time.sleep(0.4)

    monkeypatch.setattr("defectcam.service.app.check_header", slow)
    app, _ = stub_app(tmp_path, request_timeout=0.1)
    with TestClient(app) as client:
        assert client.post("/localize", content=PNG).status_code == 504
        time.sleep(0.5)
        assert not list(app.state.service.folder.iterdir())


def test_an_error_of_the_model_is_a_500_without_its_words(tmp_path: Path) -> None:
    class Broken(StubModel):
        def _found(self, source: Any) -> Localization:
            raise RuntimeError("secret of the house")

    app, _ = stub_app(tmp_path, Broken())
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/localize", content=PNG)
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_no_room_on_the_disk_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = stub_app(tmp_path)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with TestClient(app) as client:
        monkeypatch.setattr(Path, "write_bytes", full)
        assert client.post("/localize", content=PNG).status_code == 503


# --- Batches ----------------------------------------------------------------------------------


def gated_batcher(size: int = 3) -> tuple[Batcher[str, int, int], list[Any], threading.Event]:
    batches: list[Any] = []
    gate = threading.Event()

    def run(key: str, items: list[int]) -> list[int | Exception]:
        batches.append((key, items))
        assert gate.wait(SECONDS)
        return [ValueError(item) if item < 0 else 10 * item for item in items]

    return Batcher(run, batch_size=lambda key: size, wait=0), batches, gate


def test_what_waits_is_worked_on_together_by_key_and_in_order() -> None:
    batcher, batches, gate = gated_batcher()
    batcher.start()
    first = batcher.submit("a", 0)
    wait_for(lambda: batches)
    rest = [batcher.submit(key, n) for n, key in enumerate("abaaba", start=1)]
    gate.set()
    assert first.result(SECONDS) == 0
    assert [future.result(SECONDS) for future in rest] == [10, 20, 30, 40, 50, 60]
    assert batches == [("a", [0]), ("a", [1, 3, 4]), ("b", [2, 5]), ("a", [6])]
    batcher.close()


def test_the_first_of_a_batch_waits_for_others_but_not_long() -> None:
    batches = []

    def run(key: str, items: list[int]) -> list[int]:
        batches.append(items)
        return items

    batcher: Batcher[str, int, int] = Batcher(run, batch_size=lambda key: 2, wait=0.2)
    batcher.start()
    futures = [batcher.submit("a", n) for n in range(3)]
    assert [future.result(SECONDS) for future in futures] == [0, 1, 2]
    assert batches == [[0, 1], [2]]
    batcher.close()


def test_errors_and_cancellations_stay_with_their_own_item() -> None:
    batcher, batches, gate = gated_batcher()
    batcher.start()
    batcher.submit("a", 0)
    wait_for(lambda: batches)
    bad, cancelled, good = (batcher.submit("a", n) for n in (-1, 2, 3))
    assert cancelled.cancel()
    gate.set()
    assert good.result(SECONDS) == 30
    with pytest.raises(ValueError, match="-1"):
        bad.result(SECONDS)
    assert batches[1] == ("a", [-1, 3])
    batcher.close()


def test_closing_finishes_the_queue_and_takes_no_more() -> None:
    batcher, batches, gate = gated_batcher()
    batcher.start()
    futures = [batcher.submit("a", n) for n in range(7)]
    wait_for(lambda: batches)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.set()
    closing.join(SECONDS)
    assert [future.result(0) for future in futures] == [10 * n for n in range(7)]
    with pytest.raises(ClosedError):
        batcher.submit("a", 1)


def test_a_failing_batch_does_not_end_the_thread() -> None:
    batcher: Batcher[str, int, int] = Batcher(
        lambda key, items: [1 // items[0]], batch_size=lambda key: 1, wait=0
    )
    batcher.start()
    failing: Future[int] = batcher.submit("a", 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(SECONDS)
    assert batcher.submit("a", 1).result(SECONDS) == 1
    batcher.close()


def test_a_damaged_image_spoils_no_other_of_its_batch(tmp_path: Path) -> None:
    app, model = stub_app(tmp_path)
    bodies = [PNG, PNG[: len(PNG) // 2], PNG, PNG]
    model.gate.clear()
    with TestClient(app) as client, ThreadPoolExecutor(5) as pool:
        first = pool.submit(client.post, "/localize", content=PNG)
        assert model.entered.wait(SECONDS)
        rest = [pool.submit(client.post, "/localize", content=body) for body in bodies]
        wait_for(lambda: len(app.state.service.batcher) == len(bodies))
        model.gate.set()
        assert first.result(SECONDS).status_code == 200
        answers = [answer.result(SECONDS) for answer in rest]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 200]
    assert "the image cannot be read, it may be damaged" in answers[1].json()["detail"]
    assert model.batches[:2] == [1, 4]


# --- Models and their files -------------------------------------------------------------------


def test_the_suffix_decides_what_loads_a_file(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = SimpleNamespace(Inspector=lambda path, **options: ("inspector", path, options))
    monkeypatch.setitem(sys.modules, "defectcam.runtime", runtime)
    for name in ("part.onnx", "part.xml"):
        exported = tmp_path / name
        exported.touch()
        assert load_model(exported, n_jobs=2) == ("inspector", exported, {"n_jobs": 2})
    clf = load_model(model_file, batch_size=3, n_jobs=1)
    assert isinstance(clf, DefectCAMClassifier)
    assert (clf.batch_size, clf.n_jobs, clf.verbose) == (3, 1, 0)
    with pytest.raises(FileNotFoundError, match=r"no\.onnx"):
        load_model(tmp_path / "no.onnx")


@pytest.mark.slow
@pytest.mark.usefixtures("torch_writes_onnx")
@pytest.mark.parametrize("name", ["part.onnx", "part.xml"])
def test_an_exported_model_is_served_as_its_runtime_answers(
    fitted: DefectCAMClassifier, fitted_parts: Path, tmp_path: Path, name: str
) -> None:
    fitted.export(tmp_path / name)
    path = fitted_parts / "scratch" / "002.png"
    with TestClient(create_app({"part": tmp_path / name})) as client:
        answer = client.post("/localize", content=path.read_bytes())
    assert answer.json() == plain(Inspector(tmp_path / name).localize(path))


def test_a_file_that_is_no_exported_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"broken")
    assert cli.main(["serve", str(broken)]) == 3
    assert "broken.onnx" in capsys.readouterr().err


def touch(path: Path, text: str) -> None:
    """Replace the file by another, as `save` does."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)


def store_of(path: Path) -> tuple[ModelStore, list[Any]]:
    told: list[Any] = []

    def read(path: Path) -> StubModel:
        return StubModel(float(path.read_text()))

    return ModelStore({"part": path}, read, lambda name, done: told.append((name, done))), told


def test_a_changed_file_takes_over_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "part"
    touch(path, "0.5")
    store, told = store_of(path)
    store.reload_changed()
    store.reload_changed()
    assert store.default.n_reloads == 0
    touch(path, "0.75")
    store.reload_changed()
    assert store.default.model.answer == 0.5  # it might still grow
    store.reload_changed()
    assert store.default.model.answer == 0.75
    assert (store.default.n_reloads, told) == (1, [("part", True)])


def test_the_weights_of_an_openvino_model_may_arrive_after_its_graph(tmp_path: Path) -> None:
    path, weights = tmp_path / "part.xml", tmp_path / "part.bin"
    path.write_text("graph")
    touch(weights, "0.5")
    store = ModelStore({"part": path}, lambda path: StubModel(float(weights.read_text())))
    path.write_text("the new graph")
    touch(weights, "0.")
    weights.write_text("half")
    for _ in range(3):
        store.reload_changed()
    assert store.default.model.answer == 0.5 and store.default.reload_error
    touch(weights, "0.75")
    for _ in range(2):
        store.reload_changed()
    assert store.default.model.answer == 0.75 and store.default.reload_error is None


def test_a_broken_file_does_not_take_over(tmp_path: Path) -> None:
    path = tmp_path / "part"
    touch(path, "0.5")
    store, told = store_of(path)
    for text in ("broken", "7"):  # cannot be loaded; loads, but gives no probability
        touch(path, text)
        for _ in range(4):  # tried once
            store.reload_changed()
        assert store.default.model.answer == 0.5
        assert store.default.reload_error
    assert told == [("part", False)] * 2
    path.unlink()
    store.reload_changed()
    touch(path, "0.25")
    for _ in range(2):
        store.reload_changed()
    assert store.default.model.answer == 0.25
    assert store.default.reload_error is None


def test_a_file_that_comes_back_is_the_one_that_answers(tmp_path: Path) -> None:
    path, aside, broken = tmp_path / "part", tmp_path / "aside", tmp_path / "broken"
    touch(path, "0.5")
    store, told = store_of(path)
    path.rename(aside)
    touch(path, "broken")
    for _ in range(2):
        store.reload_changed()
    assert store.default.reload_error
    path.rename(broken)
    aside.rename(path)
    store.reload_changed()
    assert store.default.reload_error  # it might still change
    store.reload_changed()
    assert store.default.reload_error is None
    assert (store.default.model.answer, told) == (0.5, [("part", False)])
    broken.replace(path)  # once more: it is not the one that answers, whatever was said of it
    for _ in range(2):
        store.reload_changed()
    assert store.default.reload_error
    assert told == [("part", False)] * 2


@pytest.mark.parametrize("paths", [{}, {"a/b": "x"}, {"": "x"}, {"..": "x"}])
def test_names_that_are_no_addresses_are_refused(paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="model"):
        ModelStore(paths, lambda path: StubModel())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue_size", 0),
        ("max_body_bytes", 1.5),
        ("max_pixels", -1),
        ("max_included_pixels", 0),
        ("body_timeout", 0),
        ("request_timeout", float("inf")),
        ("batch_wait", -1),
        ("reload_interval", float("nan")),
        ("token", ""),
        ("token", "ü"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        ServiceSettings(**{name: value})


# --- A real server ----------------------------------------------------------------------------


def test_slow_and_broken_connections_are_ended_and_others_answered(tmp_path: Path) -> None:
    app, _ = stub_app(tmp_path, body_timeout=0.3, max_body_bytes=10_000)
    head = b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with listening(app) as (host, port, _):
        with socket.create_connection((host, port), SECONDS) as slow:
            slow.sendall(head + b"x")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
            assert slow.recv(1000).endswith(b"}") or slow.recv(1) == b""
        with socket.create_connection((host, port), SECONDS) as cut:
            cut.sendall(head + b"x")
        with socket.create_connection((host, port), SECONDS) as large:
            large.sendall(head.replace(b"1000", b"10001") + b"x")
            assert large.recv(1000).startswith(b"HTTP/1.1 413 ")
        with socket.create_connection((host, port), SECONDS) as nonsense:
            nonsense.sendall(b"\x16\x03\x01\x02\x00" + bytes(64) + b"\r\n\r\n")
            assert nonsense.recv(1000).startswith(b"HTTP/1.1 400 ")
        answer = httpx2.post(f"http://{host}:{port}/localize", content=PNG)
        assert answer.status_code == 200
        wait_for(lambda: app.state.service.in_progress == 0)


def test_at_the_end_all_that_was_taken_on_is_answered(tmp_path: Path) -> None:
    app, model = stub_app(tmp_path)
    model.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        with listening(app) as (host, port, server):
            address = f"http://{host}:{port}/localize"
            waiting = [pool.submit(httpx2.post, address, content=PNG) for _ in range(9)]
            wait_for(lambda: app.state.service.in_progress == 9)
            server.should_exit = True
            time.sleep(0.3)
            assert not any(answer.done() for answer in waiting)
            model.gate.set()
        assert [answer.result(SECONDS).status_code for answer in waiting] == [200] * 9
    with pytest.raises(httpx2.ConnectError):
        httpx2.post(address, content=PNG)
    assert not app.state.service.folder.exists()


def test_a_new_model_file_under_load_loses_no_request(
    model_file: Path, fitted_parts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "part.safetensors"
    clf = load(model_file)
    clf.save(path)
    image = (fitted_parts / "scratch" / "000.png").read_bytes()
    app = create_app({"part": path}, ServiceSettings(reload_interval=0.05))
    thresholds: list[float] = []
    stop = threading.Event()

    def ask(address: str) -> list[int]:
        statuses = []
        with httpx2.Client(timeout=SECONDS) as client:
            while not stop.is_set():
                answer = client.post(address, content=image)
                statuses.append(answer.status_code)
                thresholds.append(answer.json()["decision_threshold"])
        return statuses

    with listening(app) as (host, port, _), ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, f"http://{host}:{port}/localize") for _ in range(4)]
        try:
            for number in (1, 2, 3):
                clf.threshold_ = number / 10
                clf.save(path)
                wait_for(lambda: thresholds and thresholds[-1] == clf.threshold_)
                path.with_name("broken").write_bytes(b"broken")
                os.replace(path.with_name("broken"), path)
                wait_for(lambda: app.state.service.store.default.reload_error)
        finally:
            stop.set()
        statuses = [status for asked in asking for status in asked.result(SECONDS)]
    assert app.state.service.store.default.n_reloads == 3
    assert set(statuses) == {200}
    assert thresholds[-1] == 0.3


def start_command(*arguments: str | Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start `defectcam serve` on a free port and return what it says of itself."""
    command = [sys.executable, "-m", "defectcam", "serve", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            return process, json.loads(text)
    raise AssertionError(f"the service did not start: {process.communicate()[1]}")


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_the_command_answers_and_ends_in_order_at_a_signal(
    model_file: Path, fitted_parts: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    process, said = start_command(model_file, f"b={model_file}", "--token-file", token)
    address = said["address"]
    try:
        assert said["models"] == ["part", "b"]
        image = (fitted_parts / "good" / "000.png").read_bytes()
        headers = {"Authorization": "Bearer secret"}
        for path in ("localize", "models/b/localize"):
            answer = httpx2.post(
                f"{address}/{path}", content=image, headers=headers, timeout=SECONDS
            )
            assert answer.status_code == 200
        assert httpx2.post(f"{address}/localize", content=image).status_code == 401
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "Application shutdown complete" in log


# --- The command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.safetensors"], 3, "missing.safetensors"),
        (["a/part.safetensors", "b/part.safetensors"], 2, "two models are called 'part'"),
        (["{model}", "--queue-size", "0"], 2, "queue_size"),
        (["{model}", "--batch-size", "0"], 2, "--batch-size 0"),
        (["{model}", "--token-file", "missing"], 3, "missing"),
        (["a b={model}"], 2, "NAME=MODEL"),
        (["{model}", "--device", "abacus"], 2, "abacus"),
        (["{model}", "--port", "70000"], 2, "--port 70000"),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    model_file: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    arguments = [argument.format(model=model_file) for argument in arguments]
    assert cli.main(["serve", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_is_sent_at_once_on_a_connection_that_stays_open(host: str) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with (
        _listening(host, 0) as listener,
        socket.create_connection(listener.getsockname()[:2], SECONDS),
    ):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_named(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", str(model_file), "--port", port]) == 3
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("defectcam.service")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert cli.main(["serve", str(model_file)]) == 2
    assert "defectcam[serve]" in capsys.readouterr().err


def test_the_service_itself_loads_no_torch() -> None:
    code = "import sys, defectcam.service; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_help_needs_no_server() -> None:
    code = (
        "import sys; from defectcam import cli; cli.main(['serve', '--help']);"
        "print(sorted({'fastapi', 'uvicorn', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "default: 33554432" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_options_have_the_names_and_defaults_of_the_settings() -> None:
    for name, _, parse, text in cli_options.SERVICE_OPTIONS:
        default = re.search(r"default: (\S+)\)", text).group(1)
        assert parse(default) == getattr(ServiceSettings(), name)


# --- The description --------------------------------------------------------------------------

# A random body is of the described type and still no image: 422 is the right answer to it.
NOT_CHECKED = [openapi_checks.positive_data_acceptance]


def test_answers_are_as_the_openapi_description_says(tmp_path: Path) -> None:
    app, _ = stub_app(tmp_path, token="secret")
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    n_checked = 0
    for operation in schema.get_all_operations():
        headers = {"Authorization": "Bearer secret"}

        @settings(max_examples=25, derandomize=True, deadline=None, database=None)
        @given(case=operation.ok().as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=headers, excluded_checks=NOT_CHECKED)  # noqa: B023

        check()
        n_checked += 1
    assert n_checked == 4
