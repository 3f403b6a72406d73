"""A queue that serves its clients in turn, so that one with many requests delays another's by one service time at most.

When it is full, the newest item of the client that has the most makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out for each client; one item of each client in turn. Every operation is O(1).

    Not locked: its owner sees to that.
    """

    def __init__(self) -> None:
        # The clients that have several items, by how many: _by_count[n] has those with n + 2. They move by one place at
        # a time, so that those with the most are always in the last place. Most clients have one, which costs nothing.
        self._by_count: list[dict[str, None]] = []
        # The clients that have items, in the order of their turns; each with its items in theirs. Unlike a dict, an
        # `OrderedDict` finds its first key at once, also after many have been removed in front.
        self._clients: OrderedDict[str, OrderedDict[Item, None]] = OrderedDict()
        # The client of the item taken last.
        self._served = ""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, item: Item) -> None:
        """Append an item of a client's."""
        items = self._clients.get(client)
        if items is None:
            items = self._clients[client] = OrderedDict()
        items[item] = None
        self._length += 1
        count = len(items)
        if count > 1:
            self._move(client, count - 1, count)

    def take(self) -> Item:
        """The next item; raises ``IndexError`` when there is none."""
        if not self._clients:
            raise IndexError("the queue is empty")
        # Only now, so that who came while the last one was served does not wait for another of the same client's.
        if self._served in self._clients:
            self._clients.move_to_end(self._served)
        client, items = next(iter(self._clients.items()))
        item, _ = items.popitem(last=False)
        self._served = client
        self._has_left(client, items)
        return item

    def remove(self, client: str, item: Item) -> bool:
        """Take an item out of turn; whether it was there."""
        items = self._clients.get(client)
        if items is None or item not in items:
            return False
        del items[item]
        self._has_left(client, items)
        return True

    def is_largest(self, client: str) -> bool:
        """Whether this client, with one item more, would have at least as many as any other."""
        items = self._clients.get(client)
        return (len(items) if items is not None else 0) >= len(self._by_count)

    def take_newest_of_largest(self) -> Item:
        """Take the last item of a client that has the most; raises ``IndexError`` when there is none."""
        if not self._clients:
            raise IndexError("the queue is empty")
        client = next(iter(self._by_count[-1] if self._by_count else reversed(self._clients)))
        items = self._clients[client]
        item, _ = items.popitem(last=True)
        self._has_left(client, items)
        return item

    def _has_left(self, client: str, items: OrderedDict[Item, None]) -> None:
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
                self._by_count.append({})
            self._by_count[now - 2][client] = None
        if not self._by_count[-1]:
            self._by_count.pop()
