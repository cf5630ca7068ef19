"""The queue against a plain list."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.train.objectives.queue import Queue


@given(st.integers(0, 7), st.lists(st.integers(1, 4), max_size=6))
def test_it_is_a_list_of_the_latest(size: int, pushes: list[int]):
    queue, plain = Queue(size, 2, decay=0.5, tokens=3), []
    for number, count in enumerate(pushes):
        key = torch.arange(count) + 10 * number
        text = torch.full((count, 2), number)
        queue.push(key[:, None] * torch.ones(2), key, text)
        plain = [(k, 1.0, [number, number, -1]) for k in key.tolist()] + [(k, w / 2, t) for k, w, t in plain]
        plain = plain[:size]
    found = queue.content()
    assert found.key_V.tolist() == [k for k, _, _ in plain]
    assert found.weight_V.tolist() == [w for _, w, _ in plain]
    assert found.tokens_VW.tolist() == [t for _, _, t in plain]
    assert torch.equal(found.vector_VD, found.key_V[:, None] * torch.ones(2))


def test_it_goes_on_where_its_state_was_saved():
    queue, other = (Queue(4, 2, decay=0.9) for _ in range(2))
    queue.push(torch.randn(3, 2), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(torch.ones(2, 2), torch.arange(2))
    for mine, theirs in zip(queue.content(), other.content(), strict=True):
        assert torch.equal(mine, theirs)
