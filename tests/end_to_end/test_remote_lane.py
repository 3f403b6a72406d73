"""A remote lane between real processes and a real database: what is stopped, repeated, doubled, and held in memory."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.support.admin_site import FROM_PAGE
from tests.support.cancelling import WAIT, WAITING
from tests.support.databases import Witness
from tests.support.inprocess import reset, wait_until
from tests.support.processes import Frontend, free_port

# Seconds within which a query of a client that has left must have been stopped on the other host.
STOPPED_WITHIN = 0.2
MEGABYTE = 1024 * 1024
LARGE = 256 * MEGABYTE
# By which the memory of a process may grow meanwhile.
MORE = 1 * MEGABYTE

APPLICATION = """
import hashlib, os, time
from contextlib import closing
from urllib.parse import unquote
import MySQLdb
from dbutils.pooled_db import PooledDB
from threadbridge import current

pool = PooledDB(
    MySQLdb, maxconnections=4, unix_socket=os.environ["MYSQL_UNIX_SOCKET"], user=os.environ["MYSQL_USER"],
    password=open(os.environ["MYSQL_PASSWORD_FILE"]).read(), database=os.environ["MYSQL_DATABASE"],
)

def app(environ, start_response):
    path, query = environ["PATH_INFO"], unquote(environ["QUERY_STRING"])
    answer = [os.environ["HOST_NAME"].encode()]
    if path == "/reports/sql":
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(query)
            cursor.fetchall()
    elif path == "/reports/note":
        # The body is the note. It is committed before the answer, which takes as long as the query says.
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("INSERT INTO notes VALUES (%s)", (environ["wsgi.input"].read().decode(),))
            connection.commit()
        time.sleep(float(query or 0))
    elif path == "/reports/large":
        start_response("200 OK", [("Content-Length", query)])
        return (b"x" * min(65536, int(query) - start) for start in range(0, int(query), 65536))
    elif path == "/reports/upload":
        digest = hashlib.sha256()
        while piece := environ["wsgi.input"].read(65536):
            digest.update(piece)
        answer = [digest.hexdigest().encode()]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return answer
