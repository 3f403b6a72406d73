"""The text in which costs are kept: it says all that is worth keeping, and nothing in it can do harm."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from threadbridge.crossing.cost_cells import Cell
from threadbridge.crossing.cost_file import MAX_AGE, MAX_SIZE, VERSION, decode, encode, merge
from threadbridge.crossing.costs import MAX_CANDIDATES, MAX_CELLS, MAX_VALUES, Costs
from threadbridge.crossing.estimate import CLIENT, Estimate
from threadbridge.crossing.routes import MAX_ROUTES, Routes


class Learner:
    """What one process knows."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.routes = Routes(self.costs)

    def estimate(self, target: str, method: str = "GET", client: str = "10.0.0.1", form: str = "") -> Estimate:
        estimate = Estimate(self.routes.find(method, target.partition("?")[0]).cost, target, client)
        if form:
            estimate.add_form(form)
        self.costs.estimate(estimate)
        return estimate

    def learn(self, target: str, seconds: float, method: str = "GET", client: str = "10.0.0.1", form: str = "") -> None:
        self.costs.learn(self.estimate(target, method, client, form), seconds, seconds / 2)

    def learn_reports(self, regions: int = 20, rounds: int = 30) -> None:
        """Reports that take 20 ms or 8 s, by region; of those of one region, by format."""
        for number in range(regions * rounds):
            region = number % regions
            is_long = region == 7 or (region == 3 and number % 40 < 20)
            form = "pdf" if number % 40 < 20 else "csv"
            self.learn(
                f"/report?region=r{region}&format={form}", 8.0 if is_long else 0.02, client=f"10.0.0.{number % 9}"
            )

    def text(self) -> bytes:
        return encode(self.costs, self.routes)

    def read(self, text: bytes) -> None:
        merge(decode(text), self.costs, self.routes)

    def cost(self, path: str) -> Cell:
        [cost] = [route.cost for _, each, route in self.routes.all() if each == path]
        return cost

    def check(self) -> None:
        """The number of cells is right, and each parameter that decides exists."""
        assert self.costs.cells == sum(route.cost.size() for _, _, route in self.routes.all()) <= MAX_CELLS
        cells = [route.cost for _, _, route in self.routes.all()]
        while cells:
            parameters = (cell := cells.pop()).parameters or {}
            assert not cell.decisive or cell.decisive in parameters
            cells += [below for parameter in parameters.values() for below in parameter.cells.values()]


def lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.decode().splitlines()]


def with_lines(*lines: str) -> bytes:
    """A text with these lines after the first."""
    first = json.dumps({"version": VERSION, "lines": len(lines), "first": [0] * 8})
    return "\n".join((first, *lines, "")).encode()


def test_a_successor_estimates_as_its_predecessor_did() -> None:
    one, other = Learner(), Learner()
    one.learn_reports()
    for _ in range(5):
        one.learn("/page", 0.003)
    other.read(one.text())
    other.check()
    assert one.cost("/report").decisive == other.cost("/report").decisive == "region"
    for target in (*(f"/report?region=r{region}&format=csv" for region in range(25)), "/page", "/new"):
        mine, theirs = one.estimate(target), other.estimate(target)
        assert mine.is_known == theirs.is_known, target
        for name in ("seconds", "average", "cautious"):
            assert getattr(theirs, name) == pytest.approx(getattr(mine, name), rel=0.01), (target, name)
    assert other.estimate("/report?region=r7&format=csv").seconds > 1 > other.estimate("/report?region=r8").seconds
    # Nothing more is known after the second time.
    lines = sorted(other.text().splitlines())
    other.read(one.text())
    assert sorted(other.text().splitlines()) == lines


def test_a_tree_is_kept_whole() -> None:
    one, other = Learner(), Learner()
    one.learn_reports(rounds=100)
    other.read(one.text())

    def assert_same(cell: Cell, as_kept: Cell) -> None:
        for name in ("n", "mean", "variance", "remembered", "seconds", "missed"):
            assert getattr(as_kept, name) == pytest.approx(getattr(cell, name), rel=1e-3, abs=1e-3), name
        assert (as_kept.count, as_kept.unexpected, as_kept.decisive) == (cell.count, cell.unexpected, cell.decisive)
        # As in the file: what has so little to say is left out.
        for name, parameter in (cell.parameters or {}).items() if cell.decisive or cell.count >= 8 else ():
            kept = (as_kept.parameters or {})[name]
            assert (kept.saved, kept.lost) == pytest.approx((parameter.saved, parameter.lost), rel=1e-3)
            assert_same(parameter.new, kept.new)
            assert set(kept.cells) <= set(parameter.cells)
            for value, each in parameter.cells.items():
                if value in kept.cells:
                    assert_same(each, kept.cells[value])
                else:
                    assert each.count < 2

    assert_same(one.cost("/report"), other.cost("/report"))
    order = [list(parameter.cells) for parameter in (one.cost("/report").parameters or {}).values()]
    assert sorted(order) == sorted(
        list(parameter.cells) for parameter in (other.cost("/report").parameters or {}).values()
    )


