"""`start.sh restart` behind the real nginx, under load: every request is answered, every POST is carried out once."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.installation import QUERY, installed
from tests.support.nginx_server import Nginx

# The reports know no POST; this one writes down what it was asked to do.
POST = """
from flask import request

@app.post("/orders/")
def order() -> str:
    with open({orders!r}, "a") as orders:
        orders.write(request.get_data(as_text=True) + "\\n")
    return "ordered"

if __name__ =="""
CLIENTS = 8
REQUESTS = 5000


class Load:
    """Clients that ask one thing after the other, each on a connection of its own: two GETs, then a POST."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self.orders: list[str] = []
        self._port = port
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(CLIENTS)

    def __enter__(self) -> Load:
        self._clients = [self._executor.submit(self._ask) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        for client in self._clients:
            client.result(timeout=60)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stopped.is_set():
            order = str(next(self._numbers))
            for method, path, body in (("GET", "/", None), ("GET", QUERY, None), ("POST", "/orders/", order)):
                try:
                    connection.request(method, path, body)
                    response = connection.getresponse()
                    response.read()
                    outcome = str(response.status)
                except (OSError, http.client.HTTPException) as error:
                    outcome = repr(error)
                    connection.close()
                with self._lock:
                    self.answered += 1
                    if outcome != "200":
                        self.failures.append(f"{method} {path}: {outcome}")
                    if method == "POST":
                        self.orders.append(order)
        connection.close()


def test_restarts_under_load_lose_no_request(sample_data: dict[str, str], tmp_path: Path) -> None:
    carried_out = tmp_path / "orders"
    with installed() as installation, Nginx("standalone.conf", tmp_path) as nginx:
        program = installation.directory / "run.py"
        program.write_text(program.read_text().replace("if __name__ ==", POST.format(orders=str(carried_out))))
        installation.ports = sorted(nginx.frontend_ports, key=str)
        installation.env.update(sample_data, FRONTENDS="{} {}".format(*nginx.frontend_ports))
        installation.run()
        with Load(nginx.port) as load:
            while load.answered < REQUESTS:
                pids = installation.pids()
                installation.run("restart")
                assert set(installation.pids()).isdisjoint(pids)
    assert load.failures == []
    assert load.answered >= REQUESTS
    assert Counter(carried_out.read_text().split()) == Counter(load.orders)
