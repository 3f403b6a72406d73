"""From an empty directory to a page in a minute, for each Python that is there: on demand, with WHEELS=1.

``PATH`` may lead to further ones: ``PATH=/opt/python3.13/bin:$PATH WHEELS=1 scripts/test.sh …``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from itertools import chain
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, Frontend
from tests.support.wheels import add_dependencies

PYTHONS = [f"python3.{minor}" for minor in (11, 12, 13, 14)]

# What people install with it. Pyramid 2.0 needs a part of setuptools that is gone from newer ones.
FRAMEWORKS = {"flask": ["flask"], "django": ["django<6"], "pyramid": ["pyramid", "setuptools<81"]}

SHOPS = {
    "flask": """
from flask import Flask

app = Flask(__name__)

@app.get("/")
def shop():
    return "the shop"
""",
    "django": """
import secrets
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(SECRET_KEY=secrets.token_hex(), ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])
urlpatterns = [path("", lambda request: HttpResponse("the shop"))]
app = get_wsgi_application()
""",
    "pyramid": """
from pyramid.config import Configurator
from pyramid.response import Response

with Configurator() as config:
    config.add_route("shop", "/")
    config.add_view(lambda request: Response("the shop"), route_name="shop")
    app = config.make_wsgi_app()
""",
}


def runs(python: str) -> bool:
    """Whether it is there; a version manager's stand-in fails."""
    return shutil.which(python) is not None and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(os.environ.get("WHEELS") != "1", reason="takes minutes: set WHEELS=1")


@pytest.fixture(scope="module", params=PYTHONS)
def offered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A Python, and the index of what can be installed for it, the project as for a release."""
    python = request.param
    if not runs(python):
        pytest.skip(f"{python} is not there")
    index = tmp_path_factory.mktemp("index")
    subprocess.run([ROOT / "scripts" / "build.sh", index], env=os.environ | {"PYTHON": python}, check=True)
    add_dependencies(index, *chain(*FRAMEWORKS.values()), python=python, PIP_CONSTRAINT="")
    return python, index


@pytest.mark.parametrize("framework", SHOPS)
def test_a_page_is_served_within_a_minute(offered: tuple[str, Path], framework: str, tmp_path: Path) -> None:
    python, index = offered
    (tmp_path / "shop.py").write_text(SHOPS[framework])
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    install = ("venv/bin/pip", "install", "threadbridge[fast]", *FRAMEWORKS[framework])
    began = time.monotonic()
    for command in ((python, "-m", "venv", "venv"), install):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    installed = time.monotonic()
    server = Frontend(
        ("shop:app", "--port={port}"), cwd=tmp_path, python=tmp_path / "venv/bin/threadbridge", env={"PYTHONPATH": ""}
    )
    with server:
        assert requests.get(server.url, timeout=30).text == "the shop"
        served = time.monotonic()
        assert ", compiled, on uvloop" in server.output()
        assert server.stop() == 0
    print(f"{python}, {framework}: {installed - began:.1f} s to install, {served - installed:.1f} s to the page")
    assert served - began < 60
