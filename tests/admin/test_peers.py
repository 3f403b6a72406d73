"""Lists of other hosts: which are accepted, and what files in Prometheus' format say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.admin_site import Site
from threadbridge.admin.peers import Peers


def test_another_machine_requires_a_token(tmp_path: Path) -> None:
    for item in ("10.0.0.11:18000", "dns+fleet.test:18000", "hosts.json"):
        refused = Site(tmp_path, f"--admin_peers={item}").run_to_its_end()
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert f"admin_peers: {item} may be another machine: give admin_token_file" in refused.stderr


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '[{"targets": ["a:1", "[::1]:2"]}]', ["http://a:1", "http://[::1]:2"]),
        (
            "a.yml",
            "- targets: ['a:1']\n  labels:\n    __scheme__: https\n- targets: [b:2]\n",
            ["https://a:1", "http://b:2"],
        ),
        ("a.yaml", "- targets: []\n", []),
    ],
)
def test_files_are_read_in_prometheus_format(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(text)
    found, problems = Peers([str(tmp_path / name), str(tmp_path / name)]).read()
    assert ([peer.url for peer in found], problems) == (expected, [])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "", "it is not JSON: "),
        ("a.json", "{}", "expected a list such as "),
        ("a.json", '[{"targets": [1]}]', "expected a list such as "),
        ("a.json", '[{"targets": ["a:1"], "labels": {"b": 1}}]', "expected a list such as "),
        ("a.json", '[{"targets": ["a"]}]', "admin_peers: 'a': expected HOST:PORT"),
        ("a.json", '[{"targets": ["a:1/metrics"]}]', "expected HOST:PORT"),
        ("a.json", '[{"targets": ["a:1"], "labels": {"__scheme__": "ftp"}}]', "expected HOST:PORT"),
        ("a.json", "[" * 100_000, "recursion"),
        ("a.json", " " * 2**21, "more than"),
        ("a.yml", "a: b: c", "it is not YAML: "),
        ("a.yml", "!!python/object/apply:os.getpid []", "it is not YAML: "),
        ("a.yml", "", "expected a list such as "),
    ],
)
def test_an_unusable_file_leaves_the_list_as_it_was(tmp_path: Path, name: str, text: str, reason: str) -> None:
    path = tmp_path / name
    path.write_text('[{"targets": ["a:1"]}]')
    peers = Peers(["b:2", str(path)])
    assert [peer.name for peer in peers.read()[0]] == ["b:2", "a:1"]
    path.write_text(text)
    found, [(item, said)] = peers.read()
    assert ([peer.name for peer in found], item) == (["b:2", "a:1"], str(path))
    assert reason in said
