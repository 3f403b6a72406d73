"""Loads the sample data: three years of a homeware retailer's sales, the same in every load.

``python -m myapplication.sampledata`` fills the database that the ``MYSQL_*`` variables name, if it is empty,
with 20,000 customers, 1,200 products, 300,000 orders and 1,000,000 order lines. The rows are generated inside the
database from its sequence tables; the MD5 of a row's number serves as a random number.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

import MySQLdb

from .database import connection_settings
from .samplewords import CITIES, FIRST_NAMES, ITEMS, LAST_NAMES, SERIES

BATCH = 100_000

# The first table marks the schema as ours, and as complete once it contains the time at which the load finished.
SCHEMA = {
    "sample_data": "CREATE TABLE sample_data (started_at DATETIME NOT NULL, finished_at DATETIME)",
    "customers": """
    CREATE TABLE customers (
        id INT UNSIGNED NOT NULL PRIMARY KEY,
        name VARCHAR(80) NOT NULL,
        city VARCHAR(40) NOT NULL,
        region VARCHAR(10) NOT NULL,
        registered_on DATE NOT NULL,
        KEY (region)
    )
    """,
    "products": """
    CREATE TABLE products (
        id INT UNSIGNED NOT NULL PRIMARY KEY,
        name VARCHAR(80) NOT NULL,
        category VARCHAR(40) NOT NULL,
        price DECIMAL(8, 2) NOT NULL
    )
    """,
    "orders": """
    CREATE TABLE orders (
        id INT UNSIGNED NOT NULL PRIMARY KEY,
        customer_id INT UNSIGNED NOT NULL,
        ordered_at DATETIME NOT NULL,
        KEY (customer_id, ordered_at),
        KEY (ordered_at),
        FOREIGN KEY (customer_id) REFERENCES customers (id)
    )
    """,
    "order_lines": """
    CREATE TABLE order_lines (
        order_id INT UNSIGNED NOT NULL,
        line_number TINYINT UNSIGNED NOT NULL,
        product_id INT UNSIGNED NOT NULL,
        quantity SMALLINT UNSIGNED NOT NULL,
        unit_price DECIMAL(8, 2) NOT NULL,
        PRIMARY KEY (order_id, line_number),
        FOREIGN KEY (order_id) REFERENCES orders (id),
        FOREIGN KEY (product_id) REFERENCES products (id)
    )
    """,
}

WORDS = (
    (
        "CREATE TEMPORARY TABLE first_names (number INT PRIMARY KEY, word VARCHAR(40))",
        "INSERT INTO first_names VALUES (%s, %s)",
        FIRST_NAMES,
    ),
    (
        "CREATE TEMPORARY TABLE last_names (number INT PRIMARY KEY, word VARCHAR(40))",
        "INSERT INTO last_names VALUES (%s, %s)",
        LAST_NAMES,
    ),
    (
        "CREATE TEMPORARY TABLE cities (number INT PRIMARY KEY, city VARCHAR(40), region VARCHAR(10))",
        "INSERT INTO cities VALUES (%s, %s, %s)",
        CITIES,
    ),
    (
        "CREATE TEMPORARY TABLE series (number INT PRIMARY KEY, word VARCHAR(40))",
        "INSERT INTO series VALUES (%s, %s)",
        SERIES,
    ),
    (
        """
        CREATE TEMPORARY TABLE items (
            number INT PRIMARY KEY, word VARCHAR(40), category VARCHAR(40), price DECIMAL(8, 2)
        )
        """,
        "INSERT INTO items VALUES (%s, %s, %s, %s)",
        ITEMS,
    ),
)

# Each statement generates the rows whose numbers are between its two parameters. Six hexadecimal digits of a hash,
# divided by 16777216, are a fraction between 0 and 1; a power of it gives a few customers and products many sales.
ROWS = (
    (
        "customers",
        20_000,
        """
        INSERT INTO customers (id, name, city, region, registered_on)
        SELECT
            seq,
            CONCAT(first_names.word, ' ', last_names.word),
            city,
            region,
            '2016-01-01' + INTERVAL FLOOR(2550 * CONV(SUBSTR(hash, 19, 6), 16, 10) / 16777216) DAY
        FROM (SELECT seq, MD5(CONCAT('customer ', seq)) AS hash FROM seq_1_to_20000) AS numbered
        JOIN first_names ON first_names.number = CONV(SUBSTR(hash, 1, 6), 16, 10) MOD 100
        JOIN last_names ON last_names.number = CONV(SUBSTR(hash, 7, 6), 16, 10) MOD 150
        JOIN cities
            ON cities.number = FLOOR(30 * POW(CONV(SUBSTR(hash, 13, 6), 16, 10) / 16777216, 1.5))
        WHERE seq BETWEEN %s AND %s
        """,
    ),
    (
        "products",
        1_200,
        """
        INSERT INTO products (id, name, category, price)
        SELECT
            seq,
            CONCAT(series.word, ' ', items.word),
            category,
            ROUND(price * (0.8 + 0.7 * CONV(SUBSTR(hash, 1, 6), 16, 10) / 16777216)) - 0.05
        FROM (SELECT seq, MD5(CONCAT('product ', seq)) AS hash FROM seq_1_to_1200) AS numbered
        JOIN series ON series.number = (seq - 1) DIV 40
        JOIN items ON items.number = (seq - 1) MOD 40
        WHERE seq BETWEEN %s AND %s
        """,
    ),
    (
        # Sales grow from year to year and are highest at the end of the year.
        "orders",
        300_000,
        """
        INSERT INTO orders (id, customer_id, ordered_at)
        SELECT
            seq,
            1 + 7919 * FLOOR(20000 * POW(CONV(SUBSTR(hash, 1, 6), 16, 10) / 16777216, 1.3)) MOD 20000,
            '2023-01-01'
                + INTERVAL
                    FLOOR(1096 * (moment - 0.02 * (SIN(6 * PI() * (moment + 0.02)) - SIN(0.12 * PI()))))
                    DAY
                + INTERVAL FLOOR(25200 + 57600 * CONV(SUBSTR(hash, 7, 6), 16, 10) / 16777216) SECOND
        FROM (
            SELECT
                seq,
                MD5(CONCAT('order ', seq)) AS hash,
                1.3 * (seq - 0.5) / 300000 - 0.3 * POW((seq - 0.5) / 300000, 2) AS moment
            FROM seq_1_to_300000
            WHERE seq BETWEEN %s AND %s
        ) AS numbered
        """,
    ),
    (
        # Ten lines make three orders. One of eight patterns distributes them: each digit is the order of a line.
        # The product of a third of the lines depends on the order, so that some are often bought together.
        "order lines",
        1_000_000,
        """
        INSERT INTO order_lines (order_id, line_number, product_id, quantity, unit_price)
        SELECT STRAIGHT_JOIN
            order_id,
            line_number,
            products.id,
            1 + FLOOR(6 * POW(CONV(SUBSTR(hash, 13, 6), 16, 10) / 16777216, 3)),
            IF(SUBSTR(hash, 19, 1) < '2', ROUND(0.9 * price, 2), price)
        FROM (
            SELECT
                order_id,
                line_number,
                hash,
                IF(
                    SUBSTR(hash, 20, 1) < '5',
                    CONV(SUBSTR(MD5(CONCAT('basket ', order_id MOD 4000)), 1, 6), 16, 10) + 3 * line_number,
                    7919 * FLOOR(1200 * POW(CONV(SUBSTR(hash, 1, 6), 16, 10) / 16777216, 1.7))
                ) MOD 1200 + 1 AS product_id
            FROM (
                SELECT
                    hash,
                    3 * ten + SUBSTR(pattern, place, 1) + 1 AS order_id,
                    place - LOCATE(SUBSTR(pattern, place, 1), pattern) + 1 AS line_number
                FROM (
                    SELECT
                        (seq - 1) DIV 10 AS ten,
                        (seq - 1) MOD 10 + 1 AS place,
                        MD5(CONCAT('line ', seq)) AS hash,
                        ELT(
                            1 + CONV(SUBSTR(MD5(CONCAT('pattern ', (seq - 1) DIV 10)), 1, 6), 16, 10) MOD 8,
                            '0001112222', '0111122222', '0011111122', '0000012222',
                            '0112222222', '0000111122', '0000000112', '0011112222'
                        ) AS pattern
                    FROM seq_1_to_1000000
                    WHERE seq BETWEEN %s AND %s
                ) AS numbered
            ) AS placed
        ) AS chosen
        JOIN products ON products.id = chosen.product_id
        """,
    ),
)


class NotEmptyError(Exception):
    """The database contains something other than complete sample data; the message says what to do."""


def load() -> bool:
    """Load the sample data and return True; return False if the database already has it.

    Raises NotEmptyError, and changes nothing, if there is anything else in the database.
    """
    connection = MySQLdb.connect(**connection_settings(), autocommit=True)
    try:
        cursor = connection.cursor()
        if is_loaded(cursor):
            return False
        created: list[str] = []
        try:
            create_and_fill(cursor, created)
        except BaseException:
            drop_tables(created)
            raise
        return True
    finally:
        connection.close()


def is_loaded(cursor: Any) -> bool:
    """True for complete sample data, False for an empty database."""
    cursor.execute("SELECT DATABASE()")
    [(schema,)] = cursor.fetchall()
    cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()")
    tables = {name for (name,) in cursor.fetchall()}
    if not tables:
        return False
    if "sample_data" not in tables:
        raise NotEmptyError(
            f"The database {schema} is not empty, so nothing was loaded into it. "
            "Name an empty database in MYSQL_DATABASE."
        )
    cursor.execute("SELECT COUNT(finished_at) FROM sample_data")
    [(finished,)] = cursor.fetchall()
    if not finished:
        raise NotEmptyError(
            f"The sample data in the database {schema} is incomplete: a load is running, or was interrupted. "
            "If none is running, remove its tables, then load again: "
            f"DROP TABLE IF EXISTS {', '.join(reversed(SCHEMA))};"
        )
    return True


def create_and_fill(cursor: Any, created: list[str]) -> None:
    """Load into an empty database, and add to ``created`` the name of each table as soon as it exists."""
    for table, statement in SCHEMA.items():
        cursor.execute(statement)
        created.append(table)
    cursor.execute("INSERT INTO sample_data VALUES (NOW(), NULL)")
    for create, insert, words in WORDS:
        cursor.execute(create)
        cursor.executemany(insert, [(number, *columns) for number, columns in enumerate(words)])
    # The rows are consistent by construction; checking each of them would take as long as generating it.
    cursor.execute("SET foreign_key_checks = 0")
    # Otherwise the server computes a row's hash again wherever a statement uses it, which takes half as long again.
    cursor.execute("SET optimizer_switch = 'derived_merge=off'")
    for what, count, statement in ROWS:
        for first in range(1, count + 1, BATCH):
            last = min(first + BATCH - 1, count)
            cursor.execute(statement, (first, last))
            say(f"{what:>12}: {last:>9,} of {count:,}")
    say("Analysing the tables …")
    cursor.execute("ANALYZE TABLE customers, products, orders, order_lines")
    cursor.fetchall()
    cursor.execute("UPDATE sample_data SET finished_at = NOW()")


def drop_tables(tables: list[str]) -> None:
    if tables:
        say("Removing the unfinished tables …")
    # A new connection: the one that failed may be lost.
    connection = MySQLdb.connect(**connection_settings())
    try:
        for table in reversed(tables):
            connection.cursor().execute(f"DROP TABLE IF EXISTS {table}")
    finally:
        connection.close()


def say(line: str) -> None:
    print(line, flush=True)


def stop(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"Stopped by signal {signal_number}; the sample data was not loaded.")


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    started = time.monotonic()
    try:
        loaded = load()
    except (NotEmptyError, MySQLdb.Error) as error:
        print(error, file=sys.stderr)
        return 1
    if loaded:
        say(f"The sample data was loaded in {time.monotonic() - started:.0f} s.")
    else:
        say("The sample data is already there; nothing was changed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
