"""The operators' page in a real browser, with several hosts."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.admin.test_admin_page import EXPECTED, keep_screenshot
from tests.application.test_page import DESKTOP, PHONE, running_browser, show_as, texts, wait_for
from tests.support.admin_site import answer, write_token
from tests.support.hosts import TOKEN, Authority, Host, skip_without_namespaces
from tests.support.processes import free_port
from threadbridge.admin.frontend import UNTRUSTED_PAUSE


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with running_browser(javascript=True) as browser:
        yield browser


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, browser: Chrome) -> Iterator[list[Host]]:
    """Three hosts in a list; the last two in it are not accepted. The browser is logged in to the first one's page."""
    skip_without_namespaces()
    directory = tmp_path_factory.mktemp("fleet")
    port = free_port()
    peers = ",".join(f"127.0.0.{number}:{port}" for number in (2, 3, 10, 5)) + f",https://127.0.0.4:{port}"
    certificate, key = Authority(directory / "stranger").sign("web4", "IP:127.0.0.4")
    write_token(directory / "other", "a token of another fleet")
    tls = (f"--admin_certfile={certificate}", f"--admin_keyfile={key}")
    with ExitStack() as stack:
        hosts = [Host(directory, number, port, f"--admin_peers={peers}") for number in (2, 3, 10)]
        for host in hosts:
            stack.enter_context(host)
        stack.enter_context(Host(directory, 4, port, *tls, scheme="https"))
        stack.enter_context(Host(directory, 5, port, f"--admin_token_file={directory / 'other'}"))
        browser.get(hosts[0].page)
        browser.find_element(By.NAME, "token").send_keys(TOKEN, Keys.ENTER)
        wait_for(browser, lambda browser: texts(browser, "#live") == ["live"])
        yield hosts


@pytest.fixture
def hosts(fleet: list[Host], browser: Chrome) -> Iterator[list[Host]]:
    """The three hosts; the browser shows the first one's page."""
    show_as(browser, DESKTOP)
    browser.get(fleet[0].page)
    wait_for(browser, lambda browser: (lines(browser), len(silent(browser))) == (["web2", "web3", "web10"], 2))
    wait_for(browser, lambda browser: rows(browser) == [])
    yield fleet
    complaints = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in complaints if not any(text in str(entry) for text in EXPECTED)] == []
    browser.get("about:blank")


def lines(browser: Chrome) -> list[str]:
    """The hosts with figures, as they are listed."""
    return texts(browser, "#hosts .toggle")


def silent(browser: Chrome) -> list[str]:
    return texts(browser, "#hosts .unreachable th .name")


def figures(browser: Chrome, kind: str) -> list[str]:
    return texts(browser, f"#hosts tr:not(.opened) .{kind}")


def rows(browser: Chrome) -> list[str]:
    """The places of the requests that are listed."""
    return texts(browser, '#rows tr:not(.ended) [data-state="running"], #rows tr[data-state="running"] td.lane small')


def test_hosts_are_shown_as_lines_that_open(browser: Chrome, hosts: list[Host]) -> None:
    assert texts(browser, "#hosts-shown") == ["3 with 3 processes; 2 without an answer."]
    # The lanes and processes of all of them would be too many.
    assert not browser.find_element(By.CSS_SELECTOR, ".lanes").is_displayed()
    assert texts(browser, "#processes li") == ["3 hosts", "2 without an answer"]
    assert [text.split(" · ")[0] for text in texts(browser, "#hosts .toggle + small")] == [
        "this host",
        f"127.0.0.3:{hosts[1].admin_port}",
        f"127.0.0.10:{hosts[2].admin_port}",
    ]
    with ExitStack() as stack:
        hosts[2].occupy(stack, "a")
        hosts[2].occupy(stack, "b")
        stack.enter_context(hosts[2].send(f"/slow?{hosts[2].directory / 'c'}"))
        wait_for(browser, lambda browser: figures(browser, "load span")[2] == "2 of 2 busy")
        wait_for(browser, lambda browser: figures(browser, "waiting") == ["0", "0", "1"])
        assert [text.startswith("0 of 2") for text in figures(browser, "load span")] == [True, True, False]
        assert texts(browser, "#hosts .full .toggle") == ["web10"]
        toggle = browser.find_elements(By.CSS_SELECTOR, "#hosts .toggle")[2]
        toggle.click()
        assert toggle.get_attribute("aria-expanded") == "true"
        wait_for(browser, lambda browser: "2 of 2 busy" in texts(browser, "#hosts .opened:not([hidden]) .work"))
        keep_screenshot(browser, "hosts-desktop")
        show_as(browser, PHONE)
        assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
        keep_screenshot(browser, "hosts-phone")
        show_as(browser, DESKTOP)
        toggle.click()
        assert texts(browser, "#hosts .opened:not([hidden])") == []
        hosts[2].finish("a", "b", "c")


