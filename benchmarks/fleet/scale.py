"""What grows with the number of hosts: measured in the box where that is possible, computed for up to a thousand."""

from __future__ import annotations

import json
import signal
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import MySQLdb

from benchmarks.fleet.box import Fleet
from benchmarks.fleet.parts import ADMIN_PORT, Frontend, get, processor_time
from tests.support.inprocess import wait_until

HOSTS = (3, 30, 300, 1000)
# Of a host, as a middle-sized one may have.
PROCESSES, POOL = 2, 10
NODES = 3
# The entry asks each host so often.
CHECKS_A_SECOND = 2
CONNECTIONS = 1000
SERVERS = 1000
PEERS = (3, 30)
SECONDS = 8.0


class Costs(NamedTuple):
    """What was measured: bytes, and seconds of processor time."""

    connection: float
    connecting: float
    check_at_entry: float
    check_at_host: float
    # Of the operators' page, each second while somebody looks at it, for each host: there, and at each host.
    page: float
    page_at_host: float
    # Seconds until the page's data are there, by the number of hosts.
    page_waits: dict[int, float]


def measure(fleet: Fleet, show: Callable[[str], None]) -> None:
    """Measure, then show what was measured and the table that follows from it."""
    show(f"opening {CONNECTIONS} connections to a node")
    connection, connecting = _connections(fleet)
    show(f"checking {SERVERS} hosts")
    at_entry, at_host = _checks(fleet)
    show(f"looking at the operators' page of {PEERS[-1]} hosts")
    pages = {peers: _page(fleet, peers) for peers in PEERS}
    page, page_at_host, _ = pages[PEERS[-1]]
    costs = Costs(connection, connecting, at_entry, at_host, page, page_at_host, {n: pages[n][2] for n in PEERS})
    show("")
    for line in report(costs):
        show(line)


def report(costs: Costs) -> Iterator[str]:
    """The measured costs, and the table."""
    yield (
        f"- a connection: {costs.connection / 1000:.0f} kB in the database, and {1e6 * costs.connecting:.0f} µs of a "
        "processor there to make it"
    )
    yield (
        f"- a health check: {1e6 * costs.check_at_entry:.0f} µs of a processor at the entry, "
        f"{1e6 * costs.check_at_host:.0f} µs at the host"
    )
    yield (
        f"- the operators' page, each second, for each host: {1000 * costs.page:.1f} ms at the host that shows it, "
        f"{1000 * costs.page_at_host:.1f} ms at the other; its data are there after "
        + ", ".join(f"{1000 * wait:.0f} ms with {peers} hosts" for peers, wait in costs.page_waits.items())
    )
    yield ""
    yield "| hosts | " + " | ".join(f"{hosts:,}" for hosts in HOSTS) + " |"
    yield "|---" * (len(HOSTS) + 1) + "|"
    for name, cell in _rows(costs):
        yield f"| {name} | " + " | ".join(cell(hosts) for hosts in HOSTS) + " |"


def _rows(costs: Costs) -> list[tuple[str, Callable[[int], str]]]:
    each = PROCESSES * (POOL + 1)

    def percent(share: float) -> str:
        return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"

    return [
        ("connections of the pools, all to one writer", lambda hosts: f"{hosts * PROCESSES * POOL:,}"),
        ("control connections, to all nodes", lambda hosts: f"{hosts * PROCESSES * NODES:,}"),
        ("memory for them in the writer", lambda hosts: f"{hosts * each * costs.connection / 1e9:.2g} GB"),
        (
            "processor time in the writer to make them again after a fail-over",
            lambda hosts: f"{hosts * each * costs.connecting:.2g} s",
        ),
        ("health checks a second at an entry", lambda hosts: f"{hosts * CHECKS_A_SECOND:,}"),
        ("these, of a processor at the entry", lambda hosts: percent(hosts * CHECKS_A_SECOND * costs.check_at_entry)),
        ("the same, at each host", lambda hosts: percent(CHECKS_A_SECOND * costs.check_at_host)),
        ("operators' page, of a processor at the host that shows it", lambda hosts: percent(hosts * costs.page)),
    ]


