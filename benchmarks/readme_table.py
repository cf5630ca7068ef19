"""Fill the README's table of figures from `benchmarks/results/*.json`, or check that it is up to date.

    python benchmarks/readme_table.py           # rewrite the table between the markers
    python benchmarks/readme_table.py --check   # exit 1 and say so if the README differs

A result file holds the one JSON object that a benchmark printed: `benchmark` (its name), `command`, `machine`
and its figures, all at the top level. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- figures:start -->", "<!-- figures:end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table: `key` of `benchmark`, and beside it the figure to compare it with."""

    label: str
    benchmark: str
    key: str
    form: str = "{:.2f}"
    versus: str = ""  # a key of the same result
    versus_label: str = ""


ROWS = [
    Row(
        "English name of an unseen rendition, exactly right",
        "quality",
        "caption_en_exact",
        versus="knn_efficientnet",
        versus_label="nearest neighbour on EfficientNet-Lite0 features",
    ),
    Row(
        "Chinese name of an unseen rendition, exactly right",
        "quality",
        "caption_zh_exact",
        versus="knn_efficientnet",
        versus_label="nearest neighbour on EfficientNet-Lite0 features",
    ),
    Row("Questions about an unseen rendition, answered right", "quality", "ask_accuracy"),
    Row("Image to text among all concepts, recall at 1", "quality", "match_r1"),
    Row("Drawings whose 10 nearest real renditions contain the prompt", "quality", "draw_recall10"),
    Row("Image tokenizer on unseen renditions, PSNR in dB", "quality", "tokenizer_psnr", "{:.1f}"),
    Row("Sampled poems with correct form", "quality", "poem_form"),
    Row(
        "Held-out poems, perplexity per character",
        "quality",
        "poem_ppl",
        "{:.1f}",
        versus="poem_ppl_ngram",
        versus_label="n-gram model",
    ),
    Row("Delinking: largest change of any logit", "delink", "max_abs_diff", "{:.1f}"),
    Row("Qwen3 checkpoint in the M6 stack: largest difference", "parity", "qwen3_max_abs_diff", "{:.1e}"),
    Row("ResNet backbone: largest difference", "parity", "resnet_max_abs_diff", "{:.1e}"),
    Row("Training step over the machine's matrix-product rate", "step", "gemm_share"),
    Row("Training tokens a second over `transformers`", "step", "vs_transformers", "{:.2f}x"),
    Row(
        "Streamed training: peak memory over its budget, the worst of 2, 4 and 8 GiB",
        "budget",
        "worst_peak_over_budget",
    ),
    Row("From the disk over in memory: tokens a second, large steps", "stream", "compute_bound_ratio"),
    Row("From the disk: bytes a second over the raw disk's, small steps", "stream", "disk_share"),
    Row(
        "Qwen3 of 4B trained in 6 GiB, of 8B generating in 4 GiB: peak memory over the budget",
        "hugging_face",
        "worst_peak_over_budget",
    ),
    Row(
        "A GPU's share of M6-10T, 19.6 billion parameters, in 12 GiB: peak memory over the budget",
        "headline",
        "peak_over_budget",
    ),
    Row("The same: seconds a step as a Real Giant", "headline", "real_seconds_a_step", "{:.0f}"),
    Row(
        "2.4 billion parameters in 4 GiB: how much sooner Pseudo-to-Real has the loss of Real-only (one run)",
        "pseudo_to_real_giant",
        "time_to_loss_speedup",
        "{:.1f}x",
    ),
    Row("SIGKILLs of a streamed run", "faults", "kills", "{}", versus="lost", versus_label="runs lost"),
    Row("Steps of DeepSpeed ZeRO-3 on NVMe: times as long", "versus_deepspeed", "speedup", "{:.1f}"),
    Row("Peak memory over DeepSpeed's", "versus_deepspeed", "memory_ratio"),
    Row("Losses on 1, 2 and 4 processes: largest difference", "parallel", "max_loss_diff", "{:.1e}"),
    Row(
        "Bytes to other processes, a Real over a Pseudo Giant's step",
        "parallel",
        "comm_ratio",
        "{:.1f}",
        versus="comm_ratio_theory",
        versus_label="by counting",
    ),
    Row(
        "Photos of clothes, unseen: category of the nearest, by the trained encoder",
        "clothing",
        "category_at_1",
        versus="plain_category_at_1",
        versus_label="pretrained features",
    ),
    Row(
        "The same: precision at 5",
        "clothing",
        "precision_at_5",
        versus="plain_precision_at_5",
        versus_label="pretrained features",
    ),
    Row("Garments pasted on clutter: IoU of the learned mask, no box in training", "clothing", "mask_iou"),
    Row(
        "An unseen emoji finds the same thing in other families, recall at 1",
        "cross_family",
        "r1",
        versus="plain_r1",
        versus_label="EfficientNet-Lite0 features",
    ),
    Row("Search in 1 million items: share of exact search's first 10", "search_scale", "recall10_of_exact"),
    Row("The same: times as fast as exact search", "search_scale", "speedup", "{:.1f}x"),
    Row(
        "Unseen renditions and their names: mean recall, ranked by captions and R2D2's encoders",
        "r2d2",
        "rank_mean_recall",
        versus="prerank_mean_recall",
        versus_label="pre-ranking alone",
    ),
    Row(
        "Captions by a language model that saw only text, MAGIC with eight beams: CIDEr",
        "magic",
        "cider_magic",
        versus="cider_retrieval",
        versus_label="retrieval",
    ),
    Row("MAGIC as published, which retrieval beats here", "magic", "cider_magic_paper"),
    Row("MAGIC with eight beams: times as fast as gradient guidance", "magic", "speedup", "{:.0f}x"),
    Row("The service, 200 clients for a minute: answers with an error", "serve_load", "errors", "{}"),
    Row("1,000 malformed uploads that were not answered with 4xx", "serve_load", "malformed_not_4xx", "{}"),
    Row(
        "Captions a second at 16 clients, in batches over one by one",
        "serve_load",
        "batching_gain",
        "{:.1f}x",
    ),
    Row("Step time, planned with a rehearsal against measured: median error", "plan_error", "median_error"),
]


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All result files of `folder` by benchmark name.

    Raises `ValueError` for a file that is not one JSON object with `benchmark`, `command` and `machine`, and
    for two files of one benchmark.
    """
    results: dict[str, dict[str, Any]] = {}
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


def describe(machine: object) -> str:
    """A machine in one line, whether the benchmark gave a sentence or an object."""
    if not isinstance(machine, dict):
        return str(machine)
    known = {
        "processor": "{}",
        "cores": "{} cores",
        "threads": "{} threads used",
        "native_bf16": "native bf16: {}",
        "torch": "PyTorch {}",
    }
    return ", ".join(form.format(machine[key]) for key, form in known.items() if key in machine)


def make_table(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown between the markers; empty if nothing has been measured.

    Raises `ValueError` if a result lacks a figure that the table shows.
    """
    lines: list[str] = []
    for row in ROWS:
        result = results.get(row.benchmark)
        if result is None:
            continue
        for key in filter(None, (row.key, row.versus)):
            if not isinstance(result.get(key), int | float):
                raise ValueError(
                    f"the result of benchmark {row.benchmark!r} lacks the figure {key!r}; run it again"
                )
        versus = f"{row.form.format(result[row.versus])} {row.versus_label}" if row.versus else ""
        lines.append(
            f"| {row.label} | {row.form.format(result[row.key])} | {versus} | `{result['command']}` |"
        )
    if not lines:
        return ""
    shown = [results[name] for name in dict.fromkeys(row.benchmark for row in ROWS) if name in results]
    machines = " / ".join(dict.fromkeys(describe(result["machine"]) for result in shown))
    head = ["| what | figure | beside it | command |", "|---|---|---|---|"]
    return "\n".join([*head, *lines, "", f"Measured on: {machines}.", ""])


def fill(readme: str, table: str) -> str:
    """`readme` with `table` between the markers. Raises `ValueError` unless both markers occur once."""
    if readme.count(START) != 1 or readme.count(END) != 1 or readme.index(START) > readme.index(END):
        raise ValueError(f"README.md: needs the lines {START} and {END} once each, in this order")
    before, rest = readme.split(START)
    return f"{before}{START}\n{table}{END}{rest.split(END)[1]}"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Fill the README's table from benchmarks/results/*.json.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README differs")
    check = parser.parse_args(argv).check
    path = root / "README.md"
    try:
        readme = path.read_text(encoding="utf-8")
        filled = fill(readme, make_table(read_results(root / "benchmarks" / "results")))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if check and filled != readme:
        print(
            "README.md: the figures differ from benchmarks/results; run python benchmarks/readme_table.py",
            file=sys.stderr,
        )
        return 1
    if not check:
        path.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
