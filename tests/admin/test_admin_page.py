"""The operators' page in a real browser: real queries come and go, and are stopped from there."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.application.test_page import ARTEFACTS, DESKTOP, PHONE, running_browser, show_as, texts, wait_for
from tests.support.admin_site import SqlSite, answer, write_token
from tests.support.databases import Witness
from tests.support.inprocess import wait_until

# The browser reports each error status, the end of the server that it reads from, and how it likes forms.
EXPECTED = ("the server responded with a status of", "/events - Failed to load resource", "'recommendation'")
SLOW = (
    "SELECT c.name, SUM(l.amount) AS revenue, SLEEP(60) FROM (SELECT 'North' AS name, 1 AS id) c "
    "JOIN (SELECT 1 AS id, 2 AS amount) l USING (id) GROUP BY c.id ORDER BY revenue DESC"
)


@pytest.fixture(scope="module")
def started_browser() -> Iterator[Chrome]:
    with running_browser(javascript=True) as browser:
        yield browser


@pytest.fixture
def browser(started_browser: Chrome) -> Iterator[Chrome]:
    """After the test nothing may have been blocked or have failed in it."""
    show_as(started_browser, DESKTOP)
    started_browser.get_log("browser")  # type: ignore[no-untyped-call]
    yield started_browser
    complaints = started_browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in complaints if not any(text in str(entry) for text in EXPECTED)] == []
    started_browser.get("about:blank")


@pytest.fixture
def site(tmp_path: Path, mariadb: dict[str, str]) -> Iterator[SqlSite]:
    with SqlSite(tmp_path, mariadb) as site:
        yield site


def keep_screenshot(browser: Chrome, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(ARTEFACTS / f"admin-{name}.png"))


def numbers_of(witness: Witness, sql: str) -> list[int]:
    """The database's own numbers of the connections that run this."""
    found = witness.rows("SELECT id, info FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
    return [number for number, info in found if info is not None and sql in info]


def rows(browser: Chrome, state: str = "running") -> list[str]:
    return texts(browser, f'#rows tr[data-state="{state}"]:not(.leaving)')


def open_page(browser: Chrome, site: SqlSite) -> None:
    browser.get(site.page)
    wait_for(browser, lambda browser: texts(browser, "#live") == ["live"])


def test_rows_come_with_slow_queries_and_go_with_them(browser: Chrome, site: SqlSite, witness: Witness) -> None:
    open_page(browser, site)
    assert texts(browser, "#nothing:not([hidden])") != []
    with ExitStack() as stack:
        site.run(stack, SLOW)
        wait_for(browser, lambda browser: len(rows(browser)) == 1)
        site.run(stack, "SELECT 2, SLEEP(60)")
        site.run(stack, "SELECT 3, SLEEP(60)")
        site.run(stack, "SELECT 4, SLEEP(60)")
        wait_for(browser, lambda browser: (len(rows(browser)), len(rows(browser, "waiting"))) == (3, 1))
        # The longest first; each with its SQL and the database's own number for it.
        sql = texts(browser, "#rows .sql")
        assert sql[0] == SLOW and sql[1].startswith("SELECT 2") and sql[2].startswith("SELECT 3")
        threads = [text.partition("its thread ")[2].split(" ")[0] for text in texts(browser, "#rows .facts")[:3]]
        assert sorted(int(thread) for thread in threads) == sorted(numbers_of(witness, "SLEEP(60)"))
        assert texts(browser, "#lanes .full b") == ["pool"]
        assert texts(browser, "#running") == ["3"]
        keep_screenshot(browser, "slow-queries-desktop")
        show_as(browser, DESKTOP, "dark")
        keep_screenshot(browser, "slow-queries-desktop-dark")
    # Their clients have left.
    wait_for(browser, lambda browser: "499 abandoned" in texts(browser, "#rows .leaving .badge"))
    wait_for(browser, lambda browser: texts(browser, "#rows tr") == [])


def test_the_button_stops_the_query_that_hurts(browser: Chrome, site: SqlSite, witness: Witness) -> None:
    open_page(browser, site)
    with ExitStack() as stack:
        client = stack.enter_context(site.send(f"/sql?{quote('SELECT 1, SLEEP(60)')}"))
        wait_until(lambda: len(numbers_of(witness, "SELECT 1, SLEEP")) == 1, "the first runs")
        site.run(stack, "SELECT 2, SLEEP(60)")
        wait_for(browser, lambda browser: len(rows(browser)) == 2)
        button = browser.find_element(By.CSS_SELECTOR, "#rows tr .stop")
        button.click()
        # It asks back, in its place, and takes no for an answer.
        assert button.text == "Really stop?"
        button.send_keys(Keys.ESCAPE)
        assert button.text == "Stop"
        button.click()
        button.click()
        wait_for(browser, lambda browser: texts(browser, "#rows .leaving .badge") == ["504 expired"])
        assert texts(browser, "#rows .leaving .facts") == ["stopped by you"]
        keep_screenshot(browser, "stopped-desktop")
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        wait_until(lambda: not numbers_of(witness, "SELECT 1, SLEEP"), "the database has stopped it")
        # The other one goes on.
        assert len(numbers_of(witness, "SELECT 2, SLEEP")) == 1
        assert len(rows(browser)) == 1
        wait_for(browser, lambda browser: len(texts(browser, "#rows tr")) == 1)


def test_the_keyboard_is_enough(browser: Chrome, site: SqlSite, witness: Witness) -> None:
    with ExitStack() as stack:
        for number in (1, 2):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) == 2)
        first = texts(browser, "#rows .id")[0]
        tabs = 0
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        assert browser.switch_to.active_element.text == "To the requests"
        while "stop" not in (browser.switch_to.active_element.get_attribute("class") or "") and tabs < 10:
            browser.switch_to.active_element.send_keys(Keys.TAB)
            tabs += 1
        focused = browser.switch_to.active_element
        assert focused.accessible_name.startswith("Stop GET /sql?SELECT")
        focused.send_keys(Keys.ENTER)
        focused.send_keys(Keys.ENTER)
        wait_for(browser, lambda browser: texts(browser, "#rows .leaving .id") == [first])
        # The next one's button has the focus: it was not lost with the row.
        assert browser.switch_to.active_element.text == "Stop"
        wait_until(lambda: len(numbers_of(witness, "SLEEP(60)")) == 1, "one is stopped, one goes on")
        assert "stopped by you" in texts(browser, "#announcement")[0]


