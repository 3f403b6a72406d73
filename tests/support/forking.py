"""An application that forks in every way, and the server that runs it: what tests of forks need."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path

from tests.support.databases import connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend

# /insert?ID notes the id; the answer is the number of the connection in the database. /KIND/END?ID notes it too, waits
# until the file "go" is there, and makes a child of this kind that ends in this way; the answer is the child's exit
# status.
APPLICATION = """
import json, multiprocessing, os, signal, subprocess, sys, threading, time
from contextlib import closing
import MySQLdb
from dbutils.pooled_db import PooledDB

pool = PooledDB(MySQLdb, maxconnections=1, blocking=True, **json.loads(os.environ["CONNECT"]))

def insert(note):
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO notes VALUES (%s)", (note,))
        connection.commit()
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)

def end(how):
    with open("child", "w") as file:
        file.write(str(os.getpid()))
    if how == "exit":
        sys.exit(3)
    if how == "raise":
        raise LookupError("as ordered")
    if how == "_exit":
        os._exit(3)
    if how == "exec":
        os.execv("/bin/sh", ["sh", "-c", "exit 3"])
    if how == "live":
        os.rename("child", "living")
        time.sleep(60)
    if how == "query":
        insert("child")

def wait_for_child(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def by_fork(how, start_response, note):
    # The child unwinds with a connection in its hands, too.
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO notes VALUES (%s)", (note,))
        pid = os.fork()
        if not pid:
            end(how)
            return 0
        connection.commit()
        return wait_for_child(pid)

def stream(how, start_response):
    pid = os.fork()
    if pid:
        status = str(wait_for_child(pid)).encode()
        start_response("200 OK", [("Content-Length", str(len(status)))])
        yield status
    else:
        start_response("200 OK", [])
        # More than a stream keeps in memory.
        for _ in range(100):
            yield bytes(65536)

def by_subprocess(how, start_response):
    return subprocess.run(["sh", "-c", "exit 3"], close_fds=False, preexec_fn=lambda: None).returncode

def by_multiprocessing(kind):
    def start(how, start_response):
        process = multiprocessing.get_context(kind).Process(target=end, args=(how,))
        process.start()
        if how == "live":
            wait_for("living")
            process.terminate()
        process.join()
        return process.exitcode
    return start

KINDS = {
    "subprocess": by_subprocess,
    **{kind: by_multiprocessing(kind) for kind in ("spawn", "forkserver")},
    "multiprocessing": by_multiprocessing("fork"),
}

def app(environ, start_response):
    path, note = environ["PATH_INFO"], environ["QUERY_STRING"]
    result = ""
    if path == "/insert":
        result = insert(note)
    elif path == "/abandon":
        # A child that goes on when its request has been answered.
        insert(note)
        if not os.fork():
            end("live")
    elif path != "/":
        _, kind, how = path.split("/")
        if kind != "fork":
            insert(note)
        wait_for("go")
        if kind == "stream":
            return stream(how, start_response)
        result = by_fork(how, start_response, note) if kind == "fork" else KINDS[kind](how, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(result).encode()]
"""


class ForkingSite(Frontend):
    """That application with a pool of one connection, so that requests wait behind those that fork."""

    def __init__(self, directory: Path, mariadb: dict[str, str], *arguments: str) -> None:
        (directory / "fork_app.py").write_text(APPLICATION)
        self.directory = directory
        super().__init__(
            ("-m", "threadbridge", "fork_app:app", "--pool=fork_app:pool", "--port={port}", *arguments),
            env={"CONNECT": json.dumps(connect_settings(mariadb))},
            cwd=directory,
        )

    def send(self, path: str, method: str = "POST") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        return client

    @property
    def accepts(self) -> bool:
        """Whether the port is open."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def post(self, path: str) -> bytes:
        return answer_to(self.send(path))

    def child(self, name: str) -> int:
        """The process id that a child has written to this file."""
        wait_until((self.directory / name).exists, "there is a child")
        return int((self.directory / name).read_text())


def answer_to(client: socket.socket) -> bytes:
    """The body of the only response; the server closes the connection only when it stops."""
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200, (response.status, response.read())
        return response.read()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def files_of(pid: int) -> list[str]:
    """What a process has open."""
    directory = f"/proc/{pid}/fd"
    return [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
