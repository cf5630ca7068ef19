"""What a rehearsal measures: bytes that tensors hold at most, and by which piece of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openm6.giant import AdamW
from openm6.giant.streaming import rehearse
from openm6.giant.streaming.rehearse import PeakMemory
from tests.giant.streaming.test_step import open_giant
from tests.giant.subjects import MODELS

MiB = 1 << 20


def mebibytes(count: int) -> torch.Tensor:
    return torch.zeros(count * MiB, dtype=torch.uint8)


def test_live_and_peak_bytes_follow_tensors_and_not_their_views() -> None:
    before = mebibytes(8)
    with PeakMemory() as memory:
        first = mebibytes(4)
        views = [first[: 2 * MiB], first.view(2, -1), before.add_(1), before[:MiB]]
        assert memory.live == 4 * MiB
        second = first + 1
        assert memory.live == memory.peak == 8 * MiB
        del first, views
        assert memory.live == 4 * MiB
        del second
    assert (memory.live, memory.peak) == (0, 8 * MiB)


def test_a_backward_pass_is_counted() -> None:
    x = torch.randn(MiB // 4, requires_grad=True)  # 1 MiB
    with PeakMemory() as memory:
        (x * 2).square().sum().backward()
        assert memory.live == MiB  # the gradient
    assert memory.peak >= 3 * MiB  # 2 x, its square, and a gradient


def test_work_is_what_a_piece_adds_to_what_was_there() -> None:
    with PeakMemory() as memory:
        memory.mark("layer")
        kept = mebibytes(2)
        del kept
        kept = mebibytes(1)
        memory.mark("loss")
        scratch = mebibytes(5)
        del scratch
        memory.mark("layer")
        del kept
    assert memory.work == {"layer": 2 * MiB, "loss": 5 * MiB}


@pytest.mark.parametrize("activations", ["host", "disk"])
@pytest.mark.parametrize("model", ["m6", "qwen3", "toy"])
def test_a_step_takes_what_its_rehearsal_took(
    model: str, activations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of tensors: no more, so that nothing is kept a visit longer than it must be; and not far less."""
    monkeypatch.setattr(rehearse, "SLACK", 0)
    monkeypatch.setattr(rehearse, "MARGIN", 0.0)
    subject = MODELS[model]()
    batches = [subject.batch() for _ in range(6)]
    on_disk = {"slot-*": {"weights": "disk", "state": "disk"}}
    options: dict[str, Any] = {"placement": on_disk, "activations": activations}
    with open_giant(subject, AdamW(), tmp_path, **options) as giant:
        giant.step(batches)
        with PeakMemory() as memory:
            giant.step(batches)
        assert giant._takes / 2 < memory.peak <= giant._takes
