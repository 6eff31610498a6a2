"""The service's limits, in one place.

Owns their names, defaults and what values they may have. It reads no environment and no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["ServiceSettings"]

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What the service takes on, and for how long.

    Parameters
    ----------
    queue_size : int, default=64
        Most requests at once, from the first byte that is read to the answer. More are refused with
        429 before their images are read, so at most ``queue_size * max_body_bytes`` of memory goes
        to images that wait.
    batch_wait : float, default=0.002
        Seconds that the first image of a batch waits for others. While the network is busy,
        images gather without it.
    max_body_bytes : int, default=32 MiB
        Largest body of a request.
    max_pixels : int, default=50 000 000
        Most pixels of an image, by its header, before anything is decoded. Pillow's own
        ``PIL.Image.MAX_IMAGE_PIXELS`` holds as well.
    max_included_pixels : int, default=25 000 000
        Most pixels of an image that comes back as an overlay or a heatmap, which take several times
        the memory of the image, and megabytes of JSON.
    body_timeout : float, default=10.0
        Seconds that a body may take to arrive.
    request_timeout : float, default=30.0
        Seconds from an image's arrival to its answer.
    reload_interval : float, default=1.0
        Seconds between looks at the models' files; 0 for no looks.
    token : str, optional
        What requests must bring as ``Authorization: Bearer``. None lets everyone in.

    Raises
    ------
    ValueError
        If a number is out of range or the token has other than printable ASCII characters.
    """

    queue_size: int = 64
    batch_wait: float = 0.002
    max_body_bytes: int = 32 * _MIB
    max_pixels: int = 50_000_000
    max_included_pixels: int = 25_000_000
    body_timeout: float = 10.0
    request_timeout: float = 30.0
    reload_interval: float = 1.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("queue_size", "max_body_bytes", "max_pixels", "max_included_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        for name in ("body_timeout", "request_timeout"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}.")
        for name in ("batch_wait", "reload_interval"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds, at least 0, got {value!r}.")
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise ValueError("token must be printable ASCII characters, at least one.")
