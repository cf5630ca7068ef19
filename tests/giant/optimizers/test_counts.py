"""Updates are counted by weight, as `torch.optim` counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openm6.giant import Adafactor, AdamW, Giant, PartOptimizer, stream
from openm6.giant.optimizers.counts import Counts
from openm6.giant.tiers.store import Access

WIDTH = 4
Pattern = tuple[
    bool, bool, bool
]  # whether the layers' `extra`, the frame's `p` and its `q` take part in a step


class Layer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.extra = nn.Parameter(torch.ones(WIDTH, WIDTH))

    def forward(self, x: Tensor, uses_extra: bool = False) -> Tensor:
        return super().forward(x @ self.extra if uses_extra else x)


class Optional(nn.Module):
    """Two layers and two parameters, which a batch may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.p, self.q = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH, WIDTH))

    def forward(self, x: Tensor, uses: Pattern) -> Tensor:
        for layer in self.layers:
            x = layer(x, uses[0])
        x = x + self.p if uses[1] else x
        return ((x @ self.q if uses[2] else x) - 1).square().mean()


def open_giant(folder: Path, optimizer: PartOptimizer, **options: object) -> Giant:
    torch.manual_seed(0)
    return stream(Optional(), budget="64GiB", disk=folder, optimizer=optimizer, lr=0.01, **options)  # pyright: ignore[reportArgumentType]


def x(step: int) -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))


def weights_of(giant: Giant) -> dict[str, Tensor]:
    """All weights, by the names of the module."""
    found: dict[str, Tensor] = {**giant.frame.parameters}
    for slot in giant.slots:
        with giant.store.use(Access(slot.name, ("weights",))) as views:
            found |= {f"{slot.path}.{name}": weight.clone() for name, weight in views["weights"].items()}
    return found


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=2, max_size=8),
    st.sampled_from([None, 0.3]),
    st.data(),
)
def test_any_pattern_of_missing_gradients_trains_as_torch_does(
    tmp_path_factory: pytest.TempPathFactory, patterns: list[Pattern], clip: float | None, data: st.DataObject
) -> None:
    """With a commit, and going on from it, after any step; with and without a clip over all gradients."""
    folder = tmp_path_factory.mktemp("counts")
    torch.manual_seed(0)
    reference = Optional()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        fused=True,
    )
    ours = AdamW(weight_decay=0.1)
    giant = open_giant(folder, ours, global_clip=clip)
    stop = data.draw(st.integers(1, len(patterns)))
    for step, uses in enumerate(patterns):
        optimizer.zero_grad()
        loss = reference(x(step), uses)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimizer.step()
        assert giant.step([(x(step), uses)]).loss == pytest.approx(loss.item(), rel=1e-5)
        if step + 1 == stop:
            giant.commit()
            giant.close()
            giant = open_giant(folder, ours, global_clip=clip)
            giant.prepare([(x(step), uses)])
    expected = dict(reference.named_parameters())
    for name, weight in weights_of(giant).items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=1e-5, atol=1e-6)
    giant.close()


def test_adafactors_rate_of_forgetting_goes_by_weight(tmp_path: Path) -> None:
    """Of a weight in its first update nothing is remembered, whatever the others have behind them."""
    changes = []
    for updates_before in (0, 5):
        torch.manual_seed(0)
        optimizer, weights = Adafactor(), {"w": torch.zeros(3)}
        state = {"w.square": torch.full((3,), 1e6 if updates_before == 0 else 0.0)}
        steps = {"w": updates_before + 1}
        assert optimizer.update(weights, {"w": torch.ones(3)}, state, lr=0.1, steps=steps, seed=0)
        changes.append(state["w.square"][0].item())
    assert changes[0] == pytest.approx(1.0)  # 1 - beta2 is 1
    assert changes[1] == pytest.approx(6**-0.8)


def test_copies_and_commits_keep_the_counts_of_every_weight() -> None:
    counts = Counts()
    counts.add("a", ["w", "b"])
    counts.add("a", ["w"])
    counts.add("b", ["w"])
    counts.copy("a", "b")
    counts.copy("new", "c")
    assert counts.record() == {
        "updates": {"a": 2, "b": 2},
        "updates_by_weight": {"a": {"w": 2, "b": 1}, "b": {"w": 2, "b": 1}},
    }
    counts.add("b", ["b"])
    assert counts.next("a", ["w", "b", "never"]) == {"w": 3, "b": 2, "never": 1}
    again = Counts()
    again.restore(counts.record(), {})
    assert again == counts
    again.restore({"updates": {"a": 2}}, {"a": ["w", "b"], "b": ["w"]})  # of an older version
    assert again.next("a", ["w", "b"]) == {"w": 3, "b": 3} and again.next("b", ["w"]) == {"w": 1}
