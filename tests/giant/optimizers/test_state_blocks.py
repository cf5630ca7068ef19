"""The state of a part in blocks: every element once, and the same numbers as in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.giant import Adafactor, AdamW, share
from openm6.giant.optimizers import state_blocks
from openm6.giant.optimizers.eight_bits import PER_BLOCK
from openm6.giant.optimizers.state_blocks import block_layouts, block_name, blocks_of, owner, state_parts
from openm6.giant.streaming.updates import Updates
from openm6.giant.tiers.parts import SECTIONS, PartLayout, TensorSpec
from openm6.giant.tiers.store import TieredStore
from tests.giant.naive import Naive, differences
from tests.giant.streaming.test_step import OPTIMIZERS, TIERS, open_giant, train_both
from tests.giant.subjects import experts, m6


@given(
    st.lists(st.lists(st.integers(1, 2000), min_size=0, max_size=2), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1 << 10, 1 << 20),
)
def test_every_element_is_in_one_block(shapes: list[list[int]], dtype: torch.dtype, size: int) -> None:
    weights = [TensorSpec(str(index), tuple(shape), dtype) for index, shape in enumerate(shapes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_blocks, "STATE_BLOCK", size)
        blocks = blocks_of(weights, AdamW())
    if not blocks:
        assert sum(spec.nbytes for spec in AdamW().state_specs(weights)) < 2 * size
        return
    ranges = [each for block in blocks for each in block]
    for spec in weights:
        mine = [(start, stop) for name, start, stop in ranges if name == spec.name]
        assert [start for start, _ in mine] == [0, *(stop for _, stop in mine[:-1])]
        assert mine[-1][1] == spec.numel
        assert all(start % 1024 == 0 for start, _ in mine)
    for block in blocks:
        bytes = sum((stop - start) * (8 if dtype == torch.float32 else 10) for _, start, stop in block)
        assert bytes <= max(size, 10 * 1024)


def test_small_parts_and_adafactor_keep_their_state() -> None:
    weights = [TensorSpec("up", (4096, 4096), torch.bfloat16)]
    assert blocks_of(weights, Adafactor()) == blocks_of(weights, None) == ()
    assert blocks_of([TensorSpec("up", (64, 64), torch.bfloat16)], AdamW()) == ()
    assert len(blocks_of(weights, AdamW())) == 3


def test_names() -> None:
    names = {"slot-0000", block_name("slot-0000", 0), block_name("slot-0000", 1), "slot-0000.expert-0000"}
    assert state_parts("slot-0000", names) == ["slot-0000.state-00", "slot-0000.state-01"]
    assert state_parts("slot-0000.expert-0000", names) == ["slot-0000.expert-0000"]
    assert (
        owner("slot-0000.state-01") == "slot-0000"
        and owner("slot-0000.expert-0000") == "slot-0000.expert-0000"
    )


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize(("build", "global_clip"), [(experts, None), (experts, 0.5), (m6, 0.5)])
@pytest.mark.parametrize("tier", [TIERS[0], TIERS[3]])
def test_blocks_train_as_parts_do(
    tier: dict,
    build: Any,
    global_clip: float | None,
    optimizer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A delink, a step that is lost, and going on from the commit before it: bit for bit."""
    rule = OPTIMIZERS[optimizer]
    monkeypatch.setattr(state_blocks, "STATE_BLOCK", 1 << 11 if optimizer == "adamw" else 1 << 10)
    monkeypatch.setattr(state_blocks, "_ALIGNED", 64 if optimizer == "adamw" else PER_BLOCK)
    subject = build()
    share(subject.model, unit=2)
    naive = Naive(subject.copy(), rule, global_clip=global_clip)
    placement = dict.fromkeys(["slot-0000*", "slot-0001*"], tier)
    giant = open_giant(subject, rule, tmp_path, placement=placement, global_clip=global_clip)
    train_both(giant, naive, steps=2, micro_batches=2)
    assert any(owner(part) != part for part in giant.store.parts)
    giant.delink()
    naive.delink()
    train_both(giant, naive, steps=2, micro_batches=2)
    giant.commit()
    giant.step([subject.batch()])
    giant.close()
    with open_giant(subject, rule, tmp_path, global_clip=global_clip) as resumed:
        train_both(resumed, naive, steps=2, micro_batches=2)
        assert differences(resumed, naive) == []
        assert sum(owner(part) != part for part in resumed.store.parts) > 8


def test_weights_without_gradients_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_blocks, "STATE_BLOCK", 1 << 12)
    monkeypatch.setattr(state_blocks, "_ALIGNED", 64)
    specs = tuple(TensorSpec(name, (30, 40), torch.float32) for name in ("a", "b"))
    blocks = blocks_of(specs, AdamW())
    layouts = block_layouts("part", specs, blocks, AdamW())
    assert len(blocks) > 2
    updates = Updates(AdamW(), seed=0)
    updates.blocks = {"part": blocks}
    updates.begin(lr=0.1)
    with TieredStore(None, placement=lambda part: dict.fromkeys(SECTIONS, "host"), buffer_bytes=0) as store:
        with store.create("part", PartLayout(specs)) as views:
            for tensor in views["weights"].values():
                tensor.fill_(1.0)
        for name, layout in layouts.items():
            with store.create(name, layout):
                pass
        with store.use(updates.access("part")) as views:
            updates.apply(store, "part", views, {"a": torch.ones(30, 40)})
            assert torch.equal(views["weights"]["b"], torch.ones(30, 40))
            torch.testing.assert_close(views["weights"]["a"], torch.full((30, 40), 0.9 - 0.001))
    assert updates.counts.record() == {"updates": {"part": 1}, "updates_by_weight": {"part": {"a": 1}}}
