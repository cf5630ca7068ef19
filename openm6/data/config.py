"""The settings of a source of records, as a recipe writes them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal[
    "auto",
    "corpus-emoji",
    "corpus-poems",
    "corpus-music",
    "folder",
    "csv",
    "jsonl",
    "parquet",
    "webdataset",
    "huggingface",
    "midi",
]


class DataConfig(BaseModel):
    """One source of records.

    `path` is a file, a folder, or a pattern with `*`; the corpora need none. `columns` maps fields (image,
    caption_en, caption_zh, title, author, form, text, question, answer, label, or any other name) to columns.
    `split` is a split of a corpus or a Hugging Face dataset, a subfolder, or the beginning of the file names.
    `encoding` is that of CSV and JSONL files, by Python's name; by default UTF-8, UTF-16 and GB 18030 are detected.
    `sets` keeps only the pictures of these icon sets (corpus-emoji).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "auto"
    path: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    split: str | None = Field(default=None, min_length=1)
    encoding: str | None = Field(default=None, min_length=1, description="of CSV and JSONL; None = detected")
    sets: list[str] | None = Field(default=None, min_length=1)
    shuffle: bool = True
    image_size: int | None = Field(
        default=64, ge=1, le=4096, description="None keeps each picture's own size"
    )
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _path_belongs_to_kind(self) -> Self:
        embedded = self.kind.startswith("corpus-")
        if embedded and (self.path or self.columns):
            raise ValueError(f"kind {self.kind} is embedded: leave out path and columns.")
        if self.sets and self.kind != "corpus-emoji":
            raise ValueError(f"sets chooses among the icon sets of corpus-emoji; {self.kind} has none.")
        if self.kind == "midi" and self.columns:
            raise ValueError("kind midi has no columns: a record is a score and the path of its file.")
        if not embedded and not self.path:
            raise ValueError(f"kind {self.kind} needs a path to a file or a folder.")
        return self
