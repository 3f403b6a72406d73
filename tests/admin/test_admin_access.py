"""Who may use the operators' port: host names, pages of other sites, the token, sessions, proxies."""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from http.cookies import SimpleCookie
from itertools import count, cycle
from pathlib import Path

import pytest
import requests
from tornado.web import create_signed_value

from tests.support.admin_site import FROM_PAGE, Site, write_token
from tests.support.inprocess import wait_until
from tests.support.site_process import Process
from threadbridge.admin.access import Access
from threadbridge.admin.authorization import SESSION
from threadbridge.admin.throttle import FREE_MISTAKES, MISTAKES_AT_ONCE, Throttle

TOKEN = "correct horse battery staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def quiet_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A frontend shared by the tests that change nothing."""
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.mark.parametrize(
    "host", ["evil.example.com", "evil.example.com:9000", "127.0.0.1.evil.example", "", "[", "10.0.0.1"]
)
def test_unknown_host_headers_are_refused(quiet_site: Site, host: str) -> None:
    for path in ("/", "/requests.json", "/healthz", "/events", "/nothing"):
        refused = quiet_site.admin(path, headers={"Host": host})
        assert (refused.status_code, "unknown Host" in refused.text) == (421, True), path
    stop = quiet_site.admin("/requests/1-1/cancel", "POST", headers={**FROM_PAGE, "Host": host})
    assert stop.status_code == 421


def test_probes_without_a_host_header_are_answered(quiet_site: Site) -> None:
    """As HAProxy's checks are, which speak HTTP/1.0."""
    with socket.create_connection(("127.0.0.1", quiet_site.admin_port), timeout=30) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:1", "[::1]:9000", "127.9.9.9"])
def test_its_own_host_names_are_accepted(quiet_site: Site, host: str) -> None:
    assert quiet_site.admin("/healthz", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_cannot_stop_requests(site: Site) -> None:
    with ExitStack() as stack:
        site.occupy(stack, "one")
        [row] = site.document()["requests"]
        path = f"/requests/{row['key']}/cancel"
        # What a form on another site can send, and what its script could send if browsers let it.
        assert site.admin(path, "POST").status_code == 403
        foreign = {**FROM_PAGE, "Origin": "http://evil.example.com"}
        assert site.admin(path, "POST", headers=foreign).status_code == 403
        assert site.admin(path, "POST", headers={**FROM_PAGE, "Origin": "null"}).status_code == 403
        assert "Access-Control-Allow-Origin" not in site.admin(path, "OPTIONS", headers=foreign).headers
        assert [row["state"] for row in site.document()["requests"]] == ["running"]
        own = {**FROM_PAGE, "Origin": f"http://127.0.0.1:{site.admin_port}"}
        assert site.admin(path, "POST", headers=own).status_code == 200
        site.finish("one")


def test_the_page_loads_nothing_from_other_hosts_and_cannot_be_framed(quiet_site: Site) -> None:
    page = quiet_site.admin("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Cache-Control"] == "no-store"
    assert "://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert (
        quiet_site.admin("/static/page.js")
        .headers["Content-Type"]
        .startswith(("text/javascript", "application/javascript"))
    )
    assert quiet_site.admin("/static/../server.py").status_code == 404
    for path in ("%2e%2e/server.py", "%00", "page.js%00", ""):
        assert quiet_site.admin(f"/static/{path}").status_code == 404, path


def test_the_application_and_the_operators_have_separate_ports(quiet_site: Site) -> None:
    assert quiet_site.admin("/slow").status_code == 404
    assert requests.get(f"{quiet_site.url}/requests.json", timeout=20).text == f"http {quiet_site.process.pid}"


# The token.


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    write_token(path, TOKEN + "\n")
    return path


