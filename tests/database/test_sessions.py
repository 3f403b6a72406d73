"""Connections come back clean: no request finds another's variables, tables, locks or settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.support.databases import Witness
from tests.support.requests_in_threads import one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.sql.effects import can_be_repeated, may_change_session, only_reads


def autocommit(connection: Any) -> None:
    connection.dbapi_connection.autocommit(True)


def other_database(connection: Any) -> None:
    connection.dbapi_connection.select_db("information_schema")


def other_character_set(connection: Any) -> None:
    connection.dbapi_connection.set_character_set("latin1")


# What a request does, and a query that shows whether another request sees it.
LEFT_BEHIND: dict[str, tuple[str | Callable[[Any], None], str]] = {
    "a variable": ("SET @left = 1", "SELECT @left"),
    "a variable, set in a query": ("SELECT @left := 1", "SELECT @left"),
    "a temporary table": (
        "CREATE TEMPORARY TABLE left_behind (a INT)",
        "SELECT COUNT(*) FROM information_schema.processlist WHERE id = CONNECTION_ID() AND 0 = "
        "(SELECT COUNT(*) FROM left_behind)",
    ),
    "sql_mode": ("SET SESSION sql_mode = 'ANSI'", "SELECT @@sql_mode"),
    "time_zone": ("/* a comment */ SET time_zone = '+07:00'", "SELECT @@time_zone"),
    "autocommit": ("SET autocommit = 1", "SELECT @@autocommit"),
    "the driver's autocommit": (autocommit, "SELECT @@autocommit"),
    "a lock": ("SELECT GET_LOCK('left', 0)", "SELECT IS_USED_LOCK('left') = CONNECTION_ID()"),
    "table locks": ("LOCK TABLES notes WRITE", "SELECT COUNT(*) FROM information_schema.tables"),
    "a database": (other_database, "SELECT DATABASE()"),
    "a character set": (other_character_set, "SELECT @@character_set_client"),
    "what a procedure does": ("CALL leaves_a_variable()", "SELECT @left"),
    "a variable, set between comments": (
        "-- the customer's total\nSELECT @left := 1 -- can't use windows",
        "SELECT @left",
    ),
    "a variable, set in a comment": ("SELECT /*! @left := */ 1", "SELECT @left"),
    "a variable, set behind a setting": ("SET STATEMENT max_statement_time=5 FOR SET @left = 1", "SELECT @left"),
    "what a procedure does, behind a setting": (
        "SET STATEMENT max_statement_time=5 FOR CALL leaves_a_variable()",
        "SELECT @left",
    ),
    "a variable that a query fills": ("SELECT 1 INTO/**/@left", "SELECT @left"),
    "a lock, with a comment": ("SELECT GET_LOCK/**/('left', 0)", "SELECT IS_USED_LOCK('left') = CONNECTION_ID()"),
    "a lock, with a quoted name": ("SELECT `get_lock`('left', 0)", "SELECT IS_USED_LOCK('left') = CONNECTION_ID()"),
    "a number": ("SELECT LAST_INSERT_ID(5)", "SELECT LAST_INSERT_ID()"),
}


def answer(connection: Any, sql: str) -> Any:
    try:
        return one(connection, sql)
    except Exception as error:  # noqa: BLE001 - that, too, is an answer
        return type(error), error.args[0]


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_a_request_leaves_on_a_connection(
    make_pool: Callable[..., Any], witness: Witness, name: str, resets: bool
) -> None:
    witness.rows("CREATE OR REPLACE PROCEDURE leaves_a_variable() SET @left = 1")
    leave, look = LEFT_BEHIND[name]
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool, resets_sessions=resets)
    with running(), closing(pool.connection()) as connection:
        clean = answer(connection, look)
        number = connection.number
        if isinstance(leave, str):
            connection.cursor().execute(leave)
        else:
            leave(connection)
        connection.commit()
    with running(), closing(pool.connection()) as connection:
        found = answer(connection, look)
        assert (found == clean) == (resets or name == "table locks"), (found, clean)
        assert (connection.number == number) == (not resets)
    if resets:
        # This would wait for a lock that was not released.
        witness.rows("SELECT COUNT(*) FROM notes")


def test_where_a_string_ends_depends_on_the_servers_settings(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1, sql_mode="NO_BACKSLASH_ESCAPES")
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute(r"SELECT 'a\', @left := 1, 'b'")
    with running(), closing(pool.connection()) as connection:
        assert one(connection, "SELECT @left") is None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "SELECT LAST_INSERT_ID()",
        "SELECT note FROM notes /* don't lock() */ WHERE note = 'temporary; into @a'",
        "INSERT INTO `notes` (`note`) VALUES ('it''s a \\'temp\\'; LAST_INSERT_ID(5)')",
        "SET STATEMENT max_statement_time=5 FOR SELECT 1",
        "SELECT * FROM notes WHERE note = 'SET @a := 1; LOCK('",
        "INSERT INTO notes VALUES ('; SET @a := GET_LOCK(1)')",
        "UPDATE notes SET note = \"a\\\"; b\" WHERE note = 'it''s; so'",
        "SELECT note FROM notes FOR UPDATE",
        "SHOW TABLES",
        "CREATE TABLE IF NOT EXISTS made_and_dropped (a INT)",
        "DROP TABLE IF EXISTS made_and_dropped",
    ],
)
def test_a_connection_whose_session_is_unchanged_is_reused(
    make_pool: Callable[..., Any], witness: Witness, sql: str
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    numbers = set()
    for _ in range(3):
        with running(), closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            numbers.add(connection.number)
            cursor.execute(sql)
            cursor.fetchall()
    assert len(numbers) == 1


def test_doubtful_statements_count_as_changes() -> None:
    for sql in (b"", b"unknown", b"/*!40101 SET NAMES utf8 */", b"INSERT INTO t VALUES (1); SET @a = 1", b"DO 1"):
        assert not only_reads(sql) and may_change_session(sql) and not can_be_repeated(sql), sql
    for sql in (b"SELECT f(1)", b"SELECT a FROM t WHERE b IN (1) AND unknown_function (2)", b"SELECT /* f(1) */ 1"):
        assert not can_be_repeated(sql), sql
    for sql in (b"SELECT COUNT(*) FROM t WHERE a = 'f(1)'", b"select max(a), lower(b) from (select 1) as t"):
        assert can_be_repeated(sql), sql
