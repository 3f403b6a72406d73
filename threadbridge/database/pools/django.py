"""The guard of one of Django's databases, an alias of ``django.db.connections``; `django_check` lists what it uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import django.db
from django.db import connections

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.borrow import Borrow, HeldConnection
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.django_check import check, describe
from threadbridge.database.pools.django_connection import DjangoConnection
from threadbridge.database.pools.django_hooks import Guarded, guards, hook_connections


class DjangoGuard(Guard):
    """Sees the connections that threads make to a database, their statements and their transactions.

    Django has a connection for each thread, or takes one from psycopg's pool; then requests wait for one here, in place
    of the pool. What Django itself does for lost connections (``CONN_HEALTH_CHECKS``, ``CONN_MAX_AGE``) is left to it.
    Threads that serve no request, such as those of management commands, are not affected. Raises ``ValueError`` for a
    database that another guard has, or that is not configured, and for a Django that is not supported.

    :param database: an alias, or Django's connection.
    :param rerun: has no effect: Django runs no statement again.
    :param resets_sessions: has no effect: Django keeps a connection's session with it.
    """

    def __init__(
        self,
        database: Any,
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        self.alias: str = database if isinstance(database, str) else database.alias
        if self.alias in guards:
            raise ValueError(
                f"Django's database {self.alias!r} belongs to another Bridge already; give both applications to one"
            )
        wrapper = connections[self.alias]
        if wrapper.vendor == "unknown":
            raise ValueError(f"Django's database {self.alias!r} is not configured: it has no ENGINE")
        check(wrapper)
        name = describe(wrapper)
        service = wrapper.settings_dict["OPTIONS"].get("service")
        super().__init__(
            name,
            ConnectionSettings(
                self._connect_apart,
                (name,),
                {} if service is None else {"service": service},
            ),
            [wrapper.Database.__name__],
            on_ask,
            **options,
        )
        guarded = Guarded(self, self.defaults)
        guards[self.alias] = guarded
        hook_connections()
        # The pool takes the connections' defaults when Django makes it.
        pool = getattr(wrapper, "pool", None)
        if pool is not None:
            # Not above: few need it.
            from threadbridge.database.pools.psycopg_hand_out import HandOut

            guarded.hand_out = HandOut(self, pool)
            guarded.hand_out.wrap()
        self._hand_out = guarded.hand_out
        forks.copies(self)

    def close(self) -> None:
        super().close()
        guards.pop(self.alias, None)
        if self._hand_out is not None:
            self._hand_out.unwrap()

    def become_copy(self) -> None:
        super().become_copy()
        if self.closed:
            return
        # The parent has the connections.
        wrapper = connections[self.alias]
        wrapper.connection = None
        if self._hand_out is not None:
            self._hand_out.line.clear()
            wrapper._connection_pools.pop(self.alias, None)

    @property
    def size(self) -> int:
        return 0 if self._hand_out is None else self._hand_out.size

    @property
    def in_use(self) -> int:
        # The copy is atomic.
        held = self._by_request.copy().values()
        return sum(not borrow.connection.is_abandoned for borrows in held for borrow in tuple(borrows))

    # Errors. Django raises its own in place of the driver's.

    def cancelled(self) -> Exception:
        original = super().cancelled()
        error: Exception = django.db.OperationalError(*original.args)
        error.__cause__ = original
        return error

    def is_outage(self, error: BaseException) -> bool:
        return super().is_outage(_original(error))

    def is_lost(self, error: BaseException) -> bool:
        return super().is_lost(_original(error))

    def is_fatal(self, error: Exception) -> bool:
        original = _original(error)
        return isinstance(original, Exception) and super().is_fatal(original)

    # Connections.

    def lend(self, connection: HeldConnection, request: TrackedRequest) -> Borrow:
        borrow = super().lend(connection, request)
        assert isinstance(connection, DjangoConnection)
        # After the borrow has ended.
        request.at_end[connection] = connection.close_if_stopped
        return borrow

    def count_in(self, connection: HeldConnection) -> None:
        if self._hand_out is not None and isinstance(connection, DjangoConnection):
            self._hand_out.replace(connection, connection.made)

    def _connect_apart(self, name: str, **parameters: Any) -> Any:
        """Connect as Django does, but for these parameters, and without the pool."""
        usual = connections[self.alias]
        options = {key: value for key, value in usual.settings_dict["OPTIONS"].items() if key != "pool"}
        wrapper = type(usual)({**usual.settings_dict, "OPTIONS": options}, self.alias)
        return wrapper.get_new_connection({**wrapper.get_connection_params(), **parameters})


def _original(error: BaseException) -> BaseException:
    """The driver's error for which Django raises its own."""
    return error.__cause__ if isinstance(error, django.db.Error) and error.__cause__ is not None else error
