"""A pipeline guides a teller by `match`: the numbers that MAGIC gets, and what users may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openm6.decode import tell
from openm6.decode.decoder import Decoder
from openm6.decode.magic import Magic, magic_search
from openm6.decode.magic_beams import magic_beam_search
from openm6.decode.pipeline import Pipeline
from openm6.decode.tell import MatchLogits, Remembering, match_logits, told_by
from openm6.tasks.layout import Branch
from tests import tiny

NEW = 5


def test_match_logits_embed_equal_texts_once():
    asked: list[list[str]] = []

    def embed(texts: Sequence[str]) -> Tensor:
        asked.append(list(texts))
        return torch.tensor([[len(text), 1.0] for text in texts])

    logits = MatchLogits(
        torch.tensor([[1.0, 0.0], [0.0, 5.0], [2.0, 1.0]]), embed, lambda tokens: "x" * len(tokens)
    )
    found = logits([0, 2], [[[1], [2, 3]], [[4, 5], [6]]])
    assert asked == [["x", "xx"]]
    assert found.tolist() == [[1.0, 2.0], [5.0, 3.0]]


@pytest.mark.parametrize(
    ("magic", "search"),
    [(Magic(k=6, alpha=0.2, beta=1.5), magic_search), (Magic(k=6, beams=3), magic_beam_search)],
)
def test_a_pipeline_tells_what_the_formula_says(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, magic: Magic, search: Callable[..., list[list[int]]]
):
    tiny.short_texts(monkeypatch, NEW)
    pictures = [tiny.picture(i) for i in range(3)]
    told = pipeline.tell(pictures, pipeline, magic=magic)
    assert len(told) == 3 and pipeline.tell(pictures[0], pipeline, magic=magic) == told[0]
    with monkeypatch.context() as patch:
        patch.setattr("openm6.decode.pipeline.BATCH", 1)  # a picture at a time
        assert pipeline.tell(pictures, pipeline, magic=magic) == told

    tokenizer, scale = pipeline.tokenizer, pipeline.model.match_scale
    assert scale is not None

    def by_match(rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        images = pipeline.embed_images(pictures)[list(rows)]
        words = [
            pipeline.embed([pipeline.prompt("match", 1, text=tokenizer.decode(t)) for t in e]) for e in texts
        ]
        return scale.detach().exp() * torch.einsum(
            "bd,bkd->bk", torch.from_numpy(images), torch.tensor(np.stack(words))
        )

    decoder = Decoder(pipeline.model, [pipeline.prompt("lm")] * 3, None, max_new=NEW, candidates=6)
    expected = search(decoder, magic=magic, eos=tokenizer.eos, max_new=NEW, image_logits=by_match)
    assert told == [tokenizer.decode(tokens).strip() for tokens in expected]


def test_remembering_encodes_no_text_twice_and_changes_no_embedding(monkeypatch: pytest.MonkeyPatch):
    embedded: list[str] = []

    def embed(texts: Sequence[str]) -> Tensor:
        embedded.extend(texts)
        return torch.tensor([[float(len(text)), 2.0] for text in texts])

    remembering = Remembering(embed)
    assert torch.equal(remembering(["x", "xx", "x"]), torch.tensor([[1.0, 2.0], [2.0, 2.0], [1.0, 2.0]]))
    assert torch.equal(remembering(["xxx", "xx"]), torch.tensor([[3.0, 2.0], [2.0, 2.0]]))
    assert embedded == ["x", "xx", "xxx"] and remembering.asked == 5
    monkeypatch.setattr(tell, "MOST_KNOWN", 2)
    assert torch.equal(remembering(["x"]), torch.tensor([[1.0, 2.0]])) and set(remembering.known) == {"x"}


def test_pictures_together_ask_for_their_first_words_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    asked = list[str]()

    def embed(prompts: Sequence[Branch]) -> np.ndarray:
        asked.extend(str(prompt.source) for prompt in prompts if prompt.image is None)
        return plain(prompts)

    plain = pipeline.embed
    monkeypatch.setattr(pipeline, "embed", embed)
    pipeline.tell([tiny.picture(i) for i in range(4)], pipeline, magic=Magic(k=6), max_tokens=2)
    assert len(asked) == len(set(asked)) and 6 < len(asked) < 4 * 12


@pytest.mark.parametrize("magic", [Magic(k=10**6, beta=0.0), Magic(k=6, beams=2)])
def test_the_cache_has_room_for_those_who_look_ahead(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, magic: Magic
):
    """Never for more than there are tokens; beams do not look ahead."""
    rooms = list[int]()

    def opened(*arguments: Any, candidates: int, **more: Any) -> Decoder:
        rooms.append(candidates)
        return Decoder(*arguments, candidates=candidates, **more)

    monkeypatch.setattr("openm6.decode.tell.Decoder", opened)
    told_by(match_logits(pipeline, pipeline, [tiny.picture(0)]), pipeline, magic=magic, rows=8, max_new=2)
    assert rooms == [1 if magic.beams > 1 else pipeline.model.config.vocab_text]


def test_more_beams_than_are_decoded_at_a_time_are_refused(pipeline: Pipeline):
    with pytest.raises(ValueError, match="MAGIC's beams must lie between 1 and 64, not 65"):
        pipeline.tell(tiny.picture(0), pipeline, magic=Magic(beams=65))


def test_a_folder_is_no_teller(pipeline: Pipeline):
    folder: Any = "runs/tell"
    with pytest.raises(ValueError, match=r"a model that openm6.load has opened, not 'runs/tell'"):
        pipeline.tell(tiny.picture(0), folder)


def test_a_model_without_match_cannot_guide(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(pipeline.model._parameters, "match_scale", None)
    with pytest.raises(ValueError, match="cannot do match, so it cannot guide"):
        pipeline.tell(tiny.picture(0), pipeline)
