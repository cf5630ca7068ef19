"""One family for each way in which models of `transformers` are built otherwise than Llama: all four checks.

`benchmarks/families.py` runs them for every family.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.family_checks import STAGES, Case, check
from benchmarks.tiny_models import BEYOND

KINDS = {
    "gemma3_text": "buffers outside the layers that are computed as the model runs; masks by layer",
    "apertus": "saved buffers inside the layers",
    "lfm2": "layers of two kinds, and a cache without keys",
    "mamba": "a state in the place of keys and values",
    "llama4_text": "a model that asks for its embedding's dtype",
    "prophetnet": "a model that computes with its embeddings' matrices",
    "cpmant": "layers that return tuples",
    "roberta": "a tied pair of which a half has a bias",
}
OTHERS = ["bert (masked)", "llama (sequence classes)", "clip", "gemma3 (with vision)"]


def outcomes(case: Case, folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    check(case, folder, found.update)
    return {stage: found.get(stage, str(found)) for stage in STAGES}


@pytest.mark.parametrize("family", KINDS)
def test_a_family_is_trained_saved_and_run_as_in_memory(family: str, tmp_path: Path) -> None:
    assert outcomes(Case(family, family), tmp_path) == dict.fromkeys(STAGES, "ok"), KINDS[family]


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_are_no_causal_language_models_are_trained_and_saved(name: str, tmp_path: Path) -> None:
    found = outcomes(Case(name, **BEYOND[name]), tmp_path)
    assert found["train"] == found["save"] == "ok"
    assert set(found.values()) <= {"ok", "-"}
