"""All other frontends that this one knows: those of this host in the run directory, those of others in the settings."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from threadbridge.admin.frontend import PATIENCE, Frontend
from threadbridge.admin.peers import Peer, Peers
from threadbridge.admin.proof import Proof
from threadbridge.admin.tls import Tls
from threadbridge.common.private_directory import private_directory
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED, in_thread
from threadbridge.sockets.listeners import bind_unix_socket

logger = logging.getLogger("threadbridge")

# Seconds after which names are resolved and files looked at again, while somebody asks.
REFRESH = 5.0
# Bytes of a Unix socket's path, without the terminating zero (unix(7)).
LONGEST_PATH = 107
_SOCKET_NAME = re.compile(r"([0-9]+)-([0-9]+)\.sock")


class Frontends:
    """All other frontends that this one knows; raises ``ValueError`` for an unusable list or directory.

    :param items: those of ``admin_peers``.
    :param directory: the run directory, where each process of this host has a socket ``GROUP-PID.sock``; or None.
    :param group: processes with the same number serve together.
    """

    def __init__(
        self, items: Sequence[str], directory: str | None, group: int, proof: Proof | None, tls: Tls | None
    ) -> None:
        self._peers = Peers(items)
        if self._peers.remote and proof is None:
            raise ValueError(
                f"admin_peers: {self._peers.remote[0]} may be another machine: give admin_token_file, a file "
                "with the same token on all hosts"
            )
        # The hosts of the named frontends.
        self.names = self._peers.names
        # Lists of hosts that cannot be read, with the reasons.
        self.problems: list[tuple[str, str]] = []
        self._proof = proof
        self._tls = tls
        self._named: dict[Peer, Frontend] = {}
        self._name(self._peers.named)
        self._refreshing: asyncio.Task[None] | None = None
        self._next_at = float("-inf")
        self._unreadable = RepeatedLog(logger, 600)
        self._directory = None if directory is None else private_directory(directory)
        excess = len(os.fsencode((self._directory or Path()) / "4194304-4194304.sock")) - LONGEST_PATH
        if excess > 0:
            raise ValueError(f"run_directory {directory}: too long by {excess} bytes for the path of a socket")
        self._group = group
        self._found: dict[str, Frontend] = {}
        self._own = f"{group}-{os.getpid()}.sock"

    def bind(self) -> tuple[socket.socket, Callable[[], None]] | None:
        """Bind this process's socket in the run directory; return it and what removes it; raises ``OSError``."""
        return None if self._directory is None else bind_unix_socket(str(self._directory / self._own), 0o600)

    def on_this_host(self, *, own_group: bool = False) -> list[Frontend]:
        """The frontends whose sockets are in the run directory now; removes the sockets of dead processes."""
        found = {}
        # There are none if somebody has removed the directory.
        for path in sorted(self._directory.glob("*-*.sock")) if self._directory is not None else ():
            match = _SOCKET_NAME.fullmatch(path.name)
            if match is None or path.name == self._own:
                continue
            frontend = self._found.pop(path.name, None)
            if frontend is None:
                frontend = Frontend(
                    Peer(f"process {match[2]}", "http://localhost", "localhost", (socket.AF_UNIX, str(path)))
                )
                frontend.group, frontend.pid = int(match[1]), int(match[2])
            if _is_alive(frontend.pid):
                found[path.name] = frontend
            else:
                frontend.close()
                path.unlink(missing_ok=True)
        for gone in self._found.values():
            gone.close()
        self._found = found
        return [frontend for frontend in found.values() if not own_group or frontend.group == self._group]

    async def on_other_hosts(self) -> list[Frontend]:
        """The frontends that ``admin_peers`` names now, which may include this one."""
        if self._peers.changes and self._refreshing is None and time.monotonic() >= self._next_at:
            self._refreshing = asyncio.create_task(self._refresh())
        if self._refreshing is not None:
            # A resolver may take long.
            await asyncio.wait((self._refreshing,), timeout=PATIENCE)
        return list(self._named.values())

    async def _refresh(self) -> None:
        try:
            peers, self.problems = await in_thread(self._peers.read, "threadbridge-peers")
        except NOT_STARTED as error:
            self.problems = [("admin_peers", f"no thread can be started to read the list: {error}")]
        else:
            self._name(peers)
        finally:
            self._next_at = time.monotonic() + REFRESH
            self._refreshing = None
        for item, reason in self.problems:
            self._unreadable.log(logging.WARNING, "admin_peers: %s: %s", item, reason)

    def _name(self, peers: Sequence[Peer]) -> None:
        known = self._named
        self._named = {peer: known.get(peer) or Frontend(peer, self._proof, self._tls) for peer in peers}
        for peer in known.keys() - self._named.keys():
            known[peer].close()

    async def all(self) -> list[Frontend]:
        """The frontends on this host and the named ones."""
        return [*self.on_this_host(), *await self.on_other_hosts()]

    def close(self) -> None:
        """Cancel all requests to frontends."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for frontend in [*self._named.values(), *self._found.values()]:
            frontend.close()


def _is_alive(pid: int) -> bool:
    try:
        with suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
