"""scripts/mariadb.sh: a private server from its creation to its end."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import MySQLdb
import pytest

from tests.support.processes import ROOT

SCRIPT = ROOT / "scripts" / "mariadb.sh"


def run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    # dash is the strictest of the shells that /bin/sh may be.
    return subprocess.run(
        ["dash", SCRIPT, command, directory], capture_output=True, text=True, timeout=120, check=False
    )


def settings(directory: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in run("env", directory).stdout.splitlines())


def rows(directory: Path, sql: str) -> tuple[tuple[object, ...], ...]:
    variables = settings(directory)
    connection = MySQLdb.connect(
        unix_socket=variables["MYSQL_UNIX_SOCKET"],
        user=variables["MYSQL_USER"],
        password=Path(variables["MYSQL_PASSWORD_FILE"]).read_text(),
        database=variables["MYSQL_DATABASE"],
    )
    with closing(connection), closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        result: tuple[tuple[object, ...], ...] = cursor.fetchall()
        return result


def pid(directory: Path) -> int:
    return int((directory / "mariadb.pid").read_text())


def command_line(process: int) -> str:
    """Empty when the process has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose name holds a space, for a server that is gone after the test."""
    # Not pytest's own directory: the path of a Unix socket may have only 107 bytes.
    parent = Path(tempfile.mkdtemp(prefix="mariadb-"))
    yield parent / "of mine"
    assert run("stop", parent / "of mine").returncode == 0
    shutil.rmtree(parent)


def test_life_of_a_server(directory: Path) -> None:
    assert run("status", directory).returncode == 3
    assert run("stop", directory).returncode == 0
    assert "there is no directory" in run("env", directory).stderr

    assert run("start", directory).returncode == 0
    server = pid(directory)
    assert rows(directory, "SELECT 1") == ((1,),)
    assert run("status", directory).returncode == 0
    assert run("start", directory).returncode == 0
    assert pid(directory) == server
    rows(directory, "CREATE TABLE kept (id INT)")

    assert run("stop", directory).returncode == 0
    assert command_line(server) == ""
    assert run("status", directory).returncode == 3
    assert run("start", directory).returncode == 0
    assert rows(directory, "SHOW TABLES") == (("kept",),)


def test_server_is_private(directory: Path) -> None:
    run("start", directory)
    password_file = Path(settings(directory)["MYSQL_PASSWORD_FILE"])
    assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
    password = password_file.read_text()
    assert len(password) >= 32
    assert password not in command_line(pid(directory))
    assert password not in (directory / "mariadb.log").read_text()
    assert rows(directory, "SELECT @@skip_networking, @@port") == ((1, 0),)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_user_has_rights_on_its_own_database_only(directory: Path) -> None:
    run("start", directory)
    grants = [str(grant).split(" IDENTIFIED ")[0] for (grant,) in rows(directory, "SHOW GRANTS")]
    assert grants == [
        "GRANT PROCESS ON *.* TO `myapplication`@`localhost`",
        "GRANT ALL PRIVILEGES ON `myapplication`.* TO `myapplication`@`localhost`",
    ]


def test_database_holds_any_text(directory: Path) -> None:
    run("start", directory)
    assert rows(directory, "SELECT @@character_set_database") == (("utf8mb4",),)


def test_killed_server_is_started_again(directory: Path) -> None:
    run("start", directory)
    killed = pid(directory)
    os.kill(killed, signal.SIGKILL)
    assert run("start", directory).returncode == 0
    assert pid(directory) != killed
    assert rows(directory, "SELECT 1") == ((1,),)


def test_pid_file_that_names_another_process_harms_nobody(directory: Path) -> None:
    run("start", directory)
    run("stop", directory)
    with subprocess.Popen(["sleep", "100"]) as bystander:
        (directory / "mariadb.pid").write_text(str(bystander.pid))
        assert run("status", directory).returncode == 3
        assert run("stop", directory).returncode == 0
        assert run("start", directory).returncode == 0
        assert rows(directory, "SELECT 1") == ((1,),)
        assert bystander.poll() is None
        bystander.kill()


def test_interrupted_creation_is_begun_anew(directory: Path) -> None:
    (directory / "data.new" / "mysql").mkdir(parents=True)
    (directory / "password").write_text("of the interrupted attempt")
    assert run("start", directory).returncode == 0
    assert rows(directory, "SELECT 1") == ((1,),)


def test_lost_password_is_said(directory: Path) -> None:
    run("start", directory)
    run("stop", directory)
    (directory / "password").unlink()
    failure = run("start", directory)
    assert failure.returncode == 1
    assert failure.stderr.count("\n") == 1
    assert f"{directory}/password is missing" in failure.stderr


def test_too_long_a_path_is_said(directory: Path) -> None:
    failure = run("start", directory / ("x" * 100))
    assert failure.returncode == 1
    assert failure.stderr.count("\n") == 1
    assert "longer than 107 bytes" in failure.stderr


def test_wrong_arguments_are_answered_with_the_usage(directory: Path) -> None:
    for arguments in ([], ["start"], ["begin", directory], ["start", directory, "now"]):
        failure = subprocess.run(["dash", SCRIPT, *arguments], capture_output=True, text=True, check=False)
        assert failure.returncode == 2
        assert failure.stderr.startswith("usage: scripts/mariadb.sh start DIR")
    assert not directory.exists()
