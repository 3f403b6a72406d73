"""Everything at once: all kinds of clients, cancellations, a database that dies and comes back.

The database itself is the witness. It lasts for 12 s, or as long as ``CHAOS_SECONDS`` says: 600
are a good test of a release. ``CHAOS_SEED`` repeats the choices of a run, which are printed when it fails.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor

from tests.support.databases import Witness, connect_settings, kill_server, start_server
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.processes import private_mariadb
from threadbridge import current
from threadbridge.database.drivers.mysql_errors import OUTAGE_ERRORS

SECONDS = float(os.environ.get("CHAOS_SECONDS", "12"))
SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
CONNECTIONS = 6
PLAIN = [("Content-Type", "text/plain")]


class Application:
    """Answers what it was asked, by way of the database. Keeps the errors that must not be."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        # An error because of the database's absence is one while this is set, or was when the request began.
        self.outages = 0
        self.foreign: list[str] = []
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._lock = threading.Lock()

    def _count(self, counter: Counter[str], kind: str) -> None:
        with self._lock:
            counter[kind] += 1

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        kind = environ["PATH_INFO"].strip("/")
        parameters = parse_qs(environ["QUERY_STRING"])
        [token], [seconds] = parameters["token"], parameters["seconds"]
        outages = self.outages
        self._count(self.begun, kind)
        request = current()
        try:
            yield from getattr(self, kind)(token, seconds, start_response)
        except GeneratorExit:
            raise
        except Exception as error:
            number = error.args[0] if isinstance(error, MySQLdb.Error) and error.args else None
            is_outage = outages != self.outages or outages % 2 == 1
            if not request.cancelled and not (is_outage and (number in OUTAGE_ERRORS or number == 0)):
                self.foreign.append(f"{kind} {token}: {error!r}")
            # pytest keeps all that is logged, and with an error all that was held where it was raised.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            self._count(self.ended, kind)

    def quick(self, token: str, seconds: str, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield token.encode()

    def query(self, token: str, seconds: str, start_response: StartResponse) -> Iterator[bytes]:
        with closing(self.pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT %s, SLEEP(%s)", (token, seconds))
            answer = cursor.fetchone()
        # An interrupted SLEEP may give 1 in place of an error.
        assert answer == (token, 0), answer
        start_response("200 OK", PLAIN)
        yield token.encode()

    def write(self, token: str, seconds: str, start_response: StartResponse) -> Iterator[bytes]:
        with closing(self.pool.dedicated_connection()) as connection, closing(connection.cursor()) as cursor:
            connection.begin()
            cursor.execute("INSERT INTO notes VALUES (%s)", (token,))
            cursor.execute("SELECT SLEEP(%s)", (seconds,))
            cursor.execute("INSERT INTO notes VALUES (%s)", (token,))
            connection.commit()
        start_response("200 OK", PLAIN)
        yield token.encode()

    def stream(self, token: str, seconds: str, start_response: StartResponse) -> Iterator[bytes]:
        with closing(self.pool.connection()) as connection:
            cursor = connection.cursor(SSCursor)
            cursor.execute("SELECT RPAD(%s, 1000, 'x') FROM seq_1_to_300", (token,))
            start_response("200 OK", PLAIN)
            try:
                while (row := cursor.fetchone()) is not None:
                    yield row[0].encode()
            except BaseException:
                cursor.connection.close()
                raise
            cursor.close()
        yield token.encode()

    def forget(self, token: str, seconds: str, start_response: StartResponse) -> Iterator[bytes]:
        """Leaves its connection to the garbage collector."""
        connection = self.pool.connection()
        connection.cursor().execute("SELECT %s", (token,))
        cycle = [connection]
        cycle.append(cycle)
        start_response("200 OK", PLAIN)
        yield token.encode()


class Crowd:
    """Clients that each do one thing after the other, chosen at random."""

    def __init__(self, port: int, number: int) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.committed: list[str] = []
        # The answer says that they have changed nothing.
        self.refused: list[str] = []
        self._port = port
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, args=(index, random.Random(SEED + index)), daemon=True)
            for index in range(number)
        ]

    def _live(self, index: int, chance: random.Random) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            kind = chance.choice(("quick", "query", "query", "query", "write", "stream", "forget"))
            leaves = chance.random() < 0.5
            seconds = chance.random() / (5 if leaves else 50)
            token = f"{index}-{count}"
            try:
                self._ask(chance, kind, leaves, seconds, token)
            except OSError as error:
                self.wrong.append(f"{kind} {token}: {error!r}")

    def _ask(self, chance: random.Random, kind: str, leaves: bool, seconds: float, token: str) -> None:
        method = "POST" if kind == "write" and chance.random() < 0.5 else "GET"
        with socket.create_connection(("127.0.0.1", self._port), timeout=120) as client:
            head = f"{method} /{kind}?token={token}&seconds={seconds:.4f} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            client.sendall(f"{head}Content-Length: 4\r\n\r\nbo".encode())
            if chance.random() < 0.1:
                # In the middle of its body.
                return
            client.sendall(b"dy")
            if leaves:
                client.settimeout(max(0.001, chance.random() / 10))
                with contextlib.suppress(TimeoutError):
                    client.recv(100)
                if chance.random() < 0.5:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            answer = b""
            while part := client.recv(1000 if kind == "stream" else 65536):
                answer += part
        status = answer[9:12].decode()
        with self._lock:
            self.answers[f"{kind} {status}"] += 1
        if status == "200":
            # A stream may be cut when the database dies, and is seen to be.
            is_whole = answer.endswith((token.encode(), b"\r\n0\r\n\r\n"))
            if not is_whole and kind != "stream":
                self.wrong.append(f"{kind} {token}: {answer[-100:]!r}")
            if kind == "write":
                self.committed.append(token)
        elif status == "503" and kind == "write":
            self.refused.append(token)
        elif status not in ("500", "503"):
            self.wrong.append(f"{kind} {token}: {answer[:100]!r}")

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()


