"""Redis, and the only user of redis-py: copies of watermarks, leases, windows in flight, progress of runs.

Nothing here is the truth. All of it may vanish at any time; the ledger rebuilds the watermarks, and leases only save
double work. Expiries are Redis's own clock's, so no worker's clock matters.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import redis
import structlog
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker import careful
from worker.config import Settings
from worker.errors import Unreachable
from worker.streams import STREAMS, Stream
from worker.windows import ORIGIN, Window, format_instant, from_micros

log = structlog.get_logger()

PREFIX = "retailmedia"

LEASE_SECONDS = 60
"""What is held for longer than its holder asked for, and than this, is held by nobody: somebody else wrote it."""

LONGEST_GATE_SECONDS = 600

CLOCKS_APART = timedelta(minutes=10)
"""How far ClickHouse's clock may be ahead of Redis's before what it told is thrown away, which only costs a look."""

PRIORITIES = ("", *(f"\x06\x16{step}" for step in (3, 6, 9)))
"""What kombu adds to a queue's name for messages of each priority."""

LONGEST_REST_SECONDS = 5.0
"""How long what took long may rest before it is done again."""

# Sets the copy only if it is still what the caller saw, so that two publishers cannot overwrite each other blindly.
_PUBLISH = """
local seen = redis.call('GET', KEYS[1])
if seen == ARGV[1] or (seen == false and ARGV[1] == '') then
    redis.call('SET', KEYS[1], ARGV[2])
    return 1
end
return 0
"""

# Redis's clock, in ms: no decision depends on a worker's.
_NOW = """
local function now_ms()
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

# Windows that were handed out and wait in a queue: members are `<key of those in flight>|<window>`, scores the order in
# which they were handed out. While somebody works on the queue they are waiting, not lost, however long that takes:
# without this they would be given up, handed out once more and wait behind themselves, the more the slower servers are.
_KEEP_WAITING = """
local function keep_waiting(waiting, until_ms)
    for _, member in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do
        local flight, window = string.match(member, '^(retailmedia:inflight:[^|]+)|([^|]+)$')
        if flight then
            redis.pcall('ZADD', flight, 'XX', until_ms, window)
        else
            redis.call('ZREM', waiting, member)
        end
    end
end
"""

# A queue is first in, first out: once a window is begun, none that was handed out before it waits any more. What is not
# at work by then was lost with its message, and is given up when its time is over.
_BEGIN = (
    _NOW
    + _KEEP_WAITING
    + """
local until_ms = now_ms() + ARGV[2]
redis.call('ZADD', KEYS[1], until_ms, ARGV[1])
redis.call('PEXPIRE', KEYS[1], 86400000)
local place = redis.call('ZSCORE', KEYS[2], KEYS[1] .. '|' .. ARGV[1])
if place then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', place) end
keep_waiting(KEYS[2], until_ms)
"""
)

# A window's lease also keeps the window in flight, and those that wait behind it.
_EXTEND = (
    _NOW
    + _KEEP_WAITING
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if KEYS[2] then
    local until_ms = now_ms() + ARGV[2]
    redis.call('ZADD', KEYS[2], until_ms, ARGV[3])
    keep_waiting(KEYS[3], until_ms)
end
return 1
"""
)

_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# A turn that ran out and that nobody took is still whoever's it was.
_END_TURN = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return 1
"""

# Members are windows, scores the time in ms at which they are given up. Returns Redis's time in ms, how many claimed to
# be in flight for longer than any lease lasts, and those still in flight.
_IN_FLIGHT = (
    _NOW
    + """
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local endless = redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now + ARGV[1]), '+inf')
return {string.format('%.0f', now), endless, redis.call('ZRANGE', KEYS[1], 0, -1)}
"""
)

# Two planners at once see the same nothing in flight. Only the first gets a window, also where the second cut it
# differently; instants are texts of one length, which sort as time does. What is given up is in nobody's way.
_TAKE_OFF = (
    _NOW
    + """
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local flying = {}
local function ends(window)
    return string.match(window, '^(.*)/(.*)$')
end
for _, window in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local lo, hi = ends(window)
    if lo then table.insert(flying, {lo, hi}) end
end
local taken = {}
for i = 2, #ARGV do
    local lo, hi = ends(ARGV[i])
    local free = true
    for _, other in ipairs(flying) do
        if lo < other[2] and other[1] < hi then
            free = false
            break
        end
    end
    if free then
        redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
        redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), KEYS[1] .. '|' .. ARGV[i])
        table.insert(flying, {lo, hi})
        table.insert(taken, ARGV[i])
    end
