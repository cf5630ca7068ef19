"""The benchmark of families: outcomes are counted right, a stopped run goes on, the docs show the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import families
from benchmarks.families import DOCS, RESULT, markdown, run_all, summary, with_table
from benchmarks.family_checks import Case, check, difference
from benchmarks.tiny_batches import BATCHES
from benchmarks.tiny_models import BEYOND, MORE

OK = dict.fromkeys(("train", "save", "logits", "generate"), "ok")


def outcomes() -> list[dict[str, str]]:
    return [
        {"name": "good", **OK},
        {"name": "mute", **OK, "logits": "-", "generate": "-"},
        {"name": "no", **OK, "train": "refused: because", "save": "not reached"},
        {"name": "worst", **OK, "train": "refused: because", "logits": "difference: 1 of 2 tensors"},
        {"name": "slow", **OK, "train": "rounding: 1 of 2 tensors", "generate": "timeout"},
        {"name": "near", **OK, "train": "rounding: 1 of 2 tensors"},
        {"name": "raises", **OK, "train": "error: KeyError: 'x'", "save": "not reached"},
        {"name": "absent", "untried": "TypeError: no"},
        {"name": "dumb", **dict.fromkeys(OK, "-"), "note": "in memory: no"},
    ]


def test_outcomes_are_counted_by_their_worst() -> None:
    figures = summary(outcomes())
    assert (figures["tried"], figures["ok"]) == (7, 2)
    assert figures["rounded"] == {"near": "train: rounding: 1 of 2 tensors"}
    assert figures["refused"] == {"no": "train: refused: because"}
    assert figures["wrong"] == {"worst": "logits: difference: 1 of 2 tensors"}
    assert figures["failed"] == {"slow": "generate: timeout", "raises": "train: error: KeyError: 'x'"}
    assert figures["cannot_be_built"] == {"absent": "TypeError: no", "dumb": "in memory: no"}
    assert figures["table"]["worst"] == OK | {"train": "refused", "logits": "difference"}
    assert figures["table"].keys() == {"good", "mute", "no", "worst", "slow", "near", "raises"}


def test_the_table_says_where_every_family_is() -> None:
    table = markdown({**summary(outcomes()), "beyond": summary(outcomes()[:1])})
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert "| 2 of 7 | 1 of 1 |" in rows["equal to memory, bit for bit"]
    assert rows["which"] == "| which | good, mute | good |"
    assert rows["another exception"] == "| another exception | raises, slow | none |"
    assert table.count("absent") == 1


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_case(case: Case, timeout: float) -> dict[str, str]:
        ran.append(case.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"name": case.name, **OK}

    monkeypatch.setattr(families, "run_case", run_case)
    cases = [Case(name, name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        run_all(cases, 1, tmp_path / "kept")
    assert [each["name"] for each in run_all(cases, 1, tmp_path / "kept")] == ["a", "b", "c"]
    assert ran == ["a", "b", "b", "c"]


def test_options_and_batches_are_of_families_that_there_are() -> None:
    from transformers import CONFIG_MAPPING

    assert MORE.keys() <= set(CONFIG_MAPPING)
    for name, options in BEYOND.items():
        case = Case(name, **options)
        assert case.family in CONFIG_MAPPING and case.batch in BATCHES


def test_rounding_is_no_wrong_result() -> None:
    want = {"a": torch.ones(2), "b": torch.ones(2)}
    for change, outcome in (
        (0.0, "ok"),
        (2**-23, "rounding"),
        (1e-4, "difference"),
        (torch.nan, "difference"),
    ):
        assert difference(want | {"b": torch.ones(2) + change}, want).split(":")[0] == outcome
    assert difference({"a": want["a"]}, want) == "difference: 1 missing, such as b"


def test_a_family_is_checked(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    check(Case("qwen3_moe", "qwen3_moe"), tmp_path, found.update)
    assert {stage: found[stage] for stage in OK} == OK


@pytest.mark.skipif(not RESULT.is_file(), reason="no result is committed")
def test_the_docs_show_the_committed_result() -> None:
    figures = json.loads(RESULT.read_text(encoding="utf-8"))
    page = DOCS.read_text(encoding="utf-8")
    assert with_table(page, figures) == page, "run python benchmarks/families.py --docs"
