"""A client that got an error or nothing cannot know what became of its POST: the logs and the operators can."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancelling import WAIT, WAITING, get
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.processes import Frontend
from tests.telemetry.test_access_log import lines
from threadbridge import Lane
from threadbridge.admin.snapshot import snapshot
from threadbridge.telemetry.history import History

POST = get("/pay", "POST")


class Payments:
    """Changes data, waits for the test, then commits or rolls back; answers."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.before: tuple[str, ...] = ("INSERT INTO notes VALUES ('paid')",)
        self.after = "commit"
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        with closing(self.pool.connection()) as connection, closing(connection.cursor()) as cursor:
            for step in self.before:
                cursor.execute(step)
            self.entered.release()
            assert self.go_on.wait(30)
            getattr(connection, self.after)()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"paid"])


@pytest.fixture
def payments(mariadb: dict[str, str], witness: Witness) -> Iterator[Payments]:
    pool = PooledDB(MySQLdb, maxconnections=2, **connect_settings(mariadb))
    yield Payments(pool)
    pool.close()


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines about changes that were decided after the end."""
    return [each.getMessage() for each in caplog.records if "has come back since" in each.getMessage()]


def serving(payments: Payments, deadline: float = 20) -> BridgeThread:
    return BridgeThread(payments, pool=payments.pool, lanes=[Lane("own", "*", threads=2, deadline=deadline)])


@pytest.mark.parametrize(("after", "outcome"), [("commit", "committed"), ("rollback", "rolled back")])
def test_after_a_504_one_line_tells_whether_the_changes_were_committed(
    payments: Payments, witness: Witness, caplog: pytest.LogCaptureFixture, after: str, outcome: str
) -> None:
    payments.after = after
    history = History()
    with serving(payments, deadline=0.2) as server:
        server.bridge.telemetry.subscribe(history.read)
        assert server.exchange(POST).startswith(b"HTTP/1.1 504 ")
        wait_until(lambda: len(lines(caplog)) == 1, "it is in the access log")
        [line] = lines(caplog)
        assert (line["status"], line["ending"], line["changes"]) == ("504", "expired", "open")
        # Another reader of the telemetry, after the access log.
        wait_until(lambda: len(history.finished()) == 1, "it is in the history")
        assert [bar["changes"] for bar in history.finished()] == ["open"]
        assert told(caplog) == []
        payments.go_on.set()
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
        assert told(caplog) == [
            f"request {line['id']}: POST /pay ended with status 504 and changes=open; its thread has come back since: "
            f"changes={outcome.replace(' ', '-')}"
        ]
        assert [bar["changes"] for bar in history.finished()] == [outcome]
    assert witness.notes == (["paid"] if after == "commit" else [])
    assert len(told(caplog)) == 1


def test_changes_that_were_committed_before_the_504_are_called_so(
    payments: Payments, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    payments.before = ("INSERT INTO notes VALUES ('paid')", "COMMIT")
    with serving(payments, deadline=0.2) as server:
        assert server.exchange(POST).startswith(b"HTTP/1.1 504 ")
        # Or its thread might come back before the record is made.
        wait_until(lambda: len(lines(caplog)) == 1, "it is in the access log")
        payments.go_on.set()
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
    assert [line["changes"] for line in lines(caplog)] == ["committed"] and witness.notes == ["paid"]
    assert "changes=committed; its thread" in told(caplog)[0] and told(caplog)[0].endswith("changes=committed")


def test_changes_that_begin_after_the_504_are_told_too(
    payments: Payments, caplog: pytest.LogCaptureFixture, witness: Witness
) -> None:
    def change(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        payments.entered.release()
        assert payments.go_on.wait(30)
        with closing(payments.pool.connection()) as connection:
            connection.cursor().execute("INSERT INTO notes VALUES ('late')")
            connection.commit()
        start_response("200 OK", [])
        return iter([])

    with BridgeThread(change, pool=payments.pool, lanes=[Lane("own", "*", threads=1, deadline=0.2)]) as server:
        assert server.exchange(POST).startswith(b"HTTP/1.1 504 ")
        # Or its thread might come back before the record is made.
        wait_until(lambda: len(lines(caplog)) == 1, "it is in the access log")
        payments.go_on.set()
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
    assert [line["changes"] for line in lines(caplog)] == [None] and witness.notes == ["late"]
    assert "changes=none; its thread has come back since: changes=committed" in told(caplog)[0]


def test_when_the_client_has_left_the_end_is_told(
    payments: Payments, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(payments) as server:
        with server.send(POST) as client:
            assert payments.entered.acquire(timeout=10)
            [row] = snapshot(server.bridge, History())["requests"]
            assert (row["state"], row["changes"]) == ("running", "open")
            reset(client)
        wait_until(lambda: len(lines(caplog)) == 1, "it is in the access log")
        payments.go_on.set()
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
    assert [(line["status"], line["changes"]) for line in lines(caplog)] == [("499", "open")]
    assert "status 499 and changes=open" in told(caplog)[0] and told(caplog)[0].endswith("changes=committed")
    assert witness.notes == ["paid"]


def test_what_an_operator_has_stopped_is_told(
    payments: Payments, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    payments.before = ("INSERT INTO notes VALUES ('paid')", f"INSERT INTO notes {WAIT}")
    with serving(payments) as server, server.send(POST) as client:
        witness.wait_for(WAITING)
        [exchange] = server.bridge.exchanges.open
        server.loop.call_soon_threadsafe(server.bridge.exchanges.stop, exchange)
        assert client.recv(1000).startswith(b"HTTP/1.1 504 ")
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
    assert told(caplog)[0].endswith("changes=rolled-back") and witness.notes == []


def test_of_requests_without_changes_and_of_answered_ones_there_is_nothing_to_tell(
    payments: Payments, caplog: pytest.LogCaptureFixture
) -> None:
    payments.go_on.set()
    with serving(payments) as server:
        assert server.request("POST")[1] == b"paid"
        payments.before = ("SELECT 1",)
        assert server.request("POST")[1] == b"paid"
        payments.go_on.clear()
        with server.send(POST) as client:
            assert payments.entered.acquire(timeout=10) and payments.entered.acquire(timeout=10)
            assert payments.entered.acquire(timeout=10)
            reset(client)
        wait_until(lambda: not server.bridge.exchanges.open, "its leaving is noticed")
        payments.go_on.set()
        wait_until(lambda: not server.bridge.exchanges.watch._left_running, "its thread has come back")
    assert [line["changes"] for line in lines(caplog)] == ["committed", None, None]
    assert told(caplog) == []


def test_an_answer_given_before_the_changes_were_rolled_back_is_told(
    payments: Payments, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    """The application has answered and then failed to commit."""

    class Body(list[bytes]):
        def __init__(self) -> None:
            super().__init__([b"paid"])
            self._connection = payments.pool.connection()
            self._connection.cursor().execute("INSERT INTO notes VALUES ('paid')")

        def close(self) -> None:
            assert payments.go_on.wait(30)
            self._connection.close()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Body:
        start_response("200 OK", [])
        return Body()

    with BridgeThread(application, pool=payments.pool) as server:
        assert server.request("POST")[1] == b"paid"
        # Or its thread might come back before the record is made.
        wait_until(lambda: len(lines(caplog)) == 1, "it is in the access log")
        payments.go_on.set()
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
    assert "status 200 and changes=open" in told(caplog)[0] and told(caplog)[0].endswith("changes=rolled-back")
    assert witness.notes == []


APPLICATION = """
import os, time
import MySQLdb
from dbutils.pooled_db import PooledDB

