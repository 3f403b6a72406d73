"""A thousand clients leave under load, and not one of the others notices."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from contextlib import closing
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB

from tests.support.cancelling import assert_all_is_well, get
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import current


def test_a_thousand_clients_that_leave_affect_no_other_request(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=8, **connect_settings(mariadb))
    foreign: list[BaseException] = []
    counts = {"cancelled": 0, "answered": 0}
    lock = threading.Lock()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        [number] = parse_qs(environ["QUERY_STRING"])["n"]
        request = current()
        try:
            for _ in range(3):
                with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
                    # A few milliseconds, and stopped at once.
                    size = random.randrange(1, 20_000)
                    cursor.execute("SELECT %s, COUNT(MD5(seq)) FROM seq_1_to_20000 WHERE seq <= %s", (number, size))
                    assert cursor.fetchone() == (number, size)
        except Exception as error:
            if not request.cancelled:
                foreign.append(error.with_traceback(None))
            raise
        finally:
            with lock:
                counts["cancelled"] += request.cancelled
                counts["answered"] += not request.cancelled
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [number.encode()]

    stop = threading.Event()

    def clients(server: BridgeThread, leave: bool, seed: int) -> None:
        chance = random.Random(seed)
        number = 0
        while not stop.is_set():
            number += 1
            path = f"/?n={seed}{number:06}"
            with server.send(get(path)) as client:
                if leave:
                    client.settimeout(chance.random() / 50)
                    with contextlib.suppress(TimeoutError):
                        client.recv(1000)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                else:
                    answer = b"".join(iter(lambda client=client: client.recv(1000), b""))  # type: ignore[misc]
                    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(path[4:].encode()), answer

    with BridgeThread(application, pool=pool) as server:
        threads = [
            threading.Thread(target=clients, args=(server, number < 12, number + 1), daemon=True)
            for number in range(16)
        ]
        for thread in threads:
            thread.start()
        try:
            wait_until(
                lambda: (counts["cancelled"] >= 1000 and counts["answered"] >= 50) or bool(foreign),
                "1000 cancellations",
                seconds=120,
            )
        finally:
            stop.set()
        for thread in threads:
            thread.join(20)
        wait_until(lambda: not server.bridge.exchanges.open, "all requests have ended")
        assert foreign == []
        assert_all_is_well(pool, witness)
    pool.close()
