"""The load balancers that are compared: the examples in docs, and what is left of them without some of their parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from tests.support.balancers import EXAMPLES, Balancer, Envoy, HAProxy, Nginx

_AGENT = {"agent-check agent-port 18100 agent-inter 1s ": ""}
_READY = {"    option httpchk\n    http-check send meth GET uri /readyz hdr Host localhost\n": ""}
_BALANCE = re.compile(r"balance (?!source)\S+")
_REPEATS = {"retry-on conn-failure 503": "retry-on conn-failure"}


class Configuration(NamedTuple):
    """A load balancer with its example, in which these texts are replaced.

    ``recommended``: it must keep to the limit.
    """

    name: str
    engine: type[Balancer]
    changes: Mapping[str, str] = {}
    recommended: bool = False


def _haproxy(algorithm: str) -> dict[str, str]:
    """The change of the algorithm of the backend with the agent."""
    found = _BALANCE.search((EXAMPLES / HAProxy.example).read_text())
    assert found is not None
    return {found[0]: f"balance {algorithm}"}


def _envoy(policy: str) -> dict[str, str]:
    """The change of the policy of the cluster with the reports."""
    text = (EXAMPLES / Envoy.example).read_text()
    block = text[text.index("      load_balancing_policy:") : text.index("      load_assignment:")]
    return {block: f"      lb_policy: {policy}\n"}


CONFIGURATIONS = (
    Configuration("nginx, round robin", Nginx, {"    least_conn;\n": "", "error timeout http_503": "error timeout"}),
    Configuration("nginx, example: least_conn, 503 counts", Nginx),
    Configuration("HAProxy, round robin", HAProxy, _haproxy("roundrobin") | _AGENT | _READY | _REPEATS),
    Configuration("HAProxy, leastconn", HAProxy, _haproxy("leastconn") | _AGENT | _READY | _REPEATS),
    Configuration("HAProxy, leastconn, `/readyz`", HAProxy, _haproxy("leastconn") | _AGENT),
    Configuration("HAProxy, leastconn, `/readyz`, agent", HAProxy, _haproxy("leastconn")),
    Configuration("HAProxy, example: random(2), `/readyz`, agent", HAProxy, recommended=True),
    Configuration("Envoy, round robin", Envoy, _envoy("ROUND_ROBIN")),
    Configuration("Envoy, least request", Envoy, _envoy("LEAST_REQUEST")),
    Configuration("Envoy, example: weights from load reports", Envoy, recommended=True),
)
