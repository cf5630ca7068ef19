"""Pseudo-to-Real: train with shared layers, then delink them (M6-10T, arXiv 2110.03888).

    share(model)                              # Pseudo Giant: all layers on one slot
    optimizer = torch.optim.AdamW(model.parameters())
    ...  loss.backward(); average_shared_gradients(model); optimizer.step()
    delink(model, optimizer)                  # Real Giant: a slot for each layer, same logits to the last bit

The gradient of a shared slot is the mean over the layers that use the slot ("Sharing Weights then Unsharing", arXiv
2110.03848). So at the delink the optimizer's moments already have the scale of a single layer. The delink needs no
noise: equal layers at different depths see different inputs.

Every function works on `M6`, and on any model with one `ModuleList` of like layers (Hugging Face's Llama, Qwen3,
GPT-2, ViT). For a model with several such lists, such as CLIP, name one with `layers="text_model.encoder.layers"`.
All functions raise `ValueError` if the model has no such stack, or if it has several and none is named.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

from openm6.giant.sharing.stack import Copies, Stack, find_stack

StateRule = Literal["copy", "reset", "rescale"]

# How a state tensor grows with the gradient: g -> c g gives state -> c**degree state. torch.optim's names.
GRADIENT_DEGREE = {
    "step": 0,
    "exp_avg": 1,  # Adam, AdamW, NAdam, RAdam, Adamax, SparseAdam
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "exp_inf": 1,  # Adamax
    "mu_product": 0,  # NAdam
    "momentum_buffer": 1,  # SGD, Muon; RMSprop's holds normalised gradients, see `_degree`
    "square_avg": 2,  # RMSprop, Adadelta
    "grad_avg": 1,
    "sum": 2,  # Adagrad
    "row_var": 2,  # Adafactor
    "col_var": 2,
    "variance": 2,
}


def share(model: nn.Module, *, unit: int | None = None, layers: str | None = None) -> None:
    """Let each run of `unit` consecutive layers (None: all layers) use the slot of its first layer, in place.

    Call this before the optimizer is built, because the parameters of the other layers leave the model. The slots'
    gradients are dropped.

    Raises `ValueError` if `unit` does not divide the number of layers, if layers in a run differ in their
    parameters, or if layers that share a slot now would have to separate (use `delink` for that).
    """
    stack = find_stack(model, layers)
    old = stack.sharing
    unit = len(old) if unit is None else unit
    if unit < 1 or len(old) % unit:
        raise ValueError(
            f"{stack.path}: unit={unit} does not divide {len(old)} layers; take one of {_divisors(len(old))}."
        )
    new = [layer // unit for layer in range(len(old))]
    if len(set(zip(old, new, strict=True))) > len(set(old)):
        raise ValueError(
            f"{stack.path}: unit={unit} would part layers that share a slot now ({old}); use delink."
        )
    stack.regroup(new)
    _drop_gradients(stack)


def delink(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    unit: int = 1,
    state: StateRule = "copy",
    layers: str | None = None,
) -> None:
    """Give every run of `unit` layers (1: every layer) its own slot, a copy of the shared one, in place.

    The model computes the same function, to the last bit. Call this between two optimizer steps: gradients of the
    slots are dropped. `unit` > 1 is one stage of a delink in several stages; it must divide every present run.

    `optimizer` (or several, if each holds a part of the parameters) continues with the delinked model. The first
    layer of a run keeps its `Parameter` objects. Each copy joins the param group of its original. Groups get the
    order of `model.parameters()`, as in a new optimizer. `state` decides about the optimizer state of the slots
    that split; other slots keep theirs:

    - `copy`: each new slot gets a copy of all state. Exact if gradients were averaged while shared.
    - `rescale`: for runs trained with autograd's plain sum: if a slot splits in k, first moments / k, second
      moments / k^2.
    - `reset`: the state is dropped and starts again at the next step. Warm the learning rate up again.

    A model with nothing left to delink stays as it is.

    Raises `ValueError`, before anything is changed, for a bad `unit` or `state`, for a trainable parameter of a
    shared slot that no optimizer holds, and for optimizer state that `rescale` does not know.
    """
    if state not in get_args(StateRule):
        raise ValueError(f"state={state!r} is unknown; use one of {', '.join(get_args(StateRule))}.")
    stack = find_stack(model, layers)
    new = split_runs(stack.sharing, unit, where=stack.path)
    shared = _parted_parameters(stack, new)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    if optimizers:
        _check_held(stack, shared, optimizers)
    if state == "rescale":
        _check_degrees(shared, optimizers)

    copies = stack.regroup(new)
    _drop_gradients(stack)
    for each in optimizers:
        _join_groups(model, each, copies)
        for original, duplicates in copies.items():
            _carry_state(each, original, duplicates, state)


def average_shared_gradients(model: nn.Module, *, layers: str | None = None) -> None:
    """Divide each shared slot's gradient by the number of its layers: autograd's sum becomes their mean.

    Call this once a step, after the last backward pass and before clipping and `optimizer.step()`. It does nothing
    on a Real Giant, so a training loop may always call it.
    """
    stack = find_stack(model, layers)
    uses = _uses(stack)
    if max(uses) == 1:
        return
    for count, slot in zip(uses, stack.slots(), strict=True):
        for parameter in slot.values():
            if count > 1 and parameter.grad is not None:
                parameter.grad.div_(count)


def slot_uses(model: nn.Module, *, layers: str | None = None) -> list[int]:
    """The number of layers on each slot: `[L]` for a Pseudo Giant, `[1] * L` for a Real Giant."""
    return _uses(find_stack(model, layers))


def _uses(stack: Stack) -> list[int]:
    sharing = stack.sharing
    return [sharing.count(slot) for slot in range(max(sharing) + 1)]


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def _drop_gradients(stack: Stack) -> None:
    for slot in stack.slots():
        for parameter in slot.values():
            parameter.grad = None


def split_runs(sharing: Sequence[int], unit: int, *, where: str) -> list[int]:
    """The sharing map after every slot's layers are split into runs of `unit`. The error message begins with
    `where`.

    Raises `ValueError` if `unit` does not divide every run.
    """
    if unit == 1:
        return list(range(len(sharing)))
    for slot in range(max(sharing) + 1):
        run = [layer for layer, used in enumerate(sharing) if used == slot]
        if unit < 1 or run != list(range(run[0], run[0] + len(run))) or len(run) % unit:
            raise ValueError(
                f"{where}: unit={unit} does not divide the run of layers {run} on slot {slot}; "
                "take one that does."
            )
    return [layer // unit for layer in range(len(sharing))]


def _parted_parameters(stack: Stack, new: Sequence[int]) -> dict[str, nn.Parameter]:
    """Parameters of the slots that the map `new` splits, by name."""
    old = stack.sharing
    parts = Counter(slot for slot, _ in set(zip(old, new, strict=True)))
    return {
        f"slot {number}: {name}": parameter
        for number, slot in enumerate(stack.slots())
        for name, parameter in slot.items()
        if parts[number] > 1
    }


def _check_held(stack: Stack, shared: dict[str, nn.Parameter], optimizers: Sequence[Optimizer]) -> None:
    held = {parameter for each in optimizers for group in each.param_groups for parameter in group["params"]}
    for name, parameter in shared.items():
        if parameter.requires_grad and parameter not in held:
            raise ValueError(
                f"{stack.path}: no param group holds {name!r}; pass the optimizer that trains this model, "
                "built after share (a list, if there are several)."
            )


def _check_degrees(shared: dict[str, nn.Parameter], optimizers: Sequence[Optimizer]) -> None:
    for optimizer in optimizers:
        for parameter in shared.values():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and _degree(optimizer, key) is None:
                    raise ValueError(
                        f"state='rescale' does not know how {type(optimizer).__name__}'s {key!r} grows with "
                        "the gradient; use 'copy' or 'reset', or add it to GRADIENT_DEGREE."
                    )


def _degree(optimizer: Optimizer, key: str) -> int | None:
    return 0 if isinstance(optimizer, RMSprop) and key == "momentum_buffer" else GRADIENT_DEGREE.get(key)


def _join_groups(model: nn.Module, optimizer: Optimizer, copies: Copies) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = {parameter: place for place, parameter in enumerate(names)}
    for group in optimizer.param_groups:
        # torch.optim keeps names beside the parameters if it was built from `named_parameters()`.
        old_names = (
            dict(zip(group["params"], group["param_names"], strict=True)) if "param_names" in group else {}
        )
        grown = [one for parameter in group["params"] for one in (parameter, *copies.get(parameter, ()))]
        group["params"] = sorted(grown, key=lambda parameter: order.get(parameter, len(order)))
        if old_names:
            group["param_names"] = [names.get(p) or old_names[p] for p in group["params"]]


def _carry_state(
    optimizer: Optimizer, original: nn.Parameter, duplicates: Sequence[nn.Parameter], rule: StateRule
) -> None:
    if original not in optimizer.state:
        return
    if rule == "reset":
        del optimizer.state[original]
        return
    own: dict[str, Any] = optimizer.state[original]
    if rule == "rescale":
        for key, value in own.items():
            if isinstance(value, Tensor) and (degree := _degree(optimizer, key)):
                value.div_((1 + len(duplicates)) ** degree)
    for duplicate in duplicates:
        optimizer.state[duplicate] = copy.deepcopy(own)
