"""Forks in application code, of each kind, with each end: nothing runs twice, and nothing of the server is held."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import Witness
from tests.support.forking import ForkingSite, answer_to, files_of, is_alive
from tests.support.inprocess import wait_until

WAITING = 6


@pytest.fixture(scope="module")
def site(mariadb: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkingSite]:
    """One server for all children: each must leave it as it was."""
    Witness(mariadb).connection.close()
    with ForkingSite(tmp_path_factory.mktemp("forks"), mariadb) as site:
        # From now on it is known that such requests use the pool.
        site.post("/insert?first")
        yield site
        assert site.stop() == 0
        # Of the children that were told to raise.
        assert site.output().count("Traceback") == site.output().count("LookupError: as ordered")


CASES = {
    **{("fork", how): status for how, status in {"exit": 3, "return": 0, "raise": 1, "_exit": 3, "exec": 3}.items()},
    **{("multiprocessing", how): status for how, status in {"exit": 3, "return": 0, "raise": 1, "_exit": 3}.items()},
    ("multiprocessing", "live"): -signal.SIGTERM,
    ("stream", "write"): 0,
    ("subprocess", "exit"): 3,
    ("spawn", "exit"): 3,
    ("forkserver", "exit"): 3,
}


@pytest.mark.parametrize(("case", "status"), CASES.items(), ids=["-".join(case) for case in CASES])
def test_a_child_ends_as_it_likes_and_nothing_runs_twice(
    site: ForkingSite, witness: Witness, case: tuple[str, str], status: int
) -> None:
    kind, how = case
    go = site.directory / "go"
    go.unlink(missing_ok=True)
    (site.directory / "living").unlink(missing_ok=True)
    forking = site.send(f"/{kind}/{how}?0")
    if kind != "fork":
        wait_until(lambda: witness.rows("SELECT note FROM notes") == (("0",),), "it runs")
    waiting = [site.send(f"/insert?{number}") for number in range(1, WAITING + 1)]
    go.touch()
    assert answer_to(forking) == str(status).encode()
    answers = []
    for client in waiting:
        with client:
            answers.append(client.recv(65536))
    # Shown if one of them is an error.
    print(site.output())
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * WAITING
    noted = [note for (note,) in witness.rows("SELECT note FROM notes ORDER BY note")]
    assert noted == [str(number) for number in range(WAITING + 1)]


def test_a_child_has_connections_of_its_own_and_lets_the_parents_be(site: ForkingSite, witness: Witness) -> None:
    (site.directory / "go").touch()
    connection = site.post("/insert?before")
    # Idle when the child is made: nothing but the pool holds it.
    assert site.post("/multiprocessing/query?parent") == b"0"
    # Or else the database had ended it, and another had taken its place.
    assert site.post("/insert?after") == connection
    assert sorted(witness.notes) == ["after", "before", "child", "parent"]


def test_while_the_server_ends_a_child_has_connections_of_its_own(
    mariadb: dict[str, str], witness: Witness, tmp_path: Path
) -> None:
    with ForkingSite(tmp_path, mariadb) as site:
        forking = site.send("/multiprocessing/query?parent")
        wait_until(lambda: witness.notes == ["parent"], "it runs")
        stops = threading.Thread(target=site.stop)
        stops.start()
        wait_until(lambda: not site.accepts, "it is about to end")
        (site.directory / "go").touch()
        assert answer_to(forking) == b"0"
        stops.join()
    assert sorted(witness.notes) == ["child", "parent"]


@pytest.mark.parametrize("arguments", [(), ("--loop=asyncio",), ("--processes=2",)], ids=["uvloop", "asyncio", "two"])
def test_a_child_that_lives_on_holds_nothing(
    mariadb: dict[str, str], witness: Witness, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    before = set(witness.connections)
    with ForkingSite(tmp_path, mariadb, *arguments) as site:
        idle = site.send("/insert?idle")
        wait_until(lambda: len(witness.rows("SELECT note FROM notes")) == 1, "it is answered")
        # A connection that another thread is just making is nothing that the server can take away from a child. Each
        # process has one in its pool, and one for stopping queries.
        while len(set(witness.connections) - before) < (4 if "--processes=2" in arguments else 2):
            site.post("/insert?warm")
        # The server lists it a moment before the driver has it.
        for _ in range(20):
            site.post("/insert?warm")
        answer = site.send("/abandon?parent")
        child = site.child("living")
        try:
            with answer:
                assert answer.recv(12) == b"HTTP/1.1 200"
            assert [name for name in files_of(child) if name.startswith("socket:")] == []
            assert site.stop() == 0
            with idle:
                # Its end comes although the child was there when it was open.
                idle.settimeout(5)
                while idle.recv(1000):
                    pass
            with socket.socket() as next_one:
                next_one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                next_one.bind(("127.0.0.1", site.port))
                next_one.listen()
            assert is_alive(child)
            # The child has the signals' defaults, and tells the parent nothing of them.
            os.kill(child, signal.SIGTERM)
            wait_until(lambda: not is_alive(child), "the signal ends it")
        finally:
            if is_alive(child):
                os.kill(child, signal.SIGKILL)
    assert len(witness.rows("SELECT note FROM notes WHERE note <> 'warm'")) == 2
