"""Each request that was accepted has exactly one line in the access log, whatever fault meets it."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.test_run import refuses
from tests.support.databases import connect_settings, kill_server, start_server
from tests.support.inprocess import reset, wait_until
from tests.support.processes import Frontend, private_mariadb
from threadbridge.http.accepting import RESERVED

# A request is named by its query. /wait goes on when there is the file "go", /query when its query is stopped; the
# others do not wait. The file "entered" has the names of those that the application was called for.
APPLICATION = """
import json, os, time
from contextlib import closing
import MySQLdb
from dbutils.pooled_db import PooledDB

pool = PooledDB(MySQLdb, maxconnections=4, blocking=True, **json.loads(os.environ["CONNECT"]))

def run(sql):
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        cursor.fetchall()

def broken():
    yield bytes(100_000)
    raise LookupError("as asked")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    with open("entered", "a") as file:
        file.write(environ["QUERY_STRING"] + "\\n")
    if path == "/wait":
        while not os.path.exists("go"):
            time.sleep(0.01)
    elif path == "/query":
        run("SELECT SLEEP(600)")
    elif path == "/raise":
        raise LookupError("as asked")
    elif path == "/exit":
        raise SystemExit(3)
    elif path == "/read":
        environ["wsgi.input"].read()
    else:
        run("SELECT 1")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return broken() if path == "/broken" else [b"done"]
