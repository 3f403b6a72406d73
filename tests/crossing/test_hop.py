"""The way from the workers back to the loop: what does not go along, and what happens when the loop is closed."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from threadbridge.crossing.hop import Hop


def test_every_post_to_a_closed_loop_raises() -> None:
    loop = asyncio.new_event_loop()
    hop = Hop(loop)
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            hop.post(print)


def test_the_context_of_a_worker_stays_there() -> None:
    named: ContextVar[str] = ContextVar("named", default="nobody")

    async def deliver() -> str:
        hop = Hop(asyncio.get_running_loop())
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def post() -> None:
            named.set("the worker")
            hop.post(lambda: found.set_result(named.get()))

        thread = threading.Thread(target=post)
        thread.start()
        thread.join()
        return await found

    assert asyncio.run(deliver()) == "nobody"
