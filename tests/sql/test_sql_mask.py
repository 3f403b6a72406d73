"""Masking removes each value from a statement's text, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadbridge.sql.mask import masked


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT a, b2 FROM t1 WHERE a = 'x' LIMIT 10", "SELECT a, b2 FROM t1 WHERE a = ? LIMIT ?"),
        ("IN (1, -2.5, 3e-7, .5, 0xFF, 1E+9)", "IN (?, -?, ?, ?, ?, ?)"),
        ("('it''s', \"say \"\"x\"\"\", '')", "(?, ?, ?)"),
        ("(x'ff', N'n', _utf8mb4'u', date'2020-01-01')", "(?, ?, ?, ?)"),
        ("SELECT `it's 1`, t.c2 FROM `a b`", "SELECT `it's 1`, t.c2 FROM `a b`"),
        ("VALUES (%s, %(name)s, ?, :name)", "VALUES (%s, %(name)s, ?, :name)"),
        ("SELECT 1 -- of 'bob'\nFROM t /* who is 7 */ WHERE b = 2", "SELECT ?  \nFROM t   WHERE b = ?"),
        (r"('a\\', 'b')", "(?, ?)"),
        # From here on, two databases read it differently.
        (r"(1, 'O\'Brien', 'secret')", "(?, ?"),
        (r"('a\', 'secret', \'')", "(?"),
        ("(1, $$it's$$, 'secret')", "(?, ?"),
        ("SELECT 1 # don't\n, 'secret'", "SELECT ? ?"),
        ("SELECT 'without an end", "SELECT ?"),
        ("SELECT 1 /* without 'an' end", "SELECT ?  "),
    ],
)
def test_masked(sql: str, shown: str) -> None:
    assert masked(sql) == shown


WORDS = st.sampled_from(
    ["SELECT", "FROM", " ", ",", "(", ")", "=", "`n`", "t1", "%s", "/* c */", "--\n", "-", "#", "$x$"]
)
SECRET = "secret"
VALUES = st.sampled_from(
    ["'secret'", '"secret"', "'a''secret'", r"'\'secret'", r"'secret\\'", r"'\"secret'", "'`secret'"]
)


@given(st.lists(WORDS | VALUES))
def test_strings_are_masked_whatever_surrounds_them(parts: list[str]) -> None:
    assert SECRET not in masked(" ".join(parts))
