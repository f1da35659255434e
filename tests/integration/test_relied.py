"""Whatever a user's profile or a server's configuration sets, the same statements answer the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch
from uuid import uuid4

import clickhouse_driver
import pytest
from psycopg2.extensions import connection as Connection

from embedded.stack import Addresses
from tests.agreement import assert_agreement, sync
from tests.conftest import in_database
from tests.integration.test_pipeline import add, campaigns, write
from worker import queries, sink
from worker.celery import Servers
from worker.columns import Column
from worker.config import Settings, load
from worker.errors import RetailMediaError
from worker.relied import INSERTS, INSERTS_SINCE, SINCE, STATEMENTS, relied_on
from worker.sink import Sink

Hostile = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """Statements, of which the last is asked, and the settings that change what it answers."""

    hostile: Hostile
    asked: str
    before: tuple[str, ...] = ()
    limits: Hostile = field(default_factory=dict)


def _limit(limit: str, mode: str, asked: str, value: str = "break") -> Probe:
    """A limit of an administrator that is reached: an error, never a part of the answer."""
    return Probe({limit: 2, mode: value, "max_block_size": 1}, asked)


TWICE = "SELECT count(), sum(v) FROM twice FINAL WHERE d = '2026-01-01'"

PROBES: dict[str, Probe] = {
    "final": Probe({"final": 1}, "SELECT count() FROM twice"),
    "use_skip_indexes_if_final": Probe({"use_skip_indexes_if_final": 1, "use_skip_indexes_if_final_exact_mode": 0}, TWICE),
    "use_skip_indexes_if_final_exact_mode": Probe({"use_skip_indexes_if_final_exact_mode": 0}, TWICE),
    "do_not_merge_across_partitions_select_final": Probe(
        {"do_not_merge_across_partitions_select_final": 1}, "SELECT count() FROM across FINAL"
    ),
    "apply_deleted_mask": Probe({"apply_deleted_mask": 0}, "SELECT count() FROM masked"),
    "additional_table_filters": Probe({"additional_table_filters": "{'twice': 'id > 50'}"}, "SELECT count() FROM twice"),
    "additional_result_filter": Probe({"additional_result_filter": "number != 1"}, "SELECT number FROM numbers(3)"),
    "limit": Probe({"limit": 1}, "SELECT number FROM numbers(3)"),
    "offset": Probe({"offset": 1}, "SELECT number FROM numbers(3)"),
    "use_query_cache": Probe({"use_query_cache": 1}, "SELECT now() > toDateTime(0)"),
    "read_overflow_mode": _limit("max_rows_to_read", "read_overflow_mode", "SELECT sum(number) FROM numbers(100000)"),
    "group_by_overflow_mode": _limit(
        "max_rows_to_group_by", "group_by_overflow_mode",
        "SELECT count() FROM (SELECT intDiv(number, 3) AS part FROM numbers(1000) GROUP BY part)", "any",
    ),
    "sort_overflow_mode": _limit(
        "max_rows_to_sort", "sort_overflow_mode", "SELECT groupArray(n) FROM (SELECT -number AS n FROM numbers(9) ORDER BY n)"
    ),
    "result_overflow_mode": _limit("max_result_rows", "result_overflow_mode", "SELECT number FROM numbers(9)"),
    "timeout_overflow_mode": Probe(
        {"timeout_overflow_mode": "break", "max_block_size": 1},
        "SELECT sum(sleepEachRow(0.1)) FROM numbers(25)",
        limits={"max_execution_time": 1},
    ),
    "set_overflow_mode": _limit(
        "max_rows_in_set", "set_overflow_mode", "SELECT count() FROM numbers(9) WHERE number IN (SELECT number FROM numbers(9))"
    ),
    "join_overflow_mode": _limit(
        "max_rows_in_join", "join_overflow_mode",
        "SELECT count() FROM numbers(9) AS a INNER JOIN (SELECT number FROM numbers(9)) AS b ON a.number = b.number",
    ),
    "distinct_overflow_mode": _limit(
        "max_rows_in_distinct", "distinct_overflow_mode", "SELECT count() FROM (SELECT DISTINCT number % 100 FROM numbers(1000))"
    ),
    "join_use_nulls": Probe(
        {"join_use_nulls": 1},
        "SELECT b.number, b.x FROM numbers(2) AS a LEFT JOIN (SELECT number, 1 AS x FROM numbers(1)) AS b ON a.number = b.number "
        "ORDER BY a.number",
    ),
    "transform_null_in": Probe({"transform_null_in": 1}, "SELECT count() FROM nulls WHERE x IN (SELECT x FROM nulls)"),
    "aggregate_functions_null_for_empty": Probe(
        {"aggregate_functions_null_for_empty": 1}, "SELECT sum(number), max(number) FROM numbers(3) WHERE number > 5"
    ),
    "group_by_use_nulls": Probe(
        {"group_by_use_nulls": 1}, "SELECT number, count() FROM numbers(1) GROUP BY ROLLUP(number) ORDER BY count(), number"
    ),
    "cast_keep_nullable": Probe({"cast_keep_nullable": 1}, "SELECT toTypeName(CAST(x, 'Int64')) FROM nulls WHERE x = 1"),
    "data_type_default_nullable": Probe(
        {"data_type_default_nullable": 1},
        "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 'made' AND name = 'x'",
        ("CREATE OR REPLACE TABLE made (y Int8 NOT NULL, x Int8) ENGINE = MergeTree ORDER BY y",),
    ),
    "empty_result_for_aggregation_by_empty_set": Probe(
        {"empty_result_for_aggregation_by_empty_set": 1}, "SELECT count() FROM twice WHERE id > 1000"
    ),
    "empty_result_for_aggregation_by_constant_keys_on_empty_set": Probe(
        {"empty_result_for_aggregation_by_constant_keys_on_empty_set": 0}, "SELECT count() FROM twice WHERE id > 1000 GROUP BY 'a'"
    ),
    "union_default_mode": Probe({"union_default_mode": "DISTINCT"}, "SELECT 1 UNION SELECT 1"),
    "except_default_mode": Probe(
        {"except_default_mode": "DISTINCT"}, "SELECT count() FROM (SELECT intDiv(number, 2) FROM numbers(4) EXCEPT SELECT 7)"
    ),
    "intersect_default_mode": Probe(
        {"intersect_default_mode": "DISTINCT"},
        "SELECT count() FROM (SELECT intDiv(number, 2) AS n FROM numbers(4) INTERSECT SELECT intDiv(number, 2) FROM numbers(4))",
    ),
    "join_default_strictness": Probe(
        {"join_default_strictness": "ANY"},
        "SELECT count() FROM numbers(2) AS a JOIN (SELECT intDiv(number, 2) AS n FROM numbers(4)) AS b ON a.number = b.n",
    ),
    "count_distinct_implementation": Probe(
        {"count_distinct_implementation": "uniqHLL12"}, "SELECT count(DISTINCT number) FROM numbers(100000)"
    ),
    "prefer_column_name_to_alias": Probe(
        {"prefer_column_name_to_alias": 1}, "SELECT number + 1 AS number FROM numbers(3) WHERE number = 1"
    ),
    "enable_positional_arguments": Probe({"enable_positional_arguments": 0}, "SELECT -number FROM numbers(3) ORDER BY 1"),
    "enable_order_by_all": Probe({"enable_order_by_all": 0}, "SELECT -number FROM numbers(3) ORDER BY ALL"),
    "enable_unaligned_array_join": Probe(
        {"enable_unaligned_array_join": 1}, "SELECT a, b FROM (SELECT [1, 2] AS x, [3] AS y) ARRAY JOIN x AS a, y AS b"
    ),
    "short_circuit_function_evaluation": Probe(
        {"short_circuit_function_evaluation": "disable"}, "SELECT if(number = 0, 0, intDiv(10, number)) FROM numbers(3)"
    ),
    "decimal_check_overflow": Probe(
        {"decimal_check_overflow": 0}, "SELECT toDecimal64(materialize('999999999999999999'), 0) * toDecimal64(100, 0)"
    ),
    "session_timezone": Probe({"session_timezone": "Asia/Kathmandu"}, "SELECT toString(toDateTime(0)), toDate(toDateTime(80000))"),
    "enable_extended_results_for_datetime_functions": Probe(
        {"enable_extended_results_for_datetime_functions": 1}, "SELECT toTypeName(toStartOfMonth(toDate32('2026-01-02')))"
    ),
    "bool_true_representation": Probe({"bool_true_representation": "Y"}, "SELECT toString(materialize(true))"),
    "bool_false_representation": Probe({"bool_false_representation": "N"}, "SELECT toString(materialize(false))"),
    "insert_null_as_default": Probe(
        {"insert_null_as_default": 0}, "SELECT count() FROM defaults", ("INSERT INTO defaults (x) SELECT x FROM nulls",)
    ),
    "materialized_views_ignore_errors": Probe(
        {"materialized_views_ignore_errors": 1}, "SELECT 'the insert was refused'", ("INSERT INTO viewed SELECT 0",)
    ),
    "filter": Probe({"filter": "number != 1"}, "SELECT number FROM numbers(3)"),
    "select": Probe({"select": "number + 1"}, "SELECT number FROM numbers(3)"),
    "sort": Probe({"sort": "-number"}, "SELECT number FROM numbers(3)"),
    "order": Probe({"order": "number DESC"}, "SELECT number FROM numbers(3)"),
    "page": Probe({"page": 2, "limit": 1}, "SELECT number FROM numbers(3)"),
}  # fmt: skip

UNPROBED = {
    "enable_global_with_statement": "the analyzer of the embedded engine always does so",
    "alter_sync": "with one server there is nobody to wait for",
    "apply_patch_parts": "the product makes no patch parts",
    "apply_prewhere_after_final": "its results are the same; that it stays off keeps them so",
    "analyzer_compatibility_apply_final_to_all_joined_tables": "a defect of some versions, kept off",
    "discard_query_data": "the embedded engine hands its data over all the same",
    "defer_partition_pruning_after_final": "no partition of ours parts versions of a row",
}
"""Settings whose hostile values change nothing that can be asked here, with the reason why they are sent all the same."""

PREPARATIONS = (
    "CREATE TABLE twice (id Int64, d Date, v UInt64, INDEX by_d d TYPE minmax GRANULARITY 1) "
    "ENGINE = ReplacingMergeTree(v) ORDER BY id",
    "SYSTEM STOP MERGES twice",
    "INSERT INTO twice SELECT number, '2026-01-01', 1 FROM numbers(100)",
    "INSERT INTO twice SELECT number, '2026-01-02', 2 FROM numbers(40)",
    "CREATE TABLE across (id Int64, v UInt64) ENGINE = ReplacingMergeTree(v) PARTITION BY v ORDER BY id",
    "INSERT INTO across SELECT 1, 1",
    "INSERT INTO across SELECT 1, 2",
    "CREATE TABLE masked (id Int64) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO masked SELECT number FROM numbers(10)",
    "DELETE FROM masked WHERE id < 4",
    "CREATE TABLE nulls (x Nullable(Int64)) ENGINE = MergeTree ORDER BY tuple()",
    "INSERT INTO nulls SELECT arrayJoin([1, NULL])",
    "CREATE TABLE defaults (x Int64) ENGINE = MergeTree ORDER BY x",
    "CREATE TABLE viewed (x Int64) ENGINE = MergeTree ORDER BY x",
    "CREATE TABLE view_target (x Int64) ENGINE = MergeTree ORDER BY x",
    "CREATE MATERIALIZED VIEW broken_view TO view_target AS SELECT intDiv(1, x) AS x FROM viewed",
    "CREATE TABLE rows (x Int64) ENGINE = MergeTree ORDER BY x SETTINGS non_replicated_deduplication_window = 100",
    "CREATE TABLE summed (x Int64) ENGINE = SummingMergeTree ORDER BY tuple() SETTINGS non_replicated_deduplication_window = 100",
    "CREATE MATERIALIZED VIEW adding TO summed AS SELECT sum(x) AS x FROM rows",
)


class HostileClient(clickhouse_driver.Client):  # type: ignore[misc]
    """A session in which settings are in force beneath those sent with a statement, as from a profile."""

    in_force: ClassVar[Hostile] = {}

    def disconnect_on_error(self, query: str, settings: Hostile | None) -> Any:
        return super().disconnect_on_error(query, {**self.in_force, **(settings or {})})


@contextmanager
def profile(hostile: Hostile) -> Iterator[None]:
    """Sessions opened meanwhile have these settings."""
    with (
        patch.object(sink, "Client", HostileClient),
        patch.object(HostileClient, "in_force", hostile),
    ):
        yield


@pytest.fixture(scope="module")
def probed(stack: Addresses) -> Iterator[Settings]:
    """A database with the tables that the probes ask."""
    made = load(clickhouse_dsn=in_database(stack.clickhouse_dsn, f"t{uuid4().hex[:12]}"), retry_attempts=1)
    name = made.sink_address.database
    with Sink(made, database="default") as bare:
        bare.command("making room", f"CREATE DATABASE {name}")
    with Sink(made) as own:
        for statement in PREPARATIONS:
            own.command("preparing", statement)
    yield made
    with Sink(made, database="default") as bare:
        bare.command("cleaning up", f"DROP DATABASE {name} SYNC")


def answer(settings: Settings, probe: Probe, hostile: Hostile = {}) -> Any:  # noqa: B006
    """What the probe's last statement answers in a session with these settings in force, or that it was refused."""
    with profile(hostile), Sink(settings) as own:
        try:
            for statement in probe.before:
                own.command("preparing", statement)
            return own.query("asking", probe.asked, settings=probe.limits)
        except RetailMediaError:
            return "refused"


