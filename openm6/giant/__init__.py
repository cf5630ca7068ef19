"""What makes a model a giant: layers on slots (sharing, delinking), and where the slots live (streaming)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openm6.giant.engine import Giant, StepReport, stream
    from openm6.giant.optimizers import Adafactor, AdamW, PartOptimizer
    from openm6.giant.sharing import average_shared_gradients, delink, share, slot_uses
    from openm6.giant.trigger import (
        CorrelationTrigger,
        FractionTrigger,
        StepTrigger,
        Trigger,
        adjacent_correlations,
    )

# Which file a name comes from; it is imported when the name is first asked for.
_HOME = {
    "Adafactor": "optimizers",
    "AdamW": "optimizers",
    "CorrelationTrigger": "trigger",
    "FractionTrigger": "trigger",
    "Giant": "engine",
    "PartOptimizer": "optimizers",
    "StepReport": "engine",
    "StepTrigger": "trigger",
    "Trigger": "trigger",
    "adjacent_correlations": "trigger",
    "average_shared_gradients": "sharing",
    "delink": "sharing",
    "share": "sharing",
    "slot_uses": "sharing",
    "stream": "engine",
}

__all__ = [
    "Adafactor",
    "AdamW",
    "CorrelationTrigger",
    "FractionTrigger",
    "Giant",
    "PartOptimizer",
    "StepReport",
    "StepTrigger",
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
