"""What operators can see and do at the operators' port."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from threadbridge.admin.events import Events
from threadbridge.admin.frontend import PATIENCE, READINESS_LIMIT, Frontend, FrontendGone, answers_of
from threadbridge.admin.frontend_answer import STOPPED, TABLES, FrontendError, parse
from threadbridge.admin.frontends import Frontends
from threadbridge.admin.health import Health, Readiness
from threadbridge.admin.learned import learned, merged
from threadbridge.admin.snapshot import snapshot
from threadbridge.admin.view import view
from threadbridge.common.private_directory import boot_id
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import stacks
from threadbridge.loop.bridge import Bridge
from threadbridge.sockets.inheritance import Supervision
from threadbridge.telemetry.history import History

if TYPE_CHECKING:
    from threadbridge.sockets.certificates import Certificates

logger = logging.getLogger("threadbridge")


class Console:
    """Shows what this process and the other frontends are doing, whether they are ready, and stops requests."""

    def __init__(self, bridge: Bridge, frontends: Frontends) -> None:
        self.frontends = frontends
        # Set when the process has been told to stop.
        self.draining = False
        # Where this process serves the application, and where operators reach it; known once it listens.
        self.addresses: Sequence[str] = ()
        self.admin_address = ""
        self.events = Events(self._event)
        # Gives what this host has learned of requests' costs, for a reader of the same application; None if nothing.
        self.costs: Callable[[str, str], Awaitable[bytes | None]] | None = None
        # For the metrics: what the supervisor says, if there is one, and the certificates, if it serves HTTPS.
        self.supervision: Callable[[], Supervision] | None = None
        self.certificates: Certificates | None = None
        self._bridge = bridge
        self._history = History()
        self._health = Health(bridge)
        # The result of the latest check; changes are logged.
        self._was_ready = True
        self._ready_log, self._not_ready_log = RepeatedLog(logger), RepeatedLog(logger)
        self._key = secrets.token_hex(6)
        self._started = time.time()
        self._host, self._machine = socket.gethostname(), boot_id()
        bridge.telemetry.subscribe(self._history.read)

    async def processes(self, frontends: Sequence[Frontend], name: str = "") -> list[dict[str, Any]]:
        """What this process is doing, and those that these frontends know, for JSON.

        :param name: if given, list only requests with this key or id.
        """
        answers = await asyncio.gather(*(frontend.processes(name) for frontend in frontends))
        own = {
            "key": self._key,
            "pid": os.getpid(),
            "host": self._host,
            "machine": self._machine,
            "addresses": list(self.addresses),
            "admin": self.admin_address,
            "started": self._started,
            "draining": self.draining,
            **snapshot(self._bridge, self._history, lambda key, id: name in ("", id, f"{self._key}-{key}")),
        }
        return [
            own,
            *(
                {**process, "via": "" if frontend.pid else frontend.name}
                for frontend, processes in zip(frontends, answers, strict=True)
                for process in processes
            ),
        ]

    async def everything(self, name: str = "", host: str = "") -> dict[str, Any]:
        """What all processes on all hosts are doing, for JSON; see `processes`.

        :param host: if given, list only requests on the hosts of this name.
        """
        frontends = await self.frontends.all()
        processes = await self.processes(frontends, name)
        unreachable: list[dict[str, Any]] = [
            {"name": each.name, "reason": each.problem, "host": each.host, "answered": each.answered_at}
            for each in frontends
            if each.problem
        ]
        unreachable += [
            {"name": item, "reason": reason, "host": "", "answered": None} for item, reason in self.frontends.problems
        ]
        return view(processes, unreachable, host)

    async def tables(self, frontends: Sequence[Frontend]) -> list[dict[str, Any]]:
        """What this process and these frontends have learned of requests' costs, for JSON.

        Frontends whose latest answer was late or wrong are not asked again.
        """
        tables = [{"key": self._key, "rows": learned(self._bridge)}]
        asked = [each for each in frontends if not each.problem]
        for answer in await answers_of(asked, "/local/learned.json", limit=PATIENCE):
            with suppress(FrontendError):
                tables += parse(answer, TABLES)["tables"]
        return tables

    async def learned(self) -> list[dict[str, Any]]:
        """What all processes have learned, as one table."""
        return merged(await self.tables(await self.frontends.all()))

    def recent(self) -> list[dict[str, Any]] | None:
        """The latest requests of this process with their SQL, for JSON; None except during development."""
        self._bridge.telemetry.flush()
        recent = self._bridge.telemetry.recent
        return None if recent is None else recent.as_json()

    async def _event(self) -> bytes:
        """`everything` as a server-sent event."""
        return b"data: " + json.dumps(await self.everything(), separators=(",", ":")).encode() + b"\n\n"

    async def metrics(self, frontends: Sequence[Frontend]) -> bytes:
        """The metrics of this process, in Prometheus' text format, or the sums of its and these frontends'."""
        # Imported late: a server whose metrics are not read does not need prometheus_client.
        from threadbridge.admin import metrics

        found, others = await asyncio.gather(
            self.readiness(asks_database=False), answers_of(frontends, "/local/metrics", limit=READINESS_LIMIT)
        )
        # Draining is not a fault.
        supervision = self.supervision() if self.supervision is not None else None
        is_ready = found.ready or found.draining
        own = metrics.exposition(self._bridge, is_ready, supervision, self.certificates)
        return metrics.merged([own, *others]) if others else own

    async def readiness(self, asks_database: bool) -> Readiness:
        """Whether this process should get requests (see `threadbridge.admin.health`); logs changes."""
        found = await self._health.readiness(self.draining, asks_database)
        if not found.draining and found.ready != self._was_ready:
            self._was_ready = found.ready
            if found.ready:
                self._ready_log.log(logging.WARNING, "ready again")
            else:
                findings = "; ".join(found.findings)
                self._not_ready_log.log(logging.ERROR, "not ready, as /readyz says from now on: %s", findings)
        return found

    async def readiness_of_all(self, frontends: Sequence[Frontend], asks_database: bool) -> list[tuple[int, Readiness]]:
        """The pid and readiness of this process and of these frontends."""
        found = await asyncio.gather(
            self.readiness(asks_database), *(frontend.readiness(asks_database) for frontend in frontends)
        )
        pids = [os.getpid(), *(frontend.pid for frontend in frontends)]
        return [(pid, readiness) for pid, readiness in zip(pids, found, strict=True) if readiness is not None]

    def stacks(self) -> str:
        """The stack of each thread of this process, workers first, each with the request that it serves."""
        serving = {each.thread_id: each for each in self._bridge.exchanges.open if not each.worker_is_done}
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = [f"Process {os.getpid()}, {' and '.join(self.addresses)}. Innermost calls first.\n"]
        for number, calls in sorted(stacks().items(), key=lambda stack: (stack[0] not in serving, stack[0])):
            exchange = serving.get(number)
            line = exchange and f": request {exchange.id}, {exchange.start_line.method} {exchange.start_line.path}"
            parts.append(f"{names.get(number, f'thread {number}')}{line or ''}\n{calls}\n")
        return "\n".join(parts)

    async def stop(self, name: str, operator: str, frontends: Sequence[Frontend]) -> tuple[int, list[str]]:
        """Stop the request with this key, or all with this id, in this process and these frontends.

        Returns how many were stopped, and the frontends that may have such a request, but do not answer.
        """
        process, _, key = name.partition("-")
        is_own = process == self._key
        found = [each for each in self._bridge.exchanges.open if (is_own and each.key == key) or each.id == name]
        for exchange in found:
            line = exchange.start_line
            logger.warning(
                "request %s: stopped by an operator (%s): %s %s", exchange.id, operator, line.method, line.path
            )
            self._bridge.exchanges.stop(exchange)
        # A key names the process. Of the frontends that know it, any can stop the request.
        asked = [] if is_own else [each for each in frontends if process in each.keys] or frontends
        path = f"/local/requests/{quote(name, safe='')}/cancel?operator={quote(operator, safe='')}"
        numbers = await asyncio.gather(*(_stopped_by(each, path) for each in asked))
        silent = [each.name for each, number in zip(asked, numbers, strict=True) if number is None]
        return len(found) + sum(number or 0 for number in numbers), silent

    async def close(self, limit: float) -> None:
        """End the requests to other frontends and, within ``limit`` seconds, the streams of events."""
        self.frontends.close()
        await self.events.close(limit)


async def _stopped_by(frontend: Frontend, path: str) -> int | None:
    """How many requests it has stopped, as far as it says; None if it does not answer."""
    try:
        return int(parse(await frontend.ask(path, "POST", frontend.patience), STOPPED)["stopped"])
    except FrontendGone:
        return 0
    except FrontendError:
        return None
