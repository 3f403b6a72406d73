"""Every setting, once: command line, keywords, config file, environment and documentation come from here.

Each is ``Annotated[type, kind, default, meaning]``; the kind of value is left out where the type implies it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, cast, get_args, get_origin, get_type_hints
from wsgiref.types import WSGIEnvironment

from tornado.httputil import HTTPHeaders

from threadbridge.crossing.lanes import Lane
from threadbridge.http.forwarded import ClientHeaders
from threadbridge.http.limits import MEMORY_SIZE, Limits
from threadbridge.http.url_prefix import PrefixHeader
from threadbridge.settings.values import (
    ADDRESSES,
    DIRECTORIES,
    FLAG,
    FUNCTION,
    LANES,
    MOUNTS,
    PERMISSIONS,
    POOL,
    TEXT,
    TEXTS,
    URL_PREFIX,
    Bytes,
    Kind,
    OptionalPath,
    Seconds,
    SettingError,
    choice,
    number,
    seconds,
    size,
)

ENVIRONMENT_PREFIX = "THREADBRIDGE_"
# For building, for running the sources instead of the compiled modules, from a supervisor to its processes, and from a
# process to itself.
OTHER_VARIABLES = frozenset(
    {"THREADBRIDGE_COMPILE", "THREADBRIDGE_COMPILED", "THREADBRIDGE_INHERITANCE", "THREADBRIDGE_RELOAD"}
)
# Seconds to send the last response and to call `close()` of the application's result.
GRACE_MARGIN = 10.0


class BridgeSettings(TypedDict, total=False):
    """The keywords of `Bridge`; each has a default."""

    pool: Annotated[
        object,
        POOL,
        None,
        "The application's connection pools, see pools.md: objects, or functions that return one; django for the "
        "databases of Django's settings, django:ALIAS for one of them; MySQLdb or pymysql for that driver's "
        "connections in no pool; none for no pool. By default, the command line and serve find the pools that the "
        "application has made, and Bridge has none. A pool's size sets how many requests run at once.",
    ]
    threads: Annotated[
        int | None,
        number(1),
        None,
        "How many requests run at once, for each pool if there are several. Default: as many as the pool has "
        "connections; on the command line and for serve, 10 if there is no pool or its size is not limited. More than "
        "that serve more requests if these hold a connection for a part of their time only, see operating.md; fewer "
        "leave connections to other threads of the application. With 1, no pools are looked for, and requests run one "
        "after the other.",
    ]
    lanes: Annotated[
        Sequence[Lane],
        LANES,
        (),
        "Paths with their own threads, each NAME:PATTERN:THREADS; or that also read from a replica of the database, "
        "each NAME:PATTERN:THREADS:MODULE:ATTRIBUTE with its pool, such as reports:/reports/*:4:shop:replica, see "
        "replicas.md; or whose requests other hosts run, each NAME:PATTERN:URL,URL, such as "
        "reports:/reports/*:http://r1:8000,http://r2:8000, see fleet.md. The pattern is matched against the decoded "
        "path; * stands for any characters and ? for one. The first lane that matches is used.",
    ]
    websockets: Annotated[
        int | None,
        number(0),
        None,
        "How many WebSockets the application may speak itself at once, with Flask-Sock, Flask-SocketIO or "
        "simple-websocket; each holds a thread as long as it is open, and one more is answered 503. With 0, the "
        "application is not offered the connection. Default: 100 if the application has imported simple-websocket, "
        "otherwise 0. See websockets.md.",
    ]
    queue: Annotated[
        int,
        number(0),
        1000,
        "How many short requests may wait for a thread of a lane, and how many others. Beyond that, the newest "
        "request of the client with the most waiting requests is answered 503.",
    ]
    queue_timeout: Annotated[
        Seconds,
        30.0,
        "How long a request may wait for a thread; then it is answered 503. One that is expected to wait for longer is "
        "answered at once.",
    ]
    schedule: Annotated[
        Literal["cost", "fair"],
        "cost",
        "The order in which waiting requests run: cost learns what requests cost, by route and parameters, and keeps "
        "short ones from waiting for long ones; fair lets clients take turns, whatever their requests cost. See "
        "operating.md.",
    ]
    short_paths: Annotated[
        Sequence[str],
        (),
        "Paths whose requests count as short, whatever they have cost. One that runs for more than 0.2 s counts as "
        "long while it runs. * and ? as in lanes.",
    ]
    long_paths: Annotated[
        Sequence[str], (), "Paths whose requests count as long, whatever they have cost; * and ? as in lanes."
    ]
    long_upstream: Annotated[
        Sequence[str],
        (),
        "The URLs of other hosts that run the requests that are expected to be long, such as http://r1:8000; see "
        "fleet.md. While none of these hosts can be reached, the requests run here. Needs schedule=cost.",
    ]
    replica_lag: Annotated[
        Seconds,
        10.0,
        "How far a replica may be behind the primary; while it is further, the requests of its lane read from the "
        "primary. See replicas.md.",
    ]
    replica_for: Annotated[
        Callable[[WSGIEnvironment], object] | None,
        FUNCTION,
        None,
        "A function that says, by its environ, whether a GET or HEAD request that is expected to be long may read from "
        "the replica of the first lane that has one. By default, only requests for the paths of such lanes do. Needs "
        "schedule=cost.",
    ]
    deadline: Annotated[
        Seconds, 180.0, "How long a request may wait and run until its response begins; then it is answered 504."
    ]
    statement_limit: Annotated[
        float | None,
        seconds(0),
        None,
        "How long a statement on one of the pool's connections may take. Then the database ends it, even if this "
        "process has been killed, and soon after the driver stops waiting, even if the network has failed. Default: "
        "30 s more than the longest deadline; 0 for no limit. The application's own timeouts take precedence.",
    ]
    rerun: Annotated[
        Literal["safe", "never"],
        "safe",
        "Which statements are run again, on a new connection of the pool, when their connection was lost: safe "
        "means plain queries that were the first since the request got the connection, or since a commit or "
        "rollback. No other statement is ever run again, whatever DBUtils would do.",
    ]
    reset_sessions: Annotated[
        bool,
        True,
        "Close a connection of a DBUtils pool after a request that may have changed its session (SET, CALL, temporary "
        "tables, locks, autocommit), so that the next request gets a clean one.",
    ]
    cancel: Annotated[
        Literal["safe", "all", "none"],
        "safe",
        "Which requests are cancelled, and their queries stopped, when their client leaves or has been answered "
        "504: safe means GET, HEAD and OPTIONS. A request that still runs 10 s after its deadline is always "
        "cancelled, unless its response is being sent.",
    ]
    tag_queries: Annotated[
        bool,
        False,
        "Begin statements with a comment naming their request, /* ID */, for the database's process list; with otel, "
        "one at the end names the trace, /*traceparent='...'*/.",
    ]
    client_key: Annotated[
        Callable[[HTTPHeaders, str], str] | None,
        FUNCTION,
        None,
        "A function that derives a client's name from its headers and address. Clients take turns by name, and each "
        "name has its own share of spool_size and idempotency_size. "
        "By default, the name is the address, or the /64 network of an IPv6 address.",
    ]
    xheaders: Annotated[
        bool,
        False,
        "Believe a proxy's headers about the client's address and scheme, its X-Request-ID, its X-Request-Start (see "
        "tracing.md), and the time that is left (see fleet.md), if the proxy connects from loopback, through a Unix "
        "socket or from one of trusted_proxies.",
    ]
    client_address: Annotated[
        ClientHeaders,
        "auto",
        "With xheaders: which headers the proxy sets: X-Real-IP and X-Scheme, X-Forwarded-For and "
        "X-Forwarded-Proto, or Forwarded (RFC 7239); the others are removed. auto accepts either of the first "
        "two; if both are present and contradict each other, neither counts.",
    ]
    trusted_proxies: Annotated[Sequence[str], (), "Addresses and networks (10.0.0.0/8) of further proxies to trust."]
    root_path: Annotated[
        str,
        URL_PREFIX,
        "",
        "The URL prefix below which clients reach the application, such as /shop: it becomes SCRIPT_NAME, and is "
        "removed from the path if the proxy has not done so. Patterns such as those of lanes are matched without it.",
    ]
    prefix_header: Annotated[
        PrefixHeader,
        "none",
        "With xheaders: the header in which the proxy names the prefix, in place of root_path. The proxy must set or "
        "remove it in all requests, as otherwise clients can. x-forwarded-prefix is for proxies that have removed the "
        "prefix from the path; with x-script-name it may still be there.",
    ]
    static: Annotated[
        Sequence[str],
        MOUNTS,
        (),
        "Serve the files below a directory to requests for paths with this prefix, without the application, such as "
        "/static/:shop/static: see files.md.",
    ]
    x_sendfile: Annotated[
        Sequence[str],
        DIRECTORIES,
        (),
        "Directories below which the application may name a file in the header X-Sendfile, which is sent in place of "
        "its response's body: see files.md. Without any, the header is passed on to the proxy.",
    ]
    x_accel_redirect: Annotated[
        Sequence[str],
        MOUNTS,
        (),
        "The same for the header X-Accel-Redirect: paths with this prefix stand for the files below the directory.",
    ]
    spool_size: Annotated[
        int,
        size(0),
        8 * 1024**3,
        "Maximum disk space for large bodies and unread responses; a client gets at most a quarter.",
    ]
    memory_size: Annotated[
        Bytes,
        MEMORY_SIZE,
        "Maximum memory for the heads and bodies of all requests together. Once half of it is used, bodies of 16 "
        "KiB or more go to the disk. Beyond it, the largest request that is still arriving is answered 503. Unread "
        "responses may take the same amount again; beyond it they go to the disk.",
    ]
    load_report: Annotated[
        bool,
        False,
        "Add the header endpoint-load-metrics (ORCA) to responses, by which Envoy can balance the load: see "
        "balancers.md. Only loopback, Unix sockets and trusted_proxies get it.",
    ]
    access_log: Annotated[bool, True, "Write a line to the access log, at level info, when a request has ended."]
    access_log_format: Annotated[
        str,
        "",
        "Write the lines of the access log in this format, with gunicorn's atoms, such as '%(h)s \"%(r)s\" %(s)s "
        "%({x-request-id}i)s'; see tracing.md. By default, they are in the combined format with more fields.",
    ]
    slow_log: Annotated[
        float,
        seconds(0),
        1.0,
        "Log a request with its SQL statements if it took at least this long until its response began, waiting "
        "included, or in the database; 0 turns it off.",
    ]
    slow_log_parameters: Annotated[
        bool,
        False,
        "Show the strings and numbers in the text of statements in the slow log; otherwise each is replaced by a "
        "?. Values that the application passes to the driver separately from the text are never logged.",
    ]
    otel: Annotated[
        bool,
        False,
        "Trace requests and their SQL, and export metrics, with OpenTelemetry, which its own environment variables, "
        "OTEL_..., configure; see tracing.md.",
    ]
    statsd: Annotated[
        str,
        "",
        "Send the number of requests, their statuses and durations to the statsd server at this HOST:PORT, over UDP, "
        "under gunicorn's names; see tracing.md.",
    ]
    statsd_prefix: Annotated[str, "", "Put this and a dot before the names for statsd."]
    dogstatsd_tags: Annotated[
        str, "", "Add these tags to all that is sent to statsd, as DogStatsD wants them: env:prod,team:shop."
    ]
    server_timing: Annotated[
        bool,
        False,
        "Tell clients in the header Server-Timing how many milliseconds a request has waited and run, and spent in the "
        "database; browsers' developer tools show them.",
    ]
    idempotent_paths: Annotated[
        Sequence[str],
        (),
        "Paths on which a POST or PATCH that repeats an earlier Idempotency-Key is not run again, but gets the "
        "first one's answer, see operating.md; * and ? as in lanes. Needs idempotency_store.",
    ]
    idempotency_store: Annotated[
        OptionalPath,
        None,
        "The SQLite file, on a local disk, that stores these answers; all processes of this host that serve the "
        "application must use the same one. It is created if it is missing.",
    ]
    idempotency_age: Annotated[Seconds, 86400.0, "How long an answer is kept; then its key counts as new."]
    idempotency_size: Annotated[
        int,
        size(64 * 1024),
        256 * 1024**2,
        "Maximum size of all stored answers together; each takes 1k in addition to the answer itself. Beyond it, "
        "the oldest answers are dropped, but not their keys. A client may have as many keys as there is room left "
        "for, so a single one at most half of all; beyond that, its requests with a new key are answered 503.",
    ]


class Settings(BridgeSettings, total=False):
    """The keywords of `serve`; each has a default."""

    processes: Annotated[
        int,
        number(1),
        1,
        "How many processes serve, each with its own threads, pool and queues. If more than one, another process "
        "supervises them, see operating.md.",
    ]
    supervised: Annotated[
        bool,
        False,
        "Let a supervisor start the process that serves, even if it is only one, and replace it when it dies or hangs; "
        "SIGUSR2 then reloads. Several processes always have a supervisor, and so do those that the following settings "
        "renew.",
    ]
    max_requests: Annotated[
        int,
        number(0),
        0,
        "Replace a process after about this many requests; 0 for never. Like the next three, it loses no request, and "
        "only one process is replaced at a time: see renewing.md.",
    ]
    max_requests_jitter: Annotated[
        int,
        number(0),
        0,
        "Add a random number of requests, up to this, to max_requests, a different one for each process.",
    ]
    max_age: Annotated[float, seconds(0), 0.0, "Replace a process this long after its start; 0 for never."]
    max_memory: Annotated[
        int,
        size(0),
        0,
        "Replace a process that has more memory than this; 0 for never. Memory that processes share counts in equal "
        "parts (PSS).",
    ]
    preload: Annotated[
        bool,
        False,
        "Import the application once, in a process of its own, and fork the processes that serve from that one, which "
        "saves memory and makes their start fast. The application must not start threads when it is imported; see "
        "renewing.md.",
    ]
    user: Annotated[
        str,
        TEXT,
        "",
        "Started as root: run as this user, by name or number, as soon as the addresses are bound, before the "
        "application is imported. See renewing.md.",
    ]
    group: Annotated[str, TEXT, "", "Started as root: run as this group. Default: the groups of user."]
    pid_file: Annotated[
        OptionalPath,
        None,
        "Write the number of the process to which you send signals to this file, and remove the file at the end.",
    ]
    on_starting: Annotated[
        Callable[[], object] | None,
        FUNCTION,
        None,
        "A function that is called once, in the process that you start, before any process serves.",
    ]
    on_worker_start: Annotated[
        Callable[[], object] | None,
        FUNCTION,
        None,
        "A function that is called in each process that serves, in its main thread, before it accepts connections.",
    ]
    on_start: Annotated[
        Callable[[], object] | None,
        FUNCTION,
        None,
        "A function that is called on the loop in each process that serves, once it accepts connections. It must not "
        "block.",
    ]
    on_worker_exit: Annotated[
        Callable[[], object] | None,
        FUNCTION,
        None,
        "A function that is called in each process that has served, in its main thread, after its last request.",
    ]
    watchdog: Annotated[
        float,
        seconds(0),
        30.0,
        "How long a process's event loop may stand still. After half of this time the log says what each thread is "
        "doing; after all of it, the process is killed and replaced if it has a supervisor. 0 turns it off.",
    ]
    loop: Annotated[
        Literal["auto", "asyncio", "uvloop"],
        "auto",
        "The event loop: Python's asyncio, or uvloop; auto uses uvloop if it is installed. See docs/performance.md.",
    ]
    switch_interval: Annotated[
        Seconds,
        0.005,
        "How long a thread may run Python code while another waits for its turn (sys.setswitchinterval). Shorter "
        "values keep the loop responsive but slow CPU-bound code. No effect in free-threaded Python.",
    ]
    affinity: Annotated[
        Literal["auto", "none"],
        "auto",
        "Where threads run: auto keeps them on one processor as long as one is enough, which makes them faster; "
        "none, and free-threaded Python, leave this to the kernel.",
    ]
    address: Annotated[str, "127.0.0.1", "The address or host name to listen on; empty for all interfaces."]
    port: Annotated[int, number(0, 65535), 8000, "The TCP port to listen on; 0 chooses a free one."]
    unix_socket: Annotated[OptionalPath, None, "Listen on a Unix socket at this path instead of an address and port."]
    unix_socket_mode: Annotated[
        int, PERMISSIONS, 0o600, "The permissions of the Unix socket, octal; users with write permission can connect."
    ]
    bind: Annotated[
        Sequence[str],
        ADDRESSES,
        (),
        "Listen on these addresses instead: HOST:PORT, [IPV6]:PORT, :PORT for all interfaces, unix:PATH, or fd:N for a "
        "listening socket that the process has inherited. Sockets that systemd passes (LISTEN_FDS) take the place of "
        "address, port and unix_socket; see operating.md.",
    ]
    reuse_port: Annotated[
        bool, False, "Share the port with processes that set this; a new one can start before the old one stops."
    ]
    proxy_protocol: Annotated[
        bool,
        False,
        "Connections from loopback, a Unix socket or trusted_proxies begin with a header of the PROXY protocol, "
        "version 1 or 2, which names the client; one without it is refused. Other connections have none.",
    ]
    certfile: Annotated[OptionalPath, None, "Serve HTTPS with the certificate chain in this PEM file."]
    keyfile: Annotated[OptionalPath, None, "The PEM file with the certificate's key, if certfile does not contain it."]
    keyfile_password_file: Annotated[
        OptionalPath,
        None,
        "The file, readable by its user alone, with the password of the keys, if they are encrypted.",
    ]
    sni_certificates: Annotated[
        Sequence[str],
        (),
        "Certificates for clients that ask for a certain host name (SNI), each NAME:CERTFILE or NAME:CERTFILE:KEYFILE, "
        "such as *.example.com:/etc/tls/example.pem. Others get certfile.",
    ]
    tls_minimum: Annotated[Literal["1.2", "1.3"], "1.2", "The lowest version of TLS."]
    tls_ciphers: Annotated[
        str, "", "The cipher suites of TLS 1.2, as `openssl ciphers` expects them; by default those of Python."
    ]
    client_certificates: Annotated[
        Literal["none", "optional", "required"],
        "none",
        "Whether clients are asked for a certificate that an authority of client_ca_file has signed. With optional, "
        "those without one are served, too. The application finds it in the environ, see operating.md.",
    ]
    client_ca_file: Annotated[
        OptionalPath, None, "The PEM file with the certificates of the authorities for client_certificates."
    ]
    grace: Annotated[
        float | None,
        seconds(0),
        None,
        "How long running and queued requests may take after SIGTERM; then they are cut. Default: 10 s more than the "
        "longest deadline, so that no request is cut before its deadline.",
    ]
    drain_delay: Annotated[
        float,
        seconds(0),
        0.0,
        "How long new requests are still accepted after SIGTERM, while /readyz of admin_port already answers 503: the "
        "time that load balancers need to send them elsewhere. grace begins afterwards.",
    ]
    max_connections: Annotated[
        int | None,
        number(1),
        None,
        "Maximum client connections in each process. When one more comes, the longest idle one is closed. If none "
        "is idle, one whose request is still arriving is answered 503, of the client with the most connections, if "
        "that has more than the new client would have; otherwise the new connection is answered 503. Default: the "
        "process's limit of open files, less an eighth.",
    ]
    max_connections_per_client: Annotated[
        int | None,
        number(1),
        None,
        "Maximum connections for each address, or for each IPv6 /64 network. Default: a quarter of "
        "max_connections. Loopback, Unix sockets and trusted proxies are not limited.",
    ]
    max_header_size: Annotated[
        Bytes, Limits.max_header_size, "Maximum size of a request's head; a larger one is answered 431."
    ]
    max_body_size: Annotated[
        Bytes, Limits.max_body_size, "Maximum size of a request's body; a larger one is answered 413."
    ]
    header_timeout: Annotated[
        Seconds, Limits.header_timeout, "How long a request's head may take to arrive; then it is answered 408."
    ]
    idle_timeout: Annotated[
        Seconds, Limits.idle_timeout, "How long a connection may wait for its next request; then it is closed."
    ]
    body_timeout: Annotated[
        Seconds, Limits.body_timeout, "How long a request's body may pause while it arrives; then it is answered 408."
    ]
    min_rate: Annotated[
        int,
        number(1),
        Limits.min_rate,
        "Minimum average rate, in bytes a second, of a request's body after the first body_timeout, and of reading a "
        "response after the first send_timeout. A slower request is answered 408; a slower response is cut.",
    ]
    transfer_timeout: Annotated[
        Seconds,
        Limits.transfer_timeout,
        "How long a client may take in total to send a request's body or to read a response, whatever its rate. "
        "The application's time does not count.",
    ]
    send_timeout: Annotated[
        Seconds, Limits.send_timeout, "How long a client may pause while reading a response; then it is cut."
    ]
    admin_port: Annotated[
        int | None, number(0, 65535), None, "The operators' port: page, metrics, health checks; 0 chooses a free one."
    ]
    admin_address: Annotated[
        str, "127.0.0.1", "The address that admin_port listens on; any but loopback needs admin_token_file."
    ]
    admin_token_file: Annotated[
        OptionalPath, None, "The file, readable by its user alone, with admin_port's token of 16 characters or more."
    ]
    admin_certfile: Annotated[
        OptionalPath,
        None,
        "Serve the operators' port with TLS, with the certificate chain in this PEM file; it is read again when it "
        "changes.",
    ]
    admin_keyfile: Annotated[
        OptionalPath, None, "The PEM file with the key of admin_certfile, if that does not contain it."
    ]
    admin_cafile: Annotated[
        OptionalPath,
        None,
        "The PEM file with the authorities that must have signed the certificates of https:// hosts in admin_peers. "
        "Default: the system's.",
    ]
    admin_peers: Annotated[
        Sequence[str],
        (),
        "The operators' ports of other frontends, which the operators' page shows too: HOST:PORT or URL; dns+ and one "
        "of these, for all addresses of a name; or a file in the format of Prometheus' file_sd, .json, .yml or .yaml, "
        "which is read again when it changes. Other machines need admin_token_file with the same token; see fleet.md.",
    ]
    admin_names: Annotated[
        Sequence[str],
        (),
        "Host names of the operators' port, such as a proxy's, ops.example.com, or a Kubernetes Service's, "
        "shop.default.svc. Requests with another Host header than these, the port's address or loopback are refused.",
    ]
    agent_port: Annotated[
        int | None,
        number(1, 65535),
        None,
        "The port on which HAProxy's agent-check reads how much more this server can take, such as up 37%: see "
        "balancers.md.",
    ]
    agent_address: Annotated[str, "127.0.0.1", "The address that agent_port listens on; empty for all interfaces."]
    run_directory: Annotated[
        OptionalPath,
        None,
        "A directory shared by the processes of this host; it is created if it is missing. Each process has a socket "
        "there, by which the operators' pages of other processes find it; by default only the processes of one "
        "supervisor find each other. Each process also keeps a list of its connections there, to end the queries of "
        "killed processes, and saves what it has learned of requests' costs; by default in /tmp/threadbridge-UID. Only "
        "the user of the process can open these files.",
    ]


class CommandLineSettings(Settings, total=False):
    """All settings; for `serve`, the calling program sets up logging itself."""

    config: Annotated[
        OptionalPath, None, "Read settings from this file: TOML, or Python if it ends in .py, such as port = 8000."
    ]
    check: Annotated[
        bool,
        False,
        "Print the settings and their sources, look for problems, say what to do about them, and exit: with "
        "status 0 if all is well, 1 after warnings, 2 after errors.",
    ]
    json: Annotated[bool, False, "With check: print JSON."]
    develop: Annotated[
        bool,
        False,
        "For development, see developing.md: log each request in a readable line with its slow and repeated SQL, "
        "instead of the access log's format, and show the SQL of recent requests on the operators' page.",
    ]
    reload: Annotated[
        bool,
        False,
        "For development: start the application again when a source, a template or one of reload_include changes, see "
        "developing.md. Only on the command line with MODULE:APP, and with one process.",
    ]
    reload_include: Annotated[
        Sequence[str],
        (),
        "With reload: further files. A name such as *.toml is looked for in the application's directories; a path such "
        "as etc/shop.ini or texts/*.po, or a directory, is relative to the current directory.",
    ]
    frontends: Annotated[
        int, number(1), 1, "With check: how many servers like this one, each with all its processes, use the database."
    ]
    nginx_config: Annotated[
        OptionalPath, None, "With check: the nginx file that passes requests to this server, or one that includes it."
    ]
    logging: Annotated[
        Literal["debug", "info", "warning", "error", "none"],
        "info",
        "Minimum level to log; none leaves logging to the application.",
    ]
    log_config: Annotated[
        OptionalPath,
        None,
        "Configure logging by this file instead, .toml, .json or .yaml: the dictionary of logging.config.dictConfig; "
        "see tracing.md.",
    ]
    log_json: Annotated[bool, False, "Log in JSON, one object a line."]
    log_to_stderr: Annotated[bool | None, FLAG, None, "Log to standard error; by default only if there is no log file."]
    log_file_prefix: Annotated[
        OptionalPath,
        None,
        "The log file, one for each process. SIGHUP reopens it; rotated files get suffixes. The access log goes "
        "to a file next to it: app.access.log for app.log.",
    ]
    log_file_max_size: Annotated[
        int, size(0), 100 * 1000 * 1000, "With log_rotate_mode=size: rotate the log file at this size; 0 for never."
    ]
    log_file_num_backups: Annotated[int, number(0), 10, "How many rotated log files are kept."]
    log_rotate_mode: Annotated[Literal["size", "time"], "size", "Whether the log file is rotated by size or by time."]
    log_rotate_when: Annotated[
        Literal["s", "m", "h", "d", "midnight", "w0", "w1", "w2", "w3", "w4", "w5", "w6"],
        "midnight",
        "With log_rotate_mode=time: the unit: second, minute, hour, day, midnight or weekday (w0 is Monday).",
    ]
    log_rotate_interval: Annotated[int, number(1), 1, "With log_rotate_mode=time: rotate after this many units."]


@dataclass(frozen=True)
class Setting:
    """A setting apart from its name; ``meaning`` is the text for users, in the documentation and in ``--help``."""

    kind: Kind
    default: object
    meaning: str

    def check(self, value: object, label: str) -> Any:
        """Return the value, or raise `SettingError` if it cannot be used; ``label`` says where it comes from."""
        if not (value is None and self.default is None) and not self.kind.accepts(value):
            raise SettingError(f"{label}: expected {self.kind.expected}")
        return value

    def read(self, text: str, label: str) -> Any:
        """The value that a text stands for; raises `SettingError`."""
        try:
            value = self.kind.read(text)
        except SettingError as error:
            raise SettingError(f"{label}: {error}") from None
        except (ValueError, KeyError):
            raise SettingError(f"{label}: expected {self.kind.expected}") from None
        return self.check(value, label)

    def show(self, value: object) -> str:
        """The value as a text that `read` understands; "" for None."""
        return "" if value is None else self.kind.show(value)


def _setting(hint: Any) -> Setting:
    if isinstance(hint.__metadata__[0], Kind):
        return Setting(*hint.__metadata__)
    implied = {bool: FLAG, str: TEXT, Sequence[str]: TEXTS}.get(hint.__origin__)
    if implied is None and get_origin(hint.__origin__) is not Literal:
        raise TypeError(f"{hint}: no kind of value is implied by this type; give one")
    return Setting(implied or choice(*get_args(hint.__origin__)), *hint.__metadata__)


ALL = {name: _setting(hint) for name, hint in get_type_hints(CommandLineSettings, include_extras=True).items()}
# The options that are not named like their settings, because each gives one item of a list.
_OPTIONS = {
    "lanes": "lane",
    "idempotent_paths": "idempotent_path",
    "admin_names": "admin_host",
    "sni_certificates": "sni",
}


# Settings that need a supervisor, also for a single process.
_OF_SUPERVISORS = ("supervised", "max_requests", "max_age", "max_memory", "preload", "user", "group")


def option_name(name: str) -> str:
    """A setting's name on the command line, without the dashes."""
    return _OPTIONS.get(name, name)


