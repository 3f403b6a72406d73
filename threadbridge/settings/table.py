"""Every setting, once: command line, `serve`'s keywords, config file, environment and documentation come from here.

`Settings` and `CommandLineSettings` are the table: each entry has a type, a default, a kind of value and a meaning.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, cast, get_type_hints

from tornado.httputil import HTTPHeaders

from threadbridge.crossing.lanes import Lane
from threadbridge.http.forwarded import ClientHeaders
from threadbridge.http.limits import MEMORY_SIZE, Limits
from threadbridge.loop.bridge import IDEMPOTENCY_AGE, IDEMPOTENCY_SIZE, SPOOL_SIZE
from threadbridge.settings.values import (
    FLAG,
    FUNCTION,
    LANES,
    OCTAL,
    PATH,
    POOL,
    SEVERAL,
    TEXT,
    Kind,
    choice,
    number,
    seconds,
    size,
)

ENVIRONMENT_PREFIX = "THREADBRIDGE_"
# For building, for running the sources in place of what was compiled, and from a supervisor for its processes.
OTHER_VARIABLES = frozenset({"THREADBRIDGE_COMPILE", "THREADBRIDGE_COMPILED", "THREADBRIDGE_INHERITANCE"})
# Seconds for what follows the beginning of the last response: sending it, and the application's `close()`.
GRACE_MARGIN = 10.0
_LIMITS = Limits()


class SettingError(ValueError):
    """A setting that cannot be used; the message names it and says what is expected."""


@dataclass(frozen=True)
class Setting:
    """A setting's metadata besides its name and type.

    :param default: its value when none is given; None if there is none then.
    :param kind: what its value must look like.
    :param meaning: the text for users, in the documentation and in ``--help``.
    :param option: the option's name where it is not the setting's.
    :param in_file: whether it may stand in the config file.
    """

    default: object
    kind: Kind
    meaning: str
    option: str = ""
    in_file: bool = True

    def checked(self, value: object, label: str) -> Any:
        """The value itself; raises `SettingError` if it cannot be used. ``label`` says where it comes from."""
        if not (value is None and self.default is None) and not self.kind.accepts(value):
            raise SettingError(f"{label}: expected {self.kind.expected}")
        return value

    def read(self, text: str, label: str) -> Any:
        """The value that a text stands for; raises `SettingError`."""
        try:
            value = self.kind.read(text)
        except ValueError:
            raise SettingError(f"{label}: expected {self.kind.expected}") from None
        return self.checked(value, label)

    def show(self, value: object) -> str:
        """The value as a text that `read` understands; "" for None."""
        return "" if value is None else self.kind.show(value)


class Settings(TypedDict, total=False):
    """The keywords of `serve`; what is left out has its default."""

    pool: Annotated[
        object,
        Setting(
            None,
            POOL,
            "The DBUtils PooledDB from which the application takes its connections; its size sets how many requests "
            "run at once.",
        ),
    ]
    threads: Annotated[
        int | None,
        Setting(
            None,
            number(1),
            "How many requests run at once. Only when there is no pool, or the pool's size is not limited.",
        ),
    ]
    processes: Annotated[
        int,
        Setting(
            1,
            number(1),
            "How many processes serve, each with its own threads, pool and queues. If more than one, another process "
            "supervises them, see operating.md.",
        ),
    ]
    watchdog: Annotated[
        float,
        Setting(
            30.0,
            seconds(0),
            "How long a process's event loop may stand still. After half of this time the log says what each thread is "
            "doing; after all of it, the process is killed and replaced if processes is more than 1. 0 turns it off.",
        ),
    ]
    lanes: Annotated[
        Sequence[Lane],
        Setting(
            (),
            LANES,
            "Paths with their own threads, each NAME:PATTERN:THREADS. The pattern is matched against the decoded "
            "path; * stands for any characters and ? for one. The first lane that matches is used.",
            option="lane",
        ),
    ]
    loop: Annotated[
        Literal["auto", "asyncio", "uvloop"],
        Setting(
            "auto",
            choice("auto", "asyncio", "uvloop"),
            "The event loop: Python's asyncio, or uvloop, which must be installed; auto uses uvloop if it is "
            "installed. docs/performance.md compares them.",
        ),
    ]
    switch_interval: Annotated[
        float,
        Setting(
            0.005,
            seconds(),
            "How long a thread may run Python code while another waits for its turn (sys.setswitchinterval). Shorter "
            "values keep the loop responsive but slow CPU-bound code.",
        ),
    ]
    affinity: Annotated[
        Literal["auto", "none"],
        Setting(
            "auto",
            choice("auto", "none"),
            "Where threads run: auto keeps them on one processor as long as one is enough, which makes them faster; "
            "none leaves this to the kernel.",
        ),
    ]
    queue: Annotated[
        int,
        Setting(
            1000,
            number(0),
            "How many requests may wait for a thread of a lane. When the queue is full, the newest request of the "
            "client with the most waiting requests is answered 503.",
        ),
    ]
    queue_timeout: Annotated[
        float, Setting(30.0, seconds(), "How long a request may wait for a thread; then it is answered 503.")
    ]
    deadline: Annotated[
        float,
        Setting(
            180.0,
            seconds(),
            "How long a request may take until its response begins, waiting included; then it is answered 504.",
        ),
    ]
    statement_limit: Annotated[
        float | None,
        Setting(
            None,
            seconds(0),
            "How long a statement on one of the pool's connections may take. Then the database ends it, even if this "
            "process has been killed, and soon after the driver stops waiting, even if the network has failed. By "
            "default 30 s more than the longest deadline; 0 for no limit. The application's own timeouts take "
            "precedence.",
        ),
    ]
    rerun: Annotated[
        Literal["safe", "never"],
        Setting(
            "safe",
            choice("safe", "never"),
            "Which statements are run again, on a new connection of the pool, when their connection was lost: safe "
            "means plain queries that were the first since the request got the connection, or since a commit or "
            "rollback. No other statement is ever run again, whatever DBUtils would do.",
        ),
    ]
    reset_sessions: Annotated[
        bool,
        Setting(
            True,
            FLAG,
            "Close a connection of the pool after a request that may have changed its session (SET, CALL, temporary "
            "tables, locks, autocommit), so that the next request gets a clean one.",
        ),
    ]
    cancel: Annotated[
        Literal["safe", "all", "none"],
        Setting(
            "safe",
            choice("safe", "all", "none"),
            "Which requests are cancelled, and their queries stopped, when their client leaves or has been answered "
            "504: safe means GET, HEAD and OPTIONS. A request that still runs 10 s after its deadline is always "
            "cancelled, unless its response is being sent.",
        ),
    ]
    tag_queries: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Begin each statement with a comment, /* ID */, that names its request, so that the database's process "
            "list shows it.",
        ),
    ]
    client_key: Annotated[
        Callable[[HTTPHeaders, str], str] | None,
        Setting(
            None,
            FUNCTION,
            "A function that derives a client's name from its headers and address. Clients take turns by name, and "
            "each name has its own share of spool_size and idempotency_size. By default the name is the address.",
        ),
    ]
    address: Annotated[
        str,
        Setting("127.0.0.1", TEXT, "The address or host name to listen on; empty for all interfaces."),
    ]
    port: Annotated[int, Setting(8000, number(0, 65535), "The TCP port to listen on; 0 chooses a free one.")]
    unix_socket: Annotated[
        str | None, Setting(None, PATH, "Listen on a Unix socket at this path instead of an address and port.")
    ]
    unix_socket_mode: Annotated[
        int,
        Setting(0o600, OCTAL, "The permissions of the Unix socket, octal; users with write permission can connect."),
    ]
    reuse_port: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Share the port with other processes that also set this, so that a new one can start before the old one "
            "stops.",
        ),
    ]
    certfile: Annotated[
        str | None,
        Setting(None, PATH, "Serve HTTPS with the certificate and the intermediate certificates in this PEM file."),
    ]
    keyfile: Annotated[
        str | None, Setting(None, PATH, "The PEM file with the certificate's key, if certfile does not contain it.")
    ]
    grace: Annotated[
        float | None,
        Setting(
            None,
            seconds(0),
            "How long running and queued requests may take after SIGTERM; then they are cut. By default 10 s more than "
            "the longest deadline, so that no request is cut before its deadline.",
        ),
    ]
    xheaders: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Believe a proxy's headers about the client's address and scheme, and its X-Request-ID, if the proxy "
            "connects from loopback, through a Unix socket or from one of trusted_proxies.",
        ),
    ]
    client_address: Annotated[
        ClientHeaders,
        Setting(
            "auto",
            choice("auto", "x-real-ip", "x-forwarded-for", "forwarded"),
            "With xheaders: which headers the proxy sets: X-Real-IP and X-Scheme, X-Forwarded-For and "
            "X-Forwarded-Proto, or Forwarded (RFC 7239); the others are removed. auto accepts either of the first "
            "two; if both are present and contradict each other, neither counts.",
        ),
    ]
    trusted_proxies: Annotated[
        Sequence[str], Setting((), SEVERAL, "Addresses and networks (10.0.0.0/8) of further proxies to trust.")
    ]
    max_connections: Annotated[
        int | None,
        Setting(
            None,
            number(1),
            "Maximum client connections in each process. When one more comes, the longest idle one is closed. If none "
            "is idle, one whose request is still arriving is answered 503, of the client with the most connections, if "
            "that has more than the new client would have; otherwise the new connection is answered 503. Default: the "
            "process's limit of open files, less an eighth.",
        ),
    ]
    max_connections_per_client: Annotated[
        int | None,
        Setting(
            None,
            number(1),
            "Maximum connections for each address, or for each IPv6 /64 network. Default: a quarter of "
            "max_connections. Loopback, Unix sockets and trusted proxies are not limited.",
        ),
    ]
    max_header_size: Annotated[
        int, Setting(_LIMITS.max_header_size, size(), "Maximum size of a request's head; a larger one is answered 431.")
    ]
    max_body_size: Annotated[
        int, Setting(_LIMITS.max_body_size, size(), "Maximum size of a request's body; a larger one is answered 413.")
    ]
    spool_size: Annotated[
        int,
        Setting(
            SPOOL_SIZE,
            size(),
            "Maximum disk space for large request bodies and unread responses together; each client gets a quarter of "
            "it at most.",
        ),
    ]
    memory_size: Annotated[
        int,
        Setting(
            MEMORY_SIZE,
            size(),
            "Maximum memory for the heads and bodies of all requests together. Once half of it is used, bodies of 16 "
            "KiB or more go to the disk. Beyond it, the largest request that is still arriving is answered 503. Unread "
            "responses may take the same amount again; beyond it they go to the disk.",
        ),
    ]
    header_timeout: Annotated[
        float,
        Setting(
            _LIMITS.header_timeout, seconds(), "How long a request's head may take to arrive; then it is answered 408."
        ),
    ]
    idle_timeout: Annotated[
        float,
        Setting(
            _LIMITS.idle_timeout, seconds(), "How long a connection may wait for its next request; then it is closed."
        ),
    ]
    body_timeout: Annotated[
        float,
        Setting(
            _LIMITS.body_timeout,
            seconds(),
            "How long a request's body may pause while it arrives; then it is answered 408.",
        ),
    ]
    min_rate: Annotated[
        int,
        Setting(
            _LIMITS.min_rate,
            number(1),
            "Minimum average rate, in bytes a second, at which a request's body must arrive after the first "
            "body_timeout, and a response be read after the first send_timeout. A slower request is answered 408; a "
            "slower response is cut.",
        ),
    ]
    transfer_timeout: Annotated[
        float,
        Setting(
            _LIMITS.transfer_timeout,
            seconds(),
            "How long a client may take in total to send a request's body or to read a response, whatever its rate. "
            "The application's time does not count.",
        ),
    ]
    send_timeout: Annotated[
        float,
        Setting(
            _LIMITS.send_timeout,
            seconds(),
            "How long a client may pause while it reads a response; then the response is cut.",
        ),
    ]
    access_log: Annotated[
        bool,
        Setting(True, FLAG, "Write a line to the access log, at level info, when a request has ended."),
    ]
    slow_log: Annotated[
        float,
        Setting(
            1.0,
            seconds(0),
            "Log a request with its SQL statements if it took at least this long until its response began, waiting "
            "included, or in the database; 0 turns it off.",
        ),
    ]
    slow_log_parameters: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Show the strings and numbers in the text of statements in the slow log; otherwise each is replaced by a "
            "?. Values that the application passes to the driver separately from the text are never logged.",
        ),
    ]
    idempotent_paths: Annotated[
        Sequence[str],
        Setting(
            (),
            SEVERAL,
            "Paths on which a POST or PATCH that repeats an earlier Idempotency-Key is not run again, but gets the "
            "first one's answer, see operating.md; * and ? as in lanes. Needs idempotency_store.",
            option="idempotent_path",
        ),
    ]
    idempotency_store: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "The SQLite file, on a local disk, that stores these answers; all processes of this host that serve the "
            "application must use the same one. It is created if it is missing.",
        ),
    ]
    idempotency_age: Annotated[
        float, Setting(IDEMPOTENCY_AGE, seconds(), "How long an answer is kept; then its key counts as new.")
    ]
    idempotency_size: Annotated[
        int,
        Setting(
            IDEMPOTENCY_SIZE,
            size(64 * 1024),
            "Maximum size of all stored answers together; each takes 1k in addition to the answer itself. Beyond it, "
            "the oldest answers are dropped, but not their keys. A client may have as many keys as there is room left "
            "for, so a single one at most half of all; beyond that, its requests with a new key are answered 503.",
        ),
    ]
    admin_port: Annotated[
        int | None,
        Setting(
            None,
            number(0, 65535),
            "The TCP port for the operators' page, metrics and health checks; 0 chooses a free one. By default there "
            "is none.",
        ),
    ]
    admin_address: Annotated[
        str,
        Setting(
            "127.0.0.1",
            TEXT,
            "The address or host name on which admin_port listens; any but loopback needs admin_token_file.",
        ),
    ]
    admin_token_file: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "The file with the token, 16 characters or more, that clients must present at admin_port; other users must "
            "not be able to read it.",
        ),
    ]
    admin_peers: Annotated[
        Sequence[str],
        Setting(
            (),
            SEVERAL,
            "The operators' ports of other frontends, as HOST:PORT or URL; the operators' page shows these frontends "
            "too. If they have an admin_token_file, it must contain the same token.",
        ),
    ]
    admin_names: Annotated[
        Sequence[str],
        Setting(
            (),
            SEVERAL,
            "Host names under which a proxy offers the operators' port, such as ops.example.com. Requests with another "
            "Host header than these, the port's address or loopback are refused.",
        ),
    ]
    run_directory: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "A directory shared by the processes of this host; it is created if it is missing. For the operators' "
            "page, each process has a socket there, by which the others find it; by default only the processes of one "
            "supervisor find each other. For ending the queries of killed processes, each process keeps a list of its "
            "connections there; by default in /tmp/threadbridge-UID. Only the user of the process can open these "
            "files.",
        ),
    ]


class CommandLineSettings(Settings, total=False):
    """The settings that only the command line knows: `serve` leaves the logging to whoever calls it."""

    config: Annotated[
        str | None, Setting(None, PATH, "Read settings from this TOML file, such as port = 8000.", in_file=False)
    ]
    check: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Print the settings and their sources, look for problems, say what to do about them, and exit: with "
            "status 0 if all is well, 1 after warnings, 2 after errors.",
            in_file=False,
        ),
    ]
    json: Annotated[bool, Setting(False, FLAG, "With check: print JSON.", in_file=False)]
    frontends: Annotated[
        int,
        Setting(
            1, number(1), "With check: how many servers like this one, each with all its processes, use the database."
        ),
    ]
    nginx_config: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "With check: the nginx configuration file that passes requests to this server, or one that includes it.",
        ),
    ]
    logging: Annotated[
        str,
        Setting(
            "info",
            choice("debug", "info", "warning", "error", "none"),
            "Minimum level to log; none leaves logging to the application.",
        ),
    ]
    log_json: Annotated[bool, Setting(False, FLAG, "Log in JSON, one object a line.")]
    log_to_stderr: Annotated[
        bool | None, Setting(None, FLAG, "Log to standard error; by default only if there is no log file.")
    ]
    log_file_prefix: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "The log file, one for each process. SIGHUP reopens it; rotated files get suffixes. The access log goes "
            "to a file next to it: app.access.log for app.log.",
        ),
    ]
    log_file_max_size: Annotated[
        int,
        Setting(
            100 * 1000 * 1000,
            size(0),
            "With log_rotate_mode=size: the size at which the log file is rotated; 0 for never.",
        ),
    ]
    log_file_num_backups: Annotated[int, Setting(10, number(0), "How many rotated log files are kept.")]
    log_rotate_mode: Annotated[
        str, Setting("size", choice("size", "time"), "Whether the log file is rotated by size or by time.")
    ]
    log_rotate_when: Annotated[
        str,
        Setting(
            "midnight",
            choice("s", "m", "h", "d", "midnight", "w0", "w1", "w2", "w3", "w4", "w5", "w6"),
            "With log_rotate_mode=time: the unit: second, minute, hour, day, midnight or weekday (w0 is Monday).",
        ),
    ]
    log_rotate_interval: Annotated[
        int, Setting(1, number(1), "With log_rotate_mode=time: rotation interval, in units of log_rotate_when.")
    ]


def _table(declaration: type) -> dict[str, Setting]:
    hints = get_type_hints(declaration, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


SERVE = _table(Settings)
ALL = _table(CommandLineSettings)


def option_name(name: str) -> str:
    """A setting's name on the command line, without the dashes."""
    return ALL[name].option or name


