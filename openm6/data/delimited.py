"""CSV files: a header, then one record per row. Commas, semicolons, tabs or bars separate the fields.

A field in quotes may hold delimiters and line ends, and a doubled quote stands for a quote (RFC 4180). So one stray
quote could swallow the rest of a file. Three rules confine a stray quote to its own line, which is then a bad
record:

- A quote that closes a field must be followed by a delimiter or the end of the line.
- A quote that opens a field must close before the file ends.
- If nearly all lines between two quotes look like complete rows, they are rows, and the quote is stray.

After a fault, reading resumes at the next line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, AnyStr, BinaryIO, Literal, cast

from openm6.data.bad import BadRecord
from openm6.data.encodings import TextFile

log = logging.getLogger(__name__)

QUOTE = b'"'
DELIMITERS = (",", ";", "\t", "|")
MAX_RECORD = 2**24  # bytes
ROWS = 0.9  # share of the lines in quotes that look like rows, from which on they are rows
BLANKS = " \t"  # may stand between a closing quote and what follows

Ends = Literal["closed", "open", "broken"]


class Csv:
    """The format of one file: its delimiter, its columns, and the ends of its records.

    Columns without a name, as spreadsheets and index columns leave them, are not read. Raises `ValueError` for a
    broken header.
    """

    def __init__(self, text: TextFile) -> None:
        self.columns: list[str] | None = None
        self.width = 0  # fields of a row; 0 = not known yet
        with text.open() as file:
            file.seek(text.start)
            self.delimiter = _delimiter(file.readline(), text.named.suffix.lower())
            first = text.start
            start, self.start, line = next(self.spans(file, first, 1), (first, first, 1))
            file.seek(start)
            raw = file.read(self.start - start)
        self.line = line + raw.count(b"\n")
        try:
            raw.decode("utf-8")
            names = self._cells(raw, str(text.named))
        except (UnicodeDecodeError, BadRecord) as error:
            raise ValueError(
                f"the header of {text.named} is not UTF-8 text in CSV: save it as UTF-8, or name its encoding "
                "(--encoding)."
            ) from error
        self.width = len(names)
        self.named = [place for place, name in enumerate(names) if name.strip()]
        self.columns = [names[place] for place in self.named]
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{text.named} needs a header of different column names, not {self.columns}.")
        nameless = sorted(set(range(self.named[-1])) - set(self.named))
        if nameless:
            log.warning("%s: column %d has no name and is not read", text.named, nameless[0] + 1)

    def spans(self, file: BinaryIO, start: int, line: int) -> Iterator[tuple[int, int, int]]:
        """(first byte, byte after the last, line number) of every record, from byte `start` in line `line` on.

        Rows without any value are skipped.
        """
        empty = b" \t\r\n" + self.delimiter.encode()
        file.seek(start)
        while raw := file.readline():
            end, lines = start + len(raw), 1
            if QUOTE in raw:
                more, end_of_field = self._more_lines(raw, file)
                if more:
                    end, lines = end_of_field, 1 + more
                else:
                    file.seek(end)
            if raw.strip(empty):
                yield start, end, line
            start, line = end, line + lines

    def row(self, raw: bytes, where: str) -> Mapping[str, Any]:
        """The named cells of a row. Raises `BadRecord`."""
        assert self.columns is not None
        cells = self._cells(raw, where)
        last = self.named[-1]
        if len(cells) <= last or any(cell.strip() for cell in cells[last + 1 :]):
            raise BadRecord(where, f"the row has {len(cells)} fields, the header has {last + 1}")
        return {name: cells[place] for name, place in zip(self.columns, self.named, strict=True)}

    def _cells(self, raw: bytes, where: str) -> list[str]:
        if len(raw) > MAX_RECORD:
            raise BadRecord(where, f"the row is huge ({len(raw):,} bytes; the limit is {MAX_RECORD:,})")
        text = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")  # `text_value` refuses what was escaped
        if '"' not in text:
            return text.split(self.delimiter)
        cells: list[str] = []
        at = 0
        while at <= len(text):
            if not text.startswith('"', at):
                end = text.find(self.delimiter, at)
                end = len(text) if end < 0 else end
                cells.append(text[at:end])
            else:
                end = _closing(text, at + 1)
                if end < 0:
                    raise BadRecord(where, "a quote opens a field in this line and does not close it")
                cells.append(text[at + 1 : end].replace('""', '"'))
                end += 1
                while text[end : end + 1] in BLANKS and end < len(text) and text[end] != self.delimiter:
                    end += 1
                if end < len(text) and text[end] != self.delimiter:
                    raise BadRecord(
                        where, "text follows a closing quote; a quote inside a quoted field is doubled"
                    )
            at = end + 1
        return cells

    def _more_lines(self, raw: bytes, file: BinaryIO) -> tuple[int, int]:
        """The number of lines after `raw` that belong to its record, and the byte after the last of them.

        The number is 0 if the record ends in its own line, or if its quote is a stray one.
        """
        ends, lines, alike = self._ends(raw, inside=False), 1, int(self._looks_like_a_row(raw))
        while ends == "open":
            raw = file.readline()
            if not raw:
                return 0, 0
            ends = self._ends(raw, inside=True)
            lines, alike = lines + 1, alike + self._looks_like_a_row(raw)
        if ends == "broken" or (lines > 1 and alike >= ROWS * lines):
            return 0, 0
        return lines - 1, file.tell()

    def _ends(self, raw: bytes, *, inside: bool) -> Ends:
        """The state after a line that begins outside or `inside` a quoted field."""
        delimiter, at = self.delimiter.encode(), 0
        while True:
            if not inside:
                if not raw.startswith(QUOTE, at):
                    at = raw.find(delimiter, at) + 1
                    if not at:
                        return "closed"
                    continue
                inside, at = True, at + 1
            end = _closing(raw, at)
            if end < 0:
                return "open"
            rest = raw[end + 1 :].lstrip(b" " if self.delimiter == "\t" else b" \t")
            if not rest.strip(b"\r\n"):
                return "closed"
            if not rest.startswith(delimiter):
                return "broken"
            inside, at = False, len(raw) - len(rest) + 1

    def _looks_like_a_row(self, raw: bytes) -> bool:
        """Whether a line has as many fields as the header. Prose has a space after its commas, tables do not."""
        delimiter = self.delimiter.encode()
        return self.width > 1 and raw.count(delimiter) - raw.count(delimiter + b" ") == self.width - 1


def _closing(text: AnyStr, at: int) -> int:
    """The place where the quoted field that began before `at` closes, or -1. Doubled quotes are skipped."""
    quote = cast(AnyStr, '"' if isinstance(text, str) else QUOTE)
    while (end := text.find(quote, at)) >= 0 and text.startswith(quote, end + 1):
        at = end + 2
    return end


def _delimiter(header: bytes, suffix: str) -> str:
    """The delimiter between the names of a header: the most frequent one, in doubt the comma, or `.tsv`'s tab."""
    outside = b"".join(header.split(QUOTE)[::2])
    order = sorted(DELIMITERS, key=lambda each: each != ("\t" if suffix == ".tsv" else ","))
    return max(order, key=lambda each: outside.count(each.encode()))
