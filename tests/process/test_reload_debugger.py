"""``--reload`` under the debugger of an editor: debugpy, driven as an editor does, by the Debug Adapter Protocol."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import Frontend, free_port

pytestmark = pytest.mark.skipif(os.environ.get("DEBUGGER") != "1", reason="takes long: set DEBUGGER=1")

APPLICATION = """
def app(environ, start_response):
    version = 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"version %d" % version]
"""
LINE = 4


class Editor:
    """An editor's connection to the debugger, with a breakpoint at `LINE`."""

    def __init__(self, port: int, file: Path, attach: dict[str, Any]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")
        self._sent = 0
        self.ask("initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
        self.send("attach", **attach)
        self.wait_for("initialized")
        self.ask("setBreakpoints", source={"path": str(file)}, breakpoints=[{"line": LINE}])
        self.ask("configurationDone")

    def send(self, command: str, **arguments: Any) -> None:
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def wait_for(self, name: str) -> dict[str, Any]:
        """The body of the next event, or response to a command, of this name."""
        while True:
            size = 0
            while line := self._file.readline().strip():
                field, _, value = line.partition(b":")
                size = int(value) if field.lower() == b"content-length" else size
            assert size, "the debugger has closed the connection"
            message = json.loads(self._file.read(size))
            if name in (message.get("event"), message.get("command")):
                assert message.get("success", True), message
                body: dict[str, Any] = message.get("body") or {}
                return body

    def ask(self, command: str, **arguments: Any) -> None:
        self.send(command, **arguments)
        self.wait_for(command)

    def stops_at_the_breakpoint(self, site: Frontend, expected: str) -> None:
        """Ask for the page, wait for the breakpoint, and go on."""
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(requests.get(site.url, timeout=60).text))
        asking.start()
        thread = self.wait_for("stopped")
        assert thread["reason"] == "breakpoint"
        self.ask("continue", threadId=thread["threadId"])
        asking.join()
        assert found == [expected]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def test_breakpoints_stop_requests_before_and_after_a_reload(tmp_path: Path) -> None:
    shop = tmp_path / "shop.py"
    shop.write_text(APPLICATION)
    port = free_port()
    debugger = ("-m", "debugpy", "--listen", f"127.0.0.1:{port}")
    with Frontend((*debugger, "-m", "threadbridge", "dev", "shop:app", "--port={port}"), cwd=tmp_path) as site:
        attach: dict[str, Any] = {"subProcess": True, "connect": {"host": "127.0.0.1", "port": port}}
        for version in (1, 2, 3):
            with closing(Editor(port, shop, attach)) as editor:
                editor.stops_at_the_breakpoint(site, f"version {version}")
                shop.write_text(APPLICATION.replace("version = 1", f"version = {version + 1}"))
                # An editor opens a session for it, as for any process that the program starts.
                attach = editor.wait_for("debugpyAttach")
                assert attach["subProcessId"] == site.process.pid
