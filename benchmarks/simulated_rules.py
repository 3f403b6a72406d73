"""The rules by which `benchmarks.simulation` chooses the request that runs next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Protocol, cast
from unittest import mock

from benchmarks.simulated_requests import Request
from threadbridge.crossing import cost_cells, costs, recent_use, schedule
from threadbridge.crossing.cost_cells import Cell, scaled
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.recent_use import SHORT, level_of
from threadbridge.crossing.routes import Routes
from threadbridge.crossing.schedule import Schedule

# Seconds that a request may wait before it is refused: the default of the setting queue_timeout.
QUEUE_TIMEOUT = 30.0


class Rule(Protocol):
    """Which of the waiting requests runs next."""

    def put(self, request: Request, now: float) -> bool:
        """Let a request wait; False if it is refused."""

    def take(self, now: float) -> Request | None:
        """Return the next request if one may run now."""

    def remove(self, request: Request) -> None:
        """Forget a request that waits."""

    def end(self, request: Request, now: float) -> None:
        """Note that a request does not run any more: it has been answered, or its client has left."""

    def too_late(self, now: float) -> list[Request]:
        """Return the waiting requests that are to be refused now."""


class FirstInFirstOut:
    """In the order in which they came."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._waiting: dict[Request, None] = {}
        self._running = 0

    def put(self, request: Request, now: float) -> bool:
        self._waiting[request] = None
        return True

    def take(self, now: float) -> Request | None:
        if self._running >= self._width or not self._waiting:
            return None
        request = next(iter(self._waiting))
        del self._waiting[request]
        self._running += 1
        return request

    def remove(self, request: Request) -> None:
        self._waiting.pop(request, None)

    def end(self, request: Request, now: float) -> None:
        self._running -= 1

    def too_late(self, now: float) -> list[Request]:
        return []


class ClientsInTurn:
    """The package's own schedule, without costs."""

    costs: Costs | None = None
    refuses_early = True

    def __init__(self, width: int) -> None:
        self.schedule = Schedule(width, self.costs)

    def put(self, request: Request, now: float) -> bool:
        self.schedule.file(request)
        if self.refuses_early and self.schedule.expected_wait(request, now) > QUEUE_TIMEOUT:
            return False
        self.schedule.put(request, now)
        return True

    def take(self, now: float) -> Request | None:
        if self.schedule.running >= self.schedule.width:
            return None
        request = self._next(now)
        if request is not None:
            self.schedule.start(request, now)
        return request

    def _next(self, now: float) -> Request | None:
        return cast(Request | None, self.schedule.take(now))

    def remove(self, request: Request) -> None:
        self.schedule.remove(request)

    def end(self, request: Request, now: float) -> None:
        self.schedule.end(request, now)

    def too_late(self, now: float) -> list[Request]:
        return []


class LearnedCosts(ClientsInTurn):
    """The package's own rule: its schedule, with the costs that it learns."""

    def __init__(self, width: int) -> None:
        self.costs: Costs = Costs()
        self.routes = Routes(self.costs)
        super().__init__(width)

    def _cost_of(self, request: Request) -> Cell:
        return self.routes.find("GET", request.path).cost

    def _client_of(self, request: Request) -> str:
        return request.client

    def put(self, request: Request, now: float) -> bool:
        target = f"{request.path}?{request.query}"
        request.estimate = Estimate(self._cost_of(request), target, self._client_of(request))
        self.costs.estimate(request.estimate)
        return super().put(request, now)

    def end(self, request: Request, now: float) -> None:
        ran = now - request.started
        # As exchanges learn: what was cut short tells only that it would have taken at least so long.
        if request.outcome == "answered" or ran > request.estimate.cautious:
            self.costs.learn(request.estimate, ran)
        super().end(request, now)


class KnownCosts(LearnedCosts):
    """The package's own schedule, if all costs were known beforehand."""

    def _cost_of(self, request: Request) -> Cell:
        # As if very many requests had taken exactly so long.
        cell = Cell()
        cell.n = cell.remembered = 1e9
        cell.mean, cell.seconds = scaled(request.seconds), request.seconds
        cell.sum_up()
        return cell


class ClientIsNoParameter(LearnedCosts):
    """Without the client among the parameters by which costs are learned."""

    def _client_of(self, request: Request) -> str:
        return ""


class NoEarlyRefusal(LearnedCosts):
    """Requests that would wait for too long wait until they have."""

    refuses_early = False


