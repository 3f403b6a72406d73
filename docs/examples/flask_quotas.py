"""Quotas for tenants that hold for all hosts: Flask-Limiter counts their requests in Valkey or Redis.

Install the packages Flask-Limiter and redis, set QUOTAS to the address of the server that all hosts share, and TENANTS
to a JSON file with the tenants and their passwords, and run
``QUOTAS=redis://10.0.0.5:6379 TENANTS=/etc/shop/tenants.json python -m threadbridge flask_quotas:app``.
"""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path

from flask import Flask, request
from flask_limiter import Limiter

app = Flask(__name__)
# Your application has a better place for them, such as its database.
PASSWORDS: dict[str, str] = json.loads(Path(os.environ["TENANTS"]).read_text()) if "TENANTS" in os.environ else {}


def tenant() -> str:
    """Whose request this is. Only a name that has been authenticated counts: clients could invent any other."""
    given = request.authorization
    name, password = (given.username or "", given.password or "") if given else ("", "")
    if name in PASSWORDS and hmac.compare_digest(PASSWORDS[name].encode(), password.encode()):
        return f"tenant {name}"
    return f"address {request.remote_addr}"


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
