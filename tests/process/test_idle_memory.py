"""A process that serves has loaded nothing that only others need: modules are most of an idle process's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, Frontend

APPLICATION = """
import sys

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\\n".join(sys.modules).encode()]
"""

FOR_CHECK = {
    "threadbridge.doctor.report",
    "threadbridge.doctor.nginx",
    "threadbridge.doctor.finding",
    "importlib.metadata",
}
FOR_POOLS = {
    "threadbridge.database.pools.dbutils",
    "threadbridge.database.drivers.mysql",
    "threadbridge.database.drivers.postgresql",
    "dbutils",
}
FOR_SEVERAL_PROCESSES = {"threadbridge.process.supervisor", "threadbridge.process.child"}
FOR_SEVERAL_PROCESSES |= {
    f"threadbridge.process.{name}" for name in ("forking", "preloader", "privileges", "program", "renewal", "watchdog")
}
FOR_CONFIG_FILES = {"tomllib"}
FOR_HANDLERS_OF_TORNADO = {"threadbridge.loop.http_server"}
FOR_OPERATORS = {
    "threadbridge.admin",
    "tornado.httpserver",
    "tornado.http1connection",
    "multiprocessing",
    "tornado.web",
    "tornado.template",
    "tornado.locale",
    "tornado.httpclient",
}
FOR_TLS = {"threadbridge.sockets.certificates", "threadbridge.http.client_certificate"}
FOR_STREAMS_OF_PROXIES = {"threadbridge.http.proxy_protocol"}
FOR_METRICS = {"threadbridge.admin.metrics", "prometheus_client"}
FOR_DEVELOPMENT = {
    "threadbridge.process.reloader",
    "threadbridge.process.watched_files",
    "threadbridge.process.development",
    "threadbridge.telemetry.recent",
    "threadbridge.telemetry.repetitions",
    "threadbridge.cli.stand_in",
    "threadbridge.cli.environment_files",
    "watchfiles",
    "dotenv",
}
# Heavy, and easily taken in with another.
FOR_NOTHING = {"ctypes", "unittest", "pydoc", "argparse", "sqlite3", "xml", "tornado.options", "tornado.testing"}
FOR_OTHERS = FOR_CHECK | FOR_POOLS | FOR_SEVERAL_PROCESSES | FOR_CONFIG_FILES | FOR_METRICS
FOR_OTHERS |= FOR_DEVELOPMENT | FOR_HANDLERS_OF_TORNADO | FOR_TLS | FOR_STREAMS_OF_PROXIES | FOR_NOTHING


@pytest.mark.parametrize(
    ("options", "unneeded"),
    [
        ((), FOR_OTHERS | FOR_OPERATORS),
        (("--admin_port=0",), FOR_OTHERS),
        # The processes that serve, not the one that starts them.
        (("--processes=2",), FOR_OTHERS),
    ],
)
def test_what_only_others_need_is_not_loaded(tmp_path: Path, options: tuple[str, ...], unneeded: set[str]) -> None:
    (tmp_path / "modules.py").write_text(APPLICATION)
    arguments = ("-m", "threadbridge", "modules:app", "--pool=none", "--threads=2", "--port={port}", *options)
    with Frontend(arguments, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as server:
        loaded = set(requests.get(server.url, timeout=30).text.split())
    assert "threadbridge.worker.wsgi" in loaded
    assert unneeded & loaded == set()
