"""The way from the workers back to the loop, when the loop is closed."""

from __future__ import annotations

import asyncio

import pytest

from threadbridge.crossing.hop import Hop


def test_every_post_to_a_closed_loop_raises() -> None:
    loop = asyncio.new_event_loop()
    hop = Hop(loop)
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            hop.post(print)
