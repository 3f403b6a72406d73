"""Several frontends on one host: each one's page shows all of them, and stops requests in any of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.admin_site import FROM_PAGE, Site, answer, write_token
from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from threadbridge.admin.frontend import PATIENCE
from threadbridge.admin.frontend_answer import PROCESSES, FrontendError, parse


def pids(document: dict[str, Any]) -> set[int]:
    return {process["pid"] for process in document["processes"]}


def two_sites(tmp_path: Path, stack: ExitStack, *arguments: str) -> tuple[Site, Site]:
    """Two frontends, each with its own directory for its requests' flags."""
    sites = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sites.append(stack.enter_context(Site(tmp_path / name, *arguments)))
    return sites[0], sites[1]


def test_a_page_shows_all_processes_of_the_run_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ExitStack() as stack:
        one, other = two_sites(tmp_path, stack, f"--run_directory={run}")
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        files = sorted(run.iterdir())
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
        assert sorted(file.name for file in files) == sorted(
            f"{site.process.pid}-{site.process.pid}.sock" for site in (one, other)
        )
        both = {one.process.pid, other.process.pid}
        assert pids(one.document()) == pids(other.document()) == both
        client = other.occupy(stack, "slow", "/cancellable")
        one.occupy(stack, "mine")
        document = one.document()
        assert document["counts"]["running"] == 2
        row = next(row for row in document["requests"] if row["url"].endswith("slow"))
        # The other process stops its request when this one asks it to.
        assert one.admin(f"/requests/{row['key']}/cancel", "POST", headers=FROM_PAGE).json() == {"stopped": 1}
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        wait_until((other.directory / "slow").exists, "it is cancelled")
        one.finish("mine")
        assert one.stop() == 0
        assert [file.name for file in run.glob("*.sock")] == [f"{other.process.pid}-{other.process.pid}.sock"]
        assert pids(other.document()) == {other.process.pid}


def test_the_socket_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ExitStack() as stack:
        one, other = two_sites(tmp_path, stack, f"--run_directory={run}")
        (run / "notes.txt").touch()
        other.process.kill()
        other.process.wait()
        document = one.document()
        assert (pids(document), document["unreachable"]) == ({one.process.pid}, [])
        assert sorted(file.name for file in run.iterdir()) == [f"{one.process.pid}-{one.process.pid}.sock", "notes.txt"]


def test_a_process_that_does_not_answer_is_marked_and_delays_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, other = two_sites(tmp_path, stack, f"--run_directory={tmp_path / 'run'}")
        os.kill(other.process.pid, signal.SIGSTOP)
        try:
            [frontend] = one.document()["unreachable"]
            expected = {"name": f"process {other.process.pid}", "reason": f"no answer within {PATIENCE:g} s"}
            assert frontend == {**expected, "host": "", "answered": None}
            # Later answers do not wait for it: twenty of them take less than twenty times the patience.
            began = time.monotonic()
            for _ in range(20):
                assert pids(one.document()) == {one.process.pid}
            assert time.monotonic() - began < 20 * PATIENCE
        finally:
            os.kill(other.process.pid, signal.SIGCONT)
        wait_until(lambda: pids(one.document()) == {one.process.pid, other.process.pid}, "it is back")


