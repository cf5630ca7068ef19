"""A store against a dict of numbers: any order of calls and placement, tiny buffers; never stuck or stale."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openm6.giant.tiers.parts import PAGE, PartLayout, Section
from openm6.giant.tiers.store import Access, Tier, TieredStore, TierError, Views
from tests.giant.stores import LARGE, SMALL

NAMES = st.sampled_from([f"slot-{number}" for number in range(5)])
SECTIONS = st.lists(st.sampled_from(["weights", "state"]), unique=True).map(tuple)
BUFFERS = st.sampled_from([10, 11, 13, 20, 40]).map(lambda pages: pages * PAGE)
PLACES = st.dictionaries(
    st.tuples(NAMES, st.sampled_from(["weights", "state"])), st.sampled_from(["host", "disk"])
)
ACCESS = st.builds(Access, NAMES, SECTIONS, SECTIONS)
ACCESSES = st.lists(ACCESS, max_size=8)

Values = dict[str, tuple[PartLayout, dict[Section, int]]]


class Machine(RuleBasedStateMachine):
    """`now` is what the store must hold, `kept` what its last commit must; None before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now: Values = {}
        self.kept: Values | None = None
        self.clock = 0
        self.step = 0
        self.places: dict[tuple[str, Section], Tier] = {}

    @initialize(places=PLACES, buffer_bytes=BUFFERS)
    def begin(self, places: dict[tuple[str, Section], Tier], buffer_bytes: int) -> None:
        self.places = places
        self.store = TieredStore(self.folder, placement=self.placement, buffer_bytes=buffer_bytes)

    def placement(self, part: str) -> dict[Section, Tier]:
        return {section: tier for (name, section), tier in self.places.items() if name == part}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def write(self, part: str, sections: tuple[Section, ...], views: Views) -> None:
        _, values = self.now[part]
        for section in sections:
            value = self.tick()
            for tensor in views[section].values():
                tensor.fill_(value % 250)
            values[section] = value % 250

    def check(self, part: str, sections: tuple[Section, ...], views: Views) -> None:
        layout, values = self.now[part]
        for section in sections:
            assert set(views[section]) == {spec.name for spec in layout.specs(section)}
            for tensor in views[section].values():
                assert bool((tensor == values[section]).all()), (part, section, values[section], tensor)

    # -------------------- rules

    @rule(name=NAMES, layout=st.sampled_from([SMALL, LARGE]))
    def create(self, name: str, layout: PartLayout) -> None:
        if name in self.now:
            with pytest.raises(TierError, match="already"), self.store.create(name, layout):
                pass
            return
        self.now[name] = (layout, {})
        with self.store.create(name, layout) as views:
            self.write(name, ("weights", "state"), views)

    @rule(access=ACCESS)
    def use(self, access: Access) -> None:
        if access.part not in self.now:
            with pytest.raises(TierError, match="no part"), self.store.use(access):
                pass
            return
        with self.store.use(access) as views:
            self.check(access.part, access.sections, views)
            self.write(access.part, access.writes, views)

    @rule(accesses=ACCESSES, order=st.randoms(use_true_random=False), share=st.floats(0, 1))
    def announce_and_follow_more_or_less(self, accesses: list[Access], order, share: float) -> None:
        accesses = [access for access in accesses if access.part in self.now]
        self.store.announce(accesses)
        for access in accesses:
            if order.random() < share:
                self.use(access)

    @rule(
        outer=st.builds(Access, NAMES, SECTIONS, SECTIONS), inner=st.builds(Access, NAMES, SECTIONS, SECTIONS)
    )
    def use_inside_a_use(self, outer: Access, inner: Access) -> None:
        if outer.part == inner.part or not {outer.part, inner.part} <= set(self.now):
            return
        with self.store.use(outer) as views:
            self.check(outer.part, outer.sections, views)
            try:
                with self.store.use(inner) as inner_views:
                    self.check(inner.part, inner.sections, inner_views)
                    self.write(inner.part, inner.writes, inner_views)
            except TierError as error:
                assert "buffer_bytes" in str(error)
            self.write(outer.part, outer.writes, views)

    @rule(source=NAMES, name=NAMES)
    def copy(self, source: str, name: str) -> None:
        if source not in self.now or name in self.now:
            return
        self.store.copy(source, name)
        layout, values = self.now[source]
        self.now[name] = (layout, dict(values))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.now:
            self.store.remove(name)
            del self.now[name]

    @rule()
    def commit(self) -> None:
        self.step += 1
        self.store.commit(self.step, {"clock": self.clock})
        self.kept = {name: (layout, dict(values)) for name, (layout, values) in self.now.items()}

    @precondition(lambda self: self.kept is not None)
    @rule(places=PLACES, buffer_bytes=BUFFERS)
    def reopen(self, places: dict[tuple[str, Section], Tier], buffer_bytes: int) -> None:
        assert self.kept is not None
        self.store.close()
        self.places = places
        self.store, _ = TieredStore.open(self.folder, placement=self.placement, buffer_bytes=buffer_bytes)
        assert self.store.step == self.step
        self.now = {name: (layout, dict(values)) for name, (layout, values) in self.kept.items()}

    @invariant()
    def holds_the_parts_and_no_more_memory_than_allowed(self) -> None:
        if not hasattr(self, "store"):
            return
        assert sorted(self.store.parts) == sorted(self.now)
        pool = self.store._ahead._pool
        assert pool.nbytes <= pool.limit


@pytest.mark.timeout(100)
class TestMachine(Machine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=40)


@pytest.mark.timeout(100)
def test_a_long_run_with_two_threads_of_io(tmp_path: Path) -> None:
    """Hundreds of steps with buffers for two parts, reads and writes racing all the time."""
    names = [f"slot-{number}" for number in range(8)]
    with TieredStore(
        tmp_path, placement=lambda part: {}, buffer_bytes=7 * PAGE, durability="none", threads=3
    ) as store:
        for name in names:
            with store.create(name, SMALL):
                pass
        both: tuple[Section, ...] = ("weights", "state")
        for step in range(60):
            forward = [Access(name, ("weights",)) for name in names]
            backward = [Access(name, both, writes=both) for name in reversed(names)]
            store.announce([*forward, *backward])
            for access in [*forward, *backward]:
                with store.use(access) as views:
                    assert bool((views["weights"]["w"] == step).all())
                    if access.writes:
                        assert bool((views["state"]["w.m"] == -step).all())
                        views["weights"]["w"].fill_(step + 1)
                        views["state"]["w.m"].fill_(-step - 1)
