from __future__ import annotations

import pytest

from benchmarks import delink_state


def test_averaged_or_rescaled_state_leaves_equal_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delink_state, "STEPS", 150)
    monkeypatch.setattr(delink_state, "AT", [1, 20, 100])
    sizes = {
        name: delink_state.measure(1.0, averaged=averaged, rule=rule)
        for name, (averaged, rule) in delink_state.RUNS.items()
    }
    assert sizes["mean_copy"] == pytest.approx([1, 1, 1], abs=0.15)
    assert sizes["sum_rescale"] == pytest.approx([1, 1, 1], abs=0.15)
    assert max(sizes["sum_copy"][1:]) < 0.3  # moments twelve times too large
    assert sizes["mean_reset"][0] > 3  # Adam's first step is the sign of the gradient
