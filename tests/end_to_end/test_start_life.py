"""scripts/start.sh through a whole life, with a database of its own that it makes and fills."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator

import pytest

from tests.conftest import load_sample_data
from tests.support.inprocess import wait_until
from tests.support.installation import QUERY, Installation, installed
from tests.support.processes import becomes_template


@pytest.fixture
def installation() -> Iterator[Installation]:
    with installed() as made:
        yield made


def test_whole_life_with_an_embedded_database(installation: Installation) -> None:
    # The tests that need the sample data wait for this load, and do not make one of their own.
    with becomes_template(installation.directory / "var" / "mariadb", load_sample_data):
        first, second = installation.ports

        # Interrupted in the middle of loading, as by Ctrl-C.
        with installation.popen() as interrupted:
            assert interrupted.stdout is not None
            while "orders:" not in (line := interrupted.stdout.readline()):
                assert line, "the script ended before it loaded the orders"
            assert len(installation.processes()) > 1
            os.killpg(interrupted.pid, signal.SIGINT)
            interrupted.stdout.read()
        assert interrupted.returncode != 0
        installation.assert_nothing_remains()

        output = installation.run()
        assert "loading it again" in output
        assert "1,000,000 of 1,000,000" in output
        assert output.splitlines()[-3:] == [
            "The application:",
            f"http://127.0.0.1:{first}/",
            f"http://127.0.0.1:{second}/",
        ]
        assert installation.statuses("/") == [200, 200]
        assert installation.statuses(QUERY) == [200, 200]
        pids = installation.pids()
        # Sessions of their own: the end of the terminal does not reach them.
        assert [os.getsid(pid) for pid in pids] == pids
        password = installation.directory / "var" / "mariadb" / "password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        assert not any(password.read_text() in line for line in installation.processes())
        for port in installation.ports:
            log = installation.directory / "logs" / f"app.{port}.access.log"
            wait_until(lambda log=log: '"GET /query/' in log.read_text(), "it is in the log", 30)  # type: ignore[misc]

        assert installation.run() == f"The frontends are already running, on ports {first} {second}: nothing to do\n"
        assert installation.pids() == pids

        output = installation.run("status")
        assert output.count("answers") == 3
        assert f"(process {pids[0]})" in output

        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{pids[0]}/exe"), "it has died", 30)
        output = installation.run("status", status=3)
        assert f"frontend on port {first}: dead" in output
        assert f"frontend on port {second}: answers" in output
        assert f"The frontend on port {first} has died" in installation.run()
        assert installation.statuses(QUERY) == [200, 200]
        assert installation.pid(second) == pids[1]

        mariadb = int((installation.directory / "var" / "mariadb" / "mariadb.pid").read_text())
        os.kill(mariadb, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{mariadb}/exe"), "it has died", 30)
        assert "is not running" in installation.run("status", status=3)
        assert "Starting MariaDB" in installation.run()
        installation.run("status")

        installation.run("restart")
        assert set(installation.pids()).isdisjoint(pids)
        assert installation.statuses(QUERY) == [200, 200]

        # Whatever FRONTENDS says now.
        del installation.env["FRONTENDS"]
        output = installation.run("stop")
        assert "Stopping MariaDB" in output
        installation.assert_nothing_remains()
        assert "not started" in installation.run("status", status=3)
        assert installation.run("stop") == "Everything is stopped\n"
