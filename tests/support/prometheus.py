"""Prometheus itself, with the configuration, the alerts and the dashboard that the documentation offers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, free_port

EXAMPLES = ROOT / "docs" / "examples"
CONFIGURATION = EXAMPLES / "prometheus.yml"
ALERTS = EXAMPLES / "alerts.yml"
# Where scripts/setup.sh puts them, unless they are installed.
PROGRAMS = ROOT / "build" / "prometheus" / "usr" / "bin"
# The tests' time runs so much faster: what takes five minutes in the rules takes ten seconds here.
FASTER = 30
# In seconds. Not that much faster: a machine that runs tests may need half of it to answer.
INTERVAL = 1
# Seconds that an alert may take on a loaded machine.
LIMIT = 120

_UNITS = {"s": 1, "m": 60, "h": 3600}


def program(name: str) -> str | None:
    """The path of ``prometheus`` or ``promtool``; None if it is missing."""
    return shutil.which(name) or shutil.which(name, path=str(PROGRAMS))


def faster(rules: str) -> str:
    """The same rules with all durations (``for: 5m``, ``[5m]``) divided by `FASTER`; thresholds stay."""

    def shorter(match: re.Match[str]) -> str:
        before, number, unit, after = match.groups()
        return f"{before}{1000 * int(number) * _UNITS[unit] // FASTER}ms{after}"

    return re.sub(r"(\bfor: |\[)(\d+)([smh])(\]|$)", shorter, rules, flags=re.MULTILINE)


def configuration(ports: Sequence[int]) -> str:
    """The documented configuration with these targets, asked and evaluated each second."""
    text, count = re.subn(
        r"targets: \[.*\]", f"targets: {json.dumps([f'127.0.0.1:{port}' for port in ports])}", CONFIGURATION.read_text()
    )
    assert count == 1
    text, count = re.subn(r"scrape_interval: \d+s", f"scrape_interval: {INTERVAL}s", text)
    assert count == 1
    return f"global:\n  evaluation_interval: {INTERVAL}s\n{text}"


class Prometheus:
    """A server that watches these operators' ports, with the alerts in the tests' time; gone after the block."""

    def __init__(self, directory: Path, ports: Sequence[int]) -> None:
        directory.mkdir(exist_ok=True)
        (directory / CONFIGURATION.name).write_text(configuration(ports))
        (directory / ALERTS.name).write_text(faster(ALERTS.read_text()))
        self._directory = directory
        self._address = f"127.0.0.1:{free_port()}"
        self._ports = ports
        self._session = requests.Session()

    def __enter__(self) -> Self:
        path = program("prometheus")
        assert path is not None
        self._begun = time.time()
        with (self._directory / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(path, f"--config.file={CONFIGURATION.name}", "--storage.tsdb.path=data"),
                    f"--web.listen-address={self._address}",
                ],
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        wait_until(self._watches_all, "Prometheus watches all targets")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.close()
        self._process.kill()
        self._process.wait()

    def _watches_all(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError((self._directory / "prometheus.log").read_text())
        try:
            is_ready = self._session.get(f"http://{self._address}/-/ready", timeout=30).ok
        except requests.ConnectionError:
            return False
        return is_ready and len(self.query("up == 1")) == len(self._ports)

    def _get(self, path: str, **parameters: Any) -> Any:
        answer = self._session.get(f"http://{self._address}/api/v1/{path}", params=parameters, timeout=30)
        found = answer.json()
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and values that the expression has now."""
        result = self._get("query", query=expression)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def range(self, expression: str) -> list[tuple[Mapping[str, str], list[float]]]:
        """The labels of all series that the expression has had, and their values at each interval."""
        found = self._get("query_range", query=expression, start=self._begun, end=time.time(), step=INTERVAL)
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in found["result"]]

    @property
    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"}

    def wait_for(self, names: Set[str]) -> None:
        """Return when at least these alerts fire."""
        self._wait(lambda firing: names <= firing, f"{sorted(names)} do not fire")

    def wait_for_none(self) -> None:
        """Return when no alert fires."""
        self._wait(lambda firing: not firing, "alerts do not end")

    def _wait(self, condition: Callable[[Set[str]], bool], problem: str) -> None:
        give_up = time.monotonic() + LIMIT
        while not condition(firing := self.firing):
            assert time.monotonic() < give_up, f"after {LIMIT} s, {problem}; {sorted(firing)} fire"
            time.sleep(0.2)

    @property
    def texts(self) -> list[str]:
        """The summaries of the alerts that are pending or fire now."""
        return [alert["annotations"]["summary"] for alert in self._get("alerts")["alerts"]]

    @property
    def fired(self) -> dict[str, float]:
        """When each alert that has fired so far did so first, in seconds since 1970."""
        now = time.time()
        found: dict[str, float] = {}
        result = self._get(
            "query_range", query='ALERTS{alertstate="firing"}', start=self._begun, end=now, step=INTERVAL
        )["result"]
        for series in result:
            name = series["metric"]["alertname"]
            found[name] = min(found.get(name, now), series["values"][0][0])
        return found

    def evaluate_for(self, seconds: float) -> None:
        """Return when the rules have been evaluated for so long from now on."""
        begun = time.time()

        def evaluated() -> bool:
            [group] = self._get("rules")["groups"]
            # Such as 2026-11-23T05:11:56.123456789Z; a group that was never evaluated has the year 1.
            return bool(self.query(f"vector(time()) > {begun + seconds}")) and not group.get("lastError")

        wait_until(evaluated, "the rules are evaluated", seconds=seconds + 30)
