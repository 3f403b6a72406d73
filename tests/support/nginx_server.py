"""nginx as a real process, with either of the files in nginx/."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.processes import ROOT, free_port

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "nginx"


class Nginx:
    """nginx with a copy of one of the files, in which the ports, and what else ``replace`` names, are others."""

    def __init__(self, name: str, directory: Path, replace: dict[str, str] | None = None) -> None:
        self.frontend_ports = (free_port(), free_port())
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        (directory / "var" / "nginx").mkdir(parents=True)
        (directory / "myapplication").symlink_to(ROOT / "myapplication")
        shutil.copytree(ROOT / "nginx", directory / "nginx")
        changes = {
            "127.0.0.1:8000": f"127.0.0.1:{self.frontend_ports[0]}",
            "127.0.0.1:8001": f"127.0.0.1:{self.frontend_ports[1]}",
            "127.0.0.1:8080": f"127.0.0.1:{self.port}",
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "/srv/myapplication": str(directory),
            **(replace or {}),
        }
        for file in (directory / "nginx").iterdir():
            text = file.read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            file.write_text(text)
        self.configuration = directory / "nginx" / name
        if name == "myapplication.conf":
            # What surrounds the site on a Debian machine.
            standalone = (directory / "nginx" / "standalone.conf").read_text()
            frame = directory / "nginx" / "nginx.conf"
            frame.write_text(
                "worker_processes 1; pid var/nginx/nginx.pid; error_log var/nginx/error.log;"
                "events {} http { include /etc/nginx/mime.types; access_log var/nginx/access.log;"
                + "".join(line for line in standalone.splitlines(keepends=True) if "_temp_path" in line)
                + f"include {self.configuration}; }}"
            )
            self.configuration = frame

    def command(self, *arguments: str) -> list[str]:
        command = [NGINX, "-p", str(self.directory), "-c", str(self.configuration), *arguments]
        # As root nginx would read files as another user, who may not be allowed to.
        return [*command, "-g", "user root;"] if os.geteuid() == 0 else command

    def __enter__(self) -> Nginx:
        # It returns once it listens.
        subprocess.run(self.command(), check=True, timeout=30)
        return self

    def __exit__(self, *exception: object) -> None:
        pid = int((self.directory / "var" / "nginx" / "nginx.pid").read_text())
        subprocess.run(self.command("-s", "stop"), check=True, timeout=30)
        deadline = time.monotonic() + 20
        # A process that has ended is no program any more, even while its parent has not noticed.
        while os.path.exists(f"/proc/{pid}/exe"):
            assert time.monotonic() < deadline, "nginx did not stop within 20 seconds"
            time.sleep(0.01)
