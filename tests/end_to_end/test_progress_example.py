"""The example of a worker that sends rows to a WebSocket handler on the loop, with a browser and with bad clients."""

from __future__ import annotations

import asyncio
import json
import runpy
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from selenium.webdriver.common.by import By
from websocket import WebSocket, create_connection

from tests.application.test_page import running_browser, texts, wait_for
from tests.support.inprocess import reset, wait_until
from tests.support.processes import ROOT, Frontend

EXAMPLE = "docs/examples/progress.py"
# A month that takes no time, and one that takes for ever.
AT_ONCE = "SELECT :month"
FOR_EVER = (
    "WITH RECURSIVE sale(number) AS (SELECT :month UNION ALL SELECT number + 1 FROM sale) SELECT sum(number) FROM sale"
)


class Example:
    """The example in this process, with other values of its constants."""

    def __init__(self, **constants: object) -> None:
        self.names = runpy.run_path(str(ROOT / EXAMPLE))
        # The functions' own: `run_path` gives a copy.
        self.names["report"].__globals__.update(constants)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        server = self.names["make_server"]()
        self.bridge = server.request_callback.rules[1].target
        server.listen(0, "127.0.0.1")
        [listener] = server._listeners
        self.port: int = listener.getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.stop()
        await server.close_all_connections()
        self.bridge.close()

    def __enter__(self) -> Example:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self.bridge.join()

    @contextmanager
    def watching(self, **options: Any) -> Iterator[tuple[WebSocket, str]]:
        """A WebSocket, and the URL of the report whose rows it gets."""
        client = create_connection(f"ws://127.0.0.1:{self.port}/rows", timeout=30, **options)
        try:
            name = json.loads(client.recv())["feed"]
            yield client, f"http://127.0.0.1:{self.port}/report?feed={name}"
        finally:
            client.close()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def test_a_browser_shows_rows_while_the_report_runs() -> None:
    with Frontend((EXAMPLE, "{port}")) as server, running_browser(javascript=True) as browser:
        browser.get(server.url)
        # Both are looked at in one moment.
        first = "return document.querySelector('#state').textContent === 'running …' && document.querySelector('tr')"
        wait_for(browser, lambda browser: bool(browser.execute_script(first)))
        wait_for(browser, lambda browser: texts(browser, "#state") == ["12 months"])
        rows = [row.text.split()[0] for row in browser.find_elements(By.TAG_NAME, "tr")]
        assert rows == [str(month) for month in range(1, 13)]


def test_without_the_websocket_the_response_has_all_rows() -> None:
    with Example(QUERY=AT_ONCE) as server:
        rows = requests.get(f"http://127.0.0.1:{server.port}/report?feed=unknown", timeout=30).json()
        assert rows == [{"month": month, "total": month} for month in range(1, 13)]


def test_a_client_that_leaves_the_page_stops_the_query() -> None:
    with Example(QUERY=FOR_EVER) as server, server.watching() as (_, url):
        request = f"GET {url.partition(str(server.port))[2]} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        client.sendall(request.encode())
        wait_until(lambda: any(lane.busy for lane in server.bridge.lanes), "the report runs")
        reset(client)
        wait_until(lambda: not any(lane.busy for lane in server.bridge.lanes), "the query has been stopped")


def test_a_closed_websocket_ends_the_report(thread: ThreadPoolExecutor) -> None:
    with Example(QUERY=AT_ONCE, MONTHS=10**9) as server, server.watching() as (client, url):
        answer = thread.submit(requests.get, url, timeout=60)
        rows = [json.loads(client.recv()) for _ in range(3)]
        assert [row["month"] for row in rows] == [1, 2, 3]
        client.close()
        assert (answer.result().status_code, answer.result().text) == (410, "the client has left")


def test_a_client_that_does_not_read_holds_neither_memory_nor_the_worker_for_ever(thread: ThreadPoolExecutor) -> None:
    row = "x" * 10_000
    example = Example(QUERY=f"SELECT '{row}' || :month", MONTHS=10**9, READ_TIMEOUT=0.5)
    with example as server, server.watching() as (_, url):
        answer = thread.submit(requests.get, url, timeout=60)
        wait_until(lambda: bool(server.names["feeds"]), "the feed is there")
        [feed] = server.names["feeds"].values()
        assert (answer.result().status_code, answer.result().text) == (410, "the client does not read")
        waiting = feed._handler.ws_connection.stream._write_buffer
        assert len(waiting) <= server.names["MOST_UNREAD"] * (len(row) + 100)
