"""What is known before the parts are placed, and what the machine takes over from it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from openm6.giant.measure.trace import Trace
from openm6.giant.streaming import build
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.rehearse import RehearsedStore, rehearse
from openm6.giant.streaming.setup import Setup, new_setup
from tests.giant.streaming.test_visited_twice import LAYERS, batches, opened


def setup_of(folder: Path, *, loops: int) -> tuple[Setup, RehearsedStore]:
    """The setup of a giant without parts after a rehearsal, and stand-ins for its parts."""
    with opened(loops, folder) as giant:
        updates = build.updates(giant.settings, giant.trace)
        setup = new_setup(giant.frame, giant.slots, giant.settings, updates, Trace())
        weights = build.first_weights(giant.settings, build.fill_from(giant.frame))
        takes, _ = rehearse(setup, batches(), weights, training=True)
        assert takes > 0
        return setup, RehearsedStore(setup.slots, weights)


def test_a_rehearsal_without_parts_finds_how_the_model_calls_its_layers(tmp_path: Path) -> None:
    once, _ = setup_of(tmp_path / "once", loops=1)
    assert (once.order, once.last, once.held) == (None, LAYERS - 1, [])
    twice, _ = setup_of(tmp_path / "twice", loops=2)
    assert twice.order == [*range(LAYERS)] * 2
    assert twice.held == [slot.name for slot in twice.slots]


def test_a_machine_takes_over_what_a_rehearsal_found_and_no_pass_of_it(tmp_path: Path) -> None:
    setup, parts = setup_of(tmp_path, loops=2)
    called: list[str] = []
    first = Machine.of(setup, parts=parts, before_work=called.append)
    first.chosen[0] = [1]
    again = Machine.of(first, parts=parts, before_work=called.append)
    for field in fields(Setup):
        assert getattr(again, field.name) is getattr(setup, field.name)
    assert again.chosen == {}
    first.before_work("loss")
    assert called == ["loss"]
