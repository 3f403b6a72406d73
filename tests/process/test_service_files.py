"""The files in scripts/service/: systemd and logrotate accept them, and what they say fits the server."""

from __future__ import annotations

import grp
import gzip
import os
import pwd
import re
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend
from threadbridge.settings.table import ALL

UNIT = ROOT / "scripts" / "service" / "myapplication@.service"
SOCKET_UNIT = UNIT.with_suffix(".socket")
LOGROTATE = ROOT / "scripts" / "service" / "logrotate.conf"


def directive(name: str) -> str:
    """The value of a directive that stands in the unit once."""
    [value] = re.findall(rf"^{name}=((?:.*\\\n)*.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value).replace("\\\n", " ")


def command(port: int, directory: Path) -> list[str]:
    """What the unit starts, but with this Python, and with its log files in the directory."""
    python, *arguments = shlex.split(directive("ExecStart").replace("%i", str(port)))
    assert python == "/srv/myapplication/.venv/bin/python"
    places = {"/var/log/myapplication": directory, "/run/myapplication": directory / "run"}
    for place, substitute in places.items():
        arguments = [part.replace(place, str(substitute)) for part in arguments]
    return arguments


def four_digit_port() -> int:
    """As frontends have in the unit: that of the operators has a 1 in front, and is free too."""
    for port in range(8100, 10000):
        with socket.socket() as probe, socket.socket() as other:
            if not probe.connect_ex(("127.0.0.1", port)) or not other.connect_ex(("127.0.0.1", 10000 + port)):
                continue
            return port
    raise AssertionError("no port is free")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there; systemd looks."""
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text().replace("/srv/myapplication/.venv/bin/python", sys.executable))
    return installed


def test_systemd_accepts_the_unit(unit: Path) -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=30, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_systemd_accepts_the_socket_of_the_unit(unit: Path) -> None:
    # Of one port: without a number, the address could not be read.
    socket_unit = unit.with_name(SOCKET_UNIT.name.replace("@", "@8000"))
    socket_unit.write_text(SOCKET_UNIT.read_text())
    unit = unit.rename(socket_unit.with_suffix(".service"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", socket_unit, unit],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    # It is the address on which the frontend would listen without it.
    assert f"ListenStream={ALL['address'].default}:%i\n" in socket_unit.read_text()
    assert "--port=%i" in directive("ExecStart")


def test_systemd_finds_the_service_well_shut_in(unit: Path) -> None:
    # Its scale goes from 0 to 10, and what is over 2 in tenths fails here; "unsafe" services are at 9.6.
    judged = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout
    assert "Overall exposure level" in judged.stdout


def test_nobody_is_cut_when_the_service_stops(tmp_path: Path) -> None:
    [grace] = [part.partition("=")[2] for part in command(1, tmp_path) if part.startswith("--grace=")]
    deadline = ALL["deadline"].default
    assert isinstance(deadline, float)
    assert deadline < float(grace) < float(directive("TimeoutStopSec"))


def test_the_service_is_ready_when_it_says_so_and_its_limits_suffice(mariadb: dict[str, str], tmp_path: Path) -> None:
    arguments = command(four_digit_port(), tmp_path)
    limit = int(directive("LimitNOFILE"))
    checked = subprocess.run(
        [sys.executable, *arguments, "--check"],
        cwd=ROOT,
        env={**os.environ, **mariadb},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert f"the process may open {limit}" in checked.stdout
    assert directive("Type") == "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        env = {
            **mariadb,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": f"{directive('WatchdogSec')}000000",
        }
        port = four_digit_port()
        with Frontend(command(port, tmp_path), env=env, port=port) as server:
            assert manager.recv(4096).startswith(b"READY=1\n")
            assert requests.get(server.url, timeout=10).status_code == 200
            assert server.stop() == 0
    assert '"GET / HTTP/1.1" 200 ' in (tmp_path / f"app.{port}.access.log").read_text()


class Rotation:
    """logrotate with our file, for log files in this directory and for one server instead of systemd's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def configure(self, pid: int) -> None:
        text = LOGROTATE.read_text().replace("/var/log/myapplication", str(self._directory))
        user = f"su {pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"
        text = text.replace("su myapplication myapplication", user)
        text, replaced = re.subn(r"systemctl kill .* 'myapplication@\*\.service'", f"kill -HUP {pid}", text)
        assert replaced == 1
        self._file.write_text(text)
        # It refuses files that others may write, and directories too.
        self._file.chmod(0o644)
        self._directory.chmod(0o755)

    @property
    def _file(self) -> Path:
        return self._directory / "rotate.conf"

    def run(self, option: str) -> str:
        ended = subprocess.run(
            ["logrotate", option, "--state", self._directory / "state", self._file],
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert "error:" not in ended.stderr
        return ended.stderr


def test_logs_are_rotated_and_no_line_is_lost(tmp_path: Path) -> None:
    rotation = Rotation(tmp_path)
    port = four_digit_port()
    log, access_log = tmp_path / f"app.{port}.log", tmp_path / f"app.{port}.access.log"
    with Frontend(command(port, tmp_path), port=port) as server:
        rotation.configure(server.process.pid)

        def ask(number: int) -> None:
            assert requests.get(f"{server.url}/static/style.css?{number}", timeout=10).status_code == 200

        ask(1)
        assert "rotating pattern" in rotation.run("--debug")
        wait_until(lambda: "?1 " in access_log.read_text(), "the request is logged")
        for number in (2, 3):
            rotation.run("--force")
            wait_until(lambda: log.exists() and "log files reopened" in log.read_text(), "the log is reopened")
            ask(number)
            # An answer may arrive before its line is written.
            wait_until(lambda mark=f"?{number} ": mark in access_log.read_text(), "logged")  # type: ignore[misc]
        assert server.stop() == 0
    before = Path(f"{access_log}.1").read_text()
    with gzip.open(f"{access_log}.2.gz", "rt") as file:
        oldest = file.read()
    assert [re.findall(r"\?(\d) ", text) for text in (oldest, before, access_log.read_text())] == [["1"], ["2"], ["3"]]
