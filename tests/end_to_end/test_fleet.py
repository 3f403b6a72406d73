"""The fleet in a box, broken and restarted under load: on demand, with FLEETS=1, after scripts/setup.sh clusters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet import faults
from benchmarks.fleet.box import DIRECTORY, Fleet
from benchmarks.fleet.greedy import BALANCES
from benchmarks.fleet.load import KINDS, ORDER, PAGE, Answer, Load, judge, percentile
from benchmarks.fleet.parts import ADMIN_PORT
from benchmarks.fleet.scale import Costs, report
from tests.support.galera import missing
from tests.support.haproxy import HAPROXY
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT

on_demand = pytest.mark.skipif(
    os.environ.get("FLEETS") != "1" or missing() is not None,
    reason=missing() or "takes minutes; runs with FLEETS=1",
)
PLAYBOOK = ROOT / "docs" / "examples" / "rolling_restart.yml"
SCRIPT = ROOT / "scripts" / "fleet.sh"
# From `up` to the first page.
UP_WITHIN = 90
# Seconds for which a fault lasts.
LASTS = 8


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    subprocess.run([ROOT / "scripts" / "setup.sh", "fleet"], check=True, stdin=subprocess.DEVNULL)
    assert script("down").returncode == 0
    try:
        begun = time.monotonic()
        finished = script("up")
        took = time.monotonic() - begun
        print(finished.stdout)
        assert finished.returncode == 0, finished.stderr
        fleet = Fleet()
        assert fleet.url in finished.stdout
        assert took < UP_WITHIN
        yield fleet
    finally:
        assert script("down").returncode == 0
    assert not any(part.host.is_made or part.host.processes for part in fleet.parts)
    assert not DIRECTORY.exists() and not Path("/sys/class/net", fleet.network.bridge).exists()


def test_without_root_it_says_so() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    # The user may not be able to read the script in its directory.
    with SCRIPT.open() as text:
        finished = subprocess.run(
            [*command, "sh", "-s", "up"], stdin=text, capture_output=True, text=True, timeout=30, check=False
        )
    assert finished.returncode == 1
    assert "network namespaces need root: run it as root, such as: sudo scripts/fleet.sh up" in finished.stderr


def test_wrong_orders_are_found() -> None:
    # The number says what is in the database.
    told = {1: (200, ""), 2: (200, ""), 3: (503, ""), 4: (503, ""), 5: (503, "no"), 6: (0, ""), 7: (200, "")}
    written = {1: (1, 1), 3: (1, 0), 4: (1, 1), 5: (1, 1), 6: (2, 2), 7: (1, 1)}
    counts = judge([Answer(ORDER, number, 0, 0, *each) for number, each in told.items()], written)
    assert (counts.acknowledged, counts.unknown, counts.unknown_written) == (3, 3, 2)
    assert (counts.lost, counts.doubled, counts.halves, counts.denied) == ([2], [6], [3], [5])
    assert sorted(counts.wrong) == [2, 3, 5, 6]


def test_haproxy_accepts_the_configurations(tmp_path: Path) -> None:
    fleet = Fleet()
    for text in (
        fleet.database_proxy.configuration,
        *(fleet.entry_configuration(hosts, balance) for hosts in (1, 3, 1000) for balance in BALANCES.values()),
    ):
        assert "@" not in "".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        file = tmp_path / "haproxy.cfg"
        file.write_text(text)
        finished = subprocess.run([HAPROXY, "-c", "-f", file], capture_output=True, text=True, timeout=30, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert "ALERT" not in finished.stderr and "WARNING" not in finished.stderr


def test_the_table_for_many_hosts_is_computed_from_what_was_measured() -> None:
    costs = Costs(100_000, 0.001, 0.0001, 0.0005, 0.001, 0.002, {3: 0.01, 30: 0.1})
    rows = dict(line.strip("| ").split(" | ", 1) for line in report(costs) if line.startswith("| "))
    assert rows["connections of the pools, all to one writer"] == "60 | 600 | 6,000 | 20,000"
    assert rows["memory for them in the writer"] == "0.0066 GB | 0.066 GB | 0.66 GB | 2.2 GB"
    assert rows["operators' page, of a processor at the host that shows it"] == "0.3 % | 3 % | 30 % | 100 %"


@on_demand
def test_a_fleet_that_is_there_only_in_part_is_completed(fleet: Fleet) -> None:
    fleet.frontends[1].host.remove()
    fleet.database_proxy.host.kill()
    fleet.nodes[2].host.kill()
    fleet.entry.host.unplug()
    finished = script("status")
    assert finished.returncode == 3
    states = {line.split()[0]: line for line in finished.stdout.splitlines()}
    assert "it is not built" in states["web2"] and "it is not running" in states["dbproxy"]
    assert not script("load").stdout
    assert script("up").returncode == 0
    finished = script("status")
    assert finished.returncode == 0 and finished.stdout.count(" serves") == len(fleet.parts)


@on_demand
def test_a_cluster_that_has_lost_its_majority_is_mended(fleet: Fleet) -> None:
    [[orders]] = fleet.nodes[2].node.execute("SELECT COUNT(*) FROM myapplication.written")
    fleet.nodes[2].node.execute("INSERT INTO myapplication.written (load_id, number, half) VALUES ('kept', 1, 1)")
    for name in ("db1", "db2"):
        assert script("break", "kill", name).returncode == 0
    wait_until(lambda: "Initialized" in fleet.nodes[2].problem(), "the last node waits for the others")
    assert script("mend").returncode == 0
    assert script("status").returncode == 0
    # With all its data.
    for node in fleet.nodes:
        assert node.node.execute("SELECT COUNT(*) FROM myapplication.written") == ((orders + 1,),)


@on_demand
def test_wrong_names_are_explained(fleet: Fleet) -> None:
    finished = script("break", "kill", "web9")
    assert finished.returncode == 1 and "there is no part 'web9'; there are db1" in finished.stderr
    finished = script("break", "donor", "web1")
    assert finished.returncode == 1 and "web1 cannot be broken by donor" in finished.stderr
    assert all(name in script("break").stdout for name in faults.FAULTS)


# The longest time without an answered order that each fault may cause. Galera agrees within 3 s that a node is lost,
# and the checks of both proxies take 1 s.
@on_demand
@pytest.mark.parametrize(
    ("fault", "part", "gap"),
    [
        ("kill", "db1", 6.0),
        ("unplug", "db1", 6.0),
        # It still accepts connections, so the proxy notices later.
        ("suspend", "db1", 10.0),
        ("donor", "db1", 6.0),
        ("unplug", "db3", 6.0),
        ("kill", "web1", 3.0),
        ("unplug", "web1", 3.0),
        ("suspend", "web2", 3.0),
        ("slow", "web3", 3.0),
        ("reload", "dbproxy", 3.0),
        ("reload", "entry", 3.0),
        # For as long as they last, and the time to mend them.
        ("kill", "dbproxy", LASTS + 5.0),
        ("read-only", "db1", LASTS + 5.0),
    ],
)
def test_what_is_broken_under_load_doubles_and_loses_nothing(fleet: Fleet, fault: str, part: str, gap: float) -> None:
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
    pages = load.of(PAGE, begun)
    assert percentile([each.seconds for each in pages], 99) < 0.5
    # Only pages that were on their way to a broken part wait or fail.
    assert sum(each.seconds > 1 or each.status != 200 for each in pages) <= KINDS[PAGE].clients


@on_demand
def test_a_rolling_restart_under_load_loses_nothing(fleet: Fleet) -> None:
    with Load(fleet) as load:
        for _ in range(3):
            before = processes_of(fleet)
            wait_until(lambda: all(load.of(kind) for kind in KINDS), "the load runs")
            finished = script("restart")
            assert finished.returncode == 0, finished.stderr
            assert before.isdisjoint(processes_of(fleet))
    assert_that_nothing_was_lost(load)


# What Ansible runs on each host to restart the unit: in the box there is no systemd, and a host is a namespace.
SYSTEMCTL = """#!/bin/sh
case $1 in
show) printf 'LoadState=loaded\\nActiveState=active\\n' ;;
restart) exec "{script}" restart "$2" ;;
*) echo "unexpected: systemctl $*" >&2; exit 1 ;;
esac
"""


@on_demand
def test_the_playbook_restarts_the_fleet_and_loses_nothing(fleet: Fleet, tmp_path: Path) -> None:
    path = playbook_path(tmp_path)
    hosts = "".join(
        f"{each.name} unit={each.name} readyz=http://{each.host.address}:{ADMIN_PORT}/readyz\n"
        for each in fleet.frontends
    )
    common = f"ansible_connection=local\nansible_python_interpreter={sys.executable}\nansible_become=false\n"
    inventory = tmp_path / "hosts.ini"
    inventory.write_text(f"[frontends]\n{hosts}\n[frontends:vars]\n{common}balancer_interval=1\n")
    before = processes_of(fleet)
    with Load(fleet) as load:
        wait_until(lambda: all(load.of(kind) for kind in KINDS), "the load runs")
        finished = run_playbook(path, inventory)
        assert finished.returncode == 0, finished.stdout + finished.stderr
    assert before.isdisjoint(processes_of(fleet))
    assert_that_nothing_was_lost(load)
    # While one is not ready, none is restarted.
    before = processes_of(fleet)
    fleet.frontends[2].host.unplug()
    finished = run_playbook(path, inventory)
    faults.mend(fleet)
    assert finished.returncode != 0
    assert processes_of(fleet) == before


def playbook_path(directory: Path) -> str:
    if shutil.which("ansible-playbook") is None:
        pytest.skip("needs ansible-playbook: pipx install --include-deps ansible-lint")
    (directory / "systemctl").write_text(SYSTEMCTL.format(script=SCRIPT))
    (directory / "systemctl").chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def run_playbook(path: str, inventory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ansible-playbook", "-i", inventory, PLAYBOOK],
        env={**os.environ, "PATH": path, "ANSIBLE_LOCAL_TEMP": str(inventory.parent), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@on_demand
def test_a_linter_accepts_the_playbook() -> None:
    if shutil.which("ansible-lint") is None:
        pytest.skip("needs ansible-lint: pipx install --include-deps ansible-lint")
    command = ["ansible-lint", "--offline", "--profile=production", PLAYBOOK.name]
    finished = subprocess.run(command, cwd=PLAYBOOK.parent, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def processes_of(fleet: Fleet) -> set[int]:
    return {process for frontend in fleet.frontends for process in frontend.host.processes}


def assert_that_nothing_was_lost(load: Load) -> None:
    print(load.table())
    counts = load.counts()
    print(counts)
    assert [answer for answer in load.answers if answer.status != 200] == []
    assert counts.wrong == [] and counts.unknown == 0 and counts.acknowledged > 0
