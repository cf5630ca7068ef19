"""ask: a picture and a free question -> the answer.

Records may bring their own `question` and `answer` (any VQA data). Otherwise questions are made from the
annotations (`openm6.tasks.questions`).
"""

from __future__ import annotations

from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.questions import questions
from openm6.tasks.task import Fields, Record, Task


def _fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    if record.get("image") is None:
        return None
    if record.get("question") and record.get("answer"):
        return {
            "image": record["image"],
            "question": record["question"],
            "answer": record["answer"],
            "keeps_colour": True,  # nobody knows what it asks about
        }
    offered = questions(record, rng)
    if not offered:
        return None
    chosen = rng.choice(offered)
    return {
        "image": record["image"],
        "question": chosen.question,
        "answer": chosen.answer,
        "keeps_colour": chosen.kind == "colour",
    }


ASK = Task("ask", ("[IMAGE:image] <ask> [TEXT:question] -> [TEXT:answer]",), _fields)
