"""The targets that need torch: model files, parameters, the command line and the service."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from fastapi.testclient import TestClient
from faults.conftest import images_of_parts, new_classifier
from PIL import Image

import defectcam.export
import defectcam.persistence
import defectcam.service
from defectcam import DefectCAMClassifier, Localization, cli, cli_options
from defectcam.configuration import ConfigurationError, read_configuration
from defectcam.geometry import Geometry
from defectcam.images import read_image
from defectcam.persistence import ModelFileError, load
from defectcam.service import ServiceSettings, create_app
from defectcam.watch import Watcher
from fuzz.targets import GAP, Target, unless


class ModelBytes(Target):
    """A model file: description and list of tensors with a gap between, else all of its bytes.

    The tensors' content is that of a real model, so that an input is small and a fuzzer spends its
    time where the file says what it is.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        labels = ["good"] * 4 + ["scratch"] * 4
        model = new_classifier(cv=2).fit(images_of_parts(), labels)
        self.path = folder / "m.safetensors"
        model.save(self.path)
        content = self.path.read_bytes()
        n_header = int.from_bytes(content[:8], "little")
        self.tensors = content[8 + n_header :]
        header = json.loads(content[8 : 8 + n_header])
        description = header.pop("__metadata__")["defectcam"]
        self.seed = description.encode() + GAP + json.dumps(header).encode()

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(self.file(data))
        loaded = unless(ModelFileError, lambda: load(self.path))
        if loaded is not None:
            unless(ValueError, lambda: loaded.predict(images_of_parts()[:1]))

    def file(self, data: bytes) -> bytes:
        """Make the file that the input describes, without a digest, as files of 0.1.0 are."""
        description, gap, header = data.partition(GAP)
        if not gap:
            return data
        text = json.dumps({"defectcam": description.decode("utf-8", "replace")})
        whole = header.replace(b"{", b'{"__metadata__":' + text.encode() + b",", 1)
        return len(whole).to_bytes(8, "little") + whole + self.tensors


class Configuration(Target):
    """A file of parameters."""

    def __call__(self, data: bytes) -> None:
        path = self.folder / "fit.toml"
        path.write_bytes(data)
        given = unless(ConfigurationError, lambda: read_configuration(path, DefectCAMClassifier))
        if given is not None:
            unless(ValueError, DefectCAMClassifier(**given)._validate_params)


class CommandLine(Target):
    """The arguments of a command, with gaps between, in a folder with images and a model.

    Nothing is trained, exported or served: the command comes to that point and ends. A model file
    that has been loaded is not loaded again, which takes longer than most commands; what is wrong
    with model files, `ModelBytes` looks for.
    """

    ALLOWED = frozenset(
        [
            cli_options.DONE,
            cli_options.DEFECTS_FOUND,
            cli_options.USAGE,
            cli_options.BAD_DATA,
            cli_options.ANSWERS_DIFFER,
        ]
    )
    MAX_ARGUMENTS = 24

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pristine, self.work = folder / "pristine", folder / "work"
        images = images_of_parts()
        for number, image in enumerate(images):
            path = self.pristine / "parts" / ("good", "scratch")[number // 4] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        model = new_classifier(cv=2).fit(images, ["good"] * 4 + ["scratch"] * 4)
        model.save(self.pristine / "m.safetensors")
        (self.pristine / "fit.toml").write_text('max_epochs = 2\nbackbone = "vgg16"\n')
        (self.pristine / "token").write_text("secret\n")
        self.loaded: dict[tuple[bytes, str], bytes] = {}

    def __call__(self, data: bytes) -> None:
        arguments = [
            _within(argument.decode("utf-8", "replace"))
            for argument in data.split(GAP)[: self.MAX_ARGUMENTS]
        ]
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.pristine, self.work)
        printed = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_in_folder(self.work))
            stack.enter_context(_no_long_work())
            stack.enter_context(self._loading_once())
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(printed))
            code = cli.main(arguments)
        assert code in self.ALLOWED, f"{arguments} gave {code}:\n{printed.getvalue()}"

    @contextlib.contextmanager
    def _loading_once(self) -> Iterator[None]:
        """Give copies of models that were loaded from the same bytes before."""
        original = defectcam.persistence.load

        def load_once(path: Any, **options: Any) -> Any:
            try:
                key = Path(path).read_bytes(), repr(options)
            except (OSError, ValueError):
                return original(path, **options)
            if key not in self.loaded:
                self.loaded[key] = pickle.dumps(original(path, **options))
            return pickle.loads(self.loaded[key])

        defectcam.persistence.load = load_once
        try:
            yield
        finally:
            defectcam.persistence.load = original


