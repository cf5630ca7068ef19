"""A trained M6 with its tokenizers: one method for each task.

`openm6.load()` returns a pipeline:

    m6 = openm6.load()
    m6.caption("photo.png")                      # "red apple"
    m6.caption(["a.png", "b.png"], lang="zh")    # a list in, a list out
    m6.tell("photo.png", openm6.load("runs/tell"))    # in the words of a model that was trained only on texts
    m6.ask("photo.png", "what colour is it?")
    m6.ask("photo.png", ["what is it?", "这是什么？"])
    m6.draw("soccer ball").save("ball.png")
    m6.write("春望", form="五绝")
    m6.match(["a.png", "b.png"], ["red apple", "dog face"])
    m6.rank_texts("a.png", names)                # match; then captions and cross encoders score the best again
    m6.run("caption", {"image": "a.png", "lang": "zh"})    # any task of openm6.tasks.TASKS, yours too
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from openm6.data.augment import over_white, stack_rgba
from openm6.decode.any_task import run_task
from openm6.decode.generate import Sampling
from openm6.decode.inputs import Picture, Texts, check_tokens, like, read_questions, read_texts
from openm6.decode.language import LANGUAGES
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
from openm6.decode.opened import BATCH, Opened
from openm6.decode.perplexity import poem_nll
from openm6.decode.rank import By, rank
from openm6.decode.tell import tell

MAX_TEXT = 40  # tokens of a caption or an answer, by default


class Pipeline(Opened):
    """A model ready to use. Every method takes one input or a list, and returns one output or a list.

    Lists of any length are read first (16 KB a picture of 64 x 64), then computed in batches of bounded memory. The
    output for an input does not depend on the rest of its list, except for rounding. The i-th input samples with
    the seed `seed + i`. All methods raise ValueError for an empty list, an empty text, and a picture that cannot be
    read; the message names the picture.
    """

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
        """A caption of each picture, in English (`en`) or Chinese (`zh`), of at most `max_tokens`.

        The caption keeps to that language, and to the checkpoint's list of words if there is one
        (`openm6.decode.language`).
        """
        if lang not in LANGUAGES:
            raise ValueError(f"lang must be 'en' or 'zh', not '{lang}'")
        prompts = [self.prompt("caption", image=picture, lang=lang) for picture in self.pictures(images)]
        return like(self.beam(prompts, beams, max_tokens, [lang] * len(prompts)), images)

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
        """A description of each picture by a model trained only on texts (task `lm`), guided by `match`.

        MAGIC (2205.02655): no training is needed, and the language is that of the teller's training texts. Raises
        ValueError if this model cannot do `match`, or if the teller is not an opened model.
        """
        if not isinstance(teller, Pipeline):
            raise ValueError(f"the teller must be a model that openm6.load has opened, not {teller!r}")
        check_tokens(max_tokens)
        told = tell(self, teller, self.pictures(images), magic=magic, rows=BATCH, max_new=max_tokens)
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
        """The answer to each question about its picture. One question may go to many pictures, or many questions to
        one.
        """
        prompts = [
            self.prompt("ask", image=picture, question=question)
            for picture, question in read_questions(images, questions, self.model.config.image_size)
        ]
        return like(self.beam(prompts, beams, max_tokens), images, questions)

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
                f"the checkpoint {self.folder} cannot do match, so it cannot rank: set candidates to 1"
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
        """Each beginning, continued freely by at most `max_tokens`. The beginning is part of the output."""
        check_tokens(max_tokens)
        begin = [Beginning(text, seed + i) for i, text in enumerate(read_texts(beginnings, "a beginning"))]
        return like(continue_texts(self, begin, max_tokens=max_tokens, sampling=sampling), beginnings)

    def rank_texts(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        *,
        candidates: int = 128,
        by: By | None = None,
    ) -> np.ndarray:
        """How well texts fit each picture, (pictures, texts): `match`, with a second score for the best texts.

        `by` names the judge of each picture's best `candidates`. "captions" judges by the likelihood of the text as
        a caption. "encoders" judges by cross encoders, which a run of `openm6 train r2d2-emoji` or `r2d2-photo` has
        and the shipped model does not have. None uses all judges of the model. All other texts score -inf. Raises
        ValueError for a model without that judge.
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

    @overload
    def run(
        self,
        task: str,
        records: Mapping[str, object],
        *,
        beams: int = ...,
        max_tokens: int = ...,
        sampling: Sampling | None = ...,
        seed: int = ...,
    ) -> Any: ...
    @overload
    def run(
        self,
        task: str,
        records: Sequence[Mapping[str, object]],
        *,
        beams: int = ...,
        max_tokens: int = ...,
        sampling: Sampling | None = ...,
        seed: int = ...,
    ) -> list[Any]: ...
    def run(
        self,
        task: str,
        records: Mapping[str, object] | Sequence[Mapping[str, object]],
        *,
        beams: int = 4,
        max_tokens: int = MAX_TEXT,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Any:
        """Run any registered task (`openm6.tasks.TASKS`): returns the target of its instruction, for each record.

        A record holds the fields that the instruction reads, such as `{"image": "a.png", "lang": "zh"}`. The result
        is a text, a picture, or an embedding. `openm6.decode.any_task` describes the details and the errors.
        """
        listed = [records] if isinstance(records, Mapping) else list(records)
        made = run_task(self, task, listed, beams=beams, max_tokens=max_tokens, sampling=sampling, seed=seed)
        return like(made, records)

    # -- embeddings and measures ---------------------------------------------------------------------------

    @overload
    def reconstruct(self, images: Picture) -> Image.Image: ...
    @overload
    def reconstruct(self, images: Sequence[Picture]) -> list[Image.Image]: ...
    @torch.no_grad()
    def reconstruct(self, images: Picture | Sequence[Picture]) -> Image.Image | list[Image.Image]:
        """Pictures after a round trip through the image codes. `draw` cannot exceed this quality."""
        if self.image_tokenizer is None:
            raise ValueError(f"the checkpoint {self.folder} has no image tokenizer")
        back: list[Image.Image] = []
        pictures = self.pictures(images)
        for start in range(0, len(pictures), BATCH):
            pixels = over_white(stack_rgba(pictures[start : start + BATCH], self.model.config.image_size))
            codes = self.image_tokenizer.encode(pixels.to(self.device))
            back += [to_image(each) for each in self.image_tokenizer.decode(codes).cpu()]
        return like(back, images)

    def poem_nll(self, records: Sequence[dict[str, Any]]) -> tuple[float, int]:
        """(total nats, characters) of the records' texts given their titles. The end of each text counts."""
        return poem_nll(self, records)
