"""Where the frontends of other hosts are: addresses, DNS names, and files in the format of Prometheus' ``file_sd``.

A list changes while the server runs: names are resolved again, and files are read again. While that fails, the
addresses that were found last stay.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from threadbridge.admin.access import is_loopback
from threadbridge.admin.frontend_answer import ANY_NAME, has_shape

DNS = "dns+"
JSON, YAML = (".json",), (".yml", ".yaml")
# Of the list in a file: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
GROUPS = [{"targets": [str], "labels?": {ANY_NAME: str}}]
SCHEME_LABEL = "__scheme__"
# Bytes; more than a thousand hosts.
LARGEST_FILE = 1024 * 1024


class Peer(NamedTuple):
    """Another frontend's operators' port.

    :param name: what operators call it.
    :param url: the base of its URLs; its certificate must be for the host in it.
    :param host: the ``Host`` header.
    :param address: the family and address to connect to; None to look the URL's host up for each connection.
    """

    name: str
    url: str
    host: str
    address: tuple[int, Any] | None = None


class Peers:
    """The peers that the items of ``admin_peers`` stand for; raises ``ValueError`` for an unusable item."""

    def __init__(self, items: Sequence[str]) -> None:
        self._named = [
            peer_of(item) for item in items if not item.startswith(DNS) and not item.endswith((*JSON, *YAML))
        ]
        self._lists: list[_Dns | _File] = [_Dns(item) for item in items if item.startswith(DNS)]
        self._lists += [_File(item) for item in items if item.endswith((*JSON, *YAML)) and not item.startswith(DNS)]
        # The host names and addresses that are given in the setting itself.
        self.names = [urlsplit(peer.url).hostname or "" for peer in self._named]
        # Whether the list may change.
        self.changes = bool(self._lists)
        # Items that may stand for other machines.
        self.remote = [peer.name for peer, name in zip(self._named, self.names, strict=True) if not is_loopback(name)]
        self.remote += [each.item for each in self._lists]

    def read(self) -> tuple[list[Peer], list[tuple[str, str]]]:
        """All peers, each once, and each list that cannot be read, with the reason. It blocks: not for the loop."""
        problems = []
        for each in self._lists:
            try:
                each.read()
            except (OSError, ValueError, RecursionError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                problems.append((each.item, f"{reason}; the hosts found before stay listed"))
        found = [*self._named, *(peer for each in self._lists for peer in each.peers)]
        return list({peer.url + str(peer.address): peer for peer in found}.values()), problems

    @property
    def named(self) -> list[Peer]:
        """Those that are given in the setting itself."""
        return self._named


class _Dns:
    """All addresses of a name."""

    def __init__(self, item: str) -> None:
        self.item = item
        self.peers: list[Peer] = []
        self._peer = peer_of(item.removeprefix(DNS), item)

    def read(self) -> None:
        parts = urlsplit(self._peer.url)
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
        peers = []
        for family, _, _, _, address in sorted(found):
            host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
            # Not the name, which is that of all hosts: a proof is to be good for one of them.
            peers.append(Peer(f"{host}:{parts.port}", self._peer.url, f"{host}:{parts.port}", (family, address)))
        self.peers = peers


class _File:
    """The targets in a file."""

    def __init__(self, item: str) -> None:
        if item.endswith(YAML) and find_spec("yaml") is None:
            raise ValueError(f"admin_peers: {item}: PyYAML is not installed; pip install pyyaml, or give a .json file")
        self.item = item
        self.peers: list[Peer] = []
        # Tells whether the file is still as it was when it was last read.
        self._seen: tuple[int, ...] = ()

    def read(self) -> None:
        # A pipe would wait for a writer.
        descriptor = os.open(self.item, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                text = file.read(LARGEST_FILE + 1)
                if len(text) > LARGEST_FILE:
                    raise ValueError(f"it has more than {LARGEST_FILE} bytes")
                self.peers = _targets(self._parsed(text))
                self._seen = seen

    def _parsed(self, text: bytes) -> Any:
        if self.item.endswith(JSON):
            try:
                return json.loads(text)
            except ValueError as error:
                raise ValueError(f"it is not JSON: {error}") from None
        # Not at the top: few have such a file.
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from None


def _targets(groups: Any) -> list[Peer]:
    if not has_shape(groups, GROUPS):
        raise ValueError(
            'expected a list such as [{"targets": ["10.0.0.11:18000"], "labels": {"__scheme__": "https"}}]'
        )
    return [
        peer_of(f"{group.get('labels', {}).get(SCHEME_LABEL, 'http')}://{target}", target)
        for group in groups
        for target in group["targets"]
    ]


def peer_of(address: str, item: str = "") -> Peer:
    """The peer at ``HOST:PORT`` or a URL; raises ``ValueError``, naming the item."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    with suppress(ValueError):
        parts = urlsplit(url)
        is_bare = not (parts.path or parts.query or parts.fragment or parts.username)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port and is_bare:
            return Peer(item or address, url, parts.netloc)
    raise ValueError(
        f"admin_peers: {item or address!r}: expected HOST:PORT or a URL with a port, such as 127.0.0.1:9001; dns+ and "
        "one of these, for all addresses of a name; or a file that ends in .json, .yml or .yaml"
    )
