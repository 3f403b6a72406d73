"""I Hate Money: Flask, Flask-SQLAlchemy and Flask-WTF. Its usual server is gunicorn."""

from __future__ import annotations

from pathlib import Path

from tests.real_applications.site import Environment, Visitor, assert_same, hidden_field, needs_applications

SETTINGS = """
import os

SQLALCHEMY_DATABASE_URI = f"sqlite:///{os.getcwd()}/money.db"
SECRET_KEY = "not a secret"
SESSION_COOKIE_SECURE = False
"""


def visit(site: Visitor) -> None:
    token = hidden_field(site.get("/"), "csrf_token")
    site.ask("POST", "/create", data={"name": "Trip", "password": "travelling", "contact_email": "a@example.com"})
    project = {"name": "Trip", "password": "travelling", "contact_email": "a@example.com", "default_currency": "XXX"}
    site.ask("POST", "/create", data={**project, "csrf_token": token}, status=302)
    for member in ("Ann", "Bob"):
        token = hidden_field(site.get("/trip/"), "csrf_token")
        site.ask("POST", "/trip/members/add", data={"name": member, "csrf_token": token}, status=302)
    token = hidden_field(site.get("/trip/add"), "csrf_token")
    bill = {"date": "2026-01-31", "what": "Café", "payer": "1", "amount": "12.50", "payed_for": ["1", "2"]}
    details = {"bill_type": "Expense", "original_currency": "XXX", "external_link": "", "csrf_token": token}
    site.ask("POST", "/trip/add", data={**bill, **details}, status=302)
    assert "Café" in site.get("/trip/")
    assert "6.25" in site.get("/trip/settle_bills")
    assert "Caf" in site.get("/trip/export/bills.json")
    site.get("/static/css/main.css")
    site.ask("GET", "/static/nothing", status=404)
    site.ask("GET", "/api/projects/trip", status=401)
    assert "Ann" in site.get("/api/projects/trip", auth=("trip", "travelling"))
    site.get_all_at_once("/trip/", "/trip/statistics", "/static/css/main.css")


@needs_applications
def test_i_hate_money(tmp_path: Path) -> None:
    environment = Environment("ihatemoney", "ihatemoney", "gunicorn")
    data = tmp_path / "data"
    data.mkdir()
    (data / "settings.cfg").write_text(SETTINGS)
    log = assert_same(
        visit,
        environment,
        data,
        ("-m", "threadbridge", "ihatemoney.wsgi:application", "--port={port}"),
        ("-m", "gunicorn", "ihatemoney.wsgi:application", "--threads=10", "--bind=127.0.0.1:{port}"),
        env={"IHATEMONEY_SETTINGS_FILE_PATH": "{data}/settings.cfg"},
        varying=[r"Ij[\w-]+\.[\w-]+\.[\w-]+", r"/trip/feed/[^\"]+", r"/trip/join/[^\"]+", "[\\w.-]{60,}"],
    )
    assert "pool: SQLAlchemy engine sqlite" in log
