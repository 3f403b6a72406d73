"""The report of ``--check``: the settings, and what will not work, or not well, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import resource
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import cast

from threadbridge.compiled import SWITCH, has_others, is_compiled
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.request_body import MEMORY_LIMIT
from threadbridge.crossing.spool import PART_PER_CLIENT
from threadbridge.doctor.finding import Finding, Level
from threadbridge.doctor.nginx import NginxConfigError, read_timeouts
from threadbridge.settings.table import ALL, CommandLineSettings, Resolved

# Files that a process has open besides connections of clients and to the database: logs, listeners, the event loop's.
OWN_FILES = 50


def check(resolved: Resolved, settings: CommandLineSettings, lanes: Sequence[Lane]) -> int:
    """Print the settings and the findings, each as soon as it is made; return the exit status.

    :param settings: the values of ``resolved``, with import paths replaced by the objects that they name.
    :param lanes: all lanes of the bridge, including those that it made itself.

    The status is 0 if all is well, 1 if there are warnings, 2 if there are errors.
    """
    rows = _rows(resolved)
    if settings["json"]:
        findings = list(examine(settings, lanes))
        status = max(finding.level for finding in findings)
        report = {
            "status": status,
            "settings": {name: {"value": value, "origin": origin} for name, value, origin in rows},
            "findings": [
                {"subject": each.subject, "level": each.level.name.lower(), "message": each.message}
                | ({"advice": each.advice} if each.advice else {})
                for each in findings
            ],
        }
        print(json.dumps(report, indent=2))
        return status
    for name, value, origin in rows:
        print(f"{name:20} {value or '-':20} {origin}")
    print()
    levels = []
    for finding in examine(settings, lanes):
        levels.append(finding.level)
        print(f"{finding.level.name.lower():8} {finding.subject}: {finding.message}", flush=True)
        if finding.advice:
            print(f"{'':8} -> {finding.advice}", flush=True)
    print()
    print(f"{_count(levels.count(Level.ERROR), 'error')}, {_count(levels.count(Level.WARNING), 'warning')}")
    return max(levels)


def examine(settings: CommandLineSettings, lanes: Sequence[Lane]) -> Iterator[Finding]:
    """Run all checks, the quick ones first."""
    pool = settings["pool"]
    deadline = max(lane.deadline or settings["deadline"] for lane in lanes)
    connections = _pool_connections(pool, lanes)
    processes = settings["frontends"] * settings["processes"]
    yield _versions(with_pool=pool is not None)
    yield _hot_path()
    yield _queues(settings, lanes)
    yield _files(lanes, connections)
    yield _uploads(settings["max_body_size"], settings["spool_size"])
    yield from _directories(settings)
    if settings["nginx_config"] is not None:
        yield _nginx(settings["nginx_config"], deadline)
    if pool is not None:
        # Without a pool, DBUtils need not be installed.
        from threadbridge.doctor.database import check_database
        from threadbridge.doctor.mysql import Load

        yield from check_database(pool, Load(processes, connections, deadline))


def _pool_connections(pool: object, lanes: Sequence[Lane]) -> int:
    if pool is None:
        return 0
    # Without a pool, DBUtils need not be installed.
    from threadbridge.database.dbutils_check import pool_size

    # An unlimited pool has at most one for each thread.
    return pool_size(pool) or sum(lane.threads for lane in lanes)


def _versions(with_pool: bool) -> Finding:
    found = [f"Python {platform.python_version()}"]
    for package in ("threadbridge", "tornado", "httptools", *(("DBUtils",) if with_pool else ())):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed: runs from its source tree)")
    return Finding("versions", Level.OK, ", ".join(found))


def _hot_path() -> Finding:
    if is_compiled():
        return Finding("hot path", Level.OK, "compiled")
    if os.environ.get(SWITCH) == "0":
        return Finding("hot path", Level.OK, f"not compiled, because {SWITCH} is 0")
    if has_others():
        return Finding(
            "hot path",
            Level.WARNING,
            "the compiled modules do not match the sources, so the sources run, which is slower",
            "compile them again: scripts/setup.sh application, or scripts/start.sh restart, which includes that",
        )
    return Finding(
        "hot path", Level.OK, "not compiled, which is slower; docs/performance.md explains how to compile it"
    )


def _queues(settings: CommandLineSettings, lanes: Sequence[Lane]) -> Finding:
    shown = "; ".join(
        f"{lane.name}: {_count(lane.threads, 'thread')}, up to {lane.queue} waiting requests" for lane in lanes
    )
    closed = [lane.name for lane in lanes if lane.queue == 0]
    if closed:
        return Finding(
            "queues",
            Level.WARNING,
            f"no queue in lane {', '.join(closed)}: while its threads are busy, every request is answered 503",
            "let some requests wait: --queue=1000",
        )
    shortest = min(lane.deadline or settings["deadline"] for lane in lanes)
    if settings["queue_timeout"] >= shortest:
        return Finding(
            "queues",
            Level.WARNING,
            f"a request may wait {settings['queue_timeout']:g} s for a thread, but its deadline is after {shortest:g} "
            "s: when the queue is long, requests start with no time left",
            f"set --queue_timeout to less than the deadline, such as {shortest / 6:g}",
        )
    return Finding("queues", Level.OK, f"{shown}; a request waits for {settings['queue_timeout']:g} s at most")


def _files(lanes: Sequence[Lane], connections: int) -> Finding:
    running = sum(lane.threads for lane in lanes) + connections + OWN_FILES
    needed = running + sum(lane.queue for lane in lanes)
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        shown = "any number of" if limit == resource.RLIM_INFINITY else limit
        return Finding(
            "open files",
            Level.OK,
            f"the process may open {shown} files, and needs about {needed} when its queues are full",
        )
    how = "LimitNOFILE= in a systemd unit, `ulimit -n` in a shell"
    if most != resource.RLIM_INFINITY and most < needed:
        how += f"; raise the hard limit too, which is {most}"
    return Finding(
        "open files",
        Level.ERROR if limit < running else Level.WARNING,
        f"the process may open {limit} files, "
        + (
            f"but needs about {running} when all its threads are busy"
            if limit < running
            else f"but needs about {needed} when its queues are full; at the limit no more clients can connect"
        ),
        f"raise the limit to at least {needed} ({how}), or set a smaller --queue",
    )


def _uploads(largest: int, spool_size: int) -> Finding:
    # The share of the disk space that one client may use.
    part = spool_size // PART_PER_CLIENT
    if largest <= part or largest < MEMORY_LIMIT:
        return Finding(
            "uploads",
            Level.OK,
            f"bodies of up to {largest} bytes are accepted, and {part} bytes from one client at a time",
        )
    return Finding(
        "uploads",
        Level.WARNING,
        f"bodies of up to {largest} bytes are accepted, but one client may use only a quarter of spool_size, "
        f"which is {part} bytes: larger bodies are answered 507",
        f"set --spool_size to at least {PART_PER_CLIENT * largest}, or --max_body_size to at most {part}",
    )


def _directories(settings: CommandLineSettings) -> Iterator[Finding]:
    log, unix_socket = settings["log_file_prefix"], settings["unix_socket"]
    if log is not None:
        yield _log_directory(log)
    if unix_socket is not None:
        yield _directory("socket directory", os.path.dirname(os.path.abspath(unix_socket)), "the Unix socket")
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        yield _unwritable("temporary files", f"cannot be created: {error}", "the variable TMPDIR sets the directory")
    else:
        yield Finding("temporary files", Level.OK, f"can be created in {tempfile.gettempdir()}")


def _log_directory(path: str) -> Finding:
    directory = _directory("log directory", os.path.dirname(os.path.abspath(path)), "new log files")
    try:
        # Without creating it: its owner would be the user who runs the check.
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
    except FileNotFoundError:
        return directory
    except OSError as error:
        return _unwritable("log file", f"{path} cannot be written: {error.strerror}")
    if directory.level is Level.ERROR:
        return Finding(
            "log directory",
            Level.WARNING,
            f"{path} can be written now, but cannot be rotated: {directory.message}",
            directory.advice,
        )
    return directory


def _directory(subject: str, path: str, purpose: str) -> Finding:
    """Check that files can be created in a directory, by creating one without a name."""
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return _unwritable(subject, f"cannot create files in {path}, which is needed for {purpose}: {error.strerror}")
    return Finding(subject, Level.OK, f"files can be created in {path}")


def _unwritable(subject: str, message: str, hint: str = "") -> Finding:
    advice = "check that the path exists, that its disk has free space, and that the server's user may write there" + (
        f"; {hint}" if hint else ""
    )
    return Finding(subject, Level.ERROR, f"{message} (as user id {os.geteuid()})", advice)


def _nginx(path: str, deadline: float) -> Finding:
    try:
        timeouts = read_timeouts(path)
    except OSError as error:
        problem = f"{error.filename} cannot be read: {error.strerror}"
    except NginxConfigError as error:
        problem = str(error)
    else:
        shortest = min(timeouts)
        if shortest.seconds > deadline:
            return Finding(
                "nginx",
                Level.OK,
                f"waits {shortest.seconds:g} s for a response, longer than the deadline, {deadline:g} s",
            )
        return Finding(
            "nginx",
            Level.WARNING,
            f"gives up after {shortest.seconds:g} s ({shortest.location}), but a request may take {deadline:g} s: its "
            "client then gets nginx's error page",
            f"set proxy_read_timeout to more than {deadline:g}, such as {deadline + 20:g}, or --deadline to less than "
            f"{shortest.seconds:g}",
        )
    return Finding(
        "nginx", Level.WARNING, problem, "set --nginx_config to the nginx file whose proxy_pass leads to this server"
    )


def _rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    values = cast(dict[str, object], resolved.values)
    return [(name, setting.show(values[name]), resolved.origins[name]) for name, setting in ALL.items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