def test_every_setting_is_probed_or_says_why_not() -> None:
    sent = {*STATEMENTS, *SINCE}
    assert set(PROBES) | set(UNPROBED) == sent
    assert not set(PROBES) & set(UNPROBED)


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_profile_changes_no_answer(probed: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = PROBES[name]

    def asked(hostile: Hostile) -> Any:
        with Sink(probed) as own:
            for table in ("defaults", "viewed"):
                own.command("emptying", f"TRUNCATE TABLE {table}")
        return answer(probed, probe, hostile)

    right = asked({})
    limited = set(probe.hostile) & {key for key in probe.hostile if key.startswith("max_") and key != "max_block_size"}
    under = asked(probe.hostile)
    assert under == right or (limited and under == "refused")

    def unguarded(version: tuple[int, int], *, insert: bool = False) -> dict[str, Any]:
        return {key: value for key, value in relied_on(version, insert=insert).items() if key not in probe.hostile}

    monkeypatch.setattr(sink, "relied_on", unguarded)
    assert asked(probe.hostile) not in (right, "refused" if limited else None), "the probe sees nothing"


INSERTED: dict[str, tuple[Hostile, Callable[[Sink], Any]]] = {}


def inserts(*names: str, **hostile: Any) -> Callable[[Callable[[Sink], Any]], Callable[[Sink], Any]]:
    """Registers what is done with rows under hostile settings."""

    def register(function: Callable[[Sink], Any]) -> Callable[[Sink], Any]:
        for name in names:
            INSERTED[name] = (hostile, function)
        return function

    return register


def _rows(own: Sink) -> Any:
    return own.query("looking", "SELECT (SELECT count() FROM rows), (SELECT sum(x) FROM summed)")


@inserts("insert_deduplicate", "deduplicate_insert", insert_deduplicate=0, deduplicate_insert="disable")
def _once(own: Sink) -> Any:
    own.insert_rows("rows", ("x",), [(1,)], token="a")
    own.insert_rows("rows", ("x",), [(1,)], token="a")
    own.insert_columns("rows", {"x": Column("Int64", _numbers())}, token="b")
    own.insert_columns("rows", {"x": Column("Int64", _numbers())}, token="b")
    return _rows(own)


@inserts("deduplicate_blocks_in_dependent_materialized_views", deduplicate_blocks_in_dependent_materialized_views=0)
def _added_up(own: Sink) -> Any:
    """The server died after the rows and before what is added up from them: sent again, they are."""
    own.command("breaking the view", "DETACH TABLE adding")
    own.insert_rows("rows", ("x",), [(5,)], token="c")
    own.command("mending the view", "ATTACH TABLE adding")
    own.insert_rows("rows", ("x",), [(5,)], token="c")
    own.insert_rows("rows", ("x",), [(5,)], token="c")
    return _rows(own)


def _numbers() -> Any:
    import numpy as np

    return np.arange(3, dtype=np.int64)


@pytest.mark.parametrize("name", sorted(INSERTED))
def test_a_profile_changes_no_insert(probed: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile, work = INSERTED[name]

    def done(hostile: Hostile) -> Any:
        with Sink(probed) as own:
            own.command("emptying", "TRUNCATE TABLE rows")
            own.command("emptying", "TRUNCATE TABLE summed")
        with profile(hostile), Sink(probed) as own:
            return work(own)

    right = done({})
    assert done(hostile) == right

    def unguarded(version: tuple[int, int], *, insert: bool = False) -> dict[str, Any]:
        return {key: value for key, value in relied_on(version, insert=insert).items() if key not in hostile}

    monkeypatch.setattr(sink, "relied_on", unguarded)
    assert done(hostile) != right, "the probe sees nothing"


def test_every_setting_of_inserts_is_tried() -> None:
    # The embedded engine reads an insert's data from a file, where nothing is asynchronous. What is out of a time's range
    # never comes so far: the rules of the pipeline set such rows aside.
    assert set(INSERTED) | {"async_insert", "date_time_overflow_behavior"} == {*INSERTS, *INSERTS_SINCE}


def test_a_statement_own_settings_win(probed: Settings) -> None:
    with Sink(probed) as own:
        (row,) = own.query(
            "asking", "SELECT sumOrDefault(number) FROM numbers(0) SETTINGS aggregate_functions_null_for_empty = 1"
        )
        assert own.query("asking", "SELECT number FROM numbers(3) SETTINGS limit = 1") == [(0,)]
        assert own.query("asking", "SELECT count() FROM twice SETTINGS final = 1") == [(100,)]
        assert row is not None


def test_versions_are_sent_what_they_know() -> None:
    assert relied_on((24, 8))["use_skip_indexes_if_final"] == 0
    assert not set(relied_on((24, 8), insert=True)) & {
        "use_skip_indexes_if_final_exact_mode",
        "filter",
        "deduplicate_insert",
    }
    assert (
        relied_on((25, 5))["use_skip_indexes_if_final"]
        == relied_on((25, 5))["use_skip_indexes_if_final_exact_mode"]
        == 1
    )
    assert relied_on((26, 9), insert=True)["deduplicate_insert"] == "enable"


def test_a_sync_under_every_hostile_setting_at_once_agrees(servers: Servers, writer: Connection) -> None:
    first, second, *_ = campaigns(writer)
    add(writer, "impressions", first, 300)
    add(writer, "clicks", first, 30)
    # A limit that is reached is an error; what a limit does to answers is asked above.
    hostile = {
        name: value
        for probe in PROBES.values()
        for name, value in probe.hostile.items()
        if not name.startswith("max_") and name not in ("filter", "select", "sort", "order", "additional_result_filter")
    }
    with profile(hostile):
        here = Servers.open(servers.settings)
        try:
            sync(here)
            write(
                writer,
                "UPDATE impressions SET campaign_id = %s, created_at = created_at - interval '2 days' WHERE id %% 5 = 0",
                second,
            )
            write(writer, "UPDATE campaign SET bid = bid + 1 WHERE id = %s", second)
            sync(here)
            found = {name: queries.run(here.sink, query, {}).rows for name, query in asked().items()}
        finally:
            here.close()
    assert_agreement(writer, servers)
    assert found == {name: queries.run(servers.sink, query, {}).rows for name, query in asked().items()}


def asked() -> dict[str, Any]:
    """The analyst's queries."""
    return {query.name: query for query in queries.queries()}
