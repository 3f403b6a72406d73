"""What the text of an SQL statement tells about its effects on its connection's session, and whether it only reads.

In doubt, a statement counts as one that changes things. A stored function that writes, called by a view, is not seen.
What a statement does to the transaction depends on the kind of database: see `mysql_effects` and `postgresql_session`
in `threadbridge.database.drivers`.
"""

from __future__ import annotations

import re

# Statements that leave a session as it was, unless they assign a variable or take a lock of the user's.
_NEUTRAL = frozenset(
    b"select with insert update delete replace values show explain describe desc begin start commit rollback savepoint "
    b"alter drop truncate rename analyze optimize create".split()
)
_FIRST_WORD = re.compile(rb"(?:\s|\(|/\*(?!m?!).*?\*/|--\s[^\n]*(?:\n|\Z)|#[^\n]*(?:\n|\Z))*([a-z]+)", re.DOTALL).match
# Strings, quoted names and comments, but for comments that are executed.
_MYSQL = re.compile(
    rb"""'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'|"[^"\\]*(?:(?:\\.|"")[^"\\]*)*"|`[^`]*`"""
    rb"""|/\*(?!m?!).*?\*/|--(?:\s|\Z)[^\n]*|\#[^\n]*""",
    re.DOTALL,
)
_POSTGRESQL = re.compile(
    rb"""'[^']*'|"[^"]*"|(\$(?:[a-z_][a-z_0-9]*)?\$).*?\1|/\*.*?\*/|--[^\n]*""",
    re.DOTALL,
)
_PLAIN_NAME = re.compile(rb"[a-z_0-9]+").fullmatch
_SEVERAL = re.compile(rb";\s*[^\s;]").search
# Variables assigned, numbers kept for LAST_INSERT_ID(), locks taken by name, temporary tables, comments that are
# executed, and whatever follows a semicolon.
_SESSION = re.compile(
    rb":=|\binto\s*@|last_insert_id\s*\(\s*[^\s)]|locks?(?:_shared)?\s*\(|\b(?:pg_)?temp(?:orary)?\b|/\*m?!|;\s*[^\s;]"
).search
# What such a statement has in it somewhere. Most have nothing of the kind, and need not be looked at more closely.
_MAY_HAVE_SESSION = re.compile(rb":=|into|last_insert_id|lock|temp|/\*m?!|;\s*[^\s;]").search
_SET_STATEMENT = re.compile(rb"\s*set\s+statement\b.*?\bfor\b(.*)", re.DOTALL).fullmatch

_STRING = re.compile(rb"'[^']*'")
_QUOTED_NAME = re.compile(rb'"[^"]*"|`[^`]*`')
# What makes it uncertain where a string or a name ends, or what is called: comments, and quotes in front of a
# parenthesis.
_UNCERTAIN = re.compile(rb"""--|/\*|\#|['"]\s*(?:\.\s*[a-z0-9_]+\s*)?\(""").search
_CALL = re.compile(rb"((?:[a-z0-9_]+\s*\.\s*)*[a-z0-9_]+)\s*\(").findall
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
        b"for" in text
        or b"lock" in text
        or b";" in text
        or b"into" in text
        or b":=" in text
        or b"last_insert_id" in text
    )


def bare(sql: bytes, *, postgresql: bool = False, escapes: bool = True) -> bytes:
    """The text in small letters, without what is in strings and comments, and without the quotes of plain names.

    All of it where it is not certain what that is.

    :param escapes: whether a backslash escapes what follows it in a string of MySQL's.
    """
    text = sql.lower()
    if postgresql:
        # Whether a backslash is one depends on settings and prefixes; comments may be in comments.
        is_certain = b"\\" not in text and text.count(b"/*") < 2
        return _POSTGRESQL.sub(_remainder, text) if is_certain else text
    return _MYSQL.sub(_remainder, text) if escapes or b"\\" not in text else text


def _remainder(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if found[:1] in (b"-", b"#", b"/"):
        return b" "
    name = found[1:-1]
    return name if found[:1] in (b'"', b"`") and _PLAIN_NAME(name) is not None else b"''"


def in_words(text: bytes) -> bytes:
    """A `bare` text with one space between its words, from its first word on."""
    return b" ".join(text.split()).strip(b"; (")


def is_several(text: bytes) -> bool:
    """Whether a `bare` text has more than one statement, or one whose comments are executed."""
    return _SEVERAL(text) is not None or b"/*!" in text or b"/*m!" in text


def statement_in(text: bytes) -> bytes:
    """What a `bare` text executes: of MariaDB's ``SET STATEMENT ... FOR``, what stands behind it."""
    match = _SET_STATEMENT(text)
    return text if match is None else match[1]


def may_change_session(sql: bytes, *, postgresql: bool = False, escapes: bool = True) -> bool:
    """Whether later statements on the connection may find variables, tables, locks or settings that it leaves.

    Other parameters: see `bare`.
    """
    word = first_word(sql)
    if word in _NEUTRAL and _MAY_HAVE_SESSION(sql.lower()) is None:
        return False
    text = statement_in(bare(sql, postgresql=postgresql, escapes=escapes))
    return first_word(text) not in _NEUTRAL or _SESSION(text) is not None


def first_word(sql: bytes) -> bytes:
    """The statement's first word in small letters, behind comments and parentheses."""
    match = _FIRST_WORD(sql.lower())
    return match[1] if match is not None else b""


def can_be_repeated(sql: bytes) -> bool:
    """Whether it may run a second time, on another connection, without a trace of the first: see `only_reads`."""
    if not only_reads(sql) or b"\\" in sql or b"$" in sql or not sql.isascii():
        return False
    text = _QUOTED_NAME.sub(b'""', _STRING.sub(b"''", sql.lower()))
    return b"@" not in text and _UNCERTAIN(text) is None and _HARMLESS.issuperset(_CALL(text))
