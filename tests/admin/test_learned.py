"""What the operators' port says of scheduling by cost: what is learned, and what is expected of each request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests

from tests.support.admin_site import Site, SqlSite
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge.admin.frontend_answer import PROCESSES, TABLES, FrontendError, parse
from threadbridge.admin.learned import MOST_ROWS, learned, merged, shown
from threadbridge.admin.snapshot import snapshot
from threadbridge.crossing.estimate import Estimate
from threadbridge.telemetry.history import History


@pytest.fixture
def site(tmp_path: Path, mariadb: dict[str, str]) -> Iterator[SqlSite]:
    with SqlSite(tmp_path, mariadb, "--schedule=cost") as site:
        yield site


def test_the_parameter_that_decides_splits_a_route(site: SqlSite) -> None:
    site.teach()
    rows = site.document()["learned"]
    reports = {row["parameters"]: row for row in rows if row["path"] == "/report"}
    assert set(reports) == {"kind=large", "kind=small"}
    large, small = reports["kind=large"], reports["kind=small"]
    assert rows[0] == large
    assert large["method"] == "GET"
    assert 0.2 <= large["median"] <= large["p95"] < 2 and 0.2 <= large["mean"] < 2
    # On a busy machine, some of them may take long.
    assert small["median"] < 0.05 and (small["class"] == "short" or small["p95"] > 0.05)
    assert large["database"] > 0.8 and small["database"] < 1
    # Those before it was looked at are counted for the route alone.
    assert 6 <= large["count"] <= 12
    [other] = [row for row in rows if row["path"] == "/sql"]
    assert (other["parameters"], other["count"]) == ("", 1)


def test_a_request_shows_its_class_what_is_expected_of_it_and_when_it_may_start(site: SqlSite) -> None:
    site.teach()
    [*_, lane] = site.document()["processes"][0]["lanes"]
    assert lane["name"] == "pool" and lane["short_below"] >= 0.1 and lane["kept"] in (0, 1)
    # Such requests are short so far.
    for _ in range(5):
        assert requests.get(f"{site.url}/sql?SELECT%201", timeout=20).status_code == 200
    with ExitStack() as stack:
        for number in range(5):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        wait_until(lambda: site.document()["counts"]["running"] >= 2, "some run")
        wait_until(
            lambda: any(row["outgrown"] and (row["expected"] or 60) < 1 for row in site.document()["requests"]),
            "one has outgrown its estimate",
        )
        rows = site.document()["requests"]
    assert {row["class"] for row in rows} <= {"short", "long", "unknown"}
    running = [row for row in rows if row["state"] == "running"]
    waiting = [row for row in rows if row["state"] == "waiting"]
    assert len(running) >= 2 and len(running) + len(waiting) == 5
    assert all(row["starts_in"] is None for row in running)
    assert all(row["starts_in"] >= 0 for row in waiting)


def test_one_that_waits_may_start_when_those_ahead_of_it_are_expected_to_be_done() -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["QUERY_STRING"] == "held":
            entered.release()
            assert go_on.wait(20)
        else:
            threading.Event().wait(0.12)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with BridgeThread(app, threads=1) as server:
        for _ in range(4):
            server.request(path="/page")
        clients = [server.send(b"GET /page?held HTTP/1.1\r\nHost: a\r\n\r\n")]
        assert entered.acquire(timeout=10)
        for number in range(3):
            clients.append(server.send(b"GET /page?held HTTP/1.1\r\nHost: a\r\n\r\n"))
            wait_until(lambda: server.bridge.lanes[-1].queued == number + 1, "it waits")  # noqa: B023
        rows = on_loop(server, lambda: snapshot(server.bridge, History()))["requests"]
        go_on.set()
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            client.close()
    starts = [row["starts_in"] for row in rows if row["state"] == "waiting"]
    assert len(starts) == 3
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert all(0.1 < gap < 0.3 for gap in gaps), starts


def on_loop(server: BridgeThread, ask: Any) -> Any:
    """What this gives on the loop, as the operators' port asks it."""
    found: list[Any] = []
    server.loop.call_soon_threadsafe(lambda: found.append(ask()))
    wait_until(lambda: bool(found), "the loop answers")
    return found[0]


def test_nothing_is_learned_where_clients_take_turns(tmp_path: Path) -> None:
    with Site(tmp_path, "--schedule=fair") as site, ExitStack() as stack:
        requests.get(site.url, timeout=20)
        site.occupy(stack, "one")
        document = site.document()
        site.finish("one")
    [row] = document["requests"]
    assert (row["class"], row["expected"], row["outgrown"], row["starts_in"]) == ("", None, False, None)
    assert [(lane["kept"], lane["short_below"]) for lane in document["processes"][0]["lanes"]] == [(0, 0)]
    assert document["learned"] == []


