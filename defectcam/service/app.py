"""The routes: what is asked at which address, and in what words it is answered.

Owns the HTTP side of an application: routes, status codes, the token, the order in which a request
passes the limits, and start and end. Bodies are `bodies`' matter, the queue `batching`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

import defectcam
from defectcam import display
from defectcam.images import ImageReadError
from defectcam.results import Localization
from defectcam.service.batching import Batcher, ClosedError
from defectcam.service.bodies import ImageAsJson, check_header, read_upload
from defectcam.service.metrics import Metrics
from defectcam.service.models import Model, ModelStore, ServedModel, load_model, localize_batch
from defectcam.service.settings import ServiceSettings

__all__ = ["create_app"]

_LOG = logging.getLogger("defectcam.service")

_NOBODY = "-"  # stands for the model in the figures of requests that name none that is there
_WITHOUT_INCLUDE = "Ask without ?include=, or send it smaller."
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
}

_BEARER = HTTPBearer(auto_error=False, description="Needed if the service has a token.")

Extra = Literal["overlay", "heatmap"]
Label = bool | int | str


class LocalizedImage(BaseModel):
    """`Localization.to_dict()`, which model answered, and what else was asked for."""

    label: Label
    probability: float = Field(ge=0, le=1, description="Of a defect.")
    is_defect: bool
    unfamiliar: bool = Field(description="The image is unlike all training images.")
    decision_threshold: float
    threshold: float = Field(description="Boxes are where the heatmap is above it.")
    image_size: list[int] = Field(description="Height and width in pixels.")
    boxes: list[list[int]] = Field(
        description="Left, top, right, bottom in pixels, half-open, best first."
    )
    box_scores: list[float]
    box_labels: list[Label]
    source: str | None = Field(description="What the request calls the image.")
    model: str
    overlay: str | None = Field(default=None, description="A PNG file in base64.")
    heatmap: str | None = Field(
        default=None, description="A NumPy file (.npy) in base64: float32, height x width."
    )


class ModelState(BaseModel):
    """A served model."""

    file: str
    loaded_at: datetime
    n_reloads: int
    reload_error: str | None = Field(description="Why the file's new version is not used.")


class Health(BaseModel):
    """Whether the service takes requests, and with which models."""

    status: Literal["ok", "stopping"]
    version: str
    default_model: str
    models: dict[str, ModelState]


class Problem(BaseModel):
    """What was wrong and what to do."""

    detail: str


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        400: "The body was cut off.",
        401: "The token is missing or wrong.",
        404: "There is no such model.",
        408: "The body arrived too slowly.",
        413: "The body has too many bytes, or the image too many pixels, or too many to include.",
        415: "A body of this type or encoding is not taken.",
        422: "The body holds no image that can be used, or a parameter is wrong.",
        429: "The queue is full; `Retry-After` says when to try again, in seconds.",
        503: "The service is shutting down, or its disk is full.",
        504: "The answer took too long.",
    }
    return {status: {"model": Problem, "description": texts[status]} for status in statuses}


_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {"schema": ImageAsJson.model_json_schema()},
        },
    }
}
_LOCALIZE: dict[str, Any] = {
    "response_model": LocalizedImage,
    "response_model_exclude_unset": True,
    "responses": _problems(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    "openapi_extra": _IMAGE_BODY,
}


class _Service:
    """What the routes of one application share."""

    def __init__(
        self,
        paths: Mapping[str, str | os.PathLike[str]],
        settings: ServiceSettings,
        load: Callable[[Path], Model],
    ) -> None:
        self.settings = settings
        self.in_progress = 0
        self.is_stopping = False
        self.seconds_per_image = 0.1  # until the first batch has been measured
        self.store = ModelStore(paths, load, self._count_reload)
        self.batcher: Batcher[ServedModel, Path, Localization] = Batcher(
            self._work, batch_size=lambda served: served.batch_size, wait=settings.batch_wait
        )
        self.metrics = Metrics(lambda: self.in_progress, lambda: len(self.batcher))
        self.folder = Path()
        # Rendering and headers: NumPy, OpenCV and Pillow let go of the interpreter lock.
        self.threads = anyio.CapacityLimiter(os.cpu_count() or 1)

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Work from start to end; at the end finish what is queued."""
        with tempfile.TemporaryDirectory(prefix="defectcam-", ignore_cleanup_errors=True) as folder:
            self.folder, self.is_stopping = Path(folder), False
            self.batcher.start()
            if self.settings.reload_interval > 0:
                self.store.watch(self.settings.reload_interval)
            yield
            self.is_stopping = True
            await anyio.to_thread.run_sync(self.batcher.close)
            await anyio.to_thread.run_sync(self.store.close)

    async def check_token(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        """Refuse a request without the token, in a time that says nothing about the token."""
        if self.settings.token is None:
            return
        sent = b"" if given is None else given.credentials.encode("utf-8", "replace")
        if not hmac.compare_digest(sent, self.settings.token.encode()):
            raise HTTPException(
                401, "send 'Authorization: Bearer TOKEN'.", {"WWW-Authenticate": "Bearer"}
            )

    async def answer(
        self, request: Request, served: ServedModel, include: Sequence[Extra]
    ) -> JSONResponse:
        """Answer one request, and measure how long that takes."""
        start = time.perf_counter()
        try:
            with self._place():
                upload = await read_upload(request, self.settings)
                content = await self._in_time(upload.data, served, include)
            return JSONResponse({**content, "source": upload.name, "model": served.name})
        finally:
            self.metrics.seconds.labels(served.name).observe(time.perf_counter() - start)

    def count_request(self, request: Request, status: int) -> None:
        """Count a request that asked where defects are, by its answer."""
        name = request.path_params.get("name", self.store.default.name)
        self.metrics.requests.labels(name if name in self.store else _NOBODY, status).inc()

    @contextlib.contextmanager
    def _place(self) -> Any:
        """Hold one of the queue's places."""
        if self.in_progress >= self.settings.queue_size:
            seconds = math.ceil(self.in_progress * self.seconds_per_image)
            raise HTTPException(
                429,
                f"{self.in_progress} images are waiting, the most that may; try again later.",
                {"Retry-After": str(max(1, seconds))},
            )
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1

    async def _in_time(
        self, data: bytes, served: ServedModel, include: Sequence[Extra]
    ) -> dict[str, Any]:
        with anyio.move_on_after(self.settings.request_timeout):
            return await self._localized(data, served, include)
        seconds = self.settings.request_timeout
        raise HTTPException(504, f"no answer within {seconds:g} seconds; try again later.")

    async def _localized(
        self, data: bytes, served: ServedModel, include: Sequence[Extra]
    ) -> dict[str, Any]:
        path = self.folder / uuid.uuid4().hex
        future: Future[Localization] | None = None
        try:
            # Waited for even past the time-out: a file that nobody knows of would stay.
            await anyio.to_thread.run_sync(
                self._keep, data, path, bool(include), limiter=self.threads
            )
            future = self.batcher.submit(served, path)
            found = await asyncio.wrap_future(future)
            content = await self._in_thread(_rendered, found, include)
            self._count_image(served, found)
            return content
        except ImageReadError as error:
            raise HTTPException(422, str(error).replace(repr(str(path)), "the image")) from error
        except ClosedError as error:
            raise HTTPException(503, "the service is shutting down.") from error
        finally:
            if future is None:
                path.unlink(missing_ok=True)
            else:  # a batch that has begun may still be reading it
                future.add_done_callback(lambda _: path.unlink(missing_ok=True))

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(
            function, *arguments, abandon_on_cancel=True, limiter=self.threads
        )

    def _keep(self, data: bytes, path: Path, is_sent_back: bool) -> None:
        """Put an image where the model reads it: as a file, so that it is decoded as any other."""
        check_header(data, self.settings.max_pixels)
        if is_sent_back:
            check_header(data, self.settings.max_included_pixels, _WITHOUT_INCLUDE)
        try:
            path.write_bytes(data)
        except OSError as error:  # the disk, not the request
            _LOG.error("cannot keep an image in %s: %s", self.folder, error)
            raise HTTPException(503, "the service has no room for the image.") from error

    def _work(self, served: ServedModel, paths: list[Path]) -> Sequence[Localization | Exception]:
        start = time.perf_counter()
        outcomes = localize_batch(served.model, paths)
        seconds = time.perf_counter() - start
        self.seconds_per_image = seconds / len(paths)
        self.metrics.batch_images.labels(served.name).observe(len(paths))
        self.metrics.batch_seconds.labels(served.name).observe(seconds)
        return outcomes

    def _count_image(self, served: ServedModel, found: Localization) -> None:
        self.metrics.images.labels(served.name, str(found.is_defect).lower()).inc()
        if found.unfamiliar:
            self.metrics.unfamiliar.labels(served.name).inc()

    def _count_reload(self, name: str, is_done: bool) -> None:
        self.metrics.reloads.labels(name, "done" if is_done else "refused").inc()


def create_app(
    models: Mapping[str, str | os.PathLike[str]],
    settings: ServiceSettings | None = None,
    *,
    load: Callable[[Path], Model] = load_model,
) -> FastAPI:
    """Make the service's ASGI application.

    Parameters
    ----------
    models : mapping of str to path
        Model files by name; the first is the default. They are loaded now.
    settings : ServiceSettings, optional
    load : callable, default=load_model
        Takes a path and returns a model; also called when the file has changed.

    Returns
    -------
    FastAPI
        One worker thread runs the networks between its start and its end. Of several processes,
        each has its own models and its own queue.

    Raises
    ------
    ValueError
        If there is no model, or a name cannot stand in an address.
    FileNotFoundError, ModelFileError, ExportedModelError
        As `load_model`.
    """
    service = _Service(models, settings or ServiceSettings(), load)
    app = FastAPI(
        title="defectcam",
        version=defectcam.__version__,
        description="Where the defects of an image are, and how sure the classifier is.",
        lifespan=service.running,
    )
    app.state.service = service
    app.add_exception_handler(StarletteHTTPException, _say_what_was_wrong)
    app.add_exception_handler(RequestValidationError, _say_which_parameter)
    app.add_exception_handler(Exception, _say_little)
    app.include_router(_open_routes(service))
    app.include_router(_figures_route(service))
    app.include_router(_localize_routes(service))
    return app


def _open_routes(service: _Service) -> APIRouter:
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        text = resources.files("defectcam.service").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers=_SECURITY_HEADERS)

    @router.get("/health", response_model=Health, responses=_problems())
    def health() -> JSONResponse:
        """Say whether requests are taken. Needs no token."""
        return JSONResponse(_health(service).model_dump(mode="json"))

    return router


