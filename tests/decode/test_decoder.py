"""Decoding on the key-value cache computes what the whole stream at once computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.decode.cache import KeyValueCache
from openm6.decode.decoder import Decoder
from openm6.giant.sharing.pseudo_to_real import share
from openm6.model import M6
from openm6.tasks import TASKS
from openm6.tasks.collate import collate, length_of
from openm6.tasks.layout import Branch
from tests import tiny


def prompt(task: str, layout: int = 0, **fields: object) -> Branch:
    return TASKS[task].layouts[layout].branch(task, fields, tiny.text_tokenizer())


def text_prompts() -> list[Branch]:
    """Of different lengths, with and without a picture."""
    return [
        prompt("caption", image=tiny.picture(0), lang="en"),
        prompt("lm"),
        prompt("ask", image=tiny.picture(1), question="what is the main colour of the thing?"),
        prompt("write", title="春晓", form="五绝"),
        prompt("ask", image=tiny.picture(2), question="what?"),
    ]


def pixels(images: Sequence[np.ndarray | None]) -> Tensor | None:
    given = [image for image in images if image is not None]
    return normalise(over_white(stack_rgba(given, tiny.SIDE))) if given else None


def hidden_at_once(model: M6, branch: Branch) -> Tensor:
    """What predicts each element of the branch's target, from one forward of the collated stream, (n, D)."""
    row = length_of([branch], model.config.image_tokens)
    batch, order = collate([[branch]], row=row, image_tokens=model.config.image_tokens, pad=0)
    batch.stream.images_NCHW = pixels([branch.image]) if order else None
    at = batch.text_at if branch.target_kind == "text" else batch.cell_at
    with torch.no_grad():
        return model(batch.stream).flatten(0, 1)[at]


@pytest.fixture(params=["real", "pseudo", "units of two"])
def model(request: pytest.FixtureRequest) -> M6:
    model = tiny.m6(layers=4)
    if request.param != "real":
        share(model, unit=None if request.param == "pseudo" else 2)
    return model


@torch.no_grad()
def test_text_step_by_step_equals_the_whole_stream(model: M6):
    prompts = text_prompts()
    targets = torch.randint(0, model.config.vocab_text, (len(prompts), 6))
    whole = torch.stack(
        [
            hidden_at_once(model, replace(p, target=tuple(t.tolist())))
            for p, t in zip(prompts, targets, strict=True)
        ]
    )
    decoder = Decoder(model, prompts, pixels([p.image for p in prompts]), max_new=6)
    for i in range(6):
        torch.testing.assert_close(decoder.hidden_BD, whole[:, i], atol=1e-5, rtol=1e-4)
        logits = model.text_logits(decoder.hidden_BD)
        torch.testing.assert_close(logits, model.text_logits(whole[:, i]), atol=1e-4, rtol=1e-4)
        decoder.step(targets[:, i])


@torch.no_grad()
def test_drawing_cell_by_cell_and_code_by_code_equals_the_whole_stream(model: M6):
    prompts = [prompt("draw", text=text, style="any") for text in ("a", "", "a much longer text, 很长")]
    cells = torch.randint(0, model.config.codebook, (3, 4, 4))
    whole = [
        hidden_at_once(model, replace(p, target=tuple(map(tuple, c.tolist()))))
        for p, c in zip(prompts, cells, strict=True)
    ]
    decoder = Decoder(model, prompts, None, max_new=4)
    for i in range(4):
        expected = torch.stack([model.code_logits(h, c)[i] for h, c in zip(whole, cells, strict=True)])
        for k in range(4):
            logits = model.next_code_logits(decoder.hidden_BD, cells[:, i, :k])
            torch.testing.assert_close(logits, expected[:, k], atol=1e-4, rtol=1e-4)
        if i < 3:
            decoder.step_cell(cells[:, i])


@torch.no_grad()
def test_rows_may_be_chosen_repeated_and_reordered_between_steps():
    model, prompts = tiny.m6(), text_prompts()
    decoder = Decoder(model, prompts, pixels([p.image for p in prompts]), max_new=3)
    decoder.step(torch.arange(20, 25))
    rows = torch.tensor([4, 0, 0, 3])
    decoder.select(rows)
    decoder.step(torch.arange(30, 34))
    for row, (source, last) in enumerate(zip(rows.tolist(), range(30, 34), strict=True)):
        branch = replace(prompts[source], target=(20 + source, last, 0))
        expected = hidden_at_once(model, branch)[2]
        torch.testing.assert_close(decoder.hidden_BD[row], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_looking_ahead_computes_what_a_step_with_each_token_would(model: M6):
    prompts, K = text_prompts(), 4
    tokens = torch.randint(0, model.config.vocab_text, (3, len(prompts), K))
    chosen = torch.randint(0, K, (3, len(prompts)))
    images = pixels([p.image for p in prompts])
    looking = Decoder(model, prompts, images, max_new=3, candidates=K)
    walked = torch.empty((len(prompts), 0), dtype=torch.int64)
    for place in range(3):
        hidden_BKD = looking.look_ahead(tokens[place])
        for k in range(K):
            stepping = Decoder(model, prompts, images, max_new=place + 1)
            for taken in walked.T:
                stepping.step(taken)
            stepping.step(tokens[place, :, k])
            torch.testing.assert_close(hidden_BKD[:, k], stepping.hidden_BD, atol=1e-5, rtol=1e-4)
        looking.take(hidden_BKD, chosen[place])
        assert torch.equal(looking.hidden_BD, hidden_BKD[torch.arange(len(prompts)), chosen[place]])
        walked = torch.cat((walked, tokens[place].gather(1, chosen[place][:, None])), dim=1)


@torch.no_grad()
def test_the_states_of_a_prompt_are_those_of_the_whole_stream():
    model, prompts = tiny.m6(), text_prompts()
    decoder = Decoder(model, prompts, pixels([p.image for p in prompts]), max_new=1)
    for row, each in enumerate(prompts):
        own = decoder.prompt_BTD[row, decoder.seen_BS[row]]
        assert len(own) == len(each.source) + (0 if each.image is None else model.config.image_tokens)
        expected = hidden_at_once(model, replace(each, target=(0,)))[0]
        torch.testing.assert_close(own[-1], expected, atol=1e-5, rtol=1e-4)


def test_layers_on_one_slot_keep_keys_of_their_own():
    cache = KeyValueCache(layers=2, capacity=3)
    for layer in (0, 1):
        keys, values = cache.append(layer, torch.full((1, 1, 2, 4), 1.0 + layer), torch.zeros(1, 1, 2, 4))
        assert keys.shape == values.shape == (1, 1, 2, 4)
    keys, _ = cache.append(0, torch.full((1, 1, 1, 4), 9.0), torch.zeros(1, 1, 1, 4))
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 9.0]
    keys, _ = cache.append(1, torch.full((1, 1, 1, 4), 8.0), torch.zeros(1, 1, 1, 4))
    assert keys[0, 0, :, 0].tolist() == [2.0, 2.0, 8.0]
    with pytest.raises(AssertionError, match="how long"):
        cache.append(0, torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


def test_a_kept_row_does_not_share_memory_with_its_copy():
    cache = KeyValueCache(layers=1, capacity=3)
    cache.append(0, torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    cache.select(torch.tensor([1, 1]))
    keys, _ = cache.append(
        0, torch.tensor([5.0, 6.0]).view(2, 1, 1, 1).expand(2, 1, 1, 4), torch.zeros(2, 1, 1, 4)
    )
    assert keys[:, 0, 1, 0].tolist() == [5.0, 6.0]