def test_who_has_learned_more_of_something_tells_the_other() -> None:
    one, other = Learner(), Learner()
    one.learn_reports()
    other.learn("/report?region=r7&format=csv", 0.02)
    for _ in range(50):
        other.learn("/page", 0.5)
    one.learn("/page", 0.003)
    text = one.text()
    one.read(other.text())
    other.read(text)
    for each in (one, other):
        each.check()
        assert each.cost("/page").count == 50
        assert each.estimate("/page").seconds == pytest.approx(0.5, rel=0.01)
        assert each.cost("/report").count == 600
        assert each.estimate("/report?region=r7").seconds > 1


def test_each_adds_the_values_that_only_the_other_has_seen() -> None:
    one, other = Learner(), Learner()
    one.learn_reports()
    other.read(one.text())
    for _ in range(3):
        other.learn("/report?region=elsewhere&format=csv", 8.0)
        for _ in range(5):
            one.learn("/report?region=r8&format=csv", 0.02)
    # Of the route, this one has seen more.
    assert one.cost("/report").count > other.cost("/report").count
    one.read(other.text())
    one.check()
    assert one.estimate("/report?region=elsewhere").seconds == pytest.approx(8, rel=0.01)
    # It has been asked for least recently here.
    assert next(iter((one.cost("/report").parameters or {})["region"].cells)) == "elsewhere"


def test_a_file_does_not_grow_without_end() -> None:
    learner = Learner()
    chance = random.Random(1)
    letters = "abcdefghijklmnop"
    for number in range(2 * MAX_ROUTES):
        path = "/" + "".join(chance.choice(letters) for _ in range(150))
        for _ in range(3):
            learner.learn(f"{path}?a={number % 300}&b={chance.random()}", 8.0 if number % 3 else 0.01)
    text = learner.text()
    assert MAX_SIZE / 10 < len(text) < 1.01 * MAX_SIZE
    successor = Learner()
    successor.read(text)
    successor.check()


def test_the_routes_used_last_come_first_and_old_ones_are_left_out() -> None:
    learner = Learner()
    for path in ("/a", "/b", "/c"):
        learner.learn(path, 0.1)
    learner.cost("/a").last -= 10
    learner.cost("/b").last -= 20
    learner.cost("/c").last -= MAX_AGE
    assert [line["route"][1] for line in lines(learner.text()) if "route" in line] == ["/a", "/b"]


def test_what_is_known_already_is_not_driven_out() -> None:
    one, other = Learner(), Learner()
    for learner, name in ((one, "one"), (other, "other")):
        for number in range(MAX_ROUTES):
            path = f"/{name}/" + "".join(chr(97 + int(digit)) for digit in str(number))
            learner.learn(path, 0.01)
        for number in range(2000):
            learner.learn(f"/report?region={name}{number % 200}&x={name}{number % 40}", 8.0 if number % 7 else 0.02)
    mine = [path for _, path, _ in one.routes.all()]
    one.read(other.text())
    one.check()
    assert sorted(mine) == sorted(path for _, path, _ in one.routes.all())
    for name, parameter in (one.cost("/report").parameters or {}).items():
        assert len(parameter.cells) <= (MAX_VALUES if name == one.cost("/report").decisive else MAX_CANDIDATES)
        if name == "region":
            assert [value for value in parameter.cells if value.startswith("one")][-1] == list(parameter.cells)[-1]


def test_what_begins_or_has_ended_meanwhile_does_no_harm() -> None:
    one, other = Learner(), Learner()
    one.learn_reports()
    # Its first request has been asked for, not learned from.
    one.routes.find("GET", "/new").cost.last = time.time() + 1
    knowledge = decode(one.text())
    for line in knowledge.lines:
        merge(knowledge._replace(lines=[line]), other.costs, other.routes)
    other.check()
    assert other.cost("/report").count
    # A route that is forgotten while a file is read learns no more.
    cost = other.cost("/report")
    other.costs.forget(cost)
    other.read(one.text())
    other.check()
    assert other.costs.cells == 0


