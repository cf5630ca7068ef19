"""Makes questions that the annotations of a picture answer, in English and Chinese, in several wordings."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from openm6.tasks.task import Record

KINDS = ("what", "is_it_a", "group", "colour")

WORDINGS = {
    ("what", "en"): ("what is this?", "what is it?", "what does the picture show?", "what do you see?"),
    ("what", "zh"): ("这是什么？", "图里是什么？", "图片上画的是什么？", "你看到了什么？"),
    ("is_it_a", "en"): ("is it {name}?", "is this {name}?", "does the picture show {name}?"),
    ("is_it_a", "zh"): ("这是{name}吗？", "图里是{name}吗？", "图片上画的是{name}吗？"),
    ("group", "en"): ("which group does it belong to?", "what kind of thing is it?", "which category is it?"),
    ("group", "zh"): ("它属于哪一类？", "这是哪一类东西？", "它是什么类别？"),
    ("colour", "en"): ("what is the main colour?", "what colour is it?", "which colour is it mostly?"),
    ("colour", "zh"): ("主要是什么颜色？", "它是什么颜色的？", "最多的是什么颜色？"),
}
YES_NO = {"en": ("yes", "no"), "zh": ("是", "不是")}
_FIELD = {"what": "caption", "is_it_a": "caption", "group": "group", "colour": "colour"}


@dataclass(frozen=True)
class Question:
    kind: str
    language: str
    question: str
    answer: str


def questions(record: Record, rng: Random) -> list[Question]:
    """All questions that the record can answer, one of each kind and language, with random wordings.

    `record["other_<language>"]` is the name of another thing. `is_it_a` asks about that thing half of the time
    (answer: no). Without this field, `is_it_a` is left out.
    """
    asked: list[Question] = []
    for kind in KINDS:
        negative = rng.random() < 0.5
        for language in ("en", "zh"):
            truth = record.get(f"{_FIELD[kind]}_{language}")
            if not truth:
                continue
            wording = rng.choice(WORDINGS[kind, language])
            answer = str(truth)
            if kind == "is_it_a":
                other = record.get(f"other_{language}")
                if not other or other == truth:
                    continue
                wording = wording.format(name=other if negative else truth)
                answer = YES_NO[language][1 if negative else 0]
            asked.append(Question(kind, language, wording, answer))
    return asked