"""


class Host(Frontend):
    """A process that serves this application, with an operators' port."""

    def __init__(self, directory: Path, mariadb: dict[str, str], name: str, *arguments: str) -> None:
        (directory / "remote_app.py").write_text(APPLICATION)
        self.admin_port = free_port()
        ports = ("--port={port}", f"--admin_port={self.admin_port}", "--pool=remote_app:pool", "--xheaders")
        command = ("-m", "threadbridge", "remote_app:app", *ports, *arguments)
        super().__init__(command, env={**mariadb, "HOST_NAME": name}, cwd=directory)

    def send(self, path: str, method: str = "GET", body: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body)
        return client

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"http://127.0.0.1:{self.admin_port}/requests.json", timeout=20).json()
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.document()["requests"]
        return found

    @property
    def memory(self) -> int:
        """The bytes of physical memory that the process uses."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


Make = Callable[..., Host]


@pytest.fixture
def make(tmp_path: Path, mariadb: dict[str, str]) -> Iterator[Make]:
    """Starts hosts, which are gone after the test."""
    with ExitStack() as stack:
        yield lambda name, *arguments: stack.enter_context(Host(tmp_path, mariadb, name, *arguments))


@pytest.fixture
def fleet(make: Make) -> tuple[Host, Host, Host]:
    """A frontend, and two hosts for its reports."""
    one, other = make("one"), make("other")
    return make("near", f"--lane=reports:/reports/*:{one.url},{other.url}"), one, other


def test_a_leaving_client_stops_the_query_on_the_other_host(fleet: tuple[Host, Host, Host], witness: Witness) -> None:
    near, one, other = fleet
    took = []
    for _ in range(10):
        client = near.send(f"/reports/sql?{quote(WAIT)}")
        witness.wait_for(WAITING)
        left_at = time.monotonic()
        reset(client)
        wait_until(lambda: witness.running == [], "the query is stopped")
        took.append(time.monotonic() - left_at)
    # Most of them: other work may hold up this machine.
    assert sorted(took)[6] < STOPPED_WITHIN
    wait_until(lambda: near.output().count("ending=abandoned") == 10, "all are logged")
    assert near.output().count(f"upstream={one.url}") + near.output().count(f"upstream={other.url}") == 10
    # Both are as good as before.
    assert {requests.get(f"{near.url}/reports/", timeout=20).text for _ in range(4)} == {"one", "other"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_operator_sees_where_a_request_runs_and_stops_it_there(
    fleet: tuple[Host, Host, Host], witness: Witness, method: str
) -> None:
    near, one, other = fleet
    client = near.send(f"/reports/sql?{quote(WAIT)}", method)
    witness.wait_for(WAITING)
    [row] = near.rows
    assert (row["lane"], row["state"]) == ("reports", "running")
    there = {one.url: one, other.url: other}[row["upstream"]]
    [lane] = [lane for lane in near.document()["processes"][0]["lanes"] if lane["name"] == "reports"]
    assert {host["name"]: (host["running"], host["up"]) for host in lane["hosts"]} == {
        url: (int(url == there.url), True) for url in (one.url, other.url)
    }
    # Under the same id on both.
    [row_there] = there.rows
    assert row_there["id"] == row["id"] and WAITING in row_there["sql"]
    address = f"http://127.0.0.1:{near.admin_port}/requests/{row['key']}/cancel"
    assert requests.post(address, headers=FROM_PAGE, timeout=20).json() == {"stopped": 1}
    assert client.recv(65536).startswith(b"HTTP/1.1 504 ")
    wait_until(lambda: witness.running == [], "the query is stopped")
    client.close()


def test_a_deadline_here_stops_the_query_there(make: Make, witness: Witness) -> None:
    there = make("there")
    near = make("near", f"--lane=reports:/reports/*:{there.url}", "--deadline=1")
    began = time.monotonic()
    answer = requests.get(f"{near.url}/reports/sql?{quote(WAIT)}", timeout=20)
    assert answer.status_code == 504 and 0.5 < time.monotonic() - began < 5
    wait_until(lambda: witness.running == [], "the query is stopped")


def test_hosts_killed_under_load_double_nothing_and_lose_nothing_acknowledged(make: Make, witness: Witness) -> None:
    """Every note has an id of its own: none is there twice, and all are there whose clients were told so."""
    hosts = [make("one"), make("other")]
    near = make("near", f"--lane=reports:/reports/*:{hosts[0].url},{hosts[1].url}")
    acknowledged: list[str] = []
    statuses: dict[str, int] = {}
    stop = threading.Event()

    def write(writer: int) -> None:
        with requests.Session() as session:
            number = 0
            while not stop.is_set():
                number += 1
                note = f"{writer}-{number}"
                answer = session.post(f"{near.url}/reports/note?0.01", data=note, timeout=30)
                statuses[note] = answer.status_code
                if answer.status_code == 200:
                    acknowledged.append(note)

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, writer) for writer in range(6)]
        for turn in range(4):
            before = len(acknowledged)
            wait_until(lambda before=before: len(acknowledged) > before + 60, "work is done", 30)  # type: ignore[misc]
            victim = hosts[turn % 2]
            victim.process.kill()
            victim.process.wait()
            before = len(acknowledged)
            # The other one does the work.
            wait_until(lambda before=before: len(acknowledged) > before + 60, "work is done", 30)  # type: ignore[misc]
            victim.start()
        stop.set()
        for writer in writers:
            writer.result()
    notes = witness.notes
    assert len(notes) == len(set(notes)), "something is doubled"
    assert set(acknowledged) <= set(notes), "something acknowledged is lost"
    # Those that were at a host when it was killed, at most six each time, have failed; they may have run.
    failed = {note for note, status in statuses.items() if status != 200}
    assert {statuses[note] for note in failed} <= {502}
    assert len(failed) <= 4 * 6
    # What else is in the table may only be what failed after its commit.
    assert set(notes) - set(acknowledged) <= failed
    wait_until(lambda: len(re.findall(r'" 502 .* upstream_error=connection_', near.output())) == len(failed), "logged")


def test_hosts_that_stop_in_turn_lose_nothing(make: Make, witness: Witness) -> None:
    """A rolling restart of the hosts: no request fails, not even on a connection that is just being closed."""
    hosts = [make("one"), make("other")]
    near = make("near", f"--lane=reports:/reports/*:{hosts[0].url},{hosts[1].url}")
    done = 0
    stop = threading.Event()

    def write(writer: int) -> int:
        nonlocal done
        number = 0
        with requests.Session() as session:
            while not stop.is_set():
                number += 1
                answer = session.post(f"{near.url}/reports/note", data=f"{writer}-{number}", timeout=30)
                assert answer.status_code == 200, answer.text
                done += 1
        return number

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, writer) for writer in range(4)]
        for host in hosts:
            before = done
            wait_until(lambda before=before: done > before + 50, "work is done", 30)  # type: ignore[misc]
            assert host.stop() == 0
            host.start()
        stop.set()
        written = sum(writer.result() for writer in writers)
    assert len(witness.notes) == len(set(witness.notes)) == written


def test_a_full_host_passes_a_post_on(make: Make, witness: Witness) -> None:
    full, other = make("full", "--threads=1", "--queue=0"), make("other")
    near = make("near", f"--lane=reports:/reports/*:{full.url},{other.url}")
    # Teach it first that this route needs the pool, whose only thread is then held.
    requests.get(f"{full.url}/reports/sql?DO%201", timeout=20)
    client = full.send(f"/reports/sql?{quote(WAIT)}")
    witness.wait_for(WAITING)
    requests.post(f"{full.url}/reports/note", data="taught", timeout=20)
    for number in range(10):
        answer = requests.post(f"{near.url}/reports/note", data=str(number), timeout=20)
        assert (answer.status_code, answer.text) == (200, "other")
    assert sorted(note for note in witness.notes if note != "taught") == [str(number) for number in range(10)]
    metrics = requests.get(f"http://127.0.0.1:{near.admin_port}/metrics", timeout=20).text
    labels = f'lane="reports",result="refused",upstream="{full.url}"'
    assert float(re.findall(rf"threadbridge_upstream_requests_total{{{re.escape(labels)}}} (\S+)", metrics)[0]) >= 3
    # All are full: the client is told when to come again, and that it has not run.
    answer = requests.post(f"{full.url}/reports/note", data="x", timeout=20)
    assert answer.status_code == 503 and answer.headers["X-Threadbridge-Ran"] == "no"
    reset(client)


def peak_of(host: Host, work: Callable[[], object]) -> int:
    """By how many bytes the host's memory grows at most while this runs."""
    before = highest = host.memory
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        while not running.done():
            highest = max(highest, host.memory)
            time.sleep(0.01)
        running.result()
    return highest - before