NONE = "No request with this id; 1 ended in the last minute. 2 did not answer."


def test_a_request_is_found_on_any_host_and_stopped_there(browser: Chrome, hosts: list[Host]) -> None:
    with ExitStack() as stack:
        client = hosts[2].occupy(stack, "far", "/cancellable")
        hosts[1].occupy(stack, "other")
        hosts[0].occupy(stack, "near")
        wait_for(browser, lambda browser: len(rows(browser)) == 3)
        assert sorted(text.split()[-2] for text in rows(browser)) == ["web10", "web2", "web3"]
        [far] = [row["id"] for row in hosts[0].admin("/requests.json").json()["requests"] if "far" in row["url"]]
        field = browser.find_element(By.ID, "search")
        field.send_keys(far)
        wait_for(
            browser,
            lambda browser: texts(browser, "#shown") == ["1 request with this id. 2 did not answer."],
        )
        assert texts(browser, "#rows .id") == [far]
        field.send_keys(Keys.ENTER)
        button = browser.find_element(By.CSS_SELECTOR, "#rows .stop")
        button.click()
        button.click()
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        wait_for(browser, lambda browser: texts(browser, "#rows tr.ended .badge") == ["504 expired"])
        wait_for(
            browser,
            lambda browser: texts(browser, "#shown") == [NONE],
        )
        [found] = texts(browser, "#found li")
        assert found.startswith("GET /cancellable?") and "504 expired after " in found and " on web10, " in found
        keep_screenshot(browser, "found-desktop")
        field.clear()
        field.send_keys("x", Keys.BACKSPACE)
        wait_for(browser, lambda browser: len(rows(browser)) == 2)
        assert texts(browser, "#found li") == []
        # Those of one host alone.
        browser.find_elements(By.CSS_SELECTOR, "#hosts .only")[1].click()
        wait_for(
            browser,
            lambda browser: texts(browser, "#shown") == ["1 request on web3. 2 did not answer."],
        )
        assert [text.split()[-2] for text in rows(browser)] == ["web3"]
        browser.find_element(By.ID, "only").click()
        wait_for(browser, lambda browser: len(rows(browser)) == 2)
        hosts[0].finish("near")
        hosts[1].finish("other")


SLOW_ANSWERS = """
const { fetch } = window;
window.fetch = async (...parameters) => {
  const answer = await fetch(...parameters);
  await new Promise((resolve) => setTimeout(resolve, 1500));
  return answer;
};
"""


def test_what_is_searched_for_is_shown_even_if_hosts_answer_slowly(browser: Chrome, hosts: list[Host]) -> None:
    # Longer than the second after which the page asks again.
    browser.execute_script(SLOW_ANSWERS)
    field = browser.find_element(By.ID, "search")
    for name in ("nothing", "-and-nothing"):
        field.send_keys(name)
        wait_for(browser, lambda browser: texts(browser, "#shown") == ["Looking for requests …"])
        wait_for(
            browser,
            lambda browser: texts(browser, "#shown") == ["No request with this id. 2 did not answer."],
        )


