"""Models that a streamed step cannot be exact for are refused before anything is updated, with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.toy_wirings import D, Layer, Net, plain
from benchmarks.wirings import compare
from openm6.giant import Giant, Tiers, stream
from openm6.model.experts import Experts
from tests.giant.subjects import Subject, experts


def opened(net: Net, folder: Path) -> Giant:
    return stream(net, budget="64GiB", disk=folder, loss=net.loss, tiers=Tiers(durability="none"))


def means(net: Net, batches: list[Any]) -> float:
    net.eval()
    with torch.no_grad():
        return sum(net.loss(net, batch).item() for batch in batches) / len(batches)


# -------------------- layers inside of functions that have a backward pass of their own


class Reversible(torch.autograd.Function):
    """Runs layers without a graph, as reversible networks do."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, layers: nn.ModuleList) -> Tensor:
        for layer in layers:
            h = layer(h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _reversible(net: Net, h: Tensor, ids: Tensor) -> Any:
    return Reversible.apply(h, net.layers)


def _checkpointed(net: Net, h: Tensor, ids: Tensor, *, reentrant: bool) -> Any:
    for layer in net.layers:
        h = checkpoint(layer, h, use_reentrant=reentrant)  # pyright: ignore[reportAssignmentType]
    return h


@pytest.mark.parametrize(
    ("wire", "sentence"),
    [
        (_reversible, "layers.0 inside a torch.autograd.Function"),
        (partial(_checkpointed, reentrant=True), "layers.0 inside a torch.autograd.Function"),
        (partial(_checkpointed, reentrant=False), "let the model not use torch.utils.checkpoint"),
    ],
)
def test_layers_that_a_function_runs_are_refused_in_training_only(
    wire: Any, sentence: str, tmp_path: Path
) -> None:
    verdict, detail = compare(partial(Net, wire))
    assert verdict == "refused" and sentence in str(detail)
    net = Net(wire)
    batches = [net.draw(), net.draw()]
    want = means(net, batches)
    with opened(net, tmp_path) as giant:
        assert giant.evaluate(batches) == pytest.approx(want, rel=1e-6)


# -------------------- what is computed for one micro-batch and read for another


class Keeps(Layer):
    """Keeps a result without a gradient in itself."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.seen: Any = self.result(h)
        return super().forward(h)

    def result(self, h: Tensor) -> Any:
        return h.detach().pow(2).mean()


class KeepsANumber(Keeps):
    def result(self, h: Tensor) -> Any:
        return super().result(h).item()


class KeepsATable(Layer):
    """Makes a table when it is needed, and a longer one when that is too short."""

    table: Tensor | None = None

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.table is None or len(self.table) < h.shape[1]:
            self.table = torch.arange(h.shape[1])[:, None] / 10 + torch.ones(D)
        return super().forward(h * self.table[: h.shape[1]])


class ReadsOthers(Layer):
    """Reads what the layer before it kept."""

    before: tuple[Any, ...] = ()

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept = sum(layer.seen for layer in self.before)
        self.seen = h.detach().mean(1, keepdim=True)
        return super().forward(h + kept)


def _with_kept(net: Net, h: Tensor, ids: Tensor) -> Tensor:
    layers: list[Any] = list(net.layers)
    for layer in layers:
        h = layer(h)
    return net.lm(h, ids) + sum(layer.seen for layer in layers)


def _kept_on_the_model(net: Net, h: Tensor, ids: Tensor) -> Tensor:
    net.scale = h.detach().abs().mean()
    for layer in net.layers:
        h = layer(h) * net.scale
    return h


def _with_a_table(net: Net, h: Tensor, ids: Tensor) -> Tensor:
    table: Any = getattr(net, "table", ())
    if len(table) < h.shape[1]:
        net.table = table = torch.arange(h.shape[1])[:, None] / 10 + torch.ones(D)
    for layer in net.layers:
        h = layer(h, scale=table[: h.shape[1]])
    return h


def _hooked() -> Net:
    taken: list[Tensor] = []

    def wire(net: Net, h: Tensor, ids: Tensor) -> Tensor:
        taken.clear()
        for layer in net.layers:
            h = layer(h)
        return net.lm(h, ids) + taken[-1].mean()

    net = Net(wire)
    hook: Any = lambda module, args, out: taken.append(out.detach())  # noqa: E731
    net.layers[1].a.register_forward_hook(hook)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return net


def _reading() -> Net:
    net = Net(plain, ReadsOthers)
    layers: list[Any] = list(net.layers)
    for layer, before in zip(layers[1:], layers[:-1], strict=True):
        layer.before = (before,)
    return net


CROSSING: dict[str, tuple[Callable[[], Net], str]] = {
    "kept in a layer": (partial(Net, _with_kept, Keeps), "between its layers it reads a tensor"),
    "a number kept in a layer": (partial(Net, _with_kept, KeepsANumber), "keeps a number in itself (seen)"),
    "kept on the model": (partial(Net, _kept_on_the_model), "between its layers it reads a tensor"),
    "a hook's list": (_hooked, "between its layers it reads a tensor"),
    "read by the next layer": (_reading, "in layers.1 it reads a tensor"),
}
STAYING = {
    "kept, and read by nobody": partial(Net, plain, Keeps),
    "a table": partial(Net, plain, KeepsATable),
    "a table on the model": partial(Net, _with_a_table),
}


@pytest.mark.parametrize("name", CROSSING)
def test_what_is_read_for_another_micro_batch_is_refused(name: str, tmp_path: Path) -> None:
    make, sentence = CROSSING[name]
    verdict, detail = compare(make)
    assert verdict == "refused" and sentence in str(detail)
    torch.manual_seed(0)
    net = make()
    batches = [net.draw(), net.draw(), net.draw()]
    want = [means(net, [batch]) for batch in batches]
    with opened(net, tmp_path) as giant:
        with pytest.raises(ValueError, match="one micro-batch a step"):
            giant.evaluate(batches)
        # One after the other they are what they are in memory.
        assert [giant.evaluate([batch]) for batch in batches] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("name", STAYING)
def test_what_stays_or_is_not_read_is_no_reason(name: str) -> None:
    assert compare(STAYING[name])[0] == "equal"


def test_evaluating_several_micro_batches_gives_the_mean(tmp_path: Path) -> None:
    net = Net(plain, KeepsATable)
    batches = [net.draw() for _ in range(4)]
    want = means(net, batches)
    with opened(net, tmp_path) as giant:
        assert giant.evaluate(batches) == pytest.approx(want, rel=1e-6)
        assert giant.evaluate(batches) == pytest.approx(want, rel=1e-6)


# -------------------- mixtures of M6


def _keep_routing(subject: Subject) -> None:
    norm = subject.model.slots[1].ffn_norm
    norm.register_forward_hook(lambda module, args, out: setattr(module, "inner", out))


def _noise(subject: Subject) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = subject.model.slots[1].ffn_norm
    norm.register_forward_hook(lambda m, args, out: out + 0.1 * torch.randn(out.shape, generator=generator))


def _borrow(subject: Subject) -> None:
    weight = subject.model.norm.weight
    subject.model.slots[1].ffn_norm.register_forward_hook(lambda module, args, out: out * weight)


def _hook_experts(subject: Subject) -> None:
    subject.model.slots[1].ffn.register_forward_hook(lambda module, args, out: out * 2)


def _subclass(subject: Subject) -> None:
    class Doubled(Experts):
        def forward(self, h_BTD: Tensor) -> Tensor:
            return 2 * super().forward(h_BTD)

    subject.model.slots[1].ffn.__class__ = Doubled


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_keep_routing, "slots.1 keeps a result in itself"),
        (_noise, "slots.1 gives something else when it is run again"),
        (_borrow, "slots.1 reads a parameter"),
        (_hook_experts, "slots.1 is a mixture with hooks on its experts"),
        (_subclass, "slots.1 is a mixture with a forward of its own"),
    ],
)
def test_a_mixture_is_tried_like_any_layer(change: Any, sentence: str, tmp_path: Path) -> None:
    subject = experts()
    change(subject)
    giant = stream(
        subject.model, budget="64GiB", disk=tmp_path, loss=subject.loss, tiers=Tiers(durability="none")
    )
    with giant, pytest.raises(ValueError, match=sentence):
        giant.step([subject.batch()])


def test_a_mixture_that_passes_is_tried_once(tmp_path: Path) -> None:
    subject = experts()
    giant = stream(
        subject.model, budget="64GiB", disk=tmp_path, loss=subject.loss, tiers=Tiers(durability="none")
    )
    with giant:
        giant.step([subject.batch(), subject.batch()])
        trials = giant.prepare([subject.batch()]).trials
        assert trials._passed == set(range(4))
