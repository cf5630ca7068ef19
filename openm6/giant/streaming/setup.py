"""The tools of a run that exist before its parts are placed.

A rehearsal needs no more than these. A `Machine` is a setup with its parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Frame
from openm6.giant.models.slots import Slot
from openm6.giant.streaming import build
from openm6.giant.streaming.activations import Activations
from openm6.giant.streaming.compute import Precision, Scratch
from openm6.giant.streaming.settings import Settings
from openm6.giant.streaming.trial import Trials
from openm6.giant.streaming.updates import Updates
from openm6.giant.streaming.visits import Way
from openm6.giant.streaming.where import Host, open_place


@dataclass
class Setup:
    """The tools of a run, and the facts about its model that each pass finds and the next pass expects."""

    frame: Frame
    slots: list[Slot]
    place: Host  # where layers compute
    precision: Precision
    activations: Activations
    updates: Updates
    trace: Trace
    seed: int
    loss_weights: Mapping[str, float]
    summed: Callable[
        [Tensor], Tensor
    ]  # sums figures of this process's micro-batches over the ranks of the run
    ranked: bool
    scratch: dict[str, Scratch]  # for fp32 sums of gradients that come in bf16; one at a time uses each
    trials: Trials = field(default_factory=Trials)
    step: int = 0  # that is under way
    way: Way = "replayed"  # how gradients find their way between layers; see `visits`
    order: list[int] | None = None  # slots by number, in the order of the last pass; None: that of the layers
    held: list[str] = field(
        default_factory=list
    )  # slots that a step visits more than once, in use between visits
    last: int | None = None  # the layer after which the last pass ended


def new_setup(
    frame: Frame, slots: Sequence[Slot], settings: Settings, updates: Updates, trace: Trace
) -> Setup:
    """The setup of a run. Raises ValueError for a device that does not exist."""
    place = open_place(settings.device, settings.device_budget, build.layouts(slots, settings))
    group = settings.group
    return Setup(
        frame=frame,
        slots=list(slots),
        place=place,
        precision=Precision(settings.compute_dtype, place.torch_device),
        activations=place.open_activations(settings.tiers.activations, settings.disk),
        updates=updates,
        trace=trace,
        seed=settings.seed,
        loss_weights=settings.loss_weights,
        summed=_as_they_are if group is None else group.total,
        ranked=group is not None,
        scratch=defaultdict(lambda: Scratch(place.torch_device)),
    )


def _as_they_are(figures: Tensor) -> Tensor:
    return figures
