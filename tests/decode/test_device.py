"""A model on another device answers as on the processor, and no operation mixes tensors of the two.

The device is a stand-in (`tests/other_device.py`): nothing here was run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import openm6
from openm6.decode import live
from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, beam_search, choose
from openm6.decode.language import WORDS_FILE, words_of
from openm6.decode.magic import Magic
from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from tests import tiny
from tests.other_device import THERE, MixedDevices, stand_in

PICTURES = [tiny.picture(i) for i in range(2)]
TEXTS = ["green frog", "黄色星星"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with codes, cross encoders and lists of words."""
    made = tmp_path_factory.mktemp("checkpoint")
    save_model(tiny.m6(ranking_layers=1, layers=2), made)
    tiny.text_tokenizer().save(made / "tokenizer.json")
    tiny.image_tokenizer().save(made)
    words = {
        lang: words_of([text for thing in tiny.THINGS for text in thing[:6]], lang) for lang in ("en", "zh")
    }
    (made / WORDS_FILE).write_text(str(words).replace("'", '"'), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def here(folder: Path) -> Pipeline:
    return openm6.load(folder, device="cpu")


@pytest.fixture(scope="module")
def opened_there(folder: Path) -> Pipeline:
    with stand_in():
        return openm6.load(folder)  # auto


@pytest.fixture
def there(opened_there: Pipeline) -> Iterator[Pipeline]:
    with stand_in():
        yield opened_there


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.short_texts(monkeypatch, 3)
    monkeypatch.setattr(live, "MAX_POEM", 4)


def test_the_stand_in_finds_what_a_device_refuses():
    host = torch.ones(3)
    with stand_in() as device:
        x = torch.arange(3.0, device=device)
        assert x.device == torch.tensor([1], device=device).device == device and (x + 1).device == device
        for mix in (lambda: x + host, lambda: x[torch.tensor([0])], lambda: host[x.long()]):
            with pytest.raises(MixedDevices):
                mix()
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        with torch.inference_mode():
            assert torch.ones(2).to(device).device == device and isinstance(x.cpu().numpy(), np.ndarray)
        x[1:] = 5.0  # views and the host's scalars are as ever
        assert (x.cpu() + host).tolist() == [1, 6, 6] and (x * torch.tensor(2.0)).tolist() == [0, 10, 10]


def test_the_model_and_the_image_tokenizer_are_where_one_says(there: Pipeline, folder: Path):
    assert there.device == THERE and there.image_tokenizer is not None
    for module in (there.model, there.image_tokenizer):
        assert {each.device for each in (*module.parameters(), *module.buffers())} == {THERE}
    on_cpu = openm6.load(folder, device="cpu")
    assert on_cpu.device == on_cpu.model.embed.weight.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["bogus", "cuda:77"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"'{name}'.*auto"):
        openm6.load(tmp_path / "missing", device=name)


CASES: dict[str, Callable[[Pipeline], Any]] = {
    "caption by beams, in one language": lambda m6: [
        m6.caption(PICTURES, lang=lang) for lang in ("en", "zh")
    ],
    "ask": lambda m6: m6.ask(PICTURES, "what is it?", beams=2),
    "write": lambda m6: m6.write(["春晓", "相思"], form="五绝", seed=3),
    "continue": lambda m6: m6.continue_text(["床前明月", "red"], max_tokens=3),
    "greedy": lambda m6: m6.continue_text(["床前", "red"], max_tokens=3, sampling=Sampling(temperature=0)),
    "top k": lambda m6: m6.continue_text("红", max_tokens=3, sampling=Sampling(top_k=5)),
    "draw with guidance": lambda m6: m6.draw(["frog", "whale"], candidates=2),
    "run a task": lambda m6: m6.run("caption", {"image": PICTURES[0], "lang": "en"}, max_tokens=3),
    "run a task that samples": lambda m6: m6.run(
        "caption", {"image": PICTURES[0], "lang": "en"}, max_tokens=3, sampling=Sampling()
    ),
    "round trip": lambda m6: m6.reconstruct(PICTURES),
    "match": lambda m6: m6.match(PICTURES, TEXTS),
    "rank by captions": lambda m6: m6.rank_texts(PICTURES, TEXTS, by="captions"),
    "rank by encoders": lambda m6: m6.rank_images(TEXTS, PICTURES, by="encoders", candidates=2),
    "MAGIC": lambda m6: m6.tell(PICTURES, m6, magic=Magic(k=6, plausible=0.01)),
    "MAGIC with beams": lambda m6: m6.tell(PICTURES, m6, magic=Magic(k=6, beams=3)),
    "perplexity": lambda m6: m6.poem_nll(tiny.poems()),
}


@pytest.mark.parametrize("case", CASES)
def test_every_task_gives_the_same_on_another_device(case: str, there: Pipeline, here: Pipeline):
    found, expected = CASES[case](there), CASES[case](here)
    if isinstance(expected, np.ndarray | tuple):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    elif isinstance(expected, list) and isinstance(expected[0], Image.Image):
        for one, other in zip(found, expected, strict=True):  # at most a rounding apart
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    else:
        assert found == expected and any(expected)


def test_experts_compute_where_the_model_is(tmp_path: Path):
    save_model(tiny.m6(experts={"experts": 4}, layers=2), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    expected = openm6.load(tmp_path, device="cpu").embed_texts(TEXTS)
    with stand_in():
        np.testing.assert_allclose(openm6.load(tmp_path).embed_texts(TEXTS), expected, atol=1e-5)


def test_a_guide_and_a_teller_may_be_on_different_devices(there: Pipeline, here: Pipeline):
    for magic in (Magic(k=6), Magic(k=6, beams=3)):
        alone = here.tell(PICTURES, here, magic=magic)
        assert there.tell(PICTURES, here, magic=magic) == here.tell(PICTURES, there, magic=magic) == alone


def test_the_cache_and_the_masks_of_a_decoder_are_where_the_model_is(there: Pipeline):
    prompts = [there.prompt("caption", image=picture, lang="en") for picture in there.pictures(PICTURES)]
    decoder = Decoder(there.model, prompts, there.pixels(prompts), max_new=2)
    with torch.no_grad():
        decoder.step(torch.tensor([5, 6]))
    kept = [
        *decoder.cache.keys,
        *decoder.cache.values,
        decoder.seen_BS,
        decoder.position_B,
        decoder.hidden_BD,
    ]
    assert {each.device for each in kept if each is not None} == {THERE}


def test_a_mask_of_the_host_holds_on_the_device(there: Pipeline):
    only = torch.zeros(there.model.config.vocab_text, dtype=torch.bool)
    only[[there.tokenizer.eos, 17]] = True
    decoder = Decoder(there.model, [there.prompt("lm")] * 2, None, max_new=3)
    found = beam_search(
        decoder,
        beams=2,
        eos=there.tokenizer.eos,
        max_new=3,
        allowed=lambda row, tokens: only if row == 0 else None,
    )
    assert set(found[0]) <= {17}


def test_equal_scores_and_chances_choose_equally_on_every_device():
    """The chances are numbers of the host, whatever makes the scores."""
    torch.manual_seed(3)
    logits_BV, chance_B = torch.randn(64, 50) * 3, torch.rand(64)
    for sampling in (Sampling(), Sampling(0.7, top_k=7), Sampling(top_p=0.8)):
        expected = choose(logits_BV, sampling, chance_B)
        with stand_in() as device:
            found = choose(logits_BV.to(device), sampling, chance_B)
            assert found.device == device and found.tolist() == expected.tolist()