class FixedShort(LearnedCosts):
    """Short is what takes up to 0.1 s, whatever comes."""

    def end(self, request: Request, now: float) -> None:
        super().end(request, now)
        schedule = self.schedule
        schedule.limit = SHORT
        if schedule._to_keep:
            load = sum(schedule._use.seconds[:SHORT]) / recent_use.RECENT
            schedule._to_keep = min(schedule.width // 2, max(1, math.ceil(load / recent_use.BUSY)))


class JudgedAtOnce(LearnedCosts):
    """Each request counts as what it costs as soon as it runs, the most that its SQL statements could tell."""

    def take(self, now: float) -> Request | None:
        request = super().take(now)
        if request is not None:
            running = self.schedule._running[request]
            running.level = level_of(request.seconds)
        return request


class DueWhenItCame(LearnedCosts):
    """A client's next request is due by the time it came, however many of the client's have run before it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self._due: dict[Request, float] = {}

    def put(self, request: Request, now: float) -> bool:
        is_waiting = super().put(request, now)
        if is_waiting:
            self._due[request] = request.estimate.due
        return is_waiting

    def _next(self, now: float) -> Request | None:
        request = super()._next(now)
        if request is not None:
            del self._due[request]
            self._restore(request)
        return request

    def remove(self, request: Request) -> None:
        super().remove(request)
        del self._due[request]
        self._restore(request)

    def _restore(self, request: Request) -> None:
        for queue in self.schedule._levels:
            following = cast(Request | None, queue.first_of(request.client))
            if following is not None:
                following.estimate.due = self._due[following]


class ByClass(LearnedCosts):
    """Knows which requests of each class wait, in the order in which they came, and since when some do."""

    # Seconds after which a queue that was never empty is a standing one.
    STANDING = 2.0

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self._class_of: dict[Request, str] = {}
        self._waiting: dict[str, dict[Request, None]] = {"short": {}, "long": {}, "unknown": {}}
        self._empty_at = dict.fromkeys(self._waiting, 0.0)

    def put(self, request: Request, now: float) -> bool:
        is_waiting = super().put(request, now)
        if is_waiting:
            cost_class = self._class_of[request] = request.estimate.cost_class
            if not self._waiting[cost_class]:
                self._empty_at[cost_class] = now
            self._waiting[cost_class][request] = None
        return is_waiting

    def remove(self, request: Request) -> None:
        super().remove(request)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        del self._waiting[self._class_of.pop(request)][request]

    def _next(self, now: float) -> Request | None:
        request = super()._next(now)
        if request is not None:
            self._forget(request)
        return request


class NewestFirst(ByClass):
    """Adaptive LIFO: of the requests of a class, the newest runs while the queue is a standing one."""

    def _newest(self, request: Request) -> Request:
        return next(reversed(self._waiting[self._class_of[request]]))

    def _next(self, now: float) -> Request | None:
        request = LearnedCosts._next(self, now)
        if request is not None:
            newest = self._newest(request)
            if newest is not request and now - self._empty_at[self._class_of[request]] > self.STANDING:
                due = request.estimate.due
                self.schedule.remove(newest)
                self.schedule.put(request, now)
                request.estimate.due = due
                request = newest
            self._forget(request)
        return request


class NewestOfClient(NewestFirst):
    """Clients take turns, but while the queue of a class is a standing one, each has its newest request run first."""

    def _newest(self, request: Request) -> Request:
        newest = reversed(self._waiting[self._class_of[request]])
        return next(other for other in newest if other.client == request.client)


class ControlledDelay(ByClass):
    """CoDel's idea: while the queue of a class is a standing one, requests are refused that have waited for long."""

    # Seconds that a request of each class may wait then.
    ALLOWED = {"short": 1.0, "long": 5.0, "unknown": 5.0}  # noqa: RUF012

    def too_late(self, now: float) -> list[Request]:
        late = []
        for cost_class, requests in self._waiting.items():
            if now - self._empty_at[cost_class] > self.STANDING:
                late += [request for request in requests if now - request.at > self.ALLOWED[cost_class]]
        return late


RULES: dict[str, Callable[[int], Rule]] = {
    "fifo": FirstInFirstOut,
    "turns": ClientsInTurn,
    "learned": LearnedCosts,
    "known": KnownCosts,
    "no-early-refusal": NoEarlyRefusal,
    "no-client": ClientIsNoParameter,
    "fixed-short": FixedShort,
    "judged-at-once": JudgedAtOnce,
    "no-carrying": DueWhenItCame,
    "newest-first": NewestFirst,
    "newest-of-client": NewestOfClient,
    "codel": ControlledDelay,
}


def parse(text: str) -> tuple[Callable[[int], Rule], dict[str, float]]:
    """Return a rule and the constants of the package to change, from ``RULE[,CONSTANT=VALUE]...``."""
    name, *pairs = text.split(",")
    if name not in RULES:
        raise ValueError(f"there is no rule {name!r}; give one of {', '.join(RULES)}")
    changed = {}
    for pair in pairs:
        constant, _, value = pair.partition("=")
        modules_with(constant)
        changed[constant] = float(value)
    return RULES[name], changed


def modules_with(constant: str) -> list[ModuleType]:
    """Return the modules of the schedule that use this constant."""
    modules = (schedule, recent_use, costs, cost_cells)
    found = [module for module in modules if isinstance(getattr(module, constant, None), int | float)]
    if not found:
        raise ValueError(f"none of {', '.join(module.__name__ for module in modules)} has a number {constant!r}")
    return found


@contextmanager
def constants(changed: dict[str, float]) -> Iterator[None]:
    """Change constants of the schedule for a while."""
    with ExitStack() as stack:
        for name, value in changed.items():
            for module in modules_with(name):
                stack.enter_context(mock.patch.object(module, name, type(getattr(module, name))(value)))
        yield
