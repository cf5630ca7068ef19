"""What a run can do, for its report: samples of every task on held-out records, with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openm6.decode.pipeline import Pipeline

QUESTIONS = ("what is the main colour?", "它属于哪一类？")


def write_samples(
    m6: Pipeline, folder: Path, *, records: Sequence[dict[str, Any]], poems: Sequence[dict[str, Any]], step: int
) -> list[dict[str, Any]]:
    """Let the model caption, answer, draw, match and write; save pictures and `samples.json` in `folder`.

    `records` have image, caption_en and caption_zh, `poems` title, form and text. Returns what samples.json holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[dict[str, Any]] = []

    def add(task: str, lang: str | None, given: str, output: str, **more: Any) -> None:
        entry = {"task": task, "lang": lang, "input": given, "output": output, "step": step}
        samples.append({"input_image": None, "output_image": None, "reference": None, **entry, **more})

    images = [record["image"] for record in records]
    names = [_save(Image.fromarray(image), folder / f"input-{i}.png") for i, image in enumerate(images)]
    for lang in ("en", "zh"):
        for name, record, text in zip(names, records, m6.caption(images, lang=lang), strict=True):
            add("caption", lang, "", text, input_image=name, reference=record.get(f"caption_{lang}"))
    for lang, question in zip(("en", "zh"), QUESTIONS, strict=True):
        field = "colour_en" if lang == "en" else "group_zh"
        for name, record, text in zip(names, records, m6.ask(images, [question] * len(images)), strict=True):
            add("ask", lang, question, text, input_image=name, reference=record.get(field))
    if m6.model.config.match_dim:
        texts = [str(record["caption_en"]) for record in records]
        for name, record, row in zip(names, records, m6.match(images, texts), strict=True):
            best = int(np.argmax(row))
            add("match", "en", "", f"{texts[best]} ({row[best]:.2f})", input_image=name, reference=record["caption_en"])
    if m6.image_tokenizer is not None and m6.model.config.cells:
        for i, record in enumerate(records):
            lang = ("en", "zh")[i % 2]
            text = str(record[f"caption_{lang}"])
            picture = m6.draw(text, seed=i)
            name = _save(picture.resize((256, 256), Image.Resampling.LANCZOS), folder / f"drawing-{i}.png")
            add("draw", lang, text, "", output_image=name)
    for i, poem in enumerate(poems):
        text = m6.write(str(poem["title"]), form=poem.get("form"), seed=i)
        add("write", "zh", f"{poem['title']} ({poem.get('form') or 'any'})", text, reference=poem.get("text"))
    (folder / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8")
    return samples


def _save(image: Image.Image, path: Path) -> str:
    image.save(path)
    return path.name
