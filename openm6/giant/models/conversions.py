"""Converts tensors whose names and shapes differ between checkpoint and model, by the rules of `transformers`.

The rules belong to a model's class. For example, Mixtral's experts are two tensors per layer in memory, but three
matrices per expert on the disk; other layers only have another name. `transformers` applies the rules to all
tensors of a model at once. This module applies them to one tensor, or to the few tensors that belong together:

    plan = LoadPlan(model, checkpoint.specs)        # names and shapes alone
    plan.names["model.norm.weight"]                 # the checkpoint's name of a tensor of the model
    plan.recipes["...mlp.experts.gate_up_proj"]     # the tensors of the checkpoint that make it, and how

    plan = SavePlan(model, groups)                  # the same way back
    for group in groups: plan.convert(group)

Shapes: E experts, D width, F width inside an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openm6.model.hf_folder import Entry


@dataclass(frozen=True)
class Recipe:
    """How tensors of a checkpoint, each with the pattern that it matched, make one or more tensors of the model."""

    converter: Any
    target: str  # the first tensor that it makes
    parts: tuple[tuple[str, str], ...]  # pattern, name in the checkpoint

    @property
    def keys(self) -> list[str]:
        return [key for _, key in self.parts]

    def make(self, model: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """All results of the recipe, by the model's names. `read(key)` returns a tensor of the checkpoint."""
        converter = deepcopy(self.converter)
        for pattern, key in self.parts:
            converter.add_tensor(self.target, key, pattern, read(key))
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def places(self, shapes: Mapping[str, Sequence[int]], out: Tensor) -> list[tuple[str, Tensor]] | None:
        """The place in `out` for each tensor of the checkpoint, if the rule only puts the tensors together.

        For example, (F, D) and (F, D) for each of E experts give (E, 2 F, D). Reading each tensor into its place
        takes no memory beside `out`. None for a rule that computes something else.
        """
        from transformers.core_model_loading import Concatenate, MergeModulelist

        operations = list(self.converter.operations)
        merge = operations.pop(0) if operations and type(operations[0]) is MergeModulelist else None
        concatenate = operations.pop(0) if operations and type(operations[0]) is Concatenate else None
        if operations or (merge is None and concatenate is None):
            return None
        lists = [
            [key for own, key in self.parts if own == pattern]
            for pattern in self.converter.source_patterns
            if any(own == pattern for own, _ in self.parts)
        ]
        if merge is None:
            lists = [[key] for keys in lists for key in keys]
        chunks: Sequence[Tensor] = [out]
        if concatenate is not None:
            sizes = []
            for keys in lists:
                shape = list(shapes[keys[0]])
                if merge is not None:
                    shape.insert(merge.dim, len(keys))
                sizes.append(shape[concatenate.dim])
            chunks = out.split(sizes, dim=concatenate.dim)
        assert len(chunks) == len(lists)
        return [
            (key, view)
            for keys, chunk in zip(lists, chunks, strict=True)
            for key, view in zip(keys, [chunk] if merge is None else chunk.unbind(merge.dim), strict=True)
        ]


