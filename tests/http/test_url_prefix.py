"""Applications below a URL prefix: SCRIPT_NAME, and the links that frameworks make of it."""

from __future__ import annotations

import logging
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests
from tornado.httputil import HTTPHeaders

from tests.support.front_proxies import nginx_with
from tests.support.inprocess import BridgeThread
from tests.support.processes import Frontend, free_port
from tests.worker.test_environ import environ_of, request
from threadbridge import Lane
from threadbridge.http.url_prefix import PrefixHeader, UrlPrefix, is_prefix

FORWARDED, SCRIPT = "X-Forwarded-Prefix", "X-Script-Name"


@pytest.mark.parametrize("prefix", ["", "/shop", "/a/b", "/~x/v1.2", "/a" * 128])
def test_prefixes(prefix: str) -> None:
    assert is_prefix(prefix)


@pytest.mark.parametrize(
    "text",
    [
        *("/", "shop", "/shop/", "//evil.example", "/a//b", "/a/../b", "/..", "/.", "/a b", "/a?b", "/a#", "/%2e%2e"),
        *("/a\\b", "http://a/b", "/a\r\n", "/a" * 129),
    ],
)
def test_texts_that_are_no_prefix(text: str) -> None:
    assert not is_prefix(text)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/shop/orders", ("/shop", "/orders")),
        ("/shop/", ("/shop", "/")),
        ("/shop", ("/shop", "")),
        # The proxy has removed it.
        ("/orders", ("/shop", "/orders")),
        ("/shopping", ("/shop", "/shopping")),
        ("/", ("/shop", "/")),
    ],
)
def test_the_prefix_is_removed_where_it_stands(path: str, expected: tuple[str, str]) -> None:
    assert UrlPrefix("/shop", "none").split(path, HTTPHeaders(), is_trusted=False) == expected
    named = HTTPHeaders({SCRIPT: "/shop"})
    assert UrlPrefix("", "x-script-name").split(path, named, is_trusted=True) == expected


def test_a_proxy_that_names_a_forwarded_prefix_has_removed_it() -> None:
    headers = HTTPHeaders({FORWARDED: "/shop"})
    assert UrlPrefix("", "x-forwarded-prefix").split("/shop/1", headers, is_trusted=True) == ("/shop", "/shop/1")


@pytest.mark.parametrize(
    ("header", "lines", "is_trusted", "expected"),
    [
        ("x-forwarded-prefix", {FORWARDED: "/new/"}, True, "/new"),
        # The last is the trusted proxy's.
        ("x-forwarded-prefix", {FORWARDED: "/evil, /new"}, True, "/new"),
        ("x-forwarded-prefix", {FORWARDED: "/"}, True, ""),
        ("x-forwarded-prefix", {FORWARDED: "/new"}, False, "/own"),
        ("x-forwarded-prefix", {SCRIPT: "/new"}, True, "/own"),
        ("x-script-name", {SCRIPT: "/new"}, True, "/new"),
        ("x-script-name", {FORWARDED: "/new"}, True, "/own"),
        ("none", {FORWARDED: "/new", SCRIPT: "/new"}, True, "/own"),
        ("x-script-name", {SCRIPT: "//evil.example"}, True, "/own"),
    ],
)
def test_which_prefix_counts(header: PrefixHeader, lines: dict[str, str], is_trusted: bool, expected: str) -> None:
    assert UrlPrefix("/own", header).split("/x", HTTPHeaders(lines), is_trusted)[0] == expected


def test_an_unusable_prefix_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    headers = HTTPHeaders({SCRIPT: "//evil.example"})
    UrlPrefix("", "x-script-name").split("/", headers, is_trusted=True)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "ignored a proxy's X-Script-Name, which is not a path such as /shop: '//evil.example'"


