from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openm6.data.corpus import load_emoji

SHOWN = (
    "reading records to show",
    "captions of 8 pictures",
    "answers about 8 pictures",
    "texts that match 8 pictures",
    "8 drawings",
    "4 poems",
)


def test_a_run_prints_its_progress_its_losses_and_its_report(trained: Any) -> None:
    folder, result = trained
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").is_file()
    assert "delinked: each of the 2 layers" in result.stdout
    pauses = [line.strip() for line in lines if line.endswith(" ...")]
    samples = [f"samples for the report: {each} ..." for each in SHOWN]
    assert pauses == [
        "measuring held-out losses ...",
        "saving a checkpoint ...",
        "writing the model ...",
        "opening the trained model ...",
        *samples,
        "writing the report ...",
    ]
    assert "Pseudo Giant, loss" in result.stdout and "Real Giant, loss" in result.stdout
    [head] = [line.split() for line in lines if "step  held-out loss" in line]
    assert head == ["time", "step", "held-out", "loss", "caption", "ask", "draw", "write", "match", "lm"]


def test_samples_of_every_trained_task_have_their_truth_and_their_pictures(model: Path) -> None:
    samples = json.loads((model / "samples" / "samples.json").read_text(encoding="utf-8"))
    assert {sample["task"] for sample in samples} == {"caption", "ask", "match", "draw", "write"}
    for sample in samples:
        assert sample["step"] == 3
        assert sample["task"] == "draw" or sample["reference"]
        for name in filter(None, (sample["input_image"], sample["output_image"])):
            assert (model / "samples" / name).is_file()
    captions = {sample["lang"]: sample["reference"] for sample in samples if sample["task"] == "caption"}
    assert captions["en"].endswith(" square") and captions["zh"].endswith("色方块")
    with Image.open(model / "samples" / "drawing-0.png") as drawing:
        assert drawing.size == (256, 256)


def test_the_same_command_again_ends_at_once_with_the_same_model(cli: Any, recipe: Path, model: Path) -> None:
    weights = (model / "model" / "model.safetensors").read_bytes()
    [summary] = cli.objects("train", recipe, "-o", model)
    assert (model / "model" / "model.safetensors").read_bytes() == weights
    assert summary["input"] == str(recipe)
    assert summary["output"] == str(model / "report.html")
    assert summary["steps"] == 3
    assert set(summary["held_out"]) == {"caption", "ask", "match", "draw", "write", "lm"}
    assert all(0 < loss < 20 for loss in summary["held_out"].values())


def test_progress_leaves_standard_output_to_json(cli: Any, recipe: Path, tmp_path: Path) -> None:
    result = cli("train", recipe, "steps=1", "eval_steps=1", "-o", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 1
    assert "held-out loss" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["no recipe 'nonsense'", "the package has"]),
        (["m6-smal"], ["did you mean m6-small"]),
        (["RECIPE", "optimiser.lr=1"], ["'optimiser", "did you mean 'optimizer"]),
        (["RECIPE", "steps=many"], ["steps"]),
        (["RECIPE", "--device", "gpu"], ["'gpu' is no device", "auto, cpu, cuda"]),
        (["RECIPE", "--device", "xpu:7"], ["no device 'xpu:7'", "it has"]),
        (["RECIPE", "--device", "xpu", "memory.host=4GiB"], ["no device 'xpu'"]),
        (["RECIPE", "steps"], ["key.subkey=value"]),
        (["RECIPE", "mix.0.data.path=/no/such.csv"], ["/no/such.csv"]),
        (["RECIPE", "-o", "FILE/run"], ["FILE"]),
        (["image-tokenizer", "stepz=3"], ["stepz", "did you mean 'steps'"]),
    ],
)
def test_mistakes_in_a_recipe_are_told_in_a_sentence(
    arguments: list[str], words: list[str], cli: Any, recipe: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    out = [] if "-o" in arguments else ["-o", str(tmp_path / "run")]
    places = {"RECIPE": str(recipe), "FILE": str(file)}

    def fill(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    sentence = cli.mistake("train", *map(fill, arguments), *out)
    assert [fill(word) for word in words if fill(word) not in sentence] == []


def test_a_run_folder_of_another_recipe_is_refused(cli: Any, recipe: Path, model: Path) -> None:
    assert "'seed' differs" in cli.mistake("train", recipe, "seed=7", "-o", model)


def test_an_image_tokenizer_is_trained_by_its_own_recipe(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openm6.data.embedded.load_emoji", lambda split: load_emoji(split).slice(0, 20))
    small = ["image_size=16", "grid=4", "widths=[4]", "decoder_blocks=[1]"]
    settings = ["steps=2", "batch=2", *(f"model.{each}" for each in small)]
    [made] = cli.objects("train", "image-tokenizer", *settings, "-o", tmp_path / "codes")
    assert made["output"] == str(tmp_path / "codes") and made["psnr"] > 0
    assert (tmp_path / "codes" / "image_tokenizer.safetensors").is_file()


def test_a_budget_in_the_command_makes_a_streamed_run(cli: Any, recipe: Path, tmp_path: Path) -> None:
    streamed = ("memory.host=4GiB", f"memory.disk={tmp_path}", "optimizer.kind=adamw", "log_every=1")
    result = cli("train", recipe, *streamed, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "memory budget 4.00 GiB" in result.stdout and "delinked" in result.stdout
    assert "of 4.0 GiB" in result.stdout and "computing 100%" in result.stdout
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "openm6-run").is_dir()
    [again] = cli.objects("train", recipe, *streamed, "-o", tmp_path / "run")
    assert again["model"] == str(tmp_path / "run" / "model")


def test_a_streamed_model_that_is_not_kept_has_a_report_all_the_same(
    cli: Any, recipe: Path, tmp_path: Path
) -> None:
    [summary] = cli.objects(
        "train", recipe, "memory.host=4GiB", "memory.export=false", "steps=1", "-o", tmp_path / "run"
    )
    assert summary["model"] is None and (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "samples").exists()
