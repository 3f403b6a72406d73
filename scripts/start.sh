#!/bin/sh
# Starts the application and returns; other commands stop, restart and check it: `scripts/start.sh help` lists them.
set -eu

usage() {
    cat <<'END'
usage: scripts/start.sh            set up what is missing, start the database and the frontends, return
       scripts/start.sh stop       answer the requests that have arrived, then stop everything
       scripts/start.sh restart    restart the frontends one after the other; the others keep answering
       scripts/start.sh status     show what is running; the exit status is 3 if something is not
       scripts/start.sh check      find problems with the configuration, and say what to do; the exit status is 1 if there
                                   are warnings, 2 if there are errors. `check --json` prints JSON
       scripts/start.sh logs       follow the frontends' logs
       scripts/start.sh help       print this text

Variables:
  FRONTENDS    the ports of the frontends on 127.0.0.1, by default "8000 8001"; their operators' ports are then 18000 and
               18001
  MYSQL_HOST, MYSQL_PORT, MYSQL_UNIX_SOCKET, MYSQL_USER, MYSQL_PASSWORD, MYSQL_PASSWORD_FILE, MYSQL_DATABASE
               how to connect to the database. If none of them is set, the application gets its own MariaDB in
               var/mariadb, with sample data
  STOP_GRACE   how many seconds a frontend may take to answer its last requests, by default 200
END
}

die() {
    echo "start.sh: $*" >&2
    exit 1
}

url() {
    echo "http://127.0.0.1:$1/"
}

# Prints the operators' ports of the frontends on ports $@: 18000 for 8000. Only a port with four digits has one.
operators_ports() {
    for port; do
        case $port in
        ????) echo "1$port" ;;
        esac
    done
}

# Prints the ports whose frontends were started and not stopped: they are running, or have died.
started_ports() {
    for file in "$run"/frontend.*.pid; do
        [ -e "$file" ] || continue
        port=${file##*/frontend.}
        echo "${port%.pid}"
    done
}

# Prints the process id of the frontend on port $1; fails if no process is that frontend, whatever the pid file says.
frontend_pid() {
    [ -s "$run/frontend.$1.pid" ] || return 1
    read -r pid <"$run/frontend.$1.pid"
    # The command line of a supervisor is a title, with spaces between the arguments.
    { tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" && echo " "; } | grep -Fq -e "--log_file_prefix=$logs/app.$1.log " &&
        echo "$pid"
}

# Whether process $1 is still running; a zombie is not.
alive() {
    state=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    case ${state##*) } in
    [ZX]*) return 1 ;;
    esac
}

# Whether the frontend on port $1 answers path $2 with status 200 within $3 seconds; prints on stderr why not.
answers() {
    .venv/bin/python -IS - "$@" <<'END'
import http.client, sys

port, path, seconds = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=float(seconds))
try:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"{path}: {error!r}")
if response.status != 200:
    sys.exit(f"{path}: {response.status} {response.reason}")
END
}

check_ports() {
    .venv/bin/python -IS - "$@" <<'END' || exit 1
import socket, sys

for port in sys.argv[1:]:
    with socket.socket() as probe:
        # As the frontends do: connections of an ended server do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError as error:
            sys.exit(f"start.sh: port {port} of 127.0.0.1 is not available ({error.strerror}): "
                     "stop the program that uses it, or set FRONTENDS to other ports")
END
}

database_is_elsewhere() {
    env | grep -Eq '^MYSQL_(HOST|PORT|UNIX_SOCKET|USER|PASSWORD|PASSWORD_FILE|DATABASE)=.'
}

set_up() {
    if database_is_elsewhere; then
        scripts/setup.sh application 9<&-
    else
        scripts/setup.sh application mariadb 9<&-
    fi
}