class Requests(Target):
    """A request: method and address, headers, an empty line, the body."""

    STATUSES = frozenset(
        [200, 307, 400, 401, 404, 405, 408, 413, 415, 422, 429, 503, 504],
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "part.stub").touch()
        settings = ServiceSettings(
            reload_interval=0, max_body_bytes=100_000, max_pixels=10_000, batch_wait=0
        )
        app = create_app({"part": folder / "part.stub"}, settings, load=lambda _: _GreyModel())
        self.client = TestClient(app, follow_redirects=False)  # raises what the service would log
        self.client.__enter__()

    def __call__(self, data: bytes) -> None:
        head, _, body = data.partition(b"\n\n")
        first, *lines = head.split(b"\n")
        method, _, address = first.decode("latin-1").partition(" ")
        headers = [line.partition(b": ")[::2] for line in lines]
        try:
            request = self.client.build_request(
                method, f"/{address.lstrip('/')}", headers=headers, content=body
            )
        except (httpx2.InvalidURL, UnicodeError, ValueError, TypeError):
            return  # nothing that could be sent
        answer = self.client.send(request)
        assert answer.status_code in self.STATUSES, answer.text
        if answer.status_code != 200:
            return
        if address.partition("?")[0].endswith("localize"):
            assert answer.json()["label"] == "good"

    def close(self) -> None:
        self.client.__exit__(None, None, None)


class _GreyModel:
    """Reads images and calls them good."""

    batch_size = 4

    def localize(self, X: Any) -> list[Localization]:
        return [
            Localization(
                label="good",
                probability=0.25,
                is_defect=False,
                grid=np.zeros((2, 2), np.float32),
                geometry=Geometry.stretch(read_image(source).shape[:2], (8, 8)),
                threshold=1.0,
                decision_threshold=0.5,
                min_area=1,
                max_boxes=None,
                merge_distance=None,
                source=source,
                good_label="good",
                defect_label="scratch",
            )
            for source in X
        ]


def _within(argument: str) -> str:
    """Keep whatever a command might write within the working folder."""
    argument = re.sub(r"\.\.|~", "_", argument)
    known, slash, name = argument.rpartition("/")
    if slash and known in ("parts", "parts/good", "parts/scratch"):
        return f"{known}/{name}"
    return argument.replace("/", "_").replace("\\", "_")


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _no_long_work() -> Iterator[None]:
    """Let commands end where training, exporting, serving or waiting would begin."""

    def fit(self: Any, *_: Any, **__: Any) -> None:
        self._validate_params()
        raise ValueError("nothing is trained here")

    def export(*_: Any, **__: Any) -> None:
        raise ValueError("nothing is exported here")

    def look_once(self: Any, stop: threading.Event, *more: Any) -> Any:
        stop.set()
        return watch(self, stop, *more)

    watch = Watcher.run
    replaced = (
        (DefectCAMClassifier, "fit", fit),
        (defectcam.export, "export", export),
        (defectcam.service, "serve", lambda *_, **__: None),
        (Watcher, "run", look_once),
    )
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, new in replaced:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old in originals:
            setattr(owner, name, old)
