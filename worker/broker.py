"""Celery's Redis transport with three things mended: how often it looks whether a broker is back, what a closed channel
raises, and what a connection tells of itself.

Kombu waits two seconds longer after each try, up to thirty, so after an outage of minutes a worker notices up to half a
minute late that Redis is there again. Here it looks every second: one connection attempt a process costs nothing.

Kombu closes a channel after its connection is gone, and then asks that connection for its host. The AttributeError is
taken for a defect and ends the worker; as a connection error it is what it is, and the worker connects anew. Messages
that could not be handed back come again after the visibility timeout.
"""

from __future__ import annotations

from typing import Any

from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as transport

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


class _Mended:
    """A channel that says so when its connection is gone."""

    connection: Any

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection of this channel is closed")
        return super()._connparams(asynchronous)  # type: ignore[misc]


class Channel(_Mended, transport.Channel):
    """A channel to one server."""


class SentinelChannel(_Mended, transport.SentinelChannel):
    """A channel to whichever server the Sentinels call master."""

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
