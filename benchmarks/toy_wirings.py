"""Small models with different wirings, for `benchmarks/wirings.py` and the tests of the streamed engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D, V = 8, 16  # width, vocabulary


class Layer(nn.Module):
    """x plus something of x, and of what is given beside it."""

    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, side: Tensor | None = None, scale: Tensor | float = 1.0) -> Tensor:
        out = h + torch.tanh(self.a(h)) * scale
        return out if side is None else out + self.b(side)


class Two(Layer):
    """Returns a pair: the hidden state, and an inner one."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Any:
        inner = torch.tanh(self.a(h))
        return h + inner, inner.pow(2)


class Named(NamedTuple):
    hidden: Tensor
    aux: Tensor


@dataclass
class Output:
    hidden: Tensor
    more: dict[str, Tensor]


class Nested(Two):
    """Returns what its class says, made of a pair."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.form(*super().forward(h))


class Normed(Layer):
    """Batch statistics inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(self.norm(h.flatten(0, 1)).view_as(h))


class Wide(nn.Module):
    """Parameters of other shapes than `Layer`'s."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, 3 * D, bias=False), nn.Linear(3 * D, D)

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return h + self.down(F.gelu(self.up(h)))


class Keeps(Layer):
    """Keeps a loss in itself, which the model reads when all layers have run."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.aux = self.b(h).pow(2).mean()
        return super().forward(h)


class Counts(Layer):
    """Another result at every call."""

    calls = 0

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return super().forward(h, scale=1.0 / self.calls)


class Remembers(Layer):
    """Changes an object that it is given, which the next layer reads."""

    def forward(self, h: Tensor, memory: Any = None) -> Tensor:
        seen = memory.seen
        memory.seen = self.b(h)
        return super().forward(h if seen is None else h + seen)


class Memory:
    """What `Remembers` changes."""

    seen: Tensor | None = None


class Fills(Layer):
    """Changes a dict that it is given, which the next layer reads."""

    def forward(self, h: Tensor, memory: dict[str, Tensor]) -> Tensor:
        seen = memory.get("seen")
        memory["seen"] = self.b(h)
        return super().forward(h if seen is None else h + seen)


class Overwrites(Layer):
    """Changes its input in place."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h.mul_(0.5)
        return super().forward(h)


class Borrows(Layer):
    """Reads a parameter that is the model's, through a function."""

    borrowed: Callable[[], Tensor]

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(h * self.borrowed())


Wire = Callable[["Net", Tensor, Tensor], Any]


