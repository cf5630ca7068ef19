"""Fills the tables of figures in README.md and docs/benchmarks.md from `benchmarks/results/*.json`, or checks them.

    python benchmarks/readme_table.py           # rewrite the tables between the markers
    python benchmarks/readme_table.py --check   # exit 1 and name the documents that differ

A result file holds the JSON object that a benchmark printed: `benchmark` (its name), `command`, `machine` and its
figures, all at the top level. This script needs only the standard library.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.figures import TABLES, Row  # noqa: E402

START, END = "<!-- figures:start -->", "<!-- figures:end -->"
README, DOCUMENT = Path("README.md"), Path("docs/benchmarks.md")

Results = dict[str, dict[str, Any]]


def read_results(folder: Path) -> Results:
    """All result files of `folder` by benchmark name.

    Raises `ValueError` for a file that is not one JSON object with `benchmark`, `command` and `machine`, and
    for two files of one benchmark.
    """
    results: Results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}: not one JSON object ({error}); run the benchmark again") from None
        missing = [
            key
            for key in ("benchmark", "command", "machine")
            if not isinstance(result, dict) or key not in result
        ]
        if missing:
            raise ValueError(f"{path.name}: lacks {', '.join(missing)}; run the benchmark again")
        if result["benchmark"] in results:
            raise ValueError(f"{path.name}: a second result of benchmark {result['benchmark']!r}; keep one")
        results[result["benchmark"]] = result
    return results


def figure(row: Row, results: Results) -> tuple[str, str]:
    """The figure of a row, and the one beside it with its name. Raises `ValueError` if the result lacks one."""
    result = results[row.benchmark]
    for key in filter(None, (row.key, row.versus)):
        if not isinstance(result.get(key), int | float):
            raise ValueError(
                f"the result of benchmark {row.benchmark!r} lacks the figure {key!r}; run it again"
            )
    versus = (
        f"{(row.versus_form or row.form).format(result[row.versus])} {row.versus_label}" if row.versus else ""
    )
    return row.form.format(result[row.key]), versus


def make_short_table(results: Results) -> str:
    """The README's few figures, without commands; empty if none of them has been measured."""
    rows = [row for table in TABLES.values() for row in table if row.readme and row.benchmark in results]
    lines = ["| {} | {} | {} |".format(row.readme, *figure(row, results)) for row in rows]
    return "\n".join(["| measured | figure | beside it |", "|---|---|---|", *lines, ""]) if lines else ""


def make_tables(results: Results) -> str:
    """All figures with the commands that print them, and the machines; empty if nothing has been measured."""
    parts = []
    for title, table in TABLES.items():
        rows = [row for row in table if row.benchmark in results]
        lines = [
            "| {} | {} | {} | `{}.py` |".format(row.label, *figure(row, results), row.benchmark)
            for row in rows
        ]
        if lines:
            parts += [f"### {title}", "", "| measured | figure | beside it | script |", "|---|---|---|---|"]
            parts += [*lines, ""]
    shown = [
        results[name]
        for name in dict.fromkeys(row.benchmark for t in TABLES.values() for row in t)
        if name in results
    ]
    if not shown:
        return ""
    parts += ["### Their commands", "", *(f"- `{result['command']}`" for result in shown), ""]
    parts += ["### Their machines", "", *machines(shown), ""]
    return "\n".join(parts)


def machines(shown: list[dict[str, Any]]) -> list[str]:
    """One line a machine: what it is, and the benchmarks that ran on it."""
    where: dict[str, list[str]] = {}
    for result in shown:
        where.setdefault(describe(result["machine"]), []).append(result["benchmark"])
    return [f"- {machine}: {', '.join(f'`{name}.py`' for name in names)}" for machine, names in where.items()]


def describe(machine: object) -> str:
    """A machine in one line, whether the benchmark gave a sentence or an object."""
    if not isinstance(machine, dict):
        return str(machine)
    words = []
    if "processor" in machine:
        words.append(str(machine["processor"]).replace("(R)", ""))
    if "native_bf16" in machine:
        words.append("with bf16 matrix units" if machine["native_bf16"] else "without bf16 matrix units")
    if "cores" in machine:
        words.append(f"{machine['cores']} cores")
    if "threads" in machine:
        words.append(f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}")
    if "torch" in machine:
        words.append(f"PyTorch {str(machine['torch']).split('+')[0]}")
    return ", ".join(words)


def fill(text: str, table: str, name: str) -> str:
    """`text` with `table` between the markers. Raises `ValueError` unless both markers occur once."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"{name}: needs the lines {START} and {END} once each, in this order")
    before, rest = text.split(START)
    return f"{before}{START}\n{table}{END}{rest.split(END)[1]}"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Fill the tables of figures from benchmarks/results/*.json.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table differs")
    check = parser.parse_args(argv).check
    try:
        results = read_results(root / "benchmarks" / "results")
        tables = {README: make_short_table(results), DOCUMENT: make_tables(results)}
        before = {name: (root / name).read_text(encoding="utf-8") for name in tables}
        filled = {name: fill(before[name], table, str(name)) for name, table in tables.items()}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [name for name in filled if filled[name] != before[name]]
    for name in stale:
        if check:
            print(
                f"{name}: the figures differ from benchmarks/results; run python benchmarks/readme_table.py",
                file=sys.stderr,
            )
        else:
            (root / name).write_text(filled[name], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
