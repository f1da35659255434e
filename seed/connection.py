"""Sessions for seeding, and the translation of psycopg2's errors into the product's. Holds no SQL of its own data.

Functions elsewhere in this package take a connection with no transaction open and leave none open behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import parse_dsn

from worker.config import Settings
from worker.errors import BadInput, SourceFailure, TransientSource, Unreachable

APPLICATION = "retailmedia seed"
_LOCK_TIMEOUT_MS = 30_000

_CONNECTION_GONE = ("08", "57P")
_TRY_AGAIN = ("40001", "40P01", "53", "55P03", "57")

_ADVICE = {
    "42501": "grant the role the privilege, or connect as the tables' owner",
    "23503": "the campaign or advertiser was deleted meanwhile; run the command again",
    "25006": "the server is a read-only standby; connect to the primary",
    "55P03": "another session holds a lock on the table; run the command again when it is done",
    "53100": "the server's disk is full; free some space",
}


def connect(settings: Settings) -> Connection:
    """A session on the source, with timeouts for connecting and for waiting on a lock.

    The session keeps the time zone the server gives it. Raises `BadInput` for a DSN that is none, `Unreachable` if
    no session comes about.
    """
    dsn = settings.source_dsn
    where = server(dsn)
    try:
        conn = psycopg2.connect(dsn, connect_timeout=settings.connect_timeout_seconds, application_name=APPLICATION)
    except psycopg2.Error as error:
        raise Unreachable(
            f"PostgreSQL at {where} cannot be reached ({_first_line(error)}): "
            "check that it runs and that POSTGRES_DSN is right."
        ) from error
    with transaction(conn) as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{_LOCK_TIMEOUT_MS}ms",))
    return conn


def server(dsn: str) -> str:
    """Host, port and database of a DSN in either of libpq's forms, for people: never its user's password.

    Raises `BadInput` for a DSN that is none.
    """
    try:
        parts = parse_dsn(dsn)
    except psycopg2.Error:
        # The driver's words quote the DSN, which may hold a password.
        raise BadInput("POSTGRES_DSN must read postgresql://user:password@host:5432/database.") from None
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def server_time(conn: Connection) -> datetime:
    """The source's clock: the one that stamps `inserted_at`, so that generated events are never in its future."""
    with transaction(conn) as cursor:
        cursor.execute("SELECT clock_timestamp()")
        row = cursor.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM gives exactly one row
    instant: datetime = row[0]
    return instant


@contextmanager
def transaction(conn: Connection) -> Iterator[Cursor]:
    """One transaction: committed at the end, rolled back on any exception.

    Raises `Unreachable` if the session is lost, `TransientSource` if the same may succeed later, `SourceFailure` for
    whatever else PostgreSQL refuses.
    """
    try:
        with conn, conn.cursor() as cursor:
            yield cursor
    except psycopg2.Error as error:
        state = error.pgcode
        told = _first_line(error)
        if conn.closed or (state or "").startswith(_CONNECTION_GONE):
            raise Unreachable(
                f"The connection to PostgreSQL was lost ({told}); what was committed before stays: "
                "check the server and run the command again."
            ) from error
        advice = _ADVICE.get(state or "")
        message = f"PostgreSQL refused a statement: {told}" + (f"; {advice}." if advice else ".")
        if state and state.startswith(_TRY_AGAIN):
            raise TransientSource(message, sqlstate=state) from error
        raise SourceFailure(message, sqlstate=state) from error


def _first_line(error: psycopg2.Error) -> str:
    primary = error.diag.message_primary if error.diag else None
    return (primary or str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
