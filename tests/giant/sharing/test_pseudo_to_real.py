from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer, RMSprop

from benchmarks.delink import Subject, naive_mean_gradients
from openm6.giant import average_shared_gradients, delink, share, slot_uses


def train(subject: Subject, optimizer: Optimizer, *, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        subject.loss(subject.model).backward()
        average_shared_gradients(subject.model)
        optimizer.step()


def covers_once(optimizers: list[Optimizer], model: nn.Module) -> bool:
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_share_puts_every_layer_on_the_first_one_and_delink_parts_them(subject: Subject) -> None:
    before = [[p.detach().clone() for p in layer] for layer in subject.parameters(subject.model)]
    size = sum(p.numel() for p in subject.model.parameters())
    slot_size = sum(p.numel() for p in before[0])

    share(subject.model)
    assert slot_uses(subject.model) == [4]
    assert sum(p.numel() for p in subject.model.parameters()) == size - 3 * slot_size
    for layer in subject.parameters(subject.model):
        assert all(torch.equal(p, q) for p, q in zip(layer, before[0], strict=True))

    delink(subject.model)
    assert slot_uses(subject.model) == [1] * 4
    assert sum(p.numel() for p in subject.model.parameters()) == size
    storages = {p.data_ptr() for layer in subject.parameters(subject.model) for p in layer}
    assert len(storages) == 4 * len(before[0])


@pytest.mark.bits
def test_a_trained_pseudo_giant_keeps_its_logits_to_the_last_bit_and_trains_on(
    subject: Subject,
) -> None:
    share(subject.model)
    optimizer = AdamW(subject.model.parameters(), lr=1e-2)
    train(subject, optimizer)
    before = subject.logits(subject.model)
    delink(subject.model, optimizer)
    assert torch.equal(subject.logits(subject.model), before)
    assert covers_once([optimizer], subject.model)

    # Without noise, equal layers part at the first step, since they see different inputs.
    train(subject, optimizer, steps=1)
    layers = subject.parameters(subject.model)
    assert all(not torch.equal(layers[0][0], layer[0]) for layer in layers[1:])


@pytest.mark.parametrize("flavour", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_with_copied_state_each_layer_steps_as_the_shared_slot_would_have(
    giant: Subject, flavour: dict[str, bool]
) -> None:
    rate, decay, eps, (beta1, beta2) = 1e-2, 0.1, 1e-8, (0.9, 0.95)
    share(giant.model)
    parameters = giant.model.parameters()
    optimizer = AdamW(parameters, lr=rate, weight_decay=decay, eps=eps, betas=(beta1, beta2), **flavour)
    train(giant, optimizer)
    shared, shared_optimizer = copy.deepcopy((giant.model, optimizer))
    delink(giant.model, optimizer)

    slot = giant.parameters(shared)[0]
    gradients = [torch.randn_like(p) for p in slot]
    old = [p.detach().clone() for p in slot]
    moments = [copy.deepcopy(shared_optimizer.state[p]) for p in slot]
    for layer in [slot, *giant.parameters(giant.model)]:
        for parameter, gradient in zip(layer, gradients, strict=True):
            parameter.grad = gradient.clone()
    optimizer.step()
    shared_optimizer.step()

    for layer in giant.parameters(giant.model):
        assert all(torch.equal(p, q) for p, q in zip(layer, slot, strict=True))
    for p, start, g, state in zip(slot, old, gradients, moments, strict=True):  # AdamW's fourth step, by hand
        m = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
        step = (m / (1 - beta1**4)) / ((v / (1 - beta2**4)).sqrt() + eps)
        torch.testing.assert_close(p.detach(), start * (1 - rate * decay) - rate * step)


def test_reset_makes_the_delinked_slots_start_anew_and_leaves_the_others(giant: Subject) -> None:
    share(giant.model)
    optimizer = AdamW(giant.model.parameters(), lr=1e-2)
    train(giant, optimizer)
    slot = {id(p) for p in giant.parameters(giant.model)[0]}
    kept = {id(p): copy.deepcopy(s) for p, s in optimizer.state.items() if id(p) not in slot}
    delink(giant.model, optimizer, state="reset")
    assert {id(p) for p in optimizer.state} == kept.keys() != set()
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(state[key], value) for key, value in kept[id(parameter)].items())

    twin = copy.deepcopy(giant.model)
    train(giant, optimizer, steps=1)
    fresh = AdamW(twin.parameters(), lr=1e-2)
    giant.loss(twin).backward()
    fresh.step()
    slots = [giant.parameters(model) for model in (giant.model, twin)]
    for ours, theirs in zip(*slots, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "build",
    [
        lambda p: AdamW(p, lr=1e-2, amsgrad=True),
        lambda p: SGD(p, lr=1e-2, momentum=0.9),
        lambda p: RMSprop(p, lr=1e-2, centered=True, momentum=0.9, eps=1e-20),
    ],
    ids=["adamw", "sgd", "rmsprop"],
)
def test_rescaled_sums_are_the_state_that_averaged_gradients_would_have_left(
    m6: Subject, build: Callable[[Any], Optimizer]
) -> None:
    """Autograd's sum over four layers is four times their mean.

    RMSprop's momentum buffer holds normalised gradients: the one tensor here that must not be scaled.
    """
    share(m6.model)
    summed, averaged = copy.deepcopy(m6.model), m6.model
    optimizers = {model: build(model.slots.parameters()) for model in (summed, averaged)}
    for _ in range(3):
        for mean, *parameters in zip(
            [torch.randn_like(p) for p in averaged.slots.parameters()],
            averaged.slots.parameters(),
            summed.slots.parameters(),
            strict=True,
        ):
            for parameter, factor in zip(parameters, (1, 4), strict=True):
                parameter.grad = mean * factor
        for optimizer in optimizers.values():
            optimizer.step()
    delink(averaged, optimizers[averaged], state="copy")
    delink(summed, optimizers[summed], state="rescale")
    for p, q in zip(averaged.slots.parameters(), summed.slots.parameters(), strict=True):
        want, have = optimizers[averaged].state[p], optimizers[summed].state[q]
        assert want.keys() == have.keys() != set()
        for key in want:
            torch.testing.assert_close(have[key], want[key], rtol=1e-5, atol=1e-7)


class Curious(Optimizer):
    """An optimizer with state of a name of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["whim"] = torch.randn_like(parameter)
                self.state[parameter]["count"] = 7


def test_state_of_any_name_is_copied_but_not_rescaled_blindly(giant: Subject) -> None:
    share(giant.model)
    optimizer = Curious(giant.model.parameters())
    train(giant, optimizer)
    with pytest.raises(ValueError, match="does not know how Curious's 'whim' grows with the gradient"):
        delink(giant.model, optimizer, state="rescale")
    assert slot_uses(giant.model) == [4]

    delink(giant.model, optimizer)
    first, *others = giant.parameters(giant.model)
    for layer in others:
        for p, q in zip(first, layer, strict=True):
            ours, theirs = optimizer.state[p], optimizer.state[q]
            assert ours["count"] == theirs["count"] == 7
            assert torch.equal(ours["whim"], theirs["whim"]) and ours["whim"] is not theirs["whim"]


def test_adafactor_goes_on_after_the_delink(giant: Subject) -> None:
    share(giant.model)
    optimizer = Adafactor(giant.model.parameters(), lr=1e-2)
    train(giant, optimizer)
    delink(giant.model, optimizer)
    train(giant, optimizer)
    assert covers_once([optimizer], giant.model)
    assert all(state["step"] == 6 for state in optimizer.state.values())


def test_the_shared_gradient_is_the_mean_over_the_layers(subject: Subject) -> None:
    real = copy.deepcopy(subject.model)
    share(subject.model)
    want = naive_mean_gradients(subject, real)
    subject.loss(subject.model).backward()
    average_shared_gradients(subject.model)
    for parameter, mean in zip(subject.parameters(subject.model)[0], want, strict=True):
        torch.testing.assert_close(parameter.grad, mean, rtol=1e-6, atol=1e-8)


def test_averaging_leaves_a_real_giant_and_everything_outside_the_stack_alone(giant: Subject) -> None:
    giant.loss(giant.model).backward()
    before = {name: p.grad.clone() for name, p in giant.model.named_parameters()}
    average_shared_gradients(giant.model)
    assert all(torch.equal(p.grad, before[name]) for name, p in giant.model.named_parameters())

    share(giant.model, unit=2)
    giant.loss(giant.model).backward()
    before = {name: p.grad.clone() for name, p in giant.model.named_parameters()}
    slots = {id(p) for layer in giant.parameters(giant.model) for p in layer}
    average_shared_gradients(giant.model)
    for name, p in giant.model.named_parameters():
        assert torch.equal(p.grad, before[name] / (2 if id(p) in slots else 1)), name


def test_delinking_in_several_steps(giant: Subject) -> None:
    model = giant.model
    share(model)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for unit, uses in ((2, [2, 2]), (1, [1] * 4)):
        train(giant, optimizer)
        before = giant.logits(model)
        delink(model, optimizer, unit=unit)
        assert torch.equal(giant.logits(model), before)
        assert slot_uses(model) == uses
        assert covers_once([optimizer], model)
    steps = {float(state["step"]) for state in optimizer.state.values()}
    assert steps == {6.0}


def test_rescale_divides_by_the_number_of_parts_that_a_slot_splits_in(m6: Subject) -> None:
    share(m6.model)
    optimizer = AdamW(m6.model.parameters(), lr=1e-2)
    m6.loss(m6.model).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state[m6.model.slots[0].ffn.up.weight])
    embedding = copy.deepcopy(optimizer.state[m6.model.embed.weight])
    delink(m6.model, optimizer, unit=2, state="rescale")  # one slot of four layers -> two slots of two layers
    for slot in m6.model.slots:
        after = optimizer.state[slot.ffn.up.weight]
        assert torch.equal(after["exp_avg"], before["exp_avg"] / 2)
        assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"] / 4)
        assert torch.equal(after["step"], before["step"])
    assert torch.equal(optimizer.state[m6.model.embed.weight]["exp_avg_sq"], embedding["exp_avg_sq"])


def test_param_groups_keep_their_settings_and_take_the_model_order(giant: Subject) -> None:
    model = giant.model
    share(model)

    def groups(named: Any) -> list[dict[str, Any]]:
        named = list(named)
        matrices = [(name, p) for name, p in named if p.ndim > 1]
        vectors = [(name, p) for name, p in named if p.ndim <= 1]
        return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]

    optimizer = AdamW(groups(model.named_parameters()), lr=1e-2)
    train(giant, optimizer)
    delink(model, optimizer)
    anew = AdamW(groups(model.named_parameters()), lr=1e-2)
    for ours, built in zip(optimizer.param_groups, anew.param_groups, strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in built["params"]]
        assert ours["param_names"] == built["param_names"]
        assert ours["weight_decay"] == built["weight_decay"]


def test_a_delinked_run_can_be_saved_and_resumed(giant: Subject) -> None:
    fresh = copy.deepcopy(giant.model)
    share(giant.model)
    optimizer = AdamW(giant.model.parameters(), lr=1e-2)
    train(giant, optimizer)
    delink(giant.model, optimizer)
    fresh.load_state_dict(copy.deepcopy(giant.model.state_dict()))
    resumed = AdamW(fresh.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, each in ((giant.model, optimizer), (fresh, resumed)):
        each.zero_grad()
        giant.loss(model).backward()
        each.step()
    assert torch.equal(giant.logits(giant.model), giant.logits(fresh))


def test_several_optimizers_and_frozen_parameters(giant: Subject) -> None:
    model = giant.model
    share(model)
    for p in giant.parameters(model)[0][:1]:
        p.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizers = [
        SGD([p for p in trainable if p.ndim == 2], lr=1e-2, momentum=0.9),
        AdamW([p for p in trainable if p.ndim != 2], lr=1e-2),
    ]
    giant.loss(model).backward()
    for optimizer in optimizers:
        optimizer.step()
    with pytest.raises(ValueError, match=r"no param group holds 'slot 0: .*weight'"):
        delink(model, optimizers[1])
    delink(model, optimizers)
    assert covers_once(optimizers, model)
    assert [layer[0].requires_grad for layer in giant.parameters(model)] == [False] * 4


def test_gradients_do_not_outlive_a_change_of_the_map(giant: Subject) -> None:
    giant.loss(giant.model).backward()
    share(giant.model)
    assert all(p.grad is None for p in giant.parameters(giant.model)[0])
    giant.loss(giant.model).backward()
    delink(giant.model)
    assert all(p.grad is None for layer in giant.parameters(giant.model) for p in layer)


def test_delinking_twice_changes_nothing(giant: Subject) -> None:
    optimizer = AdamW(giant.model.parameters(), lr=1e-2)
    train(giant, optimizer)
    parameters = [id(p) for p in giant.model.parameters()]
    states = {p: dict(state) for p, state in optimizer.state.items()}
    delink(giant.model, optimizer, state="reset")
    assert [id(p) for p in giant.model.parameters()] == parameters
    assert all(optimizer.state[p][key] is value for p, s in states.items() for key, value in s.items())


def test_wrong_settings_are_named_and_nothing_is_changed(giant: Subject) -> None:
    model = giant.model
    with pytest.raises(ValueError, match=r"unit=3 does not divide 4 layers; take one of 1, 2, 4\."):
        share(model, unit=3)
    with pytest.raises(ValueError, match="unit=0 does not divide 4 layers"):
        share(model, unit=0)
    share(model, unit=2)
    with pytest.raises(ValueError, match=r"unit=1 would part layers that share a slot.*0, 0, 1, 1"):
        share(model, unit=1)
    with pytest.raises(ValueError, match=r"unit=4 does not divide the run of layers \[0, 1\] on slot 0"):
        delink(model, unit=4)
    with pytest.raises(ValueError, match="state='keep' is unknown; use one of copy, reset, rescale"):
        delink(model, state="keep")  # pyright: ignore[reportArgumentType]
    stranger = AdamW(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="pass the optimizer that trains this model"):
        delink(model, stranger)
    assert slot_uses(model) == [2, 2]


def test_any_sharing_map_can_be_delinked_whole(m6: Subject) -> None:
    """A cycle over two slots has no runs, but every layer can still get a slot of its own."""
    del m6.model.slots[2:]
    m6.model.sharing = [0, 1, 0, 1]
    before = m6.logits(m6.model)
    with pytest.raises(ValueError, match=r"does not divide the run of layers \[0, 2\]"):
        delink(m6.model, unit=2)
    delink(m6.model)
    assert slot_uses(m6.model) == [1] * 4
    assert torch.equal(m6.logits(m6.model), before)


class Tower(nn.Module):
    """The smallest stack: a list of linear layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@st.composite
def unit_chains(draw: st.DrawFn) -> list[int]:
    """A number of layers, then ever smaller units, each dividing the one before."""
    chain = [draw(st.integers(2, 12))]
    while chain[-1] > 1:
        chain.append(draw(st.sampled_from([d for d in range(1, chain[-1]) if chain[-1] % d == 0])))
    return chain


@given(unit_chains())
def test_every_chain_of_units_preserves_the_function_and_the_optimizer(chain: list[int]) -> None:
    layers, x = chain[0], torch.randn(4, 3)
    tower = Tower(layers)
    share(tower)
    optimizer = SGD(tower.parameters(), lr=0.1, momentum=0.9)
    for unit in chain[1:]:
        optimizer.zero_grad()
        (tower(x) - x.roll(1, 0)).square().mean().backward()
        average_shared_gradients(tower)
        optimizer.step()
        before = tower(x)
        delink(tower, optimizer, unit=unit)
        assert torch.equal(tower(x), before)
        assert slot_uses(tower) == [unit] * (layers // unit)
        assert covers_once([optimizer], tower)
        assert len(optimizer.state) == len(list(tower.parameters()))
