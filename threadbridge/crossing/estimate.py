"""What a request is expected to cost, and the parameters by which that may be told."""

from __future__ import annotations

import re
from typing import Final

from threadbridge.crossing.cost_cells import Cell

# What is looked at of a query string or form: characters, pairs, and characters of a name or value.
MAX_TEXT: Final = 2000
MAX_PAIRS: Final = 32
MAX_VALUE: Final = 24
# How many numbers of a path are parameters.
MAX_NUMBERS: Final = 12
# Characters of a client's name, which may be what `client_key` makes of a header.
MAX_CLIENT: Final = 64

# The name of the parameter that is the client.
CLIENT: Final = "(client)"
DAYS: Final = "(days)"

# As text, to the power of two.
MAGNITUDES: Final = [str(power) for power in range(65)]

_SECRET: Final = re.compile(r"pass|pwd|secret|token|auth|session|csrf|otp|api.?key|pin$", re.IGNORECASE).search
_NUMBERS: Final = re.compile(r"[0-9]+").findall
_DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})").match


def is_secret(name: str) -> bool:
    """Return whether the values of this parameter belong on no page and in no file, as its name suggests."""
    return _SECRET(name.rstrip("#")) is not None


def parameters_of(target: str, form: str, client: str) -> dict[str, str]:
    """Return what may tell the costs of a route's requests apart, by name; at most `MAX_TEXT` characters are read.

    The parameters of the query string and of an urlencoded form are there as they were sent, not decoded. A number is
    there once more, as ``NAME#``, with its magnitude to the power of two; ``(days)`` is the magnitude of the time
    between the first two dates. ``/1``, ``/2``, … are the numbers in the path, and ``(client)`` is the client.
    """
    found: dict[str, str] = {CLIENT: ""}
    path, _, query = target.partition("?")
    first_day = -1
    for text in (query, form):
        if not text:
            continue
        for pair in text[:MAX_TEXT].split("&", MAX_PAIRS)[:MAX_PAIRS]:
            name, _, value = pair.partition("=")
            if not (name and value):
                # An empty field of a form is as good as a missing one.
                continue
            if len(pair) > MAX_VALUE:
                name, value = name[:MAX_VALUE], value[:MAX_VALUE]
            found[name] = value
            # Only these two look like numbers or dates.
            if not "0" <= value[0] <= "9":
                continue
            if len(value) >= 10 and value[4] == "-" and (date := _DATE(value)) is not None:
                day = int(date[1]) * 365 + int(date[2]) * 30 + int(date[3])
                if first_day < 0:
                    first_day = day
                elif DAYS not in found:
                    found[DAYS] = MAGNITUDES[abs(day - first_day).bit_length()]
            else:
                whole = value if value.isdecimal() else value.partition(".")[0]
                if whole.isdecimal():
                    found[name + "#"] = MAGNITUDES[min(int(whole).bit_length(), 64)]
    for number, digits in enumerate(_NUMBERS(path[:MAX_TEXT])[:MAX_NUMBERS], 1):
        found[f"/{number}"] = digits[:MAX_VALUE]
    # Last: a request may have a parameter of this name.
    found[CLIENT] = client
    return found


def _last_value(text: str, name: str) -> str:
    """Return the last value of this field that is not empty, as `parameters_of` does."""
    text = "&" + text
    begin = f"&{name}="
    at = text.rfind(begin)
    while at >= 0:
        value, _, _ = text[at + len(begin) :].partition("&")
        if value:
            return value[:MAX_VALUE]
        at = text.rfind(begin, 0, at)
    return ""


class Estimate:
    """What a request is expected to cost, in seconds.

    `seconds` is what such a request usually takes, `average` their mean, of which rare long ones are a part, and
    `cautious` what most of them stay below. `is_known` is false if there is nothing to go by. The rest belongs to the
    `Schedule` in which the request is.
    """

    seconds = 0.0
    average = 0.0
    cautious = 0.0
    is_known = True
    # Of the schedule: the level and the class in which the request waits or runs, when it was queued, when it is due,
    # and whether it has run for longer than its class allows.
    level = 0
    cost_class = ""
    queued_at = 0.0
    due = 0.0
    outgrown = False

    def __init__(self, route: Cell | None, target: str, client: str, pinned: str = "") -> None:
        self.route = route
        self.target = target
        self.client = client[:MAX_CLIENT]
        # The class that the settings give it, or "".
        self.pinned = pinned
        # The urlencoded form in the request's body.
        self.form = ""
        self._parameters: dict[str, str] | None = None

    def add_form(self, form: str) -> None:
        """Add the fields of an urlencoded form."""
        self.form = form
        self._parameters = None

    def parameters(self) -> dict[str, str]:
        """See `parameters_of`."""
        if self._parameters is None:
            self._parameters = parameters_of(self.target, self.form, self.client)
        return self._parameters

    def value_of(self, name: str) -> str:
        """Return the value of one parameter, or ""; on the loop, where most requests need no other."""
        if self._parameters is None:
            if name == CLIENT:
                return self.client
            if len(name) < MAX_VALUE and name[0] not in "/(" and name[-1] != "#":
                _, _, query = self.target.partition("?")
                if query.count("&") < MAX_PAIRS and self.form.count("&") < MAX_PAIRS:
                    return _last_value(self.form[:MAX_TEXT], name) or _last_value(query[:MAX_TEXT], name)
        return self.parameters().get(name, "")
