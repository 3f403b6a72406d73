"""``python -m tests.faults --seconds 600 --seed N``: status 0 if all promises were kept, 1 if not."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time

from tests.faults.campaign import GROUPS, Campaign, Outcome
from tests.faults.frontend import SUPERVISED


def describe(outcome: Outcome) -> str:
    """What came of a campaign, for people."""
    lines = [f"{kind}: {count}" for kind, count in outcome.answers.items()]
    lines += [f"skipped: {name}: {reason}" for name, reason in outcome.skipped.items()]
    if outcome.violations:
        lines += ["", "What happened:", *outcome.history, ""]
        lines += [f"VIOLATION: {violation}" for violation in outcome.violations]
        lines.append(f"{len(outcome.violations)} violations; --seed {outcome.seed} repeats the choices")
        lines.append(f"The frontend's logs are in {outcome.logs}")
    else:
        lines.append(f"All promises were kept; {outcome.faults} faults, seed {outcome.seed}")
    return "\n".join(lines)


def _names(text: str) -> list[str]:
    """The names of faults; raises ``ArgumentTypeError`` for one that there is not."""
    names = text.split(",")
    unknown = set(names) - {fault.__name__ for group in (*GROUPS, SUPERVISED) for fault in group}
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no fault {', '.join(unknown)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long, in all (default 60)")
    parser.add_argument("--seed", type=int, help="repeat the choices of a run")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="of the frontend (default 2)")
    parser.add_argument("--transfers", type=int, default=0, help="go on until so many transfers were answered 200")
    parser.add_argument("--only", type=_names, default=(), help="the faults to choose from: A,B,...")
    parser.add_argument("--without", type=_names, default=(), help="faults to leave out: A,B,...")
    parser.add_argument("--rounds", type=int, default=1, help="how many campaigns share the time (default 1)")
    arguments = parser.parse_args()
    # What was started is ended then, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    status = 0
    for number in range(arguments.rounds):
        print(f"campaign {number + 1} of {arguments.rounds}, seed {seed + number}", flush=True)
        campaign = Campaign(
            seed + number,
            processes=arguments.processes,
            only=arguments.only,
            without=arguments.without,
            report=lambda line: print(line, flush=True),
        )
        started = time.monotonic()
        outcome = campaign.run(arguments.seconds / arguments.rounds, arguments.transfers // arguments.rounds)
        print(describe(outcome), f"({time.monotonic() - started:.0f} s)", flush=True)
        status = max(status, bool(outcome.violations))
    return status


if __name__ == "__main__":
    sys.exit(main())
