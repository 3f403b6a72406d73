"""The page in a real browser: without JavaScript, with overlapping searches, on a desktop and on a phone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.processes import ROOT, Frontend

ARTEFACTS = ROOT / "artefacts"
Found = TypeVar("Found")
DESKTOP, PHONE = (1280, 860), (390, 844)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
)


@contextmanager
def running_browser(*, javascript: bool) -> Iterator[Chrome]:
    profile = tempfile.mkdtemp(prefix="chromium-")
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    browser = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def address(sample_data: dict[str, str]) -> Iterator[str]:
    with Frontend(env={**sample_data, "MYAPPLICATION_DIAGNOSTICS": "1"}) as frontend:
        yield frontend.url


@pytest.fixture(scope="module")
def started_browser() -> Iterator[Chrome]:
    with running_browser(javascript=True) as browser:
        yield browser


@pytest.fixture
def browser(started_browser: Chrome) -> Iterator[Chrome]:
    """A desktop's browser; after the test nothing may have been blocked or have failed in it."""
    show_as(started_browser, DESKTOP)
    started_browser.get_log("browser")  # type: ignore[no-untyped-call]
    yield started_browser
    complaints = started_browser.get_log("browser")  # type: ignore[no-untyped-call]
    # The browser reports each answer with an error status, also those that a test asked for.
    assert [entry for entry in complaints if "the server responded with a status of" not in entry["message"]] == []


def show_as(browser: Chrome, size: tuple[int, int], scheme: str = "light") -> None:
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 2 if size == PHONE else 1}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**screen, "mobile": size == PHONE})
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def keep_picture(browser: Chrome, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(ARTEFACTS / f"page-{name}.png"))


def fill(browser: Chrome, report: str, **fields: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"input[value={report}]").click()
    for name, value in fields.items():
        field = browser.find_element(By.NAME, name)
        # Not typed: what a date field accepts depends on the language.
        browser.execute_script("arguments[0].value = arguments[1]", field, value)


def start_search(browser: Chrome, report: str, **fields: str) -> None:
    fill(browser, report, **fields)
    browser.find_element(By.CSS_SELECTOR, "#search button").click()


def texts(browser: Chrome, selector: str) -> list[str]:
    # In one step: a card may be replaced at any moment.
    script = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent)"
    found: list[str] = browser.execute_script(script, selector)
    return found


def titles(browser: Chrome) -> list[str]:
    return texts(browser, ".card h2")


def wait_for(browser: Chrome, condition: Callable[[Chrome], Found]) -> Found:
    return WebDriverWait(browser, 60, poll_frequency=0.05).until(condition)


def finished_card(browser: Chrome, title: str) -> WebElement:
    def find(browser: Chrome) -> WebElement | None:
        for card in browser.find_elements(By.CSS_SELECTOR, ".card:not(.running)"):
            if card.find_element(By.TAG_NAME, "h2").text == title:
                return card
        return None

    found = wait_for(browser, find)
    assert found is not None
    return found


def running(browser: Chrome) -> list[str]:
    return texts(browser, ".card.running h2")


def assert_no_sideways_scrolling(browser: Chrome) -> None:
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]


def assert_newest_card_is_on_top(browser: Chrome) -> None:
    """On a phone it is below the form, and so it must have been scrolled to."""
    card = browser.find_element(By.CSS_SELECTOR, ".card")
    assert 0 <= browser.execute_script("return arguments[0].getBoundingClientRect().top", card) < 100


def test_without_javascript_the_form_loads_the_result(address: str) -> None:
    with running_browser(javascript=False) as browser:
        show_as(browser, DESKTOP)
        browser.get(address)
        browser.find_element(By.CSS_SELECTOR, "input[value=orders]").click()
        customer = browser.find_element(By.NAME, "customer")
        customer.clear()
        customer.send_keys("17")
        browser.find_element(By.CSS_SELECTOR, "#search button").click()
        card = finished_card(browser, "Orders of a customer")
        assert "/query/?report=orders&" in browser.current_url
        assert "customer=17" in browser.current_url
        assert len(card.find_elements(By.CSS_SELECTOR, "tbody tr")) > 1
        assert " rows in " in card.text
        assert browser.find_element(By.NAME, "customer").get_attribute("value") == "17"


