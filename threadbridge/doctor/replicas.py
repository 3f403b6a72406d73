"""``--check`` on replicas: whether they follow the primary, and refuse changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as NoAnswer

from threadbridge.database.replica import Replica
from threadbridge.doctor import Finding, in_thread, ok, warning
from threadbridge.doctor.database import TIME_LIMIT

_REMEDY = "mend the replication; meanwhile, requests of the lane read from the primary: see docs/replicas.md"


def check_replicas(replicas: Sequence[Replica]) -> Iterator[tuple[str, Finding]]:
    """Look at each replica as a server does. Yields subjects and findings, each within about `TIME_LIMIT`."""
    for replica in replicas:
        subject = f"replica ({replica.lane})"
        looking = in_thread(replica.look)
        try:
            problem = looking.result(TIME_LIMIT)
        except NoAnswer:
            yield subject, warning(f"the primary and the replica have not answered within {TIME_LIMIT:g} s", _REMEDY)
            continue
        finally:
            replica.close()
        if problem:
            yield subject, warning(problem, _REMEDY)
            continue
        how = "the application's pool hands out its connections"
        if not replica.stands_in:
            how = "the application must ask threadbridge.on_replica() and choose the pool itself"
        yield subject, ok(f"follows the primary, {replica.lag:.1f} s behind, and is read-only; {how}")
