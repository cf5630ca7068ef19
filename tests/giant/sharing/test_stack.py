from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.delink import Subject, gradient_of
from benchmarks.tiny_models import tiny_config
from openm6.giant import delink, share, slot_uses
from openm6.giant.sharing.stack import SlotStack, TiedStack, find_stack


def clip(*, vision_layers: int = 3) -> Any:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
    text = tower | {"vocab_size": 32, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = tower | {"image_size": 8, "patch_size": 4, "num_hidden_layers": vision_layers}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def test_it_finds_slots_wherever_they_are(m6: Subject) -> None:
    """M6's backbone may hold ModuleLists too: slots and sharing win."""
    m6.model.backbone = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    stack = find_stack(m6.model)
    assert isinstance(stack, SlotStack) and stack.path == "slots"
    stack = find_stack(nn.ModuleDict({"student": m6.model}))
    assert isinstance(stack, SlotStack) and stack.path == "student.slots"


def test_it_finds_the_only_list_of_layers(subject: Subject) -> None:
    want = {
        "M6": "slots",
        "LlamaForCausalLM": "model.layers",
        "Qwen3ForCausalLM": "model.layers",
        "GPT2LMHeadModel": "transformer.h",
        "ViTForImageClassification": "vit.layers",
    }
    assert find_stack(subject.model).path == want[type(subject.model).__name__]


def test_lists_inside_the_layers_are_not_stacks(qwen3: Subject) -> None:
    for layer in qwen3.model.model.layers:
        layer.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert find_stack(qwen3.model).path == "model.layers"


def test_each_tower_of_clip_is_shared_by_its_path() -> None:
    model = clip()
    with pytest.raises(ValueError, match=r"CLIPModel has several stacks \(text_model.encoder.layers, "):
        share(model)
    with pytest.raises(ValueError, match=r"no ModuleList at 'encoder.layers'; it has: text_model.enc"):
        share(model, layers="encoder.layers")
    text, vision = "text_model.encoder.layers", "vision_model.encoder.layers"
    batch = {"input_ids": torch.randint(0, 32, (2, 5)), "pixel_values": torch.randn(2, 3, 8, 8)}
    share(model, layers=text)
    assert (slot_uses(model, layers=text), slot_uses(model, layers=vision)) == ([3], [1, 1, 1])
    share(model, layers=vision)
    before = model(**batch)
    delink(model, layers=text)
    delink(model, layers=vision)
    after = model(**batch)
    assert torch.equal(before.logits_per_image, after.logits_per_image)
    assert (slot_uses(model, layers=text), slot_uses(model, layers=vision)) == ([1, 1, 1], [1, 1, 1])


def test_of_several_stacks_the_language_model_is_suggested() -> None:
    """Though the image tower has more weights, and may come first."""
    with pytest.raises(ValueError, match=r"for instance with layers='text_model\.encoder\.layers'"):
        find_stack(clip(vision_layers=9))


def test_layers_of_several_kinds_are_found_by_the_configuration() -> None:
    model = hybrid()
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in model.model.layers]
    assert shapes[0] != shapes[1]
    assert find_stack(model).path == "model.layers"
    # A small tower of equal layers beside it is not taken for the model.
    model.vision = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    with pytest.raises(ValueError, match=r"several stacks \(vision, model\.layers\).*layers='model\.layers'"):
        find_stack(model)


def hybrid() -> Any:
    from transformers import Lfm2ForCausalLM

    return Lfm2ForCausalLM(tiny_config("lfm2"))


def test_models_without_a_stack_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear has no ModuleList of two or more layers .*it has: none"):
        find_stack(nn.Linear(2, 2))
    funnel = nn.ModuleDict({"stages": nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)])})
    assert find_stack(funnel).path == "stages"  # it can be streamed; to share, layers must be alike
    with pytest.raises(ValueError, match=r"stages: layers 0 and 1 cannot share a slot, since 'bias' is"):
        share(funnel, layers="stages")


def test_unlike_layers_can_be_shared_in_units_that_keep_them_apart() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2 + i // 2) for i in range(4))})
    share(model, unit=2, layers="layers")
    assert slot_uses(model, layers="layers") == [2, 2]


