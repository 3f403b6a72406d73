"""The response with a file: conditions, ranges, validators (RFC 9110). Worker side."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

from threadbridge.crossing.exchange import Exchange
from threadbridge.http.preconditions import part_to_send, seconds_of
from threadbridge.worker.served_file import ServedFile

# Bytes that are read by the worker and sent with the head: for less, a file is not worth its way to the loop.
SMALL = 64 * 1024

# What describes the content that a response would have had (RFC 9110, sections 8 and 15.4.5).
_OF_CONTENT = frozenset(
    {"accept-ranges", "content-disposition", "content-encoding", "content-language", "content-range", "content-type"}
)
_OF_FILE = _OF_CONTENT | {"cache-control", "etag", "expires", "last-modified"}


class FileResponse:
    """A response whose body is ``body``, or as many bytes of a file as its length, from ``offset`` on."""

    def __init__(
        self,
        status: int,
        fields: list[tuple[str, str]],
        length: int | None,
        body: bytes,
        descriptor: int = -1,
        offset: int = 0,
    ) -> None:
        self.status = status
        self.fields = fields
        # The Content-Length; None for none.
        self.length = length
        self.body = body
        # The file's; whoever sends the response closes it. -1 if it is not needed.
        self.descriptor = descriptor
        self.offset = offset


def file_response(exchange: Exchange, file: ServedFile, status: int, fields: Sequence[tuple[str, str]]) -> FileResponse:
    """Answer a request with a file, or with the part of it that the request asks for.

    :param status: the application's. With 200 and 206, which an application sends if it has evaluated the range
        itself, the conditions and the range of a GET or HEAD are evaluated here.
    :param fields: the application's, without Content-Length. Its own validators and ``Accept-Ranges`` are kept.

    Raises ``OSError`` or ``EOFError`` if a small file cannot be read.
    """
    given = {name.lower(): value for name, value in fields}
    etag = given.get("etag") or file.etag
    if "last-modified" in given:
        modified: float | None = seconds_of(given["last-modified"])
    else:
        # It must not lie in the future (RFC 9110, section 8.8.2.1).
        modified = min(file.modified, time.time())
    added = [] if "content-type" in given else [("Content-Type", "application/octet-stream")]
    if "etag" not in given:
        added.append(("ETag", etag))
    if "last-modified" not in given and modified is not None:
        added.append(("Last-Modified", formatdate(modified, usegmt=True)))
    has_ranges = given.get("accept-ranges", "bytes") == "bytes"
    offset, size = 0, file.size
    if status in (200, 206) and exchange.start_line.method in ("GET", "HEAD"):
        status, offset, size = part_to_send(
            exchange.headers, file.size, etag, modified, has_ranges=has_ranges and not exchange.is_head
        )
        if status == 304:
            return FileResponse(304, [*_without(_OF_CONTENT, fields), *_without(_OF_CONTENT, added)], None, b"")
        if status == 412:
            return plain_response(412, fields, is_head=exchange.is_head)
        if status == 416:
            refusal = plain_response(416, fields, is_head=exchange.is_head)
            refusal.fields.append(("Content-Range", f"bytes */{file.size}"))
            return refusal
        added.append(("Accept-Ranges", given.get("accept-ranges", "bytes")))
        if status == 206:
            added.append(("Content-Range", f"bytes {offset}-{offset + size - 1}/{file.size}"))
        fields = _without({"accept-ranges", "content-range"}, fields)
    fields = [*fields, *added]
    if exchange.is_head:
        return FileResponse(status, fields, size, b"")
    if size <= SMALL and not exchange.spool.unread.is_full:
        return FileResponse(status, fields, size, _read(file, offset, size))
    return FileResponse(status, fields, size, b"", file.take(), offset)


def plain_response(status: int, fields: Sequence[tuple[str, str]], *, is_head: bool) -> FileResponse:
    """A short text in place of the file, with those of the application's headers that do not describe the file."""
    body = f"{status} {HTTPStatus(status).phrase}\n".encode()
    kept = [*_without(_OF_FILE, fields), ("Content-Type", "text/plain; charset=utf-8")]
    return FileResponse(status, kept, len(body), b"" if is_head else body)


def _without(names: frozenset[str] | set[str], fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [field for field in fields if field[0].lower() not in names]


def _read(file: ServedFile, offset: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.pread(file.descriptor, size - len(data), offset + len(data))
        if not piece:
            raise EOFError(f"the file ended {size - len(data)} bytes early: it became shorter while it was being read")
        data += piece
    return data