def longest_deadline(settings: BridgeSettings) -> float:
    """The longest deadline of all lanes, in seconds."""
    return max(settings["deadline"], *(lane.deadline or 0.0 for lane in settings["lanes"]), 0.0)


def grace_period(settings: Settings) -> float:
    """How many seconds requests may take after the signal to stop."""
    grace = settings["grace"]
    return longest_deadline(settings) + GRACE_MARGIN if grace is None else grace


def is_supervised(settings: Settings) -> bool:
    """Whether a supervisor starts the processes that serve: several, or one that it is to renew."""
    values = cast(Mapping[str, object], settings)
    return settings["processes"] > 1 or any(values[name] for name in _OF_SUPERVISORS)


def from_keywords(keywords: Settings) -> Settings:
    """All settings of `serve`; raises `SettingError`, or ``TypeError`` for an unknown keyword."""
    return cast(Settings, _complete(Settings, keywords))


def for_bridge(keywords: BridgeSettings) -> BridgeSettings:
    """All settings of `Bridge`; raises as `from_keywords` does."""
    return cast(BridgeSettings, _complete(BridgeSettings, keywords))


def _complete(declaration: type, keywords: Mapping[str, object]) -> dict[str, object]:
    values = with_defaults(declaration, keywords)
    check_combinations(values, dict.fromkeys(keywords, "keyword"))
    return values


