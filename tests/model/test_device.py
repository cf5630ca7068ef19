"""Device names: what `auto` finds, and one sentence for a device that is not there."""

from __future__ import annotations

import pytest
import torch

from openm6.model.device import check_device_name, resolve_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says that it has two CUDA devices."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["auto", "cpu", "cpu:0"])
def test_without_an_accelerator_everything_is_on_the_processor(name: str):
    assert resolve_device(name) == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_an_accelerator_is_found_by_auto_and_by_name(name: str, expected: str):
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "mps", "xpu"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(name: str):
    with pytest.raises(ValueError, match=f"no device '{name}'.*it has cuda:0, cuda:1"):
        resolve_device(name)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_machine_without_accelerators_says_so(name: str):
    with pytest.raises(ValueError, match=f"no device '{name}'.*it has cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta", "Auto"])
def test_what_is_no_device_name_is_refused_with_examples(name: str):
    with pytest.raises(ValueError, match="is no device: use auto, cpu, cuda"):
        check_device_name(name)
