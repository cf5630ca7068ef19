"""openm6 train: trains a recipe, shows the progress, and writes a model and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from openm6.cli.output import Json, show
from openm6.configs import find_recipe

if TYPE_CHECKING:
    from openm6.train.config import RunConfig
    from openm6.train.image_tokenizer import ImageTokenizerRunConfig

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted settings: optimizer.lr=1e-3 steps=500")]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1, mps or xpu; default: the recipe's, which is auto."),
]


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default: runs/NAME.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train by a recipe. The same command continues a run that was stopped.

    openm6 train m6-small optimizer.lr=5e-4 steps=500
    """
    from openm6.giant.ranks.processes import first, launched

    path = find_recipe(recipe)
    overrides = with_device(overrides, device)
    if makes_image_tokenizer(path):
        if launched():
            raise ValueError(f"{recipe} trains an image tokenizer, in one process: start it without torchrun")
        from openm6.train.image_tokenizer import ImageTokenizerRunConfig
        from openm6.train.recipe import load_recipe

        config = load_recipe(path, overrides, ImageTokenizerRunConfig)
        folder = out or Path("runs") / config.name
        quality = run_image_tokenizer(config, folder, quiet=as_json)
        show(
            {"input": recipe, "output": str(folder), "psnr": quality, "steps": config.steps},
            as_json=as_json,
            line=f"image tokenizer: {folder}"
            + (f" ({quality:.1f} dB on unseen pictures)" if quality else ""),
        )
        return
    from openm6.train.config import RunConfig
    from openm6.train.recipe import load_recipe

    config = load_recipe(path, overrides, RunConfig)
    folder = out or Path("runs") / config.name
    if not first():  # rank 0 alone prints and writes the report
        from openm6.train.loop import train as run

        run(config, folder)
        return
    report, _ = train_and_report(config, folder, quiet=as_json)
    show(summary(recipe, config, folder, report), as_json=as_json, line=f"report: {report}")


def with_device(overrides: list[str] | None, device: str | None) -> list[str]:
    """The overrides, with `--device` as one more. Raises ValueError for a name that is not a device."""
    from openm6.model.device import check_device_name

    return [*(overrides or []), *([] if device is None else [f"device={check_device_name(device)}"])]


def makes_image_tokenizer(path: Path) -> bool:
    """Whether the recipe trains an image tokenizer: such recipes have a batch of pictures and no mix of tasks."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        return False  # `load_recipe` reports the error
    return isinstance(content, dict) and "batch" in content and "mix" not in content


def train_and_report(
    config: RunConfig, run_dir: Path, *, quiet: bool = False
) -> tuple[Path, list[dict[str, Any]]]:
    """Train with a live display (on standard error if `quiet`), then let the model answer held-out records.

    Returns the path of the report, and the samples in it. There are none if the model is not written at the end, or
    if the run's budget could not hold it.
    """
    import openm6
    from openm6.cli.progress import TrainingDisplay, Waiting
    from openm6.decode.samples import write_samples
    from openm6.train.loop import train as run
    from openm6.train.report import write_report
    from openm6.train.streamed import fits_in_memory

    console = Console(stderr=quiet, highlight=False)
    with TrainingDisplay(config, console=console) as display:
        folder = run(config, run_dir, on_progress=display.update)
    with Waiting(console) as say:
        samples: list[dict[str, Any]] = []
        if folder is not None and fits_in_memory(config):
            say("opening the trained model")
            m6 = openm6.load(folder, device=config.device)
            samples = write_samples(
                m6,
                config,
                run_dir / "samples",
                on_progress=lambda text: say(f"samples for the report: {text}"),
            )
        say("writing the report")
        return write_report(run_dir), samples


def run_image_tokenizer(
    config: ImageTokenizerRunConfig, run_dir: Path, *, quiet: bool = False
) -> float | None:
    """Train an image tokenizer on the embedded pictures; returns its PSNR on unseen renditions, in dB."""
    import numpy as np

    from openm6.cli.progress import TrainingDisplay
    from openm6.data.augment import over_white, stack_rgba
    from openm6.data.embedded import EmojiCorpus
    from openm6.train.image_tokenizer import train_image_tokenizer
    from openm6.train.metrics import read_metrics

    def pictures(split: str) -> np.ndarray:
        rgba, size = EmojiCorpus(split, image_size=config.model.image_size).images, config.model.image_size
        white = (over_white(stack_rgba(list(rgba[i : i + 512]), size)) for i in range(0, len(rgba), 512))
        return np.concatenate([(part * 255).round().byte().permute(0, 2, 3, 1).numpy() for part in white])

    with TrainingDisplay(config, console=Console(stderr=quiet, highlight=False)) as display:
        train_image_tokenizer(
            pictures("train"), config, run_dir, held_out_NHWC=pictures("val"), on_progress=display.update
        )
    return next(
        (line["psnr"] for line in reversed(read_metrics(run_dir)) if line.get("psnr") is not None), None
    )


def summary(recipe: str, config: RunConfig, run_dir: Path, report: Path) -> dict[str, Any]:
    """The result of a run for programs: the report, the model and the last held-out losses."""
    from openm6.train.metrics import read_metrics

    lines = read_metrics(run_dir)
    held_out = next((line for line in reversed(lines) if line.get("event") == "eval"), {})
    return {
        "input": recipe,
        "output": str(report),
        "model": str(run_dir / "model") if config.memory is None or config.memory.export else None,
        "steps": config.steps,
        "seconds": lines[-1]["time"],
        "held_out": {k[4:-5]: v for k, v in held_out.items() if k.startswith("val_") and k.endswith("_loss")},
    }
