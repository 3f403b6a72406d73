"""What stands behind each address of the operators' port. Loop side."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from threadbridge.admin.access import SESSION, bearer_token, loggable
from threadbridge.admin.peer_proof import ANSWER_HEADER, SCHEME, ProofError
from threadbridge.admin.peers import answers_of

if TYPE_CHECKING:
    from threadbridge.admin.server import AdminServer

logger = logging.getLogger("threadbridge.admin")

PAGES = Path(__file__).with_name("static")
METRICS = "text/plain; version=0.0.4; charset=utf-8"
MOST_READERS = 50
# Seconds that somebody who watches may take to read an event.
READING_LIMIT = 30
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class LocalHandler(RequestHandler):
    """For processes of the same user, by a Unix socket that only they can open."""

    def initialize(self, admin: AdminServer) -> None:
        """The port that this belongs to."""
        self.admin = admin
        # Tornado clears the others before it answers with an error.
        self.headers_of_error: dict[str, str] = {}

    def set_default_headers(self) -> None:
        """On every answer."""
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One line that says what is wrong."""
        for name, value in self.headers_of_error.items():
            self.set_header(name, value)
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        message = error.log_message if isinstance(error, HTTPError) else None
        self.text(f"{status_code} {self._reason}{f': {message}' if message else ''}\n")

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what is this process's fault; a refusal is none, and anybody can cause thousands."""
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


class HostHandler(LocalHandler):
    """For browsers and programs by TCP, whoever they are."""

    @property
    def arrived_at(self) -> tuple[str, int]:
        """The address and the port at which the connection has arrived."""
        stream = getattr(self.request.connection, "stream", None)
        if stream is None or stream.socket is None:
            return "", 0
        address, port = stream.socket.getsockname()[:2]
        return address, port

    def prepare(self) -> None:
        """Refuse what a page of another site has the operator's browser ask."""
        self.check_host()

    def check_host(self) -> None:
        """Refuse requests under foreign names, and those that pages of other sites make."""
        host = self.request.headers.get("Host", "")
        if not self.admin.access.knows_host(host, self.arrived_at[0]):
            raise HTTPError(421, "unknown Host header; use admin_address, localhost or one of admin_names")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin != f"{self.admin.access.scheme_of(self.request)}://{host}":
            raise HTTPError(403, "pages of other sites may not ask here")

    def slow_down(self) -> None:
        """Refuse a token, unseen, from a client that has given too many wrong ones."""
        delay = self.admin.throttle.delay(self.request.remote_ip or "")
        if delay:
            self.headers_of_error = {"Retry-After": str(delay)}
            raise HTTPError(429, f"too many wrong tokens; try again in {delay} s")


class OperatorHandler(HostHandler):
    """For operators: who has the token, if there is one."""

    def prepare(self) -> None:
        """Refuse who has not given the token, and writing requests that a form of another site could send."""
        super().prepare()
        access = self.admin.access
        authorization = self.request.headers.get("Authorization", "")
        guesses = bool(access.token) and bearer_token(authorization) is not None
        if guesses:
            self.slow_down()
        if not access.accepts(authorization, self.get_cookie(cookie_name(self)) or ""):
            if guesses:
                self.admin.throttle.wrong(self.request.remote_ip or "", "in the header Authorization")
            self.headers_of_error = {"WWW-Authenticate": "Bearer"}
            raise HTTPError(401, "give the token: log in at /, or send the header Authorization: Bearer TOKEN")
        if self.request.method == "POST" and "X-Threadbridge" not in self.request.headers:
            raise HTTPError(403, "send the header X-Threadbridge, with any value, which no other site's page can")


def cookie_name(handler: RequestHandler) -> str:
    """Cookies know no ports: each port's has a name of its own."""
    return "threadbridge-" + re.sub("[^0-9a-z]", "", handler.request.host.rpartition(":")[2].lower())


class PageHandler(OperatorHandler):
    """The page, or the form that asks for the token."""

    async def get(self) -> None:
        """The page."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((PAGES / "page.html").read_bytes())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The form in place of the line."""
        if status_code == 401:
            self.set_header("Content-Type", "text/html; charset=utf-8")
            self.finish((PAGES / "login.html").read_bytes())
        else:
            super().write_error(status_code, **kwargs)


