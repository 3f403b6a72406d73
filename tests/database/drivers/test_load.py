"""Under load, cancelling half of the requests at random spoils none of the others, with any driver."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import closing
from typing import Any

from tests.database.drivers.stacks import Stack
from tests.database.drivers.test_contract import execute
from tests.support.inprocess import wait_until
from threadbridge.crossing.current import TrackedRequest

THREADS, REQUESTS = 8, 40


def test_cancellations_at_random_spoil_no_other_request(stack: Stack) -> None:
    pool, guard = stack.pool(maxconnections=4, blocking=True, **({"timeout": 30} if not stack.number else {}))
    seed = random.randrange(2**32)
    done: Counter[str] = Counter()
    errors: list[Any] = []

    def serve(number: int) -> None:
        chance = random.Random(seed + number)
        for index in range(REQUESTS):
            request = TrackedRequest(f"{number}-{index}", None)
            is_cancelled, takes_long = chance.random() < 0.5, chance.random() < 0.5
            timer = threading.Timer(chance.random() * 0.02, request.cancel)
            request.enter()
            try:
                if is_cancelled:
                    timer.start()
                with closing(pool.connection()) as connection:
                    execute(connection, f"INSERT INTO notes VALUES ('{number}-{index}')")  # noqa: S608
                    if is_cancelled and takes_long:
                        execute(connection, stack.compute)
                    execute(connection, "SELECT COUNT(*) FROM notes")
                    execute(connection, f"INSERT INTO notes VALUES ('{number}-{index}')")  # noqa: S608
                    connection.commit()
                done["committed"] += 1
            except Exception as error:  # noqa: BLE001 - whatever the driver raises
                if request.cancelled and guard._database.is_statement_error(error):  # type: ignore[union-attr]
                    done["cancelled"] += 1
                else:
                    errors.append(error)
            finally:
                if is_cancelled:
                    timer.join()
                request.leave()

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), (seed, done)
    assert errors == [], (seed, errors[:3])
    assert sum(done.values()) == THREADS * REQUESTS and done["cancelled"] > THREADS, (seed, done)
    wait_until(lambda: pool._connections == 0, "all connections are back")
    # Each transaction is there as a whole, or not at all.
    notes = Counter(stack.notes)
    assert set(notes.values()) == {2} and len(notes) == done["committed"], (seed, done)
    assert (guard.stopper.severed, guard.stopper.failures) == (0, 0), seed
