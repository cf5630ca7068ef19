"""Converts the cells of a catalogue to values of an index: texts, numbers, flags and ids. Drops all other cells."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import cast

from openm6.data import BadRecord
from openm6.search.where import Kind, Value

Attributes = Mapping[str, Value | None]

MAX_ID = 1000  # bytes
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")  # not 007, which is a name
_EXACT = 2.0**53  # whole numbers above are not all floats: such long ones are names
_CURRENCY = re.compile(r"[$¥￥€£₹₩元円\s]|(?i:usd|eur|rmb|cny|jpy|gbp)|,?-$")
_MONEY = re.compile(r"-?\d{1,3}([.,'\u2019]?\d{3})*([.,]\d+)?")


class Binary(ValueError):
    """A value that is or contains bytes. It cannot be an attribute."""


def plain(value: object) -> Value | None:
    """A cell as text, a number or a flag; None if it has no value. Raises `Binary`.

    Bytes are text if they are UTF-8 without control characters. Lists and structs become JSON.
    """
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, (bool, str)) or value is None:
        return None if value == "" else value
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, (int, float, Decimal)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (date, time)):
        return value.isoformat()
    return json.dumps(_nested(value), ensure_ascii=False, default=str)


def _nested(value: object) -> object:
    """A list or struct with its bytes decoded. Raises `Binary`."""
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, Mapping):
        return {name: _nested(each) for name, each in cast("Mapping[str, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_nested(each) for each in cast("list[object]", value)]
    return value


def _decoded(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Binary("is no text") from None
    if any(unicodedata.category(char) == "Cc" and char not in "\t\r\n" for char in text):
        raise Binary("is no text")
    return text


def check_id(text: str) -> str:
    """An id for the index and the service: 1 to `MAX_ID` bytes of UTF-8, unchanged.

    Raises ValueError for any other id.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("the id is not Unicode text") from None
    if not 1 <= size <= MAX_ID:
        raise ValueError("the id is empty" if not size else f"the id is too long: at most {MAX_ID} bytes")
    return text


def id_of(value: object, where: str) -> str | None:
    """An id as text; None if there is none. Raises `BadRecord` for a value that cannot be an id.

    A whole number is written without a fraction, even if a column with gaps made a float of it.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise BadRecord(where, "the id is not UTF-8") from None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, (Mapping, list)):
        raise BadRecord(where, f"the id must be a text or a number, not a {type(value).__name__}")
    try:
        return check_id(value.isoformat() if isinstance(value, (date, time)) else str(value))
    except ValueError as error:
        raise BadRecord(where, str(error)) from None


def kind_of(value: Value) -> Kind:
    """The kind of a value that has a type of its own."""
    return "flag" if isinstance(value, bool) else "number" if isinstance(value, float) else "text"


def spelled_kind(value: Value) -> Kind:
    """The kind of value that the text of a CSV cell looks like. CSV has only text."""
    assert isinstance(value, str)
    if value.lower() in ("true", "false"):
        return "flag"
    if not _NUMBER.fullmatch(value) or len(value) > 400:
        return "text"
    number = float(value)
    # More digits than a float has make a name: nothing of it may be lost.
    exact = abs(number) <= _EXACT and Decimal(value) == Decimal(repr(number))
    return "number" if exact else "text"


def like_a_number(value: str) -> bool:
    """Whether people read a text as a number: with a currency, with separators of
    thousands, with a decimal comma.
    """
    digits = _CURRENCY.sub("", value)
    return bool(_MONEY.fullmatch(digits)) and spelled_kind(value) == "text" and not value.isdigit()


def of_kind(value: Value | None, kind: Kind) -> Value | None:
    """A value in a column of that kind. A text column takes all values; other columns take texts that look like
    their kind.
    """
    if value is None or kind == kind_of(value):
        return value
    if kind == "number":
        return float(value)
    if kind == "flag":
        return str(value).lower() == "true"
    return str(value).lower() if isinstance(value, bool) else f"{value:.15g}"