# Starts the embedded database unless another one is configured; returns when the application can use it.
start_database() {
    place=embedded
    ! database_is_elsewhere || place=elsewhere
    if [ $# -gt 0 ] && [ "$(cat "$run/database")" != $place ]; then
        if [ $place = embedded ]; then
            die "the running frontends use the database that MYSQL_* variables named, but none is set now: set them as" \
                "they were, or run scripts/start.sh stop first"
        fi
        die "the running frontends use the embedded MariaDB, but MYSQL_* variables are set now: unset them, or run" \
            "scripts/start.sh stop first"
    fi
    if [ $place = embedded ]; then
        if [ -e "$mariadb/loading" ]; then
            echo "The sample data was not loaded completely: loading it again"
            scripts/mariadb.sh stop "$mariadb"
            rm -rf "$mariadb"
        fi
        if ! scripts/mariadb.sh status "$mariadb"; then
            started_mariadb=yes
            if [ ! -d "$mariadb/data" ]; then
                mkdir -p "$mariadb"
                : >"$mariadb/loading"
            fi
            echo "Starting MariaDB in $mariadb"
            scripts/mariadb.sh start "$mariadb" 9<&-
        fi
        use_embedded_database
        if [ -e "$mariadb/loading" ]; then
            .venv/bin/python -m myapplication.sampledata
            rm "$mariadb/loading"
        fi
    fi
    if ! reason=$(.venv/bin/python -c 'from myapplication import db; db.query("SELECT 1")' 2>&1); then
        why="the database cannot be used"
        # Only to tell the two apart: to load the application takes a second on a slow machine.
        .venv/bin/python -c 'import myapplication' >/dev/null 2>&1 || why="the application cannot be loaded"
        die "$why: $(echo "$reason" | tail -n 1)"
    fi
}

# Sets the variables with which the application connects to the embedded database.
use_embedded_database() {
    settings=$(scripts/mariadb.sh env "$mariadb") || exit
    while IFS= read -r setting; do
        export "${setting?}"
    done <<END
$settings
END
}

# Starts the frontend on port $1, in its own session, so that it outlives this script and its terminal.
launch() {
    echo "Starting the frontend on port $1"
    launched_ports="$launched_ports $1"
    [ -e "$run/frontend.$1.pid" ] || new_ports="$new_ports $1"
    frontend=$1
    set -- --port="$1" --log_file_prefix="$logs/app.$1.log" --grace="$STOP_GRACE"
    operators=$(operators_ports "$frontend")
    [ -z "$operators" ] || set -- "$@" --admin_port="$operators"
    # The path of a Unix socket may have at most 107 bytes.
    [ ${#peers} -gt 80 ] || set -- "$@" --run_directory="$peers"
    setsid .venv/bin/python run.py "$@" \
        </dev/null >>"$logs/app.$frontend.log" 2>&1 9<&- &
    echo "$!" >"$run/frontend.$frontend.pid"
}

# Returns when the launched frontend on port $1 has answered the page and a query.
await() {
    read -r launched <"$run/frontend.$1.pid"
    attempts=0
    until reason=$(answers "$1" / 10 2>&1); do
        alive "$launched" || die "the frontend on port $1 ended before it was ready:" \
            "$(tail -n 1 "$logs/app.$1.log") (see $logs/app.$1.log)"
        attempts=$((attempts + 1))
        [ $attempts -lt 300 ] || die "the frontend on port $1 does not answer ($reason), see $logs/app.$1.log"
        sleep 0.1
    done
    reason=$(answers "$1" "$query" 60 2>&1) ||
        die "the frontend on port $1 does not get an answer from the database ($reason), see $logs/app.$1.log"
}

# Tells the frontend on port $1 to end; it answers its last requests first.
ask_to_end() {
    if pid=$(frontend_pid "$1"); then
        echo "Stopping the frontend on port $1 (process $pid)"
        kill -TERM "$pid" 2>/dev/null || true
        ending="$ending $1:$pid"
    fi
}

# Returns when the frontends that were told to end have ended. After STOP_GRACE seconds they give up by themselves; one
# that hangs is killed.
await_ends() {
    for entry in $ending; do
        ending_port=${entry%:*}
        pid=${entry#*:}
        tenths=0
        while alive "$pid"; do
            if [ $tenths -ge $(((STOP_GRACE + 5) * 10)) ]; then
                echo "The frontend on port $ending_port has not ended after $((tenths / 10)) s: killing process $pid"
                kill -KILL "$pid" 2>/dev/null || true
            elif [ $tenths -gt 0 ] && [ $((tenths % 50)) -eq 0 ]; then
                echo "The frontend on port $ending_port is still answering requests, after $((tenths / 10)) s"
            fi
            tenths=$((tenths + 1))
            sleep 0.1
        done
    done
    ending=
}

# Stops what a failed start has started. A frontend that was started before counts as dead.
undo() {
    for port in $launched_ports; do
        ask_to_end "$port"
    done
    await_ends
    for port in $new_ports; do
        rm -f "$run/frontend.$port.pid"
    done
    [ $started_mariadb = no ] || scripts/mariadb.sh stop "$mariadb"
}

undo_unless_done() {
    trap undo EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

make_directories() {
    mkdir -p "$run" || return
    # Users who can open the lock can hold it.
    chmod 700 "$run" || return
    # The owner of an existing directory decides who else may read the logs.
    [ -d "$logs" ] || mkdir -m 700 "$logs"
}

say_if_root() {
    [ "$(id -u)" -ne 0 ] ||
        echo "The frontends run as root: a vulnerability in the application would give an attacker the whole machine." \
            "Start them as an ordinary user who owns this directory" >&2
}

lock() {
    make_directories
    exec 9>"$run/lock"
    flock -n 9 || die "another start.sh is running here; try again when it has ended"
}

frontends_are_valid() {
    seen=" "
    for port in $FRONTENDS; do
        case $port in
        0* | *[!0-9]* | ??????*) return 1 ;;
        esac
        [ "$port" -le 65535 ] || return 1
        case $seen in
        *" $port "*) return 1 ;;
        esac
        seen="$seen$port "
    done
    [ "$seen" != " " ]
}

start() {
    frontends_are_valid ||
        die "FRONTENDS is \"$FRONTENDS\"; it must be different port numbers (1 to 65535), separated by spaces"
    lock
    running=
    absent=
    for port in $FRONTENDS; do
        if frontend_pid "$port" >/dev/null; then
            running="$running $port"
        else
            [ ! -e "$run/frontend.$port.pid" ] ||
                echo "The frontend on port $port has died since it was started, see $logs/app.$port.log"
            absent="$absent $port"
        fi
    done
    if [ -z "$absent" ] && { database_is_elsewhere || scripts/mariadb.sh status "$mariadb"; }; then
        echo "The frontends are already running, on ports$running: nothing to do"
        return
    fi
    set_up
    # shellcheck disable=SC2046,SC2086  # one word per port, here and below
    check_ports $absent $(operators_ports $absent)
    undo_unless_done
    # shellcheck disable=SC2086
    start_database $running
    say_if_root
    for port in $absent; do
        launch "$port"
    done
    for port in $absent; do
        await "$port"
    done
    echo $place >"$run/database"
    trap - EXIT
    # shellcheck disable=SC2086
    operators=$(operators_ports $FRONTENDS)
    if [ -n "$operators" ]; then
        echo "The operators' page, the same at each of these addresses:"
        for port in $operators; do
            url "$port"
        done
    fi
    echo "The application:"
    for port in $FRONTENDS; do
        url "$port"
    done
}

restart() {
    lock
    ports=$(started_ports)
    if [ -z "$ports" ]; then
        die "nothing is running; start it with: scripts/start.sh"
    fi
    set_up
    undo_unless_done
    # shellcheck disable=SC2086
    start_database $ports
    # The frontends that are still running need it, whatever happens next.
    started_mariadb=no
    say_if_root
    for port in $ports; do
        ask_to_end "$port"
        await_ends
        launch "$port"
        await "$port"
        launched_ports=
    done
    trap - EXIT
    echo "All frontends have been restarted"
}

stop() {
    lock
    ports=$(started_ports)
    for port in $ports; do
        ask_to_end "$port"
    done
    await_ends
    rm -f "$run"/frontend.*.pid
    if scripts/mariadb.sh status "$mariadb"; then
        echo "Stopping MariaDB"
    fi
    scripts/mariadb.sh stop "$mariadb"
    rm -f "$run/database"
    echo "Everything is stopped"
}

status() {
    healthy=yes
    ports=$(started_ports)
    for port in ${ports:-$FRONTENDS}; do
        if ! pid=$(frontend_pid "$port"); then
            healthy=no
            if [ -e "$run/frontend.$port.pid" ]; then
                echo "frontend on port $port: dead; its process ended unexpectedly, see $logs/app.$port.log"
            else
                echo "frontend on port $port: not started"
            fi
        elif reason=$(answers "$port" / 10 2>&1); then
            echo "frontend on port $port: answers at $(url "$port") (process $pid)"
        else
            healthy=no
            echo "frontend on port $port: process $pid does not answer ($reason), see $logs/app.$port.log"
        fi
    done
    if [ -e "$run/database" ] && [ "$(cat "$run/database")" = elsewhere ]; then
        echo "database: set by MYSQL_* variables; not checked here"
    elif scripts/mariadb.sh status "$mariadb"; then
        echo "database: MariaDB in $mariadb answers"
    else
        healthy=no
        echo "database: MariaDB in $mariadb is not running"
    fi
    [ $healthy = yes ] || exit 3
}

# Ends this script with the exit status of the check; $1 is an option for the check, or empty.
check() {
    if [ ! -x .venv/bin/python ] || { ! database_is_elsewhere && [ ! -d "$mariadb/data" ]; }; then
        cannot_check "nothing is set up yet; run scripts/start.sh first"
    fi
    database_is_elsewhere || use_embedded_database
    if ! make_directories || [ ! -w "$run" ]; then
        cannot_check "$run cannot be written to; make sure that it belongs to the user who starts the application"
    fi
    ports=$(started_ports)
    option=$1
    # shellcheck disable=SC2086
    set -- ${ports:-$FRONTENDS}
    exec .venv/bin/python run.py --check ${option:+"$option"} --frontends=$# --port="$1" \
        --log_file_prefix="$logs/app.$1.log" --grace="$STOP_GRACE"
}

# Status 1 would mean warnings.
cannot_check() {
    echo "start.sh: $*" >&2
    exit 2
}

follow_logs() {
    ports=$(started_ports)
    set --
    for port in ${ports:-$FRONTENDS}; do
        # With THREADBRIDGE_PROCESSES each process has its own logs: app.8000-1.log, app.8000-1.access.log.
        for log in "$logs/app.$port.log" "$logs/app.$port.access.log" "$logs/app.$port"-*.log; do
            [ ! -e "$log" ] || set -- "$@" "$log"
        done
    done
    [ $# -gt 0 ] || die "there are no logs in $logs yet"
    exec tail -n 20 -F "$@"
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"
: "${FRONTENDS:=8000 8001}" "${STOP_GRACE:=200}"
case $STOP_GRACE in
*[!0-9]*) die "STOP_GRACE is \"$STOP_GRACE\"; it must be a whole number of seconds" ;;
esac
# Many systems allow 1024 open files by default; full queues need twice as many.
# shellcheck disable=SC3045  # dash and bash support it
ulimit -S -n "$(ulimit -H -n)"
run=$root/var/run
# Here the frontends find each other, for the operators' page.
peers=$root/var/peers
logs=$root/logs
mariadb=$root/var/mariadb
query='/query/?report=orders&customer=1&format=json'
started_mariadb=no
launched_ports=
new_ports=
ending=

case $* in
"" | "check --json") ;;
*" "*)
    usage >&2
    exit 2
    ;;
esac
case ${1:-start} in
start) start ;;
stop) stop ;;
restart) restart ;;
status) status ;;
check) check "${2-}" ;;
logs) follow_logs ;;
help | --help | -h) usage ;;
*)
    usage >&2
    exit 2
    ;;
esac
