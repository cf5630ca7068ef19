"""Writers of live-stream scripts, the words of a host about an item of the catalogue.

`QwenWriter`: a Qwen3, Qwen2 or Llama checkpoint in M6's own stack (`openm6.model.hf`). Its prompt has the facts.
`SlotWriter`: a small M6 trained on `openm6.serve.simulated.scripts`. Its slots get the values of the item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer

from openm6.decode.decoder import Decoder
from openm6.decode.folder import shipped_checkpoint
from openm6.decode.generate import Sampling, chances, sample_text
from openm6.decode.live import OnText, Poem, write_poems
from openm6.decode.pipeline import Pipeline
from openm6.model.device import AUTO, resolve_device
from openm6.model.hf import load_hf
from openm6.model.hf_folder import read_json
from openm6.serve.slots import SLOTS, source
from openm6.tasks.layout import Branch
from openm6.tasks.task import language_of

MAX_TOKENS = 220
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.8)  # as Qwen3's model card advises without thinking
TURN, END = "<|im_start|>", "<|im_end|>"  # ChatML, which Qwen speaks
ASK = {
    "en": "You are the host of a live shopping stream. Say three or four lively sentences that make viewers want "
    "this item. Use no facts but these, and invent none.\n{facts}",
    "zh": "你是直播间的主播。请用三四句生动的口语介绍这件商品，让观众想要它。只用下面的事实，不要编造。\n{facts}",
}


@dataclass(frozen=True)
class Product:
    """An item to praise.

    Its facts are (column, value), in the language `lang` (en, zh) of the script. `category` is the catalogue's
    word, in any language. `yuan`: its price is in yuan.
    """

    facts: tuple[tuple[str, str], ...]
    category: str = ""
    lang: str = "en"
    seed: int = 0
    yuan: bool = False


class Writer(Protocol):
    """The interface of writers of scripts. Readers see its `name`."""

    name: str

    def write(self, products: Sequence[Product], *, on_text: OnText) -> list[str]:
        """A script for each product. `on_text` is called with its place in the list and the text so far."""
        ...


class QwenWriter:
    """A checkpoint folder in the Hugging Face layout: config.json, safetensors, tokenizer.json.

    Raises ValueError if the folder is not complete, or if the stack does not support its family.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, device: str = AUTO) -> None:
        where = resolve_device(device)
        self.model = load_hf(folder, dtype=dtype).to(where)
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"cannot read the tokenizer {folder / 'tokenizer.json'}: {error}") from error
        self.name = folder.resolve().name
        # Qwen3 thinks first, unless its prompt has a thought already.
        self.thinks = read_json(folder / "config.json")["model_type"] == "qwen3"
        self.chats = self.tokenizer.token_to_id(END) is not None
        ends = (self.tokenizer.token_to_id(each) for each in (END, "<|endoftext|>", "</s>", "<|eot_id|>"))
        self.eos = next((each for each in ends if each is not None), -1)

    @torch.no_grad()
    def write(self, products: Sequence[Product], *, on_text: OnText) -> list[str]:
        prompts = [Branch("lm", None, self._prompt(each), (), "text") for each in products]
        decoder = Decoder(self.model, prompts, None, max_new=MAX_TOKENS, causal=True)
        rows = sample_text(
            decoder,
            eos=self.eos,
            sampling=SAMPLING,
            chance_BT=chances([(each.seed,) for each in products], MAX_TOKENS),
            on_tokens=lambda row, tokens: on_text(row, self._text(tokens)),
        )
        return [self._text(tokens) for tokens in rows]

    def _prompt(self, product: Product) -> tuple[int, ...]:
        facts = "\n".join(f"{what}: {value}" for what, value in product.facts)
        text = ASK[product.lang].format(facts=facts.replace("<|", "< |"))  # no turn of its own for a fact
        if self.chats:
            thought = "<think>\n\n</think>\n\n" if self.thinks else ""
            text = f"{TURN}user\n{text}{END}\n{TURN}assistant\n{thought}"
        return tuple(self.tokenizer.encode(text, add_special_tokens=not self.chats).ids)

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip().rstrip("\ufffd")


class SlotWriter:
    """A checkpoint or run folder of `openm6/configs/script.yaml`. Raises ValueError for any other folder."""

    def __init__(self, folder: Path, *, device: str = AUTO) -> None:
        self.m6 = Pipeline(folder, device=device)
        self.name = f"{folder.resolve().name}, a small M6 trained on scripts made from attributes"

    def write(self, products: Sequence[Product], *, on_text: OnText) -> list[str]:
        # Its sentences say yuan: a price in another currency would be a wrong one.
        values = [
            {what: value for what, value in each.facts if what != "price" or each.yuan} for each in products
        ]
        titles = [
            source(each.lang, each.category, tuple(slot for slot in SLOTS if slot in facts))
            for each, facts in zip(products, values, strict=True)
        ]
        texts = write_poems(
            self.m6,
            [Poem(title, seed=each.seed) for title, each in zip(titles, products, strict=True)],
            on_text=lambda i, text: on_text(i, fill(text, values[i])),
        )
        return [fill(text, facts) for text, facts in zip(texts, values, strict=True)]


def fill(text: str, values: Mapping[str, str]) -> str:
    """A script with values in its slots.

    A sentence with a slot that has no value is left out, and so is a slot at the end that is still being written.
    """
    text = re.sub(r"\[[^\]]*$", "", text)
    sentences = re.split(r"(?<=[.!?。！？]) ?", text)
    kept = [each for each in sentences if set(re.findall(r"\[(\w+)\]", each)) <= values.keys()]
    joined = ("" if language_of(text) == "zh" else " ").join(kept)
    return re.sub(r"\[(\w+)\]", lambda slot: values[slot[1]], joined).strip()


def open_writer(folder: Path, *, device: str = AUTO) -> Writer:
    """The writer of a folder with a Hugging Face checkpoint, or with a run of `openm6/configs/script.yaml`.

    It computes on `device` (see `openm6.load`). Raises ValueError for any other folder, and for a device that this
    machine does not have.
    """
    if (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json"):
        return QwenWriter(folder, device=device)
    return SlotWriter(folder, device=device)


def shipped_writer(*, device: str = AUTO) -> Writer | None:
    """The small writer that comes with the package, on `device`; None if it is not installed."""
    folder = shipped_checkpoint().with_name("m6-script")
    return SlotWriter(folder, device=device) if folder.is_dir() else None
