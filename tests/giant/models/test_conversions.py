"""Tensors that a checkpoint has by other names and in other pieces: read and written as `transformers` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.tiny_models import tiny_config
from openm6.giant import stream
from openm6.giant.models.conversions import Recipe, SavePlan
from openm6.giant.models.hugging_face import Source, skeleton, tied_parameters
from openm6.model.hf_folder import WEIGHTS, Checkpoint

# Their experts lie one by one on the disk; their tensors have other names; nothing is converted.
FAMILIES = ["mixtral", "qwen2_moe", "olmoe", "jamba", "lfm2_moe", "gpt_neox", "granitemoe", "bert", "llama"]


def write(folder: Path, family: str) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    model.save_pretrained(folder)
    return model.eval()


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every parameter, read from the folder one by one."""
    model = skeleton(folder, dtype=torch.float32)
    source = Source(folder, model)
    found = {}
    for name in tied_parameters(model):
        found[name] = torch.full(model.get_parameter(name).shape, torch.nan)
        source.read(name, found[name])
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["in place", "as transformers computes it"])
def test_parameters_are_what_transformers_makes_of_a_checkpoint(
    family: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers as hf

    write(tmp_path, family)
    model: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    if way != "in place":
        monkeypatch.setattr(Recipe, "places", lambda *_: None)
    found = read_all(tmp_path)
    want = dict(model.named_parameters())
    assert found.keys() == want.keys()
    assert [name for name in want if not torch.equal(found[name], want[name])] == []


def test_an_expert_at_a_time_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of them, before they are put together."""
    write(tmp_path, "mixtral")
    model = skeleton(tmp_path, dtype=torch.float32)
    source = Source(tmp_path, model)  # it makes all tensors once, without values
    monkeypatch.setattr(Recipe, "make", None)
    read: list[str] = []
    real = Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, name, out: (read.append(name), real(self, name, out))
    )
    name = "model.layers.1.mlp.experts.gate_up_proj"
    source.read(name, torch.empty(model.get_parameter(name).shape))
    assert len(read) == 2 * 4 and all("layers.1." in each and "experts." in each for each in read)


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "granitemoe", "jamba", "lfm2_moe", "deepseek_v3"])
def test_what_was_trained_is_saved_as_checkpoints_of_the_family_are(family: str, tmp_path: Path) -> None:
    import transformers as hf

    before = dict(write(tmp_path / "a", family).named_parameters())
    giant = stream(tmp_path / "a", budget="8GiB", disk=tmp_path / "tiers", lr=1e-2)
    ids_BT = torch.randint(3, 64, (2, 6))
    giant.step([{"input_ids": ids_BT, "labels": ids_BT}])
    giant.save(tmp_path / "b")
    giant.close()
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / folder / WEIGHTS).items()}
        for folder in "ab"
    ]
    assert shapes[0] == shapes[1]
    opened: Any = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "b", local_files_only=True, output_loading_info=True
    )
    model, info = opened
    assert not any(info.values())
    after = read_all(tmp_path / "b")
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())
    assert not any(torch.equal(p, before[name]) for name, p in after.items() if "q_proj" in name)


def test_experts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write(tmp_path, "mixtral")
    good = load_file(tmp_path / WEIGHTS)
    one = next(name for name in good if "layers.1." in name and "experts.2." in name)
    for weights, message in [
        ({name: t for name, t in good.items() if name != one}, r"the tensors .*layers\.1\..*"),
        (good | {one: good[one][:, :3].contiguous()}, r"do not make .*layers\.1\..*"),
    ]:
        save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            Source(tmp_path, skeleton(tmp_path, dtype=torch.float32))


class Turns(nn.Module):
    """A model whose checkpoints have, for the rule `revert`, other tensors."""

    base_model_prefix = ""


def plan(revert: Any, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> list[list[list[str]]]:
    """Which tensors are converted together."""
    monkeypatch.setattr(
        "transformers.core_model_loading.revert_weight_conversion", lambda _, each: revert(each)
    )
    tensors = [{name: torch.ones(2, device="meta") for name in group} for group in groups]
    made = SavePlan(Turns(), tensors)
    return [made._apart[frozenset(group)] for group in tensors]


def test_tensors_that_are_written_as_one_are_converted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """q, k and v of a layer are one tensor of the checkpoint."""
        found = {name: tensor for name, tensor in tensors.items() if name[1] == "o"}
        for layer in sorted({name[0] for name in tensors if name[1] in "qkv"}):
            found[f"{layer}qkv"] = torch.cat(
                [t for n, t in tensors.items() if n[0] == layer and n[1] in "qkv"]
            )
        return found

    groups = [["0q", "0k", "0v", "0o"], ["1o", "1q", "1k", "1v"]]
    assert plan(joined, groups, monkeypatch) == [[["0o"], ["0q", "0k", "0v"]], [["1o"], ["1q", "1k", "1v"]]]
    with pytest.raises(ValueError, match="Turns cannot be saved a layer at a time"):
        plan(joined, [["0q", "0k"], ["0v"]], monkeypatch)


def test_names_that_change_only_in_company_are_converted_in_company(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """a becomes z, and then b becomes a."""
        if "a" not in tensors:
            return dict(tensors)
        return {{"a": "z", "b": "a"}.get(name, name): tensor for name, tensor in tensors.items()}

    assert plan(moved, [["a", "b", "c"]], monkeypatch) == [[["a", "b", "c"]]]


def test_a_module_of_another_kind_keeps_its_names() -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    made = SavePlan(nn.Linear(2, 2), [tensors]).convert(tensors)
    assert {name: tensor for piece in made for name, tensor in piece.items()} == tensors
