"""PostgreSQL: the only module that knows it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from threadbridge.database import StopFailed

# Seconds to wait for the server's answer to a cancel request.
CONTROL_TIMEOUT = 3

QUERY_CANCELED = "57014"
TOO_MANY_CONNECTIONS = "53300"


class PostgreSQL:
    """Stops queries by the driver's own ``cancel``, which asks the server by a connection of its own."""

    defaults: Mapping[str, Any] = {}

    def __init__(self, driver: str) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._operational: type[Exception] = module.OperationalError
        self._canceled: type[Exception] = importlib.import_module(f"{driver}.errors").QueryCanceled

    def identify(self, connection: Any) -> None:
        """See `threadbridge.database.Database`."""

    def stop(self, connection: Any, identity: None) -> None:
        """See `Database`."""
        if connection.closed:
            return
        try:
            # psycopg 3.2 has a cancel with a timeout; older ones and psycopg2 wait as long as the network does.
            cancel = getattr(connection, "cancel_safe", None)
            if cancel is not None:
                cancel(timeout=CONTROL_TIMEOUT)
            else:
                connection.cancel()
        except self._error as error:
            raise StopFailed(str(error)) from error

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return _sqlstate(error) == QUERY_CANCELED

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        # Class 08: connection exception; 57P0x: the server is shutting down or starting up; none: no answer at all.
        state = _sqlstate(error)
        return isinstance(error, self._operational) and (
            state is None or state[:2] == "08" or state[:4] == "57P0" or state == TOO_MANY_CONNECTIONS
        )

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._canceled("canceling statement: nobody waits for this request any more")


def _sqlstate(error: BaseException) -> str | None:
    state: str | None = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state
