"""What the operators' port answers to other frontends.

By the Unix socket a process tells what it knows of itself; by TCP it tells what all processes of its host know.
"""

from __future__ import annotations

from dataclasses import asdict

from tornado.web import RequestHandler

from threadbridge.admin.access import loggable
from threadbridge.admin.authorization import AdminHandler, PeerHandler
from threadbridge.admin.handlers import METRICS


def operator_of(handler: RequestHandler) -> str:
    """The client that asked the other frontend, for the log."""
    return loggable(handler.get_query_argument("operator", "") or "by another frontend")


class LocalProcessesHandler(AdminHandler):
    """What this process is doing."""

    async def get(self) -> None:
        """This process alone."""
        self.json({"processes": [self.console.own()]})


class LocalCancelHandler(AdminHandler):
    """Stops requests of this process."""

    async def post(self, name: str) -> None:
        """How many it has stopped, possibly none."""
        self.json({"stopped": self.console.stop_own(name, operator_of(self))})


class LocalMetricsHandler(AdminHandler):
    """This process's metrics."""

    async def get(self) -> None:
        """In Prometheus' text format."""
        self.set_header("Content-Type", METRICS)
        self.finish(await self.console.own_metrics())


class LocalReadyHandler(AdminHandler):
    """Whether requests should be sent to this process."""

    async def get(self) -> None:
        """The fields of its `Readiness`."""
        self.json(asdict(await self.console.readiness(self.get_query_argument("db", "") == "1")))


class LocalThreadsHandler(AdminHandler):
    """What each thread of this process is doing."""

    async def get(self) -> None:
        """Their stacks."""
        self.text(self.console.stacks())


class HostProcessesHandler(PeerHandler):
    """What the processes on this host are doing."""

    async def get(self) -> None:
        """This process and those in the run directory."""
        self.json({"processes": await self.console.on_this_host()})


class HostCancelHandler(PeerHandler):
    """Stops requests of the processes on this host."""

    async def post(self, name: str) -> None:
        """How many they have stopped, possibly none."""
        operator = operator_of(self)
        stopped = self.console.stop_own(name, operator) + await self.console.stop_elsewhere(name, operator, named=False)
        self.json({"stopped": stopped})
