"""Resumes a run from a commit, if the model and the settings are the same; otherwise it refuses.

Only the things that decide the bytes of the parts and the meaning of the optimizer's state must be the same.
Learning rate, betas, weight decay, budget and placement may change between two starts of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openm6.giant.models.frame import Frame
from openm6.giant.models.slots import FRAME
from openm6.giant.optimizers.state_blocks import owner
from openm6.giant.streaming import build
from openm6.giant.streaming.settings import Settings
from openm6.giant.tiers.commit import CommitRecord
from openm6.giant.tiers.parts import PartLayout, TensorSpec


def settings_record(settings: Settings) -> dict[str, Any]:
    """The settings that may not change during a run, by their names in `stream`; plain JSON."""
    optimizer = settings.optimizer
    return {
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "weights_dtype": str(settings.weights_dtype).removeprefix("torch."),
        "global_clip": settings.global_clip is not None,
    }


def check(record: CommitRecord, frame: Frame, settings: Settings) -> None:
    """Compare a committed run with the model and the settings that are to continue it.

    Raises ValueError that names the first setting, or the first weight, that differs.
    """
    kept = record.extra["giant"]
    for name, now in settings_record(settings).items():
        before = kept.get("settings", {}).get(name, now)
        if before != now:
            raise _differs(settings, f"{name}={_word(before)}", f"{name}={_word(now)}")
    if len(kept["sharing"]) != len(frame.layers):
        raise _differs(settings, f"{len(kept['sharing'])} layers", f"a model of {len(frame.layers)}")
    frame.regroup(kept["sharing"])
    layouts = build.layouts(frame.slots, settings)
    if frame.parameters:
        layouts = {FRAME: build.frame_layout(frame, settings), **layouts}
    found = {name: part.layout for name, part in record.parts.items()}
    for name in sorted(layouts.keys() ^ found.keys(), key=lambda part: (owner(part) != part, part)):
        where = "the run" if name in found else "this model"
        raise _differs(settings, "other parts", f"{name}, which only {where} has")
    for name, layout in layouts.items():
        if difference := _first_difference(found[name], layout):
            before, now = difference
            raise _differs(settings, f"{before} in {name}", now)


def _first_difference(before: PartLayout, now: PartLayout) -> tuple[str, str] | None:
    for section in ("weights", "whole", "state", "gradients"):
        old, new = ({spec.name: spec for spec in getattr(layout, section)} for layout in (before, now))
        for name in [*old, *new]:
            if name not in old or name not in new or not _alike(old[name], new[name], section):
                return _tensor(section, name, old), _tensor(section, name, new)
        if list(old) != list(new):
            return f"its {section} in another order", "this order"
    return None


def _alike(before: TensorSpec, now: TensorSpec, section: str) -> bool:
    if section == "state":  # optimizers use it flat; versions differ in the shapes of blocks
        return (before.numel, before.dtype) == (now.numel, now.dtype)
    return before == now


def _tensor(section: str, name: str, specs: Mapping[str, Any]) -> str:
    kind = "weight" if section in ("weights", "whole") else section
    if name not in specs:
        return f"no {kind} {name}"
    spec = specs[name]
    return f"{kind} {name} of shape {spec.shape} in {str(spec.dtype).removeprefix('torch.')}"


def _word(value: object) -> str:
    return {True: "a number", False: "None"}[value] if isinstance(value, bool) else str(value)


def _differs(settings: Settings, before: str, now: str) -> ValueError:
    return ValueError(
        f"{settings.disk} holds a run with {before}, and it was opened with {now}: open it with the model and the "
        "settings of that run, or choose another folder"
    )
