"""The whole fleet: which parts it has, and how they are built, restarted and taken away."""

from __future__ import annotations

import csv
import io
import os
import secrets
import shutil
import time
from pathlib import Path

from benchmarks.fleet.parts import ADMIN_PORT, PORT, Database, Frontend, Part, Proxy, get
from tests.support.network import Host, Network
from tests.support.processes import ROOT

# One fleet for each machine: the names of namespaces, too, are the machine's.
DIRECTORY = Path("/var/lib/threadbridge-fleet")
STATISTICS_PORT = 8404
# Seconds that a frontend may take to answer, and after SIGTERM.
DEADLINE, GRACE = 30, 40
CLIENTS = 40
LEASTCONN = "balance leastconn"


class Fleet:
    """The parts; what exists of them is found by their names."""

    def __init__(self) -> None:
        self.network = Network("fleet", "10.213.77.0/24", CLIENTS)
        self.password = DIRECTORY / "password"
        self.token = DIRECTORY / "token"
        self.nodes = [
            Database(self.network, f"db{number}", 40 + number, DIRECTORY, self.password) for number in (1, 2, 3)
        ]
        for node in self.nodes:
            node.others = [other for other in self.nodes if other is not node]
        self.database_proxy = Proxy(self._host("dbproxy", 30), DIRECTORY, self._database_configuration(), 3306)
        entry = self._host("entry", 10)
        hosts = [self._host(f"web{number}", 20 + number) for number in (1, 2, 3)]
        settings = [
            "--pool=benchmarks.fleet.application:db.pool",
            "--xheaders",
            f"--trusted_proxies={entry.address}",
            f"--deadline={DEADLINE}",
            f"--grace={GRACE}",
            f"--admin_token_file={self.token}",
            "--admin_peers=" + ",".join(f"{host.address}:{ADMIN_PORT}" for host in hosts),
        ]
        database = self.database_proxy.host.address
        self.frontends = [Frontend(host, DIRECTORY, settings, database, self.password) for host in hosts]
        self.entry = Proxy(entry, DIRECTORY, self.entry_configuration(), PORT, "/")
        self.parts: list[Part] = [*self.nodes, self.database_proxy, *self.frontends, self.entry]

    def _host(self, name: str, number: int) -> Host:
        return Host(self.network, name, number)

    def _database_configuration(self) -> str:
        """The example for users, with the nodes' addresses."""
        text = (ROOT / "docs" / "examples" / "haproxy_galera.cfg").read_text()
        text = text.replace("bind 127.0.0.1:3306", "bind :3306")
        for number, node in enumerate(self.nodes, 1):
            text = text.replace(f"10.0.0.{number}:3306", f"{node.node.address}:3306")
        return "global\n    hard-stop-after 30s\n    user nobody\n    group nogroup\n\n" + text

    def entry_configuration(self, hosts: int = 3, balance: str = LEASTCONN) -> str:
        """The entry's configuration for so many hosts, with lines that say how to balance.

        There are three frontends; more hosts than these are the same again under other names.
        """
        text = Path(__file__).with_name("entry.cfg").read_text()
        addresses = [each.host.address for each in self.frontends]
        # tcp-ut has no effect in default-server. It ends requests to a host that has vanished.
        lines = {
            "@FRONTENDS@": [
                f"server web{number + 1} {addresses[number % 3]}:{PORT} tcp-ut 5s" for number in range(hosts)
            ],
            "@BALANCE@": balance.splitlines(),
        }
        for mark, filled in lines.items():
            text = text.replace(f"    {mark}", "\n".join(f"    {line}" for line in filled))
        return text

    @property
    def url(self) -> str:
        return f"http://{self.entry.host.address}:{PORT}/"

    def part(self, name: str) -> Part:
        """The part of this name; raises ``SystemExit`` if there is none."""
        for part in self.parts:
            if part.name == name:
                return part
        raise SystemExit(f"fleet: there is no part {name!r}; there are {', '.join(each.name for each in self.parts)}")

    @property
    def is_up(self) -> bool:
        return all(part.host.is_made for part in self.parts)

    def up(self) -> None:
        """Build what is missing, and print how long each part took."""
        begun = time.monotonic()
        self._make_directory()
        self.network.make()
        for part in self.parts:
            part_begun = time.monotonic()
            part.mend()
            took = time.monotonic() - part_begun
            print(f"{part}  started in {took:5.1f} s  {part.memory / 1e6:5.0f} MB", flush=True)
        print(f"The first page was answered after {time.monotonic() - begun:.0f} s")

    def _make_directory(self) -> None:
        # The nodes run as another user.
        DIRECTORY.mkdir(exist_ok=True)
        DIRECTORY.chmod(0o755)
        for file in (self.password, self.token):
            if not file.exists():
                with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
                    output.write(secrets.token_hex(24) + "\n")

    def down(self) -> None:
        """Take away everything, also of a fleet that is built only in part."""
        for part in reversed(self.parts):
            part.host.remove()
        self.network.remove()
        shutil.rmtree(DIRECTORY, ignore_errors=True)

    def restart(self, *names: str) -> None:
        """Restart the frontends, or those of these names, one after the other; no request is lost."""
        frontends = [each for each in self.frontends if not names or each.name in names]
        if len(frontends) < len(names):
            raise SystemExit(f"fleet: not all of {', '.join(names)} are frontends, such as web1")
        for frontend in frontends:
            begun = time.monotonic()
            # It answers what it has; the entry sends nothing more.
            frontend.host.stop(GRACE + 10)
            stopped = time.monotonic()
            frontend.mend()
            self.wait_for_entry(frontend)
            print(
                f"{frontend.name} has answered its last requests in {stopped - begun:.1f} s, "
                f"and is back after {time.monotonic() - stopped:.1f} s more",
                flush=True,
            )

    def wait_for_entry(self, *frontends: Frontend, seconds: float = 30) -> None:
        """Return when the entry sends requests to the frontends."""
        give_up = time.monotonic() + seconds
        while missing := [each.name for each in frontends if self.entry_states().get(each.name) != "UP"]:
            if time.monotonic() > give_up:
                raise SystemExit(f"fleet: the entry does not see within {seconds:g} s that {missing} are ready")
            time.sleep(0.1)

    def entry_states(self) -> dict[str, str]:
        """How the entry sees each frontend."""
        _, text = get(self.entry.host.address, STATISTICS_PORT, "/;csv")
        rows = csv.DictReader(io.StringIO(text.lstrip("# ")))
        return {row["svname"]: row["status"] for row in rows if row["pxname"] == "ready"}

    def summary(self) -> str:
        """The addresses to look at."""
        pages = "\n".join(f"    http://{each.host.address}:{ADMIN_PORT}/" for each in self.frontends)
        memory = sum(part.memory for part in self.parts) / 1e6
        return (
            f"The page:\n    {self.url}\n"
            f"The operators' page, the same at each of these addresses; the token is in {self.token}:\n{pages}\n"
            f"How the entry sees the frontends:\n    http://{self.entry.host.address}:{STATISTICS_PORT}/\n"
            f"Logs: {DIRECTORY}. All parts together use {memory:.0f} MB."
        )
