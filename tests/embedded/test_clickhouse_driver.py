"""ClickHouse behind the native protocol as clickhouse-driver sees it: every way in and out, errors, sessions."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from clickhouse_driver import Client, dbapi
from clickhouse_driver.errors import ServerException
from clickhouse_driver.protocol import ServerPacketTypes

from tests.embedded.conftest import Connect

BOTH_WAYS = pytest.mark.parametrize("compression", [False, "lz4"], ids=["plain", "lz4"])
ENDLESS = "SELECT count() FROM numbers_mt(1000000000000) WHERE number % 7 = 3"


def code(execute: Callable[[], Any]) -> int:
    with pytest.raises(ServerException) as caught:
        execute()
    return int(caught.value.code)


def on_the_wire(client: Client, sql: str) -> int | None:
    """Run a statement without the client, which disconnects on every error; return the error's code."""
    connection = client.connection
    connection.send_query(sql)
    connection.send_external_tables(None)
    while True:
        packet = connection.receive_packet()
        if packet.type == ServerPacketTypes.EXCEPTION:
            connection.is_query_executing = False
            return int(packet.exception.code)
        if packet.type == ServerPacketTypes.END_OF_STREAM:
            return None


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


class TestReading:
    @BOTH_WAYS
    def test_rows(self, connect: Connect, compression: Any) -> None:
        client = connect(compression=compression)
        rows, columns = client.execute(
            "SELECT number AS n, toString(number) AS s FROM numbers(3)", with_column_types=True
        )
        assert rows == [(0, "0"), (1, "1"), (2, "2")]
        assert columns == [("n", "UInt64"), ("s", "String")]

    @BOTH_WAYS
    def test_many_blocks_arrive_whole_and_in_order(self, connect: Connect, compression: Any) -> None:
        client = connect(compression=compression)
        (numbers,) = client.execute("SELECT number FROM numbers(300000)", columnar=True)
        assert list(numbers) == list(range(300_000))

    @BOTH_WAYS
    def test_numpy(self, connect: Connect, compression: Any) -> None:
        client = connect(compression=compression, settings={"use_numpy": True})
        n, s = client.execute("SELECT number, toString(number) FROM numbers(100000)", columnar=True)
        assert n.dtype == np.uint64
        assert n.sum() == 99_999 * 50_000
        assert s[-1] == "99999"

    def test_streaming_takes_rows_as_they_come(self, client: Client) -> None:
        stream = client.execute_iter("SELECT number FROM numbers(1000000000000)", {}, settings={"max_block_size": 1000})
        assert [row[0] for row in itertools.islice(stream, 5000)] == list(range(5000))
        client.disconnect()
        assert client.execute("SELECT 1") == [(1,)]

    def test_streaming_to_the_end(self, client: Client) -> None:
        assert sum(row[0] for row in client.execute_iter("SELECT number FROM numbers(200000)")) == 199_999 * 100_000

    @pytest.mark.parametrize(
        ("sql", "columns"),
        [
            ("SELECT 1 AS x WHERE 0", [("x", "UInt8")]),
            ("SELECT 1 AS x, 'a' AS y WHERE 0 FORMAT CSV SETTINGS max_threads = 1", [("x", "UInt8"), ("y", "String")]),
            ("(SELECT 1 AS x WHERE 0) UNION ALL (SELECT 2 WHERE 0);", [("x", "UInt8")]),
            ("WITH 1 AS one SELECT one WHERE 0 -- nothing", [("one", "UInt8")]),
            ("SHOW TABLES LIKE 'nothing'", [("name", "String")]),
        ],
    )
    def test_an_empty_result_has_columns(self, client: Client, sql: str, columns: Any) -> None:
        assert client.execute(sql, with_column_types=True) == ([], columns)

    def test_dataframe_free_paths_report_progress_and_profile(self, client: Client) -> None:
        client.execute("SELECT number FROM numbers(200000)")
        assert client.last_query.progress.rows == 200_000
        assert client.last_query.progress.bytes == 1_600_000
        assert client.last_query.profile_info.rows == 200_000
        assert client.last_query.profile_info.blocks > 1

    def test_progress_comes_while_a_statement_runs(self, client: Client) -> None:
        told = client.execute_with_progress("SELECT count() FROM numbers(2000000000) WHERE number % 7 = 3")
        steps = list(told)
        assert len(steps) > 1
        assert [rows for rows, _ in steps] == sorted(rows for rows, _ in steps)
        assert steps[-1][0] == 2_000_000_000
        assert told.get_result() == [(285_714_286,)]

    @pytest.mark.parametrize(
        "sql",
        [
            "/* a */ -- b\n (SELECT 1)",
            "SELECT 1 FORMAT JSON",
            "select 1;",
            "FROM system.one SELECT 1",
            "WITH x AS (SELECT 1 AS y) SELECT y FROM x",
            "SELECT 1 UNION DISTINCT SELECT 1",
            "EXISTS DATABASE system",
            "SELECT 1 SETTINGS max_threads = 1",
        ],
    )
    def test_every_spelling_of_one(self, client: Client, sql: str) -> None:
        assert client.execute(sql) == [(1,)]

    def test_statements_about_the_schema(self, client: Client, database: str) -> None:
        client.execute("CREATE TABLE t (a Int64, b String DEFAULT 'x') ENGINE = MergeTree ORDER BY a")
        assert client.execute("SHOW TABLES") == [("t",)]
        assert [row[:2] for row in client.execute("DESCRIBE TABLE t")] == [("a", "Int64"), ("b", "String")]
        assert client.execute("EXISTS t") == [(1,)]
        assert "ENGINE = MergeTree" in client.execute("SHOW CREATE TABLE t")[0][0]
        assert client.execute("EXPLAIN SELECT * FROM t")
        assert client.execute("CHECK TABLE t SETTINGS check_query_single_value_result = 1") == [(1,)]
        client.execute("INSERT INTO t (a) SELECT number FROM numbers(10)")
        client.execute("ALTER TABLE t DELETE WHERE a < 5 SETTINGS mutations_sync = 2")
        client.execute("OPTIMIZE TABLE t FINAL")
        assert (
            client.execute(
                "SELECT count(), sum(rows) FROM t, (SELECT rows FROM system.parts WHERE active AND "
                f"database = '{database}') AS p"
            )[0][0]
            == 5
        )
        client.execute("SYSTEM FLUSH LOGS")
        client.execute("RENAME TABLE t TO u")
        client.execute("TRUNCATE TABLE u")
        client.execute("DROP TABLE u SYNC")
        assert client.execute("SHOW TABLES") == []

    def test_tables_are_exchanged_and_partitions_replaced(self, client: Client, database: str) -> None:
        for name in "ab":
            client.execute(f"CREATE TABLE {name} (d Date, n Int64) ENGINE = MergeTree PARTITION BY d ORDER BY n")
            client.execute(f"INSERT INTO {name} VALUES", [(np.datetime64("2026-01-01").item(), ord(name))])
        before = dict(client.execute("SELECT name, uuid FROM system.tables WHERE database = %(d)s", {"d": database}))
        client.execute("EXCHANGE TABLES a AND b")
        after = dict(client.execute("SELECT name, uuid FROM system.tables WHERE database = %(d)s", {"d": database}))
        assert before == {"a": after["b"], "b": after["a"]}
        assert client.execute("SELECT n FROM a") == [(ord("b"),)]
        client.execute("ALTER TABLE a REPLACE PARTITION '2026-01-01' FROM b")
        assert client.execute("SELECT n FROM a") == [(ord("a"),)]


