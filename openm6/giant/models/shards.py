"""Safetensors folders that never have to fit in memory: opened tensor by tensor, written shard by shard.

`Checkpoint`   reads: the headers at once, a tensor's bytes when they are asked for, straight to where they
               shall lie (`read`), or some rows of a matrix (`rows`)
`ShardWriter`  writes: every tensor has its place in its file beforehand, so tensors may come one at a time

The format is a header in JSON, then the tensors' bytes, so both use plain reads and writes. A memory map,
as `safetensors.safe_open` hands out, would count towards the resident memory of the process as it is read;
`safe_open` checks each header here. Nothing in this file knows what the tensors are for.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openm6.data.atomic import replacing
from openm6.giant.tiers.parts import TensorSpec, raw_bytes
from openm6.model.hf import INDEX, WEIGHTS, read_json

SHARD_BYTES = 2 << 30
_CHUNK_BYTES = 16 << 20  # scratch memory of a read or write that changes the dtype
_DTYPES = {
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
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Checkpoint:
    """The tensors of a folder with model.safetensors, or with shards and model.safetensors.index.json.

    `specs` has every tensor's name, shape and dtype; `file(name)` is where it lies. Opening reads nothing but
    headers.

    Raises ValueError, on opening, if a file is missing, damaged or not what the index says, and if the
    folder has pickled weights alone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.specs: dict[str, TensorSpec] = {}
        self._at: dict[str, tuple[Path, int]] = {}
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        self.listing = index if index.is_file() and not single.is_file() else single
        if self.listing == index:
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
                raise ValueError(f"{index} has no weight_map of tensors to files")
            for file in sorted({self.folder / Path(name).name for name in weight_map.values()}):
                self._open(file)
            for name, file_name in weight_map.items():
                if name not in self._at or self._at[name][0].name != Path(file_name).name:
                    raise ValueError(
                        f"{self.folder / file_name} has no tensor {name}, though {INDEX} says so"
                    )
        else:
            self._open(single)

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._at[name][0]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())

    @torch.no_grad()
    def read(self, name: str, out: Tensor) -> None:
        """Copy a tensor into `out`: contiguous, of the tensor's shape, of any dtype.

        Raises ValueError if the shapes differ, or the file has become shorter.
        """
        self.check_shape(name, tuple(out.shape))
        spec, (file, start) = self.specs[name], self._at[name]
        flat = out.detach().view(-1)
        with file.open("rb") as opened:
            if out.dtype == spec.dtype:
                self._fill(opened, start, flat)
                return
            step = _CHUNK_BYTES // spec.dtype.itemsize
            scratch = torch.empty(min(step, spec.numel), dtype=spec.dtype)
            for first in range(0, spec.numel, step):
                piece = scratch[: min(step, spec.numel - first)]
                self._fill(opened, start + first * spec.dtype.itemsize, piece)
                flat[first : first + len(piece)].copy_(piece)

    @torch.no_grad()
    def rows(self, name: str, rows_N: Tensor) -> Tensor:
        """Rows of a matrix: (V, D) and N indices give (N, D), in the tensor's dtype. Each is read once."""
        spec, (file, start) = self.specs[name], self._at[name]
        assert len(spec.shape) == 2
        unique, inverse_N = rows_N.unique(return_inverse=True)
        rows = torch.empty(len(unique), spec.shape[1], dtype=spec.dtype)
        with file.open("rb") as opened:
            for row, index in zip(rows, unique.tolist(), strict=True):
                if not 0 <= index < spec.shape[0]:
                    raise ValueError(f"{name} in {file} has {spec.shape[0]} rows: there is no row {index}")
                self._fill(opened, start + index * row.nbytes, row)
        return rows[inverse_N]

    def check_shape(self, name: str, want: tuple[int, ...]) -> None:
        if (have := self.specs[name].shape) != want:
            raise ValueError(
                f"{self.file(name)}: the tensor {name} is {have}, but the configuration asks for {want}"
            )

    @staticmethod
    def _fill(opened: BinaryIO, start: int, flat: Tensor) -> None:
        view, done = raw_bytes(flat), 0
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
                    "you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
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
            if entry["dtype"] not in _DTYPES:
                raise ValueError(
                    f"{file}: the tensor {name} is {entry['dtype']}; quantised weights are not opened"
                )
            if name in self._at:
                raise ValueError(f"the tensor {name} is in both {self.file(name)} and {file}")
            self.specs[name] = TensorSpec(name, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            self._at[name] = (file, 8 + length + entry["data_offsets"][0])


class ShardWriter:
    """Writes tensors of known names, shapes and dtypes to a folder, in shards of at most `shard_bytes`.

        with ShardWriter(folder, specs) as writer:
            for name, tensor in ...:          # in any order, one at a time
                writer.write(name, tensor)

    One shard is model.safetensors; several have an index. Files get their names when all is written and on
    the disk: before that, an error or a kill leaves what was there (and files ending in .partial). Weights
    of an earlier save in the same folder are replaced; a kill in the midst of the renaming leaves a folder
    without an index, which is refused, not misread.

    Raises ValueError, before anything is written, if the disk has not the space.
    """

    def __init__(
        self, folder: str | Path, specs: Sequence[TensorSpec], *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._specs = {spec.name: spec for spec in specs}
        assert len(self._specs) == len(specs), "a name twice"
        shards = _plan(specs, shard_bytes)
        self._files = [
            WEIGHTS if len(shards) == 1 else f"model-{shard:05d}-of-{len(shards):05d}.safetensors"
            for shard in range(1, len(shards) + 1)
        ]
        self._at: dict[str, tuple[str, int]] = {}  # file name, offset of the bytes
        headers = [self._place(file, shard) for file, shard in zip(self._files, shards, strict=True)]
        self.nbytes = sum(map(len, headers)) + sum(spec.nbytes for spec in specs)
        if (free := shutil.disk_usage(self.folder).free) < self.nbytes:
            raise ValueError(
                f"{self.folder}: saving takes {self.nbytes / 1e9:.1f} GB, "
                f"but the disk has {free / 1e9:.1f} GB free"
            )
        self._open: dict[str, BinaryIO] = {}
        self._missing = {spec.name: spec.numel for spec in specs}  # elements
        for file, header in zip(self._files, headers, strict=True):
            self._open[file] = (self.folder / f"{file}.partial").open("wb")
            self._open[file].write(header)

    @torch.no_grad()
    def write(self, name: str, tensor: Tensor, *, index: int | None = None) -> None:
        """Write one tensor, or its `index`-th along the first axis (an expert of a stack), in any order.

        A dtype other than the spec's is converted a piece at a time.
        """
        spec = self._specs[name]
        shape = spec.shape if index is None else spec.shape[1:]
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)}, not {shape}"
        file_name, offset = self._at[name]
        if index is not None:
            assert 0 <= index < spec.shape[0]
            offset += index * tensor.numel() * spec.dtype.itemsize
        flat = tensor.detach().contiguous().view(-1)
        step = _CHUNK_BYTES // spec.dtype.itemsize
        self._open[file_name].seek(offset)
        for first in range(0, len(flat), step):
            self._open[file_name].write(raw_bytes(flat[first : first + step].to(spec.dtype).cpu()))
        self._missing[name] -= len(flat)
        assert self._missing[name] >= 0, f"{name} was written before"

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._open.values():
            if kind is None:
                opened.flush()
                os.fsync(opened.fileno())
            opened.close()
        if kind is not None:
            for file in self._files:
                (self.folder / f"{file}.partial").unlink()
            return
        missing = [name for name, count in self._missing.items() if count]
        assert not missing, f"never written: {missing}"
        index = self.folder / INDEX
        index.unlink(missing_ok=True)
        for stale in [self.folder / WEIGHTS, *self.folder.glob("model-?????-of-?????.safetensors")]:
            if stale.name not in self._files:
                stale.unlink(missing_ok=True)
        for file in self._files:
            (self.folder / f"{file}.partial").replace(self.folder / file)
        if len(self._files) > 1:
            content: dict[str, Any] = {
                "metadata": {"total_size": sum(spec.nbytes for spec in self._specs.values())},
                "weight_map": {name: file for name, (file, _) in sorted(self._at.items())},
            }
            with replacing(index) as fresh:
                fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _place(self, file: str, shard: Sequence[TensorSpec]) -> bytes:
        """Give every tensor of a file its offset, widest dtype first, so that all stay aligned."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for spec in sorted(shard, key=lambda spec: -spec.dtype.itemsize):
            offsets = [start, start + spec.nbytes]
            header[spec.name] = {
                "dtype": _CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": offsets,
            }
            start += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for spec in shard:
            self._at[spec.name] = (file, 8 + len(text) + header[spec.name]["data_offsets"][0])
        return len(text).to_bytes(8, "little") + text


def _plan(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Tensors in their order, a new shard where the next one would not fit; at least one shard."""
    shards: list[list[TensorSpec]] = [[]]
    room = shard_bytes
    for spec in specs:
        if spec.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(spec)
        room -= spec.nbytes
    return shards
