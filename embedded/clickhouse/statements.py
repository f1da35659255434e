"""Telling statements apart: what the protocol must know before the engine runs one. Parses nothing it can avoid.

The engine is the judge of every statement; this module only finds its kind, its end, a trailing FORMAT clause (the
native protocol ignores it) and, for an INSERT that is followed by data, its target and its columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    | (?P<heredoc>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<word>[^\W\d]\w*)
    | (?P<number>\d[\w.]*)
    | (?P<mark>.)
    """,
    re.X | re.S,
)


class Token(NamedTuple):
    """A token that means something, where it stands, and how many parentheses are open around it."""

    kind: str
    text: str
    start: int
    end: int
    depth: int

    def says(self, *words: str) -> bool:
        """Whether it is one of these keywords, in any case."""
        return self.kind == "word" and self.text.upper() in words


class Unparsable(Exception):
    """A statement the server refuses before the engine sees it. `code` is ClickHouse's."""

    def __init__(self, message: str, code: int = 62) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class InsertTarget:
    """What an INSERT that takes data from the client writes to, and how it reads that data from a file instead.

    `described` is what DESCRIBE TABLE accepts, `columns` the names given in parentheses (None: all), `excluded` the
    names after EXCEPT. The statement is `before`, then a source, then `after`; the source is a FROM INFILE clause, or
    for `INSERT … SELECT … FROM input('structure')`, where `structure` is set, the table function `file`.
    """

    before: str
    after: str
    described: str
    columns: tuple[str, ...] | None = None
    excluded: tuple[str, ...] = ()
    structure: str = ""

    def reading(self, path: str) -> str:
        """The statement that inserts the Native blocks of a file."""
        if self.structure:
            source = f"file({literal(path)}, 'Native', {literal(self.structure)})"
            return f"{self.before} {source} {self.after}"
        return f"{self.before} FROM INFILE {literal(path)} {self.after} FORMAT Native"


@dataclass(frozen=True)
class Statement:
    """A statement as the server treats it. `text` has no trailing semicolon, FORMAT clause or comment."""

    kind: Literal["select", "insert", "set", "kill", "other"]
    text: str
    insert: InsertTarget | None = None


def tokens(sql: str, start: int = 0) -> Iterator[Token]:
    """The tokens of a statement, without spaces and comments, as they are met."""
    depth = 0
    for match in _TOKEN.finditer(sql, start):
        kind = match.lastgroup or "mark"
        if kind == "space":
            continue
        if kind == "tag":
            kind = "heredoc"
        text = match.group()
        if text == ")" and kind == "mark":
            depth -= 1
        yield Token(kind, text, match.start(), match.end(), depth)
        if text == "(" and kind == "mark":
            depth += 1


