"""``--check`` on the limits of the control group, such as a container's: memory and processor time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from threadbridge.doctor import Finding, ok, warning

# Where control groups are mounted: version 2 at one of the first two, version 1 in a directory for each controller.
ROOT = Path("/sys/fs/cgroup")
# Version 1 writes a number like this for "no limit".
_UNLIMITED = 1 << 60
# Bytes that the supervisor of several processes takes.
SUPERVISOR = 24 * 1024**2


class ControlGroup(NamedTuple):
    """What a control group and those above it allow: bytes, and processors; None if that is not limited."""

    memory: int | None = None
    processors: float | None = None


def read_control_group(membership: str, root: Path = ROOT) -> ControlGroup:
    """Return the limits of a process.

    :param membership: the text of its ``/proc/PID/cgroup``.
    """
    memory: list[int] = []
    processors: list[float] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        for directory in _directories(root, controllers, path):
            for name in ("memory.max", "memory.limit_in_bytes"):
                text = _read(directory / name)
                if text.isdecimal() and int(text) < _UNLIMITED:
                    memory.append(int(text))
            quota, _, period = _read(directory / "cpu.max").partition(" ")
            if not quota:
                quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
            if quota.isdecimal() and period.isdecimal():
                processors.append(int(quota) / int(period))
    return ControlGroup(min(memory, default=None), min(processors, default=None))


def _directories(root: Path, controllers: str, path: str) -> Iterator[Path]:
    """Yield the directories of a group, and of those above it, that may have limits."""
    tops = [root / controllers, *(root / name for name in controllers.split(","))]
    if not controllers:
        tops = [root, root / "unified"]
    # A container may see its own group only, as the top.
    parts = Path(path.strip("/")).parts
    for top in dict.fromkeys(tops):
        for length in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:length])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def check_control_group(
    group: ControlGroup, processes: int, memory_size: int, resident: int
) -> Iterator[tuple[str, Finding]]:
    """Compare the limits with what the server needs; yields nothing for what is not limited.

    :param memory_size: the setting.
    :param resident: bytes that a process takes without requests.
    """
    if group.memory is not None:
        yield "memory", _memory(group.memory, processes, memory_size, resident)
    if group.processors is not None:
        yield "processors", _processors(group.processors, processes)


def _memory(limit: int, processes: int, memory_size: int, resident: int) -> Finding:
    supervisor = SUPERVISOR if processes > 1 else 0
    needed = processes * (resident + 2 * memory_size) + supervisor
    message = (
        f"the control group allows {_shown(limit)}; about {_shown(needed)} are needed (processes: {processes}, each "
        f"with {_shown(resident)}, and twice memory_size for requests and unread responses), and what requests take "
        "in the application"
    )
    if needed <= limit:
        return ok(message)
    most = ((limit - supervisor) // processes - resident) // 2 // 1024**2
    smaller = f"set --memory_size to at most {most}M" if most > 0 else "start fewer processes"
    return warning(
        f"{message}: the kernel may kill the server", f"raise the limit to more than {_shown(needed)}, or {smaller}"
    )


def _processors(limit: float, processes: int) -> Finding:
    message = f"the control group allows {limit:g} processors, and a process uses about one"
    if processes <= math.ceil(limit):
        return ok(f"{message}; processes: {processes}")
    return warning(
        f"{message}, but there are {processes}: under load, all of them stand still for a part of the time",
        f"set --processes={math.ceil(limit)}, or allow {processes} processors",
    )


def resident_memory() -> int:
    """Return the bytes that this process has for itself, without files that it shares with others."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _shown(size: int) -> str:
    return f"{size / 1024**3:.1f}G" if size >= 1024**3 else f"{size / 1024**2:.0f}M"


def own_control_group() -> ControlGroup:
    """Return the limits of this process; none where there are no control groups."""
    return read_control_group(_read(Path(f"/proc/{os.getpid()}/cgroup")))
