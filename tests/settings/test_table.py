"""The table of settings: which source counts, what keywords are checked for, and the page about them."""

from __future__ import annotations

import runpy
from typing import Any, cast
from wsgiref.simple_server import demo_app

import pytest
from tornado.log import define_logging_options
from tornado.options import OptionParser

from tests.support.processes import ROOT
from threadbridge import Bridge, Lane, serve
from threadbridge.settings.resolving import resolve
from threadbridge.settings.table import (
    ALL,
    BridgeSettings,
    CommandLineSettings,
    Settings,
    from_keywords,
    grace_period,
)
from threadbridge.settings.values import ImportPath


def test_an_empty_list_is_not_the_program_s_default() -> None:
    defaults: CommandLineSettings = {"lanes": [Lane("a", threads=1)]}
    assert resolve({}, {}, defaults).values["lanes"] == defaults["lanes"]
    assert resolve({"lanes": [""]}, {}, defaults).values["lanes"] == []


def test_lanes_given_as_texts_have_the_queue_of_the_other_lanes() -> None:
    settings = resolve({"lanes": ["a:/a:1", "b:/b:2"], "queue": ["7"]}, {"THREADBRIDGE_QUEUE": "8"}, {}).values
    assert [(lane.name, lane.pattern, lane.threads, lane.queue) for lane in settings["lanes"]] == [
        ("a", "/a", 1, 7),
        ("b", "/b", 2, 7),
    ]


def test_lanes_given_as_texts_may_have_other_hosts() -> None:
    text = "a:/a/*:http://r1:8000, https://r2:443,b:/b:2"
    lanes = resolve({"lanes": [text, "c:/c:http://[::1]:9000"]}, {}, {}).values["lanes"]
    assert [(lane.name, lane.pattern, lane.threads, [*map(str, lane.upstream)]) for lane in lanes] == [
        ("a", "/a/*", 0, ["http://r1:8000", "https://r2:443"]),
        ("b", "/b", 2, []),
        ("c", "/c", 0, ["http://[::1]:9000"]),
    ]
    assert ALL["lanes"].show(lanes) == "a:/a/*:http://r1:8000,https://r2:443,b:/b:2,c:/c:http://[::1]:9000"
    for wrong in ("a:/a:http://", "a:/a:http://r1/path", "http://r1:8000", "a:/a:1,http://r1"):
        with pytest.raises(ValueError, match="expected"):
            resolve({"lanes": [wrong]}, {}, {})


def test_lanes_given_as_texts_may_have_the_pool_of_a_replica() -> None:
    text = "a:/a/*:4:shop:db.replica,b:/b:2,c::3:django:replica"
    lanes = resolve({"lanes": [text]}, {}, {}).values["lanes"]
    assert [(lane.name, lane.pattern, lane.threads, lane.pool) for lane in lanes] == [
        ("a", "/a/*", 4, "shop:db.replica"),
        ("b", "/b", 2, None),
        ("c", "", 3, "django:replica"),
    ]
    # One is loaded, the other is a word.
    assert [type(lane.pool) for lane in lanes] == [ImportPath, type(None), str]
    assert ALL["lanes"].show(lanes) == text
    assert not lanes[2].matches("") and not lanes[2].matches("/")
    for wrong in ("a:/a:4:shop", "a:/a:shop:replica", "a:/a:4:shop:", "a:/a:4:shop:db-replica", "c::3"):
        with pytest.raises(ValueError):
            resolve({"lanes": [wrong]}, {}, {})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"replica_for": bool}, "replica_for needs a lane with a replica's pool"),
        ({"replica_for": bool, "schedule": "fair"}, "replica_for needs schedule=cost"),
        ({"replica_lag": 0}, "replica_lag=0: expected a number of seconds greater than 0"),
        ({"long_upstream": ["http://r1"], "schedule": "fair"}, "long_upstream needs schedule=cost"),
        ({"port": "8000"}, "port='8000': expected a number from 0 to 65535"),
        ({"port": True}, "port=True: expected a number from 0 to 65535"),
        ({"trusted_proxies": "10.0.0.1"}, "trusted_proxies='10.0.0.1': expected a list of texts"),
        ({"lanes": ["a:/a:1"]}, "lanes=['a:/a:1']: expected NAME:PATTERN:THREADS, such as"),
        ({"grace": -1}, "grace=-1: expected a number of seconds, 0 or more"),
        ({"unix_socket": "s", "port": 1}, "unix_socket and port: give one of them"),
    ],
)
def test_serve_checks_its_keywords(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        serve(lambda environ, start_response: [], **cast(Settings, {"threads": 1, **keywords}))
    assert str(raised.value).startswith(message)


def test_the_grace_period_is_longer_than_the_longest_deadline_unless_it_is_set() -> None:
    lanes = [Lane("reports", "/reports/*", threads=1, deadline=600), Lane("a", "/a", threads=1)]
    assert grace_period(from_keywords({})) == 190
    assert grace_period(from_keywords({"deadline": 30})) == 40
    assert grace_period(from_keywords({"lanes": lanes})) == 610
    assert grace_period(from_keywords({"lanes": lanes, "grace": 0})) == 0


def test_serve_knows_no_other_keyword() -> None:
    with pytest.raises(TypeError, match="there is no setting 'prot'"):
        serve(lambda environ, start_response: [], **cast(Settings, {"prot": 1}))


def test_defaults_of_the_program_are_combined_with_what_users_give() -> None:
    given = resolve({"certfile": ["cert.pem"]}, {}, {"keyfile": "key.pem"})
    assert (given.values["certfile"], given.values["keyfile"]) == ("cert.pem", "key.pem")
    with pytest.raises(ValueError, match="keyfile without certfile"):
        resolve({}, {}, {"keyfile": "key.pem"})
    with pytest.raises(ValueError, match="keyfile without certfile"):
        from_keywords({"keyfile": "key.pem"})


def test_a_bridge_takes_the_settings_that_are_its_own_and_no_other() -> None:
    with pytest.raises(TypeError, match="there is no setting 'port'"):
        Bridge(demo_app, **cast(BridgeSettings, {"threads": 1, "port": 80}))
    with pytest.raises(ValueError, match="queue='many': expected a number of at least 0"):
        Bridge(demo_app, **cast(BridgeSettings, {"threads": 1, "queue": "many"}))


def test_every_logging_option_of_tornado_is_there_with_its_default() -> None:
    tornado = OptionParser()
    before = set(tornado.as_dict())
    define_logging_options(tornado)
    options = {name: value for name, value in tornado.as_dict().items() if name not in before}
    assert len(options) >= 8
    assert {name: ALL[name].default for name in options} == options


def test_the_page_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / ".ci" / "settings_page.py"))
    page = script["PAGE"].read_text()
    assert page == script["with_tables"](page), "run: python .ci/settings_page.py"