def literal(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """A quoted identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _unquoted(token: Token) -> str:
    if token.kind not in {"quoted", "string"}:
        return token.text
    quote, inner = token.text[0], token.text[1:-1]
    return re.sub(r"\\(.)", r"\1", inner.replace(quote * 2, quote), flags=re.S)


def parse(sql: str) -> Statement:
    """What kind of statement this is. Raises `Unparsable` for an empty one and for several in one."""
    first = next((token for token in tokens(sql) if token.text not in "(;"), None)
    if first is None:
        raise Unparsable("Syntax error: empty query.")
    if first.says("INSERT"):
        return _insert(sql, first)

    every = list(tokens(sql))
    while every and every[-1].text == ";":
        every.pop()
    if any(token.text == ";" and token.kind == "mark" for token in every):
        raise Unparsable("Syntax error (Multi-statements are not allowed).")
    if first.says("WITH") and any(token.says("INSERT") and token.depth == 0 for token in every):
        return Statement("other", sql[: every[-1].end])
    if first.says("SET") and not (len(every) > 1 and every[1].says("ROLE", "DEFAULT", "TRANSACTION")):
        return Statement("set", sql[: every[-1].end])
    if first.says("SELECT", "WITH", "FROM"):
        return Statement("select", _without_format(sql, every))
    if first.says("KILL"):
        return Statement("kill", _without_format(sql, every))
    if first.says("SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"):
        return Statement("other", _without_format(sql, every))
    return Statement("other", sql[: every[-1].end])


def _without_format(sql: str, every: list[Token]) -> str:
    for at in range(len(every) - 2, 0, -1):
        token = every[at]
        if token.depth:
            continue
        if token.says("OUTFILE") and every[at - 1].says("INTO"):
            raise Unparsable("INTO OUTFILE is not allowed", 358)
        if token.says("FORMAT") and every[at + 1].kind == "word" and every[at - 1].text != ".":
            after = every[at + 2] if at + 2 < len(every) else None
            if after is None or after.says("SETTINGS", "INTO"):
                rest = sql[after.start : every[-1].end] if after else ""
                return f"{sql[: every[at - 1].end]} {rest}".rstrip()
    return sql[: every[-1].end]


def _insert(sql: str, first: Token) -> Statement:
    """An INSERT is read up to the word that decides what follows, and no further: what follows may be data."""
    stream = tokens(sql, first.end)
    target: list[Token] = []
    listed: list[Token] = []
    in_target, in_list = True, False
    settings_at: int | None = None

    def taking_data(end: int) -> Statement:
        cut = end if settings_at is None else settings_at
        before, after = sql[:cut].rstrip(), sql[cut:end].strip()
        return Statement("insert", sql, _target(before, after, sql, target, listed))

    for token in stream:
        if token.depth == 0 and token.says("VALUES", "FORMAT") and target and target[-1].text != ".":
            if token.says("FORMAT"):
                name = next(stream, None)
                if name is None:
                    raise Unparsable("Syntax error: a format is expected after FORMAT.")
                data = sql[name.end :]
            else:
                data = sql[token.end :]
            if data.strip().strip(";").strip():
                return Statement("other", sql)
            return taking_data(token.start)
        if token.depth == 0 and target and token.says("SELECT", "WITH", "FROM") and not _names_a_table(target):
            return _insert_select(sql)
        if token.text == "(" and token.depth == 0 and token.kind == "mark":
            inside = next(tokens(sql, token.end), None)
            if (
                inside is not None
                and (inside.says("SELECT", "WITH") or inside.text == "(")
                and not _is_function(target)
            ):
                return _insert_select(sql)
            if in_target and not (_is_function(target) and "(" not in {part.text for part in target}):
                in_target, in_list = False, True
                continue
        if token.text == ")" and token.depth == 0 and in_list:
            in_list = False
            continue
        if in_list:
            listed.append(token)
            continue
        if token.depth == 0 and token.says("SETTINGS") and not _names_a_table(target) and settings_at is None:
            in_target, settings_at = False, token.start
        elif in_target and token.depth == 0 and token.says("PARTITION") and not _names_a_table(target):
            in_target = False
        elif in_target and token.text != ";":
            target.append(token)
    return taking_data(len(sql.rstrip().rstrip(";").rstrip()))


def _meaningful(target: list[Token]) -> list[Token]:
    words = list(target)
    for expected in ("INTO", "TABLE"):
        if words and words[0].says(expected) and (expected == "INTO" or len(words) > 1):
            words.pop(0)
    return words


def _names_a_table(target: list[Token]) -> bool:
    """Whether the next token is still part of the target's name."""
    words = _meaningful(target)
    return not words or words[-1].text == "." or (len(words) == 1 and words[0].says("FUNCTION"))


def _is_function(target: list[Token]) -> bool:
    words = _meaningful(target)
    return bool(words) and words[0].says("FUNCTION") and len(words) > 1


def _target(before: str, after: str, sql: str, target: list[Token], listed: list[Token]) -> InsertTarget:
    words = _meaningful(target)
    if not words:
        raise Unparsable("Syntax error: INSERT names no table.")
    if words[0].says("FUNCTION") and len(words) > 1:
        words = words[1:]
    described = sql[words[0].start : words[-1].end]
    if not listed:
        return InsertTarget(before, after, described)
    if listed[0].text == "*":
        if len(listed) == 1:
            return InsertTarget(before, after, described)
        if listed[1].says("EXCEPT"):
            names = tuple(_unquoted(token) for token in listed[2:] if token.kind in {"word", "quoted"})
            return InsertTarget(before, after, described, None, names)
        raise Unparsable("This form of an INSERT's column list is not supported here; name the columns.", 48)
    columns: list[str] = []
    joined = False
    for token in listed:
        if token.kind not in {"word", "quoted", "number"} and token.text not in {",", "."}:
            raise Unparsable("This form of an INSERT's column list is not supported here; name the columns.", 48)
        if token.text == ",":
            joined = False
        elif token.text == ".":
            joined = True
        elif joined and not columns:
            raise Unparsable("Syntax error: a column's name begins with a dot.")
        elif joined:
            columns[-1] += f".{_unquoted(token)}"
            joined = False
        else:
            columns.append(_unquoted(token))
    return InsertTarget(before, after, described, tuple(columns))


def _insert_select(sql: str) -> Statement:
    every = list(tokens(sql))
    while every and every[-1].text == ";":
        every.pop()
    if any(token.text == ";" and token.kind == "mark" for token in every):
        raise Unparsable("Syntax error (Multi-statements are not allowed).")
    end = every[-1].end
    if len(every) > 2 and every[-2].says("FORMAT") and every[-1].kind == "word":
        end = every[-3].end
    for word, bracket, structure, closing in zip(every, every[1:], every[2:], every[3:], strict=False):
        if word.says("INPUT") and bracket.text == "(" and structure.kind == "string" and closing.text == ")":
            described = f"null({structure.text})"
            target = InsertTarget(
                sql[: word.start], sql[closing.end : end].strip(), described, structure=_unquoted(structure)
            )
            return Statement("insert", sql, target)
    return Statement("other", sql[:end])
