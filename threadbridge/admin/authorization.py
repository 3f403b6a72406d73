"""Who may ask the operators' port: base classes for its handlers."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.web import HTTPError, RequestHandler

from threadbridge.admin.access import SESSION_DAYS, Access, loggable
from threadbridge.admin.console import Console
from threadbridge.admin.frontend import Frontend
from threadbridge.admin.proof import ANSWER_HEADER, SCHEME

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# The value of the session cookie. Its signature and its age are what counts.
SESSION = "operator"


class AdminHandler(RequestHandler):
    """Answers anybody, but no pages of other sites.

    With ``is_local``, requests come by a Unix socket that only processes of the same user can open: all are allowed,
    and this process answers for itself alone.
    """

    # More headers of an error's response: Tornado clears all others.
    error_headers: Mapping[str, str] = {}

    def initialize(self, console: Console, access: Access, is_local: bool) -> None:
        self.console = console
        self.access = access
        self.is_local = is_local

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in {**HEADERS, **self.error_headers}.items():
            self.set_header(name, value)

    async def head(self, *arguments: str) -> None:
        """Answer like ``GET``, without the body (RFC 9110, section 9.3.2): Tornado leaves it out."""
        answer = self.get(*arguments)
        if answer is not None:
            await answer

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with one line of text that gives the reason."""
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        message = error.log_message if isinstance(error, HTTPError) else None
        self.text(f"{status_code} {self._reason}{f': {message}' if message else ''}\n")

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log faults of this process, but not refusals: anybody can cause thousands of them."""
        if not isinstance(value, HTTPError):
            super().log_exception(typ, value, tb)

    def text(self, text: str) -> None:
        """Answer with plain text."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text)

    def json(self, document: Any) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(document, separators=(",", ":")))

    def flag(self, name: str) -> bool:
        """Whether the query has ``name=1``."""
        return self.get_query_argument(name, "") == "1"

    def frontends(self, *, own_group: bool = False) -> Sequence[Frontend]:
        """Those that this process answers for too: the others on this host, or those of its group."""
        return () if self.is_local else self.console.frontends.on_this_host(own_group=own_group)

    async def prepare(self) -> None:
        """Refuse requests with an unknown ``Host`` header, those of other sites, and those not authorized."""
        if self.is_local:
            return
        # Only programs that speak HTTP/1.0 send none, such as HAProxy's checks; browsers always do.
        host = self.request.headers.get("Host")
        if host is not None and not self.is_proven and not self.access.knows_host(host, self.local_address[0]):
            raise HTTPError(
                421, "unknown Host header; use the port's address or localhost, or add the name with --admin_host"
            )
        origin = self.request.headers.get("Origin")
        if origin is not None and origin != f"{self.access.client_of(self.request).scheme}://{host}":
            raise HTTPError(403, "pages of other sites may not ask here")
        await self.authorize()

    @property
    def is_proven(self) -> bool:
        """Whether `authorize` checks a proof, which names this port, and which no browser can make."""
        return False

    async def authorize(self) -> None:
        """Refuse clients that may not ask: here, none."""

    @property
    def local_address(self) -> tuple[str, int]:
        """The address and port of this end of the connection."""
        socket = cast(HTTP1Connection, self.request.connection).stream.socket
        # None if the client has left.
        address, port = socket.getsockname()[:2] if socket is not None else ("", 0)
        return address, port

    def check_token(self, token: str, source: str) -> bool:
        """Whether this is the token, if one is required; refuses clients that have sent too many wrong ones."""
        client = self.request.remote_ip or ""
        delay = self.access.throttle.delay(client)
        if delay:
            self.error_headers = {"Retry-After": str(delay)}
            raise HTTPError(429, f"too many wrong tokens; try again in {delay} s")
        is_right = not self.access.token or hmac.compare_digest(token.encode(), self.access.token.encode())
        if not is_right:
            self.access.throttle.wrong(client, source)
        return is_right

    @property
    def cookie_name(self) -> str:
        """The session cookie's name: one for each port, because browsers send a host's cookies to all its ports."""
        return "threadbridge-" + re.sub("[^0-9a-z]", "", self.request.host.rpartition(":")[2].lower())


class OperatorHandler(AdminHandler):
    """Answers operators: clients with the token, if there is one."""

    async def authorize(self) -> None:
        """Refuse clients without the token, and POST requests that a form on another site could send."""
        if self.access.token and not self._is_operator():
            self.error_headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPError(401, "give the token: log in at /, or send the header Authorization: Bearer TOKEN")
        if self.request.method == "POST" and "X-Threadbridge" not in self.request.headers:
            raise HTTPError(403, "send the header X-Threadbridge with any value: pages of other sites cannot")

    def _is_operator(self) -> bool:
        if self.get_signed_cookie(self.cookie_name, max_age_days=SESSION_DAYS) == SESSION.encode():
            return True
        # RFC 6750.
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.check_token(token.strip(), "in the header Authorization")


class FrontendHandler(OperatorHandler):
    """Answers frontends of other hosts, which prove that they know the token, and operators."""

    # The nonce in the request's proof, once that has been checked.
    _nonce = ""

    @property
    def is_proven(self) -> bool:
        return self.access.proof is not None and self.request.headers.get("Authorization", "").startswith(SCHEME)

    async def authorize(self) -> None:
        """Refuse requests that carry neither a valid proof nor the token itself."""
        proof = self.access.proof
        if proof is None or not self.is_proven:
            await super().authorize()
            return
        authorization, host = self.request.headers["Authorization"], self.request.headers.get("Host", "")
        nonce = proof.check_request(authorization, self.request.method or "", host, self.request.uri or "")
        # Only now: names are looked up for those who know the token.
        if not await self.access.names_this_port(host, *self.local_address):
            raise HTTPError(401, f"the request was meant for {loggable(host)}, which this is not; see admin_names")
        self._nonce = nonce

    def finish(self, chunk: Any = None) -> Any:
        """Prove with the answer that this process knows the token too."""
        if self.access.proof is not None and self._nonce:
            body = chunk if isinstance(chunk, bytes) else (chunk or "").encode()
            self.set_header(ANSWER_HEADER, self.access.proof.of_answer(self._nonce, body))
        return super().finish(chunk)
