"""An opened checkpoint: the model, its tokenizers, and the steps that all ways of decoding share.

`Pipeline`, which `openm6.load()` returns, adds one method for each task.

Legend: B prompts, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.decode.decoder import SCORES, Decoder, prompt_stream
from openm6.decode.folder import find_checkpoint
from openm6.decode.generate import beam_search
from openm6.decode.inputs import MAX_PROMPT, Picture, check_tokens, read_pictures, read_texts
from openm6.decode.language import LANGUAGES, Language, read_words
from openm6.modalities.codes import ImageTokenizer
from openm6.modalities.text import TextTokenizer
from openm6.model import Stream
from openm6.model.checkpoint import load_model
from openm6.model.device import AUTO, resolve_device
from openm6.tasks import TASKS
from openm6.tasks.collate import to_device
from openm6.tasks.layout import Branch

BATCH = 64  # rows decoded at a time: bounds memory, and more is no faster on a CPU


class Run(NamedTuple):
    """Some prompts of `match` after the stack: their states, the stream, flat indices of the marks."""

    hidden_BTD: Tensor
    stream: Stream
    mark_at_B: Tensor


class Opened:
    """The model of a checkpoint with its tokenizers. `image_tokenizer` is None if the checkpoint has none.

    Both networks are on `device`. Inputs are prepared on the host and moved there; outputs are moved back.
    """

    def __init__(self, folder: str | Path | None = None, *, device: str = AUTO):
        """`folder`: a checkpoint or a run folder; None = the shipped model. `device`: as for `openm6.load`. Raises
        ValueError for any other folder, and for a device that this machine does not have.
        """
        self.device = resolve_device(device)
        self.folder = path = find_checkpoint(folder)
        self.model = load_model(path).to(self.device)
        self.tokenizer = TextTokenizer.load(path / "tokenizer.json")
        has_codes = (path / "image_tokenizer.json").is_file()
        self.image_tokenizer = ImageTokenizer.load(path).to(self.device) if has_codes else None

    # -- prompts -------------------------------------------------------------------------------------------

    def pictures(self, images: Picture | Sequence[Picture]) -> list[np.ndarray]:
        """Every picture as uint8 (S, S, 3 | 4), at the model's size S. Raises ValueError that names an unreadable
        picture.
        """
        return read_pictures(images, self.model.config.image_size)

    def prompt(self, task: str, layout: int = 0, **fields: object) -> Branch:
        """The prompt of a task, from the fields that its instruction names. Raises ValueError if it is too long."""
        prompt = TASKS[task].layouts[layout].branch(task, fields, self.tokenizer)
        self.short(prompt.source)
        return prompt

    def image_prompts(self, images: Picture | Sequence[Picture]) -> list[Branch]:
        """Prompts that end where the match embedding of each picture is read."""
        return [self.prompt("match", image=picture) for picture in self.pictures(images)]

    def text_prompts(self, texts: str | Sequence[str]) -> list[Branch]:
        """Prompts that end where the match embedding of each text is read."""
        return [self.prompt("match", 1, text=text) for text in read_texts(texts, "a text")]

    def short(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens. Raises ValueError if a prompt may not have so many."""
        if len(tokens) > MAX_PROMPT:
            raise ValueError(f"a text of {len(tokens)} tokens is too long: at most {MAX_PROMPT} are read")
        return tokens

    def pixels(self, prompts: Sequence[Branch]) -> Tensor | None:
        """The normalised pictures of the prompts that have one, in their order, (n, 3, S, S); None if there are
        none.
        """
        images = [prompt.image for prompt in prompts if prompt.image is not None]
        return normalise(over_white(stack_rgba(images, self.model.config.image_size))) if images else None

    def slices(self, prompts: Sequence[Branch], new: int, *, rows: int = BATCH) -> Iterator[slice]:
        """Slices of the prompts that run together: at most `rows` prompts, or fewer if these would fill the memory.

        `new`: the number of tokens that will follow each prompt.
        """
        longest = self.model.config.image_tokens + max(len(prompt.source) for prompt in prompts) + new
        size = max(1, min(rows, SCORES // longest**2))
        return (slice(start, start + size) for start in range(0, len(prompts), size))

    @torch.no_grad()
    def beam(
        self,
        prompts: Sequence[Branch],
        beams: int,
        max_tokens: int,
        langs: Sequence[str | None] | None = None,
    ) -> list[str]:
        """The most probable text of each prompt among `beams` kept texts, of at most `max_tokens`.

        `langs`: the language that each text must keep to (en, zh); None = any (`openm6.decode.language`).
        """
        check_tokens(max_tokens)
        if not 1 <= beams <= BATCH:
            raise ValueError(f"beams must lie between 1 and {BATCH}, not {beams}")
        keep = [self.languages[lang] if lang else None for lang in langs or [None] * len(prompts)]
        outputs: list[str] = []
        for part in self.slices(prompts, max_tokens, rows=BATCH // beams):
            chunk, kept = prompts[part], keep[part]

            def allowed(
                row: int, tokens: Sequence[int], kept: Sequence[Language | None] = kept
            ) -> Tensor | None:
                language = kept[row]
                return language.allowed(tokens) if language is not None else None

            decoder = Decoder(self.model, chunk, self.pixels(chunk), max_new=max_tokens)
            rows = beam_search(
                decoder, beams=beams, eos=self.tokenizer.eos, max_new=max_tokens, allowed=allowed
            )
            for tokens, language in zip(rows, kept, strict=True):
                whole = tokens if language is None else language.finished(tokens)
                outputs.append(self.tokenizer.decode(whole))
        return outputs

    @cached_property
    def languages(self) -> dict[str, Language]:
        """The masks that keep a text in English or Chinese. Raises ValueError for a broken list of words."""
        words, vocab = read_words(self.folder), self.model.config.vocab_text
        return {lang: Language(self.tokenizer, lang, words.get(lang), vocab=vocab) for lang in LANGUAGES}

    # -- match ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def runs(self, prompts: Sequence[Branch]) -> Iterator[Run]:
        """Run the prompts through the stack, in slices of bounded memory."""
        for part in self.slices(prompts, 0):
            chunk, P = prompts[part], self.model.config.image_tokens
            stream, length_B = prompt_stream(chunk, self.pixels(chunk), image_tokens=P)
            mark_at_B = torch.arange(len(chunk)) * stream.tokens_BT.shape[1] + length_B - 1
            stream = to_device(stream, self.device)
            yield Run(self.model(stream), stream, mark_at_B.to(self.device))

    @torch.no_grad()
    def embed(self, prompts: Sequence[Branch]) -> np.ndarray:
        """Unit match embeddings of prompts of `match`, (n, match_dim)."""
        runs = self.runs(prompts)
        found = [self.model.match_embedding(run.hidden_BTD.flatten(0, 1)[run.mark_at_B]) for run in runs]
        return torch.cat(found).cpu().numpy()

    def embed_images(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """Unit match embeddings of pictures, (n, match_dim)."""
        return self.embed(self.image_prompts(images))

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit match embeddings of texts, (n, match_dim)."""
        return self.embed(self.text_prompts(texts))

    def match(self, images: Picture | Sequence[Picture], texts: str | Sequence[str]) -> np.ndarray:
        """Cosine of every picture with every text, (pictures, texts); higher fits better."""
        return self.embed_images(images) @ self.embed_texts(texts).T
