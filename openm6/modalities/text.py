"""Text enters and leaves the stream as byte-level BPE tokens; special tokens name tasks and languages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS, MASK, GAP = "<pad>", "<bos>", "<eos>", "<mask>", "<gap>"
SPECIAL = (PAD, BOS, EOS, MASK, GAP)  # GAP: start of one infilled span; MASK: where a span was taken out
TASK_MARKS = ("<caption>", "<ask>", "<draw>", "<write>", "<match>", "<lm>", "<denoise>", "<style>")
LANGUAGE_MARKS = ("<en>", "<zh>")

# A Chinese character is a word of its own: merges never cross it, so that verse is counted in tokens.
_CJK = Regex(r"[\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
    """Byte-level BPE (any text can be encoded) with the special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_CJK, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *TASK_MARKS, *LANGUAGE_MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)


class TextTokenizer:
    """Text <-> token ids. A special token written in user text becomes plain characters, never the mark."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self.size = tokenizer.get_vocab_size()
        self.pad, self.bos, self.eos, self.mask, self.gap = (self.mark(name) for name in SPECIAL)
        self.encode = lru_cache(maxsize=100_000)(self._encode)

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Raises ValueError when `path` is missing or no tokenizer.json."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"cannot read the tokenizer {path}: {error}") from error

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    def mark(self, name: str) -> int:
        """Id of a special token such as `<caption>`."""
        token = self._tokenizer.token_to_id(name)
        if token is None:
            raise ValueError(f"the tokenizer has no special token {name}")
        return token

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def words(self, text: str) -> list[str]:
        """Split a text where no token may cross: into words, numbers, punctuation and Chinese characters. Each
        piece keeps the space before it."""
        pre_tokenizer = self._tokenizer.pre_tokenizer
        assert pre_tokenizer is not None, "`train_tokenizer` makes none without"
        return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each token (possibly a part of a character); none for a special token."""
        # Of the 256 bytes, those that are visible stand for themselves; the others, in order, for 256 and on.
        visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in visible]
        byte_of = {chr(byte): byte for byte in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
        special = self._tokenizer.get_added_tokens_decoder()
        tokens = [self._tokenizer.id_to_token(i) or "" for i in range(self.size)]
        return [b"" if i in special else bytes(map(byte_of.__getitem__, t)) for i, t in enumerate(tokens)]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)
