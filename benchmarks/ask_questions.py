"""The questions of `ask_accuracy`, made from the annotations by the project's own generator."""

from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any

from benchmarks.bench import LANGUAGES, Bench, Picture
from benchmarks.measures import normalise
from openm6.tasks.questions import KINDS, YES_NO, Question, questions

Asked = dict[str, list[tuple[Picture, Question]]]


def ask_questions(bench: Bench, pictures: Sequence[Picture]) -> Asked:
    """The questions about these pictures, by kind; a kind that nothing can be asked of is left out.

    `is_it_a` asks of every picture, in both languages, one question whose answer is yes and one about a
    concept drawn at random, whose answer is no; in `is_it_a_hard` it is one of the picture's own subgroup.
    """
    asked: Asked = {kind: [] for kind in (*KINDS, "is_it_a_hard")}
    concepts = [bench.concepts[concept] for concept in sorted(bench.concepts)]
    for picture in pictures:
        rng = Random(picture.row["id"])
        for question in questions(_record(picture), rng):
            if question.kind != "is_it_a":
                asked[question.kind].append((picture, question))
        others = [other for other in concepts if not _shares_name(other, picture)]
        alike = [other for other in others if other.row["subgroup_en"] == picture.row["subgroup_en"]]
        for kind, candidates in (("is_it_a", others), ("is_it_a_hard", alike)):
            if candidates:
                other = rng.choice(candidates)
                for truth in (True, False):
                    asked[kind] += [(picture, question) for question in _is_it(picture, other, truth=truth)]
    return {kind: those for kind, those in asked.items() if those}


def _is_it(picture: Picture, other: Picture, *, truth: bool) -> list[Question]:
    """The yes/no questions about one picture, one a language, whose answer is yes if `truth` and else no."""
    record = _record(picture) | {f"other_{language}": other.name(language) for language in LANGUAGES}
    for attempt in count():  # the generator tosses a coin for yes or no
        rng = Random(f"{picture.row['id']} {other.concept} {attempt}")
        asked = [question for question in questions(record, rng) if question.kind == "is_it_a"]
        if all((question.answer == YES_NO[question.language][0]) == truth for question in asked):
            return asked
    raise AssertionError("count() never ends")


def _record(picture: Picture) -> dict[str, Any]:
    return picture.row | {f"caption_{language}": picture.name(language) for language in LANGUAGES}


def _shares_name(one: Picture, other: Picture) -> bool:
    return any(normalise(one.name(language)) == normalise(other.name(language)) for language in LANGUAGES)
