"""The statements of the seed package, one per `.sql` file. Holds no logic."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def statement(name: str) -> str:
    """The text of `<name>.sql` in this folder. Raises `FileNotFoundError` for a name that is not there."""
    return resources.files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
