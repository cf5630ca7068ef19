"""Opens the source that a config describes. Only this file knows every kind of data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from openm6.data.config import DataConfig
from openm6.data.embedded import EmojiCorpus, PoemCorpus
from openm6.data.files import detect_kind, find_files
from openm6.data.folder import FolderReader
from openm6.data.huggingface import HuggingFaceReader, load_huggingface
from openm6.data.lines import LinesReader
from openm6.data.mixture import Mixture
from openm6.data.music.embedded import MusicCorpus
from openm6.data.music.folder import MidiReader
from openm6.data.parquet import ParquetReader
from openm6.data.reader import Reader
from openm6.data.records import Fields
from openm6.data.source import Source
from openm6.data.webdataset import WebDatasetReader


def open_reader(config: DataConfig, fields: Fields | None = None) -> Reader:
    """The reader of a config. Raises `ValueError` if the data is missing or does not fit the config.

    `fields` makes the records from rows; it replaces the config's columns and image size.
    """
    if config.kind == "corpus-emoji":
        sets = tuple(config.sets) if config.sets else None
        return _emoji(config.split or "train", config.image_size, sets)
    if config.kind == "corpus-poems":
        return PoemCorpus(config.split or "train")
    if config.kind == "corpus-music":
        return MusicCorpus(config.split or "train")
    assert config.path is not None
    kind = detect_kind(config.path) if config.kind == "auto" else config.kind
    fields = fields or Fields(config.columns, config.image_size)
    if kind == "folder":
        return FolderReader(Path(config.path, config.split or ""), fields)
    if kind == "midi":
        return MidiReader(config.path, config.split)
    if kind == "huggingface":
        return HuggingFaceReader(load_huggingface(config.path, config.split), fields, name=config.path)
    files = find_files(config.path, kind, config.split)
    if kind == "parquet":
        return ParquetReader(files, fields)
    if kind == "webdataset":
        return WebDatasetReader(files, fields)
    return LinesReader(files, kind, fields, encoding=config.encoding)


@lru_cache(maxsize=4)
def _emoji(split: str, image_size: int | None, sets: tuple[str, ...] | None) -> EmojiCorpus:
    """A run opens the same pictures for several tasks; they are decoded and held once."""
    return EmojiCorpus(split, image_size=image_size, sets=sets)


def open_source(config: DataConfig, *, seed: int, epochs: int | None = None) -> Source:
    """The records of a config as a stream: seeded, resumable, for `epochs` epochs or for ever (see `Source`).

    Raises `ValueError` like `open_reader`, and while iterating if too many records are bad.
    """
    return Source(
        open_reader(config),
        seed=seed,
        epochs=epochs,
        shuffle=config.shuffle,
        max_bad_fraction=config.max_bad_fraction,
    )


def open_mixture(configs: Sequence[DataConfig], *, seed: int, epochs: int | None = None) -> Mixture:
    """Several configs as one stream, mixed by their `weight` (see `Mixture`), each with its own seed."""
    seeds = np.random.SeedSequence(seed).generate_state(max(1, len(configs))).tolist()
    sources = [
        open_source(config, seed=own, epochs=epochs) for config, own in zip(configs, seeds, strict=False)
    ]
    return Mixture(sources, [config.weight for config in configs], seed=seed)
