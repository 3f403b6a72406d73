"""What one host has learned of costs, the others know too; what goes wrong there harms no host."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.process.test_kept_costs import Keeper, written
from tests.support.hosts import TOKEN, Host, skip_without_namespaces
from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from threadbridge.admin.proof import ANSWER_HEADER, Proof
from threadbridge.process.cost_keeper import LARGEST

THREADS = 6
# The processes of these tests look at the file, and ask each other, all the time.
OFTEN = (
    "from threadbridge.process import cost_sharing, cost_keeper",
    "cost_sharing.INTERVAL = cost_keeper.INTERVAL = 0.1",
)


@pytest.fixture(autouse=True)
def namespaces() -> None:
    skip_without_namespaces()


def host(directory: Path, number: int, port: int, *peers: str, threads: int = THREADS) -> Host:
    peers = peers or tuple(f"127.0.0.{each}:{port}" for each in (2, 3))
    return Host(directory, number, port, f"--threads={threads}", f"--admin_peers={','.join(peers)}", lines=OFTEN)


def classes(host: Host) -> dict[str, str]:
    return {row["path"]: row["class"] for row in host.admin("/requests.json").json()["learned"]}


# Each /slow makes a file, and is done when there is the file "go".
APPLICATION = """
import os, time, uuid

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open(f"entered-{uuid.uuid4()}", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""


def entered(host: Host) -> int:
    return len(list(host.directory.glob("entered-*")))


def test_a_new_host_keeps_short_requests_from_waiting_for_what_was_slow_elsewhere(tmp_path: Path) -> None:
    port = free_port()
    old, new = host(tmp_path, 2, port), host(tmp_path, 3, port)
    for each in (old, new):
        (each.directory / "site_app.py").write_text(APPLICATION)
    with old, ExitStack() as stack:
        for _ in range(5):
            assert requests.get(old.url, timeout=20).status_code == 200
        for _ in range(5):
            stack.enter_context(old.send("/slow"))
        wait_until(lambda: entered(old) == 5, "all run")
        # A second is long for a request.
        threading.Event().wait(1)
        old.finish("go")
        wait_until(lambda: classes(old) == {"/": "short", "/slow": "long"}, "it has been learned")
        # The other host has never run one.
        stack.enter_context(new)
        wait_until(lambda: classes(new) == {"/": "short", "/slow": "long"}, "the new host knows it")

        def kept() -> int:
            document = new.admin("/requests.json").json()
            [own] = [process for process in document["processes"] if process["key"] == document["process"]]
            return int(own["lanes"][-1]["kept"])

        wait_until(lambda: kept() == 1, "a thread is kept for short requests")
        for _ in range(2 * THREADS):
            stack.enter_context(new.send("/slow"))

        def counts() -> tuple[int, int]:
            [*_, found] = new.admin("/requests.json").json()["hosts"]
            return found["counts"]["running"], found["counts"]["waiting"]

        wait_until(lambda: sum(counts()) == 2 * THREADS, "all have arrived")
        # They fill all threads but one. Short requests pass those that wait, while none of the others is done.
        for _ in range(20):
            assert requests.get(new.url, timeout=30).status_code == 200
        assert (counts(), entered(new)) == ((THREADS - 1, THREADS + 1), THREADS - 1)
        new.finish("go")
        wait_until(lambda: sum(counts()) == 0, "all have ended")
        assert "cannot" not in new.output() + old.output()


def test_processes_of_a_host_get_it_from_one_of_them(tmp_path: Path) -> None:
    port = free_port()
    with host(tmp_path, 2, port) as old:
        for _ in range(5):
            assert requests.get(old.url, timeout=20).status_code == 200
        arguments = ("--processes=2", f"--admin_peers=127.0.0.2:{port}")
        with Host(tmp_path, 3, port, *arguments, lines=OFTEN) as new:

            def all_know() -> bool:
                tables = new.admin("/local/learned.json").json()["tables"]
                return len(tables) == 2 and all(table["rows"] for table in tables)

            wait_until(all_know, "both know it")


class Impostor(BaseHTTPRequestHandler):
    """A host that knows the token, but answers nonsense."""

    answer: Callable[[], bytes]

    def do_GET(self) -> None:
        self.asked.append(self.path)  # type: ignore[attr-defined]
        body = type(self).answer()
        nonce = self.headers["Authorization"].split(".")[1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(ANSWER_HEADER, Proof(TOKEN).of_answer(nonce, body))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def impostor(answer: Callable[[], bytes]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that it is asked for."""
    asked: list[str] = []
    handler = type("Handler", (Impostor,), {"answer": staticmethod(answer), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nonsense_is_reported_once_and_the_next_host_is_asked(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "run").mkdir(0o700)
    text = written(tmp_path / "run").read_bytes()
    nonsense = [
        b"\xff",
        b"{}",
        text[:-5],
        text.replace(b'"version":1', b'"version":7'),
        text.replace(b"0.05", b"NaN"),
        text.replace(b"0.05", b"1e999"),
        text + b"[" * 100_000,
        text + b" " * LARGEST,
    ]
    turn = iter(range(10**9))
    with (
        impostor(lambda: nonsense[next(turn) % len(nonsense)]) as (address, asked),
        host(tmp_path, 2, port) as old,
        host(tmp_path, 3, port, address, f"127.0.0.2:{port}", f"127.0.0.3:{port}") as new,
    ):
        for _ in range(5):
            assert requests.get(f"{old.url}/real", timeout=20).status_code == 200
        wait_until(lambda: len(asked) >= len(nonsense), "all of it has come")
        wait_until(lambda: set(classes(new)) == {"/real"}, "it has learned from the other one alone", 30)
        lines = [line for line in new.output().splitlines() if "cannot use" in line]
        assert len(lines) == 1 and f"cannot use what {address} knows of requests' costs: " in lines[0]
        assert "Traceback" not in new.output()
        assert requests.get(new.url, timeout=20).status_code == 200


def test_a_host_that_answers_late_does_not_delay_the_start(tmp_path: Path) -> None:
    go_on = threading.Event()

    def answer() -> bytes:
        go_on.wait(60)
        return b""

    with impostor(answer) as (address, asked):
        try:
            with host(tmp_path, 2, free_port(), address) as new:
                wait_until(lambda: bool(asked), "it is asked")
                assert requests.get(new.url, timeout=20).status_code == 200
                assert asked[0].startswith("/local/costs?application=")
                assert not go_on.is_set()
                # Nor the end.
                assert new.stop() == 0
        finally:
            go_on.set()


RANDOM = """
import random

random.seed(7)

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(random.random()).encode()]
"""


def test_the_application_gets_the_random_numbers_of_its_seed(tmp_path: Path) -> None:
    with impostor(lambda: b"") as (address, asked):
        new = host(tmp_path, 2, free_port(), address, "127.0.0.9:1")
        (new.directory / "site_app.py").write_text(RANDOM)
        with new:
            wait_until(lambda: len(asked) >= 3, "it chooses whom to ask")
            assert requests.get(new.url, timeout=20).text == repr(random.Random(7).random())


# The part that reads and writes.


def text_of(directory: Path, application: str, reader: str) -> Any:
    return Keeper(directory).keeper.text_for(application, reader)


def test_only_other_hosts_with_the_same_application_get_the_file(tmp_path: Path) -> None:
    assert text_of(tmp_path, "app:app", "another") is None
    file = written(tmp_path)
    assert text_of(tmp_path, "app:app", "another") == file.read_bytes()
    assert text_of(tmp_path, "other:app", "another") is None
    own = Keeper(tmp_path).keeper.directory_id()
    assert len(own) == 16 and text_of(tmp_path, "app:app", own) is None
    file.chmod(0o666)
    assert text_of(tmp_path, "app:app", "another") is None


def test_what_comes_from_another_host_is_saved(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir(0o700)
    text = written(tmp_path / "a").read_bytes()
    keeper = Keeper(tmp_path / "b")
    keeper.learn(2, "/mine")
    keeper.save()
    # Nothing has been learned here since.
    keeper.keeper.learn_from(text)
    assert keeper.count == 7
    successor = Keeper(tmp_path / "b")
    successor.load()
    assert successor.count == 7


def test_a_damaged_text_changes_nothing(tmp_path: Path) -> None:
    text = written(tmp_path).read_bytes()
    lines = text.decode().splitlines(keepends=True)
    # The last line is wrong.
    lines.append(json.dumps({"route": ["GET", "/new"], "last": -1, "cost": []}) + "\n")
    header = json.loads(lines[0])
    header["lines"] += 1
    lines[0] = json.dumps(header) + "\n"
    (tmp_path / "other").mkdir(0o700)
    keeper = Keeper(tmp_path / "other")
    with pytest.raises(ValueError):
        keeper.keeper.learn_from("".join(lines).encode())
    assert keeper.count == 0 and len(keeper.routes) == 0
