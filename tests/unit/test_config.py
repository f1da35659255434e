"""Addresses of servers, as people write them."""

from __future__ import annotations

import pytest

from worker.config import load
from worker.errors import BadInput


@pytest.mark.parametrize(
    "dsn",
    [
        "clickhouse://me:s3cret@host:port/db", "clickhouse://me:s3cret@[::1/db", "http://me:s3cret@host/db",
        "clickhouse://me:s3cret@/db", "clickhouse://me:s3cret@host:99999/db",
    ],
)  # fmt: skip
def test_an_address_of_clickhouse_that_is_none_is_refused_in_a_sentence_without_its_password(dsn: str) -> None:
    with pytest.raises(BadInput, match="must read clickhouse://") as refused:
        load(clickhouse_dsn=dsn).sink_address  # noqa: B018 - reading it is what is tried
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_an_address_of_clickhouse_may_be_one_of_ipv6() -> None:
    address = load(clickhouse_dsn="clickhouses://me:p%40ss@[::1]/media").sink_address
    assert (address.host, address.port, address.password, address.database) == ("::1", 9440, "p@ss", "media")


def test_sentinels_may_be_named_by_ipv6() -> None:
    address = load(redis_url="sentinel://me:s%2Fecret@one,[::1]:7,three:9/4?master=m").redis_address
    assert address.sentinels == (("one", 26379), ("::1", 7), ("three", 9))
    assert (address.user, address.password, address.database, address.master) == ("me", "s/ecret", 4, "m")


@pytest.mark.parametrize(
    "url",
    ["sentinel://one,two/0", "sentinels://one/0?master=m", "sentinel://one:x/0?master=m", "sentinel://one/a?master=m"],
)
def test_sentinels_that_cannot_be_understood_are_refused(url: str) -> None:
    with pytest.raises(BadInput, match="REDIS_URL must read"):
        load(redis_url=url).redis_address  # noqa: B018 - reading it is what is tried
