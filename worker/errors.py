"""Every error the product raises on purpose, and the exit code each becomes. Holds no I/O and no handling.

An error is one sentence for a person: what happened, where, what to do. The class says what a program may do
about it: only `TransientSource` and `TransientSink` are worth trying again.
"""

from __future__ import annotations


class RetailMediaError(Exception):
    """The command failed."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class BadInput(RetailMediaError):
    """An argument or setting is not usable as given."""

    exit_code = 2


class QualityFailure(RetailMediaError):
    """A data-quality check of severity error found rows."""

    exit_code = 3


class Unreachable(RetailMediaError):
    """A server, or every worker, cannot be reached."""

    exit_code = 4


class SourceFailure(RetailMediaError):
    """PostgreSQL refused a statement."""

    def __init__(self, message: str | None = None, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class TransientSource(SourceFailure):
    """PostgreSQL could not answer just now; the same statement may succeed later."""


class SourceMismatch(RetailMediaError):
    """A source table has not the columns that are synced."""


class DimensionShrank(RetailMediaError):
    """A dimension shows so few of its rows that nobody believes it."""


class HorizonUnsafe(RetailMediaError):
    """The safe horizon cannot be computed on this server, so nothing may be synced from it."""


class SourceWentBack(RetailMediaError):
    """PostgreSQL is older than what was loaded from it, so nothing more is loaded until a full refresh."""


class SinkFailure(RetailMediaError):
    """ClickHouse refused a statement."""

    def __init__(self, message: str | None = None, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class TransientSink(SinkFailure):
    """ClickHouse could not answer just now; the same statement may succeed later."""


class RefusedRows(SinkFailure):
    """ClickHouse refused the values of a block, so at least one of its rows cannot be loaded as it is."""


class ScatteredIds(RetailMediaError):
    """The ids of an event table lie in too many partitions for the rows there are."""


class VerificationFailed(RetailMediaError):
    """What ClickHouse holds for a window is not what was read from PostgreSQL."""


class Superseded(RetailMediaError):
    """A newer full refresh took over; this one changed nothing."""


class SchemaMismatch(RetailMediaError):
    """The ClickHouse schema is not the one this version was written for."""
