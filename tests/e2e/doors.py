"""Clients of the doors: each asks one statement, and gives the names of the columns and the rows."""

import csv
import io
import subprocess

import adbc_driver_flightsql.dbapi
import psycopg

from program import FLIGHT, POSTGRES, environment


def by_flight(up, sql, *parameters):
    # autocommit: this door is read-only and offers no transactions.
    with adbc_driver_flightsql.dbapi.connect(f"grpc://127.0.0.1:{up.ports[FLIGHT]}", autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            table = cursor.fetch_arrow_table()
    return table.column_names, [tuple(row.values()) for row in table.to_pylist()] if table.num_columns else []


def by_psycopg(up, sql, *parameters):
    with psycopg.connect(f"postgresql://anybody@127.0.0.1:{up.ports[POSTGRES]}/lake") as connection:
        with connection.cursor(binary=bool(parameters)) as cursor:
            cursor.execute(sql, parameters or None)
            return [column.name for column in cursor.description], cursor.fetchall()


def by_psql(up, sql):
    """psql shows text only; an empty field that is not quoted is NULL, and no query here answers with empty text."""
    url = f"postgresql://anybody@127.0.0.1:{up.ports[POSTGRES]}/lake"
    ended = subprocess.run(
        ["psql", "--no-psqlrc", "--csv", "--command", sql, url],
        env=environment(PGCONNECT_TIMEOUT="10"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    names, *rows = csv.reader(io.StringIO(ended.stdout))
    return names, [tuple(value or None for value in row) for row in rows]


def by_command(up, sql):
    rows = up.query(sql)
    return list(rows[0]) if rows else [], [tuple(row.values()) for row in rows]
