"""pgAdmin 4: Flask, Flask-SQLAlchemy, Flask-Security, Flask-SocketIO. Its usual server is gunicorn."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from websocket import create_connection

from tests.real_applications.site import Environment, Visitor, assert_same, needs_applications

EMAIL, PASSWORD = "ann@example.com", "a password"
CONFIGURATION = """
import os

DATA_DIR = os.environ["PGADMIN_DATA"]
LOG_FILE = f"{DATA_DIR}/pgadmin.log"
SQLITE_PATH = f"{DATA_DIR}/pgadmin.db"
SESSION_DB_PATH = f"{DATA_DIR}/sessions"
STORAGE_DIR = f"{DATA_DIR}/storage"
AZURE_CREDENTIAL_CACHE_DIR = f"{DATA_DIR}/azure"
KERBEROS_CCACHE_DIR = f"{DATA_DIR}/kerberos"
SERVER_MODE = True
UPGRADE_CHECK_ENABLED = False
MASTER_PASSWORD_REQUIRED = False
"""


def token_in(page: str) -> str:
    found = re.search(r'"csrfToken": "([^"]+)"|csrf_token[^>]*value="([^"]+)"|csrf_token=([\w.-]+)', page)
    assert found is not None, page[:3000]
    return next(filter(None, found.groups()))


def speak_through_websocket(site: Visitor) -> None:
    """Open the Socket.IO connection with which the query tool works, and leave it."""
    cookies = "; ".join(f"{name}={value}" for name, value in site.session.cookies.get_dict().items())
    address = site.base.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket"
    client = create_connection(address, timeout=60, cookie=cookies)
    hello = client.recv()
    assert hello[:1] == "0", hello
    assert "sid" in json.loads(hello[1:])
    client.send("40/pgadmin,")
    connected = client.recv()
    assert connected.startswith("40/pgadmin,"), connected
    client.close()


