"""What the operators' port answers to operators, probes, Prometheus and other frontends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from threadbridge.admin.access import SESSION_DAYS, Access, loggable
from threadbridge.admin.authorization import HEADERS, SESSION, AdminHandler, FrontendHandler, OperatorHandler
from threadbridge.admin.console import Console
from threadbridge.admin.frontend import answers_of
from threadbridge.admin.health import weight_of

logger = logging.getLogger("threadbridge.admin")

PAGES = Path(__file__).with_name("static")
# Pages that may be open at the same time.
MOST_READERS = 50


class PageHandler(OperatorHandler):
    """The page, or the form that asks for the token."""

    async def get(self) -> None:
        self._page("page.html")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 401:
            self._page("login.html")
        else:
            super().write_error(status_code, **kwargs)

    def _page(self, name: str) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((PAGES / name).read_bytes())


class LoginHandler(AdminHandler):
    """Takes the token from the form, and starts a session if it is right."""

    async def post(self) -> None:
        if not self.check_token(self.get_body_argument("token", ""), "at the login"):
            self.redirect("/?wrong", status=303)
            return
        if self.access.token:
            logger.info("operators' port: a login from %s", self.access.operator_of(self.request))
            self.set_signed_cookie(
                self.cookie_name,
                SESSION,
                expires_days=SESSION_DAYS,
                httponly=True,
                samesite="Strict",
                secure=self.access.client_of(self.request).scheme == "https",
            )
        self.redirect("/", status=303)


class FileHandler(StaticFileHandler):
    """The page's own files. They contain nothing secret, and the login form needs them."""

    def initialize(self, **parameters: Any) -> None:  # type: ignore[override]
        super().initialize(str(PAGES))

    def set_extra_headers(self, path: str) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)
        # The browser asks each time, and gets 304 if its copy is current.
        self.set_header("Cache-Control", "no-cache")


class EventsHandler(OperatorHandler):
    """The stream that the page reads: one event a second until the reader leaves."""

    async def get(self) -> None:
        events = self.console.events
        if len(events.readers) >= MOST_READERS:
            raise HTTPError(503, f"{MOST_READERS} pages are open already; close some")
        self.set_header("Content-Type", "text/event-stream")
        if self.request.method == "HEAD":
            return
        try:
            async with aclosing(events.read()) as latest:
                async for event in latest:
                    self.write(event)
                    await asyncio.wait_for(self.flush(), timeout=30)
        except (StreamClosedError, TimeoutError):
            # The reader has left, or has stopped reading.
            return


class RequestsHandler(OperatorHandler):
    """The page's content for programs: what all processes are doing now, and what they have learned.

    With ``id=NAME``, only requests with this key or id are listed, wherever they run; with ``host=NAME``, only those
    of this host.
    """

    async def get(self) -> None:
        name = self.get_query_argument("id", "")
        host = self.get_query_argument("host", "")
        document = await self.console.everything(name, host)
        if not name and not host:
            # Not in the events: it changes slowly, and is long.
            document["learned"] = await self.console.learned()
        self.json(document)


class RecentHandler(OperatorHandler):
    """During development: the latest requests of this process with their SQL; otherwise null."""

    async def get(self) -> None:
        self.json({"recent": self.console.recent()})


class CancelHandler(OperatorHandler):
    """Stops the request with this key, or all with this id, in any process: clients get 503 or 504."""

    async def post(self, name: str) -> None:
        operator = self.access.operator_of(self.request)
        stopped, silent = await self.console.stop(name, operator, await self.console.frontends.all())
        if not stopped and silent:
            raise HTTPError(504, f"no answer from {', '.join(silent)}: such a request may still run there")
        if not stopped:
            raise HTTPError(404, "no such request is waiting or running; it may have ended just now")
        self.json({"stopped": stopped})


class HealthHandler(AdminHandler):
    """Whether the event loop runs: if it does, there is an answer."""

    async def get(self) -> None:
        self.text("ok\n")


class ReadyHandler(AdminHandler):
    """Whether requests should be sent here: 200 or 503, and one line for each check.

    Covers all processes that serve together, or with ``process=own`` this one. With ``min_weight=20``, 503 also if they
    can take less than 20 % of their usual share of requests.
    """

    async def get(self) -> None:
        is_own = self.get_query_argument("process", "") == "own"
        frontends = () if is_own else self.frontends(own_group=True)
        processes = await self.console.readiness_of_all(frontends, self.flag("db"))
        # They share the application's port: a client may reach any of those that are not draining.
        serving = [found for _, found in processes if not found.draining]
        is_ready = bool(serving) and all(found.ready for found in serving)
        prefix = "process {}: " if len(processes) > 1 else ""
        lines = [f"{prefix.format(pid)}{line}\n" for pid, found in processes for line in found.findings]
        least = self.get_query_argument("min_weight", "")
        if least:
            if not (least.isascii() and least.isdigit() and int(least) <= 100):
                raise HTTPError(400, f"min_weight={least}: expected a percentage, such as min_weight=20")
            weight = weight_of(serving)
            is_ready = is_ready and weight >= int(least)
            lines.append(f"weight: {weight}%{f', less than {least}%' if weight < int(least) else ''}\n")
        self.set_status(200 if is_ready else 503)
        self.text("".join(lines))


