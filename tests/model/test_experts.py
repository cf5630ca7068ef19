"""Experts against a loop over tokens; the grouped product against one expert at a time, to the last bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openm6.giant import delink, share
from openm6.model import M6, ModelConfig
from openm6.model.checkpoint import load_model, save_model
from openm6.model.experts import (
    Experts,
    Routing,
    balance_loss,
    collect_routings,
    drop_rate,
    run_expert,
    run_experts,
)
from openm6.model.hf import export_hf
from openm6.model.stream import causal_stream

KINDS: list[dict[str, Any]] = [
    {"experts": 6},
    {"experts": 6, "top_k": 2},
    {"experts": 6, "prototypes": 2},
    {"experts": 8, "prototypes": 4},
]


def config(experts: dict[str, Any], **changes: Any) -> ModelConfig:
    sizes = {"vocab_text": 32, "layers": 3, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 24}
    return ModelConfig.model_validate(sizes | {"experts": experts} | changes)


def layer(experts: dict[str, Any], *, seed: int = 0, **changes: Any) -> Experts:
    torch.manual_seed(seed)
    made = Experts(config(experts, **changes))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def token_by_token(experts: Experts, h_ND: Tensor) -> tuple[Tensor, int]:
    """What M6-T says, a token after the other: outputs and how many assignments found no place."""
    settings_, E = experts.config, experts.config.experts
    X = E // settings_.prototypes
    limit = len(h_ND) * settings_.active
    if settings_.capacity is not None:
        limit = math.ceil(settings_.capacity * len(h_ND) * settings_.active / E)
    load, dropped, outputs = [0] * E, 0, []
    for h in h_ND:
        total = torch.zeros_like(h)
        for first in range(0, E, X):
            probability = torch.softmax(experts.router[first : first + X] @ h, dim=0)
            for best in sorted(range(X), key=lambda x: -probability[x].item())[: settings_.top_k]:
                expert = first + best
                if load[expert] == limit:
                    dropped += 1
                    continue
                load[expert] += 1
                u = h @ experts.up[expert]
                a = F.silu(u[: len(u) // 2]) * u[len(u) // 2 :] if experts.gated else F.gelu(u)
                total = total + probability[best] * (a @ experts.down[expert])
        outputs.append(total)
    return torch.stack(outputs), dropped


@pytest.mark.parametrize("capacity", [None, 1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_gradients_and_drops_equal_a_loop_over_tokens(kind: dict[str, Any], capacity: float | None):
    experts = layer({**kind, "capacity": capacity}, ffn_kind="gelu" if capacity == 1 else "swiglu").double()
    h = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    inputs = (h, *experts.parameters())
    with collect_routings(experts) as routings:
        ours = experts(h)
    theirs, dropped = token_by_token(experts, h.flatten(0, 1))
    assert routings[0].dropped == dropped and (dropped > 0) == (capacity is not None)
    assert drop_rate(routings) == dropped / (18 * experts.config.active)
    torch.testing.assert_close(ours, theirs.view_as(ours))
    direction = torch.randn_like(ours)
    mine, reference = (
        torch.autograd.grad((y.view_as(ours) * direction).sum(), inputs) for y in (ours, theirs)
    )
    for got, expected, parameter in zip(mine, reference, inputs, strict=True):
        assert got.shape == parameter.shape
        torch.testing.assert_close(got, expected)


def test_a_dropped_token_passes_by_the_residual_and_evaluation_drops_none():
    experts = layer({"experts": 4, "capacity": 1.0})
    h = torch.randn(1, 1, 16).expand(1, 8, 16)  # all to one expert, which has two places
    out = experts(h)
    assert out[:, :2].abs().min() > 0 and torch.equal(out[:, 2:], torch.zeros(1, 6, 16))
    experts.eval()
    with collect_routings(experts) as routings:
        out = experts(h)
    assert routings[0].dropped == 0
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


@given(
    kind=st.sampled_from(KINDS),
    capacity=st.none() | st.floats(0.1, 2),
    N=st.integers(1, 60),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_a_routing_is_sorted_and_within_capacity(
    kind: dict[str, Any], capacity: float | None, N: int, seed: int
):
    experts = layer({**kind, "capacity": capacity}, seed=seed)
    routing = experts.route(torch.randn(N, 16))
    active, E = experts.config.active, experts.config.experts
    assert len(routing.token_M) == len(routing.gate_M) == N * active - routing.dropped
    if capacity is not None:
        assert routing.counts_E.max() <= math.ceil(capacity * N * active / E)
    parts = routing.slices()
    assert [part.stop - part.start for part in parts] == routing.counts_E.tolist() and len(parts) == E
    for part in parts:
        tokens = routing.token_M[part]
        assert torch.equal(tokens, tokens.unique())  # in the order of the stream, each once
    if capacity is None:
        assert torch.equal(routing.token_M.bincount(), torch.full((N,), active))


def test_balance_loss_is_that_of_switch():
    experts = layer({"experts": 6, "prototypes": 2}).double()
    h = torch.randn(40, 16, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for first in (0, 3):
        probability = torch.softmax(h @ experts.router[first : first + 3].T, dim=1)
        share = F.one_hot(probability.argmax(1), 3).double().mean(0)
        expected = expected + 3 * (share * probability.mean(0)).sum() / 2
    routing = experts.route(h)
    torch.testing.assert_close(routing.balance, expected)
    torch.testing.assert_close(balance_loss([routing, routing]), 2 * expected)
    gradient, reference = (torch.autograd.grad(x, experts.router)[0] for x in (routing.balance, expected))
    torch.testing.assert_close(gradient, reference)

    even = Experts(config({"experts": 4}))
    even.router.data = 50.0 * torch.eye(4, 16)
    assert even.route(torch.eye(4, 16)).balance.item() == pytest.approx(1.0)  # the least there is
    assert even.route(torch.eye(1, 16).expand(4, 16)).balance.item() == pytest.approx(4.0)  # the most


@pytest.mark.bits
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    D=st.integers(1, 24),
    F_=st.integers(1, 40),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_all_experts_at_once_equal_one_at_a_time_bit_for_bit(
    counts: list[int], D: int, F_: int, gated: bool, seed: int
):
    torch.manual_seed(seed)
    h = torch.randn(sum(counts), D, requires_grad=True)
    up = torch.randn(len(counts), D, F_ * (2 if gated else 1), requires_grad=True)
    down = torch.randn(len(counts), F_, D, requires_grad=True)
    y = run_experts(h, up, down, torch.tensor(counts), gated=gated)
    direction = torch.randn_like(y)
    dh, dup, ddown = torch.autograd.grad(y, (h, up, down), direction)
    start = 0
    for expert, count in enumerate(counts):
        rows = slice(start, start := start + count)
        alone = [t.detach().clone().requires_grad_() for t in (h[rows], up[expert], down[expert])]
        y_alone = run_expert(*alone, gated=gated)
        assert torch.equal(y_alone, y[rows])
        expected = torch.autograd.grad(y_alone, alone, direction[rows])
        for got, one in zip((dh[rows], dup[expert], ddown[expert]), expected, strict=True):
            assert torch.equal(got, one)


@pytest.mark.parametrize(("width", "ffn", "calls"), [(16, 24, 2), (16, 22, 0), (18, 24, 0)])
def test_the_grouped_product_runs_where_sizes_allow(
    monkeypatch: pytest.MonkeyPatch, width: int, ffn: int, calls: int
):
    called = []

    def counting(*args: Any, grouped_mm: Any = F.grouped_mm, **kwargs: Any) -> Tensor:
        called.append(args)
        return grouped_mm(*args, **kwargs)

    monkeypatch.setattr(F, "grouped_mm", counting)
    layer({"experts": 4}, width=width, ffn=ffn, ffn_kind="gelu")(torch.randn(2, 5, width))
    assert len(called) == calls


@pytest.mark.bits
@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_holds_one_expert_at_a_time_computes_the_same_bits(kind: dict[str, Any]):
    experts = layer({**kind, "capacity": 1.0})
    h = torch.randn(3, 11, 16, requires_grad=True)
    out = experts(h)
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (h, *experts.parameters()), direction)

    # Forward: route all, then expert by expert, without a graph.
    h_ND, direction_ND = h.detach().flatten(0, 1), direction.flatten(0, 1)
    with torch.no_grad():
        routing = experts.route(h_ND)
        streamed = torch.zeros_like(h_ND)
        for expert, rows in enumerate(routing.slices()):
            y = run_expert(h_ND[routing.token_M[rows]], experts.up[expert], experts.down[expert], gated=True)
            streamed.index_add_(0, routing.token_M[rows], routing.gate_M[rows, None] * y)
    assert torch.equal(streamed, out.flatten(0, 1))

    # Backward: every expert's gradients with it alone; those of the gates and rows wait for the router.
    dgate, dh = torch.empty_like(routing.gate_M), torch.zeros_like(h_ND)
    for expert, rows in enumerate(routing.slices()):
        tokens = routing.token_M[rows]
        own = [t.detach().requires_grad_() for t in (h_ND[tokens], routing.gate_M[rows])]
        own += [t[expert].detach().clone().requires_grad_() for t in (experts.up, experts.down)]
        y = own[1][:, None] * run_expert(own[0], own[2], own[3], gated=True)
        drows, dgate[rows], dup, ddown = torch.autograd.grad(y, own, direction_ND[tokens])
        dh.index_add_(0, tokens, drows)
        assert torch.equal(dup, gradients[2][expert]) and torch.equal(ddown, gradients[3][expert])
    h_ND.requires_grad_()
    through_router = torch.autograd.grad(experts.route(h_ND).gate_M, (h_ND, experts.router), dgate)
    assert torch.equal(through_router[0] + dh, gradients[0].flatten(0, 1))
    assert torch.equal(through_router[1], gradients[1])


def test_in_bf16_the_router_stays_fp32():
    experts = layer({"experts": 6, "prototypes": 2})
    h = torch.randn(2, 8, 16, requires_grad=True)
    plain = experts.route(h.flatten(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = experts.route(h.flatten(0, 1))
        out = experts(h)
    assert torch.equal(routing.token_M, plain.token_M) and torch.equal(routing.gate_M, plain.gate_M)
    assert routing.gate_M.dtype == out.dtype == torch.float32
    torch.testing.assert_close(out, experts(h), rtol=0.05, atol=0.1)
    out.square().sum().backward()
    for parameter in (h, *experts.parameters()):
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all() and parameter.grad.any()
    experts.bfloat16()
    assert experts(h.bfloat16()).dtype == torch.bfloat16
    assert experts.route(h.bfloat16().flatten(0, 1)).gate_M.dtype == torch.float32


@pytest.mark.bits
@torch.no_grad()
def test_delinking_a_mixture_changes_no_bit():
    torch.manual_seed(0)
    model = M6(config({"experts": 6, "prototypes": 2, "capacity": 1.0}, layers=4))
    share(model)
    tokens = torch.randint(32, (2, 9))
    with collect_routings(model) as routings:
        before = model.text_logits(model(causal_stream(tokens)))
    assert len(model.slots) == 1 and len(routings) == 4  # one a layer, not one a slot
    delink(model)
    assert len(model.slots) == 4
    assert torch.equal(model.text_logits(model(causal_stream(tokens))), before)
    assert len({slot.get_parameter("ffn.up").data_ptr() for slot in model.slots}) == 4


def test_collecting_ends_with_its_context():
    model = M6(config({"experts": 4}))
    with pytest.raises(RuntimeError), collect_routings(model) as routings:
        model(causal_stream(torch.zeros(1, 3, dtype=torch.int64)))
        raise RuntimeError
    model(causal_stream(torch.zeros(1, 3, dtype=torch.int64)))
    assert len(routings) == 3 and isinstance(routings[0], Routing)


@torch.no_grad()
def test_a_mixture_is_saved_and_loaded_and_has_no_hugging_face_family(tmp_path: Path):
    torch.manual_seed(0)
    model = M6(config({"experts": 6, "prototypes": 2, "capacity": 1.0})).eval()
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    tokens = torch.randint(32, (2, 9))
    assert torch.equal(loaded(causal_stream(tokens)), model(causal_stream(tokens)))
    with pytest.raises(ValueError, match="mixture of experts"):
        export_hf(model, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"experts": 6, "prototypes": 4}, "multiple of prototypes"),
        ({"experts": 6, "prototypes": 2, "top_k": 2}, "exclude each other"),
        ({"experts": 2, "top_k": 3}, "must not exceed"),
        ({"experts": 2, "capacity": 0.0}, "capacity"),
    ],
)
def test_a_config_that_means_nothing_is_refused(experts: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(experts)
