"""Serves blocking WSGI applications from Tornado without blocking its loop."""

from typing import TYPE_CHECKING

from threadbridge.compiled import prefer_compiled

# Before the modules that may have been compiled.
prefer_compiled()

from threadbridge.crossing.current import RunningRequest, current, is_cancelled  # noqa: E402
from threadbridge.crossing.lanes import Lane  # noqa: E402
from threadbridge.loop.bridge import Bridge  # noqa: E402
from threadbridge.process.service import serve  # noqa: E402

if TYPE_CHECKING:
    from threadbridge.cli.main import run
    from threadbridge.loop.http_server import HTTPServer

__all__ = ["Bridge", "HTTPServer", "Lane", "RunningRequest", "current", "is_cancelled", "run", "serve"]


def __getattr__(name: str) -> object:
    # Tornado's, from which it derives, takes 0.4 MB with all that it loads, and `serve` has no use for it.
    if name == "HTTPServer":
        from threadbridge.loop.http_server import HTTPServer

        return HTTPServer
    if name == "run":
        # The command line, which `serve` has no use for either.
        from threadbridge.cli.main import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
