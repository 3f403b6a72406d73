"""The README's commands, as they stand there."""

from __future__ import annotations

import re
import subprocess

from tests.support.installation import Installation, installed
from tests.support.processes import ROOT


def shell_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def run(installation: Installation, commands: str) -> str:
    # The tests have ports of their own.
    commands = commands.replace("127.0.0.1:8000", f"127.0.0.1:{installation.ports[0]}")
    ended = subprocess.run(
        ["bash", "-c", commands],
        env=installation.env,
        cwd=installation.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_commands_start_the_application_and_show_queries_that_run_side_by_side(sample_data: dict[str, str]) -> None:
    _, two_commands, demonstration, *_ = shell_blocks()
    start, test = two_commands.splitlines()
    # Which runs this test.
    assert test.startswith("scripts/test.sh ")
    with installed() as installation:
        installation.env.update(sample_data)
        assert installation.url(installation.ports[0]) in run(installation, start)
        output = run(installation, demonstration)
    times = [float(line) for line in output.splitlines() if re.fullmatch(r"[0-9.]+", line)]
    # An error would be answered at once; one after the other they would take 40 s.
    assert len(times) == 20 and min(times) >= 2.0
    assert max(times) < 30
