"""A model without its slots: entering, running layers on borrowed weights and leaving give the model's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openm6.giant.models.frame import Frame, open_frame
from tests.giant.subjects import MODELS, m6, toy


def run_whole(frame: Frame, batch: Any) -> dict[str, Tensor]:
    """The losses of a forward pass whose layers are answered for one by one."""
    run = frame.begin(batch)
    run.go_on()
    while (call := run.call) is not None:
        path, layer = frame.paths[call.layer], frame.layers[call.layer]
        weights = {name: frame.weights[f"{path}.{name}"] for name, _ in layer.named_parameters()}
        run.go_on(frame.run(call, weights, call.args, call.kwargs))
    return run.result


@pytest.mark.parametrize("model", MODELS)
def test_a_model_taken_apart_computes_the_same(model: str) -> None:
    subject = MODELS[model]()
    subject.model.eval()
    batch = subject.batch()
    with torch.no_grad():
        whole = subject.total(batch).item()
        frame = open_frame(subject.model, loss=subject.loss)
        losses = run_whole(frame, batch)
    assert sum(loss.item() for loss in losses.values()) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_the_model_keeps_its_frame_and_no_layer(model: str) -> None:
    subject = MODELS[model]()
    layers = {p for layer in subject.layers() for p in layer.parameters()}
    outside = {n for n, p in subject.model.named_parameters() if p not in layers}
    frame = open_frame(subject.model, loss=subject.loss)
    assert frame.parameters.keys() == outside
    assert set(frame.weights.values()) == layers
    assert all(p.is_meta for layer in frame.layers for p in layer.parameters())


class Statistics(nn.Module):
    """BatchNorm in front of a stack and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for layer in self.layers:
            x = layer(x)
        return self.behind(x).square().mean()


def test_running_statistics_move_once_a_pass() -> None:
    torch.manual_seed(0)
    model, x = Statistics(), torch.randn(8, 4)
    want = {name: buffer.clone() for name, buffer in model.named_buffers()}
    twin = Statistics()
    twin.load_state_dict(model.state_dict())
    twin(x)
    frame = open_frame(model)
    with frame.still():
        run_whole(frame, (x,))
        assert not all(torch.equal(buffer, want[name]) for name, buffer in model.named_buffers())
    assert all(torch.equal(buffer, want[name]) for name, buffer in model.named_buffers())
    run_whole(frame, (x,))
    assert all(torch.equal(buffer, twin.get_buffer(name)) for name, buffer in model.named_buffers())


def frozen() -> nn.Module:
    model = toy().model
    model.layers[0].up.weight.requires_grad_(False)
    return model


def apart() -> nn.Module:
    model = m6().model
    model.sharing = [0, 1, 0, 1]
    del model.slots[2:]
    return model


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (frozen, "is frozen"),
        (lambda: m6().model, "pass loss="),
        (lambda: nn.Linear(2, 2), "no ModuleList"),
    ],
)
def test_what_cannot_be_streamed_is_refused(build: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_frame(build())


def test_layers_that_share_a_slot_must_be_neighbours() -> None:
    frame = open_frame(apart(), loss=lambda model, batch: torch.zeros(()))
    with pytest.raises(ValueError, match="do not follow each other"):
        _ = frame.slots


def test_a_model_that_gives_no_loss_says_so() -> None:
    frame = open_frame(toy().model, loss=lambda model, batch: None)
    with pytest.raises(ValueError, match="gave no loss"):
        frame.begin((torch.ones(1), torch.ones(1))).go_on()


def test_a_layer_called_by_hand_says_that_its_weights_are_elsewhere() -> None:
    model = toy().model
    open_frame(model)
    with pytest.raises(ValueError, match="called outside of a forward pass, and its weights are not there"):
        model(torch.ones(1, 16), torch.ones(1, 16))


def test_a_parameter_of_a_layer_and_of_the_frame_is_refused() -> None:
    model = Statistics()
    model.behind.weight = next(model.layers.parameters())
    with pytest.raises(ValueError, match="are one parameter"):
        open_frame(model)