def test_a_host_without_an_answer_is_shown_without_figures(browser: Chrome, hosts: list[Host]) -> None:
    lost = hosts[1].process
    with ExitStack() as stack:
        hosts[1].occupy(stack, "lost")
        wait_for(browser, lambda browser: len(rows(browser)) == 1)
        lost.send_signal(signal.SIGSTOP)
        try:
            wait_for(browser, lambda browser: "web3" in silent(browser))
            assert lines(browser) == ["web2", "web10"]
            assert texts(browser, "#hosts-shown") == ["2 with 2 processes; 3 without an answer."]
            assert texts(browser, "#processes li") == ["2 hosts", "3 without an answer"]
            [reason] = [text for text in texts(browser, "#hosts .unreachable td") if "last answer" in text]
            assert "no answer within " in reason and "; the last answer came " in reason
            wait_for(browser, lambda browser: rows(browser) == [])
            # The page goes on: figures of others arrive.
            hosts[2].occupy(stack, "seen")
            wait_for(browser, lambda browser: figures(browser, "load span") == ["0 of 2 busy", "1 of 2 busy"])
            keep_screenshot(browser, "host-down-desktop")
        finally:
            lost.send_signal(signal.SIGCONT)
        wait_for(browser, lambda browser: lines(browser) == ["web2", "web3", "web10"])
        hosts[1].finish("lost")
        hosts[2].finish("seen")


def test_a_wrong_token_and_a_wrong_certificate_are_reasons(browser: Chrome, hosts: list[Host]) -> None:
    port = hosts[0].admin_port
    # They come first.
    assert texts(browser, "#hosts tbody tr:not([hidden]) th")[:2] == [f"127.0.0.5:{port}", f"https://127.0.0.4:{port}"]
    token, untrusted = texts(browser, "#hosts .unreachable td")
    assert token == "it answers 401 Unauthorized: the sender has another token, or meant another host"
    assert untrusted.startswith("its certificate is not accepted: ")
    # Tornado logs a warning for each attempt: they are few.
    assert hosts[0].output().count("SSL Error") <= 2 + (time.monotonic() - hosts[0].began) / UNTRUSTED_PAUSE


MANY = """
const done = arguments[arguments.length - 1];
import('/static/hosts.js').then(({ Hosts }) => {
  const section = document.getElementById('hosts').cloneNode(true);
  section.querySelector('tbody').replaceChildren();
  document.getElementById('hosts').replaceWith(section);
  const lane = { name: 'pool', threads: 10, busy: 7, queued: 0, queue: 1000, kept: 1, short_below: 0.1 };
  const processes = [], hosts = [];
  for (let number = 1; number <= 30; number++) {
    const keys = [`${number}a`, `${number}b`];
    for (const key of keys) {
      const addresses = ['http://0.0.0.0:8000/'];
      processes.push({ key, pid: number, addresses, started: 0, draining: false, lanes: [lane] });
    }
    hosts.push({
      name: `web${number}`, via: [`10.0.0.${number}:18000`], own: number === 1, processes: keys, draining: 0,
      threads: 20, busy: number % 21, counts: { running: 1, waiting: number % 3 },
      endings: { done: 9, failed: number % 5 }, latencies: { p50: 0.01, p95: 0.1, p99: 1.5 },
    });
  }
  const unreachable = [{ name: '10.0.0.31:18000', host: 'web31', reason: 'no answer within 2 s', answered: 0 }];
  new Hosts(section, () => {}).draw({ now: 100, processes, hosts: hosts.reverse(), unreachable, requests: [] });
  done([
    [...section.querySelectorAll('.toggle')].map((node) => node.textContent),
    section.querySelectorAll('tr:not(.opened):not([hidden])').length,
    section.getBoundingClientRect().height,
    document.documentElement.scrollWidth === document.documentElement.clientWidth,
  ]);
});
"""


def test_thirty_hosts_are_readable(browser: Chrome, hosts: list[Host]) -> None:
    for size, height in ((DESKTOP, 1500), (PHONE, 2600)):
        show_as(browser, size)
        names, lines, found, has_width = browser.execute_async_script(MANY)
        assert names == [f"web{number}" for number in range(1, 31)]
        # A line for each, one for the host without an answer, and the head.
        assert (lines, has_width) == (32, True)
        browser.execute_script("document.getElementById('hosts').scrollIntoView()")
        keep_screenshot(browser, f"thirty-hosts-{size[0]}")
        assert found <= height, size
