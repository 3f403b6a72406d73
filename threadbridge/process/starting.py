"""From its settings to a process that serves: pid file, listening sockets, user, hook, title. Main thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from threadbridge.process.identity import remove_pid_file, set_title, write_pid_file
from threadbridge.settings.table import Settings, is_supervised

if TYPE_CHECKING:
    from threadbridge.sockets.inheritance import Inheritance


class Runnable(Protocol):
    """A process that serves, or that supervises those that do."""

    def listen(self) -> None:
        """Bind the addresses. Raises ``OSError``."""

    def give_up_root(self) -> None:
        """Become the user and group of the settings. Raises `SettingError`."""

    def run(self) -> int:
        """Serve until a signal comes; return the exit status."""


def prepare(process: Runnable, settings: Settings, inheritance: Inheritance | None) -> None:
    """Do what comes before a process runs.

    Raises `SettingError` if the pid file cannot be written or the user cannot be changed, and ``OSError`` if an address
    cannot be listened on.
    """
    if inheritance is not None:
        set_title(f"process {inheritance.number}")
        process.listen()
        return
    if is_supervised(settings):
        set_title("supervisor")
    if settings["pid_file"] is not None:
        write_pid_file(settings["pid_file"])
    try:
        process.listen()
        process.give_up_root()
    except BaseException:
        remove_pid_file()
        raise


def run_to_its_end(process: Runnable, settings: Settings, inheritance: Inheritance | None) -> int:
    """Serve until a signal comes; return the exit status. Raises what ``on_starting`` raises."""
    try:
        if inheritance is None and settings["on_starting"] is not None:
            settings["on_starting"]()
        return process.run()
    finally:
        remove_pid_file()