class LoadPlan:
    """The sources of each tensor of a model.

    `names`     the name in the checkpoint, by the name in the model, of the tensors that are read unchanged
    `recipes`   how to make the other tensors, by the name in the model
    `surplus`   names in the checkpoint for which the model has no place

    The plan stores the rules that it used in the model, for `SavePlan`. Raises ValueError for tensors of the
    checkpoint that do not fit together.
    """

    def __init__(self, model: nn.Module, specs: Mapping[str, Entry]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules: list[Any] = get_model_conversion_mapping(model)  # pyright: ignore[reportArgumentType]
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        of_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        state = model.state_dict()
        prefix: str = model.base_model_prefix  # pyright: ignore[reportAssignmentType]

        self.names: dict[str, str] = {}
        self.recipes: dict[str, Recipe] = {}
        self.surplus: list[str] = []
        parts: dict[str, list[tuple[str, str]]] = {}
        for key in sorted(specs, key=dot_natural_key):  # the order in which experts are numbered
            name, pattern = rename_source_key(key, renamings, converters, prefix, state)
            if name not in state and key in state:  # the model's own name, mistaken for an old one
                name, pattern = key, None
            if name not in state:
                self.surplus.append(key)
            elif pattern is None:
                self.names.setdefault(name, key)
            else:
                parts.setdefault(name, []).append((pattern, key))
        for target, found in parts.items():
            recipe = Recipe(of_pattern[found[0][0]], target, tuple(found))
            self.recipes |= dict.fromkeys(_made_by(recipe, model, specs, state), recipe)
        # Like `from_pretrained`: a rule that loading did not use must not be reverted in saving.
        model._weight_conversions = [rule for rule in rules if rule.was_used()]  # pyright: ignore[reportArgumentType]


def _made_by(
    recipe: Recipe, model: nn.Module, specs: Mapping[str, Entry], state: Mapping[str, Tensor]
) -> list[str]:
    """The names of a recipe's results. They are made once without values, which checks that the shapes fit."""
    first, last = specs[recipe.keys[0]], recipe.keys[-1]
    where = f"{first.file}: the tensors {recipe.keys[0]} ... {last} ({len(recipe.parts)})"
    try:
        made = recipe.make(
            model, lambda key: torch.empty(specs[key].shape, dtype=specs[key].dtype, device="meta")
        )
    except (RuntimeError, ValueError, LookupError) as error:
        raise ValueError(f"{where} do not make {recipe.target}: {error}") from error
    for name, tensor in made.items():
        if name not in state:
            raise ValueError(f"{where} make {name}, for which {type(model).__name__} has no place")
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{where} make {name} of shape {tuple(tensor.shape)}, but the configuration asks for "
                f"{tuple(state[name].shape)}"
            )
    return list(made)


class SavePlan:
    """A model's tensors with the names and shapes of a checkpoint of its class.

    `groups` are the model's tensors, without values, in the groups in which they will come: one for each layer, one
    for the frame. No rule may combine tensors of two groups. `specs` are the tensors of the checkpoint.

    Raises ValueError if a rule combines two groups.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Mapping[str, Tensor]]) -> None:
        self._model = model
        self._apart: dict[frozenset[str], list[list[str]]] = {}
        self.specs: dict[str, Tensor] = {}
        if not hasattr(model, "base_model_prefix"):  # no model of `transformers`: no rules
            self.revert = dict[str, Tensor]
        else:
            self.revert = self._revert
        want = {name: tuple(made.shape) for name, made in self.revert({**_joined(groups)}).items()}
        for group in groups:
            self._apart[frozenset(group)] = self._split(group)
            for piece in self.convert(group):
                self.specs |= piece
        if {name: tuple(made.shape) for name, made in self.specs.items()} != want:
            raise ValueError(
                f"{type(model).__name__} cannot be saved a layer at a time: its checkpoints have tensors that are "
                "made of several layers"
            )

    def convert(self, group: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The tensors of the checkpoint that a group makes, a few at a time. They may be views of the group's
        tensors.
        """
        for names in self._apart[frozenset(group)]:
            yield self.revert({name: group[name] for name in names})

    def _revert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self._model, tensors)  # pyright: ignore[reportArgumentType]

    def _split(self, group: Mapping[str, Tensor]) -> list[list[str]]:
        """Split a group into the smallest pieces that convert separately to the same tensors as together."""
        whole = {name: tuple(made.shape) for name, made in self.revert(dict(group)).items()}
        alone: list[list[str]] = []
        made: dict[str, tuple[int, ...]] = {}
        for name, tensor in group.items():
            try:
                out = self.revert({name: tensor})
            except (RuntimeError, ValueError, LookupError):
                continue  # it takes others to convert it
            shapes = {each: tuple(value.shape) for each, value in out.items()}
            if shapes.items() <= whole.items() and not shapes.keys() & made.keys():
                alone.append([name])
                made |= shapes
        rest = [name for name in group if [name] not in alone]
        if rest:
            try:
                together = self.revert({name: group[name] for name in rest})
            except (RuntimeError, ValueError, LookupError):
                return [list(group)]
            made |= {each: tuple(value.shape) for each, value in together.items()}
            alone.append(rest)
        return alone if made == whole else [list(group)]


def _joined(groups: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for group in groups for name, tensor in group.items()}
