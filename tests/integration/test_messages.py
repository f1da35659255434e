"""Whatever comes out of the broker: a worker refuses what is not well-formed, and serves what is behind it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import until
from tests.wires import RUN, STEP, Wired, encoded, task, told, wired
from worker import observe
from worker.celery import Servers

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    with wired(tmp_path_factory.mktemp("wired")) as running:
        yield running


def header(**values: Any) -> Change:
    return lambda message: message["headers"].update(values)


def lacking(part: str, name: str) -> Change:
    return lambda message: message[part].pop(name)


def prop(**values: Any) -> Change:
    return lambda message: message["properties"].update(values)


def part(name: str, value: Any) -> Change:
    return lambda message: message.__setitem__(name, value)


def body(value: Any) -> Change:
    return part("body", encoded(value))


def text(value: str) -> Change:
    return part("body", base64.b64encode(value.encode()).decode())


def signature(**values: Any) -> dict[str, Any]:
    return {"task": STEP, "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True, **values}


def protocol_1(**values: Any) -> Change:
    def change(message: dict[str, Any]) -> None:
        fields = {"task": STEP, "id": message["headers"]["id"], "args": [], "kwargs": {}, "retries": 0, **values}
        message["headers"] = {}
        message["body"] = encoded(fields)

    return change


DEEP = "[" * 3000 + "]" * 3000

TASKS: dict[str, Change | bytes] = {
    "1 the task is a list": header(task=[STEP]),
    "2 the id is an object": header(id={"a": 1}),
    "3 time limits are texts": header(timelimit=["x", "y"]),
    "4 the body is an empty list": body([]),
    "5 the body holds numbers": body([1, 2, 3]),
    "6 no JSON": b"\xff\x00 no JSON",
    "7 no id": lacking("headers", "id"),
    "8 the entry is a list": b"[]",
    "9 the entry is a number": b"1",
    "10 the entry is null": b"null",
    "11 the entry is empty": b"",
    "12 no properties": lambda message: message.pop("properties"),
    "13 properties are a list": part("properties", []),
    "14 no delivery tag": lacking("properties", "delivery_tag"),
    "15 the delivery tag is a list": prop(delivery_tag=[1]),
    "16 no delivery info": lacking("properties", "delivery_info"),
    "17 delivery info is empty": prop(delivery_info={}),
    "18 an exchange that is a list": prop(delivery_info={"exchange": [], "routing_key": "realtime"}),
    "19 a route into a key that is no queue": prop(delivery_info={"exchange": "", "routing_key": "retailmedia:gate"}),
    "20 headers are a list": part("headers", ["task"]),
    "21 headers are null": part("headers", None),
    "22 an unknown task": header(task="worker.tasks.sync.plann"),
    "23 a task of Celery's own": header(task="celery.starmap"),
    "24 the id is null": header(id=None),
    "25 the id moves the cursor": header(id="\x1b[2J\u202e"),
    "26 the id is a number": header(id=7),
    "27 the root is a list": header(root_id=[1]),
    "28 the parent is an object": header(parent_id={}),
    "29 the group is a list": header(group=["x"]),
    "30 a group index that is a text": header(group="g", group_index="x"),
    "31 the language is an object": header(lang={}),
    "32 argsrepr is an object": header(argsrepr={"x": 1}),
    "33 eta is a number": header(eta=10**10),
    "34 eta is no time": header(eta="tomorrow"),
    "35 eta is the year 9999": header(eta="9999-12-31T23:59:59+00:00"),
    "36 eta is the year 1": header(eta="0001-01-01T00:00:00-12:00"),
    "37 expires is a list": header(expires=[]),
    "38 expires is no time": header(expires="never"),
    "39 expires is the year 1": header(expires="0001-01-01T00:00:00+14:00"),
    "40 retries are a text": header(retries="x"),
    "41 retries are negative": header(retries=-1_000_000),
    "42 one time limit": header(timelimit=[1]),
    "43 a time limit of an object": header(timelimit={"hard": 1}),
    "44 a time limit of a month": header(timelimit=[2_592_000, None]),
    "45 a negative time limit": header(timelimit=[-1, -1]),
    "46 the correlation id is a list": prop(correlation_id=["x"]),
    "47 whom to answer is an object": prop(reply_to={"x": 1}),
    "48 a priority that is an object": prop(priority={}),
    "49 another content type": part("content-type", "application/x-python-serialize"),
    "50 the content type is a list": part("content-type", ["application/json"]),
    "51 an encoding there is not": part("content-encoding", "utf-99"),
    "52 the content encoding is a number": part("content-encoding", 8),
    "53 compressed": header(compression="application/x-gzip"),
    "54 compressed in a way there is not": header(compression=["x"]),
    "55 the body is not base64": part("body", "$$$"),
    "56 the body is a list": part("body", [[], {}, {}]),
    "57 the body is null": part("body", None),
    "58 no body": lambda message: message.pop("body"),
    "59 a body encoding there is not": prop(body_encoding="rot13"),
    "60 a body encoding that is a number": prop(body_encoding=64),
    "61 the body is no JSON": text("{"),
    "62 the body is a text": text('"args"'),
    "63 the body is null in JSON": text("null"),
    "64 arguments are an object": body([{}, {}, {}]),
    "65 keywords are a list": body([[], [], {}]),
    "66 what follows is a list": body([[], {}, []]),
    "67 what follows is a number": body([[], {}, 7]),
    "68 a callback that is a number": body([[], {}, {"callbacks": [7]}]),
    "69 callbacks that are a number": body([[], {}, {"callbacks": 7}]),
    "70 a chord that is a text": body([[], {}, {"chord": "x"}]),
    "71 a chord into a queue there is not": body([[], {}, {"chord": signature(options={"queue": "elsewhere"})}]),
    "72 a callback of a task there is not": body([[], {}, {"errbacks": [signature(task="os.system")]}]),
    "73 a chain of a number": body([[], {}, {"chain": 3}]),
    "74 as deep as it goes": text(DEEP),
    "75 an entry as deep as it goes": DEEP.encode(),
    "76 infinity": text('[[], {"run_id": 1e999}, {}]'),
    "77 not a number": text('[[], {"run_id": NaN}, {}]'),
    "78 half a character": text('[[], {"run_id": "\\ud800"}, {}]'),
    "79 a number of 5000 digits": text('[[], {"run_id": ' + "9" * 5000 + "}, {}]"),
    "80 a type by name": text('[[], {"run_id": {"__type__": "decimal", "__value__": "x"}}, {}]'),
    "81 a header that is Celery's own attribute": header(is_eager=True),
    "82 a header that is Celery's own method": header(update="x"),
    "83 stamps that are a text": header(stamps="x", stamped_headers=["a"]),
    "84 protocol 1 without an id": protocol_1(id=None),
    "85 protocol 1, the task is a list": protocol_1(task=[STEP]),
    "86 protocol 1, keywords are a list": protocol_1(kwargs=[1]),
    "87 protocol 1, eta is a number": protocol_1(eta=5),
    "88 protocol 1, time limits are texts": protocol_1(timelimit=["x", "y"]),
    "89 protocol 1, retries are an object": protocol_1(retries={}),
    "90 protocol 1, expires is an object": protocol_1(expires={}),
    "91 protocol 1, an unknown task": protocol_1(task="nothing"),
    "92 protocol 1, a chord that is a text": protocol_1(chord="x"),
    "93 protocol 1, larger than a message may be": protocol_1(kwargs={"run_id": "x" * 70_000}),
    "94 headers larger than a message may be": header(argsrepr="x" * 70_000),
    "95 both protocols, arguments are a number": body({"args": 7, "kwargs": {}}),
    "96 both protocols, keywords are a number": body({"args": [], "kwargs": 7}),
    "97 a shadow that is an object": header(shadow={"x": 1}),
    "98 ignore_result is a text": header(ignore_result="x"),
    "99 the origin is a list": header(origin=["x"]),
    "100 a part nobody knows": part("redelivered", {}),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_malformed_task_is_refused_and_the_next_one_served(worker: Wired, name: str) -> None:
    before, change = len(worker.refused()), TASKS[name]
    if isinstance(change, bytes):
        worker.put(change)
    else:
        message = task()
        change(message)
        worker.put(message)
    worker.serves(name)
    (line,) = worker.refused()[before:]
    written = json.dumps(line, ensure_ascii=False)
    assert len(written) < 600
    assert written.isprintable()
    until(lambda: not worker.client.exists("unacked", "unacked_index"), "nothing is left to be delivered again")


COMMANDS: dict[str, object] = {
    "1 no JSON": b"no JSON",
    "2 a number": b"7",
    "3 a list": b"[]",
    "4 as deep as it goes": DEEP.encode(),
    "5 no properties": {"body": "x"},
    "6 the body is a list": told("celery.pidbox", [], clock=1),
    "7 the body is not base64": {**told("celery.pidbox", {}, clock=1), "body": "$$$"},
    "8 a clock of infinity": told("celery.pidbox", {"method": "ping"}, clock=1e308),
    "9 a clock that is a text": told("celery.pidbox", {"method": "ping"}, clock="x"),
    "10 a time limit that is a text": told(
        "celery.pidbox", {"method": "time_limit", "arguments": {"task_name": STEP, "hard": "x", "soft": "y"}}
    ),
    "11 a queue that is another key": told(
        "celery.pidbox", {"method": "add_consumer", "arguments": {"queue": "retailmedia:turn:x"}}
    ),
    "12 revoke an object": told("celery.pidbox", {"method": "revoke", "arguments": {"task_id": {"x": 1}}}),
    "13 a pattern that takes for ever": told(
        "celery.pidbox", {"method": "ping", "pattern": "(.*)*(.*)*(.*)*x", "matcher": "pcre"}
    ),
    "14 no method": told("celery.pidbox", {"arguments": {}}),
    "15 a method that is a list": told("celery.pidbox", {"method": ["ping"]}),
    "16 an answer to another key": told(
        "celery.pidbox", {"method": "ping", "reply_to": {"exchange": "retailmedia", "routing_key": "realtime"}}
    ),
    "17 a rate that is an object": told(
        "celery.pidbox", {"method": "rate_limit", "arguments": {"task_name": STEP, "rate_limit": {}}}
    ),
    "18 modules to import": told("celery.pidbox", {"method": "pool_restart", "arguments": {"modules": ["antigravity"]}}),
    "19 revoked tasks that are a text": told(
        "celery.pidbox", {"method": "hello", "arguments": {"from_node": "x", "revoked": 7}}
    ),
    "20 grow by a million": told("celery.pidbox", {"method": "pool_grow", "arguments": {"n": 1_000_000}}),
    "21 compressed": told("celery.pidbox", {"method": "ping"}, compression="application/x-gzip"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_malformed_command_is_refused_and_the_worker_goes_on(worker: Wired, name: str) -> None:
    before = len(worker.refused())
    worker.publish(COMMANDS[name])
    until(lambda: len(worker.refused()) > before, "the command is refused", 10)
    worker.serves(name)


EVENTS: dict[str, object] = {
    "1 no JSON": b"no JSON",
    "2 a number": b"7",
    "3 no properties": {"body": "x"},
    "4 a list of events": told("celeryev", [{"type": "worker-heartbeat"}], "worker.heartbeat"),
    "5 no host": told("celeryev", {"type": "worker-heartbeat"}, "worker.heartbeat"),
    "6 a clock of infinity": told(
        "celeryev", {"type": "worker-heartbeat", "hostname": "x", "timestamp": 1, "clock": 1e308}, "worker.heartbeat"
    ),
    "7 no route": {**told("celeryev", {}), "properties": {"delivery_tag": "x", "body_encoding": "base64"}},
    "8 an election": told(
        "celeryev", {"type": "worker-elect", "hostname": "x", "timestamp": 1, "clock": 1}, "worker.elect"
    ),
    "9 a heartbeat every so often": told(
        "celeryev",
        {"type": "worker-heartbeat", "hostname": "x", "timestamp": 1, "clock": 1, "freq": "x"},
        "worker.heartbeat",
    ),
    "10 a time that is a text": told(
        "celeryev", {"type": "worker-online", "hostname": "x", "timestamp": "x", "clock": 1}, "worker.online"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_a_malformed_event_is_refused_and_the_worker_goes_on(worker: Wired, name: str) -> None:
    before = len(worker.refused())
    worker.publish(EVENTS[name], "celeryev/worker.heartbeat")
    until(lambda: len(worker.refused()) > before, "the event is refused", 10)
    worker.serves(name)


@pytest.mark.parametrize("queue", ["realtime\x06\x163", "realtime\x06\x169", "maintenance\x06\x166"])
def test_a_message_with_a_priority_is_checked_as_any_other(worker: Wired, queue: str) -> None:
    before = len(worker.refused())
    bad = task()
    bad["headers"]["id"] = {}
    worker.put(bad, queue)
    good = task()
    good["properties"]["delivery_info"]["routing_key"] = queue.partition("\x06")[0]
    worker.put(good, queue)
    until(lambda: worker.client.exists(f"celery-task-meta-{good['headers']['id']}") > 0, "the good one is served", 20)
    assert len(worker.refused()) == before + 1


WELL_FORMED: dict[str, Change] = {
    "a header of somebody's tracing": header(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    "protocol 1": protocol_1(kwargs={"run_id": "x", "turn": "0" * 16}),
    "both protocols": body({"args": [], "kwargs": {"run_id": "x", "turn": "0" * 16}}),
    "delivered once before": header(redelivered=True),
    "by way of the exchange": prop(delivery_info={"exchange": "retailmedia", "routing_key": "realtime"}),
    "an eta without a zone": header(eta="2026-01-01T00:00:00"),
    "limits of its own": header(timelimit=[100, 90.5]),
    "what does not expire yet": header(expires="2100-01-01T00:00:00Z"),
    "not in base64": lambda message: message.update(
        body='[[], {"run_id": "x", "turn": "0000000000000000"}, {}]',
        properties={**message["properties"], "body_encoding": "utf-8"},
    ),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_well_formed_is_served(worker: Wired, name: str) -> None:
    worker.client.set("retailmedia:turn:step:x", "somebody else's")
    before, message = len(worker.refused()), task()
    key = f"celery-task-meta-{message['headers']['id']}"
    WELL_FORMED[name](message)
    worker.put(message)

    def served() -> bool:
        found = worker.client.get(key)
        return found is not None and json.loads(found)["status"] == "SUCCESS"

    until(served, "it is served", 20)
    assert len(worker.refused()) == before


LEFT: dict[str, bytes] = {
    "1 no JSON": b"no JSON",
    "2 a number": b"7",
    "3 two parts": b"[1, 2]",
    "4 no message": b'[1, "", "realtime"]',
    "5 another key": json.dumps([task(), "", "retailmedia:gate"]).encode(),
    "6 an exchange nobody has": json.dumps([task(), "elsewhere", "realtime"]).encode(),
    "7 a message with an id of lists": json.dumps([task(id=[]), "", "realtime"]).encode(),
    "8 a header that is a list": json.dumps([{**task(), "headers": []}, "", "realtime"]).encode(),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_dead_left_is_delivered_again_whatever_lies_before_it(worker: Wired, name: str) -> None:
    good, before = task(), len(worker.refused())
    client = worker.client
    for age, tag, entry in ((4000, "good", json.dumps([good, "", "realtime"])), (3000, "bad", LEFT[name])):
        client.hset("unacked", tag, entry)
        client.zadd("unacked_index", {tag: time.time() - age})
    key = f"celery-task-meta-{good['headers']['id']}"
    until(lambda: client.exists(key) > 0, "the good one is delivered again", 30)
    assert len(worker.refused()) == before + 1
    until(lambda: not client.exists("unacked", "unacked_index"), "nothing is left", 10)


def test_a_lock_without_an_end_does_not_end_redelivery(worker: Wired) -> None:
    good, client = task(), worker.client
    client.set("unacked_mutex", "for ever")
    client.hset("unacked", "good", json.dumps([good, "", "realtime"]))
    client.zadd("unacked_index", {"good": time.time() - 4000})
    key = f"celery-task-meta-{good['headers']['id']}"
    until(lambda: client.exists(key) > 0, "it is delivered again", 30)


@pytest.mark.parametrize("key", ["realtime", "realtime\x06\x166", "unacked", "unacked_index"])
def test_a_key_of_another_type_is_thrown_away(worker: Wired, key: str) -> None:
    worker.client.delete(key)
    worker.client.set(key, "a text")
    if not key.startswith("unacked"):
        until(lambda: worker.client.type(key) != b"string", "the worker throws it away", 30)
    worker.serves(key)
    assert worker.client.type(key) != b"string"


def test_a_binding_that_somebody_made_leads_nowhere(worker: Wired) -> None:
    from worker.celery import create_app

    app, client = create_app(worker.settings), worker.client
    client.sadd("_kombu.binding.retailmedia", "no parts", "realtime\x06\x16\x06\x16elsewhere")
    try:
        app.send_task(
            STEP, kwargs={"run_id": RUN, "turn": "0" * 16}, exchange="retailmedia", routing_key="realtime"
        ).get(timeout=20)
        assert not client.exists("elsewhere")
    finally:
        app.close()


def test_two_with_one_tag_do_not_take_each_other_off(worker: Wired) -> None:
    first, second = task(), task()
    second["properties"]["delivery_tag"] = first["properties"]["delivery_tag"]
    worker.put(first)
    worker.put(second)
    for message in (first, second):
        key = f"celery-task-meta-{message['headers']['id']}"
        until(lambda key=key: worker.client.exists(key) > 0, "both are served", 20)  # type: ignore[misc]
    until(lambda: not worker.client.exists("unacked", "unacked_index"), "nothing is left")


def test_what_was_refused_is_counted_for_prometheus(worker: Wired) -> None:
    worker.put(b"{")
    servers = Servers.open(worker.settings)

    def counted() -> bool:
        found = {entry.labels["reason"] for entry in observe.sums(servers.store) if entry.name == "messages_refused"}
        return "not JSON" in found

    try:
        until(counted, "it is counted", 15)
    finally:
        servers.close()


def test_nothing_of_a_refused_message_is_logged(worker: Wired, tmp_path: Path) -> None:
    worker.put(task(secret_of_mine={"password": "hunter2-hunter2"}))
    worker.serves()
    worker.put({**task(), "headers": {"task": "hunter2-hunter2 \x1b]0;x\x07", "id": "\u202ehunter2-hunter2"}})
    worker.serves()
    assert "hunter2" not in worker.log.read_text()
