"""From a request to the bytes of one image, and no further than the limits allow.

Owns what a body may look like and every refusal of one: too large, too slow, cut off, of another
type, not an image, too many pixels. Nothing is decoded here but the image's header; pixels are
`images`' matter.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import AsyncIterator
from typing import NamedTuple

import anyio
from fastapi import HTTPException, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from defectcam.service.settings import ServiceSettings

__all__ = ["ImageAsJson", "Upload", "check_header", "read_upload"]

#: Formats that are decoded in this process by well-tested code. Of the others that Pillow knows,
#: some start programs (PostScript) and many have not been looked at in years.
_WANTED = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)  # older releases know no AVIF

_NAME_LENGTH = 255
_MULTIPART_FIELDS = 8
_UNNAMED_TYPES = ("", "application/octet-stream", "binary/octet-stream")


class Upload(NamedTuple):
    """An encoded image and what the client calls it."""

    data: bytes
    name: str | None


class ImageAsJson(BaseModel):
    """An image within JSON."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        min_length=1,
        description="An image file in base64, with or without line breaks, also as a data URL.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    source: str | None = Field(default=None, description="What to call it in the answer.")


async def read_upload(request: Request, settings: ServiceSettings) -> Upload:
    """Read a request's image.

    Parameters
    ----------
    request : Request
        Its body is an image file, a multipart form with the file in the field ``image``, or JSON as
        `ImageAsJson`.
    settings : ServiceSettings

    Returns
    -------
    Upload

    Raises
    ------
    HTTPException
        400 cut off, 408 too slow, 413 too large, 415 of another type, 422 without an image.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"Content-Encoding {encoding!r}: send the body as it is.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_raw = kind in _UNNAMED_TYPES or kind.startswith("image/")
    if not is_raw and kind not in ("multipart/form-data", "application/json"):
        raise HTTPException(
            415,
            f"Content-Type {kind!r}: send an image (image/... or application/octet-stream), "
            "multipart/form-data or application/json.",
        )
    body = await _read_body(request, settings)
    if kind == "multipart/form-data":
        upload = await _from_form(request, body)
    elif kind == "application/json":
        upload = await anyio.to_thread.run_sync(_from_json, body)
    else:
        upload = Upload(body, None)
    if not upload.data:
        raise HTTPException(422, "the image is empty (0 bytes).")
    return upload


def check_header(
    data: bytes, max_pixels: int, advice: str = "Send it smaller, or in tiles."
) -> None:
    """Refuse what is no image or has too many pixels, by its header alone.

    Parameters
    ----------
    data : bytes
        An image file.
    max_pixels : int
        Most pixels, height times width.
    advice : str, optional
        What to do about an image of more.

    Raises
    ------
    HTTPException
        413 too many pixels, 422 not an image of one of `FORMATS`.
    """
    too_large = f"at most {max_pixels} pixels are taken. {advice}"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the image is far too large; {too_large}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever the broken bytes lead them to
        raise HTTPException(
            422,
            f"the body is not an image of a known format ({', '.join(FORMATS)}), or is damaged.",
        ) from error
    if height * width > max_pixels:
        raise HTTPException(413, f"the image has {height} x {width} pixels; {too_large}")


async def _read_body(request: Request, settings: ServiceSettings) -> bytes:
    limit = settings.max_body_bytes
    too_large = HTTPException(
        413,
        f"the body has more than {limit} bytes, the most that is taken.",
        {"Connection": "close"},
    )
    try:
        announced = int(request.headers.get("content-length", "0"))
    except ValueError as error:
        raise HTTPException(400, "Content-Length is not a number.") from error
    if announced > limit:
        raise too_large
    parts, size = [], 0
    with anyio.move_on_after(settings.body_timeout) as scope:
        try:
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
        except ClientDisconnect as error:
            raise HTTPException(400, "the body was cut off.") from error
    if scope.cancelled_caught:
        raise HTTPException(
            408,
            f"the body did not arrive within {settings.body_timeout:g} seconds.",
            {"Connection": "close"},
        )
    return b"".join(parts)


async def _from_form(request: Request, body: bytes) -> Upload:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(
        request.headers,
        stream(),  # type: ignore[arg-type]
        max_files=1,
        max_fields=_MULTIPART_FIELDS,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(422, f"the form cannot be read: {error.message}") from error
    except (ValueError, LookupError, AttributeError) as error:  # of headers that make no sense
        raise HTTPException(422, "the form cannot be read: it is damaged.") from error
    try:
        field = form.get("image")
        if field is None or isinstance(field, str):
            raise HTTPException(422, "the form has no file in a field named 'image'.")
        return Upload(await field.read(), _printable(field.filename))
    finally:
        await form.close()


def _from_json(body: bytes) -> Upload:
    try:
        sent = ImageAsJson.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(
            422, f'the JSON must be {{"image": base64}}: {where}{": " * bool(where)}{first["msg"]}'
        ) from error
    text = sent.image
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split())  # the command `base64` breaks lines
    try:
        return Upload(base64.b64decode(text, validate=True), _printable(sent.source))
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"image is not base64: {error}") from error


def _printable(name: str | None) -> str | None:
    if not name:
        return None
    return name[:_NAME_LENGTH].encode("utf-8", "replace").decode("utf-8")