def _figures_route(service: _Service) -> APIRouter:
    router = APIRouter(dependencies=[Depends(service.check_token)])

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **_problems(401)},
    )
    def metrics() -> Response:
        """Give the service's figures to Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _localize_routes(service: _Service) -> APIRouter:
    checks = [Depends(service.check_token), Depends(_refuse_unknown_parameters)]
    router = APIRouter(dependencies=checks, route_class=_counted_by(service))

    @router.post("/localize", **_LOCALIZE)
    async def localize(
        request: Request, include: Annotated[list[Extra] | None, Query()] = None
    ) -> JSONResponse:
        """Say where the defects of an image are, by the default model."""
        return await service.answer(request, service.store.default, include or ())

    @router.post("/models/{name}/localize", **_LOCALIZE)
    async def localize_by(
        name: str, request: Request, include: Annotated[list[Extra] | None, Query()] = None
    ) -> JSONResponse:
        """Say where the defects of an image are, by the model of that name."""
        if name not in service.store:
            raise HTTPException(
                404, f"there is no model of that name; there are: {', '.join(service.store)}."
            )
        return await service.answer(request, service.store[name], include or ())

    return router


def _refuse_unknown_parameters(request: Request) -> None:
    unknown = [name for name in request.query_params if name != "include"]
    if unknown:
        message = "there is no such parameter; there is: include"
        raise RequestValidationError(
            [{"loc": ("query", name), "msg": message, "type": "unknown"} for name in unknown]
        )


def _counted_by(service: _Service) -> type[APIRoute]:
    """Make a kind of route that counts each request: those without token or sense, too."""

    class Counted(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def counted(request: Request) -> Response:
                status = 500
                try:
                    response = await handle(request)
                    status = response.status_code
                    return response
                except RequestValidationError:
                    status = 422  # as `_say_which_parameter` answers
                    raise
                except StarletteHTTPException as refusal:
                    status = refusal.status_code
                    raise
                finally:
                    service.count_request(request, status)

            return counted

    return Counted


def _health(service: _Service) -> Health:
    return Health(
        status="stopping" if service.is_stopping else "ok",
        version=defectcam.__version__,
        default_model=service.store.default.name,
        models={
            name: ModelState(
                file=served.path.name,
                loaded_at=datetime.fromtimestamp(served.loaded_at, timezone.utc),
                n_reloads=served.n_reloads,
                reload_error=served.reload_error,
            )
            for name, served in service.store.items()
        },
    )


def _rendered(found: Localization, include: Sequence[Extra]) -> dict[str, Any]:
    content = found.to_dict()
    if "overlay" in include:
        content["overlay"] = display.as_base64(display.encode_picture(found.overlay(), ".png"))
    if "heatmap" in include:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(found.heatmap, dtype=np.float32), allow_pickle=False)
        content["heatmap"] = display.as_base64(file.getvalue())
    return content


def _say_what_was_wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"detail": str(error.detail)}, error.status_code, headers=error.headers)


def _say_which_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(map(str, first["loc"]))
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)


def _say_little(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "an error of the service's own; its log has the details."}, 500)
