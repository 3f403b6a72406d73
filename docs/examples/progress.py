"""A report that shows its rows while it runs: a worker sends them to a WebSocket handler on Tornado's loop.

Run ``python docs/examples/progress.py 8000``, then open http://127.0.0.1:8000/. The page opens a WebSocket, and asks
Flask for the report with its name. `Feed` is the way from the worker to the handler. The page also works without the
WebSocket: the response has all rows. Use one process: the WebSocket and the request must come to the same one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import sys
import threading

from flask import Flask, request
from tornado.ioloop import IOLoop
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.web import Application
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from threadbridge import Bridge, HTTPServer, current

# Messages on their way to a client, and the seconds that a worker waits until a client has read one of them.
MOST_UNREAD = 100
READ_TIMEOUT = 10.0
MONTHS = 12
# Takes some time for each month.
QUERY = """
    WITH RECURSIVE sale(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM sale WHERE number < 200000)
    SELECT sum(number * :month % 7) FROM sale
"""

flask_application = Flask(__name__)


class Gone(ConnectionError):
    """The client has closed the WebSocket, or does not read."""


class Feed:
    """The way from a worker to the WebSocket of one client; constructed and closed on the loop."""

    def __init__(self, handler: WebSocketHandler) -> None:
        self.is_closed = False
        self._handler = handler
        self._loop = IOLoop.current()
        # Counts the further messages that may be on their way.
        self._room = threading.Semaphore(MOST_UNREAD)

    def send(self, message: str) -> None:
        """Send a message; wait while too many are unread. Worker side. Raises `Gone`."""
        if not self._room.acquire(timeout=READ_TIMEOUT):
            raise Gone("the client does not read")
        if self.is_closed:
            # For the next one that asks.
            self._room.release()
            raise Gone("the client has left")
        # The one method of the loop that may be called in another thread.
        self._loop.add_callback(self._write, message)

    async def _write(self, message: str) -> None:
        try:
            # Done when the message has left for the client, not sooner.
            await self._handler.write_message(message)
        except WebSocketClosedError:
            return
        finally:
            self._room.release()

    def close(self) -> None:
        """Let a worker that waits fail. Loop side."""
        self.is_closed = True
        self._room.release()


# The feeds of all clients that are connected, by their names. The loop changes it, and workers read it.
feeds: dict[str, Feed] = {}


class Rows(WebSocketHandler):
    """Tells the client the name of its feed first, then what a worker sends. Other sites' pages are refused (403)."""

    def open(self, *args: str, **kwargs: str) -> None:
        # Nobody else can guess it.
        self.name = secrets.token_urlsafe()
        feeds[self.name] = Feed(self)
        self.write_message(json.dumps({"feed": self.name}))

    def on_message(self, message: str | bytes) -> None:
        """Ignore it: the client has nothing to say."""

    def on_close(self) -> None:
        feeds.pop(self.name).close()


@flask_application.get("/report")
def report() -> tuple[list[dict[str, int]] | str, int]:
    """All rows of the report; each is sent to the feed, too, as soon as it is known. Worker side."""
    feed = feeds.get(request.args.get("feed", ""))
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    # When the client leaves the page, its request is cancelled. For a pool that the bridge guards, this is not needed.
    forget = current().on_cancel(connection.interrupt)
    rows = []
    try:
        for month in range(1, MONTHS + 1):
            [total] = connection.execute(QUERY, {"month": month}).fetchone()
            rows.append({"month": month, "total": total})
            if feed is not None:
                feed.send(json.dumps(rows[-1]))
    except Gone as gone:
        # Nobody waits for the rest.
        return str(gone), 410
    finally:
        forget()
        connection.close()
    return rows, 200


@flask_application.get("/")
def page() -> str:
    return """<!doctype html><title>Sales</title><p id="state">running …</p><table id="rows"></table>
        <script>
            const show = (row) => {
                const cells = document.getElementById("rows").insertRow()
                cells.insertCell().textContent = row.month
                cells.insertCell().textContent = row.total
            }
            const run = async (query, isLive) => {
                const response = await fetch("/report" + query)
                const rows = response.ok ? await response.json() : []
                if (!isLive) rows.forEach(show)
                document.getElementById("state").textContent = response.ok ? `${rows.length} months` : "failed"
            }
            const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/rows`)
            let hasBegun = false
            socket.onmessage = (message) => {
                const data = JSON.parse(message.data)
                if (data.feed === undefined) return show(data)
                hasBegun = true
                run("?feed=" + encodeURIComponent(data.feed), true)
            }
            socket.onclose = () => { if (!hasBegun) { hasBegun = true; run("", false) } }
        </script>"""


def make_server() -> HTTPServer:
    """Make the server: Tornado serves the WebSocket, and Flask everything else, in four threads."""
    native = Application([("/rows", Rows)])
    bridge = Bridge(flask_application, threads=4)
    return HTTPServer(RuleRouter([Rule(PathMatches("/rows"), native), Rule(PathMatches("/.*"), bridge)]))


async def main(port: int) -> None:
    """Serve forever."""
    make_server().listen(port, "127.0.0.1")
    print(f"Serving on http://127.0.0.1:{port}/", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
