"""Texts and drawings that are told while they come: many at a time, each with a seed of its own.

    write_poems(m6, [Poem("春望", form="五绝"), Poem("moon", seed=3)], on_text=lambda i, text: print(i, text))

`Pipeline.write`, `continue_text` and `draw` are this for one seed and without listening.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, chances, sample_cells, sample_text
from openm6.modalities.cells import to_raster
from openm6.tasks.draw import ANY_STYLE
from openm6.tasks.layout import Branch
from openm6.tasks.write import ANY_FORM, title_line

if TYPE_CHECKING:
    from openm6.decode.pipeline import Pipeline

WRITING = Sampling(temperature=0.8, top_p=0.9)
DRAWING = Sampling(temperature=0.8, top_p=0.95, guidance=1.5)
MAX_POEM = 160  # tokens

OnText = Callable[[int, str], None]  # called with the place of a text in its list, and what there is of it


@dataclass(frozen=True)
class Poem:
    """A poem to write. `form`: 五绝, 七律, 词, ... (None = any); `author`: in whose manner."""

    title: str
    form: str | None = None
    author: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Beginning:
    """A text to go on with."""

    text: str
    seed: int = 0


@dataclass(frozen=True)
class Sketch:
    """A text to draw."""

    text: str
    seed: int = 0


def write_poems(
    m6: Pipeline, poems: Sequence[Poem], *, sampling: Sampling = WRITING, on_text: OnText | None = None
) -> list[str]:
    """A poem for each title."""
    prompts = [
        m6._prompt("write", title=title_line(poem.title, poem.author), form=poem.form or ANY_FORM)
        for poem in poems
    ]
    return _sample(m6, prompts, MAX_POEM, sampling, [poem.seed for poem in poems], on_text=on_text)


def continue_texts(
    m6: Pipeline,
    beginnings: Sequence[Beginning],
    *,
    max_tokens: int = 100,
    sampling: Sampling = WRITING,
    on_text: OnText | None = None,
) -> list[str]:
    """Each beginning, and at most `max_tokens` more."""
    begin = [m6._short(m6.tokenizer.encode(each.text)) for each in beginnings]
    prompts = [m6._prompt("lm") for _ in begin]
    seeds = [each.seed for each in beginnings]
    return _sample(m6, prompts, max_tokens, sampling, seeds, begin=begin, on_text=on_text)


def draw_sketches(
    m6: Pipeline,
    sketches: Sequence[Sketch],
    *,
    candidates: int,
    rows: int,
    style: str | None = None,
    sampling: Sampling = DRAWING,
    on_progress: Callable[[float], None] | None = None,
) -> list[Image.Image]:
    """A picture for each text, the best of `candidates` by `match`; at most `rows` are drawn at a time.

    `on_progress` is called with the share of the work that is done.
    """
    drawings: list[Image.Image] = []
    at_a_time = max(1, rows // candidates)
    wordless = m6._prompt("draw", text="", style=style or ANY_STYLE)
    for start in range(0, len(sketches), at_a_time):
        group = sketches[start : start + at_a_time]
        seeds = [(sketch.seed, c) for sketch in group for c in range(candidates)]
        prompts = [
            m6._prompt("draw", text=sketch.text, style=style or ANY_STYLE)
            for sketch in group
            for _ in range(candidates)
        ]

        def tell(share: float, start: int = start, size: int = len(group)) -> None:
            if on_progress is not None:
                on_progress((start + share * size) / len(sketches))

        pixels = _draw(m6, prompts, wordless, seeds, sampling, tell)
        for sketch, mine in zip(group, pixels.split(candidates), strict=True):
            images = [to_image(each) for each in mine]
            best = int(m6.match(images, sketch.text)[:, 0].argmax()) if candidates > 1 else 0
            drawings.append(images[best])
    return drawings


def to_image(pixels_CSS: Tensor) -> Image.Image:
    """Pixels in [0, 1] as a picture."""
    array = (pixels_CSS.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(array.numpy())


@torch.no_grad()
def _sample(
    m6: Pipeline,
    prompts: Sequence[Branch],
    max_new: int,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    begin: Sequence[tuple[int, ...]] | None = None,
    on_text: OnText | None = None,
) -> list[str]:
    if sampling.guidance != 1:
        raise ValueError("guidance is for drawings; a text is sampled with guidance 1")
    begin = begin or [()] * len(prompts)
    outputs: list[list[int]] = []
    for part in m6._slices(prompts, max_new + max(map(len, begin))):

        def tell(row: int, tokens: list[int], start: int = part.start) -> None:
            if on_text is not None:  # a character of several tokens is told when it is whole
                on_text(start + row, m6.tokenizer.decode(tokens).rstrip("\ufffd"))

        outputs += sample_text(
            Decoder(
                m6.model,
                prompts[part],
                m6._pixels(prompts[part]),
                max_new=max_new + max(map(len, begin[part])),
            ),
            eos=m6.tokenizer.eos,
            sampling=sampling,
            chance_BT=chances([(seed,) for seed in seeds[part]], max_new),
            begin=begin[part],
            on_tokens=tell,
        )
    return [m6.tokenizer.decode(tokens) for tokens in outputs]


@torch.no_grad()
def _draw(
    m6: Pipeline,
    prompts: Sequence[Branch],
    wordless: Branch,
    seeds: Sequence[tuple[int, int]],
    sampling: Sampling,
    on_progress: Callable[[float], None],
) -> Tensor:
    """A drawing a prompt and seed, (n, 3, S, S) in [0, 1]; guidance steers away from `wordless`."""
    assert m6.image_tokenizer is not None
    config, pixels = m6.model.config, list[Tensor]()
    for part in m6._slices(prompts, config.cells):
        chunk = list(prompts[part])

        def tell(cells: int, start: int = part.start, rows: int = len(chunk)) -> None:
            on_progress((start + rows * cells / config.cells) / len(prompts))

        cells_NLK = sample_cells(
            Decoder(
                m6.model,
                chunk + ([wordless] * len(chunk) if sampling.guidance != 1 else []),
                None,
                max_new=config.cells,
            ),
            cells=config.cells,
            sampling=sampling,
            chance_BT=chances(seeds[part], config.cells * config.codes_per_cell),
            on_cell=tell,
        )
        pixels.append(m6.image_tokenizer.decode(to_raster(cells_NLK)))
    return torch.cat(pixels)