class LoginHandler(HostHandler):
    """Takes the token from the form."""

    async def post(self) -> None:
        """Give a cookie for the token."""
        self.slow_down()
        access = self.admin.access
        if not access.accepts_token(self.get_body_argument("token", "")):
            self.admin.throttle.wrong(self.request.remote_ip or "", "at the login")
            self.redirect("/?wrong", status=303)
            return
        logger.info("operators' port: a login from %s", access.client_of(self.request))
        secure = access.scheme_of(self.request) == "https"
        session = access.new_session()
        self.set_cookie(cookie_name(self), session, max_age=SESSION, httponly=True, samesite="Strict", secure=secure)
        self.redirect("/", status=303)


class FileHandler(StaticFileHandler):
    """The page's own files: they tell nothing, and the form needs them too."""

    def set_extra_headers(self, path: str) -> None:
        """On every answer."""
        for name, value in HEADERS.items():
            self.set_header(name, value)
        # Asked for anew each time, and not sent again when it is the same.
        self.set_header("Cache-Control", "no-cache")


class EventsHandler(OperatorHandler):
    """The stream that the page reads."""

    async def get(self) -> None:
        """One picture a second until the reader leaves."""
        events = self.admin.events
        if events.readers >= MOST_READERS:
            raise HTTPError(503, f"{MOST_READERS} pages are open already; close some")
        self.set_header("Content-Type", "text/event-stream")
        try:
            async with aclosing(events.read()) as latest:
                async for event in latest:
                    self.write(event)
                    await asyncio.wait_for(self.flush(), READING_LIMIT)
        except (StreamClosedError, TimeoutError):
            # Nobody reads any more.
            return


class RequestsHandler(OperatorHandler):
    """The page's content for programs."""

    async def get(self) -> None:
        """The picture of this moment."""
        self.json(await self.admin.everything())


class CancelHandler(OperatorHandler):
    """Stops a request, wherever it runs."""

    async def post(self, name: str) -> None:
        """End it, by its key, or all of an id: clients get 503 or 504, queries are stopped."""
        operator = self.admin.access.client_of(self.request)
        stopped = self.admin.stop_own(name, operator) + await self.admin.stop_elsewhere(name, operator, named=True)
        if not stopped:
            raise HTTPError(404, "no such request waits or runs; it may have ended just now")
        self.json({"stopped": stopped})


class HealthHandler(HostHandler):
    """Whether the loop turns: it does if there is an answer."""

    async def get(self) -> None:
        """It turns."""
        self.text("ok\n")


class ReadyHandler(HostHandler):
    """Whether requests should be sent here."""

    async def get(self) -> None:
        """200 or 503, and why; for all processes of the group unless ``process=own``."""
        asks_database = self.get_query_argument("db", "") == "1"
        if self.get_query_argument("process", "") == "own":
            processes = [(os.getpid(), await self.admin.readiness(asks_database))]
        else:
            processes = await self.admin.readiness_of_all(asks_database)
        # The port is one for all of them: clients come to each of those that do not end.
        taking = [found for _, found in processes if not found.draining]
        self.set_status(200 if taking and all(found.ready for found in taking) else 503)
        lines = []
        for pid, found in processes:
            name = f"process {pid}: " if len(processes) > 1 else ""
            lines += [f"{name}{finding}\n" for finding in found.findings]
        self.text("".join(lines))


class MetricsHandler(OperatorHandler):
    """For Prometheus."""

    async def get(self) -> None:
        """The metrics of this process and of those that serve together with it."""
        try:
            metrics = await self.admin.metrics()
        except ModuleNotFoundError as error:
            raise HTTPError(501, f"the package {error.name} is not installed: pip install prometheus_client") from None
        self.set_header("Content-Type", METRICS)
        self.finish(metrics)


class ThreadsHandler(OperatorHandler):
    """What each thread does just now."""

    async def get(self) -> None:
        """The stacks of this process and of those on this host."""
        others = await answers_of(self.admin.peers.on_this_host(), "/local/threads")
        self.text("\n".join([self.admin.stacks(), *(answer.body.decode(errors="replace") for answer in others)]))


# For peers: what one process knows, or, asked by TCP, what those on its host know.


def operator_of(handler: RequestHandler) -> str:
    """Who has asked the peer that asks here, for the log."""
    return loggable(handler.get_query_argument("operator", "") or "by another frontend")


class LocalProcessesHandler(LocalHandler):
    """What this process does."""

    async def get(self) -> None:
        """This process alone."""
        self.json({"processes": [self.admin.own()]})


class LocalCancelHandler(LocalHandler):
    """Stops a request of this process."""

    async def post(self, name: str) -> None:
        """Zero when there is no such request."""
        self.json({"stopped": self.admin.stop_own(name, operator_of(self))})


