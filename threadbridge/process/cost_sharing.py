"""Learns what other hosts have learned of requests' costs, so that a new host does not begin from scratch.

Each host asks one other host at a time, chosen at random: what one of them learns spreads to all, and the work does not
grow with their number. Hosts that serve another application answer nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED, in_thread
from threadbridge.process.cost_keeper import CostKeeper

if TYPE_CHECKING:
    from threadbridge.admin.frontends import Frontends

logger = logging.getLogger("threadbridge")

# Seconds between two questions.
INTERVAL = 60.0
# Seconds that another host may take to answer.
TIME_LIMIT = 5.0

# The name of the threads that read and write.
THREAD = "threadbridge-costs"


class CostSharing:
    """Asks other hosts' operators' ports. Loop side; what it gets is read in a thread.

    :param on_first: called when something is known of costs for the first time.
    """

    def __init__(self, keeper: CostKeeper, frontends: Frontends, on_first: Callable[[], None]) -> None:
        self._keeper = keeper
        self._frontends = frontends
        self._on_first = on_first
        # The module's own state belongs to the application, which may seed it: all hosts would ask the same one.
        self._random = random.Random()
        self._silent, self._unusable = RepeatedLog(logger, 600), RepeatedLog(logger, 600)

    async def run(self, stop: asyncio.Event) -> None:
        """Ask now, and every `INTERVAL` seconds until the event is set."""
        while not stop.is_set():
            try:
                await self._ask_one()
            except NOT_STARTED as error:
                self._unusable.log(logging.WARNING, "cannot learn from other hosts what requests cost: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), INTERVAL)

    async def _ask_one(self) -> None:
        """Learn from one host that knows something; this process may be among those that are listed."""
        # Not at the top: it takes memory, and few processes have other hosts.
        from threadbridge.admin.frontend_answer import FrontendError

        hosts = await self._frontends.on_other_hosts()
        problems = []
        reader = await in_thread(self._keeper.directory_id, THREAD)
        for host in self._random.sample(hosts, len(hosts)):
            query = urlencode({"application": self._keeper.application, "reader": reader})
            try:
                text = await host.ask(f"/local/costs?{query}", limit=TIME_LIMIT)
            except FrontendError as error:
                problems.append(f"{host.name}: {error}")
                continue
            if not text:
                continue
            is_first = not self._keeper.knows_any
            try:
                await in_thread(partial(self._keeper.learn_from, text), THREAD)
            except ValueError as error:
                self._unusable.log(logging.WARNING, "cannot use what %s knows of requests' costs: %s", host.name, error)
                continue
            if is_first:
                self._on_first()
            return
        if problems and len(problems) == len(hosts):
            self._silent.log(
                logging.WARNING,
                "no other host says what requests cost, so this one learns it from its own: %s",
                "; ".join(problems),
            )

    async def answer(self, application: str, reader: str) -> bytes | None:
        """What this host has learned, for the host ``reader``; None if that has another application, or is this one."""
        return await in_thread(partial(self._keeper.text_for, application, reader), THREAD)
