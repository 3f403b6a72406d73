"""The store of outcomes: its bounds, what becomes of requests while it fails, and the processes that share it."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.forking import is_alive
from tests.support.idempotent import Application, detail, is_replayed, post, serve
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.processes import Frontend
from threadbridge import Bridge
from threadbridge.worker import idempotency_file
from threadbridge.worker.idempotency_store import Answer, IdempotencyStore, NoRoom, StoreError, owner_of


@contextmanager
def opened(path: Path, *, age: float = 60, size: int = 1024**2) -> Iterator[IdempotencyStore]:
    store = IdempotencyStore(str(path), age=age, size=size)
    yield store
    store.close()


def rows(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql, values).fetchall()


def test_what_is_kept_is_bounded_and_no_key_is_lost(path: Path) -> None:
    """The oldest answers go first; when keys alone fill it, new ones are refused, and old ones are still known."""
    answer = Answer("200 OK", [("A", "b")], b"x" * 10_000)
    with opened(path, size=100 * 1024) as store:
        for number in range(50):
            assert store.begin(b"%d" % number, b"f", "id", "client") is None
            store.end(b"%d" % number, answer)
            [(total, counted)] = rows(path, "SELECT (SELECT bytes FROM total), (SELECT SUM(size) FROM outcomes)")
            assert total == counted <= 100 * 1024
        newest, oldest = store.begin(b"49", b"f", "id", "client"), store.begin(b"0", b"f", "id", "client")
        assert newest is not None and newest.answer == answer
        assert oldest is not None and oldest.answer is None and "dropped" in oldest.note
        number = 50
        with pytest.raises(NoRoom):
            for number in range(50, 1000):
                assert store.begin(b"%d" % number, b"f", "id", f"client {number}") is None
                store.end(b"%d" % number, answer)
        assert number == 100
        assert store.begin(b"1", b"f", "id", "client") is not None
        # It is over when they expire.
        rows(path, "UPDATE outcomes SET expires = 0")
        assert store.begin(b"next", b"f", "id", "client") is None


def fill(store: IdempotencyStore, client: str) -> int:
    """How many keys a client may add."""
    for number in range(1000):
        try:
            assert store.begin(f"{client} {number}".encode(), b"f", "id", client) is None
        except NoRoom:
            return number
        store.end(f"{client} {number}".encode(), None)
    raise AssertionError("there is no end")


def counts(path: Path) -> tuple[int, list[int]]:
    """How many keys there are, and how many of each client, as they are counted."""
    [(total, found)] = rows(path, "SELECT (SELECT keys FROM total), (SELECT COUNT(*) FROM outcomes)")
    assert total == found
    each = [number for (number,) in rows(path, "SELECT keys FROM clients ORDER BY keys")]
    assert each == [number for (number,) in rows(path, "SELECT COUNT(*) FROM holders GROUP BY client ORDER BY 1")]
    return total, each


def test_a_client_that_has_its_share_leaves_room_for_others(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path, size=100 * 1024) as store:
        assert [fill(store, client) for client in ("one", "two", "three")] == [50, 25, 13]
        assert counts(path) == (88, [13, 25, 50])
        [line] = [record.getMessage() for record in caplog.records]
        assert "request id was not run: its client has as many keys in the idempotency store" in line
        # It is no failure of the store, of which the next request would have to tell the end.
        assert store.begin(b"of another", b"f", "id", "four") is None and len(caplog.records) == 1
        # What has run is known, and is not run again.
        known = store.begin(b"one 0", b"f", "id", "one")
        assert known is not None and known.state == "ended"
        # There is room again when keys expire, or need not be known.
        rows(path, "UPDATE outcomes SET expires = 0 WHERE CAST(key AS TEXT) LIKE 'two %'")
        assert fill(store, "two") == 18
        store.forget(b"of another")
        assert counts(path) == (81, [13, 18, 50])
        rows(path, "UPDATE outcomes SET expires = 0")
        for number in range(3):
            assert store.begin(b"%d" % number, b"f", "id", "five") is None
        assert counts(path) == (3, [3])


def test_a_request_that_is_refused_removes_what_has_expired(path: Path) -> None:
    """Or the next one would have to do it again, in vain."""
    with opened(path, size=100 * 1024) as store:
        assert [fill(store, "one"), fill(store, "two")] == [50, 25]
        rows(path, "UPDATE outcomes SET expires = 0 WHERE CAST(key AS TEXT) IN ('two 0', 'two 1')")
        rows(path, "UPDATE holders SET client = (SELECT client FROM clients WHERE keys = 50)")
        rows(path, "DELETE FROM clients WHERE keys = 25")
        rows(path, "UPDATE clients SET keys = 75")
        with pytest.raises(NoRoom):
            store.begin(b"more", b"f", "id", "one")
        assert counts(path) == (73, [73])


def test_a_client_whose_keys_have_expired_need_not_wait_until_others_have_removed_them(path: Path) -> None:
    with opened(path, size=300 * 1024) as store:
        assert [fill(store, str(number)) for number in range(5)] == [150, 75, 38, 19, 9]
        rows(path, "UPDATE outcomes SET expires = 0 WHERE CAST(key AS TEXT) LIKE '0 %'")
        assert store.begin(b"next", b"f", "id", "0") is None


# What versions without shares have made; one may be at work while another begins, in an update of several frontends.
EARLIER = """
CREATE TABLE outcomes (
    key BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, owner TEXT NOT NULL, expires REAL NOT NULL, status TEXT,
    headers TEXT, body BLOB, request_id TEXT NOT NULL, note TEXT NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX outcomes_by_expiry ON outcomes (expires);
CREATE INDEX outcomes_with_answers ON outcomes (expires) WHERE status IS NOT NULL;
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER added AFTER INSERT ON outcomes BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER changed AFTER UPDATE OF size ON outcomes BEGIN
    UPDATE total SET bytes = bytes + NEW.size - OLD.size;
END;
CREATE TRIGGER removed AFTER DELETE ON outcomes BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def test_the_file_of_an_earlier_version_can_be_used_also_while_that_runs(path: Path) -> None:
    def begin_earlier(key: bytes) -> None:
        owner = owner_of(os.getpid())
        values = (key, b"f", owner, time.time() + 60, "id", 1024)
        earlier.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?, NULL, NULL, NULL, ?, '', ?)", values)

    with closing(sqlite3.connect(path, isolation_level=None)) as earlier:
        earlier.executescript(EARLIER)
        path.chmod(0o600)
        begin_earlier(b"before")
        with opened(path, size=100 * 1024) as store:
            assert store.begin(b"new", b"f", "id", "client") is None
            begin_earlier(b"beside")
            for key in (b"before", b"beside"):
                known = store.begin(key, b"f", "id", "client")
                assert known is not None and known.state == "running"
            earlier.execute("UPDATE outcomes SET owner = '', expires = ?, note = 'by the earlier'", (time.time() + 60,))
            known = store.begin(b"new", b"f", "id", "client")
            assert known is not None and known.note == "by the earlier"
            # Those of the earlier version belong to nobody, but take their places.
            assert counts(path) == (3, [1]) and fill(store, "client") == 48
            earlier.execute("DELETE FROM outcomes WHERE key = ?", (b"before",))
            earlier.execute("DELETE FROM outcomes WHERE key = ?", (b"new",))
            assert counts(path) == (49, [48])
        # It has been made ready once.
        with opened(path) as store:
            assert store.begin(b"again", b"f", "id", "other") is None and counts(path) == (50, [1, 48])


