"""Makes text files of any encoding ready to be read line by line as UTF-8.

A UTF-8 file with line feeds is read in place. Any other file is copied as UTF-8 into a temporary file: UTF-16 and
GB 18030 (as spreadsheets save them), an encoding that the user names, or the lone carriage returns of old Macs. The
temporary file goes away with its `TextFile`. Bytes that the encoding does not allow become a byte that UTF-8 does
not allow. So the reader finds exactly the records with such bytes to be bad.
"""

from __future__ import annotations

import codecs
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

log = logging.getLogger(__name__)

SAMPLE = 2**20  # bytes at the beginning of a file by which its encoding is detected
BOMS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARKED = "openm6.marked"  # how undecodable bytes are decoded: as an escaped byte 0xFF
COMMON = 0.9  # share of a text's Chinese characters that are those of GB 2312


@dataclass(frozen=True)
class TextFile:
    """A text file. `named` is the user's file; `path` holds its text as UTF-8, from byte `start` on."""

    named: Path
    path: Path
    start: int = 0
    copy: IO[bytes] | None = None  # keeps the temporary file alive

    def open(self) -> BinaryIO:
        return self.path.open("rb")


def open_text(path: Path, encoding: str | None = None) -> TextFile:
    """The text of `path`, in `encoding`; None = the one that `detect_encoding` finds.

    Raises `ValueError` for an encoding that Python does not know.
    """
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
    found = detect_encoding(sample) if encoding is None else _known(encoding)
    if encoding is None and found == "gb18030":
        log.warning("%s is not UTF-8: it is read as GB 18030 (say its `encoding` to read another)", path)
    bare = b"\r" in sample and b"\n" not in sample
    if found == "utf-8" and not bare:
        return TextFile(path, path, len(codecs.BOM_UTF8) if sample.startswith(codecs.BOM_UTF8) else 0)
    copy = tempfile.NamedTemporaryFile(prefix="openm6-", suffix=".txt")  # noqa: SIM115, the TextFile keeps it
    # Universal newlines turn every line end into a line feed.
    with path.open(encoding=found, errors=MARKED) as file:
        copy.write(file.read(1).removeprefix("\ufeff").encode("utf-8", "surrogateescape"))
        while part := file.read(SAMPLE):
            copy.write(part.encode("utf-8", "surrogateescape"))
    copy.flush()
    return TextFile(path, Path(copy.name), 0, copy)


def detect_encoding(sample: bytes) -> str:
    """The encoding of a text that begins with `sample`: utf-8, utf-16, utf-32 or gb18030.

    A byte order mark decides first, then zero bytes (UTF-16). Otherwise the text is UTF-8, with one exception: if
    most of its lines with non-ASCII bytes cannot be UTF-8 and all of these lines are plausible Chinese in GB 18030,
    it is gb18030.
    """
    for mark, encoding in BOMS:
        if sample.startswith(mark):
            return encoding
    zeros = sample[0::2].count(0), sample[1::2].count(0)  # those of ASCII characters are on one side
    if 100 * sum(zeros) > len(sample):
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    lines = sample.splitlines()
    if len(sample) == SAMPLE and len(lines) > 1:
        lines.pop()  # it may be cut in the middle of a character
    foreign = [line for line in lines if not line.isascii()]
    broken = sum(not _is_utf8(line) for line in foreign)
    return "gb18030" if 2 * broken > len(foreign) and _is_chinese(foreign) else "utf-8"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_chinese(lines: list[bytes]) -> bool:
    """Whether lines decode as GB 18030 into characters that are nearly all common."""
    try:
        foreign = [char for line in lines for char in line.decode("gb18030") if ord(char) > 127]
    except UnicodeDecodeError:
        return False
    common = 0
    for char in foreign:
        code = char.encode("gb18030")
        common += len(code) == 2 and code[0] >= 0xA1 and code[1] >= 0xA1  # where GB 2312 lies
    return common >= COMMON * len(foreign)


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error(MARKED, _mark)


def _known(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(
            f"there is no encoding {encoding!r}: say one that Python knows, such as gb18030, utf-16 or cp1252."
        ) from None
