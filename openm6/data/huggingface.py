"""Hugging Face datasets: saved on disk, or already loaded. Needs the extra `hf`."""

# datasets and pyarrow declare no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from openm6.data.bad import BadRecord
from openm6.data.files import HUGGINGFACE_FILES
from openm6.data.reader import Indexed
from openm6.data.records import PEEKED, Fields, Record

if TYPE_CHECKING:
    import datasets


class HuggingFaceReader(Indexed):
    """Reads a `datasets.Dataset` row by row. Pictures are decoded by `read_image`, class labels become their
    names, and a record is named by its row, counted from 0.
    """

    def __init__(self, dataset: datasets.Dataset, fields: Fields, *, name: str = "dataset") -> None:
        datasets = _datasets()
        if not isinstance(dataset, datasets.Dataset):
            raise ValueError(
                f"a Hugging Face source must be one datasets.Dataset, not {type(dataset).__name__}: choose a "
                "split, and load it without streaming."
            )
        self.columns = dataset.column_names
        self.name, self.fields, self.fingerprint = name, fields, f"{_fingerprint(dataset)} {len(dataset)}"
        dataset = dataset.with_format(None)
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
        fields.check(
            self.columns, where=name, peek=lambda: dataset.select(range(min(PEEKED, len(dataset)))).to_list()
        )
        self.dataset = dataset = dataset.select_columns(fields.wanted(self.columns))
        self.labels = {
            column: feature
            for column, feature in dataset.features.items()
            if isinstance(feature, datasets.ClassLabel)
        }

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Record:
        where = f"{self.name} row {index}"
        try:
            row: dict[str, Any] = self.dataset[index]
        except UnicodeDecodeError as error:
            raise BadRecord(where, "a text in it is not UTF-8") from error
        except (OSError, pa.ArrowException) as error:
            raise BadRecord(where, f"cannot be read ({error})") from error
        for column, feature in self.labels.items():
            if row[column] is not None:
                row[column] = feature.int2str(row[column]) if row[column] >= 0 else None
        return self.fields.record(row, where=where, folder=Path())


def _fingerprint(dataset: datasets.Dataset) -> str:
    """A value that changes with the content. `datasets` offers it only under this name."""
    return dataset._fingerprint  # pyright: ignore[reportPrivateUsage]


def load_huggingface(path: str, split: str | None) -> datasets.Dataset:
    """A dataset saved by `save_to_disk`, or the one that `datasets.load_dataset` finds under this name."""
    datasets = _datasets()
    if not any((Path(path) / name).is_file() for name in HUGGINGFACE_FILES):
        return datasets.load_dataset(path, split=split or "train")
    loaded = datasets.load_from_disk(path)
    if isinstance(loaded, datasets.Dataset):
        if split is not None:
            raise ValueError(f"{path} is a single dataset without splits: leave out split.")
        return loaded
    if (split or "train") not in loaded:
        raise ValueError(f"{path} has no split {split or 'train'!r}: its splits are {list(loaded)}.")
    return loaded[split or "train"]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "reading a Hugging Face dataset needs the extra hf: pip install 'openm6[hf]'."
        ) from error
    return datasets
