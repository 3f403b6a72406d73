"""``python -m threadbridge MODULE:APP`` and nothing more, and the long queries of the applications."""

from __future__ import annotations

import subprocess
from typing import Any

import MySQLdb
import requests

from tests.support.databases import connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from tests.support.site_process import ask_on_its_own


class Site(Frontend):
    """An application served with these options only; ready when it has said so."""

    def __init__(self, application: str, mariadb: dict[str, str], *arguments: str) -> None:
        super().__init__(("-m", "threadbridge", application, "--port={port}", *arguments), env=mariadb)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=self._output, stderr=subprocess.STDOUT
        )
        # What it says of its pools comes a moment later.
        wait_until(lambda: self.pool_lines != [] or self.process.poll() is not None, "ready", 30)
        assert self.process.poll() is None, self.output()

    def get(self, path: str) -> str:
        """The text at a path."""
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=30).text

    @property
    def pool_lines(self) -> list[str]:
        """What the log says of pools."""
        return [line.partition("] pool: ")[2] for line in self.output().splitlines() if "] pool: " in line]


class LongQueries:
    """The long queries in the database, as another client sees them."""

    def __init__(self, mariadb: dict[str, str]) -> None:
        self._connection: Any = MySQLdb.connect(autocommit=True, **connect_settings(mariadb))

    def count(self) -> int:
        """How many run."""
        cursor = self._connection.cursor()
        cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SUM%'")
        return int(cursor.fetchone()[0])

    def are_stopped(self, site: Site, path: str = "/long") -> None:
        """Wait until the query of a client that leaves has ended; fails if it runs on."""
        client = ask_on_its_own(site.port, path)
        wait_until(lambda: self.count() == 1, "the query runs")
        client.close()
        wait_until(lambda: self.count() == 0, "the query is stopped")

    def close(self) -> None:
        self._connection.close()
