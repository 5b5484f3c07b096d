"""Tables as other engines read them, at any version, in a form that can be compared; and which files they read for it."""

import functools
import hashlib
import json
import operator
import re
from collections import Counter
from datetime import date, datetime
from decimal import Decimal

import polars
import pyarrow
from deltalake import DeltaTable, QueryBuilder

PARQUET = re.compile(r"part-[\w.-]+?\.parquet")
METRIC = {name: re.compile(rf"\b{name}=([\d.]+)(?: ([KMG]))?\b") for name in ("files_opened", "bytes_scanned")}
UNITS = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9}
COMPARED = {"=": operator.eq, ">": operator.gt, ">=": operator.ge}


class Condition:
    """What all of these ask for together: a column, how it is compared, and with what."""

    def __init__(self, *terms):
        self.terms = terms

    @property
    def sql(self):
        return " and ".join(f"{column} {how} {_literal(value)}".strip() for column, how, value in self.terms)

    @property
    def polars(self):
        return functools.reduce(operator.and_, (self._term(*term) for term in self.terms))

    @staticmethod
    def _term(name, how, value):
        column = polars.col(name)
        match how:
            case "is null":
                return column.is_null()
            case "is not null":
                return column.is_not_null()
            case "in":
                return column.is_in(value)
        return COMPARED[how](column, value)


def _literal(value):
    match value:
        case None:
            return ""
        case list():
            return f"({', '.join(map(_literal, value))})"
        case datetime():
            return f"'{value.isoformat(timespec='microseconds').replace('+00:00', 'Z')}'"
        case date():
            return f"date '{value.isoformat()}'"
        case str():
            return "'" + value.replace("'", "''") + "'"
    return str(value).lower()


class Python:
    """The `deltalake` package: its own list of files, and DataFusion over its own table provider."""

    def arrow(self, address, version=None):
        return DeltaTable(address, version=version).to_pyarrow_table()

    def query(self, address, sql, version=None):
        """The answer to a query on the table, which is called `t`."""
        answer = QueryBuilder().register("t", DeltaTable(address, version=version)).execute(sql)
        return pyarrow.table(answer.read_all())

    def plan(self, address, sql, version=None):
        return "\n".join(self.query(address, f"explain analyze {sql}", version).column("plan").to_pylist())

    def files(self, address, condition):
        return len(files_in(self.plan(address, f"select * from t where {condition.sql}")))


class Polars:
    def arrow(self, address, version=None):
        return polars.read_delta(address, version=version).to_arrow()

    def files(self, address, condition):
        plan = polars.scan_delta(address).filter(condition.polars).explain()
        unnamed = re.search(r"(\d+) other sources", plan)
        return len(files_in(plan)) + (int(unnamed[1]) if unnamed else 0)


class Spark:
    """Delta's own implementation, by PySpark."""

    def __init__(self, session):
        self.session = session

    def frame(self, address, version=None):
        reader = self.session.read.format("delta")
        return (reader if version is None else reader.option("versionAsOf", version)).load(address)

    def arrow(self, address, version=None):
        return self.frame(address, version).toArrow()

    def files(self, address, condition):
        return len(self.frame(address).where(condition.sql).inputFiles())


def files_in(plan):
    return set(PARQUET.findall(plan))


def cost(plan):
    """The files that DataFusion opened and the bytes that it read, as its plan says."""
    return tuple(sum(float(number) * UNITS[unit or None] for number, unit in metric.findall(plan)) for metric in METRIC.values())


def rows_of(table):
    """The rows of an Arrow table, whatever their order: each with its columns' names, in their order."""
    columns = [[plain(value) for value in column.to_pylist()] for column in table.columns]
    return Counter(tuple(zip(table.column_names, row)) for row in zip(*columns))


def rows_in(text):
    """The same of what the program prints as JSON."""
    rows = json.loads(text, parse_float=Decimal)
    return Counter(tuple((name, plain(value)) for name, value in row.items()) for row in rows)


def plain(value):
    """A value as the program prints it, of whatever type: a map's entries and a struct's fields have no order."""
    match value:
        case float():
            return Decimal(repr(value)).normalize()
        case Decimal():
            return value.normalize()
        case datetime():
            text = value.isoformat(timespec="microseconds").replace("+00:00", "Z")
            return re.sub(r"\.000000|(?<=\.\d{3})000", "", text)
        case date():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return tuple(sorted((key, plain(inner)) for key, inner in value.items()))
        case list():
            return _plain_list(value)
    return value


def _plain_list(values):
    """A map is a list of pairs to Arrow, and of structs to Polars."""
    if values and all(isinstance(pair, dict) and pair.keys() == {"key", "value"} for pair in values):
        values = [(pair["key"], pair["value"]) for pair in values]
    if values and all(isinstance(pair, tuple) for pair in values):
        return plain(dict(values))
    return tuple(plain(value) for value in values)


def checksum(rows):
    """One number for all rows, whatever their order."""
    digests = (count * int.from_bytes(hashlib.sha256(repr(row).encode()).digest()[:8]) for row, count in rows.items())
    return f"{sum(digests) % (1 << 64):016x}"