class TestInserting:
    @pytest.fixture
    def table(self, client: Client) -> str:
        client.execute("CREATE TABLE t (a Int64, b String, c Int64 DEFAULT a * 2) ENGINE = MergeTree ORDER BY a")
        return "t"

    @BOTH_WAYS
    def test_rows(self, connect: Connect, table: str, compression: Any) -> None:
        client = connect(compression=compression)
        assert client.execute("INSERT INTO t (a, b) VALUES", [(1, "x"), (2, "y" * 300)]) == 2
        assert client.execute("SELECT * FROM t ORDER BY a") == [(1, "x", 2), (2, "y" * 300, 4)]
        assert client.last_query.progress.rows == 2

    @BOTH_WAYS
    def test_columns_in_many_blocks(self, connect: Connect, table: str, compression: Any) -> None:
        client = connect(compression=compression, settings={"insert_block_size": 1000})
        numbers = list(range(10_500))
        columns: list[list[Any]] = [numbers, [str(n) for n in numbers]]
        assert client.execute("INSERT INTO t (a, b) VALUES", columns, columnar=True) == 10_500
        assert client.execute("SELECT count(), sum(a), sum(toInt64(b)) FROM t")[0] == (10_500,) + (sum(numbers),) * 2
        # Blocks are squashed, as a real server does: one part, written or not written as a whole.
        assert client.execute(
            "SELECT count() FROM system.parts WHERE active AND table = 't' AND database = currentDatabase()"
        ) == [(1,)]

    @BOTH_WAYS
    def test_numpy_blocks(self, connect: Connect, table: str, compression: Any) -> None:
        client = connect(compression=compression, settings={"use_numpy": True})
        numbers = np.arange(131_072)
        strings = np.array([f"s{n}" for n in numbers], dtype=object)
        for _ in range(3):
            client.execute("INSERT INTO t VALUES", [numbers, strings, numbers], columnar=True)
        assert client.execute("SELECT count(), uniqExact(b), sum(c) FROM t", columnar=True)[0][0] == 3 * 131_072

    def test_a_generator(self, client: Client, table: str) -> None:
        assert client.execute("INSERT INTO t (a, b) VALUES", ((n, "x") for n in range(5000))) == 5000

    def test_nothing(self, client: Client, table: str) -> None:
        assert client.execute("INSERT INTO t VALUES", []) == 0
        assert client.execute("SELECT count() FROM t") == [(0,)]

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO t (b, a) VALUES",
            'insert into table t (`b`, "a") values',
            "INSERT INTO t (b, a) FORMAT Native",
            "INSERT /* note */ INTO t (* EXCEPT(c)) VALUES",
            "INSERT INTO t (b, a) SETTINGS max_threads = 1 VALUES",
            "INSERT INTO t (a, b) SELECT a, b FROM input('b String, a Int64') FORMAT Native",
        ],
    )
    def test_every_form_that_takes_data(self, client: Client, table: str, sql: str) -> None:
        client.execute(sql, [{"a": 7, "b": "q"}])
        assert client.execute("SELECT * FROM t") == [(7, "q", 14)]

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO t VALUES (7, 'q', 14)",
            "INSERT INTO t (a, b) VALUES (7, 'q');",
            "INSERT INTO t SELECT 7, 'q', 14",
            "INSERT INTO t (a, b) WITH 7 AS x SELECT x, 'q'",
            "INSERT INTO t (a, b) (SELECT 7, 'q')",
            "WITH x AS (SELECT 7 AS a) INSERT INTO t (a, b) SELECT a, 'q' FROM x",
        ],
    )
    def test_every_form_that_takes_none(self, client: Client, table: str, sql: str) -> None:
        client.execute(sql)
        assert client.execute("SELECT * FROM t") == [(7, "q", 14)]

    @pytest.mark.parametrize("how", ["sent", "in the statement"])
    def test_a_token_inserts_once(self, client: Client, how: str) -> None:
        client.execute(
            "CREATE TABLE d (a Int64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
        )

        def insert(token: str, value: int) -> None:
            if how == "sent":
                client.execute("INSERT INTO d VALUES", [(value,)], settings={"insert_deduplication_token": token})
            else:
                client.execute(f"INSERT INTO d SETTINGS insert_deduplication_token = '{token}' VALUES", [(value,)])

        for token, value in [("x", 1), ("x", 2), ("y", 1), ("x", 1)]:
            insert(token, value)
        assert client.execute("SELECT a FROM d") == [(1,), (1,)]
        client.execute("INSERT INTO d VALUES", [(5,)])
        assert client.execute("SELECT count() FROM d") == [(3,)]

    def test_a_refused_insert_leaves_nothing(self, client: Client) -> None:
        client.execute("CREATE TABLE r (a Int64, CONSTRAINT small CHECK a < 1000) ENGINE = MergeTree ORDER BY a")
        settings = {"insert_block_size": 500}
        assert (
            code(lambda: client.execute("INSERT INTO r VALUES", [(n,) for n in range(5000)], settings=settings)) == 469
        )
        assert client.execute("SELECT count() FROM r") == [(0,)]

    def test_a_client_failing_mid_insert_leaves_nothing(self, client: Client, table: str) -> None:
        def rows() -> Iterator[tuple[int, str]]:
            yield from ((n, "x") for n in range(3000))
            raise KeyError("the source broke")

        with pytest.raises(KeyError):
            client.execute("INSERT INTO t (a, b) VALUES", rows(), settings={"insert_block_size": 1000})
        assert client.execute("SELECT count() FROM t") == [(0,)]

    def test_too_many_parts(self, client: Client) -> None:
        client.execute(
            "CREATE TABLE p (a Int64) ENGINE = MergeTree ORDER BY a SETTINGS parts_to_throw_insert = 1, parts_to_delay_insert = 1"
        )
        client.execute("SYSTEM STOP MERGES p")
        client.execute("INSERT INTO p VALUES", [(1,)])
        assert code(lambda: [client.execute("INSERT INTO p VALUES", [(n,)]) for n in range(5)]) == 252


