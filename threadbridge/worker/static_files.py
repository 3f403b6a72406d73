"""A WSGI application that serves the files of directories: ``--static``. Worker side, in a lane of its own."""

from __future__ import annotations

import logging
import mimetypes
import os
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import cast
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIEnvironment

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.settings.values import Mount
from threadbridge.worker.served_file import OutsideError, ServedFile, checked_directory, open_below

logger = logging.getLogger("threadbridge")
_unreadable = RepeatedLog(logger)

# Copies that are compressed already, by the suffix of their names; the first that the client accepts is sent.
_COMPRESSED = {"br": ".br", "gzip": ".gz"}
# A hash of the content in the name, as Django, Vite, webpack and others write it: name.55e7cbb9ba48.css. A number alone
# may be a date.
_HASH = re.compile(r"[.-](?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,64}\.").search
_IS_ZERO = re.compile(r"q[ \t]*=[ \t]*0(?:\.0{0,3})?").fullmatch
UNCHANGING = "public, max-age=31536000, immutable"
# A client may keep any other file, but asks each time whether it is still the same.
CHECKED = "no-cache"
# What some versions of Python do not know, and minimal systems have no list for.
_MORE_TYPES = {
    ".avif": "image/avif",
    ".map": "application/json",
    ".mjs": "text/javascript",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
_OF_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


class StaticFiles:
    """Serves what is below some directories, each at a prefix of ``PATH_INFO``, to GET and HEAD.

    A path that ends with a slash stands for the ``index.html`` of a directory. Names that begin with a dot are not
    served, except ``.well-known``.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        """Raises ``ValueError`` for a directory that does not exist."""
        self._mounts = [Mount(mount.prefix, checked_directory("static", mount.directory)) for mount in mounts]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        method = environ["REQUEST_METHOD"]
        if method == "OPTIONS":
            start_response("204 No Content", [("Allow", "GET, HEAD, OPTIONS")])
            return []
        if method not in ("GET", "HEAD"):
            return _plain(start_response, HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD, OPTIONS"))
        path: str = environ["PATH_INFO"]
        mount = next(mount for mount in self._mounts if path.startswith(mount.prefix))
        name = os.fsdecode(path.removeprefix(mount.prefix).encode("latin-1"))
        if name.startswith("/") or any(part.startswith(".") and part != ".well-known" for part in name.split("/")):
            return _plain(start_response, HTTPStatus.NOT_FOUND)
        if not name or name.endswith("/"):
            name += "index.html"
        try:
            return _found(environ, start_response, mount.directory, name)
        except IsADirectoryError:
            return _to_directory(environ, start_response, mount.directory, name)
        except PermissionError as error:
            _unreadable.log(logging.WARNING, "a static file cannot be served: %s", error)
            return _plain(start_response, HTTPStatus.FORBIDDEN)
        except OutsideError as error:
            _unreadable.log(logging.WARNING, "a static file is not served: %s", error)
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                _unreadable.log(logging.WARNING, "a static file cannot be served: %s", error)
        return _plain(start_response, HTTPStatus.NOT_FOUND)


def _found(environ: WSGIEnvironment, start_response: StartResponse, directory: str, name: str) -> Iterable[bytes]:
    """The response with a file, or with a compressed copy of it. Raises as `open_below` does."""
    file = open_below(directory, name)
    is_unchanging = _HASH(os.path.basename(name)) is not None
    headers = [("Content-Type", content_type(name)), ("Cache-Control", UNCHANGING if is_unchanging else CHECKED)]
    copies = [coding for coding, suffix in _COMPRESSED.items() if os.path.exists(f"{directory}/{name}{suffix}")]
    if copies:
        headers.append(("Vary", "Accept-Encoding"))
    for coding in copies:
        if not _accepts(environ.get("HTTP_ACCEPT_ENCODING", ""), coding):
            continue
        copy = _copy(directory, name + _COMPRESSED[coding], file)
        if copy is not None:
            file.close()
            file = copy
            file.etag = f'{file.etag[:-1]}-{coding}"'
            headers.append(("Content-Encoding", coding))
            break
    start_response("200 OK", headers)
    # Not an iterable, but `Call` sends it.
    return cast(Iterable[bytes], file)


def _copy(directory: str, name: str, original: ServedFile) -> ServedFile | None:
    """A compressed copy, unless it cannot be read or is older than the original, which has changed since."""
    try:
        copy = open_below(directory, name)
    except (OSError, OutsideError):
        return None
    # Programs that copy files may drop fractions of seconds.
    if int(copy.modified) < int(original.modified):
        copy.close()
        return None
    return copy


def _accepts(field: str, coding: str) -> bool:
    """Whether ``Accept-Encoding`` allows a content coding (RFC 9110, section 12.5.3)."""
    others = False
    for part in field.lower().split(","):
        name, _, weight = part.partition(";")
        is_allowed = _IS_ZERO(weight.strip()) is None
        if name.strip() == coding:
            return is_allowed
        if name.strip() == "*":
            others = is_allowed
    return others


def content_type(name: str) -> str:
    """The media type of a file, by its name."""
    guessed, coding = mimetypes.guess_type(name)
    if coding is not None:
        # It is sent as it is, so the type is that of the compressed file.
        return _OF_COMPRESSED.get(coding, "application/octet-stream")
    return guessed or _MORE_TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")


def _to_directory(environ: WSGIEnvironment, start_response: StartResponse, directory: str, name: str) -> list[bytes]:
    """Lead to the directory's index, so that the links there, which are relative to it, are right."""
    if not os.path.isfile(f"{directory}/{name}/index.html"):
        return _plain(start_response, HTTPStatus.NOT_FOUND)
    path = quote((environ["SCRIPT_NAME"] + environ["PATH_INFO"]).encode("latin-1"), safe="/!$&'()*+,;=:@~")
    query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
    return _plain(start_response, HTTPStatus.MOVED_PERMANENTLY, ("Location", f"{path}/{query}"))


def _plain(start_response: StartResponse, status: HTTPStatus, *headers: tuple[str, str]) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [f"{status.value} {status.phrase}\n".encode()]
