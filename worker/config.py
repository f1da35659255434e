"""Settings: the one place where the environment is read. Holds no connections and no decisions about data.

`load()` is called at the entries (command line, Celery app, tests) and its result is passed down. Servers are named
by DSN; where a DSN is not set, the address of the embedded stack is taken from `<home>/stack.json`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import MutableMapping
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from worker import calendar
from worker.errors import BadInput, Unreachable

SENTINEL_PORT = 26379
EXAMPLE_PASSWORD = "change-me-"  # noqa: S105 - how the passwords of .env.example begin

PricingModel = Literal["cpc", "cpm", "cpi"]


UNREADABLE = "an address that cannot be read"
"""What stands for the address of a server where showing any part of it might show a part of the password."""


class ClickHouseAddress(NamedTuple):
    """The parts of a `clickhouse://` DSN, percent-decoded."""

    host: str
    port: int
    user: str
    password: str
    database: str
    secure: bool
    ca_certs: str | None = None


class RedisAddress(NamedTuple):
    """Where Redis is: one server by its URL, or Sentinels and the name by which they know whoever is master now."""

    url: str
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    user: str = ""
    password: str = ""
    database: int = 0


class Settings(BaseSettings):
    """Every setting with its type, default and meaning. Environment names are the field names in capitals."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    # Servers
    postgres_dsn: str = Field("", repr=False, description="Source, `postgresql://user:password@host:5432/database`.")
    clickhouse_dsn: str = Field(
        "",
        repr=False,
        description="Target, `clickhouse://user:password@host:9000/retailmedia`; `clickhouses://` is TLS, `?ca_certs=` "
        "whom to trust.",
    )
    redis_url: str = Field(
        "",
        repr=False,
        description="Broker, results and watermarks, `redis://:password@host:6379/0`; `rediss://` is TLS; with Sentinel "
        "`sentinel://:password@host:26379,host:26379/0?master=name`.",
    )
    redis_sentinel_password: str = Field(
        "", repr=False, description="Password of the Sentinels themselves, where they have one."
    )
    retailmedia_home: Path = Field(
        Path(".retailmedia"), description="Folder of the embedded stack, its data and its logs."
    )

    # The original project's names, honoured where the DSN is not set.
    pg_host: str = Field("", description="PostgreSQL host, if POSTGRES_DSN is not set.")
    pg_port: int = Field(5432, ge=1, le=65535)
    pg_database: str = Field("postgres")
    pg_user: str = Field("postgres")
    pg_password: str = Field("", repr=False)
    ch_host: str = Field("", description="ClickHouse host, if CLICKHOUSE_DSN is not set.")
    ch_port: int = Field(9000, ge=1, le=65535, description="ClickHouse native TCP port.")
    ch_database: str = Field("retailmedia")
    ch_user: str = Field("default")
    ch_password: str = Field("", repr=False)

    # What the numbers mean
    reporting_timezone: str = Field("UTC", description="IANA zone in which days are cut.")
    pricing_model: PricingModel = Field(
        "cpc", description="cpc: clicks × bid; cpm: impressions × bid / 1000; cpi: impressions × bid."
    )
    finality_hours: int = Field(
        120, ge=0, description="Hours after a day's end until it is final; a later change is a restatement."
    )

    # Anomalies
    anomaly_false_discovery_rate: float = Field(
        0.05, gt=0, lt=1, description="Share of reported anomalies that may be chance's, over many runs."
    )
    anomaly_history_days: int = Field(42, ge=14, description="Days before a day that it is measured against.")
    anomaly_days: int = Field(7, ge=1, description="Whole days up to now that each run of the detector judges anew.")

    # Windows
    window_rows: int = Field(1_000_000, ge=1, description="Rows a window aims to hold.")
    window_limit: int = Field(64, ge=1, description="Windows one planning tick may hand out per stream.")
    fresh_seconds: int = Field(
        60,
        ge=1,
        description="Rows inserted this recently go to the realtime queue, more than three windows of older ones to the backfill queue.",
    )
    chunk_rows: int = Field(524_288, ge=1, description="Rows per block sent to ClickHouse; bounds a worker's memory.")
    horizon_margin_ms: int = Field(
        250, ge=0, description="Kept between the safe horizon and the oldest open transaction, in milliseconds."
    )
    horizon_alert_seconds: int = Field(
        300, ge=1, description="Age at which whoever holds the horizon back is reported."
    )
    failover_rewind_seconds: int = Field(
        86_400, ge=0, description="How far watermarks go back when the source's timeline changes (a promoted replica)."
    )
    dimension_max_shrink_percent: float = Field(
        50,
        ge=0,
        le=100,
        description="Share of a dimension's known rows that may vanish at once; where more do, or all, the reading is not "
        "believed until a person says so. 100 believes anything.",
    )
    lease_seconds: int = Field(
        60, ge=1, description="Time after which a silent worker's window may be handed out again."
    )

    # Reconciliation
    reconcile_heal_limit: int = Field(
        10_000, ge=0, description="Rows one reconciliation mends at most; where more differ it mends none and says so."
    )
    reconcile_recent_days: int = Field(3, ge=1, description="Latest days that are compared every hour.")
    source_keeps_days: int | None = Field(
        None,
        ge=1,
        description="Days the source keeps events; what is older and gone there is kept here. Not set: for ever.",
    )
    reconcile_rotation_days: int = Field(
        31, ge=1, description="Days compared in one turn of the rotation over all days, those not looked at longest."
    )

    # Celery
    schedule_profile: Literal["realtime", "hourly", "daily"] = Field("realtime", description="Beat schedule to use.")
    visibility_timeout_seconds: int = Field(
        900, ge=30, description="Redis redelivers an unacknowledged message after this."
    )
    max_redeliveries: int = Field(3, ge=1, description="Times a task whose worker died is tried again.")
    stop_slack_seconds: int = Field(
        20, ge=1, description="A worker told to stop that has not, this long after its tasks' time, ends itself."
    )

    # Timeouts
    postgres_statement_timeout_seconds: int = Field(240, ge=1)
    lock_wait_seconds: int = Field(
        10,
        ge=1,
        description="How long a reader waits for a source table that somebody is altering, before it tries later.",
    )
    clickhouse_timeout_seconds: int = Field(
        60, ge=1, description="Send and receive timeout of one ClickHouse statement."
    )
    connect_timeout_seconds: int = Field(5, ge=1)
    retry_attempts: int = Field(5, ge=1, description="Tries of one statement on a transient error.")
    retry_total_seconds: float = Field(30.0, gt=0, description="Total time one statement may spend in retries.")

    # Data quality
    cleansing: dict[str, Literal["load", "flag", "quarantine"]] = Field(
        {},
        description="What becomes of the rows a cleansing rule finds, as JSON: "
        '`{"future": "quarantine", "too old": "flag", "no campaign": "load"}`; `load` for a rule not named.',
    )
    cleansing_future_seconds: int = Field(
        300, ge=0, description="How much later than its row was written an event may have happened (rule `future`)."
    )
    cleansing_earliest: date = Field(
        date(2000, 1, 1), description="The first UTC day an event may have happened on (rule `too old`)."
    )
    check_thresholds: dict[str, dict[str, str | int | float]] = Field(
        {},
        description='Thresholds of checks that differ from their files, as JSON: `{"ctr_ceiling": {"max_ctr": 0.3}}`.',
    )
    checks_folder: Path | None = Field(
        None,
        description="A folder of further checks, beside those in clickhouse/checks; `source/` in it asks PostgreSQL.",
    )
    check_seconds: int = Field(30, ge=1, description="Checks of days that were rebuilt run at most this often.")
    check_samples: int = Field(20, ge=1, le=1000, description="Failing rows kept of each check.")
    freshness: dict[str, tuple[int, int]] = Field(
        {},
        description='Promise of each stream in seconds, as JSON: `{"clicks": [60, 300]}` warns after a minute behind '
        "the safe horizon's promise and errs after five. Default by SCHEDULE_PROFILE.",
    )

    # Alerts
    alert_urls: str = Field(
        "", repr=False, description="Where alerts go, Apprise URLs parted by spaces; none are sent while it is empty."
    )
    alerts_per_hour: int = Field(30, ge=1, description="Messages sent in an hour; what goes beyond waits.")
    alert_quarantine_rows: int = Field(100, ge=0, description="Rows held in quarantine above which an alert is raised.")
    alert_queue_depth: int = Field(
        10_000, ge=1, description="Messages waiting in a queue above which an alert is raised."
    )

    # Flower
    flower_user: str = Field("retailmedia", description="User name of Flower's login.")
    flower_password: str = Field("", repr=False, description="Password of Flower's login; `up` makes one if not set.")
    flower_port: int = Field(
        5555, ge=0, le=65535, description="Flower's port on the loopback interface; 0 takes a free one."
    )

    # Operation
    development: bool = Field(False, description="true lets the passwords of .env.example pass.")
    heartbeat_file: Path | None = Field(
        None, description="Touched by a worker, and by beat, while it and the broker talk; for health checks."
    )
    message_limit_bytes: int = Field(
        65_536, ge=4096, description="A task message larger than this as the broker has it is refused unread."
    )
    clickhouse_cluster: str = Field(
        "", pattern=r"^[A-Za-z0-9_.-]{0,64}$", description="Cluster on which the schema is created; empty: one server."
    )
    log_format: Literal["console", "json"] = Field("console")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO")

    @field_validator("flower_port", mode="before")
    @classmethod
    def _not_a_service(cls, value: object) -> object:
        # Kubernetes tells a pod of a service called flower `FLOWER_PORT=tcp://…`, which is not meant for us.
        return 5555 if isinstance(value, str) and re.match(r"(tcp|udp|sctp)://", value) else value

    @field_validator("log_level", "log_format", "pricing_model", "schedule_profile", mode="before")
    @classmethod
    def _in_any_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.strip().upper() if info.field_name == "log_level" else value.strip().lower()

    @field_validator("flower_user")
    @classmethod
    def _no_colon(cls, value: str) -> str:
        if ":" in value:
            raise ValueError("a user name of HTTP basic authentication holds no colon")
        return value

    @field_validator("reporting_timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        if value not in calendar.zones():
            raise ValueError(f"{value!r} is not an IANA time zone; use a name such as UTC or Europe/Paris")
        return value

    @model_validator(mode="after")
    def _timeouts_nest(self) -> Settings:
        if self.postgres_statement_timeout_seconds > self.task_time_limit_seconds:
            raise ValueError(
                "POSTGRES_STATEMENT_TIMEOUT_SECONDS must not exceed a third of VISIBILITY_TIMEOUT_SECONDS "
                f"({self.task_time_limit_seconds})"
            )
        return self

    @model_validator(mode="after")
    def _passwords_are_own(self) -> Settings:
        if not self.development:
            for name in (
                "postgres_dsn",
                "clickhouse_dsn",
                "redis_url",
                "redis_sentinel_password",
                "pg_password",
                "ch_password",
                "flower_password",
            ):
                if EXAMPLE_PASSWORD in getattr(self, name):
                    raise ValueError(
                        f"{name.upper()} holds a password of .env.example, which everybody knows; run `make env`, "
                        "or set DEVELOPMENT=true on a machine nobody else can reach"
                    )
        return self

    @property
    def task_time_limit_seconds(self) -> int:
        """Hard limit of one task: a third of the visibility timeout, so that Redis never redelivers a live one."""
        return self.visibility_timeout_seconds // 3

    def promise(self, stream: str) -> tuple[timedelta, timedelta]:
        """How far a stream may lag behind before that is a warning, and before it is an error."""
        default = {"realtime": (60, 300), "hourly": (5400, 9000), "daily": (93_600, 108_000)}[self.schedule_profile]
        if stream in {"advertisers", "campaigns"} and self.schedule_profile == "realtime":
            # Read whole, once a minute.
            default = (300, 900)
        warn, error = self.freshness.get(stream, default)
        return timedelta(seconds=warn), timedelta(seconds=error)

    @cached_property
    def _embedded(self) -> dict[str, str]:
        path = self.retailmedia_home / "stack.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return {key: value for key, value in content.items() if isinstance(value, str)}

    def _resolve(self, name: str, given: str) -> str:
        address = given or self._embedded.get(name, "")
        if not address:
            raise Unreachable(
                f"{name} is not set and no embedded stack runs in {self.retailmedia_home}: "
                "set it, or start the stack with `retailmedia up`."
            )
        return address

    @property
    def source_dsn(self) -> str:
        """The PostgreSQL DSN in force. Raises `Unreachable` if there is none."""
        given = self.postgres_dsn
        if not given and self.pg_host:
            secret = f":{quote(self.pg_password, safe='')}" if self.pg_password else ""
            given = (
                f"postgresql://{quote(self.pg_user, safe='')}{secret}@{self.pg_host}:{self.pg_port}/{self.pg_database}"
            )
        return self._resolve("POSTGRES_DSN", given)

    @property
    def sink_dsn(self) -> str:
        """The ClickHouse DSN in force. Raises `Unreachable` if there is none."""
        given = self.clickhouse_dsn
        if not given and self.ch_host:
            secret = f":{quote(self.ch_password, safe='')}" if self.ch_password else ""
            given = (
                f"clickhouse://{quote(self.ch_user, safe='')}{secret}@{self.ch_host}:{self.ch_port}/{self.ch_database}"
            )
        return self._resolve("CLICKHOUSE_DSN", given)

    @property
    def broker_url(self) -> str:
        """The Redis URL in force. Raises `Unreachable` if there is none."""
        return self._resolve("REDIS_URL", self.redis_url)

    @property
    def redis_address(self) -> RedisAddress:
        """The Redis URL in parts. Raises `BadInput` if it is one of Sentinels and cannot be understood."""
        url = self.broker_url
        # Several hosts are no URL: `urlsplit` refuses them once one is an IPv6 address.
        scheme, _, rest = url.partition("://")
        if not scheme.startswith("sentinel"):
            return RedisAddress(url)
        place, _, query = rest.partition("?")
        netloc, _, path = place.partition("/")
        login, _, hosts = netloc.rpartition("@")
        user, _, password = login.partition(":")
        master = parse_qs(query).get("master", [""])[-1]
        database = path.strip("/") or "0"
        try:
            servers = tuple(
                (str(each.hostname or ""), each.port or SENTINEL_PORT)
                for each in (urlsplit(f"//{host}") for host in hosts.split(","))
            )
        except ValueError:
            servers = ()
        understood = scheme == "sentinel" and servers and all(host for host, _ in servers)
        if not understood or not master or not database.isdecimal():
            raise BadInput(
                "REDIS_URL must read sentinel://:password@host:26379,host:26379/0?master=name for Sentinels; they and "
                "the Redis they watch are spoken to without TLS."
            )
        return RedisAddress(url, servers, master, unquote(user), unquote(password), int(database))

    @property
    def sink_address(self) -> ClickHouseAddress:
        """The ClickHouse DSN in parts. Raises `BadInput` if it is not one."""
        try:
            parts = urlsplit(self.sink_dsn)
            port = parts.port
        except ValueError:
            # It says what is wrong with the address and repeats it, password and all.
            parts, port = urlsplit(""), None
        if parts.scheme not in {"clickhouse", "clickhouses"} or not parts.hostname:
            raise BadInput("CLICKHOUSE_DSN must read clickhouse://user:password@host:9000/database.")
        secure = parts.scheme == "clickhouses"
        database = unquote(parts.path.strip("/")) or "retailmedia"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", database):
            raise BadInput("The database in CLICKHOUSE_DSN may hold letters, digits and underscores only.")
        return ClickHouseAddress(
            host=parts.hostname,
            port=port or (9440 if secure else 9000),
            user=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            database=database,
            secure=secure,
            ca_certs=parse_qs(parts.query).get("ca_certs", [None])[0] if secure else None,
        )

    def server_label(self, which: Literal["postgres", "clickhouse", "redis"]) -> str:
        """Host, port and database of a server, for people; never its user or password."""
        match which:
            case "postgres":
                dsn = self.source_dsn
            case "clickhouse":
                dsn = self.sink_dsn
            case "redis":
                address = self.redis_address
                if address.sentinels:
                    hosts = ",".join(f"{host}:{port}" for host, port in address.sentinels)
                    return f"{hosts}/{address.database}, master {address.master}"
                dsn = address.url
        if "://" not in dsn:
            # libpq also takes `host=… port=… dbname=… password=…`.
            known = dict(re.findall(r"\b(host|hostaddr|port|dbname)\s*=\s*'?([^\s']+)", dsn))
            host, port = known.get("host") or known.get("hostaddr") or "localhost", known.get("port", "")
            return f"{host}{f':{port}' if port else ''}{'/' + known['dbname'] if 'dbname' in known else ''}"
        authority, _, tail = dsn.partition("://")[2].partition("/")
        if "@" in tail:
            # The slash was one of the password's, so what looks like a port and a path are parts of it.
            return UNREADABLE
        hosts, path = authority.rpartition("@")[2].partition("?")[0], re.split(r"[?#]", tail)[0]
        return f"{hosts or 'localhost'}{'/' + path if path else ''}"


def surroundings() -> MutableMapping[str, str]:
    """This process's environment itself, for programs of others that read settings of their own from it."""
    return os.environ


def _reason(error: Exception) -> str:
    return f"{error.__cause__ or 'it takes JSON'}".rstrip(".")


def load(**overrides: object) -> Settings:
    """Settings from the environment, with overrides. Raises `BadInput` naming each unusable one."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except SettingsError as error:
        # A setting that is JSON and cannot be read as such.
        raise BadInput(f"Unusable setting: {str(error).rstrip('.')}; {_reason(error)}.") from None
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']).upper() or 'settings'}: {item['msg']}"
            for item in error.errors()
        )
        raise BadInput(f"Unusable setting: {told}.") from None
