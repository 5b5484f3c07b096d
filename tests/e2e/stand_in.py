"""A stand-in for Snowflake: the fakesnow server, a relay before it that counts, cuts and lies, and a reader that sees what any
client of Snowflake sees, through Snowflake's own connector."""

import gzip
import http.client
import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import snowflake.connector

from program import free_ports
from waiting import wait_for

BEFORE, AFTER = "before", "after"


class FakeSnow:
    """The server, in memory, on a port of its own."""

    def __init__(self, folder):
        (self.port,) = free_ports(1)
        self.log = folder / "fakesnow.log"
        with open(self.log, "wb") as log:
            program = Path(sys.executable).parent / "fakesnow"
            args = [str(program), "-s", "-p", str(self.port)]
            self.child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def answers(self):
        assert self.child.poll() is None, self.log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().status

    def end(self):
        self.child.terminate()
        self.child.wait(10)

    def connect(self, database=None, schema=None):
        return snowflake.connector.connect(
            user="reader", password="any", account="stand-in", host="127.0.0.1", port=self.port, protocol="http",
            database=database, schema=schema, session_parameters={"CLIENT_OUT_OF_BAND_TELEMETRY_ENABLED": False},
        )  # fmt: skip


class Target:
    """One schema of it, as a reader sees it."""

    def __init__(self, server, database, schema="TRANSFORM"):
        self.server, self.database, self.schema = server, database, schema
        self.connection = server.connect(database, schema)

    def query(self, sql):
        return self.connection.cursor().execute(sql).fetchall()

    def tables(self):
        """The names of all tables, without the mirror's own."""
        sql = f"SELECT TABLE_NAME FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = '{self.schema}'"
        return {name for (name,) in self.query(sql)} - {"_MIRROR_STATE", "_MIRROR_TABLES"}

    def columns(self, table):
        """The names and types of a table's columns, in their order."""
        sql = (
            f"SELECT COLUMN_NAME, DATA_TYPE FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = '{self.schema}' "
            f"AND TABLE_NAME = '{table}' ORDER BY ORDINAL_POSITION"
        )
        return self.query(sql)

    def rows(self, table):
        # The stand-in sends a NULL of this type as a struct of NULLs, which the connector takes for the epoch: so it is asked
        # beside the value whether it is there.
        times = [name for name, data_type in self.columns(table) if data_type == "TIMESTAMP_TZ"]
        absent = "".join(f', "{name}" IS NULL' for name in times)
        cursor = self.connection.cursor().execute(f'SELECT *{absent} FROM "{table}"')
        width = len(cursor.description) - len(times)
        places = [[column.name for column in cursor.description].index(name) for name in times]
        rows = Counter()
        for found in cursor.fetchall():
            row = list(map(plain, found[:width]))
            for place, is_absent in zip(places, found[width:]):
                row[place] = None if is_absent else row[place]
            rows[tuple(row)] += 1
        return rows

    def publication(self):
        """The publication that it says that it holds; 0 if there is none."""
        has_state = self.query(
            "SELECT COUNT(*) FROM INFORMATION_SCHEMA.TABLES "
            f"WHERE TABLE_SCHEMA = '{self.schema}' AND TABLE_NAME = '_MIRROR_STATE'"
        )
        if has_state == [(0,)]:
            return 0
        ((publication,),) = self.query("SELECT PUBLICATION FROM _MIRROR_STATE")
        return publication


def plain(value):
    """A value that can be counted."""
    return bytes(value) if isinstance(value, bytearray) else value


@dataclass
class Request:
    """What came to the relay. `sql` is empty unless it is a statement."""

    number: int
    method: str
    path: str
    sql: str

    @property
    def what(self):
        return self.sql or f"{self.method} {self.path.partition('?')[0]}"


class Relay(ThreadingHTTPServer):
    """Stands between the program and the server. Whoever wants to meddle sets `meddle`: it is called with each request and
    BEFORE it is passed on, and again AFTER it was answered. If it returns a status and a body, that is the answer; if it
    returns CUT, there is none."""

    daemon_threads = True
    CUT = object()

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = server.port
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        self.meddle = None
        self.requests, self.connections, self.faults = [], 0, []
        # By token: whether a transaction is open.
        self.sessions = {}
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def forget(self):
        """Counts from 1 again, and lets all pass."""
        self.meddle = None
        self.requests, self.connections = [], 0

    def statements(self):
        return [request.sql for request in self.requests if request.sql]

    def end_sessions(self):
        """Logs out whoever was killed.

        Snowflake does so by itself: a transaction without a client is rolled back once it has stood in another's way for
        five minutes. The stand-in has no such clock.
        """
        for token in list(self.sessions):
            self.forward("POST", "/session?delete=true", {"Authorization": f'Snowflake Token="{token}"'}, b"{}")
            del self.sessions[token]

    def forward(self, method, path, headers, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def watch(self, token, sql, succeeded):
        """Knows which sessions are in a transaction. Snowflake commits what is open before it makes or drops a table, which
        the stand-in does not: so nobody may do that."""
        verb = sql.split()[0].upper() if sql else ""
        if verb in ("CREATE", "DROP", "ALTER") and self.sessions.get(token):
            self.faults.append(f"in a transaction: {sql}")
        if succeeded and verb in ("BEGIN", "COMMIT", "ROLLBACK"):
            self.sessions[token] = verb == "BEGIN"

    def handle_error(self, request, client_address):
        """A killed client is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self):
        relay = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
            del self.headers["Content-Encoding"]
        sql = json.loads(body).get("sqlText", "") if "query-request" in self.path else ""
        with relay.lock:
            request = Request(len(relay.requests) + 1, self.command, self.path, sql)
            relay.requests.append(request)
        answer = relay.meddle(request, BEFORE) if relay.meddle else None
        if answer is None:
            answer = self.pass_on(request, body)
        after = relay.meddle(request, AFTER) if relay.meddle else None
        self.answer(after or answer)

    do_PUT = do_GET = do_POST

    def pass_on(self, request, body):
        relay = self.server
        headers = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
        status, answer = relay.forward(request.method, request.path, headers, body)
        token = (self.headers.get("Authorization") or "").partition('"')[2].rstrip('"')
        if "login-request" in request.path:
            relay.sessions[json.loads(answer)["data"]["token"]] = False
        elif request.path.startswith("/session?delete"):
            relay.sessions.pop(token, None)
        elif request.sql:
            relay.watch(token, request.sql, status == 200 and json.loads(answer).get("success"))
        return status, answer

    def answer(self, answer):
        if answer is Relay.CUT:
            self.close_connection = True
            return
        status, body = answer
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def refusal(code, message):
    """An answer of Snowflake that says no."""
    return 200, {"data": None, "code": code, "message": message, "success": False}


def started(folder):
    """A server that answers."""
    server = FakeSnow(folder)
    wait_for("fakesnow answers", server.answers, seconds=60)
    return server