def test_clients_must_present_the_token(tmp_path: Path, token_file: Path) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}") as site:
        for path in ("/requests.json", "/events", "/local/processes.json"):
            refused = site.admin(path)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert site.admin(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert site.admin("/requests/1-1/cancel", "POST", headers=FROM_PAGE).status_code == 401
        assert site.admin("/requests.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        # Health checks need no token.
        assert site.admin("/healthz").status_code == 200
        form = site.admin("/")
        assert (form.status_code, 'type="password"' in form.text) == (401, True)

        wrong = site.admin("/login", "POST", data={"token": "wrong"})
        assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (303, False)
        right = site.admin("/login", "POST", data={"token": TOKEN})
        assert (right.status_code, right.headers["Location"]) == (303, "/")
        cookie = right.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        [(name, value)] = right.cookies.items()
        assert site.admin("/requests.json", cookies={name: value}).status_code == 200
        for forged in (value[:-1], value.replace("|1:0|", "|1:1|"), value + "0", "operator", ""):
            assert forged != value
            assert site.admin("/requests.json", cookies={name: forged}).status_code == 401, forged
        assert TOKEN not in site.output()


def test_a_session_ends_after_twelve_hours_and_holds_in_all_processes(tmp_path: Path, token_file: Path) -> None:
    secret = Access("127.0.0.1", str(token_file)).cookie_secret
    with Site(tmp_path, f"--admin_token_file={token_file}", "--processes=2") as site:
        login = site.admin("/login", "POST", data={"token": TOKEN})
        [(name, cookie)] = SimpleCookie(login.headers["Set-Cookie"]).items()
        assert abs(parsedate_to_datetime(cookie["expires"]).timestamp() - time.time() - 12 * 3600) < 60
        wait_until(lambda: len(site.admin("/threads", headers=BEARER).text.split("\nProcess ")) == 2, "both answer")
        # Each connection may reach either process.
        session = {name: cookie.value}
        assert [site.admin("/requests.json", cookies=session).status_code for _ in range(20)] == [200] * 20

        def made(hours: float) -> str:
            """A session that began so many hours ago."""
            then = time.time() - hours * 3600
            return create_signed_value(secret, name, SESSION, clock=lambda: then).decode()

        statuses = [site.admin("/requests.json", cookies={name: made(hours)}).status_code for hours in (11.9, 12)]
        assert statuses == [200, 401]


def test_sessions_end_with_the_token(tmp_path: Path, token_file: Path) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}") as site:
        cookies = site.admin("/login", "POST", data={"token": TOKEN}).cookies
        port = site.admin_port
    for token, status in ((TOKEN, 200), ("another token than before", 401)):
        write_token(token_file, token)
        with Site(tmp_path, f"--admin_token_file={token_file}", admin_port=port) as site:
            assert site.admin("/requests.json", cookies=cookies).status_code == status


def test_other_addresses_than_loopback_need_a_token(tmp_path: Path, token_file: Path) -> None:
    for address in ("0.0.0.0", "", "::"):
        refused = Site(tmp_path, f"--admin_address={address}").run_to_its_end()
        assert refused.returncode == 2
        assert "is not loopback: give admin_token_file" in refused.stderr
        assert refused.stderr.count("\n") == 1
    with Site(tmp_path, "--admin_address=0.0.0.0", f"--admin_token_file={token_file}") as site:
        # The address at which the connection arrived is accepted as a host, others are not.
        assert site.admin("/healthz").status_code == 200
        assert site.admin("/healthz", headers={"Host": "192.0.2.1"}).status_code == 421


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (None, 0, "No such file or directory"),
        ("short", 0o600, "the token has 5 characters"),
        ("abab" * 8, 0o600, "the token has only 2 different characters"),
        ("ü" * 16, 0o600, "expected ASCII"),
        (TOKEN, 0o604, "other users may read or change it; chmod 600 "),
        (TOKEN, 0o620, "other users may read or change it; chmod 600 "),
    ],
)
def test_an_unusable_token_file_is_refused(tmp_path: Path, content: str | None, mode: int, complaint: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ValueError, match=re.escape(f"admin_token_file {path}: {complaint}")) as refused:
        Access("127.0.0.1", str(path))
    assert content is None or content not in str(refused.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_group_may_read_the_token_only_if_root_lets_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o440)
    for owner, group, is_private in ((0, 10001, True), (10001, 0, True), (10001, 10001, False)):
        os.chown(path, owner, group)
        if is_private:
            Access("127.0.0.1", str(path))
        else:
            with pytest.raises(ValueError, match="other users may read or change it"):
                Access("127.0.0.1", str(path))


def test_an_unusable_token_file_is_reported_in_one_line(tmp_path: Path) -> None:
    refused = Site(tmp_path, f"--admin_token_file={tmp_path / 'token'}").run_to_its_end()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"admin_token_file {tmp_path / 'token'}: No such file or directory" in refused.stderr


