"""The benchmark's own arithmetic, and that its relay delivers everything, late."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.__main__ import CASES, options_of, parsed
from bench.datapath import CASES as PATH_CASES
from bench.datapath import CELERY, DLT, FUNCTION, LIBPQ, LOOP, SOCKET, WINDOW, findings
from bench.freshness import COMMITS_A_SECOND, RATES, Writer
from bench.measures import Findings, Goal, Line, paired, percentile, rotated
from bench.relay import relayed

SAMPLES = {
    LIBPQ: [2.0, 4.0, 4.0],
    SOCKET: [4.0, 2.0, 4.0],
    WINDOW: [3.0, 3.0, 3.0],
    CELERY: [2.4, 3.0, 2.7],
    FUNCTION: [2.0, 2.0, 1.5],
    LOOP: [0.3, 0.3, 0.3],
}


def measured(found: Findings) -> dict[str, tuple[float | None, bool | None]]:
    return {goal.text: (goal.measured, goal.met) for goal in found.goals}


def test_ratios_are_of_the_same_round_and_the_faster_reading_is_the_limit() -> None:
    found = findings(SAMPLES, {}, rows=1000)
    lines = {line.case: line for line in found.lines}
    assert lines[WINDOW].ratios["limit"] == (0.75, 0.75, 0.75)
    assert lines[WINDOW].ratios["postgresql()"] == (1.5, 1.5, 2.0)
    assert lines[LIBPQ].ratios == {"limit": (0.5, 1.0, 1.0)}
    goals = measured(found)
    assert goals["one window, narrow, of the limit"] == (0.75, True)
    assert goals["through Celery, 2 processes, of one window"] == (2.7 / 3.0, True)
    assert goals["one window, of the row loop"] == (3.0 / 0.3, True)


def test_a_case_in_trouble_shows_no_number_and_decides_no_goal() -> None:
    found = findings(SAMPLES, {WINDOW: "source and target do not agree"}, rows=1000)
    lines = {line.case: line for line in found.lines}
    assert (lines[WINDOW].state, lines[WINDOW].samples, lines[WINDOW].ratios) == ("failed", (), {})
    assert lines[WINDOW].note == "source and target do not agree"
    assert found.failed
    assert set(measured(found).values()) == {(None, None)}


def test_what_is_not_measured_is_said_and_is_no_failure() -> None:
    found = findings(SAMPLES, {}, rows=1000)
    left_out = {line.case for line in found.lines if line.state == "not measured"}
    assert left_out == set(DLT)
    assert all(line.note for line in found.lines if line.state == "not measured")
    assert not found.failed


def test_dlt_is_judged_by_its_fastest_backend() -> None:
    slow, fast = DLT
    found = findings({**SAMPLES, slow: [0.5, 0.5, 0.5], fast: [1.0, 1.5, 1.0]}, {}, rows=1000)
    assert measured(found)["one window, of dlt's fastest backend"] == (3.0, True)


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [
        ("at least", 1.0, True), ("at least", 0.99, False), ("at most", 1.0, True), ("at most", 1.01, False),
        ("under", 0.99, True), ("under", 1.0, False),
    ],
)  # fmt: skip
def test_a_goal_is_met_by_its_median(bound: str, value: float, met: bool) -> None:
    assert Goal("a goal", bound, 1.0, "×", (value - 9, value, value + 9)).met is met  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], share: float) -> None:
    found = percentile(samples, share)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= share * len(samples) - 1e-9
    assert sum(sample < found for sample in samples) <= share * len(samples)


def test_ratios_without_a_partner_are_left_out_and_a_zero_is_refused() -> None:
    assert paired([1.0, 2.0, 3.0], [2.0, 2.0]) == (0.5, 1.0)
    with pytest.raises(ValueError, match="nothing"):
        paired([1.0], [0.0])


@given(st.integers(-3, 20))
def test_rotation_keeps_every_case(by: int) -> None:
    assert sorted(rotated(PATH_CASES, by)) == sorted(PATH_CASES)
    assert rotated(PATH_CASES, 1)[0] == PATH_CASES[1]


def test_the_command_line_says_how_much_is_measured() -> None:
    normal, quick = options_of(parsed([])), options_of(parsed(["--quick"]))
    assert (normal.rows, normal.rounds) == (2_000_000, 5)
    assert (quick.rows, quick.rounds) == (200_000, 3)
    assert options_of(parsed(["--rows", "5000", "--rounds", "1"])).rows == 5000
    assert quick.size(1, quick=2, full=3) == 2
    assert options_of(parsed(["--full"])).size(1, quick=2, full=3) == 3
    assert parsed(["--case", CASES[0], "--case", CASES[1]]).case == list(CASES[:2])
    for arguments in (["--quick", "--full"], ["--rows", "1"], ["--case", "nothing"]):
        with pytest.raises(SystemExit) as ended:
            options_of(parsed(arguments))
        assert ended.value.code == 2


@pytest.mark.parametrize("rate", [rate for rate, _ in RATES])
def test_a_commit_of_the_writer_holds_what_is_waited_for(rate: int) -> None:
    rows = rate // COMMITS_A_SECOND
    counts = Writer.counts(rows)
    assert sum(counts) == rows
    assert counts[1] + counts[3] == rows // 10


def test_results_and_tables_hold_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = Findings(
        [Line("a group", "one", "rows/s", (1.0, 3.0, 2.0), {"other": (0.5,)}, "with [brackets]")],
        [Goal("a goal", "at least", 2, "×", (3.0,)), Goal("another", "under", 2, "s")],
    )
    machine = report.machine()
    content = json.loads(report.content(found, machine, report.load(), 1.0, ["--quick"]))
    assert content["cases"][0] == {
        "group": "a group",
        "case": "one",
        "state": "ok",
        "unit": "rows/s",
        "median": 2.0,
        "spread": [1.0, 3.0],
        "samples": [1.0, 3.0, 2.0],
        "ratios": {"other": {"median": 0.5, "samples": [0.5]}},
        "note": "with [brackets]",
    }
    assert [goal["met"] for goal in content["goals"]] == [True, None]
    report.show(found, machine)
    shown = capsys.readouterr().out
    for text in ("a group", "[brackets]", "a goal", "met", "not measured"):
        assert text in shown


def test_the_relay_delivers_every_byte_in_order_and_late() -> None:
    data = bytes(range(256)) * 8192
    listener = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        near, _ = listener.accept()
        with near:
            while piece := near.recv(65_536):
                near.sendall(piece)

    threading.Thread(target=echo, daemon=True).start()
    with relayed(0.05, [("127.0.0.1", listener.getsockname()[1])]) as (port,):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            begun = time.monotonic()
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert time.monotonic() - begun >= 0.1
            threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
            received = bytearray()
            while len(received) < len(data):
                received += client.recv(1 << 20)
            assert received == data
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    listener.close()
