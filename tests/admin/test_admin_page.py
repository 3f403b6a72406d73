"""The operators' page in a real browser: it shows real queries and stops them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.application.test_page import ARTEFACTS, DESKTOP, PHONE, running_browser, show_as, texts, wait_for
from tests.support.admin_site import SqlSite, answer, write_token
from tests.support.databases import Witness
from tests.support.inprocess import wait_until
from tests.support.processes import free_port

# After a SELECT of something: waits, and is stopped at once, which a SLEEP is not always.
WAIT = "GET_LOCK('held', 60) FROM seq_1_to_2"
# The browser logs each error status, the end of the stream of events, and advice on forms.
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
    """The shared browser; after the test its log must contain no errors."""
    show_as(started_browser, DESKTOP)
    move_pointer_away(started_browser)
    started_browser.get_log("browser")  # type: ignore[no-untyped-call]
    yield started_browser
    complaints = started_browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in complaints if not any(text in str(entry) for text in EXPECTED)] == []
    started_browser.get("about:blank")


@pytest.fixture
def site(tmp_path: Path, mariadb: dict[str, str]) -> Iterator[SqlSite]:
    with SqlSite(tmp_path, mariadb) as site:
        yield site


def move_pointer_away(browser: Chrome) -> None:
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(0, 0)  # type: ignore[no-untyped-call]
    actions.perform()


def let_page_clock_pass(browser: Chrome, seconds: float) -> None:
    """Put the page's clock forward, and let it update itself several times."""
    browser.execute_async_script(
        "const [seconds, done] = arguments, now = performance.now.bind(performance);"
        "performance.now = () => now() + 1000 * seconds;"
        "setTimeout(done, 1500)",
        seconds,
    )


def keep_screenshot(browser: Chrome, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(ARTEFACTS / f"admin-{name}.png"))


