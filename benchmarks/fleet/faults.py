"""What can be broken, by name, and mended again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.fleet.box import Fleet
from benchmarks.fleet.parts import Database, Part, Proxy


class Fault(NamedTuple):
    """A way to break a part, and the parts that can be broken so."""

    meaning: str
    kind: type
    do: Callable[[Part], None]


def _desynchronise(part: Part) -> None:
    assert isinstance(part, Database)
    part.node.execute("SET GLOBAL wsrep_desync = ON")


def _make_read_only(part: Part) -> None:
    assert isinstance(part, Database)
    part.node.execute("SET GLOBAL read_only = ON")


FAULTS = {
    "kill": Fault("ends its processes with SIGKILL", Part, lambda part: part.host.kill()),
    "unplug": Fault("cuts it off from the network; no connection is closed", Part, lambda part: part.host.unplug()),
    "slow": Fault("lets it send only 1 Mbit/s", Part, lambda part: part.host.slow_down()),
    "suspend": Fault(
        "stops its processes with SIGSTOP: it accepts connections, and does nothing",
        Part,
        lambda part: part.host.signal(signal.SIGSTOP),
    ),
    "donor": Fault("makes it a donor, which may lag behind the others", Database, _desynchronise),
    "read-only": Fault("refuses writes, as a replica does", Database, _make_read_only),
    "reload": Fault(
        "reads its configuration again in new processes",
        Proxy,
        lambda part: part.host.signal(signal.SIGUSR2, *part.host.first_processes),
    ),
}


def listing(fleet: Fleet) -> str:
    """What can be broken, one fault a line."""
    lines = []
    for name, fault in FAULTS.items():
        parts = " ".join(part.name for part in fleet.parts if isinstance(part, fault.kind))
        lines.append(f"{name:10} {fault.meaning}: {parts}")
    return "\n".join(lines)


def break_part(fleet: Fleet, fault: str, name: str) -> None:
    """Break a part in this way; raises ``SystemExit`` if that cannot be done."""
    part = fleet.part(name)
    if fault not in FAULTS:
        raise SystemExit(f"fleet: there is no fault {fault!r}; there are:\n{listing(fleet)}")
    if not isinstance(part, FAULTS[fault].kind):
        raise SystemExit(f"fleet: {name} cannot be broken by {fault}; what can be:\n{listing(fleet)}")
    FAULTS[fault].do(part)


def mend(fleet: Fleet, *names: str) -> None:
    """Make these parts what they should be, or all."""
    for part in [fleet.part(name) for name in names] or fleet.parts:
        part.mend()
