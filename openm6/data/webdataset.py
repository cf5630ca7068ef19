"""WebDataset shards: tar files. Members with the same name up to its first dot form one sample.

Opening a shard reads only the headers of its members. Members are read from their places in the file when they are
needed. So a shard is shuffled as a whole, and resuming a run reads only headers. Nothing is unpacked to disk, so no
name in an archive can point to another place.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from openm6.data.bad import BadRecord
from openm6.data.images import IMAGE_SUFFIXES, MAX_BYTES
from openm6.data.reader import Block, Broken, Reader, fingerprint_files
from openm6.data.records import Fields, Record

Span = tuple[int, int]  # first byte in the shard, number of bytes


class WebDatasetReader(Reader):
    """Reads samples from tar files.

    Columns of a sample: its members by their extension (`jpg`, `txt`, `cls`, `seg.png`), the keys of its `json`
    member, and `id` (the sample's name). Samples with the usual names also have `image` (the member that is a
    picture), `caption_en` (`txt`) and `label` (`cls`).
    """

    def __init__(self, files: Sequence[Path], fields: Fields) -> None:
        self.name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self.files, self.fields = list(files), fields
        self.fingerprint = fingerprint_files(files)

    @property
    def n_blocks(self) -> int:
        return len(self.files)

    def block(self, index: int) -> Block:
        try:
            return Shard(self.files[index], self.fields)
        except (OSError, tarfile.TarError) as error:
            return Broken(1, BadRecord(self.files[index].name, f"is not a readable tar file ({error})"))


class Shard:
    """The samples of one tar file, in the order in which their keys first appear."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        samples: dict[str, dict[str, Span] | BadRecord] = {}
        for name, found in _members(path):
            key, extension = _split(name)
            sample = samples.setdefault(key, {})
            if isinstance(sample, BadRecord):
                continue
            if isinstance(found, str):
                samples[key] = BadRecord(f"{path.name} member {name}", found)
            elif extension in sample:
                samples[key] = BadRecord(f"{path.name} member {name}", "appears twice")
            else:
                sample[extension] = found
        self.samples = list(samples.items())

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Record:
        key, sample = self.samples[index]
        if isinstance(sample, BadRecord):
            raise BadRecord(sample.where, sample.why)
        where = f"{self.path.name} sample {key}"
        try:
            return self.fields.record(self._row(key, sample, where), where=where, folder=self.path.parent)
        except OSError as error:
            raise BadRecord(where, f"cannot be read ({error.strerror})") from error

    def _row(self, key: str, sample: dict[str, Span], where: str) -> dict[str, Any]:
        row: dict[str, Any] = {"id": key}
        with self.path.open("rb") as file:
            for extension, (start, size) in sample.items():
                if size > MAX_BYTES:
                    raise BadRecord(
                        where, f"member {extension!r} is huge ({size:,} bytes; the limit is {MAX_BYTES:,})"
                    )
                file.seek(start)
                row[extension] = file.read(size)
                if len(row[extension]) < size:
                    raise BadRecord(where, f"member {extension!r} is cut off: the tar file is truncated")
        for extension in sample:
            if "." + extension.rpartition(".")[2] in IMAGE_SUFFIXES:
                row.setdefault("image", row[extension])
        for extension, column in (("txt", "caption_en"), ("cls", "label")):
            if extension in row:
                row.setdefault(column, row[extension])
        return _json(row.get("json"), where) | row


def _json(raw: bytes | None, where: str) -> dict[str, Any]:
    if raw is None:
        return {}
    try:
        values = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRecord(where, f"member 'json' is not JSON in UTF-8 ({error})") from error
    if not isinstance(values, dict):
        raise BadRecord(where, f"member 'json' must be a JSON object, not {type(values).__name__}")
    return cast("dict[str, Any]", values)


def _split(name: str) -> tuple[str, str]:
    """`a/b.seg.PNG` -> (`a/b`, `seg.png`)."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _members(path: Path) -> Iterator[tuple[str, Span | str]]:
    """The name of every file in the archive, with its place or with its fault."""
    with tarfile.open(path, "r:") as tar:
        while True:
            try:
                member = tar.next()
            except tarfile.ReadError as error:
                # The member before this one ends behind the end of the file, and will be found cut off.
                if "unexpected end" not in str(error):
                    yield f"at byte {tar.offset}", f"the tar file is damaged ({error})"
                return
            if member is None:
                break
            parts = PurePosixPath(member.name).parts
            if member.isdir() or not parts or parts[-1].startswith("."):
                continue
            if not member.isreg() or member.issparse():
                yield member.name, "is a link, a device or a sparse file, which are not followed"
            elif parts[0] == "/" or ".." in parts:
                yield member.name, "has a name that leads out of the archive"
            else:
                yield member.name, (member.offset_data, member.size)
        # `tarfile` takes a damaged header for the end of the archive; the real end is zeros, or nothing at
        # all.
        with path.open("rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                yield f"at byte {tar.offset}", "the tar file is damaged: what comes here is not a header"
