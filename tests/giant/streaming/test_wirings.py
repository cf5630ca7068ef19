"""Models of any wiring learn what they learn in memory, or are refused before anything is updated."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.toy_wirings import WIRINGS, Net
from benchmarks.wirings import TIERS, compare

REFUSED = {
    "batch_norm_between": "several places of a forward pass",
    "loss_in_a_layer": "keeps a result in itself (aux)",
    "counts_calls": "gives something else when it is run again",
    "changes_an_object": "changes what it is given",
    "changes_a_dict": "changes what it is given",
    "changes_its_input": "changes what it is given",
    "borrows_a_parameter": "past its arguments",
}


@pytest.mark.parametrize("name", WIRINGS)
def test_a_wiring_is_equal_to_memory_or_refused(name: str) -> None:
    verdict, detail = compare(WIRINGS[name])
    assert verdict == ("refused" if name in REFUSED else "equal"), detail
    if name in REFUSED:
        assert REFUSED[name] in str(detail)


@pytest.mark.parametrize(
    "name", ["plain", "tied", "side_of_hidden", "deep_supervision", "twice", "pair_to_the_end"]
)
@pytest.mark.parametrize("activations", ["disk", "host"])
def test_activations_and_weights_on_the_disk_change_nothing(name: str, activations: Any) -> None:
    on_disk: Any = {"slot-*": {"weights": "disk", "state": "disk"}}
    tiers = replace(TIERS, activations=activations, placement=on_disk)
    assert compare(WIRINGS[name], tiers)[0] == "equal"


Step = tuple[int, int, float, int]


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from([1.0, 0.7]), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
    st.sets(st.integers(0, 5)),
)
def test_any_wiring(steps: list[Step], tied: bool, read: set[int]) -> None:
    """Layers in any order, as often as they like, each with a side input of an earlier state or of the frame, a
    factor behind it, a skip from an earlier state; and a loss that reads some of the states."""

    def wire(net: Net, h: Tensor, ids: Tensor) -> Tensor:
        states = [h]
        for layer, side, factor, skip in steps:
            beside = [None, net.s(ids), net.p, states[skip % len(states)]][side]
            out: Any = net.layers[layer](states[-1], beside)
            out = out if factor == 1.0 else out * factor
            states.append(out if skip < 2 else out + states[skip % len(states)])
        return sum((states[k] for k in read if k < len(states)), states[-1])

    assert compare(partial(Net, wire, tied=tied))[0] == "equal"


def test_a_model_may_be_wired_in_another_way_from_one_batch_to_the_next() -> None:
    def wire(net: Net, h: Tensor, ids: Tensor) -> Tensor:
        first, *others = net.layers
        h = first(h)
        if ids.shape[1] % 2:  # nobody knows until such a batch comes
            h = h * 0.5 + net.e(ids)
        return others[1](others[0](h))

    assert compare(partial(Net, wire))[0] == "equal"


def test_hooks_on_a_layer_run_where_the_model_calls_it() -> None:
    def make() -> Net:
        net = WIRINGS["plain"]()

        def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return out * 2

        net.layers[1].register_forward_hook(double)
        return net

    assert compare(make)[0] == "equal"


def test_what_a_hook_takes_from_inside_a_layer_is_missed() -> None:
    """Its gradient would be: the sentence says so, before anything is updated."""

    def make() -> Net:
        taken: list[Tensor] = []

        def wire(net: Net, h: Tensor, ids: Tensor) -> Tensor:
            taken.clear()
            for layer in net.layers:
                h = layer(h)
            return net.lm(h, ids) + sum(each.pow(2).mean() for each in taken)

        net = Net(wire)
        net.layers[1].a.register_forward_hook(lambda module, args, out: taken.append(out))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        return net

    verdict, detail = compare(make)
    assert verdict == "refused" and "from inside layers.1" in str(detail)
