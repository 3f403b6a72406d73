"""A queue that serves its clients in turn: one with many requests delays another by at most one service time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out for each client, one item of each in turn; every operation but
    `in_turn` is O(1). Its owner locks it."""

    def __init__(self) -> None:
        # The clients with several items, by their number: _by_count[n] has those with n + 2. A client moves by one
        # place at a time, so that the last place always has those with the most.
        self._by_count: list[OrderedDict[str, None]] = []
        # The clients in the order of their turns, each with its items in order. Unlike a dict, an `OrderedDict` finds
        # its first key at once even after many have been removed in front of it.
        self._clients: OrderedDict[str, OrderedDict[Item, None]] = OrderedDict()
        # The client of the item taken last.
        self._served: str | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, item: Item) -> None:
        """Append an item for a client."""
        items = self._clients.get(client)
        if items is None:
            items = self._clients[client] = OrderedDict()
        items[item] = None
        self._length += 1
        count = len(items)
        if count > 1:
            self._move(client, count - 1, count)

    def head(self) -> Item:
        """Return the next item; raises ``IndexError`` when there is none."""
        if not self._clients:
            raise IndexError("the queue is empty")
        # Only now: a client that came meanwhile does not wait for another item of the client served last.
        if self._served is not None and self._served in self._clients:
            self._clients.move_to_end(self._served)
            self._served = None
        # Compiled, loops are faster than `next` and `iter`.
        for items in self._clients.values():
            for item in items:
                return item
        raise AssertionError("a client without items")

    def take(self) -> Item:
        """Take the next item; raises ``IndexError`` when there is none."""
        item = self.head()
        client = next(iter(self._clients))
        items = self._clients[client]
        del items[item]
        self._shrink(client, items)
        self._served = client
        return item

    def first_of(self, client: str) -> Item | None:
        """Return the client's next item, or None if it has none."""
        items = self._clients.get(client)
        return None if items is None else next(iter(items))

    def count_of(self, client: str) -> int:
        """Return how many items the client has."""
        items = self._clients.get(client)
        return 0 if items is None else len(items)

    def in_turn(self) -> list[Item]:
        """Return all items in the order of their turns."""
        if self._clients:
            self.head()
        found: list[Item] = []
        waiting = [list(items) for items in self._clients.values()]
        turn = 0
        while waiting:
            for items in waiting:
                found.append(items[turn])
            turn += 1
            waiting = [items for items in waiting if len(items) > turn]
        return found

    @property
    def clients(self) -> int:
        """How many clients have items."""
        return len(self._clients)

    def remove(self, client: str, item: Item) -> bool:
        """Take an item out of turn; return whether it was there."""
        items = self._clients.get(client)
        if items is None or item not in items:
            return False
        del items[item]
        self._shrink(client, items)
        return True

    def is_largest(self, client: str) -> bool:
        """Return whether this client, with one more item, would have at least as many as any other."""
        return len(self._clients.get(client, ())) >= len(self._by_count)

    def newest_of_largest(self) -> Item:
        """Return the newest item of a client with the most items; raises ``IndexError`` when there is none."""
        if not self._clients:
            raise IndexError("the queue is empty")
        client = next(iter(self._by_count[-1] if self._by_count else reversed(self._clients)))
        return next(reversed(self._clients[client]))

    def _shrink(self, client: str, items: OrderedDict[Item, None]) -> None:
        self._length -= 1
        count = len(items)
        if count:
            self._move(client, count + 1, count)
        else:
            del self._clients[client]

    def _move(self, client: str, before: int, now: int) -> None:
        if before > 1:
            del self._by_count[before - 2][client]
        if now > 1:
            if now - 2 == len(self._by_count):
                self._by_count.append(OrderedDict())
            self._by_count[now - 2][client] = None
        if not self._by_count[-1]:
            self._by_count.pop()
