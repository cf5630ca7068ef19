"""Streamed inference: a Hugging Face model generates, and its layers' weights are fetched as they are called.

The model's own `generate` runs, with all of its options (sampling, beams, key-value cache). It is suspended at each
layer: the layer's weights are fetched, the layer runs with them, and they are released. While a layer computes, the
store reads the weights of the next layers. One token costs one read of all slots that are not resident. Batch
prompts to share this read.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from openm6.giant.models.frame_pass import Pass
from openm6.giant.models.slots import Slot, together
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.rehearse import MARGIN, SLACK, PeakMemory, RehearsedStore, Weights
from openm6.giant.streaming.setup import Setup
from openm6.giant.tiers.store import Access


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which a model and all of its modules are in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def serve(machine: Machine, work: Callable[[], Any]) -> Any:
    """The result of `work`, which may call the model as often as it likes. The layers run
    as the model calls them.
    """
    run = Pass(work)
    try:
        with machine.precision.autocast():
            run.go_on()
        last = len(machine.slots)
        while (call := run.call) is not None:
            slot = machine.slot_of(call.layer)
            if slot.index < last:  # another pass
                machine.announce(training=False)
            if slot.index != last:
                machine.entered(slot)
            last = slot.index
            with (
                machine.parts.use(Access(slot.name, ("weights",))) as views,
                call.modes.but(grad=False),
            ):
                leaves = machine.precision.leaves(views["weights"])
                out = machine.frame.run(call, leaves, call.args, call.kwargs)
            del call
            with machine.precision.autocast():
                run.go_on(out)
            del out
        return run.result
    finally:
        run.close()


def generate(machine: Machine, input_ids: Tensor, **options: Any) -> Any:
    """The ids of `model.generate(input_ids, **options)`: (B, T + new).

    Greedy unless the options, or the model's generation config, say otherwise.
    """
    model: Any = machine.frame.model
    check_prompt(model, input_ids, options.get("max_new_tokens"))
    options = {"attention_mask": torch.ones_like(input_ids), "use_cache": True, **options}
    with evaluating(model):
        return serve(machine, lambda: model.generate(input_ids, **options))


def check_prompt(model: nn.Module, input_ids: Tensor, max_new_tokens: int | None) -> None:
    """Raise ValueError for a model that cannot generate, and for values that are not (B, T) token ids."""
    if not hasattr(model, "generate"):
        raise ValueError(
            f"{type(model).__name__} has no generate of its own: save it and open it with openm6.load(folder)"
        )
    if input_ids.dim() != 2 or input_ids.is_floating_point() or not input_ids.numel():
        raise ValueError(
            "input_ids must be token ids of shape (batch, tokens), "
            f"not {tuple(input_ids.shape)} of {input_ids.dtype}"
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")


def new_tokens(model: Any, input_ids: Tensor, options: dict[str, Any]) -> int:
    """The most tokens that `generate` may add."""
    config = getattr(model, "generation_config", None)
    for source in (options, vars(config) if config is not None else {}):
        if source.get("max_new_tokens") is not None:
            return int(source["max_new_tokens"])
        if source.get("max_length") is not None:
            return max(1, int(source["max_length"]) - input_ids.shape[1])
    return 20  # what transformers does without


def memory_of_generating(
    setup: Setup, input_ids: Tensor, new_tokens: int, weights: Callable[[Slot, str], Weights]
) -> int:
    """Bytes that `generate` needs beside the weights, measured on the prompt.

    The weights of one slot stand in for those of all slots of its kind. The growth of the key-value cache is added.
    """
    place = setup.place
    there, parts = place.rehearsing(RehearsedStore(setup.slots, weights), together(setup.slots))
    with (
        place.fork_rng(),
        place.measuring(there, parts),
        place.computing(),
        PeakMemory(place.owns) as memory,
    ):
        machine = Machine.of(replace(setup, place=there), parts=parts, before_work=memory.mark)
        out = generate(machine, place.bring(input_ids), max_new_tokens=1, return_dict_in_generate=True)
        cache = sum(each.nbytes for each in _cached(getattr(out, "past_key_values", None)))
    # Twice: while a layer's cache grows, the old one is there as well, and the allocator keeps holes.
    growth = 2 * cache * new_tokens // input_ids.shape[1]
    return round((1 + MARGIN) * memory.peak) + growth + SLACK


def _cached(cache: Any) -> Iterator[Tensor]:
    for layer in getattr(cache, "layers", ()):
        yield from (each for each in tree_leaves(vars(layer)) if isinstance(each, Tensor))
