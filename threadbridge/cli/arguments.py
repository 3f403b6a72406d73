"""The command line's arguments, as the texts of settings.

Not by `argparse`: a process would be 0.3 MB larger for as long as it serves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from threadbridge.settings.table import ALL, SettingError, option_name
from threadbridge.settings.values import FLAG

_OPTION = re.compile(r"--?([A-Za-z][\w-]+)(?:=(.*))?", re.DOTALL).fullmatch


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether somebody wants to see the options."""
    return any(argument in ("-h", "-help", "--help") for argument in arguments)


def read_arguments(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The texts given for each option, in order, by the setting's name; and the arguments that are no options.

    Options are written as `tornado.options` reads them: with one dash or two, with hyphens or underscores, with ``=``
    or a space before the value, which a flag may be without. Raises `SettingError` for what is no option of ours and
    for one without its value.
    """
    names = {option_name(name): name for name in ALL}
    options: dict[str, list[str]] = {}
    others = []
    ahead = list(reversed(arguments))
    while ahead:
        argument = ahead.pop()
        if not argument.startswith("-"):
            others.append(argument)
            continue
        match = _OPTION(argument)
        name = names.get(match[1].replace("-", "_")) if match is not None else None
        if match is None or name is None:
            raise SettingError(f"unexpected argument {argument!r}")
        text: str | None = match[2]
        if text is None and ALL[name].kind is FLAG:
            text = "true"
        elif text is None and ahead and not ahead[-1].startswith("-"):
            text = ahead.pop()
        if text is None:
            raise SettingError(
                f"--{option_name(name)}: expected a value, --{option_name(name)}={ALL[name].kind.metavar}"
            )
        options.setdefault(name, []).append(text)
    return options, others
