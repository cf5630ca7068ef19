"""write: a title, with optional author and form -> a poem. lm: free text, to continue a given beginning."""

from __future__ import annotations

from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.task import Fields, Record, Task

ANY_FORM = "any"


def title_line(title: str, author: str | None = None) -> str:
    return f"{title} {author}" if author else title


def _write_fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    if not record.get("title") or not record.get("text"):
        return None
    author = record.get("author") if rng.random() < 0.5 else None
    form = record.get("form") if rng.random() < 0.8 else None
    title = title_line(str(record["title"]), str(author) if author else None)
    return {"title": title, "form": form or ANY_FORM, "text": record["text"]}


def _lm_fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    return {"text": record["text"]} if record.get("text") else None


WRITE = Task("write", ("<write> [TEXT:title] <style> [TEXT:form] -> [TEXT:text]",), _write_fields)
LM = Task("lm", ("<lm> -> [TEXT:text]",), _lm_fields)
