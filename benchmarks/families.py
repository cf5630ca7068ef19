"""Which models of `transformers` does `openm6.giant.stream` train and run as in memory? One JSON line.

    python benchmarks/families.py --out benchmarks/results/families.json    # every family, and models beyond them
    python benchmarks/families.py --only llama mixtral gemma3_text          # some of them
    python benchmarks/families.py --kept outcomes.jsonl                     # continues a run that was stopped
    python benchmarks/families.py --docs                                    # the table of the docs, from the result

The families are all that AutoModelForCausalLM knows. Each is checked in its own process, as a random checkpoint of
some 50,000 weights. `family_checks.py` describes the checks. A result has

tried              families of which `transformers` itself runs a tiny model and opens it again
ok                 of these, the ones equal to memory in all four checks, bit for bit
rounded            by family: a check that is equal except for the order of sums
refused            by family: the message that refused a check
wrong              by family: a check that gave another result without an error
failed             by family: a check that ended in another exception, or took too long
cannot_be_built    by family: the reason why it was not tried
table              by family: the outcome of each check
beyond             the same for models that are not causal language models
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine
from benchmarks.family_checks import STAGES, Case, check
from benchmarks.tiny_models import BEYOND

ROOT = Path(__file__).resolve().parents[1]
RESULT, DOCS = ROOT / "benchmarks/results/families.json", ROOT / "docs/hugging-face.md"
START, END = "<!-- families:start -->", "<!-- families:end -->"
SERVER = multiprocessing.get_context("forkserver")  # which imports what is slow to import once
Outcomes = dict[str, str]
KINDS = ("wrong", "failed", "refused", "rounded")  # what is not ok, the worst first


def child(case: Case, folder: Path, reports: Connection) -> None:
    import torch
    import transformers

    os.dup2(2, 1)  # what models print
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    check(case, folder, reports.send)
    reports.send(None)


def run_case(case: Case, timeout: float) -> Outcomes:
    """The outcomes of a model, found in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"families-{case.name}-"))
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=child, args=(case, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    found: Outcomes = {"name": case.name}
    lost, end = "timeout", time.monotonic() + timeout
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            if (report := ours.recv()) is None:
                break
            if "note" in report and "note" in found:
                report["note"] = f"{found['note']}; {report['note']}"
            found |= report
    except EOFError:
        lost = "error: the process ended"
    process.kill()
    process.join()
    if "untried" not in found:
        found |= {stage: lost for stage in STAGES if stage not in found}
    shutil.rmtree(folder, ignore_errors=True)
    return found


def run_all(cases: Iterable[Case], timeout: float, kept: Path | None) -> list[Outcomes]:
    """The outcomes of all models. Those in `kept` are not run again, and the others are added to it."""
    known: dict[str, Outcomes] = {}
    if kept is not None and kept.is_file():
        for line in kept.read_text(encoding="utf-8").splitlines():
            known[json.loads(line)["name"]] = json.loads(line)
    found = []
    for case in cases:
        if case.name not in known:
            known[case.name] = run_case(case, timeout)
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[case.name]) + "\n")
        found.append(known[case.name])
        print(case.name, {k: v for k, v in known[case.name].items() if k != "name"}, file=sys.stderr)
    return found


def _kind(outcome: str) -> str:
    names = {"difference": "wrong", "refused": "refused", "rounding": "rounded"}
    return names.get(outcome.split(":")[0], "failed")


def summary(found: Sequence[Outcomes]) -> dict[str, Any]:
    """The counts, and by name what is not ok."""
    tried = [each for each in found if "untried" not in each and any(each[s] != "-" for s in STAGES)]
    by_kind: dict[str, Outcomes] = {key: {} for key in KINDS}
    for each in tried:
        bad = [(s, each[s]) for s in STAGES if each[s] not in ("ok", "-", "not reached")]
        if not bad:
            continue
        # A wrong result is worse than a refusal that came before it, and any of them than rounding.
        kind, stage, outcome = min(
            ((_kind(outcome), stage, outcome) for stage, outcome in bad), key=lambda b: KINDS.index(b[0])
        )
        by_kind[kind][each["name"]] = f"{stage}: {outcome}"
    return {
        "tried": len(tried),
        "ok": len(tried) - sum(map(len, by_kind.values())),
        **by_kind,
        "cannot_be_built": {
            each["name"]: each.get("untried", each.get("note", "")) for each in found if each not in tried
        },
        "table": {each["name"]: {s: each[s].split(":")[0] for s in STAGES} for each in tried},
    }


# -------------------- the table of the docs


def markdown(figures: dict[str, Any]) -> str:
    """The outcomes as a table: families by what came out."""
    lines = ["| | causal language models | others |", "|---|---|---|"]
    rows = [(_ok(side), side) for side in (figures, figures["beyond"])]
    counts = [f"{len(ok)} of {side['tried']}" for ok, side in rows]
    lines.append(f"| equal to memory, bit for bit | {counts[0]} | {counts[1]} |")
    lines.append("| which | " + " | ".join(_listed(ok) for ok, _ in rows) + " |")
    labels = ("another result", "another exception", "refused in a sentence", "equal but for rounding")
    for key, label in reversed(list(zip(KINDS, labels, strict=True))):
        if any(side[key] for _, side in rows):
            lines.append(
                f"| {label} | " + " | ".join(_listed(side[key]) or "none" for _, side in rows) + " |"
            )
    built = " | ".join(_listed(side["cannot_be_built"]) or "none" for _, side in rows)
    lines.append(
        f"| not tried: `transformers` runs no tiny model, or does not open what it saved | {built} |"
    )
    return "\n".join(lines)


def _ok(side: dict[str, Any]) -> list[str]:
    bad = {name for key in KINDS for name in side[key]}
    return [name for name in side["table"] if name not in bad]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def with_table(text: str, figures: dict[str, Any]) -> str:
    """The page with its table between the marks made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{markdown(figures)}\n{END}{after}"


def causal_families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of families, or of models beyond them")
    parser.add_argument("--timeout", type=float, default=100, help="seconds for a model")
    parser.add_argument("--kept", type=Path, help="a file of outcomes, which are not found out again")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of the docs, and run nothing")
    options = parser.parse_args()
    if options.docs:
        figures = json.loads(RESULT.read_text(encoding="utf-8"))
        DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8"), figures), encoding="utf-8")
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    SERVER.set_forkserver_preload(["openm6.giant", "transformers.generation", "transformers.modeling_utils"])
    families = [Case(name, name) for name in causal_families()]
    beyond = [Case(name, **options) for name, options in BEYOND.items()]
    if unknown := set(options.only) - {case.name for case in [*families, *beyond]}:
        parser.error(f"there is no {min(unknown)}")
    if options.only:
        families, beyond = (
            [case for case in cases if case.name in options.only] for cases in (families, beyond)
        )
    figures = {
        "benchmark": "families",
        "command": "python benchmarks/families.py --out benchmarks/results/families.json",
        **summary(run_all(families, options.timeout, options.kept)),
        "beyond": summary(run_all(beyond, options.timeout, options.kept)),
        "machine": machine(),
    }
    emit(figures, options.out)


if __name__ == "__main__":
    main()
