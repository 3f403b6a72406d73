"""The workloads of `benchmarks.simulation`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

from benchmarks.simulated_requests import Request, Traffic

# Threads, and so connections.
WIDTH = 10
CLIENTS = 30

# Makes the traffic of so many seconds.
Workload = Callable[[Random, float], Traffic]


def log_uniform(random: Random, low: float, high: float) -> float:
    return low * math.exp(math.log(high / low) * random.random())


def arrivals(random: Random, rate: float, begin: float, end: float) -> Iterator[float]:
    """Yield the times of requests of many independent clients, so many a second."""
    at = begin
    while (at := at + random.expovariate(rate)) < end:
        yield at


def client(random: Random) -> str:
    return f"c{random.randrange(CLIENTS)}"


# 95 % of 2 to 20 ms and 5 % of 2 to 20 s take so many seconds on average.
MIXED_MEAN = 0.95 * 0.018 / math.log(10) + 0.05 * 18 / math.log(10)


def mixed_request(random: Random, at: float, computes: bool = False) -> Request:
    """Return a short or, rarely, a long request; the report tells which, its other parameters do not."""
    is_long = random.random() < 0.05
    reports = ("pairs", "journal") if is_long else ("orders", "products", "revenue", "ranking", "status")
    seconds = log_uniform(random, 2, 20) if is_long else log_uniform(random, 0.002, 0.02)
    query = (
        f"report={random.choice(reports)}&customer={random.randrange(20000)}"
        f"&region={random.choice(('', 'North', 'South', 'West'))}&page={random.randrange(9)}"
    )
    return Request(at, client(random), query, seconds, computes=computes)


def mixed_requests(
    random: Random, seconds: float, load: float, width: int = WIDTH, computes: bool = False
) -> list[Request]:
    times = arrivals(random, load * width / MIXED_MEAN, 0, seconds)
    return [mixed_request(random, at, computes) for at in times]


def mixed(load: float) -> Workload:
    return lambda random, seconds: Traffic(mixed_requests(random, seconds, load), seconds)


def computing(load: float) -> Workload:
    """Four processors are the limit, not the threads."""
    return lambda random, seconds: Traffic(mixed_requests(random, seconds, load, 4, True), seconds, processors=4)


def measured(told_by: str) -> Workload:
    """Requests of 3 s of 30 clients hold all threads, all the time; others ask for 2 ms."""
    long_ones = {
        "parameter": ("/query/", "report=wait&page=2&customer=17"),
        "path": ("/export/", "page=2"),
        "period": ("/query/", "from=2021-03-01&until=2024-02-28&page=2"),
    }
    long_path, long_query = long_ones[told_by]

    def make(random: Random, seconds: float) -> Traffic:
        def following(request: Request, now: float) -> Request | None:
            return long(request.client, now) if request.seconds == 3 else None

        def long(client: str, at: float) -> Request:
            return Request(at, client, long_query, 3.0, path=long_path)

        requests = [long(f"c{number}", 0.01 * number) for number in range(30)]
        for at in arrivals(random, 5, 0.5, seconds):
            page = f"page={random.randrange(9)}"
            query = {
                "parameter": f"report=orders&{page}&customer={random.randrange(9999)}",
                "path": page,
                "period": f"from=2024-02-{random.randrange(1, 15)}&until=2024-02-{random.randrange(15, 29)}&{page}",
            }[told_by]
            requests.append(Request(at, f"s{random.randrange(5)}", query, 0.002))
        return Traffic(requests, seconds, following=following)

    return make


# The seconds of each report, at least and at most, and its share of the requests.
REPORTS = {
    "item": (0.002, 0.01, 0.6),
    "orders": (0.005, 0.02, 0.25),
    "best": (0.1, 0.4, 0.1),
    "ranking": (2.0, 8.0, 0.035),
    "together": (5.0, 20.0, 0.015),
}
REPORTS_MEAN = sum((low + high) / 2 * share for low, high, share in REPORTS.values())


def report_requests(random: Random, seconds: float, load: float) -> list[Request]:
    requests = []
    for at in arrivals(random, load * WIDTH / REPORTS_MEAN, 0, seconds):
        (report,) = random.choices(list(REPORTS), [share for _, _, share in REPORTS.values()])
        low, high, _ = REPORTS[report]
        query = (
            f"report={report}&id={random.randrange(10**6)}&limit={random.choice((10, 50, 100))}"
            f"&region={random.choice('NSEW')}&campaign={random.randrange(50)}"
        )
        requests.append(Request(at, f"c{random.randrange(20)}", query, random.uniform(low, high)))
    return requests


def reports(load: float) -> Workload:
    """85 % short requests, 10 % of 0.1 to 0.4 s, 5 % of 2 to 20 s."""
    return lambda random, seconds: Traffic(report_requests(random, seconds, load), seconds)


def slow_reports(random: Random, seconds: float) -> Traffic:
    """Nothing is short: 97 % take 0.2 to 0.5 s, the others 10 to 30 s."""
    requests = []
    for at in arrivals(random, 0.8 * WIDTH / (0.97 * 0.35 + 0.03 * 20), 0, seconds):
        is_long = random.random() < 0.03
        cost = random.uniform(10, 30) if is_long else random.uniform(0.2, 0.5)
        query = f"report={'journal' if is_long else 'basket'}&page={random.randrange(9)}"
        requests.append(Request(at, client(random), query, cost))
    return Traffic(requests, seconds, short=0.5)


def pareto(load: float) -> Workload:
    """Costs from 1 ms to 100 s by a bounded Pareto distribution; 40 kinds whose costs vary by a factor of about 3."""

    def make(random: Random, seconds: float) -> Traffic:
        shape, low, high = 0.6, 0.001, 100.0
        bound = (low / high) ** shape
        mean = shape * low**shape / (1 - bound) * (high ** (1 - shape) - low ** (1 - shape)) / (1 - shape)
        requests = []
        for at in arrivals(random, load * WIDTH / mean, 0, seconds):
            cost = low / (1 - random.random() * (1 - bound)) ** (1 / shape)
            kind = int(math.log(cost / low) / math.log(high / low) * 40 + random.gauss(0, 1))
            query = f"format=json&kind=k{kind}&id={random.randrange(10**6)}"
            requests.append(Request(at, client(random), query, cost))
        return Traffic(requests, seconds)

    return make


def date(day: int) -> str:
    return f"20{22 + day // 360:02}-{1 + day % 360 // 30:02}-{1 + day % 30:02}"


def parameters(load: float) -> Workload:
    """Reports like those of myapplication: report, days, limit, region and seconds decide; others do not."""

    def make(random: Random, seconds: float) -> Traffic:
        requests = []
        names = ("orders", "products", "revenue", "ranking", "pairs", "journal", "wait")
        for at in arrivals(random, 40.0, 0, seconds):
            (report,) = random.choices(names, (60, 15, 10, 5, 5, 4, 1))
            days, first = int(log_uniform(random, 1, 1000)), random.randrange(1, 700)
            limit = random.choice((10, 100, 100, 1000, 10_000_000))
            region = random.choice(("", "", "North", "South"))
            wait = random.choice((1, 2, 5))
            part = 0.3 if region else 1.0
            cost = {
                "orders": 0.004,
                "products": 0.001 + 0.0003 * days * part,
                "revenue": 0.002 + 0.0015 * days * part,
                "ranking": 0.01 + 0.002 * days,
                "pairs": 0.015 * days * part,
                "journal": 0.02 + 8e-4 * min(limit, 10**4),
                "wait": float(wait),
            }[report]
            query = (
                f"report={report}&from={date(first)}&to={date(first + days)}&region={region}&limit={limit}"
                f"&customer={random.randrange(20000)}&format={random.choice(('html', 'json', 'csv'))}"
            )
            query += f"&seconds={wait}" if report == "wait" else ""
            requests.append(Request(at, client(random), query, cost * random.lognormvariate(0, 0.3)))
        share = load * WIDTH * seconds / sum(request.seconds for request in requests)
        return Traffic([request for request in requests if random.random() < share], seconds)

    return make


def hidden(random: Random, seconds: float) -> Traffic:
    """Nothing tells which 2 % of one report take 2 to 20 s; the other report is always short."""
    requests = []
    for at in arrivals(random, 0.8 * WIDTH / (0.99 * 0.0078 + 0.01 * 7.8), 0, seconds):
        is_hidden = random.random() < 0.5
        is_long = is_hidden and random.random() < 0.02
        cost = log_uniform(random, 2, 20) if is_long else log_uniform(random, 0.002, 0.02)
        query = f"report={'mine' if is_hidden else 'orders'}&page={random.randrange(9)}"
        requests.append(Request(at, client(random), query, cost, group="hidden" if is_hidden else ""))
    return Traffic(requests, seconds)


def slower(random: Random, seconds: float) -> Traffic:
    """In the middle third of the time, one report of ten takes 3 s instead of 7 ms."""
    requests = []
    for at in arrivals(random, 0.5 * WIDTH / MIXED_MEAN, 0, seconds):
        request = mixed_request(random, at)
        if random.random() < 0.1:
            is_slow = seconds / 3 < at < 2 * seconds / 3
            cost = 3.0 * random.lognormvariate(0, 0.3) if is_slow else log_uniform(random, 0.002, 0.02)
            query = f"report=stock&product={random.randrange(1200)}"
            request = Request(at, request.client, query, cost, group="stock")
        requests.append(request)
    return Traffic(requests, seconds)


def tenant(random: Random, seconds: float) -> Traffic:
    """One client has so much data that the same requests take 3 s that take others 10 ms."""
    requests = mixed_requests(random, seconds, 0.4)
    for at in arrivals(random, 10, 0, seconds):
        name = client(random)
        cost = 3.0 if name == "c7" else 0.01
        group = "tenant" if name == "c7" else ""
        query = f"report=mine&page={random.randrange(9)}"
        requests.append(Request(at, name, query, cost * random.lognormvariate(0, 0.3), group=group))
    return Traffic(requests, seconds)


def adversary(looks: str) -> Workload:
    """From the first sixth on, one client asks for twice what there is; each request takes 5 s and looks harmless."""

    def make(random: Random, seconds: float) -> Traffic:
        requests = mixed_requests(random, seconds, 0.4)
        for number, at in enumerate(arrivals(random, 4.0, seconds / 6, seconds)):
            path, query, cost = "/query/", mixed_request(random, at).query, 5.0
            if looks == "short":
                query = f"report=orders&customer={random.randrange(20000)}&page={random.randrange(9)}"
            elif looks == "alternating":
                # Twenty short ones of a kind, then as many long ones.
                query, cost = "report=mine&page=1", 0.005 if number // 20 % 2 == 0 else 5.0
            elif looks == "new-value":
                query = f"report=x{random.randrange(10**9)}&page=1"
            elif looks == "new-name":
                query = f"x{random.randrange(10**9)}=1&y{random.randrange(10**9)}=2"
            elif looks == "new-path":
                path = f"/x{''.join(random.choices('abcdefgh', k=12))}"
            requests.append(Request(at, "mallory", query, cost, path=path, group="mallory"))
        return Traffic(requests, seconds)

    return make


def burst(random: Random, seconds: float) -> Traffic:
    """5,000 requests of 10 ms arrive within a second, besides a load of 0.7."""
    requests = mixed_requests(random, seconds, 0.7)
    for number in range(5000):
        query = f"report=orders&customer={number}"
        requests.append(Request(seconds / 3 + random.random(), f"b{number % 50}", query, 0.01, group="burst"))
    return Traffic(requests, seconds)


def flood(random: Random, seconds: float) -> Traffic:
    """For a tenth of the time short ones alone are 1.2 times what there is room for, besides a load of 0.4."""
    requests = mixed_requests(random, seconds, 0.4)
    for at in arrivals(random, 300, seconds / 3, seconds / 3 + seconds / 10):
        query = f"report=products&customer={random.randrange(20000)}"
        requests.append(Request(at, f"b{random.randrange(50)}", query, 0.04, group="flood"))
    return Traffic(requests, seconds)


def greedy(random: Random, seconds: float) -> Traffic:
    """One client asks for 200 long ones at once, besides a load of 0.5."""
    requests = mixed_requests(random, seconds, 0.5)
    for number in range(200):
        cost = log_uniform(random, 2, 8)
        at = seconds / 3 + number * 0.001
        requests.append(Request(at, "greedy", "report=journal&page=3", cost, group="greedy"))
    return Traffic(requests, seconds)


def greedy_short(random: Random, seconds: float) -> Traffic:
    """One client asks for 3,000 of 10 ms within a second; others ask for 50 ms, too."""
    requests = mixed_requests(random, seconds, 0.4)
    for at in arrivals(random, 4, 0, seconds):
        requests.append(Request(at, client(random), f"report=basket&page={random.randrange(9)}", 0.05))
    for _ in range(3000):
        requests.append(Request(seconds / 3 + random.random(), "greedy", "report=status", 0.01, group="greedy"))
    return Traffic(requests, seconds)


def impatient(load: float, clients: int = 20, rush: float = 0.0) -> Workload:
    """Clients leave after 5 to 30 s; half of those who leave, or are refused, try again after 1 to 3 s.

    :param rush: for the middle fifth of the time, short requests alone are so many times what there is room for.
    """

    def make(random: Random, seconds: float) -> Traffic:
        def following(request: Request, now: float) -> Request | None:
            if request.outcome == "answered" or random.random() < 0.5:
                return None
            again = patient(Request(now + random.uniform(1, 3), "", request.query, request.seconds))
            again.client = request.client
            return again

        def patient(request: Request) -> Request:
            request.patience = random.uniform(5, 30)
            request.client = f"c{random.randrange(clients)}"
            return request

        requests = report_requests(random, seconds, load)
        if rush:
            for at in arrivals(random, rush * WIDTH / 0.04, 0.4 * seconds, 0.6 * seconds):
                query = f"report=status&customer={random.randrange(20000)}"
                requests.append(Request(at, "", query, 0.04))
        return Traffic([patient(request) for request in requests], seconds, following=following)

    return make


WORKLOADS: dict[str, Workload] = {
    "measured": measured("parameter"),
    "measured-path": measured("path"),
    "measured-period": measured("period"),
    **{f"mixed{load}": mixed(load) for load in (0.5, 0.8, 0.9, 1.0, 1.5, 2.0)},
    **{f"reports{load}": reports(load) for load in (0.5, 0.9, 1.2, 2.0)},
    "slow-reports": slow_reports,
    **{f"computing{load}": computing(load) for load in (0.8, 1.5)},
    **{f"pareto{load}": pareto(load) for load in (0.8, 1.2)},
    **{f"parameters{load}": parameters(load) for load in (0.8, 1.2)},
    "hidden": hidden,
    "slower": slower,
    "tenant": tenant,
    **{looks: adversary(looks) for looks in ("alternating", "new-value", "new-name", "new-path")},
    "looks-short": adversary("short"),
    "burst": burst,
    "flood": flood,
    "greedy": greedy,
    "greedy-short": greedy_short,
    **{f"impatient{load}": impatient(load) for load in (0.9, 1.2, 2.0)},
    **{f"impatient-many{load}": impatient(load, 1000) for load in (0.9, 1.2, 2.0)},
    "impatient-rush": impatient(0.8, 1000, rush=1.3),
}
