"""The load generator: wrk, with a script that tells what it measured as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).with_suffix(".lua")
# An answer that takes longer is counted as an error.
TIMEOUT = 10


class Load(NamedTuple):
    """What is asked for, again and again on each connection as soon as the last answer is there.

    :param others: paths that are asked for in turn with ``path``.
    :param body: the bytes that each request brings.
    :param keep_alive: whether a connection is used again; otherwise each request has one of its own.
    """

    path: str
    connections: int
    method: str = "GET"
    body: int = 0
    keep_alive: bool = True
    others: tuple[str, ...] = ()


class Measured(NamedTuple):
    """What came of it: answers per second, the latency's percentiles in milliseconds, errors by their kind."""

    rate: float
    requests: int
    p50: float
    p90: float
    p99: float
    longest: float
    errors: dict[str, int]


class NoAnswers(Exception):
    """Not one request was answered; the message is what wrk said."""


def require() -> None:
    """End the process with what to do when wrk is not installed."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")


def run(port: int, load: Load, seconds: int, *, tls: bool = False) -> Measured:
    """Put the load on a server of this machine for so long. Raises `NoAnswers`."""
    command = ["wrk", "--threads=1", f"--connections={load.connections}", f"--duration={seconds}s"]
    command += [f"--timeout={TIMEOUT}s", f"--script={SCRIPT}"]
    if not load.keep_alive:
        command.append("--header=Connection: close")
    scheme = "https" if tls else "http"
    command += [f"{scheme}://127.0.0.1:{port}{load.path}", "--", load.method, str(load.body), load.path, *load.others]
    finished = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("JSON ")]
    if finished.returncode or not lines:
        raise NoAnswers(finished.stdout)
    facts = json.loads(lines[0].removeprefix("JSON "))
    if not facts["requests"]:
        raise NoAnswers(finished.stdout)
    return Measured(
        rate=facts["requests"] * 1_000_000 / facts["microseconds"],
        requests=facts["requests"],
        p50=facts["p50"] / 1000,
        p90=facts["p90"] / 1000,
        p99=facts["p99"] / 1000,
        longest=facts["max"] / 1000,
        errors={kind: count for kind, count in facts["errors"].items() if count},
    )
