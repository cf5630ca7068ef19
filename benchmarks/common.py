"""Shared by all benchmarks: JSON output, a stopwatch, and an order by hash."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openm6.data.atomic import replacing
from openm6.train.memory import machine

__all__ = ["Stopwatch", "emit", "hash_order", "machine", "rounded", "sha256_files"]


def sha256_files(paths: Iterable[Path]) -> str:
    """One hexadecimal digest of the files' names and contents, whatever order they come in."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def hash_order(items: Iterable[str], *, salt: str) -> list[str]:
    """The items in an order that a hash decides: the same everywhere, and stable when others are added."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt}\0{item}".encode()).digest())


class Stopwatch:
    """`with Stopwatch() as watch: ...` and then `watch.seconds`: wall-clock time of the block."""

    seconds: float

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


def rounded(value: Any, digits: int = 4) -> Any:
    """`value` with every float in it rounded, however deep, so that results can be read and compared."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner, digits) for inner in value]
    return value


def out_option(description: str | None, argv: Sequence[str] | None) -> Path | None:
    """The command line of a benchmark whose one option is `--out FILE`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args(argv).out


def emit(figures: Mapping[str, Any], out: Path | None = None) -> None:
    """Print `figures` as one JSON line; with `out`, also write them to that file, indented."""
    print(json.dumps(figures, ensure_ascii=False), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(figures, out)


def write_json(figures: Mapping[str, Any], path: Path) -> None:
    """Write `figures` to a JSON file, indented. A kill leaves the earlier file, or none, but never a part."""
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
