"""Training of photo search: it learns, goes on after a stop, and what it saves is an encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openm6.search.learned.category import fuse
from openm6.search.learned.clicks import PageView, read_page_views
from openm6.search.learned.encoder import LearnedEncoder
from openm6.search.learned.items import Items
from openm6.search.learned.learning import train_search
from openm6.search.learned.learning_batches import batches, n_batches
from openm6.search.learned.learning_data import LearningConfig, prepare
from openm6.search.learned.masks import focus_loss
from openm6.search.learned.photo_net import CONFIG_FILE, WEIGHTS_FILE, PhotoNet, PhotoNetConfig
from openm6.search.learned.voters import VOTERS_FILE
from openm6.search.opening import open_encoder
from openm6.search.simulated.click_simulator import simulate_clicks
from tests.search.conftest import COLOURS, ColourEncoder, png

pytest.importorskip("efficientnet_lite_pytorch")
CONFIG = LearningConfig(image_size=64, dim=16, passes=2, view_passes=2, batch=12, view_batch=4, held_out=0.2)


@pytest.fixture(scope="module")
def items() -> Items:
    named = [(name, seed) for seed, name in enumerate(list(COLOURS) * 5)]
    pictures = [png(COLOURS[name], seed) for name, seed in named]
    return Items([f"{name}-{seed}" for name, seed in named], pictures, [name for name, _ in named])


@pytest.fixture(scope="module")
def views(items: Items, tmp_path_factory: pytest.TempPathFactory) -> list[PageView]:
    folder = tmp_path_factory.mktemp("log")
    return read_page_views(simulate_clicks(items, ColourEncoder(), folder, n_views=16, seed=0))


@pytest.fixture(scope="module")
def trained(items: Items, views: list[PageView], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "encoder"
    train_search(items, CONFIG, folder, views=views)
    return folder


def test_the_folder_is_an_encoder(trained: Path, items: Items) -> None:
    encoder = open_encoder(str(trained))
    assert isinstance(encoder, LearnedEncoder) and encoder.dim == 16 and encoder.image_size == 64
    pictures = items.decode(range(6), 64)
    vectors = encoder.images(pictures)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # One by one, or together: the same.
    np.testing.assert_allclose(
        np.concatenate([encoder.images([each]) for each in pictures]), vectors, atol=1e-4
    )
    assert encoder.images([]).shape == (0, 16)
    assert encoder.net.config.categories == items.categories and encoder.net.config.mask
    boxes = encoder.net.find(pictures)
    assert boxes.shape == (6, 4) and (boxes >= 0).all() and (boxes <= 1).all()
    assert not list(trained.rglob("*.pt")) and not list(trained.rglob("*.pkl"))
    with pytest.raises(ValueError, match="reads no words"):
        encoder.texts(["red"])


def test_every_loss_was_there_and_clicks_reached_the_detection_branch(trained: Path, items: Items) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2 * n_batches(16, 12), lines[-1]["steps"]]
    assert {"loss", "category", "proxy", "virtual", "triplet", "list", "focus", "held_out"} <= set(lines[-1])
    torch.manual_seed(CONFIG.seed)
    score = LearnedEncoder(trained).net.box.score.weight
    assert score.abs().sum() > 0  # it starts at 0, and no box is read


def test_a_killed_run_ends_like_one_that_was_not(
    trained: Path, items: Items, views: list[PageView], tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(line: dict[str, Any]) -> None:
        if line["what"] == "page views":
            raise Killed

    with pytest.raises(Killed):
        train_search(items, CONFIG, tmp_path, views=views, on_progress=kill)
    assert not (tmp_path / WEIGHTS_FILE).exists()
    train_search(items, CONFIG, tmp_path, views=views)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (trained / WEIGHTS_FILE).read_bytes()
    assert (tmp_path / CONFIG_FILE).read_bytes() == (trained / CONFIG_FILE).read_bytes()
    assert (tmp_path / VOTERS_FILE).read_bytes() == (trained / VOTERS_FILE).read_bytes()


def test_those_that_were_trained_on_vote_on_categories(trained: Path, items: Items) -> None:
    encoder, pictures = LearnedEncoder(trained), items.decode(range(4), 64)
    assert encoder.voters is not None
    held_out = round(CONFIG.held_out * len(items))
    assert len(encoder.voters.category_G) == len(items) - held_out
    vectors, p = encoder.predict(pictures)
    np.testing.assert_array_equal(vectors, encoder.images(pictures))
    softmax, vote = encoder.net.look(pictures)[1], encoder.voters.vote(pictures)
    np.testing.assert_allclose(p, fuse(softmax, vote, encoder.net.config.model_weight))
    assert np.abs(vote - softmax).max() > 0.01


def test_without_a_log_categories_are_learned_and_nothing_is_masked(items: Items, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"passes": 8})
    encoder = train_search(items, config, tmp_path)
    assert not encoder.net.config.mask and encoder.net.config.virtual_ids == 0
    _, probabilities = encoder.net.look(items.decode(range(len(items)), 64))
    assert (probabilities.argmax(1) == items.category_G).mean() > 0.5  # by chance: 0.25
    np.testing.assert_array_equal(encoder.net.find(items.decode([0], 64)), [[0, 0, 1, 1]])


def test_as_many_passes_are_made_as_are_asked_for(items: Items, tmp_path: Path) -> None:
    steps = list[int]()
    for passes in (1, 3):
        config = CONFIG.model_copy(update={"passes": passes})
        train_search(
            items, config, tmp_path / str(passes), on_progress=lambda line: steps.append(line["steps"])
        )
    assert steps == [n_batches(16, 12), *2 * [3 * n_batches(16, 12)]]
    with pytest.raises(ValueError, match="nothing would be trained"):
        train_search(items, CONFIG.model_copy(update={"passes": 0}), tmp_path / "none")


def test_a_run_on_other_pictures_is_another_run(items: Items) -> None:
    categories = [items.categories[i] for i in items.category_G]
    other = Items(items.ids, [png(COLOURS["red"], 99), *items.pictures[1:]], categories)
    found = [prepare(each, CONFIG, ()).fingerprint for each in (items, items, other)]
    assert found[0] == found[1] != found[2]


def test_the_gradient_of_a_triplet_moves_the_mask_and_not_the_trunk_through_it() -> None:
    torch.manual_seed(0)
    net = PhotoNet(PhotoNetConfig(image_size=64, dim=8, categories=["a", "b"], mask=True))
    torch.nn.init.normal_(net.box.score.weight)
    x = torch.randn(2, 3, 64, 64)
    boxes = net.box(net.trunk(x))
    boxes.sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    net.zero_grad()
    vectors = net.embed(net.late(net.early(net.masked(x, net.box(net.trunk(x))))))
    (vectors[0] @ vectors[1]).backward()
    assert net.box.score.weight.grad is not None and net.box.score.weight.grad.abs().sum() > 0


def test_search_sees_a_margin_around_the_box_and_nothing_beyond_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = PhotoNet(PhotoNetConfig(image_size=64, dim=8, mask=True))
    boxes = torch.tensor([[0.2, 0.3, 0.7, 0.5], [0.0, 0.05, 1.0, 0.95], [-0.3, 0.5, 0.7, 1.2]])
    monkeypatch.setattr(net.box, "forward", lambda map_NCHW: boxes)
    wanted = torch.tensor([[0.15, 0.28, 0.75, 0.52], [0.0, 0.0, 1.0, 1.0], [0.0, 0.43, 0.8, 1.0]])
    torch.testing.assert_close(net.found(torch.zeros(3, 112, 4, 4)), wanted)


def test_a_picture_is_enlarged_to_its_box() -> None:
    x = torch.rand(2, 3, 32, 32)
    whole, quarter = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.5, 0.25, 1.0, 0.75]])
    same, corner = PhotoNet.zoomed(x, torch.cat((whole, quarter))).split(1)
    torch.testing.assert_close(same, x[:1], atol=1e-5, rtol=0)
    cut = x[1:, :, 8:24, 16:]
    wanted = torch.nn.functional.interpolate(cut, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(corner[:, :, 2:-2, 2:-2], wanted[:, :, 2:-2, 2:-2], atol=1e-5, rtol=0)
    beyond = PhotoNet.zoomed(x[:1], torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
    assert beyond[..., 1:].abs().max() == 0


def test_cells_are_like_what_they_show() -> None:
    """A square on grey: its cells are like the picture of the square alone, and only the branch learns of it."""
    torch.manual_seed(0)
    net = PhotoNet(PhotoNetConfig(image_size=128, dim=8, mask=True))
    x = torch.zeros(1, 3, 128, 128)
    x[:, :, 64:, 64:] = torch.randn(3, 64, 64)
    wanted = net.embed(net.late(net.early(x[:, :, 64:, 64:])))
    trunk = net.trunk(x)
    likeness = net.likeness(trunk, wanted)
    assert likeness.shape == (1, 4, 4) and not likeness.requires_grad
    assert likeness[0, 2:, 2:].mean() > likeness[0, :2, :2].mean()
    focus_loss(net.box.scores(trunk), likeness).backward()
    assert all(p.grad is None for name, p in net.named_parameters() if not name.startswith("box."))


def test_nothing_to_learn_from_is_said(items: Items, tmp_path: Path) -> None:
    plain = Items(items.ids, items.pictures, [None] * len(items))
    with pytest.raises(ValueError, match="there is nothing to learn from"):
        train_search(plain, CONFIG, tmp_path)


def test_a_damaged_folder_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no search model: search\.json is missing"):
        open_encoder(str(tmp_path))
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / WEIGHTS_FILE).write_bytes(b"\x08\0\0\0\0\0\0\0junkjunk")
    with pytest.raises(ValueError, match="is damaged or does not fit"):
        open_encoder(str(folder))
    (folder / CONFIG_FILE).write_text('{"dim": "wide"}')
    with pytest.raises(ValueError, match=r"is not a search model's config"):
        open_encoder(str(folder))


@pytest.mark.parametrize(("n", "size"), [(1, 4), (5, 4), (6, 4), (8, 4), (3, 8), (100, 7)])
def test_batches_cover_what_they_should_once(n: int, size: int) -> None:
    found = [*batches(n, size, np.random.default_rng(0))]
    rows = np.concatenate(found)
    assert len(found) == n_batches(n, size) and len(set(rows)) == len(rows) and len(rows) > n - size
    assert all(len(part) <= size for part in found)
