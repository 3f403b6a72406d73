"""The HTTP table, by topic: what a client may send, and what must come of it."""

from tests.http_cases import bodies, connections, fields, request_line
from tests.http_cases.row import Call, Row

ROWS: list[Row] = [*request_line.ROWS, *fields.ROWS, *bodies.ROWS, *connections.ROWS]

__all__ = ["ROWS", "Call", "Row"]
