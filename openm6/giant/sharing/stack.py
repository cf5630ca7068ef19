"""A model's stack of sequential layers, seen as slots: the thin adapter under Pseudo-to-Real.

A *layer* is a step of the stack. A *slot* is the set of parameters that one or more layers run with. `sharing[i]`
is the slot of layer i. Two kinds of stack exist:

`SlotStack`  a module with `slots: nn.ModuleList` and `sharing: list[int]`, such as M6: one module per slot.
`TiedStack`  one `nn.ModuleList` of layers, as in Hugging Face models: one module per layer, because a layer's
             attention knows its own `layer_idx` for the key-value cache. Layers that share a slot hold the same
             `Parameter` objects. The map is read from the parameters themselves, so it survives `copy.deepcopy`,
             `.to(...)` and `load_state_dict` without any bookkeeping.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, cast

from torch import Tensor, nn

Copies = dict[nn.Parameter, list[nn.Parameter]]


class HasSlots(Protocol):
    """The interface of M6 and other slot-based models: layer i runs `slots[sharing[i]]`."""

    slots: nn.ModuleList
    sharing: list[int]


class Stack(ABC):
    """Layers on slots. `path` is the dotted name of its `ModuleList` in the model."""

    path: str

    @property
    @abstractmethod
    def sharing(self) -> list[int]:
        """Slot of every layer; slots are numbered in the order in which layers first use them."""

    @abstractmethod
    def slots(self) -> list[dict[str, nn.Parameter]]:
        """The named parameters of every slot."""

    @abstractmethod
    def regroup(self, sharing: Sequence[int]) -> Copies:
        """Give every layer the slot that `sharing` names, in place.

        A new slot starts from the slot of its first layer. The first new slot from an old one takes it as it is,
        and the next ones get copies. The returned dict names the copies of each old parameter. Old slots that no
        layer uses are dropped. Copies carry no gradient.
        """

    @abstractmethod
    def untied(self) -> AbstractContextManager[list[dict[str, nn.Parameter]]]:
        """Context in which every layer has its own `Parameter` objects, as if it were delinked.

        They alias the shared weights (no copy is made), so a backward pass inside yields each layer's own gradient.
        Yields the named parameters of every layer. On leaving, the stack is as before.
        """


class SlotStack(Stack):
    def __init__(self, owner: HasSlots, path: str) -> None:
        if set(owner.sharing) != set(range(len(owner.slots))):
            raise ValueError(
                f"{path}: sharing={owner.sharing} must use each of the {len(owner.slots)} slots and no other."
            )
        self.owner, self.path = owner, path

    @property
    def sharing(self) -> list[int]:
        return list(self.owner.sharing)

    def slots(self) -> list[dict[str, nn.Parameter]]:
        return [dict(slot.named_parameters()) for slot in self.owner.slots]

    def regroup(self, sharing: Sequence[int]) -> Copies:
        new_slots: list[nn.Module] = []
        copies: Copies = {}
        for layer in first_layers(sharing):
            slot = self.owner.slots[self.owner.sharing[layer]]
            if any(slot is taken for taken in new_slots):
                original, slot = slot, copy.deepcopy(slot)
                _record(copies, original.parameters(), slot.parameters())
            new_slots.append(slot)
        self._install(new_slots, list(sharing))
        return copies

    @contextmanager
    def untied(self) -> Iterator[list[dict[str, nn.Parameter]]]:
        slots, sharing = list(self.owner.slots), list(self.owner.sharing)
        layers = [_alias(slots[slot]) for slot in sharing]
        self._install(layers, list(range(len(sharing))))
        try:
            yield [dict(layer.named_parameters()) for layer in layers]
        finally:
            self._install(slots, sharing)

    def _install(self, slots: Sequence[nn.Module], sharing: list[int]) -> None:
        # The ModuleList object itself stays, because others may refer to it.
        del self.owner.slots[:]
        self.owner.slots.extend(slots)
        self.owner.sharing = sharing


class TiedStack(Stack):
    def __init__(self, layers: nn.ModuleList, path: str) -> None:
        self.layers, self.path = layers, path
        owner: dict[nn.Parameter, int] = {}
        for layer, slot in enumerate(self.sharing):
            for name, parameter in layers[layer].named_parameters():
                if owner.setdefault(parameter, slot) != slot:
                    raise ValueError(
                        f"{path}: layer {layer} shares {name!r} with another layer, but not all parameters; "
                        "untie it, since a slot is shared as a whole or not at all."
                    )

    @property
    def sharing(self) -> list[int]:
        keys = [tuple(map(id, layer.parameters())) for layer in self.layers]
        number = {key: slot for slot, key in enumerate(dict.fromkeys(keys))}
        return [number[key] for key in keys]

    def slots(self) -> list[dict[str, nn.Parameter]]:
        return [dict(self.layers[layer].named_parameters()) for layer in first_layers(self.sharing)]

    def regroup(self, sharing: Sequence[int]) -> Copies:
        old_sharing, firsts = self.sharing, first_layers(sharing)
        for layer, slot in enumerate(sharing):
            _check_same_shapes(self.path, self.layers, firsts[slot], layer)
        state = [_state(self.layers[layer]) for layer in firsts]
        taken: set[int] = set()
        copies: Copies = {}
        for slot, layer in enumerate(firsts):
            if old_sharing[layer] in taken:
                original, state[slot] = state[slot], copy.deepcopy(state[slot])
                _record(copies, _parameters(original), _parameters(state[slot]))
            taken.add(old_sharing[layer])
        for layer, slot in zip(self.layers, sharing, strict=True):
            assign(layer, state[slot])
        return copies

    @contextmanager
    def untied(self) -> Iterator[list[dict[str, nn.Parameter]]]:
        states = [_state(layer) for layer in self.layers]
        for layer, state in zip(self.layers, states, strict=True):
            alias = _aliases(state.values())
            assign(layer, {name: alias[id(tensor)] for name, tensor in state.items()})
        try:
            yield [dict(layer.named_parameters()) for layer in self.layers]
        finally:
            for layer, state in zip(self.layers, states, strict=True):
                assign(layer, state)


def find_stack(model: nn.Module, layers: str | None = None) -> SlotStack | TiedStack:
    """The stack of `model`: the one at the dotted path `layers`, or else the only one there is.

    A pair of `slots` and `sharing` comes before everything else. Without one, the candidates are the outermost
    `ModuleList`s of two or more layers whose parameters agree in name, shape and dtype. Another candidate is the
    list that is as long as a Hugging Face configuration says, if it has more weights than these; its layers may
    differ. If there are no such candidates, they are the outermost lists of layers that have parameters at all.

    Raises `ValueError` if the path leads to no `ModuleList`, or if there are no candidates, or several.
    """
    modules = dict(model.named_modules())
    slot_stacks = {
        _join(path, "slots"): module
        for path, module in modules.items()
        if isinstance(vars(module).get("sharing"), list)
        and isinstance(modules.get(_join(path, "slots")), nn.ModuleList)
    }
    lists = {path: module for path, module in modules.items() if isinstance(module, nn.ModuleList)}
    if layers is not None:
        if layers not in lists:
            known = ", ".join(lists) or "none"
            raise ValueError(f"{type(model).__name__} has no ModuleList at {layers!r}; it has: {known}.")
        candidates = [layers]
    elif slot_stacks:
        candidates = list(slot_stacks)
    else:
        equal = [path for path, module in lists.items() if _is_stack(module)]
        main = _main(model, lists)
        candidates = [path for path in equal if _outermost(path, [*equal, *main])]
        # Layers of several kinds are a stack as well, lest an image tower be taken for the model.
        if main and all(_weights(lists[path]) < _weights(lists[main[0]]) for path in candidates):
            candidates += main
        if not candidates:
            mixed = [path for path, module in lists.items() if _is_mixed_stack(module)]
            candidates = [path for path in mixed if _outermost(path, mixed)]
    if not candidates:
        raise ValueError(
            f"{type(model).__name__} has no ModuleList of two or more layers with parameters "
            f"(it has: {', '.join(lists) or 'none'}); name the one to use with layers='dotted.path'."
        )
    if len(candidates) > 1:
        raise ValueError(
            f"{type(model).__name__} has several stacks ({', '.join(candidates)}); "
            f"choose one, for instance with layers={_suggested(model, lists, candidates)!r}."
        )
    path = candidates[0]
    if path in slot_stacks:
        return SlotStack(cast(HasSlots, slot_stacks[path]), path)
    return TiedStack(lists[path], path)


def _main(model: nn.Module, lists: Mapping[str, nn.ModuleList]) -> list[str]:
    """The list of the language model's layers, if a configuration gives their number."""
    depth = _depth(model)
    deep = [path for path, module in lists.items() if len(module) == depth and _outermost(path, lists)]
    return sorted(deep, key=lambda path: -_weights(lists[path]))[:1]


