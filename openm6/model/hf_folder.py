"""The one reader of Hugging Face folders: config.json, and safetensors opened tensor by tensor.

    config = read_config(folder)
    checkpoint = Checkpoint(folder)                     # headers alone are read
    checkpoint.read("model.norm.weight", out)           # copies a tensor into `out`
    checkpoint.rows("model.embed_tokens.weight", ids)   # some rows of a matrix

The format is a header in JSON, then the tensors' bytes, so plain reads do. A memory map, which
`safetensors.safe_open` gives, would count towards the resident memory of the process as it is read; `safe_open`
checks each header here.
This file does not interpret the tensors.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openm6.model.typed import unique, whole_numbers

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
CHUNK_BYTES = 16 << 20  # scratch memory of a read that changes the dtype
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint: shape, dtype, and where its bytes begin."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Checkpoint:
    """The tensors of a folder with model.safetensors, or with shards and model.safetensors.index.json.

    `specs` has an entry for every tensor, by name. Opening reads nothing but headers.

    Raises ValueError, on opening, if a file is missing, damaged or not what the index says, and if the
    folder has pickled weights alone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.specs: dict[str, Entry] = {}
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        self.listing = index if index.is_file() and not single.is_file() else single
        if self.listing == index:
            weight_map = object_of(read_json(index).get("weight_map"))
            if weight_map is None or not all(isinstance(v, str) for v in weight_map.values()):
                raise ValueError(f"{index} has no weight_map of tensors to files")
            for file in sorted({self.folder / Path(name).name for name in weight_map.values()}):
                self._open(file)
            for name, file_name in weight_map.items():
                if name not in self.specs or self.specs[name].file.name != Path(file_name).name:
                    raise ValueError(
                        f"{self.folder / file_name} has no tensor {name}, though {INDEX} says so"
                    )
        else:
            self._open(single)

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.specs[name].file

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())

    def tensor(self, name: str) -> Tensor:
        """A tensor in its own dtype, in memory of its own."""
        out = torch.empty(self.specs[name].shape, dtype=self.specs[name].dtype)
        self.read(name, out)
        return out

    @torch.no_grad()
    def read(self, name: str, out: Tensor) -> None:
        """Copy a tensor into `out`: contiguous, of the tensor's shape, of any dtype.

        Raises ValueError if the shapes differ, or the file has become shorter.
        """
        self.check_shape(name, tuple(out.shape))
        spec = self.specs[name]
        flat = out.detach().view(-1)
        with spec.file.open("rb") as opened:
            if out.dtype == spec.dtype:
                self._fill(opened, spec.offset, flat)
                return
            step = CHUNK_BYTES // spec.dtype.itemsize
            scratch = torch.empty(min(step, spec.numel), dtype=spec.dtype)
            for first in range(0, spec.numel, step):
                piece = scratch[: min(step, spec.numel - first)]
                self._fill(opened, spec.offset + first * spec.dtype.itemsize, piece)
                flat[first : first + len(piece)].copy_(piece)

    @torch.no_grad()
    def rows(self, name: str, rows_N: Tensor) -> Tensor:
        """Rows of a matrix: (V, D) and N indices give (N, D), in the tensor's dtype. Each is read once."""
        spec = self.specs[name]
        assert len(spec.shape) == 2
        found, inverse_N = unique(rows_N)
        rows = torch.empty(len(found), spec.shape[1], dtype=spec.dtype)
        with spec.file.open("rb") as opened:
            for row, index in zip(rows, whole_numbers(found), strict=True):
                if not 0 <= index < spec.shape[0]:
                    raise ValueError(
                        f"{name} in {spec.file} has {spec.shape[0]} rows: there is no row {index}"
                    )
                self._fill(opened, spec.offset + index * row.nbytes, row)
        return rows[inverse_N]

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same bytes; a piece of each is in memory at a time."""
        one, two = self.specs[name], self.specs[other]
        if (one.shape, one.dtype) != (two.shape, two.dtype):
            return False
        with one.file.open("rb") as a, two.file.open("rb") as b:
            a.seek(one.offset)
            b.seek(two.offset)
            for first in range(0, one.nbytes, CHUNK_BYTES):
                count = min(CHUNK_BYTES, one.nbytes - first)
                if a.read(count) != b.read(count):
                    return False
        return True

    def check_shape(self, name: str, want: tuple[int, ...]) -> None:
        if (have := self.specs[name].shape) != want:
            raise ValueError(
                f"{self.file(name)}: the tensor {name} is {have}, but the configuration asks for {want}"
            )

    @staticmethod
    def _fill(opened: BinaryIO, start: int, flat: Tensor) -> None:
        view, done = memoryview(flat.view(torch.uint8).numpy()), 0  # pyright: ignore[reportArgumentType]
        while done < len(view):
            count = os.preadv(opened.fileno(), [view[done : done + (1 << 30)]], start + done)
            if count == 0:
                raise ValueError(f"{opened.name} has become shorter since it was opened")
            done += count

    def _open(self, file: Path) -> None:
        if not file.is_file():
            pickled = sorted(self.folder.glob("*.bin")) + sorted(self.folder.glob("*.pt*"))
            if pickled:
                raise ValueError(
                    f"{pickled[0]} is a pickle, which is not opened since it can run code; convert it where "
                    "you trust it: AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
                )
            raise ValueError(f"{self.folder} has no {file.name}")
        try:
            with safe_open(str(file), framework="pt"):
                pass  # checks that the header fits itself and the file's length
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise ValueError(
                    f"{file}: the tensor {name} is {entry['dtype']}; quantised weights are not opened"
                )
            if name in self.specs:
                raise ValueError(f"the tensor {name} is in both {self.file(name)} and {file}")
            start = 8 + length + entry["data_offsets"][0]
            self.specs[name] = Entry(tuple(entry["shape"]), DTYPES[entry["dtype"]], file, start)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of config.json.

    Raises ValueError if there is none, and if it says that the weights are quantized.
    """
    path = Path(folder) / CONFIG
    config = read_json(path)
    nested = [found for value in config.values() if (found := object_of(value)) is not None]
    for each in (config, *nested):
        for key in ("quantization_config", "compression_config"):
            if not (found := each.get(key)):
                continue
            described = object_of(found)
            method = found if described is None else described.get("quant_method", "unnamed")
            raise ValueError(
                f"{key} in {path} says that the weights are quantized ({method}), which are not opened: load them "
                "with transformers, dequantize them (model.dequantize()), and save them in bfloat16"
            )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a Hugging Face folder; ValueError if there is none."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} is not a Hugging Face folder: it has no {path.name}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if (found := object_of(content)) is None:
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return found


def object_of(value: Any) -> dict[str, Any] | None:
    """`value` if it is a JSON object, else None."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]
