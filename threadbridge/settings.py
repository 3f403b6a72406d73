"""Every setting, once: command line, `serve`'s keywords, config file, environment and documentation come from here.

`Settings` and `CommandLineSettings` are the table: each entry has a type, a default, a kind of value and a meaning.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, cast, get_type_hints

from tornado.httputil import HTTPHeaders

from threadbridge.bridge import IDEMPOTENCY_AGE, IDEMPOTENCY_SIZE, SPOOL_SIZE
from threadbridge.forwarded import Source
from threadbridge.http1 import Limits
from threadbridge.lanes import Lane
from threadbridge.memory import MEMORY_SIZE
from threadbridge.values import (
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
# Seconds for what follows the beginning of the last response: sending it, and the application's `close()`.
GRACE_MARGIN = 10.0
_LIMITS = Limits()


class SettingError(ValueError):
    """A setting that cannot be used; the message names it and says what is expected."""


@dataclass(frozen=True)
class Setting:
    """What is to know of a setting beside its name and its type.

    :param default: its value when nobody gives one; None when there is none then.
    :param kind: what its value must look like.
    :param meaning: for the people who set it; the first line of the documentation and of ``--help``.
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
            "The DBUtils PooledDB from which the application takes its connections: as many requests run at once as it "
            "has connections.",
        ),
    ]
    threads: Annotated[
        int | None,
        Setting(
            None, number(1), "How many requests run at once, when there is no pool or the pool's size is not limited."
        ),
    ]
    processes: Annotated[
        int,
        Setting(
            1,
            number(1),
            "How many processes serve, each with threads, a pool and queues of its own. With more than one there is "
            "another that supervises them, see operating.md.",
        ),
    ]
    watchdog: Annotated[
        float,
        Setting(
            30.0,
            seconds(0),
            "How long a process's event loop may stand still. After half of that the log says what each thread is "
            "doing; after all of it, a process of several is killed and replaced. 0 for ever.",
        ),
    ]
    lanes: Annotated[
        Sequence[Lane],
        Setting(
            (),
            LANES,
            "Paths with threads of their own, each NAME:PATTERN:THREADS; in the pattern, * stands for any characters "
            "and ? for one; it is compared with the decoded path. The first lane that matches is taken.",
            option="lane",
        ),
    ]
    loop: Annotated[
        Literal["auto", "asyncio", "uvloop"],
        Setting(
            "auto",
            choice("auto", "asyncio", "uvloop"),
            "The event loop: Python's own, or uvloop, which must be installed; auto stands for uvloop where it is "
            "installed. docs/performance.md compares them.",
        ),
    ]
    switch_interval: Annotated[
        float,
        Setting(
            0.005,
            seconds(),
            "How long a thread may compute while another wants to (sys.setswitchinterval). Shorter, the loop answers "
            "sooner beside applications that compute much, and these take longer.",
        ),
    ]
    affinity: Annotated[
        Literal["auto", "none"],
        Setting(
            "auto",
            choice("auto", "none"),
            "Where threads run: auto keeps them on one processor while they do not use more than that, which makes "
            "them faster; none leaves them to the kernel.",
        ),
    ]
    queue: Annotated[
        int,
        Setting(
            1000,
            number(0),
            "How many requests may wait for a thread of a lane; when it is full, the newest request of the client that "
            "has the most waiting is answered 503.",
        ),
    ]
    queue_timeout: Annotated[
        float, Setting(30.0, seconds(), "How long a request may wait for a thread; after that it is answered 503.")
    ]
    deadline: Annotated[
        float,
        Setting(
            180.0,
            seconds(),
            "How long a request may take until its response begins, waiting included; after that it is answered 504.",
        ),
    ]
    statement_limit: Annotated[
        float | None,
        Setting(
            None,
            seconds(0),
            "How long a statement on one of the pool's connections may take: the database ends it then, and the driver "
            "stops waiting soon after, even if this process is killed or the network fails. By default 30 s more than "
            "the longest deadline; 0 for no limit. Timeouts that the application sets itself take precedence.",
        ),
    ]
    rerun: Annotated[
        Literal["safe", "never"],
        Setting(
            "safe",
            choice("safe", "never"),
            "Which statements are run again, on a new connection of the pool, when theirs was lost: safe stands for "
            "plain queries that were the first since the request got the connection, or since a commit or rollback. "
            "Nothing else ever is, whatever DBUtils would do.",
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
            "Which requests are cancelled, and their queries stopped, when nobody waits for them any more: safe stands "
            "for GET, HEAD and OPTIONS. What still runs 10 s after its deadline is cancelled in any case, unless its "
            "response is being sent.",
        ),
    ]
    tag_queries: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Have the statements of a request begin with a comment, /* ID */, that names it, so that the database's "
            "list of processes does too.",
        ),
    ]
    client_key: Annotated[
        Callable[[HTTPHeaders, str], str] | None,
        Setting(
            None,
            FUNCTION,
            "The function that makes, of a request's headers and its client's address, the name of the client: clients "
            "take turns. Without it the address is the name.",
        ),
    ]
    address: Annotated[
        str,
        Setting("127.0.0.1", TEXT, "The address or host name to listen on; an empty one stands for all interfaces."),
    ]
    port: Annotated[int, Setting(8000, number(0, 65535), "The TCP port to listen on; 0 chooses a free one.")]
    unix_socket: Annotated[
        str | None, Setting(None, PATH, "Listen on a Unix socket at this path, instead of on an address and port.")
    ]
    unix_socket_mode: Annotated[
        int, Setting(0o600, OCTAL, "The permissions of the Unix socket, octal; whoever may write to it may connect.")
    ]
    reuse_port: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Share the port with other processes that set this too: a new one can start before the old one stops.",
        ),
    ]
    certfile: Annotated[
        str | None,
        Setting(None, PATH, "Serve HTTPS with the certificate, and those between it and the root, of this PEM file."),
    ]
    keyfile: Annotated[
        str | None, Setting(None, PATH, "The PEM file with the certificate's key, when certfile does not have it.")
    ]
    grace: Annotated[
        float | None,
        Setting(
            None,
            seconds(0),
            "How long running and queued requests may take after SIGTERM until they are cut; by default 10 s more than "
            "the longest deadline, so that none is cut which still had time.",
        ),
    ]
    xheaders: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Believe what a proxy says of the client's address and scheme, and its X-Request-ID, when it comes from "
            "loopback, from a Unix socket or from a trusted proxy.",
        ),
    ]
    client_address: Annotated[
        Source,
        Setting(
            "auto",
            choice("auto", "x-real-ip", "x-forwarded-for", "forwarded"),
            "With xheaders: the headers that the proxy sets: X-Real-IP and X-Scheme, X-Forwarded-For and "
            "X-Forwarded-Proto, or Forwarded (RFC 7239); the others are removed. auto stands for either of the first "
            "two; where both are there and contradict each other, neither counts.",
        ),
    ]
    trusted_proxies: Annotated[
        Sequence[str], Setting((), SEVERAL, "Addresses and networks (10.0.0.0/8) of proxies to be believed too.")
    ]
    max_connections: Annotated[
        int | None,
        Setting(
            None,
            number(1),
            "How many connections of clients may be open in each process. For one more, the one that has been idle the "
            "longest is closed. If none is idle, one whose request is still arriving is answered 503, of the client "
            "with the most, if that has more than the new one would have; otherwise the new one is. By default as many "
            "as the process may open files, less an eighth.",
        ),
    ]
    max_connections_per_client: Annotated[
        int | None,
        Setting(
            None,
            number(1),
            "How many of these one address, or one IPv6 network of 64 bits, may have; by default a quarter. Loopback, "
            "Unix sockets and trusted proxies may have all of them.",
        ),
    ]
    max_header_size: Annotated[
        int, Setting(_LIMITS.max_header_size, size(), "The largest head of a request; a larger one is answered 431.")
    ]
    max_body_size: Annotated[
        int, Setting(_LIMITS.max_body_size, size(), "The largest body of a request; a larger one is answered 413.")
    ]
    spool_size: Annotated[
        int,
        Setting(
            SPOOL_SIZE,
            size(),
            "How much of the disk large bodies of requests, and responses that are not read, may take together; one "
            "client gets a quarter at most.",
        ),
    ]
    memory_size: Annotated[
        int,
        Setting(
            MEMORY_SIZE,
            size(),
            "How much memory heads and bodies of requests may take together. Once half of it is taken, bodies of 16 "
            "KiB or more go to the disk. Beyond it, the request that holds the most, of those that are still arriving, "
            "is answered 503. Responses that are not read may take as much again; beyond it they go to the disk.",
        ),
    ]
    header_timeout: Annotated[
        float, Setting(_LIMITS.header_timeout, seconds(), "How long the head of a request may take to arrive.")
    ]
    idle_timeout: Annotated[
        float, Setting(_LIMITS.idle_timeout, seconds(), "How long a connection may wait for its next request.")
    ]
    body_timeout: Annotated[
        float, Setting(_LIMITS.body_timeout, seconds(), "How long a request's body may pause while it arrives.")
    ]
    min_rate: Annotated[
        int,
        Setting(
            _LIMITS.min_rate,
            number(1),
            "How many bytes a second of a request's body must arrive on average after the first body_timeout, or of a "
            "response be read after the first send_timeout; a slower request is answered 408, a slower response cut.",
        ),
    ]
    transfer_timeout: Annotated[
        float,
        Setting(
            _LIMITS.transfer_timeout,
            seconds(),
            "How long a client may take in all to send a request's body or to read a response, whatever its rate. What "
            "the application takes does not count.",
        ),
    ]
    send_timeout: Annotated[
        float,
        Setting(
            _LIMITS.send_timeout, seconds(), "How long a client may pause while it reads a response; then it is cut."
        ),
    ]
    access_log: Annotated[
        bool,
        Setting(True, FLAG, "Log each request when it has ended, at the level info."),
    ]
    slow_log: Annotated[
        float,
        Setting(
            1.0,
            seconds(0),
            "How long a request must take until its response begins, waiting included, or in the database, to be "
            "logged with its SQL statements; 0 for never.",
        ),
    ]
    slow_log_parameters: Annotated[
        bool,
        Setting(
            False,
            FLAG,
            "Show in the slow log the strings and numbers that stand in the text of statements; otherwise there is a ? "
            "in place of each. Values that the application gives to the driver apart from the text are in no log.",
        ),
    ]
    idempotent_paths: Annotated[
        Sequence[str],
        Setting(
            (),
            SEVERAL,
            "Paths on which a POST or PATCH that repeats the Idempotency-Key of an earlier one is not run again, but "
            "answered with the outcome of the first, see operating.md; * and ? as in lanes. Needs idempotency_store.",
            option="idempotent_path",
        ),
    ]
    idempotency_store: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "The SQLite file, on a local disk, that keeps these outcomes; all processes of this host that serve the "
            "application must have the same. It is made when it is missing.",
        ),
    ]
    idempotency_age: Annotated[
        float, Setting(IDEMPOTENCY_AGE, seconds(), "How long an outcome is kept, after which its key is a new one.")
    ]
    idempotency_size: Annotated[
        int,
        Setting(
            IDEMPOTENCY_SIZE,
            size(64 * 1024),
            "How many bytes all outcomes may take; each takes 1k besides its answer. Beyond that the oldest answers "
            "go; when there is no room for another key, requests that bring one are answered 503.",
        ),
    ]
    admin_port: Annotated[
        int | None,
        Setting(
            None,
            number(0, 65535),
            "The TCP port of the operators' page, metrics and health; 0 chooses a free one. Without it there is no "
            "such port.",
        ),
    ]
    admin_address: Annotated[
        str,
        Setting(
            "127.0.0.1",
            TEXT,
            "The address or host name for admin_port; one that is not loopback needs admin_token_file.",
        ),
    ]
    admin_token_file: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "The file with the token, 16 characters or more, that operators must give at admin_port; other users "
            "must not be able to read it.",
        ),
    ]
    admin_peers: Annotated[
        Sequence[str],
        Setting(
            (),
            SEVERAL,
            "The operators' ports of other frontends, as HOST:PORT or URL, which the operators' page shows too; those "
            "with an admin_token_file need the same token.",
        ),
    ]
    admin_names: Annotated[
        Sequence[str],
        Setting(
            (),
            SEVERAL,
            "Host names by which a proxy leads to the operators' port, such as ops.example.com; requests under other "
            "names than these, the port's address and loopback's are refused.",
        ),
    ]
    run_directory: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "A directory in which the processes of this host find each other, for the operators' page, and the lists "
            "of connections that killed ones have left: each makes a socket and a file there that only its user can "
            "open. It is made when it is missing. Default: none for the page, /tmp/threadbridge-UID for the lists.",
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
            "Print the settings and where they come from, look for what will not work well, say what to do, end: with "
            "status 0 when all is well, 1 after warnings, 2 after errors.",
            in_file=False,
        ),
    ]
    json: Annotated[bool, Setting(False, FLAG, "With check: print JSON.", in_file=False)]
    frontends: Annotated[
        int,
        Setting(1, number(1), "With check: how many servers like this one, each with its processes, use the database."),
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
            "What is logged at least; none leaves the logging to the application.",
        ),
    ]
    log_json: Annotated[bool, Setting(False, FLAG, "Log objects in JSON, one a line.")]
    log_to_stderr: Annotated[
        bool | None, Setting(None, FLAG, "Log to standard error; the default is to do so unless there is a log file.")
    ]
    log_file_prefix: Annotated[
        str | None,
        Setting(
            None,
            PATH,
            "The log file, one for each process. SIGHUP opens it anew; rotated files get suffixes. Lines of the access "
            "log go to a file beside it: app.access.log for app.log.",
        ),
    ]
    log_file_max_size: Annotated[
        int,
        Setting(
            100 * 1000 * 1000,
            size(0),
            "The size at which the log file is rotated, with log_rotate_mode=size; 0 for never.",
        ),
    ]
    log_file_num_backups: Annotated[int, Setting(10, number(0), "How many rotated log files are kept.")]
    log_rotate_mode: Annotated[
        str, Setting("size", choice("size", "time"), "Whether the log file is rotated by its size or by time.")
    ]
    log_rotate_when: Annotated[
        str,
        Setting(
            "midnight",
            choice("s", "m", "h", "d", "midnight", "w0", "w1", "w2", "w3", "w4", "w5", "w6"),
            "With log_rotate_mode=time: second, minute, hour, day, midnight or weekday (w0 is Monday).",
        ),
    ]
    log_rotate_interval: Annotated[
        int, Setting(1, number(1), "With log_rotate_mode=time: every how many of log_rotate_when.")
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
    """All settings with their values, and for each where it comes from: ``default``, ``command line``, …"""

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
    origins = dict.fromkeys(ALL, "default")
    variables = {
        name: [environment[ENVIRONMENT_PREFIX + name.upper()]]
        for name in ALL
        if ENVIRONMENT_PREFIX + name.upper() in environment
    }
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
        if setting is None or not setting.in_file:
            raise SettingError(f"{path}: {name}: there is no such setting in a config file")
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
