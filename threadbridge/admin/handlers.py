"""What the operators' port answers to operators, probes and Prometheus."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, StaticFileHandler

from threadbridge.admin.access import SESSION_DAYS
from threadbridge.admin.authorization import HEADERS, SESSION, HostHandler, OperatorHandler, cookie_name
from threadbridge.admin.peers import answers_of

logger = logging.getLogger("threadbridge.admin")

PAGES = Path(__file__).with_name("static")
METRICS = "text/plain; version=0.0.4; charset=utf-8"
# Pages that may be open at the same time.
MOST_READERS = 50
# Seconds that a page may take to read an event.
READING_LIMIT = 30


class PageHandler(OperatorHandler):
    """The page, or the form that asks for the token."""

    async def get(self) -> None:
        """The page."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish((PAGES / "page.html").read_bytes())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The form, for those who have not logged in."""
        if status_code == 401:
            self.set_header("Content-Type", "text/html; charset=utf-8")
            self.finish((PAGES / "login.html").read_bytes())
        else:
            super().write_error(status_code, **kwargs)


class LoginHandler(HostHandler):
    """Takes the token from the form."""

    async def post(self) -> None:
        """Start a session if the token is right."""
        self.check_throttle()
        if not self.access.accepts_token(self.get_body_argument("token", "")):
            self.access.throttle.wrong(self.request.remote_ip or "", "at the login")
            self.redirect("/?wrong", status=303)
            return
        if self.access.token:
            logger.info("operators' port: a login from %s", self.access.client_of(self.request))
            self.set_signed_cookie(
                cookie_name(self),
                SESSION,
                expires_days=SESSION_DAYS,
                httponly=True,
                samesite="Strict",
                secure=self.access.scheme_of(self.request) == "https",
            )
        self.redirect("/", status=303)


class FileHandler(StaticFileHandler):
    """The page's own files. They contain nothing secret, and the login form needs them."""

    def set_extra_headers(self, path: str) -> None:
        """See `tornado.web.StaticFileHandler`."""
        for name, value in HEADERS.items():
            self.set_header(name, value)
        # The browser asks each time, and gets 304 if its copy is current.
        self.set_header("Cache-Control", "no-cache")


class EventsHandler(OperatorHandler):
    """The stream that the page reads."""

    async def get(self) -> None:
        """One event a second until the reader leaves."""
        events = self.console.events
        if events.readers >= MOST_READERS:
            raise HTTPError(503, f"{MOST_READERS} pages are open already; close some")
        self.set_header("Content-Type", "text/event-stream")
        if self.request.method == "HEAD":
            return
        try:
            async with aclosing(events.read()) as latest:
                async for event in latest:
                    self.write(event)
                    await asyncio.wait_for(self.flush(), READING_LIMIT)
        except (StreamClosedError, TimeoutError):
            # The reader has left, or has stopped reading.
            return


class RequestsHandler(OperatorHandler):
    """The page's content for programs."""

    async def get(self) -> None:
        """What all processes are doing now."""
        self.json(await self.console.everything())


class CancelHandler(OperatorHandler):
    """Stops requests of any process."""

    async def post(self, name: str) -> None:
        """Stop the request with this key, or all with this id: clients get 503 or 504, queries are stopped."""
        operator = self.access.client_of(self.request)
        stopped = self.console.stop_own(name, operator) + await self.console.stop_elsewhere(name, operator, named=True)
        if not stopped:
            raise HTTPError(404, "no such request is waiting or running; it may have ended just now")
        self.json({"stopped": stopped})


class HealthHandler(HostHandler):
    """Whether the event loop runs: if it does, there is an answer."""

    async def get(self) -> None:
        """Always 200."""
        self.text("ok\n")


class ReadyHandler(HostHandler):
    """Whether requests should be sent here."""

    async def get(self) -> None:
        """200 or 503, and one line for each check; covers all processes of the group unless ``process=own``."""
        asks_database = self.get_query_argument("db", "") == "1"
        if self.get_query_argument("process", "") == "own":
            processes = [(os.getpid(), await self.console.readiness(asks_database))]
        else:
            processes = await self.console.readiness_of_all(asks_database)
        # They share the application's port: a client may reach any of those that are not draining.
        serving = [found for _, found in processes if not found.draining]
        self.set_status(200 if serving and all(found.ready for found in serving) else 503)
        lines = []
        for pid, found in processes:
            name = f"process {pid}: " if len(processes) > 1 else ""
            lines += [f"{name}{finding}\n" for finding in found.findings]
        self.text("".join(lines))


class MetricsHandler(OperatorHandler):
    """For Prometheus."""

    async def get(self) -> None:
        """The sums of the metrics of this process and of those that serve together with it."""
        try:
            metrics = await self.console.metrics()
        except ModuleNotFoundError as error:
            raise HTTPError(501, f"the package {error.name} is not installed: pip install prometheus_client") from None
        self.set_header("Content-Type", METRICS)
        self.finish(metrics)


class ThreadsHandler(OperatorHandler):
    """What each thread is doing."""

    async def get(self) -> None:
        """The stacks of this process and of the others on this host."""
        others = await answers_of(self.console.peers.on_this_host(), "/local/threads")
        self.text("\n".join([self.console.stacks(), *(answer.body.decode(errors="replace") for answer in others)]))


class MissingHandler(HostHandler):
    """All other paths."""

    async def get(self, *arguments: str) -> None:
        """Always 404."""
        raise HTTPError(404, "there is nothing at this address")

    post = put = delete = get
