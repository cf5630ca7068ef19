from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import delink
from openm6.giant.sharing import pseudo_to_real as sharing


def test_it_prints_one_line_without_a_difference(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "delink.json"
    delink.main(["--out", str(out)])
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads(out.read_text())
    assert figures["max_abs_diff"] == 0
    assert all(figures[f"max_abs_diff_{name}"] == 0 for name in ("m6", "llama", "qwen3", "gpt2", "vit"))
    assert figures["mean_gradient_max_abs_diff"] <= 1e-7 < 1e-3 < figures["mean_gradient_max_abs"]
    assert {"benchmark", "command", "machine"} <= figures.keys()


def test_it_would_notice_noise_at_the_delink_and_a_forgotten_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*args: object, **settings: object) -> None:
        sharing.delink(*args, **settings)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            for parameter in args[0].parameters():  # pyright: ignore[reportAttributeAccessIssue]
                parameter += 1e-6 * torch.randn_like(parameter)

    monkeypatch.setattr(delink, "delink", noisy)
    monkeypatch.setattr(delink, "average_shared_gradients", lambda model: None)
    measured = delink.measure(delink.m6(4))
    assert measured["max_abs_diff"] > 0
    assert measured["mean_gradient_max_abs_diff"] > 0.1 * measured["mean_gradient_max_abs"]