def _suggested(model: nn.Module, lists: Mapping[str, nn.ModuleList], candidates: Sequence[str]) -> str:
    """One of several stacks, that of the language model: as deep as its configuration says, with most weights."""
    depth = _depth(model)
    return max(candidates, key=lambda path: (len(lists[path]) == depth, _weights(lists[path])))


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _depth(model: nn.Module) -> int | None:
    """The number of layers of the language model in a Hugging Face configuration."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        with suppress(ValueError):  # there are several such configurations
            depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
            return depth if isinstance(depth, int) and depth > 1 else None
    return None


def _outermost(path: str, paths: Iterable[str]) -> bool:
    return not any(path.startswith(f"{other}.") for other in paths)


def first_layers(sharing: Sequence[int]) -> list[int]:
    """The first layer of every slot, by slot."""
    return [sharing.index(slot) for slot in range(max(sharing) + 1)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _signature(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[object, ...]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}


def _is_stack(layers: nn.ModuleList) -> bool:
    signatures = [_signature(layer.named_parameters()) for layer in layers]
    return len(layers) > 1 and bool(signatures[0]) and all(each == signatures[0] for each in signatures)


def _is_mixed_stack(layers: nn.ModuleList) -> bool:
    return len(layers) > 1 and all(any(True for _ in layer.parameters()) for layer in layers)


def _check_same_shapes(path: str, layers: nn.ModuleList, first: int, layer: int) -> None:
    want, have = (_signature(_state(layers[each]).items()) for each in (first, layer))
    for name in sorted({*want, *have}):
        if want.get(name) != have.get(name):
            raise ValueError(
                f"{path}: layers {first} and {layer} cannot share a slot, since {name!r} is "
                f"{want.get(name, 'absent')} in the one and {have.get(name, 'absent')} in the other; "
                "choose a unit that keeps them apart."
            )


def _state(layer: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name.

    Buffers that are not saved (rotary tables, masks) follow from the layer's own configuration, like its
    `layer_idx`, and stay with the layer.
    """
    saved = layer.state_dict(keep_vars=True)
    buffers = {name: b for name, b in layer.named_buffers(remove_duplicate=False) if name in saved}
    return dict(layer.named_parameters(remove_duplicate=False)) | buffers


def _parameters(state: dict[str, Tensor]) -> list[nn.Parameter]:
    # A parameter that a layer uses under two names is listed once, as `Module.parameters` does.
    return list(dict.fromkeys(tensor for tensor in state.values() if isinstance(tensor, nn.Parameter)))


def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers, by dotted name, with these tensors."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, tensor)


def _record(copies: Copies, originals: Iterable[nn.Parameter], duplicates: Iterable[nn.Parameter]) -> None:
    for original, duplicate in zip(originals, duplicates, strict=True):
        copies.setdefault(original, []).append(duplicate)


def _aliases(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """For each parameter, by id, a new one on the same storage. A buffer maps to itself."""
    return {
        id(old): nn.Parameter(old.detach(), old.requires_grad) if isinstance(old, nn.Parameter) else old
        for old in tensors
    }


def _alias(slot: nn.Module) -> nn.Module:
    """A copy of the module tree on the same storage: `deepcopy` does not copy the objects in its memo."""
    return copy.deepcopy(slot, cast(dict[int, object], _aliases([*slot.parameters(), *slot.buffers()])))
