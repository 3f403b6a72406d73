"""What the real journald receives: from standard error, by syslog, and by its own protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, free_port

APPLICATION = """
import logging

def app(environ, start_response):
    logging.getLogger("shop").warning("asked for %s", environ["PATH_INFO"])
    if environ["PATH_INFO"] == "/fails":
        raise LookupError("as asked")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""
# Starts the server, asks it twice, and stops it.
DRIVER = """
import signal, subprocess, sys, time, urllib.error, urllib.request

server = subprocess.Popen([sys.executable, "-m", "threadbridge", "journal_app:app", "--threads=1", *sys.argv[2:]])
for path in "/a", "/fails":
    give_up = time.monotonic() + 60
    while True:
        headers = {"X-Request-ID": "r-1"}
        try:
            urllib.request.urlopen(urllib.request.Request(sys.argv[1] + path, headers=headers), timeout=30)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            assert time.monotonic() < give_up and server.poll() is None
server.send_signal(signal.SIGTERM)
sys.exit(server.wait(60))
"""
# A journald of its own, which sees no other /run. systemd sets JOURNAL_STREAM for its services like this.
SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log
/lib/systemd/systemd-journald 2>/dev/null & journald=$!
trap 'kill $journald' EXIT
until [ -S /run/systemd/journal/stdout ] && [ -S /run/systemd/journal/socket ]; do kill -0 $journald; done
systemd-cat -t shop sh -c 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2); exec "$@"' - "$@"
journalctl --sync
journalctl --directory=/run/log/journal --output=json --all
"""
LOG_CONFIG = """
[filters.ids]
"()" = "threadbridge.process.logs.RequestIds"
[handlers.syslog]
class = "logging.handlers.SysLogHandler"
address = "/run/systemd/journal/dev-log"
"." = { ident = "shop: " }
filters = ["ids"]
[handlers.journal]
class = "cysystemd.journal.JournaldLogHandler"
identifier = "shop"
filters = ["ids"]
[root]
level = "INFO"
handlers = ["syslog", "journal"]
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give journald a directory of its own")


def journal_of(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    """The entries of a server with these arguments."""
    (directory / "journal_app.py").write_text(APPLICATION)
    (directory / "driver.py").write_text(DRIVER)
    port = free_port()
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", SCRIPT, "sh", sys.executable, "driver.py"]
    command += [f"http://127.0.0.1:{port}", f"--port={port}", "--xheaders", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SYSTEMD_LOG_LEVEL": "err"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=directory, env=env, check=False)
    assert run.returncode == 0, run.stderr
    entries = [json.loads(line) for line in run.stdout.splitlines()]
    return [each for each in entries if each.get("SYSLOG_IDENTIFIER") == "shop"]


def priority_of(entries: list[dict[str, Any]], text: str) -> str:
    """As syslog has them: 3 is an error, 4 a warning, 6 is informational."""
    [found] = {each["PRIORITY"] for each in entries if text in each["MESSAGE"]}
    return str(found)


def test_standard_error_of_a_service(tmp_path: Path) -> None:
    entries = journal_of(tmp_path)
    texts = "\n".join(each["MESSAGE"] for each in entries)
    assert priority_of(entries, "asked for /a") == "4"
    assert priority_of(entries, "stopped, every request is answered") == "6"
    # Each line of it.
    assert priority_of(entries, "LookupError") == priority_of(entries, "Traceback") == "3"
    # journald has taken them away.
    assert not any(each["MESSAGE"].startswith("<") for each in entries), texts


def test_syslog_and_its_own_protocol(tmp_path: Path) -> None:
    (tmp_path / "log.toml").write_text(LOG_CONFIG)
    entries = journal_of(tmp_path, "--log_config=log.toml")
    by_transport = {name: [each for each in entries if each["_TRANSPORT"] == name] for name in ("syslog", "journal")}
    for entries in by_transport.values():
        assert priority_of(entries, "asked for /a") == "4"
        assert priority_of(entries, '"GET /a HTTP/1.1" 200') == "6"
        assert priority_of(entries, "LookupError") == "3"
    [access] = [each for each in by_transport["journal"] if each.get("TARGET") == "/a"]
    assert (access["STATUS"], access["ENDING"], access["REQUEST_ID"]) == ("200", "done", "r-1")
    [asked] = [each for each in by_transport["journal"] if each["MESSAGE"] == "asked for /a"]
    assert asked["REQUEST_ID"] == "r-1"
    # With its traceback, in one entry.
    [failed] = [each for each in by_transport["journal"] if "LookupError" in each["MESSAGE"]]
    assert "Traceback" in failed["MESSAGE"]
