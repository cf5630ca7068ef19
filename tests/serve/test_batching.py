"""Batches: what waits together is computed together, nobody pays for another's mistake, nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from openm6.serve import batching
from openm6.serve.batching import Batcher, Kind, QueueFull, Report, Stopped


class Model:
    """Doubles numbers, refuses odd ones when told to, and waits at a gate. `batches` are what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.begun = threading.Event()

    def kind(self, key: str = "double", most: int = 64) -> Kind:
        return Kind(key, self.compute, most)

    def compute(self, items: Sequence[int], tells: Sequence[Report]) -> list[int]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.gate.wait(10)
        for item, tell in zip(items, tells, strict=True):
            tell(f"at {item}")
        if any(item < 0 for item in items):
            raise ValueError(f"{min(items)} is negative")
        return [2 * item for item in items]


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


async def blocked(batcher: Batcher, model: Model) -> Any:
    """A job that keeps the model busy until its gate opens."""
    job = batcher.submit(model.kind(), 0)
    await asyncio.to_thread(model.begun.wait, 10)
    return job


def test_what_came_meanwhile_is_one_batch_of_its_kind_oldest_first() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=3, max_queue=100)
        first = await blocked(batcher, model)
        other = model.kind("other")
        jobs = [batcher.submit(model.kind(), i) for i in (1, 2)]
        jobs += [batcher.submit(other, i) for i in (10, 11)]
        jobs += [batcher.submit(model.kind(), i) for i in (3, 4)]
        assert batcher.waiting == 6
        model.gate.set()
        assert await asyncio.gather(*(job.result for job in [first, *jobs])) == [0, 2, 4, 20, 22, 6, 8]
        assert model.batches == [[0], [1, 2, 3], [10, 11], [4]]
        batcher.stop()

    run(scenario())


def test_a_kind_may_allow_fewer() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=8, max_queue=100)
        await blocked(batcher, model)
        jobs = [batcher.submit(model.kind(most=2), i) for i in (1, 2, 3)]
        model.gate.set()
        await asyncio.gather(*(job.result for job in jobs))
        assert model.batches == [[0], [1, 2], [3]]
        batcher.stop()

    run(scenario())


def test_only_who_is_to_blame_fails() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=8, max_queue=100)
        await blocked(batcher, model)
        jobs = [batcher.submit(model.kind(), i) for i in (1, -5, 2)]
        model.gate.set()
        found = await asyncio.gather(*(job.result for job in jobs), return_exceptions=True)
        assert found[0] == 2 and found[2] == 4 and str(found[1]) == "-5 is negative"
        batcher.stop()

    run(scenario())


def test_one_too_many_is_told_when_to_come_again() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=8, max_queue=2)
        await blocked(batcher, model)
        jobs = [batcher.submit(model.kind(), i) for i in (1, 2)]
        with pytest.raises(QueueFull, match="2 requests wait") as full:
            batcher.submit(model.kind(), 3)
        assert full.value.retry_after >= 1
        model.gate.set()
        assert await asyncio.gather(*(job.result for job in jobs)) == [2, 4]
        assert await batcher.submit(model.kind(), 3).result == 6
        batcher.stop()

    run(scenario())


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=8, max_queue=100)
        await blocked(batcher, model)
        jobs = [batcher.submit(model.kind(), i) for i in (1, 2, 3)]
        jobs[0].result.cancel()
        jobs[2].result.cancel()
        model.gate.set()
        assert await jobs[1].result == 4
        batcher.stop()
        assert model.batches == [[0], [2]]

    run(scenario())


def test_stopping_finishes_what_waits_and_takes_no_more() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=1, max_queue=100)
        await blocked(batcher, model)
        jobs = [batcher.submit(model.kind(), i) for i in (1, 2, 3)]
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        while not batcher._stopping:
            await asyncio.sleep(0.001)
        with pytest.raises(Stopped):
            batcher.submit(model.kind(), 4)
        model.gate.set()
        await stopping
        assert await asyncio.gather(*(job.result for job in jobs)) == [2, 4, 6]

    run(scenario())


def test_stopping_waits_no_longer_than_it_is_told() -> None:
    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=1, max_queue=100)
        job = await blocked(batcher, model)
        batcher.stop(0.01)  # for ever, without the limit
        assert batcher.running
        model.gate.set()
        assert await job.result == 0
        batcher.stop()
        assert not batcher.running

    run(scenario())


def test_a_job_is_told_of_on_the_way_and_batches_are_reported() -> None:
    async def scenario() -> None:
        reports: list[tuple[Any, int]] = []
        model = Model()
        batcher = Batcher(
            max_batch=8, max_queue=9, on_batch=lambda key, size, seconds: reports.append((key, size))
        )
        await blocked(batcher, model)
        jobs = [batcher.submit(model.kind(), i) for i in (1, 2)]
        model.gate.set()
        for i, job in enumerate(jobs, start=1):
            assert await job.events.get() == f"at {i}"
            assert await job.events.get() is None  # the end
            assert job.result.result() == 2 * i
        batcher.stop()
        assert reports == [("double", 1), ("double", 2)]

    run(scenario())


def test_clients_that_ask_again_end_up_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gathering, two clients take turns for ever, each in a batch of its own."""
    monkeypatch.setattr(batching, "GATHERING", 1e9)
    monkeypatch.setattr(batching, "LONGEST_GATHERING", 1.0)  # cut short when the batch is full

    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=2, max_queue=9)
        model.gate.set()

        async def client(number: int) -> None:
            for _ in range(4):
                await batcher.submit(model.kind(), number).result

        await asyncio.gather(client(1), client(2))
        batcher.stop()
        assert model.batches.count([1, 2]) + model.batches.count([2, 1]) >= 3

    run(scenario())


def test_a_lone_client_never_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "GATHERING", 1e9)
    monkeypatch.setattr(batching, "LONGEST_GATHERING", 1e9)

    async def scenario() -> None:
        model, batcher = Model(), Batcher(max_batch=2, max_queue=9)
        model.gate.set()
        for i in range(5):  # for ever, if it gathered
            assert await batcher.submit(model.kind(), i).result == 2 * i
        batcher.stop()

    run(scenario())