def test_a_long_queue_is_folded(browser: Chrome, site: SqlSite) -> None:
    with ExitStack() as stack:
        for number in range(15):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        open_page(browser, site)
        wait_for(browser, lambda browser: texts(browser, "#more:not([hidden])") == ["Show 4 more that wait"])
        wait_for(browser, lambda browser: (len(rows(browser)), len(rows(browser, "waiting"))) == (3, 8))
        browser.find_element(By.ID, "more").click()
        assert len(rows(browser, "waiting")) == 12
        browser.find_element(By.ID, "more").click()
        assert len(texts(browser, "#rows tr")) == 11


def test_hostile_texts_are_shown_and_nothing_else(browser: Chrome, site: SqlSite) -> None:
    script = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
    with ExitStack() as stack:
        sql = f"SELECT '{script.replace(chr(39), '')}', SLEEP(60)"
        stack.enter_context(site.send(f"/sql/<script>document.title='hacked'</script>\"'&amp;?{quote(sql)}"))
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) == 1)
        assert texts(browser, "#rows .sql") == [sql]
        assert texts(browser, "#rows .url")[0].startswith("/sql/<script>document.title='hacked'</script>\"'&amp;?")
        assert browser.find_elements(By.CSS_SELECTOR, "#rows script, #rows img") == []
        assert browser.title.startswith("1 running ")


def test_it_keeps_up_with_two_hundred_requests_a_second(browser: Chrome, site: SqlSite) -> None:
    open_page(browser, site)
    # The first of all was sent before.
    sent = 1

    def load() -> None:
        nonlocal sent
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        began = time.monotonic()
        while sent < 1200:
            # As many as should have been sent by now, whatever the machine was busy with.
            while sent < (time.monotonic() - began) * 200:
                connection.request("GET", "/sql?SELECT%201" if sent % 4 == 0 else "/quick")
                connection.getresponse().read()
                sent += 1
            threading.Event().wait(0.005)
        connection.close()

    loader = threading.Thread(target=load)
    loader.start()
    seen = set()
    while loader.is_alive():
        seen.add(texts(browser, "#rates-legend .done")[0])
        assert texts(browser, "#live") == ["live"]
        loader.join(0.2)
    # It went on while they came, and has counted each of them.
    assert len(seen) >= 4
    wait_for(browser, lambda browser: texts(browser, "#rates-legend .done") == [f"{sent:,} done"])
    assert browser.execute_script("return document.querySelectorAll('#timeline .run').length") > 20
    keep_screenshot(browser, "load-desktop")


def test_a_phone_never_scrolls_sideways(browser: Chrome, site: SqlSite) -> None:
    show_as(browser, PHONE)
    with ExitStack() as stack:
        site.run(stack, SLOW)
        site.run(stack, f"SELECT '{'x' * 400}', SLEEP(60)", path=f"/sql/{'long' * 100}")
        for number in range(4):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) >= 3 and len(rows(browser, "waiting")) >= 1)
        assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
        button = browser.find_element(By.CSS_SELECTOR, "#rows .stop")
        assert button.rect["height"] >= 44
        keep_screenshot(browser, "slow-queries-phone")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        show_as(browser, PHONE, "dark")
        keep_screenshot(browser, "slow-queries-phone-dark")


def test_a_server_that_is_gone_is_told(browser: Chrome, site: SqlSite) -> None:
    open_page(browser, site)
    site.process.kill()
    wait_for(browser, lambda browser: texts(browser, "#live") == ["no answer: what you see is old"])
    browser.get("about:blank")
    browser.get_log("browser")  # type: ignore[no-untyped-call]


def test_the_token_is_asked_for_once(browser: Chrome, tmp_path: Path, mariadb: dict[str, str]) -> None:
    write_token(tmp_path / "token", "correct horse battery staple")
    with SqlSite(tmp_path, mariadb, f"--admin_token_file={tmp_path / 'token'}") as site:
        browser.get(site.page)
        browser.find_element(By.NAME, "token").send_keys("wrong", Keys.ENTER)
        wait_for(browser, lambda browser: "wrong" in browser.current_url)
        keep_screenshot(browser, "login-desktop")
        browser.find_element(By.NAME, "token").send_keys("correct horse battery staple", Keys.ENTER)
        wait_for(browser, lambda browser: texts(browser, "#live") == ["live"])
        assert browser.current_url == site.page
        assert browser.execute_script("return document.cookie") == ""
