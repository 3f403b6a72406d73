"""The examples for containers: their times and sizes fit each other, and a frontend serves with what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend, free_port
from threadbridge.settings.table import ALL

EXAMPLES = ROOT / "docs" / "examples"
KUBERNETES = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
COMPOSE = yaml.safe_load((EXAMPLES / "container" / "compose.yaml").read_text())
DOCKERFILE = (EXAMPLES / "container" / "Dockerfile").read_text()
TOKEN = "a token of sixteen characters or more"


def kind(name: str) -> list[Any]:
    return [document for document in KUBERNETES if document["kind"] == name]


@pytest.fixture
def pod() -> Any:
    [deployment] = kind("Deployment")
    return deployment["spec"]["template"]["spec"]


def arguments(pod: Any) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in pod["containers"][0]["args"])


def mebibytes(size: str) -> int:
    return int(re.sub(r"Gi?$", "000", size.removesuffix("Mi")))


def patience(probe: Any) -> float:
    """After how many seconds at most a probe that hangs has failed."""
    return float(probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"]))


def test_kubernetes_waits_for_all_requests(pod: Any) -> None:
    given = arguments(pod)
    drain_delay, grace, deadline = (float(given[name]) for name in ("drain_delay", "grace", "deadline"))
    # The rest is for the end of the process.
    assert drain_delay + grace + 10 <= pod["terminationGracePeriodSeconds"]
    assert deadline < grace
    # Whoever looks at /readyz knows it before the port closes.
    assert patience(pod["containers"][0]["readinessProbe"]) < drain_delay
    # A loop that stands still for a moment is no reason to lose its requests.
    assert patience(pod["containers"][0]["livenessProbe"]) >= 30


def test_kubernetes_has_room_for_large_bodies(pod: Any) -> None:
    [directory] = (volume for volume in pod["volumes"] if "emptyDir" in volume)
    assert mebibytes(arguments(pod)["spool_size"]) < mebibytes(directory["emptyDir"]["sizeLimit"])
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts[directory["name"]] == "/tmp"


def test_kubernetes_names_lead_to_each_other(pod: Any) -> None:
    [container] = pod["containers"]
    [deployment] = kind("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    services = {service["metadata"]["name"]: service["spec"] for service in kind("Service")}
    for spec in services.values():
        assert spec["selector"].items() <= labels.items()
        assert all(port["targetPort"] in ports for port in spec["ports"])
    assert {container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")} <= set(ports)
    host = arguments(pod)["admin_host"]
    assert services[host]["ports"][0]["port"] == ports["operators"]
    assert arguments(pod)["admin_peers"] == f"dns+http://{host}:{ports['operators']}"
    # As the image's user, who may read the secret by the group.
    assert DOCKERFILE.count(f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['fsGroup']}\n") == 1
    assert f"THREADBRIDGE_PORT={ports['http']} " in DOCKERFILE.replace("\\", "")
    assert f"THREADBRIDGE_ADMIN_PORT={ports['operators']}\n" in DOCKERFILE


def test_a_frontend_answers_the_probes_of_kubernetes(pod: Any, tmp_path: Path) -> None:
    [container] = pod["containers"]
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o400)
    port = free_port()
    # On all interfaces there; nobody else may reach it here.
    own = {"admin_address": "127.0.0.1", "admin_token_file": str(token), "admin_port": str(port), "drain_delay": "600"}
    given = [f"--{name}={value}" for name, value in (arguments(pod) | own).items()]
    with Frontend(("run.py", "--port={port}", *given)) as server:

        def probe(name: str) -> int:
            path = container[f"{name}Probe"]["httpGet"]["path"]
            address = f"http://127.0.0.1:{port}{path}"
            return requests.get(address, headers={"Host": f"127.0.0.1:{port}"}, timeout=30).status_code

        assert [probe(name) for name in ("startup", "readiness", "liveness")] == [200, 200, 200]
        by_service = {"Host": f"{arguments(pod)['admin_host']}:{port}", "Authorization": f"Bearer {TOKEN}"}
        assert requests.get(f"http://127.0.0.1:{port}/requests.json", headers=by_service, timeout=30).ok
        server.process.terminate()
        wait_until(lambda: probe("readiness") == 503, "it drains")
        # Kubernetes must not kill it while it answers its last requests.
        assert probe("liveness") == 200
        assert requests.get(server.url, timeout=30).ok
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_compose_waits_for_all_requests() -> None:
    seconds = float(COMPOSE["services"]["frontend"]["stop_grace_period"].removesuffix("s"))
    # The grace is 10 s more than the deadline where nothing else is said.
    deadline = ALL["deadline"].default
    assert isinstance(deadline, int | float) and ALL["grace"].default is None
    assert deadline + 10 + 10 <= seconds


def test_the_image_sets_what_there_is_to_set() -> None:
    given = set(re.findall(r"^    THREADBRIDGE_([A-Z_]+)=", DOCKERFILE, re.MULTILINE))
    assert {"ADDRESS", "PORT", "ADMIN_PORT"} == given <= {name.upper() for name in ALL}


def test_no_secret_is_in_the_files() -> None:
    """Passwords come from files that these name, and that are not there."""
    for service in COMPOSE["services"].values():
        environment = {name: value for name, value in service["environment"].items() if "PASSWORD" in name}
        environment.pop("MARIADB_RANDOM_ROOT_PASSWORD", None)
        assert environment and all(name.endswith("_FILE") for name in environment)
    assert not kind("Secret")
    for secret in COMPOSE["secrets"].values():
        assert not (EXAMPLES / "container" / secret["file"]).exists()
