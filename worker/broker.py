"""Celery's Redis transport with four things mended: how often it looks whether a broker is back, what a closed channel
raises, what a connection tells of itself, and what it takes for a message.

Kombu waits two seconds longer after each try, up to thirty, so after an outage of minutes a worker notices up to half a
minute late that Redis is there again. Here it looks every second: one connection attempt a process costs nothing.

Kombu closes a channel after its connection is gone, and then asks that connection for its host. The AttributeError is
taken for a defect and ends the worker; as a connection error it is what it is, and the worker connects anew. Messages
that could not be handed back come again after the visibility timeout.

Kombu and Celery trust what they read. Here is the one door through which everything comes out of Redis, so here it is
checked (`messages`, `remote`) before anything of it is used: what is not well-formed is taken off, logged and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from queue import Empty
from typing import Any
from uuid import uuid4

import structlog
from celery import current_app
from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as transport

from worker import messages, remote
from worker.logs import tally
from worker.messages import Limits, Refused

log = structlog.get_logger()

_sentinel_options: dict[str, dict[str, Any]] = {}
"""How to speak to the Sentinels of each master."""


RECONNECT_SECONDS = 1
"""Between two tries to reach a broker that is away."""


class Connection(KombuConnection):
    """A connection that comes back soon after its broker did."""

    def _ensure_connection(
        self,
        errback: Any = None,
        max_retries: int | None = None,
        interval_start: int = RECONNECT_SECONDS,
        interval_step: int = 0,
        interval_max: int = RECONNECT_SECONDS,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Whoever sends a message has a pace of its own, given by position.
        return super()._ensure_connection(
            errback, max_retries, interval_start, interval_step, interval_max, *args, **kwargs
        )


class AMQP(amqp.AMQP):
    """What Celery makes its connections from."""

    Connection = Connection

    def as_task_v2(self, task_id: str, name: str, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(task_id, name, *args, **kwargs)
        # A tick is told of once it found something to do. To ask an app for its tasks closes it for those to come.
        app: Any = self.app
        known = app.tasks.get(name) if app.finalized else None
        return message if known is None or known.send_events else message._replace(sent_event=None)


def _told(found: Any) -> dict[str, str]:
    """Which task a message was for, and its id, where it says so in a way that can be logged."""
    headers = found.get("headers") if isinstance(found, dict) else None
    named = {"task": "task", "task_id": "id"}
    if not isinstance(headers, dict):
        return {}
    return {name: str(headers[key]) for name, key in named.items() if messages.is_identifier(headers.get(key))}


def _refuse(refused: Refused, place: str, found: Any, size: int) -> None:
    tally.add("messages_refused", reason=refused.reason)
    log.error("message.refused", reason=refused.reason, told=refused.told, place=place, bytes=size, **_told(found))


_OPTIONS = ("message_limit_bytes", "task_time_limit_seconds", "task_queues")
"""Transport options of ours: what a message may be."""


# The types that are published of kombu leave out most of what it is made of.
_Channel: Any = transport.Channel
_KombuQoS: Any = transport.QoS


class _QoS(_KombuQoS):  # type: ignore[misc]
    """What was delivered and not acknowledged, without believing that kombu wrote it."""

    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            super().append(message, delivery_tag)
        except self.channel.ResponseError:
            # The queue has it no more: it must not get lost here.
            self.channel.discard_what_holds_no_messages()
            super().append(message, delivery_tag)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        with self.channel.conn_or_acquire(client) as held:
            raw = held.hget(self.unacked_key, tag)
            if raw is not None and not self.channel.is_restorable(raw):
                self._remove_from_indices(tag).execute()
                return
            super().restore_by_tag(tag, held, leftmost)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        with self.channel.conn_or_acquire() as client:
            # Whoever holds it gives it up within its time; one without a time would end all redelivery.
            left = client.pttl(self.unacked_mutex_key)
            if left == -1 or left > self.unacked_mutex_expire * 1000:
                client.delete(self.unacked_mutex_key)
                log.warning("redis.discarded", key=self.unacked_mutex_key, told="a lock that would never end")
        super().restore_visible(*args, **kwargs)


class _Mended(_Channel):  # type: ignore[misc]
    """A channel that says so when its connection is gone, and delivers nothing but well-formed messages."""

    QoS = _QoS

    message_limit_bytes = 65_536
    task_time_limit_seconds = 300
    task_queues: tuple[str, ...] = ()
    from_transport_options = (*_Channel.from_transport_options, *_OPTIONS)

    def _limits(self) -> Limits:
        # Celery's own tasks run any other with any arguments, and nobody here sends them.
        names = {name for name in current_app.tasks if not name.startswith("celery.")}
        return Limits(self.message_limit_bytes, self.task_time_limit_seconds, names, self.task_queues)

    def _exchanges(self, queue: str) -> tuple[str, ...]:
        """Those by which a message can have come to a queue; the first sends straight to it."""
        return ("", *(exchange for exchange, *_ in self.state.queue_bindings(queue)))

    def _checked(self, raw: bytes, queue: str) -> dict[str, Any] | None:
        """What a queue held, or None where it is not a message that belongs there."""
        found: Any = None
        try:
            if queue in self.task_queues:
                limits = self._limits()
                found = messages.parsed(raw, limits.bytes)
                messages.require_envelope(found, self._exchanges(queue), messages.one_of(queue))
                messages.require_task(found, limits, datetime.now(UTC))
            elif queue.endswith(f".{remote.REPLIES}"):
                found = messages.parsed(raw, remote.BYTES)
                remote.require_reply(found)
            else:
                raise Refused("route", "nobody here has such a queue")
        except Refused as refused:
            _refuse(refused, queue, found, len(raw))
            return None
        return self._tagged(found)

    def _published(self, raw: bytes, exchange: str) -> dict[str, Any] | None:
        """What was told to everybody, or None where it is nothing that is told so."""
        found: Any = None
        try:
            found = messages.parsed(raw, remote.BYTES)
            if exchange == remote.CONTROL:
                remote.require_control(found, self._limits())
            elif exchange == remote.EVENTS:
                remote.require_event(found)
            else:
                raise Refused("route", "nobody here listens to that")
        except Refused as refused:
            _refuse(refused, exchange, found, len(raw))
            return None
        return self._tagged(found)

    @staticmethod
    def _tagged(found: dict[str, Any]) -> dict[str, Any]:
        # What is delivered is known by its tag until it is acknowledged: two with the same would take each other off.
        found["properties"]["delivery_tag"] = str(uuid4())
        return found

    def is_restorable(self, raw: bytes) -> bool:
        """Whether what was delivered to somebody who is gone can be delivered once more; logged where it cannot."""
        found: Any = None
        try:
            limits = self._limits()
            # Written as JSON once more, each letter may have become six.
            entry = messages.parsed(raw, 6 * limits.bytes)
            if not isinstance(entry, list) or len(entry) != 3 or entry[2] not in self.task_queues:
                raise Refused("redelivery", "it is no message with the queue it came from")
            found, exchange, queue = entry
            if exchange not in self._exchanges(queue):
                raise Refused("redelivery", "its exchange does not lead to its queue")
            messages.require_envelope(found, (exchange,), messages.one_of(queue))
            messages.require_task(found, limits, datetime.now(UTC))
        except Refused as refused:
            _refuse(refused, self.unacked_key, found, len(raw))
            return False
        return True

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not answer:
                raise Empty
            queue = answer[0].decode(errors="replace").rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            message = self._checked(answer[1], queue)
            if message is None:
                raise Empty
            self.connection._deliver(message, queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _get(self, queue: str) -> dict[str, Any]:
        with self.conn_or_acquire() as client:
            for step in self.priority_steps:
                while raw := client.rpop(self._q_for_pri(queue, step)):
                    message = self._checked(raw, queue)
                    if message is not None:
                        self._maybe_update_queues_expire(client, queue)
                        return message
            self._maybe_update_queues_expire(client, queue)
        raise Empty

    def _receive_one(self, c: Any) -> bool | None:
        try:
            response = c.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        if not isinstance(response, list | tuple):
            return None
        payload = self._handle_message(c, response)
        if not bytes(payload["type"]).endswith(b"message") or not payload["data"]:
            return None
        topic = bytes(payload["channel"]).decode(errors="replace")
        exchange = topic.partition(".")[2].split("/", 1)[0] if topic.startswith("/") else topic.split("/", 1)[0]
        message = self._published(payload["data"], exchange) if exchange in self._fanout_to_queue else None
        return self._deliver_fanout_message(message, exchange) if message is not None else None

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        if queue in self.task_queues:
            self.discard_what_holds_no_messages()
        return super().basic_consume(queue, *args, **kwargs)

    def _new_queue(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if queue in self.task_queues:
            self._discard_strangers((self._q_for_pri(queue, step) for step in self.priority_steps), "list")
        super()._new_queue(queue, *args, **kwargs)

    def _queue_bind(self, exchange: str, *args: Any) -> None:
        keys = (self.keyprefix_queue % (exchange,), self.keyprefix_binding_permanent % (exchange,))
        self._discard_strangers(keys, "set")
        super()._queue_bind(exchange, *args)

    def discard_what_holds_no_messages(self) -> None:
        """Takes away what stands in the place of the messages that are delivered and not acknowledged."""
        self._discard_strangers([self.unacked_key], "hash")
        self._discard_strangers([self.unacked_index_key], "zset")

    def _discard_strangers(self, keys: Iterable[str], kind: str) -> None:
        """Takes away what is no list, hash or set where ours is: every command on it fails for as long as it is there."""
        with self.conn_or_acquire() as client:
            for key in keys:
                found = client.type(key).decode()
                if found not in {kind, "none"}:
                    client.delete(key)
                    log.warning("redis.discarded", key=key, told=f"it was a {found}, not a {kind}")

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """The queues an exchange leads to. Anybody can add to the set of them in Redis, so only those that fit count."""
        if exchange != remote.REPLIES and self.task_queues:
            return [(queue, "", queue) for queue in self.task_queues]
        key = self.keyprefix_queue % exchange
        self._discard_strangers([key], "set")
        with self.conn_or_acquire() as client:
            found = client.smembers(key)
        rows = [tuple(row.decode(errors="replace").split(self.sep)) for row in found]
        return [row for row in rows if len(row) == 3 and (row[2] == f"{row[0]}.{exchange}" or not self.task_queues)]

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection of this channel is closed")
        return super()._connparams(asynchronous)


class Channel(_Mended):
    """A channel to one server."""


class SentinelChannel(_Mended, transport.SentinelChannel):  # type: ignore[misc]
    """A channel to whichever server the Sentinels call master."""

    from_transport_options = (*transport.SentinelChannel.from_transport_options, *_OPTIONS)

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        # Before anything else: the channel connects while it is made.
        self.sentinel_kwargs = _sentinel_options.get(connection.client.transport_options.get("master_name", ""))
        super().__init__(connection, **kwargs)


class Transport(transport.Transport):
    """One server, with or without TLS."""

    Channel = Channel


class SentinelTransport(transport.SentinelTransport):
    """Servers that Sentinels watch."""

    Channel = SentinelChannel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        # A worker tells anybody who asks, Flower for one, with which options it is connected: no place for a password.
        told = client.transport_options
        if "sentinel_kwargs" in told:
            _sentinel_options[told["master_name"]] = told.pop("sentinel_kwargs")
        super().__init__(client, **kwargs)


def register() -> None:
    """Makes Celery use these for `redis://`, `rediss://` and `sentinel://`."""
    for scheme, chosen in (("redis", Transport), ("rediss", Transport), ("sentinel", SentinelTransport)):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{chosen.__name__}"