def test_the_environ_has_both_parts() -> None:
    shown = environ_of(request("GET /shop/a%20b?x HTTP/1.1"), root_path="/shop")
    assert (shown["SCRIPT_NAME"], shown["PATH_INFO"], shown["REQUEST_URI"]) == ("/shop", "/a b", "/shop/a%20b?x")


def test_lanes_are_chosen_by_the_application_s_part_of_the_path() -> None:
    names = []

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        names.append(environ["threadbridge.request"].lane.name)
        start_response("200 OK", [])
        return []

    lanes = [Lane("reports", "/reports/*", threads=1)]
    with BridgeThread(application, threads=1, root_path="/shop", lanes=lanes) as server:
        server.exchange(request("GET /shop/reports/1 HTTP/1.1"))
        server.exchange(request("GET /shop/orders/1 HTTP/1.1"))
    assert names == ["reports", "default"]


def test_a_header_needs_trust() -> None:
    with pytest.raises(ValueError, match="prefix_header needs xheaders"):
        environ_of(request("GET / HTTP/1.1"), prefix_header="x-script-name")


FLASK = """
from flask import Flask, redirect, request, url_for

app = Flask(__name__)

@app.route("/")
def index():
    return redirect(url_for("order", number=1))

@app.route("/orders/<int:number>")
def order(number):
    return f"{request.url} {url_for('static', filename='a.css')} {url_for('order', number=2, _external=True)}"
"""

DJANGO = """
import django
from django.conf import settings

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="x", ALLOWED_HOSTS=["*"], STATIC_URL="static/", INSTALLED_APPS=[])
django.setup()

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.shortcuts import redirect
from django.templatetags.static import static
from django.urls import path, reverse

def order(request, number):
    other = request.build_absolute_uri(reverse("order", args=[2]))
    return HttpResponse(f"{request.build_absolute_uri()} {static('a.css')} {other}")

urlpatterns = [
    path("", lambda request: redirect("order", number=1)),
    path("orders/<int:number>", order, name="order"),
]
app = get_wsgi_application()
"""

# How nginx passes requests on below /shop/: with the prefix, without it, and with a header that names it.
KEEPS = "proxy_pass http://127.0.0.1:{port};"
REMOVES = "proxy_pass http://127.0.0.1:{port}/;"
NAMES = REMOVES + "proxy_set_header X-Forwarded-Prefix /shop;"
NAMES_TO_SCRIPTS = KEEPS + "proxy_set_header X-Script-Name /shop;"


OPTIONS = {
    KEEPS: "--root_path=/shop",
    REMOVES: "--root_path=/shop",
    NAMES: "--prefix_header=x-forwarded-prefix",
    NAMES_TO_SCRIPTS: "--prefix_header=x-script-name",
}


@pytest.mark.parametrize(
    ("application", "ways"),
    [(FLASK, [KEEPS, REMOVES, NAMES_TO_SCRIPTS]), (DJANGO, [KEEPS, NAMES])],
    ids=["flask", "django"],
)
def test_links_are_right_behind_nginx(tmp_path: Path, application: str, ways: list[str]) -> None:
    (tmp_path / "prefixed.py").write_text(application)
    command = ("-m", "threadbridge", "prefixed:app", "--pool=none", "--threads=2", "--port={port}", "--xheaders")
    for number, way in enumerate(ways):
        port, directory = free_port(), tmp_path / str(number)
        directory.mkdir()
        with Frontend((*command, OPTIONS[way]), cwd=tmp_path) as server:
            location = f"location /shop/ {{ {way.format(port=server.port)} proxy_set_header Host $http_host; }}"
            with nginx_with(directory, port, f"http {{ server {{ listen 127.0.0.1:{port}; {location} }} }}"):
                site = f"http://127.0.0.1:{port}/shop/"
                answer = requests.get(site, timeout=30, headers={"Accept": "text/plain"})
                assert answer.url == f"{site}orders/1", way
                assert answer.text == f"{site}orders/1 /shop/static/a.css {site}orders/2", way