def download(host: Host, size: int) -> None:
    with requests.get(f"{host.url}/reports/large?{size}", stream=True, timeout=60) as answer:
        assert sum(map(len, answer.iter_content(MEGABYTE))) == size


def upload(host: Host, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=120)
    pieces = (b"y" * MEGABYTE for _ in range(size // MEGABYTE))
    connection.request("POST", "/reports/upload", body=pieces, headers={"Content-Length": str(size)})
    response = connection.getresponse()
    assert response.status == 200 and len(response.read()) == 64
    connection.close()


@pytest.mark.parametrize("transfer", [download, upload])
def test_large_bodies_pass_through_little_memory(make: Make, transfer: Callable[[Host, int], None]) -> None:
    there = make("there")
    near = make("near", f"--lane=reports:/reports/*:{there.url}")
    # What the first one makes stays: threads, buffers, caches.
    for _ in range(3):
        transfer(near, 20 * MEGABYTE)
    grown = peak_of(near, lambda: transfer(near, LARGE))
    assert grown <= MORE, f"{grown / MEGABYTE:.1f} MB more"


def test_a_slow_upload_holds_nothing_on_the_other_host(make: Make) -> None:
    there = make("there", "--threads=1")
    near = make("near", f"--lane=reports:/reports/*:{there.url}")
    slow = socket.create_connection(("127.0.0.1", near.port), timeout=20)
    slow.sendall(b"POST /reports/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_500_000)
    wait_until(lambda: near.rows != [], "it has begun")
    for _ in range(5):
        assert requests.get(f"{near.url}/reports/", timeout=5).text == "there"
    # It is not even there.
    assert there.rows == []
    slow.sendall(b"x" * 500_000)
    assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
    slow.close()


def test_a_request_to_upgrade_is_an_ordinary_one(make: Make) -> None:
    there = make("there")
    near = make("near", f"--lane=reports:/reports/*:{there.url}")
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    answer = requests.get(f"{near.url}/reports/", headers=headers, timeout=20)
    assert (answer.status_code, answer.text) == (200, "there")


def test_stopping_waits_for_what_runs_on_other_hosts(make: Make, witness: Witness) -> None:
    """Even for a POST whose client has left."""
    there = make("there")
    near = make("near", f"--lane=reports:/reports/*:{there.url}")
    left = near.send("/reports/note?1", "POST", b"left")
    stayed = near.send("/reports/note?1", "POST", b"stayed")
    wait_until(lambda: sorted(witness.notes) == ["left", "stayed"], "both run")
    reset(left)
    near.process.send_signal(signal.SIGTERM)
    assert stayed.recv(65536).startswith(b"HTTP/1.1 200 ")
    stayed.close()
    assert near.process.wait(20) == 0, near.output()
    wait_until(lambda: there.output().count('"POST /reports/note?1 HTTP/1.1" 200') == 2, "both have run to their end")


def test_hosts_may_use_tls(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trusted", "other"):
        command = f"req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -days 2 -subj /CN=localhost"
        names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        subprocess.run(["openssl", *command.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    trusted, other = (
        make(name, f"--certfile={tmp_path / name}.pem", f"--keyfile={tmp_path / name}.key")
        for name in ("trusted", "other")
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    lane = "--lane={0}:/{0}/*:https://localhost:{1}"
    near = make("near", lane.format("reports", trusted.port), lane.format("other", other.port))
    for _ in range(3):
        answer = requests.post(f"{near.url}/reports/upload", data=b"x" * 3_000_000, timeout=20)
        assert answer.status_code == 200 and len(answer.text) == 64
        assert len(requests.get(f"{near.url}/reports/large?3000000", timeout=20).content) == 3_000_000
    [lane_of_trusted] = [lane for lane in near.document()["processes"][0]["lanes"] if lane["name"] == "reports"]
    assert lane_of_trusted["hosts"][0]["up"]
    # Its certificate is nobody's.
    answer = requests.post(f"{near.url}/other/", data=b"x", timeout=20)
    assert answer.status_code == 503 and answer.headers["X-Threadbridge-Ran"] == "no"
    assert "certificate verify failed" in near.output()


def test_the_access_log_names_the_host(make: Make) -> None:
    there = make("there")
    near = make("near", f"--lane=reports:/reports/*:{there.url}", "--log_json")
    requests.get(f"{near.url}/reports/", timeout=20)
    there.stop(signal.SIGKILL)
    requests.get(f"{near.url}/reports/", timeout=20)

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in near.output().splitlines() if line.startswith("{")]
        return [line for line in found if line["logger"] == "tornado.access"]

    wait_until(lambda: len(lines()) == 2, "both are logged")
    assert [(line["lane"], line["upstream"], line["upstream_error"], line["status"]) for line in lines()] == [
        ("reports", there.url, "", 200),
        ("reports", "", "destination_unavailable", 503),
    ]


def test_long_requests_are_learned_and_run_elsewhere(make: Make) -> None:
    there = make("there")
    near = make("near", f"--long_upstream={there.url}")
    sql = quote("SELECT SUM(SLEEP(0.01)) FROM seq_1_to_40")
    slow = f"{near.url}/reports/sql?{sql}"

    def mix() -> str:
        for _ in range(10):
            requests.get(f"{near.url}/", timeout=20)
        return requests.get(slow, timeout=20).text

    wait_until(lambda: mix() == "there", "it is known to be long", 60)
    assert requests.get(f"{near.url}/", timeout=20).text == "near"

    def lanes(target: str) -> set[str]:
        return set(re.findall(rf'"GET {target}\S* HTTP/1.1" 200 .* lane=(\S+) .*class=', near.output()))

    wait_until(lambda: "long" in lanes("/reports/"), "it is logged")
    assert "long" not in lanes("/ ")
