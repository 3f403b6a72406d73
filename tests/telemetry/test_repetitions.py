"""Which of a request's statements count as repeated, and which as N+1."""

from __future__ import annotations

from threadbridge.sql.statements import Statements
from threadbridge.telemetry.repetitions import Repetition, repetitions


def found(*executed: tuple[str, int], are_all: bool = True) -> list[Repetition]:
    """The repetitions among statements, each with its number of rows."""
    statements = Statements()
    for sql, rows in executed:
        statements.end(statements.begin(sql, None), rows=rows)
    return repetitions(statements.latest, are_all)


ONE = "SELECT name FROM customers WHERE id = {}"


def test_one_query_for_each_row_of_an_earlier_one_is_n_plus_one() -> None:
    queries = [(ONE.format(number), 1) for number in range(4)]
    [repetition] = found(("SELECT id FROM orders", 4), *queries)
    assert repetition[:2] == ("SELECT name FROM customers WHERE id = ?", 4) and repetition.is_n_plus_one
    # The driver may not tell how many rows there were.
    assert found(("SELECT id FROM orders", -1), *queries)[0].is_n_plus_one
    # No earlier query has had as many rows, or there was none; but there may have been one that is not kept.
    assert not found(("SELECT id FROM orders", 3), *queries)[0].is_n_plus_one
    assert not found(*queries)[0].is_n_plus_one
    assert found(*queries, are_all=False)[0].is_n_plus_one


def test_changes_are_repeated_but_no_n_plus_one() -> None:
    change = "UPDATE orders SET sent = 1 WHERE id = {}"
    changes = [(change.format(number), 1) for number in range(3)]
    [repetition] = found(("SELECT id FROM orders", 3), *changes)
    assert (repetition.times, repetition.is_n_plus_one) == (3, False)


def test_statements_that_differ_only_in_values_are_the_same() -> None:
    lists = (
        "SELECT 1 FROM a WHERE b IN (1)",
        "SELECT 1 FROM a  WHERE b IN (1, 2)",
        "SELECT 1 FROM a WHERE b IN (%s, %s)",
    )
    [repetition] = found(*((sql, 0) for sql in lists))
    assert repetition[:2] == ("SELECT ? FROM a WHERE b IN (?)", 3)
    assert found((ONE, 0), (ONE, 0)) == []
    query = "SELECT {} FROM a"
    assert found(*((query.format(name), 0) for name in "bcd")) == []
    # The most frequent one first.
    sorts = [("SELECT 1 FROM a", 0)] * 3 + [("SELECT 1 FROM b", 0)] * 4
    assert [each.times for each in found(*sorts)] == [4, 3]
