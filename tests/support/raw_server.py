"""A server of a few lines that answers what a test says, however wrong, and keeps the requests that it has received."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def whole_request(client: socket.socket) -> bytes:
    """The next request with its body, whose length it gives; b"" when the client has closed the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = client.recv(65536)
        if not part:
            return received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        part = client.recv(65536)
        if not part:
            break
        body += part
    return head + b"\r\n\r\n" + body


class RawServer:
    """``with RawServer(answer) as server:`` listens at ``server.url``.

    ``answer(client, request)`` is called in the connection's thread for each request, and sends what it likes; the
    connection goes on to the next request if it returns true, and closes otherwise.
    """

    def __init__(self, answer: Callable[[socket.socket, bytes], object]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # In the order in which they came; and how many connections there have been.
        self.requests: list[bytes] = []
        self.connections = 0
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while request := whole_request(client):
                self.requests.append(request)
                if not self._answer(client, request):
                    return

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def answering(*pieces: bytes, keeps: bool = True) -> Callable[[socket.socket, bytes], bool]:
    """An answer that sends these pieces one by one, and keeps the connection or closes it."""

    def answer(client: socket.socket, request: bytes) -> bool:
        for piece in pieces:
            client.sendall(piece)
        return keeps

    return answer
