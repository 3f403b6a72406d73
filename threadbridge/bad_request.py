"""Why a request is refused, before it reaches anybody."""

from __future__ import annotations

from http import HTTPStatus


class BadRequest(Exception):
    """The request cannot be accepted; ``status`` answers it, and the connection cannot be used any further."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def too_large(max_body_size: int) -> BadRequest:
    """The refusal of a body that is larger than that."""
    return BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {max_body_size} bytes")
