"""Which files count for a reload, and when their changes are noticed."""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.inprocess import wait_until
from threadbridge.process.watched_files import INSTALLED, WatchedFiles, wait_for_changes


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", [str(directory), *map(sysconfig.get_path, INSTALLED)])
    return directory


class Waiting:
    """A thread that waits for changes; ``found`` is what it has found."""

    def __init__(self, files: WatchedFiles) -> None:
        self.found: list[str] | None = None
        self._files = files
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._wait)

    def _wait(self) -> None:
        self.found = wait_for_changes(self._files, self._stop)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def changed_in(waiting: Waiting) -> list[str]:
    """The names of the files in the order of their names."""
    wait_until(lambda: waiting.found is not None, "a change is noticed")
    return sorted(Path(path).name for path in waiting.found or ())


@pytest.fixture(params=["watchfiles", "polling"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "polling":
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    yield


@pytest.mark.usefixtures("way")
def test_a_file_in_a_directory_that_was_made_later_is_noticed(project: Path) -> None:
    files = WatchedFiles(())
    with Waiting(files) as waiting:
        (project / "parts").mkdir()
        wait_until(lambda: str(project / "parts") in files.entered, "the directory is seen")
        (project / "parts" / "more.py").touch()
        assert changed_in(waiting) == ["more.py"]


@pytest.mark.usefixtures("way")
def test_what_changes_before_it_waits_is_noticed(project: Path) -> None:
    (project / "shop.py").touch()
    files = WatchedFiles(())
    (project / "shop.py").unlink()
    with Waiting(files) as waiting:
        assert changed_in(waiting) == ["shop.py"]


@pytest.mark.usefixtures("way")
def test_a_module_from_elsewhere_counts_once_it_is_imported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a_module_from_elsewhere.py").write_text("")
    files = WatchedFiles(())
    monkeypatch.syspath_prepend(str(elsewhere))
    try:
        import a_module_from_elsewhere  # type: ignore[import-not-found] # noqa: F401

        # To be imported is no change.
        assert files.changes() == []
        with Waiting(files) as waiting:
            (elsewhere / "a_module_from_elsewhere.py").write_text("changed = 1")
            assert changed_in(waiting) == ["a_module_from_elsewhere.py"]
    finally:
        sys.modules.pop("a_module_from_elsewhere", None)


def test_it_ends_when_told_to(project: Path) -> None:
    with Waiting(WatchedFiles(())) as waiting:
        pass
    assert waiting.found == []


def test_neither_the_home_directory_nor_installed_packages_are_searched(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert WatchedFiles(()).directories == []
    monkeypatch.setenv("HOME", "/nowhere")
    assert WatchedFiles(()).directories == [str(project)]


def test_included_directories_count_with_all_that_is_in_them(project: Path) -> None:
    (project / "texts" / ".drafts").mkdir(parents=True)
    files = WatchedFiles(("texts", "*.ini"))
    (project / "texts" / ".drafts" / "a").touch()
    (project / "shop.ini").touch()
    (project / "shop.cfg").touch()
    assert sorted(Path(path).name for path in files.changes(only_others=True)) == ["a"]
    assert sorted(Path(path).name for path in files.changes()) == ["shop.ini"]