pool = PooledDB(
    MySQLdb, maxconnections=3, unix_socket=os.environ["MYSQL_UNIX_SOCKET"], user=os.environ["MYSQL_USER"],
    password=open(os.environ["MYSQL_PASSWORD_FILE"]).read(), database=os.environ["MYSQL_DATABASE"],
)

def app(environ, start_response):
    connection = pool.connection()
    connection.cursor().execute("INSERT INTO notes VALUES ('cut')")
    open(environ["QUERY_STRING"], "w").close()
    time.sleep(60)
"""


def test_at_the_end_of_the_process_all_that_is_known_is_told(
    tmp_path: Path, mariadb: dict[str, str], witness: Witness
) -> None:
    (tmp_path / "paying.py").write_text(APPLICATION)
    command = ("-m", "threadbridge", "paying:app", "--pool=paying:pool", "--port={port}", "--grace=0.1")
    with Frontend(command, env=mariadb, cwd=tmp_path) as server:
        with (
            socket.create_connection(("127.0.0.1", server.port)) as left,
            socket.create_connection(("127.0.0.1", server.port)) as kept,
        ):
            left.sendall(get("/left?left", "POST"))
            kept.sendall(get("/kept?kept", "POST"))
            wait_until(lambda: (tmp_path / "left").exists() and (tmp_path / "kept").exists(), "both run")
            reset(left)
            wait_until(lambda: "499" in server.output(), "its leaving is noticed")
            assert server.stop(signal.SIGTERM) == 1
        told = [line for line in server.output().splitlines() if "its thread had not come back" in line]
    assert len(told) == 2 and all("changes=open (" in line for line in told)
    assert "POST /left?left ended with status 499;" in told[0] and "POST /kept?kept had no answer yet;" in told[1]
    assert witness.notes == []


def test_a_stuck_thread_that_has_changed_data_is_reported_so_and_its_end_is_told_later(
    payments: Payments, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threadbridge.loop.watch.STUCK_AFTER", 0.2)
    with serving(payments, deadline=0.2) as server:
        assert server.exchange(POST).startswith(b"HTTP/1.1 504 ")
        wait_until(lambda: "its thread is stuck: POST /pay, changes=open;" in caplog.text, "it is reported")
        payments.go_on.set()
        wait_until(lambda: len(told(caplog)) == 1, "the end is told")
    assert told(caplog)[0].endswith("changes=rolled-back")