class TestErrors:
    @pytest.mark.parametrize(
        ("sql", "expected"),
        [
            ("SELECT nosuch", 47),
            ("SELECT * FROM nosuch", 60),
            ("SELECT * FROM nosuch.t", 81),
            ("SELEC 1", 62),
            ("", 62),
            ("-- nothing", 62),
            ("SELECT 1; SELECT 2", 62),
            ("SELECT throwIf(number = 150000) FROM numbers(200000)", 395),
            ("SELECT toInt64('x')", 6),
            ("SELECT groupArray(number) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000", 241),
            ("SELECT sleep(3), count() FROM numbers(10) SETTINGS max_execution_time = 0.1", 159),
            ("SELECT 1 INTO OUTFILE 'x'", 358),
            ("INSERT INTO nosuch VALUES (1)", 60),
            ("DROP TABLE nosuch", 60),
            ("SELECT * FROM numbers(10) SETTINGS nosuch = 1", 115),
        ],
    )
    def test_a_code_comes_through_and_the_connection_stays(self, client: Client, sql: str, expected: int) -> None:
        client.execute("CREATE TEMPORARY TABLE mine (a Int8)")
        assert on_the_wire(client, sql) == expected
        assert client.execute("SELECT count() FROM mine") == [(0,)]

    @pytest.mark.parametrize(
        ("sql", "expected"), [("INSERT INTO nosuch VALUES", 60), ("INSERT INTO e (zz) VALUES", 16)]
    )
    def test_an_insert_is_refused_before_its_data(self, client: Client, sql: str, expected: int) -> None:
        client.execute("CREATE TABLE e (a Int64) ENGINE = MergeTree ORDER BY a")
        assert code(lambda: client.execute(sql, [(1,)])) == expected
        assert client.execute("INSERT INTO e VALUES", [(1,)]) == 1

    @pytest.mark.parametrize(("user", "password"), [("retailmedia", "wrong"), ("nobody", ""), ("", "")])
    def test_wrong_access(self, address: dict[str, Any], user: str, password: str) -> None:
        client = Client(**{**address, "user": user, "password": password})
        assert code(lambda: client.execute("SELECT 1")) == 516

    def test_a_database_that_does_not_exist_yet(self, address: dict[str, Any], connect: Connect, database: str) -> None:
        client = connect(database=f"{database}_later")
        for _ in range(2):
            assert code(lambda: client.execute("SELECT 1")) == 81
        connect().execute(f"CREATE DATABASE {database}_later")
        assert client.execute("SELECT currentDatabase()") == [(f"{database}_later",)]
        client.execute(f"DROP DATABASE {database}_later")

    def test_bytes_that_are_not_utf8(self, client: Client) -> None:
        rows = client.execute("SELECT unhex('ff00'), 'é'", settings={"strings_as_bytes": True})
        assert rows == [(b"\xff\x00", "é".encode())]


