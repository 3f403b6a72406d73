"""Other frontends: finds them in the run directory or the settings, and asks them."""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError
from tornado.netutil import Resolver
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient

from threadbridge.admin.access import loggable
from threadbridge.admin.frontend_answer import PROCESSES, READINESS, FrontendError, parse
from threadbridge.admin.health import DATABASE_LIMIT, Readiness
from threadbridge.admin.proof import ANSWER_HEADER, Proof
from threadbridge.common.private_directory import private_directory
from threadbridge.sockets.listeners import bind_unix_socket

# Seconds that a frontend may take to answer, and seconds that a page waits for one that has answered before.
TIME_LIMIT = 2.0
PATIENCE = 0.3
# Bytes; the answer for five hundred processes is smaller.
LARGEST_ANSWER = 32 * 1024 * 1024
# Seconds that a process may take to check its readiness, including a query of the database.
READINESS_LIMIT = DATABASE_LIMIT + 1.0
# Bytes of a Unix socket's path, without the terminating zero (unix(7)).
LONGEST_PATH = 107
_SOCKET_NAME = re.compile(r"([0-9]+)-([0-9]+)\.sock")


class FrontendGone(FrontendError):
    """Nothing listens at the frontend's address: it has ended, or is about to."""


class Frontend:
    """Another frontend; the address is the base of its URLs, the path that of its Unix socket, if it has one."""

    # Of a process found on this host.
    pid = 0
    group = 0
    # Why its processes are unknown, or ""; the page does not wait for such a frontend.
    problem = ""

    def __init__(self, name: str, address: str, proof: Proof | None = None, path: Path | None = None) -> None:
        self.name = name
        self.address = address
        self._proof = proof
        self._client = SimpleAsyncHTTPClient(
            force_instance=True,
            max_clients=20,
            max_body_size=LARGEST_ANSWER,
            resolver=None if path is None else _PathResolver(path=path),
        )
        self._asking: asyncio.Task[list[dict[str, Any]]] | None = None

    async def ask(self, path: str, method: str = "GET", limit: float = TIME_LIMIT) -> bytes:
        """The body of its answer; raises `FrontendError` if there is none within ``limit`` seconds, or an error."""
        headers = {"X-Threadbridge": "frontend"}
        nonce = ""
        if self._proof is not None:
            nonce, headers["Authorization"] = self._proof.of_request(method, urlsplit(self.address).netloc, path)
        try:
            answer = await self._client.fetch(
                self.address + path,
                method=method,
                headers=headers,
                body=b"" if method == "POST" else None,
                connect_timeout=limit,
                request_timeout=limit,
                follow_redirects=False,
            )
        except HTTPTimeoutError:
            raise FrontendError(f"no answer within {limit:g} s") from None
        except HTTPClientError as error:
            reason = f"{error.code} {error.message}"
            line = (error.response.body if error.response else b"").decode(errors="replace").partition("\n")[0]
            # A frontend gives the reason in its first line.
            raise FrontendError(f"it answers {loggable(line if line.startswith(reason) else reason)}") from None
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise FrontendGone(error.strerror) from None
        except OSError as error:
            raise FrontendError(error.strerror or str(error)) from None
        except Exception as error:  # noqa: BLE001 - whatever Tornado raises for whatever bytes
            raise FrontendError(f"its answer is not HTTP: {loggable(str(error))}") from None
        if self._proof is not None and not hmac.compare_digest(
            answer.headers.get(ANSWER_HEADER, "").encode(), self._proof.of_answer(nonce, answer.body).encode()
        ):
            raise FrontendError("its answer does not prove that it knows the token")
        return answer.body

    async def processes(self) -> list[dict[str, Any]]:
        """The processes that it knows; none, and the reason in `problem`, if there is no answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_processes())
        await asyncio.wait((self._asking,), timeout=0 if self.problem else PATIENCE)
        if self._asking.done() and not self._asking.cancelled():
            return self._asking.result()
        self.problem = self.problem or f"no answer within {PATIENCE:g} s"
        return []

    async def _ask_processes(self) -> list[dict[str, Any]]:
        processes: list[dict[str, Any]] = []
        try:
            processes = parse(await self.ask("/local/processes.json"), PROCESSES)["processes"]
            self.problem = ""
        except FrontendError as error:
            self.problem = str(error)
        return processes

    async def readiness(self, asks_database: bool) -> Readiness | None:
        """The readiness of this process of the host; unready if it does not answer, None if it is gone."""
        try:
            body = await self.ask(f"/local/ready.json?db={int(asks_database)}", limit=READINESS_LIMIT)
            found = parse(body, READINESS)
        except FrontendGone:
            return None
        except FrontendError as error:
            return Readiness(False, False, (str(error),))
        findings = tuple(map(loggable, found["findings"]))
        return Readiness(found["ready"], found["draining"], findings, found.get("weight", 100))

    def close(self) -> None:
        """Cancel all requests to it."""
        if self._asking is not None:
            self._asking.cancel()
        self._client.close()


class _PathResolver(Resolver):
    """Resolves every host to a Unix socket."""

    def initialize(self, path: Path) -> None:
        self._path = str(path)

    async def resolve(self, host: str, port: int, family: Any = socket.AF_UNSPEC) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self._path)]


class Frontends:
    """All other frontends that this one knows; raises ``ValueError`` for an unusable address or directory.

    :param directory: the run directory, where each process of this host has a socket ``GROUP-PID.sock``; or None.
    :param group: processes with the same number serve together.
    """

    def __init__(self, addresses: Sequence[str], directory: str | None, group: int, proof: Proof | None) -> None:
        self._named = [Frontend(address, _url(address), proof) for address in addresses]
        # The hosts of the named frontends.
        self.names = [urlsplit(frontend.address).hostname or "" for frontend in self._named]
        self._directory = None if directory is None else private_directory(directory)
        excess = len(os.fsencode((self._directory or Path()) / "4194304-4194304.sock")) - LONGEST_PATH
        if excess > 0:
            raise ValueError(f"run_directory {directory}: too long by {excess} bytes for the path of a socket")
        self._group = group
        self._found: dict[str, Frontend] = {}
        self._own = f"{group}-{os.getpid()}.sock"

    def bind(self) -> tuple[socket.socket, Callable[[], None]] | None:
        """Bind this process's socket in the run directory; return it and what removes it; raises ``OSError``."""
        return None if self._directory is None else bind_unix_socket(str(self._directory / self._own), 0o600)

    def on_this_host(self, *, own_group: bool = False) -> list[Frontend]:
        """The frontends whose sockets are in the run directory now; removes the sockets of dead processes."""
        found = {}
        # There are none if somebody has removed the directory.
        for path in sorted(self._directory.glob("*-*.sock")) if self._directory is not None else ():
            match = _SOCKET_NAME.fullmatch(path.name)
            if match is None or path.name == self._own:
                continue
            frontend = self._found.pop(path.name, None)
            if frontend is None:
                frontend = Frontend(f"process {match[2]}", "http://localhost", path=path)
                frontend.group, frontend.pid = int(match[1]), int(match[2])
            if _is_alive(frontend.pid):
                found[path.name] = frontend
            else:
                frontend.close()
                path.unlink(missing_ok=True)
        for gone in self._found.values():
            gone.close()
        self._found = found
        return [frontend for frontend in found.values() if not own_group or frontend.group == self._group]

    def all(self) -> list[Frontend]:
        """The frontends on this host and the named ones."""
        return [*self.on_this_host(), *self._named]

    def close(self) -> None:
        """Cancel all requests to frontends."""
        for frontend in [*self._named, *self._found.values()]:
            frontend.close()


async def answers_of(
    frontends: Iterable[Frontend], path: str, method: str = "GET", limit: float = TIME_LIMIT
) -> list[bytes]:
    """The bodies of the answers that arrive within ``limit`` seconds."""

    async def ask(frontend: Frontend) -> bytes | None:
        with suppress(FrontendError):
            return await frontend.ask(path, method, limit)
        return None

    return [answer for answer in await asyncio.gather(*map(ask, frontends)) if answer is not None]


def _url(address: str) -> str:
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port and not parts.path and not parts.query:
            return url
    raise ValueError(f"admin_peers: {address!r}: expected HOST:PORT or a URL with a port, such as 127.0.0.1:9001")


def _is_alive(pid: int) -> bool:
    try:
        with suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
