"""The page docs/settings.md, made from the table of the settings: ``python -m threadbridge.settings.page``."""

from __future__ import annotations

from collections.abc import Mapping

from threadbridge.settings.table import ALL, SERVE, Setting

_PAGE = """# Settings

This page is generated from `threadbridge/settings/table.py`: `python -m threadbridge.settings.page >docs/settings.md`.

A setting can be given in four places. The first that sets it wins:

1. the command line: `python -m threadbridge myapplication:app --pool=myapplication:db.pool --port=8000`; hyphens and
   underscores are both accepted;
2. the environment: `THREADBRIDGE_PORT=8000`;
3. the TOML file that `--config=FILE` names: `port = 8000`, `trusted_proxies = ["10.0.0.0/8"]`;
4. the program: `run.py` serves with `port=8888` and `xheaders=True` unless told otherwise.

An unknown name is an error in each of them, and the message suggests the nearest one. The same command line is
also installed as `threadbridge`; `threadbridge --help` lists all options, and shells complete them after
`eval "$(_THREADBRIDGE_COMPLETE=bash_source threadbridge)"` (`zsh_source` and `fish_source` for the others).

`--check` loads everything, prints each setting with its value and its source, then lists the problems it finds and what
to do about them, and exits; [Operating it](operating.md#the-check) shows an example. An invalid setting causes one line
on standard error and exit status 2; if the server cannot listen on its address, the exit status is 1.

BYTES may be written in k, M or G, as in `64k` (in quotes in the TOML file). Separate the items of a list by commas, or
repeat the option; in the file use a TOML list.

## Serving

These are also the keywords of `serve(application, ...)`, as Python values: `pool` is the pool itself, `lanes` is a
list of `Lane` objects, a size is a number of bytes, `unix_socket_mode` is a number such as `0o660`.

{serving}
## The process and its log

{process}
## A new process before the old one stops

With `--reuse_port` start the new process, wait for its line `Serving on ...`, then send SIGTERM to the old one. The old
one answers all requests that have reached it. If a client connects just as the old process exits, its kernel retries,
and the new process serves it a second later. One gap remains: if the old process stops listening during a remote
client's TCP handshake, that connection is reset. A proxy on the same host is never affected; for other clients set
`sysctl net.ipv4.tcp_migrate_req=1` (Linux 5.14), and the kernel hands such connections over. Only processes of the same
user can share the port.

## With systemd

`Type=notify` works: the process reports when it accepts connections and when it stops. With `WatchdogSec=` it reports
twice in that time as long as its event loop runs. Set `TimeoutStopSec=`, 90 s by default, to more than `--grace`, 190 s
by default. `ExecReload=kill -HUP $MAINPID` reopens the log files.
"""


def as_markdown() -> str:
    """The page docs/settings.md."""
    return _PAGE.format(
        serving=_markdown_table(SERVE), process=_markdown_table({n: s for n, s in ALL.items() if n not in SERVE})
    )


def _markdown_table(settings: Mapping[str, Setting]) -> str:
    lines = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    for name, setting in settings.items():
        shown = f"`{name}`" + (f", as an option `--{setting.option}`" if setting.option else "")
        value = setting.kind.metavar.replace("|", ", ")
        default = setting.show(setting.default)
        lines.append(
            f"| {shown} | {value} | {f'`{default}`' if default else ''} | {setting.meaning} |".replace("*", "\\*")
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
