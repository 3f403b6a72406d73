"""A second SIGTERM, or the end of the grace period: what is abandoned is stopped first, and has its line."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.test_run import established, refuses
from tests.support.databases import Witness
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from tests.support.site_process import ask_on_its_own

PROGRAM = """
import os, sys
from pathlib import Path
import MySQLdb
from dbutils.pooled_db import PooledDB
from threadbridge import run

pool = PooledDB(
    MySQLdb, maxconnections=2, host="localhost", user=os.environ["MYSQL_USER"],
    password=Path(os.environ["MYSQL_PASSWORD_FILE"]).read_text().strip(), unix_socket=os.environ["MYSQL_UNIX_SOCKET"],
)

def app(environ, start_response):
    connection = pool.connection()
    try:
        cursor = connection.cursor()
        cursor.execute(f"SELECT GET_LOCK('held', 600) /* {environ['PATH_INFO']} */")
        # NULL if it was stopped.
        assert cursor.fetchone() == (1,)
    finally:
        connection.close()
    start_response("200 OK", [])
    return [b"done"]

sys.exit(run(app, pool=pool))
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("ends_by", ["a second signal", "the grace period"])
def test_what_is_abandoned_is_stopped_in_the_database(
    tmp_path: Path, mariadb: dict[str, str], ends_by: str, processes: int
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    witness = Witness(mariadb)
    grace = "600" if ends_by == "a second signal" else "0.5"
    command = ("program.py", "--port={port}", "--deadline=2", f"--grace={grace}", f"--processes={processes}")
    with closing(witness.connection), Frontend(command, env=mariadb, cwd=tmp_path) as server:
        witness.rows("SELECT GET_LOCK('held', 0)")
        # A POST, which is not cancelled at its deadline; its client is gone with a 504, the query goes on.
        with ask_on_its_own(server.port, "/late", "POST") as late:
            assert late.recv(100).startswith(b"HTTP/1.1 504 ")
        witness.wait_for("/late")
        runs = ask_on_its_own(server.port, "/runs", "POST")
        witness.wait_for("/runs")
        # More than there are threads for, also of the lane for requests without queries.
        count = 12 * processes
        waits = [ask_on_its_own(server.port, f"/waits{number}", "POST") for number in range(count)]
        wait_until(lambda: established(server.port) == 1 + count, "all have arrived")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.port), "the port is closed")
        if ends_by == "a second signal":
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 1
        statuses = [int((client.recv(100).split() or [b"", b"0"])[1]) for client in (runs, *waits)]
        # Cut, or told by the application that its query was stopped; told by the server that it never ran.
        assert statuses[0] in (0, 500) and set(statuses) <= {0, 500, 503} and 503 in statuses
        for client in (runs, *waits):
            client.close()
        assert [sql for sql in witness.running if "held" in sql] == []
        output = server.output()
    assert re.search(r"stopped while request \S+, already ended for its client, still ran: POST /late", output)
    assert re.search(r"stopped before request \S+ was answered: POST /runs", output)
    lines = re.findall(r'"POST /(\w+) HTTP/1.0" (\d+) .* ending=(\w+)', output)
    assert sorted(name for name, _, _ in lines) == sorted(
        ["late", "runs", *(f"waits{number}" for number in range(count))]
    )
    assert ("late", "504", "expired") in lines
    assert sum(ending == "shed" for _, _, ending in lines) == statuses.count(503)
