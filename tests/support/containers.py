"""Images built from a Dockerfile by buildah, and containers of them run by runc, on a machine without a Docker engine.

Images from a registry are not needed: debian:trixie-slim is what debootstrap makes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("debootstrap", "buildah", "podman", "runc")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
DEBIAN = "http://deb.debian.org/debian"

BASE = """
FROM scratch
ADD root.tar /
COPY ca-certificates.crt pip.conf /etc/
CMD ["bash"]
"""


def missing() -> str | None:
    """The programs that are missing for all this; None if there are all."""
    found = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(found)} not found: scripts/setup.sh containers installs them" if found else None


class Store:
    """The images and containers of one test; they are gone when it closes."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="containers-"))
        self._options = (
            *("--root", str(self.directory / "store"), "--runroot", str(self.directory / "run")),
            *("--storage-driver", "vfs"),
        )

    def close(self) -> None:
        """Remove everything."""
        self.podman("rm", "--all", "--force", "--time=0")
        shutil.rmtree(self.directory)

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman; its complaints about the missing systemd, whose timers it would use, are not shown."""
        command = ["podman", *self._options, "--cgroup-manager=cgroupfs", "--runtime=runc", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert not check or ended.returncode == 0, ended.stderr
        return ended

    def build(self, tag: str, dockerfile: Path, context: Path) -> None:
        """Build an image by all steps of its Dockerfile."""
        # Without namespaces, which this machine's users may not have; the steps change their root directory.
        command = ["buildah", *self._options, "build", "--isolation=chroot", "--format=docker", "--pull-never"]
        subprocess.run([*command, "--tag", tag, "--file", dockerfile, context], check=True, timeout=1800)

    def build_debian(self) -> None:
        """Build debian:trixie-slim."""
        context = self.directory / "debian"
        context.mkdir()
        (context / "Dockerfile").write_text(BASE)
        # pip in the image reaches the registry as it does here.
        shutil.copy(CERTIFICATES, context)
        (context / "pip.conf").write_text("[global]\ncert = /etc/ca-certificates.crt\n")
        tree = self.directory / "tree"
        subprocess.run(["debootstrap", "--variant=minbase", "trixie", tree, DEBIAN], check=True, timeout=900)
        subprocess.run(["tar", "--create", "--file", context / "root.tar", "--directory", tree, "."], check=True)
        shutil.rmtree(tree)
        self.build("docker.io/library/debian:trixie-slim", context / "Dockerfile", context)

    def run(self, image: str, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> Container:
        """Start a container with this machine's network."""
        limits = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
        environment = [f"--env={name}={value}" for name, value in variables.items()]
        # The checks of its health are run by the test, not by timers.
        started = self.podman(
            *("run", "--detach", "--network=host", "--health-interval=disable", *limits, *environment, *options),
            *(image, *arguments),
        )
        return Container(self, started.stdout.strip())

    def configuration(self, image: str) -> Mapping[str, object]:
        """What the image says of how to run it."""
        [found] = json.loads(self.podman("image", "inspect", image).stdout)
        configuration: Mapping[str, object] = found["Config"]
        return configuration


class Container:
    """A running container."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    def is_healthy(self) -> bool:
        """Whether the image's health check passes."""
        return self._store.podman("healthcheck", "run", self.name, check=False).returncode == 0

    def output(self) -> str:
        """What it has written."""
        logs = self._store.podman("logs", self.name)
        return logs.stdout + logs.stderr

    def execute(self, *command: str) -> str:
        """The output of a program in it."""
        return self._store.podman("exec", self.name, *command).stdout

    def send(self, signal: str) -> None:
        """Send a signal, such as TERM, to its first process."""
        self._store.podman("kill", f"--signal={signal}", self.name)

    def wait(self) -> int:
        """Wait for its end; return the exit status."""
        return int(self._store.podman("wait", self.name).stdout)


@contextmanager
def store() -> Iterator[Store]:
    """A store that is removed after the block."""
    made = Store()
    try:
        yield made
    finally:
        made.close()
