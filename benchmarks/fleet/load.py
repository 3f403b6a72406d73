"""A mixed load through the entry: pages, queries, slow reports, and orders with unique numbers, which are counted."""

from __future__ import annotations

import collections
import http.client
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlencode

from benchmarks.fleet.box import Fleet
from benchmarks.fleet.parts import PORT

PAGE, QUERY, REPORT, ORDER = "page", "query", "report", "order"
NO_ANSWER = 0
# Of 503s that the bridge has sent itself; see docs/fleet.md.
NEVER_RAN = "no"


class Kind(NamedTuple):
    """Requests of one sort: how many clients send them, and how many seconds each of them pauses in between."""

    clients: int
    pause: float


KINDS = {PAGE: Kind(4, 0.05), QUERY: Kind(4, 0.05), REPORT: Kind(2, 0.5), ORDER: Kind(4, 0.05)}


class Answer(NamedTuple):
    """What became of a request; without a response, ``status`` is `NO_ANSWER`, and ``error`` says why."""

    kind: str
    number: int
    ended: float
    seconds: float
    status: int
    ran: str
    error: str = ""


@dataclass
class Counts:
    """What became of the orders, by what their clients were told."""

    acknowledged: int = 0
    # Acknowledged, and not there.
    lost: list[int] = field(default_factory=list)
    # There more than once, or by half.
    doubled: list[int] = field(default_factory=list)
    halves: list[int] = field(default_factory=list)
    # There, although the client was told that they had never run.
    denied: list[int] = field(default_factory=list)
    # Whose clients got an error or nothing: some of them are there.
    unknown: int = 0
    unknown_written: int = 0

    @property
    def wrong(self) -> list[int]:
        """All that must not be."""
        return [*self.lost, *self.doubled, *self.halves, *self.denied]

    def __str__(self) -> str:
        return (
            f"orders: {self.acknowledged} acknowledged, {len(self.lost)} of them lost, {len(self.doubled)} doubled, "
            f"{len(self.halves)} written by half, {len(self.denied)} written but reported as never run; "
            f"{self.unknown} ended with an error, of which {self.unknown_written} were written"
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def judge(orders: Sequence[Answer], written: Mapping[int, tuple[int, int]]) -> Counts:
    """What became of the orders; ``written`` says how often each half of each order is in the database."""
    counts = Counts()
    for answer in orders:
        halves = written.get(answer.number, (0, 0))
        if max(halves) > 1:
            counts.doubled.append(answer.number)
        elif halves[0] != halves[1]:
            counts.halves.append(answer.number)
        if answer.status == 200:
            counts.acknowledged += 1
            if min(halves) == 0:
                counts.lost.append(answer.number)
        elif answer.ran == NEVER_RAN:
            if max(halves) > 0:
                counts.denied.append(answer.number)
        else:
            counts.unknown += 1
            counts.unknown_written += min(halves) > 0
    return counts


class Load:
    """Clients that send requests while the block runs; each is a thread with an address of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.id = secrets.token_hex(4)
        self.answers: list[Answer] = []
        self.begun = time.monotonic()
        self._numbers = itertools.count(1)
        self._is_over = threading.Event()
        kinds = [kind for kind, (clients, _) in KINDS.items() for _ in range(clients)]
        self._threads = [
            threading.Thread(target=self._send, args=(kind, fleet.network.clients[number]), daemon=True)
            for number, kind in enumerate(kinds)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)

    def _send(self, kind: str, address: str) -> None:
        connection = http.client.HTTPConnection(
            self._fleet.entry.host.address, PORT, timeout=60, source_address=(address, 0)
        )
        while not self._is_over.is_set():
            number = next(self._numbers)
            begun = time.monotonic()
            status, ran, error = self._ask(connection, kind, number)
            ended = time.monotonic()
            self.answers.append(Answer(kind, number, ended, ended - begun, status, ran, error))
            # Not to be refused again at once.
            self._is_over.wait(KINDS[kind].pause if status == 200 else 0.2)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, kind: str, number: int) -> tuple[int, str, str]:
        method, path, body = "GET", "/", None
        if kind == QUERY:
            path = f"/query/?report=orders&customer={number % 20_000 + 1}&format=json"
        elif kind == REPORT:
            path = f"/query/?report=pairs&from=2025-01-01&to=2025-{number % 6 + 3:02}-28&format=json"
        elif kind == ORDER:
            method, path, body = "POST", "/orders/", urlencode({"load": self.id, "number": number})
        try:
            connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"})
            response = connection.getresponse()
            response.read()
            return response.status, response.headers.get("X-Threadbridge-Ran", ""), ""
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return NO_ANSWER, "", repr(error)

    def of(self, kind: str, since: float = 0.0) -> list[Answer]:
        """The answers to requests of this kind that ended since then."""
        return [answer for answer in list(self.answers) if answer.kind == kind and answer.ended >= since]

    def longest_gap(self, kind: str, since: float) -> float:
        """The longest time since then in which no request of this kind was answered 200."""
        times = [since, *(each.ended for each in self.of(kind, since) if each.status == 200), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def counts(self) -> Counts:
        """Compare what clients were told with what is in the database."""
        return judge(self.of(ORDER), self._written())

    def _written(self) -> dict[int, tuple[int, int]]:
        """How often each half of each order is in the database."""
        sql = (
            "SELECT number, CAST(SUM(half = 1) AS INT), CAST(SUM(half = 2) AS INT) FROM myapplication.written "
            "WHERE load_id = %s GROUP BY number"
        )
        for node in self._fleet.nodes:
            if not node.problem():
                return {number: (first, second) for number, first, second in node.node.execute(sql, self.id)}
        raise SystemExit("fleet: no node of the database can be asked for the orders; scripts/fleet.sh mend")

    def table(self, since: float = 0.0) -> str:
        """Rates, times and failures of each kind."""
        begun = max(since, self.begun)
        lines = [f"{'':8}{'answers':>9}{'a second':>10}{'50 %':>9}{'99 %':>9}{'longest':>9}  failures"]
        for kind in KINDS:
            answers = self.of(kind, since)
            times = [1000 * each.seconds for each in answers if each.status == 200]
            bad = collections.Counter(each.error or str(each.status) for each in answers if each.status != 200)
            rate = len(answers) / max(time.monotonic() - begun, 0.001)
            cells = "".join(f"{percentile(times, part):6.0f} ms" for part in (50, 99, 100))
            shown = ", ".join(f"{count} x {what}" for what, count in bad.most_common(4)) or "none"
            lines.append(f"{kind:8}{len(answers):9}{rate:10.1f}{cells}  {shown}")
        return "\n".join(lines)


def drive(fleet: Fleet, seconds: float, show: Callable[[str], None]) -> Counts:
    """Send the load for so long, and say each second what was answered; gives what became of the orders."""
    with Load(fleet) as load:
        for second in _seconds(seconds):
            last = [each for each in list(load.answers) if each.ended >= second - 1]
            good = collections.Counter(each.kind for each in last if each.status == 200)
            bad = collections.Counter(
                f"{each.kind} {each.status or 'no answer'}" for each in last if each.status != 200
            )
            failed = "".join(f"; {count} x {what}" for what, count in bad.items())
            show(", ".join(f"{good[kind]} x {kind}" for kind in KINDS) + failed)
    show(load.table())
    counts = load.counts()
    show(str(counts))
    return counts


def _seconds(seconds: float) -> Iterator[float]:
    """Each second's end, until so many have passed."""
    begun = time.monotonic()
    for number in range(1, int(seconds) + 1):
        time.sleep(max(begun + number - time.monotonic(), 0))
        yield time.monotonic()