def test_wrong_tokens_are_slowed_down_and_logged(tmp_path: Path, token_file: Path) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}") as site, requests.Session() as session:
        address = f"http://127.0.0.1:{site.admin_port}"
        [(name, value)] = site.admin("/login", "POST", data={"token": TOKEN}).cookies.items()
        statuses: Counter[int] = Counter()
        for _ in range(100):
            guess = session.post(f"{address}/login", data={"token": "wrong"}, allow_redirects=False, timeout=20)
            statuses[guess.status_code] += 1
            headers = {"Authorization": "Bearer wrong"}
            statuses[session.get(f"{address}/requests.json", headers=headers, timeout=20).status_code] += 1
        checked = statuses[303] + statuses[401]
        assert FREE_MISTAKES < checked < FREE_MISTAKES + 6 and checked + statuses[429] == 200, statuses
        # Even the right token is not checked now.
        slowed = site.admin("/login", "POST", data={"token": TOKEN})
        assert (slowed.status_code, 0 < int(slowed.headers["Retry-After"]) <= 60) == (429, True)
        # Browsers that are logged in are not affected.
        assert site.admin("/requests.json", cookies={name: value}).status_code == 200
        log = site.output()
        assert "operators' port: a login from 127.0.0.1" in log
        assert log.count("operators' port: a wrong token from 127.0.0.1, at the login") == 1
        # Including the lines with the address and the version of Python.
        assert len(log.splitlines()) < 10, log


def test_guesses_are_limited_per_client_and_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def guesses(addresses: Iterator[str], seconds: int) -> int:
        """How many guesses are checked if each client tries as often as it may."""
        nonlocal now
        throttle, until, checked = Throttle(), now + seconds, 0
        while now < until:
            address = next(addresses)
            if delay := throttle.delay(address):
                now += delay
            else:
                throttle.wrong(address, "in a test")
                checked += 1
        return checked

    one = guesses(cycle(["192.0.2.1"]), 3600)
    assert FREE_MISTAKES + 3600 / 60 < one < FREE_MISTAKES + 3600 / 60 + 7
    network = guesses((f"2001:db8::{number:x}" for number in count()), 3600)
    assert network == one
    everybody = guesses((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in count()), 3600)
    assert everybody <= 3600 + MISTAKES_AT_ONCE


def test_login_works_behind_an_https_proxy_under_admin_names(tmp_path: Path, token_file: Path) -> None:
    with Site(
        tmp_path, f"--admin_token_file={token_file}", "--admin_host=ops.example.com", "--admin_names=shop.svc"
    ) as site:
        assert site.admin("/healthz", headers={"Host": "shop.svc:9000"}).status_code == 200
        browser = {"Host": "ops.example.com", "Origin": "https://ops.example.com"}
        proxied = {**browser, "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
        answered = site.admin("/login", "POST", data={"token": TOKEN}, headers=proxied)
        assert (answered.status_code, "Secure" in answered.headers["Set-Cookie"]) == (303, True)
        assert "operators' port: a login from 192.0.2.7, by the proxy 127.0.0.1" in site.output()
        [(name, value)] = answered.cookies.items()
        # As the proxy forwards it.
        cookie = {"Cookie": f"{name}={value}"}
        assert site.admin("/requests.json", headers={**proxied, **cookie}).status_code == 200
        stop = site.admin("/requests/1-1/cancel", "POST", headers={**FROM_PAGE, **proxied, **cookie})
        assert stop.status_code == 404
        for foreign in (
            {**proxied, "Origin": "http://ops.example.com"},
            {**proxied, "Origin": "https://evil.example.com"},
            {**proxied, "Host": "evil.example.com", "Origin": "https://evil.example.com"},
            browser,
        ):
            assert site.admin("/login", "POST", data={"token": TOKEN}, headers=foreign).status_code in (403, 421)
        direct = site.admin("/login", "POST", data={"token": TOKEN})
        assert (direct.status_code, "Secure" in direct.headers["Set-Cookie"]) == (303, False)


@pytest.mark.parametrize("name", ["ops.example.com:8443", "https://ops.example.com", "a b"])
def test_a_malformed_admin_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"admin_names: .*: expected a host name without a port"):
        Access("127.0.0.1", None, [name])


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        refused = Process(tmp_path, "--port={port}", f"--admin_port={port}").run_to_its_end()
    assert refused.returncode == 1
    assert refused.stderr == f"python -m threadbridge: cannot listen on 127.0.0.1:{port}: Address already in use\n"
