"""Serves blocking WSGI applications from Tornado without blocking its loop."""

from importlib import import_module
from typing import TYPE_CHECKING

from threadbridge.compiled import prefer_compiled

# Before the modules that may have been compiled.
prefer_compiled()

from threadbridge.crossing.current import RunningRequest, current, is_cancelled, on_replica  # noqa: E402
from threadbridge.crossing.lanes import Lane  # noqa: E402
from threadbridge.loop.bridge import Bridge  # noqa: E402
from threadbridge.process.starting import serve  # noqa: E402

if TYPE_CHECKING:
    from threadbridge.cli.main import run
    from threadbridge.loop.http_server import HTTPServer

__all__ = [
    "Bridge",
    "HTTPServer",
    "Lane",
    "RunningRequest",
    "current",
    "is_cancelled",
    "on_replica",
    "run",
    "serve",
]


# Not imported at the top: `serve` needs neither the command line nor Tornado's server, which takes 0.4 MB.
_LAZY = {"HTTPServer": "threadbridge.loop.http_server", "run": "threadbridge.cli.main"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
