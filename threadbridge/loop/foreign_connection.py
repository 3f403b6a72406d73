"""Lets a bridge run behind other HTTP servers, such as Tornado's own; docs/adopting.md lists the differences."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, cast

from tornado.httputil import HTTPConnection, HTTPHeaders, parse_response_start_line

from threadbridge.crossing.response_body import Buffer
from threadbridge.http.response_head import ResponseHead


class ForeignConnection:
    """Gives any `tornado.httputil.HTTPConnection` the methods that an exchange uses; see `HTTP1Connection`."""

    def __init__(self, connection: HTTPConnection) -> None:
        # `HTTPConnection` does not declare all methods that the connections of every server have.
        self._connection = cast(Any, connection)
        self.context = self._connection.context
        # The exchange reads and sets these, but the other server does not use them.
        self.refused_with = 0
        self.answers_after_end = False
        self.body_held = 0

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self._connection.set_close_callback(callback)

    def send_head(self, head: ResponseHead, chunk: bytes) -> Future[None]:
        first, _, fields = head.lines.decode("latin-1").partition("\r\n")
        headers = HTTPHeaders.parse(fields)
        return cast("Future[None]", self._connection.write_headers(parse_response_start_line(first), headers, chunk))

    def send(self, pieces: Sequence[Buffer]) -> Future[None]:
        return cast("Future[None]", self._connection.write(b"".join(pieces)))

    @property
    def sends_files(self) -> bool:
        return False

    def send_file(self, descriptor: int, offset: int, size: int) -> tuple[int, Future[None] | None]:
        raise NotImplementedError("other servers' connections send no files: see sends_files")

    def finish(self) -> None:
        self._connection.finish()

    def close(self) -> None:
        self._connection.close()
