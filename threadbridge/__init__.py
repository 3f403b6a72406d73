"""Serves blocking WSGI applications from Tornado without blocking its loop."""

from threadbridge.compiled import prefer_compiled

# Before the modules that may have been compiled.
prefer_compiled(__path__)

from threadbridge.bridge import Bridge  # noqa: E402
from threadbridge.current import RunningRequest, current  # noqa: E402
from threadbridge.http_server import HTTPServer  # noqa: E402
from threadbridge.lanes import Lane  # noqa: E402
from threadbridge.server import serve  # noqa: E402

__all__ = ["Bridge", "HTTPServer", "Lane", "RunningRequest", "current", "serve"]
