"""What is learned of costs: the kinds that parameters tell apart, changes, and bounds whatever clients send."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from itertools import count, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cost_kinds import Site, cells_below, count_steps, interpreted_costs
from threadbridge.crossing.costs import MAX_CELLS, MAX_PARAMETERS
from threadbridge.crossing.estimate import CLIENT, DAYS, MAX_CLIENT, MAX_PAIRS, MAX_VALUE, Estimate, parameters_of
from threadbridge.crossing.routes import MAX_ROUTES

SHORT, LONG = 0.003, 2.0

# A request: its target, form and client.
Request = tuple[str, str, str]
HERE = "192.0.2.1"


def days(length: int) -> Iterator[Request]:
    for number in count():
        first = date(2024, 1, 1) + timedelta(number)
        yield f"/r?from={first}&to={first + timedelta(length)}&format=json", "", HERE


def always(target: str, form: str = "", client: str = HERE) -> Iterator[Request]:
    while True:
        yield target, form, client


def numbered(pattern: str, *, first: int) -> Iterator[Request]:
    for number in count(first):
        yield pattern.format(number), "", HERE


KINDS: dict[str, tuple[Callable[[], Iterator[Request]], Callable[[], Iterator[Request]]]] = {
    "value": (lambda: always("/r?report=a&format=json"), lambda: always("/r?report=b&format=json")),
    # Each number comes once.
    "magnitude": (lambda: numbered("/r?limit={}", first=8), lambda: numbered("/r?limit={}", first=100_000)),
    "days": (lambda: days(5), lambda: days(300)),
    "path": (lambda: always("/orders/1/lines"), lambda: always("/orders/2/lines")),
    "form": (lambda: always("/r", "report=a"), lambda: always("/r", "report=b")),
    "client": (lambda: always("/r"), lambda: always("/r", "", "192.0.2.2")),
    "missing": (lambda: always("/r?all="), lambda: always("/r?all=1")),
}


def run(site: Site, request: Request, seconds: float) -> Estimate:
    target, form, client = request
    return site.run(target, seconds, form=form, client=client)


def is_short(estimate: Estimate) -> bool:
    return estimate.is_known and estimate.cautious < 0.1


def is_long(estimate: Estimate) -> bool:
    return estimate.is_known and 1.0 < estimate.seconds < 4.0 and estimate.cautious >= estimate.seconds


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_tells_short_ones_from_long_ones(kind: str) -> None:
    site = Site()
    short, long = (requests() for requests in KINDS[kind])
    for _ in range(6):
        run(site, next(short), SHORT)
        run(site, next(long), LONG)
    assert is_short(run(site, next(short), SHORT))
    assert is_long(run(site, next(long), LONG))


def test_the_parameter_that_tells_costs_decides() -> None:
    site = Site()
    for _ in range(6):
        site.run("/r?report=a&format=json", SHORT)
        site.run("/r?report=b&format=json", LONG)
    assert site.routes.find("GET", "/r").cost.decisive == "report"
    # Where all cost the same, nothing decides.
    for _ in range(6):
        site.run("/same?report=a", SHORT)
        site.run("/same?report=b", SHORT)
    assert site.routes.find("GET", "/same").cost.decisive == ""


def test_two_parameters_tell_costs_together() -> None:
    site = Site()
    chosen = random.Random(1)
    costs = {("a", "x"): SHORT, ("a", "y"): SHORT, ("b", "x"): SHORT, ("b", "y"): LONG}
    for _ in range(60):
        (report, size), seconds = chosen.choice(list(costs.items()))
        site.run(f"/r?report={report}&size={size}", seconds * chosen.uniform(0.8, 1.25))
    for (report, size), seconds in costs.items():
        estimate = site.estimate(f"/r?report={report}&size={size}")
        assert (is_long if seconds == LONG else is_short)(estimate), (report, size)


@pytest.mark.parametrize(("before", "after"), [(LONG, SHORT), (SHORT, LONG)])
@pytest.mark.parametrize("target", ["/alone", "/r?report=a"])
def test_what_has_changed_is_learned_within_a_few(target: str, before: float, after: float) -> None:
    site = Site()
    for _ in range(50):
        site.run(target, before)
        site.run("/r?report=b", LONG if before == SHORT else SHORT)
    for _ in range(3):
        estimate = site.run(target, after)
        assert (is_long if before == LONG else is_short)(estimate)
    for _ in range(2):
        site.run(target, after)
    assert (is_long if after == LONG else is_short)(site.estimate(target))


def test_rare_long_ones_of_a_kind_count_in_its_average_alone() -> None:
    site = Site()
    for number in range(1000):
        estimate = site.run("/r?report=a", 20.0 if number % 100 == 99 else SHORT)
    assert is_short(estimate) or estimate.cautious < 1.0
    assert estimate.seconds == pytest.approx(SHORT, rel=0.5)
    # 1 % of 20 s.
    assert estimate.average == pytest.approx(0.2, rel=0.5)


def test_a_client_whose_requests_take_long_does_not_make_those_of_others_long() -> None:
    site = Site()
    for number in range(40):
        site.run("/r?report=a", SHORT, client=f"192.0.2.{number % 8}")
    for number in range(40):
        site.run("/r?report=a", LONG, client="198.51.100.1")
        site.run("/r?report=a", SHORT, client=f"192.0.2.{number % 8}")
    assert is_long(site.estimate("/r?report=a", client="198.51.100.1"))
    for number in range(8):
        assert is_short(site.estimate("/r?report=a", client=f"192.0.2.{number}"))


def test_what_was_never_seen_is_unknown_until_similar_ones_were() -> None:
    site = Site()
    assert not site.estimate("/a").is_known
    for path in ("/a", "/b", "/c"):
        site.run(path, SHORT)
    # Three new routes were short at first.
    assert is_short(site.estimate("/d"))
    assert is_short(site.estimate("/a"))


def test_a_new_value_among_few_is_unknown_where_others_are_long() -> None:
    site = Site()
    for _ in range(4):
        site.run("/r?report=a", LONG)
    assert is_long(site.estimate("/r?report=a"))
    assert not site.estimate("/r?report=b").is_known


def nasty_requests(seed: int) -> Iterator[str]:
    """Targets of the kinds that clients make up."""
    chosen = random.Random(seed)
    many = "&".join(f"p{number}={number}" for number in range(1000))
    while True:
        path = "/" + "".join(chosen.choices("abc", k=chosen.choice([1, 1, 8]))) + f"/{chosen.randrange(10**4)}"
        yield path + chosen.choice(
            [
                f"?q={chosen.randrange(1000)}",
                f"?p{chosen.randrange(10**6)}={chosen.randrange(10**6)}",
                "?q=" + "x" * 10_000,
                f"?q={chosen.random()}&{many}",
                "?q=\xff\xfe%ff%00&\xe9=\xe9",
                "?q=&=&&=a&a==b&;;&%&q",
                "?=&" * 1000,
                "?n=" + "9" * chosen.choice([20, 300, 5000]),
                "?n=-1&n=1e999&n=0x10&n=\u0663&n=1.5.5",
                f"?from=2024-01-{chosen.randrange(1, 29):02}&to=9999-99-99",
                "",
            ]
        )


def test_a_value_that_was_cheap_is_unknown_once_made_up_ones_are_long() -> None:
    site = Site()
    for _ in range(10):
        site.run("/r?kind=a", SHORT)
    for number in range(30):
        site.run(f"/r?kind=made-up-{number}", LONG)
    # Nothing has told these costs, as each value came once.
    assert site.estimate("/r?kind=made-up-30").is_known
    assert not site.estimate("/r?kind=a").is_known
    for _ in range(3):
        site.run("/r?kind=a", SHORT)
    assert site.estimate("/r?kind=a").is_known and is_short(site.estimate("/r?kind=a"))


def test_cells_are_counted_rightly_whatever_clients_send() -> None:
    site = Site()
    chosen = random.Random(2)
    waiting: list[Estimate] = []
    for number, target in zip(range(4000), nasty_requests(2), strict=False):
        waiting.append(site.estimate(target, client=f"192.0.2.{chosen.randrange(300)}"))
        if len(waiting) > 20:
            # Some routes have been forgotten while their requests ran.
            ended = waiting.pop(chosen.randrange(20))
            site.costs.learn(ended, chosen.choice([0.001, 0.002, 0.5, 30.0]))
            assert ended.seconds > 0
            assert ended.cautious > 0
        if number % 500 == 0:
            assert site.costs.cells == site.cells()
    assert 100 < len(site.routes) <= MAX_ROUTES
    assert 1000 < site.costs.cells == site.cells() <= MAX_CELLS
    assert site.costs.learned == 3980


def test_requests_of_forgotten_routes_take_no_room() -> None:
    site = Site()
    paths = iter(f"/{first}{second}" for first in _names() for second in _names())
    for _ in range(MAX_ROUTES):
        site.estimate(next(paths))
    # Each of these is forgotten for the next one before it ends.
    estimates = [site.estimate(next(paths) + "?a=1&b=2&c=3") for _ in range(2000)]
    for estimate in estimates:
        site.costs.learn(estimate, SHORT)
    assert site.costs.cells == site.cells() <= 10


def _names() -> list[str]:
    return [a + b for a in "abcdefgh" for b in "abcdefghij"]


def test_no_more_than_so_many_cells_are_kept_and_what_is_known_stays_known() -> None:
    site = Site()
    for _ in range(6):
        site.run("/r?report=a", SHORT)
        site.run("/r?report=b", LONG)
    names = [f"{first}{second}" for first in _names() for second in "abcdefghij"]
    most = 0
    for number in range(40):
        for name in names[:100]:
            # Parameters and values that change with each request, of costs that change, too.
            pairs = "&".join(f"p{parameter}={number}" for parameter in range(12))
            site.run(f"/{name}?{pairs}", random.Random(number).choice([SHORT, LONG]), client=f"10.0.0.{number}")
            most = max(most, site.costs.cells)
    assert most == MAX_CELLS
    for number in range(8):
        site.run(f"/r?report=a&new-{number}=1", SHORT)
        assert site.costs.cells == site.cells() <= MAX_CELLS
    assert is_short(site.run("/r?report=a", SHORT))
    assert is_long(site.run("/r?report=b", LONG))


@pytest.mark.parametrize("is_known", [True, False])
def test_a_route_is_learned_however_much_is_known_of_others(is_known: bool) -> None:
    site = Site()
    if is_known:
        for _ in range(3):
            site.run("/r", SHORT)
    for number, name in product(range(40), _names()):
        pairs = "&".join(f"p{parameter}={number}" for parameter in range(12))
        site.run(f"/{name}?{pairs}", (SHORT, LONG)[number % 2], client=f"10.0.0.{number}")
        if site.costs.cells == MAX_CELLS:
            break
    assert site.costs.cells == MAX_CELLS
    for _ in range(6):
        site.run("/r?report=a", SHORT)
        site.run("/r?report=b", LONG)
    assert is_short(site.run("/r?report=a", SHORT))
    assert is_long(site.run("/r?report=b", LONG))
    assert site.costs.cells == site.cells() <= MAX_CELLS


def test_parameters_that_a_client_made_up_make_room_for_those_in_use() -> None:
    site = Site()
    for number in range(3):
        pairs = "&".join(f"p{parameter}-{number}=v" for parameter in range(MAX_PARAMETERS))
        site.run(f"/r?{pairs}", SHORT)
    for _ in range(20):
        site.run("/r?report=a", SHORT)
        site.run("/r?report=b", LONG)
    assert is_short(site.estimate("/r?report=a"))
    assert is_long(site.estimate("/r?report=b"))
    assert site.costs.cells == site.cells()


def test_a_thousand_values_drive_out_only_one_another() -> None:
    site = Site()
    for _ in range(6):
        site.run("/r?report=a", SHORT)
        site.run("/r?report=b", LONG)
    for number in range(1000):
        site.run(f"/r?report=made-up-{number}", LONG, client="198.51.100.1")
        assert site.costs.cells < 1000
    assert is_short(site.estimate("/r?report=a"))
    assert is_long(site.estimate("/r?report=b"))
    # So does one that came later and is in use.
    for _ in range(4):
        site.run("/r?report=c", SHORT)
    for number in range(10):
        site.run(f"/r?report=made-up-again-{number}", LONG)
    assert is_short(site.estimate("/r?report=c"))
    # One that was never seen is like those that were as new.
    assert is_long(site.estimate("/r?report=made-up-again"))


def test_an_operation_takes_no_more_steps_however_much_is_known() -> None:
    module = interpreted_costs()

    def steps_after(requests: int) -> int:
        costs, route = module.Costs(), module.Cell()

        def one(number: int, seconds: float) -> None:
            target = f"/r?report={'ab'[number % 2]}&value={number}&size={number % 7}"
            estimate = module.Estimate(route, target, f"10.0.{number % 300}.1")
            costs.estimate(estimate)
            costs.learn(estimate, seconds)

        for number in range(requests):
            one(number, (SHORT, LONG)[number % 2])
        return max(count_steps(partial(one, number, SHORT), module) for number in (4, 5, 10**6))

    few, many = steps_after(40), steps_after(4000)
    assert 100 < few < 3000
    assert many < 2 * few


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(st.text(max_size=300), st.text("=&?/%+;0123456789-.ab\xff", max_size=300)),
    st.one_of(st.text(max_size=300), st.text("=&0123456789-a", max_size=3000)),
    st.integers(1, 100),
)
def test_parameters_of_whatever_clients_send_are_few_and_short(target: str, form: str, times: int) -> None:
    found = parameters_of(target * times, form, HERE)
    assert found[CLIENT] == HERE
    assert len(found) <= 1 + 2 * 2 * MAX_PAIRS + 1 + MAX_PARAMETERS
    assert all(len(name) <= MAX_VALUE + 1 for name in found)
    assert all(0 < len(value) <= MAX_VALUE for value in found.values())


def test_parameters_are_found() -> None:
    found = parameters_of("/a/7/b/12?report=x%20y&limit=1000&from=2024-01-01&to=2024-12-31&e=", "size=2.5&e=1", HERE)
    assert found == {
        CLIENT: HERE,
        "/1": "7",
        "/2": "12",
        "report": "x%20y",
        "limit": "1000",
        "limit#": "10",
        "from": "2024-01-01",
        "to": "2024-12-31",
        DAYS: "9",
        "size": "2.5",
        "size#": "2",
        "e": "1",
        "e#": "1",
    }


def test_a_request_does_not_choose_its_client() -> None:
    assert parameters_of("/r?(client)=192.0.2.9", "(client)=192.0.2.9", HERE)[CLIENT] == HERE
    # What `client_key` makes of a header may be long.
    assert Estimate(None, "/r", "x" * 10_000).parameters() == {CLIENT: "x" * MAX_CLIENT}


def test_clients_with_long_names_are_told_apart() -> None:
    site = Site()
    for _ in range(8):
        for number, seconds in enumerate((SHORT, LONG)):
            site.run("/r", seconds, client=f"{number}{'x' * 200}")
    assert site.routes.find("GET", "/r").cost.decisive == CLIENT
    for number, judge in enumerate((is_short, is_long)):
        assert judge(site.estimate("/r", client=f"{number}{'x' * 200}"))


def test_a_parameter_without_a_name_tells_nothing() -> None:
    site = Site()
    for _ in range(30):
        site.run("/r?=a&report=a", SHORT)
        site.run("/r?=b&report=b", LONG)
    assert site.routes.find("GET", "/r").cost.decisive == "report"


def test_only_the_beginning_of_a_long_query_is_looked_at() -> None:
    found = parameters_of("/r?" + "&".join(f"p{number}=v" for number in range(10**5)), "", HERE)
    assert set(found) == {CLIENT, *(f"p{number}" for number in range(MAX_PAIRS))}
    found = parameters_of("/r?a=" + "x" * 10_000 + "&b=1", "", HERE)
    assert found == {CLIENT: HERE, "a": "x" * MAX_VALUE}
    found = parameters_of(f"/r?{'n' * 1000}={'9' * 900}", "", HERE)
    name = "n" * MAX_VALUE
    assert found == {CLIENT: HERE, name: "9" * MAX_VALUE, name + "#": "64"}


def test_all_cells_below_one_another_are_counted() -> None:
    site = Site()
    for number in range(200):
        report, size = number % 2, number // 2 % 2
        site.run(f"/r?report={report}&size={size}", LONG if report and size else SHORT)
    [route] = site.routes._routes.values()
    assert route.cost.size() == cells_below(route.cost) == site.costs.cells > 5
    site.costs.forget(route.cost)
    assert site.costs.cells == 0
