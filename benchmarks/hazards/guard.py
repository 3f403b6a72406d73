"""What it costs that the pool is guarded and requests have lanes: the same short query with and without."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import MySQLdb

from benchmarks.hazards import THREADS
from benchmarks.hazards.contenders import THREADBRIDGE
from benchmarks.hazards.measures import Figures
from benchmarks.hazards.subject import running
from benchmarks.throughput import requests_per_second

ROUNDS = 5
SECONDS = 3
UNGUARDED = THREADBRIDGE._replace(
    command=tuple(f"--threads={THREADS}" if part.startswith("--pool=") else part for part in THREADBRIDGE.command)
)


def guard(environment: Path, variables: Mapping[str, str]) -> Figures:
    """The throughput of an indexed SELECT with guard and lanes, as a part of that without; round by round by wrk."""
    fill(variables)
    rates: list[list[float]] = [[], []]
    with ExitStack() as stack:
        urls = []
        for contender in (THREADBRIDGE, UNGUARDED):
            subject = stack.enter_context(running(contender, environment, variables, ("--logging=warning",)))
            urls.append(f"http://127.0.0.1:{subject.port}/row?id=500")
            requests_per_second(urls[-1], 1)
        for _ in range(ROUNDS):
            for url, measured in zip(urls, rates, strict=True):
                measured.append(requests_per_second(url, SECONDS))
    return {"guarded": statistics.median(rates[0]) / statistics.median(rates[1])}


def fill(variables: Mapping[str, str]) -> None:
    """Make the table that the short query reads."""
    connection = MySQLdb.connect(
        unix_socket=variables["MYSQL_UNIX_SOCKET"],
        user=variables["MYSQL_USER"],
        password=Path(variables["MYSQL_PASSWORD_FILE"]).read_text(encoding="utf-8").strip(),
        database=variables["MYSQL_DATABASE"],
        autocommit=True,
    )
    with closing(connection), closing(connection.cursor()) as cursor:
        cursor.execute("CREATE OR REPLACE TABLE words (id INT PRIMARY KEY, word VARCHAR(20) NOT NULL)")
        cursor.execute("INSERT INTO words SELECT seq, CONCAT('word ', seq) FROM seq_1_to_1000")
