"""Requests and what they cost, for tests of what `Costs` learns."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

from tests.support.processes import ROOT
from threadbridge.crossing.cost_cells import Cell
from threadbridge.crossing.costs import MAX_PARAMETERS, MAX_VALUES, Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.routes import Routes


class Site:
    """The routes of a site, and what their requests cost."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.routes = Routes(self.costs)

    def estimate(self, target: str, *, form: str = "", client: str = "192.0.2.1") -> Estimate:
        """Estimate a request as a bridge does."""
        route = self.routes.find("GET", target.partition("?")[0])
        estimate = Estimate(route.cost, target, client)
        self.costs.estimate(estimate)
        if form:
            estimate.add_form(form)
            self.costs.estimate(estimate)
        return estimate

    def run(self, target: str, seconds: float, *, form: str = "", client: str = "192.0.2.1") -> Estimate:
        """Estimate a request, and learn that it took so long."""
        estimate = self.estimate(target, form=form, client=client)
        self.costs.learn(estimate, seconds)
        return estimate

    def cells(self) -> int:
        """The true number of cells."""
        return cells_of(self.routes)


def cells_of(routes: Routes) -> int:
    """The true number of cells."""
    return sum(cells_below(route.cost) for route in routes._routes.values())


def cells_below(cell: Cell) -> int:
    """The number of cells below this one, counted one by one; no more at one place than may be."""
    found, unseen = 0, [cell]
    while unseen:
        parameters = unseen.pop().parameters or {}
        assert len(parameters) <= MAX_PARAMETERS
        for parameter in parameters.values():
            assert len(parameter.cells) <= MAX_VALUES
            found += len(parameter.cells)
            unseen += parameter.cells.values()
    return found


def interpreted_costs() -> ModuleType:
    """The module of the costs as Python runs it, even where it is compiled: only there, its steps can be counted."""
    path = ROOT / "threadbridge" / "crossing" / "costs.py"
    spec = importlib.util.spec_from_file_location("interpreted_costs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_steps(function: Callable[[], object], module: ModuleType) -> int:
    """How many lines of the module run, and how many functions, Python's own included, it calls."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != module.__file__:
            return None
        steps += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return steps