def test_secrets_are_not_written() -> None:
    learner = Learner()
    for number in range(200):
        learner.learn(
            "/login", 2.0 if number % 20 < 4 else 0.002, "POST", form=f"user=u{number % 20}&kennwort=x{number % 20}y"
        )
        seconds = 2.0 if number % 20 < 4 else 0.002
        learner.learn(f"/list?token=t{number % 20}t&page={number % 20}p&pin={4321 << number % 20}", seconds)
    text = learner.text().decode()
    # Of a form, only what tells its cost.
    assert '"u3"' in text and '"u3"' not in text.replace('"user"', "", 1).partition('"user"')[0]
    assert "x3y" not in text and "t3t" not in text
    assert '"3p"' in text
    # Nor how large a secret number is.
    assert '"pin#"' in text and '"13":' not in text
    successor = Learner()
    successor.read(text.encode())
    successor.check()
    assert successor.estimate("/login", "POST", form="user=u3&kennwort=x3y").seconds == pytest.approx(2, rel=0.01)
    # How many there are is known.
    for path, name in (("/login", "kennwort"), ("/list", "token")):
        assert len((successor.cost(path).parameters or {})[name].cells) == 20
    # Whoever knows real ones does not take over these.
    learner.read(successor.text())
    assert not any(value.startswith("?") for value in (learner.cost("/login").parameters or {})["kennwort"].cells)


def test_names_of_any_kind_are_kept_unless_they_are_long() -> None:
    one, other = Learner(), Learner()
    for number in range(40):
        for client in ("\ud800é\u2028\n", "c" * 100, "10.0.0.1"):
            one.learn(
                '/a"\x85/b?x=%s' % ("\xff\x00" if number % 2 else '"\\'), 1.0 if number % 2 else 0.01, client=client
            )
    other.read(one.text())
    cells = (other.cost('/a"\x85/b').parameters or {})[CLIENT].cells
    assert sum(each in cells for each in ("\ud800é\u2028\n", "10.0.0.1")) == 2 and "c" * 100 not in cells
    assert other.estimate('/a"\x85/b?x=\xff\x00').seconds == pytest.approx(1, rel=0.01)


CELL: list[object] = [5, -3.0, 0.5, 5, 0.05, 0.01, 5, 0]


def a_route(**changes: object) -> str:
    return json.dumps({"route": ["GET", "/x"], "last": time.time(), "cost": CELL, **changes})


def a_parameter(**changes: object) -> str:
    line = {"below": [], "parameter": "a", "score": [1, 0], "new": CELL, "values": {"1": CELL}, **changes}
    return json.dumps(line)


def a_cell(place: int, number: object) -> list[object]:
    return [*CELL[:place], number, *CELL[place + 1 :]]


NUMBERS: tuple[object, ...] = (float("nan"), float("inf"), -1e300, 1e300, "1", None, [], 10**400)
HOSTILE = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 10,
    "another version": json.dumps({"version": VERSION + 1, "lines": 0, "first": CELL}).encode(),
    "no object": b"[]\n",
    "a line is missing": with_lines(a_route(), a_parameter()).replace(b'"lines": 2', b'"lines": 3'),
    "cut": with_lines(a_route(), a_parameter())[:-20],
    "nested": with_lines("[" * 100_000),
    "nested below": with_lines(a_route(), a_parameter(below=["a", "1"] * 3)),
    "half a place": with_lines(a_route(), a_parameter(below=["a"])),
    "no route": with_lines(a_route(route="GET /x")),
    "a long route": with_lines(a_route(route=["GET", "x" * 1000])),
    "no name": with_lines(a_route(), a_parameter(parameter="")),
    "a long value": with_lines(a_route(), a_parameter(values={"x" * 1000: CELL})),
    "no values": with_lines(a_route(), a_parameter(values=[])),
    "a short cell": with_lines(a_route(cost=CELL[:-1])),
    "a long cell": with_lines(a_route(cost=[*CELL, 0, "", 0])),
    "no text": with_lines(a_route(cost=[*CELL, 0, 5])),
    "no cell": with_lines(a_route(cost={})),
    "a last time": with_lines(a_route(last=float("nan"))),
    "many digits": with_lines(a_route().replace("0.5", "9" * 5000)),
    **{
        f"{number!r} at {place}": with_lines(a_route(), a_parameter(values={"1": a_cell(place, number)}))
        for place in range(8)
        for number in NUMBERS
    },
    "half a request": with_lines(a_route(cost=a_cell(6, 2.5))),
    "true": with_lines(a_route(cost=a_cell(0, True))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_process_writes_is_refused(what: str) -> None:
    with pytest.raises(ValueError) as caught:
        list(decode(HOSTILE[what]).lines)
    assert len(str(caught.value)) < 300


def test_what_a_process_might_write_is_accepted() -> None:
    learner = Learner()
    learner.read(
        with_lines(
            a_parameter(parameter="of no route"),
            a_route(last=1e10, cost=[*CELL, 3, "not there"]),
            a_parameter(below=["b", "2"]),
            *(
                a_parameter(parameter=f"p{number}", values={str(value): CELL for value in range(999)})
                for number in range(99)
            ),
        )
    )
    learner.check()
    assert learner.cost("/x").last <= time.time()
    learner.learn("/x?p1=5", 8.0)
    learner.check()
