"""The two sides of `match`, found in a packed stream: each as if it stood there alone."""

from __future__ import annotations

import torch
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.model.ranking import States
from openm6.tasks import TASKS
from openm6.tasks.collate import Batch, collate
from openm6.tasks.layout import Branch
from openm6.tasks.pairs import Texts, image_places, text_places
from tests import tiny

NAMES = ["red apple", "绿青蛙", "a hat that is black", "frog"]


def text(name: str) -> Branch:
    return TASKS["match"].layouts[1].branch("match", {"text": name, "key": name}, tiny.text_tokenizer())


def picture(index: int, *, captioned: bool = False) -> list[Branch]:
    tokenizer, fields = tiny.text_tokenizer(), {"image": tiny.picture(index), "key": str(index)}
    match = TASKS["match"].layouts[0].branch("match", fields, tokenizer)
    caption = (
        TASKS["caption"]
        .layouts[0]
        .branch("caption", {**fields, "lang": "en", "caption": "a thing"}, tokenizer)
    )
    return [caption, match] if captioned else [match]


def packed(examples: list[list[Branch]], row: int = 60) -> Batch:
    batch, order = collate(examples, row=row, image_tokens=4, pad=0)
    images = [each.image for index in order for each in examples[index][:1] if each.image is not None]
    if images:
        batch.stream.images_NCHW = normalise(over_white(stack_rgba(images, tiny.SIDE)))
    return batch


def sides(batch: Batch) -> tuple[States, States]:
    hidden, stream = tiny.m6()(batch.stream), batch.stream
    images = image_places(stream, batch.match_image_at, image_tokens=4).states(hidden, stream)
    return images, text_places(stream, batch.match_text_at).states(hidden, stream)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_states_of_a_packed_batch_are_those_of_each_alone():
    batch = packed(
        [[text(NAMES[0])], picture(0, captioned=True), [text(NAMES[1])], picture(3), [text(NAMES[2])]]
    )
    images, texts = sides(batch)
    for row, key in enumerate(batch.match_image_key.tolist()):
        [index] = [i for i in (0, 3) if packed([picture(i), [text("x")]]).match_image_key.item() == key]
        alone, _ = sides(packed([picture(index), [text("x")]]))
        close(images.x_BTD[row], alone.x_BTD[0])  # the caption of the first stands between picture and mark
        assert images.position_BT[row].tolist() == [4, 0, 1, 2, 3] and images.seen_BT[row].all()
    for row, key in enumerate(batch.match_text_key.tolist()):
        [name] = [n for n in NAMES[:3] if packed([[text(n)], picture(0)]).match_text_key.item() == key]
        _, alone = sides(packed([picture(0), [text(name)]]))
        length = len(text(name).source)
        assert texts.seen_BT[row].tolist() == [t < length for t in range(texts.seen_BT.shape[1])]
        close(texts.x_BTD[row, :length], alone.x_BTD[0, :length])
        assert texts.position_BT[row, :length].tolist() == list(range(length))[::-1]


@torch.no_grad()
def test_texts_read_anew_have_the_states_that_they_had():
    batch, model = packed([[text(name)] for name in NAMES]), tiny.m6()
    places = text_places(batch.stream, batch.match_text_at)
    texts = Texts.at(places, batch.stream)
    anew = Texts.cat(texts, Texts(torch.full((0, 99), -1)))
    assert torch.equal(anew.tokens_MT, texts.tokens_MT)
    found = model(anew.stream())
    before = places.states(model(batch.stream), batch.stream)
    close(found[texts.seen_MT], before.x_BTD[before.seen_BT])


def test_masks_spare_marks_and_padding_and_come_at_their_rate():
    tokens = torch.full((400, 9), 7)
    tokens[:, 0], tokens[::2, 5:] = 3, -1
    masked, gone = Texts(tokens).masked(0.3, mask=9, generator=torch.Generator().manual_seed(0))
    assert not gone[:, 0].any() and not gone[::2, 5:].any()
    assert torch.equal(masked.tokens_MT, tokens.masked_fill(gone, 9))
    assert abs(gone[1::2, 1:].float().mean() - 0.3) < 0.04
    none, gone = Texts(tokens).masked(0.0, mask=9, generator=torch.Generator())
    assert torch.equal(none.tokens_MT, tokens) and not gone.any()
