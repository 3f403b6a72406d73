"""A POST that is repeated with its ``Idempotency-Key`` is run once, whatever happens between the two."""

from __future__ import annotations

import http.client
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest

from tests.support.databases import Witness
from tests.support.idempotent import Application, detail, is_replayed, post
from tests.support.inprocess import BridgeThread, reset, wait_until
from threadbridge import Lane


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_repetition_gets_the_first_answer(
    application: Application, serving: Callable[..., BridgeThread], method: str
) -> None:
    with serving() as server:
        first, body = post(server, method=method)
        again, body_again = post(server, method=method)
        # It is the same key with its quotes or without.
        bare, body_bare = post(server, key="k", method=method)
    assert application.runs == 1 and application.bodies == [b"1"] and application.closed == 1
    assert (first.status, body, is_replayed(first)) == (201, b"run 1", False)
    for response, repeated in ((again, body_again), (bare, body_bare)):
        assert (response.status, repeated, is_replayed(response)) == (201, b"run 1", True)
        assert response.reason == "Created" and response.headers["Set-Cookie"] == "a=b"
        assert response.headers["X-Run"] == "1" and response.headers["Content-Length"] == "5"
        assert response.headers["X-Request-ID"] != first.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("target", "status", "body"), [("/pay/writes", 200, b"written, and iterated"), ("/pay/empty", 204, b"")]
)
def test_answers_of_other_kinds_are_repeated_too(
    application: Application, serving: Callable[..., BridgeThread], target: str, status: int, body: bytes
) -> None:
    with serving() as server:
        answers = [post(server, path=target) for _ in range(2)]
    assert [(response.status, text) for response, text in answers] == [(status, body)] * 2
    assert [is_replayed(response) for response, _ in answers] == [False, True] and application.runs == 1


def test_what_has_no_key_or_is_elsewhere_or_safe_is_left_alone(
    application: Application, serving: Callable[..., BridgeThread], path: Path
) -> None:
    with serving() as server:
        for number, parameters in enumerate(
            [{"key": None}, {"path": "/other"}, {"method": "GET"}, {"method": "HEAD"}, {"method": "PUT"}], 1
        ):
            for _ in range(2):
                response, _ = post(server, **parameters)  # type: ignore[arg-type]
                assert response.status == 201 and not is_replayed(response)
            assert application.runs == 2 * number
    assert not path.exists()


def test_without_the_setting_keys_mean_nothing(application: Application) -> None:
    with BridgeThread(application, threads=1) as server:
        assert server.bridge.application is application
        post(server)
        post(server)
    assert application.runs == 2


@pytest.mark.parametrize(
    "key", ["", '""', '"a', 'a"b', '"a","b"', '"ä"', "a b", '"' + 256 * "a" + '"', "a,b", '"a\\b"']
)
def test_what_is_no_key_is_refused(application: Application, serving: Callable[..., BridgeThread], key: str) -> None:
    with serving() as server:
        answer = server.exchange(
            b"POST /pay HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\nIdempotency-Key: "
            + key.encode("latin-1")
            + b"\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 400 ") and b"application/problem+json" in answer and application.runs == 0


@pytest.mark.parametrize(
    "key", ['"a;b \\" \\\\"', '"k";v=1', "a/b+c=", '"' + 255 * "a" + '"', "623c0107-53cc-4674-a880-8678e9cb3d4d"]
)
def test_what_is_a_key_is_one(application: Application, serving: Callable[..., BridgeThread], key: str) -> None:
    with serving() as server:
        assert [is_replayed(post(server, key=key)[0]) for _ in range(2)] == [False, True]


