"""Makes a model a giant: its layers run on slots (sharing, delinking), and its slots live in tiers (streaming)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openm6.giant.optimizers.named import Adafactor, AdamW, AdamW8bit, Muon, PartOptimizer
    from openm6.giant.sharing.pseudo_to_real import average_shared_gradients, delink, share, slot_uses
    from openm6.giant.sharing.trigger import (
        CorrelationTrigger,
        FractionTrigger,
        StepTrigger,
        Trigger,
        adjacent_correlations,
    )
    from openm6.giant.streaming.engine import Giant
    from openm6.giant.streaming.opening import stream
    from openm6.giant.streaming.report import StepReport
    from openm6.giant.streaming.settings import Tiers

# Which file a name comes from; it is imported when the name is first asked for.
_HOME = {
    "Adafactor": "optimizers.named",
    "AdamW": "optimizers.named",
    "AdamW8bit": "optimizers.named",
    "CorrelationTrigger": "sharing.trigger",
    "FractionTrigger": "sharing.trigger",
    "Giant": "streaming.engine",
    "Muon": "optimizers.named",
    "PartOptimizer": "optimizers.named",
    "StepReport": "streaming.report",
    "StepTrigger": "sharing.trigger",
    "Tiers": "streaming.settings",
    "Trigger": "sharing.trigger",
    "adjacent_correlations": "sharing.trigger",
    "average_shared_gradients": "sharing.pseudo_to_real",
    "delink": "sharing.pseudo_to_real",
    "share": "sharing.pseudo_to_real",
    "slot_uses": "sharing.pseudo_to_real",
    "stream": "streaming.opening",
}

__all__ = [
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "CorrelationTrigger",
    "FractionTrigger",
    "Giant",
    "Muon",
    "PartOptimizer",
    "StepReport",
    "StepTrigger",
    "Tiers",
    "Trigger",
    "adjacent_correlations",
    "average_shared_gradients",
    "delink",
    "share",
    "slot_uses",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
