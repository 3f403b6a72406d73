"""Finds statements that a request repeats: the pattern N+1, one query for each row of an earlier one. Any thread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from threadbridge.sql.effects import only_reads
from threadbridge.sql.mask import masked
from threadbridge.sql.statements import Statement

# How often the same statement counts as repeated; twice is often right.
FEWEST = 3
# Characters of a statement that are compared and shown.
LONGEST = 2000
# The lists of values of ``IN`` differ in length, and several rows may be inserted at once.
_LIST = re.compile(r"\((?:\s*(?:\?|%s|%\(\w+\)s|:\w+|\$\d+)\s*,?)+\)")


class Repetition(NamedTuple):
    """A statement that a request has executed several times, apart from its values.

    :param text: with ``?`` in place of its values.
    :param times: how often.
    :param seconds: what all of them took together.
    :param is_n_plus_one: whether it reads, and may have been executed once for each row of an earlier query.
    """

    text: str
    times: int
    seconds: float
    is_n_plus_one: bool


def shape_of(sql: str) -> str:
    """The statement without its values, on one line; equal for statements that differ only in these."""
    return _LIST.sub("(?)", " ".join(masked(sql[:LONGEST]).split()))


def repetitions(statements: Sequence[Statement], are_all: bool) -> list[Repetition]:
    """The repeated ones of a request's statements, most often first; ``are_all``: whether it had no earlier ones."""
    found: dict[str, list[Statement]] = {}
    for statement in statements:
        found.setdefault(shape_of(statement.sql), []).append(statement)
    repeated = []
    for text, same in found.items():
        if len(same) >= FEWEST:
            earlier = statements[: statements.index(same[0])]
            # -1 if the driver does not tell.
            has_rows = not are_all or any(each.rows < 0 or each.rows >= len(same) for each in earlier)
            is_n_plus_one = has_rows and only_reads(same[0].sql.encode(errors="replace"))
            seconds = sum(max(0.0, each.ended - each.started) for each in same)
            repeated.append(Repetition(text, len(same), seconds, is_n_plus_one))
    return sorted(repeated, key=lambda each: -each.times)
