"""Keeps a caption in its language, with a mask over the next tokens.

English uses Latin letters. Chinese text may not contain words in small Latin letters. A checkpoint may list words
(`words.json`: {"en": [...], "zh": [...]}). Then Latin letters may spell only these words. Tokens are parts of
words, so without a list a model may join parts that form no word. The shipped model lists the words of its training
data:

    python -m openm6.decode.language openm6/checkpoints/m6-small

Legend: V tokens that may be chosen.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openm6.modalities.text import TextTokenizer

WORDS_FILE = "words.json"
LANGUAGES = ("en", "zh")
# One word, in UTF-8. In English each byte of an accented letter or of a typographic mark counts; in Chinese only
# Latin letters make words.
WORD = {"en": re.compile(rb"[A-Za-z\x80-\xff]+"), "zh": re.compile(rb"[A-Za-z]+")}
# A token of other bytes is never used. English: ASCII, Latin letters with accents, typographic marks.
BYTES = {"en": re.compile(rb"[\x20-\x7e\x80-\xbf\xc2-\xc5\xe2]+"), "zh": re.compile(rb"[\x20-\xff]+")}
SMALL_LETTER = re.compile(rb"[a-z]")


class Language:
    """The tokens that keep a text in one language. `words`: the only allowed words; None = any."""

    def __init__(self, tokenizer: TextTokenizer, lang: str, words: Iterable[str] | None, *, vocab: int):
        """`vocab`: V, at least the size of the tokenizer's vocabulary."""
        self.eos, self.vocab, self.texts = tokenizer.eos, vocab, tokenizer.token_bytes
        self.word = WORD[lang]
        self.words = None if words is None else frozenset(word.encode() for word in words)
        self._sorted = sorted(self.words or ())
        self._masks: dict[bytes, Tensor] = {}
        self._inside: dict[bytes, list[int]] = defaultdict(
            list
        )  # tokens that are part of a word, by their bytes
        self._outside: dict[bytes, list[int]] = defaultdict(
            list
        )  # the others, by the letters that they begin with
        for token, text in enumerate(self.texts):
            if not BYTES[lang].fullmatch(text):
                continue
            if self.words is None:
                if lang == "en" or not SMALL_LETTER.search(text):
                    self._outside[b""].append(token)
            elif self.word.fullmatch(text):
                self._inside[text].append(token)
            else:
                found = list(self.word.finditer(text))
                first = found.pop(0)[0] if found and found[0].start() == 0 else b""
                last = found.pop()[0] if found and found[-1].end() == len(text) else b""
                if all(each[0] in self.words for each in found) and next(self._beginning_with(last), None):
                    self._outside[first].append(token)

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        """Which tokens may follow these, (V) bool. The end is allowed unless a word is unfinished or the text is
        empty.
        """
        begun = self._begun(tokens)
        mask = self._masks.get(begun)
        if mask is None:
            mask = self._masks[begun] = self._mask(begun)
        if not any(self.texts[token].strip() for token in tokens):
            mask = mask.clone()
            mask[self.eos] = False
        return mask

    def finished(self, tokens: Sequence[int]) -> list[int]:
        """The tokens without an unfinished word at their end, which a limit of length may have left."""
        kept = list(tokens)
        while kept and not self._is_whole(self._begun(kept)):
            kept.pop()
        return kept

    def _begun(self, tokens: Sequence[int]) -> bytes:
        """The letters of the word at the end of these tokens."""
        begun = b""
        if self.words is None:
            return begun
        for token in reversed(tokens):
            text = self.texts[token]
            found = list(self.word.finditer(text))
            if not found or found[-1].end() < len(text):
                break
            begun = found[-1][0] + begun
            if found[-1].start() > 0:
                break
        return begun

    def _mask(self, begun: bytes) -> Tensor:
        may = [
            token for first, them in self._outside.items() if self._is_whole(begun + first) for token in them
        ]
        for word in self._beginning_with(begun):
            for end in range(len(begun) + 1, len(word) + 1):
                may.extend(self._inside.get(word[len(begun) : end], ()))
        if self._is_whole(begun):
            may.append(self.eos)
        mask = torch.zeros(self.vocab, dtype=torch.bool)
        mask[may] = True
        return mask

    def _is_whole(self, letters: bytes) -> bool:
        return not letters or (self.words is not None and letters in self.words)

    def _beginning_with(self, letters: bytes) -> Iterator[bytes]:
        for at in range(bisect_left(self._sorted, letters), len(self._sorted)):
            if not self._sorted[at].startswith(letters):
                return
            yield self._sorted[at]


def read_words(folder: Path) -> dict[str, list[str]]:
    """The lists of words of a checkpoint, by language; empty if it has none. Raises
    ValueError for a broken file.
    """
    path = folder / WORDS_FILE
    if not path.is_file():
        return {}
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    fits = isinstance(lists, dict) and all(
        lang in LANGUAGES and isinstance(words, list) and all(isinstance(word, str) for word in words)
        for lang, words in lists.items()
    )
    if not fits:
        raise ValueError(
            f'{path} must hold lists of words by language, as {{"en": ["apple"], "zh": ["DVD"]}}'
        )
    return lists


def words_of(texts: Iterable[str], lang: str) -> list[str]:
    """The words of texts, each once, in alphabetical order."""
    return sorted({match[0].decode() for text in texts for match in WORD[lang].finditer(text.encode())})


def write_words(folder: Path) -> None:
    """Give the words of the embedded corpus's training split to a checkpoint that was trained on it."""
    from openm6.data.corpus import load_emoji

    rows = [row for row in load_emoji().drop_columns(["image"]).to_pylist() if row["split"] == "train"]
    lists = {}
    for lang in LANGUAGES:
        singles = [str(row[f"{field}_{lang}"]) for row in rows for field in ("name", "group", "colour")]
        keywords = [word for row in rows for word in row[f"keywords_{lang}"] or ()]
        lists[lang] = words_of((*singles, *keywords), lang)
    text = json.dumps(lists, ensure_ascii=False, indent=0)
    (folder / WORDS_FILE).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_words(Path(sys.argv[1]))
