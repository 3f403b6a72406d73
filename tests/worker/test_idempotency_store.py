"""The store of outcomes: its bounds, the shares of clients, and files of earlier versions."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.idempotent import Application, begin, detail, is_replayed, opened, outcome, post, rows
from tests.support.inprocess import BridgeThread
from threadbridge import Bridge
from threadbridge.worker.idempotency_store import Answer, IdempotencyStore, NoRoom, owner_of


def test_what_is_kept_is_bounded_and_no_key_is_lost(path: Path) -> None:
    """The oldest answers go first; when keys alone fill it, new ones are refused, and old ones are still known."""
    answer = Answer("200 OK", [("A", "b")], b"x" * 10_000)
    with opened(path, size=100 * 1024) as store:
        for number in range(50):
            assert begin(store, b"%d" % number) is None
            store.end(b"%d" % number, answer)
            [(total, counted)] = rows(path, "SELECT (SELECT bytes FROM total), (SELECT SUM(size) FROM outcomes)")
            assert total == counted <= 100 * 1024
        assert outcome(store, b"49") == answer and "dropped" in str(outcome(store, b"0"))
        number = 50
        with pytest.raises(NoRoom):
            for number in range(50, 1000):
                assert begin(store, b"%d" % number, f"client {number}") is None
                store.end(b"%d" % number, answer)
        assert number == 100
        assert begin(store, b"1") is not None
        # It is over when they expire.
        rows(path, "UPDATE outcomes SET expires = 0")
        assert begin(store, b"next") is None


def fill(store: IdempotencyStore, client: str) -> int:
    """How many keys a client may add."""
    for number in range(1000):
        try:
            assert begin(store, f"{client} {number}".encode(), client) is None
        except NoRoom:
            return number
        store.end(f"{client} {number}".encode(), "")
    raise AssertionError("there is no end")


def counts(path: Path) -> tuple[int, list[int]]:
    """How many keys there are, and how many of each client, as they are counted."""
    [(total, found)] = rows(path, "SELECT (SELECT keys FROM total), (SELECT COUNT(*) FROM outcomes)")
    assert total == found
    each = [number for (number,) in rows(path, "SELECT keys FROM clients ORDER BY keys")]
    assert each == [number for (number,) in rows(path, "SELECT COUNT(*) FROM holders GROUP BY client ORDER BY 1")]
    return total, each


def test_a_client_that_has_its_share_leaves_room_for_others(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path, size=100 * 1024) as store:
        assert [fill(store, client) for client in ("one", "two", "three")] == [50, 25, 13]
        assert counts(path) == (88, [13, 25, 50])
        [line] = [record.getMessage() for record in caplog.records]
        assert "request id was not run: its client has as many keys in the idempotency store" in line
        # It is no failure of the store, of which the next request would have to tell the end.
        assert begin(store, b"of another", "four") is None and len(caplog.records) == 1
        # What has run is known, and is not run again.
        assert outcome(store, b"one 0") == ""
        # There is room again when keys expire, or need not be known.
        rows(path, "UPDATE outcomes SET expires = 0 WHERE CAST(key AS TEXT) LIKE 'two %'")
        assert fill(store, "two") == 18
        store.end(b"of another", None)
        assert counts(path) == (81, [13, 18, 50])
        rows(path, "UPDATE outcomes SET expires = 0")
        for number in range(3):
            assert begin(store, b"%d" % number, "five") is None
        assert counts(path) == (3, [3])


def test_a_request_that_is_refused_removes_what_has_expired(path: Path) -> None:
    """Or the next one would have to do it again, in vain."""
    with opened(path, size=100 * 1024) as store:
        assert [fill(store, "one"), fill(store, "two")] == [50, 25]
        rows(path, "UPDATE outcomes SET expires = 0 WHERE CAST(key AS TEXT) IN ('two 0', 'two 1')")
        rows(path, "UPDATE holders SET client = (SELECT client FROM clients WHERE keys = 50)")
        rows(path, "DELETE FROM clients WHERE keys = 25")
        rows(path, "UPDATE clients SET keys = 75")
        with pytest.raises(NoRoom):
            begin(store, b"more", "one")
        assert counts(path) == (73, [73])


def test_a_client_whose_keys_have_expired_need_not_wait_until_others_have_removed_them(path: Path) -> None:
    with opened(path, size=300 * 1024) as store:
        assert [fill(store, str(number)) for number in range(5)] == [150, 75, 38, 19, 9]
        rows(path, "UPDATE outcomes SET expires = 0 WHERE CAST(key AS TEXT) LIKE '0 %'")
        assert begin(store, b"next", "0") is None


# What versions without shares have made; one may be at work while another begins, in an update of several frontends.
EARLIER = """
CREATE TABLE outcomes (
    key BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, owner TEXT NOT NULL, expires REAL NOT NULL, status TEXT,
    headers TEXT, body BLOB, request_id TEXT NOT NULL, note TEXT NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX outcomes_by_expiry ON outcomes (expires);
CREATE INDEX outcomes_with_answers ON outcomes (expires) WHERE status IS NOT NULL;
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER added AFTER INSERT ON outcomes BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER changed AFTER UPDATE OF size ON outcomes BEGIN
    UPDATE total SET bytes = bytes + NEW.size - OLD.size;
END;
CREATE TRIGGER removed AFTER DELETE ON outcomes BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def test_the_file_of_an_earlier_version_can_be_used_also_while_that_runs(path: Path) -> None:
    def begin_earlier(key: bytes) -> None:
        owner = owner_of(os.getpid())
        values = (key, b"f", owner, time.time() + 60, "id", 1024)
        earlier.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?, NULL, NULL, NULL, ?, '', ?)", values)

    with closing(sqlite3.connect(path, isolation_level=None)) as earlier:
        earlier.executescript(EARLIER)
        path.chmod(0o600)
        begin_earlier(b"before")
        with opened(path, size=100 * 1024) as store:
            assert begin(store, b"new") is None
            begin_earlier(b"beside")
            for key in (b"before", b"beside"):
                assert outcome(store, key) is None
            earlier.execute("UPDATE outcomes SET owner = '', expires = ?, note = 'by the earlier'", (time.time() + 60,))
            assert outcome(store, b"new") == "by the earlier"
            # Those of the earlier version belong to nobody, but take their places.
            assert counts(path) == (3, [1]) and fill(store, "client") == 48
            earlier.execute("DELETE FROM outcomes WHERE key = ?", (b"before",))
            earlier.execute("DELETE FROM outcomes WHERE key = ?", (b"new",))
            assert counts(path) == (49, [48])
        # It has been made ready once.
        with opened(path) as store:
            assert begin(store, b"again", "other") is None and counts(path) == (50, [1, 48])


