"""Whether an SQL statement only reads, and whether it changes its connection's session, judged by its text.

In doubt, a statement counts as a change. A view that calls a stored function that writes is not detected.
"""

from __future__ import annotations

import re

# First words of statements that do not change the session, unless they assign a variable or take a user lock.
_NEUTRAL = frozenset(
    b"select with insert update delete replace values show explain describe desc begin start commit rollback savepoint "
    b"alter drop truncate rename analyze optimize create".split()
)
_FIRST_WORD = re.compile(rb"(?:\s|\(|/\*(?!m?!).*?\*/|--\s[^\n]*(?:\n|\Z)|#[^\n]*(?:\n|\Z))*([a-z]+)", re.DOTALL).match
# What a query that does more than read has in it. ``in``, for each, would take longer: it first tries whether bytes are
# a number.
_MAY_DO_MORE = re.compile(rb"for|lock|;|into|:=|last_insert_id").search
# Strings, quoted names and comments, except comments that are executed.
_MYSQL = re.compile(
    rb"""'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'|"[^"\\]*(?:(?:\\.|"")[^"\\]*)*"|`[^`]*`"""
    rb"""|/\*(?!m?!).*?\*/|--(?:\s|\Z)[^\n]*|\#[^\n]*""",
    re.DOTALL,
)
_POSTGRESQL = re.compile(rb"""'[^']*'|"[^"]*"|(\$(?:[a-z_][a-z_0-9]*)?\$).*?\1|/\*.*?\*/|--[^\n]*""", re.DOTALL)
_PLAIN_NAME = re.compile(rb"[a-z_0-9]+").fullmatch
# In a `bare` text: another statement, or a comment that is executed.
find_more = re.compile(rb";\s*[^\s;]|/\*m?!").search
# Assignments of variables, values set for LAST_INSERT_ID(), named locks, temporary tables, executed comments, and
# whatever follows a semicolon.
_SESSION = re.compile(
    rb":=|\binto\s*@|last_insert_id\s*\(\s*[^\s)]|locks?(?:_shared)?\s*\(|\b(?:pg_)?temp(?:orary)?\b|/\*m?!|;\s*[^\s;]"
).search
# A quick test: statements without any of these, which are most, do not match _SESSION.
_MAY_HAVE_SESSION = re.compile(rb":=|into|last_insert_id|lock|temp|/\*m?!|;\s*[^\s;]").search
# MariaDB's settings for a single statement.
_SET_STATEMENT = re.compile(rb"\A\s*set\s+statement\b.*?\bfor\b", re.DOTALL)

_STRING = re.compile(rb"'[^']*'")
_QUOTED_NAME = re.compile(rb'"[^"]*"|`[^`]*`')
# These make it uncertain where a string or name ends, or which function is called.
_UNCERTAIN = re.compile(rb"""--|/\*|\#|['"]\s*(?:\.\s*[a-z0-9_]+\s*)?\(""").search
_CALL = re.compile(rb"((?:[a-z0-9_]+\s*\.\s*)*[a-z0-9_]+)\s*\(").findall
# Words that may precede a parenthesis in a query that can run again on another connection with the same result.
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
    """Whether a statement is a plain query: it takes no lock, and changes neither data nor the session."""
    text = sql.lower()
    return text.lstrip()[:6] == b"select" and _MAY_DO_MORE(text) is None


def bare(sql: bytes, *, postgresql: bool = False, escapes: bool = True) -> bytes:
    """A statement in lower case, without comments, the contents of strings, quotes around plain names, and settings.

    If it is uncertain where strings and comments end, they are left in. ``escapes``: whether a backslash is an escape
    character in MySQL's strings.
    """
    text = sql.lower()
    if postgresql:
        # Whether a backslash escapes depends on settings and prefixes; comments may be nested.
        is_certain = b"\\" not in text and text.count(b"/*") < 2
        return _POSTGRESQL.sub(_remainder, text) if is_certain else text
    if escapes or b"\\" not in text:
        text = _MYSQL.sub(_remainder, text)
    return _SET_STATEMENT.sub(b"", text)


def _remainder(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if found[:1] in (b"-", b"#", b"/"):
        return b" "
    name = found[1:-1]
    return name if found[:1] in (b'"', b"`") and _PLAIN_NAME(name) is not None else b"''"


def in_words(text: bytes) -> bytes:
    """A `bare` text from its first word on, with one space between words."""
    return b" ".join(text.split()).strip(b"; (")


def may_change_session(sql: bytes, *, postgresql: bool = False, escapes: bool = True) -> bool:
    """Whether a statement may leave variables, temporary tables, locks or settings to later ones; see also `bare`."""
    if first_word(sql) in _NEUTRAL and _MAY_HAVE_SESSION(sql.lower()) is None:
        return False
    text = bare(sql, postgresql=postgresql, escapes=escapes)
    return first_word(text) not in _NEUTRAL or _SESSION(text) is not None


def first_word(sql: bytes) -> bytes:
    """The first word of a statement in lower case, after comments and parentheses; "" if there is none."""
    match = _FIRST_WORD(sql.lower())
    return match[1] if match is not None else b""


def can_be_repeated(sql: bytes) -> bool:
    """Whether a statement can run again on another connection, because the first run left no trace."""
    if not only_reads(sql) or b"\\" in sql or b"$" in sql or not sql.isascii():
        return False
    text = _QUOTED_NAME.sub(b'""', _STRING.sub(b"''", sql.lower()))
    return b"@" not in text and _UNCERTAIN(text) is None and _HARMLESS.issuperset(_CALL(text))
