"""Cancels requests at random moments, and watches that their queries stop and no others do."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import MySQLdb

from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import InThread
from threadbridge.crossing.current import TrackedRequest

# 1000 take a minute or two.
CANCELLATIONS = int(os.environ.get("CLUSTER_CANCELLATIONS", "100"))
# Within this time, most queries must stop.
SOON = 0.3
# A short query, with its number, and one that computes for minutes.
MARIADB = (
    "SELECT {0}, COUNT(MD5(seq)) FROM seq_1_to_3000",
    "SELECT COUNT(MD5(seq)) FROM seq_1_to_100000000",
)
POSTGRESQL = (
    "SELECT {0}, count(md5(n::text)) FROM generate_series(1, 3000) AS n",
    "SELECT count(md5(n::text)) FROM generate_series(1, 1000000000) AS n",
)


def is_stopped(error: BaseException) -> bool:
    """Whether mysqlclient says that the statement was interrupted."""
    return isinstance(error, MySQLdb.OperationalError) and error.args[0] == 1317


@dataclass
class Outcome:
    """What came of the cancellations."""

    # Seconds from each cancellation to the end of its request.
    seconds: list[float] = field(default_factory=list)
    # What cancelled requests ended with that were not stopped, and what all others failed with.
    not_stopped: list[object] = field(default_factory=list)
    foreign: list[BaseException] = field(default_factory=list)
    # How many other requests were answered.
    answered: int = 0

    @property
    def soon(self) -> float:
        """The share of the cancelled requests that ended within `SOON`."""
        return sum(each <= SOON for each in self.seconds) / len(self.seconds)

    def assert_that_only_they_were_stopped(self) -> None:
        """Fail unless all cancelled requests were stopped, nearly all of them soon, and no others were disturbed."""
        assert (self.foreign, self.not_stopped) == ([], [])
        # The few of an ordinary run may meet moments in which the machine does something else.
        assert self.soon >= (0.99 if CANCELLATIONS >= 1000 else 0.7) and self.answered > 0

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        median, late, longest = (1000 * ordered[(len(ordered) - 1) * part // 100] for part in (50, 99, 100))
        return (
            f"{len(ordered)} cancelled: {100 * self.soon:.1f} % ended within {SOON:g} s, median {median:.0f} ms, "
            f"99 % {late:.0f} ms, longest {longest:.0f} ms; {len(self.not_stopped)} not stopped; "
            f"{self.answered} others answered, {len(self.foreign)} disturbed"
        )


def cancel_at_random(
    pools: Sequence[Any],
    count: int,
    short: str,
    long: str,
    is_stopped: Callable[[BaseException], bool],
    *,
    victims: int = 4,
    others: int = 4,
    seed: int = 1,
) -> Outcome:
    """Cancel so many requests, each while it sends short queries or one that would run for long.

    :param pools: guarded pools with room for all; victims and others use them at random.
    :param short: a query that takes a few milliseconds; ``{0}`` is a number that it returns.
    :param long: a query that would run for a minute.
    :param is_stopped: whether the error is the driver's for a stopped statement.
    """
    outcome = Outcome()
    lock = threading.Lock()
    left = [count]
    is_over = threading.Event()

    def send(pool: Any, sql: str) -> Any:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            return cursor.fetchone()

    def sends_until_stopped(pool: Any, chance: random.Random) -> None:
        for number in range(chance.randrange(4)):
            assert send(pool, short.format(number))[0] == number
        send(pool, long)

    def cancel_one(chance: random.Random) -> None:
        request = TrackedRequest("victim", None)

        def run() -> None:
            request.enter()
            try:
                sends_until_stopped(chance.choice(pools), chance)
            finally:
                request.leave()

        worker = InThread(run)
        time.sleep(chance.random() * 0.06)
        begun = time.monotonic()
        request.cancel()
        worker.thread.join(60)
        with lock:
            outcome.seconds.append(time.monotonic() - begun)
            if worker.error is None or not is_stopped(worker.error):
                outcome.not_stopped.append(worker.error)

    def victim(seed: int) -> None:
        chance = random.Random(seed)
        while True:
            with lock:
                if not left[0]:
                    return
                left[0] -= 1
            cancel_one(chance)

    def other(seed: int) -> None:
        chance = random.Random(seed)
        while not is_over.is_set():
            number = chance.randrange(10**6)
            request = TrackedRequest("other", None)
            request.enter()
            try:
                assert send(chance.choice(pools), short.format(number))[0] == number
                with lock:
                    outcome.answered += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
                outcome.foreign.append(error.with_traceback(None))
            finally:
                request.leave()

    numbers = iter(range(1000 * seed, 1000 * seed + victims + others))
    threads = [threading.Thread(target=victim, args=(next(numbers),), daemon=True) for _ in range(victims)]
    strangers = [threading.Thread(target=other, args=(next(numbers),), daemon=True) for _ in range(others)]
    for thread in [*threads, *strangers]:
        thread.start()
    try:
        wait_until(lambda: not any(thread.is_alive() for thread in threads), "all are cancelled", seconds=3600)
    finally:
        is_over.set()
    for thread in strangers:
        thread.join(20)
    return outcome
