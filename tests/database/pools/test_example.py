"""The example with Flask and psycopg_pool."""

from __future__ import annotations

import json
import runpy

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.postgresql import Witness
from tests.support.processes import ROOT
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard


def test_a_client_that_leaves_takes_its_query_and_its_order_with_it(postgresql_witness: Witness) -> None:
    example = runpy.run_path(str(ROOT / "docs/examples/flask_psycopg.py"))
    guard = PsycopgPoolGuard(example["pool"])
    with BridgeThread(example["application"], threads=2) as server:
        client = server.send(b"GET /orders/60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: postgresql_witness.running == ["SELECT pg_sleep($1)"], "the query runs")
        client.close()
        wait_until(lambda: postgresql_witness.running == [], "the query is stopped")
        wait_until(lambda: guard.in_use == 0, "its connection is back")
        assert json.loads(server.request(path="/orders")[1]) == []
        assert server.request(path="/orders/0")[1] == b"ordered\n"
        assert json.loads(server.request(path="/orders")[1]) == ["coffee"]
    guard.close()
    example["pool"].close()
