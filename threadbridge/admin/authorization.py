"""Who may ask the operators' port: base classes for its handlers."""

from __future__ import annotations

import json
import re
from typing import Any

from tornado.web import HTTPError, RequestHandler

from threadbridge.admin.access import SESSION_DAYS, Access, bearer_token
from threadbridge.admin.console import Console
from threadbridge.admin.peer_proof import ANSWER_HEADER, SCHEME, ProofError

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
    """Answers anybody: on a Unix socket that only processes of the same user can open."""

    def initialize(self, console: Console, access: Access) -> None:
        """See `tornado.web.RequestHandler`."""
        self.console = console
        self.access = access
        # Tornado clears all other headers before it sends an error.
        self.error_headers: dict[str, str] = {}

    def set_default_headers(self) -> None:
        """See `tornado.web.RequestHandler`."""
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    async def head(self, *arguments: str) -> None:
        """Answer like ``GET``, without the body (RFC 9110, section 9.3.2): Tornado leaves it out."""
        answer = self.get(*arguments)
        if answer is not None:
            await answer

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with one line of text that gives the reason."""
        for name, value in self.error_headers.items():
            self.set_header(name, value)
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


class HostHandler(AdminHandler):
    """Answers anybody by TCP, but no pages of other sites."""

    @property
    def local_address(self) -> tuple[str, int]:
        """The address and port of this end of the connection."""
        stream = getattr(self.request.connection, "stream", None)
        if stream is None or stream.socket is None:
            return "", 0
        address, port = stream.socket.getsockname()[:2]
        return address, port

    def prepare(self) -> None:
        """Refuse requests that pages of other sites make from the operator's browser."""
        self.check_host()

    def check_host(self) -> None:
        """Refuse requests with an unknown ``Host`` header, and those whose ``Origin`` is another site."""
        host = self.request.headers.get("Host", "")
        if not self.access.knows_host(host, self.local_address[0]):
            raise HTTPError(421, "unknown Host header; use admin_address, localhost or one of admin_names")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin != f"{self.access.scheme_of(self.request)}://{host}":
            raise HTTPError(403, "pages of other sites may not ask here")

    def check_throttle(self) -> None:
        """Refuse a client that has sent too many wrong tokens, without looking at the token."""
        delay = self.access.throttle.delay(self.request.remote_ip or "")
        if delay:
            self.error_headers = {"Retry-After": str(delay)}
            raise HTTPError(429, f"too many wrong tokens; try again in {delay} s")


class OperatorHandler(HostHandler):
    """Answers operators: clients with the token, if there is one."""

    def prepare(self) -> None:
        """Refuse clients without the token, and POST requests that a form on another site could send."""
        super().prepare()
        if self.access.token and not self._has_session():
            self._check_token()
        if self.request.method == "POST" and "X-Threadbridge" not in self.request.headers:
            raise HTTPError(403, "send the header X-Threadbridge with any value: pages of other sites cannot")

    def _has_session(self) -> bool:
        return self.get_signed_cookie(cookie_name(self), max_age_days=SESSION_DAYS) == SESSION.encode()

    def _check_token(self) -> None:
        token = bearer_token(self.request.headers.get("Authorization", ""))
        if token is not None:
            self.check_throttle()
            if self.access.accepts_token(token):
                return
            self.access.throttle.wrong(self.request.remote_ip or "", "in the header Authorization")
        self.error_headers = {"WWW-Authenticate": "Bearer"}
        raise HTTPError(401, "give the token: log in at /, or send the header Authorization: Bearer TOKEN")


def cookie_name(handler: RequestHandler) -> str:
    """The name of the session cookie: one for each port, because browsers send a host's cookies to all its ports."""
    return "threadbridge-" + re.sub("[^0-9a-z]", "", handler.request.host.rpartition(":")[2].lower())


class PeerHandler(OperatorHandler):
    """Answers frontends of other hosts, which prove that they know the token, and operators."""

    # The nonce in the request's proof, once that has been checked.
    _nonce = ""

    def prepare(self) -> None:
        """Refuse requests that carry neither a valid proof nor the token itself."""
        authorization, host = self.request.headers.get("Authorization", ""), self.request.headers.get("Host", "")
        proof = self.access.proof
        if proof is None or not authorization.startswith(SCHEME):
            super().prepare()
            return
        self.check_host()
        try:
            if not self.access.names_this_port(host, self.local_address[1]):
                raise ProofError("the request was meant for another port")
            self._nonce = proof.check_request(authorization, self.request.method or "", host, self.request.uri or "")
        except ProofError as error:
            raise HTTPError(401, str(error)) from None

    def json(self, document: Any) -> None:
        """Answer with JSON, and prove that this process knows the token too."""
        body = json.dumps(document, separators=(",", ":")).encode()
        if self.access.proof is not None and self._nonce:
            self.set_header(ANSWER_HEADER, self.access.proof.of_answer(self._nonce, body))
        self.set_header("Content-Type", "application/json")
        self.finish(body)