def numbers_of(witness: Witness, sql: str) -> list[int]:
    """The numbers of the database connections that are running this."""
    found = witness.rows("SELECT id, info FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
    return [number for number, info in found if info is not None and sql in info]


def rows(browser: Chrome, state: str = "running") -> list[str]:
    return texts(browser, f'#rows tr[data-state="{state}"]:not(.ended)')


def open_page(browser: Chrome, site: SqlSite) -> None:
    browser.get(site.page)
    wait_for(browser, lambda browser: texts(browser, "#live") == ["live"])


def test_slow_queries_have_rows_while_they_run(browser: Chrome, site: SqlSite, witness: Witness) -> None:
    open_page(browser, site)
    assert texts(browser, "#nothing:not([hidden])") != []
    with ExitStack() as stack:
        site.run(stack, SLOW)
        wait_for(browser, lambda browser: len(rows(browser)) == 1)
        site.run(stack, "SELECT 2, SLEEP(60)")
        site.run(stack, "SELECT 3, SLEEP(60)")
        site.run(stack, "SELECT 4, SLEEP(60)")
        wait_for(browser, lambda browser: (len(rows(browser)), len(rows(browser, "waiting"))) == (3, 1))
        # The oldest first, each with its SQL and its database connection.
        sql = texts(browser, "#rows .sql")
        assert sql[0] == SLOW and sql[1].startswith("SELECT 2") and sql[2].startswith("SELECT 3")
        numbers = [
            text.partition("database connection ")[2].split(" ")[0] for text in texts(browser, "#rows .facts")[:3]
        ]
        # Queries of other tests may run on.
        assert len(set(numbers)) == 3 and set(map(int, numbers)) <= set(numbers_of(witness, "SLEEP(60)"))
        assert texts(browser, "#lanes .full b") == ["pool"]
        assert texts(browser, "#running") == ["3"]
        keep_screenshot(browser, "slow-queries-desktop")
        show_as(browser, DESKTOP, "dark")
        keep_screenshot(browser, "slow-queries-desktop-dark")
    # Their clients have left.
    wait_for(browser, lambda browser: "499 abandoned" in texts(browser, "#rows tr.ended .badge"))
    wait_for(browser, lambda browser: texts(browser, "#rows tr") == [])


def test_the_button_stops_one_query(browser: Chrome, site: SqlSite, witness: Witness) -> None:
    open_page(browser, site)
    with ExitStack() as stack:
        client = stack.enter_context(site.send(f"/sql?{quote(f'SELECT 1, {WAIT}')}"))
        wait_until(lambda: len(numbers_of(witness, "SELECT 1, GET_LOCK")) == 1, "the first runs")
        site.run(stack, f"SELECT 2, {WAIT}")
        wait_for(browser, lambda browser: len(rows(browser)) == 2)
        button = browser.find_element(By.CSS_SELECTOR, "#rows tr .stop")
        button.click()
        # It asks for confirmation, in its place, and Escape cancels.
        assert button.text == "Really stop?"
        button.send_keys(Keys.ESCAPE)
        assert button.text == "Stop"
        button.click()
        button.click()
        wait_for(browser, lambda browser: texts(browser, "#rows tr.ended .badge") == ["504 expired"])
        assert texts(browser, "#rows tr.ended .facts") == ["stopped by you"]
        keep_screenshot(browser, "stopped-desktop")
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        wait_until(lambda: not numbers_of(witness, "SELECT 1, GET_LOCK"), "the database has stopped it")
        # The other query continues.
        assert len(numbers_of(witness, "SELECT 2, GET_LOCK")) == 1
        assert len(rows(browser)) == 1
        # The row stays while the pointer is there, and while the other one has the focus, visible since Escape.
        let_page_clock_pass(browser, 7)
        assert len(texts(browser, "#rows tr")) == 2
        move_pointer_away(browser)
        browser.execute_script("document.activeElement.blur()")
        wait_for(browser, lambda browser: len(texts(browser, "#rows tr")) == 1)


def test_the_page_shows_on_which_host_a_request_runs_and_stops_it_there(
    browser: Chrome, tmp_path: Path, mariadb: dict[str, str], witness: Witness
) -> None:
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
    with SqlSite(tmp_path / "far", mariadb, "--xheaders") as far:
        host, gone = f"127.0.0.1:{far.port}", f"127.0.0.1:{free_port()}"
        with (
            SqlSite(tmp_path / "near", mariadb, f"--lane=far:/sql*:http://{host},http://{gone}") as near,
            ExitStack() as stack,
        ):
            # Both have had their turn.
            near.run(stack, "SELECT 1")
            near.run(stack, "SELECT 1")
            client = stack.enter_context(near.send(f"/sql?{quote(f'SELECT 1, {WAIT}')}", "POST"))
            wait_until(lambda: len(numbers_of(witness, "SELECT 1, GET_LOCK")) == 1, "it runs")
            open_page(browser, near)
            wait_for(browser, lambda browser: texts(browser, "#rows td.lane small") == [host])
            [lane] = [text for text in texts(browser, "#lanes li") if text.startswith("far")]
            assert "1 on other hosts" in lane and f"{host}: 1" in lane and f"{gone}: no answer" in lane
            keep_screenshot(browser, "remote-desktop")
            button = browser.find_element(By.CSS_SELECTOR, "#rows tr .stop")
            button.click()
            button.click()
            wait_for(browser, lambda browser: texts(browser, "#rows tr.ended .badge") == ["504 expired"])
            assert answer(client).startswith(b"HTTP/1.1 504 ")
            wait_until(lambda: not numbers_of(witness, "SELECT 1, GET_LOCK"), "the database has stopped it")


def stop_buttons(browser: Chrome) -> dict[str, float]:
    """The top of each button in the table, by its request's key, from top to bottom."""
    found: dict[str, float] = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#rows tr')].map("
        "row => [row.dataset.key, row.querySelector('.stop').getBoundingClientRect().top + scrollY]))"
    )
    return found


