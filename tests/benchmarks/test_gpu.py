"""The GPU benchmark without a GPU: what it makes of its parts, parts that fail, and all of it on the stand-in."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_model, gpu_sides

KEYS = ["streamed_over_resident", "streamed_over_resident_no_recompute", "disk_over_resident"]
RATIOS = [*KEYS, "vs_fsdp2_offload"]


def args(**changes: Any) -> Namespace:
    given = {
        "device": "cuda",
        "size": "h200",
        "parts": list(gpu.LIMITS),
        "host_budget": None,
        "patience": 1.0,
    }
    return Namespace(**{**given, "limit": gpu.LIMIT, "out": None, **changes})


def trained(tokens_per_s: float, loss: float = 10.0, **more: Any) -> dict[str, Any]:
    return {"tokens_per_s": tokens_per_s, "losses": [loss], **more}


def within(device: float, host: float) -> dict[str, float]:
    return {"device_over_budget": device, "host_over_budget": host}


PARTS: dict[str, Any] = {
    "dense": {"max_loss_diff": 1e-7, **within(0.1, 0.2)},
    "experts": {"max_loss_diff": 3e-6, **within(0.1, 0.2)},
    "resident": trained(100.0, no_recompute={"tokens_per_s": 125.0}),
    "host": trained(95.0, 10.01, **within(0.7, 0.98)),
    "fsdp2": trained(50.0, 9.99),
    "disk": trained(40.0, **within(0.7, 0.9)),
    "largest": trained(5.0, parameters=8_000_000_000, **within(0.8, 0.97)),
}


def test_the_figures_are_those_of_the_parts() -> None:
    found, reasons = gpu.figures(PARTS)
    assert reasons == {}
    assert found["max_loss_diff"] == 3e-6 and found["peak_over_budget"] == 0.98
    assert [found[key] for key in RATIOS] == [0.95, 95 / 125, 0.4, 1.9]
    assert found["largest"] == 8_000_000_000


@pytest.mark.parametrize(
    ("changes", "keys", "reason"),
    [
        ({"fsdp2": {"reason": "stopped at its limit"}}, ["vs_fsdp2_offload"], "fsdp2: stopped at its limit"),
        ({"resident": {}}, KEYS, "resident: said nothing"),
        ({"resident": trained(9.0, no_recompute={"reason": "out of memory"})}, KEYS[1:2], "out of memory"),
        ({"disk": trained(40.0, 11.0)}, ["disk_over_resident"], "train differently"),
        ({"disk": trained(40.0, math.nan)}, ["disk_over_resident"], "train differently"),
        ({"experts": {"reason": "ended with exit code 1"}}, ["max_loss_diff"], "exit code 1"),
        (
            {"largest": trained(5.0, parameters=9, **within(1.1, 0.9))},
            ["largest"],
            "1.100 of a budget was held",
        ),
    ],
)
def test_a_part_that_fails_costs_its_own_figures_alone(
    changes: dict[str, Any], keys: list[str], reason: str
) -> None:
    found, reasons = gpu.figures({**PARTS, **changes})
    assert [key for key, value in found.items() if value is None] == keys == list(reasons)
    assert all(reason in reasons[key] for key in keys)


def test_parts_that_did_not_run_are_named() -> None:
    values = gpu.result(args(parts=["host"]), {"host": PARTS["host"]}, on={})
    assert values["not_run"] == [name for name in gpu.LIMITS if name != "host"]
    assert values["streamed_over_resident"] is None and "was not run" in values["reasons"]["largest"]
    assert values["peak_over_budget"] == 0.98 and "--parts host" in values["command"]


def test_a_rehearsal_gives_no_ratio_as_if_it_were_a_gpu_s() -> None:
    values = gpu.result(args(device="arena:1MiB", size="tiny"), PARTS, on={})
    assert values["rehearsal"] is True and values["max_loss_diff"] == 3e-6
    assert all(values[key] is None for key in (*RATIOS, "largest"))
    assert values["rehearsed"]["vs_fsdp2_offload"] == 1.9
    assert "rehearsed" not in gpu.result(args(), PARTS, on={})


SCRIPT = """
import json, sys, time
job = json.loads(sys.argv[1])
print(json.dumps({"tokens_per_s": 1.0}), flush=True)
print(json.dumps({"tokens_per_s": 2.0}), flush=True)
print('{"tokens_per', end="", flush=True)
if job["part"] == "host":
    time.sleep(600)
