"""nginx and HAProxy with a configuration that the test writes, in front of a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.inprocess import wait_until
from tests.support.nginx_server import NGINX

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "haproxy"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@contextmanager
def haproxy_with(directory: Path, port: int, configuration: str) -> Iterator[None]:
    """HAProxy, which listens on the port inside the block."""
    file = directory / "haproxy.cfg"
    limits = "timeout connect 30s\n timeout client 60s\n timeout server 60s\n"
    file.write_text(f"defaults\n {limits}{configuration}\n")
    with _running([HAPROXY, "-db", "-f", str(file)], port):
        yield


@contextmanager
def nginx_with(directory: Path, port: int, configuration: str) -> Iterator[None]:
    """nginx, which listens on the port inside the block."""
    file = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {directory};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    module = f"load_module {STREAM_MODULE};" if "stream {" in configuration else ""
    file.write_text(
        f"{user} {module} daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;\n"
        f"events {{}}\n{configuration.replace('http {', f'http {{ {temporary} access_log off;')}\n"
    )
    with _running([NGINX, "-c", str(file), "-e", str(directory / "error.log")], port):
        yield


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            assert process.poll() is None, command
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            return False

        wait_until(answers, f"{command[0]} listens")
        yield
    finally:
        process.terminate()
        process.wait()
