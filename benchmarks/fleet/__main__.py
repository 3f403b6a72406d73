"""``python -m benchmarks.fleet``: the commands of scripts/fleet.sh."""

from __future__ import annotations

import argparse
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fleet import faults, greedy, scale
from benchmarks.fleet.box import Fleet
from benchmarks.fleet.load import drive
from tests.support.galera import missing

LOCK = Path("/run/lock/threadbridge-fleet")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fleet.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="build the fleet, or what is missing of it")
    commands.add_parser("status", help="show the parts; the exit status is 3 if one does not serve")
    load = commands.add_parser("load", help="send a mixed load, and count what became of it")
    load.add_argument("--seconds", type=float, default=30, help="for how long; 30 by default")
    breaking = commands.add_parser("break", help="break a part; without arguments, list what can be broken")
    breaking.add_argument("fault", nargs="?", choices=list(faults.FAULTS))
    breaking.add_argument("part", nargs="?")
    mending = commands.add_parser("mend", help="mend the parts of these names, or all")
    mending.add_argument("part", nargs="*")
    restarting = commands.add_parser("restart", help="restart these frontends, or all, one after the other")
    restarting.add_argument("part", nargs="*")
    commands.add_parser("greedy", help="measure what polite clients get beside a greedy one; takes minutes")
    commands.add_parser("scale", help="measure what grows with the number of hosts; takes a minute or two")
    commands.add_parser("down", help="take everything away")
    arguments = parser.parse_args()
    if problem := missing():
        print(f"fleet.sh: {problem}", file=sys.stderr)
        return 1
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Carry out a command; gives the exit status."""
    fleet = Fleet()
    if arguments.command == "down":
        with _alone():
            fleet.down()
        return 0
    if arguments.command == "up":
        with _alone():
            fleet.up()
        print(fleet.summary())
        return 0
    if not fleet.is_up and arguments.command != "status":
        raise SystemExit("fleet: it is not up, or only in part; run scripts/fleet.sh up first")
    if arguments.command == "status":
        return status(fleet)
    if arguments.command == "load":
        return 1 if drive(fleet, arguments.seconds, lambda line: print(line, flush=True)).wrong else 0
    if arguments.command == "restart":
        with _alone():
            fleet.restart(*arguments.part)
    elif arguments.command in ("greedy", "scale"):
        measure = greedy.measure if arguments.command == "greedy" else scale.measure
        with _alone():
            measure(fleet, lambda line: print(line, flush=True))
    elif arguments.command == "mend":
        with _alone():
            faults.mend(fleet, *arguments.part)
    elif arguments.part is None:
        print(faults.listing(fleet))
    else:
        faults.break_part(fleet, arguments.fault, arguments.part)
    return 0


def status(fleet: Fleet) -> int:
    """Show the parts; gives the exit status."""
    bad = 0
    for part in fleet.parts:
        problem = part.problem() if part.host.is_made else "it is not built"
        bad += bool(problem)
        print(f"{part}  {part.memory / 1e6:5.0f} MB  {problem or 'serves'}")
    if not bad:
        print(fleet.summary())
    return 3 if bad else 0


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other commands from changing the fleet meanwhile."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("fleet: another command is changing the fleet; try again when it has ended") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