def test_the_result_appears_in_place(browser: Chrome, address: str) -> None:
    browser.get(address)
    keep_picture(browser, "start-desktop")
    start_search(browser, "revenue", **{"from": "2025-11-01"})
    card = finished_card(browser, "Monthly revenue")
    assert browser.current_url == f"{address}/"
    assert len(card.find_elements(By.CSS_SELECTOR, "tbody tr")) == 2
    facts = card.find_element(By.CSS_SELECTOR, ".facts").text
    assert facts.startswith("2 rows in ")
    assert "answered after" in facts
    link = card.find_element(By.LINK_TEXT, "All rows as CSV").get_attribute("href")
    assert link == f"{address}/query/?report=revenue&from=2025-11-01&to=2025-12-31&format=csv"
    assert browser.find_element(By.ID, "announcement").get_attribute("textContent") != ""

    card.find_element(By.CSS_SELECTOR, ".close").click()
    assert titles(browser) == []
    assert browser.switch_to.active_element.text == "Search"


def test_a_quick_search_overtakes_a_slow_one(browser: Chrome, address: str) -> None:
    browser.get(address)
    start_search(browser, "wait", seconds="60")
    start_search(browser, "ranking")
    start_search(browser, "wait", seconds="4")
    finished_card(browser, "Customer ranking")
    # The one of a minute cannot have ended.
    assert running(browser)[-1] == "Wait (diagnostics)"
    start_search(browser, "products", region="North", limit="5")
    finished_card(browser, "Best-selling products")
    wait_for(browser, lambda browser: len(running(browser)) == 1)
    start_search(browser, "pairs", **{"from": "2023-01-01", "limit": "8"})
    assert titles(browser) == [
        "Bought together",
        "Best-selling products",
        "Wait (diagnostics)",
        "Customer ranking",
        "Wait (diagnostics)",
    ]
    wait_for(browser, lambda browser: "0.0 s" not in texts(browser, ".stopwatch"))
    browser.execute_script("scrollTo(0, 0)")
    keep_picture(browser, "overlapping-desktop")

    # Closing a running search ends it in the browser as well: no card comes of it.
    browser.find_elements(By.CSS_SELECTOR, ".card.running .close")[-1].click()
    wait_for(browser, lambda browser: not running(browser))
    assert len(titles(browser)) == 4


def test_an_error_is_shown_in_place(browser: Chrome, address: str) -> None:
    browser.get(address)
    start_search(browser, "products", **{"from": "2025-06-01", "to": "2025-05-01"})
    card = finished_card(browser, "Best-selling products")
    assert "from: 2025-06-01 is after the end of the period" in card.text
    show_as(browser, DESKTOP, "dark")
    start_search(browser, "orders", to="2025-12-31")
    finished_card(browser, "Orders of a customer")
    keep_picture(browser, "error-desktop-dark")


def test_a_server_that_is_gone_is_told(browser: Chrome, sample_data: dict[str, str]) -> None:
    with Frontend(env=sample_data) as frontend:
        browser.get(frontend.url)
        frontend.stop()
    start_search(browser, "products")
    assert "cannot be reached" in finished_card(browser, "Best-selling products").text
    browser.get_log("browser")  # type: ignore[no-untyped-call]


def test_the_form_shows_only_the_fields_of_the_report(browser: Chrome, address: str) -> None:
    browser.get(address)

    def shown() -> list[str | None]:
        fields = browser.find_elements(By.CSS_SELECTOR, ".fields [name]")
        return [field.get_attribute("name") for field in fields if field.is_displayed()]

    assert shown() == ["from", "to", "region", "limit"]
    fill(browser, "orders")
    assert shown() == ["from", "to", "customer", "limit"]
    fill(browser, "wait")
    assert shown() == ["seconds"]


def test_the_keyboard_is_enough(browser: Chrome, address: str) -> None:
    browser.get(address)
    browser.find_element(By.CSS_SELECTOR, "input[value=products]").send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    card = finished_card(browser, "Monthly revenue")
    assert browser.current_url == f"{address}/"
    card.find_element(By.CSS_SELECTOR, ".close").send_keys(Keys.ENTER)
    assert titles(browser) == []


def test_a_phone_never_scrolls_sideways(browser: Chrome, address: str) -> None:
    show_as(browser, PHONE)
    browser.get(address)
    assert_no_sideways_scrolling(browser)
    keep_picture(browser, "start-phone")
    start_search(browser, "journal", **{"from": "2025-12-01"})
    finished_card(browser, "Sales journal")
    assert_no_sideways_scrolling(browser)
    assert_newest_card_is_on_top(browser)
    table = browser.find_element(By.CSS_SELECTOR, ".scroll")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", table)
    keep_picture(browser, "result-phone")
    start_search(browser, "wait", seconds="30")
    start_search(browser, "orders")
    finished_card(browser, "Orders of a customer")
    assert_no_sideways_scrolling(browser)
    assert_newest_card_is_on_top(browser)
    show_as(browser, PHONE, "dark")
    keep_picture(browser, "overlapping-phone-dark")
    browser.get(f"{address}/query/?report=products&region={'A' * 300}")
    assert_no_sideways_scrolling(browser)