class TestSettings:
    def test_they_last_one_statement(self, client: Client) -> None:
        asked = "SELECT getSetting('max_block_size'), getSetting('max_threads')"
        before = client.execute(asked)
        assert client.execute(asked, settings={"max_block_size": 123, "max_threads": 3}) == [(123, 3)]
        assert client.execute(asked, settings={"max_block_size": 124}) == [(124, before[0][1])]
        assert client.execute(asked) == before

    def test_a_sessions_own_last(self, client: Client, connect: Connect) -> None:
        asked = "SELECT getSetting('max_block_size'), getSetting('log_comment')"
        client.execute("SET max_block_size = 77, log_comment = 'a\\tb\\'c'")
        assert client.execute(asked) == [(77, "a\tb'c")]
        assert client.execute(asked, settings={"max_block_size": 5, "log_comment": "x"}) == [(5, "x")]
        assert client.execute(asked) == [(77, "a\tb'c")]
        client.execute("SET max_block_size = DEFAULT", settings={"log_comment": "y"})
        assert client.execute(asked) == [(65409, "a\tb'c")]
        assert connect().execute(asked) == [(65409, "")]

    def test_unknown_ones_are_ignored_unless_important(self, connect: Connect) -> None:
        assert connect(settings={"nosuch_setting": 1}).execute("SELECT 1") == [(1,)]
        strict = connect(settings={"nosuch_setting": 1}, settings_is_important=True)
        assert code(lambda: strict.execute("SELECT 1")) == 115

    def test_the_products_important_ones_are_known(self, connect: Connect) -> None:
        client = connect(
            settings_is_important=True,
            settings={"async_insert": 0, "insert_deduplicate": 1, "date_time_overflow_behavior": "throw"},
        )
        assert client.execute("SELECT getSetting('date_time_overflow_behavior')") == [("throw",)]

    def test_a_bad_value_is_refused_and_forgotten(self, client: Client) -> None:
        assert code(lambda: client.execute("SELECT 1", settings={"max_threads": "many", "max_block_size": 5})) > 0
        assert client.execute("SELECT getSetting('max_block_size')") == [(65409,)]

    def test_readonly_lasts_one_statement(self, client: Client) -> None:
        client.execute("CREATE TABLE w (a Int64) ENGINE = MergeTree ORDER BY a")
        insert = "INSERT INTO w SELECT 1"
        assert code(lambda: client.execute(insert, settings={"readonly": 1})) == 164
        client.execute(insert)
        assert client.execute("SELECT count() FROM w") == [(1,)]

    def test_time_is_utc(self, client: Client) -> None:
        assert client.execute("SELECT timezone(), toTypeName(now64(6))") == [("UTC", "DateTime64(6)")]


