"""What a session with PostgreSQL must be before anything is read in it, and what the reader may see of its tables.

Asked of the server, never believed: a pooler in between, a role's own settings or a policy on a table can each make a
session see less than is there without an error. Holds no connection of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from worker.config import Settings
from worker.errors import SourceFailure
from worker.sql import named

READER = "retailmedia reader"
"""Application name of every session opened here. For people: nothing decides by it, since a session can carry any."""

STAMPS = {"timestamp with time zone", "timestamp(6) with time zone"}
"""What `inserted_at` may be. One that is rounded can lie before the beginning of its transaction, below the horizon."""

EVENT_KINDS = {"r", "p"}
DIMENSION_KINDS = {"r", "p", "v"}
KINDS = {
    "r": "a table", "p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table",
    "S": "a sequence", "c": "a type", "t": "a TOAST table", "i": "an index",
}  # fmt: skip
"""Of `pg_class.relkind`, in words."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A relation as this role sees it. `kind` is its `relkind`, empty where there is none of that name."""

    name: str
    kind: str
    readable: bool
    some_columns: bool
    filtered: bool
    foreign: str
    role: str
    stamp: str = ""
    """The type of its `inserted_at`, empty without one."""


def wanted(settings: Settings) -> dict[str, str]:
    """What each session is asked to have in force, as `pg_settings` shows it."""
    return {
        "TimeZone": "UTC",
        "default_transaction_read_only": "on",
        "default_transaction_isolation": "read committed",
        "statement_timeout": str(settings.postgres_statement_timeout_seconds * 1000),
        "lock_timeout": str(settings.lock_wait_seconds * 1000),
        "idle_in_transaction_session_timeout": "600000",
        "row_security": "off",
    }


def options(settings: Settings, given: str = "") -> str:
    """libpq's `options` that ask for it, after those the DSN gives: where both name a setting, ours holds."""
    ours = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in wanted(settings).items())
    return f"{given} {ours}".strip()


def vouch(connection: Any, settings: Settings) -> None:
    """Makes sure that the session is one of our own and says so to the server; the horizon leaves such sessions out.

    Raises `SourceFailure` where others share it, or where it lacks a setting that was asked for.
    """
    where = settings.server_label("postgres")
    asked = {**wanted(settings), "application_name": READER, "client_encoding": "UTF8"}
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        if cursor.fetchone() != (connection.info.backend_pid,):
            raise SourceFailure(
                f"POSTGRES_DSN names a connection pooler such as PgBouncer at {where}: it gives a session of the server to "
                "several clients, so what is asked of a session does not hold and rows would be missed; name PostgreSQL itself."
            )
        cursor.execute(named("source", "settings"), {"names": list(asked)})
        found = dict(cursor.fetchall())
        lacking = [
            f"{name} is {found.get(name)!r}, not {value!r}" for name, value in asked.items() if found.get(name) != value
        ]
        if lacking:
            raise SourceFailure(
                f"PostgreSQL at {where} did not take over what its session was asked for: {', '.join(lacking)}; whatever "
                "lies between or forbids it must pass these settings on."
            )
        cursor.execute(named("source", "mark_reader"))


def refusal(found: Seen, *, events: bool) -> str:
    """Why nothing may be read from the relation, in one sentence; empty where it may.

    Of events every row must be in PostgreSQL itself and visible: a view may leave rows out, and the open transactions
    of a foreign server are not known here.
    """
    name, role = found.name, found.role
    if not found.kind:
        return f"Table {name} does not exist at the source, or role {role} may not use its schema."
    if found.kind not in (EVENT_KINDS if events else DIMENSION_KINDS):
        can = "a table" if events else "a table or a view"
        return f"{name} is {KINDS.get(found.kind, 'something else')} at the source, and must be {can}; rows could be missed."
    if found.foreign:
        return f"Part {found.foreign} of {name} is a foreign table, whose open transactions are not known here; rows would be missed."
    if not found.readable:
        some = ", only some of its columns" if found.some_columns else ""
        return f'Role {role} may not read table {name}{some}; as its owner: GRANT SELECT ON {name} TO "{role}";'
    if found.filtered:
        return (
            f"Row level security on {name} hides rows from role {role}, so they would be missed; as a superuser: "
            f'ALTER ROLE "{role}" BYPASSRLS; or let the role own the table without FORCE ROW LEVEL SECURITY.'
        )
    return ""


def unfit_stamp(found: Seen) -> str:
    """Why the `inserted_at` of an event table is no stamp to read by, in one sentence; empty where it is one."""
    if found.stamp in STAMPS:
        return ""
    return (
        f"Column inserted_at of {found.name} is {found.stamp or 'missing'}, and must be timestamp with time zone to the "
        f"microsecond, or rows would be missed; as its owner: ALTER TABLE {found.name} ALTER inserted_at TYPE timestamptz; "
        "or run seed/schema.sql."
    )


def waited_for(rows: Iterable[Sequence[Any]], seconds: int) -> str:
    """Who kept a table locked, for people: of (table, granted, pid, user, application, age, blocked by)."""
    told = []
    for table, granted, pid, user, application, age, blockers in rows:
        shown = f" ({application})" if application else ""
        verb = "holds" if granted else "waits for"
        behind = f" behind pid {', '.join(map(str, blockers))}" if blockers else ""
        old = f", whose transaction is {int((age or timedelta(0)).total_seconds())} s old,"
        told.append(f"pid {pid} of user {user}{shown}{old} {verb} ACCESS EXCLUSIVE on {table}{behind}")
    who = "; ".join(told) or "whoever had it locked has let it go since"
    return f"a lock was not granted within {seconds} s (LOCK_WAIT_SECONDS): {who}"
