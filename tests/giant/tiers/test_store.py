"""The store as one memory: what was written is what is read, in any tier, in any order, in bounded memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from openm6.giant.measure.budget import release_memory
from openm6.giant.measure.trace import Trace
from openm6.giant.tiers.parts import PAGE, PartLayout, TensorSpec
from openm6.giant.tiers.store import Access, TierError
from tests.giant.stores import (
    BOTH,
    LARGE,
    PLACEMENTS,
    SMALL,
    add_parts,
    fill,
    has,
    holds,
    new_store,
    on_disk,
    on_host,
    reopen,
    set_part,
)

pytestmark = pytest.mark.timeout(30)  # a deadlock is a failure, not a wait
NAMES = [f"slot-{number}" for number in range(6)]


@pytest.mark.parametrize("durability", ["step", "none"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_steps_of_forward_and_backward(tmp_path: Path, placement: str, durability: str) -> None:
    store = new_store(tmp_path, placement=PLACEMENTS[placement], durability=durability)
    with store:
        add_parts(store, dict.fromkeys(NAMES, 0))
        for step in range(4):
            forward = [Access(name, ("weights",)) for name in NAMES]
            backward = [Access(name, BOTH, writes=BOTH) for name in reversed(NAMES)]
            store.announce([*forward, *backward])
            for access in forward:
                with store.use(access) as views:
                    assert holds(views["weights"], step)
            for access in backward:
                with store.use(access) as views:
                    assert holds(views["weights"], step) and holds(views["state"], -step)
                    fill(views["weights"], step + 1)
                    fill(views["state"], -step - 1)
            if durability == "step":
                store.commit(step, {})
        assert all(has(store, name, 4) for name in NAMES)


def test_everything_on_the_host_needs_no_folder() -> None:
    with new_store(None, placement=on_host) as store:
        add_parts(store, {"slot-0": 3})
        set_part(store, "slot-0", 4)
        store.copy("slot-0", "slot-1")
        assert has(store, "slot-1", 4)
        assert store.resident_bytes == 2 * SMALL.nbytes
        assert store.stats.bytes_read == store.stats.bytes_written == 0
        with pytest.raises(TierError, match="cannot commit"):
            store.commit(1, {})
    with new_store(None) as store, pytest.raises(TierError, match="slot-0 is placed on the disk"):
        add_parts(store, {"slot-0": 3})


def test_resident_views_are_the_memory_itself() -> None:
    with new_store(None, placement=on_host) as store:
        add_parts(store, {"slot-0": 3})
        with store.use(Access("slot-0", ("weights",))) as first:
            pass
        with store.use(Access("slot-0", ("weights",))) as second:
            assert first["weights"]["w"].data_ptr() == second["weights"]["w"].data_ptr()


def test_a_new_part_is_zero_until_it_is_filled(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 3})
        with store.create("slot-1", SMALL) as views:
            assert not any(tensor.any() for section in views.values() for tensor in section.values())
        assert store.parts == ["slot-0", "slot-1"] and store.layout("slot-1") == SMALL


def test_reads_run_ahead_as_far_as_buffers_allow(tmp_path: Path) -> None:
    with new_store(tmp_path, buffer_bytes=4 * PAGE) as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        with store.use(Access(NAMES[0], ("weights",))):
            pass
        before = store.stats
        store.announce(Access(name, ("weights",)) for name in NAMES)
        store._ahead.drain([each for part in store._parts.values() for each in part.sections.values()])
        ahead = store.stats.bytes_read - before.bytes_read
        assert 3 * PAGE <= ahead <= 4 * PAGE  # the first may be in memory still
        for name in NAMES:
            with store.use(Access(name, ("weights",))) as views:
                assert holds(views["weights"], 1)
        assert store.stats.bytes_read - before.bytes_read <= len(NAMES) * PAGE


def test_what_comes_back_soon_is_not_read_again(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        with store.use(Access(NAMES[0], ("weights",))):
            pass
        before = store.stats.bytes_read
        with store.use(Access(NAMES[0], ("weights",))) as views:
            assert holds(views["weights"], 1)
        assert store.stats.bytes_read == before


def test_any_order_is_served_whatever_was_announced(tmp_path: Path) -> None:
    with new_store(tmp_path, buffer_bytes=SMALL.nbytes) as store:
        add_parts(store, {name: number for number, name in enumerate(NAMES)})
        store.announce(Access(name, BOTH) for name in NAMES)
        for number in (5, 1, 4, 0, 0, 3, 2):
            assert has(store, NAMES[number], number)
        store.announce(Access(name, ("weights",), writes=("state",)) for name in NAMES)
        for number in (2, 3, 0, 5):
            set_part(store, NAMES[number], 7)
            assert has(store, NAMES[number], 7)
        store.announce([])


def test_a_use_inside_a_use(tmp_path: Path) -> None:
    body, *experts = NAMES
    with new_store(tmp_path, buffer_bytes=2 * SMALL.nbytes) as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        store.announce(Access(name, BOTH, writes=BOTH) for name in NAMES)
        with store.use(Access(body, BOTH, writes=BOTH)) as outer:
            for expert in experts:
                set_part(store, expert, 2)
            fill(outer["weights"], 5)
            fill(outer["state"], -5)
        assert has(store, body, 5) and all(has(store, expert, 2) for expert in experts)


def test_buffers_too_small_for_what_is_in_use_are_an_error_not_a_deadlock(tmp_path: Path) -> None:
    with new_store(tmp_path, buffer_bytes=4 * PAGE) as store:
        add_parts(store, {"slot-0": 1, "slot-1": 2})
        store.announce([Access("slot-1", BOTH)])
        with (
            store.use(Access("slot-0", BOTH)),
            pytest.raises(TierError, match=r"buffer_bytes=16,384 .* slot-1 .* at least 24,576\."),
            store.use(Access("slot-1", BOTH)),
        ):
            pass
        assert has(store, "slot-1", 2)
        with pytest.raises(TierError, match="slot-9"):
            add_parts(store, {"slot-9": 1}, LARGE)
        assert store.parts == ["slot-0", "slot-1"]
        assert sorted(path.name for path in tmp_path.glob("slot-9*")) == []


def test_sections_that_are_only_written_are_not_read(tmp_path: Path) -> None:
    with new_store(tmp_path, durability="none") as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        before = store.stats.bytes_read
        for number, name in enumerate(NAMES):
            with store.use(Access(name, (), writes=("state", "gradients"))) as views:
                fill(views["state"], -number)
                fill(views["gradients"], number)
        assert store.stats.bytes_read == before
        for number, name in enumerate(NAMES):
            with store.use(Access(name, ("weights", "state", "gradients"))) as views:
                assert holds(views["weights"], 1) and holds(views["state"], -number)
                assert holds(views["gradients"], number)


def test_reads_ahead_leave_room_for_what_is_only_written(tmp_path: Path) -> None:
    with new_store(tmp_path, buffer_bytes=8 * PAGE, durability="none") as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        before = store.stats.bytes_read
        accesses = [Access(name, ("weights",), writes=("gradients",)) for name in NAMES]
        store.announce(accesses)
        for access in accesses:
            with store.use(access) as views:
                fill(views["gradients"], 2)
        # Nothing that was read ahead had to make room, to be read once more.
        assert store.stats.bytes_read - before <= len(NAMES) * PAGE


def test_buffers_may_change_their_size(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        with pytest.raises(TierError, match="cannot hold"):
            add_parts(store, {"slot-9": 1}, LARGE)
        store.resize(LARGE.nbytes)
        add_parts(store, {"slot-9": 1}, LARGE)
        store.resize(SMALL.nbytes)
        store.announce(Access(name, BOTH) for name in NAMES)
        assert all(has(store, name, 1) for name in NAMES)
        assert store._ahead._pool.nbytes <= SMALL.nbytes


def test_gradients_are_scratch(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store:
        add_parts(store, {"slot-0": 1})
        with (
            pytest.raises(TierError, match="the gradients of slot-0 were never written"),
            store.use(Access("slot-0", ("gradients",))),
        ):
            pass
        with store.use(Access("slot-0", (), writes=("gradients",))) as views:
            fill(views["gradients"], 3)
        store.commit(1, {})
        with store.use(Access("slot-0", ("gradients",))) as views:
            assert holds(views["gradients"], 3)
        assert (tmp_path / "slot-0.b").stat().st_size == 3 * PAGE
    store, _ = reopen(tmp_path)
    with store, pytest.raises(TierError, match="never written"), store.use(Access("slot-0", ("gradients",))):
        pass


@pytest.mark.parametrize("target", PLACEMENTS)
@pytest.mark.parametrize("source", PLACEMENTS)
def test_delinking_copies_between_tiers(tmp_path: Path, source: str, target: str) -> None:
    def placement(part: str):
        return PLACEMENTS[source if part == NAMES[0] else target](part)

    with new_store(tmp_path, placement=placement) as store:
        add_parts(store, {NAMES[0]: 1})
        store.commit(1, {})
        set_part(store, NAMES[0], 2)
        store.announce([Access(NAMES[0], BOTH)])
        for name in NAMES[1:]:
            store.copy(NAMES[0], name)
        set_part(store, NAMES[1], 3)
        store.commit(2, {})
    store, _ = reopen(tmp_path)
    with store:
        values = {name: 3 if name == NAMES[1] else 2 for name in NAMES}
        assert all(has(store, name, value) for name, value in values.items())


def test_parts_come_and_go(tmp_path: Path) -> None:
    with new_store(tmp_path, buffer_bytes=LARGE.nbytes) as store:
        add_parts(store, {"slot-0": 1, "slot-1": 1})
        store.commit(1, {})
        store.remove("slot-0")
        assert store.parts == ["slot-1"]
        add_parts(store, {"slot-0": 5}, LARGE)  # under the same name, other bytes, before the next commit
        with store.use(Access("slot-0", ("weights",))) as views:
            assert holds(views["weights"], 5)
        with pytest.raises(TierError, match="already"):
            store.copy("slot-1", "slot-0")
    store, _ = reopen(tmp_path)
    with store:
        assert has(store, "slot-0", 1) and store.layout("slot-0") == SMALL
        store.remove("slot-0")
        store.commit(2, {})
        assert sorted(path.name for path in tmp_path.glob("slot-*")) == ["slot-1.a", "slot-1.b"]


def test_a_part_in_use_for_writing_is_nobody_elses(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1, "slot-1": 1})
        with store.use(Access("slot-0", BOTH, writes=("state",))):
            with store.use(Access("slot-0", ("weights",))) as views:
                assert holds(views["weights"], 1)
            for act in (
                lambda: has(store, "slot-0", 1),
                lambda: store.copy("slot-0", "slot-2"),
                lambda: store.remove("slot-0"),
                lambda: store.commit(1, {}),
            ):
                with pytest.raises(TierError, match="in use"):
                    act()
        assert store.parts == ["slot-0", "slot-1"]


def test_an_interrupted_update_ends_the_store_but_not_the_last_commit(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store:
        add_parts(store, {"slot-0": 1, "slot-1": 1})
        store.commit(1, {"at": "one"})
        with pytest.raises(KeyboardInterrupt), store.use(Access("slot-0", BOTH, writes=BOTH)) as views:
            fill(views["weights"], 2)
            raise KeyboardInterrupt
        for act in (lambda: has(store, "slot-1", 1), lambda: store.commit(2, {})):
            with pytest.raises(TierError, match="changing slot-0 was interrupted"):
                act()
    store, extra = reopen(tmp_path)
    with store:
        assert extra == {"at": "one"} and has(store, "slot-0", 1)


def test_an_interrupted_read_or_creation_harms_nothing(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1})
        with pytest.raises(ZeroDivisionError), store.use(Access("slot-0", BOTH)):
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), store.create("slot-1", SMALL):
            raise ZeroDivisionError
        assert store.parts == ["slot-0"] and not list(tmp_path.glob("slot-1*"))
        add_parts(store, {"slot-1": 2})
        assert has(store, "slot-0", 1) and has(store, "slot-1", 2)


# -------------------- memory and time


def test_memory_does_not_grow(tmp_path: Path) -> None:
    layout = PartLayout(
        (TensorSpec("w", (1 << 18,), torch.float32),), (TensorSpec("m", (1 << 19,), torch.float32),)
    )
    with new_store(tmp_path, buffer_bytes=2 * layout.nbytes) as store:
        add_parts(store, dict.fromkeys(NAMES, 0), layout)

        def step() -> None:
            accesses = [Access(name, BOTH, writes=BOTH) for name in NAMES]
            store.announce(accesses)
            for access in accesses:
                with store.use(access) as views:
                    views["weights"]["w"].add_(1)
            assert store._ahead._pool.nbytes <= 2 * layout.nbytes

        for _ in range(3):
            step()
        before = release_memory()  # without what the allocator happens to hold in reserve
        for _ in range(20):
            step()
        assert release_memory() - before < layout.nbytes


def test_small_parts_cost_little_time(tmp_path: Path) -> None:
    """Python's share: under a millisecond a part of this thread's processor time, in either tier."""
    for placement in (on_host, on_disk):
        with new_store(tmp_path / placement.__name__, placement=placement, durability="none") as store:
            add_parts(store, dict.fromkeys(NAMES, 0))
            accesses = [Access(name, BOTH, writes=BOTH) for name in NAMES] * 20
            start = time.thread_time()
            store.announce(accesses)
            for access in accesses:
                with store.use(access):
                    pass
            assert (time.thread_time() - start) / len(accesses) < 1e-3


def test_lanes_are_traced(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json") as trace, new_store(tmp_path / "store", trace=trace) as store:
        add_parts(store, dict.fromkeys(NAMES, 0))
        assert all(has(store, name, 0) for name in NAMES)
    text = (tmp_path / "trace.json").read_text()
    for bar in ("write the state of slot-3", "read the weights of slot-0", "verify the weights of slot-0"):
        assert f'"{bar}"' in text
    assert '"disk_0"' in text


# -------------------- what users get wrong


def test_names_and_placements_are_checked(tmp_path: Path) -> None:
    with new_store(tmp_path, placement={"slot-0": {"weights": "disk"}}) as store:
        add_parts(store, {"slot-0": 1})
        with pytest.raises(TierError, match="placement says nothing of 'slot-1'"):
            add_parts(store, {"slot-1": 1})
        for name in ("../slot", "a/b", "", ".hidden"):
            with pytest.raises(TierError, match="cannot name a part"):
                add_parts(store, {name: 1})
        with pytest.raises(TierError, match="no part 'slot-7'"):
            store.announce([Access("slot-7", BOTH)])
        with pytest.raises(TierError, match="already"):
            add_parts(store, {"slot-0": 1})
    with pytest.raises(TierError, match="is closed"), store.use(Access("slot-0", BOTH)):
        pass