def test_the_table_is_that_of_all_processes(tmp_path: Path) -> None:
    with Site(tmp_path, "--processes=2", "--schedule=cost") as site:
        wait_until(lambda: len(site.document()["processes"]) == 2, "both are found")
        for _ in range(40):
            assert requests.get(site.url, timeout=20).status_code == 200
        # Each connection, of the site's and of the operators' port, may reach either process.
        for _ in range(4):
            [row] = site.document()["learned"]
            assert row["path"] == "/"
            # What one of them has answered, or both if they have shared it by now.
            assert 20 <= row["count"] <= 40


def kind(**fields: Any) -> dict[str, Any]:
    row = {"method": "GET", "path": "/", "parameters": "", "class": "short"}
    return {**row, "count": 1, "median": 1.0, "p95": 2.0, "mean": 1.0, "database": 0.5, **fields}


def test_of_each_kind_the_process_that_has_learned_most_tells() -> None:
    tables = [
        {"key": "a", "rows": [kind(count=1, **{"class": "long"}), kind(path="/b", count=50)]},
        {"key": "b", "rows": [kind(count=3, median=5.0, mean=9.0), kind(path="/b", count=20, mean=70.0)]},
        {"key": "b", "rows": [kind(count=3, median=5.0, mean=9.0)]},
    ]
    assert merged(tables) == [kind(path="/b", count=50), kind(count=3, median=5.0, mean=9.0)]
    # Whatever other frontends send.
    assert merged([{"key": "c", "rows": [kind(count=0)]}]) == [kind(count=0)]
    assert len(merged([{"key": "d", "rows": [kind(path=f"/{number}") for number in range(300)]}])) == MOST_ROWS


def test_only_the_heaviest_kinds_are_listed() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            threading.Event().wait(0.1)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with BridgeThread(app, threads=1) as server:
        server.request(path="/slow")
        names = [f"{one}{other}" for one in "abcdefghijkl" for other in "abcdefghijkl"]
        for name in names:
            server.request(path=f"/{name}")
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "all are over")
        rows = learned(server.bridge)
    assert len(names) > MOST_ROWS == len(rows)
    assert rows[0]["path"] == "/slow"
    weights = [row["count"] * row["mean"] for row in rows]
    assert weights == sorted(weights, reverse=True)


def kinds_by(parameter: str, values: tuple[str, str]) -> list[str]:
    """What the table says of requests of which one value takes 1 ms, the other 1 s; they come as a form."""
    with BridgeThread(lambda environ, start_response: [], threads=1) as server:
        costs = server.bridge.shared.costs
        assert costs is not None
        route = server.bridge.shared.routes.find("POST", "/form")
        for number in range(40):
            estimate = Estimate(route.cost, "/form", "192.0.2.7")
            estimate.add_form(f"{parameter}={values[number % 2]}")
            costs.learn(estimate, (0.001, 1.0)[number % 2])
        return [row["parameters"] for row in learned(server.bridge)]


def test_parameters_are_named_so_that_operators_understand_them() -> None:
    assert kinds_by("report", ("few", "many")) == ["report=many", "report=few"]
    assert kinds_by("report", ("", "many")) == ["report=many", "without report"]


def test_secrets_are_not_shown() -> None:
    for name in ("password", "user_token", "api-key", "PIN"):
        assert kinds_by(name, ("hunter2", "correct")) == [f"{name}=…", f"{name}=…"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("limit#", "1", "limit=1"),
        ("limit#", "0", "limit=0"),
        ("limit#", "5", "limit=16 to 31"),
        ("(days)", "9", "days=256 to 511"),
        ("(days)", "", "without days"),
        ("(client)", "192.0.2.7", "client=192.0.2.7"),
        ("/2", "17", "number 2 of the path=17"),
        ("mapping", "x", "mapping=x"),
        ("pin#", "9", "pin#=…"),
        ("limit#", "9" * 24, "limit=" + "9" * 24),
    ],
)
def test_parameters_that_were_derived_have_names(name: str, value: str, expected: str) -> None:
    assert shown(name, value) == expected


def test_the_answers_of_frontends_are_checked() -> None:
    assert parse(b'{"tables":[]}', TABLES) == {"tables": []}
    for wrong in (b'{"tables":[{"key":"a","rows":[{}]}]}', b'{"tables":[{"key":"a","rows":1}]}', b"{}"):
        with pytest.raises(FrontendError):
            parse(wrong, TABLES)


def test_frontends_of_an_earlier_version_need_not_know_classes(tmp_path: Path) -> None:
    with Site(tmp_path) as site, ExitStack() as stack:
        site.occupy(stack, "one")
        document = site.admin("/local/processes.json").json()
        site.finish("one")
    [process] = document["processes"]
    for holder, names in (
        (process["lanes"][0], ("kept", "short_below")),
        (process["requests"][0], ("class", "expected", "outgrown", "starts_in")),
    ):
        for name in names:
            del holder[name]
    assert parse(json.dumps(document).encode(), PROCESSES) == document