sys.exit("that went wrong")
"""


def test_a_part_that_stops_keeps_its_last_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, folder = tmp_path / "sides.py", tmp_path / "disk"
    script.write_text(SCRIPT)
    folder.mkdir()
    monkeypatch.setattr(gpu, "SIDES", script)
    failed = gpu.Part("disk", args(disk=folder)).run(60)
    assert failed["tokens_per_s"] == 2.0 and "exit code 1: that went wrong" in failed["reason"]
    part = gpu.Part("host", args(disk=folder))
    stopped = part.run(2.0)
    assert stopped["tokens_per_s"] == 2.0 and "stopped at its limit of 2 seconds" in stopped["reason"]
    assert part.process is not None and part.process.poll() is not None
    assert list(folder.iterdir()) == []


def test_what_was_measured_is_printed_when_it_is_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(part: gpu.Part, seconds: float) -> dict[str, Any]:
        if part.name == "resident":
            raise KeyboardInterrupt
        return PARTS[part.name]

    monkeypatch.setattr(gpu.Part, "run", run)
    values = gpu.run(args(disk=tmp_path, out=tmp_path / "gpu.json"))
    assert values["max_loss_diff"] == 3e-6 and values["not_run"] == ["host", "fsdp2", "disk", "largest"]
    assert values["parts"]["resident"] == {"reason": "interrupted"}
    assert json.loads((tmp_path / "gpu.json").read_text())["max_loss_diff"] == 3e-6


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_streamed_losses_are_those_in_memory(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = gpu.job_of(
        kind, args(size="tiny", device="arena:64MiB"), seconds=600, folder=str(tmp_path / "store")
    )
    gpu_sides.SIDES[kind](job)
    known = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= known["max_loss_diff"] <= 1e-5
    assert 0 < known["device_over_budget"] <= 1 and 0 < known["host_over_budget"] <= 1


def test_values_depend_on_the_name_and_no_two_rows_are_alike() -> None:
    model = gpu_model.on_meta(gpu.SIZES["tiny"]["exact"]["experts"]).to_empty(device="cpu")
    gpu_model.fill_model(model)
    up_EDW = model.slots[0].get_parameter("ffn.up")
    first = up_EDW.detach().clone()
    assert not first[0].equal(first[1]) and len(first[0].unique(dim=0)) == first.shape[1]
    assert 0.015 < first.std() < 0.025 and (model.norm.weight == 1).all()
    fill = gpu_model.values_of(model.config.layers)
    fill("slots.0.ffn.up", up_EDW[0], 0)
    assert up_EDW[0].equal(first[0])


def test_every_side_trains_on_the_same_tokens() -> None:
    job = gpu.job_of("fsdp2", args(size="tiny"), seconds=1, folder="")
    two, one = (next(gpu_model.batches_of(job, micro_batches=count)) for count in (2, 1))
    assert [len(two), len(one)] == [2, 1]
    assert sum(batch.tokens for batch in two) == one[0].tokens == 64


def test_no_accelerator_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--disk", str(tmp_path)])
    assert stopped.value.code == 2 and "rehearse on a stand-in" in capsys.readouterr().err


@pytest.mark.slow  # seven processes import torch
@pytest.mark.timeout(1800)
def test_all_of_it_on_the_stand_in(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gpu.main(["--disk", str(tmp_path), "--device", "arena:64MiB", "--patience", "9", "--limit", "3000"])
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["reasons"] == {} and values["not_run"] == []
    assert values["rehearsal"] is True and 0 <= values["max_loss_diff"] <= 1e-5
    assert 0 < values["peak_over_budget"] <= 1
    assert all(values[key] is None for key in RATIOS)
    assert min(values["rehearsed"].values()) > 0
    assert values["parts"]["largest"]["refused"], "one layer more does not fit"
    assert list(tmp_path.iterdir()) == []
