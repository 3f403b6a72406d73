"""Radicale: a CalDAV server with WebDAV's methods. Its usual server is its own."""

from __future__ import annotations

from pathlib import Path

from tests.real_applications.site import Environment, Visitor, assert_same, needs_applications

CONFIGURATION = """
[auth]
type = htpasswd
htpasswd_filename = passwords
htpasswd_encryption = plain
delay = 0
[storage]
filesystem_folder = collections
"""
EVENT = """BEGIN:VCALENDAR\r
VERSION:2.0\r
PRODID:-//Tests//EN\r
BEGIN:VEVENT\r
UID:event-%d\r
DTSTAMP:20260101T000000Z\r
DTSTART:20260%d01T100000Z\r
SUMMARY:Café %d\r
END:VEVENT\r
END:VCALENDAR\r
"""
CALENDAR = '<mkcalendar xmlns="urn:ietf:params:xml:ns:caldav"/>'
NAMES = '<propfind xmlns="DAV:"><prop><resourcetype/></prop></propfind>'
QUERY = """<C:calendar-query xmlns:C="urn:ietf:params:xml:ns:caldav" xmlns="DAV:"><prop><C:calendar-data/></prop>
<C:filter><C:comp-filter name="VCALENDAR"><C:comp-filter name="VEVENT"><C:time-range start="20260301T000000Z"
end="20260501T000000Z"/></C:comp-filter></C:comp-filter></C:filter></C:calendar-query>"""


def visit(site: Visitor) -> None:
    site.ask("GET", "/", status=302)
    site.get("/.web/")
    site.ask("PROPFIND", "/ann/", status=401, data=NAMES)
    site.session.auth = ("ann", "a password")
    assert "calendar-access" in site.ask("OPTIONS", "/").headers["DAV"]
    site.ask("PROPFIND", "/ann/", status=207, data=NAMES)
    site.ask("MKCALENDAR", "/ann/work/", status=201, data=CALENDAR)
    for month in range(1, 7):
        event = (EVENT % (month, month, month)).encode()
        tag = {"Content-Type": "text/calendar; charset=utf-8", "If-None-Match": "*"}
        site.ask("PUT", f"/ann/work/{month}.ics", status=201, data=event, headers=tag)
    site.ask("PUT", "/ann/work/1.ics", status=412, data=event, headers=tag)
    assert "Café 3" in site.ask("GET", "/ann/work/3.ics").content.decode()
    site.ask("PROPFIND", "/ann/work/", status=207, data=NAMES, headers={"Depth": "1"})
    found = site.ask("REPORT", "/ann/work/", status=207, data=QUERY, headers={"Depth": "1"}).content.decode()
    assert [f"Café {month}" in found for month in range(1, 7)] == [False, False, True, True, False, False]
    destination = {"Destination": f"{site.base}/ann/work/moved.ics"}
    site.ask("MOVE", "/ann/work/6.ics", status=201, headers=destination)
    site.ask("DELETE", "/ann/work/5.ics")
    site.ask("GET", "/ann/work/5.ics", status=404)
    site.session.headers["Authorization"] = "Basic YW5uOmEgcGFzc3dvcmQ="
    site.get_all_at_once("/ann/work/3.ics", "/ann/work/moved.ics", "/.web/")


@needs_applications
def test_radicale(tmp_path: Path) -> None:
    environment = Environment("radicale", "radicale")
    data = tmp_path / "data"
    data.mkdir()
    (data / "config").write_text(CONFIGURATION)
    (data / "passwords").write_text("ann:a password\n")
    assert_same(
        visit,
        environment,
        data,
        ("-m", "threadbridge", "radicale:application", "--port={port}"),
        ("-m", "radicale", "--config={data}/config", "--server-hosts=127.0.0.1:{port}"),
        env={"RADICALE_CONFIG": "{data}/config"},
    )
