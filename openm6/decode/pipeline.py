"""A trained M6 with its tokenizers: one method a task.

What `openm6.load()` returns:

    m6 = openm6.load()
    m6.caption("photo.png")                      # "red apple"
    m6.caption(["a.png", "b.png"], lang="zh")    # a list in, a list out
    m6.tell("photo.png", openm6.load("runs/tell"))    # in the words of a model that was trained on texts alone
    m6.ask("photo.png", "what colour is it?")
    m6.ask("photo.png", ["what is it?", "这是什么？"])
    m6.draw("soccer ball").save("ball.png")
    m6.write("春望", form="五绝")
    m6.match(["a.png", "b.png"], ["red apple", "dog face"])
    m6.rank_texts("a.png", names)                # match, its best judged again by captions and cross encoders
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.decode.decoder import SCORES, Decoder, prompt_stream
from openm6.decode.folder import find_checkpoint
from openm6.decode.generate import Sampling, beam_search
from openm6.decode.inputs import (
    MAX_PROMPT,
    Picture,
    Texts,
    check_tokens,
    like,
    read_pictures,
    read_questions,
    read_texts,
)
from openm6.decode.live import (
    DRAWING,
    WRITING,
    Beginning,
    Poem,
    Sketch,
    continue_texts,
    draw_sketches,
    to_image,
    write_poems,
)
from openm6.decode.magic import Magic
from openm6.decode.perplexity import poem_nll
from openm6.decode.rank import By, Run, rank
from openm6.decode.tell import tell
from openm6.modalities.codes import ImageTokenizer
from openm6.modalities.text import TextTokenizer
from openm6.model.checkpoint import load_model
from openm6.tasks import TASKS
from openm6.tasks.layout import Branch

BATCH = 64  # rows decoded at a time: bounds memory, and more is no faster on a CPU
MAX_TEXT = 40  # tokens of a caption or an answer, unless told otherwise


class Pipeline:
    """A model ready to use. Every method takes one input or a list, and gives one output or a list.

    Lists of any length are read first (16 KB a picture of 64 x 64), then computed in batches of bounded
    memory. What an input gives does not depend on the rest of its list, rounding aside: the i-th samples with
    the seed `seed + i`. All methods raise ValueError for an empty list, an empty text, and a picture that
    cannot be read, which they name.
    """

    def __init__(self, folder: str | Path | None = None):
        """`folder`: a checkpoint or a run folder, None = the shipped model. ValueError if it is neither."""
        self.folder = path = find_checkpoint(folder)
        self.model = load_model(path)
        self.tokenizer = TextTokenizer.load(path / "tokenizer.json")
        has_codes = (path / "image_tokenizer.json").is_file()
        self.image_tokenizer = ImageTokenizer.load(path) if has_codes else None

    # -- one method a task ---------------------------------------------------------------------------------

    @overload
    def caption(
        self, images: Picture, *, lang: str = ..., beams: int = ..., max_tokens: int = ...
    ) -> str: ...
    @overload
    def caption(
        self, images: Sequence[Picture], *, lang: str = ..., beams: int = ..., max_tokens: int = ...
    ) -> list[str]: ...
    def caption(
        self,
        images: Picture | Sequence[Picture],
        *,
        lang: str = "en",
        beams: int = 4,
        max_tokens: int = MAX_TEXT,
    ) -> str | list[str]:
        """What each picture shows, in English (`en`) or Chinese (`zh`), in at most `max_tokens`."""
        if lang not in ("en", "zh"):
            raise ValueError(f"lang must be 'en' or 'zh', not '{lang}'")
        prompts = [self._prompt("caption", image=picture, lang=lang) for picture in self._pictures(images)]
        return like(self._beam(prompts, beams, max_tokens), images)

    @overload
    def tell(
        self, images: Picture, teller: Pipeline, *, magic: Magic = ..., max_tokens: int = ...
    ) -> str: ...
    @overload
    def tell(
        self, images: Sequence[Picture], teller: Pipeline, *, magic: Magic = ..., max_tokens: int = ...
    ) -> list[str]: ...
    def tell(
        self,
        images: Picture | Sequence[Picture],
        teller: Pipeline,
        *,
        magic: Magic = Magic(),  # noqa: B008 (immutable)
        max_tokens: int = MAX_TEXT,
    ) -> str | list[str]:
        """What each picture shows, told by a model trained on texts alone (task `lm`), as `match` guides it.

        MAGIC (2205.02655): nothing is trained; the language is whatever the teller was trained on.
        Raises ValueError when this model does not match, or the teller is none that was opened.
        """
        if not isinstance(teller, Pipeline):
            raise ValueError(f"the teller must be a model that openm6.load has opened, not {teller!r}")
        check_tokens(max_tokens)
        told = tell(self, teller, self._pictures(images), magic=magic, rows=BATCH, max_new=max_tokens)
        return like(told, images)

    @overload
    def ask(self, images: Picture, questions: str, *, beams: int = ..., max_tokens: int = ...) -> str: ...
    @overload
    def ask(
        self, images: Sequence[Picture], questions: str, *, beams: int = ..., max_tokens: int = ...
    ) -> list[str]: ...
    @overload
    def ask(
        self,
        images: Picture | Sequence[Picture],
        questions: Texts,
        *,
        beams: int = ...,
        max_tokens: int = ...,
    ) -> list[str]: ...
    def ask(
        self,
        images: Picture | Sequence[Picture],
        questions: str | Sequence[str],
        *,
        beams: int = 1,
        max_tokens: int = MAX_TEXT,
    ) -> str | list[str]:
        """The answer to each question about its picture; one question may go to many pictures, or back."""
        prompts = [
            self._prompt("ask", image=picture, question=question)
            for picture, question in read_questions(images, questions, self.model.config.image_size)
        ]
        return like(self._beam(prompts, beams, max_tokens), images, questions)

    @overload
    def draw(
        self,
        texts: str,
        *,
        candidates: int = ...,
        seed: int = ...,
        style: str | None = ...,
        sampling: Sampling = ...,
    ) -> Image.Image: ...
    @overload
    def draw(
        self,
        texts: Texts,
        *,
        candidates: int = ...,
        seed: int = ...,
        style: str | None = ...,
        sampling: Sampling = ...,
    ) -> list[Image.Image]: ...
    def draw(
        self,
        texts: str | Sequence[str],
        *,
        candidates: int = 16,
        seed: int = 0,
        style: str | None = None,
        sampling: Sampling = DRAWING,
    ) -> Image.Image | list[Image.Image]:
        """A picture for each text: the best of `candidates` samples by `match`."""
        listed = read_texts(texts, "a text to draw")
        if self.image_tokenizer is None or not self.model.config.cells:
            raise ValueError(f"the checkpoint {self.folder} does not draw: it has no image tokenizer")
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, not {candidates}")
        if candidates > 1 and not self.model.config.match_dim:
            raise ValueError(
                f"the checkpoint {self.folder} does not match, so it cannot rank: set candidates to 1"
            )
        drawings = draw_sketches(
            self,
            [Sketch(text, seed + i) for i, text in enumerate(listed)],
            candidates=candidates,
            rows=BATCH,
            style=style,
            sampling=sampling,
        )
        return like(drawings, texts)

    @overload
    def write(
        self,
        titles: str,
        *,
        author: str | None = ...,
        form: str | None = ...,
        seed: int = ...,
        sampling: Sampling = ...,
    ) -> str: ...
    @overload
    def write(
        self,
        titles: Texts,
        *,
        author: str | None = ...,
        form: str | Sequence[str] | None = ...,
        seed: int = ...,
        sampling: Sampling = ...,
    ) -> list[str]: ...
    def write(
        self,
        titles: str | Sequence[str],
        *,
        author: str | None = None,
        form: str | Sequence[str] | None = None,
        seed: int = 0,
        sampling: Sampling = WRITING,
    ) -> str | list[str]:
        """A poem for each title, in a form such as 五绝, 七律 or 词 (None = any), in an author's manner."""
        listed = read_texts(titles, "a title")
        forms = [form] * len(listed) if form is None or isinstance(form, str) else list(form)
        if len(forms) != len(listed):
            raise ValueError(f"write got {len(listed)} titles and {len(forms)} forms; give one for each")
        poems = [
            Poem(title, each, author, seed + i)
            for i, (title, each) in enumerate(zip(listed, forms, strict=True))
        ]
        return like(write_poems(self, poems, sampling=sampling), titles)

    @overload
    def continue_text(
        self, beginnings: str, *, max_tokens: int = ..., seed: int = ..., sampling: Sampling = ...
    ) -> str: ...
    @overload
    def continue_text(
        self, beginnings: Texts, *, max_tokens: int = ..., seed: int = ..., sampling: Sampling = ...
    ) -> list[str]: ...
    def continue_text(
        self,
        beginnings: str | Sequence[str],
        *,
        max_tokens: int = 100,
        seed: int = 0,
        sampling: Sampling = WRITING,
    ) -> str | list[str]:
        """Each beginning, continued freely by at most `max_tokens` (the beginning is part of the output)."""
        check_tokens(max_tokens)
        begin = [Beginning(text, seed + i) for i, text in enumerate(read_texts(beginnings, "a beginning"))]
        return like(continue_texts(self, begin, max_tokens=max_tokens, sampling=sampling), beginnings)

    def match(self, images: Picture | Sequence[Picture], texts: str | Sequence[str]) -> np.ndarray:
        """Cosine of every picture with every text, (pictures, texts); higher fits better."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def rank_texts(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        *,
        candidates: int = 128,
        by: By | None = None,
    ) -> np.ndarray:
        """How well texts fit each picture, (pictures, texts): `match`, the best judged again.

        Each picture's best `candidates` by cosine are judged by how likely the model is to say so in a caption
        (`by` "captions"), by the cross encoders of a model trained with R2D2 ("encoders"), or by all it has (None);
        all others score -inf. Raises ValueError for a model without them.
        """
        return rank(self, images, texts, candidates=candidates, by=by)

    def rank_images(
        self,
        texts: str | Sequence[str],
        images: Picture | Sequence[Picture],
        *,
        candidates: int = 128,
        by: By | None = None,
    ) -> np.ndarray:
        """How well pictures fit each text, (texts, pictures); see `rank_texts`."""
        return rank(self, images, texts, candidates=candidates, by=by, of_texts=True)

    # -- what the tasks are made of ------------------------------------------------------------------------

    def embed_images(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """Unit match embeddings of pictures, (n, match_dim)."""
        return self._embed(self._image_prompts(images))

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit match embeddings of texts, (n, match_dim)."""
        return self._embed(self._text_prompts(texts))

    @overload
    def reconstruct(self, images: Picture) -> Image.Image: ...
    @overload
    def reconstruct(self, images: Sequence[Picture]) -> list[Image.Image]: ...
    @torch.no_grad()
    def reconstruct(self, images: Picture | Sequence[Picture]) -> Image.Image | list[Image.Image]:
        """Pictures after a round trip through the image codes: the most that `draw` could reach."""
        if self.image_tokenizer is None:
            raise ValueError(f"the checkpoint {self.folder} has no image tokenizer")
        back: list[Image.Image] = []
        pictures = self._pictures(images)
        for start in range(0, len(pictures), BATCH):
            pixels = over_white(stack_rgba(pictures[start : start + BATCH], self.model.config.image_size))
            codes = self.image_tokenizer.encode(pixels)
            back += [to_image(each) for each in self.image_tokenizer.decode(codes)]
        return like(back, images)

    def poem_nll(self, records: Sequence[dict[str, Any]]) -> tuple[float, int]:
        """(total nats, characters) of the records' texts given their titles, the end of the text included."""
        return poem_nll(self, records)

    def _pictures(self, images: Picture | Sequence[Picture]) -> list[np.ndarray]:
        return read_pictures(images, self.model.config.image_size)

    def _prompt(self, task: str, layout: int = 0, **fields: object) -> Branch:
        prompt = TASKS[task].layouts[layout].branch(task, fields, self.tokenizer)
        self._short(prompt.source)
        return prompt

    def _short(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if len(tokens) > MAX_PROMPT:
            raise ValueError(f"a text of {len(tokens)} tokens is too long: at most {MAX_PROMPT} are read")
        return tokens

    def _pixels(self, prompts: Sequence[Branch]) -> Tensor | None:
        images = [prompt.image for prompt in prompts if prompt.image is not None]
        return normalise(over_white(stack_rgba(images, self.model.config.image_size))) if images else None

    def _slices(self, prompts: Sequence[Branch], new: int, *, rows: int = BATCH) -> Iterator[slice]:
        """Parts of the prompts to run together: at most `rows`, fewer where they would fill the memory."""
        longest = self.model.config.image_tokens + max(len(prompt.source) for prompt in prompts) + new
        size = max(1, min(rows, SCORES // longest**2))
        return (slice(start, start + size) for start in range(0, len(prompts), size))

    @torch.no_grad()
    def _beam(self, prompts: list[Branch], beams: int, max_tokens: int) -> list[str]:
        check_tokens(max_tokens)
        if not 1 <= beams <= BATCH:
            raise ValueError(f"beams must lie between 1 and {BATCH}, not {beams}")
        outputs: list[list[int]] = []
        for part in self._slices(prompts, max_tokens, rows=BATCH // beams):
            chunk = prompts[part]
            decoder = Decoder(self.model, chunk, self._pixels(chunk), max_new=max_tokens)
            outputs += beam_search(decoder, beams=beams, eos=self.tokenizer.eos, max_new=max_tokens)
        return [self.tokenizer.decode(tokens) for tokens in outputs]

    def _image_prompts(self, images: Picture | Sequence[Picture]) -> list[Branch]:
        return [self._prompt("match", image=picture) for picture in self._pictures(images)]

    def _text_prompts(self, texts: str | Sequence[str]) -> list[Branch]:
        return [self._prompt("match", 1, text=text) for text in read_texts(texts, "a text")]

    @torch.no_grad()
    def _runs(self, prompts: Sequence[Branch]) -> Iterator[Run]:
        for part in self._slices(prompts, 0):
            chunk, P = prompts[part], self.model.config.image_tokens
            stream, length_B = prompt_stream(chunk, self._pixels(chunk), image_tokens=P)
            mark_at_B = torch.arange(len(chunk)) * stream.tokens_BT.shape[1] + length_B - 1
            yield Run(self.model(stream), stream, mark_at_B)

    @torch.no_grad()
    def _embed(self, prompts: Sequence[Branch]) -> np.ndarray:
        runs = self._runs(prompts)
        return torch.cat(
            [self.model.match_embedding(run.hidden_BTD.flatten(0, 1)[run.mark_at_B]) for run in runs]
        ).numpy()
