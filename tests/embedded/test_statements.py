"""Telling statements apart, without an engine."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded.clickhouse.statements import InsertTarget, Unparsable, literal, parse, tokens


@pytest.mark.parametrize(
    ("sql", "kind", "text"),
    [
        ("SELECT 1", "select", "SELECT 1"),
        ("-- x\nSELECT ';' FORMAT CSV ;", "select", "-- x\nSELECT ';'"),
        ("select 1 format JSON settings max_threads = 1", "select", "select 1 settings max_threads = 1"),
        ("SELECT 1 AS format", "select", "SELECT 1 AS format"),
        ("SELECT format('{}', x) FROM t", "select", "SELECT format('{}', x) FROM t"),
        ("SELECT (SELECT 1 FORMAT x)", "select", "SELECT (SELECT 1 FORMAT x)"),
        ("((SELECT 1)) /* ; */", "select", "((SELECT 1))"),
        ("SELECT $a$ ; $a$", "select", "SELECT $a$ ; $a$"),
        ("WITH 'INSERT' AS x SELECT x", "select", "WITH 'INSERT' AS x SELECT x"),
        ("WITH 1 AS x INSERT INTO t SELECT x", "other", "WITH 1 AS x INSERT INTO t SELECT x"),
        ("SHOW TABLES FORMAT TSV", "other", "SHOW TABLES"),
        ("SET a = 1;", "set", "SET a = 1"),
        ("SET ROLE x", "other", "SET ROLE x"),
        ("KILL QUERY WHERE query_id = 'x'", "kill", "KILL QUERY WHERE query_id = 'x'"),
        ("CREATE TABLE t (format String) ENGINE = Memory", "other", "CREATE TABLE t (format String) ENGINE = Memory"),
        ("INSERT INTO t SELECT 1 FORMAT Native", "other", "INSERT INTO t SELECT 1"),
        ("INSERT INTO t (a) SELECT 1", "other", "INSERT INTO t (a) SELECT 1"),
        ("INSERT INTO t VALUES (1)", "other", "INSERT INTO t VALUES (1)"),
    ],
)
def test_kind_and_text(sql: str, kind: str, text: str) -> None:
    found = parse(sql)
    assert (found.kind, found.text) == (kind, text)


@pytest.mark.parametrize(
    ("sql", "target"),
    [
        ("INSERT INTO t VALUES", InsertTarget("INSERT INTO t", "", "t")),
        ("INSERT INTO t", InsertTarget("INSERT INTO t", "", "t")),
        ("insert into table d.`t x` (a, `b c`) format Native;", InsertTarget("insert into table d.`t x` (a, `b c`)", "", "d.`t x`", ("a", "b c"))),
        ("INSERT INTO t (n.a, n.b) SETTINGS x = 1 VALUES ", InsertTarget("INSERT INTO t (n.a, n.b)", "SETTINGS x = 1", "t", ("n.a", "n.b"))),
        ("INSERT INTO t (*) VALUES", InsertTarget("INSERT INTO t (*)", "", "t")),
        ("INSERT INTO t (* EXCEPT(a, b)) VALUES", InsertTarget("INSERT INTO t (* EXCEPT(a, b))", "", "t", None, ("a", "b"))),
        ("INSERT INTO FUNCTION file('x', 'CSV') (a) VALUES", InsertTarget("INSERT INTO FUNCTION file('x', 'CSV') (a)", "", "file('x', 'CSV')", ("a",))),
        (
            "INSERT INTO t SELECT a + 1 FROM input('a Int8') WHERE a > 1 FORMAT Native",
            InsertTarget("INSERT INTO t SELECT a + 1 FROM ", "WHERE a > 1", "null('a Int8')", structure="a Int8"),
        ),
    ],
)  # fmt: skip
def test_where_an_insert_goes(sql: str, target: InsertTarget) -> None:
    found = parse(sql)
    assert found.kind == "insert"
    assert found.insert == target


def test_reading_from_a_file() -> None:
    plain = parse("INSERT INTO t (a) SETTINGS x = 1 VALUES").insert
    assert plain is not None
    assert plain.reading("/f") == "INSERT INTO t (a) FROM INFILE '/f' SETTINGS x = 1 FORMAT Native"
    piped = parse("INSERT INTO t SELECT a FROM input('a Int8')").insert
    assert piped is not None
    assert piped.reading("/f").split() == [
        "INSERT",
        "INTO",
        "t",
        "SELECT",
        "a",
        "FROM",
        "file('/f',",
        "'Native',",
        "'a",
        "Int8')",
    ]


@pytest.mark.parametrize("sql", ["", "  ;", "-- x", "/* */", "SELECT 1; SELECT 2", "INSERT INTO t SELECT 1; SELECT 2"])
def test_what_is_refused(sql: str) -> None:
    with pytest.raises(Unparsable) as caught:
        parse(sql)
    assert caught.value.code == 62


@given(st.text(max_size=100))
def test_a_literal_is_one_token(value: str) -> None:
    assert [token.kind for token in tokens(literal(value))] == ["string"]


@given(st.text(max_size=60) | st.text("INSERTO ()`'\"*;,.-/\n$a", max_size=40))
def test_any_text_is_told_apart_or_refused(sql: str) -> None:
    for text in (sql, f"INSERT INTO {sql}", f"SELECT {sql}"):
        with contextlib.suppress(Unparsable):
            assert parse(text).text