class LocalMetricsHandler(LocalHandler):
    """This process's metrics."""

    async def get(self) -> None:
        """In Prometheus' text format."""
        self.set_header("Content-Type", METRICS)
        self.finish(await self.admin.own_metrics())


class LocalReadyHandler(LocalHandler):
    """Whether requests should be sent to this process."""

    async def get(self) -> None:
        """The parts of its `Readiness`."""
        self.json(asdict(await self.admin.readiness(self.get_query_argument("db", "") == "1")))


class LocalThreadsHandler(LocalHandler):
    """What each thread of this process does just now."""

    async def get(self) -> None:
        """The stacks."""
        self.text(self.admin.stacks())


class PeerHandler(OperatorHandler):
    """For frontends of other hosts, which prove that they know the token, and for operators."""

    # Of the request, once it has proved that.
    _number = ""

    def prepare(self) -> None:
        """Refuse what does not prove it, but for requests with the token itself."""
        authorization, host = self.request.headers.get("Authorization", ""), self.request.headers.get("Host", "")
        proof = self.admin.proof
        if proof is None or not authorization.startswith(SCHEME):
            super().prepare()
            return
        self.check_host()
        try:
            if not self.admin.access.is_own_place(host, self.arrived_at):
                raise ProofError("the request was meant for another port")
            self._number = proof.check_request(authorization, self.request.method or "", host, self.request.uri or "")
        except ProofError as error:
            raise HTTPError(401, str(error)) from None

    def json(self, document: Any) -> None:
        """The proof goes back with the answer."""
        body = json.dumps(document, separators=(",", ":")).encode()
        if self.admin.proof is not None and self._number:
            self.set_header(ANSWER_HEADER, self.admin.proof.of_answer(self._number, body))
        self.set_header("Content-Type", "application/json")
        self.finish(body)


class HostProcessesHandler(PeerHandler):
    """What the processes on this host do."""

    async def get(self) -> None:
        """This process and those in the run directory."""
        self.json({"processes": await self.admin.on_this_host()})


class HostCancelHandler(PeerHandler):
    """Stops a request of a process on this host."""

    async def post(self, name: str) -> None:
        """Zero when there is no such request."""
        operator = operator_of(self)
        stopped = self.admin.stop_own(name, operator) + await self.admin.stop_elsewhere(name, operator, named=False)
        self.json({"stopped": stopped})


def public_application(admin: AdminServer) -> Application:
    """For operators and their programs, by TCP."""
    return _application(
        admin,
        [
            (r"/", PageHandler),
            (r"/login", LoginHandler),
            (r"/events", EventsHandler),
            (r"/requests\.json", RequestsHandler),
            (r"/requests/([^/]+)/cancel", CancelHandler),
            (r"/healthz", HealthHandler),
            (r"/readyz", ReadyHandler),
            (r"/metrics", MetricsHandler),
            (r"/threads", ThreadsHandler),
            (r"/local/processes\.json", HostProcessesHandler),
            (r"/local/requests/([^/]+)/cancel", HostCancelHandler),
        ],
    )


def local_application(admin: AdminServer) -> Application:
    """For other processes of the same user, by a Unix socket."""
    return _application(
        admin,
        [
            (r"/local/processes\.json", LocalProcessesHandler),
            (r"/local/requests/([^/]+)/cancel", LocalCancelHandler),
            (r"/local/metrics", LocalMetricsHandler),
            (r"/local/threads", LocalThreadsHandler),
            (r"/local/ready\.json", LocalReadyHandler),
        ],
    )


def _application(admin: AdminServer, routes: list[tuple[str, type[LocalHandler]]]) -> Application:
    return Application(
        [
            *((pattern, handler, {"admin": admin}) for pattern, handler in routes),
            (r"/static/([a-z]+\.[a-z]+)", FileHandler, {"path": str(PAGES)}),
        ],
        default_handler_class=MissingHandler,
        default_handler_args={"admin": admin},
        log_function=_log,
    )


class MissingHandler(HostHandler):
    """For all other addresses."""

    async def get(self) -> None:
        """There is nothing."""
        raise HTTPError(404, "there is nothing at this address")

    post = put = delete = get


def _log(handler: RequestHandler) -> None:
    # Not among the application's requests. A healthy port has nothing to say.
    level = logging.ERROR if handler.get_status() >= 500 and not isinstance(handler, ReadyHandler) else logging.DEBUG
    logger.log(level, "%d %s %s", handler.get_status(), handler.request.method, handler.request.path)