class Net(nn.Module):
    """An embedding, three layers (or more), a head; `wire(net, h, ids)` gives the loss or the last hidden state."""

    def __init__(
        self, wire: Wire, layers: Callable[[], nn.Module] | list[nn.Module] = Layer, *, tied: bool = False
    ) -> None:
        super().__init__()
        self.wire = wire
        self.e, self.s = nn.Embedding(V, D), nn.Embedding(V, D)
        self.gate, self.head = nn.Linear(D, D), nn.Linear(D, V, bias=False)
        self.p, self.norm = nn.Parameter(torch.full((D,), 0.5)), nn.BatchNorm1d(D)
        self.layers = nn.ModuleList(layers if isinstance(layers, list) else [layers() for _ in range(3)])
        if tied:
            self.head.weight = self.e.weight
        for layer in self.layers:
            if isinstance(layer, Borrows):
                layer.borrowed = lambda: self.p

    def lm(self, h: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(self.head(h).flatten(0, 1), ids.flatten())

    def forward(self, ids: Tensor) -> Tensor:
        out = self.wire(self, self.e(ids), ids)
        return out if out.dim() == 0 else self.lm(out, ids)

    def draw(self) -> Any:
        return (torch.randint(0, V, (2, int(torch.randint(3, 7, ())))),)

    @staticmethod
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(*batch)


class Preferred(Net):
    """Trained as DPO does: a loss of two forward passes."""

    def draw(self) -> Any:
        return super().draw() + super().draw()

    @staticmethod
    def loss(model: nn.Module, batch: Any) -> Tensor:
        good, bad = batch
        return -F.logsigmoid(0.7 * (model(bad) - model(good)))


def chain(step: Callable[[Net, Tensor, nn.Module, Tensor, int], Tensor]) -> Wire:
    def wire(net: Net, h: Tensor, ids: Tensor) -> Tensor:
        for number, layer in enumerate(net.layers):
            h = step(net, ids, layer, h, number)
        return h

    return wire


def listed(wire: Callable[..., Any]) -> Wire:
    """A wire that gets the layers one by one."""
    return lambda net, h, ids: wire(net, h, ids, *net.layers)


def _deep(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    total = torch.zeros(())
    for layer in layers:
        h = layer(h)
        total = total + net.lm(h, ids)
    return total / 3


def _weighted(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    states = [h]
    for layer in layers:
        states.append(layer(states[-1]))
    return sum(w * s for w, s in zip(net.p.softmax(0), states, strict=False))  # pyright: ignore[reportReturnType]


def _aux(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    total = torch.zeros(())
    for layer in layers:
        h, aux = layer(h)
        total = total + aux.mean()
    return net.lm(h, ids) + 0.1 * total


def _threaded(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        h, aux = layer(h)
    return h + aux


def _data_dependent(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    for _ in range(1 + ids.shape[1] % 3):
        h = layers[0](h)
    return layers[2](layers[1](h))


def _stops_early(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        h = layer(h)
        if h.mean() > 0.05:
            break
    return h


def _in_place(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        h = layer(h)
        h += net.p
        h.mul_(0.9)
    return h


def _no_grad_first(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    with torch.no_grad():
        h = layers[0](h)
    return layers[2](layers[1](h))


def _detached(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    h = layers[0](h)
    return layers[2](layers[1](h.detach()) + h)


def _kept_aux(net: Net, h: Tensor, ids: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        h = layer(h)
    kept: list[Any] = [layer.aux for layer in layers]
    return net.lm(h, ids) + sum(kept)


def _remembering(make: Callable[[], Any]) -> Wire:
    def wire(net: Net, h: Tensor, ids: Tensor) -> Tensor:
        memory = make()
        for layer in net.layers:
            h = layer(h, memory)
        return h

    return wire


def _by_name(h: Any) -> Tensor:
    return h if isinstance(h, Tensor) else h.hidden


class ByKeyword(nn.Module):
    """Gets its hidden state by keyword, among others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Layer()

    def forward(self, *, extra: Mapping[str, Any], hidden: Tensor) -> Tensor:
        return self.inner(hidden, side=extra["pair"][1])


class Draws(Layer):
    """Dropped as a whole, by the model's own stochastic depth with a share of none: only the code is there."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return F.dropout(super().forward(h), 0.0, self.training)


plain = chain(lambda n, i, layer, h, k: layer(h))

WIRINGS: dict[str, Callable[[], Net]] = {
    "plain": partial(Net, plain),
    "tied": partial(Net, plain, tied=True),
    "side_embedding": partial(Net, chain(lambda n, i, layer, h, k: layer(h, n.s(i)))),
    "side_of_first": partial(Net, listed(lambda n, h, i, a, b, c: c(b(a(h, h), h), h))),
    "side_of_hidden": partial(Net, chain(lambda n, i, layer, h, k: layer(h, side=n.gate(h)))),
    "scale_is_parameter": partial(Net, chain(lambda n, i, layer, h, k: layer(h, scale=n.p))),
    "scale_is_parameter_tied": partial(Net, chain(lambda n, i, layer, h, k: layer(h, scale=n.p)), tied=True),
    "between": partial(Net, chain(lambda n, i, layer, h, k: layer(n.gate(h)) * 0.7)),
    "between_tied": partial(Net, chain(lambda n, i, layer, h, k: layer(n.gate(h)) * 0.7), tied=True),
    "scaled_between": partial(Net, chain(lambda n, i, layer, h, k: layer(h) * 3)),
    "batch_norm_between": partial(
        Net, chain(lambda n, i, layer, h, k: layer(n.norm(h.flatten(0, 1)).view_as(h)))
    ),
    "batch_norm_before": partial(
        Net, listed(lambda n, h, i, a, b, c: c(b(a(n.norm(h.flatten(0, 1)).view_as(h)))))
    ),
    "batch_norm_inside": partial(Net, plain, Normed),
    "skip_to_end": partial(Net, listed(lambda n, h, i, a, b, c: c(b(a(h))) + h)),
    "skip_of_layers": partial(Net, listed(lambda n, h, i, a, b, c: c(b(first := a(h)) + first))),
    "early_output_later": partial(Net, listed(lambda n, h, i, a, b, c: c(b(first := a(h)), first))),
    "deep_supervision": partial(Net, listed(_deep)),
    "weighted_states": partial(Net, listed(_weighted)),
    "backwards": partial(Net, listed(lambda n, h, i, a, b, c: a(b(c(h))))),
    "twice": partial(Net, listed(lambda n, h, i, a, b, c: a(c(b(a(h)))))),
    "twice_in_a_row": partial(Net, listed(lambda n, h, i, a, b, c: c(b(b(a(h)))))),
    "loop_of_all": partial(Net, listed(lambda n, h, i, a, b, c: c(b(a(c(b(a(h)))))))),
    "left_out": partial(Net, listed(lambda n, h, i, a, b, c: c(a(h)))),
    "parallel": partial(Net, listed(lambda n, h, i, a, b, c: a(h) + b(h) + c(n.s(i)))),
    "two_towers": partial(Net, listed(lambda n, h, i, a, b, c: c(a(h), b(n.s(i))))),
    "pair": partial(Net, chain(lambda n, i, layer, h, k: layer(h)[0]), Two),
    "pair_with_loss": partial(Net, listed(_aux), Two),
    "pair_to_the_end": partial(Net, listed(_threaded), Two),
    "list": partial(
        Net, chain(lambda n, i, layer, h, k: layer(h)[0]), lambda: Nested(lambda h, aux: [h, {"aux": aux}])
    ),
    "named_tuple": partial(Net, chain(lambda n, i, layer, h, k: _by_name(layer(h))), lambda: Nested(Named)),
    "dataclass": partial(
        Net,
        chain(lambda n, i, layer, h, k: _by_name(out := layer(h)) + 0.1 * out.more["aux"]),
        lambda: Nested(lambda h, aux: Output(h, {"aux": aux})),
    ),
    "by_keyword": partial(
        Net,
        chain(lambda n, i, layer, h, k: layer(hidden=h, extra={"pair": (k, n.s(i)), "name": "x"})),
        ByKeyword,
    ),
    "kinds": lambda: Net(plain, [Layer(), Wide(), Layer(), Wide()]),
    "kinds_between": lambda: Net(
        chain(lambda n, i, layer, h, k: layer(h) * 0.7 + n.p), [Wide(), Two0(), Layer()]
    ),
    "data_dependent": partial(Net, listed(_data_dependent)),
    "stops_early": partial(Net, listed(_stops_early)),
    "in_place_between": partial(Net, listed(_in_place)),
    "no_grad_first": partial(Net, listed(_no_grad_first)),
    "detached": partial(Net, listed(_detached)),
    "dropout_of_none": partial(Net, plain, Draws),
    "two_passes": partial(Preferred, plain),
    "two_passes_between": partial(Preferred, chain(lambda n, i, layer, h, k: layer(n.gate(h)))),
    "loss_in_a_layer": partial(Net, listed(_kept_aux), Keeps),
    "counts_calls": partial(Net, plain, Counts),
    "changes_an_object": partial(Net, _remembering(Memory), Remembers),
    "changes_a_dict": partial(Net, _remembering(dict), Fills),
    "changes_its_input": partial(Net, plain, Overwrites),
    "borrows_a_parameter": partial(Net, plain, Borrows),
}


class Two0(Two):
    """The first of a pair."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(h)[0]