def test_another_request_or_client_with_the_key_is_refused(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    others: list[dict[str, str | bytes]] = [
        {"body": b"2"},
        {"path": "/pay/2"},
        {"path": "/pay?a=1"},
        {"method": "PATCH"},
        {"Cookie": "session=other"},
        {"Authorization": "Bearer other"},
        {"Host": "other"},
        {"Content_Type": "text/plain"},
    ]
    with serving() as server:
        assert post(server, Cookie="session=mine")[0].status == 201
        for other in others:
            parameters: dict[str, Any] = {"Cookie": "session=mine"} | other
            response, body = post(server, **parameters)
            assert response.status == 422, other
            assert response.headers["Content-Type"] == "application/problem+json" and b"run 1" not in body
        assert is_replayed(post(server, Cookie="session=mine")[0])
    assert application.runs == 1


def test_a_body_that_is_on_the_disk_is_compared_and_read_whole(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    large = os.urandom(3_000_000)
    with serving() as server:
        assert post(server, body=large)[0].status == 201
        assert is_replayed(post(server, body=large)[0])
        assert post(server, body=large[:-1] + b".")[0].status == 422
    assert application.bodies == [large]


def test_of_many_at_once_one_runs(application: Application, serving: Callable[..., BridgeThread]) -> None:
    """While it does, the others are told to come back."""
    count = 12
    barrier = threading.Barrier(count)
    answers: list[tuple[http.client.HTTPResponse, bytes]] = []

    def client() -> None:
        barrier.wait(10)
        answers.append(post(server, path="/pay/waits"))

    with serving() as server:
        threads = [threading.Thread(target=client) for _ in range(count)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == count - 1, "all but one are refused")
        for response, _ in answers:
            assert response.status == 409 and response.headers["Retry-After"] == "1"
        application.go_on.set()
        for thread in threads:
            thread.join()
        assert (answers[-1][0].status, answers[-1][1]) == (201, b"run 1")
        assert is_replayed(post(server, path="/pay/waits")[0])
    assert application.runs == 1


def test_after_a_504_and_after_leaving_the_outcome_can_be_had(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    with serving(lanes=[Lane("own", "*", threads=4, deadline=0.2)]) as server:
        assert post(server, path="/pay/waits")[0].status == 504
        response, body = post(server, path="/pay/waits")
        assert response.status == 409 and "Repeat it later" in detail(body)
        application.go_on.set()
        wait_until(lambda: post(server, path="/pay/waits")[0].status == 201, "it has ended")
        application.go_on.clear()
    request = (
        b"POST /pay/waits HTTP/1.1\r\nHost: a\r\nIdempotency-Key: left\r\nContent-Length: 1\r\n"
        b"Connection: close\r\n\r\n1"
    )
    with serving() as server:
        client = server.send(request)
        assert application.entered.acquire(timeout=10) and application.entered.acquire(timeout=10)
        reset(client)
        wait_until(lambda: not server.bridge.exchanges.open, "its leaving is noticed")
        application.go_on.set()
        wait_until(lambda: b" 201 " in server.exchange(request), "its outcome is there")
    assert application.runs == 2


def test_an_exception_is_an_outcome(application: Application, serving: Callable[..., BridgeThread]) -> None:
    with serving() as server:
        first, _ = post(server, path="/pay/fails")
        assert first.status == 500 and not is_replayed(first)
        response, body = post(server, path="/pay/fails")
        assert response.status == 500 and is_replayed(response)
        assert f"the id {first.headers['X-Request-ID']}." in detail(body)
    assert application.runs == 1


def test_an_application_that_asks_for_a_repetition_gets_it(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    with serving() as server:
        answers = [post(server, path="/pay/later") for _ in range(3)]
    assert [response.status for response, _ in answers] == [503, 201, 201] and application.runs == 2
    assert [is_replayed(response) for response, _ in answers] == [False, False, True]


@pytest.mark.parametrize(("loses", "outcome"), [(False, "committed"), (True, "unknown")])
def test_it_does_not_get_it_once_it_may_have_changed_data(
    mariadb: dict[str, str], witness: Witness, make_pool: Callable[..., Any], path: Path, loses: bool, outcome: str
) -> None:
    """Nor the same answer again, which would ask for one more repetition."""
    pool = make_pool()

    def pay(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        try:
            with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("INSERT INTO notes VALUES ('paid')")
                if loses:
                    cursor.execute("SELECT CONNECTION_ID()")
                    witness.connection.cursor().execute("KILL %s", cursor.fetchone())
                connection.commit()
        except MySQLdb.OperationalError:
            pass
        start_response("503 Service Unavailable", [("Retry-After", "1")])
        return [b"later"]

    with BridgeThread(pay, pool=pool, idempotent_paths=["/pay"], idempotency_store=str(path)) as server:
        assert post(server)[0].status == 503
        response, body = post(server)
        assert response.status == 409 and "Retry-After" not in response.headers
        assert f"its changes are {outcome}. It is not run again." in detail(body)
    assert witness.notes == ([] if loses else ["paid"])


@pytest.mark.parametrize("target", ["/pay/cancellable", "/pay/cancellable-flask"])
def test_what_was_stopped_is_not_run_again(
    application: Application, serving: Callable[..., BridgeThread], target: str
) -> None:
    with serving() as server:
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(post(server, path=target)[0].status))
        thread.start()
        assert application.entered.acquire(timeout=10)
        [exchange] = server.bridge.exchanges.open
        server.loop.call_soon_threadsafe(server.bridge.exchanges.stop, exchange)
        thread.join()
        wait_until(lambda: exchange.worker_is_done, "its thread has come back")
        response, body = post(server, path=target)
        assert answers == [504] and response.status == 409 and "Retry-After" not in response.headers
        assert "it was stopped before it had answered" in detail(body) and "It is not run again" in detail(body)
    assert application.runs == 1


@pytest.mark.parametrize("target", ["/pay/large", "/pay/largely-written", "/pay/only-written"])
def test_an_answer_that_is_too_large_is_sent_but_not_repeated(
    application: Application, serving: Callable[..., BridgeThread], target: str
) -> None:
    with serving() as server:
        response, body = post(server, path=target)
        assert response.status == 200 and len(body.rstrip(b".")) == 1_500_000
        wait_until(lambda: not server.bridge.lanes[0].busy, "it has ended")
        response, body = post(server, path=target)
        assert response.status == 409 and "more than 1048576 bytes" in detail(body)
    assert application.runs == 1 and application.closed == (target == "/pay/large")


def test_a_large_answer_is_closed_once_when_its_client_leaves(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    with serving() as server:
        client = server.send(
            b"POST /pay/endless HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n"
        )
        received = 0
        # More than is held back before the answer is passed on.
        while received < 2_000_000:
            received += len(client.recv(65536))
        reset(client)
        wait_until(lambda: not server.bridge.lanes[0].busy, "it has ended")
        assert (application.runs, application.closed) == (1, 1)
        response, body = post(server, path="/pay/endless", body=b"", Host="a")
        assert response.status == 409 and "more than 1048576 bytes" in detail(body)


def test_an_error_page_takes_the_place_of_half_a_page(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    with serving() as server:
        for replayed in (False, True):
            response, body = post(server, path="/pay/half")
            assert (response.status, response.headers["X-Page"], body) == (500, "error", b"error page")
            assert is_replayed(response) == replayed
        # Unless that is on its way already: PEP 3333 has the exception raised again then.
        with pytest.raises(http.client.IncompleteRead):
            post(server, key="other", path="/pay/large-half")
    assert application.runs == 2


def test_outcomes_outlive_a_restart_and_their_age_ends_them(
    application: Application, serving: Callable[..., BridgeThread], path: Path
) -> None:
    with serving() as server:
        post(server, Host="site")
    assert path.stat().st_mode & 0o777 == 0o600
    with serving() as server:
        assert is_replayed(post(server, Host="site")[0])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE outcomes SET expires = unixepoch()")
    with serving() as server:
        response, body = post(server, Host="site")
        assert (response.status, body) == (201, b"run 2")
    assert application.runs == 2
