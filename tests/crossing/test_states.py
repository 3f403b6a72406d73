"""The states of an exchange, as keys and as texts."""

from __future__ import annotations

import pytest

from threadbridge.crossing.states import ENDINGS, MOVES, State


@pytest.mark.parametrize("state", State)
def test_a_state_and_its_text_are_the_same_key(state: State) -> None:
    text = str(state)
    assert state == text
    by_state: dict[str, int] = {state: 1}
    assert by_state[text] == {text: 1}[state] == 1
    assert len({state, text}) == 1


def test_only_endings_have_no_move() -> None:
    assert {state for state, moves in MOVES.items() if not moves} == ENDINGS
    assert set(MOVES) == set(State)