# So narrow, the facts of a running request need more lines than those of an ended one.
@pytest.mark.parametrize("width", [DESKTOP[0], 1000])
def test_rows_keep_their_places_while_the_pointer_is_over_them(browser: Chrome, site: SqlSite, width: int) -> None:
    show_as(browser, (width, *DESKTOP[1:]))
    open_page(browser, site)
    with ExitStack() as stack:
        clients = []
        for number in range(1, 7):
            clients.append(stack.enter_context(site.send(f"/sql?{quote(f'SELECT {number}, SLEEP(60)')}")))
            wait_until(lambda: len(site.document()["requests"]) == number, "it has arrived")  # noqa: B023
        wait_for(browser, lambda browser: (len(rows(browser)), len(rows(browser, "waiting"))) == (3, 3))
        before = stop_buttons(browser)
        ActionChains(browser).move_to_element(browser.find_elements(By.CSS_SELECTOR, "#rows .stop")[4]).perform()
        # A running request ends, a waiting one runs, another waiting one ends, and a new one arrives.
        clients[0].close()
        wait_for(browser, lambda browser: texts(browser, "#rows tr.ended .badge") == ["499 abandoned"])
        clients[5].close()
        wait_for(browser, lambda browser: len(texts(browser, "#rows tr.ended")) == 2)
        site.run(stack, "SELECT 7, SLEEP(60)")
        wait_for(browser, lambda browser: len(texts(browser, "#rows tr")) == 7)
        wait_for(browser, lambda browser: len(rows(browser)) == 3)
        let_page_clock_pass(browser, 7)
        after = stop_buttons(browser)
        assert list(after)[:6] == list(before)
        assert {key: after[key] for key in before} == before
        assert browser.find_element(By.CSS_SELECTOR, "#rows tr.ended").is_displayed()
        assert not browser.find_element(By.CSS_SELECTOR, "#rows tr.ended .stop").is_displayed()
        keep_screenshot(browser, "held-desktop")
        move_pointer_away(browser)
        wait_for(browser, lambda browser: texts(browser, "#rows tr.ended") == [])
        assert list(stop_buttons(browser))[:4] == list(before)[1:5]


def test_the_table_does_not_grow_forever_under_a_resting_pointer(browser: Chrome, site: SqlSite) -> None:
    with ExitStack() as stack:
        for number in range(4):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) == 3)
        ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, "#rows .stop")).perform()
        browser.execute_script("document.getElementById('more').click()")
        ended: list[int] = []
        # On a loaded machine, the page does not see all before they end.
        while ended[-2:] != [100, 100] and len(ended) < 10:
            with ExitStack() as waiting:
                for number in range(60):
                    site.run(waiting, f"SELECT {number}")
                wait_for(browser, lambda browser: len(rows(browser, "waiting")) > 8)
            wait_for(browser, lambda browser: len(rows(browser, "waiting")) == 1)
            ended.append(len(texts(browser, "#rows tr.ended")))
        assert ended[-2:] == [100, 100]


def test_waiting_is_a_warning_once_it_lasts(browser: Chrome, site: SqlSite) -> None:
    open_page(browser, site)
    judge = (
        "const done = arguments[arguments.length - 1];"
        "import('/static/waiting.js').then(({isWaitingLong}) => done(["
        "isWaitingLong(0, []), isWaitingLong(1, [{waiting: 0.9}]), isWaitingLong(2, [{waiting: 0.1}, {waiting: 1.1}]),"
        "isWaitingLong(3, [])]))"
    )
    assert browser.execute_async_script(judge) == [False, False, True, True]
    look = (
        "const [bad] = document.querySelectorAll('#waiting-figure.bad, #lanes .queued');"
        "const wait = document.getElementById('longest-wait').textContent.replace('the longest for ', '');"
        "return [wait, bad !== undefined]"
    )
    with ExitStack() as stack:
        for number in range(4):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        seen: set[tuple[str, bool]] = set()

        def lasts(browser: Chrome) -> bool:
            text, bad = browser.execute_script(look)
            seen.add((text, bad))
            return bool(bad)

        wait_for(browser, lasts)
    for text, bad in seen:
        assert bad == (text.endswith(" s") and float(text.split()[0]) >= 1), text


