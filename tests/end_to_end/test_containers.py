"""The image of docs/examples/container, built by its Dockerfile and run by runc: on demand, with CONTAINERS=1, after
``scripts/setup.sh containers``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.containers import Container, Store, missing, store
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, free_port
from tests.support.tcp_mariadb import tcp_mariadb

pytestmark = pytest.mark.skipif(
    os.environ.get("CONTAINERS") != "1" or missing() is not None, reason=missing() or "takes minutes: set CONTAINERS=1"
)

IMAGE = "myapplication"
# As compose.yaml has it.
HARDENED = ("--read-only", "--volume=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges")
IN_FLIGHT = 8


@pytest.fixture(scope="module")
def images() -> Iterator[Store]:
    with store() as made:
        made.build_debian()
        made.build(IMAGE, ROOT / "docs" / "examples" / "container" / "Dockerfile", ROOT)
        yield made


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """A server on this machine: the variables by which a container finds it, and the options for its secret."""
    with tcp_mariadb() as arguments:
        secret = tmp_path_factory.mktemp("secrets") / "mysql_password"
        secret.write_text(arguments["password"])
        secret.chmod(0o444)
        inside = "/run/secrets/mysql_password"
        variables = {
            "MYSQL_HOST": arguments["host"],
            "MYSQL_PORT": str(arguments["port"]),
            "MYSQL_PASSWORD_FILE": inside,
        }
        yield variables, (f"--volume={secret}:{inside}:ro",)


class Frontend:
    """A container that serves."""

    def __init__(self, images: Store, database: tuple[dict[str, str], tuple[str, ...]], **variables: str) -> None:
        port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        own = {"THREADBRIDGE_ADDRESS": "127.0.0.1", "THREADBRIDGE_PORT": str(port), "MYAPPLICATION_DIAGNOSTICS": "1"}
        variables = {**database[0], **own, "THREADBRIDGE_ADMIN_PORT": str(self.admin_port), **variables}
        self.container: Container = images.run(IMAGE, options=(*HARDENED, *database[1]), **variables)
        wait_until(lambda: self.serves(), "it serves")

    def serves(self) -> bool:
        try:
            return requests.get(self.url, timeout=30).ok
        except requests.ConnectionError:
            return False

    def running(self) -> int:
        document = requests.get(f"http://127.0.0.1:{self.admin_port}/requests.json", timeout=30).json()
        return sum(request["state"] == "running" for request in document["requests"])


def test_the_image_has_no_tools_and_no_root(images: Store) -> None:
    assert images.configuration(IMAGE)["User"] == "10001:10001"
    search = "for tool in gcc pip git; do ! command -v $tool || exit 1; done; ! python -c 'import mypy' 2>&1"
    container = images.run(IMAGE, "-c", search, options=("--entrypoint=sh",))
    assert container.wait() == 0, container.output()


def test_it_serves_compiled_as_an_ordinary_user(
    images: Store, database: tuple[dict[str, str], tuple[str, ...]]
) -> None:
    frontend = Frontend(images, database)
    assert ", compiled, on uvloop" in frontend.container.output()
    assert frontend.container.execute("id", "-u") == "10001\n"
    assert "SELECT" not in requests.get(f"{frontend.url}/query/?report=wait&seconds=0", timeout=30).text
    frontend.container.send("TERM")
    assert frontend.container.wait() == 0


def test_its_health_check_tells_a_frozen_loop(images: Store, database: tuple[dict[str, str], tuple[str, ...]]) -> None:
    # The port of the check stands in the image.
    frontend = Frontend(images, database, THREADBRIDGE_ADMIN_PORT="18000")
    assert frontend.container.is_healthy()
    frontend.container.send("STOP")
    assert not frontend.container.is_healthy()
    frontend.container.send("CONT")
    wait_until(frontend.container.is_healthy, "healthy again")
    frontend.container.send("TERM")
    assert frontend.container.wait() == 0


def test_stopping_it_loses_no_request(images: Store, database: tuple[dict[str, str], tuple[str, ...]]) -> None:
    frontend = Frontend(images, database)
    slow = f"{frontend.url}/query/?report=wait&seconds=3"
    with ThreadPoolExecutor(IN_FLIGHT) as clients:
        answers = [clients.submit(requests.get, slow, timeout=60) for _ in range(IN_FLIGHT)]
        wait_until(lambda: frontend.running() == IN_FLIGHT, "all run")
        frontend.container.send("TERM")
        assert [answer.result().status_code for answer in answers] == [200] * IN_FLIGHT
    assert frontend.container.wait() == 0
    assert "every request is answered" in frontend.container.output()


def test_the_check_runs_in_the_image(images: Store, database: tuple[dict[str, str], tuple[str, ...]]) -> None:
    container = images.run(IMAGE, "--check", options=database[1], **database[0])
    assert container.wait() in (0, 1), container.output()
    for line in ("hot path: compiled", "nginx: ", "database: "):
        assert f"ok       {line}" in container.output()
