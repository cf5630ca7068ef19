"""openm6 data: reads data as training would, and reports its content and its faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from openm6.cli.arguments import Encoding, pair
from openm6.cli.output import Json, show
from openm6.configs import RECIPES, find_recipe

if TYPE_CHECKING:
    from openm6.data import DataConfig, Record

CORPORA = ("corpus-emoji", "corpus-poems", "corpus-music")
SHOWN = 3  # records printed
NAMED = 10  # bad records named


@dataclass
class Survey:
    """The content of a source. `fields` counts the records that have each field; `kinds` names the kind of its
    values.
    """

    name: str
    records: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list)
    fields: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.records += 1
        for name, value in record.items():
            self.fields[name] = self.fields.get(name, 0) + 1
            self.kinds.setdefault(name, kind_of(value))
        if len(self.first) < SHOWN:
            self.first.append({name: brief(value) for name, value in record.items()})

    def add_bad(self, reason: str) -> None:
        self.bad += 1
        if len(self.reasons) < NAMED:
            self.reasons.append(reason)


def data(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, patterns, corpus-emoji, corpus-poems, corpus-music, or recipes (all of "
            "their data)."
        ),
    ],
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN, such as caption_en=title; once for each field.")
    ] = None,
    kind: Annotated[str, typer.Option(help="csv, parquet, ..., if the path does not show it.")] = "auto",
    split: Annotated[str | None, typer.Option(help="A split of the data, such as train.")] = None,
    encoding: Encoding = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read at most so many records of a source.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read data as training would, and report its content and its bad records.

    openm6 data photos/products.csv --column caption_en=title
    """
    columns = dict(pair(each, "--column", "FIELD=COLUMN, such as caption_en=title") for each in column or [])
    too_bad = []
    for name in sources:
        for label, config in configs_of(name, columns, kind, split, encoding):
            found = survey(label, config, limit)
            show(result(found), as_json=as_json, line="\n".join(lines(found)))
            if found.bad > config.max_bad_fraction * (found.records + found.bad):
                too_bad.append(f"{found.bad} of {found.records + found.bad} records of {label}")
    if too_bad:
        raise ValueError(
            f"bad: {'; '.join(too_bad)}; training would stop: mend or remove them, or raise max_bad_fraction"
        )


def configs_of(
    name: str, columns: dict[str, str], kind: str, split: str | None, encoding: str | None = None
) -> list[tuple[str, DataConfig]]:
    """(label, config) of every source that an argument names. Raises ValueError if it names none."""
    from openm6.data import DataConfig
    from openm6.data.config import Kind

    if kind not in get_args(Kind):
        raise ValueError(f"--kind must be one of {', '.join(get_args(Kind))}, not '{kind}'")
    if not name.strip():
        raise ValueError("name a file, a folder, a corpus or a recipe; one of the arguments is empty")
    if name in CORPORA:
        return [(f"{name} {split or 'train'}", DataConfig.model_validate({"kind": name, "split": split}))]
    is_recipe = name.endswith((".yaml", ".yml")) or (RECIPES / f"{name}.yaml").is_file()
    if not is_recipe or Path(name).is_dir():
        given = {"path": name, "columns": columns, "kind": kind, "split": split, "encoding": encoding}
        return [(f"{name} {split or ''}".strip(), DataConfig.model_validate(given))]
    if columns or split or encoding:
        raise ValueError(f"{name} is a recipe and says itself how its data are to be read")
    from openm6.train.config import RunConfig
    from openm6.train.recipe import load_recipe

    config = load_recipe(find_recipe(name), [], RunConfig)
    parts = [data for part in (*config.mix, *config.held_out) for data in part.data]
    found = {f"{data.path or data.kind} {data.split or ''}".strip(): data for data in parts}
    return list(found.items())


def survey(label: str, config: DataConfig, limit: int | None) -> Survey:
    """Read a source from beginning to end, in order. Raises ValueError if it has no records."""
    from rich.console import Console
    from rich.markup import escape

    from openm6.data import BadRecord, open_reader

    found = Survey(label)
    reader = open_reader(config)
    with Console(stderr=True).status(f"reading {escape(label)}") as status:
        for block in map(reader.block, range(reader.n_blocks)):
            for index in range(len(block)):
                seen = found.records + found.bad
                if limit is not None and seen >= limit:
                    return found
                try:
                    found.add(block[index])
                except BadRecord as error:
                    found.add_bad(str(error))
                if seen % 1000 == 0:
                    status.update(f"reading {escape(label)}: {seen:,} records")
    if not found.records + found.bad:
        raise ValueError(f"{label} has no records")
    return found


def result(found: Survey) -> dict[str, Any]:
    """The survey for programs."""
    return {
        "input": found.name,
        "output": {
            "records": found.records,
            "bad": found.bad,
            "bad_records": found.reasons,
            "fields": {name: {"kind": found.kinds[name], "records": n} for name, n in found.fields.items()},
            "first": found.first,
        },
    }


def lines(found: Survey) -> Iterator[str]:
    """The survey for people."""
    yield f"{found.name}: {found.records:,} records, {found.bad:,} bad"
    for reason in found.reasons:
        yield f"  bad: {reason}"
    if found.bad > len(found.reasons):
        yield f"  bad: and {found.bad - len(found.reasons):,} more"
    width = max((len(name) for name in found.fields), default=0)
    for name, count in found.fields.items():
        share = "" if count == found.records else f"  in {count:,} records"
        yield f"  {name:{width}}  {found.kinds[name]}{share}"
        for record in found.first:
            if name in record:
                yield f"  {'':{width}}    {record[name]}"


def kind_of(value: object) -> str:
    """The kind of a field's value, in one word."""
    import numpy as np

    from openm6.data.music import Score

    if isinstance(value, np.ndarray):
        return "picture"
    if isinstance(value, Score):
        return "music"
    return {str: "text", bool: "yes or no", int: "number", float: "number", list: "list"}.get(
        type(value), type(value).__name__
    )


def brief(value: object) -> Any:
    """A value as one line of JSON: a picture as its size, music by its counts, a long text cut."""
    import numpy as np

    from openm6.data.music import Score

    if isinstance(value, Score):
        counts = f"{len(value.tracks)} tracks, {len(value.bars)} bars, {value.note_count:,} notes"
        return "; ".join((counts, *value.remarks))
    if isinstance(value, np.ndarray):
        height, width, channels = value.shape
        return f"{width}x{height} {'RGBA' if channels == 4 else 'RGB'}"
    if isinstance(value, (int, float)) or value is None:
        return value
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
