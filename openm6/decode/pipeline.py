"""`openm6.load()`: a trained M6 with its tokenizers, one method a task.

    m6 = openm6.load()
    m6.caption("photo.png")                      # "red apple"
    m6.caption(["a.png", "b.png"], lang="zh")    # a list in, a list out
    m6.ask("photo.png", "what colour is it?")
    m6.draw("red apple").save("apple.png")
    m6.write("春望", form="五绝")
    m6.match(["a.png", "b.png"], ["red apple", "dog face"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.data.images import read_image, to_array
from openm6.decode.decoder import Decoder, prompt_stream
from openm6.decode.generate import Sampling, beam_search, sample_cells, sample_text
from openm6.model.checkpoint import load_model
from openm6.model.stream import attention_bias
from openm6.modalities.cells import to_raster
from openm6.modalities.codes import ImageTokenizer
from openm6.modalities.text import TextTokenizer
from openm6.tasks import TASKS
from openm6.tasks.collate import collate
from openm6.tasks.draw import ANY_STYLE
from openm6.tasks.layout import Branch
from openm6.tasks.write import ANY_FORM, title_line

Picture = str | Path | Image.Image | np.ndarray
Item = TypeVar("Item")
BATCH = 64  # rows decoded at a time: bounds memory, and more is no faster on a CPU
MAX_TEXT = 40  # tokens of a caption or an answer


def shipped_checkpoint() -> Path:
    """The folder of the checkpoint that comes with the package."""
    return Path(__file__).parent.parent / "checkpoints" / "m6-small"


class Pipeline:
    """A model ready to use. Every method takes one input or a list, and gives one output or a list."""

    def __init__(self, folder: str | Path | None = None):
        """`folder`: a checkpoint folder or a run folder; None = the shipped model. ValueError if it is neither."""
        path = shipped_checkpoint() if folder is None else Path(folder)
        if (path / "model").is_dir() and not (path / "config.json").is_file():
            path = path / "model"
        self.folder = path
        self.model = load_model(path)
        self.tokenizer = TextTokenizer.load(path / "tokenizer.json")
        self.image_tokenizer = (
            ImageTokenizer.load(path).eval() if (path / "image_tokenizer.json").is_file() else None
        )

    # -- one method a task ---------------------------------------------------------------------------------------

    @overload
    def caption(self, images: Picture, *, lang: str = "en", beams: int = 4) -> str: ...
    @overload
    def caption(self, images: Sequence[Picture], *, lang: str = "en", beams: int = 4) -> list[str]: ...
    def caption(self, images: Picture | Sequence[Picture], *, lang: str = "en", beams: int = 4) -> str | list[str]:
        """What each picture shows, in English (`en`) or Chinese (`zh`)."""
        if lang not in ("en", "zh"):
            raise ValueError(f"lang must be 'en' or 'zh', not '{lang}'")
        pictures = _as_list(images)
        prompts = [self._prompt("caption", image=self._read(picture), lang=lang) for picture in pictures]
        return _like(images, self._beam(prompts, beams))

    @overload
    def ask(self, images: Picture, questions: str, *, beams: int = 1) -> str: ...
    @overload
    def ask(self, images: Sequence[Picture], questions: Sequence[str], *, beams: int = 1) -> list[str]: ...
    def ask(
        self, images: Picture | Sequence[Picture], questions: str | Sequence[str], *, beams: int = 1
    ) -> str | list[str]:
        """The answer to each question about each picture; one question may go to many pictures."""
        pictures = _as_list(images)
        asked = [questions] * len(pictures) if isinstance(questions, str) else list(questions)
        if len(asked) != len(pictures):
            raise ValueError(f"ask got {len(pictures)} pictures and {len(asked)} questions; give one for each")
        prompts = [
            self._prompt("ask", image=self._read(picture), question=_text(question, "a question"))
            for picture, question in zip(pictures, asked, strict=True)
        ]
        return _like(images, self._beam(prompts, beams))

    @overload
    def draw(self, texts: str, *, candidates: int = ..., seed: int = ..., style: str | None = ...,
             sampling: Sampling = ...) -> Image.Image: ...
    @overload
    def draw(self, texts: Sequence[str], *, candidates: int = ..., seed: int = ..., style: str | None = ...,
             sampling: Sampling = ...) -> list[Image.Image]: ...
    def draw(
        self,
        texts: str | Sequence[str],
        *,
        candidates: int = 16,
        seed: int = 0,
        style: str | None = None,
        sampling: Sampling = Sampling(temperature=1.0, top_p=0.95, guidance=2.0),  # noqa: B008 (immutable)
    ) -> Image.Image | list[Image.Image]:
        """A picture for each text: the best of `candidates` samples by `match`."""
        if self.image_tokenizer is None or not self.model.config.cells:
            raise ValueError(f"the checkpoint {self.folder} does not draw: it was trained without an image tokenizer")
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, not {candidates}")
        generator = torch.Generator().manual_seed(seed)
        drawings = []
        for text in _as_list(texts):
            text = _text(text, "a text to draw")
            pixels = self._draw_candidates(text, candidates, style or ANY_STYLE, sampling, generator)
            best = int(self._match_pixels(pixels, text).argmax()) if candidates > 1 else 0
            drawings.append(_to_image(pixels[best]))
        return _like(texts, drawings)

    @overload
    def write(self, titles: str, *, author: str | None = ..., form: str | None = ..., seed: int = ...,
              sampling: Sampling = ...) -> str: ...
    @overload
    def write(self, titles: Sequence[str], *, author: str | None = ..., form: str | None | Sequence[str] = ...,
              seed: int = ..., sampling: Sampling = ...) -> list[str]: ...
    def write(
        self,
        titles: str | Sequence[str],
        *,
        author: str | None = None,
        form: str | None | Sequence[str] = None,
        seed: int = 0,
        sampling: Sampling = Sampling(temperature=0.8, top_p=0.9),  # noqa: B008 (immutable)
    ) -> str | list[str]:
        """A poem for each title, in a form such as 五绝, 七绝, 五律, 七律 (None = any), in an author's manner."""
        listed = [_text(title, "a title") for title in _as_list(titles)]
        forms = [form] * len(listed) if form is None or isinstance(form, str) else list(form)
        if len(forms) != len(listed):
            raise ValueError(f"write got {len(listed)} titles and {len(forms)} forms; give one for each, or one")
        prompts = [
            self._prompt("write", title=title_line(title, author), form=each or ANY_FORM)
            for title, each in zip(listed, forms, strict=True)
        ]
        return _like(titles, self._sample(prompts, 160, sampling, seed))

    def continue_text(
        self,
        beginnings: str | Sequence[str],
        *,
        max_tokens: int = 100,
        seed: int = 0,
        sampling: Sampling = Sampling(temperature=0.8, top_p=0.9),  # noqa: B008 (immutable)
    ) -> str | list[str]:
        """Each beginning, continued freely (the beginning is part of the output)."""
        listed = [_text(text, "a beginning") for text in _as_list(beginnings)]
        begin = [self.tokenizer.encode(text) for text in listed]
        prompts = [self._prompt("lm") for _ in listed]
        return _like(beginnings, self._sample(prompts, max_tokens, sampling, seed, begin=begin))

    def match(self, images: Picture | Sequence[Picture], texts: str | Sequence[str]) -> np.ndarray:
        """Cosine of every picture with every text, (pictures, texts); higher fits better."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    # -- what the tasks are made of ------------------------------------------------------------------------------

    def embed_images(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """Unit match embeddings of pictures, (n, match_dim)."""
        pictures = [self._read(picture) for picture in _as_list(images)]
        return self._embed([self._prompt("match", image=picture) for picture in pictures]).numpy()

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit match embeddings of texts, (n, match_dim)."""
        return self._embed([self._prompt("match", 1, text=_text(text, "a text")) for text in _as_list(texts)]).numpy()

    @torch.no_grad()
    def reconstruct(self, images: Picture | Sequence[Picture]) -> Image.Image | list[Image.Image]:
        """Pictures after a round trip through the image codes: the most that `draw` could reach."""
        if self.image_tokenizer is None:
            raise ValueError(f"the checkpoint {self.folder} has no image tokenizer")
        back = []
        for chunk in _chunks([self._read(picture) for picture in _as_list(images)], BATCH):
            pixels = over_white(stack_rgba(chunk, self.model.config.image_size))
            back.extend(_to_image(each) for each in self.image_tokenizer.decode(self.image_tokenizer.encode(pixels)))
        return _like(images, back)

    @torch.no_grad()
    def poem_nll(self, records: Sequence[dict[str, Any]]) -> tuple[float, int]:
        """(total nats, characters) of the records' texts given their titles, the end of the text included."""
        branches = [
            TASKS["write"].layouts[0].branch(
                "write", {"title": record["title"], "form": ANY_FORM, "text": record["text"]}, self.tokenizer
            )
            for record in records
        ]
        config, nats = self.model.config, 0.0
        for chunk in _chunks(branches, BATCH):
            row = max(len(branch.source) + len(branch.target) for branch in chunk)
            batch, _ = collate(
                [[branch] for branch in chunk],
                row=row,
                image_tokens=config.image_tokens,
                pad=self.tokenizer.pad,
            )
            logits = self.model.text_logits(self.model(batch.stream).flatten(0, 1)[batch.text_at])
            nats += F.cross_entropy(logits.float(), batch.text_target, reduction="sum").item()
        return nats, sum(len(str(record["text"])) for record in records)

    def _read(self, picture: Picture) -> np.ndarray:
        size = self.model.config.image_size
        if isinstance(picture, (str, Path)):
            return read_image(picture, size=size)
        return to_array(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture, size=size)

    def _prompt(self, task: str, layout: int = 0, **fields: object) -> Branch:
        return TASKS[task].layouts[layout].branch(task, fields, self.tokenizer)

    def _pixels(self, prompts: Sequence[Branch]) -> Tensor | None:
        images = [prompt.image for prompt in prompts if prompt.image is not None]
        return normalise(over_white(stack_rgba(images, self.model.config.image_size))) if images else None

    @torch.no_grad()
    def _beam(self, prompts: list[Branch], beams: int) -> list[str]:
        outputs = []
        for chunk in _chunks(prompts, max(1, BATCH // beams)):
            decoder = Decoder(self.model, chunk, self._pixels(chunk), max_new=MAX_TEXT)
            outputs.extend(beam_search(decoder, beams=beams, eos=self.tokenizer.eos, max_new=MAX_TEXT))
        return [self.tokenizer.decode(tokens) for tokens in outputs]

    @torch.no_grad()
    def _sample(
        self,
        prompts: list[Branch],
        max_new: int,
        sampling: Sampling,
        seed: int,
        begin: list[tuple[int, ...]] | None = None,
    ) -> list[str]:
        generator, outputs = torch.Generator().manual_seed(seed), []
        begins = begin or [()] * len(prompts)
        for chunk, starts in zip(_chunks(prompts, BATCH), _chunks(begins, BATCH), strict=True):
            limit = max_new + max(len(start) for start in starts)
            decoder = Decoder(self.model, chunk, self._pixels(chunk), max_new=limit)
            outputs += sample_text(
                decoder, eos=self.tokenizer.eos, max_new=limit, sampling=sampling, generator=generator, begin=starts
            )
        return [self.tokenizer.decode(tokens) for tokens in outputs]

    @torch.no_grad()
    def _draw_candidates(
        self, text: str, candidates: int, style: str, sampling: Sampling, generator: torch.Generator
    ) -> Tensor:
        assert self.image_tokenizer is not None
        prompt, wordless = self._prompt("draw", text=text, style=style), self._prompt("draw", text="", style=style)
        pixels = []
        for count in (len(chunk) for chunk in _chunks(list(range(candidates)), BATCH)):
            prompts = [prompt] * count + ([wordless] * count if sampling.guidance != 1 else [])
            length = self.model.config.cells
            decoder = Decoder(self.model, prompts, None, max_new=length)
            cells_NLK = sample_cells(decoder, cells=length, sampling=sampling, generator=generator)
            pixels.append(self.image_tokenizer.decode(to_raster(cells_NLK)))
        return torch.cat(pixels)

    def _match_pixels(self, pixels_NCSS: Tensor, text: str) -> Tensor:
        pictures = [self._prompt("match", image=np.asarray(_to_image(each))) for each in pixels_NCSS]
        return self._embed(pictures) @ self._embed([self._prompt("match", 1, text=text)])[0]

    @torch.no_grad()
    def _embed(self, prompts: Sequence[Branch]) -> Tensor:
        embeddings = []
        for chunk in _chunks(prompts, 4 * BATCH):
            stream, length_B = prompt_stream(
                chunk, self._pixels(chunk), image_tokens=self.model.config.image_tokens
            )
            who = (stream.example_BT, stream.branch_BT, stream.order_BT)
            hidden = self.model.run_layers(
                self.model.embed_stream(stream), stream.positions_BT, attention_bias(who, who)
            )
            embeddings.append(self.model.match_embedding(hidden[torch.arange(len(chunk)), length_B - 1]))
        return torch.cat(embeddings)


def load(path: str | Path | None = None) -> Pipeline:
    """Open a checkpoint folder or a run folder; None opens the model that is shipped with the package.

    Raises ValueError with one sentence when the folder is not one or a file in it is damaged.
    """
    return Pipeline(path)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be text that says something, not {value!r}")
    return value


def _as_list(value: object) -> list[Any]:
    """A list of what was given; an array of one picture or a single text is one item."""
    if isinstance(value, np.ndarray) and value.ndim == 4:
        return list(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _like(given: object, outputs: list[Item]) -> Any:
    several = isinstance(given, (list, tuple)) or (isinstance(given, np.ndarray) and given.ndim == 4)
    return outputs if several else outputs[0]


def _chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _to_image(pixels_CSS: Tensor) -> Image.Image:
    array = (pixels_CSS.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(cast(np.ndarray, array.numpy()))
