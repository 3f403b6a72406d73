"""The command line's options, one for each setting: click parses and completes them, and prints the help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import click
from click.shell_completion import CompletionItem

from threadbridge.settings.table import ALL, CommandLineSettings, Settings, option_name
from threadbridge.settings.values import FLAG, PATH, SettingError

_ABOUT = """Serves a WSGI application with a thread for each request that runs.

Options may be written with hyphens or with underscores. They can also come from the environment
(THREADBRIDGE_PORT=8000) and from the file that --config names; the command line takes precedence over the environment,
and the environment over the file.
"""


class _Command(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command`; the settings of `serve` have their own section."""
        rows = {parameter.name or "": parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        serving = Settings.__annotations__.keys()
        for title, names in (
            ("Serving", serving),
            ("This process and its log", ALL.keys() - serving),
            ("Other options", rows.keys() - ALL.keys()),
        ):
            with formatter.section(title):
                formatter.write_dl([row for name, row in rows.items() if name in names and row is not None])


def _option(name: str, default: object) -> click.Option:
    """An option that collects the texts given for a setting; `resolve` reads them."""
    setting = ALL[name]
    kind = setting.kind
    shown = "" if kind is FLAG else setting.show(default)

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in kind.metavar.split("|") if word.startswith(incomplete)]

    return click.Option(
        [name, f"--{option_name(name)}"],
        multiple=True,
        type=click.Path() if kind is PATH else click.STRING,
        metavar=kind.metavar,
        help=f"{setting.meaning} [default: {shown}]" if shown else setting.meaning,
        shell_complete=complete if "|" in kind.metavar else None,
    )


def read_arguments(
    program: str, arguments: Sequence[str], defaults: CommandLineSettings, *, names_application: bool
) -> tuple[dict[str, Sequence[str]], str]:
    """The texts given for each option, in order, by the setting's name; and the application's import path, or "".

    Options may also be written as for `tornado.options`: with one dash, with underscores, and flags with a value.
    The defaults are for the help. Raises `SettingError` for an unknown option or one without its value, and
    ``SystemExit`` after ``--help`` and the like.
    """
    command = _Command(
        None,
        callback=lambda **values: values,
        params=[_option(name, defaults.get(name, setting.default)) for name, setting in ALL.items()],
        context_settings={
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
        },
        help=_ABOUT,
    )
    if names_application:
        command.params.insert(0, click.Argument(["application"], metavar="MODULE:APP", required=False))
    click.version_option(package_name="threadbridge", message="%(package)s %(version)s")(command)
    try:
        values = command.main(list(_spelled_for_click(arguments)), prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        raise SettingError(error.format_message().rstrip(".")) from None
    if not isinstance(values, dict):
        raise SystemExit(values)
    application = values.pop("application", None)
    return {name: texts for name, texts in values.items() if texts}, application or ""


def _spelled_for_click(arguments: Sequence[str]) -> Iterator[str]:
    flags = {option_name(name) for name, setting in ALL.items() if setting.kind is FLAG}
    for argument in arguments:
        spelled = f"-{argument}" if re.match(r"-[A-Za-z][\w-]", argument) else argument
        if spelled.startswith("--"):
            name, equals, text = spelled[2:].partition("=")
            name = name.replace("-", "_")
            # Options that are named like one item of a list are accepted under the list's name, too.
            spelled = f"--{option_name(name)}{equals}{text}"
            if name in flags and not equals:
                spelled += "=true"
        yield spelled
