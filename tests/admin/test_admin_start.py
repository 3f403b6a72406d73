"""Each frontend that scripts/start.sh starts has an operators' port, which shows all of them."""

from __future__ import annotations

from tests.process.test_service_files import four_digit_port
from tests.support.installation import HTTP, installed


def test_each_operators_port_shows_all_frontends(sample_data: dict[str, str]) -> None:
    with installed() as installation:
        first = four_digit_port()
        installation.ports = [first, first + 1]
        installation.env.update(sample_data, FRONTENDS=f"{first} {first + 1}")
        output = installation.run()
        pages = [f"http://127.0.0.1:1{port}/" for port in installation.ports]
        assert output.splitlines()[-6:-3] == ["The operators' page, the same at each of these addresses:", *pages]
        for page in pages:
            document = HTTP.get(f"{page}requests.json", timeout=20).json()
            assert sorted(process["pid"] for process in document["processes"]) == sorted(installation.pids())
            assert HTTP.get(f"{page}readyz?db=1", timeout=20).status_code == 200
        installation.run("stop")
        assert list((installation.directory / "var" / "peers").glob("*.sock")) == []
