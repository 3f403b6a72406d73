"""The benchmarks' commands work; what they measure is not for tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.instructions import parts_in
from benchmarks.mixed import reports
from benchmarks.mixed.figures import Latencies
from benchmarks.mixed.long_clients import Share, as_before
from benchmarks.mixed.picture import picture
from benchmarks.mixed.report import Results
from benchmarks.report import workload_table
from benchmarks.rounds import Sample, Series, measure
from benchmarks.subject import Subject
from benchmarks.traffic import Answer
from benchmarks.workloads import Workload
from benchmarks.wrk import Load, Measured
from tests.support.processes import ROOT, Frontend


def run(module: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_comparison_is_printed_and_written_down(tmp_path: Path) -> None:
    options = ("--only=hello-new,select,memory", "--peers=executor", "--rounds=1", "--quick")
    finished = run("compare", *options, f"--directory={tmp_path}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    text = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert text in finished.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    # A head, a line, and two servers in each of four tables, two of which are of memory.
    heads = ["server", "server", "server: the process with the application, MB", "server: all processes, MB"]
    assert [row[0] for row in rows[::4]] == heads
    assert [row[0] for row in rows[2::4]] == ["threadbridge"] * 4
    assert [row[0] for row in rows[3::4]] == ["WSGIContainer(executor)"] * 4
    assert "The fastest of the others is WSGIContainer(executor)" in text
    facts = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert facts["rounds"] == 1
    assert list(facts["workloads"]) == ["select", "hello-new"]
    for workload in facts["workloads"].values():
        for server in ("threadbridge", "executor"):
            figures = workload["servers"][server]
            assert len(figures["rate"]) == 1
            assert all(rate > 0 for rate in figures["rate"])
            assert all(p50 <= p99 for p50, p99 in zip(figures["p50"], figures["p99"], strict=True))
            assert figures["errors"] == {}
    for starts in facts["memory"].values():
        [[footprint]] = starts
        assert footprint["resident"] >= footprint["proportional"] >= footprint["unique"] > 1_000_000
        assert footprint["resident"] > footprint["anonymous"] > 1_000_000
    picture = ElementTree.parse(tmp_path / "compare.svg").getroot()
    bars = picture.findall(".//{http://www.w3.org/2000/svg}rect")
    # The frame, and two servers in each of three panels.
    assert len(bars) == 1 + 3 * 2


def test_what_a_server_cannot_do_is_said() -> None:
    series = {name: Series() for name in ("threadbridge", "cheroot", "granian")}
    # It closes each connection, and accepts no POST.
    with Frontend(("-m", "http.server", "{port}", "--bind=127.0.0.1")) as frontend:
        subject = Subject(frontend, {})
        measure(subject, Workload("", Load("/LICENSE", 2)), series["threadbridge"])
        measure(subject, Workload("", Load("/missing", 2, keep_alive=False)), series["cheroot"])
        measure(subject, Workload("", Load("/", 2, "POST", 10)), series["granian"])
    rows = [[cell.strip() for cell in line.split("|")] for line in workload_table(series).splitlines()]
    assert rows[2][-2] == "closes connections"
    assert rows[3][-2] == "failed: answers with status 404"
    assert rows[4][-2] == "failed: answers with status 501"
    good = series["threadbridge"].good[0]
    assert (good.measured.requests > 0, good.measured.errors) == (True, {})


def test_a_figure_with_errors_is_marked() -> None:
    good = Measured(100.0, 100, 1.0, 2.0, 3.0, 4.0, {})
    series = {
        "threadbridge": Series([Sample(good, 10.0, 0), None]),
        "cheroot": Series([Sample(good._replace(rate=50.0, errors={"timeout": 3}), 10.0, 0), None]),
    }
    rows = [[cell.strip() for cell in line.split("|")] for line in workload_table(series).splitlines()]
    assert rows[3][1:4] == ["cheroot", "50! (50-50)", "2.00 (2.00-2.00)"]
    assert rows[3][-2] == "3 timeout errors"


def test_the_hazards_are_measured_and_written_down(tmp_path: Path) -> None:
    results = tmp_path / "hazards.json"
    finished = run("hazards", "--servers=threadbridge", "--hazards=stop", f"--json={results}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "threadbridge has reached all it must" in finished.stdout
    facts = json.loads(results.read_text(encoding="utf-8"))
    assert facts["servers"] == {"threadbridge": {"answered": 20, "exit status": 0, "port": "free"}}
    assert facts["threads"] == 10
    assert facts["machine"]["processors"] >= 1
    assert "tornado" in facts["versions"]


def test_an_unknown_server_is_refused_with_the_names_of_those_there_are() -> None:
    finished = run("hazards", "--servers=apache")
    assert finished.returncode == 2
    assert "there is no server 'apache'; there are threadbridge, wsgicontainer" in finished.stderr
    finished = run("compare", "--peers=apache")
    assert finished.returncode == 2
    assert "there is no 'apache'; there are wsgicontainer, executor" in finished.stderr


def test_the_simulation_prints_the_figures_of_each_rule() -> None:
    finished = run("simulation", "measured", "--rule=turns", "--rule=learned,PATIENCE=30", "--seeds=1", "--seconds=90")
    assert finished.returncode == 0, finished.stderr
    rows = [line.split() for line in finished.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["measured", "turns"], ["measured", "learned,PATIENCE=30"]]
    # Short ones' waits, 99 %.
    assert float(rows[0][3]) > 1000 > float(rows[1][3])


def test_the_simulation_refuses_what_it_does_not_know() -> None:
    for option in ("unknown", "--rule=unknown", "--rule=learned,UNHEARD_OF=1"):
        finished = run("simulation", option)
        assert finished.returncode == 2
        assert "there is no" in finished.stderr or "has a number" in finished.stderr


def test_short_queries_among_long_ones_are_measured_and_written_down(tmp_path: Path) -> None:
    options = ("--only", "threadbridge", "executor", "--cases", "period", "change", "--seconds=3", "--long=0.3")
    finished = run("mixed", *options, f"--directory={tmp_path}")
    assert "the results are in" in finished.stdout, finished.stdout + finished.stderr
    assert (tmp_path / "mixed.md").read_text(encoding="utf-8") in finished.stdout
    facts = json.loads((tmp_path / "mixed.json").read_text(encoding="utf-8"))
    assert list(facts["styles"]) == ["period"]
    for figures in (facts["styles"]["period"], facts["change"]):
        assert list(figures) == ["threadbridge", "executor"]
    # One each 0.2 s, from the end of the first third on; the last may come too late.
    assert facts["styles"]["period"]["executor"]["after"]["requests"] in (9, 10)
    # Ten threads and thirty clients.
    assert facts["styles"]["period"]["executor"]["long_share"] > 0.5
    # With the other one, a short query may wait longer than the first third.
    assert facts["change"]["threadbridge"]["before"]["requests"] > 0
    assert facts["mixes"] == {}


def test_the_mix_of_reports_is_measured(sample_data: dict[str, str]) -> None:
    mix = reports.MIXES["waiting"]._replace(long=[reports.Report(reports.LONG, "wait", 1, seconds=0.5)])
    variables = {**sample_data, "MYAPPLICATION_DIAGNOSTICS": "1"}
    with Frontend(("run.py", "--port={port}"), env=variables) as frontend:
        costs = reports.measure_costs(frontend.port, mix.reports)
        answers = asyncio.run(reports.send(frontend.port, mix, rate=40, seconds=1))
    assert list(costs) == mix.reports
    sent = list(reports.arrivals(mix, rate=40, seconds=1))
    assert sent == list(reports.arrivals(mix, rate=40, seconds=1))
    assert sorted(answer.path for _, answer in answers) == sorted(path for _, _, path, _ in sent)
    served = reports.served(answers, costs, min(answer.sent for _, answer in answers), 1, most=10)
    assert served.short.requests + served.medium.requests + served.long.requests == len(sent)
    assert not any({**served.refused, **served.unanswered}.values())
    assert 0 < served.work < 1


def test_the_picture_shows_each_server_s_short_queries() -> None:
    after = Latencies(100, 0.003, 0.02, 0.05)
    share = Share(first_worst=1.0, after=after, refused=0, long_share=0.9, long_refused=0)
    results = Results(styles={"parameter": dict.fromkeys(("threadbridge", "fair", "granian", "executor"), share)})
    titles = {name: name for name in results.styles["parameter"]}
    document = ElementTree.fromstring(picture(results, titles, long=3))
    texts = [element.text for element in document.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("3.0 ms · 20 ms · 50 ms") == 3
    assert "fair" not in texts


def test_short_queries_are_served_as_before_from_the_first_of_many_in_a_row_on() -> None:
    def answers(*seconds: float) -> list[Answer]:
        """One is sent every 0.2 s; the change comes after 5 s."""
        return [Answer("/", number / 5, number / 5 + each, 200) for number, each in enumerate(seconds)]

    before = [0.01] * 25
    change = as_before(answers(*before, 2.0, 0.01, 1.0, *[0.01] * 30, 0.5), changed=5.0, long=2.0)
    assert change.recovered == pytest.approx(0.6)
    assert change.worst == pytest.approx(2.0)
    assert change.after.worst == pytest.approx(0.5)
    assert as_before(answers(*before, *[0.01] * 25), changed=5.0, long=2.0).recovered == 0
    assert as_before(answers(*before, *[1.0, *[0.01] * 9] * 3), changed=5.0, long=2.0).recovered is None


def test_instructions_are_counted_where_they_are_executed(tmp_path: Path) -> None:
    """In callgrind's format: names are defined once, and lines behind ``calls=`` count what others execute."""
    profile = tmp_path / "callgrind.1"
    profile.write_text(
        "ob=(1) /a/threadbridge/x.so\nfn=(1) first\n10 100\n"
        "cob=(2) /usr/lib/libpython3.11.so\ncfn=(2) second\ncalls=3 20\n11 5000\n12 7\n"
        "\nob=(2)\nfn=(2)\n20 5000\nob=(3) /lib/libz.so\n+1 4\n"
    )
    assert parts_in(profile) == {"this package": 107, "Python": 5000, "other libraries": 4}