def test_a_client_beyond_its_share_is_told_so_and_others_are_served(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    with serving(idempotency_size=64 * 1024, xheaders=True) as server:

        def pay(address: str, key: int) -> int:
            return post(server, key=str(key), X_Real_IP=address)[0].status

        # A network of 64 bits is one client.
        assert {pay(f"2001:db8::{number:x}", number) for number in range(32)} == {201}
        response, body = post(server, key="32", X_Real_IP="2001:db8::ffff")
        assert response.status == 503 and response.headers["Retry-After"] == "60" and application.runs == 32
        assert "The request was not run" in detail(body) and "keys of this client" in detail(body)
        assert is_replayed(post(server, key="0", X_Real_IP="2001:db8::")[0])
        assert pay("2001:db8:0:1::1", 32) == pay("192.0.2.1", 33) == 201
        assert post(server, key=None, X_Real_IP="2001:db8::")[0].status == 201, "without a key nothing is limited"


def test_what_runs_does_not_expire(path: Path) -> None:
    with opened(path) as store:
        assert store.begin(b"k", b"f", "id", "client") is None
        rows(path, "UPDATE outcomes SET expires = 0")
        assert store.begin(b"other", b"f", "id", "client") is None
        known = store.begin(b"k", b"f", "id", "client")
        assert known is not None and known.state == "running"


def test_the_owner_is_a_process_and_not_its_number(path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        with opened(path) as store:
            store.begin(b"k", b"f", "id", "client")
            owner = owner_of(other.pid)
            rows(path, "UPDATE outcomes SET owner = ?", owner)
            known = store.begin(b"k", b"f", "id", "client")
            assert known is not None and known.state == "running"
            rows(path, "UPDATE outcomes SET owner = ?", f"{owner}0")
            known = store.begin(b"k", b"f", "id", "client")
            assert known is not None and known.state == "lost"
        other.kill()


def store_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "idempotency store" in each.getMessage()]


def test_a_locked_store_runs_nothing_until_it_is_free(
    application: Application,
    serving: Callable[..., BridgeThread],
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with serving() as server:
        assert post(server, key="first")[0].status == 201
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            response, body = post(server)
            assert response.status == 503 and "The request was not run" in detail(body)
            assert response.headers["Retry-After"] == "5"
        assert server.request()[0].status == 201, "other requests are served"
        other.close()
        assert post(server)[0].status == 201
    assert application.runs == 3
    first, last = store_lines(caplog)
    assert "cannot be used: database is locked" in first and "can be used again" in last


def test_an_outcome_that_cannot_be_stored_is_never_run_again(
    application: Application,
    serving: Callable[..., BridgeThread],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with serving() as server:
        post(server, key="first")
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(post(server, path="/pay/waits")[0].status))
        thread.start()
        assert application.entered.acquire(timeout=10)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        application.go_on.set()
        thread.join()
        assert answers == [201], "the client that is there gets its answer"
        other.close()
        response, body = post(server, path="/pay/waits")
        assert response.status == 409 and "could not be stored" in detail(body)
        assert "Retry-After" not in response.headers
    assert application.runs == 2


def test_a_broken_store_is_over_when_it_is_moved_away(
    application: Application, serving: Callable[..., BridgeThread], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(b"no database" * 1000)
    with serving() as server:
        assert post(server)[0].status == 503 and application.runs == 0
        path.rename(path.with_suffix(".broken"))
        assert post(server)[0].status == 201 and is_replayed(post(server)[0])
        # The same while it is open, with what is beside it.
        path.unlink()
        assert post(server)[0].status == 201
    assert application.runs == 2
    assert "file is not a database" in store_lines(caplog)[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_runs_nothing_until_there_is_room(
    application: Application,
    small_disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve(application, small_disk / "outcomes.sqlite") as server:
        assert post(server, key="first")[0].status == 201
        statuses: list[int] = []
        with open(small_disk / "filler", "wb", buffering=0) as filler:
            # The file has some room left, and gives some back when it is closed.
            while statuses[-3:] != [503] * 3:
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(4096))
                statuses.append(post(server, key=f"k{len(statuses)}")[0].status)
                assert len(statuses) < 500
        assert application.runs == 1 + statuses.count(201)
        (small_disk / "filler").unlink()
        refused = f"k{len(statuses) - 1}"
        assert post(server, key=refused)[0].status == 201
        assert is_replayed(post(server, key=refused)[0])
        assert is_replayed(post(server, key="first")[0])
    assert "full" in store_lines(caplog)[0] and "can be used again" in store_lines(caplog)[-1]


def test_a_disk_that_is_full_when_the_file_is_made_is_over_too(small_disk: Path) -> None:
    """Wherever in the making it gets full."""
    path, filler = small_disk / "outcomes.sqlite", small_disk / "filler"
    refused, descriptors = 0, len(os.listdir("/proc/self/fd"))
    for room in range(0, 160 * 1024, 4096):
        with open(filler, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(0, file.tell() - room))
        with opened(path) as store:
            try:
                assert store.begin(b"k", b"f", "id", "client") is None
            except StoreError:
                refused += 1
                filler.unlink()
                assert store.begin(b"k", b"f", "id", "client") is None, room
        for left in small_disk.iterdir():
            left.unlink()
        assert len(os.listdir("/proc/self/fd")) == descriptors, room
    assert 5 < refused < 40


def test_a_directory_that_another_has_locked_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with opened(path) as store, opened(path) as other:
        directory = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)
        for each in (store, other):
            with pytest.raises(StoreError, match="temporarily unavailable"):
                each.begin(b"k", b"f", "id", "client")
        os.close(directory)
        assert other.begin(b"k", b"f", "id", "client") is None and store.begin(b"k", b"f", "id", "client") is not None


def test_a_file_that_is_removed_at_any_moment_is_made_again(path: Path) -> None:
    """Never an empty one, which would stay."""
    removing = "import pathlib, sys\nwhile True:\n    pathlib.Path(sys.argv[1]).unlink(missing_ok=True)"
    failures: list[str] = []
    with opened(path) as store:
        with subprocess.Popen([sys.executable, "-c", removing, path]) as remover:
            for number in range(300):
                try:
                    assert store.begin(b"%d" % number, b"f", "id", "client") is None
                except StoreError as error:
                    failures.append(str(error))
            remover.kill()
        assert not [failure for failure in failures if "format" in failure]
        assert store.begin(b"k", b"f", "id", "client") is None and store.begin(b"k", b"f", "id", "client") is not None


def test_a_file_that_others_may_write_to_is_not_used(path: Path) -> None:
    with opened(path) as store:
        assert store.begin(b"k", b"f", "id", "client") is None
        path.chmod(0o660)
        with pytest.raises(StoreError, match="others may write to it"):
            store.begin(b"k", b"f", "id", "client")
        path.chmod(0o640)
        assert store.begin(b"k", b"f", "id", "client") is not None


def test_a_key_that_is_to_be_forgotten_is_so_when_the_store_can_be_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with opened(path) as store:
        assert store.begin(b"k", b"f", "id", "client") is None
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            store.forget(b"k")
        assert store.begin(b"k", b"f", "id", "client") is None
        # Only once: now it runs.
        assert store.begin(b"other", b"f", "id", "client") is None
        known = store.begin(b"k", b"f", "id", "client")
        assert known is not None and known.state == "running"


def test_without_file_descriptors_nobody_is_taken_for_dead(path: Path) -> None:
    with opened(path) as store:
        assert store.begin(b"k", b"f", "id", "client") is None
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            assert store.begin(b"new", b"f", "id", "client") is None
            with pytest.raises(StoreError, match="Too many open files"):
                store.begin(b"k", b"f", "id", "client")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for key in (b"k", b"new"):
            known = store.begin(key, b"f", "id", "client")
            assert known is not None and known.state == "running"


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"idempotent_paths": ["/pay"]}, "give both"),
        ({"idempotency_store": "/tmp/a"}, "give both"),
        ({"idempotent_paths": ["pay"], "idempotency_store": "a"}, "matches no path"),
        ({"idempotent_paths": ["/pay"], "idempotency_store": "/nowhere/a"}, "expected a file in a directory"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Bridge(Application(), threads=1, **parameters)


# Real processes.

PAYING = """
import os, sys, time

def app(environ, start_response):
    flag = environ["QUERY_STRING"]
    with open("runs", "a") as runs:
        runs.write("run\\n")
    if flag in ("never", "flag"):
        open(flag + ".entered", "w").close()
        while not os.path.exists(flag):
            time.sleep(0.01)
    answer = os.getpid()
    if flag.startswith("fork"):
        answer = os.fork()
        if not answer:
            while not os.path.exists("answered"):
                time.sleep(0.01)
            if flag == "fork-exit":
                sys.exit(0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(answer).encode()]
"""


@pytest.fixture
def paying(tmp_path: Path) -> Callable[[], Frontend]:
    (tmp_path / "paying.py").write_text(PAYING)
    options = ("--threads=4", "--idempotent_path=/pay*", "--idempotency_store=outcomes.sqlite")
    return lambda: Frontend(("-m", "threadbridge", "paying:app", "--port={port}", *options), cwd=tmp_path)


def ask(server: Frontend, key: str, flag: str = "") -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):
        # Through a proxy, all would come under one name.
        connection.request("POST", f"/pay?{flag}", body=b"1", headers={"Idempotency-Key": key, "Host": "site"})
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def test_after_a_crash_in_the_middle_nothing_is_run_again(paying: Callable[[], Frontend], tmp_path: Path) -> None:
    with paying() as server:
        assert ask(server, "before")[0] == 200
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(
                b"POST /pay?never HTTP/1.1\r\nHost: site\r\nContent-Length: 1\r\nIdempotency-Key: crashed\r\n\r\n1"
            )
            wait_until(lambda: (tmp_path / "never.entered").exists(), "it runs")
            server.stop(signal.SIGKILL)
    with paying() as server:
        status, body, headers = ask(server, "crashed", "never")
        assert status == 409 and "Retry-After" not in headers
        assert "its process ended before it had answered" in detail(body)
        assert ask(server, "before")[2]["Idempotency-Replayed"] == "true"
        assert (tmp_path / "runs").read_text() == "run\n" * 2
        assert ask(server, "after")[0] == 200


def test_processes_share_what_they_know(paying: Callable[[], Frontend], tmp_path: Path) -> None:
    with paying() as one, paying() as other:
        results: list[tuple[int, bytes, http.client.HTTPMessage]] = []
        barrier = threading.Barrier(16)

        def client(server: Frontend, number: int) -> None:
            barrier.wait(10)
            results.append(ask(server, f"shared-{number}"))

        clients = [threading.Thread(target=client, args=([one, other][n % 2], n // 4)) for n in range(16)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert {status for status, _, _ in results} <= {200, 409}
        assert (tmp_path / "runs").read_text() == "run\n" * 4
        for number in range(4):
            answers = [ask(server, f"shared-{number}") for server in (one, other)]
            assert [status for status, _, _ in answers] == [200, 200] and answers[0][1] == answers[1][1]
        # What runs in one is known in the other, with the process that runs it.
        thread = threading.Thread(target=ask, args=(one, "slow", "flag"))
        thread.start()
        wait_until(lambda: (tmp_path / "flag.entered").exists(), "it runs")
        status, _, headers = ask(other, "slow", "flag")
        assert (status, headers["Retry-After"]) == (409, "1")
        (tmp_path / "flag").touch()
        thread.join()
        assert ask(other, "slow", "flag")[:2] == (200, str(one.process.pid).encode())


@pytest.mark.parametrize("how", ["fork-exit", "fork-return"])
def test_a_forked_child_leaves_the_answer_alone(paying: Callable[[], Frontend], tmp_path: Path, how: str) -> None:
    with paying() as server:
        first = ask(server, "k", how)
        assert first[0] == 200
        (tmp_path / "answered").touch()
        wait_until(lambda: not is_alive(int(first[1])), "the child has ended")
        again = ask(server, "k", how)
        assert again[:2] == first[:2] and again[2]["Idempotency-Replayed"] == "true"
        assert ask(server, "other")[0] == 200
