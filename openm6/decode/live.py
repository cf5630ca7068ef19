"""Generates many texts and drawings at once and streams them, each with its own seed.

    write_poems(m6, [Poem("春望", form="五绝"), Poem("moon", seed=3)], on_text=lambda i, text: print(i, text))

`Pipeline.write`, `continue_text` and `draw` call these functions without a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, chances, sample_cells, sample_text
from openm6.decode.opened import Opened
from openm6.modalities.cells import to_raster
from openm6.tasks.draw import ANY_STYLE
from openm6.tasks.layout import Branch
from openm6.tasks.write import ANY_FORM, title_line

WRITING = Sampling(temperature=0.8, top_p=0.9)
DRAWING = Sampling(temperature=0.8, top_p=0.95, guidance=1.5)
MAX_POEM = 160  # tokens

OnText = Callable[[int, str], None]  # called with a text's place in its list and the text so far


@dataclass(frozen=True)
class Poem:
    """A poem to write. `form`: 五绝, 七律, 词, ... (None = any); `author`: the author to imitate."""

    title: str
    form: str | None = None
    author: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Beginning:
    """A text to continue."""

    text: str
    seed: int = 0


@dataclass(frozen=True)
class Sketch:
    """A text to draw."""

    text: str
    seed: int = 0


def write_poems(
    m6: Opened, poems: Sequence[Poem], *, sampling: Sampling = WRITING, on_text: OnText | None = None
) -> list[str]:
    """A poem for each title."""
    prompts = [
        m6.prompt("write", title=title_line(poem.title, poem.author), form=poem.form or ANY_FORM)
        for poem in poems
    ]
    return sample_prompts(m6, prompts, MAX_POEM, sampling, [poem.seed for poem in poems], on_text=on_text)


def continue_texts(
    m6: Opened,
    beginnings: Sequence[Beginning],
    *,
    max_tokens: int = 100,
    sampling: Sampling = WRITING,
    on_text: OnText | None = None,
) -> list[str]:
    """Each beginning, followed by at most `max_tokens` new tokens."""
    begin = [m6.short(m6.tokenizer.encode(each.text)) for each in beginnings]
    prompts = [m6.prompt("lm") for _ in begin]
    seeds = [each.seed for each in beginnings]
    return sample_prompts(m6, prompts, max_tokens, sampling, seeds, begin=begin, on_text=on_text)


def draw_sketches(
    m6: Opened,
    sketches: Sequence[Sketch],
    *,
    candidates: int,
    rows: int,
    style: str | None = None,
    sampling: Sampling = DRAWING,
    on_progress: Callable[[float], None] | None = None,
) -> list[Image.Image]:
    """A picture for each text: the best of `candidates` by `match`. At most `rows` are drawn at a time.

    `on_progress` is called with the finished share of the work, from 0 to 1.
    """
    drawings: list[Image.Image] = []
    at_a_time = max(1, rows // candidates)
    wordless = m6.prompt("draw", text="", style=style or ANY_STYLE)
    for start in range(0, len(sketches), at_a_time):
        group = sketches[start : start + at_a_time]
        seeds = [(sketch.seed, c) for sketch in group for c in range(candidates)]
        prompts = [
            m6.prompt("draw", text=sketch.text, style=style or ANY_STYLE)
            for sketch in group
            for _ in range(candidates)
        ]

        def report(share: float, start: int = start, size: int = len(group)) -> None:
            if on_progress is not None:
                on_progress((start + share * size) / len(sketches))

        pixels = draw_prompts(m6, prompts, seeds, sampling, wordless=wordless, on_progress=report)
        for sketch, mine in zip(group, pixels.split(candidates), strict=True):
            images = [to_image(each) for each in mine]
            best = int(m6.match(images, sketch.text)[:, 0].argmax()) if candidates > 1 else 0
            drawings.append(images[best])
    return drawings


def to_image(pixels_CSS: Tensor) -> Image.Image:
    """Pixels in [0, 1], on the host, as a picture."""
    array = (pixels_CSS.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(array.numpy())


@torch.no_grad()
def sample_prompts(
    m6: Opened,
    prompts: Sequence[Branch],
    max_new: int,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    begin: Sequence[tuple[int, ...]] | None = None,
    on_text: OnText | None = None,
) -> list[str]:
    """A sampled text for each prompt: `begin`, which is part of the text, and at most `max_new` further tokens."""
    if sampling.guidance != 1:
        raise ValueError("guidance is for drawings; a text is sampled with guidance 1")
    begin = begin or [()] * len(prompts)
    outputs: list[list[int]] = []
    for part in m6.slices(prompts, max_new + max(map(len, begin))):

        def report(row: int, tokens: list[int], start: int = part.start) -> None:
            if on_text is not None:  # a character of several tokens is reported when it is whole
                on_text(start + row, m6.tokenizer.decode(tokens).rstrip("\ufffd"))

        outputs += sample_text(
            Decoder(
                m6.model,
                prompts[part],
                m6.pixels(prompts[part]),
                max_new=max_new + max(map(len, begin[part])),
            ),
            eos=m6.tokenizer.eos,
            sampling=sampling,
            chance_BT=chances([(seed,) for seed in seeds[part]], max_new),
            begin=begin[part],
            on_tokens=report,
        )
    return [m6.tokenizer.decode(tokens) for tokens in outputs]


@torch.no_grad()
def draw_prompts(
    m6: Opened,
    prompts: Sequence[Branch],
    seeds: Sequence[tuple[int, ...]],
    sampling: Sampling,
    *,
    wordless: Branch | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """A drawing for each prompt and its seed, (n, 3, S, S) in [0, 1], on the host.

    Guidance steers away from `wordless`.
    """
    assert m6.image_tokenizer is not None and (sampling.guidance == 1 or wordless is not None)
    config, pixels = m6.model.config, list[Tensor]()
    for part in m6.slices(prompts, config.cells):
        chunk = list(prompts[part])
        if wordless is not None and sampling.guidance != 1:
            chunk += [wordless] * len(chunk)

        def report(cells: int, start: int = part.start, rows: int = len(prompts[part])) -> None:
            on_progress((start + rows * cells / config.cells) / len(prompts))

        cells_NLK = sample_cells(
            Decoder(m6.model, chunk, m6.pixels(chunk), max_new=config.cells),
            cells=config.cells,
            sampling=sampling,
            chance_BT=chances(seeds[part], config.cells * config.codes_per_cell),
            on_cell=report,
        )
        pixels.append(m6.image_tokenizer.decode(to_raster(cells_NLK)).cpu())
    return torch.cat(pixels)
