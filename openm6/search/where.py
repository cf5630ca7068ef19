"""Filters such as `category = 'dress' and price < 300`: parsed and checked once, then translated for each store.

    expression := term {"or" term}        term := factor {"and" factor}
    factor     := "not" factor | "(" expression ")" | condition
    condition  := column (= | == | != | <> | < | <= | > | >=) value | column ["not"] "in" "(" value {"," value} ")"
                | column ["not"] "like" text | column "is" ["not"] "null"

Values are 'texts' (a quote inside is doubled), numbers, true and false. In a `like`, `%` stands for any characters
and `_` for one character. Nothing escapes them, and a backslash is a backslash. A column name with other characters
than those of a word stands in double quotes or backticks. As in SQL, an item without a value passes no condition
except `is null`, even if the condition is negated. So negations are moved down to the conditions, where stores
agree on their meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Kind = Literal["text", "number", "flag"]
Value = str | float | bool

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*')
      | (?P<quoted>"[^"]+"|`[^`]+`)
      | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_SIGNS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_NEGATED = {"=": "!=", "<": ">=", "<=": ">", "in": "not in", "like": "not like", "is null": "is not null"}
_NEGATED |= {theirs: ours for ours, theirs in _NEGATED.items()}
_WORDS = frozenset({"and", "or", "not", "in", "like", "is", "null", "true", "false"})
MAX_DEPTH = 32  # of brackets and `not`: a store's own parser takes few more
_QUOTES = "a text stands between single quotes, and a quote inside it is doubled, as in 'O''Brien'"
_HOLDS = {"text": "texts", "number": "numbers", "flag": "true or false"}


@dataclass(frozen=True)
class Condition:
    """A condition on one column. `value` is a tuple for `in`, and None for `is null`."""

    column: str
    sign: str  # = != < <= > >= in, not in, like, not like, is null, is not null
    value: Value | tuple[Value, ...] | None = None


@dataclass(frozen=True)
class Group:
    """All (`and`) or any (`or`) of its parts."""

    word: Literal["and", "or"]
    parts: tuple[Where, ...]


Where = Condition | Group


def parse_where(text: str, columns: Mapping[str, Kind]) -> Where:
    """The filter in `text`.

    Raises ValueError for a text that is not a filter, for a column that is not among `columns`, and for a value of
    another kind than the column's.
    """
    return _Parser(text, columns).parse()


def negated(where: Where) -> Where:
    if isinstance(where, Condition):
        return Condition(where.column, _NEGATED[where.sign], where.value)
    return Group("or" if where.word == "and" else "and", tuple(map(negated, where.parts)))


class _Parser:
    def __init__(self, text: str, columns: Mapping[str, Kind]) -> None:
        self.text, self.columns = text, columns
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None or (found.lastgroup == "text" and re.match(r"\w", text[found.end() :])):
                if found is not None or text[at:].lstrip().startswith("'"):
                    raise self._error(_QUOTES)
                raise self._error(f"cannot read {text[at:].strip()!r}")
            assert found.lastgroup is not None
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        self.at = self.depth = 0

    def parse(self) -> Where:
        where = self._group("or")
        if self.at < len(self.tokens):
            raise self._error(f"did not expect {self.tokens[self.at][1]!r}")
        return where

    def _group(self, word: Literal["and", "or"]) -> Where:
        parts = [self._part(word)]
        while self._accept(word):
            parts.append(self._part(word))
        return Group(word, tuple(parts)) if len(parts) > 1 else parts[0]

    def _part(self, word: Literal["and", "or"]) -> Where:
        return self._group("and") if word == "or" else self._factor()

    def _factor(self) -> Where:
        if self.depth == MAX_DEPTH:
            raise self._error("is nested too deeply")
        self.depth += 1
        if self._accept("not"):
            found = negated(self._factor())
        elif self._accept("("):
            found = self._group("or")
            self._expect(")")
        else:
            found = self._condition()
        self.depth -= 1
        return found

    def _condition(self) -> Condition:
        column = self._column()
        if self._accept("is"):
            no = self._accept("not")
            self._expect("null")
            return Condition(column, "is not null" if no else "is null")
        no = "not " if self._accept("not") else ""
        if self._accept("in"):
            self._expect("(")
            values = [self._value(column)]
            while self._accept(","):
                values.append(self._value(column))
            self._expect(")")
            return Condition(column, f"{no}in", tuple(values))
        if self._accept("like"):
            if self.columns[column] != "text":
                raise self._error(
                    f"column {column!r} holds {_HOLDS[self.columns[column]]}: `like` is for texts"
                )
            return Condition(column, f"{no}like", self._value(column))
        kind, sign = self._next("a comparison")
        if no or kind != "sign" or sign not in _SIGNS:
            raise self._error(f"expected =, !=, <, <=, >, >=, in, like or is after {column!r}, not {sign!r}")
        if self.columns[column] == "flag" and _SIGNS[sign] not in ("=", "!="):
            raise self._error(f"column {column!r} holds true or false: compare it with = or !=")
        return Condition(column, _SIGNS[sign], self._value(column))

    def _column(self) -> str:
        kind, name = self._next("a column")
        name = name[1:-1] if kind == "quoted" else name
        if kind not in ("word", "quoted") or (kind == "word" and name.lower() in _WORDS):
            raise self._error(f"expected a column, not {name!r}")
        if name not in self.columns:
            near = get_close_matches(name, self.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.columns) or 'none'}"
            raise self._error(f"the index has no column {name!r}; {hint}")
        return name

    def _value(self, column: str) -> Value:
        kind, raw = self._next("a value")
        if kind == "text":
            value: Value = raw[1:-1].replace("''", "'")
        elif kind == "number":
            value = float(raw)
            if not math.isfinite(value):
                raise self._error(f"the number {raw} is too large")
        elif kind == "word" and raw.lower() in ("true", "false"):
            value = raw.lower() == "true"
        else:
            raise self._error(f"expected a number or a 'text' for column {column!r}, not {raw!r}")
        wanted = {"text": str, "number": float, "flag": bool}[self.columns[column]]
        if type(value) is not wanted:
            raise self._error(f"column {column!r} holds {_HOLDS[self.columns[column]]}, not {raw}")
        return value

    def _next(self, what: str) -> tuple[str, str]:
        if self.at == len(self.tokens):
            raise self._error(f"ends where {what} should stand")
        self.at += 1
        return self.tokens[self.at - 1]

    def _accept(self, wanted: str) -> bool:
        """Step over a keyword or a sign, if it comes next."""
        if self.at == len(self.tokens):
            return False
        kind, raw = self.tokens[self.at]
        found = (kind == "word" and raw.lower() == wanted) or (kind == "sign" and raw == wanted)
        self.at += found
        return found

    def _expect(self, wanted: str) -> None:
        if not self._accept(wanted):
            found = repr(self.tokens[self.at][1]) if self.at < len(self.tokens) else "the end"
            raise self._error(f"expected {wanted!r}, not {found}")

    def _error(self, why: str) -> ValueError:
        return ValueError(f"the filter {self.text!r}: {why}")
