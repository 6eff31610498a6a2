"""The service's life in a process: uvicorn, its signals and its log.

Owns how the server starts and ends. What it answers is `app`'s matter.
"""

from __future__ import annotations

import copy
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from defectcam.service.settings import ServiceSettings

__all__ = ["serve"]

_LOG = logging.getLogger("defectcam.service")

_GRACE = 5  # seconds beyond the longest request: for the last answers to be sent
_BACKLOG = 2048  # connections that wait to be accepted; as uvicorn's own default


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "info",
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until the process is told to end; then finish the requests that were taken on.

    Parameters
    ----------
    app : FastAPI
        As `create_app` makes it.
    host : str, default="127.0.0.1"
        The address to listen at; ``"0.0.0.0"`` for all of this machine's.
    port : int, default=8000
        0 takes a free one; the log names it.
    log_level : str, default="info"
        As uvicorn's.
    announce : callable, optional
        Told the address, ``http://host:port``, once connections are accepted there.

    Raises
    ------
    KeyboardInterrupt
        After the end, if it was told to end by Ctrl-C.
    OSError
        If the address cannot be listened at.
    """
    settings: ServiceSettings = app.state.service.settings
    with _listening(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_level=log_level,
            log_config=_log_config(log_level),
            access_log=False,  # /metrics has the figures; a line per image would fill disks
            server_header=False,
            timeout_graceful_shutdown=round(
                settings.body_timeout + settings.request_timeout + _GRACE
            ),
        )
        if threading.current_thread() is threading.main_thread():
            # uvicorn ends in order and then raises the signal again, which would look like failure.
            signal.signal(signal.SIGTERM, lambda *_: None)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        _LOG.info("listening at %s", address)
        announce(address)
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error}") from error
    # Connections inherit it. asyncio sees to it only for sockets that it opens itself; without it
    # an answer's second packet waits for the client's delayed acknowledgement, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _log_config(level: str) -> dict[str, Any]:
    config = copy.deepcopy(LOGGING_CONFIG)
    logger = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    config["loggers"]["defectcam.service"] = logger
    return config
