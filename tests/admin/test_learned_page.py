"""What the operators' page shows of scheduling by cost, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By

from tests.admin.test_admin_page import keep_screenshot, move_pointer_away, open_page, rows
from tests.application.test_page import DESKTOP, PHONE, running_browser, show_as, texts, wait_for
from tests.support.admin_site import SqlSite

SLEEP = "SELECT {}, SLEEP(60)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with running_browser(javascript=True) as browser:
        yield browser
        log = browser.get_log("browser")  # type: ignore[no-untyped-call]
        # What the page reads when a site ends.
        assert [entry for entry in log if "Failed to load resource: net::" not in entry["message"]] == []


@pytest.fixture
def site(tmp_path: Path, mariadb: dict[str, str]) -> Iterator[SqlSite]:
    with SqlSite(tmp_path, mariadb, "--schedule=cost") as site:
        site.teach()
        yield site


def read_again(browser: Chrome, seconds: float = 11) -> None:
    """Put the page's clock forward, so that it reads the table again, and give it the time to."""
    browser.execute_async_script(
        "const [seconds, done] = arguments, now = performance.now.bind(performance);"
        "performance.now = () => now() + 1000 * seconds;"
        "setTimeout(done, 1000)",
        seconds,
    )


def kinds(browser: Chrome) -> list[str]:
    return texts(browser, "#learned tbody small")


def test_the_table_is_read_when_its_section_is_opened(browser: Chrome, site: SqlSite) -> None:
    show_as(browser, DESKTOP)
    open_page(browser, site)
    reads = (
        "return performance.getEntriesByType('resource').filter(entry => entry.name.includes('requests.json')).length"
    )
    assert browser.execute_script(reads) == 0
    browser.find_element(By.CSS_SELECTOR, "#learned summary").click()
    wait_for(browser, lambda browser: len(kinds(browser)) >= 3)
    assert kinds(browser)[0] == "kind=large"
    assert set(kinds(browser)) >= {"kind=large", "kind=small", "all"}
    first = browser.find_element(By.CSS_SELECTOR, "#learned tbody tr").text
    assert "/report" in first and first.endswith((" short", " long"))
    browser.execute_script("document.getElementById('learned').scrollIntoView()")
    move_pointer_away(browser)
    keep_screenshot(browser, "learned-desktop")
    show_as(browser, DESKTOP, "dark")
    keep_screenshot(browser, "learned-desktop-dark")


def test_no_row_moves_under_the_pointer(browser: Chrome, site: SqlSite) -> None:
    show_as(browser, DESKTOP)
    open_page(browser, site)
    browser.find_element(By.CSS_SELECTOR, "#learned summary").click()
    wait_for(browser, lambda browser: len(kinds(browser)) >= 3)
    before = texts(browser, "#learned tbody tr")
    with ExitStack() as stack:
        ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, "#learned tbody tr")).perform()
        for number in range(3):
            site.run(stack, f"SELECT {number}", path=f"/sql/{'abc'[number]}")
        read_again(browser)
        assert texts(browser, "#learned tbody tr") == before
        move_pointer_away(browser)
        read_again(browser)
        wait_for(browser, lambda browser: len(kinds(browser)) == len(before) + 3)


def test_rows_and_lanes_show_classes(browser: Chrome, site: SqlSite) -> None:
    show_as(browser, DESKTOP)
    with ExitStack() as stack:
        for number in range(5):
            site.run(stack, SLEEP.format(number))
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) >= 2 and len(rows(browser, "waiting")) >= 1)
        lanes = texts(browser, "#rows td.lane small")
        assert set(lanes) <= {"short", "long", "unknown"} and len(lanes) == 5
        wait_for(browser, lambda browser: any("outgrown" in text for text in texts(browser, "#rows .facts")))
        assert all("may start in" in text for text in rows(browser, "waiting"))
        short = texts(browser, "#lanes .short")
        assert len(short) == 2 and all(text.startswith("short: under ") for text in short)
        keep_screenshot(browser, "classes-desktop")


def test_on_a_phone_the_table_is_below_all_else(browser: Chrome, site: SqlSite) -> None:
    show_as(browser, PHONE)
    with ExitStack() as stack:
        site.run(stack, SLEEP.format(1), path=f"/sql/{'long' * 60}")
        for number in range(3):
            site.run(stack, SLEEP.format(number))
        open_page(browser, site)
        wait_for(browser, lambda browser: len(rows(browser)) >= 1)
        keep_screenshot(browser, "classes-phone")
        top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
        tops = [browser.execute_script(top, part) for part in (".lanes", "#requests", ".minute", "#learned")]
        assert max(tops) == tops[-1]
        summary = browser.find_element(By.CSS_SELECTOR, "#learned summary")
        browser.execute_script("arguments[0].scrollIntoView()", summary)
        browser.execute_script("arguments[0].click()", summary)
        wait_for(browser, lambda browser: len(kinds(browser)) >= 3)
        assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
        browser.execute_script("document.getElementById('learned').scrollIntoView()")
        keep_screenshot(browser, "learned-phone")