class TestSessions:
    def test_temporary_tables_are_a_connections_own(self, client: Client, connect: Connect) -> None:
        client.execute("CREATE TEMPORARY TABLE mine (a Int64)")
        client.execute("INSERT INTO mine VALUES", [(1,), (2,)])
        assert client.execute("SELECT sum(a) FROM mine", settings={"max_threads": 1}) == [(3,)]
        assert code(lambda: connect().execute("SELECT * FROM mine")) == 60
        client.disconnect()
        assert code(lambda: client.execute("SELECT * FROM mine")) == 60

    def test_use_lasts(self, client: Client) -> None:
        client.execute("USE system")
        assert client.execute("SELECT currentDatabase()") == [("system",)]

    @BOTH_WAYS
    def test_external_tables(self, connect: Connect, compression: Any) -> None:
        client = connect(compression=compression)
        given = [
            {
                "name": "ids",
                "structure": [("id", "Int64"), ("s", "LowCardinality(String)")],
                "data": [{"id": 3, "s": "a"}],
            },
            {"name": "none", "structure": [("x", "Int8")], "data": []},
        ]
        sql = "SELECT number, s, (SELECT count() FROM none) FROM numbers(10) AS n JOIN ids ON id = number"
        for _ in range(2):
            assert client.execute(sql, external_tables=given) == [(3, "a", 0)]
        assert code(lambda: client.execute(sql)) == 60

    def test_dbapi(self, address: dict[str, Any], database: str) -> None:
        with dbapi.connect(**{**address, "database": database}) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (a Int64, b Nullable(String)) ENGINE = MergeTree ORDER BY a")
            cursor.executemany("INSERT INTO t (a, b) VALUES", [(1, "x"), (2, None)])
            assert cursor.rowcount == 2
            cursor.execute("SELECT a, b FROM t WHERE a >= %(least)s ORDER BY a", {"least": 1})
            assert cursor.description[0][:2] == ("a", "Int64")
            assert cursor.fetchone() == (1, "x")
            assert cursor.fetchall() == [(2, None)]
            cursor.set_stream_results(True, 1000)
            cursor.execute("SELECT number FROM numbers(5000)")
            assert len(cursor.fetchall()) == 5000
        with dbapi.connect(**address) as connection, connection.cursor() as cursor:
            with pytest.raises(dbapi.errors.OperationalError, match="nosuch"):
                cursor.execute("SELECT nosuch")


