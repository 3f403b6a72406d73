"""Quotas for tenants that hold for all hosts: Flask-Limiter counts their requests in Valkey or Redis.

Install the packages Flask-Limiter and redis, set QUOTAS to the address of the server that all hosts share, and run
``QUOTAS=redis://10.0.0.5:6379 python -m threadbridge flask_quotas:app``.
"""

from __future__ import annotations

import os

from flask import Flask, request
from flask_limiter import Limiter

app = Flask(__name__)


def tenant() -> str:
    """Whose request this is. Take it from what has been authenticated, never from a header that clients may invent."""
    return request.authorization.username or "" if request.authorization else request.remote_addr or ""


limiter = Limiter(
    tenant,
    app=app,
    storage_uri=os.environ.get("QUOTAS", "memory://"),
    # Otherwise a thread, and with it the lane, would wait for a server that has vanished from the network.
    storage_options={"socket_connect_timeout": 0.5, "socket_timeout": 0.5} if "QUOTAS" in os.environ else {},
    # As many within any hour: with fixed-window, twice as many may come around the full hour.
    strategy="moving-window",
    headers_enabled=True,
    # Without the server, each host counts for itself.
    in_memory_fallback=["3 per hour"],
    in_memory_fallback_enabled=True,
)


@app.get("/export")
@limiter.limit("5 per hour")
def export() -> str:
    """Something that costs much; beyond the quota it is answered 429 with Retry-After."""
    return "exported"


@app.get("/")
def index() -> str:
    return "page"