"""

# By the name of each request: the status that its client saw, or, if it saw none, that of the log.
Seen = dict[str, int]


class Site(Frontend):
    """That application, with its log as the process's output."""

    def __init__(self, directory: Path, mariadb: dict[str, str], *arguments: str) -> None:
        (directory / "counted_app.py").write_text(APPLICATION)
        self.directory = directory
        self.mariadb = mariadb
        super().__init__(
            ("-m", "threadbridge", "counted_app:app", "--pool=counted_app:pool", "--port={port}", *arguments),
            env={"CONNECT": json.dumps(connect_settings(mariadb))},
            cwd=directory,
        )

    def send(
        self, name: str, path: str = "/ok", method: str = "GET", fields: str = "", body: bytes = b""
    ) -> socket.socket:
        if "Content-Length" not in fields and "Transfer-Encoding" not in fields:
            fields += f"Content-Length: {len(body)}\r\n"
        return self.send_bytes(
            f"{method} {path}?{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n".encode() + body
        )

    def send_bytes(self, data: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        client.sendall(data)
        return client

    def wait_for(self, *names: str) -> None:
        """Return when the application has been called for all these."""
        file = self.directory / "entered"
        wait_until(lambda: file.exists() and set(names) <= set(file.read_text().split()), f"{names} run")

    def go(self) -> None:
        (self.directory / "go").touch()

    def logged(self) -> list[tuple[str, int]]:
        """Of each line of the access log the request's name, and the status."""
        lines = re.findall(r'^\S+ - - \[[^]]*\] "([^"]*)" (\d+) \d+ .* ending=\w+', self.output(), re.MULTILINE)
        found = []
        for request, status in lines:
            name = re.search(r"\bn\d+\b", request)
            found.append((name[0] if name else request, int(status)))
        return found


def answer(client: socket.socket) -> int:
    """The status of the answer; 0 if there is none."""
    with client:
        received = b""
        try:
            while part := client.recv(65536):
                received += part
        except ConnectionResetError:
            pass
    return int(received[9:12]) if received else 0


def clients_leave(site: Site) -> Seen:
    clients = {name: site.send(name, "/query") for name in ("n1", "n2", "n3", "n4")}
    site.wait_for(*clients)
    for number, client in enumerate(clients.values()):
        if number % 2:
            client.close()
        else:
            reset(client)
    # One that left before its body was there.
    site.send("n5", "/read", "POST", "Content-Length: 10\r\n", b"five").close()
    return dict.fromkeys((*clients, "n5"), 499)


def clients_close_their_side(site: Site) -> Seen:
    asked = {
        "n1": site.send("n1", "/wait", "POST"),
        "n2": site.send("n2", "/wait", "POST"),
        "n3": site.send("n3", "/query"),
    }
    site.wait_for(*asked)
    for client in asked.values():
        client.shutdown(socket.SHUT_WR)
    assert answer(asked.pop("n3")) == 0
    site.go()
    return {name: answer(client) for name, client in asked.items()} | {"n3": 499}


def heads_are_too_large(site: Site) -> Seen:
    seen = {name: answer(site.send(name, fields=f"X: {100_000 * 'x'}\r\n")) for name in ("n1", "n2")}
    assert set(seen.values()) == {431}
    return seen


def heads_are_malformed(site: Site) -> Seen:
    sent = {
        "n1": b"n1\r\n\r\n",
        "n2": b"GET /?n2 HTTP/1.1\r\n\r\n",
        "n3": b"GET /?n3 HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "n4": b"GET /?n4 HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        # Behind a good one on the same connection.
        "n6": b"GET /ok?n5 HTTP/1.1\r\nHost: a\r\n\r\nGET /?n6 HTTP/1.1\r\nHost : a\r\n\r\n",
        "n7": b"POST /read?n7 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nno\r\n",
    }
    for data in sent.values():
        answer(site.send_bytes(data))
    return {**dict.fromkeys(sent, 400), "n5": 200}


def bodies_are_too_large(site: Site) -> Seen:
    too_large = 2 * 1024**2
    seen = {
        "n1": answer(site.send("n1", "/read", "POST", f"Content-Length: {too_large}\r\n")),
        "n2": answer(
            site.send(
                "n2", "/read", "POST", "Transfer-Encoding: chunked\r\n", b"%x\r\n%s" % (too_large, bytes(too_large))
            )
        ),
    }
    assert set(seen.values()) == {413}
    return seen


def clients_are_slow(site: Site) -> Seen:
    clients = {
        "n1": site.send_bytes(b"GET /ok?n1 HTTP/1.1\r\nHost: a\r\n"),
        "n2": site.send("n2", "/read", "POST", "Content-Length: 10\r\n", b"five"),
    }
    seen = {name: answer(client) for name, client in clients.items()}
    assert set(seen.values()) == {408}
    return seen


def the_queue_is_full(site: Site) -> Seen:
    first = {"n1": site.send("n1", "/wait", "POST")}
    site.wait_for("n1")
    others = {name: site.send(name, "/wait", "POST") for name in ("n2", "n3", "n4")}
    wait_until(lambda: [status for _, status in site.logged()] == [503, 503], "two have found no room")
    site.go()
    seen = {name: answer(client) for name, client in (first | others).items()}
    assert sorted(seen.values()) == [200, 200, 503, 503]
    return seen


def the_queue_does_not_move(site: Site) -> Seen:
    clients = {"n1": site.send("n1", "/wait", "POST")}
    site.wait_for("n1")
    clients |= {name: site.send(name, "/wait", "POST") for name in ("n2", "n3", "n4")}
    seen = {name: answer(clients.pop(name)) for name in ("n2", "n3", "n4")}
    assert set(seen.values()) == {503}
    site.go()
    return seen | {"n1": answer(clients["n1"])}


def deadlines_pass(site: Site) -> Seen:
    clients = {"n1": site.send("n1", "/query"), "n2": site.send("n2", "/wait", "POST")}
    seen = {name: answer(client) for name, client in clients.items()}
    assert set(seen.values()) == {504}
    site.go()
    return seen


def the_application_fails(site: Site) -> Seen:
    seen = {f"n{number}": answer(site.send(f"n{number}", path)) for number, path in enumerate(("/raise", "/exit") * 2)}
    assert set(seen.values()) == {500}
    return seen | {"n9": answer(site.send("n9", "/broken"))}


def the_database_dies(site: Site) -> Seen:
    clients = {name: site.send(name, "/query", "POST") for name in ("n1", "n2")}
    site.wait_for(*clients)
    kill_server(site.mariadb)
    try:
        seen = {name: answer(client) for name, client in clients.items()}
        seen["n3"] = answer(site.send("n3"))
    finally:
        start_server(site.mariadb)
    assert set(seen.values()) == {503}
    return seen | {"n4": answer(site.send("n4"))}


def the_spool_is_full(site: Site) -> Seen:
    body = bytes(3 * 1024**2)
    seen = {name: answer(site.send(name, "/read", "POST", body=body)) for name in ("n1", "n2")}
    assert set(seen.values()) == {507}
    return seen


def it_is_told_to_stop(site: Site) -> Seen:
    clients = {name: site.send(name, "/wait", "POST") for name in ("n1", "n2", "n3")}
    site.wait_for("n1")
    site.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(site.port), "the port is closed")
    site.go()
    seen = {name: answer(client) for name, client in clients.items()}
    assert set(seen.values()) == {200}
    return seen


