"""caption: a picture -> a short description, in English or Chinese."""

from __future__ import annotations

from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.task import Fields, Record, Task, pick_language


def _fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    language = pick_language(record, "caption", rng)
    if language is None or record.get("image") is None:
        return None
    return {"image": record["image"], "lang": language, "caption": record[f"caption_{language}"]}


CAPTION = Task("caption", ("[IMAGE:image] <caption> <{lang}> -> [TEXT:caption]",), _fields)
