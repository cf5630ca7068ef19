"""What makes a model a giant: layers on slots (sharing, delinking), and where the slots live."""

from openm6.giant.sharing import average_shared_gradients, delink, share, slot_uses
from openm6.giant.trigger import (
    CorrelationTrigger,
    FractionTrigger,
    StepTrigger,
    Trigger,
    adjacent_correlations,
)

__all__ = [
    "CorrelationTrigger",
    "FractionTrigger",
    "StepTrigger",
    "Trigger",
    "adjacent_correlations",
    "average_shared_gradients",
    "delink",
    "share",
    "slot_uses",
]
