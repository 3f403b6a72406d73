#!/bin/sh
# A private MariaDB server that keeps everything in one directory: data, socket, pid file, log, password. It opens no TCP
# port. Its user and its database are both called myapplication.
set -eu
umask 077

usage() {
    cat <<'END'
usage: scripts/mariadb.sh start DIR   start the server; the first time, create it. Returns once it answers
       scripts/mariadb.sh stop DIR    stop the server. Returns once its process is gone
       scripts/mariadb.sh status DIR  exit status 0 if it answers, 3 if it is not running
       scripts/mariadb.sh env DIR     print the MYSQL_* variables with which to connect to it
END
}

die() {
    echo "mariadb.sh: $*" >&2
    exit 1
}

# Prints the server's process id; fails if no process is the server of this directory, whatever the pid file says.
server_pid() {
    [ -s "$pid_file" ] || return 1
    read -r pid <"$pid_file"
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -Fqx -e "--pid-file=$pid_file" &&
        echo "$pid"
}

# Whether process $1 is still running; a zombie is not.
alive() {
    state=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    case ${state##*) } in
    [ZX]*) return 1 ;;
    esac
}

answers() {
    MYSQL_PWD=$(cat "$password_file") mariadb --no-defaults --socket="$socket" --user=myapplication \
        --execute='SELECT 1' myapplication >/dev/null 2>&1
}

# Created in another directory and renamed when complete, so that an interrupted attempt can start over.
create_data() {
    echo "Creating a MariaDB data directory in $data"
    rm -rf "$data.new"
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$password_file"
    # mariadb-install-db does not support spaces in paths.
    failed=no
    link=$(mktemp -d)
    ln -s "$directory" "$link/directory"
    # With --rpm it leaves the machine's own MariaDB alone; without, as root, it changes the owner of plugin files.
    # The default socket user is the one who runs this, and may be called myapplication too.
    TMPDIR="$temporary" mariadb-install-db --no-defaults --rpm --datadir="$link/directory/data.new" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user=root \
        ${as_user:+"$as_user"} >"$log" 2>&1 || failed=yes
    rm -r "$link"
    [ $failed = no ] || die "mariadb-install-db failed, see $log"
    # The password goes through a pipe: every user of the machine could read it on a command line.
    {
        echo "FLUSH PRIVILEGES;"
        echo "CREATE DATABASE myapplication CHARACTER SET utf8mb4;"
        echo "CREATE USER myapplication@localhost IDENTIFIED BY '$(cat "$password_file")';"
        echo "GRANT ALL ON myapplication.* TO myapplication@localhost;"
        echo "GRANT PROCESS ON *.* TO myapplication@localhost;"
    } | mariadbd --no-defaults --bootstrap --datadir="$data.new" --tmpdir="$temporary" --skip-networking \
        ${as_user:+"$as_user"} >>"$log" 2>&1 || die "the MariaDB server could not be set up, see $log"
    mv "$data.new" "$data"
}

start() {
    for program in mariadbd mariadb-install-db mariadb; do
        command -v $program >/dev/null ||
            die "$program is not installed; on Debian: apt-get install mariadb-server-core mariadb-client-core"
    done
    # The kernel's limit for the path of a Unix socket.
    [ "$(printf %s "$socket" | wc -c)" -le 107 ] ||
        die "the socket's path $socket is longer than 107 bytes; choose a directory with a shorter path"
    if ! pid=$(server_pid); then
        [ -d "$data" ] || create_data
        [ -s "$password_file" ] || die "$password_file is missing; restore it, or remove $directory to start with an empty database"
        # A killed server has left them.
        rm -f "$pid_file" "$socket"
        setsid mariadbd --no-defaults --datadir="$data" --socket="$socket" --pid-file="$pid_file" \
            ${as_user:+"$as_user"} --tmpdir="$temporary" --skip-networking --skip-log-bin --local-infile=0 \
            --character-set-server=utf8mb4 --collation-server=utf8mb4_general_ci --max-connections=200 \
            --innodb-buffer-pool-size=256M --innodb-flush-log-at-trx-commit=2 --performance-schema=OFF \
            </dev/null >>"$log" 2>&1 &
        pid=$!
        # The server writes the pid file too, but late.
        echo "$pid" >"$pid_file"
    fi
    attempts=0
    until answers; do
        alive "$pid" || die "the MariaDB server ended while it started, see $log"
        attempts=$((attempts + 1))
        [ "$attempts" -lt 1200 ] || die "the MariaDB server does not answer within two minutes, see $log"
        sleep 0.1
    done
}

stop() {
    pid=$(server_pid) || return 0
    kill -TERM "$pid"
    attempts=0
    while alive "$pid"; do
        attempts=$((attempts + 1))
        [ "$attempts" -lt 1200 ] || die "the MariaDB server (process $pid) does not end within two minutes, see $log"
        sleep 0.1
    done
}

print_env() {
    [ -d "$data" ] || die "there is no MariaDB server in $directory; create one with: $0 start $directory"
    echo "MYSQL_UNIX_SOCKET=$socket"
    echo "MYSQL_USER=myapplication"
    echo "MYSQL_PASSWORD_FILE=$password_file"
    echo "MYSQL_DATABASE=myapplication"
}

if [ $# -ne 2 ]; then
    usage >&2
    exit 2
fi

case $1 in
start) mkdir -p "$2" ;;
stop) [ -d "$2" ] || exit 0 ;;
status) [ -d "$2" ] || exit 3 ;;
env) [ -d "$2" ] || die "there is no directory $2" ;;
*)
    usage >&2
    exit 2
    ;;
esac

directory=$(cd "$2" && pwd -P)
data=$directory/data
socket=$directory/mariadb.sock
pid_file=$directory/mariadb.pid
log=$directory/mariadb.log
password_file=$directory/password
# Not the machine's: a server removes the temporary tables of other servers from there when it starts.
temporary=$directory/tmp
# mariadbd refuses to run as root without it.
as_user=
[ "$(id -u)" -ne 0 ] || as_user=--user=root
PATH=$PATH:/usr/sbin:/sbin

case $1 in
start)
    mkdir -p "$temporary"
    start
    ;;
stop) stop ;;
status) server_pid >/dev/null && answers || exit 3 ;;
env) print_env ;;
esac
