"""The promises, checked when the faults are over."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set

from tests.faults.crowd import WRITES, Crowd, Sent
from tests.faults.limits import resident
from tests.faults.site import CONNECTIONS, DEADLINE, Site

# So many seconds before lines of the access log are known to have been lost, or after, some may have been.
LOST_LINES = 1.5
# Seconds without a query that succeeds after which a frontend must not be ready.
UNREADY_AFTER = 20
# So many kilobytes more than at first a process may take: buffers, caches, threads' stacks.
MORE_MEMORY = 48 * 1024


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition holds before the time is over."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


class Readiness:
    """While no request gets anything from the database, the operators' port does not say for long that all is well."""

    def __init__(self) -> None:
        self._queries = 0
        self._since = time.monotonic()

    def look(self, site: Site, crowd: Crowd) -> list[str]:
        if crowd.queries > self._queries:
            self._queries = crowd.queries
            self._since = time.monotonic()
        lasts = time.monotonic() - self._since
        # With several processes each of them is asked.
        if lasts < UNREADY_AFTER or any(site.ready()[0] != 200 for _ in range(5)) or crowd.queries > self._queries:
            return []
        return [f"ready, though no query has succeeded for {lasts:.0f} s: {site.page('/threads')}"]


def money(site: Site, crowd: Crowd) -> list[str]:
    """See `books`."""
    answered = {number for number, sent in crowd.sent.items() if sent.kind in WRITES and sent.status == 200}
    # The application never saw them.
    refused = {
        number
        for number, sent in crowd.sent.items()
        if sent.kind in WRITES and sent.by_server and sent.status in (503, 507)
    }
    return books(
        site.sql("SELECT id, source, target FROM ledger"),
        dict(site.sql("SELECT id, amount FROM accounts")),
        answered,
        refused,
    )


def books(
    rows: Iterable[tuple[int, int, int]], accounts: dict[int, int], answered: Set[int], refused: Set[int] = frozenset()
) -> list[str]:
    """Each transfer is there once or not at all, as a whole, those answered 200 are, those refused by the server not.

    :param rows: the ledger: the number of each transfer, and between which accounts it was.
    :param accounts: what is in them; it was 1,000 in each.
    """
    wrong = []
    counts: Counter[int] = Counter()
    expected = dict.fromkeys(accounts, 1000)
    for number, source, target in rows:
        counts[number] += 1
        if source:
            expected[source] -= 1
            expected[target] += 1
    doubled = [number for number, count in counts.items() if count > 1]
    if doubled:
        wrong.append(f"{len(doubled)} rows are there more than once, such as {doubled[:5]}")
    if accounts != expected:
        off = {number: amount - expected[number] for number, amount in accounts.items() if amount != expected[number]}
        wrong.append(f"accounts do not agree with the ledger: {off}; sum {sum(accounts.values())}")
    lost = [number for number in answered if number not in counts]
    if lost:
        wrong.append(f"{len(lost)} of {len(answered)} writes that were answered 200 are lost, such as {lost[:5]}")
    done = [number for number in refused if number in counts]
    if done:
        wrong.append(f"{len(done)} of {len(refused)} writes that the server refused are there, such as {done[:5]}")
    return wrong


def outcomes(site: Site, crowd: Crowd) -> list[str]:
    """What the access log says of a write's outcome agrees with the ledger."""
    lines = site.access_log()
    there = {number for (number,) in site.sql("SELECT id FROM ledger")}
    wrong = []
    for number, sent in crowd.sent.items():
        if sent.kind not in WRITES:
            continue
        for line in lines.get(str(number), ()):
            match = re.search(r" changes=(\S+)", line)
            said = "none" if match is None else match[1]
            is_committed = said in ("committed", "partly-committed")
            # A thread may still be at work for a request that has ended in another way.
            is_not = said in ("none", "rolled-back") and "ending=done" in line
            if (is_committed and number not in there) or (is_not and number in there):
                wrong.append(line)
    return [f"the access log tells another outcome than the ledger {len(wrong)} times: {wrong[0]}"] if wrong else []


def statuses(crowd: Crowd, faults: Set[str]) -> list[str]:
    """No answer is one that these faults do not explain."""
    expected = {0, 200, 503, 504}
    if "disk_full" in faults:
        expected.add(507)
    if faults & {"memory_short", "threads_used_up", "descriptors_used_up"}:
        expected.add(500)
    odd = [(number, sent) for number, sent in crowd.sent.items() if sent.status not in expected]
    return [f"{len(odd)} odd answers, such as {odd[:5]}"] if odd else []


