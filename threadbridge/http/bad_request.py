"""The exception for a request that is refused before the application sees it."""

from __future__ import annotations

from http import HTTPStatus

from threadbridge.http.date import http_date
from threadbridge.http.response_head import response_head


class BadRequest(Exception):
    """The request cannot be accepted: ``status`` answers it, and the connection closes."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return f"{self.status.value} {self.status.phrase}: {self.reason}\n".encode()

    @property
    def response(self) -> bytes:
        """The whole response."""
        fields = (("Content-Type", "text/plain; charset=utf-8"), ("Date", http_date()), ("Connection", "close"))
        head = response_head(self.status.value, self.status.phrase, fields, len(self.body))
        return head.lines + b"\r\n" + self.body


def too_large(max_body_size: int) -> BadRequest:
    """The refusal of a body larger than ``max_body_size``."""
    return BadRequest(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than the limit of {max_body_size} bytes"
    )
