"""Finds the files of a source, and the kind of source that they make."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from openm6.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES

SUFFIXES = {
    "csv": frozenset({".csv", ".tsv"}),
    "jsonl": frozenset({".jsonl", ".ndjson"}),
    "parquet": frozenset({".parquet"}),
    "webdataset": frozenset({".tar"}),
}
METADATA = "metadata"  # the name of the table beside the pictures of a Hugging Face image folder
MIDI_SUFFIXES = frozenset({".mid", ".midi", ".kar"})
HUGGINGFACE_FILES = ("dataset_info.json", "dataset_dict.json")


def detect_kind(path: str) -> str:
    """The kind of data at `path`. Files at the top of a folder decide before pictures deeper in it."""
    place = Path(path)
    if place.is_dir():
        if any((place / name).is_file() for name in HUGGINGFACE_FILES):
            return "huggingface"
        suffixes = {entry.suffix.lower() for entry in _visible(place) if entry.is_file()}
    else:
        suffixes = {found.suffix.lower() for found in _glob(path)}
    kinds = [kind for kind, theirs in SUFFIXES.items() if theirs & suffixes]
    if len(kinds) == 1:
        return kinds[0]
    if len(kinds) > 1:
        raise ValueError(f"{path} holds {' and '.join(kinds)} files: say which kind to read.")
    # A table that describes pictures may lie beside them in the folder of each split.
    beside = (
        {found.suffix.lower() for found in place.glob(f"*/{METADATA}.*")} if place.is_dir() else set[str]()
    )
    kinds = [kind for kind, theirs in SUFFIXES.items() if theirs & beside]
    if len(kinds) == 1:
        return kinds[0]
    if place.is_dir() and next(walk(place, IMAGE_SUFFIXES), None) is not None:
        return "folder"
    if MIDI_SUFFIXES & suffixes or (place.is_dir() and next(walk(place, MIDI_SUFFIXES), None) is not None):
        return "midi"
    # The files of a split may lie one folder down.
    below = {entry.suffix.lower() for entry in place.glob("*/*")} if place.is_dir() else set[str]()
    kinds = [kind for kind, theirs in SUFFIXES.items() if theirs & below]
    if len(kinds) == 1:
        return kinds[0]
    if not place.exists() and not suffixes:
        raise ValueError(f"there is no file or folder at {path}.")
    if place.is_dir() and (skipped := skipped_pictures(place)):
        raise ValueError(f"{path} has {skipped}, which are not read: convert them to PNG or JPEG.")
    raise ValueError(
        f"cannot tell what kind of data {path} is: it should be a folder of pictures or of MIDI files, or .csv, "
        ".tsv, .jsonl, .ndjson, .parquet or .tar files, or a saved Hugging Face dataset."
    )


def find_files(path: str, kind: str, split: str | None = None) -> list[Path]:
    """The files of a source in a fixed order: `path` itself, the files in the folder `path`, or those that match
    the pattern `path`.

    In a folder, `split` chooses the files of the subfolder of that name. If there is no such subfolder, it chooses
    the files whose names are the split or begin with it (`train.csv`, `train-00000.tar`). Raises `ValueError` if no
    file is left.
    """
    place, suffixes = Path(path), SUFFIXES[kind]
    if not place.is_dir():
        files = _glob(path)
        if not files:
            raise ValueError(f"there is no file at {path}.")
        if split is not None:
            raise ValueError(f"split {split!r} chooses among the files of a folder, but {path} is not one.")
        return files
    if split is not None and (place / split).is_dir():
        place, split = place / split, None
    files = [entry for entry in _visible(place) if entry.suffix.lower() in suffixes and entry.is_file()]
    if split is not None:
        files = [found for found in files if _in_split(found.name, split)]
    if not files and split is None:
        below = sorted({found.parent.name for found in place.glob("*/*") if found.suffix.lower() in suffixes})
        if below:
            raise ValueError(
                f"the files of {place} lie in folders below it: choose one of the splits {', '.join(below)}, or "
                f"name one of the folders, such as {place / below[0]}."
            )
    if not files:
        wanted = f" of the split {split!r}" if split is not None else ""
        raise ValueError(f"the folder {place} has no {' or '.join(sorted(suffixes))} files{wanted}.")
    return files


def walk(root: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """All files below `root` with one of `suffixes`, in a fixed order. Hidden files and linked folders are left
    out.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(folder, name)


def find_below(path: str, split: str | None, suffixes: frozenset[str]) -> tuple[Path, list[str]]:
    """A folder, or its subfolder `split`, and in a fixed order the paths of all files in it with one of `suffixes`.

    A file or a pattern gives the files that it names, as it names them. Raises ValueError if there are none.
    """
    place = Path(path, split or "")
    if place.is_dir():
        names = [found.relative_to(place).as_posix() for found in walk(place, suffixes)]
        if not names:
            raise ValueError(f"the folder {place} has no {' or '.join(sorted(suffixes))} files.")
        return place, names
    if split is not None:
        raise ValueError(f"there is no folder at {place}.")
    names = [found.as_posix() for found in _glob(path)]
    if not names:
        raise ValueError(f"there is no file at {path}.")
    return Path(), names


def skipped_pictures(root: Path) -> str:
    """The number of pictures below `root` in formats that are not read: "12 .heic files"; "" if there are none."""
    counts = Counter(path.suffix.lower() for path in walk(root, UNREAD_SUFFIXES))
    return " and ".join(f"{n:,} {suffix} file{'s' if n > 1 else ''}" for suffix, n in sorted(counts.items()))


def _in_split(name: str, split: str) -> bool:
    return name.startswith(split) and not name[len(split) :][:1].isalnum()


def _glob(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    return sorted(Path(found) for found in glob.glob(path) if Path(found).is_file())


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
