"""The documents and the code in them: every fenced block, with the page and the line where it begins."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str  # its path from the root of the repository
    line: int  # of the block's first line of code
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in `languages`, in the order of the pages."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(3)) + 1
            found.append(Block(path.relative_to(ROOT).as_posix(), line, match[2], match[3]))
    return [block for block in found if block.language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the shell blocks: where it is, and its words without comments."""
    found = []
    for block in blocks("sh"):
        code = block.code.replace("\\\n", " \n")  # a command over two lines; line numbers stay
        open_words: list[str] = []
        for offset, line in enumerate(code.split("\n")):
            words = [*open_words, *shlex.split(line, comments=True)]
            open_words = words if line.endswith(" ") else []
            if words and not open_words:
                found.append((f"{block.page}:{block.line + offset}", words))
    return found
