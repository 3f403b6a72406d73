"""What is served, during development, in place of an application that cannot be loaded: why."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>The application cannot be loaded</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }}
  pre {{ border-left: 4px solid #c33; overflow-x: auto; padding: 0.5rem 1rem; background: #8882 }}
</style>
<h1>The application cannot be loaded</h1>
<p id="error"><b>{error}</b></p>
<pre>{traceback}</pre>
<p>Once you have mended and saved the file, reload this page.</p>
"""


def stand_in(error: str, traceback: str) -> WSGIApplication:
    """An application that answers every request with 500 and this error, as HTML to browsers, otherwise as text."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "text/html" in environ.get("HTTP_ACCEPT", ""):
            kind, body = "text/html", PAGE.format(error=escape(error), traceback=escape(traceback))
        else:
            kind, body = "text/plain", f"The application cannot be loaded.\n{error}\n\n{traceback}"
        content = body.encode(errors="backslashreplace")
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        headers = [("Content-Type", f"{kind}; charset=utf-8"), ("Cache-Control", "no-store")]
        start_response(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(content)))])
        return [content]

    return application
