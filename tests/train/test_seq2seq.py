"""Losses against a naive loop over examples, and InfoNCE against its formula."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.decode.decoder import Decoder
from openm6.model import M6
from openm6.model.m6 import MAX_MATCH_SCALE
from openm6.tasks import TASKS
from openm6.tasks.collate import collate
from openm6.tasks.layout import Branch
from openm6.train.objectives.seq2seq import _info_nce, task_losses, total_loss
from tests import tiny


def branch(task: str, layout: int = 0, **fields: object) -> Branch:
    return TASKS[task].layouts[layout].branch(task, fields, tiny.text_tokenizer())


def examples() -> list[list[Branch]]:
    a, b, c = (tiny.picture(i) for i in range(3))
    cells = tuple(tuple((7 * i + k) % 60 for k in range(4)) for i in range(4))
    return [
        [
            branch("caption", image=a, lang="en", caption="red apple"),
            branch("ask", image=a, question="what?", answer="a fruit that is red"),
            branch("match", image=a, key="apple"),
        ],
        [branch("caption", image=b, lang="zh", caption="青蛙"), branch("match", image=b, key="frog")],
        [branch("match", image=c, key="apple")],
        [branch("match", 1, text="apple", key="apple")],
        [branch("match", 1, text="frog", key="frog")],
        [branch("match", 1, text="an apple", key="apple")],
        [branch("draw", text="frog", style="flat", codes=cells)],
        [branch("draw", text="", style="any", codes=cells[::-1])],
        [branch("write", title="春晓", form="五绝", text="春眠不觉晓")],
    ]


def pixels(branches: list[Branch]) -> torch.Tensor | None:
    images = [each.image for each in branches if each.image is not None]
    return normalise(over_white(stack_rgba(images, tiny.SIDE))) if images else None


@torch.no_grad()
def naive(model: M6, packed: list[list[Branch]]) -> dict[str, float]:
    """One branch at a time, one token at a time, on the decoder."""
    nats: dict[str, list[float]] = defaultdict(list)
    vectors: dict[str, list[tuple[str, torch.Tensor]]] = {"image": [], "text": []}
    for each in (each for example in packed for each in example):
        decoder = Decoder(model, [each], pixels([each]), max_new=len(each.target) + 1)
        if each.target_kind == "match":
            side = "image" if each.image is not None else "text"
            vectors[side].append((each.key, model.match_embedding(decoder.hidden_BD)[0]))
        for token in each.target:
            if isinstance(token, int):
                nats[each.task].append(-model.text_logits(decoder.hidden_BD).log_softmax(-1)[0, token].item())
                decoder.step(torch.tensor([token]))
            else:
                cell, total = torch.tensor([token]), 0.0
                for k, code in enumerate(token):
                    scores = model.next_code_logits(decoder.hidden_BD, cell[:, :k])
                    total -= scores.log_softmax(-1)[0, code].item()
                nats[each.task].append(total / len(token))
                if decoder.cells + 1 < model.config.cells:
                    decoder.step_cell(cell)
    losses = {task: sum(values) / len(values) for task, values in nats.items()}
    assert model.match_scale is not None
    losses["match"] = naive_info_nce(vectors["image"], vectors["text"], model.match_scale.exp().item())
    return losses


def naive_info_nce(
    images: list[tuple[str, torch.Tensor]], texts: list[tuple[str, torch.Tensor]], scale: float
) -> float:
    """Mean over both directions of the cross-entropy with the even distribution over what belongs."""

    def one_way(asking: list[tuple[str, torch.Tensor]], answers: list[tuple[str, torch.Tensor]]) -> float:
        total = 0.0
        for key, vector in asking:
            scores = [scale * float(vector @ other) for _, other in answers]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            right = [score for score, (other, _) in zip(scores, answers, strict=True) if other == key]
            total += sum(log_sum - score for score in right) / max(1, len(right))
        return total / len(asking)

    return (one_way(images, texts) + one_way(texts, images)) / 2


@pytest.mark.parametrize("row", [50, 120])
def test_the_losses_of_a_packed_batch_are_those_of_a_naive_loop(row: int):
    model, packed = tiny.m6(), examples()
    batch, order = collate(packed, row=row, image_tokens=4, pad=0)
    batch.stream.images_NCHW = pixels([packed[index][0] for index in order])
    with torch.no_grad():
        losses = task_losses(model, batch)
    expected = naive(model, packed)
    assert set(losses) == set(expected) == {"caption", "ask", "draw", "write", "match"}
    for task, loss in losses.items():
        assert loss.item() == pytest.approx(expected[task], rel=1e-4), task


def vectors(n: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=6),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_info_nce_is_its_formula_with_duplicates_and_strangers(
    images: list[str], texts: list[str], seed: int
):
    model = tiny.m6()
    assert model.match_scale is not None
    image_MD, text_MD = vectors(len(images), seed), vectors(len(texts), seed + 1)
    same = torch.tensor([[a == b for b in texts] for a in images])
    expected = naive_info_nce(
        list(zip(images, image_MD, strict=True)),
        list(zip(texts, text_MD, strict=True)),
        model.match_scale.exp().item(),
    )
    assert _info_nce(model, image_MD, text_MD, same).item() == pytest.approx(expected, abs=1e-4)


def test_match_scores_are_not_rounded_to_bf16():
    model, a, b = tiny.m6(), vectors(3, 0), vectors(3, 1)
    assert model.match_scale is not None
    model.match_scale.data.fill_(MAX_MATCH_SCALE)
    expected = model.match_logits(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.match_logits(a, b), expected)
    torch.testing.assert_close(expected, 99.48432 * a @ b.T)


def test_the_match_scale_cannot_run_away():
    model = tiny.m6()
    assert model.match_scale is not None
    same, a, b = torch.eye(3).bool(), vectors(3, 0), vectors(3, 1)
    model.match_scale.data.fill_(MAX_MATCH_SCALE)
    at_the_cap = _info_nce(model, a, b, same)
    model.match_scale.data.fill_(50.0)
    beyond = _info_nce(model, a, b, same)
    assert torch.equal(beyond, at_the_cap) and beyond.isfinite()


def test_a_batch_without_pairs_has_no_match_loss():
    [example] = [[branch("match", 1, text="frog", key="frog")]]
    batch, _ = collate([example, [branch("lm", text="frog")]], row=30, image_tokens=4, pad=0)
    assert set(task_losses(tiny.m6(), batch)) == {"lm"}


def test_the_total_is_the_weighted_sum():
    losses = {"caption": torch.tensor(2.0), "ask": torch.tensor(3.0), "draw": torch.tensor(5.0)}
    assert total_loss(losses, {"ask": 0.5, "draw": 0.0, "write": 9.0}).item() == 3.5


def test_every_task_moves_the_weights_it_should():
    model, packed = tiny.m6(), examples()
    batch, order = collate(packed, row=120, image_tokens=4, pad=0)
    batch.stream.images_NCHW = pixels([packed[index][0] for index in order])
    for task, touched, untouched in (
        ("caption", ["image.project.weight", "embed.weight"], ["drawing.up.weight", "match.weight"]),
        ("draw", ["drawing.up.weight", "embed.weight"], ["image.project.weight", "match.weight"]),
        ("match", ["match.weight", "image.project.weight", "match_scale"], ["drawing.up.weight"]),
        ("write", ["embed.weight"], ["image.project.weight", "drawing.up.weight"]),
    ):
        model.zero_grad(set_to_none=True)
        task_losses(model, batch)[task].backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        for name in [*touched, "slots.0.attention.qkv.weight"]:
            gradient = gradients[name]
            assert gradient is not None and gradient.abs().sum() > 0, (task, name)
        for name in untouched:
            gradient = gradients[name]
            assert gradient is None or gradient.abs().sum() == 0, (task, name)
