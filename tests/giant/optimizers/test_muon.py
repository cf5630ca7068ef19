"""Muon: orthogonal updates; one part at a time as for a whole model in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openm6.giant import Muon, share
from openm6.giant.optimizers.adamw import join
from openm6.giant.optimizers.muon import is_matrix, muon_update, orthogonalise
from openm6.giant.streaming import build
from openm6.giant.tiers.parts import TensorSpec
from openm6.giant.tiers.store import Access
from openm6.train.config import OptimizerConfig
from openm6.train.optimizer import build_optimizer
from tests.giant.naive import Naive, differences
from tests.giant.optimizers.test_named import state_of
from tests.giant.streaming.test_step import TIERS, open_giant, part_names, train_both
from tests.giant.subjects import Subject, experts, hugging_face, m6, toy

RULE = Muon(betas=(0.9, 0.98), weight_decay=0.05)
CONFIG = OptimizerConfig(kind="muon", betas=(0.9, 0.98), weight_decay=0.05)


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(16, 40), columns=st.integers(16, 40), seed=st.integers(0, 100))
def test_orthogonalise_flattens_the_singular_values(rows: int, columns: int, seed: int) -> None:
    m = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(orthogonalise(m))
    strong = torch.linalg.svdvals(m) > 0.02 * m.norm()  # five iterations do not lift what is almost nothing
    assert values.max() < 1.25
    assert values[strong].min() > 0.4
    # The singular vectors stay: between them the result is diagonal.
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    inner = u.mT @ orthogonalise(m) @ vh.mT
    torch.testing.assert_close(inner, inner.diagonal().diag(), rtol=0, atol=1e-3)


def test_which_parameters_are_matrices() -> None:
    conv, thin, linear = nn.Conv2d(16, 32, 3), nn.Conv2d(4, 32, 1), nn.Linear(16, 16)
    assert is_matrix(conv.weight.shape) and is_matrix(linear.weight.shape)
    assert not is_matrix(thin.weight.shape) and not is_matrix((32,))


@pytest.mark.parametrize(
    "build_subject",
    [toy, m6, lambda: m6(tie_embeddings=False), lambda: hugging_face("qwen3", "model.layers")],
)
def test_a_streamed_step_is_that_of_muon_in_memory(
    build_subject: Callable[[], Subject], tmp_path: Path
) -> None:
    """Which parameters are matrices, tables or neither, rates and weight decay included."""
    subject = build_subject()
    memory = subject.copy()
    memory.model.train()
    optimizer = build_optimizer(memory.model, CONFIG)
    assert any(group["matrices"] for group in optimizer.param_groups)
    placement = dict.fromkeys(part_names(subject), TIERS[3])
    with open_giant(subject, RULE, tmp_path, placement=placement) as giant:
        for _ in range(5):
            batch = subject.batch()
            optimizer.zero_grad()
            loss = memory.total(batch)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
            assert giant.step([batch], lr=1e-3).loss == pytest.approx(loss.item(), rel=1e-4)
        layers = memory.layers()
        for slot in giant.slots:
            with giant.store.use(Access(slot.name, ("weights",))) as views:
                for name, weight in views["weights"].items():
                    want = layers[slot.layers[0]].get_parameter(name)
                    torch.testing.assert_close(weight, want.detach(), rtol=1e-4, atol=1e-5)
        state = memory.model.state_dict()
        for name, parameter in giant.frame.parameters.items():
            torch.testing.assert_close(parameter.detach(), state[name], rtol=1e-4, atol=1e-4)


def test_parts_in_any_tier_delinked_and_resumed_are_those_in_memory(tmp_path: Path) -> None:
    """Experts too, bit for bit."""
    subject = experts()
    share(subject.model, unit=2)
    with open_giant(subject, RULE, tmp_path / "fit") as giant:
        fitted = giant.settings.optimizer
    assert isinstance(fitted, Muon) and fitted.experts == {"ffn.up", "ffn.down"} and fitted.tables
    naive = Naive(subject.copy(), fitted)
    placement = dict.fromkeys(["slot-0000*", "slot-0001*"], TIERS[3])
    giant = open_giant(subject, RULE, tmp_path, placement=placement)
    train_both(giant, naive, steps=2, micro_batches=2)
    giant.delink()
    naive.delink()
    train_both(giant, naive, steps=1, micro_batches=2)
    giant.commit()
    giant.close()
    with open_giant(subject, RULE, tmp_path) as giant:
        train_both(giant, naive, steps=2, micro_batches=1)
        assert differences(giant, naive) == []


def test_an_experts_matrix_alone_is_updated_as_in_its_stack() -> None:
    torch.manual_seed(0)
    stack, gradient, momentum = torch.randn(3, 16, 40), torch.randn(3, 16, 40), torch.randn(3, 16, 40)
    alone = [each.clone() for each in stack]
    moments = [each.clone() for each in momentum]
    muon_update(stack, gradient, momentum, lr=0.1, beta=0.95, weight_decay=0.1)
    for expert, each, moment in zip(alone, gradient, moments, strict=True):
        muon_update(expert, each, moment, in_out=True, lr=0.1, beta=0.95, weight_decay=0.1)
    assert torch.equal(stack, torch.stack(alone)) and torch.equal(momentum, torch.stack(moments))


def test_bf16_weights_are_masters_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    start = {"w": torch.randn(24, 40).bfloat16(), "norm": torch.randn(40).bfloat16()}
    exact = {name: weight.float() for name, weight in start.items()}
    rounded = {name: weight.clone() for name, weight in start.items()}
    states = [state_of(RULE, exact), state_of(RULE, rounded)]
    for step in range(1, 6):
        gradients = {name: torch.randn(weight.shape) for name, weight in start.items()}
        for weights, state in zip((exact, rounded), states, strict=True):
            copies = {name: gradient.clone() for name, gradient in gradients.items()}
            steps = dict.fromkeys(weights, step)
            assert RULE.update(weights, copies, state, lr=1e-3, steps=steps, seed=0)
    for name, weight in rounded.items():
        master = torch.empty(weight.numel())
        join(weight.view(-1), states[1][f"{name}.low"].view(-1), master)
        assert torch.equal(master.view(weight.shape), exact[name])
    spec = TensorSpec("w", (1024, 1024), torch.bfloat16)
    assert spec.nbytes + sum(each.nbytes for each in RULE.state_specs([spec])) == 8 * spec.numel


def test_its_own_memory_counts_in_the_budget(tmp_path: Path) -> None:
    """An update works on copies of a whole matrix: the placement must leave room for them."""
    specs = [TensorSpec("w", (64, 256), torch.float32), TensorSpec("norm", (64,), torch.float32)]
    assert RULE.scratch_bytes(specs) == 4 * (5 * 64 * 256 + 6 * 64 * 64)
    subject = toy(width=64)
    with open_giant(subject, RULE, tmp_path) as giant:
        beside = build.memory_beside(giant.frame, giant.slots, giant.settings)
        assert (
            beside == RULE.scratch_bytes(build.layouts(giant.slots, giant.settings)["slot-0000"].weights) > 0
        )
