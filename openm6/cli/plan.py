"""openm6 plan: predicts the memory, time and price of a run, or measures this machine into a profile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from openm6.cli.output import Json, show

THIS = "cpu-2core"


def plan(
    recipe: Annotated[str | None, typer.Argument(help="A YAML file, or the name of a shipped one.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Dotted settings: memory.host=8GiB model.layers=24")
    ] = None,
    on: Annotated[
        str,
        typer.Option("--on", help="A hardware profile: a YAML file, or the name of one that comes along."),
    ] = THIS,
    tokens: Annotated[
        float | None, typer.Option(help="Tokens of the whole run; default: those of the recipe's steps.")
    ] = None,
    micro_tokens: Annotated[
        float | None, typer.Option(help="Tokens of a micro-batch on each device; default: the recipe's.")
    ] = None,
    scale: Annotated[
        bool, typer.Option(help="Also at 8 to 16,384 devices, with stragglers and failures.")
    ] = False,
    rehearse: Annotated[
        bool,
        typer.Option(
            help="First train a copy with fewer layers on this machine for some steps, and put times right by it."
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with a picture of a step to this file.")
    ] = None,
    probe: Annotated[bool, typer.Option(help="Measure this machine into a profile instead.")] = False,
    disk: Annotated[Path | None, typer.Option(help="With --probe: a folder on the disk to measure.")] = None,
    limit: Annotated[
        float | None, typer.Option(help="With --probe: the most seconds that it may take (default: 120).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --probe: the profile to write.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict memory, traffic, time, energy and price of a run, and suggest what to change.

    openm6 plan m6-10t --on 512xv100
    openm6 plan --probe -o mine.yaml
    openm6 plan m6-small --on mine.yaml --rehearse
    """
    if probe:
        if recipe is not None:
            raise ValueError("--probe measures this machine; it takes no recipe")
        _probe(disk or Path(), out or Path("hardware.yaml"), limit, as_json=as_json)
        return
    if recipe is None:
        raise ValueError("name a recipe to plan, such as quickstart, or measure this machine with --probe")
    for name, value in (("--disk", disk), ("--out", out), ("--limit", limit)):
        if value is not None:
            raise ValueError(f"{name} goes with --probe")
    if rehearse and micro_tokens is not None:
        raise ValueError("--rehearse trains on the recipe's own micro-batches; leave out --micro-tokens")
    for name, number in (("--tokens", tokens), ("--micro-tokens", micro_tokens)):
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be above 0, which {number:g} is not")
    _plan(recipe, overrides or [], on, tokens, micro_tokens, scale, rehearse, html, as_json=as_json)


def _plan(
    recipe: str,
    overrides: list[str],
    on: str,
    tokens: float | None,
    micro_tokens: float | None,
    scale: bool,
    rehearse: bool,
    html: Path | None,
    *,
    as_json: bool,
) -> None:
    from openm6.cli.arguments import check_writable
    from openm6.cli.train import makes_image_tokenizer
    from openm6.configs import find_recipe
    from openm6.plan.advice import advise, propose_micro_batches
    from openm6.plan.page import page
    from openm6.plan.plan import make_plan
    from openm6.plan.recipes import draw, job_of, on_hardware, open_hardware, resized, work_of
    from openm6.plan.rehearsal import rehearsed
    from openm6.plan.simulate import scale as at_sizes
    from openm6.plan.text import as_dict, text
    from openm6.plan.workload import Pieces
    from openm6.train.config import RunConfig
    from openm6.train.recipe import load_recipe

    hardware = open_hardware(on)
    path = find_recipe(recipe)
    if makes_image_tokenizer(path):
        raise ValueError(
            f"{recipe} trains an image tokenizer, which is not planned; name a recipe of a model"
        )
    config = load_recipe(path, overrides, RunConfig)
    if html is not None:
        check_writable(html)
    rates = hardware.device.rates
    with Console(stderr=True).status("drawing batches of the recipe's data"):
        work = [work_of(batch) for batch in draw(config)]
    job = job_of(config, work, bf16=rates.matrix_bf16 > rates.matrix_fp32)
    job = on_hardware(job, config, hardware)
    if micro_tokens is not None:
        job = job.with_work(resized(job.work, micro_tokens))
    pieces = Pieces(job.model, bf16=job.bf16)
    step = hardware.devices * job.work.tokens * (job.micro_batches if job.streamed else 1)
    with Console(stderr=True).status("planning a step") as status:  # on a terminal; nothing in a log file
        found = make_plan(job, hardware, tokens=tokens or config.steps * step, pieces=pieces)
        if rehearse:
            if not as_json:
                print("rehearsing with fewer layers ...", file=sys.stderr)
            status.update("rehearsing with fewer layers")
            found = rehearsed(found, config, pieces)
        status.update("trying what would be faster")
        advice, _ = advise(found, pieces)
        proposed = propose_micro_batches(found, pieces)
        if scale:
            status.update("planning for other numbers of devices")
        points = at_sizes(found.job, hardware, pieces=pieces) if scale else []
    said = advice
    if proposed is not None:
        said += f" With {proposed} micro-batches a step it would wait for less than a tenth of its time."
    if html is not None:
        html.write_text(page(found, said, title=f"{config.name} on {hardware.name}", points=points), "utf-8")
    result = {
        "input": recipe,
        "output": str(html) if html is not None else None,
        **as_dict(found, advice, proposed, points),
    }
    show(result, as_json=as_json, line=text(found, said, points))
    if found.problem is not None:
        raise typer.Exit(1)


def _probe(disk: Path, out: Path, limit: float | None, *, as_json: bool) -> None:
    from rich.console import Console

    from openm6.cli.arguments import check_writable
    from openm6.train.memory import keep_large_blocks

    keep_large_blocks()  # as training does; before the first large tensor
    from openm6.plan.probe import LIMIT, probe
    from openm6.train.recipe import dump_recipe

    if not disk.is_dir():
        raise ValueError(f"{disk} is no folder; name one on the disk to measure with --disk")
    if limit is not None and not limit > 0:
        raise ValueError(f"--limit is in seconds and above 0, which {limit:g} is not")
    check_writable(out)
    console = Console(stderr=True, quiet=as_json)
    console.print(
        f"measuring this machine: half a minute, {limit or LIMIT:g} seconds at most", highlight=False
    )
    with console.status("measuring this machine") as status:
        found = probe(
            out.stem,
            disk,
            limit=limit or LIMIT,
            on_progress=lambda doing: status.update(f"measuring this machine: {doing}"),
        )
    hardware = found.hardware
    dump_recipe(hardware, out)
    result = {
        "input": str(disk),
        "output": str(out),
        "errors": {dtype: fit.median_error for dtype, fit in found.fits.items()},
        "warnings": found.warnings,
        **hardware.model_dump(mode="json"),
    }
    rates, drive = hardware.device.rates, hardware.disk
    assert drive is not None
    lines = [
        f"{out}: matrix products {rates.matrix_fp32 / 1e9:,.0f} GFLOP/s in fp32, {rates.matrix_bf16 / 1e9:,.1f} in "
        f"bf16; element-wise {rates.elementwise_bytes / 1e9:.1f} GB/s; disk {drive.read / 1e9:.1f} GB/s read, "
        f"{drive.write / 1e9:.1f} written",
        f"  {hardware.about}",
        *(f"  warning: {each}" for each in found.warnings),
    ]
    show(result, as_json=as_json, line="\n".join(lines))
