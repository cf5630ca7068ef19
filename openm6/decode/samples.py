"""Samples of every trained task on held-out records, with pictures, for the report of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openm6.data import open_source
from openm6.decode.pipeline import Pipeline
from openm6.tasks.write import ANY_FORM
from openm6.train.config import RunConfig

LANGUAGES = ("en", "zh")
QUESTIONS = {"en": ("what is the main colour?", "colour_en"), "zh": ("它属于哪一类？", "group_zh")}
SAMPLES_FILE = "samples.json"


def write_samples(
    m6: Pipeline,
    config: RunConfig,
    folder: Path,
    *,
    pictures: int = 8,
    poems: int = 4,
    on_progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Let the model caption, answer, match, draw and write, as far as the run trained these tasks.

    It uses the first `pictures` and `poems` records of the run's held-out data (or of its training data, if no data
    is held out). It saves pictures and samples.json in `folder`, and returns the content of samples.json.
    `on_progress` is called with a few words before each part.
    """
    say = on_progress or (lambda text: None)
    say("reading records to show")
    folder.mkdir(parents=True, exist_ok=True)
    trained = {task for part in config.mix for task in part.tasks}
    seen = _records(config, "image", pictures)
    titled = _records(config, "title", poems)
    names = [
        _save(Image.fromarray(record["image"]), folder / f"input-{i}.png") for i, record in enumerate(seen)
    ]
    samples: list[dict[str, Any]] = []
    if "caption" in trained:
        say(f"captions of {len(seen)} pictures")
        samples += _captions(m6, seen, names)
    if "ask" in trained:
        say(f"answers about {len(seen)} pictures")
        samples += _answers(m6, seen, names)
    if "match" in trained:
        say(f"texts that match {len(seen)} pictures")
        samples += _matches(m6, seen, names)
    if "draw" in trained:
        say(f"{len(seen)} drawings")
        samples += _drawings(m6, seen, folder)
    if "write" in trained:
        say(f"{len(titled)} poems")
        samples += _poems(m6, titled)
    for sample in samples:
        sample["step"] = config.steps
    (folder / SAMPLES_FILE).write_text(json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8")
    return samples


def _captions(
    m6: Pipeline, records: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for lang in LANGUAGES:
        named = [(r, name) for r, name in zip(records, names, strict=True) if r.get(f"caption_{lang}")]
        texts = m6.caption([record["image"] for record, _ in named], lang=lang) if named else []
        for (record, name), text in zip(named, texts, strict=True):
            yield _sample("caption", lang, "", text, input_image=name, reference=record[f"caption_{lang}"])


def _answers(
    m6: Pipeline, records: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    asked: list[tuple[dict[str, Any], str, str | None, str, str]] = []
    for record, name in zip(records, names, strict=True):
        if record.get("question") and record.get("answer"):
            asked.append((record, name, None, str(record["question"]), str(record["answer"])))
        else:
            for lang, (question, field) in QUESTIONS.items():
                if record.get(field):
                    asked.append((record, name, lang, question, str(record[field])))
    if not asked:
        return
    answers = m6.ask([record["image"] for record, *_ in asked], [question for *_, question, _ in asked])
    for (_, name, lang, question, truth), answer in zip(asked, answers, strict=True):
        yield _sample("ask", lang, question, answer, input_image=name, reference=truth)


def _matches(
    m6: Pipeline, records: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    texts = [_caption(record) for record in records]
    if not texts:
        return
    scores = m6.match([record["image"] for record in records], texts)
    for name, truth, row in zip(names, texts, scores, strict=True):
        best = int(np.argmax(row))
        yield _sample(
            "match", None, "", f"{texts[best]} ({row[best]:.2f})", input_image=name, reference=truth
        )


def _drawings(m6: Pipeline, records: Sequence[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    texts = [_caption(record, i) for i, record in enumerate(records)]
    drawings = m6.draw(texts, candidates=16 if m6.model.config.match_dim else 1) if texts else []
    for i, (text, drawing) in enumerate(zip(texts, drawings, strict=True)):
        name = _save(drawing.resize((256, 256), Image.Resampling.LANCZOS), folder / f"drawing-{i}.png")
        yield _sample("draw", None, text, "", output_image=name)


def _poems(m6: Pipeline, records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    titles = [str(record["title"]) for record in records]
    forms = [str(record.get("form") or ANY_FORM) for record in records]
    poems = m6.write(titles, form=forms) if titles else []
    for record, text in zip(records, poems, strict=True):
        given = f"{record['title']} ({record.get('form') or 'any form'})"
        yield _sample("write", "zh", given, text, reference=record.get("text"))


def _sample(task: str, lang: str | None, given: str, output: str, **more: Any) -> dict[str, Any]:
    empty = {"input_image": None, "output_image": None, "reference": None}
    return {"task": task, "lang": lang, "input": given, "output": output, **empty, **more}


def _records(config: RunConfig, field: str, count: int) -> list[dict[str, Any]]:
    """The first records that have `field` (a picture also needs a caption), in the run's own order."""
    found: list[dict[str, Any]] = []
    sources = {str(data): data for part in config.held_out or config.mix for data in part.data}
    for data in sources.values():
        source = open_source(data, seed=config.seed, epochs=1)
        useful = (r for r in source if r.get(field) is not None and (field != "image" or _has_caption(r)))
        found.extend(islice(useful, count - len(found)))
    return found


def _has_caption(record: dict[str, Any]) -> bool:
    return any(record.get(f"caption_{lang}") for lang in LANGUAGES)


def _caption(record: dict[str, Any], turn: int = 0) -> str:
    """A caption of the record. If it has both languages, they take turns."""
    offered = [str(record[f"caption_{lang}"]) for lang in LANGUAGES if record.get(f"caption_{lang}")]
    return offered[turn % len(offered)]


def _save(image: Image.Image, path: Path) -> str:
    image.save(path)
    return path.name
