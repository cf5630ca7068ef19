"""Slots that a step visits more than once: their weights and gradients wait in memory, for which there is room."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openm6.giant import AdamW, Giant, Tiers, share, stream
from openm6.giant.measure.budget import parse_bytes

WIDTH, LAYERS = 256, 8
WEIGHTS = 4 * (WIDTH * WIDTH + WIDTH)  # bytes of a layer
DISK: dict[str, Any] = {"slot-*": {"weights": "disk", "state": "disk"}}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(h))


class Loop(nn.Module):
    """All layers, as many times as `loops` says."""

    def __init__(self, loops: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loops = loops
        self.enter = nn.Linear(4, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for _ in range(self.loops):
            for layer in self.layers:
                h = layer(h)
        return h.pow(2).mean()


def opened(loops: int, folder: Path, *, buffer_bytes: int | None = None) -> Giant:
    tiers = Tiers(durability="none", placement=DISK, buffer_bytes=buffer_bytes)
    return stream(Loop(loops), budget="64GiB", disk=folder, tiers=tiers, optimizer=AdamW())


def batches() -> list[Any]:
    return [(torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)),) for seed in range(2)]


def test_gradients_that_wait_are_measured(tmp_path: Path) -> None:
    takes = []
    for loops in (1, 2):
        with opened(loops, tmp_path / str(loops)) as giant:
            giant.prepare(batches())
            takes.append(giant._takes)
    waiting = takes[1] - takes[0]
    # Of every layer the sums, and of one the gradient of the micro-batch at hand as well.
    assert (LAYERS - 1) * WEIGHTS < waiting < 2 * (LAYERS + 2) * WEIGHTS


def test_buffers_that_cannot_hold_what_waits_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with opened(2, tmp_path / "reference") as giant:
        want = [giant.step(batches()).loss for _ in range(2)]
    with (
        opened(2, tmp_path / "narrow", buffer_bytes=5 * WEIGHTS) as giant,
        pytest.raises(ValueError, match="stay in use between visits") as refused,
    ):
        giant.step(batches())
    least = parse_bytes(str(refused.value).split()[-1])
    with opened(2, tmp_path / "least", buffer_bytes=least) as giant:
        assert [giant.step(batches()).loss for _ in range(2)] == want


def test_a_delink_lays_out_memory_anew(tmp_path: Path) -> None:
    model = Loop(2)
    share(model, unit=4)
    giant = stream(model, disk=tmp_path, budget="64GiB", optimizer=AdamW(), tiers=Tiers(durability="none"))
    with giant:
        giant.step(batches())
        machine, before = giant.prepare(batches()), giant._takes
        assert machine.held == ["slot-0000", "slot-0001"]
        giant.delink()
        assert machine.held == [slot.name for slot in giant.slots] and len(giant.slots) == LAYERS
        giant.step(batches())
        assert giant._takes > before + (LAYERS - 4) * WEIGHTS


def test_activations_on_the_disk_are_said_to_save_nothing_where_a_graph_holds_them(tmp_path: Path) -> None:
    class Between(Loop):
        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            for layer in self.layers:
                h = layer(h) * 0.5
            return h.pow(2).mean()

    given: dict[str, Any] = {"budget": "64GiB", "tiers": Tiers(durability="none", activations="disk")}
    with (
        stream(Between(1), disk=tmp_path / "kept", **given) as giant,
        pytest.warns(UserWarning, match="Between reads layers' outputs between its layers"),
    ):
        giant.prepare(batches())
    with stream(Loop(1), disk=tmp_path / "replayed", **given) as giant, warnings.catch_warnings():
        warnings.simplefilter("error")
        giant.prepare(batches())
