"""A queue that serves its clients in turn: one with many requests delays another's by one service time at most."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out for each client; one item of each client in turn. Every operation is O(1).

    Not locked: its owner sees to that.
    """

    def __init__(self) -> None:
        self._items: dict[str, deque[Item]] = {}
        # The clients that have items, the next one to be served in front.
        self._turns: deque[str] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, item: Item) -> None:
        """Append an item of a client's."""
        items = self._items.get(client)
        if items is None:
            items = self._items[client] = deque()
            self._turns.append(client)
        items.append(item)
        self._length += 1

    def take(self) -> Item:
        """The next item; raises ``IndexError`` when there is none."""
        client = self._turns.popleft()
        items = self._items[client]
        item = items.popleft()
        if items:
            self._turns.append(client)
        else:
            del self._items[client]
        self._length -= 1
        return item
