"""The trace of a request, as both sides see it, whatever makes traces of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from threadbridge.sql.statements import Statement


class RequestTrace(Protocol):
    """What a request tells its trace. Methods never raise."""

    @property
    def traceparent(self) -> str:
        """The request's span as W3C Trace Context writes it; "" if no trace will be found by it. Any thread."""

    @property
    def current_traceparent(self) -> str:
        """The span in which this thread works, such as a statement's; "" if it is not recorded. Worker side."""

    def enter(self, queued_at: float, lane: str) -> None:
        """Begin to run: what the application traces in this thread belongs to the request. Worker side.

        :param queued_at: when the request was queued for the lane, by `time.monotonic`.
        """

    def leave(self) -> None:
        """The application's call has ended, in the thread of `enter`. Worker side."""

    def begin_statement(self, statement: Statement, database: Mapping[str, str | int]) -> object:
        """A statement is about to be sent; returns what `end_statement` needs. Worker side.

        :param database: attributes that name the database.
        """

    def end_statement(self, begun: object, statement: Statement) -> None:
        """The database has answered, or the statement has failed. Worker side."""
