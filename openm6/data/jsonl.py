"""JSON Lines: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from openm6.data.bad import BadRecord
from openm6.data.encodings import TextFile


class Jsonl:
    """The format of one file. Empty lines are skipped."""

    def __init__(self, text: TextFile) -> None:
        self.start, self.line = text.start, 1
        self.columns: list[str] | None = None  # each line has its own

    def spans(self, file: BinaryIO, start: int, line: int) -> Iterator[tuple[int, int, int]]:
        """(first byte, byte after the last, line number) of every record, from byte `start` in line `line` on."""
        file.seek(start)
        for raw in file:
            end = start + len(raw)
            if not raw.isspace():
                yield start, end, line
            start, line = end, line + 1

    def row(self, raw: bytes, where: str) -> Mapping[str, Any]:
        """The object in a line. Raises `BadRecord`."""
        try:
            row: object = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRecord(where, "the line is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise BadRecord(where, f"the line is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadRecord(where, f"the line must be a JSON object, not {type(row).__name__}")
        row = cast("dict[str, Any]", row)
        for key in row:
            if not key.isascii():
                try:
                    key.encode()
                except UnicodeEncodeError as error:  # half of a surrogate pair
                    raise BadRecord(where, f"the key {key!r} is not Unicode text") from error
        return row