class HostReadyHandler(FrontendHandler):
    """The `Readiness` of this process, for other frontends."""

    async def get(self) -> None:
        self.json(asdict(await self.console.readiness(self.flag("db"))))


class MetricsHandler(OperatorHandler):
    """For Prometheus: the sums of the metrics of all processes that serve together."""

    async def get(self) -> None:
        try:
            metrics = await self.console.metrics(self.frontends(own_group=True))
        except ModuleNotFoundError as error:
            raise HTTPError(501, f"the package {error.name} is not installed: pip install prometheus_client") from None
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(metrics)


class ThreadsHandler(OperatorHandler):
    """What each thread is doing, in all processes on this host."""

    async def get(self) -> None:
        others = await answers_of(self.frontends(), "/local/threads")
        self.text("\n".join([self.console.stacks(), *(stacks.decode(errors="replace") for stacks in others)]))


class HostProcessesHandler(FrontendHandler):
    """What the processes on this host are doing, for other frontends."""

    async def get(self) -> None:
        name = self.get_query_argument("id", "")
        self.json({"processes": await self.console.processes(self.frontends(), name)})


class HostLearnedHandler(FrontendHandler):
    """What the processes on this host have learned of requests' costs, for other frontends."""

    async def get(self) -> None:
        self.json({"tables": await self.console.tables(self.frontends())})


class HostCostsHandler(FrontendHandler):
    """What this host has learned of requests' costs, for others that serve the same application; 204 if nothing."""

    async def get(self) -> None:
        read = self.console.costs
        names = (self.get_query_argument("application", ""), self.get_query_argument("reader", ""))
        found = await read(*names) if read is not None else None
        if not found:
            self.set_status(204)
            self.finish()
            return
        self.set_header("Content-Type", "application/jsonl")
        self.finish(found)


class HostCancelHandler(FrontendHandler):
    """Stops requests of the processes on this host, for other frontends, and tells how many."""

    async def post(self, name: str) -> None:
        operator = loggable(self.get_query_argument("operator", "") or "by another frontend")
        stopped, _ = await self.console.stop(name, operator, self.frontends())
        self.json({"stopped": stopped})


class MissingHandler(AdminHandler):
    """All other paths."""

    async def get(self, *arguments: str) -> None:
        raise HTTPError(404, "there is nothing at this address")

    post = put = delete = get


ROUTES: Sequence[tuple[str, type[RequestHandler]]] = (
    (r"/", PageHandler),
    (r"/login", LoginHandler),
    (r"/events", EventsHandler),
    (r"/requests\.json", RequestsHandler),
    (r"/recent\.json", RecentHandler),
    (r"/requests/([^/]+)/cancel", CancelHandler),
    (r"/healthz", HealthHandler),
    (r"/readyz", ReadyHandler),
    (r"(?:/local)?/metrics", MetricsHandler),
    (r"(?:/local)?/threads", ThreadsHandler),
    (r"/static/([a-z]+\.[a-z]+)", FileHandler),
    (r"/local/processes\.json", HostProcessesHandler),
    (r"/local/learned\.json", HostLearnedHandler),
    (r"/local/costs", HostCostsHandler),
    (r"/local/ready\.json", HostReadyHandler),
    (r"/local/requests/([^/]+)/cancel", HostCancelHandler),
)


def application(console: Console, access: Access, *, is_local: bool) -> Application:
    """The Tornado application of the operators' port, or of the Unix socket; see `AdminHandler`."""
    parameters = {"console": console, "access": access, "is_local": is_local}
    return Application(
        [(path, handler, parameters) for path, handler in ROUTES if "/local" in path or not is_local],
        default_handler_class=MissingHandler,
        default_handler_args=parameters,
        log_function=_log,
        cookie_secret=access.cookie_secret,
    )


def _log(handler: RequestHandler) -> None:
    # Kept out of the application's access log. 503 from /readyz is logged where it is found.
    is_fault = handler.get_status() >= 500 and not isinstance(handler, ReadyHandler)
    level = logging.ERROR if is_fault else logging.DEBUG
    logger.log(level, "%d %s %s", handler.get_status(), handler.request.method, handler.request.path)
