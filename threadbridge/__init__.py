"""Serves blocking WSGI applications from Tornado without blocking its loop."""

from threadbridge.bridge import Bridge
from threadbridge.current import RunningRequest, current
from threadbridge.http_server import HTTPServer
from threadbridge.lanes import Lane
from threadbridge.server import serve

__all__ = ["Bridge", "HTTPServer", "Lane", "RunningRequest", "current", "serve"]
