"""The reports: their titles, their SQL texts, and the parameters for the placeholders (``%s``)."""

from __future__ import annotations

import os
from dataclasses import dataclass

REGIONS = ("Central", "East", "North", "South", "West")


@dataclass(frozen=True)
class Report:
    """``parameters`` are the names of request parameters, one for each ``%s`` in ``sql``, in the same order."""

    title: str
    description: str
    parameters: tuple[str, ...]
    sql: str


ORDERS = Report(
    "Orders of a customer",
    "All orders of one customer, the latest first.",
    ("customer", "from", "to", "limit"),
    """
    SELECT
        orders.id AS `Order`,
        orders.ordered_at AS `Ordered at`,
        COUNT(*) AS `Lines`,
        SUM(quantity) AS `Articles`,
        SUM(quantity * unit_price) AS `Total`
    FROM orders
    JOIN order_lines ON order_lines.order_id = orders.id
    WHERE orders.customer_id = %s AND ordered_at >= %s AND ordered_at < %s + INTERVAL 1 DAY
    GROUP BY orders.id
    ORDER BY orders.ordered_at DESC, orders.id DESC
    LIMIT %s
    """,
)

PRODUCTS = Report(
    "Best-selling products",
    "Products by revenue, with the number of articles sold.",
    ("from", "to", "region", "region", "limit"),
    """
    SELECT
        products.name AS `Product`,
        products.category AS `Category`,
        SUM(quantity) AS `Articles`,
        SUM(quantity * unit_price) AS `Revenue`
    FROM orders
    JOIN customers ON customers.id = orders.customer_id
    JOIN order_lines ON order_lines.order_id = orders.id
    JOIN products ON products.id = order_lines.product_id
    WHERE ordered_at >= %s AND ordered_at < %s + INTERVAL 1 DAY AND (%s = '' OR region = %s)
    GROUP BY products.id
    ORDER BY `Revenue` DESC, products.id
    LIMIT %s
    """,
)

REVENUE = Report(
    "Monthly revenue",
    "Orders, revenue and the average order of each month, and the change from the month before.",
    ("from", "to", "region", "region", "limit"),
    """
    SELECT
        month AS `Month`,
        orders AS `Orders`,
        revenue AS `Revenue`,
        ROUND(revenue / orders, 2) AS `Average order`,
        ROUND(100 * revenue / LAG(revenue) OVER (ORDER BY month) - 100, 1) AS `Change in %%`
    FROM (
        SELECT
            DATE_FORMAT(ordered_at, '%%Y-%%m') AS month,
            COUNT(DISTINCT orders.id) AS orders,
            SUM(quantity * unit_price) AS revenue
        FROM orders
        JOIN customers ON customers.id = orders.customer_id
        JOIN order_lines ON order_lines.order_id = orders.id
        WHERE ordered_at >= %s AND ordered_at < %s + INTERVAL 1 DAY AND (%s = '' OR region = %s)
        GROUP BY month
    ) AS months
    ORDER BY month
    LIMIT %s
    """,
)

RANKING = Report(
    "Customer ranking",
    "The rank of each customer within their region, by revenue.",
    ("from", "to", "region", "region", "limit"),
    """
    SELECT
        RANK() OVER (PARTITION BY region ORDER BY revenue DESC) AS `Place`,
        region AS `Region`,
        name AS `Customer`,
        city AS `City`,
        customers.id AS `Customer no.`,
        orders AS `Orders`,
        revenue AS `Revenue`
    FROM (
        SELECT
            customer_id,
            COUNT(DISTINCT orders.id) AS orders,
            SUM(quantity * unit_price) AS revenue
        FROM orders
        JOIN order_lines ON order_lines.order_id = orders.id
        WHERE ordered_at >= %s AND ordered_at < %s + INTERVAL 1 DAY
        GROUP BY customer_id
    ) AS buyers
    JOIN customers ON customers.id = customer_id
    WHERE (%s = '' OR region = %s)
    ORDER BY `Place`, region, customers.id
    LIMIT %s
    """,
)

PAIRS = Report(
    "Bought together",
    "The pairs of products that were most often ordered together. A long period takes several seconds.",
    ("from", "to", "region", "region", "limit"),
    """
    SELECT
        one.name AS `Product`,
        other.name AS `Bought with`,
        orders AS `Orders`
    FROM (
        SELECT
            one.product_id AS one_id,
            other.product_id AS other_id,
            COUNT(DISTINCT orders.id) AS orders
        FROM orders
        JOIN customers ON customers.id = orders.customer_id
        JOIN order_lines AS one ON one.order_id = orders.id
        JOIN order_lines AS other ON other.order_id = orders.id AND other.product_id > one.product_id
        WHERE ordered_at >= %s AND ordered_at < %s + INTERVAL 1 DAY AND (%s = '' OR region = %s)
        GROUP BY one.product_id, other.product_id
        ORDER BY orders DESC, one.product_id, other.product_id
        LIMIT %s
    ) AS pairs
    JOIN products AS one ON one.id = one_id
    JOIN products AS other ON other.id = other_id
    ORDER BY orders DESC, one.id, other.id
    """,
)

JOURNAL = Report(
    "Sales journal",
    "Each sale, with its product's revenue so far. A long period takes several seconds.",
    ("from", "to", "region", "region", "limit"),
    """
    SELECT
        orders.ordered_at AS `Ordered at`,
        orders.id AS `Order`,
        line_number AS `Line`,
        customers.name AS `Customer`,
        region AS `Region`,
        products.name AS `Product`,
        quantity AS `Articles`,
        quantity * unit_price AS `Revenue`,
        SUM(quantity * unit_price) OVER (
            PARTITION BY products.id ORDER BY ordered_at, orders.id, line_number
        ) AS `Of the product so far`
    FROM orders
    JOIN customers ON customers.id = orders.customer_id
    JOIN order_lines ON order_lines.order_id = orders.id
    JOIN products ON products.id = order_lines.product_id
    WHERE ordered_at >= %s AND ordered_at < %s + INTERVAL 1 DAY AND (%s = '' OR region = %s)
    ORDER BY ordered_at, orders.id, line_number
    LIMIT %s
    """,
)

WAIT = Report(
    "Wait (diagnostics)",
    "Keeps a database connection busy for a number of seconds, and does nothing else.",
    ("seconds",),
    "SELECT SLEEP(%s) AS `Interrupted`",
)

REPORTS = {
    "products": PRODUCTS,
    "revenue": REVENUE,
    "orders": ORDERS,
    "ranking": RANKING,
    "pairs": PAIRS,
    "journal": JOURNAL,
}
if os.environ.get("MYAPPLICATION_DIAGNOSTICS") == "1":
    REPORTS["wait"] = WAIT
