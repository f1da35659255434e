"""ClickHouse settings that results depend on, at the values the statements were written for. Data, and one choice by version.

A user's profile, a role, the server's configuration or its `compatibility` may set any of them otherwise, and then the
same statement would answer something else without a word. So each is sent with every statement, as important: a server
that does not know it must refuse the statement. What a statement says in its own SETTINGS clause still wins.
"""

from __future__ import annotations

from collections.abc import Mapping

Version = tuple[int, int]

OLDEST: Version = (24, 8)

INSERTS: Mapping[str, str | int] = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "date_time_overflow_behavior": "throw",
    # A commit that came twice is counted once also in what is added up from commits, and one that was added up nowhere
    # because the server died is added up when it is sent again.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}
"""Of inserts: without these an insert would mean something else."""

STATEMENTS: Mapping[str, str | int] = {
    # Rows that are read, and rows that are left out.
    "final": 0,
    "use_skip_indexes_if_final": 0,
    "do_not_merge_across_partitions_select_final": 0,
    "apply_deleted_mask": 1,
    "additional_table_filters": "{}",
    "additional_result_filter": "",
    "limit": 0,
    "offset": 0,
    "use_query_cache": 0,
    # A limit that is reached is an error, never a part of the answer.
    "read_overflow_mode": "throw",
    "group_by_overflow_mode": "throw",
    "sort_overflow_mode": "throw",
    "result_overflow_mode": "throw",
    "timeout_overflow_mode": "throw",
    "set_overflow_mode": "throw",
    "join_overflow_mode": "throw",
    "distinct_overflow_mode": "throw",
    # What NULL and nothing mean.
    "join_use_nulls": 0,
    "transform_null_in": 0,
    "aggregate_functions_null_for_empty": 0,
    "group_by_use_nulls": 0,
    "cast_keep_nullable": 0,
    "data_type_default_nullable": 0,
    "empty_result_for_aggregation_by_empty_set": 0,
    "empty_result_for_aggregation_by_constant_keys_on_empty_set": 1,
    # What words of SQL mean.
    "union_default_mode": "",
    "except_default_mode": "ALL",
    "intersect_default_mode": "ALL",
    "join_default_strictness": "ALL",
    "count_distinct_implementation": "uniqExact",
    "prefer_column_name_to_alias": 0,
    "enable_positional_arguments": 1,
    "enable_order_by_all": 1,
    "enable_global_with_statement": 1,
    "enable_unaligned_array_join": 0,
    "short_circuit_function_evaluation": "enable",
    # What numbers, times and texts mean.
    "decimal_check_overflow": 1,
    "session_timezone": "",
    "enable_extended_results_for_datetime_functions": 0,
    "bool_true_representation": "true",
    "bool_false_representation": "false",
    # What has been done when a statement has ended.
    "alter_sync": 1,
    "materialized_views_ignore_errors": 0,
    "insert_null_as_default": 1,
}
"""Of every statement."""

SINCE: Mapping[str, tuple[Version, str | int]] = {
    # Of these versions a granule that an index leaves out is read after all where a newer version of its rows may be.
    "use_skip_indexes_if_final": ((25, 5), 1),
    "use_skip_indexes_if_final_exact_mode": ((25, 5), 1),
    "apply_patch_parts": ((25, 5), 1),
    "apply_prewhere_after_final": ((25, 12), 0),
    "analyzer_compatibility_apply_final_to_all_joined_tables": ((26, 8), 0),
    "filter": ((26, 8), ""),
    "select": ((26, 8), ""),
    "sort": ((26, 8), ""),
    "order": ((26, 8), ""),
    "page": ((26, 8), 0),
    "discard_query_data": ((26, 8), 0),
    "defer_partition_pruning_after_final": ((26, 5), 1),
}
"""Settings that older versions do not know, or need at another value, with the version from which on they are sent."""

INSERTS_SINCE: Mapping[str, tuple[Version, str | int]] = {"deduplicate_insert": ((26, 2), "enable")}
"""The same, of inserts."""


def relied_on(version: Version, *, insert: bool = False) -> dict[str, str | int]:
    """What is sent with every statement, or with every insert of rows, to a server of that version (major, minor)."""
    sent = {**STATEMENTS, **INSERTS} if insert else dict(STATEMENTS)
    later = {**SINCE, **INSERTS_SINCE} if insert else SINCE
    return {**sent, **{name: value for name, (since, value) in later.items() if version >= since}}
