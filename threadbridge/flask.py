"""``flask bridge``: serves the application of Flask's command line with threadbridge, for development.

Flask finds the command by the entry point ``flask.commands``. It continues as ``threadbridge dev`` in the same
process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from flask.cli import ScriptInfo

from threadbridge.cli.environment_files import without_environment_files

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication


def load_app(path: str | None) -> WSGIApplication:
    """The application that ``flask --app PATH`` means; raises what `flask.cli.ScriptInfo.load_app` does."""
    return ScriptInfo(app_import_path=path).load_app()


@click.command(
    "bridge",
    short_help="Run a development server with threadbridge.",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bridge(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run a development server with threadbridge; ``flask bridge --help`` lists its options."""
    info: Any = context.ensure_object(ScriptInfo)
    if info.create_app is not None:
        raise click.UsageError(
            "this program makes its application itself; run: threadbridge dev MODULE:APP, or MODULE:FACTORY()"
        )
    # Not imported at the top: Flask imports this module for each of its commands.
    from threadbridge.cli.continuing import continue_as_dev

    continue_as_dev(f"{__name__}:load_app({info.app_import_path!r})", arguments, without_environment_files(os.environ))
