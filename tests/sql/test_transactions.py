"""Which requests have changes in the open transactions of connections that several requests share."""

from __future__ import annotations

import random
from functools import partial

from tests.support.racing import race, rounds
from threadbridge.sql.statements import Statements
from threadbridge.sql.transaction import Effect, Transaction

THREADS = 4


def test_changes_of_requests_that_share_connections_are_settled_once() -> None:
    shared = [Transaction() for _ in range(2)]
    requests = [Statements() for _ in range(THREADS)]

    def work(me: int) -> None:
        choose = random.Random(me)
        for _ in rounds():
            for _ in range(20):
                transaction = choose.choice(shared)
                transaction.record(Effect.CHANGED, requests[me])
                if choose.random() < 0.5:
                    transaction.begin_commit()
                    transaction.record(Effect.COMMITTED, None)

    race(*(partial(work, me) for me in range(THREADS)))
    for transaction in shared:
        transaction.record(Effect.COMMITTED, None)
        assert not transaction.open
    assert [(each.open, each.outcome) for each in requests] == [(0, "committed")] * THREADS