def test_a_client_beyond_its_share_is_told_so_and_others_are_served(
    application: Application, serving: Callable[..., BridgeThread]
) -> None:
    with serving(idempotency_size=64 * 1024, xheaders=True) as server:

        def pay(address: str, key: int) -> int:
            return post(server, key=str(key), X_Real_IP=address)[0].status

        # A network of 64 bits is one client.
        assert {pay(f"2001:db8::{number:x}", number) for number in range(32)} == {201}
        response, body = post(server, key="32", X_Real_IP="2001:db8::ffff")
        assert response.status == 503 and response.headers["Retry-After"] == "60" and application.runs == 32
        assert "The request was not run" in detail(body) and "keys of this client" in detail(body)
        assert is_replayed(post(server, key="0", X_Real_IP="2001:db8::")[0])
        assert pay("2001:db8:0:1::1", 32) == pay("192.0.2.1", 33) == 201
        assert post(server, key=None, X_Real_IP="2001:db8::")[0].status == 201, "without a key nothing is limited"


def test_what_runs_does_not_expire(path: Path) -> None:
    with opened(path) as store:
        assert begin(store, b"k") is None
        rows(path, "UPDATE outcomes SET expires = 0")
        assert begin(store, b"other") is None
        assert outcome(store, b"k") is None


def test_the_owner_is_a_process_and_not_its_number(path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        with opened(path) as store:
            begin(store, b"k")
            owner = owner_of(other.pid)
            rows(path, "UPDATE outcomes SET owner = ?", owner)
            assert outcome(store, b"k") is None
            rows(path, "UPDATE outcomes SET owner = ?", f"{owner}0")
            assert "its process ended" in str(outcome(store, b"k"))
        other.kill()


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"idempotent_paths": ["/pay"]}, "give both"),
        ({"idempotency_store": "/tmp/a"}, "give both"),
        ({"idempotent_paths": ["pay"], "idempotency_store": "a"}, "matches no path"),
        ({"idempotent_paths": ["/pay"], "idempotency_store": "/nowhere/a"}, "expected a file in a directory"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Bridge(Application(), threads=1, **parameters)
