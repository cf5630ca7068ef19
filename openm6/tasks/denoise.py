"""M6's pretraining by infilling: spans of a text are removed, and the model writes them again.

text_denoise   text with gaps -> the missing spans (T5's layout, 1910.10683)
image_denoise  a picture and its caption with gaps -> the whole caption (M6's image-based text denoising)
"""

from __future__ import annotations

from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.task import Fields, Record, Task, pick_language


def take_out_spans(
    tokens: tuple[int, ...], rng: Random, *, rate: float, mean_length: float, mask: int, gap: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Take spans out of a text. Returns the text with one `mask` for each span, and the spans with a `gap` before
    each.

    About `rate` of the tokens are taken out, in spans of `mean_length` on average (geometric), and at least one.
    """
    source: list[int] = []
    spans: list[int] = []
    inside = False
    start = rate / mean_length / max(1e-9, 1 - rate)  # two-state chain with the wanted stationary share
    for token in tokens:
        inside_now = rng.random() < (1 - 1 / mean_length if inside else start)
        if not inside_now:
            source.append(token)
        else:
            if not inside:
                source.append(mask)
                spans.append(gap)
            spans.append(token)
        inside = inside_now
    if not spans:
        at = rng.randrange(len(tokens))
        return (*tokens[:at], mask, *tokens[at + 1 :]), (gap, tokens[at])
    return tuple(source), tuple(spans)


def _text_fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    tokens = tokenizer.encode(str(record.get("text") or ""))
    if not tokens:
        return None
    masked, spans = take_out_spans(
        tokens, rng, rate=0.15, mean_length=3.0, mask=tokenizer.mask, gap=tokenizer.gap
    )
    return {"masked": masked, "spans": spans}


def _image_fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    language = pick_language(record, "caption", rng)
    if language is None or record.get("image") is None:
        return None
    caption = str(record[f"caption_{language}"])
    masked, _ = take_out_spans(
        tokenizer.encode(caption), rng, rate=0.5, mean_length=2.0, mask=tokenizer.mask, gap=tokenizer.gap
    )
    return {"image": record["image"], "lang": language, "masked": masked, "caption": caption}


TEXT_DENOISE = Task("text_denoise", ("<denoise> [TEXT:masked] -> [TEXT:spans]",), _text_fields)
IMAGE_DENOISE = Task(
    "image_denoise", ("[IMAGE:image] <denoise> [TEXT:masked] <{lang}> -> [TEXT:caption]",), _image_fields
)
