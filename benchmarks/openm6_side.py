"""OpenM6's side of `versus_deepspeed.py`: the same model, streamed from the same kind of folder.

`versus_deepspeed.py` starts this script with its job as JSON. It prints one JSON line per step, then one with
sizes.
"""

import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import openm6
from benchmarks.residual_mlp import LEARNING_RATE, ResidualMLP, batch, counters, initialise, report_steps
from openm6.giant import AdamW, AdamW8bit, Tiers, stream

RULES = {"adamw": AdamW, "adamw8bit": AdamW8bit}


def fill(name: str, out: Tensor, expert: int | None) -> None:
    assert expert is None
    initialise(name, out)


def main() -> None:
    job = json.loads(sys.argv[1])
    before = counters()["peak_bytes"]
    with torch.device("meta"):
        model = ResidualMLP(job["layers"], job["width"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    compute = getattr(torch, job["compute"])
    giant = stream(
        model,
        budget=job["budget"],
        disk=job["folder"],
        tiers=Tiers(durability="none"),  # the peer has no commits either
        optimizer=RULES[job.get("optimizer", "adamw")](weight_decay=0.0),
        lr=LEARNING_RATE,
        weights_dtype=torch.bfloat16,
        compute_dtype=compute,
        fill=fill,
        trace=job.get("trace"),
    )
    micro_batches = [batch(job["width"], compute)]
    report_steps(lambda: giant.step(micro_batches).loss, job["steps"])
    giant.close()
    print(json.dumps({"parameters": parameters, "start_bytes": before, "version": openm6.__version__}))


if __name__ == "__main__":
    main()
