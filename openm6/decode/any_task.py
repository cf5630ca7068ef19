"""Runs any registered task: it reads records, and returns the target of the task's instruction.

    run_task(m6, "caption", [{"image": "photo.png", "lang": "zh"}])
    m6.run("caption", {"image": "photo.png", "lang": "zh"})       # the same for users

The instruction of a task (`openm6.tasks.layout`) says which fields it reads and what it predicts. So your own task
runs as soon as it is in `openm6.tasks.TASKS` and a model has been trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from openm6.decode.generate import Sampling
from openm6.decode.inputs import check_text, check_tokens
from openm6.decode.language import LANGUAGES
from openm6.decode.live import draw_prompts, sample_prompts, to_image
from openm6.decode.opened import Opened
from openm6.tasks import TASKS
from openm6.tasks.layout import Branch, Layout

SAMPLED_CODES = Sampling(temperature=0.8, top_p=0.95)
KINDS = {"IMAGE": "picture", "TEXT": "text", "MARK_FIELD": "mark"}

Record = Mapping[str, object]


def fields_of(task: str) -> list[dict[str, str]]:
    """The fields that a task reads: for each of its instructions, one {field: "picture", "text" or "mark"}.

    A mark is a word that names a special token, such as `lang` with the values en and zh. Raises ValueError for a
    task that is not registered.
    """
    return [_fields(layout) for layout in _layouts(task)]


def run_task(
    m6: Opened,
    task: str,
    records: Sequence[Record],
    *,
    beams: int = 4,
    max_tokens: int = 40,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[Any]:
    """The target of each record: a text (str), a picture (PIL), or a unit match embedding (array of match_dim).

    A record has the fields of one of the task's instructions. It may have other fields, which are not read. A text
    is the best of `beams`, or a sample if `sampling` is given. A text keeps to the language of the field `lang`, as
    in `Pipeline.caption`. A picture is always a sample. The i-th record samples with the seed `seed + i`.

    Raises ValueError for an unknown task, for a record without the fields, and for a model that cannot do the task.
    """
    if not records:
        raise ValueError(f"the list of records for the task {task} is empty")
    prompts = [_prompt(m6, task, record, i) for i, record in enumerate(records, start=1)]
    kind = prompts[0].target_kind
    assert all(prompt.target_kind == kind for prompt in prompts), "the targets of a task are of one kind"
    if kind == "match":
        if m6.model.match_scale is None:
            raise ValueError(f"the checkpoint {m6.folder} cannot do match, so it has no embeddings")
        return list(m6.embed(prompts))
    if kind == "codes":
        if m6.image_tokenizer is None or not m6.model.config.cells:
            raise ValueError(f"the checkpoint {m6.folder} does not draw: it has no image tokenizer")
        if sampling is not None and sampling.guidance != 1:
            raise ValueError(f"guidance needs a prompt without words, which only draw has: run {task} with 1")
        seeds = [(seed + i, 0) for i in range(len(prompts))]
        pixels = draw_prompts(m6, prompts, seeds, sampling or SAMPLED_CODES)
        return [to_image(each) for each in pixels]
    check_tokens(max_tokens)
    if sampling is None:
        return m6.beam(prompts, beams, max_tokens, [_language(task, record) for record in records])
    return sample_prompts(m6, prompts, max_tokens, sampling, [seed + i for i in range(len(prompts))])


def _layouts(task: str) -> tuple[Layout, ...]:
    if task not in TASKS:
        near = get_close_matches(task, TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f": choose one of {', '.join(TASKS)}"
        raise ValueError(f"there is no task '{task}'{hint}")
    return TASKS[task].layouts


def _fields(layout: Layout) -> dict[str, str]:
    return {atom.name: KINDS[atom.kind] for atom in layout.source if atom.kind in KINDS}


def _language(task: str, record: Record) -> str | None:
    """The record's language, if the task reads it."""
    lang = record.get("lang")
    reads = any(fields.get("lang") == "mark" for fields in fields_of(task))
    return str(lang) if reads and lang in LANGUAGES else None


def _prompt(m6: Opened, task: str, record: Record, number: int) -> Branch:
    """The prompt of the only instruction whose fields the record has."""
    offered = [_fields(layout) for layout in _layouts(task)]
    fitting = [i for i, fields in enumerate(offered) if all(record.get(name) is not None for name in fields)]
    needs = " or ".join(" and ".join(fields) for fields in offered)
    if not fitting:
        given = ", ".join(name for name, value in record.items() if value is not None) or "nothing"
        raise ValueError(f"the task {task} reads {needs}; record {number} has {given}")
    if len(fitting) > 1:
        raise ValueError(f"the task {task} reads {needs}; record {number} has both: give one of them")
    fields = {name: _value(m6, name, kind, record[name]) for name, kind in offered[fitting[0]].items()}
    return m6.prompt(task, fitting[0], **fields)


def _value(m6: Opened, name: str, kind: str, value: Any) -> object:
    if kind == "picture":
        [picture] = m6.pictures([value])
        return picture
    if isinstance(value, tuple):  # tokens that a task has made of a text, such as spans taken out
        return value
    return check_text(value, f"the field {name}")
