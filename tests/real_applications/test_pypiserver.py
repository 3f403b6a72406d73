"""pypiserver: Bottle, uploads with a password, downloads of files. Its usual server is waitress."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

from tests.real_applications.site import Environment, Visitor, assert_same, needs_applications

# One name and password, as ``openssl passwd -apr1`` writes it.
USER = ("ann", "a password")


def make_wheel(directory: Path, version: str) -> Path:
    path = directory / f"thing-{version}-py3-none-any.whl"
    information = f"thing-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("thing.py", b"x = 1\n" * 500_000)
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return path


@needs_applications
def test_pypiserver(tmp_path: Path) -> None:
    environment = Environment("pypiserver", "pypiserver", "passlib", "waitress")
    data = tmp_path / "data"
    packages = data / "packages"
    packages.mkdir(parents=True)
    make_wheel(packages, "1.0")
    second = make_wheel(tmp_path, "2.0").read_bytes()
    hashed = subprocess.run(["openssl", "passwd", "-apr1", USER[1]], check=True, capture_output=True, text=True)
    (data / "passwords").write_text(f"{USER[0]}:{hashed.stdout}")

    def visit(site: Visitor) -> None:
        site.get("/")
        site.ask("GET", "/simple", status=301)
        assert "thing-1.0" in site.get("/simple/thing/")
        upload: dict[str, Any] = {
            "files": {"content": ("thing-2.0-py3-none-any.whl", second)},
            "data": {":action": "file_upload"},
        }
        site.ask("POST", "/", status=401, **upload)
        site.ask("POST", "/", auth=USER, **upload)
        site.ask("POST", "/", auth=USER, status=409, **upload)
        assert site.ask("GET", "/packages/thing-2.0-py3-none-any.whl").content == second
        part = site.ask("GET", "/packages/thing-2.0-py3-none-any.whl", status=206, headers={"Range": "bytes=10-19"})
        assert part.content == second[10:20]
        site.ask("HEAD", "/packages/thing-1.0-py3-none-any.whl")
        site.ask("GET", "/packages/nothing.whl", status=404)
        site.get("/thing/json")
        site.get_all_at_once("/simple/", "/simple/thing/", "/packages/")
        index = ("--index-url", f"{site.base}/simple/", "--no-deps", "--target", str(tmp_path / site.base[-4:]))
        environment.run("-m", "pip", "install", "--quiet", *index, "thing", cwd=tmp_path)
        assert (tmp_path / site.base[-4:] / "thing-2.0.dist-info").is_dir()

    assert_same(
        visit,
        environment,
        data,
        (
            "-m",
            "threadbridge",
            "pypiserver:app(roots=['packages'], password_file='passwords')",
            "--port={port}",
        ),
        ("-m", "pypiserver", "run", "--server=auto", "-i", "127.0.0.1", "-p", "{port}", "-P", "passwords", "packages"),
    )