def test_latencies_are_quantiles(browser: Chrome, site: SqlSite) -> None:
    open_page(browser, site)
    wait_for(browser, lambda browser: all(text.endswith("s") for text in texts(browser, ".quantiles b")))
    assert [text.split()[0] for text in texts(browser, ".quantiles span")] == ["p50", "p95", "p99"]
    assert [text.split()[0] for text in texts(browser, "#latencies-legend li")] == ["p50", "p95", "p99"]
    assert all(text.endswith("ms") for text in texts(browser, "#latencies-legend li"))
    # Three of the longest fit side by side on any screen.
    fits = (
        "const done = arguments[arguments.length - 1];"
        "import('/static/elements.js').then(({shortDuration}) => done([0.999, 72, 3600, 5969].map(seconds => {"
        "  for (const b of document.querySelectorAll('.quantiles b')) b.textContent = shortDuration(seconds);"
        "  const box = document.querySelector('.quantiles');"
        "  return [shortDuration(seconds), box.scrollWidth <= box.clientWidth];"
        "})))"
    )
    for size in (PHONE, (820, 1180), (1130, 800), DESKTOP, (1900, 1000)):
        show_as(browser, size)
        expected = [[text, True] for text in ("999 ms", "72 s", "60 min", "99 min")]
        assert browser.execute_async_script(fits) == expected, size


def test_everything_works_by_keyboard(browser: Chrome, site: SqlSite, witness: Witness) -> None:
    with ExitStack() as stack:
        for number in (1, 2):
            site.run(stack, f"SELECT {number}, {WAIT}")
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
        wait_for(browser, lambda browser: texts(browser, "#rows tr.ended .id") == [first])
        # The next row's button has the focus.
        assert browser.switch_to.active_element.text == "Stop"
        wait_until(lambda: len(numbers_of(witness, WAIT)) == 1, "one is stopped, one goes on")
        assert "stopped by you" in texts(browser, "#announcement")[0]
        # The row stays until the focus has left the table.
        let_page_clock_pass(browser, 7)
        assert texts(browser, "#rows tr.ended .id") == [first]
        browser.switch_to.active_element.send_keys(Keys.TAB)
        wait_for(browser, lambda browser: texts(browser, "#rows tr.ended") == [])


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


def test_markup_in_requests_is_shown_as_text(browser: Chrome, site: SqlSite) -> None:
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
    # The site has sent one itself.
    sent = 1

    def load() -> None:
        nonlocal sent
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        began = time.monotonic()
        while sent < 1200:
            # Catch up, however busy the machine is.
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
    # The page was updated meanwhile, and has counted every request.
    assert len(seen) >= 4
    wait_for(browser, lambda browser: texts(browser, "#rates-legend .done") == [f"{sent:,} done"])
    assert browser.execute_script("return document.querySelectorAll('#timeline .run').length") > 20
    keep_screenshot(browser, "load-desktop")


def test_on_a_phone_the_charts_are_on_the_first_screen(browser: Chrome, site: SqlSite) -> None:
    show_as(browser, PHONE)
    with ExitStack() as stack:
        for number in range(6):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) == 3 and len(rows(browser, "waiting")) == 3)
        bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
        for chart in ("#rates svg", "#latencies svg", "#timeline svg"):
            assert 0 < browser.execute_script(bottom, chart) <= PHONE[1], chart
        keep_screenshot(browser, "charts-phone")
        # The buttons are one tap away.
        browser.find_element(By.LINK_TEXT, "running").click()
        top = "return document.querySelector('#rows .stop').getBoundingClientRect().bottom"
        wait_for(browser, lambda browser: 0 < browser.execute_script(top) < PHONE[1])


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


def test_the_page_says_when_the_server_is_gone(browser: Chrome, site: SqlSite) -> None:
    open_page(browser, site)
    site.process.kill()
    wait_for(browser, lambda browser: texts(browser, "#live") == ["no answer: the page is out of date"])
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
