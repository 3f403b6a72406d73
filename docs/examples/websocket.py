"""A Tornado WebSocket handler and a Flask application in one process, on one port.

Run ``python docs/examples/websocket.py 8000``, then open http://127.0.0.1:8000/: the page comes from Flask, which may
block; its clock comes over the WebSocket, and keeps going while all of Flask's threads are busy.
"""

from __future__ import annotations

import asyncio
import sys
import time

from flask import Flask
from tornado.ioloop import PeriodicCallback
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from threadbridge import Bridge, HTTPServer

flask_application = Flask(__name__)


@flask_application.get("/")
def page() -> str:
    return """<!doctype html><title>Clock</title><p id="clock">…</p><p><a href="/slow">a slow page</a></p>
        <script>
            new WebSocket(`ws://${location.host}/clock`).onmessage =
                (message) => { document.getElementById("clock").textContent = message.data }
        </script>"""


@flask_application.get("/slow")
def slow() -> str:
    time.sleep(2)
    return "This took two seconds of a thread, and none of the loop."


class Clock(WebSocketHandler):
    """Sends the time ten times a second, and echoes messages."""

    def open(self, *args: str, **kwargs: str) -> None:
        self.ticking = PeriodicCallback(lambda: self.write_message(time.strftime("%H:%M:%S")), 100)
        self.ticking.start()

    def on_message(self, message: str | bytes) -> None:
        self.write_message(f"you said {message!r}")

    def on_close(self) -> None:
        self.ticking.stop()


def make_server() -> HTTPServer:
    """Make the server: Tornado serves the WebSocket, and Flask everything else, in four threads."""
    native = Application([("/clock", Clock)])
    bridge = Bridge(flask_application, threads=4)
    return HTTPServer(RuleRouter([Rule(PathMatches("/clock"), native), Rule(PathMatches("/.*"), bridge)]))


async def main(port: int) -> None:
    """Serve forever."""
    make_server().listen(port, "127.0.0.1")
    print(f"Serving on http://127.0.0.1:{port}/", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