def grace_period(settings: Settings) -> float:
    """How many seconds requests may take after the signal to stop."""
    grace = settings["grace"]
    if grace is None:
        # On the command line a lane has no deadline of its own, and before it is loaded it is a text.
        of_lanes = (lane.deadline or 0 for lane in settings["lanes"] if isinstance(lane, Lane))
        return max(settings["deadline"], *of_lanes, 0) + GRACE_MARGIN
    return grace


def from_keywords(keywords: Settings) -> Settings:
    """All settings of `serve`, from its keywords and the defaults. Raises `SettingError`, or ``TypeError``."""
    return cast(Settings, _with_keywords(SERVE, keywords))


def _with_keywords(table: Mapping[str, Setting], keywords: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = {name: setting.default for name, setting in table.items()}
    for name, value in keywords.items():
        if name not in table:
            raise TypeError(f"there is no setting {name!r}")
        values[name] = table[name].checked(value, f"{name}={value!r}")
    _check_combinations(values, dict.fromkeys(keywords, "keyword"))
    return values


@dataclass(frozen=True)
class Resolved:
    """All settings with their values, and for each where it comes from.

    That is ``default``, ``program``, ``environment``, ``command line``, or the path of the config file.
    """

    values: CommandLineSettings
    origins: Mapping[str, str]

    def label(self, name: str) -> str:
        """How an error names this setting: as the person who has set it wrote it."""
        return _label(self.origins[name], name, ALL[name].show(cast(dict[str, object], self.values)[name]))


def resolve(
    options: Mapping[str, Sequence[str]], environment: Mapping[str, str], defaults: CommandLineSettings
) -> Resolved:
    """Settle all settings: the command line over the environment over the config file over ``defaults`` over the table.

    :param options: the texts given for each option, in order, by the setting's name.

    Raises `SettingError` for a value that cannot be used and for a file that cannot be read.
    """
    values = _with_keywords(ALL, defaults)
    origins = {name: "program" if name in defaults else "default" for name in ALL}
    variables = _read_environment(environment)
    given = [("environment", variables), ("command line", options)]
    config = options.get("config") or variables.get("config")
    if config is not None:
        given.insert(0, (config[-1], dict(_read_file(config[-1]))))
    for origin, texts in given:
        for name, parts in texts.items():
            setting = ALL[name]
            # What may be given several times is one list; of all else the last one counts.
            text = ",".join(parts) if setting.kind.several else parts[-1]
            values[name] = setting.read(text, _label(origin, name, text))
            origins[name] = origin
    _check_combinations(values, origins)
    return Resolved(cast(CommandLineSettings, values), origins)


def _label(origin: str, name: str, text: str) -> str:
    if origin == "command line":
        return f"--{option_name(name)}={text}"
    if origin == "environment":
        return f"{ENVIRONMENT_PREFIX}{name.upper()}={text}"
    return f"{origin}: {name} = {text}"


def _read_environment(environment: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """The settings among the environment variables, each as texts."""
    found: dict[str, Sequence[str]] = {}
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in OTHER_VARIABLES:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name not in ALL:
                nearest = _nearest(name, ENVIRONMENT_PREFIX, str.upper)
                raise SettingError(f"{variable}: there is no setting of this name{nearest}")
            found[name] = [text]
    return found


def _nearest(name: str, prefix: str = "", spell: Callable[[str], str] = str) -> str:
    """A hint at the setting that was perhaps meant, to end a message; "" if there is none like it."""
    # Not above: few make such a mistake.
    from difflib import get_close_matches

    found = get_close_matches(name, ALL, 1)
    return f"; did you mean {prefix}{spell(found[0])}?" if found else ""


def _read_file(path: str) -> Iterator[tuple[str, Sequence[str]]]:
    """The settings of a config file, each as texts."""
    # Not above: few processes have such a file, and each would keep the parser.
    import tomllib

    try:
        with open(path, "rb") as file:
            entries = tomllib.load(file)
    except OSError as error:
        raise SettingError(f"cannot read the config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"the config file {path} is not TOML: {error}") from None
    for name, value in entries.items():
        setting = ALL.get(name)
        if setting is None:
            raise SettingError(f"{path}: {name}: there is no setting of this name{_nearest(name)}")
        if not setting.in_file:
            raise SettingError(f"{path}: {name}: this setting cannot be given in a config file")
        values = value if isinstance(value, list) and setting.kind.several else [value]
        if not all(type(one) in setting.kind.in_file for one in values):
            raise SettingError(f"{path}: {name} = {value!r}: expected {setting.kind.expected}")
        yield name, [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


def _check_combinations(values: Mapping[str, object], origins: Mapping[str, str]) -> None:
    if values["keyfile"] and not values["certfile"]:
        raise SettingError("keyfile without certfile: give the certificate too, or leave the key out")
    if bool(values["idempotent_paths"]) != bool(values["idempotency_store"]):
        raise SettingError("idempotent_paths and idempotency_store: give both, or neither")
    for name in ("address", "port", "reuse_port"):
        if values["unix_socket"] and origins.get(name, "default") == origins["unix_socket"] != "default":
            raise SettingError(f"unix_socket and {name}: give one of them, a Unix socket has no {name}")
