"""pgAdmin 4: Flask, Flask-SQLAlchemy, Flask-Security, Flask-SocketIO. Its usual server is gunicorn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
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
    found = re.search(r""""csrfToken": "([^"]+)"|'csrf_token'\] = '([^']+)'""", page)
    assert found is not None, page[:3000]
    return str(found[1] or found[2])


def speak_through_websocket(site: Visitor) -> None:
    """Open the Socket.IO connection with which the query tool works, and leave it."""
    cookies = "; ".join(f"{name}={value}" for name, value in site.session.cookies.get_dict().items())
    address = site.base.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket"
    client = create_connection(address, timeout=60, cookie=cookies)
    hello = client.recv()
    assert hello[:1] == "0", hello
    assert "sid" in json.loads(hello[1:])
    client.send("40/schema_diff,")
    # The answer to that and an event, in either order.
    messages = sorted(str(client.recv()) for _ in range(2))
    assert messages[0].startswith("40/schema_diff,"), messages
    assert messages[1].startswith('42/schema_diff,["connected"'), messages
    client.close()


def visitor_of(postgresql: dict[str, str]) -> Callable[[Visitor], None]:
    """What a visitor does who looks at this database."""

    def visit(site: Visitor) -> None:
        site.ask("GET", "/browser/", status=302)
        credentials = {"email": EMAIL, "password": PASSWORD}
        # Without the token it does not count.
        site.ask("POST", "/authenticate/login", data=credentials, status=302)
        site.ask("GET", "/browser/", status=302)
        token = token_in(site.get("/login"))
        site.ask("POST", "/authenticate/login", data={**credentials, "csrf_token": token}, status=302)
        site.get("/browser/")
        script = site.get("/browser/js/utils.js")
        site.session.headers["X-pgA-CSRFToken"] = token_in(script)
        site.get("/static/js/generated/app.bundle.js")
        site.get("/preferences/")
        # A server, and its databases.
        server = {"gid": 1, "name": "tests", "port": 5432, "host": postgresql["PGHOST"], "db": "postgres"}
        details = {"username": postgresql["PGUSER"], "connect_now": False, "connection_params": []}
        site.ask("POST", "/browser/server/obj/1/", json={**server, **details})
        site.ask("POST", "/browser/server/connect/1/1", data={"password": ""})
        assert "postgres" in site.get("/browser/database/nodes/1/1/")
        [database] = [each["_id"] for each in json.loads(site.get("/browser/database/nodes/1/1/"))["data"]]
        # The query tool.
        of_database = f"/1/1/{database}"
        tool = {"user": None, "password": None, "role": None, "dbname": "postgres"}
        site.ask("POST", f"/sqleditor/initialize/sqleditor/4711{of_database}", json=tool)
        query = {"sql": "SELECT number, repeat('x', 100) FROM generate_series(1, 500) AS number", "explain_plan": None}
        site.ask("POST", "/sqleditor/query_tool/start/4711", json=query)
        while (answer := site.session.get(f"{site.base}/sqleditor/poll/4711").json()["data"])["status"] == "Busy":
            pass
        assert answer["status"] == "Success", answer
        assert answer["rows_affected"] == 500
        site.ask("DELETE", "/sqleditor/close/4711")
        speak_through_websocket(site)
        site.get_all_at_once("/browser/database/nodes/1/1/", "/static/js/generated/app.bundle.js", "/preferences/")

    return visit


@needs_applications
def test_pgadmin(tmp_path: Path, postgresql: dict[str, str]) -> None:
    environment = Environment("pgadmin4", "pgadmin4", "gunicorn")
    (environment.package("pgadmin4") / "config_local.py").write_text(CONFIGURATION)
    data = tmp_path / "data"
    data.mkdir()
    settings = {"PGADMIN_DATA": str(data), "PGADMIN_SETUP_EMAIL": EMAIL, "PGADMIN_SETUP_PASSWORD": PASSWORD}
    # Makes the database with its own settings.
    environment.run("-c", "import pgadmin4.pgAdmin4", cwd=data, env=settings)
    log = assert_same(
        visitor_of(postgresql),
        environment,
        data,
        ("-m", "threadbridge", "pgadmin4.pgAdmin4:app", "--port={port}"),
        ("-m", "gunicorn", "pgadmin4.pgAdmin4:app", "--threads=25", "--bind=127.0.0.1:{port}"),
        env={**settings, "PGADMIN_DATA": "{data}"},
        varying=[
            r"Ij[\w-]+\.[\w-]+\.[\w-]+",
            r'nonce="[^"]*"',
            r'"connId":"\d+"',
            r"\b[0-9a-f]{32,}\b",
            r"\d{4}-\d\d-\d\d[ T][\d:.]+",
        ],
    )
    assert "pool: SQLAlchemy engine sqlite" in log
    assert "WebSockets of the application" in log
