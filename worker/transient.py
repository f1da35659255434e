"""Which errors are worth trying again: one table by PostgreSQL SQLSTATE, one by ClickHouse code. Data only.

What is not named here fails at once with its cause. Retries are bounded in tries and in total time; a window that
still fails is left to the next plan, which starts from the ledger.
"""

from __future__ import annotations

POSTGRES_CLASSES = {
    "08": "connection failures",
    "53": "out of resources: connections, memory, disk",
    "57": "operator intervention: shutdown, crash, cancelled statement",
}

POSTGRES_STATES = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55006": "object in use",
    "55P03": "lock not available",
    "58000": "system error",
    "58030": "I/O error",
    "72000": "snapshot too old",
}

CLICKHOUSE_CODES = {
    3: "UNEXPECTED_END_OF_FILE",
    32: "ATTEMPT_TO_READ_AFTER_EOF",
    74: "CANNOT_READ_FROM_FILE_DESCRIPTOR",
    75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",
    95: "CANNOT_READ_FROM_SOCKET",
    96: "CANNOT_WRITE_TO_SOCKET",
    159: "TIMEOUT_EXCEEDED",
    198: "DNS_ERROR",
    201: "QUOTA_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    225: "NO_ZOOKEEPER",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    244: "UNEXPECTED_ZOOKEEPER_ERROR",
    252: "TOO_MANY_PARTS",
    279: "ALL_CONNECTION_TRIES_FAILED",
    285: "TOO_FEW_LIVE_REPLICAS",
    286: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
    319: "UNKNOWN_STATUS_OF_INSERT",
    394: "QUERY_WAS_CANCELLED",
    425: "SYSTEM_ERROR",
    439: "CANNOT_SCHEDULE_TASK",
    473: "DEADLOCK_AVOIDED",
    517: "CANNOT_ASSIGN_ALTER",
    999: "KEEPER_EXCEPTION",
}

CLICKHOUSE_REFUSED_VALUES = {
    6: "CANNOT_PARSE_TEXT",
    38: "CANNOT_PARSE_DATE",
    41: "CANNOT_PARSE_DATETIME",
    53: "TYPE_MISMATCH",
    69: "ARGUMENT_OUT_OF_BOUND",
    70: "CANNOT_CONVERT_TYPE",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    407: "DECIMAL_OVERFLOW",
    469: "VIOLATED_CONSTRAINT",
    691: "UNKNOWN_ELEMENT_OF_ENUM",
}
"""Codes that speak of the values in a block: not worth the same try again, but some of its rows may still load."""


def postgres(sqlstate: str | None) -> bool:
    """Whether a statement that failed so may succeed later. No SQLSTATE means the connection itself failed."""
    return sqlstate is None or sqlstate[:2] in POSTGRES_CLASSES or sqlstate in POSTGRES_STATES


def clickhouse(code: int) -> bool:
    """Whether a statement that failed with this code may succeed later."""
    return code in CLICKHOUSE_CODES
