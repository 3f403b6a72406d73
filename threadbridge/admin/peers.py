"""Other frontends: finds them in the run directory or the settings, and asks them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.netutil import Resolver
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient

from threadbridge.admin.access import loggable
from threadbridge.admin.health import DATABASE_LIMIT, Readiness
from threadbridge.admin.peer_answer import MalformedAnswer, parse, parse_processes
from threadbridge.admin.peer_proof import ANSWER_HEADER, PeerProof
from threadbridge.common.private_directory import private_directory
from threadbridge.sockets.listeners import bind_unix_socket

logger = logging.getLogger("threadbridge")

# Seconds that a peer may take to answer, and seconds that a page waits for one that has answered before.
TIME_LIMIT = 2.0
PATIENCE = 0.3
# Bytes; the answer for five hundred processes is smaller.
LARGEST_ANSWER = 32 * 1024 * 1024
# Seconds that a process may take to check its readiness, including a query of the database.
READINESS_LIMIT = DATABASE_LIMIT + 1.0
# Bytes of a Unix socket's path, without the terminating zero (unix(7)).
LONGEST_PATH = 107
_SOCKET_NAME = re.compile(r"([0-9]+)-([0-9]+)\.sock")


class PeerError(Exception):
    """A peer gave no answer, or a wrong one; the message says how."""


class PeerGone(PeerError):
    """Nothing listens at the peer's address: it has ended, or is about to."""


class Peer:
    """Another frontend, and its latest answer.

    :param name: its name on the page.
    :param address: the base of its URLs.
    :param path: the path of its Unix socket; None to use TCP.
    :param proof: makes and checks the proofs of the token; None to do without.
    :param pid: its pid if it is found on this host, otherwise 0.
    """

    def __init__(self, name: str, address: str, path: str | None, proof: PeerProof | None = None, pid: int = 0) -> None:
        self.name = name
        self.pid = pid
        self.path = path
        self._address = address
        self._proof = proof
        self._client = SimpleAsyncHTTPClient(
            force_instance=True,
            max_clients=20,
            max_body_size=LARGEST_ANSWER,
            resolver=None if path is None else _PathResolver(path),
        )
        self._asking: asyncio.Task[list[dict[str, Any]]] | None = None
        # Why its latest answer is missing, or ""; the page does not wait for such a peer.
        self._problem = ""

    async def ask(self, path: str, method: str = "GET", limit: float = TIME_LIMIT) -> HTTPResponse:
        """Its answer; raises `PeerError` if there is none within ``limit`` seconds, or if its status is an error."""
        headers = {"X-Threadbridge": "peer"}
        nonce = ""
        if self._proof is not None:
            nonce, headers["Authorization"] = self._proof.of_request(method, urlsplit(self._address).netloc, path)
        request = HTTPRequest(
            self._address + path,
            method,
            headers=headers,
            body=b"" if method == "POST" else None,
            connect_timeout=limit,
            request_timeout=limit,
            follow_redirects=False,
        )
        try:
            answer = await self._client.fetch(request)
        except HTTPTimeoutError:
            raise PeerError(f"no answer within {limit:g} s") from None
        except HTTPClientError as error:
            reason = f"{error.code} {error.message}"
            first_line = (error.response.body if error.response else b"").decode(errors="replace").partition("\n")[0]
            # A frontend gives the reason in its first line.
            raise PeerError(f"it answers {loggable(first_line if first_line.startswith(reason) else reason)}") from None
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise PeerGone(error.strerror) from None
        except OSError as error:
            raise PeerError(error.strerror or str(error)) from None
        except Exception as error:  # noqa: BLE001 - whatever Tornado raises for whatever bytes
            raise PeerError(f"its answer is not HTTP: {loggable(str(error))}") from None
        if self._proof is not None and not self._proof.is_of_answer(
            answer.headers.get(ANSWER_HEADER, ""), nonce, answer.body
        ):
            raise PeerError("its answer does not prove that it knows the token")
        return answer

    async def processes(self) -> list[dict[str, Any]]:
        """The processes that it knows; raises `PeerError`, at once if the previous attempt failed."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_processes())
        await asyncio.wait((self._asking,), timeout=0 if self._problem else PATIENCE)
        if not self._asking.done():
            self._problem = self._problem or f"no answer within {PATIENCE:g} s"
        if self._problem:
            raise PeerError(self._problem)
        return self._asking.result()

    async def _ask_processes(self) -> list[dict[str, Any]]:
        processes: list[dict[str, Any]] = []
        try:
            processes = parse_processes((await self.ask("/local/processes.json")).body)
            self._problem = ""
        except (MalformedAnswer, PeerError) as problem:
            self._problem = str(problem)
        return processes

    def close(self) -> None:
        """Cancel what is being asked."""
        if self._asking is not None:
            self._asking.cancel()
        self._client.close()


class _PathResolver(Resolver):
    """Resolves every host to a Unix socket."""

    def initialize(self, path: str) -> None:
        self._path = path

    def __new__(cls, path: str) -> _PathResolver:
        made: _PathResolver = super().__new__(cls, path=path)
        return made

    async def resolve(self, host: str, port: int, family: Any = socket.AF_UNSPEC) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self._path)]


class Peers:
    """All other frontends that this one knows.

    :param addresses: the operators' ports of named peers: ``HOST:PORT`` or URLs.
    :param directory: the run directory, where each process of this host has a socket ``GROUP-PID.sock``; or None.
    :param group: processes with the same number serve together.
    :param proof: proves the token to named peers, and checks their proofs; None if there is no token.

    Raises ``ValueError`` for an address or a directory that cannot be used.
    """

    def __init__(self, addresses: Sequence[str], directory: str | None, group: int, proof: PeerProof | None) -> None:
        self._named = [Peer(address, _url(address), None, proof) for address in addresses]
        self._directory = None if directory is None else _directory_for_sockets(directory)
        self._group = group
        self._found: dict[str, Peer] = {}
        self._own = f"{group}-{os.getpid()}.sock"

    @property
    def names(self) -> list[str]:
        """The hosts of the named peers."""
        return [urlsplit(peer._address).hostname or "" for peer in self._named]

    def bind(self) -> tuple[socket.socket, Callable[[], None]] | None:
        """Bind this process's socket in the run directory; return it and what removes it; raises ``OSError``."""
        return None if self._directory is None else bind_unix_socket(str(self._directory / self._own), 0o600)

    def on_this_host(self, *, own_group: bool = False) -> list[Peer]:
        """The peers whose sockets are in the run directory now; removes the sockets of dead processes."""
        if self._directory is None:
            return []
        try:
            present = os.listdir(self._directory)
        except FileNotFoundError:
            # Somebody has removed the directory.
            present = []
        names = {
            name: match for name in present if name != self._own and (match := _SOCKET_NAME.fullmatch(name)) is not None
        }
        for name in list(names):
            if not _is_alive(int(names[name][2])):
                (self._directory / name).unlink(missing_ok=True)
                del names[name]
        for name in self._found.keys() - names.keys():
            self._found.pop(name).close()
        for name, match in names.items():
            if name not in self._found:
                path = str(self._directory / name)
                self._found[name] = Peer(f"process {match[2]}", "http://localhost", path, pid=int(match[2]))
        wanted = [name for name, match in names.items() if not own_group or int(match[1]) == self._group]
        return [self._found[name] for name in sorted(wanted)]

    def all(self) -> list[Peer]:
        """The peers on this host and the named ones."""
        return [*self.on_this_host(), *self._named]

    def close(self) -> None:
        """Cancel what is being asked of peers."""
        for peer in [*self._named, *self._found.values()]:
            peer.close()


