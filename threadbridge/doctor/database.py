"""What ``--check`` finds out about the database: whether it answers, and what the module for its kind looks at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from threadbridge.database.drivers import database_of
from threadbridge.database.pool import connection_settings
from threadbridge.doctor.finding import Finding, Level

# Seconds that connecting, and each look at the database, may take.
TIME_LIMIT = 5.0
# The driver's package for which there is more to look at.
MYSQL = "MySQLdb"

T = TypeVar("T")


class Load(NamedTuple):
    """What the database has to bear.

    :param processes: how many processes like this one use it.
    :param connections: how many connections each of their pools may have.
    :param longest_request: seconds that a request may take until its response begins.
    """

    processes: int
    connections: int
    longest_request: float


def check_database(pool: Any, load: Load) -> Iterator[Finding]:
    """Look at the database that a ``PooledDB`` leads to; nothing takes much longer than `TIME_LIMIT`."""
    # As the pool makes its connections, but not by the pool: its waiting knows no time limit.
    settings = connection_settings(pool)
    try:
        connection = _within(TIME_LIMIT, lambda: settings.connect(*settings.args, **settings.kwargs))
    except TimeoutError:
        yield _no_answer("database")
        return
    except Exception as error:  # noqa: BLE001 - whatever the driver raises, there is no connection
        yield Finding("database", Level.ERROR, f"cannot connect: {_described(error)}", _advice(error))
        return
    driver = _driver_of(type(connection))
    if database_of([driver], settings) is None:
        yield Finding(
            "database",
            Level.WARNING,
            f"answers, but queries sent with the driver {driver} cannot be stopped",
            "use another driver: mysqlclient (MySQLdb), psycopg or psycopg2",
        )
        return
    if driver != MYSQL:
        yield Finding("database", Level.OK, f"answers; there are no further checks for the driver {driver}")
        return
    from threadbridge.doctor.mysql import MySQLChecks

    for subject, look in MySQLChecks(driver, settings, connection, load).all:
        try:
            finding = _within(TIME_LIMIT, look)
        except TimeoutError:
            yield _no_answer(subject)
            return
        except Exception as error:  # noqa: BLE001 - a look that fails is a finding too
            finding = Finding(subject, Level.ERROR, f"cannot be checked: {_described(error)}", _advice(error))
        yield finding


def _within(seconds: float, function: Callable[[], T]) -> T:
    """What the function gives; ``TimeoutError`` when it takes longer, and then it goes on in its thread."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again where the outcome is awaited
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result(seconds)


def _described(error: Exception) -> str:
    """An error in words, with the number that databases give it."""
    if len(error.args) == 2 and isinstance(error.args[0], int):
        return f"{error.args[1]} (error {error.args[0]})"
    return f"{type(error).__name__}: {error}"


def _no_answer(subject: str) -> Finding:
    return Finding(
        subject,
        Level.ERROR,
        f"the database has not answered within {TIME_LIMIT:g} s",
        "check whether its host is up and not overloaded, and whether a firewall drops packets to it",
    )


def _advice(error: Exception) -> str:
    if _driver_of(type(error)) == MYSQL:
        from threadbridge.doctor.mysql import advice

        return advice(error)
    return "check whether the database runs, and whether its address, user and password are right"


def _driver_of(kind: type) -> str:
    """The package of the driver whose class it is, or is derived from by the application."""
    packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return MYSQL if MYSQL in packages else packages[0]
