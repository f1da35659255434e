"""The Celery app, so that `celery -A worker …` works, and the servers each process talks to. Wiring only."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog
from celery import Celery, Task, signals
from kombu import Exchange, Queue

from beat_schedule import PROFILES
from worker import broker, calendars, ending, logs, observe
from worker.config import Settings, load, surroundings
from worker.errors import BadInput, RetailMediaError, Unreachable
from worker.ledger import Ledger
from worker.sink import Sink
from worker.source import Source
from worker.watermarks import WatermarkStore, sentinel_options

log = structlog.get_logger()

QUEUES = ("realtime", "backfill", "maintenance")
HEARTBEAT_FILE = "retailmedia_heartbeat_file"
"""A setting of ours that Celery carries to where it calls us: reading it anew costs milliseconds each time."""

M_MMAP_THRESHOLD = -3
"""What glibc's malloc.h calls the size from which on a buffer is a mapping of its own, given back when it is freed."""

MAPPED_FROM_BYTES = 2**20

NO_BROKER = "redis://127.0.0.1:6379/0"
"""Where Celery looks while no broker is named; it then says itself that nothing answers there."""


def _broker(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The address Celery takes, and the options that go with it to broker and result backend."""
    try:
        address = settings.redis_address
    except Unreachable:
        return NO_BROKER, {}
    if not address.sentinels:
        return address.url, {}
    # Celery takes one URL for each Sentinel, and the database and login of the master from any of them.
    login = f"{quote(address.user, safe='')}:{quote(address.password, safe='')}@" if address.password else ""
    urls = [f"sentinel://{login}{_bracketed(host)}:{port}/{address.database}" for host, port in address.sentinels]
    return ";".join(urls), {"master_name": address.master, "sentinel_kwargs": sentinel_options(settings)}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings. Each of them earned its place; DESIGN and the tests say how."""
    address, sentinel = _broker(settings)
    transport = {
        "visibility_timeout": settings.visibility_timeout_seconds,
        "socket_timeout": 10,
        "socket_connect_timeout": settings.connect_timeout_seconds,
        "socket_keepalive": True,
        "health_check_interval": 15,
        # Redelivery is looked for this often instead of every hundred seconds.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # What a message may be; told to the transport, which checks it.
        "message_limit_bytes": settings.message_limit_bytes,
        "task_time_limit_seconds": settings.task_time_limit_seconds,
        "task_queues": QUEUES,
        **sentinel,
    }
    return {
        "broker_url": address,
        "result_backend": address,
        "broker_transport_options": transport,
        "result_backend_transport_options": {"retry_policy": {"timeout": 10.0}, **sentinel},
        "result_backend_always_retry": True,
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": settings.connect_timeout_seconds,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 15,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": settings.connect_timeout_seconds,
        # A master that became a replica answers that it is read-only: a reason to look for the new one, not to end.
        "broker_channel_error_retry": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # A task that kills its worker would otherwise come back for ever.
        "task_retry_on_worker_lost": True,
        "task_time_limit": settings.task_time_limit_seconds,
        "task_soft_time_limit": settings.task_time_limit_seconds - 10,
        "worker_prefetch_multiplier": 1,
        "worker_soft_shutdown_timeout": 10.0,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "task_send_sent_event": True,
        "task_track_started": True,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "result_expires": 3600,
        "result_extended": True,
        "task_default_queue": "realtime",
        "task_default_exchange": "retailmedia",
        "task_default_routing_key": "realtime",
        "task_create_missing_queues": False,
        "task_queues": [Queue(name, Exchange("retailmedia"), routing_key=name) for name in QUEUES],
        "task_routes": {
            "worker.tasks.maintenance.*": {"queue": "maintenance"},
            "worker.tasks.reconcile.*": {"queue": "maintenance"},
            "worker.tasks.seals.*": {"queue": "maintenance"},
            "worker.tasks.quality.*": {"queue": "maintenance"},
            "worker.tasks.refresh.*": {"queue": "backfill"},
        },
        "timezone": "UTC",
        "enable_utc": True,
        "beat_schedule": PROFILES[settings.schedule_profile],
        "beat_schedule_filename": str(settings.retailmedia_home / "beat" / "schedule"),
        "beat_max_loop_interval": 1,
        HEARTBEAT_FILE: str(settings.heartbeat_file or ""),
        ending.STOP_SLACK: settings.stop_slack_seconds,
        "imports": [
            f"worker.tasks.{name}"
            for name in (
                "sync",
                "metrics",
                "pipeline",
                "refresh",
                "maintenance",
                "reconcile",
                "seals",
                "quality",
                "alerts",
            )
        ],
    }


@dataclass
class Servers:
    """The three servers, as one thread of one process sees them."""

    settings: Settings
    source: Source
    sink: Sink
    ledger: Ledger
    store: WatermarkStore

    @classmethod
    def open(cls, settings: Settings) -> Servers:
        """Servers by the settings; each connects at first use."""
        sink = Sink(settings)
        return cls(settings, Source(settings), sink, Ledger(sink), WatermarkStore(settings))

    def close(self) -> None:
        """Closes what was opened."""
        self.source.close()
        self.sink.close()
        self.store.close()


_local = threading.local()


def servers() -> Servers:
    """This thread's servers, opened after the fork and kept: a connection belongs to one thread of one process."""
    found: Servers | None = getattr(_local, "servers", None)
    if found is None:
        found = _local.servers = Servers.open(load())
    return found


def _forget_servers(**_: Any) -> None:
    # What was counted before the fork is the parent's to deliver.
    logs.tally.take()
    found: Servers | None = getattr(_local, "servers", None)
    _local.servers = None
    if found is not None:
        with suppress(Exception):
            found.close()


def _deliver_counts() -> None:
    found: Servers | None = getattr(_local, "servers", None)
    if found is not None:
        observe.deliver(found.store)


class DomainTask(Task):  # type: ignore[type-arg]
    """Base of every task: what it logs carries its id and name."""

    abstract = True
    Request = "worker.quiet:Request"
    max_retries = 3
    default_retry_delay = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the task within its log context."""
        structlog.contextvars.clear_contextvars()
        fields = {key: kwargs[key] for key in ("run_id", "stream", "lo", "hi") if kwargs.get(key)}
        structlog.contextvars.bind_contextvars(task_id=self.request.id, task=self.name, **fields)
        begun, outcome, redis_away = time.monotonic(), "failed", False
        try:
            result = super().__call__(*args, **kwargs)
            outcome = "succeeded"
            return result
        except Exception as error:
            log.warning("task.failed", error=str(error), kind=type(error).__name__)
            redis_away = isinstance(error, Unreachable)
            raise
        finally:
            observe.note_task(self.name, outcome, time.monotonic() - begun)
            # A task that found Redis away would only wait for it once more; the next one delivers.
            if not redis_away:
                _deliver_counts()
            structlog.contextvars.clear_contextvars()


CELERYS_OWN = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")
"""Variables that Celery would take before any setting of ours: half of the product would be on another server."""


def _one_broker(settings: Settings) -> None:
    """Takes Celery's own variables away, and says so where they name another server than our setting."""
    environment = surroundings()
    ours = _broker(settings)[0]
    for name in CELERYS_OWN:
        told = environment.pop(name, "")
        if told and told != ours:
            print(f"Warning: {name} is ignored; the broker is the one REDIS_URL names.", file=sys.stderr)


def create_app(settings: Settings) -> Celery[Any]:
    """A Celery app by these settings."""
    _one_broker(settings)
    broker.register()
    made: Celery[Any] = Celery("worker", task_cls=DomainTask, amqp=broker.AMQP, set_as_current=True)
    made.conf.update(configuration(settings))
    made.steps["worker"].add(ending.Deadline)
    DomainTask.max_retries = settings.max_redeliveries
    return made


try:
    app = create_app(load())
except BadInput as error:
    if "celery" not in Path(sys.argv[0]).parts[-2:]:
        raise
    # Celery's command line shows the traceback of whatever keeps it from importing an app, except for this.
    print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(BadInput.exit_code) from None


@signals.worker_process_init.connect(weak=False)
def _keep_buffers_out_of_the_heap(**_: Any) -> None:
    # Whenever a mapped buffer is freed, glibc takes the next ones of its size from the heap, up to 32 MiB; there the
    # buffers of chunks leave holes, and a child grew by a quarter while it loaded ten million rows. A limit that is set
    # stays. Other libraries of C have none to set.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)


signals.worker_process_init.connect(_forget_servers, weak=False)
signals.worker_process_shutdown.connect(_forget_servers, weak=False)


if "flower" in sys.argv[1:]:
    # Flower looks at its environment before it asks the app for anything.
    from worker import flower

    flower.install(surroundings())

if "beat" in sys.argv[1:]:
    # Beat opens its file before it tells anybody that it begins. It complains itself where the folder cannot be made.
    with suppress(OSError):
        Path(app.conf.beat_schedule_filename).parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _touch(path: Path) -> None:
    with suppress(OSError):
        path.touch()


@signals.heartbeat_sent.connect(weak=False)
def _worker_lives(**_: Any) -> None:
    # Sent by the main process every two seconds, and only while the broker takes it.
    path = app.conf[HEARTBEAT_FILE]
    if path:
        _touch(Path(path))
    # It runs no task with whose end it would deliver what it counted, such as messages it refused.
    if not logs.tally.is_empty():
        observe.deliver(servers().store)


@signals.worker_ready.connect(weak=False)
def _keep_calendar_current(**_: Any) -> None:
    # With what it opens closed again before a child is forked anew. What fails here, the next sweep does.
    settings = load()
    with Sink(settings) as sink:
        try:
            calendars.keep_current(sink, Ledger(sink), settings)
        except RetailMediaError as error:
            log.warning("calendar.not_looked_at", cause=str(error))


@signals.beat_init.connect(weak=False)
def _beat_lives(**_: Any) -> None:
    path = app.conf[HEARTBEAT_FILE]
    if path:
        signals.after_task_publish.connect(lambda **_: _touch(Path(path)), weak=False)


@signals.beat_init.connect(weak=False)
def _nothing_ran_in_the_future(sender: Any, **_: Any) -> None:
    # Beat's memory of a clock that was ahead would keep it silent until the right clock gets there.
    for entry in sender.scheduler.schedule.values():
        entry.last_run_at = min(entry.last_run_at, entry.default_now())


@signals.setup_logging.connect(weak=False)
def _setup_logging(**_: Any) -> None:
    logs.configure(load())