end
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('PEXPIRE', KEYS[2], 86400000)
return taken
"""
)


@dataclass(frozen=True, slots=True)
class Watermark:
    """A stream's watermark as Redis has it: everything inserted before `at` is in the table `target_uuid`."""

    at: datetime
    target_uuid: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the last planning tick of a stream saw: the horizon, and through when the target was complete."""

    horizon: datetime | None
    complete_through: datetime
    seen_at: datetime
    held_by: str


class Lease:
    """A lease this process holds, renewed in the background until released. `lost` is set if it slipped away."""

    def __init__(
        self, store: WatermarkStore, key: str, owner: str, milliseconds: int, flight: tuple[str, str, str] | None = None
    ) -> None:
        self._store = store
        self._key = key
        self._flight = flight
        self._owner = owner
        self._milliseconds = milliseconds
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._stop.wait(self._milliseconds / 3000):
            try:
                keys, arguments = [self._key], [self._owner, self._milliseconds]
                if self._flight:
                    flying, waiting, window = self._flight
                    keys += [flying, waiting]
                    arguments.append(window)
                if not self._store.script(_EXTEND, keys, arguments):
                    self.lost.set()
                    return
            except Unreachable:
                # Redis may be back before the lease runs out; correctness does not depend on it.
                log.warning("lease.renewal_failed", key=self._key)

    def release(self) -> None:
        """Gives the lease up, if it is still ours."""
        self._stop.set()
        self._thread.join(timeout=5)
        try:
            self._store.script(_RELEASE, [self._key], [self._owner])
        except Unreachable:
            log.warning("lease.release_failed", key=self._key)


class _Client(redis.Redis):
    """A client that throws away what is of another type than ours, or cannot be added to, and asks once more."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return self._asked(*args, **options)
        except redis.ResponseError as error:
            if not any(told in str(error) for told in ("WRONGTYPE", "not an integer", "not a float", "would ")):
                raise
            if not sum(self._discard_what_is_not_ours(key) for key in args if careful.kind_of(key, PREFIX)):
                raise
        return self._asked(*args, **options)

    def _asked(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def _discard_what_is_not_ours(self, key: str) -> int:
        kind = careful.kind_of(key, PREFIX)
        found, wanted = self._asked("TYPE", key), careful.KINDS[kind or ""]
        if found != wanted:
            if found != "none":
                careful.discarded(key, f"it was a {found}, not a {wanted}")
            return int(found != "none" and self._asked("DEL", key))
        if kind == "handed" and careful.number(self._asked("GET", key)) is None:
            careful.discarded(key, "it was no number")
            return int(self._asked("DEL", key))
        if kind in {"metrics", "progress"} and not key.endswith(":processes"):
            values = self._asked("HGETALL", key)
            if senseless := [field for field, value in values.items() if not careful.is_count(value)]:
                careful.discarded(key, f"{len(senseless)} of its fields were no numbers")
                return int(self._asked("HDEL", key, *senseless))
        return 0


def sentinel_options(settings: Settings) -> dict[str, Any]:
    """How to speak to Sentinels: with the timeouts of Redis, and their own password if they have one."""
    seconds = settings.connect_timeout_seconds
    options = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    return {**options, "password": settings.redis_sentinel_password} if settings.redis_sentinel_password else options


def _connected(settings: Settings) -> redis.Redis:
    """A client of the server, or of whichever one the Sentinels call master when a connection is made."""
    address, seconds = settings.redis_address, settings.connect_timeout_seconds
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "retry": Retry(ExponentialBackoff(cap=1.0, base=0.05), 3),
        "decode_responses": True,
        # What is no text comes and goes as it is, so that it can be thrown away.
        "encoding_errors": "surrogateescape",
    }
    if not address.sentinels:
        return _Client.from_url(address.url, **options)
    sentinel: Any = Sentinel(address.sentinels, sentinel_kwargs=sentinel_options(settings), **options)  # type: ignore[no-untyped-call]
    login = {"username": address.user or None, "password": address.password or None, "db": address.database}
    return cast("redis.Redis", sentinel.master_for(address.master, redis_class=_Client, **login))


