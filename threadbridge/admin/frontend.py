"""Another frontend, on this host or another one: asks it, and checks its answers."""

from __future__ import annotations

import asyncio
import hmac
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from tornado.httpclient import HTTPClientError
from tornado.netutil import Resolver
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient

from threadbridge.admin.access import loggable
from threadbridge.admin.frontend_answer import PROCESSES, READINESS, FrontendError, parse
from threadbridge.admin.health import DATABASE_LIMIT, Readiness
from threadbridge.admin.peers import Peer
from threadbridge.admin.proof import ANSWER_HEADER, Proof
from threadbridge.admin.tls import Tls

# Seconds that a frontend may take to answer, and seconds that a page waits for one that has answered before. An answer
# is shown for as long as the next one may take.
TIME_LIMIT = 2.0
PATIENCE = 0.3
# Seconds until a frontend whose certificate is not accepted is asked again: each time, Tornado logs a warning.
UNTRUSTED_PAUSE = 10.0
# Bytes; the answer for five hundred processes is smaller.
LARGEST_ANSWER = 32 * 1024 * 1024
# Seconds that a process may take to check its readiness, including a query of the database.
READINESS_LIMIT = DATABASE_LIMIT + 1.0


class FrontendGone(FrontendError):
    """Nothing listens at the frontend's address: it has ended, or is about to."""


class FrontendUntrusted(FrontendError):
    """The frontend's certificate is not accepted."""


class Frontend:
    """Another frontend: a process of this host or, with a proof and TLS, one of another host."""

    # Of a process found on this host.
    pid = 0
    group = 0
    # Why its processes are unknown, or ""; the page does not wait for such a frontend.
    problem = ""
    # The name of its host and the keys of its processes, as it gave them last, and when (seconds since 1970).
    host = ""
    keys: frozenset[str] = frozenset()
    answered_at: float | None = None

    def __init__(self, peer: Peer, proof: Proof | None = None, tls: Tls | None = None) -> None:
        self.name = peer.name
        self._peer = peer
        self._proof = proof
        self._tls = tls if peer.url.startswith("https:") else None
        self._client = SimpleAsyncHTTPClient(
            force_instance=True,
            max_clients=20,
            max_body_size=LARGEST_ANSWER,
            resolver=None if peer.address is None else _FixedResolver(address=peer.address),
        )
        self._asking: asyncio.Task[None] | None = None
        self._processes: list[dict[str, Any]] = []
        # When the processes were received (monotonic).
        self._received = float("-inf")
        # Why its certificate is not accepted, and until when (monotonic) it is not asked for that.
        self._refusal = ""
        self._refused_until = float("-inf")

    async def ask(self, path: str, method: str = "GET", limit: float = TIME_LIMIT) -> bytes:
        """The body of its answer; raises `FrontendError` if there is none within ``limit`` seconds, or an error."""
        if time.monotonic() < self._refused_until:
            raise FrontendUntrusted(self._refusal)
        headers = {"X-Threadbridge": "frontend", "Host": self._peer.host}
        nonce = ""
        if self._proof is not None:
            nonce, headers["Authorization"] = self._proof.of_request(method, self._peer.host, path)
        try:
            answer = await self._client.fetch(
                self._peer.url + path,
                method=method,
                headers=headers,
                body=b"" if method == "POST" else None,
                connect_timeout=limit,
                request_timeout=limit,
                follow_redirects=False,
                ssl_options=self._tls.client() if self._tls is not None else None,
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
        except ssl.SSLCertVerificationError as error:
            self._refusal = f"its certificate is not accepted: {error.verify_message}"
            self._refused_until = time.monotonic() + UNTRUSTED_PAUSE
            raise FrontendUntrusted(self._refusal) from None
        except OSError as error:
            raise FrontendError(error.strerror or str(error)) from None
        except Exception as error:  # noqa: BLE001 - whatever Tornado raises for whatever bytes
            raise FrontendError(f"its answer is not HTTP: {loggable(str(error))}") from None
        if self._proof is not None and not hmac.compare_digest(
            answer.headers.get(ANSWER_HEADER, "").encode(), self._proof.of_answer(nonce, answer.body).encode()
        ):
            raise FrontendError("its answer does not prove that it knows the token")
        return answer.body

    async def processes(self, name: str = "") -> list[dict[str, Any]]:
        """The processes that it knows; none, and the reason in `problem`, if there is no answer.

        :param name: if given, list only requests with this key or id.
        """
        if name:
            return await self._find(name)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_processes())
        await asyncio.wait((self._asking,), timeout=0 if self.problem else PATIENCE)
        if not self.problem and time.monotonic() - self._received > TIME_LIMIT:
            self.problem = f"no answer within {PATIENCE:g} s"
        return [] if self.problem else self._processes

    async def _ask_processes(self) -> None:
        try:
            self._processes = parse(await self.ask("/local/processes.json"), PROCESSES)["processes"]
        except FrontendError as error:
            self.problem = str(error)
            return
        self.problem = ""
        self._received = time.monotonic()
        self.answered_at = time.time()
        self.keys = frozenset(process["key"] for process in self._processes)
        self.host = next((process.get("host", "") for process in self._processes), "")

    async def _find(self, name: str) -> list[dict[str, Any]]:
        try:
            answer = await self.ask(f"/local/processes.json?id={quote(name, safe='')}", limit=self.patience)
            return list(parse(answer, PROCESSES)["processes"])
        except FrontendError as error:
            self.problem = self.problem or str(error)
            return []

    @property
    def patience(self) -> float:
        """Seconds that an operator waits for it: less if it did not answer the last time."""
        return PATIENCE if self.problem else TIME_LIMIT

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


class _FixedResolver(Resolver):
    """Resolves every host to one address."""

    def initialize(self, address: tuple[int, Any]) -> None:
        self._address = address

    async def resolve(self, host: str, port: int, family: Any = socket.AF_UNSPEC) -> list[tuple[int, Any]]:
        return [self._address]


async def answers_of(
    frontends: Iterable[Frontend], path: str, method: str = "GET", limit: float | None = None
) -> list[bytes]:
    """The bodies of the answers that arrive within ``limit`` seconds; by default, each frontend's `patience`."""

    async def ask(frontend: Frontend) -> bytes | None:
        with suppress(FrontendError):
            return await frontend.ask(path, method, frontend.patience if limit is None else limit)
        return None

    return [answer for answer in await asyncio.gather(*map(ask, frontends)) if answer is not None]
