"""openm6 export: writes the text side of a model as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from openm6.cli.output import Json, show

SHIPPED = "shipped"
FORMATS = ("hf",)


def export(
    model: Annotated[str, typer.Argument(help="Checkpoint or run folder, or 'shipped'.")],
    out: Annotated[Path, typer.Argument(help="A folder to make; if it exists, it must be empty.")],
    to: Annotated[str, typer.Option("--to", help="hf: a Hugging Face folder.")] = "hf",
    as_json: Json = False,
) -> None:
    """Write a model's text side for other programs.

    openm6 export runs/quickstart my-hf --to hf
    """
    if to not in FORMATS:
        raise ValueError(f"--to must be {' or '.join(FORMATS)}, not '{to}'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another")
    import openm6
    from openm6.modalities.text import BOS, EOS, MASK, PAD
    from openm6.model.hf import export_hf

    m6 = openm6.load(None if model == SHIPPED else model, device="cpu")
    export_hf(m6.model, out)
    m6.tokenizer.save(out / "tokenizer.json")
    # The tokenizer's own file lacks these: the tokens that begin, end and fill a text.
    marks = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "mask_token": MASK}
    settings = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **marks},
        "generation_config.json": {f"{name}_id": m6.tokenizer.mark(mark) for name, mark in marks.items()},
    }
    for name, content in settings.items():
        content.pop("mask_token_id", None)  # nothing is generated with it
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    line = f"{out}: the text side of {m6.folder} ({m6.model.config.layers} layers), for transformers"
    show({"input": model, "output": str(out), "to": to}, as_json=as_json, line=line)
