"""A model behind HTTP: images in, `Localization` results out as JSON.

Owns the web service: what a request may be, how requests share the network, which model answers,
and the server's life. It never scores an image itself: the estimator or an exported model's runtime
does. `bodies` knows requests, `batching` the queue, `models` the files, `metrics` the figures,
`app` the routes and `server` uvicorn. Needs the extra ``serve``.
"""

from __future__ import annotations

from defectcam.service.app import create_app
from defectcam.service.models import load_model
from defectcam.service.server import serve
from defectcam.service.settings import ServiceSettings

__all__ = ["ServiceSettings", "create_app", "load_model", "serve"]
