"""What the operators' page shows during development of recent requests and their SQL, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.admin.test_admin_page import keep_screenshot
from tests.application.test_page import (
    DESKTOP,
    PHONE,
    assert_no_sideways_scrolling,
    running_browser,
    show_as,
    texts,
    wait_for,
)
from tests.support.development import FLASK, Development
from tests.support.processes import free_port


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with running_browser(javascript=True) as browser:
        yield browser


def requests_shown(browser: Chrome) -> list[str]:
    return texts(browser, "#recent summary")


def test_recent_requests_are_shown_with_their_sql(browser: Chrome, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(FLASK)
    operators = free_port()
    command = ("threadbridge", "dev", "shop:create_app()", "--port={port}", f"--admin_port={operators}")
    with Development(tmp_path, *command) as site:
        show_as(browser, DESKTOP)
        browser.get(f"http://127.0.0.1:{operators}/")
        wait_for(browser, lambda browser: "No request has ended yet." in texts(browser, "#recent .empty"))
        site.page("/orders")
        site.page("/slow")
        site.page("/?q=<b>bold</b>")
        wait_for(browser, lambda browser: len(requests_shown(browser)) == 3)
        # The latest first.
        plain, slow, orders = requests_shown(browser)
        assert plain.startswith("200 GET /?q=") and "no SQL" in plain and "bold" in plain
        assert slow.startswith("200 GET /slow ") and " 1 SQL, " in slow
        assert orders.startswith("200 GET /orders ") and " 6 SQL, " in orders and "N+1: 5" in orders
        opened = browser.find_elements(By.CSS_SELECTOR, "#recent summary")[2]
        opened.click()
        wait_for(browser, lambda browser: len(texts(browser, "#recent details[open] li")) == 6)
        statements = texts(browser, "#recent details[open] li")
        assert "SELECT id FROM customers" in statements[0]
        assert [f"WHERE id = {number}" in text for number, text in enumerate(statements[1:], 1)] == 5 * [True]
        [advice] = texts(browser, "#recent details[open] .repeated")
        assert advice.startswith("N+1: the same query 5 times")
        assert advice.endswith("SELECT name FROM customers WHERE id = ?")
        # It stays open while others come, and nothing of a request becomes HTML.
        site.page("/slow")
        wait_for(browser, lambda browser: len(requests_shown(browser)) == 4)
        assert len(texts(browser, "#recent details[open] li")) == 6
        assert browser.find_elements(By.CSS_SELECTOR, "#recent b") == []
        # Slow statements stand out.
        browser.find_elements(By.CSS_SELECTOR, "#recent summary")[0].click()
        assert len(wait_for(browser, lambda browser: texts(browser, "#recent details[open] .slow"))) == 1
        browser.execute_script("document.getElementById('recent').scrollIntoView()")
        keep_screenshot(browser, "recent-desktop")
        show_as(browser, PHONE)
        assert_no_sideways_scrolling(browser)
        # After a reload the page goes on by itself.
        (tmp_path / "shop.py").write_text(FLASK + "\n")
        wait_for(browser, lambda browser: requests_shown(browser) == [])
        site.page("/slow")
        wait_for(browser, lambda browser: len(requests_shown(browser)) == 1)


def test_nothing_is_shown_or_kept_otherwise(browser: Chrome, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(FLASK)
    operators = free_port()
    command = ("threadbridge", "shop:create_app()", "--port={port}", f"--admin_port={operators}")
    with Development(tmp_path, *command) as site:
        site.page("/orders")
        address = f"http://127.0.0.1:{operators}"
        browser.get(f"{address}/")
        wait_for(browser, lambda browser: texts(browser, "#live") == ["live"])
        assert not browser.find_element(By.ID, "recent").is_displayed()
        assert requests.get(f"{address}/recent.json", timeout=30).json() == {"recent": None}
