from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import openm6
from openm6.model import M6, Stream


def test_transformers_opens_the_export_and_goes_on_as_we_do(cli: Any, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "hf"
    [told] = cli.objects("export", model, out, "--to", "hf")
    assert (told["input"], told["output"], told["to"]) == (str(model), str(out), "hf")

    ours, tokenizer = openm6.load(model), AutoTokenizer.from_pretrained(out)
    tokens = tokenizer("<lm>白日依山尽", return_tensors="pt").input_ids
    assert tokens[0].tolist() == [ours.tokenizer.mark("<lm>"), *ours.tokenizer.encode("白日依山尽")]
    assert tokenizer.eos_token_id == ours.tokenizer.eos and tokenizer.pad_token_id == ours.tokenizer.pad

    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert theirs.generation_config.eos_token_id == ours.tokenizer.eos
    with torch.no_grad():
        difference = (theirs(tokens).logits - causal_logits(ours.model, tokens)).abs().max()
    assert difference < 1e-4


def causal_logits(model: M6, tokens_BT: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens_BT.shape[1])[None]
    zeros = torch.zeros_like(tokens_BT)
    stream = Stream(
        tokens_BT=tokens_BT, positions_BT=positions, example_BT=zeros, branch_BT=zeros, order_BT=positions + 1
    )
    return model.text_logits(model(stream))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "FULL"], "is not an empty folder"),
        (["MODEL", "FULL/file"], "is not an empty folder"),
        (["MODEL", "FULL/file/new"], "FULL/file"),
        (["MODEL", "NEW", "--to", "onnx"], "--to must be hf, not 'onnx'"),
        (["/no/model", "NEW"], "no checkpoint folder /no/model"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], words: str, cli: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "file").write_text("kept")
    places = {"MODEL": str(model), "FULL": f"{tmp_path}/FULL", "NEW": f"{tmp_path}/NEW"}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert words in cli.mistake("export", *arguments)
    assert (tmp_path / "FULL" / "file").read_text() == "kept" and not (tmp_path / "NEW").exists()


def test_the_shipped_model_goes_by_its_name(cli: Any, shipped: Path, tmp_path: Path) -> None:
    assert shipped.is_dir() and cli("export", "shipped", tmp_path / "hf").exit_code == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
