"""The fleet in a box, broken and restarted under load: on demand, with FLEETS=1, after scripts/setup.sh clusters."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from benchmarks.fleet import faults
from benchmarks.fleet.box import Fleet
from benchmarks.fleet.load import KINDS, ORDER, PAGE, QUERY, Load, percentile
from tests.support.galera import missing
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT

pytestmark = pytest.mark.skipif(
    os.environ.get("FLEETS") != "1" or missing() is not None,
    reason=missing() or "takes minutes; runs with FLEETS=1",
)
SCRIPT = ROOT / "scripts" / "fleet.sh"
# From `up` to the first page.
UP_WITHIN = 90
# Seconds for which a fault lasts.
LASTS = 8


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    assert script("down").returncode == 0
    begun = time.monotonic()
    finished = script("up")
    took = time.monotonic() - begun
    print(finished.stdout)
    assert finished.returncode == 0, finished.stderr
    fleet = Fleet()
    assert fleet.url in finished.stdout
    assert took < UP_WITHIN
    yield fleet
    assert script("down").returncode == 0
    assert not any(part.host.is_made or part.host.processes for part in fleet.parts)


# The longest time without an answered order that each fault may cause, and whether pages may fail for that long, too.
# Galera agrees within 3 s that a node is lost, and HAProxy's checks take 1 s.
@pytest.mark.parametrize(
    ("fault", "part", "gap", "pages"),
    [
        ("kill", "db1", 6.0, True),
        ("unplug", "db1", 6.0, True),
        ("donor", "db1", 3.0, True),
        ("unplug", "db3", 6.0, True),
        ("kill", "web1", 3.0, True),
        ("unplug", "web1", 5.0, True),
        ("suspend", "web2", 5.0, True),
        ("slow", "web3", 3.0, True),
        ("reload", "dbproxy", 3.0, True),
        ("kill", "dbproxy", LASTS + 5.0, True),
        ("reload", "entry", 3.0, True),
        ("read-only", "db1", LASTS + 5.0, True),
    ],
)
def test_what_is_broken_under_load_doubles_and_loses_nothing(
    fleet: Fleet, fault: str, part: str, gap: float, pages: bool
) -> None:
    with Load(fleet) as load:
        wait_until(lambda: len(load.of(ORDER)) > 100, "the load runs")
        begun = time.monotonic()
        faults.break_part(fleet, fault, part)
        time.sleep(LASTS)
        broken_until = time.monotonic()
        faults.mend(fleet)
        mended = time.monotonic()
        wait_until(lambda: len([each for each in load.of(ORDER, mended) if each.status == 200]) > 100, "it runs again")
        without_orders = load.longest_gap(ORDER, begun)
    print(f"{fault} {part}: mended in {mended - broken_until:.1f} s, no order for {without_orders:.1f} s")
    print(load.table(begun))
    counts = load.counts()
    print(counts)
    assert counts.wrong == []
    assert counts.acknowledged > 200
    assert without_orders < gap
    for kind in (PAGE,):
        times = [each.seconds for each in load.of(kind, begun)]
        assert percentile(times, 99) < 0.5


def test_a_rolling_restart_under_load_loses_nothing(fleet: Fleet) -> None:
    before = {process for frontend in fleet.frontends for process in frontend.host.processes}
    with Load(fleet) as load:
        wait_until(lambda: all(load.of(kind) for kind in KINDS), "the load runs")
        for _ in range(3):
            finished = script("restart")
            assert finished.returncode == 0, finished.stderr
    print(load.table())
    counts = load.counts()
    print(counts)
    assert before.isdisjoint(process for frontend in fleet.frontends for process in frontend.host.processes)
    assert [answer for answer in load.answers if answer.status != 200] == []
    assert counts.wrong == [] and counts.unknown == 0