class WatermarkStore:
    """A Redis connection pool of this process. Raises `Unreachable` where Redis does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = _connected(settings)

    def close(self) -> None:
        """Closes the pool."""
        self._redis.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise Unreachable(f"Redis at {self._settings.server_label('redis')} failed: {error}.") from error

    def ping(self) -> None:
        """Raises `Unreachable`."""
        with self._translated():
            self._redis.ping()

    def server(self) -> dict[str, str]:
        """Redis's version, its eviction policy where it says so, its clock in seconds since 1970, and in `configures`
        whether this user may read, and so may change, its configuration."""
        with self._translated():
            found: dict[str, Any] = self._redis.info()
            seconds, micros = self._redis.time()
            try:
                configures = bool(self._redis.config_get("dir"))
            except redis.ResponseError:
                # Denied, or a server that is rented and has no such command.
                configures = False
        return {
            "version": str(found.get("redis_version", "")),
            "maxmemory_policy": str(found.get("maxmemory_policy", "")),
            "time": f"{seconds}.{micros:06d}",
            "configures": "yes" if configures else "",
        }

    def release_all(self) -> int:
        """Ends every lease and takes every window out of flight: what dead workers left. Only while none runs.

        Returns how many there were. Without this a start after a crash waits until they run out by themselves.
        """
        ended = 0
        with self._translated():
            for pattern in ("lease", "inflight", "waiting", "turn"):
                for key in self._redis.scan_iter(match=f"{PREFIX}:{pattern}:*", count=500):
                    ended += self._redis.delete(key)
        return ended

    def script(self, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Runs a Lua script."""
        with self._translated():
            return self._redis.eval(source, len(keys), *keys, *arguments)

    # Watermarks

    def _watermark_key(self, name: str) -> str:
        return f"{PREFIX}:watermark:{name}"

    def raw_watermark(self, stream: Stream) -> str:
        """The stored text, empty if there is none."""
        with self._translated():
            return cast("str | None", self._redis.get(self._watermark_key(stream.name))) or ""

    def watermark(self, stream: Stream) -> Watermark | None:
        """The copy of a stream's watermark, or None where there is none that can be read."""
        found = parse_watermark(text := self.raw_watermark(stream))
        if found is None and text:
            careful.discarded(self._watermark_key(stream.name), "it is no watermark")
        return found

    def lacks_watermarks(self, streams: Iterable[Stream]) -> bool:
        """Whether any of these streams has none, as after Redis was emptied, or none that can be read."""
        with self._translated():
            found = cast("list[str | None]", self._redis.mget([self._watermark_key(one.name) for one in streams]))
        return any(parse_watermark(text or "") is None for text in found)

    def publish(self, stream: Stream, watermark: Watermark, seen: str) -> bool:
        """Stores the watermark if the stored text is still `seen`; else somebody else just published."""
        text = json.dumps(
            {
                "at": format_instant(watermark.at),
                "target_uuid": str(watermark.target_uuid),
                "generation": watermark.generation,
            }
        )
        if text == seen:
            return True
        return bool(self.script(_PUBLISH, [self._watermark_key(stream.name)], [seen, text]))

    # Observations

    def observe(self, stream: Stream, observation: Observation) -> None:
        """Keeps what a tick saw, for screens."""
        with self._translated():
            self._redis.hset(
                f"{PREFIX}:observed:{stream.name}",
                mapping={
                    "horizon": format_instant(observation.horizon) if observation.horizon else "",
                    "complete_through": format_instant(observation.complete_through),
                    "seen_at": format_instant(observation.seen_at),
                    "held_by": observation.held_by,
                },
            )

    def observation(self, stream: Stream) -> Observation | None:
        """What the last tick saw, or None."""
        with self._translated():
            found = cast("dict[str, str]", self._redis.hgetall(f"{PREFIX}:observed:{stream.name}"))
        horizon, complete, seen = (careful.instant(found.get(k)) for k in ("horizon", "complete_through", "seen_at"))
        held_by = found.get("held_by", "")[:500]
        if complete is None or seen is None or (horizon is None and found.get("horizon")):
            if found:
                careful.discarded(f"{PREFIX}:observed:{stream.name}", "it is nothing that a tick saw")
            return None
        return Observation(horizon, complete, seen, held_by if held_by.isprintable() else "")

    def forget_observations(self) -> None:
        """Forgets what ticks of every stream saw."""
        with self._translated():
            self._redis.delete(*(f"{PREFIX}:observed:{name}" for name in STREAMS))

    # Leases

    def _taken(self, key: str, value: str, milliseconds: int) -> bool:
        """Whether a key that runs out by itself is ours now. One that would not is nobody's."""
        with self._translated():
            while not self._redis.set(key, value, nx=True, px=milliseconds):
                left = self._redis.pttl(key)
                if left != -1 and left <= max(milliseconds, LEASE_SECONDS * 1000):
                    return False
                careful.discarded(key, "it would be held for longer than anybody asks for")
                self._redis.delete(key)
        return True

    def try_lease(self, name: str, seconds: float, *, flight: tuple[str, str, str] | None = None) -> Lease | None:
        """The lease of that name, renewed until released; None while somebody else holds it."""
        key, owner, milliseconds = f"{PREFIX}:lease:{name}", secrets.token_hex(8), int(seconds * 1000)
        taken = self._taken(key, owner, milliseconds)
        return Lease(self, key, owner, milliseconds, flight) if taken else None

    @contextmanager
    def lease(self, name: str, seconds: float) -> Iterator[Lease | None]:
        """`try_lease`, released at the end."""
        held = self.try_lease(name, seconds)
        try:
            yield held
        finally:
            if held is not None:
                held.release()

    # Windows in flight

    def _flight_key(self, stream: Stream, uuid: UUID) -> str:
        return f"{PREFIX}:inflight:{stream.name}:{uuid}"

    def in_flight(self, stream: Stream, uuid: UUID) -> list[Window]:
        """Windows handed out and not yet done or given up."""
        key, longest = self._flight_key(stream, uuid), max(self._settings.lease_seconds, LEASE_SECONDS) * 1000
        now, endless, members = self.script(_IN_FLIGHT, [key], [longest])
        if endless:
            careful.discarded(key, f"{endless} entries that no lease can keep in flight so long")
        found = {member: careful.window(member, from_micros(int(now) * 1000)) for member in members}
        if senseless := [member for member, window in found.items() if window is None]:
            careful.discarded(key, f"{len(senseless)} entries that are no windows")
            with self._translated():
                self._redis.zrem(key, *senseless)
        return [window for window in found.values() if window is not None]

    def _waiting_key(self, queue: str) -> str:
        return f"{PREFIX}:waiting:{queue}"

    def take_off(
        self, stream: Stream, uuid: UUID, windows: Iterable[Window], seconds: float, queue: str
    ) -> list[Window]:
        """Marks windows as handed out to a queue: for that long, and for as long as others of the queue are worked on
        before it is their turn. Returns those it marked: none that overlaps one in flight, whoever handed that out.
        """
        members = {str(window): window for window in windows}
        if not members:
            return []
        keys = [self._flight_key(stream, uuid), self._waiting_key(queue), f"{PREFIX}:handed:{queue}"]
        taken: list[str] = self.script(_TAKE_OFF, keys, [int(seconds * 1000), *members])
        return [members[member] for member in taken]

    @contextmanager
    def window_lease(
        self, stream: Stream, uuid: UUID, window: Window, seconds: float, queue: str = ""
    ) -> Iterator[Lease | None]:
        """The lease of one window, which keeps it in flight; None while another worker is at it. Lands at the end.

        `queue` is the one it came by, if any: whatever waits there stays in flight as well.
        """
        flying, waiting = self._flight_key(stream, uuid), self._waiting_key(queue)
        name = f"window:{stream.name}:{uuid}:{window}"
        self.script(_BEGIN, [flying, waiting], [str(window), int(seconds * 1000)])
        held = self.try_lease(name, seconds, flight=(flying, waiting, str(window)))
        try:
            yield held
        finally:
            if held is not None:
                held.release()
                self.land(stream, uuid, window)

    def land(self, stream: Stream, uuid: UUID, window: Window) -> None:
        """Marks a window as no longer in flight."""
        with self._translated():
            self._redis.zrem(self._flight_key(stream, uuid), str(window))

    def clear_flight(self, stream: Stream, uuid: UUID) -> None:
        """Marks every window of a stream as no longer in flight."""
        with self._translated():
            self._redis.delete(self._flight_key(stream, uuid))

    # When metrics were last seen to be settled

    def clean_since(self) -> datetime:
        """A time, by ClickHouse's clock, before which no day was marked that is not rebuilt, as far as is known."""
        with self._translated():
            text = cast("str | None", self._redis.get(f"{PREFIX}:clean_since"))
            seconds, _ = self._redis.time()
        if not text:
            return ORIGIN
        found = careful.instant(text)
        if found is None or found > datetime.fromtimestamp(seconds, UTC) + CLOCKS_APART:
            careful.discarded(f"{PREFIX}:clean_since", "it is no time that has come")
            return ORIGIN
        return found

    def set_clean_since(self, at: datetime) -> None:
        """Remembers that, so that a tick need not look at every day."""
        with self._translated():
            self._redis.set(f"{PREFIX}:clean_since", format_instant(at), ex=3600)

    def once(self, name: str, seconds: float) -> bool:
        """True for the first caller within that time."""
        return self._taken(f"{PREFIX}:once:{name}", "1", int(seconds * 1000))

    def happened(self, name: str) -> bool:
        """Whether `once` was asked for it within its time."""
        with self._translated():
            return bool(self._redis.exists(f"{PREFIX}:once:{name}"))

    @contextmanager
    def thinned(self, name: str, seconds: float) -> Iterator[bool]:
        """Whether to go ahead with what comes again and again: once within that time, and then after as long a rest as
        it took.

        Without the rest, what takes longer than its period would pile up: messages that are all alike, each of which
        takes as long, with everything else waiting behind them. What failed does not rest: a server was away, and once
        it is back nothing should wait.
        """
        ahead = self.once(name, seconds)
        began = time.monotonic()
        yield ahead
        took = min(time.monotonic() - began, LONGEST_REST_SECONDS)
        if ahead and took > seconds:
            with suppress(Unreachable), self._translated():
                self._redis.set(f"{PREFIX}:once:{name}", "1", px=int(took * 1000))

    # Whose turn it is to look again

    def take_turn(self, name: str, seconds: float) -> str | None:
        """A turn for one message that is about to be sent; None while another message has it, for so long at most."""
        turn = secrets.token_hex(8)
        return turn if self._taken(f"{PREFIX}:turn:{name}", turn, int(seconds * 1000)) else None

    def end_turn(self, name: str, turn: str) -> bool:
        """Gives the turn up when its message has arrived; False if another message has taken it since."""
        return bool(self.script(_END_TURN, [f"{PREFIX}:turn:{name}"], [turn]))

    # The gate that a full refresh closes for the moment of its swap

    def close_gate(self, seconds: float) -> None:
        """Asks planners to hand out nothing for that long at most."""
        with self._translated():
            self._redis.set(f"{PREFIX}:gate", "closed", px=int(seconds * 1000))

    def open_gate(self) -> None:
        """Lets planners go on."""
        with self._translated():
            self._redis.delete(f"{PREFIX}:gate")

    def gate_closed(self) -> bool:
        """Whether a full refresh is about to swap."""
        with self._translated():
            left = self._redis.pttl(f"{PREFIX}:gate")
            if left == -1 or left > LONGEST_GATE_SECONDS * 1000:
                careful.discarded(f"{PREFIX}:gate", "it would stay closed")
                self._redis.delete(f"{PREFIX}:gate")
                return False
        return left != -2

    # Progress of runs, for progress bars

    def add_progress(self, run_id: str, stream: Stream, *, windows: int = 0, rows: int = 0) -> None:
        """Adds windows and rows done."""
        amounts = {f"{stream.name}:windows_done": windows, f"{stream.name}:rows_done": rows}
        key = f"{PREFIX}:progress:{run_id}"
        with self._translated():
            for name, amount in amounts.items():
                if amount:
                    self._redis.hincrby(key, name, amount)
            self._redis.expire(key, 86_400)

    def progress(self, run_id: str) -> dict[str, int]:
        """What a run has done so far, by `<stream>:<what>`."""
        with self._translated():
            found = cast("dict[str, str]", self._redis.hgetall(f"{PREFIX}:progress:{run_id}"))
        counts = {name: careful.number(value) for name, value in found.items()}
        if None in counts.values():
            careful.discarded(f"{PREFIX}:progress:{run_id}", "some of it is no number")
        return {name: value for name, value in counts.items() if value is not None}

    # Queues

    def queue_depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages waiting in each Celery queue, of whatever priority. What is no list there holds none."""
        return {name: sum(self._depth(name + suffix) for suffix in PRIORITIES) for name in queues}

    def _depth(self, key: str) -> int:
        with self._translated():
            try:
                return int(self._redis.llen(key))
            except redis.ResponseError:
                return 0


def parse_watermark(text: str) -> Watermark | None:
    """The watermark a stored text means, or None where somebody wrote something else there."""
    found = careful.watermark(text)
    return Watermark(*found) if found else None
