"""Streamed inference: the model's own generate on layers that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openm6.giant import Tiers, stream
from openm6.giant.models.disk_embedding import DiskEmbedding
from openm6.giant.streaming.engine import Giant
from tests.giant.folders import FAMILIES, VOCAB, write_folder

LAYERS = 3


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(tmp_path: Path, family: str, **options: Any) -> tuple[Any, Giant]:
    """A model in memory, and its folder, streamed from the disk for inference."""
    model = write_folder(tmp_path / "model", family, layers=LAYERS)
    everything_on_disk: Any = {f"slot-{i:04d}": {"weights": "disk"} for i in range(LAYERS)}
    settings = {"budget": "8GiB", "optimizer": None, "tiers": Tiers(placement=everything_on_disk), **options}
    return model, stream(tmp_path / "model", disk=tmp_path / "tiers", **settings)


def prompt(rows: int = 2, tokens: int = 5) -> Tensor:
    return torch.randint(3, VOCAB, (rows, tokens))


def test_greedy_tokens_are_those_of_the_model_in_memory(tmp_path: Path, family: str) -> None:
    model, giant = opened(tmp_path, family)
    ids_BT = prompt()
    want = model.generate(ids_BT, max_new_tokens=7, do_sample=False, attention_mask=torch.ones_like(ids_BT))
    assert torch.equal(giant.generate(ids_BT, max_new_tokens=7, do_sample=False), want)
    giant.close()


@pytest.mark.bits
def test_logits_are_equal_to_the_last_bit_with_and_without_cache(tmp_path: Path, family: str) -> None:
    model, giant = opened(tmp_path, family)
    ids_BT = prompt()
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    mask_BT = torch.ones_like(ids_BT)
    for use_cache in (True, False):
        want = model.generate(
            ids_BT, max_new_tokens=4, attention_mask=mask_BT, use_cache=use_cache, **options
        )
        got: Any = giant.generate(ids_BT, max_new_tokens=4, use_cache=use_cache, **options)
        assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))
    giant.close()


def test_beams_and_padded_prompts_work_too(tmp_path: Path) -> None:
    model, giant = opened(tmp_path, "qwen3")
    ids_BT, mask_BT = prompt(), torch.ones(2, 5, dtype=torch.long)
    mask_BT[1, :2] = 0
    options = {"attention_mask": mask_BT, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    want = model.generate(ids_BT, max_new_tokens=4, **options)
    assert torch.equal(giant.generate(ids_BT, max_new_tokens=4, **options), want)
    giant.close()


def test_every_pass_reads_the_slots_on_disk_and_no_resident_one(tmp_path: Path) -> None:
    one_pass = []
    for number, tiers in enumerate([{"weights": "disk"}, {"weights": "host"}]):
        placement: Any = {f"slot-{i:04d}": tiers if i == 1 else {"weights": "disk"} for i in range(LAYERS)}
        small = Tiers(placement=placement, buffer_bytes=2 * slot_bytes(tmp_path))
        _, giant = opened(tmp_path / str(number), "qwen3", tiers=small)
        giant.generate(prompt(), max_new_tokens=3, do_sample=False)
        before = giant.store.stats.bytes_read
        giant.generate(prompt(), max_new_tokens=8, min_new_tokens=8, do_sample=False)
        one_pass.append((giant.store.stats.bytes_read - before) / 8)
        giant.close()
    size = slot_bytes(tmp_path)
    assert one_pass[0] > 2.5 * size  # of three slots; now and then a buffer still holds the bytes
    assert one_pass[1] <= 2.5 * size


def slot_bytes(tmp_path: Path) -> int:
    """What a slot takes in a buffer: 1,568 weights of the tiny Qwen3 in fp32, in pages."""
    return 8192


def test_bf16_weights_give_the_logits_of_the_rounded_model(tmp_path: Path, family: str) -> None:
    model, giant = opened(tmp_path, family, weights_dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    ids_BT = prompt()
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    want = model.generate(ids_BT, max_new_tokens=4, attention_mask=torch.ones_like(ids_BT), **options)
    got: Any = giant.generate(ids_BT, max_new_tokens=4, **options)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)
    giant.close()


def test_an_embedding_of_its_own_stays_in_the_checkpoint_and_a_tied_one_does_not(tmp_path: Path) -> None:
    for family, stays in (("llama", True), ("qwen3", False)):
        _, giant = opened(tmp_path / family, family)
        model: Any = giant.frame.model
        assert isinstance(model.model.embed_tokens, DiskEmbedding) == stays
        assert ("model.embed_tokens.weight" in giant.frame.parameters) != stays
        giant.close()


def test_a_giant_for_inference_neither_trains_nor_saves(tmp_path: Path) -> None:
    _, giant = opened(tmp_path, "llama")
    ids_BT = prompt()
    with pytest.raises(ValueError, match="opened with optimizer=None"):
        giant.step([{"input_ids": ids_BT, "labels": ids_BT}])
    with pytest.raises(ValueError, match="opened with optimizer=None"):
        giant.save(tmp_path / "saved")
    giant.close()


def test_a_giant_generates_between_steps_of_training(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_folder(tmp_path / "model", "qwen3", layers=LAYERS)
    giant = stream(tmp_path / "model", budget="8GiB", disk=tmp_path / "tiers", lr=1e-2)
    ids_BT = prompt()
    batch = [{"input_ids": ids_BT, "labels": ids_BT}]
    first = giant.step(batch).loss
    tokens = giant.generate(ids_BT, max_new_tokens=5, do_sample=False)
    giant.save(tmp_path / "tuned")
    tuned: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", local_files_only=True)
    mask_BT = torch.ones_like(ids_BT)
    want = tuned.generate(ids_BT, max_new_tokens=5, do_sample=False, attention_mask=mask_BT)
    assert torch.equal(tokens, want)
    assert giant.step(batch).loss < first
    giant.close()


def test_prompts_that_are_none_are_refused(tmp_path: Path) -> None:
    _, giant = opened(tmp_path, "qwen3")
    with pytest.raises(ValueError, match=r"input_ids must be token ids of shape \(batch, tokens\)"):
        giant.generate(torch.ones(5, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"not \(2, 5\) of torch.float32"):
        giant.generate(torch.ones(2, 5), max_new_tokens=2)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
        giant.generate(prompt(), max_new_tokens=0)
    giant.close()
