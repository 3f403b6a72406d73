"""The application's answers, compared with what plain Python makes of the same rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from flask import request
from flask.testing import FlaskClient

from myapplication import app, views
from myapplication.database import DBConnection
from myapplication.parameters import process_request_params
from myapplication.reports import REPORTS

# Two parts of months; the orders of the last day are inside.
PERIOD = "from=2025-11-26&to=2025-12-03"
FIRST, LAST = date(2025, 11, 26), date(2025, 12, 3)


class Line(NamedTuple):
    order: int
    ordered_at: datetime
    number: int
    quantity: int
    unit_price: Decimal
    product_id: int
    product: str
    category: str
    customer_id: int
    customer: str
    city: str
    region: str

    @property
    def revenue(self) -> Decimal:
        return self.quantity * self.unit_price


@pytest.fixture(scope="module")
def database(sample_data: dict[str, str]) -> Iterator[DBConnection]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sample_data.items():
            patch.setenv(name, value)
        patch.setenv("MYAPPLICATION_POOL_SIZE", "2")
        connection = DBConnection()
        patch.setattr(views, "db", connection)
        yield connection


@pytest.fixture
def client(database: DBConnection) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def lines(database: DBConnection) -> list[Line]:
    """The order lines of the period, in order of time."""
    found = database.query(
        """
        SELECT o.id, o.ordered_at, l.line_number, l.quantity, l.unit_price,
               p.id, p.name, p.category, c.id, c.name, c.city, c.region
        FROM order_lines l, orders o, products p, customers c
        WHERE o.id = l.order_id AND p.id = l.product_id AND c.id = o.customer_id
        AND o.ordered_at BETWEEN '2025-11-26 00:00:00' AND '2025-12-03 23:59:59'
        """
    )
    lines = sorted((Line(*row) for row in found.rows), key=lambda line: (line.ordered_at, line.order, line.number))
    assert {line.ordered_at.date() for line in lines} >= {FIRST, LAST}
    return lines


def ask(client: FlaskClient, query: str) -> Any:
    answer = client.get(f"/query/?format=json&{query}")
    assert answer.status_code == 200, answer.text
    # As text a decimal number is exact.
    return json.loads(answer.text, parse_float=Decimal)


def ranked(totals: dict[Any, Decimal]) -> list[Any]:
    return sorted(totals, key=lambda key: (-totals[key], key))


def test_products_are_ranked_by_their_revenue_in_the_region(client: FlaskClient, lines: list[Line]) -> None:
    revenue: dict[tuple[int, str, str], Decimal] = defaultdict(Decimal)
    articles: Counter[int] = Counter()
    for line in lines:
        if line.region == "North":
            revenue[line.product_id, line.product, line.category] += line.revenue
            articles[line.product_id] += line.quantity
    expected = [
        [name, category, articles[number], revenue[number, name, category]]
        for number, name, category in ranked(revenue)
    ]

    answer = ask(client, f"report=products&{PERIOD}&region=North&limit=7")

    assert answer["columns"] == ["Product", "Category", "Articles", "Revenue"]
    assert answer["rows"] == expected[:7]


def test_revenue_is_summed_by_month_with_its_change(client: FlaskClient, lines: list[Line]) -> None:
    months = []
    for month in (11, 12):
        of_month = [line for line in lines if line.ordered_at.month == month]
        months.append((len({line.order for line in of_month}), sum((line.revenue for line in of_month), Decimal())))
    (orders, revenue), (later_orders, later_revenue) = months
    cent, tenth = Decimal("0.01"), Decimal("0.1")
    change = (100 * later_revenue / revenue - 100).quantize(tenth, ROUND_HALF_UP)

    assert ask(client, f"report=revenue&{PERIOD}")["rows"] == [
        ["2025-11", orders, revenue, (revenue / orders).quantize(cent, ROUND_HALF_UP), None],
        ["2025-12", later_orders, later_revenue, (later_revenue / later_orders).quantize(cent, ROUND_HALF_UP), change],
    ]


def test_orders_of_a_customer_are_listed_latest_first(client: FlaskClient, lines: list[Line]) -> None:
    orders_of: dict[int, set[int]] = defaultdict(set)
    for line in lines:
        orders_of[line.customer_id].add(line.order)
    customer = max(orders_of, key=lambda number: len(orders_of[number]))
    expected = []
    for order in orders_of[customer]:
        own = [line for line in lines if line.order == order]
        articles, total = sum(line.quantity for line in own), sum(line.revenue for line in own)
        expected.append([order, own[0].ordered_at.isoformat(), len(own), articles, total])
    expected.sort(key=lambda row: (row[1], row[0]), reverse=True)

    answer = ask(client, f"report=orders&customer={customer}&{PERIOD}")

    assert len(expected) > 1
    assert answer["rows"] == expected
    assert answer["row_count"] == len(expected)


def test_customers_have_their_place_within_their_region(client: FlaskClient, lines: list[Line]) -> None:
    revenue: dict[int, Decimal] = defaultdict(Decimal)
    orders: dict[int, set[int]] = defaultdict(set)
    customers = {line.customer_id: line for line in lines}
    for line in lines:
        revenue[line.customer_id] += line.revenue
        orders[line.customer_id].add(line.order)
    expected = []
    for region in sorted({line.region for line in lines}):
        of_region = [revenue[number] for number in revenue if customers[number].region == region]
        for number, buyer in customers.items():
            if buyer.region == region:
                place = 1 + sum(other > revenue[number] for other in of_region)
                facts = [buyer.customer, buyer.city, number, len(orders[number]), revenue[number]]
                expected.append([place, region, *facts])
    expected.sort(key=lambda row: (row[0], row[1], row[4]))

    assert ask(client, f"report=ranking&{PERIOD}&limit=1000")["rows"] == expected[:1000]
    south = [row for row in expected if row[1] == "South"]
    assert ask(client, f"report=ranking&{PERIOD}&limit=50&region=South")["rows"] == south[:50]


def test_pairs_are_counted_once_for_each_order(client: FlaskClient, lines: list[Line]) -> None:
    products: dict[int, set[tuple[int, str]]] = defaultdict(set)
    for line in lines:
        products[line.order].add((line.product_id, line.product))
    pairs = Counter(pair for bought in products.values() for pair in combinations(sorted(bought), 2))
    expected = sorted(pairs.items(), key=lambda item: (-item[1], item[0][0][0], item[0][1][0]))

    rows = ask(client, f"report=pairs&{PERIOD}&limit=20")["rows"]

    assert rows == [[one[1], other[1], orders] for (one, other), orders in expected[:20]]
    assert rows[0][2] > 2


def test_the_journal_sums_up_the_revenue_of_each_product(client: FlaskClient, lines: list[Line]) -> None:
    so_far: dict[int, Decimal] = defaultdict(Decimal)
    expected = []
    for line in lines:
        so_far[line.product_id] += line.revenue
        when, order = line.ordered_at.isoformat(), [line.order, line.number, line.customer, line.region]
        expected.append([when, *order, line.product, line.quantity, line.revenue, so_far[line.product_id]])

    assert ask(client, f"report=journal&{PERIOD}&limit=1000")["rows"] == expected[:1000]


def test_every_report_on_the_page_is_tested_here() -> None:
    assert set(REPORTS) - {"wait"} == {"products", "revenue", "orders", "ranking", "pairs", "journal"}


WRONG = [
    ("", "report"),
    ("report=", "report"),
    ("report=nonsense", "report"),
    ("report=wait&seconds=1", "report"),
    ("report=products;DROP TABLE orders", "report"),
    ("report=products&from=2025-02-30", "from"),
    ("report=products&from=yesterday", "from"),
    ("report=products&from=2025-W10-1", "from"),
    ("report=products&from=20250101", "from"),
    ("report=products&from=1899-12-31", "from"),
    ("report=products&from=2025-01-01' OR '1'='1", "from"),
    ("report=products&to=2101-01-01", "to"),
    ("report=products&to=9999-12-31", "to"),
    ("report=products&to=2025-1-1", "to"),
    ("report=products&from=2025-03-02&to=2025-03-01", "from"),
    ("report=products&region=Atlantis", "region"),
    ("report=products&region=north", "region"),
    ("report=products&region=North' OR '1'='1", "region"),
    ("report=products&limit=0", "limit"),
    ("report=products&limit=1001", "limit"),
    ("report=products&limit=-1", "limit"),
    ("report=products&limit=1.5", "limit"),
    ("report=products&limit=1_0", "limit"),
    ("report=products&limit=١٢", "limit"),
    ("report=products&limit=99999999999999999999999", "limit"),
    ("report=products&limit=1; DELETE FROM orders", "limit"),
    ("report=orders", "customer"),
    ("report=orders&customer=0", "customer"),
    ("report=orders&customer=4294967296", "customer"),
    ("report=orders&customer=1 OR 1=1", "customer"),
    ("report=orders&customer=1 UNION SELECT 1,2,3,4,5", "customer"),
    ("report=products&customer=nobody", "customer"),
    ("report=products&seconds=nan", "seconds"),
    ("report=products&seconds=60.5", "seconds"),
    ("report=products&format=xml", "format"),
]


@pytest.mark.parametrize(("query", "parameter"), WRONG)
def test_a_wrong_parameter_is_named(client: FlaskClient, query: str, parameter: str) -> None:
    as_json = client.get(f"/query/?{query}", headers={"Accept": "application/json"})
    assert as_json.status_code == 400
    assert as_json.get_json()["error"]["parameter"] == parameter
    assert as_json.get_json()["error"]["message"].startswith(f"{parameter}: ")

    as_page = client.get(f"/query/?{query}")
    assert as_page.status_code == 400
    assert as_page.mimetype == "text/html"
    message = re.search(r'<p class="message">(.*?)</p>', as_page.text)
    assert message is not None
    assert message[1].startswith(f"{parameter}: ")


def test_nothing_of_a_request_becomes_sql_text() -> None:
    query = "report=orders&customer=17&from=2025-01-02&to=2025-03-04&limit=5&region=West&format=json"
    with app.test_request_context(f"/query/?{query}"):
        sql, params = process_request_params(request)
    assert sql == REPORTS["orders"].sql
    assert params == (17, date(2025, 1, 2), date(2025, 3, 4), 5)


def test_a_wrong_value_is_shown_as_text(client: FlaskClient) -> None:
    page = client.get('/query/?report=orders&region=<script>alert(1)</script>&customer="><script>').text
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("query", "accept", "mimetype"),
    [
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("", "*/*", "text/html"),
        ("", "application/json", "application/json"),
        ("&format=html", "application/json", "text/html"),
        ("&format=json", "text/html", "application/json"),
        ("&format=csv", "application/json", "text/csv"),
    ],
)
def test_the_format_is_chosen(client: FlaskClient, query: str, accept: str, mimetype: str) -> None:
    answer = client.get(f"/query/?report=orders&customer=1&limit=1{query}", headers={"Accept": accept})
    assert (answer.status_code, answer.mimetype) == (200, mimetype)
    assert "Accept" in answer.vary


def test_json_tells_rows_and_time(client: FlaskClient) -> None:
    answer = client.get("/query/?report=orders&customer=1&limit=3&format=json").get_json()
    assert answer["report"] == "orders"
    assert answer["row_count"] == len(answer["rows"]) == 3
    assert 0 < answer["elapsed_ms"] < 60_000
    assert [type(value) for value in answer["rows"][0]] == [int, str, int, int, float]


def test_the_page_shows_rows_and_time(client: FlaskClient) -> None:
    page = client.get(f"/query/?report=revenue&{PERIOD}").text
    [(month, revenue)] = [(row[0], row[2]) for row in ask(client, f"report=revenue&{PERIOD}")["rows"][:1]]
    assert re.search(r"<strong>2</strong> rows in\s+<strong>[0-9.]+ m?s</strong>", page)
    assert f"<td>{month}</td>" in page
    assert f"{revenue:,}" in page
    assert 'name="from" value="2025-11-26"' in page


def test_an_empty_result_is_no_error(client: FlaskClient) -> None:
    page = client.get("/query/?report=products&from=2031-01-01&to=2031-12-31")
    assert page.status_code == 200
    assert "Nothing was found" in page.text


def test_csv_has_all_rows_unless_limited(client: FlaskClient, lines: list[Line]) -> None:
    answer = client.get(f"/query/?report=journal&{PERIOD}&format=csv")
    header, *rows = csv.reader(io.StringIO(answer.text))
    assert answer.headers["Content-Disposition"] == "attachment; filename=journal.csv"
    assert header[:3] == ["Ordered at", "Order", "Line"]
    assert len(rows) == len(lines) > 1000
    assert [row[5] for row in rows] == [line.product for line in lines]

    limited = client.get(f"/query/?report=journal&{PERIOD}&format=csv&limit=2").text
    assert list(csv.reader(io.StringIO(limited))) == [header, *rows[:2]]


def test_the_first_page_needs_no_query_and_unknown_paths_are_404(client: FlaskClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for name in REPORTS:
        assert f'value="{name}"' in answer.text
    assert client.get("/elsewhere").status_code == 404
