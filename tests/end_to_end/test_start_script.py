"""scripts/start.sh on a copy of the project's directory, and what can go wrong. Its whole life: test_start_life.py."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import MySQLdb
import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.installation import HTTP, QUERY, Installation, installed
from tests.support.nginx_server import Nginx


def complaints(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("start.sh: ")]


@pytest.fixture
def installation() -> Iterator[Installation]:
    with installed() as made:
        yield made


@pytest.fixture
def with_database(installation: Installation, sample_data: dict[str, str]) -> Installation:
    installation.env.update(sample_data, MYAPPLICATION_DIAGNOSTICS="1")
    return installation


def test_restart_loses_no_request(with_database: Installation, sample_data: dict[str, str], tmp_path: Path) -> None:
    installation = with_database
    done = threading.Event()

    def ask() -> list[int]:
        session = requests.Session()
        session.trust_env = False
        answers = []
        while not done.is_set():
            answers.append(session.get(nginx.url + QUERY, timeout=60).status_code)
        return answers

    with Nginx("standalone.conf", tmp_path) as nginx:
        installation.ports = sorted(nginx.frontend_ports, key=str)
        installation.env["FRONTENDS"] = "{} {}".format(*nginx.frontend_ports)
        installation.run()
        pids = installation.pids()
        with ThreadPoolExecutor() as executor:
            clients = [executor.submit(ask) for _ in range(4)]
            slow = [
                executor.submit(
                    HTTP.get, f"{installation.url(port)}/query/?report=wait&seconds=2&format=json", timeout=60
                )
                for port in installation.ports
            ]
            try:
                wait_until(lambda: sleeping_queries(sample_data) == 2, "both run", 30)
                output = installation.run("restart")
            finally:
                done.set()
            assert [answer.result().status_code for answer in slow] == [200, 200]
            answers = [status for client in clients for status in client.result()]
    assert set(answers) == {200}
    assert set(installation.pids()).isdisjoint(pids)
    assert re.findall(r"(Stopping|Starting) the frontend on port (\d+)", output) == [
        (verb, str(port)) for port in installation.ports for verb in ("Stopping", "Starting")
    ]


def sleeping_queries(database: dict[str, str]) -> int:
    connection = MySQLdb.connect(
        unix_socket=database["MYSQL_UNIX_SOCKET"],
        user=database["MYSQL_USER"],
        password=Path(database["MYSQL_PASSWORD_FILE"]).read_text(),
    )
    with closing(connection), closing(connection.cursor()) as cursor:
        cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(%'")
        count: int = cursor.fetchone()[0]
        return count


def test_stop_answers_what_runs(with_database: Installation, sample_data: dict[str, str]) -> None:
    with_database.run()
    url = with_database.url(with_database.ports[0])
    with ThreadPoolExecutor() as executor:
        slow = executor.submit(HTTP.get, f"{url}/query/?report=wait&seconds=2&format=json", timeout=60)
        wait_until(lambda: sleeping_queries(sample_data) == 1, "it runs", 30)
        with_database.run("stop")
        assert slow.result().status_code == 200
    with_database.assert_nothing_remains()


def test_hanging_frontend_is_killed(with_database: Installation) -> None:
    with_database.run()
    hanging = with_database.pids()[0]
    os.kill(hanging, signal.SIGSTOP)
    with_database.env["STOP_GRACE"] = "0"
    output = with_database.run("stop")
    assert f"killing process {hanging}\n" in output
    with_database.assert_nothing_remains()


def test_port_in_use_is_said_before_anything_starts(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", installation.ports[1])):
        output = installation.run(status=1)
    assert output == (
        f"start.sh: port {installation.ports[1]} of 127.0.0.1 is not available (Address already in use): "
        "stop the program that uses it, or set FRONTENDS to other ports\n"
    )
    installation.assert_nothing_remains()
    assert not (installation.directory / "var" / "mariadb").exists()


def test_dead_database_is_said_before_anything_starts(installation: Installation) -> None:
    installation.env["MYSQL_UNIX_SOCKET"] = "/nowhere/mariadb.sock"
    output = installation.run(status=1)
    assert output.startswith("start.sh: the database cannot be used: ")
    assert "/nowhere/mariadb.sock" in output
    assert output.count("\n") == 1
    installation.assert_nothing_remains()


def test_restart_with_an_application_that_cannot_be_loaded_stops_nothing(with_database: Installation) -> None:
    with_database.run()
    pids = with_database.pids()
    with (with_database.directory / "myapplication" / "__init__.py").open("a") as application:
        application.write("raise ValueError('a mistake in the new version')\n")
    output = with_database.run("restart", status=1)
    assert complaints(output) == [
        "start.sh: the application cannot be loaded: ValueError: a mistake in the new version"
    ]
    assert with_database.pids() == pids
    assert with_database.statuses(QUERY) == [200, 200]


def test_database_without_the_tables_is_said_and_nothing_remains(with_database: Installation) -> None:
    with_database.env["MYSQL_DATABASE"] = "information_schema"
    output = with_database.run(status=1)
    [message] = complaints(output)
    assert message.startswith(f"start.sh: the frontend on port {with_database.ports[0]} does not get an answer")
    assert QUERY in message
    with_database.assert_nothing_remains()


def test_frontend_that_ends_while_it_starts_takes_the_others_with_it(with_database: Installation) -> None:
    second = with_database.ports[1]
    program = with_database.directory / "run.py"
    program.write_text(
        f"import sys\nif '--port={second}' in sys.argv:\n    sys.exit('a wrong setting')\n" + program.read_text()
    )
    output = with_database.run(status=1)
    [message] = complaints(output)
    assert message.startswith(
        f"start.sh: the frontend on port {second} ended before it was ready: a wrong setting (see "
    )
    with_database.assert_nothing_remains()


def test_restart_that_fails_leaves_the_other_frontend_alone(with_database: Installation) -> None:
    with_database.run()
    first, second = with_database.ports
    pid = with_database.pid(second)
    program = with_database.directory / "run.py"
    intact = program.read_text()
    program.write_text("import sys\nsys.exit('a mistake in the new version')\n")
    output = with_database.run("restart", status=1)
    assert f"the frontend on port {first} ended before it was ready: a mistake in the new version" in output
    assert f"frontend on port {first}: dead" in with_database.run("status", status=3)
    assert with_database.pid(second) == pid
    assert HTTP.get(with_database.url(second) + QUERY, timeout=30).status_code == 200
    program.write_text(intact)
    with_database.run()
    assert with_database.statuses(QUERY) == [200, 200]


def test_restart_without_the_settings_of_the_start_changes_no_database(with_database: Installation) -> None:
    with_database.run()
    pids = with_database.pids()
    settings = {name: value for name, value in with_database.env.items() if name.startswith("MYSQL_")}
    for name in settings:
        del with_database.env[name]
    output = with_database.run("restart", status=1)
    assert "use the database that MYSQL_* variables named, but none is set now" in output
    assert with_database.pids() == pids
    assert with_database.statuses(QUERY) == [200, 200]


def test_pid_file_that_names_another_process_harms_nobody(with_database: Installation) -> None:
    port = with_database.ports[0]
    with subprocess.Popen(["sleep", "100"]) as bystander:
        run = with_database.directory / "var" / "run"
        run.mkdir(parents=True)
        pid_file = run / f"frontend.{port}.pid"
        pid_file.write_text(str(bystander.pid))
        assert f"frontend on port {port}: dead" in with_database.run("status", status=3)
        assert f"The frontend on port {port} has died since it was started" in with_database.run()
        assert with_database.pid(port) != bystander.pid
        with_database.run("stop")
        pid_file.write_text(str(bystander.pid))
        with_database.run("stop")
        assert bystander.poll() is None
        bystander.kill()


def test_second_script_at_the_same_time_is_refused(installation: Installation) -> None:
    run = installation.directory / "var" / "run"
    run.mkdir(parents=True)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in ("start", "stop", "restart"):
            output = installation.run(command, status=1)
            assert output == "start.sh: another start.sh is running here; try again when it has ended\n"


def test_others_can_neither_read_the_logs_nor_hold_the_lock(installation: Installation) -> None:
    run = installation.directory / "var" / "run"
    # As an earlier version has left it.
    run.mkdir(parents=True)
    (run / "lock").touch()
    assert installation.run("stop") == "Everything is stopped\n"
    for directory in (run, installation.directory / "logs"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    if os.geteuid() == 0:
        held = subprocess.run(["flock", "-n", run / "lock", "true"], user="nobody", capture_output=True, text=True)
        assert held.returncode != 0 and "Permission denied" in held.stderr
    # The owner has let others read them.
    (installation.directory / "logs").chmod(0o755)
    installation.run("stop")
    assert stat.S_IMODE((installation.directory / "logs").stat().st_mode) == 0o755


def test_it_is_said_that_frontends_run_as_root(with_database: Installation) -> None:
    expected = 1 if os.geteuid() == 0 else 0
    assert with_database.run().count("The frontends run as root") == expected
    assert with_database.run().count("The frontends run as root") == 0
    assert with_database.run("restart").count("The frontends run as root") == expected


@pytest.mark.parametrize("ports", ["8000 8000", "0", "08000", "65536", "80a", "-1", " "])
def test_ports_that_cannot_be_are_refused(installation: Installation, ports: str) -> None:
    installation.env["FRONTENDS"] = ports
    output = installation.run(status=1)
    assert output.startswith(f'start.sh: FRONTENDS is "{ports}"; it must be different port numbers')
    assert output.count("\n") == 1


def test_grace_that_is_no_number_is_refused(installation: Installation) -> None:
    installation.env["STOP_GRACE"] = "1m"
    assert installation.run(status=1) == 'start.sh: STOP_GRACE is "1m"; it must be a whole number of seconds\n'


def assert_logs_are_followed(installation: Installation, port: int) -> None:
    with installation.popen("logs") as following:
        assert following.stdout is not None
        HTTP.get(installation.url(port) + "/?mark-of-this-test", timeout=30)
        while "mark-of-this-test" not in (line := following.stdout.readline()):
            assert line, "the logs ended"
        following.terminate()


def test_logs_are_followed(with_database: Installation) -> None:
    assert "there are no logs" in with_database.run("logs", status=1)
    with_database.run()
    assert_logs_are_followed(with_database, with_database.ports[1])


def test_logs_of_several_processes_are_followed(with_database: Installation) -> None:
    with_database.env["THREADBRIDGE_PROCESSES"] = "2"
    with_database.run()
    # The frontends answer as soon as one of their processes does.
    wait_until(lambda: len([*with_database.directory.glob("logs/*-2.access.log")]) == 2, "all have their logs", 30)
    assert_logs_are_followed(with_database, with_database.ports[0])


def test_help_and_wrong_commands(installation: Installation) -> None:
    usage = installation.run("help")
    for word in ("stop", "restart", "status", "check", "logs", "FRONTENDS", "MYSQL_HOST"):
        assert word in usage
    assert installation.run("begin", status=2) == usage
    assert installation.run("stop", "now", status=2) == usage


def test_missing_packages_are_named_to_an_ordinary_user(installation: Installation) -> None:
    programs = installation.directory / "programs"
    programs.mkdir()
    # All that the script itself needs; the database's client is not among them.
    for name in ("apt-get", "cat", "cmp", "dash", "dirname", "flock", "id"):
        (programs / name).symlink_to(shutil.which(name) or name)
    failure = subprocess.run(
        ["dash", installation.directory / "scripts" / "setup.sh", "application", "mariadb"],
        env={"PATH": str(programs)},
        # As root the script would install them.
        user="nobody" if os.geteuid() == 0 else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failure.returncode == 1
    assert failure.stderr.endswith(" mariadb-client-core\n")
    assert "sudo apt-get install --no-install-recommends " in failure.stderr
