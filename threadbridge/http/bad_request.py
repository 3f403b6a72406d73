"""The exception for a request refused before the application sees it."""

from __future__ import annotations

from http import HTTPStatus


class BadRequest(Exception):
    """The request cannot be accepted; ``status`` answers it, and the connection cannot be used any further."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def too_large(max_body_size: int) -> BadRequest:
    """The refusal of a body larger than ``max_body_size``."""
    return BadRequest(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than the limit of {max_body_size} bytes"
    )