def with_defaults(declaration: type, keywords: Mapping[str, object]) -> dict[str, object]:
    """All settings of this class, those that are not given by their defaults; raises as `from_keywords` does."""
    values = {name: ALL[name].default for name in declaration.__annotations__}
    for name, value in keywords.items():
        if name not in values:
            raise TypeError(f"there is no setting {name!r}")
        values[name] = ALL[name].check(value, f"{name}={value!r}")
    return values


def check_combinations(values: Mapping[str, object], origins: Mapping[str, str]) -> None:
    """Raise `SettingError` for settings that exclude each other, or of which one needs another."""
    if bool(values["idempotent_paths"]) != bool(values["idempotency_store"]):
        raise SettingError("idempotent_paths and idempotency_store: give both, or neither")
    if values["long_upstream"] and values["schedule"] != "cost":
        raise SettingError("long_upstream needs schedule=cost: without it, no request is known to be long")
    if values["replica_for"]:
        if values["schedule"] != "cost":
            raise SettingError("replica_for needs schedule=cost: without it, no request is known to be long")
        if not any(lane.pool is not None for lane in cast(Sequence[Lane], values["lanes"])):
            raise SettingError("replica_for needs a lane with a replica's pool, such as --lane=long::4:shop:replica")
    if values.get("reload"):
        if cast(int, values["processes"]) > 1:
            raise SettingError("reload needs processes=1: it is for development, where one process can be debugged")
        for name in _OF_SUPERVISORS:
            if values[name]:
                raise SettingError(f"reload and {name}: give one of them, reload is for one process without supervisor")
    if values.get("max_requests_jitter") and not values["max_requests"]:
        raise SettingError("max_requests_jitter without max_requests: give both, or leave the jitter out")
    if values.get("keyfile") and not values["certfile"]:
        raise SettingError("keyfile without certfile: give the certificate too, or leave the key out")
    if values.get("admin_keyfile") and not values["admin_certfile"]:
        raise SettingError("admin_keyfile without admin_certfile: give the certificate too, or leave the key out")
    if values["prefix_header"] != "none" and not values["xheaders"]:
        raise SettingError("prefix_header needs xheaders: without it, no proxy is believed")
    for name in ("keyfile_password_file", "sni_certificates", "client_ca_file"):
        if values.get(name) and not values["certfile"]:
            raise SettingError(f"{name} without certfile: give the certificate too, or leave {name} out")
    if (values.get("client_certificates", "none") != "none") != bool(values.get("client_ca_file")):
        raise SettingError("client_certificates and client_ca_file: give both, or neither")
    for name in ("statsd_prefix", "dogstatsd_tags"):
        if values[name] and not values["statsd"]:
            raise SettingError(f"{name} without statsd: give the server's address too, or leave {name} out")
    for name in ("log_json", "log_file_prefix", "log_to_stderr"):
        if values.get("log_config") and values[name]:
            raise SettingError(f"log_config and {name}: give one of them, the file says where logs go and how")
    if values.get("log_json") and values["access_log_format"]:
        raise SettingError("log_json and access_log_format: give one of them, JSON has no format")
    for name in ("address", "port", "reuse_port"):
        if values.get("unix_socket") and origins.get(name, "default") == origins["unix_socket"] != "default":
            raise SettingError(f"unix_socket and {name}: give one of them, a Unix socket has no {name}")
    for name in ("address", "port", "unix_socket"):
        if values.get("bind") and origins.get(name, "default") == origins["bind"] != "default":
            raise SettingError(f"bind and {name}: give one of them; bind=HOST:PORT or unix:PATH says the same")
