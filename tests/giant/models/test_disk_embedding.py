"""Token embeddings that stay in their files: rows of them are right, and nobody computes with what is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openm6.giant.models.disk_embedding import DiskEmbedding, embeddings_on_disk

WEIGHT_VD = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).bfloat16()


class Rows:
    def __init__(self, *, plain: bool = True) -> None:
        self.plain = plain

    def has_rows(self, name: str) -> bool:
        assert name == "tokens.weight"
        return self.plain

    def rows(self, name: str, rows_N: Tensor) -> Tensor:
        assert name == "tokens.weight"
        return WEIGHT_VD[rows_N]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 9)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens


def test_looked_up_rows_are_those_of_the_matrix() -> None:
    model = Model()
    embeddings_on_disk(model, Rows())
    ids_BT = torch.tensor([[8, 0], [3, 8]])
    assert torch.equal(model.tokens(ids_BT), WEIGHT_VD[ids_BT].float())
    assert type(model.positions) is nn.Embedding, "models compute with them as they like"


def test_the_stand_in_answers_for_all_but_its_values() -> None:
    model: Any = Model()
    embeddings_on_disk(model, Rows())
    weight = model.tokens.weight
    assert weight.shape == (9, 4) and weight.size(0) == 9 and weight.dim() == 2 and weight.numel() == 36
    assert (weight.dtype, weight.device.type) == (torch.float32, "cpu") and weight.is_floating_point()
    assert not weight.requires_grad and weight in set(model.parameters())
    ids_B = torch.tensor([3])
    for compute in (
        lambda: F.embedding(ids_B, weight),
        lambda: torch.ones(4) @ weight.T,
        lambda: F.linear(torch.ones(4), weight),
        lambda: weight[3],
        lambda: weight + 1,
        lambda: weight.data,
        lambda: weight.float(),
        lambda: weight.sum(),
    ):
        with pytest.raises(ValueError, match="computes with the matrix of its token embedding"):
            compute()


def test_what_is_used_twice_or_made_of_several_tensors_stays_in_memory() -> None:
    for tied, plain in ((True, True), (False, False)):
        model = Model()
        if tied:
            model.head.weight = model.tokens.weight
        embeddings_on_disk(model, Rows(plain=plain))
        assert not isinstance(model.tokens, DiskEmbedding)