def it_is_told_twice(site: Site) -> Seen:
    clients = {name: site.send(name, "/wait", "POST") for name in ("n1", "n2", "n3")}
    site.wait_for("n1")
    site.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(site.port), "the port is closed")
    site.process.send_signal(signal.SIGTERM)
    seen = {name: answer(client) for name, client in clients.items()}
    assert seen == {"n1": 0, "n2": 503, "n3": 503}
    # It never comes back; the log says what a client would have been told that had waited.
    return seen | {"n1": 499}


# Each with the settings that it needs.
FAULTS: dict[Callable[[Site], Seen], tuple[str, ...]] = {
    clients_leave: (),
    clients_close_their_side: (),
    heads_are_too_large: (),
    heads_are_malformed: (),
    bodies_are_too_large: ("--max_body_size=1M",),
    clients_are_slow: ("--header_timeout=1", "--body_timeout=1"),
    the_queue_is_full: ("--lane=one:/wait:1", "--queue=1"),
    the_queue_does_not_move: ("--lane=one:/wait:1", "--queue_timeout=0.5"),
    deadlines_pass: ("--deadline=1",),
    the_application_fails: (),
    the_database_dies: (),
    the_spool_is_full: ("--spool_size=2M",),
    it_is_told_to_stop: ("--lane=one:/wait:1",),
    it_is_told_twice: ("--lane=one:/wait:1",),
}


@pytest.fixture(scope="module")
def mortal_mariadb() -> Iterator[dict[str, str]]:
    """A database server that may be killed."""
    with private_mariadb() as variables:
        yield variables


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_request_has_one_line(
    fault: Callable[[Site], Seen], tmp_path: Path, mortal_mariadb: dict[str, str]
) -> None:
    with Site(tmp_path, mortal_mariadb, *FAULTS[fault]) as site:
        seen = fault(site)
        status = site.stop() if site.process.poll() is None else site.process.wait()
        assert status == (1 if fault is it_is_told_twice else 0), site.output()
        assert sorted(site.logged()) == sorted(seen.items())


def test_whoever_is_answered_for_want_of_descriptors_has_one_line(
    tmp_path: Path, mortal_mariadb: dict[str, str]
) -> None:
    with Site(tmp_path, mortal_mariadb) as site, ExitStack() as stack:
        assert answer(site.send("n0")) == 200
        pid = site.process.pid
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # As many as are kept for other things, and a few.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + RESERVED + 4, most))
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port), 20)) for _ in range(8)]
        # It comes to these when it has seen to the others.
        answers = [answer(site.send("n1")) for _ in range(3)]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        refused = [client for client in idle if has_answer(client)]
        answers += [answer(client) for client in refused]
        assert 0 < len(refused) < len(idle) and set(answers) == {503}
        assert site.stop() == 0
        # Of what they sent some may have come too late to be seen.
        assert sorted(status for _, status in site.logged()) == [200, *answers]


def has_answer(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])
