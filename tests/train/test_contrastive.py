"""SimCTG's loss against its formula in a loop, alone and inside a packed batch; off unless a recipe asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openm6.tasks import TASKS
from openm6.tasks.collate import collate
from openm6.tasks.layout import Branch
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.metrics import read_metrics
from openm6.train.objectives.contrastive import MARGIN, contrastive_loss
from openm6.train.objectives.seq2seq import task_losses, total_loss
from openm6.train.run import Run
from tests import tiny


def naive(texts: list[Tensor], margin: float) -> float:
    """The mean over all pairs of different tokens of a text, text by text, pair by pair."""
    values = []
    for states in texts:
        for i in range(len(states)):
            for j in range(len(states)):
                if i != j:
                    alike = F.cosine_similarity(states[i], states[j], dim=0).item()
                    values.append(max(0.0, margin - 1 + alike))
    return sum(values) / len(values) if values else 0.0


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from([0.0, 0.5, 1.3]), st.integers(0, 99)
)
def test_it_is_the_formula_pair_by_pair(lengths: list[int], margin: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randn(n, 3, generator=generator) for n in lengths]
    numbers = [7 * i % 5 + 10 * (i % 2) for i in range(len(lengths))]  # neither sorted nor consecutive
    text_M = torch.tensor([number for number, n in zip(numbers, lengths, strict=True) for _ in range(n)])
    found = contrastive_loss(torch.cat(texts), text_M, margin=margin)
    assert found.item() == pytest.approx(naive(texts, margin), abs=1e-5)


def test_equal_states_cost_the_margin_and_opposite_ones_nothing():
    same = torch.ones(4, 3)
    assert contrastive_loss(same, torch.zeros(4)).item() == pytest.approx(MARGIN)
    assert contrastive_loss(torch.stack((same[0], -same[0])), torch.zeros(2)).item() == 0
    assert contrastive_loss(same, torch.arange(4)).item() == 0  # no text has two


def test_its_gradient_pushes_the_states_of_a_text_apart():
    states = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0]], requires_grad=True)
    contrastive_loss(states, torch.tensor([0, 0, 1])).backward()
    assert states.grad is not None
    moved = (states - states.grad).detach()
    assert F.cosine_similarity(moved[0], moved[1], dim=0) < F.cosine_similarity(*states[:2].detach(), dim=0)
    assert states.grad[2].abs().sum() == 0


def poem(index: int) -> Branch:
    title, _, form, text = tiny.POEMS[index]
    fields = {"title": title, "form": form, "text": text}
    return TASKS["write"].layouts[0].branch("write", fields, tiny.text_tokenizer())


@pytest.mark.parametrize("row", [80, 200])
def test_a_packed_batch_has_the_loss_of_its_texts(row: int):
    """Of every text the states that predict its tokens, whatever stands beside it in a row."""
    model, tokenizer = tiny.m6(), tiny.text_tokenizer()
    lm = [TASKS["lm"].layouts[0].branch("lm", {"text": thing[0]}, tokenizer) for thing in tiny.THINGS]
    batch, _ = collate([[poem(0)], [lm[0]], [poem(1)], [lm[1]], [poem(2)]], row=row, image_tokens=4, pad=0)
    texts = []
    with torch.no_grad():
        losses = task_losses(model, batch, contrastive=["write", "ask"])
        for index in range(3):
            alone, _ = collate([[poem(index)]], row=200, image_tokens=4, pad=0)
            texts.append(model(alone.stream).flatten(0, 1)[alone.text_at])
        plain = task_losses(model, batch)
    assert losses["write_contrastive"].item() == pytest.approx(naive(texts, MARGIN), abs=1e-5)
    assert set(losses) == {"write", "lm", "write_contrastive"}  # nothing of a task that is not in the batch
    assert set(plain) == {"write", "lm"} and torch.equal(plain["write"], losses["write"])


def test_a_recipe_turns_it_on_by_its_weight(tmp_path: Path):
    content = tiny.recipe(tmp_path / "data", steps=2, checkpoint_every=2)
    config = RunConfig.model_validate(
        {**content, "contrastive": {"write": 2.5}, "loss_weights": {"ask": 0.5}}
    )
    assert config.weights == {"ask": 0.5, "write_contrastive": 2.5}
    train(config, tmp_path / "run")
    run = Run(config, tmp_path / "run")
    total, losses = run._loss(run.draw())
    assert losses["write_contrastive"] > 0
    weights = {"ask": 0.5, "write_contrastive": 2.5}
    assert total.item() == pytest.approx(total_loss(losses, weights).item())
    logged = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert all("loss_write_contrastive" in line for line in logged) and logged
    assert RunConfig.model_validate(content).weights == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sing": 1.0}, "there is no text task 'sing'"),
        ({"draw": 1.0}, "there is no text task 'draw'"),
        ({"write": 0.0}, "must be above 0"),
    ],
)
def test_what_has_no_such_loss_is_refused(tmp_path: Path, wrong: dict[str, float], says: str):
    with pytest.raises(ValueError, match=says):
        RunConfig.model_validate({**tiny.recipe(tmp_path), "contrastive": wrong})
