"""Batches are a function of the seed, the step and the records; they resume at the exact record."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openm6.data.augment import normalise, over_white, stack_rgba
from openm6.modalities.cells import to_cells
from openm6.tasks.collate import Batch
from openm6.train.batches import Batches, texts_of
from openm6.train.config import MixConfig, RunConfig
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def mix_of(folder: Path, **changes: Any) -> list[MixConfig]:
    return RunConfig.model_validate(tiny.recipe(folder, **changes)).mix


def batches(mix: list[MixConfig], *, seed: int = 0, row: int = 96) -> Batches:
    return Batches(
        mix,
        model=tiny.config(),
        row=row,
        tokenizer=tiny.text_tokenizer(),
        image_tokenizer=tiny.image_tokenizer(),
        seed=seed,
    )


def poem_part(folder: Path, per_step: int, **tasks: float) -> MixConfig:
    content = {"data": tiny.poem_data(folder), "per_step": per_step, "tasks": tasks}
    return MixConfig.model_validate(content)


def part(folder: Path, per_step: int, augment: dict[str, float] | None = None, **tasks: float) -> MixConfig:
    content = {"data": tiny.picture_data(folder), "per_step": per_step, "tasks": tasks, "augment": augment}
    return MixConfig.model_validate(content)


def tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for item in (batch, batch.stream):
        yield from ((name, value) for name, value in vars(item).items() if isinstance(value, Tensor))


def assert_same(a: Batch, b: Batch) -> None:
    assert a.tasks == b.tasks
    for (name, x), (_, y) in zip(tensors(a), tensors(b), strict=True):
        assert torch.equal(x, y), name


def differ(a: Batch, b: Batch) -> bool:
    return any(x.shape != y.shape or not torch.equal(x, y) for (_, x), (_, y) in zip(tensors(a), tensors(b)))  # noqa: B905


def test_the_same_seed_gives_the_same_batches_and_another_does_not(folder: Path):
    mix = mix_of(folder)
    first, again, other = batches(mix), batches(mix), batches(mix, seed=1)
    for _ in range(3):
        batch = next(first)
        assert_same(batch, next(again))
        assert differ(batch, next(other))


def test_batches_resume_at_the_exact_record(folder: Path):
    """From every place, over the end of an epoch."""
    mix = mix_of(folder)
    source, states, made = batches(mix), [], []
    for _ in range(8):
        states.append(source.state_dict())
        made.append(next(source))
    for place in (0, 1, 4, 7):
        resumed = batches(mix)
        resumed.load_state_dict(states[place])
        for batch in made[place:]:
            assert_same(next(resumed), batch)
    # what happened elsewhere to random numbers does not matter
    torch.manual_seed(99)
    np.random.seed(99)
    assert_same(next(batches(mix)), made[0])


def test_a_state_of_another_seed_is_refused(folder: Path):
    state = batches(mix_of(folder)).state_dict()
    with pytest.raises(ValueError, match="seed"):
        batches(mix_of(folder), seed=1).load_state_dict(state)


def test_tasks_come_at_their_rates(folder: Path):
    source = batches([part(folder, 10, caption=1.0, ask=2.5, match=0.5)], row=200)
    eos, counts, pairs = tiny.text_tokenizer().eos, dict.fromkeys(("caption", "ask"), 0), 0
    for _ in range(20):
        batch = next(source)
        for index, name in enumerate(batch.tasks):
            mine = batch.text_target[batch.text_task == index]
            if name in counts:
                counts[name] += int((mine == eos).sum())
        assert len(batch.match_image_at) == len(batch.match_text_at)
        pairs += len(batch.match_image_at)
    assert counts["caption"] == 200
    assert 450 < counts["ask"] < 550
    assert 70 < pairs < 130


def test_a_picture_is_read_once_for_all_of_its_tasks(folder: Path):
    batch = next(batches([part(folder, 6, caption=2.0, ask=1.0, match=1.0)]))
    assert batch.stream.images_NCHW is not None and len(batch.stream.images_NCHW) == 6


def test_pictures_without_augmentation_are_the_records_own(folder: Path):
    batch = next(batches([part(folder, 12, caption=1.0)]))  # one epoch: all of them, in some order
    assert batch.stream.images_NCHW is not None
    given = normalise(over_white(stack_rgba([tiny.picture(i) for i in range(12)], tiny.SIDE)))
    left = list(range(12))
    for image in batch.stream.images_NCHW:
        left.remove(next(i for i in left if torch.equal(image, given[i])))
    assert batch.stream.images_NCHW.is_contiguous(memory_format=torch.channels_last)


def test_every_picture_stands_with_its_own_caption(folder: Path):
    """The order in which images are read is that of their examples in the packed rows."""
    batch = next(batches([part(folder, 12, caption=1.0)], row=40))
    stream, images = batch.stream, batch.stream.images_NCHW
    assert images is not None and stream.image_at is not None
    colours = {thing[6]: thing for thing in tiny.THINGS}
    at = batch.text_at.tolist()
    for index, image in enumerate(images):
        darkest = ((image + 1) * 127.5).round().flatten(1).T.min(0).values
        example = stream.example_BT.flatten()[stream.image_at[index * 4]]
        mine = [i for i, place in enumerate(at) if stream.example_BT.flatten()[place] == example]
        said = tiny.text_tokenizer().decode(batch.text_target[mine].tolist())
        [thing] = [thing for colour, thing in colours.items() if tuple(darkest.int().tolist()) == colour]
        assert said in thing[:2]


def test_augmentation_changes_pictures_from_step_to_step(folder: Path):
    source = batches([part(folder, 12, {}, caption=1.0)])
    images = [next(source).stream.images_NCHW for _ in range(2)]
    assert images[0] is not None and images[1] is not None
    assert images[0].min() >= -1 and images[0].max() <= 1
    pairs = (torch.equal(a, b) for a in images[0] for b in images[1])
    assert not any(pairs)


def test_a_drawing_is_the_pictures_codes(folder: Path):
    batch = next(batches([part(folder, 3, draw=1.0)]))
    pixels = over_white(stack_rgba([tiny.picture(i) for i in range(12)], tiny.SIDE))
    cells = to_cells(tiny.image_tokenizer().encode(pixels), 4)
    for drawn in batch.cell_target.view(3, 4, 4):
        assert any(torch.equal(drawn, each) for each in cells)


def test_questions_name_other_things_of_the_batch(folder: Path):
    source = batches([part(folder, 5, ask=4.0)])
    said = ""
    for _ in range(4):
        stream = next(source).stream
        said += tiny.text_tokenizer().decode(stream.tokens_BT[stream.example_BT >= 0].tolist())
    assert "no" in said and "yes" in said


def test_what_does_not_fit_a_row_is_left_out_with_a_warning(folder: Path):
    with pytest.warns(UserWarning, match="left out an example of task text_denoise"):
        batch = next(batches([poem_part(folder, 3, text_denoise=1.0, lm=1.0)], row=20))
    assert batch.stream.tokens_BT.shape[1] == 20 and "lm" in batch.tasks


def test_a_mix_whose_records_serve_no_task_is_told_with_the_columns_that_there_are(folder: Path):
    with pytest.raises(ValueError, match=r"no record of step 0 has what its tasks \(caption\) read"):
        next(batches([poem_part(folder, 2, caption=1.0)]))
    (folder / "shop.csv").write_text("sku,title\n1,a cat\n")
    content = {"data": {"path": str(folder / "shop.csv")}, "per_step": 1, "tasks": {"caption": 1.0}}
    with pytest.raises(
        ValueError, match=r"map the data's columns \(sku, title\) to fields, as in mix\.0\.data"
    ):
        next(batches([MixConfig.model_validate(content)]))


def test_bad_records_are_counted(folder: Path, tmp_path: Path):
    data = tiny.picture_data(tmp_path).model_copy(update={"max_bad_fraction": 0.5})
    (tmp_path / "3.png").write_bytes(b"broken")
    content = {"data": data, "per_step": 6, "tasks": {"caption": 1.0}}
    source = batches([MixConfig.model_validate(content)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            next(source)
    assert source.bad_records == 2  # once an epoch


def test_texts_of_gathers_every_text_once_an_epoch(folder: Path):
    texts = texts_of(mix_of(folder))
    for thing in tiny.THINGS:
        assert set(thing[:6]) <= set(texts)
    for poem in tiny.POEMS:
        assert texts.count(poem[3]) == 1
    assert not any(text.endswith(".png") for text in texts)
