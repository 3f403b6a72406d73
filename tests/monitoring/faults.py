"""The fault that each alert describes, made in a real frontend, its database or its clients."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import MySQLdb

from tests.support.inprocess import wait_until
from tests.support.watched_site import (
    WatchedSite,
    https_site,
    make_certificate,
    site_with_remote_lane,
    site_with_replica,
)
from tests.support.watched_site import site as plain_site

SLEEP = "/sql?SELECT SLEEP(3)"
UNFINISHED = "GET / HTTP/1.1\r\nHost: a\r\n"


@dataclass(frozen=True)
class Fault:
    """What breaks, and what must then be heard.

    :param alerts: that must fire.
    :param also: that may fire too, since the fault is one of theirs as well, or the machine is busy.
    :param make: the fault is there inside its block, and mended after it.
    :param site: makes the frontend that it needs, in a directory.
    """

    make: Callable[[WatchedSite], AbstractContextManager[None]]
    alerts: frozenset[str]
    also: frozenset[str]
    site: Callable[[Path], AbstractContextManager[WatchedSite]]


FAULTS: dict[str, Fault] = {}
# May fire at any time: a machine on which many tests run is as slow as that.
OF_BUSY_MACHINE = frozenset({"FrontendDown", "LoopHeldUp"})


def causes(
    *alerts: str,
    also: Sequence[str] = (),
    site: Callable[..., AbstractContextManager[WatchedSite]] = plain_site,
    arguments: Sequence[str] = (),
) -> Callable[[Callable[[WatchedSite], Iterator[None]]], None]:
    """Enter a fault that makes these alerts fire."""

    def enter(make: Callable[[WatchedSite], Iterator[None]]) -> None:
        def site_in(directory: Path) -> AbstractContextManager[WatchedSite]:
            return site(directory, *arguments)

        may_fire = frozenset({*also, *OF_BUSY_MACHINE} - {*alerts})
        FAULTS[make.__name__] = Fault(contextmanager(make), frozenset(alerts), may_fire, site_in)

    return enter


@causes("FrontendDown")
def the_frontend_is_killed(site: WatchedSite) -> Iterator[None]:
    site.process.kill()
    site.process.wait()
    yield
    site.start()


@causes("FrontendDown")
def the_frontend_hangs(site: WatchedSite) -> Iterator[None]:
    site.process.send_signal(signal.SIGSTOP)
    yield
    site.process.send_signal(signal.SIGCONT)


@causes("NotReady", "ServerErrors")
def the_database_is_down(site: WatchedSite) -> Iterator[None]:
    site.set_database("stop")
    yield
    site.set_database("start")


@causes("ServerErrors")
def the_application_fails(site: WatchedSite) -> Iterator[None]:
    with site.repeating(lambda: site.get("/error")):
        yield


@causes("ProcessesFail", also=["NotReady", "ServerErrors"], arguments=["--processes=2"])
def processes_crash(site: WatchedSite) -> Iterator[None]:
    site.leave("/crash", 60)
    yield


@causes("ProcessesFail")
def a_single_process_crashes(site: WatchedSite) -> Iterator[None]:
    def crash() -> None:
        site.leave("/crash", 60)
        site.process.wait()
        # As its service manager does.
        site.start()

    with site.repeating(crash):
        yield


@causes(
    "RequestsShed", also=["LongQueue", "ShortRequestsWait", "AllThreadsBusy", "PoolExhausted"], arguments=["--queue=2"]
)
def more_requests_than_the_queue_holds(site: WatchedSite) -> Iterator[None]:
    with site.repeating(lambda: site.get(SLEEP), times=16):
        yield


@causes(
    *("LongQueue", "ShortRequestsWait", "AllThreadsBusy", "PoolExhausted"),
    also=["RequestsExpired"],
)
def slow_queries_hold_all_connections(site: WatchedSite) -> Iterator[None]:
    with site.repeating(lambda: site.get(SLEEP), times=16):
        yield


@causes("RequestsExpired", also=["AllThreadsBusy", "PoolExhausted", "ShortRequestsWait"], arguments=["--deadline=1"])
def queries_take_longer_than_the_deadline(site: WatchedSite) -> Iterator[None]:
    with site.repeating(lambda: site.get("/sql?SELECT SLEEP(60)"), times=2):
        yield


@causes("ThreadsStuck", also=["AllThreadsBusy"])
def a_request_cannot_be_stopped(site: WatchedSite) -> Iterator[None]:
    flag = site.directory / "go-on"
    site.leave(f"/wait?{flag}", 0.5)
    yield
    flag.touch()


@causes("PoolExhausted", also=["LongQueue", "ShortRequestsWait", "AllThreadsBusy", "RequestsExpired", "NotReady"])
def the_application_keeps_its_connections(site: WatchedSite) -> Iterator[None]:
    site.get("/keep-connections?3")
    yield
    site.get("/keep-connections?0")


@causes(
    "QueriesCannotBeStopped", also=["ServerErrors", "NotReady", "AllThreadsBusy", "PoolExhausted", "ShortRequestsWait"]
)
def the_database_accepts_no_connection_to_stop_queries(site: WatchedSite) -> Iterator[None]:
    user = site.mariadb["MYSQL_USER"]
    ids = "SELECT id FROM information_schema.processlist WHERE user = %s AND command "
    with ExitStack() as clients:
        for _ in range(2):
            head = "GET /sql?SELECT%20SLEEP(100) HTTP/1.1\r\nHost: a\r\n\r\n"
            clients.enter_context(site.connect(head))
        wait_until(lambda: len(site.as_root(f"{ids} = 'Query' AND info LIKE '%%(100)'", user)) == 2, "queries run")
        site.as_root("ALTER USER %s@localhost ACCOUNT LOCK", user)
        # Among them, the one that the server keeps for this.
        for (number,) in site.as_root(f"{ids} = 'Sleep'", user):
            with suppress(MySQLdb.OperationalError):
                site.as_root("KILL %s", number)
    yield
    site.as_root("ALTER USER %s@localhost ACCOUNT UNLOCK", user)


@causes("ConnectionsLost", also=["ServerErrors"])
def connections_are_ended_before_they_are_used(site: WatchedSite) -> Iterator[None]:
    user = site.mariadb["MYSQL_USER"]
    with site.repeating(lambda: site.get("/late"), times=3), site.repeating(lambda: site.as_root("KILL USER %s", user)):
        yield


@causes("LoopHeldUp")
def the_loop_is_blocked(site: WatchedSite) -> Iterator[None]:
    with site.repeating(lambda: site.get("/hold-loop?0.6")):
        yield


@causes("ConnectionsRefused", arguments=["--max_connections=40"])
def clients_never_finish_their_requests(site: WatchedSite) -> Iterator[None]:
    with ExitStack() as stack, site.repeating(lambda: stack.enter_context(site.connect(UNFINISHED)), times=2):
        yield


@causes("FewFileDescriptorsLeft")
def the_application_never_closes_its_files(site: WatchedSite) -> Iterator[None]:
    resource.prlimit(site.process.pid, resource.RLIMIT_NOFILE, (400, 400))
    site.get("/keep-files?330")
    yield
    site.get("/keep-files?0")


@causes("SpoolNearlyFull", arguments=["--spool_size=16M", "--memory_size=2M", "--xheaders=true"])
def clients_do_not_read_their_responses(site: WatchedSite) -> Iterator[None]:
    with ExitStack() as stack:
        # More than the kernel and the memory take, and less than the limit: no thread has to wait.
        for number in range(5):
            head = f"GET /large?{3_600_000} HTTP/1.1\r\nHost: a\r\nX-Real-IP: 192.0.2.{number}\r\n\r\n"
            stack.enter_context(site.connect(head))
        yield


@causes("UpstreamDown", also=["RequestsShed"], site=site_with_remote_lane)
def the_other_host_is_down(site: WatchedSite) -> Iterator[None]:
    assert site.upstream is not None
    with site.repeating(lambda: site.get("/far/")):
        site.upstream.process.kill()
        site.upstream.process.wait()
        yield
        site.upstream.start()


@causes("ReplicaBehind", site=site_with_replica)
def the_replica_is_down(site: WatchedSite) -> Iterator[None]:
    assert site.replica is not None
    with site.repeating(lambda: site.get("/reports/?SELECT 1")):
        site.replica.kill()
        yield
        site.replica.start()


@causes("CertificateExpires", site=https_site)
def the_certificate_is_old(site: WatchedSite) -> Iterator[None]:
    make_certificate(site.directory, days=13)
    site.process.send_signal(signal.SIGHUP)
    yield
    make_certificate(site.directory)
    site.process.send_signal(signal.SIGHUP)


@causes("ReloadFailed", site=https_site)
def the_new_certificate_cannot_be_read(site: WatchedSite) -> Iterator[None]:
    (site.directory / "site.key").write_text("")
    site.process.send_signal(signal.SIGHUP)
    yield
    make_certificate(site.directory)
    site.process.send_signal(signal.SIGHUP)


@causes("ReloadFailed", arguments=["--processes=2"])
def the_new_version_does_not_start(site: WatchedSite) -> Iterator[None]:
    working = site.source.read_text()
    site.source.write_text(f"import no_such_module\n{working}")
    site.process.send_signal(signal.SIGUSR2)
    yield
    site.source.write_text(working)
    site.process.send_signal(signal.SIGUSR2)
