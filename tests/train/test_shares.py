"""The shares of a step's batch: together they are the batch, and each is a batch of its own."""

from __future__ import annotations

import pytest
import torch

from openm6.tasks.collate import Batch
from openm6.train.batches import Batches
from openm6.train.config import RunConfig
from openm6.train.objectives.seq2seq import task_losses
from openm6.train.shares import bounds, take
from tests import tiny


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    config = RunConfig.model_validate(tiny.recipe(tmp_path_factory.mktemp("data")))
    return next(
        Batches(
            config.mix,
            model=config.model,
            row=config.row,
            tokenizer=tiny.text_tokenizer(),
            image_tokenizer=tiny.image_tokenizer(),
            seed=0,
        )
    )


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (2, 4), (8, 1), (0, 2)])
def test_rows_are_shared_out_evenly_and_in_order(rows: int, size: int):
    edges = [bounds(rows, rank, size) for rank in range(size)]
    assert [row for first, last in edges for row in range(first, last)] == list(range(rows))
    assert max(b - a for a, b in edges) - min(b - a for a, b in edges) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_what_is_predicted_is_shared_out_whole(batch: Batch, size: int):
    """Every target keeps its place in its row; some ranks of twenty have no rows."""
    shares = [take(batch, rank, size) for rank in range(size)]
    T = batch.stream.tokens_BT.shape[1]
    at = 0
    for rank, share in enumerate(shares):
        first, last = bounds(len(batch.stream.tokens_BT), rank, size)
        assert torch.equal(share.stream.tokens_BT, batch.stream.tokens_BT[first:last])
        whole, mine = (each.stream.tokens_BT.flatten() for each in (batch, share))
        assert torch.equal(whole[share.text_at + first * T], mine[share.text_at])
        at += len(share.text_at)
    assert at == len(batch.text_at) > 0
    for name in ("text_target", "text_task", "cell_target", "match_image_key", "match_text_key"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batch, name)), name
    for name in ("images_NCHW", "cells_LK", "next_cell"):
        parts = [getattr(share.stream, name) for share in shares]
        assert torch.equal(torch.cat(parts), getattr(batch.stream, name)), name


def test_a_share_is_a_batch_and_one_without_rows_has_gradients_too(batch: Batch):
    model = tiny.m6().train()
    share = take(batch, 0, 2)
    assert all(loss.isfinite() for loss in task_losses(model, share).values())
    empty = take(batch, 0, 2 * len(batch.stream.tokens_BT) + 1)
    assert not len(empty.stream.tokens_BT)
    model.eval()  # batch norm of no pictures at all is the parallel one's affair
    model(empty.stream).sum().backward()
    for parameter in model.slots.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
