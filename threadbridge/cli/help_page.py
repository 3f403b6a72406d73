"""What ``--help`` shows."""

from __future__ import annotations

import textwrap

from threadbridge.settings.table import ALL, SERVE, CommandLineSettings, option_name
from threadbridge.settings.values import FLAG

_ABOUT = (
    "Serves a WSGI application with a thread for each request that runs.",
    "Options may be written with hyphens or with underscores. They can also come from the environment "
    "(THREADBRIDGE_PORT=8000) and from the file that --config names; the command line is stronger than the "
    "environment, and that is stronger than the file.",
)
_WIDTH = 80
_INDENT = 6 * " "


def help_page(program: str, defaults: CommandLineSettings, *, names_application: bool) -> str:
    """All options, each with its meaning and its default.

    :param defaults: the defaults that are not those of the table.
    :param names_application: whether the application is an argument too.
    """
    lines = [f"usage: {program} {'MODULE:APP ' if names_application else ''}[--OPTION=VALUE]..."]
    for paragraph in _ABOUT:
        lines += ["", *textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False)]
    if names_application:
        lines += ["", *_entry("MODULE:APP", "The WSGI application, such as myapplication:app.")]
    of_process = [name for name in ALL if name not in SERVE]
    for title, names in (("serving", list(SERVE)), ("this process and its log", of_process)):
        lines += ["", f"{title}:"]
        for name in names:
            setting = ALL[name]
            is_flag = setting.kind is FLAG
            default = "" if is_flag else setting.show(defaults.get(name, setting.default))
            value = f"[={setting.kind.metavar}]" if is_flag else f"={setting.kind.metavar}"
            lines += _entry(
                f"--{option_name(name)}{value}", setting.meaning + (f" Default: {default}" if default else "")
            )
    return "\n".join(lines)


def _entry(title: str, text: str) -> list[str]:
    return [
        f"  {title}",
        *textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False),
    ]
