"""Writes a folder of safetensors one tensor at a time, so that the model never has to fit in memory.

A safetensors file is a JSON header followed by the tensors' bytes. The header is written first, so every tensor
has its place from the start and tensors may come in any order. `openm6.model.hf_folder.Checkpoint` reads them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from openm6.data.atomic import finish, replacing, sync, temporary
from openm6.giant.tiers.parts import TensorSpec, raw_bytes
from openm6.model.hf_folder import CHUNK_BYTES, DTYPES, INDEX, WEIGHTS

SHARD_BYTES = 2 << 30
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class ShardWriter:
    """Writes tensors of known names, shapes and dtypes to a folder, in shards of at most `shard_bytes`.

        with ShardWriter(folder, specs) as writer:
            for name, tensor in ...:          # in any order, one at a time
                writer.write(name, tensor)

    One shard is model.safetensors; several shards have an index. Files get their names when all of them are
    complete and safe on the disk. Before that, an error or a kill leaves the earlier save as it was (a kill also
    leaves files ending in .tmp). Then the new files replace the earlier save. A kill during the renaming leaves a
    folder without an index: readers refuse such a folder instead of misreading it.

    Raises ValueError, before anything is written, if the disk has too little space.
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
            self._open[file] = temporary(self.folder / file).open("wb")
            self._open[file].write(header)

    @torch.no_grad()
    def write(self, name: str, tensor: Tensor, *, index: int | None = None) -> None:
        """Write one tensor, or its `index`-th slice along the first axis (an expert of a stack), in any order.

        A dtype that differs from the spec's is converted piece by piece.
        """
        spec = self._specs[name]
        shape = spec.shape if index is None else spec.shape[1:]
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)}, not {shape}"
        file_name, offset = self._at[name]
        if index is not None:
            assert 0 <= index < spec.shape[0]
            offset += index * tensor.numel() * spec.dtype.itemsize
        flat = tensor.detach().contiguous().view(-1)
        step = CHUNK_BYTES // spec.dtype.itemsize
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
            opened.close()
        fresh = [temporary(self.folder / file) for file in self._files]
        if kind is not None:
            for each in fresh:
                each.unlink()
            return
        for each in fresh:
            sync(each)
        missing = [name for name, count in self._missing.items() if count]
        assert not missing, f"never written: {missing}"
        index = self.folder / INDEX
        index.unlink(missing_ok=True)
        for stale in [self.folder / WEIGHTS, *self.folder.glob("model-?????-of-?????.safetensors")]:
            if stale.name not in self._files:
                stale.unlink(missing_ok=True)
        for file in self._files:
            finish(self.folder / file)
        if len(self._files) > 1:
            content: dict[str, Any] = {
                "metadata": {"total_size": sum(spec.nbytes for spec in self._specs.values())},
                "weight_map": {name: file for name, (file, _) in sorted(self._at.items())},
            }
            with replacing(index, durable=True) as fresh_index:
                fresh_index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

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
