"""The report of ``--check``: the settings, and what will not work, or not well, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import cast

from threadbridge.compiled import SWITCH, has_others, is_compiled
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.request_body import MEMORY_LIMIT
from threadbridge.crossing.spool import PART_PER_CLIENT
from threadbridge.database.guard import Guard
from threadbridge.database.pools.kind import FoundPool, PoolLoad
from threadbridge.doctor import Finding, Level, error, ok, warning
from threadbridge.doctor.container import check_control_group, own_control_group, resident_memory
from threadbridge.doctor.database import check_database, server_of
from threadbridge.doctor.interpreter import check_interpreter
from threadbridge.doctor.load import Load
from threadbridge.doctor.nginx import NginxConfigError, read_timeouts
from threadbridge.http.client_connection import CONNECT_TIME, Origin
from threadbridge.loop.bridge import Bridge
from threadbridge.loop.lane_choice import WEBSOCKETS
from threadbridge.process.application_pools import ApplicationPools
from threadbridge.settings.resolving import Resolved
from threadbridge.settings.table import ALL, CommandLineSettings
from threadbridge.settings.values import address_of

# Files that a process has open besides connections of clients and to the database: logs, listeners, the event loop's.
OWN_FILES = 50
# The packages that define pools, by their modules.
_POOLS = {
    "dbutils": "DBUtils",
    "sqlalchemy": "SQLAlchemy",
    "flask_sqlalchemy": "Flask-SQLAlchemy",
    "django": "Django",
    "psycopg_pool": "psycopg_pool",
    "mysql.connector.pooling": "mysql-connector-python",
}


def check(resolved: Resolved, settings: CommandLineSettings, bridge: Bridge, found: ApplicationPools) -> int:
    """Print the settings and the findings, each as soon as it is made; return the exit status.

    ``settings`` are the values of ``resolved``, with import paths replaced by the objects that they name. The status is
    0 if all is well, 1 if there are warnings, 2 if there are errors.
    """
    values = cast(dict[str, object], resolved.values)
    shown = {
        name: {"value": setting.show(values[name]), "origin": resolved.origins[name]} for name, setting in ALL.items()
    }
    as_json = settings["json"]
    if not as_json:
        for name, row in shown.items():
            print(f"{name:20} {row['value'] or '-':20} {row['origin']}")
        print()
    levels, findings = [], []
    for subject, (level, message, advice) in examine(settings, bridge, found):
        levels.append(level)
        finding = {"subject": subject, "level": level.name.lower(), "message": message, "advice": advice}
        findings.append({key: text for key, text in finding.items() if text})
        if not as_json:
            print(f"{level.name.lower():8} {subject}: {message}", flush=True)
        if not as_json and advice:
            print(f"{'':8} -> {advice}", flush=True)
    status = max(levels)
    if as_json:
        print(json.dumps({"status": status, "settings": shown, "findings": findings}, indent=2))
    else:
        errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
        print(f"\n{_count(errors, 'error')}, {_count(warnings, 'warning')}")
    return status


def examine(settings: CommandLineSettings, bridge: Bridge, found: ApplicationPools) -> Iterator[tuple[str, Finding]]:
    """Run all checks, the quick ones first: subjects and findings."""
    lanes, guards = bridge.lanes, list(bridge.desk)
    log = settings["log_file_prefix"]
    unix_sockets = [settings["unix_socket"], *(address_of(text).path for text in settings["bind"])]
    deadline = max(lane.deadline or settings["deadline"] for lane in lanes)
    # A pool without a limit has at most one for each thread.
    sizes = {guard: guard.size or sum(lane.threads for lane in lanes) for guard in guards}
    yield "versions", _versions()
    yield "interpreter", check_interpreter()
    yield "pool", ok("; ".join(found.lines()))
    for refusal in found.refusals:
        yield "pool", warning(refusal, "name the pools to guard with --pool, or none with --pool=none")
    yield "hot path", _hot_path()
    yield "queues", _queues(settings, lanes)
    yield "open files", _files(lanes, sum(sizes.values()))
    yield from check_control_group(
        own_control_group(), settings["processes"], settings["memory_size"], resident_memory()
    )
    hosts = list(dict.fromkeys(origin for lane in lanes for origin in lane.upstream))
    if hosts:
        yield "other hosts", _hosts(hosts)
    yield "uploads", _uploads(settings["max_body_size"], settings["spool_size"])
    if log is not None:
        yield _log(log)
    for directory in dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in unix_sockets if path):
        yield "socket directory", _directory(directory, "the Unix socket")
    yield "temporary files", _directory(None, "large bodies", "; the variable TMPDIR sets the directory")
    if settings["nginx_config"] is not None:
        yield "nginx", _nginx(settings["nginx_config"], deadline)
    processes = settings["frontends"] * settings["processes"]
    on_server: dict[object, list[int]] = {}
    for guard, size in sizes.items():
        on_server.setdefault(server_of(guard.settings), []).append(size)
    threads = {lane.name: lane.threads for lane in lanes}
    for guard, pool in zip(guards, [*found.found, *found.replicas.values()], strict=True):
        # What a server must bear is said once, with its first pool.
        load = Load(processes, on_server.pop(server_of(guard.settings), []), deadline)
        of_pool = threads[guard.key] if guard.settings.is_replica else found.threads or pool.size
        for subject, finding in _pool(pool, guard, load, of_pool):
            yield subject if len(guards) == 1 else f"{subject} ({guard.key})", finding
    if bridge.desk.replicas:
        # Not above: few have replicas.
        from threadbridge.doctor.replicas import check_replicas

        yield from check_replicas(bridge.desk.replicas)


def _pool(pool: FoundPool, guard: Guard, load: Load, threads: int) -> Iterator[tuple[str, Finding]]:
    if not guard.knows_server:
        yield "database", ok("not checked: which server it is will be known when the application first connects")
        return
    idle_timeout = yield from check_database(guard.settings, load)
    try:
        for setting, problem, remedy in pool.advice(PoolLoad(threads, load.longest_request, idle_timeout)):
            yield setting, warning(problem, remedy)
    except Exception as failure:  # noqa: BLE001 - whatever another package's kind raises
        yield "pool settings", warning(f"cannot be examined: {failure!r}", "tell the author of the pool's support")


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}"]
    of_pools = [package for module, package in _POOLS.items() if module in sys.modules]
    for package in ["threadbridge", "tornado", "httptools", *of_pools]:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed: runs from its source tree)")
    return ok(", ".join(found))


def _hot_path() -> Finding:
    if is_compiled():
        return ok("compiled")
    if os.environ.get(SWITCH) == "0":
        return ok(f"not compiled, because {SWITCH} is 0")
    if has_others():
        return warning(
            "the compiled modules do not match the sources, so the sources run, which is slower",
            "compile them again: scripts/setup.sh application, or scripts/start.sh restart, which includes that",
        )
    return ok("not compiled, which is slower; docs/performance.md explains how to compile it")


def _queues(settings: CommandLineSettings, lanes: Sequence[Lane]) -> Finding:
    # WebSockets have no queue by design.
    closed = [lane.name for lane in lanes if lane.queue == 0 and lane.name != WEBSOCKETS]
    if closed:
        return warning(
            f"no queue in lane {', '.join(closed)}: while its threads are busy, every request is answered 503",
            "let some requests wait: --queue=1000",
        )
    timeout = settings["queue_timeout"]
    shortest = min(lane.deadline or settings["deadline"] for lane in lanes)
    if timeout >= shortest:
        return warning(
            f"a request may wait {timeout:g} s for a thread, but its deadline is after {shortest:g} s: when the queue "
            "is long, requests start with no time left",
            f"set --queue_timeout to less than the deadline, such as {shortest / 6:g}",
        )
    shown = [
        f"{lane.name}: up to {lane.queue} requests on {' and '.join(map(str, lane.upstream))}"
        if lane.upstream
        else f"{lane.name}: {_count(lane.threads, 'thread')}, up to {lane.queue} waiting requests"
        for lane in lanes
    ]
    return ok(f"{'; '.join(shown)}; a request waits for {timeout:g} s at most")


def _files(lanes: Sequence[Lane], connections: int) -> Finding:
    # A WebSocket takes three: its client's, and the two ends of the pair that joins it to the application.
    clients = sum(lane.threads * (3 if lane.name == WEBSOCKETS else 1) for lane in lanes)
    running = clients + connections + OWN_FILES
    # A request at another host takes two.
    needed = running + sum(lane.queue * (2 if lane.upstream else 1) for lane in lanes)
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    when_full = f"needs about {needed} when its queues are full"
    if limit == resource.RLIM_INFINITY:
        return ok(f"the process may open any number of files, and {when_full}")
    if limit >= needed:
        return ok(f"the process may open {limit} files, and {when_full}")
    how = "LimitNOFILE= in a systemd unit, `ulimit -n` in a shell"
    if most != resource.RLIM_INFINITY and most < needed:
        how += f"; raise the hard limit too, which is {most}"
    advice = f"raise the limit to at least {needed} ({how}), or set a smaller --queue"
    allowed = f"the process may open {limit} files, but"
    if limit < running:
        return error(f"{allowed} needs about {running} when all its threads are busy", advice)
    return warning(f"{allowed} {when_full}; at the limit no more clients can connect", advice)


def _hosts(origins: Sequence[Origin]) -> Finding:
    problems = []
    for origin in origins:
        try:
            socket.create_connection((origin.host, origin.port), timeout=CONNECT_TIME).close()
        except OSError as failure:
            problems.append(f"{origin} cannot be reached: {failure.strerror or failure}")
    if not problems:
        return ok(f"{' and '.join(map(str, origins))} can be reached")
    return warning(
        "; ".join(problems),
        "start threadbridge there, or check the URL in --lane or --long_upstream, --address there, and the firewall",
    )


def _uploads(largest: int, spool_size: int) -> Finding:
    # The disk space that one client may use.
    part = spool_size // PART_PER_CLIENT
    accepted = f"bodies of up to {largest} bytes are accepted"
    if largest <= part or largest < MEMORY_LIMIT:
        return ok(f"{accepted}, and {part} bytes from one client at a time")
    return warning(
        f"{accepted}, but one client may use only a quarter of spool_size, which is {part} bytes: larger bodies are "
        "answered 507",
        f"set --spool_size to at least {PART_PER_CLIENT * largest}, or --max_body_size to at most {part}",
    )


def _log(path: str) -> tuple[str, Finding]:
    level, message, advice = directory = _directory(os.path.dirname(os.path.abspath(path)), "new log files")
    try:
        # Without creating it: its owner would be the user who runs the check.
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
    except FileNotFoundError:
        pass
    except OSError as failure:
        return "log file", _unwritable(f"{path} cannot be written: {failure.strerror}")
    else:
        if level is Level.ERROR:
            directory = warning(f"{path} can be written now, but cannot be rotated: {message}", advice)
    return "log directory", directory


def _directory(path: str | None, purpose: str, hint: str = "") -> Finding:
    """Check that a directory, or that for temporary files, can hold a new file, by creating one without a name."""
    try:
        path = path or tempfile.gettempdir()
        tempfile.TemporaryFile(dir=path).close()
    except OSError as failure:
        where = f" in {path}" if path else ""
        return _unwritable(f"cannot create files{where}, which is needed for {purpose}: {failure.strerror}", hint)
    return ok(f"files can be created in {path}")


def _unwritable(message: str, hint: str = "") -> Finding:
    return error(
        f"{message} (as user id {os.geteuid()})",
        f"check that the path exists, that its disk has free space, and that the server's user may write there{hint}",
    )


def _nginx(path: str, deadline: float) -> Finding:
    try:
        timeout, location = min(read_timeouts(path))
    except (OSError, NginxConfigError) as failure:
        reason = f"{failure.filename} cannot be read: {failure.strerror}" if isinstance(failure, OSError) else failure
        return warning(f"{reason}", "set --nginx_config to the nginx file whose proxy_pass leads to this server")
    if timeout > deadline:
        return ok(f"waits {timeout:g} s for a response, longer than the deadline, {deadline:g} s")
    return warning(
        f"gives up after {timeout:g} s ({location}), but a request may take {deadline:g} s: its client then gets "
        "nginx's error page",
        f"set proxy_read_timeout to more than {deadline:g}, such as {deadline + 20:g}, or --deadline to less than "
        f"{timeout:g}",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
