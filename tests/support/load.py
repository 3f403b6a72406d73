"""Clients that ask a small application of the tests without a pause."""

from __future__ import annotations

import http.client
import threading

from tests.support.supervised import pid_of


class Load:
    """Clients that ask one thing after the other, half of them on a new connection each time, half on a kept one."""

    def __init__(self, port: int) -> None:
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._port = port
        self._stopped = threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(4)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        for client in self._clients:
            client.join(60)

    def _ask(self, keeps_its_connection: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stopped.is_set():
            try:
                connection.request("GET", "/")
                self.answers.append(pid_of(connection.getresponse().read()))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            if not keeps_its_connection:
                connection.close()
        connection.close()