def test_half_tied_layers_are_refused() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    layers[2].weight = layers[0].weight
    with pytest.raises(ValueError, match=r"layer 2 shares 'weight' with another layer, but not all"):
        find_stack(nn.ModuleDict({"layers": layers}))


def test_a_map_that_skips_a_slot_is_refused(m6: Subject) -> None:
    m6.model.sharing = [0, 1, 1, 3]
    with pytest.raises(ValueError, match=r"slots: sharing=\[0, 1, 1, 3\] must use each of the 4 slots"):
        share(m6.model)


@pytest.mark.parametrize("unit", [4, 2])
def test_generation_with_a_cache_works_while_shared(qwen3: Subject, unit: int) -> None:
    model = qwen3.model
    share(model, unit=unit)
    prompt = torch.randint(3, 32, (2, 5))
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(prompt, use_cache=True, **settings)
    assert cached.shape == (2, 11)
    tokens = prompt  # greedy by hand, without a cache
    for _ in range(6):
        tokens = torch.cat((tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(cached, tokens)
    delink(model)
    assert torch.equal(model.generate(prompt, use_cache=True, **settings), cached)


def test_sharing_survives_copies_moves_and_state_dicts(giant: Subject) -> None:
    share(giant.model, unit=2)
    twin = copy.deepcopy(giant.model.to(torch.bfloat16).to(torch.float32))
    assert slot_uses(giant.model) == slot_uses(twin) == [2, 2]
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    giant.model.load_state_dict(twin.state_dict())
    assert slot_uses(giant.model) == [2, 2]
    assert torch.equal(giant.logits(giant.model), giant.logits(twin))


@pytest.mark.parametrize("unit", [4, 2])
def test_untied_layers_see_the_shared_weights_and_split_the_gradient(giant: Subject, unit: int) -> None:
    model = giant.model
    share(model, unit=unit)
    parameters = [id(p) for p in model.parameters()]
    before = giant.logits(model)
    giant.loss(model).backward()
    shared = find_stack(model).slots()
    with find_stack(model).untied() as layers:
        assert len({id(p) for layer in layers for p in layer.values()}) == 4 * len(shared[0])
        assert torch.equal(giant.logits(model), before)
        giant.loss(model).backward()
    assert [id(p) for p in model.parameters()] == parameters
    assert slot_uses(model) == [unit] * (4 // unit)
    for number, slot in enumerate(shared):
        uses = layers[number * unit : (number + 1) * unit]
        for name, p in slot.items():
            assert all(layer[name].data_ptr() == p.data_ptr() for layer in uses)
            torch.testing.assert_close(
                sum(gradient_of(layer[name]) for layer in uses), p.grad, rtol=1e-5, atol=1e-7
            )


def test_the_stack_is_restored_when_a_check_fails(giant: Subject) -> None:
    share(giant.model)
    parameters = [id(p) for p in giant.model.parameters()]
    with pytest.raises(RuntimeError, match="out of data"), find_stack(giant.model).untied():
        raise RuntimeError("out of data")
    assert [id(p) for p in giant.model.parameters()] == parameters
    assert slot_uses(giant.model) == [4]


class Counting(nn.Module):
    """A layer with a saved statistic and a table that follows from its depth."""

    seen: Tensor
    depth: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("seen", torch.tensor(float(depth)))
        self.register_buffer("depth", torch.tensor(float(depth)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.linear(x) * self.depth


def test_saved_buffers_belong_to_the_slot_and_tables_to_the_layer() -> None:
    layers = [Counting(depth) for depth in range(1, 4)]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
    assert isinstance(find_stack(model), TiedStack)
    share(model)
    for layer in layers:
        layer(torch.zeros(2))
    assert [layer.seen.item() for layer in layers] == [4, 4, 4]
    assert [layer.depth.item() for layer in layers] == [1, 2, 3]
    delink(model)
    layers[2](torch.zeros(2))
    assert [layer.seen.item() for layer in layers] == [4, 4, 5]
