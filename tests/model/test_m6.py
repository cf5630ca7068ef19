"""M6 as a whole: who sees whom, what enters the stream, sharing, and the folder on disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.modalities.resnet import ResNetConfig
from openm6.model import M6, ModelConfig, Stream
from openm6.model.checkpoint import load_model, save_model
from openm6.model.stream import attention_bias, causal_stream


def config(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "vocab_text": 30,
        "codebook": 6,
        "cells": 3,
        "codes_per_cell": 4,
        "layers": 4,
        "width": 16,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn": 24,
        "image": ResNetConfig(stem_width=4, widths=[8], depths=[1]),
        "image_size": 8,
        "image_tokens": 4,
        "match_dim": 5,
    }
    return ModelConfig.model_validate(sizes | changes)


def model(**changes: Any) -> M6:
    torch.manual_seed(0)
    m6 = M6(config(**changes)).eval()
    for parameter in m6.parameters():
        if parameter.ndim < 4:
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return m6


def everything() -> Stream:
    """One row: an image of four tokens, a caption, a drawing of two given cells; then two of padding.

    position     0 1 2 3 | 4  5 6 7 | 8  9 10 | 11 12
    example      0 0 0 0   0  0 0 0   1  1  1   -1 -1
    branch       0 0 0 0   1  1 2 2   1  1  1   -1 -1
    order        0 0 0 0   1  2 1 2   1  2  3   -1 -1
    """
    example = torch.tensor([[0] * 8 + [1] * 3 + [-1] * 2])
    branch = torch.tensor([[0] * 4 + [1, 1, 2, 2] + [1] * 3 + [-1] * 2])
    order = torch.tensor([[0] * 4 + [1, 2, 1, 2] + [1, 2, 3] + [-1] * 2])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 2, 0, 0]])
    generator = torch.Generator().manual_seed(3)
    return Stream(
        torch.randint(0, 30, (1, 13), generator=generator),
        positions,
        example,
        branch,
        order,
        images_NCHW=torch.randn(1, 3, 8, 8, generator=generator),
        image_at=torch.arange(4),
        cell_at=torch.tensor([9, 10]),
        cells_LK=torch.randint(0, 6, (2, 4), generator=generator),
        next_cell_at=torch.tensor([8, 9, 10]),
        next_cell=torch.tensor([0, 1, 2]),
    )


def changed_positions(m6: M6, before: Stream, after: Stream) -> set[int]:
    """Positions, padding left out, whose hidden state is not the same."""
    with torch.no_grad():
        difference = (m6(before) - m6(after)).abs().amax(-1)[before.example_BT >= 0]
    return set(difference.nonzero()[:, 0].tolist())


def with_token(stream: Stream, at: int) -> Stream:
    tokens = stream.tokens_BT.clone()
    tokens[0, at] = (tokens[0, at] + 1) % 30
    return replace(stream, tokens_BT=tokens)


@pytest.mark.parametrize(
    "at,seen_by",
    [(4, {4, 5}), (5, {5}), (6, {6, 7}), (7, {7}), (8, {8, 9, 10}), (11, set()), (12, set())],
)
def test_a_token_reaches_only_the_later_positions_of_its_branch(at: int, seen_by: set[int]):
    stream = everything()
    assert changed_positions(model(), stream, with_token(stream, at)) == seen_by


def test_an_image_reaches_every_branch_of_its_example_and_nothing_else():
    stream = everything()
    assert stream.images_NCHW is not None
    assert changed_positions(model(), stream, replace(stream, images_NCHW=stream.images_NCHW + 1)) == set(
        range(8)
    )


def test_a_cell_takes_the_place_of_its_token_and_every_code_of_it_counts():
    m6, stream = model(), everything()
    assert stream.cells_LK is not None
    assert changed_positions(m6, stream, with_token(stream, 9)) == set()
    for k in range(4):
        cells = stream.cells_LK.clone()
        cells[0, k] = (cells[0, k] + 1) % 6
        assert changed_positions(m6, stream, replace(stream, cells_LK=cells)) == {9, 10}
    assert changed_positions(m6, stream, replace(stream, next_cell=torch.tensor([0, 2, 2]))) == {9, 10}


def test_packing_two_examples_in_a_row_does_not_change_either():
    m6, stream = model(), everything()
    alone = Stream(
        *(t[:, 8:11] for t in (stream.tokens_BT, stream.positions_BT)),
        *(t[:, 8:11] for t in (stream.example_BT, stream.branch_BT, stream.order_BT)),
        cell_at=torch.tensor([1, 2]),
        cells_LK=stream.cells_LK,
        next_cell_at=torch.tensor([0, 1, 2]),
        next_cell=stream.next_cell,
    )
    with torch.no_grad():
        torch.testing.assert_close(m6(stream)[:, 8:11], m6(alone), rtol=0, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-1, 3)] * 3), min_size=1, max_size=8))
def test_attention_bias_is_the_rule_that_the_stream_states(who: list[tuple[int, int, int]]):
    example, branch, order = (torch.tensor(column)[None] for column in zip(*who, strict=True))
    bias = attention_bias((example, branch, order), (example, branch, order))[0, 0]
    assert not bias.isnan().any() and set(bias.unique().tolist()) <= {0.0, float("-inf")}
    for q, (example_q, branch_q, order_q) in enumerate(who):
        sees = [
            example_q == example_k >= 0 and branch_k in (0, branch_q) and order_k <= order_q
            for example_k, branch_k, order_k in who
        ]
        if any(sees):
            assert (bias[q] == 0).tolist() == sees
        assert (bias[q] == 0).any(), "a softmax needs something to see"


def test_causal_stream_reads_left_to_right():
    stream = causal_stream(torch.randint(0, 30, (2, 5)))
    who = (stream.example_BT, stream.branch_BT, stream.order_BT)
    assert (attention_bias(who, who) == 0).tolist() == [[torch.ones(5, 5).tril().bool().tolist()]] * 2
    assert stream.positions_BT.tolist() == [list(range(5))] * 2


def test_sharing_runs_a_slot_at_every_layer_that_names_it():
    m6 = model(layers=3)
    m6.sharing = [1, 0, 1]
    x = torch.randn(1, 4, 16)
    positions, bias = torch.arange(4)[None], torch.zeros(1, 1, 4, 4)
    unrolled = model(layers=3)
    for layer, slot in enumerate(m6.sharing):
        unrolled.slots[layer].load_state_dict(m6.slots[slot].state_dict())
    with torch.no_grad():
        assert torch.equal(m6.run_layers(x, positions, bias), unrolled.run_layers(x, positions, bias))
        m6.sharing = [0, 1, 1]
        assert not torch.equal(m6.run_layers(x, positions, bias), unrolled.run_layers(x, positions, bias))


def test_heads_read_the_embedding_when_tied_and_their_own_matrix_when_not():
    hidden = torch.randn(3, 16)
    tied, untied = model(), model(tie_embeddings=False)
    assert tied.head is None and untied.head is not None
    torch.testing.assert_close(tied.text_logits(hidden), hidden @ tied.embed.weight[:30].T)
    torch.testing.assert_close(untied.text_logits(hidden), hidden @ untied.head.weight.T)


def test_code_logits_are_what_reading_a_cell_code_by_code_gives():
    m6 = model()
    hidden, cells = torch.randn(5, 16), torch.randint(0, 6, (5, 4))
    with torch.no_grad():
        at_once = m6.code_logits(hidden, cells)
        one_by_one = torch.stack([m6.next_code_logits(hidden, cells[:, :k]) for k in range(4)], dim=1)
    assert at_once.shape == (5, 4, 6)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-5)


def test_match_embeddings_are_unit_vectors():
    norms = model().match_embedding(torch.randn(3, 16)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3))


def test_every_parameter_learns():
    m6, stream = model(tie_embeddings=False).train(), everything()
    hidden = m6(stream)[0]
    assert stream.cells_LK is not None and m6.match_scale is not None
    targets = torch.cat((stream.cells_LK, stream.cells_LK[:1]))
    parts: list[Tensor] = [
        m6.text_logits(hidden[4:8]),
        m6.code_logits(hidden[8:11], targets),
        m6.match_embedding(hidden[4:8]) * m6.match_scale,
    ]
    torch.stack([part.square().sum() + part.sum() for part in parts]).sum().backward()
    silent = [name for name, p in m6.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize(
    "without,message",
    [({"image": None}, "does not see"), ({"codebook": 0, "cells": 0}, "does not draw")],
    ids=str,
)
def test_a_model_without_a_part_says_so(without: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        model(**without)(everything())
    with pytest.raises(ValueError, match="cannot match pictures with texts"):
        model(match_dim=0).match_embedding(torch.randn(1, 16))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"kv_heads": 3}, "multiple"),
        ({"head_dim": 7}, "even"),
        ({"cells": 0}, "go together"),
        ({"depth": 2}, "depth"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_a_saved_pseudo_giant_comes_back_with_its_sharing_and_bf16_weights(tmp_path: Path):
    m6 = model()
    m6.sharing, m6.slots = [0, 0, 1, 1], m6.slots[:2]
    save_model(m6, tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert again.config == m6.config and again.sharing == m6.sharing and not again.training
    for (name, ours), (other_name, theirs) in zip(
        m6.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other_name
        rounded = ours.bfloat16().float() if ours.is_floating_point() else ours
        assert torch.equal(theirs, rounded) and theirs.dtype == ours.dtype
    m6.load_state_dict(again.state_dict())
    with torch.no_grad():
        assert torch.equal(m6(everything()), again(everything()))


def test_a_broken_checkpoint_folder_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path)
    save_model(model(), tmp_path)
    path, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = json.loads(path.read_text())

    def refuses(content: object, message: str) -> None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)

    refuses("{", "not a config")
    refuses({"sharing": [0]}, "not a config")
    refuses({**good, "model": {**good["model"], "width": "wide"}}, "not a config")
    refuses({**good, "model": {**good["model"], "width": 20}}, "does not fit")
    path.write_text(json.dumps(good))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_model(tmp_path)
