"""A finding of ``--check``."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.IntEnum):
    """How serious a finding is; the number is the exit status of ``--check``."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """What one check found.

    :param subject: what was checked, in a word or two.
    :param advice: what to do about it; "" if nothing need be done.
    """

    subject: str
    level: Level
    message: str
    advice: str = ""
