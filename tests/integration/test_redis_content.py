"""Whatever stands in Redis under our names: it is thrown away or bounded, and nobody stops for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns
from worker import observe, planner, prometheus, standing
from worker.celery import Servers
from worker.errors import BadInput
from worker.logs import tally
from worker.streams import STREAMS
from worker.windows import ORIGIN, Window, format_instant, parse_instant

CLICKS, TARGET = STREAMS["clicks"], UUID(int=7)
FLYING = f"retailmedia:inflight:clicks:{TARGET}"
NAMES = (
    "watermark:clicks", "observed:clicks", "lease:some", f"inflight:clicks:{TARGET}", "waiting:realtime",
    "handed:realtime", "clean_since", "once:some", "turn:some", "gate", "progress:some", "metrics:sums",
    "metrics:processes",
)  # fmt: skip
EXAMPLES = int(os.environ.get("FUZZ_SECONDS", "0")) * 60 or 25


@pytest.fixture
def client(servers: Servers) -> Any:
    with redis.Redis.from_url(servers.settings.redis_url) as found:
        yield found


def in_ms(seconds: float) -> float:
    return (time.time() + seconds) * 1000


def everything(here: Servers) -> None:
    """Reads and writes each key there is once, as the product does."""
    store, window = here.store, Window(ORIGIN, datetime(2026, 1, 1, tzinfo=UTC))
    store.watermark(CLICKS)
    store.lacks_watermarks([CLICKS])
    store.observation(CLICKS)
    store.in_flight(CLICKS, TARGET)
    store.take_off(CLICKS, TARGET, [window], 5, "realtime")
    with store.window_lease(CLICKS, TARGET, window, 5, "realtime") as held:
        assert held is not None
    with store.lease("some", 5) as some:
        assert some is not None, "a lease that somebody made up is held"
    assert store.once("some", 0.001)
    turn = store.take_turn("some", 5)
    assert turn is not None
    assert store.end_turn("some", turn)
    assert not store.gate_closed()
    store.clean_since()
    store.add_progress("some", CLICKS, windows=1, rows=5)
    assert store.progress("some")["clicks:windows_done"] >= 1
    tally.add("rebuilds")
    observe.deliver(store)
    assert tally.is_empty(), "what was counted could not be delivered"
    assert any(entry.name == "rebuilds" for entry in observe.sums(store))
    observe.processes(store)
    store.queue_depths(["realtime"])
    list(prometheus.ServersCollector(here)._redis())
    generate_latest(_registry(here))


def _registry(here: Servers) -> Any:
    class Redis(prometheus.ServersCollector):
        def collect(self) -> Any:
            return self._redis()

    registry = CollectorRegistry()
    registry.register(Redis(here))
    return registry


def test_a_member_that_is_no_window_stops_nothing(servers: Servers, client: Any) -> None:
    client.zadd(FLYING, {"garbage": in_ms(30), "2026": in_ms(30), b"\xff": in_ms(30)})
    good = Window(ORIGIN, datetime(2026, 1, 1, tzinfo=UTC))
    client.zadd(FLYING, {str(good): in_ms(30)})
    assert servers.store.in_flight(CLICKS, TARGET) == [good]
    assert client.zcard(FLYING) == 1


@pytest.mark.parametrize("score", [9e15, float("inf"), in_ms(3600)], ids=["far", "endless", "an hour"])
def test_what_is_in_flight_longer_than_a_lease_lasts_is_not_in_flight(
    servers: Servers, client: Any, score: float
) -> None:
    client.zadd(FLYING, {str(Window(ORIGIN, datetime(2026, 1, 1, tzinfo=UTC))): score})
    assert servers.store.in_flight(CLICKS, TARGET) == []


@pytest.mark.parametrize(
    "lo_hi", [(ORIGIN, datetime(2290, 1, 1, tzinfo=UTC)), (datetime(1900, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))]
)  # fmt: skip
def test_a_window_nobody_can_have_handed_out_is_not_in_flight(
    servers: Servers, client: Any, lo_hi: tuple[datetime, datetime]
) -> None:
    client.zadd(FLYING, {str(Window(*lo_hi)): in_ms(30)})
    assert servers.store.in_flight(CLICKS, TARGET) == []


def test_planning_and_status_go_on_and_everything_is_loaded(servers: Servers, client: Any, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "clicks", campaign, 5)
    uuid = servers.ledger.live([CLICKS])[CLICKS.target]
    key = f"retailmedia:inflight:clicks:{uuid}"
    client.zadd(key, {"garbage": 9e15, str(Window(ORIGIN, datetime(2290, 1, 1, tzinfo=UTC))): 9e15})
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [CLICKS])
    assert planned.fresh or planned.backlog
    found = standing.overview(servers.source, servers.sink, servers.ledger, servers.store, [CLICKS])
    assert found.streams[0].in_flight == 0
    sync(servers)
    assert_agreement(writer, servers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["string", "hash", "list", "set", "zset"])
def test_a_key_of_any_type_is_thrown_away_where_it_is_not_ours(
    servers: Servers, client: Any, name: str, kind: str
) -> None:
    key = f"retailmedia:{name}"
    {
        "string": lambda: client.set(key, "\x1b[2J garbage"),
        "hash": lambda: client.hset(key, "garbage", "garbage"),
        "list": lambda: client.rpush(key, "garbage"),
        "set": lambda: client.sadd(key, "garbage"),
        "zset": lambda: client.zadd(key, {"garbage": 1, "a|b|c": 2, "|": 3}),
    }[kind]()
    everything(servers)


@pytest.mark.parametrize("name", ["lease:some", "once:some", "turn:some", "gate"])
@pytest.mark.parametrize("seconds", [None, 10**9])
def test_nothing_is_held_for_longer_than_anybody_asks_for(
    servers: Servers, client: Any, name: str, seconds: int | None
) -> None:
    client.set(f"retailmedia:{name}", "1", ex=seconds)
    everything(servers)


@pytest.mark.parametrize("text", ["2290-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "x" * 10**6, "", "1970"])
def test_a_time_that_has_not_come_is_no_time_since_all_was_clean(servers: Servers, client: Any, text: str) -> None:
    client.set("retailmedia:clean_since", text)
    assert servers.store.clean_since() == ORIGIN
    now = datetime.now(UTC) - timedelta(minutes=1)
    servers.store.set_clean_since(now)
    assert servers.store.clean_since() == now


@pytest.mark.parametrize(
    "text",
    ["7", "[]", '{"at": 1}', '{"at": "2026-01-01T00:00:00Z", "target_uuid": 7, "generation": 1}', "[" * 900,
     '{"at": "2026-01-01T00:00:00Z", "target_uuid": "00000000-0000-0000-0000-000000000007", "generation": 1e400}',
     '{"at": "9999-12-31T23:59:59Z", "target_uuid": "00000000-0000-0000-0000-000000000007", "generation": 1}'],
)  # fmt: skip
def test_a_watermark_that_makes_no_sense_is_made_anew(servers: Servers, client: Any, text: str) -> None:
    client.set("retailmedia:watermark:clicks", text)
    assert servers.store.watermark(CLICKS) is None
    assert servers.store.lacks_watermarks([CLICKS])
    planner.publish_watermarks(servers.ledger, servers.store, [CLICKS], servers.ledger.live([CLICKS]))
    assert servers.store.watermark(CLICKS) is not None


def test_an_instant_before_the_first_is_refused_in_a_sentence() -> None:
    with pytest.raises(BadInput, match="outside the years"):
        parse_instant("0001-01-01T00:00:00+14:00")


def test_waiting_messages_of_every_priority_count(servers: Servers, client: Any) -> None:
    for suffix in ("", "\x06\x163", "\x06\x166", "\x06\x169"):
        client.lpush(f"realtime{suffix}", "x")
    assert servers.store.queue_depths(["realtime"]) == {"realtime": 4}


def test_counts_that_are_none_of_ours_are_thrown_away(servers: Servers, client: Any) -> None:
    for field, value in {
        "garbage": "1", '["tasks", {"task": 7}]': "1", '["tasks", {"a-b": "x"}]': "1", '["rebuilds", {}]': "nan",
        '["windows_failed", []]': "1", '["rows_loaded", {"stream": "clicks"}]': "inf", "[" * 1500: "1",
    }.items():  # fmt: skip
        client.hset("retailmedia:metrics:sums", field, value)
    client.hset("retailmedia:metrics:processes", "x 1", f"{int(time.time())} " + "9" * 5000)
    client.hset("retailmedia:metrics:processes", "y 2", f"{int(time.time()) + 10**6} 5")
    everything(servers)
    assert observe.processes(servers.store).keys().isdisjoint({("x", "1"), ("y", "2")})


TEXTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"nan", b"inf", b"1e999", b"-1", b"9" * 400, b"null", b"{}", b"\xff", b"garbage/garbage"]),
    st.datetimes().map(lambda at: at.isoformat().encode()),
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2300, 1, 1)).map(  # noqa: DTZ001
        lambda at: f"{format_instant(ORIGIN)}/{format_instant(at.replace(tzinfo=UTC))}".encode()
    ),
)
WRITE: dict[str, Callable[[Any, str, bytes, bytes, float], object]] = {
    "string": lambda client, key, a, _b, _n: client.set(key, a),
    "hash": lambda client, key, a, b, _n: client.hset(key, a, b),
    "list": lambda client, key, a, _b, _n: client.rpush(key, a),
    "set": lambda client, key, a, _b, _n: client.sadd(key, a),
    "zset": lambda client, key, a, b, n: client.zadd(key, {a: n, b + b"|" + a: n}),
}
FIELDS = st.sampled_from([b"horizon", b"seen_at", b"clicks:rows_done", b'["rebuilds", {}]', b"held_by"])


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    content=st.lists(
        st.tuples(
            st.sampled_from(NAMES), st.sampled_from(sorted(WRITE)), TEXTS | FIELDS, TEXTS, st.floats(allow_nan=False)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_nobody_stops_for_anything(
    servers: Servers, client: Any, content: list[tuple[str, str, bytes, bytes, float]]
) -> None:
    client.flushdb()
    for name, kind, a, b, score in content:
        key = f"retailmedia:{name}"
        client.delete(key) if client.type(key).decode() not in {kind, "none"} else None
        WRITE[kind](client, key, a, b, score)
    everything(servers)
