"""``--check`` on the number of connections: what the processes need, and what the database allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from threadbridge.doctor import Finding, error, ok

# Besides each of its pools, a process keeps a connection for stopping queries open. While a stop is late, it opens up
# to three more for a moment; these are not counted, as the other stops wait for the late one if they are refused.
CONTROL_CONNECTIONS = 1


class Load(NamedTuple):
    """The load that a database must bear."""

    # How many processes like this one use it, and how many connections each of a process's pools on this server may
    # have; empty if that is checked with another pool.
    processes: int
    pools: Sequence[int]
    # Seconds that a request may take until its response begins.
    longest_request: float

    def compare(self, name: str, allowed: int, others: int, own: Mapping[str, int]) -> Finding:
        """Compare what is needed with the limits.

        :param name: what the server calls its limit for all connections.
        :param allowed: that limit; other programs have ``others`` connections now.
        :param own: the limits for this user or database alone, by their names.
        """
        control = CONTROL_CONNECTIONS * len(self.pools)
        needed = self.processes * (sum(self.pools) + control)
        use = (
            f"{needed} are needed (processes: {self.processes}, each with {' + '.join(map(str, self.pools))} in its "
            f"pool{'s' if len(self.pools) > 1 else ''} and {control} for stopping queries)"
        )
        limits = f"{name} is {allowed}, of which other programs use {others} now"
        too_few = needed - (allowed - others)
        for limit, number in own.items():
            if needed - number > too_few:
                name, too_few, limits = limit, needed - number, f"{limit} is {number}"
        if too_few > 0:
            return error(
                f"{use}, but {limits}",
                f"raise {name} on the server by {too_few} or more, or make the pool smaller, or start fewer processes",
            )
        return ok(f"{use}; {limits}")
