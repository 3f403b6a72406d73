"""What operators can see and do at the operators' port."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from threadbridge.admin.events import Events
from threadbridge.admin.health import DatabaseHealth, Readiness, readiness
from threadbridge.admin.peer_answer import MalformedAnswer, parse_stopped
from threadbridge.admin.peers import READINESS_LIMIT, Peers, answers_of, processes_of, readiness_of
from threadbridge.admin.snapshot import snapshot
from threadbridge.admin.view import view
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import stacks
from threadbridge.loop.bridge import Bridge
from threadbridge.telemetry.history import History

logger = logging.getLogger("threadbridge")


class Console:
    """Shows what a bridge and its peers are doing, whether they are ready, and stops requests.

    :param bridge: the bridge of this process.
    :param peers: the other frontends that this one knows.

    The loop owns all of its state.
    """

    def __init__(self, bridge: Bridge, peers: Peers) -> None:
        self.peers = peers
        # Set when the process has been told to stop.
        self.draining = False
        # Where this process serves the application, and where operators reach it; known once it listens.
        self.addresses: Sequence[str] = ()
        self.admin_address = ""
        self.events = Events(self._event)
        self._bridge = bridge
        self._history = History()
        self._database = DatabaseHealth(bridge.guard) if bridge.guard is not None else None
        # The result of the latest check; changes are logged.
        self._was_ready = True
        self._ready_log, self._not_ready_log = RepeatedLog(logger), RepeatedLog(logger)
        self._key = secrets.token_hex(6)
        self._started = time.time()
        bridge.telemetry.subscribe(self._history.read)

    def own(self) -> dict[str, Any]:
        """What this process is doing, as JSON can carry it."""
        return {
            "key": self._key,
            "pid": os.getpid(),
            "addresses": list(self.addresses),
            "admin": self.admin_address,
            "started": self._started,
            "draining": self.draining,
            **snapshot(self._bridge, self._history),
        }

    async def everything(self) -> dict[str, Any]:
        """What all processes are doing, this one and its peers."""
        others, unreachable = await processes_of(self.peers.all())
        return view(self.own(), others, unreachable)

    async def on_this_host(self) -> list[dict[str, Any]]:
        """What this process and those in the run directory are doing."""
        others, _ = await processes_of(self.peers.on_this_host())
        return [self.own(), *others]

    async def _event(self) -> bytes:
        """`everything` as a server-sent event."""
        return b"data: " + json.dumps(await self.everything(), separators=(",", ":")).encode() + b"\n\n"

    async def own_metrics(self) -> bytes:
        """This process's metrics, in Prometheus' text format."""
        # Imported late: a server whose metrics are not read does not need prometheus_client.
        from threadbridge.admin.metrics import exposition

        found = await self.readiness(asks_database=False)
        # Draining is not a fault.
        return exposition(self._bridge, found.ready or found.draining)

    async def metrics(self) -> bytes:
        """The sums of the metrics of all processes that serve together."""
        from threadbridge.admin.metrics_merge import merge

        peers = self.peers.on_this_host(own_group=True)
        own, others = await asyncio.gather(
            self.own_metrics(), answers_of(peers, "/local/metrics", limit=READINESS_LIMIT)
        )
        return merge([own, *(answer.body for answer in others)]) if others else own

    async def readiness(self, asks_database: bool) -> Readiness:
        """Whether this process should get requests; logs changes.

        :param asks_database: check the database even if nothing casts doubt on it.
        """
        found = await readiness(self._bridge, self._database, self.draining, asks_database)
        if not found.draining and found.ready != self._was_ready:
            self._was_ready = found.ready
            if found.ready:
                self._ready_log.log(logging.WARNING, "ready again")
            else:
                findings = "; ".join(found.findings)
                self._not_ready_log.log(logging.ERROR, "not ready, as /readyz says from now on: %s", findings)
        return found

    async def readiness_of_all(self, asks_database: bool) -> list[tuple[int, Readiness]]:
        """The pid and readiness of each process that serves together with this one; unready if it does not answer."""
        peers = self.peers.on_this_host(own_group=True)
        own, *others = await asyncio.gather(
            self.readiness(asks_database), *(readiness_of(peer, asks_database) for peer in peers)
        )
        found = [(os.getpid(), own), *((peer.pid, other) for peer, other in zip(peers, others, strict=True))]
        return [(pid, readiness) for pid, readiness in found if readiness is not None]

    def stacks(self) -> str:
        """The stack of each thread of this process, workers first, each with the request that it serves."""
        serving = {
            exchange.thread_id: exchange for exchange in self._bridge.exchanges.open if not exchange.worker_is_done
        }
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = [f"Process {os.getpid()}, {' and '.join(self.addresses)}. Innermost calls first.\n"]
        for number, calls in sorted(stacks().items(), key=lambda stack: (stack[0] not in serving, stack[0])):
            exchange = serving.get(number)
            line = exchange and f": request {exchange.id}, {exchange.start_line.method} {exchange.start_line.path}"
            parts.append(f"{names.get(number, f'thread {number}')}{line or ''}\n{calls}\n")
        return "\n".join(parts)

    def stop_own(self, name: str, operator: str) -> int:
        """Stop requests of this process, and return how many.

        :param name: the key of one request, or an id, which several may share.
        :param operator: the client that asked for it, for the log.
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
        return len(found)

    async def stop_elsewhere(self, name: str, operator: str, *, named: bool) -> int:
        """Stop requests of the peers, and return how many.

        :param named: whether to include peers of other hosts, those in the setting ``admin_peers``.
        """
        peers = self.peers.all() if named else self.peers.on_this_host()
        path = f"/local/requests/{quote(name, safe='')}/cancel?operator={quote(operator, safe='')}"
        stopped = 0
        for answer in await answers_of(peers, path, "POST"):
            # As far as we know, a peer with a malformed answer has stopped nothing.
            with suppress(MalformedAnswer):
                stopped += parse_stopped(answer.body)
        return stopped

    def close(self) -> None:
        """End the streams of events and the requests to peers."""
        self.events.close()
        self.peers.close()
