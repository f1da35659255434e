"""Every command the README shows exists, with the options it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from celery.bin.celery import celery
from packaging.requirements import Requirement

from seed.cli import seed_group
from worker import queries
from worker.celery import app
from worker.cli import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines() if line.strip()]
IN_TABLES = re.findall(r"`(retailmedia [^`]+|python main\.py [^`]+)`", README)


def targets() -> set[str]:
    """What `make` can be asked for."""
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def parse(group: click.Group, words: list[str], name: str) -> click.Context:
    """Parses the words as the command would, without running it. Raises `click.UsageError`."""
    context = group.make_context(name, list(words), resilient_parsing=False)
    command: click.Command = group
    rest = [*context._protected_args, *context.args]
    while isinstance(command, click.Group) and rest:
        found, command_or_none, rest = command.resolve_command(context, rest)
        assert command_or_none is not None
        command = command_or_none
        context = command.make_context(found, list(rest), parent=context)
        rest = [*context._protected_args, *context.args] if isinstance(command, click.Group) else []
    return context


@pytest.mark.parametrize("line", COMMANDS)
def test_a_shown_command_resolves(line: str) -> None:
    words = shlex.split(line)
    match words:
        case ["make", target]:
            assert target in targets()
        case ["export", assignment]:
            assert assignment.partition("=")[0] in {"POSTGRES_DSN", "CLICKHOUSE_DSN", "REDIS_URL"}
        case [".venv/bin/retailmedia", *rest]:
            context = parse(cli, rest, "retailmedia")
            if context.command.name == "query" and context.params["name"]:
                query = queries.find(context.params["name"])
                queries.filled(query, dict(pair.split("=", 1) for pair in context.params["given"]))
        case [".venv/bin/python", "-m", "celery", "-A", "worker", command, *rest]:
            assert command in celery.commands
            if command == "call":
                app.loader.import_default_modules()
                assert rest[0] in app.tasks
        case _:
            pytest.fail(f"the README shows a command no test knows: {line}")


@pytest.mark.parametrize("shown", IN_TABLES)
def test_a_command_in_a_table_resolves(shown: str) -> None:
    words = [word for word in shlex.split(shown) if word != "…"]
    if words == ["retailmedia", "seed"]:
        assert "seed" in cli.commands
    elif words[0] == "retailmedia":
        parse(cli, words[1:], "retailmedia")
    else:
        parse(seed_group, words[2:], "main.py")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_what_it_is_takes_three_sentences() -> None:
    opening = README.split("\n\n")[1].replace("\n", " ")
    assert len(re.findall(r"\.(?: |$)", opening)) == 3


def test_the_query_shown_is_one_that_exists() -> None:
    (shown,) = [block for language, block in BLOCKS if not language]
    head = shown.splitlines()[0].split()
    assert head[:2] == ["id", "campaign"]
    assert {"impressions", "clicks", "spend", "ctr", "cpm", "cpc"} <= set(head)


def test_the_licences_are_those_of_what_the_image_holds() -> None:
    """`scripts/licences` writes them. What only another system or an older Python needs may be missing."""
    lock = (ROOT / "requirements.lock").read_text()
    pinned = [Requirement(line) for line in re.findall(r"^([a-z0-9._-]+==[^\\\n]+)", lock, re.MULTILINE)]
    here = {"python_full_version": "3.11.99"}
    wanted = {one.name for one in pinned if one.marker is None or one.marker.evaluate(here)}
    listed = set(re.findall(r"^\| ([a-z0-9._-]+) \| \d", (ROOT / "docs/licences.md").read_text(), re.MULTILINE))
    assert wanted <= listed <= {one.name for one in pinned}
    assert len(wanted) > 30