def _connections(fleet: Fleet) -> tuple[float, float]:
    """Bytes of an idle connection in the database, and the seconds of processor time there to make it."""
    node = fleet.nodes[1]
    settings = {
        "host": node.node.address,
        "user": "myapplication",
        "password": fleet.password.read_text().strip(),
        "database": "myapplication",
    }
    [[before]] = node.node.execute("SELECT @@max_connections")
    node.node.execute("SET GLOBAL max_connections = %s", CONNECTIONS + before)
    try:
        with ExitStack() as stack:
            memory, begun = node.memory, node.processor_time
            for _ in range(CONNECTIONS):
                connection = stack.enter_context(closing(MySQLdb.connect(**settings)))
                connection.query("SELECT COUNT(*) FROM products")
                connection.store_result()
            used = node.processor_time - begun
            return (node.memory - memory) / CONNECTIONS, used / CONNECTIONS
    finally:
        node.node.execute("SET GLOBAL max_connections = %s", before)


def _checks(fleet: Fleet) -> tuple[float, float]:
    """Seconds of processor time of a health check, at the entry and at the host."""
    quiet = sum(_used(fleet.frontends)) / SECONDS
    try:
        # Less often, so that this machine can do it; the two sections each check all hosts.
        configuration = fleet.entry_configuration(SERVERS).replace("inter 500ms", "inter 4s")
        fleet.entry.configure(configuration)
        checks = 2 * SERVERS / 4 * SECONDS
        # All hosts have been checked for the first time.
        time.sleep(6)
        before = fleet.entry.processor_time
        at_hosts = sum(_used(fleet.frontends)) - quiet * SECONDS
        at_entry = fleet.entry.processor_time - before
        return at_entry / checks, at_hosts / checks
    finally:
        fleet.entry.configure(fleet.entry_configuration())


def _used(frontends: list[Frontend]) -> list[float]:
    """The processor time that each uses while some seconds pass."""
    before = [frontend.processor_time for frontend in frontends]
    time.sleep(SECONDS)
    return [frontend.processor_time - begun for frontend, begun in zip(frontends, before, strict=True)]


def _page(fleet: Fleet, hosts: int) -> tuple[float, float, float]:
    """Of the page of so many hosts: seconds of processor time for each host, there and at the host; and its time."""
    viewer = 100
    names = [(frontend, shift) for shift in range(hosts // 3) for frontend in fleet.frontends]
    with ExitStack() as stack:
        peers = []
        for frontend, shift in names:
            if shift:
                stack.enter_context(_beside(frontend, shift))
            peers.append(f"{frontend.host.address}:{ADMIN_PORT + shift}")
        shown_by, other = fleet.frontends[0], fleet.frontends[1]
        process = stack.enter_context(_beside(shown_by, viewer, f"--admin_peers={','.join(peers)}"))
        request = urllib.request.Request(f"http://{shown_by.host.address}:{ADMIN_PORT + viewer}/requests.json")
        request.add_header("Authorization", f"Bearer {fleet.token.read_text().strip()}")

        def document() -> dict[str, list[object]]:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found: dict[str, list[object]] = json.load(answer)
                return found

        wait_until(lambda: len(document()["processes"]) > hosts, "the page shows all hosts", seconds=60)
        waits, looks = [], 20
        before, before_there = processor_time(process), other.processor_time
        for _ in range(looks):
            begun = time.monotonic()
            document()
            waits.append(time.monotonic() - begun)
        used = processor_time(process) - before
        # In its namespace there are a third of the hosts.
        used_there = other.processor_time - before_there
        return used / looks / hosts, used_there / looks / (hosts / 3), statistics.median(waits)


@contextmanager
def _beside(frontend: Frontend, shift: int, *settings: str) -> Iterator[int]:
    """Another frontend on the same host; gives its process."""
    before = set(frontend.host.processes)
    frontend.start_beside(shift, *settings)

    def is_ready() -> bool:
        try:
            return get(frontend.host.address, ADMIN_PORT + shift, "/readyz")[0] == 200
        except OSError:
            return False

    wait_until(is_ready, f"another frontend beside {frontend.name} is ready", seconds=60)
    [process] = set(frontend.host.processes) - before
    try:
        yield process
    finally:
        frontend.host.signal(signal.SIGKILL, process)
        wait_until(lambda: process not in frontend.host.processes, "it has ended")
