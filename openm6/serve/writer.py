"""Live-stream scripts: a host's words for an item of the catalogue, by a language model.

Qwen3, Qwen2 and Llama checkpoints run in M6's own stack (`openm6.model.hf`), in batches on the key-value cache.

Legend: B rows, T choices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer

from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, chances, sample_text
from openm6.decode.live import OnText
from openm6.model.hf import load_hf
from openm6.tasks.layout import Branch

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
    """An item to praise: its facts as (what, value), in the language `lang` (en, zh) of the script."""

    facts: tuple[tuple[str, str], ...]
    lang: str = "en"
    seed: int = 0


class Writer(Protocol):
    """Who writes scripts; `name` is what readers are told."""

    name: str

    def write(self, products: Sequence[Product], *, on_text: OnText) -> list[str]:
        """A script for each; `on_text` is called with its place and what there is of it."""
        ...


class QwenWriter:
    """A checkpoint folder of the Hugging Face layout: config.json, safetensors, tokenizer.json.

    Raises ValueError if the folder is not complete, or of a family that the stack does not have.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        self.model = load_hf(folder, dtype=dtype)
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"cannot read the tokenizer {folder / 'tokenizer.json'}: {error}") from error
        self.name = folder.resolve().name
        family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        self.thinks = family == "qwen3"  # unless it is told that it has thought already
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
