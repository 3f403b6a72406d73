"""The example for quotas: they hold for two hosts together, and hosts serve on without the server that counts."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend, free_port

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# Valkey is Redis' successor in Debian.
SERVER = shutil.which("valkey-server", path=PATH) or shutil.which("redis-server", path=PATH)

pytestmark = pytest.mark.skipif(SERVER is None, reason="needs redis-server or valkey-server: scripts/setup.sh test")


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server that counts: its port and its process."""
    port = free_port()
    command = [str(SERVER), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    wait_until(answers, "it answers")
    yield port, process
    process.kill()
    process.wait()


def test_quotas_hold_for_all_hosts_and_their_loss_stops_nobody(
    counter: tuple[int, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    port, process = counter
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps({name: f"password of {name}" for name in ("one", "another", "third")}))
    with ExitStack() as stack:
        command = ("-m", "threadbridge", "flask_quotas:app", "--port={port}")
        environment = {"QUOTAS": f"redis://127.0.0.1:{port}", "TENANTS": str(tenants)}
        hosts = [
            stack.enter_context(Frontend(command, env=environment, cwd=ROOT / "docs" / "examples")) for _ in range(2)
        ]
        turns = itertools.cycle(hosts)

        def ask(tenant: str, password: str = "") -> requests.Response:
            credentials = (tenant, password or f"password of {tenant}")
            return requests.get(f"{next(turns).url}/export", auth=credentials, timeout=30)

        answers = [ask("one") for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 7
        assert 3000 < int(answers[-1].headers["Retry-After"]) <= 3600
        # Another tenant has a quota of its own, and what has none is served.
        assert ask("another").status_code == 200
        # Nobody uses up another one's quota, or gets more by invented names.
        invented = [ask(name, "a guess").status_code for name in ("another", "third", "one", "x", "y", "127.0.0.1")]
        assert invented == [200] * 5 + [429]
        assert [ask("another").status_code for _ in range(5)] == [200] * 4 + [429]
        assert requests.get(f"{hosts[0].url}/", auth=("one", ""), timeout=30).status_code == 200
        process.kill()
        process.wait()
        # Now each host counts for itself.
        assert Counter(ask("third").status_code for _ in range(12)) == {200: 6, 429: 6}
