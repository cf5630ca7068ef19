"""draw: words and an optional style -> a picture, as image codes."""

from __future__ import annotations

from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.task import Fields, Record, Task, pick_language

ANY_STYLE = "any"
DROP_TEXT = (
    0.1  # share of examples without words; classifier-free guidance (2207.12598) steers away from these
)
DROP_STYLE = 0.5


def _fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    language = pick_language(record, "caption", rng)
    if language is None or record.get("codes") is None:
        return None
    text = record[f"caption_{language}"] if rng.random() >= DROP_TEXT else ""
    style = record.get("set") if rng.random() >= DROP_STYLE else None
    return {"text": text, "style": style or ANY_STYLE, "codes": record["codes"]}


DRAW = Task("draw", ("[TEXT:text] <style> [TEXT:style] <draw> -> [CODES:codes]",), _fields, needs_codes=True)
