"""`python main.py …`: which arguments go where."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import main
import seed.cli


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    calls: list[tuple[str, list[str]]] = []
    product = SimpleNamespace(main=lambda args: calls.append(("product", args)))
    monkeypatch.setattr(seed.cli, "main", lambda args: calls.append(("seed", args)))
    monkeypatch.setitem(sys.modules, "worker.cli", product)
    monkeypatch.setattr(sys.modules["worker"], "cli", product, raising=False)
    return calls


@pytest.mark.parametrize(
    "name", ["advertisers", "campaigns", "impressions", "clicks", "batch", "stats", "reset", "stream"]
)
def test_original_commands_go_to_the_seed(called: list[tuple[str, list[str]]], name: str) -> None:
    main.main([name, "--json"])
    assert called == [("seed", [name, "--json"])]
    assert name in seed.cli.seed_group.commands


@pytest.mark.parametrize(
    "args", [[], ["--help"], ["pipeline", "--full-refresh"], ["seed", "history"], ["query", "stats"]]
)
def test_anything_else_goes_to_the_product(called: list[tuple[str, list[str]]], args: list[str]) -> None:
    main.main(args)
    assert called == [("product", args)]


def test_arguments_default_to_those_of_the_program(
    called: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "batch", "--ctr", "0.2"])
    main.main()
    assert called == [("seed", ["batch", "--ctr", "0.2"])]


def test_every_command_is_there_to_be_mounted() -> None:
    names = {command.name for command in seed.cli.commands()}
    assert names == main.ORIGINAL_COMMANDS | {"history"}
