"""How frontends prove to each other that they know the token: each proof is good for one request."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests
from tornado.web import HTTPError

from tests.support.admin_site import Site, write_token
from threadbridge.admin.proof import WINDOW, Proof

TOKEN = "a token that both of them have"


def test_a_proof_is_valid_for_one_time_host_and_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    write_token(token, TOKEN)
    with Site(tmp_path, f"--admin_token_file={token}") as site:
        host, path = f"127.0.0.1:{site.admin_port}", "/local/processes.json"
        proof = Proof(TOKEN)

        def ask(authorization: str, path: str = path) -> requests.Response:
            return site.admin(path, headers={"Authorization": authorization})

        number, authorization = proof.of_request("GET", host, path)
        answered = ask(authorization)
        assert answered.status_code == 200
        found = answered.headers["X-Threadbridge-Proof"]
        assert found == proof.of_answer(number, answered.content) != proof.of_answer(number, answered.content + b" ")
        assert found != Proof("another token").of_answer(number, answered.content)
        again = ask(authorization)
        assert (again.status_code, "the request is a copy" in again.text) == (401, True)
        for other in (
            Proof("another token").of_request("GET", host, path),
            proof.of_request("GET", host, "/local/requests/1-1/cancel"),
            proof.of_request("POST", host, path),
            proof.of_request("GET", "127.0.0.1:1", path),
            ("", "Threadbridge-Peer x"),
        ):
            assert ask(other[1]).status_code == 401
        # It gives access to nothing but the frontends' addresses.
        _, authorization = proof.of_request("GET", host, "/requests.json")
        assert ask(authorization, "/requests.json").status_code == 401


def test_nonces_are_forgotten_once_they_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    proof = Proof(TOKEN)
    request = ("GET", "a:1", "/")
    for late in (0, WINDOW, WINDOW + 1):
        _, authorization = proof.of_request(*request)
        now += late
        if late > WINDOW:
            with pytest.raises(HTTPError, match="the hosts' clocks differ"):
                proof.check_request(authorization, *request)
        else:
            proof.check_request(authorization, *request)
            with pytest.raises(HTTPError, match="the request is a copy"):
                proof.check_request(authorization, *request)
    now += 2 * WINDOW
    proof.check_request(proof.of_request(*request)[1], *request)
    assert len(proof._used) == 1
