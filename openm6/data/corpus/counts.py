"""Counts the embedded corpus: `python -m openm6.data.corpus.counts` prints the tables of the data card."""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from . import EMOJI_SPLITS, POEM_SPLITS, load_emoji, load_poems


def markdown_tables() -> str:
    """Pictures by set and split, poems by form and split, as Markdown tables with totals."""
    emoji, poems = load_emoji(), load_poems()
    return "\n\n".join(
        (
            _table("set", emoji, ("family", "set"), EMOJI_SPLITS, "concepts", "concept"),
            _table("form", poems, ("dynasty", "form"), POEM_SPLITS, "authors", "author"),
        )
    )


def _table(
    title: str, table: pa.Table, keys: tuple[str, str], splits: tuple[str, ...], unit: str, distinct: str
) -> str:
    """One row a pair of `keys`, one column a split; the last column counts distinct values of `distinct`."""
    rows = table.select([*keys, "split", distinct]).to_pylist()
    cells = Counter((row[keys[0]], row[keys[1]], row["split"]) for row in rows)
    values = {(row[keys[0]], row[keys[1]]): set() for row in rows}
    for row in rows:
        values[row[keys[0]], row[keys[1]]].add(row[distinct])
    lines = [_line((keys[0], title, *splits, "all", unit)), _line(["---"] * 2 + ["---:"] * (len(splits) + 2))]
    for pair in sorted(values):
        counts = [cells[(*pair, split)] for split in splits]
        lines.append(_line((*pair, *counts, sum(counts), len(values[pair]))))
    totals = [sum(n for key, n in cells.items() if key[2] == split) for split in splits]
    lines.append(_line(("all", "", *totals, sum(totals), len(set().union(*values.values())))))
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    print(markdown_tables())