class TestStopping:
    def running_queries(self, client: Client, like: str) -> int:
        found = client.execute(
            "SELECT count() FROM system.processes WHERE query LIKE %(like)s AND query NOT LIKE '%%system.processes%%'",
            {"like": like},
        )
        return int(found[0][0])

    def test_cancel_stops_a_running_query(self, client: Client, connect: Connect) -> None:
        progress = client.execute_with_progress(ENDLESS)
        next(iter(progress))
        client.cancel()
        assert self.running_queries(connect(), "%1000000000000%") == 0
        assert client.execute("SELECT 1") == [(1,)]

    def test_cancel_stops_a_stream(self, client: Client) -> None:
        stream = client.execute_iter("SELECT number FROM numbers(1000000000000)")
        next(stream)
        client.cancel()
        assert client.execute("SELECT 1") == [(1,)]

    def test_leaving_stops_a_running_query(self, client: Client, connect: Connect) -> None:
        other = connect()
        progress = client.execute_with_progress(ENDLESS)
        next(iter(progress))
        assert self.running_queries(other, "%1000000000000%") == 1
        client.disconnect()
        until(lambda: self.running_queries(other, "%1000000000000%") == 0)

    def test_kill_query_by_the_clients_id(self, client: Client, connect: Connect) -> None:
        outcome: list[int] = []
        thread = threading.Thread(
            target=lambda: outcome.append(code(lambda: client.execute(ENDLESS, query_id="the-long-one")))
        )
        thread.start()
        other = connect()
        until(lambda: self.running_queries(other, "%1000000000000%") == 1)
        other.execute("KILL QUERY WHERE query_id = 'the-long-one' SYNC")
        thread.join(30)
        assert outcome == [394]


class TestConcurrency:
    def test_sixty_four_connections(self, client: Client, connect: Connect) -> None:
        client.execute("CREATE TABLE t (who Int64, n Int64) ENGINE = MergeTree ORDER BY who")
        clients = [connect(settings={"max_threads": 1}) for _ in range(64)]
        gate = threading.Barrier(64)

        def work(number: int) -> bool:
            mine = clients[number]
            mine.execute("SELECT 1")
            gate.wait(60)
            for n in range(3):
                mine.execute("INSERT INTO t VALUES", [(number, n)])
                assert mine.execute("SELECT count() FROM t WHERE who = %(who)s", {"who": number}) == [(n + 1,)]
            return True

        with ThreadPoolExecutor(64) as pool:
            assert all(pool.map(work, range(64)))
        assert client.execute("SELECT count(), uniqExact(who) FROM t") == [(192, 64)]

    def test_a_heavy_query_does_not_hold_up_others(self, client: Client, connect: Connect) -> None:
        progress = client.execute_with_progress(ENDLESS)
        next(iter(progress))
        other = connect()
        for _ in range(20):
            assert other.connection.ping() in {True, None}
            assert other.execute("SELECT 1") == [(1,)]
        client.cancel()
