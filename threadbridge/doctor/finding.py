"""What a check finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.IntEnum):
    """How bad it is; the number is the exit status of ``--check``."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    :param subject: what was looked at, in a word.
    :param advice: what to do about it; "" when there is nothing to do.
    """

    subject: str
    level: Level
    message: str
    advice: str = ""