def until(seconds: float, is_over: Callable[[], bool]) -> None:
    """Return after these seconds, or as soon as it is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_over():
        time.sleep(0.1)


@contextlib.contextmanager
def collecting_garbage() -> Iterator[None]:
    """Collect it now and then, as any process does: also while all connections are forgotten and everybody waits."""
    is_over = threading.Event()

    def collect() -> None:
        while not is_over.wait(0.1):
            gc.collect()

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        yield
    finally:
        is_over.set()
        collector.join()


def test_chaos() -> None:
    chance = random.Random(SEED)
    print(f"CHAOS_SEED={SEED}")
    with private_mariadb() as mariadb:
        Witness(mariadb).connection.close()
        pool = PooledDB(MySQLdb, maxconnections=CONNECTIONS, **connect_settings(mariadb))
        application = Application(pool)
        restarts = 0
        with BridgeThread(application, pool=pool, deadline=60, queue_timeout=60) as server:
            with collecting_garbage(), Crowd(server.port, 24) as crowd:
                end = time.monotonic() + SECONDS
                while time.monotonic() < end and not (application.foreign or crowd.wrong):
                    until(2 + 3 * chance.random(), lambda: bool(application.foreign or crowd.wrong))
                    application.outages += 1
                    kill_server(mariadb)
                    until(chance.random(), lambda: False)
                    start_server(mariadb)
                    application.outages += 1
                    restarts += 1
                    print(f"restart {restarts}: {dict(application.ended)}", flush=True)
            assert application.foreign == []
            assert crowd.wrong == []
            wait_until(lambda: not server.bridge.exchanges.open, "every request has ended", seconds=30)
            wait_until(lambda: application.begun == application.ended, "every call has ended", seconds=30)
            witness = Witness.__new__(Witness)
            witness.connection = MySQLdb.connect(autocommit=True, **connect_settings(mariadb))
            # Slots and connections balance to zero, and nothing is left in the database.
            gc.collect()
            wait_until(lambda: pool._connections == 0, "every connection is back")
            assert [lane.busy for lane in server.bridge.lanes] == [0] * len(server.bridge.lanes)
            wait_until(lambda: witness.running == [], "nothing runs in the database")
            # As many as the pool keeps, and the control connection.
            assert len(witness.connections) <= CONNECTIONS + 1
            # Every write is there as a whole or not at all, and those that were answered are there.
            written = Counter(witness.notes)
            assert set(written.values()) <= {2}
            assert set(crowd.committed) <= set(written)
            assert not set(crowd.refused) & set(written)
        assert restarts >= 2
        for kind in ("quick", "query", "write", "stream", "forget"):
            assert crowd.answers[f"{kind} 200"] > 10, crowd.answers
        print(dict(crowd.answers))
        pool.close()
        witness.connection.close()
