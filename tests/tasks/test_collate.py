"""Packing changes where examples stand, never what the model computes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.model import M6
from openm6.tasks import TASKS
from openm6.tasks.collate import Batch, collate, fit, length_of, to_device
from openm6.tasks.layout import Branch
from tests import tiny

P = tiny.CONFIG["image_tokens"]
PAD = 0


def branch(task: str, layout: int = 0, **fields: object) -> Branch:
    return TASKS[task].layouts[layout].branch(task, fields, tiny.text_tokenizer())


def examples() -> list[list[Branch]]:
    """Pictures read by several tasks, and texts and drawings between them."""
    frog, hat = tiny.picture(1), tiny.picture(4)
    cells = tuple(tuple(4 * i + k for k in range(4)) for i in range(4))
    return [
        [
            branch("caption", image=frog, lang="en", caption="green frog"),
            branch("ask", image=frog, question="what colour?", answer="green"),
            branch("ask", image=frog, question="这是什么？", answer="青蛙"),
            branch("match", image=frog, key="frog"),
        ],
        [branch("match", 1, text="green frog", key="frog")],
        [branch("draw", text="frog", style="flat", codes=cells)],
        [branch("write", title="春晓", form="五绝", text="春眠不觉晓")],
        [
            branch("caption", image=hat, lang="zh", caption="黑帽子"),
            branch("match", image=hat, key="hat"),
        ],
        [branch("match", 1, text="black hat", key="hat")],
        [branch("draw", text="", style="any", codes=cells[::-1])],
        [branch("lm", text="frog")],
    ]


def pixels(packed: Sequence[Sequence[Branch]], order: list[int]) -> Tensor | None:
    images = [packed[index][0].image for index in order]
    if not images:
        return None
    return normalise(over_white(stack_rgba(images, tiny.SIDE)))  # pyright: ignore[reportArgumentType]


def collated(packed: Sequence[Sequence[Branch]], row: int) -> Batch:
    batch, order = collate(packed, row=row, image_tokens=P, pad=PAD)
    batch.stream.images_NCHW = pixels(packed, order)
    return batch


@torch.no_grad()
def read(model: M6, batch: Batch) -> dict[str, Any]:
    """What the losses read, each with a name of what it belongs to."""
    hidden = model(batch.stream).flatten(0, 1)
    return {
        "text": list(zip(batch.text_target.tolist(), hidden[batch.text_at], strict=True)),
        "cell": list(zip(map(tuple, batch.cell_target.tolist()), hidden[batch.cell_at], strict=True)),
        "image": list(zip(batch.match_image_key.tolist(), hidden[batch.match_image_at], strict=True)),
        "match": list(zip(batch.match_text_key.tolist(), hidden[batch.match_text_at], strict=True)),
    }


def split(packed: Sequence[Sequence[Branch]]) -> list[Branch]:
    return [each for example in packed for each in example]


@pytest.mark.parametrize("row", [46, 60, 200])
def test_a_branch_in_a_packed_row_is_read_as_if_it_stood_alone(row: int):
    """No branch sees another of its example, no example another; the picture is shared."""
    model, packed = tiny.m6(), examples()
    assert max(length_of(example, P) for example in packed) <= row
    batch = collated(packed, row)
    together = read(model, batch)
    alone: dict[str, list[Any]] = {kind: [] for kind in together}
    for each in split(packed):
        for kind, found in read(model, collated([[each]], length_of([each], P))).items():
            alone[kind] += found
    for kind in ("text", "cell"):
        # Targets of a branch stay in order; branches may come in another order than that of the examples.
        assert len(together[kind]) == len(alone[kind]) > 0
        left = list(alone[kind])
        for target, hidden in together[kind]:
            same = (
                i for i, (t, h) in enumerate(left) if t == target and torch.allclose(h, hidden, atol=1e-5)
            )
            index = next(same, None)
            assert index is not None, f"the prediction of {target} differs in a packed row"
            left.pop(index)
    for kind in ("image", "match"):
        assert len(together[kind]) == len(alone[kind]) == 2
        for _, hidden in together[kind]:
            assert any(torch.allclose(hidden, h, atol=1e-5) for _, h in alone[kind])
    assert batch.match_image_key.tolist() == batch.match_text_key.tolist()
    assert len(set(batch.match_image_key.tolist())) == 2
    # the alternative that the test must tell apart: the two pictures do not read alike
    assert not torch.allclose(together["image"][0][1], together["image"][1][1], atol=1e-2)


def predictions(model: M6, each: Branch) -> Tensor:
    batch = collated([[each]], length_of([each], P))
    at = batch.text_at if each.target_kind == "text" else batch.cell_at
    with torch.no_grad():
        return model(batch.stream).flatten(0, 1)[at]


@pytest.mark.parametrize("kind", ["text", "codes"])
def test_the_target_is_causal_and_the_source_is_seen_both_ways(kind: str):
    model = tiny.m6()
    one = (
        Branch("caption", tiny.picture(0), (5, 6, 7), (20, 21, 22, 23, 24), "text")
        if kind == "text"
        else Branch("draw", None, (5, 6, 7), tuple((i, i + 1, i + 2, i + 3) for i in range(4)), "codes")
    )
    before, n = predictions(model, one), len(one.target)
    for changed in range(n):
        target = list(one.target)
        target[changed] = 30 if kind == "text" else (9, 9, 9, 9)
        after = predictions(model, replace(one, target=tuple(target)))  # pyright: ignore[reportArgumentType]
        differs = (after - before).abs().amax(1) > 1e-4
        assert differs.tolist() == [place > changed for place in range(n)]
    for place in range(3):  # every source token reaches every prediction
        source = list(one.source)
        source[place] = 40
        after = predictions(model, replace(one, source=tuple(source)))
        assert ((after - before).abs().amax(1) > 1e-4).all()


def test_source_tokens_see_those_after_them():
    """The first source position changes with the last source token, but not with the target."""
    model = tiny.m6()

    def first(source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
        batch = collated([[Branch("lm", None, source, target, "text")]], 5)
        with torch.no_grad():
            return model(batch.stream)[0, 0]

    before = first((5, 6, 7), (20, 21, 22))
    assert not torch.allclose(first((5, 6, 9), (20, 21, 22)), before, atol=1e-4)
    assert torch.equal(first((5, 6, 7), (20, 29, 22)), before)


# -- what is kept ------------------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(16, 99), min_size=1, max_size=12).map(tuple)
CELLS = st.lists(st.tuples(*[st.integers(0, 59)] * 4), min_size=1, max_size=4).map(tuple)


@st.composite
def any_examples(draw: st.DrawFn) -> list[list[Branch]]:
    made = []
    for e in range(draw(st.integers(1, 6))):
        image = np.zeros((tiny.SIDE, tiny.SIDE, 3), np.uint8) if draw(st.booleans()) else None
        example = []
        for _ in range(draw(st.integers(1, 3)) if image is not None else 1):
            kind: Literal["text", "codes", "match"] = draw(st.sampled_from(["text", "codes", "match"]))
            target = () if kind == "match" else draw(TOKENS if kind == "text" else CELLS)
            task = {"text": "caption", "codes": "draw", "match": "match"}[kind]
            example.append(Branch(task, image, draw(TOKENS), target, kind, key=f"k{e}"))
        made.append(example)
    return made


@settings(max_examples=60)
@given(any_examples(), st.integers(0, 30))
def test_every_token_is_held_once_and_every_loss_reads_its_place(packed: list[list[Branch]], spare: int):
    row = max(length_of(example, P) for example in packed) + spare
    batch, order = collate(packed, row=row, image_tokens=P, pad=PAD)
    stream = batch.stream
    assert stream.tokens_BT.shape[1] == row
    assert batch.tokens == sum(length_of(example, P) for example in packed)
    assert sorted(order) == [i for i, example in enumerate(packed) if example[0].image is not None]
    assert stream.image_at is not None and len(stream.image_at) == P * len(order)
    example_at = stream.example_BT.flatten()
    assert example_at[stream.image_at].view(-1, P).tolist() == [[index] * P for index in order]

    tokens, branch_at = stream.tokens_BT.flatten(), stream.branch_BT.flatten()
    positions, orders = stream.positions_BT.flatten(), stream.order_BT.flatten()
    assert stream.cell_at is not None and stream.cells_LK is not None and stream.next_cell is not None
    cells_in = dict(zip(stream.cell_at.tolist(), stream.cells_LK.tolist(), strict=True))
    for e, example in enumerate(packed):
        start = P if example[0].image is not None else 0
        assert (example_at == e).sum() == length_of(example, P)
        for b, each in enumerate(example, start=1):
            [at] = ((example_at == e) & (branch_at == b)).nonzero().T
            n = len(each.source)
            assert at.tolist() == list(range(int(at[0]), int(at[0]) + len(at)))  # in one piece
            assert tokens[at[:n]].tolist() == list(each.source)
            assert positions[at].tolist() == list(range(start, start + len(at)))
            assert orders[at].tolist() == [1] * n + list(range(2, 2 + len(at) - n))
            assert len(at) == n + max(0, len(each.target) - 1)
            last = int(at[n - 1])
            if each.target_kind == "text":
                assert tokens[at[n:]].tolist() == list(each.target[:-1])
                first = batch.text_at.tolist().index(last)
                span = slice(first, first + len(each.target))
                assert batch.text_at[span].tolist() == list(range(last, last + len(each.target)))
                assert batch.text_target[span].tolist() == list(each.target)
                assert {batch.tasks[i] for i in batch.text_task[span]} == {each.task}
            elif each.target_kind == "codes":
                assert [tuple(cells_in[i]) for i in at[n:].tolist()] == list(each.target[:-1])
                first = batch.cell_at.tolist().index(last)
                span = slice(first, first + len(each.target))
                assert batch.cell_at[span].tolist() == list(range(last, last + len(each.target)))
                assert [tuple(cell) for cell in batch.cell_target[span].tolist()] == list(each.target)
                assert stream.next_cell[span].tolist() == list(range(len(each.target)))
                assert {batch.tasks[i] for i in batch.cell_task[span]} == {each.task}
            else:
                side = "image" if each.image is not None else "text"
                assert last in getattr(batch, f"match_{side}_at").tolist()
    count = sum(len(b.target) for b in split(packed) if b.target_kind == "text")
    assert len(batch.text_at) == len(batch.text_target) == len(batch.text_task) == count
    assert (example_at[batch.text_at] >= 0).all()
    assert (tokens[example_at < 0] == PAD).all()


@settings(max_examples=100)
@given(any_examples(), st.integers(4, 40))
def test_fit_keeps_whole_branches_and_cuts_only_the_tail_of_a_first_one(packed: list[list[Branch]], row: int):
    for example in packed:
        room = row - (P if example[0].image is not None else 0)
        try:
            kept = fit(example, row=row, image_tokens=P)
        except ValueError as error:
            assert len(example[0].source) >= room and str(row) in str(error)
            continue
        assert kept and length_of(kept, P) <= row
        first = kept[0]
        # the first is whole, or its target is cut and fills the row
        assert replace(first, target=example[0].target) is not None
        assert first.source == example[0].source
        assert first.target == example[0].target[: len(first.target)]
        if first.target != example[0].target:
            assert length_of(kept, P) == row
        rest = [id(each) for each in example]
        assert all(id(each) in rest for each in kept[1:])
        if length_of(example, P) <= row:
            assert [id(each) for each in kept] == rest


def test_equal_keys_meet_and_different_ones_do_not():
    image = np.zeros((8, 8, 3), np.uint8)
    packed = [[Branch("match", image, (5,), (), "match", key=key)] for key in "abca"]
    packed += [[Branch("match", None, (5,), (), "match", key=key)] for key in "caab"]
    Random(0).shuffle(packed)
    batch, _ = collate(packed, row=5, image_tokens=P, pad=PAD)
    same = batch.match_image_key[:, None] == batch.match_text_key[None, :]
    assert sorted(same.sum(1).tolist()) == [1, 1, 2, 2]  # a picture of c, one of b, two of a


def test_to_device_moves_every_tensor():
    batch = collated(examples(), 60)
    moved = to_device(batch, torch.device("meta"))
    assert moved.tasks == batch.tasks
    for item in (moved, moved.stream):
        for name, value in vars(item).items():
            if isinstance(value, Tensor):
                assert value.is_meta, name
    assert not batch.text_at.is_meta and moved.stream.images_NCHW is not None
