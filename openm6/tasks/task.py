"""A task: its name, one instruction line for each branch, and a function that reads its fields from a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.layout import Branch, Layout

Record = Mapping[str, object]
Fields = dict[str, object]
LANGUAGES = ("en", "zh")
_CHINESE = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Task:
    """A task. To add one, create an instance and list it in `openm6.tasks.TASKS`; the model stays unchanged.

    `fields(record, rng, tokenizer)` returns the fields that the instructions name. It chooses at random where a
    record offers a choice (language, wording, spans). It returns None for a record that this task cannot use.
    """

    name: str
    instructions: tuple[str, ...]
    fields: Callable[[Record, Random, TextTokenizer], Fields | None]
    needs_codes: bool = False  # the record's image is wanted as codes in the field `codes`

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        return tuple(Layout(instruction) for instruction in self.instructions)

    def branches(self, record: Record, rng: Random, tokenizer: TextTokenizer) -> list[Branch]:
        """The branches of this record, or none if the task cannot use it."""
        fields = self.fields(record, rng, tokenizer)
        if fields is None:
            return []
        return [layout.branch(self.name, fields, tokenizer) for layout in self.layouts]


def language_of(text: str) -> str:
    """Chinese for a text with a Chinese character, else English."""
    return "zh" if _CHINESE.search(text) else "en"


def pick_language(record: Record, stem: str, rng: Random) -> str | None:
    """A language for which the record has a non-empty `<stem>_<language>`."""
    offered = [language for language in LANGUAGES if record.get(f"{stem}_{language}")]
    return rng.choice(offered) if offered else None
