"""What Hugging Face models do beside layer after layer; how micro-batches count; steps that are interrupted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from openm6.giant import AdamW, Giant, Tiers, stream
from openm6.giant.models.vocabulary import NarrowEmbedding, store_frame_as, take_gradients
from openm6.model import M6, ModelConfig
from openm6.model.stream import causal_stream

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
IDS = torch.arange(3, 35)[None]
BATCH = {"input_ids": IDS, "labels": IDS}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**TINY))


def opened(model: Any, folder: Path, **settings: Any) -> Giant:
    given = {
        "budget": "64GiB",
        "tiers": Tiers(durability="none"),
        "lr": 1e-2,
        "optimizer": AdamW(clip=None, weight_decay=0.0),
    }
    return stream(model, disk=folder, **{**given, **settings})


def train_in_memory(model: Any, batches: list[Any], steps: int = 3, loss: Any = None) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total: Any = loss(model) if loss else sum(model(**batch).loss for batch in batches) / len(batches)
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


MODELS = {
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**TINY)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**TINY, sliding_window=3, layer_types=["sliding_attention", "full_attention"])
    ),
    "mixtral with its router loss": lambda: MixtralForCausalLM(
        MixtralConfig(**TINY, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_learn_what_they_learn_in_memory(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = MODELS[name]()
    batches = [BATCH, {key: each.flip(1) for key, each in BATCH.items()}]
    want = train_in_memory(copy.deepcopy(model).train(), batches)
    with opened(model.train(), tmp_path) as giant:
        assert [giant.step(batches).loss for _ in want] == pytest.approx(want, rel=1e-5)


def test_a_loss_on_inner_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()

    def loss(model: Any, batch: Any = BATCH) -> Tensor:
        out = model(**batch, output_hidden_states=True)
        return out.loss + sum(state.pow(2).mean() for state in out.hidden_states)

    want = train_in_memory(copy.deepcopy(model), [], loss=loss)
    with opened(model, tmp_path, loss=loss) as giant:
        assert [giant.step(BATCH).loss for _ in want] == pytest.approx(want, rel=1e-5)


def test_a_key_value_cache_in_training_is_refused(tmp_path: Path) -> None:
    giant = opened(llama(), tmp_path, loss=lambda model, batch: model(**batch, use_cache=True).loss)
    with pytest.raises(ValueError, match="changes what it is given"):
        giant.step(BATCH)


def test_generating_first_changes_nothing_after_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = MODELS["gemma3"]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    with torch.no_grad():
        loss, logits = model(**BATCH).loss.item(), model(IDS).logits
    tokens = model.generate(IDS[:, :4], max_length=9, do_sample=False)
    with opened(model, tmp_path, optimizer=None) as giant:
        assert torch.equal(giant.generate(IDS[:, :4], max_length=9, do_sample=False), tokens)
        assert giant.evaluate(BATCH) == giant.evaluate(BATCH) == loss
        assert torch.equal(giant.logits({"input_ids": IDS}), logits)


def test_a_mask_of_four_axes_is_counted_by_the_tokens(tmp_path: Path) -> None:
    mask = torch.full((32, 32), torch.finfo(torch.float32).min).triu(1)[None, None]
    with opened(llama(), tmp_path) as giant:
        assert giant.step({**BATCH, "attention_mask": mask}).tokens == 32


def cut() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A batch of two rows, one of which has few targets; and the same in two micro-batches."""
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[1, 4:] = -100
    whole = {"input_ids": ids, "labels": labels}
    return whole, [{key: each[row : row + 1] for key, each in whole.items()} for row in (0, 1)]


def test_a_batch_cut_in_two_gives_the_loss_of_the_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    whole, parts = cut()
    want = train_in_memory(copy.deepcopy(model), [whole])
    means = train_in_memory(copy.deepcopy(model), parts)
    for weigh, losses in (("tokens", want), ("batches", means)):
        with opened(copy.deepcopy(model), tmp_path / weigh, weigh=weigh) as giant:
            assert [giant.step(parts).loss for _ in losses] == pytest.approx(losses, rel=1e-5)
    assert abs(want[0] - means[0]) > 1e-3


def test_a_micro_batch_without_targets_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    _, [part, other] = cut()
    want = train_in_memory(copy.deepcopy(model), [part])
    nothing = {**other, "labels": torch.full_like(other["labels"], -100)}
    with opened(model, tmp_path) as giant:
        reports = [giant.step([nothing, part]) for _ in want]
        assert [report.loss for report in reports] == pytest.approx(want, rel=1e-5)
        assert [report.losses["loss"] for report in reports] == pytest.approx(want, rel=1e-5)
        assert giant.evaluate([nothing, part]) == pytest.approx(giant.evaluate(part), rel=1e-6)


def test_an_interrupted_step_is_not_committed(tmp_path: Path) -> None:
    giant = opened(llama(), tmp_path, tiers=Tiers(durability="step"))
    first = giant.step(BATCH).loss
    giant.commit()
    machine = giant.prepare(BATCH)
    apply, calls = machine.updates.apply, 0

    def interrupt(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        apply(*args)

    machine.updates.apply = interrupt  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        giant.step(BATCH)
    for call in (giant.commit, lambda: giant.save(tmp_path / "x"), lambda: giant.step(BATCH), giant.delink):
        with pytest.raises(ValueError, match="a step was interrupted"):
            call()
    giant.close()
    with opened(llama(), tmp_path, tiers=Tiers(durability="step")) as resumed:
        assert resumed.steps == 1 and resumed.step(BATCH).loss < first


def test_larger_batches_are_measured_again_or_refused(tmp_path: Path) -> None:
    with opened(llama(), tmp_path) as giant:
        giant.step(BATCH)
        assert giant.placement is not None
        before = giant.placement.fixed_bytes
        longer = {key: each.repeat(64, 8) for key, each in BATCH.items()}
        giant.step(longer)
        after = giant.placement.fixed_bytes
        assert after > before + (8 << 20)
        giant.settings = type(giant.settings)(**{**vars(giant.settings), "budget": after + (1 << 20)})
        with pytest.raises(ValueError, match=r"larger than those that memory was laid out for.*least budget"):
            giant.step({key: each.repeat(4, 1) for key, each in longer.items()})


def test_a_padding_row_learns_nothing_in_bf16_either() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0))
    store_frame_as(model, torch.bfloat16)
    assert isinstance(model[0], NarrowEmbedding)
    model(torch.tensor([[0, 1, 0, 2]])).sum().backward()
    gradient = take_gradients(dict(model.named_parameters()))["0.weight"]
    assert gradient.sum(1).tolist() == [0.0, 4.0, 4.0, 0.0, 0.0]


def test_products_in_bf16_may_differ_with_a_graph_where_the_layer_s_output_is_fp32(tmp_path: Path) -> None:
    """Attention has other kernels with a graph. An fp32 sum of bf16 products is no more precise than they are."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_text=64, layers=1, width=256, heads=4, kv_heads=4, head_dim=64, ffn=256)
    model, tokens_BT = M6(config), torch.arange(64).view(2, 32)
    nn.init.normal_(model.slots[0].get_parameter("attention.out.weight"), std=0.5)

    def loss(model: Any, tokens_BT: Tensor) -> Tensor:
        return model(causal_stream(tokens_BT)).square().mean()

    with opened(model, tmp_path, loss=loss, compute_dtype=torch.bfloat16) as giant:
        assert giant.step([tokens_BT]).step == 1
