"""Turns a recipe into a job that can be planned. Some drawn micro-batches show how much the batches hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from openm6.giant.measure.budget import format_bytes, parse_bytes, release_memory
from openm6.modalities.text import TextTokenizer
from openm6.plan.hardware import PROFILES, Hardware, profile_names
from openm6.plan.job import Job
from openm6.plan.workload import Work, mean_work
from openm6.tasks.collate import Batch
from openm6.train.batches import Batches
from openm6.train.config import RunConfig
from openm6.train.memory import native_bf16
from openm6.train.recipe import load_recipe
from openm6.train.tokenizers import SHIPPED, open_tokenizers

BATCHES = 16  # that are looked at


def open_hardware(name: str) -> Hardware:
    """Open a profile: a YAML file, or the name of a profile that comes with the package.

    Raises ValueError if there is no such profile, or if the file is not one.
    """
    path = Path(name)
    if not path.is_file():
        path = PROFILES / f"{name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return load_recipe(path, [], Hardware)
    near = get_close_matches(name, profile_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(profile_names())}"
    raise ValueError(f"there is no hardware profile '{name}', neither as a file nor with the package; {hint}")


def work_of(batch: Batch) -> Work:
    """The content of a batch."""
    rows, row = batch.stream.tokens_BT.shape
    images = batch.stream.images_NCHW
    return Work(
        rows=rows,
        row=row,
        tokens=batch.tokens,
        images=0 if images is None else len(images),
        texts=len(batch.text_at),
        cells=len(batch.cell_at),
    )


def plan_tokenizer(config: RunConfig) -> RunConfig:
    """The recipe with the shipped tokenizer, if it would train its own tokenizer of the same size or larger.

    A plan only counts tokens, so the shipped one will do.
    """
    path = SHIPPED / "tokenizer.json"
    if config.tokenizer is not None or config.init is not None or not path.is_file():
        return config
    fits = TextTokenizer.load(path).size <= config.model.vocab_text
    return config.model_copy(update={"tokenizer": path}) if fits else config


def draw(config: RunConfig, count: int = BATCHES) -> list[Batch]:
    """The first batches of a recipe, as its run will draw them (except for a tokenizer of its own).

    Raises ValueError for data or tokenizers that cannot be used.
    """
    config = plan_tokenizer(config)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, image_tokenizer = open_tokenizers(config, Path(folder))
    batches = Batches(
        config.mix,
        model=config.model,
        row=config.row,
        tokenizer=tokenizer,
        image_tokenizer=image_tokenizer,
        seed=config.seed,
    )
    return [next(batches) for _ in range(count)]


def job_of(config: RunConfig, works: Iterable[Work], *, bf16: bool | None = None) -> Job:
    """The recipe as a job. Its micro-batches are the mean of `works`, with memory for the largest of them.

    `bf16` is the meaning of `precision: auto` on the planned machine; by default its meaning on this one.
    """
    memory, here = config.memory, native_bf16()
    works = list(works)
    mean = mean_work(works)
    predicted = max(1.0, mean.texts + mean.cells)
    largest = max(max(w.positions / mean.positions, (w.texts + w.cells) / predicted) for w in works)
    auto = here if bf16 is None else bf16
    return Job(
        model=config.model,
        work=mean,
        largest=max(1.0, largest),
        micro_batches=memory.micro_batches if memory else 1,
        pseudo_micro_batches=memory.pseudo_micro_batches if memory else None,
        optimizer=config.optimizer.kind,
        weights=memory.weights if memory else "fp32",
        bf16=auto if config.precision == "auto" else config.precision == "bf16",
        unit=config.sharing.unit,
        delink_at=config.sharing.delink_at,
        streamed=memory is not None,
        budget=parse_bytes(memory.host) if memory else None,
        device_budget=_device_budget(config),
        durability=memory.durability if memory else "none",
        activations=memory.activations if memory else "host",
        process_bytes=release_memory(),
    )


def _device_budget(config: RunConfig) -> int | None:
    size = config.memory.device if config.memory else None
    return None if size is None or size.startswith("arena:") else parse_bytes(size)


def on_hardware(job: Job, config: RunConfig, hardware: Hardware) -> Job:
    """The job as it would run on this machine. Raises ValueError if the recipe asks for a device that the machine
    has not, for more of its memory than it has, or for the processor beside it.
    """
    asked = config.memory.device if config.memory else None
    if asked is not None and asked.startswith("arena:"):
        raise ValueError(
            f"memory.device={asked} is a stand-in on the processor, slower than the processor itself, so its time "
            "is not planned: give a size of a device's memory (8GiB), or leave memory.device out"
        )
    if hardware.host_link is None:
        what = f"memory.device: {asked}" if asked is not None else f"device: {config.device}"
        if asked is not None or config.device not in ("auto", "cpu"):
            raise ValueError(
                f"the recipe computes on a device ({what}), and the profile {hardware.name} has a processor alone: "
                f"name a profile with a device (--on), or leave out {what.partition(':')[0]}"
            )
        if job.streamed and job.activations == "device":
            raise ValueError(
                f"memory.activations is device, and the profile {hardware.name} has a processor alone: use host or "
                "disk, or name a profile with a device (--on)"
            )
        return job
    if config.device == "cpu":
        raise ValueError(
            f"the recipe computes on the processor (device: cpu), and the profile {hardware.name} has rates of a "
            "device: leave out device, or name a profile of a processor (--on)"
        )
    if job.device_budget is not None and job.device_budget > hardware.device.memory:
        raise ValueError(
            f"memory.device is {asked}, above the {format_bytes(hardware.device.memory)} that a device of "
            f"{hardware.name} has"
        )
    return job if hardware.has_three_tiers else job.on_devices()


def resized(work: Work, tokens: float) -> Work:
    """Micro-batches of the same kind with this many tokens."""
    times = tokens / work.tokens
    names = ("rows", "tokens", "images", "texts", "cells")
    return replace(work, **{name: times * getattr(work, name) for name in names})
