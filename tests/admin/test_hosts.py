"""Several hosts: each one's page shows all of them, finds requests on any, and stops them there."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.admin_site import FROM_PAGE, Site, answer
from tests.support.hosts import TOKEN, Authority, Host, skip_without_namespaces
from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from threadbridge.admin.proof import WINDOW, Proof

# The hosts of these tests look for changes of certificates, files and names, and ask again, all the time.
OFTEN = (
    "from threadbridge.admin import frontend, frontends",
    "frontends.REFRESH = frontend.UNTRUSTED_PAUSE = 0.1",
)


def write_targets(path: Path, *groups: dict[str, Any]) -> None:
    """Replace a list of hosts, as a tool would that writes such files."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(groups))
    new.rename(path)


class Fleet:
    """Three hosts with TLS, whose list is in a file."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.authority = Authority(directory / "ca")
        self.port = free_port()
        self.file = directory / "hosts.json"
        self.hosts = {}
        self.certificates = {}
        for number in (2, 3, 4):
            certificate, key = self.certificates[number] = self.authority.sign(f"web{number}", f"IP:127.0.0.{number}")
            arguments = (
                f"--admin_certfile={certificate}",
                f"--admin_keyfile={key}",
                f"--admin_cafile={self.authority.certificate}",
                f"--admin_peers={self.file}",
            )
            host = Host(directory, number, self.port, *arguments, scheme="https", lines=OFTEN)
            self.hosts[number] = stack.enter_context(host)
        self.write(2, 3, 4)

    def write(self, *numbers: int) -> None:
        targets = [f"127.0.0.{number}:{self.port}" for number in numbers]
        write_targets(self.file, {"targets": targets, "labels": {"__scheme__": "https", "job": "shop"}})

    def ask(self, number: int, path: str, method: str = "GET", **parameters: Any) -> requests.Response:
        return self.hosts[number].admin(path, method, verify=str(self.authority.certificate), **parameters)

    def document(self, number: int = 2, query: str = "") -> dict[str, Any]:
        found: dict[str, Any] = self.ask(number, f"/requests.json{query}").json()
        return found

    def names(self, number: int = 2) -> list[str]:
        return [host["name"] for host in self.document(number)["hosts"]]

    def wait_for_all(self, number: int = 2) -> None:
        wait_until(lambda: self.names(number) == ["web2", "web3", "web4"], "all hosts are shown", 30)

    def wait_for_problem(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until something is unreachable, and this holds of it."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [each for each in self.document()["unreachable"] if condition(each)]
            return bool(found)

        wait_until(is_there, "it is shown as unreachable", 30)
        return found[0]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    skip_without_namespaces()
    with ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("fleet"), stack)


def test_each_page_shows_all_hosts_and_stops_requests_anywhere(fleet: Fleet) -> None:
    for number in (2, 3, 4):
        fleet.wait_for_all(number)
    document = fleet.document(3)
    assert document["unreachable"] == []
    assert [host["own"] for host in document["hosts"]] == [False, True, False]
    # Two threads, and those of the quick lane.
    assert {host["threads"] for host in document["hosts"]} == {document["hosts"][0]["threads"]}
    assert [host["via"] for host in document["hosts"]][::2] == [[f"127.0.0.{number}:{fleet.port}"] for number in (2, 4)]
    far = fleet.hosts[4]
    with ExitStack() as stack:
        client = far.occupy(stack, "far", "/cancellable")
        fleet.hosts[2].occupy(stack, "near")
        document = fleet.document(3)
        assert [host["counts"]["running"] for host in document["hosts"]] == [1, 0, 1]
        assert document["counts"]["running"] == 2
        [row] = [row for row in document["requests"] if row["url"].startswith("/cancellable")]
        # Found by its id and by its key, on each host alone.
        for name in (row["id"], row["key"]):
            found = fleet.document(3, f"?id={name}")
            assert ([each["key"] for each in found["requests"]], found["counts"]["running"]) == ([row["key"]], 2)
        assert fleet.document(3, "?id=nothing")["requests"] == []
        stop = fleet.ask(3, f"/requests/{row['id']}/cancel", "POST", headers=FROM_PAGE)
        assert stop.json() == {"stopped": 1}
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        wait_until((far.directory / "far").exists, "it is cancelled")
        # The log there says who did it.
        wait_until(lambda: f"request {row['id']}: stopped by an operator" in far.output(), "it is logged")
        fleet.hosts[2].finish("near")


def test_a_host_that_is_down_is_not_shown_as_it_was(fleet: Fleet) -> None:
    fleet.wait_for_all()
    far = fleet.hosts[4]
    name = f"127.0.0.4:{fleet.port}"
    with ExitStack() as stack:
        far.occupy(stack, "stays")
        [row] = fleet.document()["requests"]
        far.process.send_signal(signal.SIGSTOP)
        try:
            found = fleet.wait_for_problem(lambda each: each["name"] == name)
            assert (found["host"], "no answer" in found["reason"]) == ("web4", True)
            document = fleet.document()
            assert found["answered"] < document["now"]
            assert [host["name"] for host in document["hosts"]] == ["web2", "web3"]
            assert (document["requests"], document["counts"]["running"]) == ([], 0)
            # Whether it still runs there cannot be known.
            stop = fleet.ask(2, f"/requests/{row['key']}/cancel", "POST", headers=FROM_PAGE)
            assert (stop.status_code, name in stop.text) == (504, True)
            # Other requests are not affected.
            fleet.hosts[3].occupy(stack, "other", "/cancellable")
            [other] = fleet.document()["requests"]
            stop = fleet.ask(2, f"/requests/{other['key']}/cancel", "POST", headers=FROM_PAGE)
            assert stop.json() == {"stopped": 1}
            # It is known where it ran: only that host is asked.
            wait_until(lambda: not fleet.document()["requests"], "it has ended")
            stop = fleet.ask(2, f"/requests/{other['key']}/cancel", "POST", headers=FROM_PAGE)
            assert stop.status_code == 404
        finally:
            far.process.send_signal(signal.SIGCONT)
        fleet.wait_for_all()
        far.finish("stays")


def test_the_list_is_read_again_when_it_changes(fleet: Fleet) -> None:
    fleet.wait_for_all()
    try:
        fleet.write(3)
        wait_until(lambda: fleet.names() == ["web2", "web3"], "one has left the list", 30)
        fleet.file.write_text("[{")
        found = fleet.wait_for_problem(lambda each: each["name"] == str(fleet.file))
        assert found["reason"].startswith("it is not JSON: ")
        # The hosts of the last list are still shown.
        assert fleet.names() == ["web2", "web3"]
        assert "Traceback" not in fleet.hosts[2].output()
        fleet.file.unlink()
        fleet.wait_for_problem(lambda each: "No such file" in each["reason"])
        assert fleet.names() == ["web2", "web3"]
    finally:
        fleet.write(2, 3, 4)
    fleet.wait_for_all()
    assert fleet.document()["unreachable"] == []


def test_a_wrong_certificate_is_refused_until_it_is_replaced(fleet: Fleet, tmp_path: Path) -> None:
    fleet.wait_for_all()
    certificate, key = fleet.certificates[4]
    right = certificate.read_bytes(), key.read_bytes()
    cases = {
        "IP address mismatch": fleet.authority.sign("other", "IP:127.0.0.9"),
        "unable to get local issuer certificate": Authority(tmp_path / "stranger").sign("web4", "IP:127.0.0.4"),
    }
    try:
        for reason, (other, other_key) in cases.items():
            # As long as only one of them is replaced, the port goes on with the previous ones.
            shutil.copy(other_key, key)
            assert fleet.ask(4, "/healthz").status_code == 200
            shutil.copy(other, certificate)
            found = fleet.wait_for_problem(lambda each: "certificate" in each["reason"])
            assert (found["name"], found["host"]) == (f"127.0.0.4:{fleet.port}", "web4")
            assert "its certificate is not accepted" in found["reason"] and reason in found["reason"]
            assert fleet.names() == ["web2", "web3"]
            certificate.write_bytes(right[0])
            key.write_bytes(right[1])
            fleet.wait_for_all()
    finally:
        certificate.write_bytes(right[0])
        key.write_bytes(right[1])


def test_a_host_that_does_not_speak_tls_is_unreachable(fleet: Fleet) -> None:
    fleet.wait_for_all()
    try:
        # The port of the application.
        address = urlsplit(fleet.hosts[3].url).netloc
        write_targets(fleet.file, {"targets": [address], "labels": {"__scheme__": "https"}})
        fleet.wait_for_problem(lambda each: each["name"] == address)
    finally:
        fleet.write(2, 3, 4)


def get(fleet: Fleet, number: int, authorization: str, host: str = "", path: str = "/local/processes.json") -> Any:
    headers = {"Authorization": authorization, **({"Host": host} if host else {})}
    url = f"https://127.0.0.{number}:{fleet.port}{path}"
    return requests.get(url, headers=headers, timeout=20, verify=str(fleet.authority.certificate))


def test_a_proof_is_good_at_one_host_only(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    proof, path = Proof(TOKEN), "/local/processes.json"
    meant = f"127.0.0.3:{fleet.port}"
    # Whoever answers at that address may have received it. All hosts of the list know this name, and have this port.
    _, authorization = proof.of_request("GET", meant, path)
    refused = get(fleet, 4, authorization, meant)
    assert (refused.status_code, "was meant for" in refused.text) == (401, True)
    assert get(fleet, 4, authorization).status_code == 401
    assert get(fleet, 3, authorization).status_code == 200
    copied = get(fleet, 3, authorization)
    assert (copied.status_code, "the request is a copy" in copied.text) == (401, True)
    # A name counts where it leads to this address.
    for name, number, status in (("localhost", 3, 200), ("threadbridge.invalid", 3, 401), ("localhost:1", 3, 401)):
        host = name if ":" in name else f"{name}:{fleet.port}"
        _, authorization = proof.of_request("GET", host, path)
        assert get(fleet, number, authorization, host).status_code == status, host
    _, authorization = Proof("a token of another fleet").of_request("GET", meant, path)
    assert get(fleet, 3, authorization).status_code == 401
    # From a host whose clock is wrong.
    now = time.time()
    for seconds, status in ((-WINDOW - 2, 401), (-WINDOW / 2, 200), (WINDOW / 2, 200), (WINDOW + 2, 401)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now + seconds)  # noqa: B023
            _, authorization = proof.of_request("GET", meant, path)
        answered = get(fleet, 3, authorization)
        assert (answered.status_code, "clocks differ" in answered.text) == (status, status == 401), seconds


def test_nothing_is_told_or_stopped_without_the_token(fleet: Fleet) -> None:
    with ExitStack() as stack:
        fleet.hosts[3].occupy(stack, "kept")
        [row] = fleet.document(3)["requests"]
        paths: Sequence[tuple[str, str]] = (
            ("GET", "/local/processes.json"),
            ("GET", "/local/processes.json?id=1"),
            ("GET", "/local/learned.json"),
            ("GET", "/local/costs"),
            ("GET", "/requests.json?id=1"),
            ("POST", f"/local/requests/{row['key']}/cancel"),
            ("POST", f"/requests/{row['key']}/cancel"),
        )
        for method, path in paths:
            # Not a wrong token, of which only a few are free.
            wrong = Proof("a wrong token").of_request(method, f"127.0.0.3:{fleet.port}", path)[1]
            for authorization in ("", "Threadbridge-Peer x", wrong):
                headers = {"Authorization": authorization, "X-Threadbridge": "test"}
                answered = fleet.ask(3, path, method, headers=headers)
                assert answered.status_code == 401, (path, authorization)
                assert row["id"] not in answered.text
        assert [each["key"] for each in fleet.document(3)["requests"]] == [row["key"]]
        fleet.hosts[3].finish("kept")


def test_browsers_log_in_by_tls(fleet: Fleet) -> None:
    own = f"https://127.0.0.3:{fleet.port}"
    for origin, status in ((own, 303), (own.replace("https", "http"), 403)):
        headers = {"Authorization": "", "Origin": origin}
        answered = fleet.ask(3, "/login", "POST", data={"token": TOKEN}, headers=headers)
        assert answered.status_code == status
        assert ("; Secure" in answered.headers.get("Set-Cookie", "")) == (status == 303)


def test_all_addresses_of_a_name_are_hosts(tmp_path: Path) -> None:
    skip_without_namespaces()
    names, port = tmp_path / "names", free_port()
    names.write_text("127.0.0.2 fleet.test web2.test\n127.0.0.3 fleet.test web3.test\n")
    authority = Authority(tmp_path / "ca")
    # Only the test asks by an address.
    certificate, key = authority.sign("fleet", "DNS:fleet.test", "IP:127.0.0.2")
    arguments = (
        f"--admin_certfile={certificate}",
        f"--admin_keyfile={key}",
        f"--admin_cafile={authority.certificate}",
        f"--admin_peers=dns+https://fleet.test:{port}",
    )
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(Host(tmp_path, number, port, *arguments, scheme="https", names=names, lines=OFTEN))
            for number in (2, 3, 4)
        ]

        def document() -> Any:
            return hosts[0].admin("/requests.json", verify=str(authority.certificate)).json()

        def shown() -> list[str]:
            return [host["name"] for host in document()["hosts"]]

        wait_until(lambda: shown() == ["web2", "web3"], "both addresses are asked", 30)
        assert document()["unreachable"] == []
        with names.open("a") as file:
            file.write("127.0.0.4 fleet.test\n")
        wait_until(lambda: shown() == ["web2", "web3", "web4"], "a new address is asked", 30)
        client = hosts[2].occupy(stack, "far", "/cancellable")
        [row] = document()["requests"]
        path = f"/requests/{row['key']}/cancel"
        stop = hosts[0].admin(path, "POST", headers=FROM_PAGE, verify=str(authority.certificate))
        assert stop.json() == {"stopped": 1}
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        # A host knows by which names it can be meant.
        proof = Proof(TOKEN)
        with names.open("a") as file:
            # On Debian, a host's own name stands for this address.
            file.write("127.0.1.1 web2 web3\n")
        known = {"web2.test": 200, "web3.test": 401, "fleet.test": 200, "web2": 200, "web3": 401, "unknown.test": 401}
        for name, status in known.items():
            host = f"{name}:{port}"
            _, authorization = proof.of_request("GET", host, "/local/processes.json")
            headers = {"Authorization": authorization, "Host": host}
            answered = hosts[0].admin("/local/processes.json", headers=headers, verify=str(authority.certificate))
            assert answered.status_code == status, name
        # Nobody answers for the resolver: the addresses found last stay.
        names.write_text("")
        wait_until(lambda: "dns+https://fleet.test" in str(document()["unreachable"]), "it is said", 30)
        assert shown() == ["web2", "web3", "web4"]


# Looking a name up never ends, as if no name server answered.
SILENT_NAMES = (
    "import pathlib, socket, threading",
    "look_up = socket.getaddrinfo",
    "def wait(name, *rest, **options):",
    "    if name != 'silent.test': return look_up(name, *rest, **options)",
    "    pathlib.Path('asked').touch()",
    "    threading.Event().wait()",
    "socket.getaddrinfo = wait",
)


def test_a_name_server_that_is_silent_does_not_delay_the_end(tmp_path: Path) -> None:
    skip_without_namespaces()
    with Host(tmp_path, 2, free_port(), "--admin_peers=dns+silent.test:18000", lines=SILENT_NAMES) as host:
        wait_until((host.directory / "asked").exists, "it is looked up", 30)
        assert host.admin("/requests.json").json()["hosts"][0]["name"] == "web2"
        assert host.stop() == 0


def test_unusable_certificates_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    cases = {
        ("--admin_certfile=none.pem",): "admin_certfile none.pem: No such file",
        (
            "--admin_certfile=empty.pem",
            "--admin_keyfile=empty.pem",
        ): "admin_certfile empty.pem and admin_keyfile empty.pem: ",
        ("--admin_keyfile=empty.pem",): "admin_keyfile without admin_certfile: ",
        ("--admin_cafile=empty.pem",): "admin_cafile empty.pem: ",
    }
    for arguments, complaint in cases.items():
        refused = Site(tmp_path, *arguments).run_to_its_end()
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert complaint in refused.stderr


def test_a_supervisor_says_that_the_port_has_tls(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "ca").sign("own", "IP:127.0.0.1")
    arguments = ("--processes=2", f"--admin_certfile={certificate}", f"--admin_keyfile={key}")
    with Site(tmp_path, *arguments) as site:
        assert f", operators: https://127.0.0.1:{site.admin_port}/)" in site.output()
        page = f"https://127.0.0.1:{site.admin_port}/requests.json"
        document = requests.get(page, timeout=20, verify=str(tmp_path / "ca" / "ca.pem")).json()
        assert [process["admin"] for process in document["processes"]] == [f"https://127.0.0.1:{site.admin_port}/"] * 2
        # Many clients that do not speak TLS cause few lines.
        for _ in range(20):
            with pytest.raises(requests.ConnectionError):
                requests.get(page.replace("https", "http"), timeout=20)
        assert "SSL Error" not in site.output() and 1 <= site.output().count("handshake failed") <= 2
        assert site.stop() == 0