async def processes_of(peers: Iterable[Peer]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The processes that the peers know, and the peers that did not answer, with reasons."""
    asked = list(peers)
    answers = await asyncio.gather(*(peer.processes() for peer in asked), return_exceptions=True)
    processes: list[dict[str, Any]] = []
    unreachable = []
    for peer, answer in zip(asked, answers, strict=True):
        if isinstance(answer, PeerError):
            unreachable.append({"name": peer.name, "reason": str(answer)})
        elif isinstance(answer, BaseException):
            raise answer
        else:
            processes += answer
    return processes, unreachable


async def readiness_of(peer: Peer, asks_database: bool) -> Readiness | None:
    """The readiness of another process on this host; None if it is gone."""
    try:
        answer = await peer.ask(f"/local/ready.json?db={int(asks_database)}", limit=READINESS_LIMIT)
        found = parse(answer.body)
        findings = tuple(loggable(str(finding)) for finding in found["findings"])
        return Readiness(found["ready"] is True, found["draining"] is True, findings)
    except PeerGone:
        return None
    except (MalformedAnswer, PeerError) as problem:
        return Readiness(False, False, (str(problem),))
    except (LookupError, TypeError):
        return Readiness(False, False, ("its answer is not that of a frontend",))


async def answers_of(
    peers: Iterable[Peer], path: str, method: str = "GET", limit: float = TIME_LIMIT
) -> list[HTTPResponse]:
    """The answers that arrive within ``limit`` seconds."""
    answers = await asyncio.gather(*(peer.ask(path, method, limit) for peer in peers), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, PeerError):
            raise answer
    return [answer for answer in answers if isinstance(answer, HTTPResponse)]


def _url(address: str) -> str:
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port and not parts.path and not parts.query:
            return url
    except ValueError:
        pass
    raise ValueError(f"admin_peers: {address!r}: expected HOST:PORT or a URL with a port, such as 127.0.0.1:9001")


def _directory_for_sockets(path: str) -> Path:
    directory = private_directory(path)
    longest = len(os.fsencode(directory / "4194304-4194304.sock"))
    if longest > LONGEST_PATH:
        raise ValueError(f"run_directory {path}: too long by {longest - LONGEST_PATH} bytes for the path of a socket")
    return directory


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
