"""Folders of `transformers`: a skeleton with real buffers, tensors by name, and a way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from openm6.giant import Tiers, stream
from openm6.giant.models.hugging_face import (
    Source,
    plain_model,
    put_parameter,
    save_folder,
    skeleton,
    tied_parameters,
)
from openm6.giant.tiers.parts import TensorSpec
from openm6.giant.tiers.store import Access
from openm6.model.hf_folder import WEIGHTS
from tests.giant.folders import FAMILIES, VOCAB, write_folder


def filled(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Source]:
    """A skeleton, and everything in it read."""
    model = skeleton(folder, dtype=dtype)
    source = Source(folder, model)
    for first, names in tied_parameters(model).items():
        tensor = torch.empty(model.get_parameter(first).shape, dtype=dtype)
        source.read(first, tensor)
        put_parameter(model, names, tensor)
    return model, source


def save(folder: Path, model: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    """All parameters as one group."""
    specs = [TensorSpec(name, tuple(p.shape), dtype) for name, p in model.named_parameters()]
    save_folder(folder, model, [specs], [dict(model.named_parameters())], **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_real_buffers_and_no_weights(family: str, tmp_path: Path) -> None:
    model = write_folder(tmp_path, family)
    bones = skeleton(tmp_path, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in bones.parameters())
    buffers = dict(bones.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert list(tied_parameters(bones).values()) == list(tied_parameters(model).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_opens_to_the_same_logits(family: str, tmp_path: Path) -> None:
    model = write_folder(tmp_path, family)
    opened, _ = filled(tmp_path)
    ids_BT = torch.randint(3, 32, (2, 9))
    with torch.no_grad():
        assert torch.equal(opened(ids_BT).logits, model(ids_BT).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_opens_in_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_folder(tmp_path / "a", family)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    model, _ = filled(tmp_path / "a")
    save(tmp_path / "b", model, dtype, source=tmp_path / "a", shard_bytes=6000)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    assert (tmp_path / "b" / "tokenizer.json").is_file()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "b", local_files_only=True)
    assert opened.dtype == dtype
    assert {n for n, _ in opened.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert all(torch.equal(p, model.get_parameter(n).to(dtype)) for n, p in opened.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_and_saved_opens_with_equal_weights(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    start = dict(write_folder(tmp_path / "a", family).named_parameters())
    giant = stream(
        tmp_path / "a",
        budget="8GiB",
        disk=tmp_path / "tiers",
        optimizer="adafactor",
        lr=1e-2,
        weights_dtype=dtype,
        tiers=Tiers(placement={"slot-*": {"weights": "disk", "state": "disk"}}),
    )
    ids_BT = torch.randint(3, 32, (2, 6))
    batches = [{"input_ids": row[None], "labels": row[None]} for row in ids_BT]
    losses = [giant.step(batches).loss for _ in range(4)]
    assert losses[-1] < losses[0]
    giant.save(tmp_path / "b")
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "b", local_files_only=True)
    assert opened.dtype == dtype
    saved = dict(opened.named_parameters())
    assert saved.keys() == start.keys()
    assert not any(torch.equal(p, start[name].to(dtype)) for name, p in saved.items() if p.dim() > 1)
    for name, parameter in giant.frame.parameters.items():
        assert torch.equal(saved[name], parameter.to(dtype))
    for slot in giant.slots:
        with giant.store.use(Access(slot.name, ("weights",))) as views:
            for name, weight in views["weights"].items():
                assert torch.equal(saved[f"{slot.path}.{name}"], weight)
    giant.close()


def test_a_batch_may_be_one_mapping_or_a_list_of_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", "qwen3")
    ids_BT = torch.randint(3, 32, (2, 6))
    batch = {"input_ids": ids_BT, "labels": ids_BT}
    losses = []
    ways: list[Any] = [batch, [batch]]
    for number, given in enumerate(ways):
        giant = stream(tmp_path / "model", budget="8GiB", disk=tmp_path / str(number))
        losses.append([giant.step(given).loss, giant.evaluate(given)])
        with pytest.raises(ValueError, match="at least one micro-batch"):
            giant.step([])
        giant.close()
    assert losses[0] == losses[1]


def test_saving_over_the_source_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "qwen3")
    before = (tmp_path / WEIGHTS).read_bytes()
    model, _ = filled(tmp_path)
    with pytest.raises(ValueError, match="is the folder that the model was opened from"):
        save(tmp_path, model, source=tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_module_without_a_configuration_saves_its_weights_and_buffers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    save(tmp_path, model)
    saved = load_file(tmp_path / WEIGHTS)
    assert saved.keys() == model.state_dict().keys()
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_the_models_prefix_may_be_left_out(tmp_path: Path) -> None:
    """As in the first GPT-2 checkpoints, which have attention masks besides."""
    model = write_folder(tmp_path, "gpt2")
    weights = {name.removeprefix("transformer."): t for name, t in load_file(tmp_path / WEIGHTS).items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, tmp_path / WEIGHTS, {"format": "pt"})
    opened, source = filled(tmp_path)
    assert torch.equal(opened.transformer.wte.weight, model.transformer.wte.weight)
    rows = source.rows("lm_head.weight", torch.tensor([3, 1]))
    assert torch.equal(rows, model.lm_head.weight[[3, 1]])


def test_wrong_tensors_are_named_with_their_file(tmp_path: Path) -> None:
    write_folder(tmp_path, "qwen3")
    good = load_file(tmp_path / WEIGHTS)
    norm = "model.layers.1.self_attn.q_norm.weight"
    cases = {
        rf"{WEIGHTS} has no tensor {norm}, which Qwen3ForCausalLM needs": {
            name: tensor for name, tensor in good.items() if name != norm
        },
        rf"{WEIGHTS}: the tensor {norm} is \(3,\), but the configuration asks for \(8,\)": good
        | {norm: torch.ones(3)},
        rf"{WEIGHTS}: Qwen3ForCausalLM has no place for the tensor extra": good | {"extra": torch.ones(1)},
    }
    for message, weights in cases.items():
        save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            Source(tmp_path, skeleton(tmp_path, dtype=torch.float32))


def test_a_folder_without_a_usable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a Hugging Face folder: it has no config.json"):
        skeleton(tmp_path, dtype=torch.float32)
    for content in ({"model_type": "unheard-of"}, {"model_type": "vit"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(
            ValueError, match=r"config\.json describes no model that .* can build: .*$"
        ) as caught:
            skeleton(tmp_path, dtype=torch.float32)
        assert "\n" not in str(caught.value)


def test_python_code_in_a_folder_is_refused_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    content = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "code.py").write_text("raise AssertionError('this ran')")
    with pytest.raises(
        ValueError, match=r"auto_map in .*config\.json asks for Python code .* never run.*'own'"
    ):
        skeleton(tmp_path, dtype=torch.float32)


def bert(**options: Any) -> Any:
    import transformers as hf

    return hf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        **options,
    )


@pytest.mark.parametrize(
    "kind",
    ["BertForMaskedLM", "BertForSequenceClassification", "BertLMHeadModel", "Qwen3ForSequenceClassification"],
)
def test_a_folder_opens_as_the_class_that_its_configuration_names(kind: str, tmp_path: Path) -> None:
    import transformers as hf

    if kind.startswith("Bert"):
        model = getattr(hf, kind)(bert(is_decoder=kind == "BertLMHeadModel")).eval()
    else:
        config = write_folder(tmp_path / "causal", "qwen3").config
        model = getattr(hf, kind)(config).eval()
    model.save_pretrained(tmp_path)
    opened, _ = filled(tmp_path)
    assert type(opened) is type(model)
    ids_BT = torch.randint(3, VOCAB, (1, 9))
    with torch.no_grad():
        assert torch.equal(opened(ids_BT).logits, model(ids_BT).logits)
    save(tmp_path / "b", opened, source=tmp_path)
    again = getattr(hf, kind).from_pretrained(tmp_path / "b", local_files_only=True)
    assert again.config.architectures == [kind]
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in again.named_parameters())


def test_what_a_folder_says_of_generating_is_kept(tmp_path: Path) -> None:
    import transformers as hf

    model = write_folder(tmp_path / "a", "qwen3")
    model.generation_config.eos_token_id = [2, 5]
    model.generation_config.top_k = 7
    model.generation_config.to_json_file(tmp_path / "a" / "generation_config.json")
    opened, _ = filled(tmp_path / "a")
    assert opened.generation_config.eos_token_id == [2, 5] and opened.generation_config.top_k == 7
    opened.generation_config.temperature = 0.5  # without sampling: `save_pretrained` refuses it
    save(tmp_path / "b", opened, source=tmp_path / "a")
    saved = hf.GenerationConfig.from_pretrained(tmp_path / "b", local_files_only=True)
    assert (saved.eos_token_id, saved.top_k, saved.temperature) == ([2, 5], 7, 0.5)
    (tmp_path / "a" / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is not JSON"):
        skeleton(tmp_path / "a", dtype=torch.float32)


def test_an_end_in_the_generation_config_ends_streamed_generation(tmp_path: Path) -> None:
    model = write_folder(tmp_path / "model", "llama")
    ids_BT = torch.randint(3, VOCAB, (1, 4))
    ends = [model.generate(ids_BT, max_new_tokens=3, do_sample=False)[0, -1].item(), 0]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = 0
    model.generation_config.save_pretrained(tmp_path / "model")
    giant = stream(tmp_path / "model", budget="8GiB", disk=tmp_path / "tiers", optimizer=None)
    got = giant.generate(ids_BT, max_new_tokens=9, do_sample=False)
    giant.close()
    assert got.shape[1] <= 7 and got[0, -1] in ends
    assert torch.equal(got, model.generate(ids_BT, max_new_tokens=9, do_sample=False))


def test_files_of_tokenizers_and_processors_go_with_the_model(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", "qwen3")
    files = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
    ]
    for name in [*files, "README.md", "optimizer.bin"]:
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text(name)
    model, _ = filled(tmp_path / "a")
    save(tmp_path / "b", model, source=tmp_path / "a")
    written = {
        str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*") if path.is_file()
    }
    assert written == {*files, "config.json", "generation_config.json", WEIGHTS}
    assert all((tmp_path / "b" / name).read_text() == name for name in files)


def test_a_tied_pair_of_two_values_is_refused(tmp_path: Path) -> None:
    """`transformers` unties it, after a warning."""
    write_folder(tmp_path, "qwen3")
    good = load_file(tmp_path / WEIGHTS)
    head = {"lm_head.weight": good["model.embed_tokens.weight"].clone()}
    save_file(good | head, tmp_path / WEIGHTS, {"format": "pt"})
    filled(tmp_path)
    head["lm_head.weight"][3, 3] += 1
    save_file(good | head, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head.weight differ, but the configuration ties them"):
        filled(tmp_path)


@pytest.mark.parametrize("wrap", ["model", "each layer"])
def test_a_compiled_model_saves_the_names_of_the_model_itself(wrap: str, tmp_path: Path) -> None:
    model: Any = write_folder(tmp_path / "a", "llama")
    names = load_file(tmp_path / "a" / WEIGHTS).keys()
    if wrap == "model":
        model = torch.compile(model, backend="eager")
    else:
        for index, layer in enumerate(model.model.layers):
            model.model.layers[index] = torch.compile(layer, backend="eager")
    giant = stream(model, budget="8GiB", disk=tmp_path / "tiers")
    ids_BT = torch.randint(3, VOCAB, (1, 6))
    giant.step([{"input_ids": ids_BT, "labels": ids_BT}])
    giant.save(tmp_path / "b")
    giant.close()
    assert load_file(tmp_path / "b" / WEIGHTS).keys() == names
    content = json.loads((tmp_path / "b" / "config.json").read_text())
    assert content["architectures"] == ["LlamaForCausalLM"]


def test_adapters_and_quantized_models_in_memory_are_refused(tmp_path: Path) -> None:
    model = write_folder(tmp_path, "llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"^quantization_config of LlamaForCausalLM"):
        plain_model(model)
    model.config.quantization_config = None
    model.peft_config = {"default": object()}
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has adapters.*merge_and_unload"):
        plain_model(model)