def access_log(site: Site, crowd: Crowd) -> list[str]:
    """Each answered request has one line, and none has two."""
    wrong = []
    lines = site.access_log()
    lost = site.losses()

    def may_be_lost(sent: Sent) -> bool:
        return any(began - LOST_LINES < sent.ended < ended + LOST_LINES for began, ended in lost)

    twice = {number: found for number, found in lines.items() if len(found) > 1}
    if twice:
        wrong.append(f"{len(twice)} requests have more than one line in the access log: {next(iter(twice.values()))}")
    missing = [
        number
        for number, sent in crowd.sent.items()
        if sent.status and str(number) not in lines and not may_be_lost(sent)
    ]
    if missing:
        wrong.append(
            f"{len(missing)} answered requests have no line in the access log, such as "
            f"{[(number, crowd.sent[number].kind, crowd.sent[number].status) for number in missing[:5]]}"
        )
    differ = [
        (number, sent.status, lines[str(number)][0])
        for number, sent in crowd.sent.items()
        if sent.status and f'" {sent.status} ' not in lines.get(str(number), [f'" {sent.status} '])[0]
        if not may_be_lost(sent)
    ]
    if differ:
        wrong.append(f"{len(differ)} requests have another status in the access log, such as {differ[0]}")
    return wrong


def nothing_left(site: Site) -> list[str]:
    """Nothing runs in the database, and no lock is held there."""
    wrong = []
    left: Sequence[object] = []

    def is_empty(query: str) -> bool:
        nonlocal left
        left = site.sql(query)
        return not left

    processes = (
        "SELECT id, command, time_ms, state, info FROM information_schema.processlist "
        "WHERE id <> CONNECTION_ID() AND user = 'myapplication' AND command <> 'Sleep'"
    )
    if not within(DEADLINE + 15, lambda: is_empty(processes)):
        wrong.append(f"still running in the database: {left}")
    transactions = "SELECT trx_id, trx_started, trx_query FROM information_schema.innodb_trx"
    if not within(5, lambda: is_empty(transactions)):
        wrong.append(f"transactions are open: {left}")
    return wrong


def full_strength(site: Site) -> list[str]:
    """Ready, idle, and all connections of the pools work at the same time."""
    wrong = []
    if not within(40, lambda: all(site.ready("/readyz?db=1")[0] == 200 for _ in range(5))):
        wrong.append(f"not ready: {site.ready()}")
    if not within(DEADLINE + 15, lambda: not site.unfinished()):
        wrong.append(
            f"something is left: {site.unfinished()}: {site.page('/requests.json')[:3000]}\n{site.page('/threads')}"
        )
    count = CONNECTIONS * site.processes
    statuses: list[int] = []

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=40)
        connection.request("GET", f"/slow?id={number}&steps=10")
        statuses.append(connection.getresponse().status)
        connection.close()

    for attempt in range(3):
        statuses.clear()
        threads = [
            threading.Thread(target=ask, args=(9_000_000_000 + attempt * count + number,)) for number in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if statuses != [200] * count:
        wrong.append(f"{count} queries at once were answered {Counter(statuses)}")
    return wrong


def memory(site: Site) -> int:
    """Kilobytes of memory of the largest process."""
    return max((resident(pid) for pid in site.children()), default=0)


def leaks(site: Site, at_first: int) -> list[str]:
    """No process holds many more threads, files or memory than it needs."""
    wrong = []
    for pid in site.children():
        threads = len(os.listdir(f"/proc/{pid}/task"))
        files = len(os.listdir(f"/proc/{pid}/fd"))
        if threads > 6 * CONNECTIONS + 30 or files > 6 * CONNECTIONS + 60:
            wrong.append(f"process {pid} has {threads} threads and {files} open files")
    if memory(site) > at_first + MORE_MEMORY:
        wrong.append(f"a process takes {memory(site)} kB, after {at_first} kB at first")
    return wrong


def clean_end(site: Site) -> list[str]:
    """Told to stop, it ends with status 0, and the port is free."""
    wrong = []
    site.end()
    if not within(2, lambda: not site.left()):
        wrong.append(f"processes are left: {site.left()}")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", site.port))
        except OSError as error:
            wrong.append(f"the port is not free: {error}")
    return wrong


# Errors in a log that a fault explains.
EXPLAINED = {
    "memory_short": ("MemoryError", "can't start new thread", "Cannot allocate memory"),
    "threads_used_up": ("can't start new thread", "Resource temporarily unavailable"),
    "descriptors_used_up": ("Too many open files",),
    "disk_full": ("No space left on device",),
}


def logs(site: Site, faults: Set[str]) -> list[str]:
    """The logs have no error that nobody has foreseen."""
    explained = [part for fault in faults for part in EXPLAINED.get(fault, ())]
    found = [text for text in site.tracebacks() if not any(part in text for part in explained)]
    return [f"{len(found)} tracebacks in the logs, such as: {found[0]}"] if found else []
