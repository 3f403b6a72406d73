"""Clients that try to look short: those of others are served while the requests of one are held.

A real server, and an application that holds the requests of the attacker until the test lets them go: what is answered
before, did not wait for them. Time passes only in the application, as the cost of a request.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.cost_kinds import cells_of
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge.crossing.costs import MAX_CELLS, Costs
from threadbridge.crossing.estimate import Estimate

THREADS = 6
# What a request of the attacker costs at least, in seconds. However slow the machine makes a thousand quick ones,
# threads do not become free so often that none is kept (``recent_use.SOON``).
LONG = 0.6
# So many of them teach what they cost, and so many are held then.
LESSONS = 2 * THREADS
HELD = 20
ATTACKER = "198.51.100.1"
OTHERS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")


class Application:
    """Answers at once, but the requests with the header ``X-Long`` after a while, when ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls: Counter[str] = Counter()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        number = environ["HTTP_X_NUMBER"]
        self.calls[number] += 1
        environ["wsgi.input"].read()
        if "HTTP_X_LONG" in environ:
            time.sleep(LONG)
            assert self.gate.wait(60)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [number.encode()]


@dataclass(frozen=True)
class Attack:
    """The target and the form of the attacker's request of this number, and of a short one of another client."""

    target: Callable[[int], str]
    form: Callable[[int], str] = lambda number: ""
    short_target: str = "/report?kind=a"
    short_form: str = ""
    # So many quick ones of the attacker come first.
    quick: int = 0
    client: str = ATTACKER


def in_letters(number: int) -> str:
    """A name of its own for each number; numbers in paths count as the same."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


ATTACKS = {
    "parameters that change": Attack(lambda number: f"/report?kind=x&token={number}&t{number}={number}"),
    "the kind of the short ones": Attack(lambda number: "/report?kind=a", quick=10),
    "a thousand values": Attack(lambda number: f"/report?kind=made-up-{number}", quick=1000),
    "10 kB": Attack(lambda number: f"/report?kind=b&text={'x' * 10_000}{number}"),
    "forms": Attack(
        lambda number: "/report",
        lambda number: f"kind=b&token={number}",
        short_target="/report",
        short_form="kind=a&token=of-others",
        # Only the form tells them apart.
        client=OTHERS[0],
    ),
    "no UTF-8": Attack(
        lambda number: f"/report?%e9=%ff{number}", lambda number: f"kind=\xff\xfe{number}&\xe9=%ff", "/report", "kind=a"
    ),
    "made-up paths": Attack(lambda number: f"/made-up-{in_letters(number)}?kind=a"),
    "made-up short paths, 1,100 of them": Attack(lambda number: f"/made-up-{in_letters(number)}?kind=b", quick=1100),
}


class Site:
    """The server, and its clients, each of which uses a connection once."""

    def __init__(self, server: BridgeThread, application: Application, sockets: ExitStack) -> None:
        self.server = server
        self.application = application
        self.lane = server.bridge.lanes[-1]
        self.sent = 0
        self._sockets = sockets

    @property
    def costs(self) -> Costs:
        costs = self.server.bridge.shared.costs
        assert costs is not None
        return costs

    def send(self, client: str, target: str, form: str, *, is_long: bool = False) -> tuple[str, socket.socket]:
        """Ask; the number of the request, and where its answer comes."""
        self.sent += 1
        head = f"{'POST' if form else 'GET'} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        head += f"X-Real-IP: {client}\r\nX-Number: {self.sent}\r\n" + ("X-Long: 1\r\n" if is_long else "")
        if form:
            head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n"
        connection = self._sockets.enter_context(self.server.send(f"{head}\r\n{form}".encode("latin-1")))
        connection.settimeout(30)
        return str(self.sent), connection

    def receive(self, request: tuple[str, socket.socket]) -> None:
        """Take the only answer."""
        number, connection = request
        received = b""
        with connection:
            while part := connection.recv(65536):
                received += part
        assert received.startswith(b"HTTP/1.1 200 "), received
        assert received.count(b"HTTP/1.1 ") == 1
        assert received.endswith(b"\r\n\r\n" + number.encode())

    def short_ones_are_served(self, attack: Attack) -> None:
        for client in OTHERS:
            self.receive(self.send(client, attack.short_target, attack.short_form))

    def is_known_as_short(self, attack: Attack) -> bool:
        path = attack.short_target.partition("?")[0]
        route = self.server.bridge.shared.routes.find("POST" if attack.short_form else "GET", path)
        estimate = Estimate(route.cost, attack.short_target, OTHERS[0])
        estimate.add_form(attack.short_form)
        self.costs.estimate(estimate)
        return estimate.is_known and estimate.cautious < LONG / 2


@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_while_the_requests_of_an_attacker_are_held(name: str) -> None:
    attack, application = ATTACKS[name], Application()
    with (
        BridgeThread(application, threads=THREADS, xheaders=True, deadline=1000, queue_timeout=1000) as server,
        ExitStack() as sockets,
    ):
        sockets.callback(application.gate.set)
        site = Site(server, application, sockets)
        for _ in range(4):
            site.short_ones_are_served(attack)
        application.gate.set()
        for number in range(attack.quick):
            site.receive(site.send(attack.client, attack.target(number), attack.form(number)))
        numbers = range(attack.quick, attack.quick + LESSONS)
        for request in [site.send(attack.client, attack.target(n), attack.form(n), is_long=True) for n in numbers]:
            site.receive(request)
        application.gate.clear()
        site.short_ones_are_served(attack)
        numbers = range(numbers.stop, numbers.stop + HELD)
        held = [site.send(attack.client, attack.target(n), attack.form(n), is_long=True) for n in numbers]
        wait_until(lambda: site.lane.busy + site.lane.queued == HELD, "all of them have arrived", 30)
        # Nothing of the attacker ends meanwhile.
        for _ in range(3):
            site.short_ones_are_served(attack)
        # Nor do they take the thread that is kept.
        wait_until(lambda: site.lane.busy < THREADS and site.lane.busy + site.lane.queued == HELD, "they are held", 30)
        assert site.costs.cells == cells_of(server.bridge.shared.routes) <= MAX_CELLS
        application.gate.set()
        for request in held:
            site.receive(request)
        assert site.is_known_as_short(attack)
    assert application.calls == Counter(str(number) for number in range(1, site.sent + 1))
