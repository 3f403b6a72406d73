"""What the text of an SQL statement tells about its effects: on the data, and on the session of its connection.

In doubt, a statement counts as one that changes things. A stored function that writes, called by a view, is not seen.
"""

from __future__ import annotations

import re

# The first words of statements that change data, and of those that commit what was open before them.
CHANGES = frozenset(b"insert update delete replace load call with do execute".split())
IMPLICIT_COMMITS = frozenset(b"create alter drop truncate rename".split())
# Statements that leave a session as it was, unless they assign a variable or take a lock of the user's.
_NEUTRAL = frozenset(
    b"select with insert update delete replace values show explain describe desc begin start commit rollback savepoint "
    b"alter drop truncate rename analyze optimize".split()
)
_FIRST_WORD = re.compile(rb"(?:\s|\(|/\*(?!m?!).*?\*/|--\s[^\n]*(?:\n|\Z)|#[^\n]*(?:\n|\Z))*([a-z]+)", re.DOTALL).match
_QUOTED = re.compile(
    rb"""'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'|"[^"\\]*(?:(?:\\.|"")[^"\\]*)*"|`[^`]*`""",
    re.DOTALL,
)
# Variables assigned, locks taken by name, comments that are executed, and whatever follows a semicolon.
_SESSION = re.compile(rb":=|locks?\s*\(|/\*m?!|\binto\s+@|;\s*\S|\btemporary\b").search
_CALL = re.compile(rb"([a-z0-9_.$]+)\s*\(").findall
# What may stand in front of a parenthesis in a query that gives the same when it is run again on another connection.
_HARMLESS = frozenset(
    b"abs adddate all and any array_agg as avg between binary bit_and bit_or by case cast ceil ceiling char "
    b"char_length character_length coalesce concat concat_ws convert count curdate current_date current_timestamp "
    b"curtime date date_add date_format date_sub date_trunc datediff day dayofmonth dayofweek dayofyear decimal "
    b"dense_rank distinct else exists extract first_value floor format from from_unixtime greatest group_concat having "
    b"hex hour if ifnull in instr int interval is join json_extract json_length json_unquote json_value lag last_day "
    b"last_value lcase lead least left length like limit locate lower lpad ltrim max md5 mid min minute mod month not "
    b"now nullif numeric on or over pow power quarter rank repeat replace reverse right round row_number rpad rtrim "
    b"second select sha1 sha2 sign signed some sqrt std stddev str_to_date string_agg subdate substr substring "
    b"substring_index sum then time timediff timestamp timestampadd timestampdiff to_char trim truncate ucase unhex "
    b"union unix_timestamp unsigned upper using values varchar variance week when where with year".split()
)


def only_reads(sql: bytes) -> bool:
    """Whether it is a plain query: takes no lock, changes no data and nothing of the session."""
    text = sql.lower()
    return text.lstrip()[:6] == b"select" and not (
        b"for" in text or b"lock" in text or b";" in text or b"into" in text or b":=" in text
    )


def may_change_session(sql: bytes) -> bool:
    """Whether later statements on the connection may find variables, tables, locks or settings that it leaves."""
    text = sql.lower()
    word = first_word(text)
    if word in _NEUTRAL or word == b"create" or (word == b"set" and text.split(None, 2)[1:2] == [b"statement"]):
        return _SESSION(text) is not None and _SESSION(_QUOTED.sub(b"''", text)) is not None
    return True


def first_word(sql: bytes) -> bytes:
    """The statement's first word in small letters, behind comments and parentheses."""
    match = _FIRST_WORD(sql.lower())
    return match[1] if match is not None else b""


def can_be_repeated(sql: bytes) -> bool:
    """Whether it may run a second time, on another connection, without a trace of the first: see `only_reads`."""
    if not only_reads(sql):
        return False
    text = _QUOTED.sub(b"''", sql.lower())
    return b"@" not in text and b"/*" not in text and _HARMLESS.issuperset(_CALL(text))
