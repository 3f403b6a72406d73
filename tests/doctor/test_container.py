"""``--check`` in a control group: its limits are found, and compared with what the server needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doctor_report import check_without_pool
from threadbridge.doctor import Level
from threadbridge.doctor.container import ControlGroup, check_control_group, read_control_group

M, G = 1024**2, 1024**3


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        # Version 2: in a container, which sees its own group as the top.
        ({"memory.max": "536870912", "cpu.max": "150000 100000"}, "0::/", ControlGroup(512 * M, 1.5)),
        ({"memory.max": "max", "cpu.max": "max 100000"}, "0::/", ControlGroup()),
        # On the host, where a group above may allow less.
        (
            {
                "a/b/memory.max": str(2 * G),
                "a/memory.max": str(G),
                "a/b/cpu.max": "50000 100000",
                "a/cpu.max": "max 100000",
            },
            "0::/a/b",
            ControlGroup(G, 0.5),
        ),
        # The path is the host's, but the mount the container's.
        ({"memory.max": str(G)}, "0::/system.slice/docker-1.scope", ControlGroup(G)),
        # Version 1.
        (
            {
                "memory/x/memory.limit_in_bytes": str(G),
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            "5:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/x",
            ControlGroup(G, 2.0),
        ),
        ({}, "", ControlGroup()),
        ({}, "0::/gone", ControlGroup()),
    ],
)
def test_limits_are_found(tmp_path: Path, files: dict[str, str], membership: str, expected: ControlGroup) -> None:
    assert read_control_group(membership, tree(tmp_path, **files)) == expected


def test_memory() -> None:
    [(subject, finding)] = check_control_group(ControlGroup(memory=200 * M), 1, 32 * M, 50 * M)
    assert (subject, finding.level) == ("memory", Level.OK)
    assert finding.message.startswith(
        "the control group allows 200M; about 114M are needed (processes: 1, each with 50M"
    )
    [(_, finding)] = check_control_group(ControlGroup(memory=200 * M), 2, 32 * M, 50 * M)
    assert finding.level is Level.WARNING
    assert finding.advice == "raise the limit to more than 252M, or set --memory_size to at most 19M"
    # What is advised is enough.
    [(_, finding)] = check_control_group(ControlGroup(memory=200 * M), 2, 19 * M, 50 * M)
    assert finding.level is Level.OK
    [(_, finding)] = check_control_group(ControlGroup(memory=100 * M), 2, 19 * M, 50 * M)
    assert finding.advice.endswith("or start fewer processes")


@pytest.mark.parametrize(("processors", "processes", "level"), [(0.5, 1, 0), (1.5, 2, 0), (1.5, 3, 1), (4, 4, 0)])
def test_processors(processors: float, processes: int, level: int) -> None:
    [(subject, finding)] = check_control_group(ControlGroup(processors=processors), processes, 1, 1)
    assert (subject, finding.level) == ("processors", level)
    assert not level or finding.advice == "set --processes=2, or allow 3 processors"


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of the kernel's with 64 MB of memory, version 1 or 2; removed afterwards."""
    root = Path("/sys/fs/cgroup")
    group = (root / "memory" if (root / "memory").is_dir() else root) / f"threadbridge-test-{os.getpid()}"
    name = "memory.limit_in_bytes" if group.parent != root else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group / name).exists():
            pytest.skip("the controller of memory is not delegated here")
        (group / name).write_text(str(64 * M))
        yield group
    finally:
        group.rmdir()


def test_a_real_control_group(tmp_path: Path, real_group: Path) -> None:
    def enter() -> None:
        (real_group / "cgroup.procs").write_text(str(os.getpid()))

    report = check_without_pool(tmp_path, "--memory_size=64M", limits=enter)
    assert report.level("memory") == "warning"
    assert report.message("memory").startswith("the control group allows 64M; about ")
