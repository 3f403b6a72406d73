"""``--check`` on the database: whether it answers, and the checks for its kind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from threadbridge.database.dbutils_check import connection_settings
from threadbridge.database.drivers import database_of
from threadbridge.doctor.finding import Finding, Level
from threadbridge.doctor.mysql import Load, MySQLChecks, advice

# Seconds that connecting, and each check, may take.
TIME_LIMIT = 5.0
# The package of the driver for which there are more checks.
MYSQL = "MySQLdb"

T = TypeVar("T")


def check_database(pool: Any, load: Load) -> Iterator[Finding]:
    """Check the database of a ``PooledDB``; no step takes much longer than `TIME_LIMIT`."""
    # Connect as the pool does, but not through the pool, which may wait without a limit.
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
    for subject, check in MySQLChecks(driver, settings, connection, load).all:
        try:
            finding = _within(TIME_LIMIT, check)
        except TimeoutError:
            yield _no_answer(subject)
            return
        except Exception as error:  # noqa: BLE001 - a check that fails is a finding too
            finding = Finding(subject, Level.ERROR, f"cannot be checked: {_described(error)}", _advice(error))
        yield finding


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Call the function and return its result.

    Raises ``TimeoutError`` if it takes longer; the call is then abandoned in its thread.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result(seconds)


def _described(error: Exception) -> str:
    """The error's text, with the database's error number if it has one."""
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
        return advice(error)
    return "check whether the database runs, and whether its address, user and password are right"


def _driver_of(kind: type) -> str:
    """The package of the driver that defines the class, or from whose class the application derived it."""
    packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return MYSQL if MYSQL in packages else packages[0]