def test_a_process_that_has_left_the_port_is_still_shown(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ExitStack() as stack:
        one = stack.enter_context(Site(tmp_path, f"--run_directory={run}"))
        (tmp_path / "b").mkdir()
        supervised = stack.enter_context(Site(tmp_path / "b", "--processes=2", f"--run_directory={run}"))
        supervised.occupy(stack, "slow")
        wait_until(lambda: len(one.document()["processes"]) == 3, "all are found")
        supervised.process.kill()

        def shown() -> list[tuple[bool, int]]:
            processes = one.document()["processes"]
            return [(process["draining"], process["counts"]["running"]) for process in processes]

        # The idle process ends; the busy one closes its port, for the next supervisor.
        wait_until(lambda: sorted(shown()) == [(False, 0), (True, 1)], "the one with the request is shown")
        assert one.document()["unreachable"] == []
        supervised.finish("slow")
        wait_until(lambda: len(one.document()["processes"]) == 1, "it has ended too")


def test_named_frontends_may_name_each_other_in_a_circle(tmp_path: Path) -> None:
    token = tmp_path / "token"
    write_token(token, "a token that both of them have")
    bearer = {"Authorization": f"Bearer {token.read_text()}"}
    ports = [free_port(), free_port()]
    named = f"127.0.0.1:{ports[0]},http://localhost:{ports[1]},127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        sites = []
        for port in ports:
            (tmp_path / str(port)).mkdir()
            site = Site(tmp_path / str(port), f"--admin_peers={named}", f"--admin_token_file={token}", admin_port=port)
            sites.append(stack.enter_context(site))
        one, other = sites
        client = other.occupy(stack, "slow", "/cancellable")
        document = one.admin("/requests.json", headers=bearer).json()
        # Each is shown once, including the one that is asked; the third does not exist.
        assert [process["pid"] for process in document["processes"]].count(one.process.pid) == 1
        assert pids(document) == {one.process.pid, other.process.pid}
        assert [frontend["reason"] for frontend in document["unreachable"]] == ["Connection refused"]
        [row] = document["requests"]
        stop = one.admin(f"/requests/{row['key']}/cancel", "POST", headers={**FROM_PAGE, **bearer})
        assert stop.json() == {"stopped": 1}
        assert answer(client).startswith(b"HTTP/1.1 504 ")


def test_a_frontend_with_another_token_is_unreachable(tmp_path: Path) -> None:
    token = tmp_path / "token"
    write_token(token, "a token that only one has")
    (tmp_path / "a").mkdir()
    with (
        Site(tmp_path, f"--admin_token_file={token}") as locked,
        Site(tmp_path / "a", f"--admin_peers=127.0.0.1:{locked.admin_port}") as open_one,
    ):
        document = open_one.document()
        assert pids(document) == {open_one.process.pid}
        assert [frontend["reason"] for frontend in document["unreachable"]] == [
            "it answers 401 Unauthorized: give the token: log in at /, or send the header Authorization: Bearer TOKEN"
        ]


class Impostor:
    """Listens at a frontend's address, records the requests, and answers with ``answer``."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client:
                    self.asked.append(client.recv(65536))
                    client.sendall(self.answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


TOKEN = "a token that both of them have"


def http_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_an_impostor_at_a_frontends_port_gets_no_token_and_is_not_believed(tmp_path: Path) -> None:
    token = tmp_path / "token"
    write_token(token, TOKEN)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with closing(Impostor(http_answer(b'{"processes":[],"stopped":7}'))) as impostor:
        arguments = (f"--admin_token_file={token}", f"--admin_peers=127.0.0.1:{impostor.port}")
        with Site(tmp_path, *arguments) as site:

            def reasons() -> list[str]:
                return [
                    frontend["reason"]
                    for frontend in site.admin("/requests.json", headers=bearer).json()["unreachable"]
                ]

            reason = "its answer does not prove that it knows the token"
            wait_until(lambda: reasons() == [reason], "it is not believed")
            stop = site.admin("/requests/1-1/cancel", "POST", headers={**FROM_PAGE, **bearer})
            # Nobody knows what is at that address.
            assert stop.status_code == 504
            assert any(asked.startswith(b"POST /local/requests/1-1/cancel?") for asked in impostor.asked)
            assert not any(TOKEN.encode() in asked for asked in impostor.asked)
            # The proofs that it has received are worthless at the frontend itself, under either host.
            [asked] = [asked for asked in impostor.asked if asked.startswith(b"GET")][-1:]
            [proof] = [line[15:] for line in asked.decode().split("\r\n") if line.startswith("Authorization: ")]
            for host in (f"127.0.0.1:{impostor.port}", f"127.0.0.1:{site.admin_port}"):
                headers = {"Authorization": proof, "Host": host}
                assert site.admin("/local/processes.json", headers=headers).status_code == 401


MALFORMED = [
    b"",
    b"\0\xff" * 100,
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}",
    b"HTTP/1.1 999999999999999999999 " + b"x" * 1000 + b"\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    *map(
        http_answer,
        (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"processes":1,"stopped":"many"}',
            b'{"processes":[[]],"stopped":-1}',
            b'{"processes":[{}],"stopped":1.5}',
            b'{"processes":[null],"stopped":1e999}',
            b"[" * 100_000,
            b'{"processes":' + b"[" * 100_000,
        ),
    ),
]


def test_a_frontend_with_malformed_answers_is_unreachable(tmp_path: Path) -> None:
    with closing(Impostor()) as impostor, Site(tmp_path, f"--admin_peers=127.0.0.1:{impostor.port}") as site:
        for number, answer in enumerate(MALFORMED):
            impostor.answer = answer
            # Both answers below are to be based on a later request.
            asked = len(impostor.asked)
            answered = site.admin("/requests.json")
            assert answered.status_code == 200, answer[:100]
            wait_until(lambda: len(impostor.asked) > asked, f"it is asked: {number}")  # noqa: B023
            wait_until(lambda: len(site.document()["unreachable"]) == 1, f"it is unreachable: {number}")
            stop = site.admin("/requests/1-1/cancel", "POST", headers=FROM_PAGE)
            assert stop.status_code == 504, answer[:100]
            assert site.admin("/threads").status_code == 200
        assert "Traceback" not in site.output()


def test_each_part_of_a_frontends_answer_is_checked(tmp_path: Path) -> None:
    with Site(tmp_path) as site, ExitStack() as stack:
        requests.get(site.url, timeout=20)
        site.occupy(stack, "one")
        wait_until(lambda: bool(site.document()["finished"]), "one has ended")
        document = site.admin("/local/processes.json").json()
        site.finish("one")
    whole = json.dumps(document).encode()
    assert parse(whole, PROCESSES) == document
    scalars = list(_scalars(document["processes"]))
    assert len(scalars) > 40
    for holder, name in scalars:
        kept = holder[name]
        wrong = [{"a": [1]}, [[1]], -1e30, float("nan"), "x" * 30_000, 10**400]
        for value in wrong:
            holder[name] = value
            with pytest.raises(FrontendError):
                parse(json.dumps(document).encode(), PROCESSES)
        holder[name] = kept
    bins = document["processes"][0]["slots"].popitem()[1]["bins"]
    assert all(len(number) <= 3 for number in bins)


def _scalars(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each scalar in a document: its container, and its name or index."""
    for name in value if isinstance(value, dict) else range(len(value)):
        if isinstance(value[name], (dict, list)):
            yield from _scalars(value[name])
        else:
            yield value, name


@pytest.mark.parametrize("address", ["9001", "127.0.0.1", "ftp://a:1", "http://127.0.0.1:9000/page", "a:x"])
def test_a_malformed_frontend_address_is_refused(tmp_path: Path, address: str) -> None:
    refused = Site(tmp_path, f"--admin_peers={address}").run_to_its_end()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"admin_peers: {address!r}: expected HOST:PORT or a URL with a port" in refused.stderr


def test_an_unusable_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()
    cases = {
        "open": "other users may write there",
        "file": "File exists",
        "file/below": "Not a directory",
        "x" * 100: "bytes for the path of a socket",
    }
    for name, complaint in cases.items():
        refused = Site(tmp_path, f"--run_directory={tmp_path / name}").run_to_its_end()
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert complaint in refused.stderr


def test_a_process_without_a_port_is_found_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ExitStack() as stack:
        (tmp_path / "a").mkdir()
        one = stack.enter_context(Site(tmp_path, f"--run_directory={run}"))
        hidden = stack.enter_context(Site(tmp_path / "a", f"--run_directory={run}", admin_port=None))
        assert "operators" not in hidden.output().splitlines()[0]
        assert pids(one.document()) == {one.process.pid, hidden.process.pid}
        # Its socket serves only its frontends.
        [path] = [file for file in run.iterdir() if file.name.endswith(f"-{hidden.process.pid}.sock")]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_supervised_processes_share_a_page_and_their_metrics(tmp_path: Path) -> None:
    with Site(tmp_path, "--processes=2") as site, ExitStack() as stack:
        assert f", operators: http://127.0.0.1:{site.admin_port}/)" in site.output()
        wait_until(lambda: len(site.document()["processes"]) == 2, "both are found")
        # Four requests fill all threads, whichever process the kernel gives them to.
        for number in range(4):
            stack.enter_context(site.send(f"/slow?{tmp_path / str(number)}"))
        wait_until(lambda: len(site.document()["requests"]) == 4, "all are shown")
        [*ids] = [row["id"] for row in site.document()["requests"]]
        assert len(set(ids)) == 4
        for name in ids[:2]:
            assert site.admin(f"/requests/{name}/cancel", "POST", headers=FROM_PAGE).json() == {"stopped": 1}
        site.finish("0", "1", "2", "3")
        wait_until(lambda: not site.document()["requests"], "all have ended")

        def total() -> float:
            lines = site.admin("/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("threadbridge_requests_total"))

        # Each connection may reach either process.
        assert [total() for _ in range(6)] == [4.0] * 6
        assert site.stop() == 0
