"""Creates, checks and empties the source tables. What they are is said in `schema.sql`."""

from __future__ import annotations

from importlib import resources

from psycopg2.extensions import connection as Connection

from seed.connection import transaction
from seed.sql import statement


def create(conn: Connection) -> None:
    """Brings the database to the schema, from nothing or from the original project's tables.

    Running it again changes nothing. One transaction; raises `SourceFailure` if PostgreSQL refuses a part, and then
    nothing is changed.
    """
    text = resources.files("seed").joinpath("schema.sql").read_text(encoding="utf-8")
    with transaction(conn) as cursor:
        cursor.execute(text)


def ready(conn: Connection) -> bool:
    """Whether tables, column types, `inserted_at` and the triggers are in place. Takes no lock on the tables.

    Not the indexes: without them reading is slow, not wrong, and their owner may have built them under another name.
    """
    with transaction(conn) as cursor:
        cursor.execute(statement("schema_ready"))
        row = cursor.fetchone()
    return bool(row and row[0])


def ensure(conn: Connection) -> bool:
    """`create`, only where `ready` says no; returns whether it had to.

    A role that may write rows but not change tables can so go on using a schema that is complete, and a busy table
    is not locked for nothing.
    """
    if ready(conn):
        return False
    create(conn)
    return True


def reset(conn: Connection) -> None:
    """Empties all four tables at once; ids go on from where they were.

    A truncation leaves no trace a watermark could see: a copy elsewhere needs a full refresh afterwards.
    Raises `TransientSource` if a reader holds a table for longer than the session's lock timeout.
    """
    with transaction(conn) as cursor:
        cursor.execute(statement("reset"))
